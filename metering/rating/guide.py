"""Guiding: which bill cycle and which subscription each part of a usage belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from metering.period import BillCycle, boundaries_between, cycle_at, split_by_time


class ParkReason(StrEnum):
    """Why a reading cannot be charged yet. The texts are stored and public."""

    NO_SUBSCRIPTION = "no_subscription"
    """The device has no plan for some of the time in which it used this."""
    NO_PRICE = "no_price"
    """The device's plan has no terms for this meter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A device's plan version during `[valid_from, valid_to)`; `valid_to` is None while it runs."""

    subscription_no: int
    device_no: int
    plan_no: int
    valid_from: datetime
    valid_to: datetime | None

    def covers(self, instant: datetime) -> bool:
        """Whether the subscription runs at an instant."""
        return self.valid_from <= instant and (self.valid_to is None or instant < self.valid_to)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One part of a reading's usage that lies in one cycle and one subscription.

    `quantity` is all of it in the meter's base unit; `uplink` is the part of it that went up.
    """

    part: int
    start: datetime
    end: datetime
    quantity: int
    uplink: int
    cycle: BillCycle
    subscription: Subscription


def guide(
    *,
    quantity: int,
    uplink: int,
    start: datetime,
    end: datetime,
    time_zone: str,
    anchor_day: int,
    subscriptions: Sequence[Subscription],
) -> list[UsageRecord] | ParkReason:
    """Split a usage over `[start, end)` by cycle and subscription, in proportion to time.

    `subscriptions` are the device's, ascending. A usage whose start is its end lies wholly where
    that instant lies. Returns the reason when a part of the time has no subscription.
    """
    cuts: list[datetime] = []
    if start < end:
        inner = boundaries_between(start, end, time_zone, anchor_day)
        changes = [
            edge
            for subscription in subscriptions
            for edge in (subscription.valid_from, subscription.valid_to)
            if edge is not None and start < edge < end
        ]
        cuts = sorted({*inner, *changes})
    downs = (
        split_by_time(quantity - uplink, start, end, cuts)
        if cuts
        else [(start, end, quantity - uplink)]
    )
    ups = split_by_time(uplink, start, end, cuts) if cuts else [(start, end, uplink)]
    records: list[UsageRecord] = []
    for part, ((left, right, down), (_, _, up)) in enumerate(zip(downs, ups, strict=True)):
        subscription = next((each for each in subscriptions if each.covers(left)), None)
        if subscription is None:
            return ParkReason.NO_SUBSCRIPTION
        records.append(
            UsageRecord(
                part=part,
                start=left,
                end=right,
                quantity=down + up,
                uplink=up,
                cycle=cycle_at(left, time_zone, anchor_day),
                subscription=subscription,
            )
        )
    return records
