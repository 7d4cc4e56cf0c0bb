"""A bill's document from a statement: its lines in words, its tax, and what prepaid money leaves to pay.

Pure: the live bill and `fleetmeter bill` call it. Where an external service finds the tax, the caller asks
it between `basis` and `finished`; else `draw_up` does all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import chain

from metering.billing.adjustment import PeriodAdjustment
from metering.billing.document import (
    Document,
    DocumentKind,
    DocumentLine,
    DocumentLineKind,
    Party,
    StatedPrice,
    SupplyPeriod,
    TaxCategory,
    packed_lines,
    sum_of,
    totals_on,
    with_prepaid,
)
from metering.billing.tax import (
    TaxableLine,
    TaxAnswer,
    TaxRequest,
    TaxRules,
    packed_request,
    taxed,
)
from metering.errors import InvalidValue
from metering.money import Money, minor_digits
from metering.period import BillCycle, TimeZone, local_day, zone_at
from metering.rating.membership import Interval
from metering.rating.plan import (
    AdjustmentKind,
    FeeBasis,
    MeterTerms,
    PlanTerms,
    RoundAt,
    SharedBy,
    Variant,
)
from metering.rating.price import UnitPrice
from metering.rating.statement import Line, LineKind, Statement

_NOTHING = Decimal(0)
_TICK = timedelta(microseconds=1)
_NO_TAX = (TaxCategory.OUT_OF_SCOPE, _NOTHING)
"""How a line is taxed before anybody said; no document keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPlan:
    """A plan version by the names that a bill gives it, with its terms."""

    plan: str
    version: int | None = None
    terms: PlanTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualAdjustment:
    """A credit (below 0) or debit (above 0) that somebody entered, in the way prices are stated."""

    name: str
    amount: Decimal
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who bills whom: the fleet, its parties, and the buyer's category for tax."""

    fleet: str
    time_zone: TimeZone
    seller: Party
    buyer: Party
    customer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """A bill before its tax is known: a draft whose lines bear none yet, and what to ask of each."""

    document: Document
    request: TaxRequest
    from_money: Decimal


def draw_up(
    statement: Statement,
    *,
    account: Account,
    plans: Mapping[int, NamedPlan],
    devices: Mapping[int, str],
    rules: TaxRules,
    adjustments: Sequence[PeriodAdjustment] = (),
    manual: Sequence[ManualAdjustment] = (),
    wallet: Decimal = _NOTHING,
) -> Document:
    """Draw up the draft of a bill.

    `adjustments` are what closed periods owe since; `manual` what was entered by hand. `wallet` is prepaid
    money that pays as far as it goes, after what money buckets paid while rating. Raises `InvalidValue`
    when no tax rule knows the buyer, or a manual amount is finer than the minor unit.
    """
    drawn = basis(
        statement,
        account=account,
        plans=plans,
        devices=devices,
        adjustments=adjustments,
        manual=manual,
        prices_include_tax=rules.prices_include_tax,
    )
    return finished(drawn, taxed(drawn.request, rules), wallet=wallet)


def basis(
    statement: Statement,
    *,
    account: Account,
    plans: Mapping[int, NamedPlan],
    devices: Mapping[int, str],
    adjustments: Sequence[PeriodAdjustment] = (),
    manual: Sequence[ManualAdjustment] = (),
    prices_include_tax: bool = False,
) -> Basis:
    """Return a bill before its tax: every line, and the request that tells what is to be taxed."""
    period = supply_period(statement.cycle)
    lines = chain(
        _statement_lines(statement, account.time_zone, plans, devices),
        (_earlier_line(each) for each in adjustments if each.tells),
        (_manual_line(each, statement.currency, at) for at, each in enumerate(manual)),
    )
    rounded = _with_rounding(lines, statement.currency)
    numbered = packed_lines(
        replace(line, number=number) for number, line in enumerate(rounded, start=1)
    )
    taxable = packed_request(
        TaxableLine(
            number=line.number,
            name=line.name,
            amount=line.amount,
            tax_point=tax_point(line, period),
        )
        for line in numbered
    )
    document = Document(
        kind=DocumentKind.BILL,
        period=period,
        time_zone=zone_at(statement.cycle.start, account.time_zone),
        currency=statement.currency,
        fleet=account.fleet,
        seller=account.seller,
        buyer=account.buyer,
        prices_include_tax=prices_include_tax,
        lines=numbered,
        taxes=(),
        totals=totals_on(sum_of(line.amount for line in taxable), (), prepaid=_NOTHING),
    )
    request = TaxRequest(
        currency=statement.currency,
        seller=account.seller,
        buyer=account.buyer,
        customer=account.customer,
        prices_include_tax=prices_include_tax,
        lines=taxable,
    )
    return Basis(
        document=document,
        request=request,
        from_money=minor_amount(statement.from_money, statement.currency),
    )


def finished(drawn: Basis, answer: TaxAnswer, *, wallet: Decimal = _NOTHING) -> Document:
    """Return the draft of a bill whose tax is known.

    The answer of an external service is to be `checked` before. `wallet` pays what is left to pay, as far
    as it goes; nothing of it is used where nothing is owed.
    """
    lines = packed_lines(_taxed_lines(drawn.document.lines, answer))
    of_lines = drawn.document.totals.lines
    totals = totals_on(of_lines, answer.totals, prepaid=drawn.from_money)
    without_wallet = replace(
        drawn.document,
        lines=lines,
        taxes=tuple(answer.totals),
        totals=totals,
        tax_service=answer.service,
    )
    return with_prepaid(without_wallet, max(_NOTHING, min(wallet, totals.due)))


def _taxed_lines(lines: Iterable[DocumentLine], answer: TaxAnswer) -> Iterator[DocumentLine]:
    for line in lines:
        category, rate = answer.lines[line.number]
        yield replace(line, tax_category=category, rate=rate)


def supply_period(cycle: BillCycle) -> SupplyPeriod:
    """Return the local days that a bill cycle is."""
    return SupplyPeriod(first_day=cycle.first_day, end_day=cycle.next_first_day)


def tax_point(line: DocumentLine, period: SupplyPeriod) -> date:
    """Return the day that decides a line's tax: the last of the period that it is for."""
    is_earlier = line.kind is DocumentLineKind.EARLIER_PERIOD and line.period is not None
    return line.period.last_day if is_earlier and line.period else period.last_day


def stated_unit_price(terms: PlanTerms, line: Line) -> UnitPrice | None:
    """Return the price of a usage line's overage, where that is all that decides its amount."""
    if line.meter is None or line.variant is None:
        return None
    price = terms.meters[line.meter].variants[line.variant].price
    plain = (
        not price.free
        and price.maximum is None
        and not (price.counts_alone and price.minimum)
        and not price.connection_fee
        and terms.round_at is not RoundAt.RECORD
    )
    return price.shape if plain and isinstance(price.shape, UnitPrice) else None


def _statement_lines(
    statement: Statement,
    time_zone: TimeZone,
    plans: Mapping[int, NamedPlan],
    devices: Mapping[int, str],
) -> Iterator[DocumentLine]:
    for line, amount in _amounts(statement, plans):
        plan = plans[line.plan_no]
        drawn = DocumentLine(
            number=0,
            kind=_kind(line, plan.terms),
            name=line.name,
            plan=plan.plan,
            plan_version=plan.version,
            device=None if line.device_no is None else devices[line.device_no],
            devices=line.devices,
            exact=line.exact,
            amount=amount,
            tax_category=_NO_TAX[0],
            rate=_NO_TAX[1],
        )
        if line.meter is not None:
            drawn = _of_meter(drawn, line, plan.terms)
        if line.kind is LineKind.FEE:
            drawn = _of_fee(drawn, line, plan.terms, time_zone)
        yield drawn


def _amounts(
    statement: Statement, plans: Mapping[int, NamedPlan]
) -> Iterator[tuple[Line, Decimal]]:
    """Return each line with its rounded amount.

    Where a plan rounds the bill as a whole, its running sum is rounded, so that its lines come to what the
    plan says.
    """
    sums: dict[int, Fraction] = {}
    given: dict[int, Decimal] = {}
    for line in statement.lines:
        if line.amount is not None:
            yield line, line.amount
            continue
        terms = plans[line.plan_no].terms
        exact = sums[line.plan_no] = sums.get(line.plan_no, Fraction(0)) + line.exact
        rounded = Money(
            count=exact.numerator, per_unit=exact.denominator, currency=statement.currency
        ).rounded(terms.rounding)
        yield line, sum_of([rounded, -given.get(line.plan_no, _NOTHING)])
        given[line.plan_no] = rounded


def _kind(line: Line, terms: PlanTerms) -> DocumentLineKind:
    match line.kind:
        case LineKind.USAGE:
            return DocumentLineKind.USAGE
        case LineKind.BASE:
            return DocumentLineKind.RECURRING
        case LineKind.MINIMUM:
            return DocumentLineKind.TRUE_UP
        case LineKind.FEE:
            once = {
                each.name
                for each in terms.fees
                if each.every in (FeeBasis.ONCE, FeeBasis.ACTIVATION)
            }
            return DocumentLineKind.ONE_TIME if line.name in once else DocumentLineKind.RECURRING
        case LineKind.ADJUSTMENT:
            raised = {
                each.name for each in terms.adjustments if each.kind is AdjustmentKind.COMMITMENT
            }
            return DocumentLineKind.TRUE_UP if line.name in raised else DocumentLineKind.DISCOUNT


def _of_meter(drawn: DocumentLine, line: Line, terms: PlanTerms) -> DocumentLine:
    assert line.meter is not None  # noqa: S101 - lines of a meter come here
    assert line.variant is not None  # noqa: S101 - a meter's line has a price
    of_meter = terms.meters[line.meter]
    drawn = replace(
        drawn,
        meter=line.meter,
        variant=line.label,
        label=_label(of_meter.variants[line.variant]),
        unit=of_meter.unit,
        records=line.records,
    )
    if line.kind is not LineKind.USAGE:
        return drawn
    price = stated_unit_price(terms, line)
    return replace(
        drawn,
        quantity=_in_unit(line.quantity, of_meter),
        in_bundle=_in_unit(line.from_allowance + line.from_pool, of_meter),
        from_pool=_in_unit(line.from_pool, of_meter) if line.from_pool else None,
        pools=_pools(of_meter) if line.from_pool else (),
        overage=_in_unit(line.priced, of_meter),
        unit_price=None
        if price is None
        else StatedPrice(amount=price.amount, per=_in_unit(price.per, of_meter)),
    )


def _of_fee(drawn: DocumentLine, line: Line, terms: PlanTerms, time_zone: TimeZone) -> DocumentLine:
    stated = [each for each in terms.fees if each.name == line.name]
    amount = stated[0].amount if len(stated) == 1 else None
    decides = amount is not None and line.exact == line.shares * Fraction(amount)
    return replace(
        drawn,
        shares=line.shares,
        period=_days_of(line.term, time_zone),
        unit_price=StatedPrice(amount=amount, per=Decimal(1)) if amount and decides else None,
    )


def _days_of(term: Interval | None, time_zone: TimeZone) -> SupplyPeriod | None:
    """Return the local days that a term touches; None where it is none, as that of a one-time fee."""
    if term is None or term[0] >= term[1]:
        return None
    last_day = local_day(term[1] - _TICK, time_zone)
    return SupplyPeriod(
        first_day=local_day(term[0], time_zone), end_day=last_day + timedelta(days=1)
    )


def _in_unit(quantity: int, of_meter: MeterTerms) -> Decimal:
    return Decimal(f"{quantity}E-{of_meter.decimals}") if of_meter.decimals else Decimal(quantity)


def _pools(of_meter: MeterTerms) -> tuple[str, ...]:
    """Return the names of the pools that a meter draws from, in the plan's order."""
    return tuple(each.name for each in of_meter.allowances if each.shared_by is not SharedBy.DEVICE)


def _label(variant: Variant) -> str | None:
    """Say what a price holds for, as its plan does: zones, time bands, attributes, days."""
    told = [
        ", ".join(sorted(name or nowhere for name in names))
        for names, nowhere in ((variant.zones, "elsewhere"), (variant.bands, "otherwise"))
        if names is not None
    ]
    told += [f"{name} {', '.join(sorted(values))}" for name, values in variant.where.items()]
    if variant.first_day is not None:
        told.append(f"from {variant.first_day}")
    if variant.end_day is not None:
        told.append(f"until {variant.end_day}")
    return "; ".join(told) or None


def _earlier_line(adjustment: PeriodAdjustment) -> DocumentLine:
    return _plain_line(
        DocumentLineKind.EARLIER_PERIOD,
        "adjustment of an earlier period",
        adjustment.amount,
        exact=adjustment.exact,
        period=supply_period(adjustment.cycle),
        records=adjustment.late_records,
    )


def _manual_line(adjustment: ManualAdjustment, currency: str, position: int) -> DocumentLine:
    check_minor(adjustment.amount, currency, f"manual.{position}.amount")
    return _plain_line(
        DocumentLineKind.MANUAL,
        adjustment.name,
        minor_amount(adjustment.amount, currency),
        reason=adjustment.reason,
    )


def _with_rounding(lines: Iterable[DocumentLine], currency: str) -> Iterator[DocumentLine]:
    """Yield lines, and one more where they do not come to whole minor units."""
    total = _NOTHING
    for line in lines:
        total = sum_of([total, line.amount])
        yield line
    whole = minor_amount(total, currency)
    if whole != total:
        yield _plain_line(DocumentLineKind.ROUNDING, "rounding", sum_of([whole, -total]))


def minor_amount(amount: Decimal, currency: str) -> Decimal:
    """Return an amount with the digits of its currency, rounded half-up if it is finer: 5 as 5.00."""
    exact = Fraction(amount)
    return Money(count=exact.numerator, per_unit=exact.denominator, currency=currency).rounded()


def _plain_line(
    kind: DocumentLineKind,
    name: str,
    amount: Decimal,
    *,
    exact: Fraction | None = None,
    period: SupplyPeriod | None = None,
    records: int = 0,
    reason: str | None = None,
) -> DocumentLine:
    return DocumentLine(
        number=0,
        kind=kind,
        name=name,
        period=period,
        records=records,
        reason=reason,
        exact=Fraction(amount) if exact is None else exact,
        amount=amount,
        tax_category=_NO_TAX[0],
        rate=_NO_TAX[1],
    )


def check_minor(amount: Decimal, currency: str, field: str) -> None:
    """Raise `InvalidValue` where an amount is finer than the currency's minor unit."""
    digits = minor_digits(currency)
    if Fraction(amount) * 10**digits % 1:
        raise InvalidValue(
            field, f"{amount} is finer than a minor unit of {currency}", f"use {digits} digits"
        )
