"""Instants, bill cycles, terms and shares of them, counted day by day."""

from calendar import monthrange
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

FAR_PAST = datetime(1900, 1, 2, tzinfo=UTC)
FAR_FUTURE = datetime(2900, 1, 2, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MONTHS = {"month": 1, "quarter": 3, "year": 12}


class Span(NamedTuple):
    """[start, end)."""

    start: datetime
    end: datetime

    def holds(self, at: datetime) -> bool:
        return self.start <= at < self.end

    def overlaps(self, other: "Span") -> bool:
        return max(self.start, other.start) < min(self.end, other.end)

    def within(self, other: "Span") -> "Span":
        return Span(max(self.start, other.start), min(self.end, other.end))


def midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(0), zone).astimezone(UTC)


def local_day(at: datetime, zone: ZoneInfo) -> date:
    return at.astimezone(zone).date()


def instant(value: object, zone: ZoneInfo) -> datetime:
    """Read an instant; a date is its local midnight."""
    text = value.isoformat() if isinstance(value, date) else str(value)
    if len(text) == len("2026-01-01"):
        return midnight(date.fromisoformat(text), zone)
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=zone)).astimezone(UTC)


def clipped(month_number: int, day: int) -> date:
    """Give the day of the month, or the month's last."""
    year, month = divmod(month_number, 12)
    return date(year, month + 1, min(day, monthrange(year, month + 1)[1]))


def month_number(day: date) -> int:
    return day.year * 12 + day.month - 1


class Cycle(NamedTuple):
    """A fleet's bill cycle, whose periods are numbered."""

    zone: ZoneInfo
    months: int
    anchor_day: int
    base: int

    def boundary(self, number: int) -> datetime:
        return midnight(clipped(self.base + number * self.months, self.anchor_day), self.zone)

    def period(self, number: int) -> Span:
        return Span(self.boundary(number), self.boundary(number + 1))

    def number_at(self, at: datetime) -> int:
        number = (month_number(local_day(at, self.zone)) - self.base) // self.months
        while self.boundary(number) > at:
            number -= 1
        while self.boundary(number + 1) <= at:
            number += 1
        return number


def cycle_of(zone: ZoneInfo, months: int, anchor_day: int, anchor_month: int = 1) -> Cycle:
    # reading: quarters and years are counted from January, whenever the fleet starts.
    return Cycle(zone, months, anchor_day, 1970 * 12 + anchor_month - 1)


def terms_from(start: datetime, months: int, until: datetime, zone: ZoneInfo) -> list[Span]:
    """Give the terms anchored at the start that begin before `until`."""
    first = local_day(start, zone)
    bounds = [start]
    while bounds[-1] < until:
        number = month_number(first) + months * len(bounds)
        bounds.append(midnight(clipped(number, first.day), zone))
    return [Span(one, other) for one, other in pairwise(bounds)]


def days_between(first: date, end: date) -> set[date]:
    return {first + timedelta(days=n) for n in range((end - first).days)}


def days_of(span: Span, zone: ZoneInfo, *, end_counts: bool = False) -> set[date]:
    """Give the days: the one it begins counts, the one it ends does not, unless told."""
    end = local_day(span.end, zone) + timedelta(days=1 if end_counts else 0)
    return days_between(local_day(span.start, zone), end)


def clip(stints: Iterable[Span], to: Span) -> list[Span]:
    return [one.within(to) for one in stints if one.overlaps(to)]


def share(stints: Iterable[Span], term: Span, method: str, zone: ZoneInfo) -> Fraction:
    """Give what part of the term the stints are."""
    parts = clip(stints, term)
    if method == "none":
        return Fraction(1 if parts else 0)
    if method == "seconds":
        length = sum((one.end - one.start for one in parts), timedelta())
        return Fraction(length // MICROSECOND, (term.end - term.start) // MICROSECOND)
    inclusive = method == "days_inclusive"
    whole = days_of(term, zone)
    days = set().union(*(days_of(one, zone, end_counts=inclusive) for one in parts)) & whole
    if method == "thirty_days":
        # reading: each month of the term has thirty days; a term shorter than half a month its own.
        months = round(Fraction(len(whole) * 400, 146097 // 12))
        fixed = 30 * months if months else len(whole)
        return Fraction(1) if days == whole else min(Fraction(1), Fraction(len(days), fixed))
    return Fraction(len(days), len(whole))


def lasting(start: datetime, text: str, zone: ZoneInfo) -> datetime:
    """Give the end of "N days|months|years" from the start."""
    # reading: it ends at a midnight, so many local days or months after the day it starts on.
    count, unit = text.split()
    first = local_day(start, zone)
    if unit.startswith("day"):
        return midnight(first + timedelta(days=int(count)), zone)
    months = int(count) * (12 if unit.startswith("year") else 1)
    return midnight(clipped(month_number(first) + months, first.day), zone)
