"""Usage that is charged alike, many readings at a time: what most of what comes in is.

It is what the rating core comes to where nothing has to be split, looked up or shared out: deltas that lie
in one cycle and one subscription, at a price that takes them as they stand, and met either wholly by one
bucket that has enough for all of them, or by none. All else, and whatever shares a pool with it, is left
to the core. The audit replays both, by the core or held to it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter

from metering.rating.account import Charge, MeterUse, UseKey
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.charge import ChargeParts, Draw
from metering.rating.guide import Subscription, UsageRecord, whole_record
from metering.rating.plan import PlanTerms
from metering.rating.record import FleetTerms
from metering.store.accounts import Loaded, Wanted, load_accounts, store_accounts
from metering.store.charges import (
    UniformCharge,
    UniformCharges,
    add_uniform_to_hours,
    store_uniform_charges,
)
from metering.store.closing import CycleKey, add_late_records
from metering.store.connection import Connection
from metering.store.cycles import opened_cycles
from metering.store.registry import Fleet
from metering.store.work import QueuedReading, QueuedRow, next_run_no, queued_reading
from metering.usage import METERS_BY_NO, Meter, ReadingKind

_DELTA = ReadingKind.DELTA.value


@dataclass(slots=True)
class Line:
    """One device's usage of one meter in a run; `numbered` are its readings, by place in the run.

    `sample` is the first of them as a usage record: all are of its cycle and its subscription. `first`
    and `last` are when the first and the last of them began.
    """

    fleet_no: int
    meter: Meter
    numbered: Sequence[tuple[int, QueuedRow]]
    sample: UsageRecord
    quantity: int
    uplink: int
    first: datetime
    last: datetime
    use: MeterUse = field(default_factory=MeterUse)
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
    def pool_key(self) -> tuple[int, str]:
        """With whom it may share a pool: the fleet and the meter."""
        return (self.fleet_no, self.meter.meter)


@dataclass(slots=True)
class Parted:
    """What of a run is uniform, with its accounts, and the rest of it, in order."""

    lines: list[Line]
    rest: list[QueuedRow]
    loaded: Loaded | None = None
    wanted: Wanted | None = None


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
    connection: Connection, rows: Sequence[QueuedRow], terms: Terms, shards: set[int]
) -> Parted:
    """Find what of a run is uniform, in fleets of the owned shards, and load its accounts."""
    of_line: dict[tuple[int, int], list[tuple[int, QueuedRow]]] = {}
    for numbered in enumerate(rows):
        row = numbered[1]
        of_line.setdefault((row[2], row[8]), []).append(numbered)
    lines: list[Line] = []
    left_out: set[tuple[int, str]] = set()
    for (device_no, meter_no), numbered_rows in of_line.items():
        line = _line(device_no, METERS_BY_NO[meter_no], numbered_rows, terms, shards)
        if line is None:
            left_out.add((terms.members[device_no], METERS_BY_NO[meter_no].meter))
        else:
            lines.append(line)
    lines = await _in_open_cycles(connection, lines, left_out)
    parted = Parted(lines, [])
    if lines:
        parted.wanted = _wanted(lines, terms)
        parted.loaded = await load_accounts(connection, parted.wanted, terms.plans)
        parted.lines = _with_buckets(lines, parted.loaded, terms, left_out)
    uniform = {(line.subscription.device_no, line.meter.meter_no) for line in parted.lines}
    parted.rest = [row for row in rows if (row[2], row[8]) not in uniform]
    return parted


def _line(  # noqa: PLR0911 - each return is one thing that the core has to look at
    device_no: int,
    meter: Meter,
    numbered: Sequence[tuple[int, QueuedRow]],
    terms: Terms,
    shards: set[int],
) -> Line | None:
    """Return a device's usage of a meter as a line; None when the core has to look at it."""
    fleet_no = terms.members[device_no]
    subscriptions = terms.subscriptions[device_no]
    if terms.fleets[fleet_no].shard_no not in shards:
        return None
    for each in subscriptions:
        if each.fleet_no != fleet_no:
            return None
    sums = _sums(numbered, directed=meter.directed)
    if sums is None:
        return None
    quantity, uplink, first, last = sums
    ends = numbered[-1][1][7]
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
    return Line(fleet_no, meter, numbered, sample, quantity, uplink, first, last)


def _sums(
    numbered: Sequence[tuple[int, QueuedRow]], *, directed: bool
) -> tuple[int, int, datetime, datetime] | None:
    """Return the quantity and the uplink of deltas, and when the first and the last of them began.

    They are in the order in which they were measured. None when there is a counter's value among them.
    """
    quantity = uplink = 0
    dated = False
    for _, row in numbered:
        if row[9] != _DELTA:
            return None
        if directed:
            uplink += row[10]
            quantity += row[11]
        else:
            quantity += row[12]
        if row[13] is not None:
            dated = True
    if not dated:
        return quantity + uplink, uplink, numbered[0][1][7], numbered[-1][1][7]
    starts = [row[13] or row[7] for _, row in numbered]
    return quantity + uplink, uplink, min(starts), max(starts)


async def _in_open_cycles(
    connection: Connection, lines: list[Line], left_out: set[tuple[int, str]]
) -> list[Line]:
    """Return the lines whose cycles are open; of the others the core opens them, between readings."""
    wanted = {line.cycle_key for line in lines}
    opened = await opened_cycles(connection, wanted) if wanted else set()
    if opened == wanted:
        return lines
    left_out.update(line.pool_key for line in lines if line.cycle_key not in opened)
    return [line for line in lines if line.cycle_key in opened]


def _wanted(lines: Sequence[Line], terms: Terms) -> Wanted:
    uses: dict[tuple[int, int, datetime, int], int] = {}
    meters: dict[tuple[int, int], tuple[int, Subscription]] = {}
    for line in lines:
        subscription, meter_no = line.subscription, line.meter.meter_no
        number = subscription.subscription_no
        uses[number, meter_no, line.sample.cycle.start, 0] = line.fleet_no
        if terms.plans[subscription.plan_no].meters[line.meter.meter].allowances:
            meters[number, meter_no] = (line.fleet_no, subscription)
    return Wanted(
        uses=uses,
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
            line.use = loaded.accounts.uses.setdefault(
                (number, meter_no, line.sample.cycle.start, 0), MeterUse()
            )
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
    connection: Connection, parted: Parted, terms: Terms, *, now: datetime
) -> tuple[int, list[UniformCharges], int]:
    """Charge the lines as a run: its number, its charges, and how many are of closed cycles."""
    assert parted.loaded is not None  # noqa: S101 - as there are lines
    assert parted.wanted is not None  # noqa: S101
    run_no = await next_run_no(connection)
    charges = [_charged(line, terms) for line in parted.lines]
    uses = {key: parted.loaded.accounts.uses[key] for key in _use_keys(parted.lines)}
    parted.loaded.accounts.uses = uses
    await store_accounts(connection, parted.loaded, parted.wanted)
    await store_uniform_charges(connection, run_no, charges, now=now)
    await add_uniform_to_hours(connection, charges)
    records: Counter[CycleKey] = Counter()
    for line in parted.lines:
        records[line.cycle_key] += len(line.numbered)
    return run_no, charges, await add_late_records(connection, records)


def _use_keys(lines: Iterable[Line]) -> Iterator[UseKey]:
    for line in lines:
        number, meter_no = line.subscription.subscription_no, line.meter.meter_no
        yield number, meter_no, line.sample.cycle.start, 0


def _charged(line: Line, terms: Terms) -> UniformCharges:
    """Charge a line's readings to its accounts."""
    subscription, use, bucket = line.subscription, line.use, line.bucket
    plan, directed = terms.plans[subscription.plan_no], line.meter.directed
    increment = plan.rates[line.meter.meter][0].increment
    before = overage = use.overage
    amounts = 0
    charges: list[UniformCharge] = []
    for position, row in line.numbered:
        at = row[7]
        start = row[13] or at
        if directed:
            uplink = row[10]
            quantity = uplink + row[11]
        else:
            uplink, quantity = 0, row[12]
        if bucket is None:
            amount = increment(overage, quantity)
            amounts += amount
            charges.append(
                (position, row[3], row[6], at, start, quantity, uplink, quantity, overage, amount)
            )
            overage += quantity
        else:
            charges.append((position, row[3], row[6], at, start, quantity, uplink, 0, overage, 0))
    use.records += len(charges)
    use.quantity += line.quantity
    use.uplink += line.uplink
    use.billed += line.quantity
    use.amount += amounts
    use.overage = overage
    if bucket is not None:
        bucket.draw(subscription.subscription_no, line.quantity)
        if bucket.kind is BucketKind.POOL:
            use.from_pool += line.quantity
        else:
            use.from_allowance += line.quantity
    return UniformCharges(
        device_no=subscription.device_no,
        fleet_no=line.fleet_no,
        subscription=subscription,
        meter_no=line.meter.meter_no,
        cycle=line.sample.cycle,
        bucket=bucket,
        charges=charges,
        first=line.first,
        last=line.last,
        quantity=line.quantity,
        uplink=line.uplink,
        overage=overage - before,
        amount=amounts,
    )


def charged_usage(
    lines: Iterable[Line], charged: Iterable[UniformCharges]
) -> Iterator[tuple[QueuedReading, Sequence[Charge]]]:
    """Return the readings with their charges as the core would have made them, in order."""
    found: list[tuple[int, QueuedReading, Sequence[Charge]]] = []
    for line, of_line in zip(lines, charged, strict=True):
        bucket = of_line.bucket
        pooled = bucket is not None and bucket.kind is BucketKind.POOL
        for (position, row), charge in zip(line.numbered, of_line.charges, strict=True):
            _, _, _, at, start, quantity, uplink, overage, before, amount = charge
            drawn = quantity - overage
            record = line.sample._replace(
                start=start, end=at, quantity=quantity, uplink=uplink, raw=quantity, billed=quantity
            )
            parts = ChargeParts(
                0 if pooled else drawn,
                drawn if pooled else 0,
                overage,
                amount,
                before,
                draws=() if bucket is None or not drawn else (Draw(bucket, drawn),),
            )
            found.append((position, queued_reading(row), (Charge(record, parts),)))
    found.sort(key=itemgetter(0))
    for _, queued, charges in found:
        yield queued, charges
