"""Guiding: which bill cycle and which subscription each part of a usage belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from metering.period import BillCycle, Calendar, split_by_time


class ParkReason(StrEnum):
    """Why a reading cannot be charged yet. The texts are stored and public."""

    NO_SUBSCRIPTION = "no_subscription"
    """The device has no plan for some of the time in which it used this."""
    NO_PRICE = "no_price"
    """The device's plan has no terms for this meter."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A device's plan version during `[valid_from, valid_to)`; `valid_to` is None while it runs.

    It belongs to the fleet in which the device is then; 0 where there is but one fleet.
    """

    subscription_no: int
    device_no: int
    plan_no: int
    valid_from: datetime
    valid_to: datetime | None
    fleet_no: int = 0

    def covers(self, instant: datetime) -> bool:
        """Whether the subscription runs at an instant."""
        return self.valid_from <= instant and (self.valid_to is None or instant < self.valid_to)


class UsageRecord(NamedTuple):
    """One part of a reading's usage: of one cycle, one subscription and one price.

    `quantity` is all of it in the meter's base unit; `uplink` is the part of it that went up. `raw`
    is the quantity with its overhead, `billed` what is charged for it; where `group` is set, `billed`
    depends on what else was used in that group, and is found when the record is charged. (A named
    tuple, because one is made for every record.)
    """

    part: int
    start: datetime
    end: datetime
    quantity: int
    uplink: int
    cycle: BillCycle
    subscription: Subscription
    raw: int
    billed: int
    variant: int = 0
    zone: str | None = None
    band: str | None = None
    group: str | None = None


def whole_record(  # noqa: PLR0917 - called for every reading
    quantity: int,
    uplink: int,
    start: datetime,
    end: datetime,
    calendar: Calendar,
    subscriptions: Sequence[Subscription],
) -> UsageRecord | None:
    """Return a usage that lies in one cycle and one subscription as one record; else None."""
    cycle = calendar.cycle_at(start)
    subscription = _covering(subscriptions, start)
    if subscription is None or end > cycle.end:
        return None
    valid_to = subscription.valid_to
    if valid_to is not None and end > valid_to:
        return None
    return UsageRecord(0, start, end, quantity, uplink, cycle, subscription, quantity, quantity)


def guide(
    *,
    quantity: int,
    uplink: int,
    start: datetime,
    end: datetime,
    calendar: Calendar,
    subscriptions: Sequence[Subscription],
) -> list[UsageRecord] | ParkReason:
    """Split a usage over `[start, end)` by cycle and subscription, in proportion to time.

    `subscriptions` are the device's, ascending. A usage whose start is its end lies wholly where
    that instant lies. Returns the reason when a part of the time has no subscription.
    """
    record = whole_record(quantity, uplink, start, end, calendar, subscriptions)
    if record is not None:
        return [record]
    if start == end:
        return ParkReason.NO_SUBSCRIPTION
    inner = calendar.boundaries_between(start, end)
    changes = [
        edge
        for each in subscriptions
        for edge in (each.valid_from, each.valid_to)
        if edge is not None and start < edge < end
    ]
    cuts = sorted({*inner, *changes})
    downs = split_by_time(quantity - uplink, start, end, cuts)
    ups = split_by_time(uplink, start, end, cuts)
    records: list[UsageRecord] = []
    for part, ((left, right, down), (_, _, up)) in enumerate(zip(downs, ups, strict=True)):
        subscription = _covering(subscriptions, left)
        if subscription is None:
            return ParkReason.NO_SUBSCRIPTION
        cycle = calendar.cycle_at(left)
        whole = down + up
        records.append(UsageRecord(part, left, right, whole, up, cycle, subscription, whole, whole))
    return records


def _covering(subscriptions: Sequence[Subscription], instant: datetime) -> Subscription | None:
    for position in range(len(subscriptions) - 1, -1, -1):
        subscription = subscriptions[position]
        if subscription.valid_from <= instant:
            valid_to = subscription.valid_to
            return subscription if valid_to is None or instant < valid_to else None
    return None
