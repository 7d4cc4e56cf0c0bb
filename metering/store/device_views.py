"""What the API reads of devices: state, subscription, what arrived, and what they drew and owe."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """One device as it is at an instant: its names, its state and its subscription.

    `state` is None before the first dated state; the plan's fields are None without a subscription.
    """

    device_no: int
    device_id: str
    fleet_no: int
    fleet_id: str
    iccid: str | None
    imsi: str | None
    imei: str | None
    eid: str | None
    msisdn: str | None
    name: str | None
    tags: list[str]
    labels: Mapping[str, str]
    created_at: datetime
    state: str | None
    state_since: datetime | None
    plan_id: str | None
    plan_version: int | None
    subscribed_from: datetime | None
    subscribed_to: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BootView:
    """What arrived of one boot: 1 … `up_to`, and the closed ranges flattened in `beyond`."""

    boot_id: str
    up_to: int
    beyond: list[int]
    first_seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FloodView:
    """What a device sent within `seconds` when it sent too much, and for how long it was held for it."""

    held_from: datetime
    held_until: datetime
    messages: int
    octets: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionView:
    """One subscription that runs in a cycle, with its plan version's terms as they are stored."""

    subscription_no: int
    plan_no: int
    plan_id: str
    plan_version: int
    terms: Mapping[str, object]
    subunits_per_unit: int
    subscribed_from: datetime
    subscribed_to: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionMeterView:
    """One subscription's use of one meter in a cycle, at all of its prices, in base units.

    `amount` counts the plan version's sub-unit.
    """

    subscription_no: int
    meter_no: int
    quantity: int
    uplink: int
    billed: int
    from_allowance: int
    from_pool: int
    overage: int
    amount: int


_DEVICE = (
    "SELECT device.device_no, device.device_id, device.fleet_no, fleet.fleet_id, sim.iccid,"
    " sim.imsi, device.imei, device.eid, device.msisdn, device.name, device.tags, device.labels,"
    " device.created_at,"
    " latest.state, latest.effective_from AS state_since,"
    " plan.plan_id, plan.version AS plan_version,"
    " lower(running.valid) AS subscribed_from, upper(running.valid) AS subscribed_to"
    " FROM device JOIN fleet ON fleet.fleet_no = device.fleet_no"
    " LEFT JOIN LATERAL (SELECT change.state, change.effective_from"
    "   FROM device_state_change AS change WHERE change.device_no = device.device_no"
    "   AND change.effective_from <= %(now)s ORDER BY change.effective_from DESC LIMIT 1"
    " ) AS latest ON true"
    " LEFT JOIN device_sim AS sim ON sim.device_no = device.device_no"
    "   AND sim.valid @> %(now)s::timestamptz"
    " LEFT JOIN subscription AS running ON running.device_no = device.device_no"
    "   AND running.valid @> %(now)s::timestamptz"
    " LEFT JOIN plan ON plan.plan_no = running.plan_no"
    " WHERE device.tenant_no = %(tenant_no)s AND fleet.tenant_no = %(tenant_no)s"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFilter:
    """Which devices a list is of: those of which all that is given is so, now. `text` is of id or name."""

    state: str | None = None
    plan_id: str | None = None
    tag: str | None = None
    label: tuple[str, str] | None = None
    text: str | None = None
    iccid: str | None = None
    imsi: str | None = None
    imei: str | None = None
    eid: str | None = None
    msisdn: str | None = None


ALL_DEVICES = DeviceFilter()
_OF_SIM = (
    " AND device.device_no IN (SELECT held.device_no FROM device_sim AS held"
    " WHERE held.tenant_no = %(tenant_no)s AND held.valid @> %(now)s::timestamptz AND "
)
_NARROWED = {
    "state": " AND latest.state = %(state)s",
    "plan_id": " AND plan.plan_id = %(plan_id)s",
    "tag": " AND device.device_no IN (SELECT tagged.device_no FROM device_tag AS tagged"
    " WHERE tagged.tenant_no = %(tenant_no)s AND tagged.tag = %(tag)s)",
    "label": " AND device.labels ->> %(label_name)s = %(label_value)s",
    "text": " AND (strpos(lower(device.device_id), lower(%(text)s)) > 0"
    "   OR strpos(lower(device.name), lower(%(text)s)) > 0)",
    # Its last digit may be left out on either side.
    "iccid": _OF_SIM + "(held.iccid IN (%(iccid)s, left(%(iccid)s, -1))"
    " OR left(held.iccid, -1) = %(iccid)s))",
    "imsi": _OF_SIM + "held.imsi = %(imsi)s)",
    "imei": " AND device.imei = %(imei)s",
    "eid": " AND device.eid = %(eid)s",
    "msisdn": " AND device.msisdn = %(msisdn)s",
}


async def list_devices(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int | None,
    which: DeviceFilter = ALL_DEVICES,
    after: str,
    limit: int,
    now: datetime,
    during: During = ALWAYS,
) -> list[DeviceView]:
    """Return at most `limit` devices, of some or of all, ascending by id, after `after`."""
    wanted = {name: getattr(which, name) for name in _NARROWED}
    narrowed = "" if fleet_no is None else " AND device.fleet_no = %(fleet_no)s"
    narrowed += "".join(_NARROWED[name] for name, value in wanted.items() if value is not None)
    label_name, label_value = which.label or (None, None)
    return await fetch_all(
        connection,
        DeviceView,
        _DEVICE
        + narrowed
        + " AND device.device_id > %(after)s"
        + during.condition("device.created_at")
        + " ORDER BY device.device_id LIMIT %(limit)s",
        {
            **wanted,
            "label_name": label_name,
            "label_value": label_value,
            "fleet_no": fleet_no,
            "tenant_no": tenant_no,
            "after": after,
            **during.parameters,
            "limit": checked_limit(limit),
            "now": now,
        },
    )


async def device_view(
    connection: Connection, tenant_no: TenantNo, *, device_id: str, now: datetime
) -> DeviceView:
    """Return one of the tenant's devices; raise `NotFound`."""
    device = await fetch_one(
        connection,
        DeviceView,
        _DEVICE + " AND device.device_id = %(device_id)s",
        {"tenant_no": tenant_no, "device_id": device_id, "now": now},
    )
    if device is None:
        raise NotFound("device", device_id)
    return device


async def boots_of_device(
    connection: Connection, tenant_no: TenantNo, *, device_no: int, most: int
) -> list[BootView]:
    """Return a device's last boot, then its earlier boots with open gaps, newest first.

    At most `most` boots in all.
    """
    return await fetch_all(
        connection,
        BootView,
        "WITH known AS (SELECT boot.boot_no, boot.boot_id, boot.up_to, boot.beyond,"
        "   boot.first_seen_at,"
        "   row_number() OVER (ORDER BY boot.first_seen_at DESC, boot.boot_no DESC) AS place"
        "   FROM boot JOIN device ON device.device_no = boot.device_no"
        "   WHERE device.tenant_no = %(tenant_no)s AND boot.device_no = %(device_no)s)"
        " SELECT known.boot_id, known.up_to, known.beyond, known.first_seen_at FROM known"
        " WHERE known.place = 1 OR known.beyond <> '{}' ORDER BY known.place LIMIT %(most)s",
        {"tenant_no": tenant_no, "device_no": device_no, "most": most},
    )


async def last_flood(
    connection: Connection, tenant_no: TenantNo, *, device_no: int
) -> FloodView | None:
    """Return the last time that a device sent too much; None if it never did."""
    return await fetch_one(
        connection,
        FloodView,
        "SELECT held_from, held_until, messages, octets, seconds FROM device_flood"
        " JOIN device USING (device_no)"
        " WHERE tenant_no = %(tenant_no)s AND device_no = %(device_no)s"
        " ORDER BY held_from DESC LIMIT 1",
        {"tenant_no": tenant_no, "device_no": device_no},
    )


async def subscriptions_in_cycle(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int,
    cycle_start: datetime,
    cycle_end: datetime,
) -> list[SubscriptionView]:
    """Return the subscriptions of a device that run in a cycle, ascending in time."""
    return await fetch_all(
        connection,
        SubscriptionView,
        "SELECT subscription.subscription_no, plan.plan_no, plan.plan_id,"
        " plan.version AS plan_version,"
        " plan.terms, plan.subunits_per_unit, lower(subscription.valid) AS subscribed_from,"
        " upper(subscription.valid) AS subscribed_to"
        " FROM subscription JOIN device ON device.device_no = subscription.device_no"
        " JOIN plan ON plan.plan_no = subscription.plan_no"
        " WHERE device.tenant_no = %(tenant_no)s AND plan.tenant_no = %(tenant_no)s"
        " AND subscription.device_no = %(device_no)s"
        " AND subscription.valid && tstzrange(%(cycle_start)s, %(cycle_end)s)"
        " ORDER BY lower(subscription.valid)",
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "cycle_start": cycle_start,
            "cycle_end": cycle_end,
        },
    )


async def meters_of_subscriptions(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int,
    subscription_nos: list[int],
    cycle_start: datetime,
) -> list[SubscriptionMeterView]:
    """Return what subscriptions of a device used in a cycle, meter by meter."""
    return await fetch_all(
        connection,
        SubscriptionMeterView,
        "SELECT use.subscription_no, use.meter_no, sum(use.quantity) AS quantity,"
        " sum(use.uplink) AS uplink, sum(use.billed) AS billed,"
        " sum(use.from_allowance) AS from_allowance, sum(use.from_pool) AS from_pool,"
        " sum(use.overage) AS overage, sum(use.amount) AS amount"
        " FROM device JOIN subscription ON subscription.device_no = device.device_no"
        " JOIN meter_use AS use ON use.subscription_no = subscription.subscription_no"
        " WHERE device.tenant_no = %(tenant_no)s AND device.device_no = %(device_no)s"
        " AND subscription.subscription_no = ANY(%(subscription_nos)s)"
        " AND use.cycle_start = %(cycle_start)s"
        " GROUP BY use.subscription_no, use.meter_no"
        " ORDER BY use.subscription_no, use.meter_no",
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "subscription_nos": subscription_nos,
            "cycle_start": cycle_start,
        },
    )


async def device_id_of(connection: Connection, device_no: int) -> str | None:
    """Return a device's id by its number; None when it is not seen."""
    found = await connection.execute(
        "SELECT device_id FROM device WHERE device_no = %s", [device_no]
    )
    row = await found.fetchone()
    return None if row is None else str(row[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class StateView:
    """A state of a device from an instant on, until the next."""

    state: str
    effective_from: datetime
    recorded_at: datetime


async def list_states(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int,
    before: datetime | None,
    limit: int,
    during: During = ALWAYS,
) -> list[StateView]:
    """Return at most `limit` states of a device, past and planned, the last first, before an instant."""
    return await fetch_all(
        connection,
        StateView,
        "SELECT change.state, change.effective_from, change.recorded_at"  # noqa: S608 - columns
        " FROM device JOIN device_state_change AS change ON change.device_no = device.device_no"
        " WHERE device.tenant_no = %(tenant_no)s AND device.device_no = %(device_no)s"
        " AND (%(before)s::timestamptz IS NULL OR change.effective_from < %(before)s)"
        + during.condition("change.effective_from")
        + " ORDER BY change.effective_from DESC LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "before": before,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )
