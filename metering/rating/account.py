"""A fleet's accounts while readings are charged to them: the step that charging and audit share.

Readings come in order; each first becomes usage (a delta as it stands, a counter by its growth),
then usage records by cycle and subscription, then charges. The accounts are the one thing here that
changes: their owner loads them, hands them through, and stores them.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from metering.rating.charge import ChargeParts, charge
from metering.rating.counter import CounterEvent, CounterPoint, growth
from metering.rating.guide import ParkReason, Subscription, UsageRecord, guide
from metering.rating.plan import PlanTerms
from metering.usage import Reading, ReadingKind

UseKey = tuple[int, int, datetime]
"""(subscription_no, meter_no, cycle_start)"""
PoolKey = tuple[int, int, datetime]
"""(fleet_no, meter_no, cycle_start)"""
EpochKey = tuple[int, int, str]
"""(device_no, meter_no, epoch); the epoch is `boot_no/` and the name that the device gave it."""


@dataclass(slots=True)
class MeterUse:
    """One subscription's cumulative use of one meter in one cycle; `amount` in sub-units."""

    records: int = 0
    quantity: int = 0
    uplink: int = 0
    from_allowance: int = 0
    from_pool: int = 0
    overage: int = 0
    amount: int = 0

    def add(self, record: UsageRecord, parts: ChargeParts) -> None:
        """Count one more charged usage record."""
        self.records += 1
        self.quantity += record.quantity
        self.uplink += record.uplink
        self.from_allowance += parts.from_allowance
        self.from_pool += parts.from_pool
        self.overage += parts.overage
        self.amount += parts.amount


@dataclass(slots=True)
class Bucket:
    """An allowance or a pool in one cycle: what was granted and what was drawn."""

    granted: int = 0
    used: int = 0

    @property
    def left(self) -> int:
        """What may still be drawn."""
        return self.granted - self.used


@dataclass(slots=True)
class Accounts:
    """The accounts that some readings touch."""

    uses: dict[UseKey, MeterUse] = field(default_factory=dict)
    allowances: dict[UseKey, Bucket] = field(default_factory=dict)
    pools: dict[PoolKey, Bucket] = field(default_factory=dict)


@dataclass(slots=True)
class CounterEpoch:
    """The counted points of one epoch, ascending, as far as the readings at hand need them.

    Between `points` and whatever lies outside of them nothing is counted that they would need.
    """

    points: list[CounterPoint] = field(default_factory=list)

    def insert(self, point: CounterPoint) -> tuple[CounterPoint | None, CounterPoint | None]:
        """Add a point and return its neighbours, before and after."""
        orders = [known.order for known in self.points[-2:]]
        if not orders or orders[-1] < point.order:
            position = len(self.points)
        else:
            position = bisect_left(self.points, point.order, key=lambda known: known.order)
        before = self.points[position - 1] if position else None
        following = self.points[position] if position < len(self.points) else None
        self.points.insert(position, point)
        return before, following


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReading:
    """A reading as charging finds it."""

    device_no: int
    boot_no: int
    reading: Reading

    @property
    def epoch_key(self) -> EpochKey:
        """Which counter epoch a TOTAL reading belongs to: one of its boot, named or not."""
        epoch = f"{self.boot_no}/{self.reading.epoch or ''}"
        return (self.device_no, self.reading.meter.meter_no, epoch)

    @property
    def point(self) -> CounterPoint:
        """The reading as a point of its counter."""
        reading = self.reading
        directed = reading.meter.directed
        return CounterPoint(
            boot_no=self.boot_no,
            seq=reading.seq,
            at=reading.at,
            values=(reading.uplink, reading.downlink) if directed else (reading.quantity,),
            width=reading.width,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What one reading says was used, over `[start, end)`; `uplink` is part of `quantity`."""

    quantity: int
    uplink: int
    start: datetime
    end: datetime
    event: CounterEvent | None = None


@dataclass(frozen=True, slots=True)
class FleetTerms:
    """What guiding needs to know of a fleet."""

    fleet_no: int
    time_zone: str
    anchor_day: int


@dataclass(frozen=True, slots=True)
class Charge:
    """One usage record and how it was charged."""

    record: UsageRecord
    parts: ChargeParts


def usage_of(stored: StoredReading, epochs: dict[EpochKey, CounterEpoch]) -> Usage:
    """Return what a reading says was used; a counter's point is added to its epoch."""
    reading = stored.reading
    if reading.kind is ReadingKind.TOTAL:
        point = stored.point
        before, following = epochs.setdefault(stored.epoch_key, CounterEpoch()).insert(point)
        grown = growth(before, point, following)
        uplink = grown.quantities[0] if reading.meter.directed else 0
        return Usage(sum(grown.quantities), uplink, grown.since, reading.at, grown.event)
    start = reading.since or reading.at
    if reading.meter.directed:
        return Usage(reading.uplink + reading.downlink, reading.uplink, start, reading.at)
    return Usage(reading.quantity, 0, start, reading.at)


def records_of(
    usage: Usage,
    *,
    meter: str,
    fleet: FleetTerms,
    subscriptions: Sequence[Subscription],
    plans: Mapping[int, PlanTerms],
) -> list[UsageRecord] | ParkReason:
    """Split a usage into records that each have one cycle and one price, or say why it cannot be."""
    records = guide(
        quantity=usage.quantity,
        uplink=usage.uplink,
        start=usage.start,
        end=usage.end,
        time_zone=fleet.time_zone,
        anchor_day=fleet.anchor_day,
        subscriptions=subscriptions,
    )
    if isinstance(records, ParkReason):
        return records
    if any(meter not in plans[record.subscription.plan_no].meters for record in records):
        return ParkReason.NO_PRICE
    return records


def charge_record(
    record: UsageRecord,
    *,
    meter: str,
    meter_no: int,
    fleet_no: int,
    terms: PlanTerms,
    accounts: Accounts,
) -> Charge:
    """Charge one usage record to the accounts: own allowance, then pool, then overage."""
    cycle_start = record.cycle.start
    key: UseKey = (record.subscription.subscription_no, meter_no, cycle_start)
    use = accounts.uses.setdefault(key, MeterUse())
    allowance = accounts.allowances.setdefault(key, Bucket())
    pooled = terms.meters[meter].pooled
    pool = (
        accounts.pools.setdefault((fleet_no, meter_no, cycle_start), Bucket()) if pooled else None
    )
    parts = charge(
        record.quantity,
        allowance_left=allowance.left,
        pool_left=pool.left if pool else 0,
        overage_before=use.overage,
        subunit_price=terms.subunit_prices[meter],
    )
    allowance.used += parts.from_allowance
    if pool:
        pool.used += parts.from_pool
    use.add(record, parts)
    return Charge(record, parts)
