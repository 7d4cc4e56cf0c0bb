"""From the store's views to the API's answers, where more than one route needs it."""

from collections.abc import Sequence
from datetime import datetime

from api import schemas
from metering.money import Money, decimal_text
from metering.period import BillCycle


def cycle(of: BillCycle) -> schemas.Cycle:
    """Present a bill cycle."""
    return schemas.Cycle(
        start=of.start, end=of.end, first_day=of.first_day, end_day=of.next_first_day
    )


def money(of: Money) -> schemas.Money:
    """Present an amount, rounded and exact."""
    return schemas.Money(
        amount=format(of.rounded(), "f"), exact_amount=decimal_text(of.exact), currency=of.currency
    )


def sum_of(buckets: Sequence[schemas.Bucket]) -> schemas.Bucket | None:
    """Present several buckets as one; None where there are none."""
    if not buckets:
        return None
    return schemas.Bucket(
        granted=sum(each.granted for each in buckets),
        used=sum(each.used for each in buckets),
        left=sum(each.left for each in buckets),
        reserved=None
        if any(each.reserved is None for each in buckets)
        else sum(each.reserved or 0 for each in buckets),
    )


def subscription(
    *, plan_id: str | None, version: int | None, start: datetime | None, end: datetime | None
) -> schemas.Subscription | None:
    """Present a device's subscription; None where it has none."""
    if plan_id is None or version is None or start is None:
        return None
    return schemas.Subscription(
        plan_id=plan_id, plan_version=version, subscribed_from=start, subscribed_to=end
    )
