"""Recurring and one-time fees: who owes which share of which term, and what it costs, exactly."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import assert_never

from metering.period import BillCycle, TimeZone, local_day, midnight, months_later
from metering.rating.guide import Subscription
from metering.rating.membership import (
    Fleet,
    Interval,
    Member,
    Term,
    fee_rate,
    joined,
    offer_holds,
    retired_from,
    shares,
    spans,
    subscribed_intervals,
    term_of,
)
from metering.rating.plan import (
    DeviceState,
    FeeBasis,
    FeeCount,
    FeeState,
    FeeTerms,
    PlanTerms,
    Proration,
)
from metering.rating.price import Price, Rate, VolumeRate


@dataclass(frozen=True, slots=True, kw_only=True)
class FeeItem:
    """One part of a plan's fee that falls due in a period.

    `fee` is its position among the plan's fees. It is for `share` of the term `[begins, ends)`, where a
    daily fee's term is each day and its share their number; a fee that is due once has a term
    without length. `device_no` and `subscription_no` are None where
    the fleet owes it as a whole. `state` is which amount of a fee by state it is. `exact` is in units
    of currency and negative where it is given back (`refund`). `devices` is how many it was reckoned
    for.
    """

    plan_no: int
    fee: int
    name: str
    device_no: int | None
    subscription_no: int | None
    begins: datetime
    ends: datetime
    share: Fraction
    state: FeeState | None
    exact: Fraction
    due: datetime
    devices: int = 1
    refund: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """A member on a plan: one of its subscriptions, to its end or the device's retirement.

    `next_begins` is when the device's next subscription begins, whatever its plan.
    """

    member: Member
    subscription: Subscription
    ends: datetime | None
    next_begins: datetime | None

    @property
    def begins(self) -> datetime:
        """When it begins."""
        return self.subscription.valid_from

    def overlaps(self, begins: datetime, ends: datetime) -> bool:
        """Whether any of it lies in `[begins, ends)`."""
        return self.begins < ends and (self.ends is None or begins < self.ends)

    def active(self, term: Term) -> list[Interval]:
        """Return when in a term the device is active on the plan."""
        return subscribed_intervals(self.member, self.subscription, _ACTIVE, term)


_ACTIVE = frozenset({DeviceState.ACTIVE})


def enrolments(members: Iterable[Member]) -> dict[int, list[Enrolment]]:
    """Return who is on each plan (number), in the members' order."""
    found: dict[int, list[Enrolment]] = {}
    for member in members:
        retired = retired_from(member)
        for position, each in enumerate(member.subscriptions):
            ends = each.valid_to
            if retired is not None:
                ends = retired if ends is None else min(ends, retired)
            if ends is not None and ends <= each.valid_from:
                continue
            following = member.subscriptions[position + 1 : position + 2]
            found.setdefault(each.plan_no, []).append(
                Enrolment(
                    member=member,
                    subscription=each,
                    ends=ends,
                    next_begins=following[0].valid_from if following else None,
                )
            )
    return found


def activated(member: Member) -> datetime | None:
    """Return the first instant at which a device is active and on any plan; None if it never was."""
    for each in member.subscriptions:
        ends = each.valid_to or datetime.max.replace(tzinfo=each.valid_from.tzinfo)
        for state, left, _ in spans(member.states, each.valid_from, ends):
            if state is DeviceState.ACTIVE:
                return left
    return None


def fees_of(
    *,
    fleet: Fleet,
    cycle: BillCycle,
    plans: Mapping[int, PlanTerms],
    members: Sequence[Member],
    used: AbstractSet[int],
    by_plan: Mapping[int, Sequence[Enrolment]] | None = None,
) -> list[FeeItem]:
    """Return every part of a fee that falls due in a period, by plan, fee, then member.

    What is charged in arrears falls due when its term ends, or the subscription if that is earlier;
    what is charged in advance when its term begins, or the device joins if that is later. `members`
    are all devices that the fleet has or had, with their whole history; `used` are the numbers of the
    subscriptions that used anything in the period; `by_plan` are the members' `enrolments`, if the
    caller has them.
    """
    by_plan = enrolments(members) if by_plan is None else by_plan
    items: list[FeeItem] = []
    for plan_no, terms in plans.items():
        on_plan = by_plan.get(plan_no, [])
        if not any(each.overlaps(cycle.start, cycle.end) for each in on_plan):
            continue
        for position, fee in enumerate(terms.fees):
            reckoning = _Reckoning(
                fleet=fleet,
                plan_no=plan_no,
                position=position,
                fee=fee,
                on_plan=on_plan,
                members=members,
                used=used,
            )
            items.extend(reckoning.items(cycle))
    return items


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owed:
    """A share of a term that somebody owes, before it has a price."""

    payer: "_Payer"
    begins: datetime
    ends: datetime
    state: FeeState | None
    share: Fraction
    due: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _Payer:
    """Who owes a fee: an enrolled device, or the fleet for all devices on the plan.

    Its terms of months run from the local day `anchor`. `billed` returns when in a term it is billed,
    in which state, ascending.
    """

    anchor: Callable[[], date]
    begins: datetime
    ends: datetime | None
    next_begins: datetime | None
    billed: Callable[[Term], list[tuple[FeeState | None, datetime, datetime]]]
    enrolment: Enrolment | None = None

    @property
    def device_no(self) -> int | None:
        return self.enrolment.member.device_no if self.enrolment else None

    @property
    def subscription_no(self) -> int | None:
        return self.enrolment.subscription.subscription_no if self.enrolment else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reckoning:
    """One fee of one plan, and all that it depends on but the period."""

    fleet: Fleet
    plan_no: int
    position: int
    fee: FeeTerms
    on_plan: Sequence[Enrolment]
    members: Sequence[Member]
    used: AbstractSet[int]

    def items(self, cycle: BillCycle) -> list[FeeItem]:
        """Return what falls due in a period."""
        charged = self._charged(cycle)
        if self.fee.in_advance and self.fee.refund and self.fee.every in _RECURRING:
            charged.extend(self._refunds(cycle))
        return charged

    def _charged(self, cycle: BillCycle) -> list[FeeItem]:
        items = self._for_one(cycle)
        number = self.fee.quantity
        return (
            items if number == 1 else [replace(each, exact=each.exact * number) for each in items]
        )

    def _for_one(self, cycle: BillCycle) -> list[FeeItem]:
        price = self.fee.price
        if price is None:
            # Most devices have the same share: what it costs is reckoned once.
            costs: dict[tuple[FeeState | None, Fraction], Fraction] = {}
            items: list[FeeItem] = []
            for owed in self._owed(self._payers(cycle), cycle):
                exact = costs.get((owed.state, owed.share))
                if exact is None:
                    exact = owed.share * self._amount(owed.state)
                    costs[owed.state, owed.share] = exact
                items.append(self._item(owed, exact))
            return items
        if self.fee.count is FeeCount.PEAK:
            return self._peaks(price, cycle)
        return self._by_number(price, cycle)

    def _amount(self, state: FeeState | None) -> Fraction:
        by_state = self.fee.by_state
        amount = self.fee.amount if by_state is None or state is None else by_state[state]
        return Fraction(amount or 0)

    def _item(
        self, owed: _Owed, exact: Fraction, *, devices: int = 1, refund: bool = False
    ) -> FeeItem:
        return FeeItem(
            plan_no=self.plan_no,
            fee=self.position,
            name=self.fee.name,
            device_no=owed.payer.device_no,
            subscription_no=owed.payer.subscription_no,
            begins=owed.begins,
            ends=owed.ends,
            share=owed.share,
            state=owed.state,
            exact=exact,
            due=owed.due,
            devices=devices,
            refund=refund,
        )

    # Who owes

    def _payers(self, cycle: BillCycle) -> list[_Payer]:
        if self.fee.per_fleet:
            return self._fleet_payer(cycle)
        return self._device_payers(cycle)

    def _device_payers(self, cycle: BillCycle) -> list[_Payer]:
        return [
            self._device_payer(each)
            for each in self.on_plan
            if each.overlaps(cycle.start, cycle.end) and self._holds_for(each, cycle)
        ]

    def _device_payer(self, each: Enrolment) -> _Payer:
        return _Payer(
            anchor=lambda: local_day(each.begins, self.fleet.time_zone),
            begins=each.begins,
            ends=each.ends,
            next_begins=each.next_begins,
            billed=lambda term: self._billed(each, term),
            enrolment=each,
        )

    def _fleet_payer(self, cycle: BillCycle) -> list[_Payer]:
        here = [each for each in self.on_plan if each.overlaps(cycle.start, cycle.end)]
        if not here or not self._holds_for(None, cycle):
            return []
        ends = [each.ends for each in here if each.ends is not None]
        return [
            _Payer(
                anchor=lambda: self.fleet.first_day,
                begins=min(each.begins for each in here),
                ends=max(ends) if len(ends) == len(here) else None,
                next_begins=None,
                billed=lambda term: [
                    (None, left, right) for left, right in joined(self._all_billed(term))
                ],
            )
        ]

    def _holds_for(self, each: Enrolment | None, cycle: BillCycle) -> bool:
        fleet = self.fleet
        return offer_holds(
            self.fee.offer,
            cycle=cycle,
            cycle_of=fleet.cycle_of,
            begins=each.begins if each else fleet.begins,
            redemptions=[*(each.member.redemptions if each else ()), *fleet.redemptions],
        )

    # When it is billed

    def _label(self, state: DeviceState, each: Enrolment) -> tuple[FeeState | None] | None:
        """Return which amount a state is billed by, in a tuple; None when it is not billed."""
        by_state = self.fee.by_state
        if by_state is None:
            return (None,) if state in self.fee.states else None
        used = each.subscription.subscription_no in self.used
        match state:
            case DeviceState.INVENTORY:
                choice = [FeeState.INVENTORY]
            case DeviceState.ACTIVE:
                choice = [FeeState.ACTIVE] if used else [FeeState.ACTIVE_UNUSED, FeeState.ACTIVE]
            case DeviceState.SUSPENDED:
                choice = [FeeState.SUSPENDED_USED] if used else []
                choice.append(FeeState.SUSPENDED)
            case DeviceState.RETIRED:
                choice = []
            case _:
                assert_never(state)
        return next(((label,) for label in choice if label in by_state), None)

    def _billed(
        self, each: Enrolment, term: Term
    ) -> list[tuple[FeeState | None, datetime, datetime]]:
        begins = max(each.begins, term.begins)
        ends = term.ends if each.ends is None else min(each.ends, term.ends)
        found: list[tuple[FeeState | None, datetime, datetime]] = []
        for state, left, right in spans(each.member.states, begins, ends):
            label = self._label(state, each)
            if label is None:
                continue
            if found and found[-1][0] is label[0] and found[-1][2] == left:
                found[-1] = (label[0], found[-1][1], right)
            else:
                found.append((label[0], left, right))
        return found

    def _all_billed(self, term: Term) -> list[Interval]:
        return [
            (left, right)
            for each in self.on_plan
            if each.overlaps(term.begins, term.ends)
            for _, left, right in self._billed(each, term)
        ]

    # What falls due

    def _owed(self, payers: Iterable[_Payer], cycle: BillCycle) -> Iterator[_Owed]:
        for payer in payers:
            match self.fee.every:
                case FeeBasis.ONCE:
                    yield from self._at(self._starts(payer, cycle), payer, cycle)
                case FeeBasis.ACTIVATION:
                    yield from self._at(self._activated(payer), payer, cycle)
                case FeeBasis.DAY:
                    yield from self._daily(payer, cycle)
                case FeeBasis.PERIOD | FeeBasis.MONTH | FeeBasis.QUARTER | FeeBasis.YEAR:
                    for term in self._terms(payer, cycle.start, cycle.end):
                        if self.fee.in_advance:
                            yield from self._in_advance(payer, term, cycle)
                        else:
                            yield from self._in_arrears(payer, term, cycle)
                case _:
                    assert_never(self.fee.every)

    def _terms(self, payer: _Payer, begins: datetime, ends: datetime) -> Iterator[Term]:
        """Return the terms of which any lies in `[begins, ends)`, ascending."""
        if self.fee.every not in _MONTHS:
            yield term_of(self.fleet.cycle_of(begins))
            return
        yield from _terms_of_months(
            payer.anchor(), _MONTHS[self.fee.every], begins, ends, self.fleet.time_zone
        )

    def _in_arrears(self, payer: _Payer, term: Term, cycle: BillCycle) -> Iterator[_Owed]:
        due = term.ends
        if cycle.end < due and payer.ends is not None:
            due = payer.ends
        if not cycle.start < due <= cycle.end:
            return
        for state, share in self._shares(payer, payer.billed(term), term).items():
            yield _Owed(
                payer=payer, begins=term.begins, ends=term.ends, state=state, share=share, due=due
            )

    def _daily(self, payer: _Payer, cycle: BillCycle) -> Iterator[_Owed]:
        """Return a share for each local day: a day that somebody is billed counts as one whole."""
        term = term_of(cycle)
        inclusive = self.fee.proration is Proration.DAYS_INCLUSIVE
        by_state = shares(
            payer.billed(term),
            term=term,
            proration=Proration.DAYS_INCLUSIVE if inclusive else Proration.DAYS,
            time_zone=self.fleet.time_zone,
            next_begins=payer.next_begins,
        )
        for state, share in by_state.items():
            yield _Owed(
                payer=payer,
                begins=term.begins,
                ends=term.ends,
                state=state,
                share=share * term.days,
                due=term.ends,
            )

    def _in_advance(self, payer: _Payer, term: Term, cycle: BillCycle) -> Iterator[_Owed]:
        state_joined = next(iter(payer.billed(term)), None)
        if state_joined is None:
            return
        state, joins, _ = state_joined
        share = self._share(joins, term.ends, term)
        if cycle.start <= joins < cycle.end and share:
            yield _Owed(
                payer=payer,
                begins=term.begins,
                ends=term.ends,
                state=state,
                share=share,
                due=joins,
            )

    def _shares(
        self,
        payer: _Payer,
        billed: Sequence[tuple[FeeState | None, datetime, datetime]],
        term: Term,
    ) -> dict[FeeState | None, Fraction]:
        return shares(
            billed,
            term=term,
            proration=self.fee.proration,
            time_zone=self.fleet.time_zone,
            next_begins=payer.next_begins,
        )

    def _share(
        self, begins: datetime, ends: datetime, term: Term, next_begins: datetime | None = None
    ) -> Fraction:
        by_key = shares(
            [(None, begins, ends)],
            term=term,
            proration=self.fee.proration,
            time_zone=self.fleet.time_zone,
            next_begins=next_begins,
        )
        return by_key.get(None, Fraction(0))

    def _starts(self, payer: _Payer, cycle: BillCycle) -> datetime | None:
        """Return when a subscription starts, or the fleet: there its first period counts."""
        if payer.enrolment is not None:
            return payer.begins
        first = cycle.first_day <= self.fleet.first_day < cycle.next_first_day
        return max(self.fleet.begins, payer.begins) if first else None

    def _activated(self, payer: _Payer) -> datetime | None:
        if payer.enrolment is not None:
            when = activated(payer.enrolment.member)
            return when if when is not None and payer.enrolment.subscription.covers(when) else None
        each_first = (
            (when, member) for member in self.members if (when := activated(member)) is not None
        )
        first = min(each_first, key=lambda pair: pair[0], default=None)
        if first is None:
            return None
        when, member = first
        here = any(
            each.plan_no == self.plan_no and each.covers(when) for each in member.subscriptions
        )
        return when if here else None

    def _at(self, when: datetime | None, payer: _Payer, cycle: BillCycle) -> Iterator[_Owed]:
        if when is None or not cycle.start <= when < cycle.end:
            return
        state: FeeState | None = None
        if self.fee.by_state is not None and payer.enrolment is not None:
            [(at_start, _, _)] = spans(
                payer.enrolment.member.states, when, when + timedelta(microseconds=1)
            )
            label = self._label(at_start, payer.enrolment)
            if label is None:
                return
            state = label[0]
        yield _Owed(payer=payer, begins=when, ends=when, state=state, share=Fraction(1), due=when)

    # What is given back

    def _refunds(self, cycle: BillCycle) -> Iterator[FeeItem]:
        """Return the unused parts of what was charged in advance and ended in the period."""
        charged: dict[datetime, dict[tuple[int | None, datetime], FeeItem]] = {}
        for payer in self._enders(cycle):
            if payer.ends is None or not cycle.start < payer.ends <= cycle.end:
                continue  # a fleet that goes on
            tick = timedelta(microseconds=1)
            for term in self._terms(payer, payer.ends - tick, payer.ends):
                first = next(iter(payer.billed(term)), None)
                if first is None or term.ends <= payer.ends:
                    continue
                earlier = self.fleet.cycle_of(first[1])
                if earlier.start not in charged:
                    charged[earlier.start] = {
                        (item.subscription_no, item.begins): item for item in self._charged(earlier)
                    }
                item = charged[earlier.start].get((payer.subscription_no, term.begins))
                if item is None:
                    continue
                kept = self._share(first[1], payer.ends, term, payer.next_begins)
                unused = item.share - kept
                if unused > 0:
                    owed = _Owed(
                        payer=payer,
                        begins=term.begins,
                        ends=term.ends,
                        state=item.state,
                        share=unused,
                        due=payer.ends,
                    )
                    exact = -item.exact * unused / item.share
                    yield self._item(owed, exact, devices=item.devices, refund=True)

    def _enders(self, cycle: BillCycle) -> list[_Payer]:
        if self.fee.per_fleet:
            return self._fleet_payer(cycle)
        return [
            self._device_payer(each)
            for each in self.on_plan
            if each.ends is not None and cycle.start < each.ends <= cycle.end
        ]

    # Prices by number of devices

    def _by_number(self, price: Price, cycle: BillCycle) -> list[FeeItem]:
        rate, per_unit = fee_rate(price)
        owed = list(self._owed(self._device_payers(cycle), cycle))
        devices = sorted(
            {each.payer.device_no: each.payer for each in owed}.values(), key=_by_activation
        )
        number = len(devices)
        if self.fee.per_fleet:
            whole = Fraction(rate.rated(number), per_unit)
            items = [
                self._item(each, each.share * whole, devices=number)
                for each in self._owed(self._fleet_payer(cycle), cycle)
            ]
        else:
            fixed, each_costs = _split(rate, number)
            costs = {
                payer.device_no: Fraction(cost) / per_unit
                for payer, cost in zip(devices, each_costs, strict=True)
            }
            items = [self._item(each, each.share * costs[each.payer.device_no]) for each in owed]
            if fixed and (number or self._holds_for(None, cycle)):
                items.append(self._whole_fleet(Fraction(fixed, per_unit), term_of(cycle), number))
        return self._trued_up(items, price, cycle, number)

    def _trued_up(
        self, items: list[FeeItem], price: Price, cycle: BillCycle, number: int
    ) -> list[FeeItem]:
        missing = Fraction(price.minimum) - sum((each.exact for each in items), Fraction(0))
        if price.minimum and missing > 0 and (number or self._holds_for(None, cycle)):
            items.append(self._whole_fleet(missing, term_of(cycle), number))
        return items

    def _whole_fleet(self, exact: Fraction, term: Term, devices: int) -> FeeItem:
        return FeeItem(
            plan_no=self.plan_no,
            fee=self.position,
            name=self.fee.name,
            device_no=None,
            subscription_no=None,
            begins=term.begins,
            ends=term.ends,
            share=Fraction(1),
            state=None,
            exact=exact,
            due=term.begins if self.fee.in_advance else term.ends,
            devices=devices,
        )

    def _peaks(self, price: Price, cycle: BillCycle) -> list[FeeItem]:
        """Return the price of the most devices at one time in each term that ends in the period."""
        rate, per_unit = fee_rate(price)
        items: list[FeeItem] = []
        for payer in self._fleet_payer(cycle):
            for term in self._terms(payer, cycle.start, cycle.end):
                if not cycle.start < term.ends <= cycle.end:
                    continue
                peak = _most_at_once(self._all_billed(term))
                exact = max(Fraction(rate.rated(peak), per_unit), Fraction(price.minimum))
                if peak or exact:
                    items.append(self._whole_fleet(exact, term, peak))
        return items


def _by_activation(payer: _Payer) -> tuple[datetime, int]:
    """Order devices: those active first come first, then by number."""
    assert payer.enrolment is not None  # noqa: S101 - only a device is ranked
    member = payer.enrolment.member
    return (activated(member) or payer.begins, member.device_no)


def _split(rate: Rate, number: int) -> tuple[int, list[Fraction]]:
    """Return what a number of devices cost as a fixed part and each device's own, in order.

    By volume the tier's flat fee is fixed and all devices cost the same. Else device k costs
    rated(k) − rated(k − 1), and what is due at no device at all is fixed.
    """
    if isinstance(rate, VolumeRate) and number > rate.free:
        tier = rate.tiers[rate.position(number - rate.free)]
        fixed = min(tier.flat, rate.rated(number))
        return fixed, [Fraction(rate.rated(number) - fixed, number)] * number
    rated = [rate.rated(count) for count in range(number + 1)]
    return rated[0], [Fraction(after - before) for before, after in pairwise(rated)]


def _most_at_once(billed: Iterable[Interval]) -> int:
    """Return the most intervals that hold one instant; one that ends makes room for the next."""
    changes = sorted(change for left, right in billed for change in ((left, 1), (right, -1)))
    most = now = 0
    for _, step in changes:
        now += step
        most = max(most, now)
    return most


# Terms of months

_RECURRING = frozenset({FeeBasis.PERIOD, FeeBasis.MONTH, FeeBasis.QUARTER, FeeBasis.YEAR})
_MONTHS = {FeeBasis.MONTH: 1, FeeBasis.QUARTER: 3, FeeBasis.YEAR: 12}


def _terms_of_months(
    anchor: date, months: int, begins: datetime, ends: datetime, time_zone: TimeZone
) -> Iterator[Term]:
    first = local_day(begins, time_zone)
    gone = (first.year - anchor.year) * 12 + first.month - anchor.month
    number = max(0, gone // months - 1)
    while (term := _term(anchor, number, months, time_zone)).begins < ends:
        if begins < term.ends:
            yield term
        number += 1


@lru_cache(maxsize=4096)
def _term(anchor: date, number: int, months: int, time_zone: TimeZone) -> Term:
    """Return the term after `number` earlier ones; each is reckoned from the anchor, so none drifts."""
    first_day = months_later(anchor, number * months)
    end_day = months_later(anchor, (number + 1) * months)
    return Term(
        first_day=first_day,
        end_day=end_day,
        begins=midnight(first_day, time_zone),
        ends=midnight(end_day, time_zone),
    )
