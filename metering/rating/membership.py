"""Who belongs to a fleet and when: device states, shares of a term, offers, and changes of plan.

A local day counts once. The day on which a state, or a plan, begins counts for the new one, so parts
of a month always sum to the month.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import TypeVar, assert_never

from metering.period import BillCycle, TimeZone, local_day, midnight
from metering.rating.guide import Subscription
from metering.rating.plan import (
    ChangeTakesEffect,
    DeviceState,
    FeeBasis,
    FeeState,
    FeeTerms,
    Offer,
    PlanTerms,
    Proration,
)
from metering.rating.price import Price, Rate

CycleOf = Callable[[datetime], BillCycle]
"""Returns the fleet's bill cycle that holds an instant."""
Interval = tuple[datetime, datetime]
"""Instants `[from, to)`."""

K = TypeVar("K")
_TICK = timedelta(microseconds=1)
_THIRTY = 30
_DAYS_OF_A_MONTH = Fraction(146097, 400 * 12)
"""The mean of the Gregorian calendar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """A device is in `state` from an instant on, until its next change."""

    state: DeviceState
    effective_from: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Redemption:
    """A coupon that a device or a fleet redeemed on a local day."""

    code: str
    day: date


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device of a fleet with its whole history: subscriptions and states, each ascending.

    Before its first state change a device is in inventory. The subscriptions are those in effect
    (`effective_subscriptions`) and do not overlap.
    """

    device_no: int
    subscriptions: Sequence[Subscription]
    states: Sequence[StateChange]
    redemptions: Sequence[Redemption] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What a fleet's periods are reckoned by; `first_day` is the local day on which it starts."""

    currency: str
    time_zone: TimeZone
    cycle_of: CycleOf
    first_day: date
    redemptions: Sequence[Redemption] = ()

    @property
    def begins(self) -> datetime:
        """The instant at which the fleet starts."""
        return midnight(self.first_day, self.time_zone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """What a fee is for: local days `[first_day, end_day)`, as instants `[begins, ends)`."""

    first_day: date
    end_day: date
    begins: datetime
    ends: datetime

    @property
    def days(self) -> int:
        """How many local days the term has."""
        return (self.end_day - self.first_day).days


def term_of(cycle: BillCycle) -> Term:
    """Return a bill cycle as a term."""
    return Term(
        first_day=cycle.first_day,
        end_day=cycle.next_first_day,
        begins=cycle.start,
        ends=cycle.end,
    )


# States


def state_at(states: Sequence[StateChange], instant: datetime) -> DeviceState:
    """Return a device's state at an instant."""
    position = bisect_right(states, instant, key=lambda change: change.effective_from)
    return states[position - 1].state if position else DeviceState.INVENTORY


def spans(
    states: Sequence[StateChange], begins: datetime, ends: datetime
) -> list[tuple[DeviceState, datetime, datetime]]:
    """Return a device's states over `[begins, ends)`: adjoining `(state, from, to)`, none empty."""
    if begins >= ends:
        return []
    found: list[tuple[DeviceState, datetime, datetime]] = []
    left, state = begins, state_at(states, begins)
    for change in states[bisect_right(states, begins, key=lambda each: each.effective_from) :]:
        if change.effective_from >= ends:
            break
        if change.state is state:
            continue
        if left < change.effective_from:
            found.append((state, left, change.effective_from))
        left, state = change.effective_from, change.state
    found.append((state, left, ends))
    return found


def intervals(
    states: Sequence[StateChange],
    wanted: frozenset[DeviceState],
    begins: datetime,
    ends: datetime,
) -> list[Interval]:
    """Return when in `[begins, ends)` a device is in one of the `wanted` states, ascending."""
    return joined(
        (left, right) for state, left, right in spans(states, begins, ends) if state in wanted
    )


def subscribed_intervals(
    member: Member, subscription: Subscription, wanted: frozenset[DeviceState], term: Term
) -> list[Interval]:
    """Return when in a term a subscription runs and its device is in one of the `wanted` states."""
    begins = max(subscription.valid_from, term.begins)
    ends = term.ends if subscription.valid_to is None else min(subscription.valid_to, term.ends)
    return intervals(member.states, wanted, begins, ends)


def joined(parts: Iterable[Interval]) -> list[Interval]:
    """Return the union of intervals, ascending, none adjoining."""
    found: list[Interval] = []
    for left, right in sorted(parts):
        if found and left <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], right))
        else:
            found.append((left, right))
    return found


def retired_from(member: Member) -> datetime | None:
    """Return when a device is retired for good; None while it is not."""
    found: datetime | None = None
    for change in reversed(member.states):
        if change.state is not DeviceState.RETIRED:
            break
        found = change.effective_from
    return found


# Shares


def shares(
    billed: Sequence[tuple[K, datetime, datetime]],
    *,
    term: Term,
    proration: Proration,
    time_zone: TimeZone,
    next_begins: datetime | None = None,
) -> dict[K, Fraction]:
    """Return each key's share of a term, exactly; a key without a share is left out.

    `billed` are `(key, from, to)` within the term, ascending. `next_begins` is when what follows
    begins: the day on which it does is not counted as the last one's end day. By days, seconds and
    thirty days all shares together are at most 1; by `none` each key's is 1.
    """
    if len(billed) == 1 and billed[0][1] <= term.begins and term.ends <= billed[0][2]:
        return {billed[0][0]: Fraction(1)}
    match proration:
        case Proration.NONE:
            return {key: Fraction(1) for key, left, right in billed if left < right}
        case Proration.SECONDS:
            ticks = _summed((key, (right - left) // _TICK) for key, left, right in billed)
            whole = (term.ends - term.begins) // _TICK
            return {key: Fraction(count, whole) for key, count in ticks.items()}
        case Proration.DAYS:
            days = _days(billed, time_zone=time_zone)
            return {key: Fraction(count, term.days) for key, count in days.items()}
        case Proration.DAYS_INCLUSIVE:
            days = _days_inclusive(billed, term=term, time_zone=time_zone, next_begins=next_begins)
            return {key: Fraction(count, term.days) for key, count in days.items()}
        case Proration.THIRTY_DAYS:
            return _of_thirty(_days(billed, time_zone=time_zone), term)
        case _:
            assert_never(proration)


def share_of(
    parts: Sequence[Interval],
    *,
    term: Term,
    proration: Proration,
    time_zone: TimeZone,
    next_begins: datetime | None = None,
) -> Fraction:
    """Return what share of a term the ascending intervals within it are, exactly: 0 to 1."""
    by_key = shares(
        [(None, left, right) for left, right in parts],
        term=term,
        proration=proration,
        time_zone=time_zone,
        next_begins=next_begins,
    )
    return by_key.get(None, Fraction(0))


def _summed(counts: Iterable[tuple[K, int]]) -> dict[K, int]:
    sums: dict[K, int] = {}
    for key, count in counts:
        if count:
            sums[key] = sums.get(key, 0) + count
    return sums


def _days(billed: Sequence[tuple[K, datetime, datetime]], *, time_zone: TimeZone) -> dict[K, int]:
    return _summed(
        (key, (local_day(right, time_zone) - local_day(left, time_zone)).days)
        for key, left, right in billed
    )


def _days_inclusive(
    billed: Sequence[tuple[K, datetime, datetime]],
    *,
    term: Term,
    time_zone: TimeZone,
    next_begins: datetime | None,
) -> dict[K, int]:
    following: list[datetime | None] = [*(left for _, left, _ in billed), next_begins][1:]
    counts: list[tuple[K, int]] = []
    for (key, left, right), begins_next in zip(billed, following, strict=True):
        end_day = local_day(right, time_zone)
        taken = begins_next is not None and local_day(begins_next, time_zone) <= end_day
        last = end_day < term.end_day and not taken
        counts.append((key, (end_day - local_day(left, time_zone)).days + last))
    return _summed(counts)


def _of_thirty(days: Mapping[K, int], term: Term) -> dict[K, Fraction]:
    # Each month of the term counts thirty days; a term of less than half a month its own.
    fixed = _THIRTY * round(term.days / _DAYS_OF_A_MONTH) or term.days
    found: dict[K, Fraction] = {}
    left = Fraction(1)
    for key, count in days.items():
        whole = count == term.days
        share = left if whole else min(left, Fraction(count, fixed))
        left -= share
        if share:
            found[key] = share
    return found


# Offers


def offer_holds(
    offer: Offer,
    *,
    cycle: BillCycle,
    cycle_of: CycleOf,
    begins: datetime,
    redemptions: Iterable[Redemption] = (),
) -> bool:
    """Whether a part of a plan holds in a period.

    Dates hold in the periods whose first day lies in them. `periods` counts bill cycles, the first
    being the one in which the subscription (of a part that is a whole fleet's: the fleet) `begins`;
    with a coupon the one in which it was redeemed. A coupon holds from that cycle on.
    """
    if offer.first_day is not None and cycle.first_day < offer.first_day:
        return False
    if offer.end_day is not None and cycle.first_day >= offer.end_day:
        return False
    if offer.coupon is not None:
        days = [each.day for each in redemptions if each.code == offer.coupon]
        days = [day for day in days if day < cycle.next_first_day]
        if not days or offer.periods is None:
            return bool(days)
        return max(days) >= _counted_from(cycle, offer.periods, cycle_of).first_day
    if offer.periods is None:
        return True
    return _counted_from(cycle, offer.periods, cycle_of).start <= begins < cycle.end


def _counted_from(cycle: BillCycle, periods: int, cycle_of: CycleOf) -> BillCycle:
    """Return the cycle of which `cycle` is the one numbered `periods`, counted from 1."""
    for _ in range(periods - 1):
        cycle = cycle_of(cycle.start - _TICK)
    return cycle


# Changes of plan


def effective_subscriptions(
    assigned: Sequence[Subscription], plans: Mapping[int, PlanTerms], cycle_of: CycleOf
) -> list[Subscription]:
    """Return a device's subscriptions as they take effect, ascending.

    `assigned` are its subscriptions as they were ordered, ascending and without overlap. The plan
    that is left says when a change takes effect. A change to a higher recurring fee, or to the same
    fee and no smaller allowances, is upward. One that waits for the next period leaves the earlier
    subscription running until then; where another change comes first, it never takes effect.
    """
    found: list[Subscription] = []
    for position, ordered in enumerate(assigned):
        adjoins = position > 0 and assigned[position - 1].valid_to == ordered.valid_from
        if not adjoins:
            found.append(ordered)
            continue
        before = found[-1]
        starts = _takes_effect(before, ordered, plans, cycle_of)
        if ordered.valid_to is None or starts < ordered.valid_to:
            found[-1] = replace(before, valid_to=starts)
            found.append(replace(ordered, valid_from=starts))
        else:
            found[-1] = replace(before, valid_to=ordered.valid_to)
    return [each for each in found if each.valid_to is None or each.valid_from < each.valid_to]


def _takes_effect(
    before: Subscription,
    ordered: Subscription,
    plans: Mapping[int, PlanTerms],
    cycle_of: CycleOf,
) -> datetime:
    left = plans[before.plan_no]
    upward = _worth(plans[ordered.plan_no]) >= _worth(left)
    rule = left.upward if upward else left.downward
    match rule:
        case ChangeTakesEffect.AT_ONCE:
            return ordered.valid_from
        case ChangeTakesEffect.NEXT_PERIOD:
            cycle = cycle_of(ordered.valid_from)
            return ordered.valid_from if cycle.start == ordered.valid_from else cycle.end
        case _:
            assert_never(rule)


def _worth(terms: PlanTerms) -> tuple[Fraction, int]:
    """Return what plans are compared by: an active device's recurring fees, then allowances."""
    fee = sum((_monthly(each) for each in terms.fees), start=Fraction(0))
    quantity = sum(each.quantity for meter in terms.meters.values() for each in meter.allowances)
    return (fee, quantity)


def fee_rate(price: Price) -> tuple[Rate, int]:
    """Return a fee's price by number of devices, compiled, and its sub-units per unit of currency."""
    per_unit = price.whole_at()
    return price.compiled(per_unit), per_unit


_MONTHS = {
    FeeBasis.DAY: Fraction(1, _THIRTY),
    FeeBasis.PERIOD: Fraction(1),
    FeeBasis.MONTH: Fraction(1),
    FeeBasis.QUARTER: Fraction(3),
    FeeBasis.YEAR: Fraction(12),
}


def _monthly(fee: FeeTerms) -> Fraction:
    if fee.per_fleet or fee.every not in _MONTHS or fee.offer.coupon is not None:
        return Fraction(0)
    if fee.by_state is not None:
        amount = Fraction(fee.by_state.get(FeeState.ACTIVE, 0))
    elif DeviceState.ACTIVE not in fee.states:
        amount = Fraction(0)
    elif fee.price is not None:
        rate, per_unit = fee_rate(fee.price)
        amount = Fraction(rate.rated(1), per_unit)
    else:
        amount = Fraction(fee.amount or 0)
    return amount * fee.quantity / _MONTHS[fee.every]
