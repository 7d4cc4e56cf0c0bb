"""Plain readings, replayed many at a time: what most of a history is.

What a reading comes to is found here from the reading, the terms and the replayed accounts, as the rating
core finds it where nothing has to be split, looked up or shared out. A reading counts only if that is what
is stored of it. Whatever is not plain, or differs, is left to the core, so only the core says what is wrong;
a test holds both to the same accounts.

Where a bucket paid for all that a device used, and was never empty, the order of its charges tells nothing
more than their sums do, which the database adds up. What is entered into buckets parts the history into
segments; in each, the sums come first. If a bucket that they drew from still has something left when the
segment ends, then it had enough for whoever else drew from it meanwhile, whatever the order was. If not, or
if anything else is not as it would have to be, `NotSums` is raised, and all has to be replayed in order.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from operator import itemgetter

from metering.rating.account import MeterUse
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.guide import whole_record
from metering.replay.replay import Replay
from metering.store.accounts import bucket_of_row
from metering.store.balances import top_up_of_row
from metering.store.binary import instant_of, microseconds
from metering.store.charges import PART, hour_of
from metering.store.connection import Connection
from metering.store.history import (
    NOTHING,
    OWN,
    POOL,
    Place,
    PlainRow,
    PlainRows,
    RunStep,
    charged_rows,
    run_steps,
    step_of,
)
from metering.store.usage_sums import UsageSum, can_be_told, uneven_devices, usage_sums, used_meters
from metering.usage import METERS_BY_NO, Meter

_HOUR = 3_600_000_000
_NEVER: Place = (2**63, 0)
_ALWAYS = 2**63
_PLACE = itemgetter(0, 1)


class NotSums(Exception):
    """Some of what was added up has to be replayed in order, from nothing."""


@dataclass(slots=True)
class _Lot:
    """A bucket, when it may be drawn from, its number, whether `OWN` or `POOL`, and what was drawn here."""

    begins: int
    ends: int
    bucket: Bucket
    number: int
    kind: int
    drawn: int = 0


@dataclass(slots=True)
class _Line:
    """What one device's usage of one meter is charged by, in one subscription and one cycle.

    It holds for usage that begins in `[begins, ends)` and ends at `ends_by` at the latest. Times are in
    microseconds since the year 2000.
    """

    begins: int
    ends: int
    ends_by: int
    subscription_no: int
    plan_no: int
    cycle_start: int
    increment: Callable[[int, int], int]
    use: MeterUse
    lots: Sequence[_Lot]
    hour_begins: int = 0
    hour_ends: int = 0
    sums: list[int] = field(default_factory=list)
    """The rollup of that hour."""


class PlainReplay:
    """Replays plain readings into a replay's accounts."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._lines: dict[tuple[int, int], _Line] = {}
        self._lots: dict[int, _Lot] = {}
        self._walked = 0
        self._segment = 0
        self._sums: AsyncIterator[UsageSum] | None = None
        self._next_sum: UsageSum | None = None
        self._others: set[int] = set()
        """Devices whose sums are left out."""
        self._drawn_from: dict[int, _Lot] = {}
        """By number, what the sums of this segment drew from."""
        self.summed: Counter[int] = Counter()
        """By boot, how many charges were replayed as sums; each is another reading's."""

    @property
    def charges(self) -> int:
        """How many charges were replayed here."""
        return self._walked + self.summed.total()

    @property
    def drawn(self) -> dict[int, int]:
        """What the charges that were replayed here drew from each bucket."""
        return {number: lot.drawn for number, lot in self._lots.items()}

    async def steps_beside(
        self, connection: Connection, *, sums: bool = False, uneven: bool = True
    ) -> AsyncIterator[RunStep]:
        """Replay the plain readings of the fleet; return the other steps, for the core, in their order.

        Each has to be taken before the next is asked for. With `sums`, what can be is added up; raises
        `NotSums`. `uneven`: whether any device of the fleet may have counted, or have parked readings.
        """
        async with AsyncExitStack() as opened:
            fleet_no = self._replay.fleet.fleet_no
            devices = None
            if sums:
                devices = await self._begin_sums(connection, opened, uneven=uneven)
            await self._add_sums()
            if devices is None or devices:
                steps = run_steps(connection, fleet_no, devices, but_plain=True)
                others = await opened.enter_async_context(aclosing(steps))
                batches = charged_rows(connection, fleet_no, devices)
                async for rows in await opened.enter_async_context(aclosing(batches)):
                    first = 0
                    while first < len(rows):
                        await self._enter_until(_PLACE(rows[first]))
                        end = bisect_left(
                            rows, self._replay.next_place or _NEVER, first, key=_PLACE
                        )
                        stopped = self.replay(rows, first, end)
                        self._walked += stopped - first
                        first = stopped
                        if stopped == end:
                            continue
                        while first < end and _PLACE(rows[first]) == _PLACE(rows[stopped]):
                            first += 1
                        yield await _step(rows[stopped:first], others, fleet_no)
            await self._enter_until(None)
            self._end_segment()

    async def _begin_sums(
        self, connection: Connection, opened: AsyncExitStack, *, uneven: bool
    ) -> list[int] | None:
        """Return the devices whose charges are not added up; None: those of all."""
        replay = self._replay
        entered = {place for place, _ in replay.openings} | {each.place for each in replay.entries}
        places = sorted(entered)
        if not can_be_told(places) or not self._may_be_sums():
            return None
        walked = await uneven_devices(connection, replay.fleet.fleet_no) if uneven else set()
        walked.update(
            each.device_no
            for each in await used_meters(connection, replay.fleet.fleet_no)
            if each.priced or not self._is_plain(each.plan_no, METERS_BY_NO[each.meter_no])
        )
        walked.update(each for each, home in replay.homes.items() if home != replay.fleet.fleet_no)
        added = sorted(replay.homes.keys() - walked)
        if not added:
            return None
        found = usage_sums(connection, replay.fleet.fleet_no, added, places)
        self._sums = await opened.enter_async_context(aclosing(found))
        await self._take_sum()
        while self._next_sum is not None and self._next_sum.segment is None:
            self._others.add(self._next_sum.device_no)
            await self._take_sum()
        return sorted(walked | self._others)

    def _may_be_sums(self) -> bool:
        """Whether no order matters to any bucket of the fleet, by what is kept of them."""
        replay = self._replay
        if any(each.reservation_no is not None for each in replay.entries):
            return False
        for stored in replay.stored_buckets.values():
            if stored.terms_plan_no is None:
                continue
            try:
                _, _, terms, bucket = bucket_of_row(stored.row, replay.plans)
            except LookupError:
                return False
            if not _is_plain(bucket) or (terms.rollover is None and _is_empty_pool(bucket)):
                return False
        bought = [top_up_of_row(each)[1] for each in replay.top_ups.values()]
        return all(_is_plain(each) and not _is_empty_pool(each) for each in bought)

    def _is_plain(self, plan_no: int, meter: Meter) -> bool:
        """Whether a plan has nothing of a meter priced otherwise than by its quantity."""
        plan = self._replay.plans[plan_no]
        return meter.meter in plan.plain_meters and plan.record_quantum is None

    async def _enter_until(self, place: Place | None) -> None:
        """Enter what counts up to a place, and add up what was charged after each entry."""
        replay = self._replay
        while (due := replay.next_place) is not None and (place is None or due <= place):
            self._end_segment()
            replay.enter_until(due)
            self._lines.clear()
            self._segment += 1
            await self._add_sums()

    async def _take_sum(self) -> None:
        self._next_sum = None if self._sums is None else await anext(self._sums, None)

    async def _add_sums(self) -> None:
        """Add up what was charged in this segment."""
        while self._next_sum is not None and self._next_sum.segment == self._segment:
            if self._next_sum.device_no not in self._others:
                self._add(self._next_sum)
            await self._take_sum()

    def _end_segment(self) -> None:
        """Hold that no bucket which paid for sums was empty before the end of the segment."""
        if any(each.bucket.left <= 0 for each in self._drawn_from.values()):
            raise NotSums
        self._drawn_from.clear()

    def _add(self, added: UsageSum) -> None:
        """Replay charges that are known by their sums."""
        line = self._line_at(added.device_no, added.meter_no, added.first, added.ends)
        if (
            line is None
            or line.ends <= added.last
            or line.use.overage
            or line.subscription_no != added.subscription_no
            or line.plan_no != added.plan_no
            or line.cycle_start != added.cycle_start
        ):
            raise NotSums
        self.summed[added.boot_no] += added.records
        use = line.use
        use.records += added.records
        use.quantity += added.quantity
        use.uplink += added.uplink
        use.billed += added.quantity
        if added.bucket_no is not None:
            lot = _paying(line.lots, added)
            self._drawn_from[lot.number] = lot
            lot.bucket.used += added.quantity
            lot.drawn += added.quantity
            if lot.kind == POOL:
                use.from_pool += added.quantity
            else:
                use.from_allowance += added.quantity
        elif line.increment(0, 0):
            raise NotSums
        if not line.hour_begins <= added.first < line.hour_ends:
            self._begin_hour(line, added.device_no, added.meter_no, added.first)
        line.sums[0] += added.records
        line.sums[1] += added.quantity
        line.sums[2] += added.uplink

    def replay(self, rows: PlainRows, first: int, end: int) -> int:  # noqa: C901, PLR0912, PLR0915 - one loop: a call a reading costs as much as all else
        """Replay rows from one on, up to `end`; return at which it stops: that one is the core's.

        A place of which there are several rows is the core's, too. All rows of a place are in `rows`.
        Nothing is entered at or after the first of them.
        """
        lines = self._lines
        line: _Line | None = None
        of_device = of_meter = -1
        last = len(rows) - 1
        for index in range(first, end):
            (
                run_no, run_position, paid_by, _, _, device_no, meter_no, at, since, quantity, uplink,
                subscription_no, plan_no, cycle_start, bucket_no, priced_before, amount,
            ) = rows[index]  # fmt: skip
            if paid_by is None:
                return index
            if index < last:
                following = rows[index + 1]
                if following[1] == run_position and following[0] == run_no:
                    return index
            start = at if since is None else since
            if device_no != of_device or meter_no != of_meter:
                of_device, of_meter = device_no, meter_no
                line = lines.get((device_no, meter_no))
            if line is None or not line.begins <= start < line.ends or at > line.ends_by:
                line = self._line_at(device_no, meter_no, start, at)
                if line is None:
                    return index
            use = line.use
            before = use.overage
            paying: _Lot | None = None
            due_of, due_by, cost = None, NOTHING, 0
            if quantity:
                for lot in line.lots:
                    if lot.begins <= start < lot.ends:
                        left = lot.bucket.granted - lot.bucket.used
                        if left >= quantity:
                            paying, due_of, due_by = lot, lot.number, lot.kind
                            break
                        if left > 0:
                            return index
            if paying is None:
                cost = line.increment(before, quantity)
            if (
                amount != cost
                or priced_before != before
                or bucket_no != due_of
                or paid_by != due_by
                or subscription_no != line.subscription_no
                or plan_no != line.plan_no
                or cycle_start != line.cycle_start
            ):
                return index
            if not line.hour_begins <= start < line.hour_ends:
                self._begin_hour(line, device_no, meter_no, start)
            sums = line.sums
            sums[0] += 1
            sums[1] += quantity
            sums[2] += uplink
            use.records += 1
            use.quantity += quantity
            use.uplink += uplink
            use.billed += quantity
            if paying is None:
                use.overage = before + quantity
                use.amount += cost
                sums[3] += quantity
                sums[4] += cost
            else:
                paying.bucket.used += quantity
                paying.drawn += quantity
                if due_by == POOL:
                    use.from_pool += quantity
                else:
                    use.from_allowance += quantity
        return end

    def _line_at(self, device_no: int, meter_no: int, start: int, at: int) -> _Line | None:
        """Return the line of a usage; None when it is the core's."""
        line = self._lines.get((device_no, meter_no))
        if line is not None and line.begins <= start < line.ends and at <= line.ends_by:
            return line
        line = self._line_of(device_no, METERS_BY_NO[meter_no], start, at)
        if line is not None:
            self._lines[device_no, meter_no] = line
        return line

    def _line_of(self, device_no: int, meter: Meter, start: int, at: int) -> _Line | None:
        """Return the line of a usage; None when it is the core's."""
        replay = self._replay
        fleet_no = replay.fleet.fleet_no
        subscriptions = replay.subscriptions.get(device_no, ())
        if replay.homes.get(device_no, fleet_no) != fleet_no:
            return None
        if any(each.fleet_no != fleet_no for each in subscriptions):
            return None
        calendar = replay.fleets[fleet_no].calendar
        record = whole_record(0, 0, instant_of(start), instant_of(at), calendar, subscriptions)
        if record is None:
            return None
        subscription, cycle = record.subscription, record.cycle
        if not self._is_plain(subscription.plan_no, meter):
            return None
        key = (subscription.subscription_no, meter.meter_no, cycle.start)
        replay.lots.fill(
            replay.accounts, (record,), meter=meter.meter, meter_no=meter.meter_no,
            fleet_no=fleet_no, plans=replay.plans,
        )  # fmt: skip
        buckets = replay.accounts.buckets[key]
        if not all(map(_is_plain, buckets)):
            return None
        ends_by = (
            cycle.end if subscription.valid_to is None else min(cycle.end, subscription.valid_to)
        )
        later = [
            each.valid_from for each in subscriptions if each.valid_from > subscription.valid_from
        ]
        return _Line(
            begins=microseconds(max(cycle.start, subscription.valid_from)),
            ends=microseconds(min(ends_by, *later)) if later else microseconds(ends_by),
            ends_by=microseconds(ends_by),
            subscription_no=subscription.subscription_no,
            plan_no=subscription.plan_no,
            cycle_start=microseconds(cycle.start),
            increment=replay.plans[subscription.plan_no].rates[meter.meter][0].increment,
            use=replay.accounts.uses.setdefault((*key, 0), MeterUse()),
            lots=[self._lot_of(bucket) for bucket in buckets],
        )

    def _lot_of(self, bucket: Bucket) -> _Lot:
        number = int(bucket.bucket_id)
        lot = self._lots.get(number)
        if lot is None:
            begins, ends = bucket.created_at, bucket.expires_at
            lot = self._lots[number] = _Lot(
                -_ALWAYS if begins is None else microseconds(begins),
                _ALWAYS if ends is None else microseconds(ends),
                bucket,
                number,
                POOL if bucket.kind is BucketKind.POOL else OWN,
            )
        return lot

    def _begin_hour(self, line: _Line, device_no: int, meter_no: int, start: int) -> None:
        hour = hour_of(instant_of(start))
        line.sums = self._replay.hours.setdefault(
            (device_no, meter_no, line.plan_no, hour, ""), [0] * 5
        )
        line.hour_begins = microseconds(hour)
        line.hour_ends = line.hour_begins + _HOUR


async def _step(rows: PlainRows, others: AsyncIterator[RunStep], fleet_no: int) -> RunStep:
    """Return all that is charged at one place, or parked; `others` tells what is not in its rows."""
    plain = [step_of(PlainRow(*row), fleet_no) for row in rows if row[2] is not None]
    if not plain:
        return await anext(others)
    if len(rows) == 1:
        return plain[0]
    steps = plain if len(plain) == len(rows) else [*plain, await anext(others)]
    charges = [charge for each in steps for charge in each.charges]
    return replace(steps[0], charges=sorted(charges, key=itemgetter(PART)))


def _paying(lots: Sequence[_Lot], added: UsageSum) -> _Lot:
    """Return the first bucket with anything left that holds for all of some usage."""
    for lot in lots:
        if added.last < lot.begins or lot.ends <= added.first or lot.bucket.left <= 0:
            continue
        if (
            lot.begins <= added.first
            and added.last < lot.ends
            and lot.number == added.bucket_no
            and (lot.kind == OWN) is added.own
        ):
            return lot
        break
    raise NotSums


def _is_plain(bucket: Bucket) -> bool:
    """Whether a bucket that has enough left pays for all of a usage, whoever's and wherever it is."""
    return not (
        bucket.kind is BucketKind.MONEY
        or bucket.zones is not None
        or bucket.bands is not None
        or bucket.ceiling is not None
        or bucket.floor
        or bucket.reserved
    )


def _is_empty_pool(bucket: Bucket) -> bool:
    return bucket.kind is BucketKind.POOL and bucket.used > 0 and bucket.left <= 0
