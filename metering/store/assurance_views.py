"""What revenue assurance reads: the fate of each reading, charges against their sums, who was active."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from metering.ids import TenantNo
from metering.period import BillCycle
from metering.store.connection import Connection
from metering.store.rows import checked_limit, fetch_all

# Readings that were measured in the cycle, of devices that are in the fleet or were subscribed in it
# then. A counter's growth is as charging found it; all else is as it was told.
_FATES = (
    " FROM (SELECT reading.device_no, reading.meter_no, reading.boot_no, reading.seq,"
    "   charged.records AS charges, charged.quantity AS charged, charged.alike,"
    "   parked.reason, parked.quantity AS parked, work_item.batch_no IS NOT NULL AS queued,"
    "   CASE WHEN reading.kind = 1 THEN reading.uplink + reading.downlink + reading.quantity"
    "     ELSE coalesce(charged.quantity, parked.quantity, 0) END AS told"
    "  FROM reading"
    "  LEFT JOIN LATERAL (SELECT count(*) AS records, sum(charge.quantity) AS quantity,"
    "      bool_and(charge.quantity = reading.uplink + reading.downlink + reading.quantity) AS alike"
    "    FROM charge WHERE charge.boot_no = reading.boot_no AND charge.seq = reading.seq"
    "    AND charge.measured_at = reading.measured_at) AS charged ON true"
    "  LEFT JOIN parked ON parked.boot_no = reading.boot_no AND parked.seq = reading.seq"
    "  LEFT JOIN work_item ON work_item.shard_no = reading.shard_no"
    "    AND work_item.batch_no = reading.batch_no"
    "  WHERE reading.measured_at >= %(start)s AND reading.measured_at < %(end)s"
    "  AND reading.device_no IN (SELECT device_no FROM device"
    "      WHERE fleet_no = %(fleet_no)s AND tenant_no = %(tenant_no)s"
    "    UNION SELECT device_no FROM subscription WHERE fleet_no = %(fleet_no)s"
    "      AND valid && tstzrange(%(start)s, %(end)s))) AS fate"
)
_LOST = "fate.charges = 0 AND fate.reason IS NULL AND NOT fate.queued"
# Of a capacity each part has the whole.
_UNEQUAL = "fate.charges > 0 AND fate.charged <> fate.told AND NOT fate.alike"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterFates:
    """The readings of one meter and what became of them: how many, and how much they tell."""

    meter_no: int
    received: int = 0
    received_quantity: int = 0
    rated: int = 0
    rated_quantity: int = 0
    parked: int = 0
    parked_quantity: int = 0
    queued: int = 0
    queued_quantity: int = 0
    lost: int = 0
    lost_quantity: int = 0
    rejected: int = 0
    rejected_quantity: int = 0


async def fates_by_meter(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, cycle: BillCycle
) -> list[MeterFates]:
    """Return what became of a fleet's readings that were measured in a cycle, meter by meter."""
    fates = {
        "rated": ("fate.charges > 0", "charged"),
        "parked": ("fate.reason IS NOT NULL", "parked"),
        "queued": ("fate.queued AND fate.charges = 0 AND fate.reason IS NULL", "told"),
        "lost": (_LOST, "told"),
    }
    counted = ", ".join(
        f"count(*) FILTER (WHERE {which}) AS {name},"
        f" coalesce(sum(fate.{quantity}) FILTER (WHERE {which}), 0) AS {name}_quantity"
        for name, (which, quantity) in fates.items()
    )
    return await fetch_all(
        connection,
        MeterFates,
        "SELECT fate.meter_no, count(*) AS received, coalesce(sum(fate.told), 0) AS received_quantity,"
        f" {counted} {_FATES} GROUP BY fate.meter_no ORDER BY fate.meter_no",
        _given(tenant_no, fleet_no, cycle),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FatesOfDevice:
    """Readings of one device and meter that are neither charged nor parked nor queued, or unequally."""

    device_id: str
    meter_no: int
    lost: int
    lost_quantity: int
    unequal: int
    excess: int
    """What is charged beyond what was told of the unequal ones, in base units."""
    first_boot_no: int
    first_seq: int


async def troubled_fates(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, cycle: BillCycle
) -> list[FatesOfDevice]:
    """Return the devices and meters of which readings have no fate, or are charged unequally."""
    return await fetch_all(
        connection,
        FatesOfDevice,
        f"SELECT device.device_id, fate.meter_no, count(*) FILTER (WHERE {_LOST}) AS lost,"
        f" coalesce(sum(fate.told) FILTER (WHERE {_LOST}), 0) AS lost_quantity,"
        f" count(*) FILTER (WHERE {_UNEQUAL}) AS unequal,"
        f" coalesce(sum(fate.charged - fate.told) FILTER (WHERE {_UNEQUAL}), 0) AS excess,"
        " min(fate.boot_no) AS first_boot_no, min(fate.seq) AS first_seq"
        f" {_FATES} JOIN device ON device.device_no = fate.device_no"
        f" WHERE ({_LOST}) OR ({_UNEQUAL})"
        " GROUP BY device.device_id, fate.meter_no ORDER BY device.device_id, fate.meter_no",
        _given(tenant_no, fleet_no, cycle),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedOfDevice:
    """Readings of one device and meter that are parked for one reason."""

    device_id: str
    meter_no: int
    reason: str
    records: int
    quantity: int


async def parked_by_device(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, cycle: BillCycle
) -> list[ParkedOfDevice]:
    """Return what is parked of a fleet's readings that were measured in a cycle."""
    return await fetch_all(
        connection,
        ParkedOfDevice,
        "SELECT device.device_id, fate.meter_no, fate.reason, count(*) AS records,"
        f" sum(fate.parked) AS quantity {_FATES} JOIN device ON device.device_no = fate.device_no"
        " WHERE fate.reason IS NOT NULL GROUP BY device.device_id, fate.meter_no, fate.reason"
        " ORDER BY device.device_id, fate.meter_no, fate.reason",
        _given(tenant_no, fleet_no, cycle),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedContent:
    """What was rejected of a device: why, its kept bytes, how often it came, and when last."""

    rejected_no: int
    device_id: str
    reason: str
    content: bytes
    times: int
    last_received_at: datetime


_CLOCK_AHEAD_MAX = timedelta(days=1)
"""What is measured in a cycle is not received longer than this before it begins."""


async def rejected_contents_of_fleet(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int,
    cycle: BillCycle,
    after: tuple[datetime, int] | None,
    limit: int,
) -> list[RejectedContent]:
    """Return at most `limit` of what was rejected of a fleet's devices since a cycle began.

    In the order in which it came last; `after` is the `(last_received_at, rejected_no)` of the last one.
    """
    received_at, rejected_no = after or (cycle.start - _CLOCK_AHEAD_MAX, 0)
    return await fetch_all(
        connection,
        RejectedContent,
        "SELECT rejected.rejected_no, device.device_id, rejected.reason, rejected.content,"
        " rejected.times, rejected.last_received_at FROM rejected"
        " JOIN device ON device.device_no = rejected.device_no"
        " WHERE device.tenant_no = %(tenant_no)s AND rejected.tenant_no = %(tenant_no)s"
        " AND (device.fleet_no = %(fleet_no)s OR EXISTS (SELECT FROM subscription"
        "   WHERE subscription.device_no = device.device_no AND fleet_no = %(fleet_no)s"
        "   AND valid && tstzrange(%(start)s, %(end)s)))"
        " AND (rejected.last_received_at, rejected.rejected_no) > (%(received_at)s, %(rejected_no)s)"
        " ORDER BY rejected.last_received_at, rejected.rejected_no LIMIT %(limit)s",
        {
            **_given(tenant_no, fleet_no, cycle),
            "received_at": received_at,
            "rejected_no": rejected_no,
            "limit": checked_limit(limit),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOfDevice:
    """The plan version that a device is on last in a cycle."""

    device_id: str
    plan_no: int


async def plans_of_devices(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int,
    cycle: BillCycle,
    device_ids: Sequence[str],
) -> list[PlanOfDevice]:
    """Return the plan versions that some devices are on last in a fleet's cycle."""
    return await fetch_all(
        connection,
        PlanOfDevice,
        "SELECT DISTINCT ON (device.device_id) device.device_id, subscription.plan_no"
        " FROM subscription JOIN device USING (device_no)"
        " WHERE device.tenant_no = %(tenant_no)s AND device.device_id = ANY(%(device_ids)s)"
        " AND subscription.fleet_no = %(fleet_no)s AND valid && tstzrange(%(start)s, %(end)s)"
        " ORDER BY device.device_id, lower(valid) DESC",
        {**_given(tenant_no, fleet_no, cycle), "device_ids": list(device_ids)},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedUse:
    """How much of a meter a device used at one price of a plan in a cycle, in base units."""

    device_id: str
    plan_no: int
    meter_no: int
    variant: int
    overage: int


async def priced_uses(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int,
    cycle: BillCycle,
    plan_nos: Sequence[int],
) -> list[PricedUse]:
    """Return what a fleet's devices used at the prices of some plans in a cycle."""
    return await fetch_all(
        connection,
        PricedUse,
        "SELECT device.device_id, subscription.plan_no, meter_no, variant::int AS variant,"
        " sum(overage) AS overage FROM meter_use JOIN subscription USING (subscription_no)"
        " JOIN device ON device.device_no = subscription.device_no"
        " WHERE device.tenant_no = %(tenant_no)s AND meter_use.fleet_no = %(fleet_no)s"
        " AND meter_use.cycle_start = %(start)s AND subscription.plan_no = ANY(%(plan_nos)s)"
        " GROUP BY 1, 2, 3, 4",
        {**_given(tenant_no, fleet_no, cycle), "plan_nos": list(plan_nos)},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnequalUse:
    """A cumulative use that is not the sum of its charges; what it has more than they."""

    device_id: str
    plan_id: str
    meter_no: int
    variant: int
    records: int
    quantity: int
    billed: int
    amount: int
    subunits_per_unit: int


async def unequal_uses(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, cycle: BillCycle
) -> list[UnequalUse]:
    """Return where what bills are drawn up from differs from the charges of a fleet's cycle."""
    return await fetch_all(
        connection,
        UnequalUse,
        "WITH charged AS (SELECT subscription_no, meter_no, variant::int AS variant,"
        "   count(*) AS records, sum(quantity) AS quantity, sum(billed) AS billed,"
        "   sum(from_allowance) AS from_allowance, sum(from_pool) AS from_pool,"
        "   sum(overage) AS overage, sum(amount) AS amount FROM charge"
        "   WHERE fleet_no = %(fleet_no)s AND cycle_start = %(start)s AND measured_at >= %(start)s"
        "   GROUP BY subscription_no, meter_no, variant),"
        " kept AS (SELECT subscription_no, meter_no, variant::int AS variant, records, quantity,"
        "   billed, from_allowance, from_pool, overage, amount FROM meter_use"
        "   WHERE fleet_no = %(fleet_no)s AND cycle_start = %(start)s)"
        " SELECT device.device_id, plan.plan_id, meter_no, variant,"
        " coalesce(kept.records, 0) - coalesce(charged.records, 0) AS records,"
        " coalesce(kept.quantity, 0) - coalesce(charged.quantity, 0) AS quantity,"
        " coalesce(kept.billed, 0) - coalesce(charged.billed, 0) AS billed,"
        " coalesce(kept.amount, 0) - coalesce(charged.amount, 0) AS amount, plan.subunits_per_unit"
        " FROM kept FULL JOIN charged USING (subscription_no, meter_no, variant)"
        " JOIN subscription USING (subscription_no)"
        " JOIN device ON device.device_no = subscription.device_no"
        " JOIN plan ON plan.plan_no = subscription.plan_no"
        " WHERE device.tenant_no = %(tenant_no)s"
        " AND (kept.records, kept.quantity, kept.billed, kept.from_allowance, kept.from_pool,"
        "   kept.overage, kept.amount) IS DISTINCT FROM (charged.records, charged.quantity,"
        "   charged.billed, charged.from_allowance, charged.from_pool, charged.overage, charged.amount)"
        " AND coalesce(kept.records, charged.records) <> 0"
        " ORDER BY device.device_id, meter_no, variant",
        _given(tenant_no, fleet_no, cycle),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTerms:
    """A device of a fleet in a cycle: when it was active, when subscribed, and what usage costs it.

    Spans are `[from, to)` within the cycle, as lists of their ends in turn. `amounts` count the
    sub-units of plan versions, one for each of `subunits`.
    """

    device_no: int
    device_id: str
    active: Sequence[datetime] | None
    subscribed: Sequence[datetime] | None
    records: int
    amounts: Sequence[int] | None
    subunits: Sequence[int] | None


async def device_terms(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, cycle: BillCycle, until: datetime
) -> list[DeviceTerms]:
    """Return the devices that a fleet has or that were subscribed in it in a cycle, by id.

    Spans end at `until` at the latest.
    """
    return await fetch_all(
        connection,
        DeviceTerms,
        "SELECT device.device_no, device.device_id,"
        " (SELECT array_agg(side ORDER BY side) FROM (SELECT effective_from, state,"
        "     lead(effective_from, 1, 'infinity') OVER (ORDER BY effective_from) AS ends"
        "     FROM device_state_change AS change WHERE change.device_no = device.device_no) AS dated,"
        "   LATERAL (VALUES (greatest(effective_from, %(start)s)), (least(ends, %(until)s)))"
        "     AS sides (side)"
        "   WHERE state = 'active' AND greatest(effective_from, %(start)s) < least(ends, %(until)s)"
        " ) AS active,"
        " (SELECT array_agg(side ORDER BY side) FROM subscription,"
        "   LATERAL (VALUES (greatest(lower(valid), %(start)s)),"
        "     (least(coalesce(upper(valid), 'infinity'), %(until)s))) AS sides (side)"
        "   WHERE subscription.device_no = device.device_no AND fleet_no = %(fleet_no)s"
        "   AND valid && tstzrange(%(start)s, %(until)s)) AS subscribed,"
        " coalesce(spent.records, 0) AS records, spent.amounts, spent.subunits"
        " FROM device LEFT JOIN (SELECT device_no, sum(records)::bigint AS records,"
        "     array_agg(amount) AS amounts, array_agg(subunits_per_unit) AS subunits"
        "   FROM (SELECT device_no, plan_no, count(*) AS records, sum(amount) AS amount FROM charge"
        "     WHERE fleet_no = %(fleet_no)s AND cycle_start = %(start)s"
        "     AND measured_at >= %(start)s GROUP BY device_no, plan_no) AS by_plan"
        "   JOIN plan USING (plan_no) GROUP BY device_no) AS spent USING (device_no)"
        " WHERE device.tenant_no = %(tenant_no)s AND device.created_at < %(end)s"
        " AND (device.fleet_no = %(fleet_no)s OR EXISTS (SELECT FROM subscription"
        "   WHERE subscription.device_no = device.device_no AND fleet_no = %(fleet_no)s"
        "   AND valid && tstzrange(%(start)s, %(end)s)))"
        # What a device did in another fleet is that fleet's.
        " AND (device.fleet_no = %(fleet_no)s OR spent.records IS NOT NULL OR EXISTS"
        "   (SELECT FROM subscription WHERE subscription.device_no = device.device_no"
        "   AND fleet_no = %(fleet_no)s AND valid && tstzrange(%(start)s, %(until)s)))"
        " ORDER BY device.device_id",
        {**_given(tenant_no, fleet_no, cycle), "until": until},
    )


async def subscribed_elsewhere(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, cycle: BillCycle
) -> dict[int, list[tuple[datetime, datetime | None]]]:
    """Return when devices were subscribed in other fleets in a cycle, of those that were in this one."""
    found = await connection.execute(
        "SELECT other.device_no, lower(other.valid), upper(other.valid) FROM subscription AS other"
        " JOIN device USING (device_no) WHERE device.tenant_no = %s AND other.fleet_no <> %s"
        " AND other.valid && tstzrange(%s, %s) AND (device.fleet_no = %s OR EXISTS (SELECT"
        "   FROM subscription AS own WHERE own.device_no = other.device_no AND own.fleet_no = %s))"
        " ORDER BY other.device_no, lower(other.valid)",
        [tenant_no, fleet_no, cycle.start, cycle.end, fleet_no, fleet_no],
    )
    spans: dict[int, list[tuple[datetime, datetime | None]]] = {}
    for device_no, begins, ends in await found.fetchall():
        spans.setdefault(device_no, []).append((begins, ends))
    return spans


def _given(tenant_no: TenantNo, fleet_no: int, cycle: BillCycle) -> dict[str, object]:
    return {
        "tenant_no": tenant_no,
        "fleet_no": fleet_no,
        "start": cycle.start,
        "end": cycle.end,
    }
