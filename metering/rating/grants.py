"""Grants: what subscriptions bring into buckets in a bill cycle, and what rolls over when it ends."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from math import floor

from metering.period import BillCycle, local_day, midnight, months_later
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.guide import Subscription
from metering.rating.membership import (
    Fleet,
    Interval,
    Member,
    Term,
    intervals,
    offer_holds,
    share_of,
    subscribed_intervals,
    term_of,
)
from metering.rating.plan import (
    AllowanceTerms,
    Burn,
    LifetimeUnit,
    PlanTerms,
    Proration,
    Renews,
    Rollover,
    SharedBy,
)

_MONTHS = {Renews.MONTH: 1, Renews.QUARTER: 3, Renews.YEAR: 12}
_IN_A_YEAR = {LifetimeUnit.DAYS: 365, LifetimeUnit.MONTHS: 12, LifetimeUnit.YEARS: 1}
_YEAR_MAX = 9000


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A quantity, in base units, that a subscription brings into a lot of an allowance.

    The lot holds in `[begins_at, expires_at)`; None: it has no end. It is granted in the bill cycle that
    starts at `cycle_start`. Of a pool of fixed size each
    member's grant is that size, and the lot holds it once.
    """

    subscription: Subscription
    meter: str
    allowance: AllowanceTerms
    quantity: int
    begins_at: datetime
    expires_at: datetime | None
    cycle_start: datetime

    @property
    def subscription_no(self) -> int:
        """The number of the subscription that brings it."""
        return self.subscription.subscription_no

    @property
    def pooled(self) -> bool:
        """Whether it goes to a pool."""
        return self.allowance.shared_by is not SharedBy.DEVICE

    @property
    def pool_plan_no(self) -> int | None:
        """The plan whose devices alone share the pool; None: any plan's."""
        return self.subscription.plan_no if self.allowance.shared_by is SharedBy.PLAN else None


def cycle_grants(
    members: Iterable[Member],
    plans: Mapping[int, PlanTerms],
    *,
    cycle: BillCycle,
    fleet: Fleet,
) -> list[Grant]:
    """Return what all subscriptions of some members bring in a cycle."""
    return [
        grant
        for member in members
        for subscription in member.subscriptions
        for grant in grants_of(
            member, subscription, plans[subscription.plan_no], cycle=cycle, fleet=fleet
        )
    ]


def grants_of(
    member: Member, subscription: Subscription, terms: PlanTerms, *, cycle: BillCycle, fleet: Fleet
) -> list[Grant]:
    """Return what a subscription brings in a cycle, meter by meter, allowance by allowance.

    What an allowance renews otherwise than by cycle is granted in the cycle in which the device is
    first billed in its lot.
    """
    found: list[Grant] = []
    for meter, of_meter in terms.meters.items():
        for allowance in of_meter.allowances:
            holds = offer_holds(
                allowance.offer,
                cycle=cycle,
                cycle_of=fleet.cycle_of,
                begins=subscription.valid_from,
                redemptions=[*member.redemptions, *fleet.redemptions],
            )
            if not holds:
                continue
            for begins_at, expires_at, quantity in _lots(
                member, subscription, allowance, cycle=cycle, fleet=fleet
            ):
                found.append(
                    Grant(
                        subscription=subscription,
                        meter=meter,
                        allowance=allowance,
                        quantity=quantity,
                        begins_at=begins_at,
                        expires_at=expires_at,
                        cycle_start=cycle.start,
                    )
                )
    return found


_Lot = tuple[datetime, datetime | None, int]
"""Begins at, expires at, quantity."""


def _lots(
    member: Member,
    subscription: Subscription,
    allowance: AllowanceTerms,
    *,
    cycle: BillCycle,
    fleet: Fleet,
) -> Iterator[_Lot]:
    term = term_of(cycle)
    active = subscribed_intervals(member, subscription, allowance.states, term)
    if not active:
        return
    begins = active[0][0]
    # A pool of fixed size is one, whenever its members begin.
    first = fleet.begins if allowance.fixed else subscription.valid_from
    first_day = local_day(first, fleet.time_zone)
    match allowance.renews:
        case Renews.PERIOD:
            quantity = _contribution(
                member, subscription, allowance, begins=begins, term=term, fleet=fleet
            )
            yield cycle.start, _expiry(allowance.rollover, cycle, fleet), quantity
        case Renews.DAY:
            for start, end in _days(active, fleet):
                yield start, end, allowance.quantity
        case Renews.NEVER:
            if not _billed_before(member, subscription, allowance, subscription.valid_from, cycle):
                lot_begins = first if allowance.fixed else begins
                yield lot_begins, _lifetime_end(allowance, first_day, fleet), allowance.quantity
        case Renews.WEEK | Renews.MONTH | Renews.QUARTER | Renews.YEAR:
            for start, end in _renewals(first_day, allowance.renews, cycle, fleet):
                if _meets(active, start, end) and not _billed_before(
                    member, subscription, allowance, start, cycle
                ):
                    yield start, end, allowance.quantity


def _days(active: Sequence[Interval], fleet: Fleet) -> Iterator[Interval]:
    """Return each local day of which any lies in one of the intervals."""
    day = local_day(active[0][0], fleet.time_zone)
    while (start := midnight(day, fleet.time_zone)) < active[-1][1]:
        day += timedelta(days=1)
        end = midnight(day, fleet.time_zone)
        if _meets(active, start, end):
            yield start, end


def _meets(active: Sequence[Interval], start: datetime, end: datetime) -> bool:
    return any(left < end and start < right for left, right in active)


def _contribution(
    member: Member,
    subscription: Subscription,
    allowance: AllowanceTerms,
    *,
    begins: datetime,
    term: Term,
    fleet: Fleet,
) -> int:
    """Prorate from the first billed day on, rounded down to whole units.

    Who leaves keeps what is granted until the cycle ends, unless another plan follows; an own
    allowance ends with its subscription.
    """
    if allowance.fixed or allowance.proration is Proration.NONE:
        return allowance.quantity
    ends, following = subscription.valid_to, None
    if ends is not None:
        following = next(
            (each.valid_from for each in member.subscriptions if each.valid_from >= ends), None
        )
    if (
        ends is None
        or ends > term.ends
        or (allowance.shared_by is not SharedBy.DEVICE and following != ends)
    ):
        ends, following = term.ends, None
    share = share_of(
        [(begins, ends)],
        term=term,
        proration=allowance.proration,
        time_zone=fleet.time_zone,
        next_begins=following,
    )
    return floor(allowance.quantity * share)


def _expiry(rollover: Rollover | None, cycle: BillCycle, fleet: Fleet) -> datetime:
    last = cycle
    for _ in range(rollover.periods if rollover else 0):
        last = fleet.cycle_of(last.end)
    return last.end


def _billed_before(
    member: Member,
    subscription: Subscription,
    allowance: AllowanceTerms,
    begins: datetime,
    cycle: BillCycle,
) -> bool:
    """Whether the subscription's device was billed from an instant on before a cycle: granted then."""
    begins = max(begins, subscription.valid_from)
    ends = cycle.start
    if subscription.valid_to is not None:
        ends = min(ends, subscription.valid_to)
    return bool(intervals(member.states, allowance.states, begins, ends))


def _lifetime_end(allowance: AllowanceTerms, first_day: date, fleet: Fleet) -> datetime | None:
    if allowance.lifetime is None:
        return None
    count, unit = allowance.lifetime
    if first_day.year + count // _IN_A_YEAR[unit] >= _YEAR_MAX:
        return None  # longer than calendars go
    if unit is LifetimeUnit.DAYS:
        return midnight(first_day + timedelta(days=count), fleet.time_zone)
    months = count if unit is LifetimeUnit.MONTHS else 12 * count
    return midnight(months_later(first_day, months), fleet.time_zone)


def _renewals(
    first_day: date, renews: Renews, cycle: BillCycle, fleet: Fleet
) -> Iterator[tuple[datetime, datetime]]:
    """Return the lots of which any lies in a cycle, counted from a first day."""
    if renews is Renews.WEEK:
        number = max(0, (cycle.first_day - first_day).days // 7)
    else:
        months = (cycle.first_day.year - first_day.year) * 12
        months += cycle.first_day.month - first_day.month
        number = max(0, months // _MONTHS[renews] - 1)
    while True:
        begins, ends = (
            first_day + timedelta(days=7 * each)
            if renews is Renews.WEEK
            else months_later(first_day, _MONTHS[renews] * each)
            for each in (number, number + 1)
        )
        start = midnight(begins, fleet.time_zone)
        if start >= cycle.end:
            return
        if ends > cycle.first_day:
            yield start, midnight(ends, fleet.time_zone)
        number += 1


def lot_of(
    allowance: AllowanceTerms,
    *,
    bucket_id: str,
    begins_at: datetime,
    expires_at: datetime | None,
) -> Bucket:
    """Return an allowance's lot, empty."""
    rollover = allowance.rollover
    pooled = allowance.shared_by is not SharedBy.DEVICE
    return Bucket(
        kind=BucketKind.POOL if pooled else BucketKind.ALLOWANCE,
        name=allowance.name,
        bucket_id=bucket_id,
        priority=allowance.priority,
        created_at=begins_at,
        expires_at=expires_at,
        zones=allowance.zones,
        bands=allowance.bands,
        newest_first=rollover is not None and rollover.burn is Burn.NEWEST_FIRST,
        ceiling=allowance.ceiling,
        floor=allowance.floor,
    )


def enter(bucket: Bucket, grant: Grant) -> None:
    """Put a grant into its bucket; a pool of fixed size holds one member's grant."""
    if not grant.allowance.fixed:
        bucket.granted += grant.quantity
    elif not bucket.members:
        bucket.granted = grant.quantity
    bucket.admit(grant.subscription_no)


def rolled_over(
    lots: Iterable[Bucket], rollover: Rollover, ends: datetime
) -> list[tuple[Bucket, int]]:
    """Return what each lot loses when a cycle ends at `ends`: `(lot, quantity)`, none of them 0.

    A lot that expires then loses nothing more: nobody can draw from it. Of the others one with less
    than the minimum is lost, and of what is over the maximum the oldest.
    """
    going_on = [
        lot for lot in lots if lot.left > 0 and (lot.expires_at is None or lot.expires_at > ends)
    ]
    lost: list[tuple[Bucket, int]] = []
    kept: list[Bucket] = []
    for lot in going_on:
        if lot.left < rollover.minimum:
            lost.append((lot, int(lot.left)))
        else:
            kept.append(lot)
    if rollover.maximum is not None:
        over = sum(int(lot.left) for lot in kept) - rollover.maximum
        for lot in sorted(kept, key=_age):
            cut = min(over, int(lot.left))
            if cut > 0:
                lost.append((lot, cut))
                over -= cut
    return lost


def _age(lot: Bucket) -> tuple[datetime | None, str]:
    return (lot.created_at, lot.bucket_id)
