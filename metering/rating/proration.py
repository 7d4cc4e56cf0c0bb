"""Proration: the share of a bill cycle in which a subscription ran, exactly."""

from datetime import date
from fractions import Fraction

from metering.money import Money
from metering.period import BillCycle
from metering.rating.plan import PlanTerms


def active_days(cycle: BillCycle, first_day: date, end_day: date | None) -> int:
    """Return on how many local days of `cycle` a subscription `[first_day, end_day)` ran."""
    begins = max(cycle.first_day, first_day)
    ends = cycle.next_first_day if end_day is None else min(cycle.next_first_day, end_day)
    return max(0, (ends - begins).days)


def prorated_quantity(quantity: int, days: int, cycle: BillCycle) -> int:
    """Return an allowance or contribution for `days` of `cycle`, in whole base units, rounded down."""
    return quantity * days // cycle.days


def prorated_fee(terms: PlanTerms, days: int, cycle: BillCycle) -> Money:
    """Return the monthly fee for `days` of `cycle`, exactly."""
    share = Fraction(terms.monthly_fee) * Fraction(days, cycle.days)
    return Money(count=share.numerator, per_unit=share.denominator, currency=terms.currency)
