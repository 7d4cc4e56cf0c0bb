"""What the API reads of charges: those of a bill, their sums by device, and one with all that made it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Literal

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.period import BillCycle
from metering.store.closing import STANDING_NOTED
from metering.store.connection import Connection
from metering.store.known_views import KNOWN_CHARGES, KNOWN_CHARGES_OF_DEVICE, Known
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all, fetch_one

ChargeKey = tuple[int, int, int]
"""(boot_no, seq, part)"""
PriceKey = tuple[int, int, int]
"""(plan_no, meter_no, variant): the price of a bill's usage line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargesWanted:
    """Which charges: of a fleet's cycle, as they were known; of some prices and a device, or (None) all."""

    fleet_no: int
    cycle_start: datetime
    known: Known
    prices: Sequence[PriceKey] | None = None
    device_no: int | None = None

    def query(self, text: str) -> str:
        """Return a query over `_WANTED` that looks at these charges alone."""
        charges = KNOWN_CHARGES if self.device_no is None else KNOWN_CHARGES_OF_DEVICE
        return text.replace("{charges}", charges)

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of `_WANTED`."""
        prices = self.prices or []
        return {
            "fleet_no": self.fleet_no,
            "cycle_start": self.cycle_start,
            "device_no": self.device_no,
            "is_priced": self.prices is not None,
            "plans": [each[0] for each in prices],
            "meters": [each[1] for each in prices],
            "variants": [each[2] for each in prices],
            **self.known.parameters,
        }


_WANTED = (
    " FROM {charges} AS charge"
    " JOIN fleet ON fleet.fleet_no = charge.fleet_no AND fleet.tenant_no = %(tenant_no)s"
    " JOIN plan ON plan.plan_no = charge.plan_no"
    " JOIN device ON device.device_no = charge.device_no"
    " JOIN boot ON boot.boot_no = charge.boot_no"
    " WHERE (NOT %(is_priced)s OR (charge.plan_no, charge.meter_no, charge.variant) IN"
    "   (SELECT * FROM unnest(%(plans)s::int[], %(meters)s::smallint[], %(variants)s::smallint[])))"
)
_SUMS = (
    "count(*) AS records, coalesce(sum(charge.quantity), 0) AS quantity,"
    " coalesce(sum(charge.billed), 0) AS billed,"
    " coalesce(sum(charge.from_allowance), 0) AS from_allowance,"
    " coalesce(sum(charge.from_pool), 0) AS from_pool, coalesce(sum(charge.overage), 0) AS overage"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeSums:
    """What charges come to: of one device, or (None) of all; in base units.

    Amounts count the sub-units of plan versions, one for each of `subunits`.
    """

    device_id: str | None
    records: int
    quantity: int
    billed: int
    from_allowance: int
    from_pool: int
    overage: int
    amounts: Sequence[int] | None
    subunits: Sequence[int] | None

    @property
    def exact(self) -> Fraction:
        """The sum in units of currency."""
        pairs = zip(self.amounts or (), self.subunits or (), strict=True)
        return sum((Fraction(int(one), int(per)) for one, per in pairs), Fraction(0))


NO_CHARGES = ChargeSums(
    device_id=None, records=0, quantity=0, billed=0, from_allowance=0, from_pool=0, overage=0,
    amounts=(), subunits=(),
)  # fmt: skip
"""What no charge at all comes to."""

_BY_PLAN = (
    "WITH wanted AS (SELECT {device} AS device_id, plan.subunits_per_unit AS subunits,"  # noqa: S608 - own text
    f" {_SUMS}, sum(charge.amount) AS amount {_WANTED.replace('{', '{{').replace('}', '}}')}{{after}}"
    " GROUP BY 1, plan.plan_no)"
    " SELECT device_id, {sums}, array_agg(amount) AS amounts, array_agg(subunits) AS subunits"
    " FROM wanted {group}"
)
_ADDED = ", ".join(
    f"coalesce(sum({name}), 0) AS {name}"
    for name in ("records", "quantity", "billed", "from_allowance", "from_pool", "overage")
)
_OF_ALL = _BY_PLAN.format(device="NULL::text", after="", sums=_ADDED, group="GROUP BY device_id")
_OF_DEVICES = _BY_PLAN.format(
    device="device.device_id",
    after=" AND device.device_id > %(after)s",
    sums=_ADDED,
    group="GROUP BY device_id ORDER BY device_id LIMIT %(limit)s",
)


async def sum_of_charges(
    connection: Connection, tenant_no: TenantNo, wanted: ChargesWanted
) -> ChargeSums:
    """Return what some charges come to together."""
    found = await fetch_one(
        connection, ChargeSums, wanted.query(_OF_ALL), {"tenant_no": tenant_no, **wanted.parameters}
    )
    return found or NO_CHARGES


async def sums_of_devices(
    connection: Connection, tenant_no: TenantNo, wanted: ChargesWanted, *, after: str, limit: int
) -> list[ChargeSums]:
    """Return what some charges come to device by device, ascending by id."""
    return await fetch_all(
        connection,
        ChargeSums,
        wanted.query(_OF_DEVICES),
        {
            "tenant_no": tenant_no,
            "after": after,
            "limit": checked_limit(limit),
            **wanted.parameters,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeView:
    """One charge: which usage record it prices, what paid for it, and what it costs.

    `amount` counts the sub-unit of its plan version.
    """

    boot_no: int
    boot_id: str
    seq: int
    part: int
    device_id: str
    plan_no: int
    meter_no: int
    variant: int
    zone: str | None
    band: str | None
    usage_from: datetime
    usage_to: datetime
    measured_at: datetime
    charged_at: datetime
    quantity: int
    billed: int
    from_allowance: int
    from_pool: int
    overage: int
    amount: int
    correction_no: int | None


ChargePlace = tuple[datetime, int, int, int]
"""measured_at, boot_no, seq, part"""

CHARGE_VIEW = (
    "SELECT charge.boot_no, boot.boot_id, charge.seq, charge.part, device.device_id,"
    " charge.plan_no, charge.meter_no, charge.variant, charge.zone, charge.band,"
    " charge.usage_from, charge.usage_to, charge.measured_at, charge.charged_at,"
    " charge.quantity, charge.billed, charge.from_allowance, charge.from_pool, charge.overage,"
    " charge.amount, charge.correction_no"
)
CHARGES_AFTER = (
    " (%(measured_at)s::timestamptz IS NULL"
    "   OR (charge.measured_at, charge.boot_no, charge.seq, charge.part)"
    "   > (%(measured_at)s, %(boot_no)s, %(seq)s, %(part)s))"
    " ORDER BY charge.measured_at, charge.boot_no, charge.seq, charge.part LIMIT %(limit)s"
)
"""The end of a page's query, with the parameters of `after_charge`."""


def after_charge(after: ChargePlace | None, *, limit: int) -> dict[str, object]:
    """Return the parameters of `CHARGES_AFTER`."""
    measured_at, boot_no, seq, part = after or (None, None, None, None)
    return {
        "measured_at": measured_at,
        "boot_no": boot_no,
        "seq": seq,
        "part": part,
        "limit": checked_limit(limit),
    }


async def list_charges(
    connection: Connection,
    tenant_no: TenantNo,
    wanted: ChargesWanted,
    *,
    after: ChargePlace | None,
    limit: int,
) -> list[ChargeView]:
    """Return at most `limit` charges in the order in which their readings were measured.

    `after` is where the page before ended.
    """
    return await fetch_all(
        connection,
        ChargeView,
        wanted.query(CHARGE_VIEW + _WANTED + " AND" + CHARGES_AFTER),
        {"tenant_no": tenant_no, **after_charge(after, limit=limit), **wanted.parameters},
    )


# One charge --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeDetail:
    """One charge as it is now or was before, with the reading that it prices and its plan version.

    `told_zone` is the zone as the reading told it; the reading's fields are None where it is gone.
    `superseded_by` is the change of terms because of which it no longer counts.
    """

    boot_no: int
    boot_id: str
    seq: int
    part: int
    device_id: str
    fleet_no: int
    fleet_id: str
    time_zone: str
    earlier_zones: Sequence[Sequence[str]]
    cycle_start: datetime
    subscription_no: int
    plan_no: int
    plan_id: str
    plan_version: int
    terms: Mapping[str, object]
    subunits_per_unit: int
    meter_no: int
    variant: int
    zone: str | None
    band: str | None
    usage_from: datetime
    usage_to: datetime
    measured_at: datetime
    charged_at: datetime
    run_no: int
    run_position: int
    quantity: int
    uplink: int
    billed: int
    from_allowance: int
    from_pool: int
    overage: int
    priced_before: int
    connection_fee: int
    amount: int
    draw_buckets: Sequence[int] | None
    draw_quantities: Sequence[int] | None
    correction_no: int | None
    superseded_by: int | None
    received_at: datetime | None
    published_at: datetime | None
    batch_no: int | None
    told_zone: str | None
    rat: str | None
    apn: str | None
    session: str | None
    packets: int | None
    last_part: bool

    @property
    def key(self) -> ChargeKey:
        """Which charge it is."""
        return (self.boot_no, self.seq, self.part)


_DETAIL = (
    "SELECT charge.boot_no, boot.boot_id, charge.seq, charge.part, device.device_id, charge.fleet_no,"
    " fleet.fleet_id, fleet.time_zone, fleet.earlier_zones, charge.cycle_start,"
    " charge.subscription_no, charge.plan_no,"
    " plan.plan_id, plan.version AS plan_version, plan.terms, plan.subunits_per_unit,"
    " charge.meter_no, charge.variant, charge.zone, charge.band, charge.usage_from,"
    " charge.usage_to, charge.measured_at, charge.charged_at, charge.run_no, charge.run_position,"
    " charge.quantity, charge.uplink, charge.billed, charge.from_allowance, charge.from_pool,"
    " charge.overage, charge.priced_before, charge.connection_fee, charge.amount,"
    " charge.draw_buckets, charge.draw_quantities, charge.correction_no,"
    " {gone} AS superseded_by, reading.received_at, reading.published_at, reading.batch_no,"
    " reading.zone AS told_zone, reading.rat, reading.apn, reading.session, reading.packets,"
    " charge.usage_to = charge.measured_at AND NOT EXISTS (SELECT FROM {table} AS later"
    "   WHERE later.boot_no = charge.boot_no AND later.seq = charge.seq"
    "   AND later.measured_at = charge.measured_at AND later.part > charge.part{same}) AS last_part"
    " FROM {table} AS charge JOIN boot ON boot.boot_no = charge.boot_no"
    " JOIN device ON device.device_no = charge.device_no"
    " JOIN fleet ON fleet.fleet_no = charge.fleet_no"
    " JOIN plan ON plan.plan_no = charge.plan_no"
    " LEFT JOIN reading ON reading.boot_no = charge.boot_no AND reading.seq = charge.seq"
    "   AND reading.measured_at = charge.measured_at"
    " WHERE fleet.tenant_no = %(tenant_no)s AND charge.boot_no = %(boot_no)s"
    " AND charge.seq = %(seq)s"
)


async def charges_of_reading(
    connection: Connection, tenant_no: TenantNo, *, boot_no: int, seq: int
) -> list[ChargeDetail]:
    """Return what a reading is charged now, part by part."""
    query = _DETAIL.format(gone="NULL::bigint", table="charge", same="")
    return await fetch_all(
        connection,
        ChargeDetail,
        query + " ORDER BY charge.part",
        {"tenant_no": tenant_no, "boot_no": boot_no, "seq": seq},
    )


async def former_charges(
    connection: Connection, tenant_no: TenantNo, *, boot_no: int, seq: int
) -> list[ChargeDetail]:
    """Return what a reading was charged before changes of terms, the first made first, part by part."""
    query = _DETAIL.format(
        gone="charge.superseded_by",
        table="superseded_charge",
        same=" AND later.superseded_by = charge.superseded_by",
    )
    return await fetch_all(
        connection,
        ChargeDetail,
        query + " ORDER BY charge.superseded_by, charge.part",
        {"tenant_no": tenant_no, "boot_no": boot_no, "seq": seq},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketThen:
    """A bucket that a charge drew from, and what was left of it just before."""

    bucket_no: int
    name: str
    kind: str
    source: str
    left_before: int


async def buckets_before(
    connection: Connection, tenant_no: TenantNo, charge: ChargeDetail
) -> dict[int, BucketThen]:
    """Return the buckets that a charge that counts now drew from, as they stood just before it.

    The fold of what was entered up to its place in the history, less what charges before it drew.
    """
    entered = (
        "(SELECT coalesce(sum(entry.quantity), 0) FROM bucket_entry AS entry"
        " WHERE entry.{side} = bucket.bucket_no AND entry.kind NOT IN ('hold', 'release')"
        " AND (entry.run_no, entry.run_position) <= (%(run_no)s, %(run_position)s))"
    )
    found = await fetch_all(
        connection,
        BucketThen,
        "SELECT bucket.bucket_no, bucket.name, bucket.kind, bucket.source,"  # noqa: S608 - text of this module
        f" {entered.format(side='bucket_no')} - {entered.format(side='other_bucket_no')}"
        " - (SELECT coalesce(sum(draw.quantity), 0) FROM charge"
        "   CROSS JOIN LATERAL unnest(charge.draw_buckets, charge.draw_quantities)"
        "     AS draw (bucket_no, quantity)"
        "   WHERE charge.fleet_no = bucket.fleet_no AND charge.measured_at >= bucket.begins_at"
        "   AND charge.draw_buckets @> ARRAY[bucket.bucket_no]"
        "   AND draw.bucket_no = bucket.bucket_no"
        "   AND (charge.run_no, charge.run_position, charge.part)"
        "     < (%(run_no)s, %(run_position)s, %(part)s)) AS left_before"
        " FROM bucket JOIN fleet ON fleet.fleet_no = bucket.fleet_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND bucket.bucket_no = ANY(%(buckets)s)",
        {
            "tenant_no": tenant_no,
            "buckets": list(charge.draw_buckets or ()),
            "run_no": charge.run_no,
            "run_position": charge.run_position,
            "part": charge.part,
        },
    )
    return {each.bucket_no: each for each in found}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeCorrection:
    """A change of terms that changed what a reading is charged, and by how much for one part of it."""

    correction_no: int
    cause: str
    effective_from: datetime
    recorded_at: datetime
    part: int
    quantity: int
    amount: int
    subunits_per_unit: int


async def corrections_of_reading(
    connection: Connection, tenant_no: TenantNo, *, boot_no: int, seq: int
) -> list[ChargeCorrection]:
    """Return the changes of terms that changed what a reading is charged, the first made first."""
    return await fetch_all(
        connection,
        ChargeCorrection,
        "SELECT correction.correction_no, correction.cause,"
        " coalesce(correction.takes_effect_at, correction.effective_from) AS effective_from,"
        " correction.recorded_at, difference.part, difference.quantity, difference.amount,"
        " difference.subunits_per_unit FROM charge_correction AS difference"
        " JOIN correction ON correction.correction_no = difference.correction_no"
        " WHERE correction.tenant_no = %(tenant_no)s AND difference.boot_no = %(boot_no)s"
        " AND difference.seq = %(seq)s ORDER BY correction.correction_no, difference.part",
        {"tenant_no": tenant_no, "boot_no": boot_no, "seq": seq},
    )


async def cycle_of_charge(
    connection: Connection, tenant_no: TenantNo, charge: ChargeDetail
) -> BillCycle:
    """Return the bill cycle in which a charge is."""
    found = await fetch_one(
        connection,
        BillCycle,
        "SELECT fleet_cycle.first_day, fleet_cycle.next_first_day, fleet_cycle.cycle_start AS start,"
        ' fleet_cycle.cycle_end AS "end" FROM fleet_cycle'
        " JOIN fleet ON fleet.fleet_no = fleet_cycle.fleet_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND fleet_cycle.fleet_no = %(fleet_no)s"
        " AND fleet_cycle.cycle_start = %(cycle_start)s",
        {
            "tenant_no": tenant_no,
            "fleet_no": charge.fleet_no,
            "cycle_start": charge.cycle_start,
        },
    )
    if found is None:
        raise NotFound("cycle", charge.cycle_start.isoformat())
    return found


HeldBy = Literal["line", "period_adjustment", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """What holds a charge: its own cycle's bill, a later one that has an adjustment of it, or a note.

    `closed_at` is when its cycle closed; `billed_in` the later cycle, None while that is not closed;
    `note_no` the note, None where what it settled came to nothing.
    """

    closed_at: datetime | None
    held_by: HeldBy
    billed_in: datetime | None
    note_no: int | None


async def billing_of_charge(
    connection: Connection, tenant_no: TenantNo, charge: ChargeDetail
) -> Billing:
    """Return whose bill holds a charge as it is now."""
    found = await fetch_one(
        connection,
        Billing,
        "WITH counted AS (SELECT greatest(%(run_no)s, coalesce((SELECT run_no FROM correction"  # noqa: S608 - text of the store
        "     WHERE correction_no = %(correction_no)s), 0)) AS run_no),"
        # What was reckoned first since it counts.
        " later AS (SELECT * FROM (SELECT 'period_adjustment' AS held_by, billed_in,"
        "     NULL::bigint AS note_no, run_no FROM period_adjustment"
        "     WHERE fleet_no = %(fleet_no)s AND cycle_start = %(cycle_start)s"
        "   UNION ALL SELECT 'note', NULL, note_no, run_no FROM noted_adjustment"
        f"     WHERE fleet_no = %(fleet_no)s AND cycle_start = %(cycle_start)s AND {STANDING_NOTED})"
        "   AS reckoned"
        "   WHERE run_no > (SELECT run_no FROM counted) ORDER BY run_no LIMIT 1)"
        " SELECT closed.closed_at, CASE WHEN coalesce(counted.run_no > closed.run_no, false)"
        "   THEN coalesce(later.held_by, 'period_adjustment') ELSE 'line' END AS held_by,"
        " later.billed_in, later.note_no"
        " FROM fleet CROSS JOIN counted LEFT JOIN closed_cycle AS closed"
        "   ON closed.fleet_no = fleet.fleet_no AND closed.cycle_start = %(cycle_start)s"
        " LEFT JOIN later ON counted.run_no > closed.run_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND fleet.fleet_no = %(fleet_no)s",
        {
            "tenant_no": tenant_no,
            "fleet_no": charge.fleet_no,
            "cycle_start": charge.cycle_start,
            "run_no": charge.run_no,
            "correction_no": charge.correction_no,
        },
    )
    if found is None:
        raise NotFound("fleet", charge.fleet_id)
    return found


# Readings ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingView:
    """A reading as it was published, when it came, and whether it is charged, parked or queued."""

    boot_no: int
    boot_id: str
    seq: int
    measured_at: datetime
    received_at: datetime
    published_at: datetime | None
    batch_no: int
    meter_no: int
    kind: int
    uplink: int
    downlink: int
    quantity: int
    since: datetime | None
    epoch: str | None
    zone: str | None
    rat: str | None
    apn: str | None
    session: str | None
    charged: bool
    parked: str | None


async def list_readings(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int,
    boot_id: str | None,
    seq: int | None,
    before: tuple[int, int] | None,
    limit: int,
    during: During = ALWAYS,
) -> list[ReadingView]:
    """Return at most `limit` readings of a device: the last boot first, and its last number.

    `before` is the `(boot_no, seq)` that the page before ended at.
    """
    return await fetch_all(
        connection,
        ReadingView,
        "SELECT reading.boot_no, boot.boot_id, reading.seq, reading.measured_at,"  # noqa: S608 - columns
        " reading.received_at, reading.published_at, reading.batch_no, reading.meter_no,"
        " reading.kind, reading.uplink, reading.downlink, reading.quantity, reading.since,"
        " reading.epoch, reading.zone, reading.rat, reading.apn, reading.session,"
        " EXISTS (SELECT FROM charge WHERE charge.boot_no = reading.boot_no"
        "   AND charge.seq = reading.seq AND charge.measured_at = reading.measured_at) AS charged,"
        " (SELECT parked.reason FROM parked WHERE parked.boot_no = reading.boot_no"
        "   AND parked.seq = reading.seq) AS parked"
        " FROM reading JOIN boot ON boot.boot_no = reading.boot_no"
        " JOIN device ON device.device_no = boot.device_no"
        " WHERE device.tenant_no = %(tenant_no)s AND boot.device_no = %(device_no)s"
        " AND reading.boot_no IN (SELECT boot_no FROM boot WHERE device_no = %(device_no)s"
        "   AND (%(boot_id)s::text IS NULL OR boot_id = %(boot_id)s))"
        " AND (%(seq)s::bigint IS NULL OR reading.seq = %(seq)s)"
        " AND (%(before_boot)s::bigint IS NULL"
        "   OR (reading.boot_no, reading.seq) < (%(before_boot)s, %(before_seq)s))"
        + during.condition("reading.measured_at")
        + " ORDER BY reading.boot_no DESC, reading.seq DESC LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "boot_id": boot_id,
            "seq": seq,
            "before_boot": before[0] if before else None,
            "before_seq": before[1] if before else None,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )
