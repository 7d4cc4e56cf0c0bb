"""A period's statement: every line that a fleet owes for a bill cycle, and what they come to.

Lines are exact; each is rounded once, or their sum is where the plan says so. The live bill and
`fleetmeter rate` call the same function.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal, localcontext
from enum import StrEnum
from fractions import Fraction
from functools import cached_property, partial

from metering.errors import InvalidValue
from metering.money import Money
from metering.period import BillCycle
from metering.rating.adjustment import (
    Part,
    PartKind,
    RunningSum,
    adjustment,
    coverage,
    exact_sum,
    parts_of,
)
from metering.rating.membership import (
    Fleet,
    Interval,
    Member,
    Term,
    joined,
    offer_holds,
    share_of,
    term_of,
)
from metering.rating.plan import AdjustmentScope, AdjustmentTerms, PlanTerms
from metering.rating.price import Price
from metering.rating.recurring import Enrolment, FeeItem, enrolments, fees_of

_NOTHING = Fraction(0)
_WHOLE = Fraction(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class UseTotal:
    """What one subscription used of one meter at one price in a period.

    `variant` is the price's position among the meter's. Quantities are in base units: `billed` is what
    is charged of `quantity`, `priced` what no allowance or pool paid of that. `amount` is its price in
    the plan's sub-units; `from_money` is what prepaid money paid of it, in units of currency.
    """

    subscription_no: int
    meter: str
    variant: int
    records: int
    quantity: int
    billed: int
    from_allowance: int
    from_pool: int
    priced: int
    amount: int
    from_money: Fraction = _NOTHING


class LineKind(StrEnum):
    """What a line is for; lines come in this order, base lines beside their usage."""

    USAGE = "usage"
    BASE = "base"
    """What a price costs at no quantity at all."""
    MINIMUM = "minimum"
    FEE = "fee"
    ADJUSTMENT = "adjustment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a statement.

    `name` is the meter, the fee or the adjustment; `variant` the price's position among the meter's
    and `label` its number in the plan's document (None: the meter's own price). `device_no` is None
    on a line for all devices. Quantities are in the meter's base units. `devices` is how many devices
    it is for, `shares` the sum of their shares of a fee's `term` (None where there is more than one
    term) and `due` when the last part of it falls due. `exact` is in units of currency; `amount` is it
    rounded, None where the plan rounds the bill as a whole.
    """

    kind: LineKind
    plan_no: int
    name: str
    meter: str | None = None
    variant: int | None = None
    label: int | None = None
    device_no: int | None = None
    records: int = 0
    quantity: int = 0
    billed: int = 0
    from_allowance: int = 0
    from_pool: int = 0
    priced: int = 0
    from_money: Fraction = _NOTHING
    devices: int = 0
    shares: Fraction = _NOTHING
    term: Interval | None = None
    due: datetime | None = None
    exact: Fraction
    amount: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A fleet's statement for one bill cycle, in `currency`.

    `fees` are the parts that the fee lines sum. `total` is the sum of the rounded lines, of which
    prepaid money paid `from_money` (rounded as the lines are); `due` is the rest. `exact` is the sum
    before rounding. `devices` are those that it is for, ascending: that were active on a plan, or used
    something.
    """

    currency: str
    cycle: BillCycle
    lines: Sequence[Line]
    fees: tuple[FeeItem, ...]
    exact: Fraction
    total: Decimal
    from_money: Decimal
    due: Decimal
    devices: tuple[int, ...] = ()


def statement(
    *,
    fleet: Fleet,
    cycle: BillCycle,
    plans: Mapping[int, PlanTerms],
    members: Sequence[Member],
    uses: Sequence[UseTotal],
) -> Statement:
    """Return what a fleet owes for a bill cycle.

    `plans` are in the order of the lines. `members` are all devices that the fleet has or had, with
    their whole history; `uses` what their subscriptions used in the cycle. Raises `InvalidValue` when
    a use names a subscription or plan that is missing, or a plan has another currency.
    """
    by_plan = enrolments(members)
    used_by = _by_plan(uses, members)
    missing = [plan_no for plan_no in used_by if plan_no not in plans]
    if missing:
        raise InvalidValue("plans", f"plan number {missing[0]} is missing", "load every plan")
    term = term_of(cycle)
    accounts = [
        _PlanAccount(
            fleet=fleet,
            cycle=cycle,
            term=term,
            plan_no=plan_no,
            terms=_in_currency(terms, fleet.currency),
            enrolled=here,
            uses=used_by.get(plan_no, []),
        )
        for plan_no, terms in plans.items()
        if (here := [e for e in by_plan.get(plan_no, ()) if e.overlaps(cycle.start, cycle.end)])
        or plan_no in used_by
    ]
    used = {use.subscription_no for use in uses if use.quantity > 0}
    fees = fees_of(
        fleet=fleet, cycle=cycle, plans=plans, members=members, used=used, by_plan=by_plan
    )
    lines = [line for account in accounts for line in account.usage_lines()]
    lines.extend(line for account in accounts for line in account.minimum_lines())
    fees_by_plan: dict[int, list[FeeItem]] = {}
    for item in fees:
        fees_by_plan.setdefault(item.plan_no, []).append(item)
    lines.extend(
        line
        for account in accounts
        for line in account.fee_lines(fees_by_plan.get(account.plan_no, ()))
    )
    lines.extend(_adjustment_lines(accounts, fleet))
    billed = {device_no for account in accounts for device_no in account.active}
    billed |= {each.device_no for account in accounts for each in account.uses}
    summed = _summed(fleet.currency, cycle, plans, lines, fees)
    return replace(summed, devices=tuple(sorted(billed)))


def _summed(
    currency: str,
    cycle: BillCycle,
    plans: Mapping[int, PlanTerms],
    lines: Sequence[Line],
    fees: Sequence[FeeItem],
) -> Statement:
    total = from_money = _money(_NOTHING, currency).rounded()
    whole: dict[int, tuple[Fraction, Fraction]] = {}
    with localcontext() as context:
        context.prec = 200  # sums stay exact
        for line in lines:
            terms = plans[line.plan_no]
            if line.amount is None:
                exact, paid = whole.get(line.plan_no, (_NOTHING, _NOTHING))
                whole[line.plan_no] = (exact + line.exact, paid + line.from_money)
            else:
                total += line.amount
                if line.from_money:
                    from_money += _money(line.from_money, currency).rounded(terms.rounding)
        for plan_no, (exact, paid) in whole.items():
            total += _money(exact, currency).rounded(plans[plan_no].rounding)
            from_money += _money(paid, currency).rounded(plans[plan_no].rounding)
        due = total - from_money
    return Statement(
        currency=currency,
        cycle=cycle,
        lines=tuple(lines),
        fees=tuple(fees),
        exact=exact_sum(line.exact for line in lines),
        total=total,
        from_money=from_money,
        due=due,
    )


def _money(exact: Fraction, currency: str) -> Money:
    return Money(count=exact.numerator, per_unit=exact.denominator, currency=currency)


def _in_currency(terms: PlanTerms, currency: str) -> PlanTerms:
    if terms.currency != currency:
        raise InvalidValue(
            "currency",
            f"plan {terms.plan!r} is in {terms.currency}, its fleet's bill in {currency}",
            f"subscribe the fleet's devices to a plan in {currency}",
        )
    return terms


@dataclass(frozen=True, slots=True)
class _DeviceUse:
    """A use, and whose it is."""

    device_no: int
    use: UseTotal


def _by_plan(uses: Iterable[UseTotal], members: Iterable[Member]) -> dict[int, list[_DeviceUse]]:
    owners = {each.subscription_no: each for member in members for each in member.subscriptions}
    found: dict[int, list[_DeviceUse]] = {}
    for use in uses:
        owner = owners.get(use.subscription_no)
        if owner is None:
            raise InvalidValue(
                "members",
                f"subscription number {use.subscription_no} is missing",
                "load every member that used anything",
            )
        found.setdefault(owner.plan_no, []).append(_DeviceUse(owner.device_no, use))
    return found


@dataclass(kw_only=True)
class _PlanAccount:
    """One plan's part of a statement while it is drawn up: who is on it, and its sums so far."""

    fleet: Fleet
    cycle: BillCycle
    term: Term
    plan_no: int
    terms: PlanTerms
    enrolled: Sequence[Enrolment]
    uses: Sequence[_DeviceUse]
    sums: RunningSum = field(default_factory=RunningSum)
    by_device: dict[int, RunningSum] = field(default_factory=dict)
    priced: dict[tuple[str, int], dict[int | None, Fraction]] = field(default_factory=dict)
    """By meter and variant: what each device is charged so far; None: all of them, once."""

    @cached_property
    def active(self) -> dict[int, list[Enrolment]]:
        """The devices that are active on the plan at any time of the period, ascending."""
        found: dict[int, list[Enrolment]] = {}
        for each in self.enrolled:
            if each.active(self.term):
                found.setdefault(each.member.device_no, []).append(each)
        return dict(sorted(found.items()))

    @cached_property
    def needs_devices(self) -> bool:
        """Whether any adjustment is on each device's own sum."""
        return any(each.scope is AdjustmentScope.DEVICE for each in self.terms.adjustments)

    def share_of_device(self, device_no: int) -> Fraction:
        """Return a device's share of the period: that in which it is active on the plan."""
        return self._share(self.active[device_no])

    def share_of_plan(self) -> Fraction:
        """Return the share of the period in which any device is active on the plan."""
        return self._share([each for here in self.active.values() for each in here], joint=True)

    def _share(self, enrolled: Sequence[Enrolment], *, joint: bool = False) -> Fraction:
        intervals = joined(part for each in enrolled for part in each.active(self.term))
        return share_of(
            intervals,
            term=self.term,
            proration=self.terms.proration,
            time_zone=self.fleet.time_zone,
            next_begins=None if joint or not enrolled else enrolled[-1].next_begins,
        )

    def rounded(self, exact: Fraction) -> Decimal | None:
        """Return a line's amount as the plan rounds it; None where it rounds the bill as a whole."""
        if self.terms.round_bill:
            return None
        return _money(exact, self.terms.currency).rounded(self.terms.rounding)

    def count(self, part: Part, owed: Iterable[tuple[int | None, Fraction]]) -> None:
        """Count what devices owe to the running sums, also to each one's own where one is needed."""
        owed = list(owed)
        self.sums.add(part, exact_sum(exact for _, exact in owed))
        if self.needs_devices:
            for device_no, exact in owed:
                if device_no is not None:
                    self.by_device.setdefault(device_no, RunningSum()).add(part, exact)

    # Usage

    def usage_lines(self) -> Iterator[Line]:
        """Return usage and base lines by meter and variant (then device, if the plan says so)."""
        uses: dict[tuple[str, int], list[_DeviceUse]] = {}
        for each in self.uses:
            if each.use.records:
                uses.setdefault((each.use.meter, each.use.variant), []).append(each)
        for meter, of_meter in self.terms.meters.items():
            for variant in range(len(of_meter.variants)):
                here = uses.get((meter, variant), [])
                owed: dict[int | None, Fraction] = {}
                for each in here:
                    exact = self.terms.money(each.use.amount).exact
                    before = owed.get(each.device_no)
                    owed[each.device_no] = exact if before is None else before + exact
                self.count((PartKind.USAGE, meter), owed.items())
                self.priced[meter, variant] = owed
                for group in self._lots(here):
                    yield self._usage_line(meter, variant, group)
                yield from self._base_lines(meter, variant, here)

    def _lots(self, uses: Sequence[_DeviceUse]) -> Iterable[Sequence[_DeviceUse]]:
        if not self.terms.lines_per_device:
            return [uses] if uses else []
        by_device: dict[int, list[_DeviceUse]] = {}
        for each in sorted(uses, key=lambda each: each.device_no):
            by_device.setdefault(each.device_no, []).append(each)
        return by_device.values()

    def _usage_line(self, meter: str, variant: int, group: Sequence[_DeviceUse]) -> Line:
        uses = [each.use for each in group]
        exact = self.terms.money(sum(use.amount for use in uses)).exact
        return Line(
            kind=LineKind.USAGE,
            plan_no=self.plan_no,
            name=meter,
            meter=meter,
            variant=variant,
            label=self.terms.meters[meter].label(variant),
            device_no=group[0].device_no if self.terms.lines_per_device else None,
            records=sum(use.records for use in uses),
            quantity=sum(use.quantity for use in uses),
            billed=sum(use.billed for use in uses),
            from_allowance=sum(use.from_allowance for use in uses),
            from_pool=sum(use.from_pool for use in uses),
            priced=sum(use.priced for use in uses),
            from_money=exact_sum(use.from_money for use in uses),
            devices=len({each.device_no for each in group}),
            exact=exact,
            amount=self.rounded(exact),
        )

    def _base_lines(self, meter: str, variant: int, uses: Sequence[_DeviceUse]) -> Iterator[Line]:
        """Return what the price costs at no quantity, of which a use's amount holds only the rest.

        Each device owes it that is active, or of which anything is priced; else the fleet, once.
        """
        base = self.terms.money(self.terms.rates[meter][variant].rated(0)).exact
        if not base:
            return
        owing = {*self.active, *(each.device_no for each in uses if each.use.priced)}
        price = self.terms.meters[meter].variants[variant].price
        yield from self._due_lines(
            LineKind.BASE, meter, variant, self._each_or_once(price, owing, lambda _: base)
        )

    def minimum_lines(self) -> Iterator[Line]:
        """Return what trues prices up to their minimum, by meter and variant."""
        for meter, of_meter in self.terms.meters.items():
            for variant, each in enumerate(of_meter.variants):
                price = each.price
                if price.minimum and not price.counts_alone:
                    missing = partial(self._missing, price, (meter, variant))
                    owed = self._each_or_once(price, set(self.active), missing)
                    yield from self._due_lines(LineKind.MINIMUM, meter, variant, owed)

    def _missing(self, price: Price, key: tuple[str, int], device_no: int | None) -> Fraction:
        """Return what a device, or all of them, owe beyond what they are charged at a price."""
        share = _WHOLE
        if price.minimum_prorated:
            share = self.share_of_plan() if device_no is None else self.share_of_device(device_no)
        charged = self.priced[key]
        so_far = (
            exact_sum(charged.values()) if device_no is None else charged.get(device_no, _NOTHING)
        )
        return max(_NOTHING, Fraction(price.minimum) * share - so_far)

    def _each_or_once(
        self, price: Price, owing: set[int], amount: Callable[[int | None], Fraction]
    ) -> dict[int | None, Fraction]:
        """Return what each of the devices owes, or all of them once where they count together."""
        who: Iterable[int | None] = sorted(owing)
        if price.fleet_wide:
            who = [None] if owing else []
        return {device_no: exact for device_no in who if (exact := amount(device_no))}

    def _due_lines(
        self,
        kind: LineKind,
        meter: str,
        variant: int,
        owed: Mapping[int | None, Fraction],
    ) -> Iterator[Line]:
        charged = self.priced[meter, variant]
        self.count((PartKind.USAGE, meter), owed.items())
        for device_no, exact in owed.items():
            charged[device_no] = charged.get(device_no, _NOTHING) + exact
        for device_no, devices, exact in self._merged(owed):
            yield Line(
                kind=kind,
                plan_no=self.plan_no,
                name=meter,
                meter=meter,
                variant=variant,
                label=self.terms.meters[meter].label(variant),
                device_no=device_no,
                devices=devices,
                exact=exact,
                amount=self.rounded(exact),
            )

    def _merged(
        self, owed: Mapping[int | None, Fraction]
    ) -> Iterator[tuple[int | None, int, Fraction]]:
        """Return `(device_no, devices, exact)` of each line: one a device, or one for all."""
        if self.terms.lines_per_device:
            for device_no, exact in owed.items():
                yield device_no, len(self.active) if device_no is None else 1, exact
        elif owed:
            devices = len(self.active) if None in owed else len(owed)
            yield None, devices, exact_sum(owed.values())

    # Fees

    def fee_lines(self, items: Iterable[FeeItem]) -> Iterator[Line]:
        """Return a line for each fee of which a share falls due, in the plan's order."""
        lots: dict[tuple[int, int | None], list[FeeItem]] = {}
        for item in items:
            device_no = item.device_no if self.terms.lines_per_device else None
            lots.setdefault((item.fee, device_no), []).append(item)
        for (_, device_no), lot in lots.items():
            self.count((PartKind.FEES, lot[0].name), ((item.device_no, item.exact) for item in lot))
            exact = exact_sum(item.exact for item in lot)
            terms = {(item.begins, item.ends) for item in lot}
            devices = {item.device_no for item in lot if item.device_no is not None}
            yield Line(
                kind=LineKind.FEE,
                plan_no=self.plan_no,
                name=lot[0].name,
                device_no=device_no,
                devices=len(devices) or max(item.devices for item in lot),
                shares=exact_sum(-item.share if item.refund else item.share for item in lot),
                term=terms.pop() if len(terms) == 1 else None,
                due=max(item.due for item in lot),
                exact=exact,
                amount=self.rounded(exact),
            )

    # Adjustments

    def adjusted(self, terms: AdjustmentTerms) -> Iterator[Line]:
        """Apply an adjustment to all that the plan's devices owe, or to what each of them does."""
        on = coverage(terms.on, parts_of([self.terms]))
        owed: dict[int | None, Fraction] = {}
        if terms.scope is AdjustmentScope.DEVICE:
            for device_no, enrolled in self.active.items():
                if self.holds(terms, enrolled[0]):
                    own = self.by_device.setdefault(device_no, RunningSum())
                    added = adjustment(
                        terms, own.base(on), self._commitment_share(terms, device_no)
                    )
                    own.adjust(on, added)
                    if added:
                        owed[device_no] = added
        elif self.holds(terms, None):
            added = adjustment(terms, self.sums.base(on), self._commitment_share(terms, None))
            if added:
                owed[None] = added
        self.sums.adjust(on, exact_sum(owed.values()))
        for whose, devices, exact in self._merged(owed):
            yield self.adjustment_line(terms, exact, device_no=whose, devices=devices)

    def adjustment_line(
        self, terms: AdjustmentTerms, exact: Fraction, *, device_no: int | None, devices: int
    ) -> Line:
        """Return an adjustment's line."""
        return Line(
            kind=LineKind.ADJUSTMENT,
            plan_no=self.plan_no,
            name=terms.name,
            device_no=device_no,
            devices=devices,
            exact=exact,
            amount=self.rounded(exact),
        )

    def _commitment_share(self, terms: AdjustmentTerms, device_no: int | None) -> Fraction:
        if not terms.prorated:
            return _WHOLE
        return self.share_of_plan() if device_no is None else self.share_of_device(device_no)

    def holds(self, terms: AdjustmentTerms, enrolled: Enrolment | None) -> bool:
        """Whether an adjustment holds in the period: for a device, or (None) the fleet."""
        member = enrolled.member if enrolled else None
        return offer_holds(
            terms.offer,
            cycle=self.cycle,
            cycle_of=self.fleet.cycle_of,
            begins=enrolled.begins if enrolled else self.fleet.begins,
            redemptions=[*(member.redemptions if member else ()), *self.fleet.redemptions],
        )


def _adjustment_lines(accounts: Sequence[_PlanAccount], fleet: Fleet) -> Iterator[Line]:
    """Apply every plan's adjustments in its order.

    One on the whole fleet waits until each plan has applied what it states before its own first such;
    the same one in several plans (versions of one, say) applies once.
    """
    stated: list[tuple[int, _PlanAccount, AdjustmentTerms]] = []
    for account in accounts:
        turn = 0
        for terms in account.terms.adjustments:
            turn += terms.scope is AdjustmentScope.FLEET
            stated.append((turn, account, terms))
    stated.sort(key=lambda each: each[0])  # stable: within a turn by plan, then as stated
    whole = _FleetAccount(fleet=fleet, accounts=accounts)
    for _, account, terms in stated:
        if terms.scope is AdjustmentScope.FLEET:
            yield from whole.adjusted(terms, account)
        else:
            yield from account.adjusted(terms)


@dataclass(kw_only=True)
class _FleetAccount:
    """The sums of all plans together, and what was adjusted on them."""

    fleet: Fleet
    accounts: Sequence[_PlanAccount]
    own: RunningSum = field(default_factory=RunningSum)
    applied: set[AdjustmentTerms] = field(default_factory=set)

    def adjusted(self, terms: AdjustmentTerms, account: _PlanAccount) -> Iterator[Line]:
        """Apply an adjustment to all that the fleet owes; its line is one of the plan that states it."""
        if terms in self.applied or not account.holds(terms, None):
            return
        self.applied.add(terms)
        on = coverage(terms.on, parts_of(each.terms for each in self.accounts))
        base = self.own.base(on)
        base += exact_sum(each.sums.base(on) for each in self.accounts)
        share = self._share(account) if terms.prorated else _WHOLE
        added = adjustment(terms, base, share)
        self.own.adjust(on, added)
        if added:
            devices = len({device_no for each in self.accounts for device_no in each.active})
            yield account.adjustment_line(terms, added, device_no=None, devices=devices)

    def _share(self, account: _PlanAccount) -> Fraction:
        """Return the share of the period in which any device is active on any plan."""
        intervals = joined(
            part
            for each in self.accounts
            for here in each.active.values()
            for enrolled in here
            for part in enrolled.active(each.term)
        )
        return share_of(
            intervals,
            term=account.term,
            proration=account.terms.proration,
            time_zone=self.fleet.time_zone,
        )
