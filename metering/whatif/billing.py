"""Bills of a rating run, and credit notes for them, by the functions of the live bill."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from metering.billing.adjustment import PeriodAdjustment
from metering.billing.document import Document, finalised, sum_of
from metering.billing.draw_up import (
    Account,
    ManualAdjustment,
    NamedPlan,
    basis,
    check_minor,
    finished,
)
from metering.billing.notes import NoteEntry, all_left, credit_note, left_of, share_left
from metering.billing.tax import TaxAnswer, TaxRequest, taxed
from metering.billing.tax_service import HttpTaxService
from metering.errors import InvalidValue
from metering.whatif.account_file import AccountDocument, NumberDocument
from metering.whatif.run import RatedPeriod, RatingRun

_FULL = "full"
_PER_CENT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditOrder:
    """What a credit note is to take: all that is left, a share of it, or parts of lines."""

    share: Fraction | None = None
    entries: Sequence[NoteEntry] = ()


def bills_of(run: RatingRun, account: AccountDocument) -> list[Document]:
    """Return a bill for each period of a run.

    Adjustments and earlier periods are on the first; the wallet pays one after the other, as far as it
    goes. Raises `InvalidValue` when the account numbers one bill and there are several.
    """
    if account.bill is not None and len(run.periods) > 1:
        raise InvalidValue(
            "bill",
            f"names one bill, and there are {len(run.periods)} periods",
            "give --from and --to of one period, or leave it out",
        )
    wallet = account.wallet
    bills: list[Document] = []
    for position, period in enumerate(run.periods):
        bill = _bill(run, period, account, wallet, is_first=position == 0)
        wallet = sum_of([wallet, -bill.totals.prepaid, period.statement.from_money])
        if account.bill is not None:
            bill = _finalised(bill, account.bill)
        bills.append(bill)
    return bills


def _bill(
    run: RatingRun,
    period: RatedPeriod,
    account: AccountDocument,
    wallet: Decimal,
    *,
    is_first: bool,
) -> Document:
    drawn = basis(
        period.statement,
        account=Account(
            fleet=account.fleet.id,
            time_zone=run.calendar.time_zone,
            seller=account.seller.party(),
            buyer=account.buyer.party(),
            customer=account.buyer.customer,
        ),
        plans={
            number: NamedPlan(plan=terms.plan, terms=terms) for number, terms in run.plans.items()
        },
        devices=run.devices,
        adjustments=_earlier_periods(run, account) if is_first else (),
        manual=_manual(account, run.currency) if is_first else (),
        prices_include_tax=account.tax.prices_include_tax,
    )
    return finished(drawn, _taxes(drawn.request, account), wallet=wallet)


def _taxes(request: TaxRequest, account: AccountDocument) -> TaxAnswer:
    tax = account.tax
    if tax.service is None:
        return taxed(request, account.tax_rules())
    return HttpTaxService(url=tax.service, timeout_seconds=tax.timeout_seconds).taxes(request)


def _earlier_periods(run: RatingRun, account: AccountDocument) -> list[PeriodAdjustment]:
    return [
        PeriodAdjustment(
            cycle=run.calendar.cycle_of_day(each.day),
            late_records=each.records,
            exact=Fraction(each.amount),
            amount=each.amount,
        )
        for each in account.earlier_periods
    ]


def _manual(account: AccountDocument, currency: str) -> list[ManualAdjustment]:
    for position, each in enumerate(account.adjustments):
        check_minor(each.amount, currency, f"adjustments.{position}.amount")
    return [
        ManualAdjustment(name=each.name, amount=each.amount, reason=each.reason)
        for each in account.adjustments
    ]


def note_of(
    bill: Document,
    earlier: Sequence[Document],
    order: CreditOrder,
    account: AccountDocument,
    *,
    reason: str,
) -> Document:
    """Return a credit note for a bill, finalised where the account numbers it."""
    entries = order.entries
    if order.share is not None:
        left = left_of(bill, earlier)
        entries = all_left(left) if order.share == 1 else share_left(left, order.share)
        if not entries:
            raise InvalidValue("--credit-note", "takes nothing of what is left", "give no note")
    note = credit_note(bill, earlier, entries, reason=reason)
    if account.note is None:
        return note
    return _finalised(note, account.note)


def _finalised(document: Document, by: NumberDocument) -> Document:
    return finalised(document, series=by.series, number=by.number, issued=by.issued, due=by.due)


def read_orders(told: Sequence[str]) -> CreditOrder:
    """Read what `--credit-note` says: `full`, `25%`, or `line=3,amount=1.20` once or more.

    Raises `InvalidValue` naming the option.
    """
    if len(told) == 1 and told[0] == _FULL:
        return CreditOrder(share=Fraction(1))
    if len(told) == 1 and told[0].endswith("%"):
        return CreditOrder(share=Fraction(_number(told[0][:-1], told[0])) / _PER_CENT)
    return CreditOrder(entries=[_entry(each) for each in told])


def _entry(told: str) -> NoteEntry:
    parts = dict(each.partition("=")[::2] for each in told.split(","))
    unknown = parts.keys() - {"line", "amount", "quantity"}
    if unknown or not parts.get("line", "").isdecimal():
        raise _no_order(told)
    entry = NoteEntry(line=int(parts["line"]))
    if "amount" in parts:
        entry = replace(entry, amount=_number(parts["amount"], told))
    if "quantity" in parts:
        entry = replace(entry, quantity=_number(parts["quantity"], told))
    return entry


def _number(text: str, told: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise _no_order(told) from error
    if not number.is_finite():
        raise _no_order(told)
    return number


def _no_order(told: str) -> InvalidValue:
    return InvalidValue(
        "--credit-note",
        f"{told!r} says nothing to credit",
        "use full, a share such as 25%, or line=3 with amount=1.20 or quantity=10, or neither",
    )
