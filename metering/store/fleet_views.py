"""What the API reads of fleets: who they are, and when their cycles were opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """One fleet, its bill cycle's rule and how many devices it has."""

    fleet_no: int
    fleet_id: str
    name: str
    currency: str
    time_zone: str
    anchor_day: int
    cycle_months: int
    anchor_month: int
    earlier_zones: Sequence[Sequence[str]]
    labels: Mapping[str, str]
    created_at: datetime
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    opened_at: datetime


_FLEET = (
    "SELECT fleet.fleet_no, fleet.fleet_id, fleet.name, fleet.currency, fleet.time_zone,"
    " fleet.anchor_day, fleet.cycle_months, fleet.anchor_month, fleet.earlier_zones,"
    " fleet.labels, fleet.created_at,"
    " (SELECT count(*) FROM device WHERE device.fleet_no = fleet.fleet_no) AS devices"
    " FROM fleet WHERE fleet.tenant_no = %(tenant_no)s"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFilter:
    """Which fleets a list is of: those of which all that is given is so. `text` is of id or name."""

    currency: str | None = None
    label: tuple[str, str] | None = None
    text: str | None = None


ALL_FLEETS = FleetFilter()
_NARROWED = {
    "currency": " AND fleet.currency = %(currency)s",
    "label": " AND fleet.labels ->> %(label_name)s = %(label_value)s",
    "text": " AND (strpos(lower(fleet.fleet_id), lower(%(text)s)) > 0"
    "   OR strpos(lower(fleet.name), lower(%(text)s)) > 0)",
}


async def list_fleets(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    which: FleetFilter = ALL_FLEETS,
    after: str,
    limit: int,
    during: During = ALWAYS,
) -> list[FleetView]:
    """Return at most `limit` of the tenant's fleets, some or all, ascending by id, after `after`."""
    label_name, label_value = which.label or (None, None)
    narrowed = "".join(
        condition for name, condition in _NARROWED.items() if getattr(which, name) is not None
    )
    return await fetch_all(
        connection,
        FleetView,
        _FLEET
        + narrowed
        + " AND fleet.fleet_id > %(after)s"
        + during.condition("fleet.created_at")
        + " ORDER BY fleet.fleet_id LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "currency": which.currency,
            "label_name": label_name,
            "label_value": label_value,
            "text": which.text,
            "after": after,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )


async def fleet_view(connection: Connection, tenant_no: TenantNo, *, fleet_id: str) -> FleetView:
    """Return one of the tenant's fleets; raise `NotFound`."""
    fleet = await fetch_one(
        connection,
        FleetView,
        _FLEET + " AND fleet.fleet_id = %(fleet_id)s",
        {"tenant_no": tenant_no, "fleet_id": fleet_id},
    )
    if fleet is None:
        raise NotFound("fleet", fleet_id)
    return fleet


async def cycle_opened_at(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, cycle_start: datetime
) -> datetime | None:
    """Return when charging opened a cycle of a fleet; None while it has not."""
    opened = await fetch_one(
        connection,
        _Opened,
        "SELECT fleet_cycle.opened_at FROM fleet_cycle"
        " JOIN fleet ON fleet.fleet_no = fleet_cycle.fleet_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND fleet_cycle.fleet_no = %(fleet_no)s"
        " AND fleet_cycle.cycle_start = %(cycle_start)s",
        {"tenant_no": tenant_no, "fleet_no": fleet_no, "cycle_start": cycle_start},
    )
    return None if opened is None else opened.opened_at
