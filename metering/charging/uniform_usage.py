"""Usage that is charged alike, many readings at a time: what most of what comes in is.

It is what the rating core comes to where nothing has to be split, looked up or shared out: deltas that lie
in one cycle and one subscription, at a price that takes them as they stand, and met either wholly by one
bucket that has enough for all of them, or by none. All else, and whatever shares a pool with it, is left
to the core. The audit replays both, by the core or held to it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from metering.rating.account import Charge, MeterUse, UseKey
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.charge import ChargeParts, Draw
from metering.rating.guide import Subscription, UsageRecord, whole_record
from metering.rating.plan import PlanTerms
from metering.rating.record import FleetTerms, StoredReading
from metering.store.accounts import (
    FleetUse,
    Loaded,
    Wanted,
    add_uses,
    load_accounts,
    load_overage,
    store_buckets,
)
from metering.store.binary import instant_of
from metering.store.closing import CycleKey, add_late_records
from metering.store.columns import NEVER, Column
from metering.store.connection import Connection
from metering.store.cycles import opened_cycles
from metering.store.registry import Fleet
from metering.store.uniform_charges import (
    UniformCharges,
    UniformUsage,
    add_uniform_to_hours,
    store_uniform_charges,
)
from metering.store.work import QueuedColumns, QueuedReading
from metering.usage import METERS_BY_NO, Meter, Reading, ReadingKind

_DELTA = ReadingKind.DELTA
_SUM_MAX = 2**63 - 1
"""The largest number that a column can hold."""


@dataclass(slots=True)
class Line:
    """One device's usage of one meter in a run: the readings from one place in its columns to another.

    `sample` is the first of them as a usage record: all are of its cycle and its subscription. `first`
    and `last` are when the first and the last of them began.
    """

    fleet_no: int
    meter: Meter
    begin: int
    end: int
    sample: UsageRecord
    quantity: int
    uplink: int
    first: datetime
    last: datetime
    bucket: Bucket | None = None
    """What pays for all of it; None: nothing does."""

    @property
    def subscription(self) -> Subscription:
        """Whose usage it is."""
        return self.sample.subscription

    @property
    def cycle_key(self) -> CycleKey:
        """The fleet and the cycle in which it lies."""
        return (self.fleet_no, self.sample.cycle.start)

    @property
    def use_key(self) -> UseKey:
        """What it is added to."""
        return (
            self.subscription.subscription_no,
            self.meter.meter_no,
            self.sample.cycle.start,
            0,
        )

    @property
    def pool_key(self) -> tuple[int, str]:
        """With whom it may share a pool: the fleet and the meter."""
        return (self.fleet_no, self.meter.meter)


@dataclass(slots=True)
class Parted:
    """What of a run is uniform, with its accounts; what of it is not is left to the core."""

    lines: list[Line]
    usage: UniformUsage
    closed: AbstractSet[CycleKey] = frozenset()
    """Those of their cycles that are closed."""
    loaded: Loaded | None = None

    @property
    def readings(self) -> int:
        """How many readings are uniform."""
        return sum(line.end - line.begin for line in self.lines)

    @property
    def whose(self) -> set[tuple[int, int]]:
        """The devices and meters whose readings are uniform."""
        return {(line.subscription.device_no, line.meter.meter_no) for line in self.lines}


@dataclass(frozen=True, slots=True)
class Terms:
    """What the devices of a run are charged by."""

    fleets: Mapping[int, Fleet]
    members: Mapping[int, int]
    """device_no → the fleet in which it is now"""
    of_fleets: Mapping[int, FleetTerms]
    subscriptions: Mapping[int, Sequence[Subscription]]
    plans: Mapping[int, PlanTerms]


async def part(
    connection: Connection, queued: QueuedColumns, terms: Terms, shards: set[int]
) -> Parted:
    """Find what of a run is uniform, in fleets of the owned shards, and load its accounts."""
    usage = UniformUsage(queued, *_amounts(queued))
    if not _can_be_added(queued):
        return Parted([], usage)
    lines: list[Line] = []
    left_out: set[tuple[int, str]] = set()
    for sums in _sums(usage):
        line = _line(sums, terms, shards)
        if line is None:
            meter = METERS_BY_NO[sums.meter_no].meter
            left_out.add((terms.members[sums.device_no], meter))
        else:
            lines.append(line)
    lines, closed = await _in_opened_cycles(connection, lines, left_out)
    parted = Parted(lines, usage, closed)
    if parted.lines:
        wanted = _wanted(parted.lines, terms)
        parted.loaded = await load_accounts(connection, wanted, terms.plans)
        parted.lines = _with_buckets(parted.lines, parted.loaded, terms, left_out)
    return parted


_DIRECTED = np.zeros(max(METERS_BY_NO) + 1, np.bool_)
"""meter_no → whether what goes up and what goes down is told apart."""
for _number, _meter in METERS_BY_NO.items():
    _DIRECTED[_number] = _meter.directed


def _amounts(queued: QueuedColumns) -> tuple[Column, Column]:
    """Return the quantity of each reading, and what of it went up."""
    directed = _DIRECTED[queued.meter_no]
    uplink = np.where(directed, queued.uplink, 0)
    return np.where(directed, queued.uplink + queued.downlink, queued.quantity), uplink


def _can_be_added(queued: QueuedColumns) -> bool:
    """Whether no sum of the readings is too large for a column."""
    largest = sum(int(each.max()) for each in (queued.uplink, queued.downlink, queued.quantity))
    return largest * len(queued) <= _SUM_MAX


class _Sums(NamedTuple):
    """A device's readings of a meter added up; instants as in the columns."""

    begin: int
    end: int
    device_no: int
    meter_no: int
    only_deltas: bool
    quantity: int
    uplink: int
    first: int
    last: int
    """When the first and the last of them began."""
    ends: int
    """When the last of them ended."""


def _sums(usage: UniformUsage) -> list[_Sums]:
    """Add up the readings of each device and meter."""
    queued = usage.queued
    device_no, meter_no = queued.device_no, queued.meter_no
    other = (device_no[1:] != device_no[:-1]) | (meter_no[1:] != meter_no[:-1])
    begins = np.concatenate(([0], np.flatnonzero(other) + 1))
    ends = np.append(begins[1:], len(queued))
    columns = (
        begins,
        ends,
        device_no[begins],
        meter_no[begins],
        np.logical_and.reduceat(queued.kind == _DELTA, begins),
        np.add.reduceat(usage.quantity, begins),
        np.add.reduceat(usage.uplink, begins),
        np.minimum.reduceat(queued.starts_at, begins),
        np.maximum.reduceat(queued.starts_at, begins),
        np.maximum.reduceat(queued.measured_at, begins),
    )
    return [_Sums(*each) for each in zip(*(column.tolist() for column in columns), strict=True)]


def _line(sums: _Sums, terms: Terms, shards: set[int]) -> Line | None:  # noqa: PLR0911 - each return is one thing that the core has to look at
    """Return a device's usage of a meter as a line; None when the core has to look at it."""
    device_no, meter = sums.device_no, METERS_BY_NO[sums.meter_no]
    fleet_no = terms.members[device_no]
    subscriptions = terms.subscriptions[device_no]
    if terms.fleets[fleet_no].shard_no not in shards or not sums.only_deltas:
        return None
    for each in subscriptions:
        if each.fleet_no != fleet_no:
            return None
    first = instant_of(sums.first)
    last = first if sums.last == sums.first else instant_of(sums.last)
    ends = last if sums.ends == sums.last else instant_of(sums.ends)
    sample = whole_record(0, 0, first, first, terms.of_fleets[fleet_no].calendar, subscriptions)
    if sample is None:
        return None
    valid_to = sample.subscription.valid_to
    if last >= sample.cycle.end or ends > sample.cycle.end:
        return None
    if valid_to is not None and (last >= valid_to or ends > valid_to):
        return None
    plan = terms.plans[sample.subscription.plan_no]
    if meter.meter not in plan.plain_meters or plan.record_quantum is not None:
        return None
    return Line(
        fleet_no, meter, sums.begin, sums.end, sample, sums.quantity, sums.uplink, first, last
    )


async def _in_opened_cycles(
    connection: Connection, lines: list[Line], left_out: set[tuple[int, str]]
) -> tuple[list[Line], set[CycleKey]]:
    """Return the lines whose cycles were opened, and which of these are closed.

    Of the others the core opens them, between readings.
    """
    wanted = {line.cycle_key for line in lines}
    opened = await opened_cycles(connection, wanted) if wanted else {}
    closed = {key for key, is_closed in opened.items() if is_closed}
    if opened.keys() == wanted:
        return lines, closed
    left_out.update(line.pool_key for line in lines if line.cycle_key not in opened)
    return [line for line in lines if line.cycle_key in opened], closed


def _wanted(lines: Sequence[Line], terms: Terms) -> Wanted:
    meters: dict[tuple[int, int], tuple[int, Subscription]] = {}
    for line in lines:
        subscription, meter_no = line.subscription, line.meter.meter_no
        if terms.plans[subscription.plan_no].meters[line.meter.meter].allowances:
            meters[subscription.subscription_no, meter_no] = (line.fleet_no, subscription)
    return Wanted(
        uses={},
        counts={},
        meters=meters,
        first=min(line.first for line in lines),
        last=max(line.last for line in lines),
        owners={
            (line.fleet_no, line.subscription.device_no, line.meter.meter_no) for line in lines
        },
    )


def _with_buckets(
    lines: Sequence[Line], loaded: Loaded, terms: Terms, left_out: set[tuple[int, str]]
) -> list[Line]:
    """Return the lines that one bucket pays for wholly, or none does.

    What the core has to look at draws from its pools in the order of time, with all who share them.
    """
    remaining: list[Line] = []
    for line in lines:
        loaded.lots.fill(
            loaded.accounts,
            (line.sample,),
            meter=line.meter.meter,
            meter_no=line.meter.meter_no,
            fleet_no=line.fleet_no,
            plans=terms.plans,
        )
        number, meter_no = line.subscription.subscription_no, line.meter.meter_no
        buckets = loaded.accounts.buckets.get((number, meter_no, line.sample.cycle.start), ())
        if _finds_its_bucket(line, buckets):
            remaining.append(line)
        else:
            left_out.add(line.pool_key)
    drawn: Counter[str] = Counter()
    for line in remaining:
        if line.bucket is not None:
            drawn[line.bucket.bucket_id] += line.quantity
    left_out.update(
        line.pool_key
        for line in remaining
        if line.bucket is not None and line.bucket.left < drawn[line.bucket.bucket_id]
    )
    return [
        line
        for line in remaining
        if line.bucket is None
        or line.bucket.kind is not BucketKind.POOL
        or line.pool_key not in left_out
    ]


def _finds_its_bucket(line: Line, buckets: Iterable[Bucket]) -> bool:
    """Find the one bucket that has anything left for a line; whether that is all there is to it."""
    for bucket in buckets:
        if (
            bucket.kind is BucketKind.MONEY
            or bucket.zones is not None
            or bucket.bands is not None
            or bucket.ceiling is not None
            or bucket.floor
            or bucket.reserved
        ):
            return False
        begins, ends = bucket.created_at, bucket.expires_at
        never = (begins is not None and line.last < begins) or (
            ends is not None and line.first >= ends
        )
        if never or bucket.left <= 0:
            continue
        always = (begins is None or begins <= line.first) and (ends is None or line.last < ends)
        if not always or bucket.left < line.quantity:
            return False
        line.bucket = bucket
        return True
    return True


async def charge_uniformly(
    connection: Connection, run_no: int, parted: Parted, terms: Terms, *, now: datetime
) -> tuple[list[UniformCharges], int]:
    """Charge the lines as a run: its charges, and how many of them are of closed cycles."""
    assert parted.loaded is not None  # noqa: S101 - as there are lines
    overage = await load_overage(connection, [line.use_key for line in parted.lines])
    charges = [
        _charged(line, overage.get(line.use_key, 0), parted.usage, terms) for line in parted.lines
    ]
    await add_uses(connection, map(_use, parted.lines, charges))
    await store_buckets(connection, parted.loaded)
    await store_uniform_charges(connection, run_no, parted.usage, charges, now=now)
    await add_uniform_to_hours(connection, parted.usage, charges)
    records: Counter[CycleKey] = Counter()
    for line in parted.lines:
        if line.cycle_key in parted.closed:
            records[line.cycle_key] += line.end - line.begin
    return charges, await add_late_records(connection, records) if records else 0


def _use(line: Line, charges: UniformCharges) -> FleetUse:
    """Return what a line's charges add to its use."""
    quantity, bucket = line.quantity, line.bucket
    pooled = bucket is not None and bucket.kind is BucketKind.POOL
    return (
        line.use_key,
        line.fleet_no,
        MeterUse(
            records=line.end - line.begin,
            quantity=quantity,
            uplink=line.uplink,
            billed=quantity,
            from_allowance=quantity if bucket is not None and not pooled else 0,
            from_pool=quantity if pooled else 0,
            overage=charges.overage,
            amount=charges.amount,
        ),
    )


def _charged(line: Line, before: int, usage: UniformUsage, terms: Terms) -> UniformCharges:
    """Charge a line's readings, before which so much was priced in its cycle."""
    subscription, bucket = line.subscription, line.bucket
    amounts: list[int] | None = None
    if bucket is None:
        amounts, priced = [], before
        increment = terms.plans[subscription.plan_no].rates[line.meter.meter][0].increment
        for quantity in usage.quantity[line.begin : line.end].tolist():
            amounts.append(increment(priced, quantity))
            priced += quantity
    else:
        bucket.draw(subscription.subscription_no, line.quantity)
    return UniformCharges(
        line.begin,
        line.end,
        device_no=subscription.device_no,
        fleet_no=line.fleet_no,
        subscription=subscription,
        meter_no=line.meter.meter_no,
        cycle=line.sample.cycle,
        bucket=bucket,
        priced_before=before,
        amounts=amounts,
        first=line.first,
        last=line.last,
        quantity=line.quantity,
        uplink=line.uplink,
    )


def charged_usage(
    parted: Parted, charged: Iterable[UniformCharges], fleets: AbstractSet[int]
) -> Iterator[tuple[QueuedReading, Sequence[Charge]]]:
    """Return the readings of some fleets with their charges as the core would have made them, in order.

    Of a reading there is what counts: what was used and when.
    """
    found: list[tuple[int, QueuedReading, Sequence[Charge]]] = []
    queued = parted.usage.queued
    for line, of_line in zip(parted.lines, charged, strict=True):
        if line.fleet_no not in fleets:
            continue
        bucket = of_line.bucket
        pooled = bucket is not None and bucket.kind is BucketKind.POOL
        before = of_line.priced_before
        places = range(line.begin, line.end)
        for place, quantity, uplink, overage, amount in zip(
            places, *of_line.columns_of(parted.usage), strict=True
        ):
            at = instant_of(int(queued.measured_at[place]))
            drawn = quantity - overage
            record = line.sample._replace(
                start=instant_of(int(queued.starts_at[place])), end=at, quantity=quantity,
                uplink=uplink, raw=quantity, billed=quantity,
            )  # fmt: skip
            parts = ChargeParts(
                0 if pooled else drawn,
                drawn if pooled else 0,
                overage,
                amount,
                before,
                draws=() if bucket is None or not drawn else (Draw(bucket, drawn),),
            )
            before += overage
            reading = _reading(parted.usage, line.meter, place, at)
            found.append((int(queued.position[place]), reading, (Charge(record, parts),)))
    found.sort(key=itemgetter(0))
    for _, reading, charges in found:
        yield reading, charges


def _reading(usage: UniformUsage, meter: Meter, place: int, at: datetime) -> QueuedReading:
    queued = usage.queued
    published_at = int(queued.published_at[place])
    return QueuedReading(
        StoredReading(
            int(queued.device_no[place]),
            int(queued.boot_no[place]),
            Reading(
                int(queued.seq[place]), at, meter, _DELTA, int(queued.uplink[place]),
                int(queued.downlink[place]), int(queued.quantity[place]),
            ),
        ),
        None if published_at == NEVER else instant_of(published_at),
    )  # fmt: skip
