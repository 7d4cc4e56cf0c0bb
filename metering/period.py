"""Time: half-open bill cycles in a fleet's own zone, and splitting by time."""

import calendar
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from metering.errors import InvalidValue


@dataclass(frozen=True, slots=True, kw_only=True)
class BillCycle:
    """One bill cycle: local days `[first_day, next_first_day)` of a zone.

    `start` and `end` are the same bounds as instants in UTC, half-open.
    """

    first_day: date
    next_first_day: date
    start: datetime
    end: datetime

    @property
    def days(self) -> int:
        """How many local days the cycle has."""
        return (self.next_first_day - self.first_day).days


@lru_cache(maxsize=1024)
def zone(name: str, field: str = "time_zone") -> ZoneInfo:
    """Return the IANA time zone `name`; raise `InvalidValue` naming `field` if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidValue(
            field, f"{name!r} is not a time zone", "use an IANA name such as 'Europe/Berlin'"
        ) from error


def midnight(day: date, zone_name: str) -> datetime:
    """Return the instant at which a local day begins, in UTC.

    Where daylight saving skips midnight, the day begins at the first instant that exists; where
    midnight comes twice, at the first.
    """
    return datetime.combine(day, time(), zone(zone_name)).astimezone(UTC)


@lru_cache(maxsize=4096)
def cycle_of_day(day: date, zone_name: str, anchor_day: int) -> BillCycle:
    """Return the monthly bill cycle that holds a local day.

    `anchor_day` is 1 to 31; in a month that is shorter the cycle begins on its last day.
    """
    if not 1 <= anchor_day <= 31:  # noqa: PLR2004 - the days of a month
        raise InvalidValue("anchor_day", f"{anchor_day} is no day of a month", "use 1 to 31")
    begins_here = _anchored(day.year, day.month, anchor_day)
    if day >= begins_here:
        first, following = begins_here, _anchored(*_next_month(day.year, day.month), anchor_day)
    else:
        first, following = _anchored(*_previous_month(day.year, day.month), anchor_day), begins_here
    return BillCycle(
        first_day=first,
        next_first_day=following,
        start=midnight(first, zone_name),
        end=midnight(following, zone_name),
    )


def cycle_at(instant: datetime, zone_name: str, anchor_day: int) -> BillCycle:
    """Return the monthly bill cycle that holds an instant."""
    return cycle_of_day(local_day(instant, zone_name), zone_name, anchor_day)


def local_day(instant: datetime, zone_name: str) -> date:
    """Return the local day that holds an instant."""
    day = instant.astimezone(zone(zone_name)).date()
    # Where midnight comes twice, the hour before its second coming still reads as the day before.
    return (
        day + timedelta(days=1) if instant >= midnight(day + timedelta(days=1), zone_name) else day
    )


def boundaries_between(
    start: datetime, end: datetime, zone_name: str, anchor_day: int
) -> list[datetime]:
    """Return the cycle starts strictly inside `(start, end)`, ascending."""
    found: list[datetime] = []
    cycle = cycle_at(start, zone_name, anchor_day)
    while cycle.end < end:
        found.append(cycle.end)
        cycle = cycle_of_day(cycle.next_first_day, zone_name, anchor_day)
    return found


def split_by_time(
    quantity: int, start: datetime, end: datetime, boundaries: Sequence[datetime]
) -> list[tuple[datetime, datetime, int]]:
    """Split a quantity over `[start, end)` at `boundaries`, in proportion to time.

    Each part is `(start, end, quantity)` with a whole quantity, rounded down; the remainder goes to
    the last part, so that the parts always sum to the whole.
    """
    edges = [start, *boundaries, end]
    whole = (end - start) // _TICK
    parts: list[tuple[datetime, datetime, int]] = []
    given = 0
    for left, right in pairwise(edges):
        if right == end:
            parts.append((left, right, quantity - given))
        else:
            share = int(Fraction(quantity) * Fraction((right - left) // _TICK, whole))
            parts.append((left, right, share))
            given += share
    return parts


_TICK = timedelta(microseconds=1)


def _anchored(year: int, month: int, anchor_day: int) -> date:
    return date(year, month, min(anchor_day, calendar.monthrange(year, month)[1]))


def _next_month(year: int, month: int) -> tuple[int, int]:
    return (year + month // 12, month % 12 + 1)


def _previous_month(year: int, month: int) -> tuple[int, int]:
    return (year - (month == 1), 12 if month == 1 else month - 1)
