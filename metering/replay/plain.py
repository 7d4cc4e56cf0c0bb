"""Plain readings, replayed many at a time: what most of a history is.

What a reading comes to is found here from the reading, the terms and the replayed accounts, as the rating
core finds it where nothing has to be split, looked up or shared out. A reading counts only if that is what
is stored of it. Whatever is not plain, or differs, is left to the core, so only the core says what is wrong;
a test holds both to the same accounts.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

from metering.rating.account import MeterUse
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.guide import whole_record
from metering.replay.replay import Replay
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
from metering.usage import METERS_BY_NO, Meter

_HOUR = 3_600_000_000
_NEVER: Place = (2**63, 0)
_ALWAYS = 2**63


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
        self._due = _NEVER
        """Where the next entry counts from, of those that `_lines` know nothing of."""
        self._lots: dict[int, _Lot] = {}
        self.charges = 0
        """How many were replayed here."""

    @property
    def drawn(self) -> dict[int, int]:
        """What the charges that were replayed here drew from each bucket."""
        return {number: lot.drawn for number, lot in self._lots.items()}

    async def steps_beside(self, connection: Connection) -> AsyncIterator[RunStep]:
        """Replay the plain readings of the fleet; return the other steps, for the core, in their order.

        Each has to be taken before the next is asked for.
        """
        fleet_no = self._replay.fleet.fleet_no
        others = run_steps(connection, fleet_no, but_plain=True)
        async for rows in charged_rows(connection, fleet_no):
            first = 0
            while first < len(rows):
                stopped = first if rows[first][2] is None else self.replay(rows, first)
                self.charges += stopped - first
                first = stopped + 1
                while first < len(rows) and rows[first][:2] == rows[stopped][:2]:
                    first += 1
                if stopped < len(rows):
                    yield await _step(rows[stopped:first], others, fleet_no)

    def replay(self, rows: PlainRows, first: int) -> int:  # noqa: C901, PLR0912, PLR0915 - one loop: a call a reading costs as much as all else
        """Replay rows from one on; return at which it stops: that one is the core's.

        A place of which there are several rows is the core's, too. All rows of a place are in `rows`.
        """
        self._look_ahead()
        lines, (due_run, due_position) = self._lines, self._due
        line: _Line | None = None
        of_device = of_meter = -1
        last = len(rows) - 1
        for index in range(first, len(rows)):
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
            if run_no >= due_run and (run_no > due_run or run_position >= due_position):
                self._replay.enter_until((run_no, run_position))
                self._look_ahead()
                due_run, due_position = self._due
                of_device = -1
            start = at if since is None else since
            if device_no != of_device or meter_no != of_meter:
                of_device, of_meter = device_no, meter_no
                line = lines.get((device_no, meter_no))
            if line is None or not line.begins <= start < line.ends or at > line.ends_by:
                line = self._line_of(device_no, METERS_BY_NO[meter_no], start, at)
                if line is None:
                    return index
                lines[device_no, meter_no] = line
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
        return len(rows)

    def _look_ahead(self) -> None:
        """Find where the next entry counts from; forget the lines if any was entered since."""
        due = self._replay.next_place or _NEVER
        if due != self._due:
            self._due = due
            self._lines.clear()

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
        plan = replay.plans[subscription.plan_no]
        if meter.meter not in plan.plain_meters or plan.record_quantum is not None:
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
            increment=plan.rates[meter.meter][0].increment,
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
