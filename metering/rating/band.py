"""Time bands: which part of the week an instant lies in, by the clock on the plan's wall."""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from itertools import pairwise
from zoneinfo import ZoneInfo

from metering.errors import InvalidValue
from metering.period import zone

OTHERWISE = "otherwise"
"""What a plan calls the time outside every band."""

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""The days of the week as a plan names them, in the order of `date.weekday()`."""

_HOUR_MINUTES = 60
_DAY_MINUTES = 24 * 60
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DAYS_REMEMBERED = 4096


class Crossing(StrEnum):
    """What becomes of a record whose time crosses from one band into another."""

    SPLIT = "split"
    """It is split where the band changes."""
    START = "start"
    """The band at its start holds for all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of local time, `[begins, ends)` in minutes of the day, on some days.

    On the days of the week in `days` (Monday is 0) or on `dates`; on every day if both are None. A
    window that begins later than it ends goes past midnight and belongs to the day it begins on.
    """

    days: frozenset[int] | None
    dates: frozenset[date] | None
    begins: int
    ends: int

    @classmethod
    def of(
        cls,
        document_path: str,
        days: Sequence[str] | None,
        dates: Sequence[str] | None,
        begins: str | None,
        ends: str | None,
    ) -> "Window":
        """Read a window of a plan document: day names, dates (ISO 8601), and two times "HH:MM".

        `begins` is 00:00 and `ends` 24:00 if left out. Raises `InvalidValue` naming the field under
        `document_path`.
        """
        if days is not None and dates is not None:
            raise InvalidValue(
                f"{document_path}.dates", "stands beside `days`", "keep one of the two"
            )
        first = 0 if begins is None else _minutes(f"{document_path}.from", begins)
        last = _DAY_MINUTES if ends is None else _minutes(f"{document_path}.to", ends)
        if first == _DAY_MINUTES:
            raise InvalidValue(f"{document_path}.from", "no day begins at 24:00", "use '00:00'")
        if first == last:
            raise InvalidValue(
                f"{document_path}.to", "is when the window begins", "for a whole day use '24:00'"
            )
        return cls(
            days=None if days is None else _weekdays(f"{document_path}.days", days),
            dates=None if dates is None else _dates(f"{document_path}.dates", dates),
            begins=first,
            ends=last,
        )

    def begins_on(self, day: date) -> bool:
        """Whether the window begins on a local day."""
        if self.dates is not None:
            return day in self.dates
        return self.days is None or day.weekday() in self.days

    @property
    def spans(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Its minutes `[from, to)` on the day it begins on, and on the day after."""
        if self.begins <= self.ends:
            return (self.begins, self.ends), (0, 0)
        return (self.begins, _DAY_MINUTES), (0, self.ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class _DayBands:
    """One local day: the band from each of `starts` to the next, the last to the day's `end`.

    A day that the clock skips has no starts.
    """

    starts: tuple[datetime, ...]
    bands: tuple[str | None, ...]
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class BandTable:
    """A plan's time bands in the order it lists them; the first that holds an instant wins.

    Windows are of the wall clock in `time_zone`. An edge at a time that the clock skips lies at the
    first instant after the gap; an edge at a time that comes twice lies at the first.
    """

    bands: Mapping[str, Sequence[Window]]
    time_zone: str
    crossing: Crossing = Crossing.SPLIT
    _known: dict[date, _DayBands] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        zone(self.time_zone)
        for name, windows in self.bands.items():
            if name == OTHERWISE:
                raise InvalidValue(
                    f"bands.{name}", f"the name {name!r} is reserved", "give the band another name"
                )
            if not windows:
                raise InvalidValue(
                    f"bands.{name}", "has no window", "add one, or leave the band out"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The bands' names in the stated order."""
        return tuple(self.bands)

    def band_at(self, instant: datetime) -> str | None:
        """Return the band that holds an instant, or None outside every band."""
        if not self.bands:
            return None
        day = self._day(self._local_day(instant))
        return day.bands[bisect_right(day.starts, instant) - 1]

    def split(self, start: datetime, end: datetime) -> list[datetime]:
        """Return where a record over `[start, end)` is to be split: inside it, ascending, in UTC.

        Those are the instants at which one band gives way to another (or to none); there are none
        where the band at the start holds for all of it (`Crossing.START`).
        """
        if not self.bands or self.crossing is Crossing.START or start >= end:
            return []
        cuts: list[datetime] = []
        current = self.band_at(start)
        local_day = self._local_day(start)
        while True:
            day = self._day(local_day)
            for begins, band in zip(day.starts, day.bands, strict=True):
                if start < begins < end and band != current:
                    cuts.append(begins)
                    current = band
            if day.end >= end:
                return cuts
            local_day += _ONE_DAY

    def covers_whole_week(self) -> bool:
        """Whether every instant lies in some band, windows of single dates left aside."""
        weekly = {
            name: [window for window in windows if window.dates is None]
            for name, windows in self.bands.items()
        }
        return all(
            band is not None
            for weekday in range(len(DAYS))
            for _, band in _bands_by_clock(weekly, _SOME_MONDAY + weekday * _ONE_DAY)
        )

    def _local_day(self, instant: datetime) -> date:
        day = instant.astimezone(zone(self.time_zone)).date()
        # Where midnight comes twice, the clock goes back into a day that has ended.
        return day + _ONE_DAY if instant >= self._day(day).end else day

    def _day(self, day: date) -> _DayBands:
        known = self._known.get(day)
        if known is None:
            # The days come from records: they must not fill the memory.
            if len(self._known) >= _DAYS_REMEMBERED:
                self._known.clear()
            known = self._known[day] = self._lay_out(day)
        return known

    def _lay_out(self, day: date) -> _DayBands:
        clock = zone(self.time_zone)
        end = _first_instant(day + _ONE_DAY, 0, clock)
        by_clock = _bands_by_clock(self.bands, day)
        edges = [_first_instant(day, minute, clock) for minute, _ in by_clock]
        starts: list[datetime] = []
        bands: list[str | None] = []
        for (begins, ends), (_, band) in zip(pairwise([*edges, end]), by_clock, strict=True):
            # What the clock skips has no length; without it two neighbours can be of one band.
            if begins < ends and (not bands or bands[-1] != band):
                starts.append(begins)
                bands.append(band)
        return _DayBands(starts=tuple(starts), bands=tuple(bands), end=end)


_ONE_DAY = timedelta(days=1)
_ONE_SECOND = timedelta(seconds=1)
_SOME_MONDAY = date(2001, 1, 1)


def _bands_by_clock(
    bands: Mapping[str, Sequence[Window]], day: date
) -> list[tuple[int, str | None]]:
    """Return from which minute of a day which band holds by the clock, ascending from minute 0."""
    spans: list[tuple[int, int, str]] = []
    for name, windows in bands.items():
        for window in windows:
            today, day_after = window.spans
            if window.begins_on(day):
                spans.append((*today, name))
            if window.begins_on(day - _ONE_DAY):
                spans.append((*day_after, name))
    edges = {0} | {edge for begins, ends, _ in spans for edge in (begins, ends)}
    return [
        (edge, next((name for begins, ends, name in spans if begins <= edge < ends), None))
        for edge in sorted(edges)
        if edge < _DAY_MINUTES
    ]


def _first_instant(day: date, minute: int, clock: ZoneInfo) -> datetime:
    """Return when the clock first reaches a minute of a local day, in UTC.

    The first of two if the time comes twice; the first instant after the gap if it never comes.
    """
    wall = datetime.combine(day, time()) + timedelta(minutes=minute)
    reached = wall.replace(tzinfo=clock).astimezone(UTC)
    if _wall(reached, clock) == wall:
        return reached
    # In a gap: read by the offset after it the time lies before the jump, by the one before, after.
    not_yet = wall.replace(tzinfo=clock, fold=1).astimezone(UTC)
    while reached - not_yet > _ONE_SECOND:
        middle = not_yet + (reached - not_yet) // _ONE_SECOND // 2 * _ONE_SECOND
        if _wall(middle, clock) < wall:
            not_yet = middle
        else:
            reached = middle
    return reached


def _wall(instant: datetime, clock: ZoneInfo) -> datetime:
    return instant.astimezone(clock).replace(tzinfo=None)


def _minutes(path: str, text: str) -> int:
    if not _CLOCK.fullmatch(text):
        raise InvalidValue(path, f"{text!r} is no time of day", "write 'HH:MM', 00:00 to 24:00")
    hours, _, minutes = text.partition(":")
    return int(hours) * _HOUR_MINUTES + int(minutes)


def _weekdays(path: str, days: Sequence[str]) -> frozenset[int]:
    for position, day in enumerate(days):
        if day not in DAYS:
            raise InvalidValue(
                f"{path}.{position}", f"{day!r} is no day of the week", f"use {', '.join(DAYS)}"
            )
    return frozenset(DAYS.index(day) for day in _not_empty(path, days))


def _dates(path: str, dates: Sequence[str]) -> frozenset[date]:
    return frozenset(
        _date(f"{path}.{position}", text) for position, text in enumerate(_not_empty(path, dates))
    )


def _date(path: str, text: str) -> date:
    try:
        # Python reads other forms of ISO 8601 too; a plan has one.
        return date.fromisoformat(text if _DATE.fullmatch(text) else "")
    except ValueError as error:
        raise InvalidValue(path, f"{text!r} is no date", "write 'YYYY-MM-DD'") from error


def _not_empty(path: str, entries: Sequence[str]) -> Sequence[str]:
    if not entries:
        raise InvalidValue(path, "is empty, so the window never is", "name one, or leave it out")
    return entries
