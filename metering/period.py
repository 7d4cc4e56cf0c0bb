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


def instant_text(instant: datetime) -> str:
    """Write an instant as all that leaves the platform has it: RFC 3339 in UTC, ending in Z."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


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


@dataclass(frozen=True, slots=True)
class ChangedZone:
    """The time zone of whoever had others: `(name, day)` of each earlier one, ascending, then its `name`.

    The day is the first that is the next zone's. It begins when the earlier zone's does, so no instant is
    of two days or of none; how many hours it has follows from both.
    """

    earlier: tuple[tuple[str, date], ...]
    name: str


TimeZone = str | ChangedZone
"""An IANA name, or one after others."""


def zone_since(name: str, earlier: Sequence[Sequence[str]]) -> TimeZone:
    """Return a zone after others, each told with the first day, ISO 8601, that is the next one's."""
    if not earlier:
        return name
    return ChangedZone(tuple((each, date.fromisoformat(day)) for each, day in earlier), name)


def zone_at(instant: datetime, time_zone: TimeZone) -> str:
    """Return the name of the zone whose days hold an instant."""
    if isinstance(time_zone, str):
        return time_zone
    for name, until in time_zone.earlier:
        if instant < midnight(until, name):
            return name
    return time_zone.name


@lru_cache(maxsize=1024)
def zone(name: str, field: str = "time_zone") -> ZoneInfo:
    """Return the IANA time zone `name`; raise `InvalidValue` naming `field` if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidValue(
            field, f"{name!r} is not a time zone", "use an IANA name such as 'Europe/Berlin'"
        ) from error


def midnight(day: date, time_zone: TimeZone) -> datetime:
    """Return the instant at which a local day begins, in UTC.

    Where daylight saving skips midnight, the day begins at the first instant that exists; where
    midnight comes twice, at the first. The first day of a zone that is new begins by the earlier one.
    """
    if isinstance(time_zone, ChangedZone):
        following = (name for name, until in time_zone.earlier if day <= until)
        time_zone = next(following, time_zone.name)
    return datetime.combine(day, time(), zone(time_zone)).astimezone(UTC)


@lru_cache(maxsize=4096)
def cycle_of_day(
    day: date, time_zone: TimeZone, anchor_day: int, months: int = 1, anchor_month: int = 1
) -> BillCycle:
    """Return the bill cycle that holds a local day: of one month unless `months` says more.

    `anchor_day` is 1 to 31; in a month that is shorter the cycle begins on its last day. A longer
    cycle begins in `anchor_month` (1 to 12) and every `months` from there; 12 is a multiple of them.
    """
    if not 1 <= anchor_day <= 31:  # noqa: PLR2004 - the days of a month
        raise InvalidValue("anchor_day", f"{anchor_day} is no day of a month", "use 1 to 31")
    month = day.year * 12 + day.month - 1 - (day < _anchored(day.year, day.month, anchor_day))
    month -= (month - anchor_month + 1) % months
    first = _anchored(month // 12, month % 12 + 1, anchor_day)
    month += months
    following = _anchored(month // 12, month % 12 + 1, anchor_day)
    return BillCycle(
        first_day=first,
        next_first_day=following,
        start=midnight(first, time_zone),
        end=midnight(following, time_zone),
    )


CYCLE_MONTHS = {"month": 1, "quarter": 3, "year": 12}
"""How many months the bill cycles of a live fleet may have, by name."""


def checked_cycle(months: int, anchor_day: int, anchor_month: int) -> None:
    """Raise `InvalidValue` for what is no rule of a live fleet's bill cycles."""
    if months not in CYCLE_MONTHS.values():
        raise InvalidValue("cycle_months", f"a cycle has no {months} months", "use 1, 3 or 12")
    if not 1 <= anchor_day <= 31:  # noqa: PLR2004 - the days of a month
        raise InvalidValue("anchor_day", f"{anchor_day} is no day of a month", "use 1 to 31")
    if not 1 <= anchor_month <= 12:  # noqa: PLR2004 - the months of a year
        raise InvalidValue("anchor_month", f"{anchor_month} is no month", "use 1 to 12")


class Calendar:
    """A fleet's bill cycles: its time zone, its anchor, and how many months each has.

    Or how many `days`, counted from `first_day`. It remembers the cycle that it was asked for last,
    which most instants lie in.
    """

    __slots__ = (
        "_latest", "anchor_day", "anchor_month", "days", "first_day", "months", "zone",
    )  # fmt: skip

    def __init__(
        self,
        time_zone: TimeZone,
        anchor_day: int = 1,
        *,
        months: int = 1,
        anchor_month: int = 1,
        days: int | None = None,
        first_day: date = date(2000, 1, 1),
    ) -> None:
        self.days = days
        self.first_day = first_day
        self.zone = time_zone
        self.anchor_day = anchor_day
        self.months = months
        self.anchor_month = anchor_month
        self._latest: BillCycle | None = None

    @property
    def time_zone(self) -> str:
        """The IANA name of the zone, of one that changed the last."""
        return self.zone if isinstance(self.zone, str) else self.zone.name

    def cycle_at(self, instant: datetime) -> BillCycle:
        """Return the cycle that holds an instant."""
        latest = self._latest
        if latest is None or not latest.start <= instant < latest.end:
            latest = self._latest = self.cycle_of_day(local_day(instant, self.zone))
        return latest

    def cycle_of_day(self, day: date) -> BillCycle:
        """Return the cycle that holds a local day."""
        if self.days is not None:
            length = timedelta(days=self.days)
            first = self.first_day + (day - self.first_day) // length * length
            return BillCycle(
                first_day=first,
                next_first_day=first + length,
                start=midnight(first, self.zone),
                end=midnight(first + length, self.zone),
            )
        return cycle_of_day(day, self.zone, self.anchor_day, self.months, self.anchor_month)

    def following(self, cycle: BillCycle) -> BillCycle:
        """Return the cycle after one."""
        return self.cycle_of_day(cycle.next_first_day)

    def boundaries_between(self, start: datetime, end: datetime) -> list[datetime]:
        """Return the cycle starts strictly inside `(start, end)`, ascending."""
        found: list[datetime] = []
        cycle = self.cycle_at(start)
        while cycle.end < end:
            found.append(cycle.end)
            cycle = self.following(cycle)
        return found


def cycle_at(instant: datetime, zone_name: str, anchor_day: int) -> BillCycle:
    """Return the monthly bill cycle that holds an instant."""
    return cycle_of_day(local_day(instant, zone_name), zone_name, anchor_day)


def local_day(instant: datetime, time_zone: TimeZone) -> date:
    """Return the local day that holds an instant."""
    if isinstance(time_zone, ChangedZone):
        name = zone_at(instant, time_zone)
        begun = [
            until for earlier, until in time_zone.earlier if midnight(until, earlier) <= instant
        ]
        return max([local_day(instant, name), *begun])
    day = instant.astimezone(zone(time_zone)).date()
    # Where midnight comes twice, the hour before its second coming still reads as the day before.
    return (
        day + timedelta(days=1) if instant >= midnight(day + timedelta(days=1), time_zone) else day
    )


def months_later(day: date, months: int) -> date:
    """Return the day so many months later; in a shorter month its last, without drifting."""
    month = day.year * 12 + day.month - 1 + months
    return _anchored(month // 12, month % 12 + 1, day.day)


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
