"""What holds for credit and debit notes: they never exceed, and together they come to the bill exactly."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from metering.billing.document import (
    Document,
    DocumentKind,
    DocumentLine,
    DocumentLineKind,
    SupplyPeriod,
    TaxCategory,
    document_of,
    finalised,
    json_of,
    totals_of,
)
from metering.billing.notes import (
    NoteEntry,
    all_left,
    credit_note,
    debit_note,
    full_credit_note,
    left_of,
    share_left,
)
from metering.billing.tax import TaxKey, tax_total
from metering.errors import InvalidValue
from tests.billed import BUYER, SELLER

KEYS: list[TaxKey] = [
    (category, Decimal(rate))
    for category, rate in (
        (TaxCategory.STANDARD, "19"),
        (TaxCategory.STANDARD, "7"),
        (TaxCategory.REVERSE_CHARGE, "0"),
    )
]
AMOUNTS = st.decimals(-30, 100, places=2)
NOTHING = (Decimal(0), Decimal(0), Decimal(0))
SHARES = st.fractions(Fraction(1, 50), 1, max_denominator=50)


def finalise(document: Document, number: str) -> Document:
    return finalised(document, series="2026", number=number, issued=date(2026, 2, 1))


@st.composite
def bills(draw: st.DrawFn) -> Document:
    """Draw a finalised bill: a few lines of a few rates, with tax or without."""
    inclusive = draw(st.booleans())
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=2, unique=True))
    lines = tuple(
        DocumentLine(
            number=number,
            kind=DocumentLineKind.USAGE,
            name="data",
            exact=Fraction(amount),
            overage=draw(st.none() | st.decimals(1, 1000, places=0)),
            amount=amount,
            tax_category=key[0],
            rate=key[1],
        )
        for number, (amount, key) in enumerate(
            draw(st.lists(st.tuples(AMOUNTS, st.sampled_from(keys)), min_size=1, max_size=6)), 1
        )
    )
    taxes = tuple(
        tax_total(
            key,
            sum((line.amount for line in lines if line.tax_key == key), start=Decimal(0)),
            currency="EUR",
            inclusive=inclusive,
        )
        for key in dict.fromkeys(line.tax_key for line in lines)
    )
    bill = Document(
        kind=DocumentKind.BILL,
        period=SupplyPeriod(first_day=date(2026, 1, 1), end_day=date(2026, 2, 1)),
        time_zone="Europe/Berlin",
        currency="EUR",
        fleet="bikes",
        seller=SELLER,
        buyer=BUYER,
        prices_include_tax=inclusive,
        lines=lines,
        taxes=taxes,
        totals=totals_of(lines, taxes, prepaid=Decimal(0)),
    )
    return finalise(bill, "B1")


def tried(bill: Document, notes: Sequence[Document], draw: st.DataObject) -> Document | None:
    """Draw a note; None where it is refused."""
    left = left_of(bill, notes)
    way = draw.draw(st.sampled_from(["share", "lines", "quantity", "whole", "debit"]))
    numbers = st.integers(1, len(bill.lines))
    try:
        if way == "share":
            return credit_note(bill, notes, share_left(left, draw.draw(SHARES)), reason="r")
        if way == "debit":
            entry = NoteEntry(line=draw.draw(numbers), amount=draw.draw(AMOUNTS))
            return debit_note(bill, notes, [entry], reason="r")
        if way == "whole":
            tax = draw.draw(st.sampled_from([total.key for total in bill.taxes]))
            return credit_note(
                bill, notes, [NoteEntry(tax=tax, amount=draw.draw(AMOUNTS))], reason="r"
            )
        if way == "quantity":
            entry = NoteEntry(
                line=draw.draw(numbers), quantity=Fraction(draw.draw(st.integers(1, 1000)))
            )
            return credit_note(bill, notes, [entry], reason="r")
        entries = [
            NoteEntry(line=number, amount=draw.draw(st.none() | AMOUNTS))
            for number in draw.draw(st.lists(numbers, min_size=1, max_size=3))
        ]
        return credit_note(bill, notes, entries, reason="r")
    except InvalidValue:
        return None


def owed(documents: Sequence[Document]) -> tuple[Decimal, Decimal, Decimal]:
    """Return net, tax and gross that documents come to together."""
    return (
        sum((each.owed.net for each in documents), start=Decimal(0)),
        sum((each.owed.tax for each in documents), start=Decimal(0)),
        sum((each.owed.gross for each in documents), start=Decimal(0)),
    )


@settings(max_examples=150)
@given(bills(), st.data())
def test_notes_never_exceed_and_the_rest_comes_to_nothing(
    bill: Document, draw: st.DataObject
) -> None:
    notes: list[Document] = []
    for number in range(draw.draw(st.integers(0, 6))):
        note = tried(bill, notes, draw)
        if note is None:
            continue
        before = owed([bill, *notes])
        notes.append(finalise(note, f"N{number}"))
        after = owed([bill, *notes])
        assert note.totals.net + note.totals.tax == note.totals.gross
        assert note.totals.gross >= 0
        if note.kind is DocumentKind.CREDIT_NOTE:
            assert 0 <= after[2] <= before[2]
        assert left_of(bill, notes).gross == after[2]
        assert document_of(json_of(note)) == note
    left = left_of(bill, notes)
    if all_left(left):
        last = full_credit_note(bill, notes, reason="void")
        notes.append(finalise(last, "V"))
        assert owed([bill, *notes]) == NOTHING
    assert not all_left(left_of(bill, notes))


@settings(max_examples=100)
@given(bills(), st.lists(SHARES, max_size=8))
def test_shares_are_never_refused_and_sum_to_the_bill(
    bill: Document, shares: list[Fraction]
) -> None:
    notes: list[Document] = []
    for share in [*shares, Fraction(1)]:
        entries = share_left(left_of(bill, notes), share)
        if entries:
            note = credit_note(bill, notes, entries, reason="r")
            notes.append(finalise(note, f"N{len(notes)}"))
    assert owed([bill, *notes]) == NOTHING


@settings(max_examples=20)
@given(bills())
def test_a_note_of_another_currency_or_bill_is_refused(bill: Document) -> None:
    assume(all_left(left_of(bill, [])))
    note = finalise(full_credit_note(bill, [], reason="r"), "N1")
    for other in (replace(note, currency="USD"), replace(note, corrects=None), bill):
        try:
            left_of(bill, [other])
        except InvalidValue:
            continue
        raise AssertionError(other)
