"""Credit and debit notes: what corrects a bill, in full or in part, never more than is left of it.

A credit note takes from lines what earlier notes left, at the bill's own tax rates; a debit note adds to
them. What is left is always the fold of the bill and its notes in their order, so notes that exhaust a
bill come to it exactly, tax included. Where a bill itself is in the buyer's favour, what takes it back is
a debit note.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from math import floor

from metering.billing.document import (
    Document,
    DocumentKind,
    DocumentLine,
    DocumentLineKind,
    DocumentReference,
    DocumentState,
    TaxTotal,
    sum_of,
    totals_of,
)
from metering.billing.draw_up import check_minor, minor_amount
from metering.billing.tax import TaxKey, rounded_tax
from metering.errors import InvalidValue
from metering.money import Money, minor_digits

_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteEntry:
    """What a note takes from, or adds to, one line of the bill, or one of its tax rates as a whole.

    With neither `amount` nor `quantity` it is all that is left of the line. `quantity` is of what was
    priced: usage in the meter's unit, or whole terms of a fee. `tax` names a rate where `line` is None.
    """

    line: int | None = None
    amount: Decimal | None = None
    quantity: Decimal | Fraction | None = None
    tax: TaxKey | None = None
    reason: str | None = None


@dataclass(slots=True, kw_only=True)
class _LeftOfLine:
    amount: Decimal
    quantity: Fraction | None


@dataclass(slots=True, kw_only=True)
class _LeftOfRate:
    """`base` is as the lines state it, with tax or without; `whole` what notes took of no line."""

    base: Decimal
    tax: Decimal
    whole: Decimal = _NOTHING


@dataclass(slots=True)
class Left:
    """What is left of a bill: by line, and by tax rate."""

    bill: Document
    lines: dict[int, _LeftOfLine] = field(default_factory=dict)
    rates: dict[TaxKey, _LeftOfRate] = field(default_factory=dict)

    def of_line(self, number: int) -> Decimal:
        """Return what is left of a line, in the way prices are stated."""
        self.bill.line(number)
        return self.lines[number].amount

    @property
    def gross(self) -> Decimal:
        """What is left of the bill, with tax."""
        taxes = () if self.bill.prices_include_tax else (each.tax for each in self.rates.values())
        return sum_of([*(each.base for each in self.rates.values()), *taxes])


def left_of(bill: Document, notes: Iterable[Document]) -> Left:
    """Return what earlier notes, in their order, leave of a finalised bill.

    Raises `InvalidValue` when it is a draft or no bill, or a note is of another bill or currency.
    """
    if bill.kind is not DocumentKind.BILL or bill.number is None or bill.issued is None:
        raise InvalidValue("bill", "is no finalised bill", "correct a draft itself")
    found = Left(bill)
    for line in bill.lines:
        found.lines[line.number] = _LeftOfLine(amount=line.amount, quantity=_priced(line))
    inclusive = bill.prices_include_tax
    for total in bill.taxes:
        base = sum_of([total.net, total.tax]) if inclusive else total.net
        found.rates[total.key] = _LeftOfRate(base=base, tax=total.tax)
    for position, note in enumerate(notes):
        _check_note(bill, note, f"notes.{position}")
        _take(found, note)
    return found


def credit_note(
    bill: Document, notes: Iterable[Document], entries: Sequence[NoteEntry], *, reason: str
) -> Document:
    """Return the draft of a note that takes `entries` from a bill of which `notes` took before.

    It is a debit note where that raises what is owed. An entry below 0 of a tax rate as a whole adds to that
    rate. Raises `InvalidValue` when more is taken of a line, a tax rate or the bill than is left.
    """
    left = left_of(bill, notes)
    before = left.gross
    lines = [
        _credited(left, entry, f"entries.{position}") for position, entry in enumerate(entries)
    ]
    if not lines and all_left(left):
        raise InvalidValue("entries", "are none", "say what the note takes")
    taxes = list(_reversed(left, lines))
    _check_between("bill", left.gross, before, bill.currency)
    document = _note(bill, DocumentKind.CREDIT_NOTE, lines, taxes, reason)
    if document.totals.gross < 0:
        return _negated(document)
    return document


def debit_note(
    bill: Document, notes: Iterable[Document], entries: Sequence[NoteEntry], *, reason: str
) -> Document:
    """Return the draft of a note that adds `entries`, each an amount above 0, to a bill's lines or rates.

    What it adds is taxed as the bill was, and can be credited later. An entry below 0 of a tax rate as a
    whole takes from that rate. Raises `InvalidValue` for an entry that says no amount, or that is of no
    line or rate of the bill, where more is taken of a rate than is left, or nothing is added in all.
    """
    left = left_of(bill, notes)
    if not entries:
        raise InvalidValue("entries", "are none", "say what the note adds")
    lines = [_debited(left, entry, f"entries.{position}") for position, entry in enumerate(entries)]
    document = _note(bill, DocumentKind.DEBIT_NOTE, lines, list(_added(left, lines)), reason)
    if document.totals.gross <= 0:
        raise InvalidValue("entries", "add nothing in all", "give a credit note")
    return document


def all_left(left: Left) -> list[NoteEntry]:
    """Return the entries that take all that is left of a bill."""
    entries = [NoteEntry(line=number) for number, of_line in left.lines.items() if of_line.amount]
    entries += [
        NoteEntry(tax=key, amount=rate.whole) for key, rate in left.rates.items() if rate.whole
    ]
    return entries


def share_left(left: Left, share: Fraction) -> list[NoteEntry]:
    """Return the entries that take a share, above 0 and at most 1, of all that is left of a bill.

    Each rate's sum is rounded half-up to the minor unit, and its lines sum to it: a running sum is rounded,
    so none is off by more than one minor unit. Where a plan rounds lines more finely the entries are of
    the rates as a whole.
    """
    if not 0 < share <= 1:
        raise InvalidValue("share", f"{share} is no share", "use more than 0 and at most 1")
    if share == 1:
        return all_left(left)
    digits = minor_digits(left.bill.currency)
    unit = 10**digits
    fine = any(Fraction(each.amount) * unit % 1 for each in left.lines.values())
    entries: list[NoteEntry] = []
    for key, rate in left.rates.items():
        parts: list[tuple[int | None, Decimal]] = [(None, rate.base)]
        if not fine:
            parts = [
                (line.number, left.lines[line.number].amount)
                for line in left.bill.lines
                if line.tax_key == key
            ]
            parts.append((None, rate.whole))
        running, given = Fraction(0), 0
        for number, amount in parts:
            running += Fraction(amount) * share * unit
            # Not half away from zero: the steps of this rounding never exceed their part's own size.
            count = floor(running + Fraction(1, 2)) - given
            given += count
            if count:
                taken = Decimal(f"{count}E-{digits}")
                entries.append(NoteEntry(line=number, tax=None if number else key, amount=taken))
    return entries


def full_credit_note(bill: Document, notes: Iterable[Document], *, reason: str) -> Document:
    """Return the draft of a note that takes all that is left: with it, bill and notes come to nothing."""
    notes = list(notes)
    return credit_note(bill, notes, all_left(left_of(bill, notes)), reason=reason)


def _check_note(bill: Document, note: Document, name: str) -> None:
    if note.currency != bill.currency:
        raise InvalidValue(
            f"{name}.currency",
            f"is {note.currency}, the bill's {bill.currency}",
            "give notes of the bill alone",
        )
    if (
        note.kind is DocumentKind.BILL
        or note.corrects is None
        or note.corrects.number != bill.number
    ):
        raise InvalidValue(name, f"is no note of {bill.number}", "give notes of the bill alone")


def _take(left: Left, note: Document) -> None:
    """Take what a note took, or add what it added."""
    sign = -note.kind.sign
    inclusive = note.prices_include_tax
    for total in note.taxes:
        rate = left.rates[total.key]
        base = sum_of([total.net, total.tax]) if inclusive else total.net
        rate.base = sum_of([rate.base, -sign * base])
        rate.tax = sum_of([rate.tax, -sign * total.tax])
    for line in note.lines:
        if line.corrects is None:
            rate = left.rates[line.tax_key]
            rate.whole = sum_of([rate.whole, -sign * line.amount])
            continue
        of_line = left.lines[line.corrects]
        of_line.amount = sum_of([of_line.amount, -sign * line.amount])
        quantity = _priced(line)
        if of_line.quantity is not None and quantity is not None:
            of_line.quantity -= sign * quantity


def _priced(line: DocumentLine) -> Fraction | None:
    """Return the quantity that a line's amount is for; None where it is for none."""
    return line.shares if line.overage is None else Fraction(line.overage)


def _credited(left: Left, entry: NoteEntry, name: str) -> DocumentLine:
    """Take an entry from what is left; return its line, not numbered yet."""
    if entry.line is None:
        return _credited_as_a_whole(left, entry, name)
    line = left.bill.line(entry.line)
    of_line = left.lines[entry.line]
    whole = entry.amount is None and entry.quantity is None
    quantity = of_line.quantity if whole else None
    amount = of_line.amount if entry.amount is None else entry.amount
    if entry.quantity is not None:
        if entry.amount is not None:
            raise InvalidValue(f"{name}.quantity", "stands beside an amount", "give one of them")
        quantity = Fraction(entry.quantity)
        amount = _of_quantity(left.bill.currency, of_line, quantity, f"{name}.quantity")
    if not amount:
        raise InvalidValue(f"{name}.amount", "is nothing", "leave the entry out")
    if amount == of_line.amount:
        amount = of_line.amount  # as the bill tells it
    else:
        check_minor(amount, left.bill.currency, f"{name}.amount")
        amount = minor_amount(amount, left.bill.currency)
    if amount != _clamped(amount, of_line.amount):
        raise _too_much(f"{name}.amount", amount, of_line.amount, left.bill.currency)
    of_line.amount = sum_of([of_line.amount, -amount])
    if of_line.quantity is not None and quantity is not None:
        of_line.quantity -= quantity
    return _corrected(line, amount, quantity, entry)


def _credited_as_a_whole(left: Left, entry: NoteEntry, name: str) -> DocumentLine:
    rate = _rate(left, entry, name)
    if not entry.amount:
        raise InvalidValue(f"{name}.amount", "is missing", "say how much")
    check_minor(entry.amount, left.bill.currency, f"{name}.amount")
    rate.whole = sum_of([rate.whole, -entry.amount])
    return _line_as_a_whole(entry, minor_amount(entry.amount, left.bill.currency))


def _debited(left: Left, entry: NoteEntry, name: str) -> DocumentLine:
    """Return an added line, not numbered yet."""
    is_less = entry.amount is not None and entry.amount < 0 and entry.line is None
    if not entry.amount or (entry.amount < 0 and not is_less):
        raise InvalidValue(f"{name}.amount", "is not above 0", "say how much is added")
    if entry.quantity is not None:
        raise InvalidValue(f"{name}.quantity", "is not for a debit note", "give the amount alone")
    check_minor(entry.amount, left.bill.currency, f"{name}.amount")
    amount = minor_amount(entry.amount, left.bill.currency)
    if entry.line is None:
        _rate(left, entry, name)
        return _line_as_a_whole(entry, amount)
    return _corrected(left.bill.line(entry.line), amount, None, entry)


def _rate(left: Left, entry: NoteEntry, name: str) -> _LeftOfRate:
    if entry.tax is None or entry.tax not in left.rates:
        known = ", ".join(f"{category} {rate}" for category, rate in left.rates)
        raise InvalidValue(f"{name}.tax", "is no tax rate of the bill", f"use one of {known}")
    return left.rates[entry.tax]


def _of_quantity(currency: str, of_line: _LeftOfLine, quantity: Fraction, name: str) -> Decimal:
    if of_line.quantity is None:
        raise InvalidValue(name, "is not what this line is for", "give an amount")
    if not 0 < quantity <= of_line.quantity:
        raise InvalidValue(
            name, f"{quantity} is more than is left, or nothing", f"use {of_line.quantity} at most"
        )
    if quantity == of_line.quantity:
        return of_line.amount
    exact = Fraction(of_line.amount) * quantity / of_line.quantity
    return Money(count=exact.numerator, per_unit=exact.denominator, currency=currency).rounded()


def _corrected(
    line: DocumentLine, amount: Decimal, quantity: Fraction | None, entry: NoteEntry
) -> DocumentLine:
    """Return the line of a note that is about a line of its bill."""
    whole = quantity is not None and quantity == _priced(line)
    priced: Decimal | None = None
    if quantity is not None and line.overage is not None:
        exponent = int(line.overage.as_tuple().exponent)
        priced = Decimal(f"{floor(quantity * 10**-exponent)}E{exponent}")
    return replace(
        line,
        corrects=line.number,
        records=line.records if whole else 0,
        quantity=line.quantity if whole else priced,
        in_bundle=line.in_bundle if whole else None,
        from_pool=line.from_pool if whole else None,
        pools=line.pools if whole else (),
        overage=priced,
        shares=quantity if line.overage is None else None,
        unit_price=line.unit_price if quantity is not None else None,
        reason=entry.reason,
        exact=line.exact if amount == line.amount else Fraction(amount),
        amount=amount,
    )


def _line_as_a_whole(entry: NoteEntry, amount: Decimal) -> DocumentLine:
    assert entry.tax is not None  # noqa: S101 - checked before
    return DocumentLine(
        number=0,
        kind=DocumentLineKind.MANUAL,
        name="correction",
        reason=entry.reason,
        exact=Fraction(amount),
        amount=amount,
        tax_category=entry.tax[0],
        rate=entry.tax[1],
    )


def _by_rate(lines: Sequence[DocumentLine]) -> dict[TaxKey, Decimal]:
    bases: dict[TaxKey, list[Decimal]] = {}
    for line in lines:
        bases.setdefault(line.tax_key, []).append(line.amount)
    return {key: sum_of(amounts) for key, amounts in bases.items()}


def _reversed(left: Left, lines: Sequence[DocumentLine]) -> Iterator[TaxTotal]:
    """Take each rate's base and tax from what is left, and return them as the note's.

    The tax that stays is that of the base that stays: so parts sum to the whole.
    """
    for key, base in _by_rate(lines).items():
        if base < 0 <= left.rates[key].base and _is_as_a_whole(key, lines):
            yield _negated_total(_raised(left, key, -base))
        else:
            yield _lowered(left, key, base)


def _is_as_a_whole(key: TaxKey, lines: Sequence[DocumentLine]) -> bool:
    """Whether all that a note says of a rate is of the rate as a whole."""
    return all(line.corrects is None for line in lines if line.tax_key == key)


def _lowered(left: Left, key: TaxKey, base: Decimal) -> TaxTotal:
    """Take a base and its tax from what is left of a rate."""
    rate = left.rates[key]
    check_minor(base, left.bill.currency, "entries")
    stays = sum_of([rate.base, -base])
    _check_between(f"{key[0]} {key[1]} %", stays, rate.base, left.bill.currency)
    tax_stays = _clamped(_tax(left.bill, key, stays), rate.tax) if stays else _NOTHING
    tax = sum_of([rate.tax, -tax_stays])
    rate.base, rate.tax = stays, tax_stays
    return _total(left.bill, key, base, tax)


def _added(left: Left, lines: Sequence[DocumentLine]) -> Iterator[TaxTotal]:
    for key, base in _by_rate(lines).items():
        if base < 0 and _is_as_a_whole(key, lines):
            yield _negated_total(_lowered(left, key, -base))
        else:
            yield _raised(left, key, base)


def _raised(left: Left, key: TaxKey, base: Decimal) -> TaxTotal:
    """Add a base and its tax to what is left of a rate."""
    rate = left.rates[key]
    after = sum_of([rate.base, base])
    tax = sum_of([_tax(left.bill, key, after), -_tax(left.bill, key, rate.base)])
    rate.base, rate.tax = after, sum_of([rate.tax, tax])
    return _total(left.bill, key, base, tax)


def _negated_total(total: TaxTotal) -> TaxTotal:
    return replace(total, net=-total.net, tax=-total.tax)


def _tax(bill: Document, key: TaxKey, base: Decimal) -> Decimal:
    return rounded_tax(key[1], base, currency=bill.currency, inclusive=bill.prices_include_tax)


def _total(bill: Document, key: TaxKey, base: Decimal, tax: Decimal) -> TaxTotal:
    told = next(total for total in bill.taxes if total.key == key)
    net = sum_of([base, -tax]) if bill.prices_include_tax else base
    return replace(told, net=net, tax=tax)


def _clamped(amount: Decimal, whole: Decimal) -> Decimal:
    """Return an amount, or the nearest between nothing and a whole."""
    low, high = sorted((_NOTHING, whole))
    return max(low, min(amount, high))


def _check_between(name: str, stays: Decimal, before: Decimal, currency: str) -> None:
    low, high = sorted((_NOTHING, before))
    if not low <= stays <= high:
        raise _too_much(f"entries: {name}", sum_of([before, -stays]), before, currency)


def _too_much(name: str, taken: Decimal, left: Decimal, currency: str) -> InvalidValue:
    return InvalidValue(
        name, f"{taken} is not between 0 and the {left} {currency} that are left", "take less"
    )


def _note(
    bill: Document,
    kind: DocumentKind,
    lines: Sequence[DocumentLine],
    taxes: Sequence[TaxTotal],
    reason: str,
) -> Document:
    assert bill.number is not None  # noqa: S101 - checked when it was folded
    assert bill.issued is not None  # noqa: S101 - the same
    numbered = tuple(replace(line, number=number) for number, line in enumerate(lines, start=1))
    return replace(
        bill,
        kind=kind,
        state=DocumentState.DRAFT,
        number=None,
        series=None,
        issued=None,
        due=None,
        lines=numbered,
        taxes=tuple(taxes),
        totals=totals_of(numbered, taxes, prepaid=_NOTHING),
        corrects=DocumentReference(number=bill.number, issued=bill.issued),
        reason=reason,
    )


def _negated(note: Document) -> Document:
    """Return a credit note below 0 as the debit note that it is."""
    lines = tuple(
        replace(
            line,
            amount=-line.amount,
            exact=-line.exact,
            quantity=None if line.quantity is None else -line.quantity,
            in_bundle=None if line.in_bundle is None else -line.in_bundle,
            from_pool=None if line.from_pool is None else -line.from_pool,
            overage=None if line.overage is None else -line.overage,
            shares=None if line.shares is None else -line.shares,
        )
        for line in note.lines
    )
    taxes = tuple(_negated_total(total) for total in note.taxes)
    return replace(
        note,
        kind=DocumentKind.DEBIT_NOTE,
        lines=lines,
        taxes=taxes,
        totals=totals_of(lines, taxes, prepaid=_NOTHING),
    )
