"""Why a carrier's count of a SIM differs from its device's own, day by day: by stated rules. Pure.

The rules, in the order in which they are tried for a day on which the counts differ:

1. *reset*: the device counted less, and one of its counters fell that day unannounced.
2. *missing*: the device counted less, and readings of that day are missing, or none came at all.
3. *rounding*: the difference is at most the carrier's unit for each of its records of that day.
4. *headers*: the carrier counted more by a steady share: what the network carries around the payload.
   Steady is a share that at least three days have, each within a quarter of it.
5. *lag*: days next to each other whose differences sum to nothing, but for rounding and headers: the
   carrier dates usage by when its records ended.
6. *unknown*: none of these.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from fractions import Fraction
from statistics import median

UNIT_DEFAULT = 1000
"""Octets to which carriers round a record, unless it is said otherwise."""
_DAYS_STEADY_MIN = 3
_SHARE_MAX = Fraction(1, 2)
"""More than this is no overhead of any network."""
_SPREAD = Fraction(1, 4)
_LAG_DAYS_MAX = 4
_ONE_DAY = timedelta(days=1)


class CarrierCause(StrEnum):
    """Why two counts of one day differ. The texts are public."""

    NONE = "none"
    """They do not."""
    RESET = "reset"
    MISSING = "missing"
    ROUNDING = "rounding"
    HEADERS = "headers"
    LAG = "lag"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class DayCounts:
    """What the device and the carrier counted of a SIM on one day, in base units, in so many records.

    `resets` are counters of the device that fell; `missing` how many of its readings are not there.
    """

    day: date
    own: int
    carrier: int
    own_records: int
    carrier_records: int
    resets: int = 0
    missing: int = 0

    @property
    def difference(self) -> int:
        """What the carrier counted beyond the device."""
        return self.carrier - self.own


def causes_of(days: Sequence[DayCounts], *, unit: int) -> dict[date, CarrierCause]:
    """Return why the counts of one SIM and meter differ on each day; `unit` is what records round to."""
    causes = {each.day: _alone(each, unit) for each in days}
    open_days = [each for each in days if causes[each.day] is CarrierCause.UNKNOWN]
    share = _steady_share([*open_days, *_rounded(days, causes)], unit)
    for each in open_days:
        if share and _fits(each, share, unit):
            causes[each.day] = CarrierCause.HEADERS
    rest = [each for each in open_days if causes[each.day] is CarrierCause.UNKNOWN]
    for day in _lagging(rest, share, unit):
        causes[day] = CarrierCause.LAG
    return causes


def by_cause(
    days: Sequence[DayCounts], causes: Mapping[date, CarrierCause]
) -> dict[CarrierCause, int]:
    """Return what the carrier counted beyond the device, cause by cause: it sums to all of it."""
    sums: dict[CarrierCause, int] = {}
    for each in days:
        if each.difference:
            cause = causes[each.day]
            sums[cause] = sums.get(cause, 0) + each.difference
    return sums


def _alone(counts: DayCounts, unit: int) -> CarrierCause:
    """Return what a day's own counts say of it."""
    if not counts.difference:
        return CarrierCause.NONE
    if counts.difference > 0 and counts.resets:
        return CarrierCause.RESET
    if counts.difference > 0 and (counts.missing or not counts.own_records):
        return CarrierCause.MISSING
    if abs(counts.difference) <= unit * counts.carrier_records:
        return CarrierCause.ROUNDING
    return CarrierCause.UNKNOWN


def _rounded(days: Sequence[DayCounts], causes: Mapping[date, CarrierCause]) -> list[DayCounts]:
    return [each for each in days if causes[each.day] is CarrierCause.ROUNDING]


def _steady_share(days: Sequence[DayCounts], unit: int) -> Fraction | None:
    """Return the share of the payload by which the carrier counts more; None: it is not steady."""
    shares = [
        Fraction(each.difference, each.own)
        for each in days
        if each.own > 0 and each.difference > unit * each.carrier_records
    ]
    if len(shares) < _DAYS_STEADY_MIN:
        return None
    share = median(shares)
    fitting = sum(_fits(each, share, unit) for each in days)
    return share if 0 < share <= _SHARE_MAX and fitting >= _DAYS_STEADY_MIN else None


def _fits(counts: DayCounts, share: Fraction, unit: int) -> bool:
    expected = share * counts.own
    return abs(counts.difference - expected) <= _SPREAD * expected + unit * counts.carrier_records


def _lagging(days: Sequence[DayCounts], share: Fraction | None, unit: int) -> AbstractSet[date]:
    """Return the days next to each other whose differences sum to nothing."""
    found: set[date] = set()
    for first, start in enumerate(days):
        if start.day in found:
            continue
        rest, tolerance, run = Fraction(0), 0, list[date]()
        for each in days[first : first + _LAG_DAYS_MAX]:
            if each.day in found or (run and each.day - run[-1] > _ONE_DAY):
                break
            run.append(each.day)
            rest += each.difference - (share or 0) * each.own
            tolerance += unit * each.carrier_records
            spread = _SPREAD * (share or 0) * each.own
            tolerance += int(spread)
            if len(run) > 1 and abs(rest) <= tolerance:
                found.update(run)
                break
    return found
