"""The words and figures that every form of a document shares."""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from metering.billing.document import (
    Document,
    DocumentKind,
    DocumentLine,
    DocumentLineKind,
    DocumentState,
    Party,
    SupplyPeriod,
    TaxTotal,
)
from metering.money import decimal_text
from metering.plan_document.terms import POOL

_TITLES = {
    DocumentKind.BILL: "Invoice",
    DocumentKind.CREDIT_NOTE: "Credit note",
    DocumentKind.DEBIT_NOTE: "Debit note",
}
_KINDS = {
    DocumentLineKind.RECURRING: "Recurring",
    DocumentLineKind.ONE_TIME: "One-time",
    DocumentLineKind.USAGE: "Usage",
    DocumentLineKind.TRUE_UP: "Minimum",
    DocumentLineKind.DISCOUNT: "Discount",
    DocumentLineKind.EARLIER_PERIOD: "Earlier period",
    DocumentLineKind.MANUAL: "Adjustment",
    DocumentLineKind.ROUNDING: "Rounding",
}
_SCALED = {
    "octet": (("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("B", 1)),
    "second": (("s", 1),),
}
_DIGITS_SHOWN = 9
"""A quantity of octets in GB needs no more."""


def title(document: Document) -> str:
    """Return what a document calls itself."""
    name = _TITLES[document.kind]
    match document.state:
        case DocumentState.DRAFT:
            return f"Draft {name.lower()}"
        case DocumentState.VOID:
            return f"{name} (void)"
        case _:
            return name


def kind(line: DocumentLine) -> str:
    """Return what a line is for, in a word or two."""
    return _KINDS[line.kind]


def description(line: DocumentLine) -> str:
    """Return a line's name, with its price and plan where it has any."""
    told = line.name
    if line.label:
        told += f" ({line.label})"
    if line.plan:
        told += f", {line.plan}" + (f" v{line.plan_version}" if line.plan_version else "")
    return told


def details(line: DocumentLine) -> list[str]:
    """Return what else is to say of a line, a sentence each."""
    told: list[str] = []
    if line.device is not None:
        told.append(f"Device {line.device}")
    elif line.devices > 1:
        told.append(f"{line.devices:,} devices")
    if line.quantity is not None and line.unit:
        told.append(f"Used {quantity_text(line.quantity, line.unit)}")
        if line.in_bundle:
            told[-1] += f", included {quantity_text(line.in_bundle, line.unit)}"
        if line.from_pool:
            told[-1] += (
                f", of that {quantity_text(line.from_pool, line.unit)} from {_pools_text(line)}"
            )
    if line.period is not None:
        told.append(period_text(line.period))
    if line.corrects is not None:
        told.append(f"Line {line.corrects} of the invoice")
    if line.reason:
        told.append(line.reason)
    return told


def _pools_text(line: DocumentLine) -> str:
    """Name the pools of the fleet that paid a part of a line; one that has only its default name, not."""
    if line.pools in ((), (POOL,)):
        return "the fleet's pool"
    kind = "pool" if len(line.pools) == 1 else "pools"
    return f"the fleet's {kind} {', '.join(line.pools)}"


def priced_text(line: DocumentLine) -> str:
    """Return the quantity that a line's amount is for; nothing where it is for none."""
    if line.overage is not None and line.unit:
        return quantity_text(line.overage, line.unit)
    return "" if line.shares is None else share_text(line.shares)


def price_text(line: DocumentLine) -> str:
    """Return a line's unit price; nothing where none alone decides."""
    if line.unit_price is None:
        return ""
    amount = f"{line.unit_price.amount:f}"
    if line.overage is None or not line.unit:
        return amount
    return f"{amount} / {quantity_text(line.unit_price.per, line.unit)}"


def quantity_text(quantity: Decimal, unit: str) -> str:
    """Return a quantity in a unit of a size to read, exactly."""
    for name, size in _SCALED.get(unit, ()):
        if abs(quantity) >= size or size == 1:
            return f"{_plain(Fraction(quantity) / size)} {name}"
    plural = "s" if unit == "message" and quantity != 1 else ""
    return f"{_plain(Fraction(quantity))} {unit}{plural}"


def share_text(share: Fraction) -> str:
    """Return how many whole terms a fee is for, to four digits."""
    return _plain(Fraction(round(share * 10**4), 10**4))


def _plain(number: Fraction) -> str:
    whole, _, places = decimal_text(number, digits_max=_DIGITS_SHOWN).partition(".")
    grouped = f"{int(whole):,}" if whole != "-0" else whole
    return f"{grouped}.{places}" if places else grouped


def amount_text(amount: Decimal) -> str:
    """Return an amount with its thousands apart."""
    return f"{amount:,f}"


def rate_text(line: DocumentLine) -> str:
    """Return a line's tax in per cent."""
    return f"{line.rate:f}"


def tax_name(total: TaxTotal) -> str:
    """Return what a tax total is of."""
    return f"Tax {_plain(Fraction(total.rate))} %" if total.rate else f"Tax 0 % ({total.category})"


def period_text(period: SupplyPeriod) -> str:
    """Return a period's first and last day."""
    return f"{period.first_day} to {period.last_day}"


def address_lines(party: Party) -> list[str]:
    """Return a party's name and address, a line each."""
    address = party.address
    place = " ".join(each for each in (address.postcode, address.city) if each)
    return [party.name, *address.lines, *([place] if place else []), address.country]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A name and what it is."""

    name: str
    told: str


def facts(document: Document) -> Iterator[Fact]:
    """Yield what identifies a document."""
    if document.number is not None:
        yield Fact(name="Number", told=document.number)
    if document.issued is not None:
        yield Fact(name="Date", told=str(document.issued))
    if document.due is not None:
        yield Fact(name="Due", told=str(document.due))
    yield Fact(name="Supply period", told=period_text(document.period))
    yield Fact(name="Account", told=document.fleet)
    if document.buyer.reference:
        yield Fact(name="Your reference", told=document.buyer.reference)
    if document.buyer.tax_id:
        yield Fact(name="Your tax number", told=document.buyer.tax_id)
    if document.corrects is not None:
        told = f"{document.corrects.number} of {document.corrects.issued}"
        yield Fact(name="Corrects", told=told)


def sums(document: Document) -> Iterator[Fact]:
    """Yield the sums below the lines, the amount due last."""
    totals = document.totals
    yield Fact(name="Net", told=amount_text(totals.net))
    for total in document.taxes:
        yield Fact(
            name=f"{tax_name(total)} on {amount_text(total.net)}", told=amount_text(total.tax)
        )
    yield Fact(name="Total", told=amount_text(totals.gross))
    if totals.prepaid:
        yield Fact(name="Prepaid", told=amount_text(-totals.prepaid))
    due = "Amount due" if document.kind is not DocumentKind.CREDIT_NOTE else "Amount credited"
    yield Fact(name=due, told=amount_text(totals.due))


def remarks(document: Document) -> Iterator[str]:
    """Yield what a document must say in words: reasons, wordings of tax, how to pay."""
    if document.reason:
        yield f"Reason: {document.reason}"
    if document.prices_include_tax:
        yield "Prices and line amounts include tax."
    for total in document.taxes:
        if total.reason:
            yield f"{total.reason}."
    totals, account = document.totals, document.seller.bank_account
    is_owed = document.kind.sign > 0 and totals.due > 0 and document.number is not None
    if is_owed and account is not None:
        by = f" by {document.due}" if document.due else ""
        due = f"{amount_text(totals.due)} {document.currency}"
        yield f"Please pay {due}{by}, stating {document.number}."


def bank_text(document: Document) -> str:
    """Return where to pay to; nothing where the seller has no account."""
    account = document.seller.bank_account
    if account is None:
        return ""
    iban = " ".join(account.iban[at : at + 4] for at in range(0, len(account.iban), 4))
    return f"IBAN {iban}" + (f" · BIC {account.bic}" if account.bic else "")
