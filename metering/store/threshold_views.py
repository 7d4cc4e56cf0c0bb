"""What the API reads of alerts, and of the fleets whose thresholds it changes."""

from dataclasses import dataclass
from datetime import datetime

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.registry import Fleet, fleet_of_row
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertView:
    """One alert with the names of what it is of; `per_unit` of value, limit and overshoot make one."""

    alert_no: int
    threshold_no: int
    name: str
    fleet_id: str
    currency: str
    device_id: str | None
    measure: str
    meter_no: int | None
    period: str
    period_start: datetime
    period_end: datetime
    per_unit: int
    value: int
    limit_value: int
    overshoot: int
    boot_id: str | None
    seq: int | None
    measured_at: datetime | None
    published_at: datetime | None
    raised_at: datetime
    cleared_at: datetime | None
    released_at: datetime | None


async def threshold_exists(connection: Connection, tenant_no: TenantNo, threshold_no: int) -> bool:
    """Whether a tenant has, or had, a threshold: one that was deleted keeps its alerts."""
    found = await connection.execute(
        "SELECT FROM threshold WHERE tenant_no = %s AND threshold_no = %s",
        [tenant_no, threshold_no],
    )
    return await found.fetchone() is not None


async def list_alerts(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int | None,
    device_no: int | None,
    threshold_no: int | None,
    period: str | None,
    at: datetime | None,
    before: int | None,
    limit: int,
    during: During = ALWAYS,
) -> list[AlertView]:
    """Return at most `limit` of the tenant's alerts, the last raised first, before one."""
    return await fetch_all(
        connection,
        AlertView,
        "SELECT alert_no, threshold_no, threshold.name, fleet_id, currency, device_id, measure,"  # noqa: S608 - columns
        " threshold.meter_no, threshold.period, period_start, period_end, per_unit, alert.value,"
        " alert.limit_value, overshoot, boot_id, seq, measured_at, published_at, raised_at, cleared_at,"
        " released_at FROM alert JOIN threshold USING (threshold_no)"
        " JOIN fleet ON fleet.fleet_no = alert.fleet_no"
        " LEFT JOIN device ON device.device_no = alert.device_no"
        " LEFT JOIN boot ON boot.boot_no = alert.boot_no"
        " WHERE alert.tenant_no = %(tenant)s"
        " AND (%(fleet)s::int IS NULL OR alert.fleet_no = %(fleet)s)"
        " AND (%(device)s::bigint IS NULL OR alert.device_no = %(device)s)"
        " AND (%(threshold)s::bigint IS NULL OR threshold_no = %(threshold)s)"
        " AND (%(period)s::text IS NULL OR threshold.period = %(period)s)"
        " AND (%(at)s::timestamptz IS NULL OR (period_start <= %(at)s AND period_end > %(at)s))"
        " AND (%(before)s::bigint IS NULL OR alert_no < %(before)s)"
        + during.condition("raised_at")
        + " ORDER BY alert_no DESC LIMIT %(limit)s",
        {
            "tenant": tenant_no,
            "fleet": fleet_no,
            "device": device_no,
            "threshold": threshold_no,
            "period": period,
            "at": at,
            "before": before,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )


async def alert_view(connection: Connection, tenant_no: TenantNo, alert_no: int) -> AlertView:
    """Return one of a tenant's alerts; raise `NotFound`."""
    rows = await list_alerts(
        connection,
        tenant_no,
        fleet_no=None,
        device_no=None,
        threshold_no=None,
        period=None,
        at=None,
        before=alert_no + 1,
        limit=1,
    )
    if not rows or rows[0].alert_no != alert_no:
        raise NotFound("alert", str(alert_no))
    return rows[0]


async def fleet_by_no(connection: Connection, fleet_no: int) -> Fleet:
    """Return a fleet by its number; raise `NotFound`."""
    found = await connection.execute(
        "SELECT fleet_no, tenant_no, fleet_id, name, currency, time_zone, anchor_day,"
        " cycle_months, anchor_month, earlier_zones, shard_no"
        " FROM fleet WHERE fleet_no = %s",
        [fleet_no],
    )
    row = await found.fetchone()
    if row is None:
        raise NotFound("fleet", str(fleet_no))
    return fleet_of_row(row)
