"""Credit and debit notes, worked by hand."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from fractions import Fraction

import pytest

from metering.billing.document import (
    Document,
    DocumentKind,
    DocumentState,
    TaxCategory,
    TaxTotal,
    finalised,
    totals_of,
)
from metering.billing.draw_up import ManualAdjustment
from metering.billing.notes import (
    NoteEntry,
    all_left,
    credit_note,
    debit_note,
    full_credit_note,
    left_of,
    share_left,
)
from metering.errors import InvalidValue
from tests import billed

D = Decimal
S20 = (TaxCategory.STANDARD, D(20))


def finalise(document: Document, number: str) -> Document:
    return finalised(document, series="A", number=number, issued=date(2026, 5, 4))


def credited(bill: Document, notes: Sequence[Document], *entries: NoteEntry) -> Document:
    """Return a finalised credit note."""
    return finalise(credit_note(bill, notes, entries, reason="r"), f"N{len(notes)}")


def sums(document: Document) -> tuple[str, str, str]:
    totals = document.totals
    return str(totals.net), str(totals.tax), str(totals.gross)


BILL = billed.sample_bill()
"""Lines of 1.42, 0.00, 0.21, 3.00, 9.90, -1.29, 6.76, 1.23 and -5.00: 16.23, with tax 19.48."""


def test_a_full_note_mirrors_the_bill() -> None:
    note = full_credit_note(BILL, [], reason="void")
    assert (note.kind, note.state) == (DocumentKind.CREDIT_NOTE, DocumentState.DRAFT)
    assert sums(note) == sums(BILL) == ("16.23", "3.25", "19.48")
    assert [line.corrects for line in note.lines] == [1, 3, 4, 5, 6, 7, 8, 9]  # 2 is nothing
    assert note.lines[0].overage == BILL.lines[0].overage
    assert note.corrects is not None
    assert (note.corrects.number, note.corrects.issued) == (BILL.number, BILL.issued)
    assert (note.number, note.due) == (None, None)
    assert note.totals.prepaid == 0
    assert note.owed.gross == -BILL.totals.gross


def test_what_prepaid_money_paid_is_credited_too() -> None:
    prepaid = billed.sample_bill(wallet=D(10))
    assert prepaid.totals.due == D("9.48")
    assert full_credit_note(prepaid, [], reason="void").totals.due == D("19.48")


def test_tax_of_parts_sums_to_the_tax_of_the_bill() -> None:
    first = credited(BILL, [], NoteEntry(line=3))
    assert sums(first) == ("0.21", "0.05", "0.26")  # 20 % of the 16.02 that stay are 3.20
    second = credited(BILL, [first], NoteEntry(line=5, amount=D("0.02")))
    assert sums(second) == ("0.02", "0.00", "0.02")
    last = full_credit_note(BILL, [first, second], reason="r")
    assert sums(last) == ("16.00", "3.20", "19.20")


def test_what_is_entered_is_told_with_the_digits_of_the_currency() -> None:
    entries = [NoteEntry(line=4, amount=D("3")), NoteEntry(line=5, amount=D("2.5"))]
    assert [str(line.amount) for line in credited(BILL, [], *entries).lines] == ["3.00", "2.50"]
    entries = [
        NoteEntry(line=4, amount=D("1")),
        NoteEntry(tax=BILL.lines[0].tax_key, amount=D("2")),
    ]
    debit = debit_note(BILL, [], entries, reason="r")
    assert [str(line.amount) for line in debit.lines] == ["1.00", "2.00"]


def test_a_quantity_costs_its_share_of_what_is_left() -> None:
    first = credited(BILL, [], NoteEntry(line=1, quantity=D(5_000_000)))
    assert (first.lines[0].amount, first.lines[0].overage) == (D("0.60"), D(5_000_000))
    rest = credited(BILL, [first], NoteEntry(line=1, quantity=D(6_845_678)))
    assert rest.lines[0].amount == D("0.82")
    with pytest.raises(InvalidValue, match=r"entries.0.quantity: 1 is more than is left"):
        credited(BILL, [first, rest], NoteEntry(line=1, quantity=D(1)))


def test_a_share_of_a_fee_is_a_quantity_too() -> None:
    note = credited(BILL, [], NoteEntry(line=4, quantity=Fraction(1, 3)))
    assert (note.lines[0].amount, note.lines[0].shares) == (D("0.50"), Fraction(1, 3))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (NoteEntry(line=1, amount=D("1.43")), r"entries.0.amount: 1.43 is not between"),
        (NoteEntry(line=1, amount=D("-0.01")), r"entries.0.amount: -0.01 is not between"),
        (NoteEntry(line=6, amount=D("1.00")), r"entries.0.amount: 1.00 is not between"),
        (NoteEntry(line=1, amount=D("0.001")), r"finer than a minor unit"),
        (NoteEntry(line=1, amount=D(0)), r"is nothing"),
        (NoteEntry(line=2), r"is nothing"),
        (NoteEntry(line=10), r"there is no line 10"),
        (NoteEntry(line=0), r"there is no line 0"),
        (NoteEntry(line=9, quantity=D(1)), r"not what this line is for"),
        (NoteEntry(line=1, quantity=D(1), amount=D(1)), r"stands beside an amount"),
        (NoteEntry(line=6), r"is not between"),  # a discount alone would raise what is owed
        (NoteEntry(tax=S20), r"entries.0.amount: is missing"),
        (NoteEntry(tax=(TaxCategory.STANDARD, D(7)), amount=D(1)), r"is no tax rate"),
        (NoteEntry(tax=S20, amount=D("16.24")), r"entries: S 20 %: 16.24 is not between"),
    ],
)
def test_more_than_is_left_is_refused(entry: NoteEntry, problem: str) -> None:
    with pytest.raises(InvalidValue, match=problem):
        credited(BILL, [], entry)


def test_a_line_is_credited_once() -> None:
    note = credited(BILL, [], NoteEntry(line=4))
    with pytest.raises(InvalidValue, match="is nothing"):
        credited(BILL, [note], NoteEntry(line=4))
    with pytest.raises(InvalidValue, match=r"0.01 is not between 0 and the 0.00 EUR"):
        credited(BILL, [note], NoteEntry(line=4, amount=D("0.01")))
    with pytest.raises(InvalidValue, match="is nothing"):
        credited(BILL, [], NoteEntry(line=4), NoteEntry(line=4))


def test_a_credit_of_a_rate_as_a_whole_is_taken_off_the_full_note() -> None:
    first = credited(BILL, [], NoteEntry(tax=S20, amount=D("6.23"), reason="goodwill"))
    assert first.lines[0].corrects is None
    last = full_credit_note(BILL, [first], reason="void")
    assert sums(last)[0] == "10.00"
    assert last.lines[-1].amount == D("-6.23")


def test_a_debit_note_adds_and_can_be_credited() -> None:
    entry = NoteEntry(line=1, amount=D("5.00"), reason="price was wrong")
    debit = finalise(debit_note(BILL, [], [entry], reason="r"), "D1")
    assert (debit.kind, sums(debit)) == (DocumentKind.DEBIT_NOTE, ("5.00", "1.00", "6.00"))
    assert left_of(BILL, [debit]).of_line(1) == D("6.42")
    back = credited(BILL, [debit], NoteEntry(line=1, amount=D("6.42")))
    assert sums(back)[0] == "6.42"
    assert sums(full_credit_note(BILL, [debit, back], reason="r"))[0] == "14.81"


@pytest.mark.parametrize("amount", [None, D(0), D("-1.00")])
def test_a_debit_note_adds_nothing_below_zero(amount: Decimal | None) -> None:
    with pytest.raises(InvalidValue, match=r"entries.0.amount: is not above 0"):
        debit_note(BILL, [], [NoteEntry(line=1, amount=amount)], reason="r")


def test_a_bill_in_the_buyers_favour_is_taken_back_by_a_debit_note() -> None:
    credit = ManualAdjustment(name="goodwill", amount=D("-99.00"))
    bill = finalise(billed.sample_draft(manual=[credit]), "B1")
    note = full_credit_note(bill, [], reason="void")
    assert note.kind is DocumentKind.DEBIT_NOTE
    assert note.totals.gross == -bill.totals.gross > 0
    assert not all_left(left_of(bill, [finalise(note, "D1")]))


def test_an_empty_bill_has_an_empty_full_note() -> None:
    empty = replace(BILL, lines=(), taxes=(), totals=totals_of((), (), prepaid=D(0)))
    assert full_credit_note(empty, [], reason="void").totals.gross == 0


def test_a_draft_is_not_corrected() -> None:
    with pytest.raises(InvalidValue, match="bill: is no finalised bill"):
        full_credit_note(billed.sample_draft(), [], reason="r")


def test_a_share_of_cents_is_spread_without_exceeding() -> None:
    lines = tuple(
        replace(BILL.lines[0], number=number, amount=D(amount))
        for number, amount in enumerate(["0.01", "0.01", "0.01", "-0.02"], start=1)
    )
    taxes = (TaxTotal(category=S20[0], rate=S20[1], net=D("0.01"), tax=D("0.00")),)
    bill = replace(BILL, lines=lines, taxes=taxes, totals=totals_of(lines, taxes, prepaid=D(0)))
    half = credit_note(bill, [], share_left(left_of(bill, []), Fraction(1, 2)), reason="r")
    assert sums(half)[0] == "0.01"  # by line it would be 0.02


def test_a_share_of_lines_that_are_finer_is_of_the_rate_as_a_whole() -> None:
    lines = tuple(
        replace(BILL.lines[0], number=number, amount=D(amount))
        for number, amount in enumerate(["0.333", "0.667"], start=1)
    )
    taxes = (TaxTotal(category=S20[0], rate=S20[1], net=D("1.000"), tax=D("0.20")),)
    bill = replace(BILL, lines=lines, taxes=taxes, totals=totals_of(lines, taxes, prepaid=D(0)))
    half = finalise(
        credit_note(bill, [], share_left(left_of(bill, []), Fraction(1, 2)), reason="r"), "N1"
    )
    assert [(line.corrects, line.amount) for line in half.lines] == [(None, D("0.50"))]
    rest = full_credit_note(bill, [half], reason="r")
    assert (rest.totals.net, rest.totals.tax) == (D("0.500"), D("0.10"))


@pytest.mark.parametrize("share", [Fraction(0), Fraction(-1, 2), Fraction(101, 100)])
def test_a_share_is_more_than_nothing_and_at_most_all(share: Fraction) -> None:
    with pytest.raises(InvalidValue, match="is no share"):
        share_left(left_of(BILL, []), share)


def test_tax_that_a_service_rounded_by_line_is_reversed_to_the_cent() -> None:
    [total] = BILL.taxes
    taxes = (replace(total, tax=D("3.27")),)
    bill = replace(BILL, taxes=taxes, totals=totals_of(BILL.lines, taxes, prepaid=D(0)))
    notes: list[Document] = []
    for number in (3, 4, 5):
        notes.append(credited(bill, notes, NoteEntry(line=number)))
    notes.append(finalise(full_credit_note(bill, notes, reason="r"), "N9"))
    assert sum(note.totals.tax for note in notes) == D("3.27")
    assert all(note.totals.tax >= 0 for note in notes)


def two_rates() -> Document:
    """Return a bill of 10.00 at 20 % and -9.00 at 7 %: 2.37 in all."""
    lines = (
        replace(BILL.lines[0], number=1, amount=D("10.00")),
        replace(BILL.lines[0], number=2, amount=D("-9.00"), rate=D(7)),
    )
    taxes = (
        TaxTotal(category=S20[0], rate=D(20), net=D("10.00"), tax=D("2.00")),
        TaxTotal(category=S20[0], rate=D(7), net=D("-9.00"), tax=D("-0.63")),
    )
    return replace(BILL, lines=lines, taxes=taxes, totals=totals_of(lines, taxes, prepaid=D(0)))


def test_no_more_is_taken_than_the_whole_bill_came_to() -> None:
    bill = two_rates()
    for entry in (NoteEntry(line=1), NoteEntry(line=2)):
        with pytest.raises(
            InvalidValue, match=r"entries: bill: -?[0-9.]+ is not between 0 and the 2.37"
        ):
            credited(bill, [], entry)
    assert sums(credited(bill, [], NoteEntry(line=1), NoteEntry(line=2)))[2] == "2.37"
    assert sums(credited(bill, [], NoteEntry(line=1, amount=D("1.97"))))[2] == "2.36"


def test_a_note_of_another_currency_is_refused() -> None:
    note = credited(BILL, [], NoteEntry(line=3))
    with pytest.raises(InvalidValue, match=r"notes.0.currency: is USD, the bill's EUR"):
        credited(BILL, [replace(note, currency="USD")], NoteEntry(line=4))
