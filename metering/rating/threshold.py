"""Thresholds: what counts towards a limit, how far it is used, and when it is crossed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from fractions import Fraction
from math import lcm
from typing import NamedTuple

from metering.period import Calendar, local_day, midnight


class Measure(StrEnum):
    """What a threshold looks at."""

    ALLOWANCE = "allowance"
    """A share of what a device's own allowances of a meter hold."""
    POOL = "pool"
    """A share of what the fleet's pools of a meter hold."""
    SPEND = "spend"
    """An amount of money: what usage costs, without fees."""
    QUANTITY = "quantity"
    """A quantity of a meter, in its base unit."""

    @property
    def is_share(self) -> bool:
        """Whether the limit is a share of what is there, and not an amount of its own."""
        return self in {Measure.ALLOWANCE, Measure.POOL}


class Per(StrEnum):
    """Whose use is added up."""

    DEVICE = "device"
    FLEET = "fleet"


class Recurrence(StrEnum):
    """When a threshold begins anew: each local day, or each bill cycle, of the fleet's zone."""

    DAY = "day"
    CYCLE = "cycle"


class Span(NamedTuple):
    """One period of a threshold, half-open."""

    start: datetime
    end: datetime


class Calendars:
    """The days and cycles of one fleet; it remembers the day that it was asked for last."""

    __slots__ = ("_day", "calendar")

    def __init__(self, calendar: Calendar) -> None:
        self.calendar = calendar
        self._day: Span | None = None

    def span(self, recurrence: Recurrence, instant: datetime) -> Span:
        """Return the period that holds an instant."""
        if recurrence is Recurrence.CYCLE:
            cycle = self.calendar.cycle_at(instant)
            return Span(cycle.start, cycle.end)
        day = self._day
        if day is None or not day.start <= instant < day.end:
            zone = self.calendar.zone
            local = local_day(instant, zone)
            day = Span(midnight(local, zone), midnight(local + timedelta(days=1), zone))
            self._day = day
        return day


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """A sum that thresholds look at: of one device, of each device, or of a fleet.

    `device_no` is None for each device and for the fleet. `meter_no` None: of all meters. Periods that
    begin before `counted_from` are not counted.
    """

    tally_no: int
    fleet_no: int
    device_no: int | None
    per: Per
    measure: Measure
    meter_no: int | None
    period: Recurrence
    counted_from: datetime


class Counted(NamedTuple):
    """What one charge adds: base units, and money in sub-units of which `per_unit` make one unit."""

    device_no: int
    meter_no: int
    at: datetime
    """When the usage began: it counts to the day and the cycle of that instant."""
    quantity: int
    from_allowance: int
    from_pool: int
    amount: int
    per_unit: int


CountKey = tuple[int, int, datetime]
"""(tally_no, device_no, period_start); the fleet as a whole is device 0."""
Parts = dict[int, int]
"""How many make one (`per_unit`) → how many were counted."""
Counts = dict[CountKey, Parts]

WHOLE_FLEET = 0


def increase(tally: Tally, counted: Counted) -> tuple[int, int]:
    """Return what a charge adds to a tally that it counts to: `(per_unit, count)`."""
    match tally.measure:
        case Measure.ALLOWANCE:
            return 1, counted.from_allowance
        case Measure.POOL:
            return 1, counted.from_pool
        case Measure.QUANTITY:
            return 1, counted.quantity
        case Measure.SPEND:
            return counted.per_unit, counted.amount


def counts_to(tally: Tally, counted: Counted, calendars: Calendars) -> CountKey | None:
    """Return where in a tally a charge counts; None where it does not."""
    if tally.meter_no is not None and tally.meter_no != counted.meter_no:
        return None
    if tally.device_no is not None and tally.device_no != counted.device_no:
        return None
    start = calendars.span(tally.period, counted.at).start
    if start < tally.counted_from:
        return None
    owner = counted.device_no if tally.per is Per.DEVICE else WHOLE_FLEET
    return (tally.tally_no, owner, start)


def together(every: Iterable[Counted], calendars: Calendars, *, daily: bool) -> list[Counted]:
    """Return charges summed by device, meter, period and sub-unit; by cycle unless `daily`.

    What it gives adds to any tally as much as what it was given, in fewer steps.
    """
    sums: dict[tuple[int, int, datetime, int], list[int]] = {}
    recurrence = Recurrence.DAY if daily else Recurrence.CYCLE
    for each in every:
        start = calendars.span(recurrence, each.at).start
        key = (each.device_no, each.meter_no, start, each.per_unit)
        found = sums.get(key)
        if found is None:
            sums[key] = [each.quantity, each.from_allowance, each.from_pool, each.amount]
        else:
            found[0] += each.quantity
            found[1] += each.from_allowance
            found[2] += each.from_pool
            found[3] += each.amount
    return [
        Counted(device_no, meter_no, start, found[0], found[1], found[2], found[3], per_unit)
        for (device_no, meter_no, start, per_unit), found in sums.items()
    ]


class Tallies:
    """One fleet's tallies, found by the device whose use is at hand."""

    __slots__ = ("_common", "_of_device")

    def __init__(self, tallies: Iterable[Tally]) -> None:
        self._common: list[Tally] = []
        self._of_device: dict[int, list[Tally]] = {}
        for tally in tallies:
            if tally.device_no is None:
                self._common.append(tally)
            else:
                self._of_device.setdefault(tally.device_no, []).append(tally)

    def increases(
        self, counted: Counted, calendars: Calendars
    ) -> Iterator[tuple[CountKey, int, int]]:
        """Return what a charge adds, and where: `(key, per_unit, count)`; never nothing."""
        for tally in (*self._common, *self._of_device.get(counted.device_no, ())):
            key = counts_to(tally, counted, calendars)
            if key is not None:
                per_unit, count = increase(tally, counted)
                if count:
                    yield key, per_unit, count


def counts_of(tallies: Tallies, every: Iterable[Counted], calendars: Calendars) -> Counts:
    """Return what charges of one fleet add to its tallies; where they add nothing is left out."""
    found: Counts = {}
    for each in every:
        for key, per_unit, count in tallies.increases(each, calendars):
            parts = found.setdefault(key, {})
            parts[per_unit] = parts.get(per_unit, 0) + count
    return found


def value_of(parts: Mapping[int, int]) -> Fraction:
    """Return a count exactly: in base units, or in units of currency."""
    whole = parts.get(1, 0)
    if len(parts) == 1 and 1 in parts:
        return Fraction(whole)
    return sum((Fraction(count, per_unit) for per_unit, count in parts.items()), Fraction(0))


def limit_of(limit: Fraction | None, percent: Fraction, available: int) -> Fraction | None:
    """Return at which value a threshold is crossed; None where nothing is there to have a share of.

    `limit` is its own amount; None: it is a share of what was `available` in the period.
    """
    base = Fraction(available) if limit is None else limit
    return base * percent / 100 if base > 0 else None


def is_crossed(value: Fraction, limit: Fraction | None) -> bool:
    """Whether a value reaches its limit: all of a cap is used when nothing is left of it."""
    return limit is not None and value >= limit


def crossed_at(before: Fraction, steps: Iterable[Fraction], limit: Fraction) -> int:
    """Return which of some steps, in order, took a value to its limit.

    The first, where the value had reached it before: then it was the limit that changed.
    """
    value = before
    position = 0
    for position, step in enumerate(steps):
        value += step
        if value >= limit:
            return position
    return position


class Measured(NamedTuple):
    """Value, limit and overshoot as counts of which `per_unit` make one."""

    per_unit: int
    value: int
    limit: int

    @property
    def overshoot(self) -> int:
        """How far the value lies beyond the limit."""
        return self.value - self.limit


def measured(value: Fraction, limit: Fraction) -> Measured:
    """Return a value and its limit as whole counts of one common part."""
    per_unit = lcm(value.denominator, limit.denominator)
    return Measured(per_unit, int(value * per_unit), int(limit * per_unit))
