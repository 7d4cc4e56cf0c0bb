"""Proration: the share of a bill cycle in which a subscription ran, exactly."""

from dataclasses import dataclass
from datetime import date
from fractions import Fraction

from metering.money import Money
from metering.period import BillCycle, local_day
from metering.rating.guide import Subscription
from metering.rating.plan import PlanTerms
from metering.usage import METERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A quantity that a subscription brings into a bucket: its own allowance, or its fleet's pool."""

    subscription_no: int
    meter_no: int
    pooled: bool
    quantity: int


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


def days_in_cycle(cycle: BillCycle, subscription: Subscription, time_zone: str) -> int:
    """Return on how many local days of `cycle` a subscription runs; the day it begins counts."""
    first_day = local_day(subscription.valid_from, time_zone)
    end = subscription.valid_to
    return active_days(cycle, first_day, local_day(end, time_zone) if end else None)


def grants_of(member: Subscription, terms: PlanTerms, days: int, cycle: BillCycle) -> list[Grant]:
    """Return what a subscription brings into a cycle, meter by meter."""
    return [
        Grant(
            subscription_no=member.subscription_no,
            meter_no=METERS[meter].meter_no,
            pooled=of_meter.pooled,
            quantity=prorated_quantity(of_meter.allowance, days, cycle),
        )
        for meter, of_meter in terms.meters.items()
        if of_meter.allowance
    ]
