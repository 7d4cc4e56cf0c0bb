"""A bill, credit note or debit note as it is sent: parties, lines, tax and totals, and its JSON form.

Frozen values and no arithmetic but sums: `metering.billing.draw_up` makes bills, `metering.billing.notes`
what corrects them. Total = Σ rounded lines, always. Lines are a tuple, or `Packed` where there are many.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal, localcontext
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from metering.errors import InvalidValue
from metering.packed import Packed, packed

FORM = 1
"""The number of the JSON form; one that means something else gets another."""


class DocumentKind(StrEnum):
    """What a document is. Amounts of a credit note are what it takes off; all others are owed."""

    BILL = "bill"
    CREDIT_NOTE = "credit_note"
    DEBIT_NOTE = "debit_note"

    @property
    def sign(self) -> int:
        """1 where amounts are owed by the buyer, -1 where they are taken off."""
        return -1 if self is DocumentKind.CREDIT_NOTE else 1


class DocumentState(StrEnum):
    """The states of a bill (TMF678); a note begins finalised."""

    DRAFT = "draft"
    FINALISED = "finalised"
    PAID = "paid"
    VOID = "void"


class DocumentLineKind(StrEnum):
    """What a line of a document is for."""

    RECURRING = "recurring"
    """A fee of each term, or what a price costs at no quantity."""
    ONE_TIME = "one_time"
    USAGE = "usage"
    TRUE_UP = "true_up"
    """What is missing to a minimum or a commitment."""
    DISCOUNT = "discount"
    """A discount, promotion, credit or maximum of a plan."""
    EARLIER_PERIOD = "earlier_period"
    """What a closed period owes since it closed, more or less; `period` names it."""
    MANUAL = "manual"
    """A credit or debit that somebody entered, with a reason."""
    ROUNDING = "rounding"
    """What brings lines that a plan rounds more finely to the currency's minor unit."""


class TaxCategory(StrEnum):
    """How a line is taxed (UNTDID 5305, as EN 16931 uses it)."""

    STANDARD = "S"
    ZERO_RATED = "Z"
    EXEMPT = "E"
    REVERSE_CHARGE = "AE"
    """The buyer owes the tax."""
    OUT_OF_SCOPE = "O"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostalAddress:
    """A postal address; `lines` are the street and what belongs to it, `country` is ISO 3166, two letters."""

    lines: tuple[str, ...] = ()
    postcode: str | None = None
    city: str | None = None
    country: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BankAccount:
    """Where a buyer pays to."""

    iban: str
    bic: str | None = None
    holder: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A seller or a buyer; `tax_id` is its VAT number, with the country's prefix.

    `registration_id` is another legal number, such as of a register of companies. `reference` is what a
    buyer asks to be named by, such as an order number.
    """

    name: str
    address: PostalAddress
    tax_id: str | None = None
    registration_id: str | None = None
    email: str | None = None
    bank_account: BankAccount | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplyPeriod:
    """Local days `[first_day, end_day)`."""

    first_day: date
    end_day: date

    @property
    def last_day(self) -> date:
        """Its last day, which is in it."""
        return self.end_day - timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedPrice:
    """A price of `amount` units of currency per `per` of the meter's unit, never pre-divided."""

    amount: Decimal
    per: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLine:
    """One line of a document.

    `name` is the meter, the fee, the adjustment, or what was written of it. `device` is None on a line for
    all of `devices` devices. `variant` is the price's number in the plan and `label` what it holds for
    (zones, bands, attributes). Quantities are in the meter's `unit`: what was used, what of it an
    allowance or pool paid, and what was priced; `from_pool` is how much of what was paid came from the
    fleet's `pools` (their names in the plan), None: nothing, or it was not told apart yet. `shares` is
    how many whole terms a fee is for. `exact` is in units of currency and `amount` it rounded. `rate` is
    the tax in per cent. `corrects` is the line of the corrected document that a note's line takes from or
    adds to; None: its tax rate as a whole.
    """

    number: int
    kind: DocumentLineKind
    name: str
    plan: str | None = None
    plan_version: int | None = None
    device: str | None = None
    devices: int = 0
    meter: str | None = None
    variant: int | None = None
    label: str | None = None
    unit: str | None = None
    records: int = 0
    quantity: Decimal | None = None
    in_bundle: Decimal | None = None
    from_pool: Decimal | None = None
    pools: tuple[str, ...] = ()
    overage: Decimal | None = None
    unit_price: StatedPrice | None = None
    shares: Fraction | None = None
    period: SupplyPeriod | None = None
    reason: str | None = None
    corrects: int | None = None
    exact: Fraction
    amount: Decimal
    tax_category: TaxCategory
    rate: Decimal

    @property
    def tax_key(self) -> tuple[TaxCategory, Decimal]:
        """What the lines of one tax total have in common."""
        return self.tax_category, self.rate


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxTotal:
    """What all lines of one category and rate are taxed: rounded once, here.

    `net` is without `tax`. `reason` says why nothing is charged, and `reason_code` is its code (VATEX).
    """

    category: TaxCategory
    rate: Decimal
    net: Decimal
    tax: Decimal
    reason: str | None = None
    reason_code: str | None = None

    @property
    def key(self) -> tuple[TaxCategory, Decimal]:
        """What its lines have in common."""
        return self.category, self.rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a document comes to: `net` + `tax` = `gross`; `due` is what prepaid money leaves of it.

    `lines` is the sum of the lines: the net where prices are without tax, else the gross.
    """

    lines: Decimal
    net: Decimal
    tax: Decimal
    gross: Decimal
    prepaid: Decimal
    due: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentReference:
    """Another document: its number and the day on which it was issued."""

    number: str
    issued: date


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A bill, credit note or debit note.

    `number`, `series` and `issued` are None as long as it is a draft. `corrects` is the bill that a note
    is for, `reason` why. `tax_service` names the external service that found the tax, and its reference.
    """

    kind: DocumentKind
    state: DocumentState = DocumentState.DRAFT
    number: str | None = None
    series: str | None = None
    issued: date | None = None
    due: date | None = None
    period: SupplyPeriod
    time_zone: str
    currency: str
    fleet: str
    seller: Party
    buyer: Party
    prices_include_tax: bool = False
    lines: Annotated[Sequence[DocumentLine], AfterValidator(tuple)]
    taxes: tuple[TaxTotal, ...]
    totals: Totals
    corrects: DocumentReference | None = None
    reason: str | None = None
    tax_service: str | None = None

    @property
    def owed(self) -> Totals:
        """Its totals as they change what the buyer owes: a credit note's are below 0."""
        if self.kind.sign > 0:
            return self.totals
        each = self.totals
        return Totals(
            lines=-each.lines,
            net=-each.net,
            tax=-each.tax,
            gross=-each.gross,
            prepaid=-each.prepaid,
            due=-each.due,
        )

    def line(self, number: int) -> DocumentLine:
        """Return a line by its number; raise `InvalidValue` if there is none."""
        if not 1 <= number <= len(self.lines):
            raise InvalidValue("line", f"there is no line {number}", f"use 1 to {len(self.lines)}")
        return self.lines[number - 1]


def finalised(
    document: Document, *, series: str, number: str, issued: date, due: date | None = None
) -> Document:
    """Return a draft with its number and dates; raise `InvalidValue` if it is none any more."""
    if document.state is not DocumentState.DRAFT:
        raise InvalidValue("state", f"is {document.state}", "finalise a draft")
    return replace(
        document,
        state=DocumentState.FINALISED,
        series=series,
        number=number,
        issued=issued,
        due=due,
    )


def with_prepaid(document: Document, amount: Decimal) -> Document:
    """Return a draft of which prepaid money pays more, by an amount."""
    totals = document.totals
    return replace(
        document,
        totals=replace(
            totals,
            prepaid=sum_of([totals.prepaid, amount]),
            due=sum_of([totals.due, -amount]),
        ),
    )


def sum_of(amounts: Iterable[Decimal]) -> Decimal:
    """Return a sum of amounts, exactly."""
    with localcontext() as context:
        context.prec = 200  # sums stay exact
        return sum(amounts, start=Decimal(0))


def totals_of(
    lines: Iterable[DocumentLine], taxes: Iterable[TaxTotal], *, prepaid: Decimal
) -> Totals:
    """Return what lines and their taxes come to."""
    return totals_on(sum_of(line.amount for line in lines), taxes, prepaid=prepaid)


def totals_on(lines: Decimal, taxes: Iterable[TaxTotal], *, prepaid: Decimal) -> Totals:
    """Return the same of the sum of the lines."""
    taxes = list(taxes)
    net, tax = sum_of(each.net for each in taxes), sum_of(each.tax for each in taxes)
    gross = sum_of([net, tax])
    return Totals(
        lines=lines,
        net=net,
        tax=tax,
        gross=gross,
        prepaid=prepaid,
        due=sum_of([gross, -prepaid]),
    )


_FORM_OF_DOCUMENT = TypeAdapter(Document)
_FORM_OF_LINES = TypeAdapter(list[DocumentLine])


def packed_lines(lines: Iterable[DocumentLine]) -> Sequence[DocumentLine]:
    """Return lines as a document has them: packed where there are many, as what `json_of` tells of them."""
    return packed(lines, dump=_lines_text, unpack=_lines_of)


def json_of(document: Document) -> dict[str, Any]:
    """Return a document as JSON that loses nothing: decimals and fractions in text, days as ISO 8601.

    What is a field's default is left out. Lines that are `Packed` are so in what is returned, too.
    """
    lines = document.lines
    if isinstance(lines, Packed):
        return {**json_of(replace(document, lines=())), "lines": lines.read_as(json.loads)}
    told: dict[str, Any] = _FORM_OF_DOCUMENT.dump_python(
        document, mode="json", exclude_defaults=True
    )
    return {"form": FORM, **told}


def document_of(told: Mapping[str, Any]) -> Document:
    """Return the document that `json_of` told; raise `InvalidValue` if it is none.

    Of lines that are `Packed`, each says whether it is one when it is read.
    """
    fields = dict(told)
    form = fields.pop("form", None)
    if form != FORM:
        raise InvalidValue("form", f"{form!r} is not known", f"use {FORM}")
    lines = fields.get("lines")
    if isinstance(lines, Packed):
        return replace(document_of({**told, "lines": ()}), lines=lines.read_as(_lines_of))
    try:
        return _FORM_OF_DOCUMENT.validate_python(fields)
    except ValidationError as error:
        raise _invalid(error, "document") from error


def _lines_text(lines: Sequence[DocumentLine]) -> bytes:
    return _FORM_OF_LINES.dump_json(list(lines), exclude_defaults=True)


def _lines_of(text: bytes) -> list[DocumentLine]:
    try:
        return _FORM_OF_LINES.validate_json(text)
    except ValidationError as error:
        raise _invalid(error, "lines") from error


def _invalid(error: ValidationError, what: str) -> InvalidValue:
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"]) or what
    return InvalidValue(path, first["msg"], "give a document as json_of tells it")
