"""The bill so far: what a fleet owes for one cycle, folded from maintained fees and use.

A line is rounded once, half-up to the currency's minor unit; the total is the sum of the rounded
lines, so it always agrees with what is printed above it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from metering.errors import InvalidValue
from metering.ids import TenantNo
from metering.money import Money
from metering.period import BillCycle, cycle_at
from metering.plan_document import stored_terms
from metering.rating.plan import PlanTerms, UnitPrice
from metering.store.bill_views import (
    BilledPlan,
    FeeRow,
    UseRow,
    billed_plans,
    fees_of_cycle,
    use_of_cycle,
)
from metering.store.connection import Connection
from metering.store.fleet_views import FleetView
from metering.usage import METERS_BY_NO, Meter


@dataclass(frozen=True, slots=True, kw_only=True)
class FeeLine:
    """The monthly fee of one plan version.

    `days` is the sum of the days that each of the subscriptions was active in the cycle;
    `monthly_fee` is the price of one subscription for a whole cycle.
    """

    plan: BilledPlan
    subscriptions: int
    days: int
    monthly_fee: Decimal
    money: Money

    @property
    def amount(self) -> Decimal:
        """The line's amount, rounded: what the total sums."""
        return self.money.rounded()


@dataclass(frozen=True, slots=True, kw_only=True)
class UseLine:
    """One meter's use under one plan version, in the meter's base unit.

    `in_allowance + from_pool + overage` is the quantity; only `overage` has a price.
    """

    plan: BilledPlan
    meter: Meter
    subscriptions: int
    quantity: int
    in_allowance: int
    from_pool: int
    overage: int
    price: UnitPrice
    money: Money

    @property
    def amount(self) -> Decimal:
        """The line's amount, rounded: what the total sums."""
        return self.money.rounded()


BillLine = FeeLine | UseLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A fleet's bill for one cycle as far as it is charged.

    Lines are ordered by plan, then version; the fee first, then the meters.
    """

    currency: str
    cycle: BillCycle
    lines: tuple[BillLine, ...]

    @property
    def total(self) -> Decimal:
        """The sum of the rounded lines, in the digits of the currency's minor unit."""
        nothing = Money(count=0, per_unit=1, currency=self.currency).rounded()
        return sum((line.amount for line in self.lines), start=nothing)


async def bill_so_far(
    connection: Connection, tenant_no: TenantNo, *, fleet: FleetView, at: datetime
) -> Bill:
    """Return the bill of a fleet for the cycle that holds `at`, as far as it is charged by now."""
    cycle = cycle_at(at, fleet.time_zone, fleet.anchor_day)
    fees = await fees_of_cycle(
        connection, tenant_no, fleet_no=fleet.fleet_no, cycle_start=cycle.start
    )
    uses = await use_of_cycle(
        connection, tenant_no, fleet_no=fleet.fleet_no, cycle_start=cycle.start
    )
    plan_nos = sorted({row.plan_no for row in fees} | {row.plan_no for row in uses})
    plans = await billed_plans(connection, tenant_no, plan_nos=plan_nos) if plan_nos else []
    return bill_of(currency=fleet.currency, cycle=cycle, plans=plans, fees=fees, uses=uses)


def bill_of(
    *,
    currency: str,
    cycle: BillCycle,
    plans: Sequence[BilledPlan],
    fees: Sequence[FeeRow],
    uses: Sequence[UseRow],
) -> Bill:
    """Fold the rows of one cycle into a bill in `currency`.

    Raises `InvalidValue` when a plan that the rows name has another currency.
    """
    terms = {plan.plan_no: _terms_in(currency, plan) for plan in plans}
    lines: list[BillLine] = []
    for plan in sorted(plans, key=lambda plan: (plan.plan_id, plan.version)):
        own_fees = [row for row in fees if row.plan_no == plan.plan_no]
        if own_fees:
            lines.append(_fee_line(plan, terms[plan.plan_no], own_fees))
        own_uses = sorted(
            (row for row in uses if row.plan_no == plan.plan_no), key=lambda row: row.meter_no
        )
        lines.extend(_use_line(plan, terms[plan.plan_no], row) for row in own_uses)
    _check_all_billed(terms, [*fees, *uses])
    return Bill(currency=currency, cycle=cycle, lines=tuple(lines))


def _terms_in(currency: str, plan: BilledPlan) -> PlanTerms:
    terms = stored_terms(plan.terms)
    if terms.currency != currency:
        raise InvalidValue(
            "currency",
            f"plan {plan.plan_id!r} version {plan.version} is in {terms.currency},"
            f" its fleet's bill in {currency}",
            f"subscribe the fleet's devices to a plan in {currency}",
        )
    return terms


def _fee_line(plan: BilledPlan, terms: PlanTerms, rows: Sequence[FeeRow]) -> FeeLine:
    money = Money(count=0, per_unit=1, currency=terms.currency)
    for row in rows:
        money += Money(count=row.amount, per_unit=row.subunits_per_unit, currency=terms.currency)
    return FeeLine(
        plan=plan,
        subscriptions=sum(row.subscriptions for row in rows),
        days=sum(row.days for row in rows),
        monthly_fee=terms.monthly_fee,
        money=money,
    )


def _use_line(plan: BilledPlan, terms: PlanTerms, row: UseRow) -> UseLine:
    meter = METERS_BY_NO[row.meter_no]
    return UseLine(
        plan=plan,
        meter=meter,
        subscriptions=row.subscriptions,
        quantity=row.quantity,
        in_allowance=row.from_allowance,
        from_pool=row.from_pool,
        overage=row.overage,
        price=terms.meters[meter.meter].overage,
        money=terms.money(row.amount),
    )


def _check_all_billed(terms: Mapping[int, PlanTerms], rows: Sequence[FeeRow | UseRow]) -> None:
    for row in rows:
        if row.plan_no not in terms:
            raise InvalidValue("plans", f"plan number {row.plan_no} is missing", "load every plan")
