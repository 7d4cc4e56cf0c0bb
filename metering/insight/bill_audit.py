"""The audit of bills: each is drawn up again from what was frozen, notes are held to what is left of it."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import fields, replace

from metering.billing.document import Document, DocumentState, document_of, packed_lines
from metering.billing.give_note import drawn_note, entries_of_json
from metering.billing.live_document import DrawnFrom, basis_of_json, draw_live
from metering.billing.notes import left_of
from metering.errors import InvalidValue
from metering.store.bill_audit import (
    final_bill_nos,
    last_adjustment,
    uncounted_numbers,
    undrafted_cycles,
    unequal_settlements,
)
from metering.store.bills import Dispute, StoredBill, bill_by_no, disputes_of, notes_of
from metering.store.connection import Connection
from metering.store.registry import Fleet


async def bill_differences(connection: Connection, fleet: Fleet) -> list[str]:
    """Return where a fleet's bills, notes and disputes are not what they must be."""
    differences = [
        f"cycle {first_day} is closed and has no bill"
        for first_day in await undrafted_cycles(connection, fleet.fleet_no)
    ]
    differences += [
        f"cycle {first_day} is settled by note {name} with {settled}, its lines come to {amount}"
        for first_day, name, settled, amount in await unequal_settlements(
            connection, fleet.fleet_no
        )
    ]
    for bill_no in await final_bill_nos(connection, fleet.fleet_no):
        bill = await bill_by_no(connection, fleet.tenant_no, bill_no)
        found: list[str] = []
        try:
            async for each in _of_bill(connection, fleet, bill):
                found.append(each)  # noqa: PERF401 - what was found before an error counts
        except InvalidValue as error:
            found.append(f"cannot be drawn up: {error}")
        differences += [f"bill {bill.name}: {each}" for each in found]
    return differences


async def number_differences(connection: Connection) -> list[str]:
    """Return which series of numbers have a gap, or count otherwise than their documents say."""
    return [
        f"tenant {tenant_id}: {count} documents are numbered in series {series} of {year or 'all years'},"
        f" the highest {highest}, the count is at {last}"
        for tenant_id, series, year, count, highest, last in await uncounted_numbers(connection)
    ]


async def _of_bill(connection: Connection, fleet: Fleet, bill: StoredBill) -> AsyncIterator[str]:
    """Hold a final bill, its notes and its disputes to what they must be."""
    assert bill.document is not None  # noqa: S101 - a draft has none, and is left out
    assert bill.drawn_from is not None  # noqa: S101 - the same
    document = document_of(bill.document)
    for each in _kept_otherwise(bill, document):
        yield each
    basis = basis_of_json(bill.drawn_from)
    drawn = await draw_live(connection, fleet, bill.cycle, basis)
    for each in _drawn_otherwise(document, _as_issued(drawn, document, basis)):
        yield each
    if bill.state != "void":
        entered = await last_adjustment(connection, fleet.fleet_no, bill.cycle.start)
        if entered > basis.adjusted_to:
            yield f"adjustment {entered} was entered since it is final"
    notes = await notes_of(connection, bill.bill_no)
    for each in _of_notes(bill, document, notes):
        yield each
    for dispute in await disputes_of(connection, bill.bill_no):
        for each in _of_dispute(document, dispute, notes):
            yield f"dispute {dispute.dispute_no} {each}"


def _of_notes(bill: StoredBill, document: Document, notes: Sequence[StoredBill]) -> Iterator[str]:
    """Hold each note to the earlier ones, and what all take to what the bill comes to."""
    given: list[Document] = []
    for note in notes:
        for each in _of_note(document, given, note):
            yield f"note {note.name} {each}"
        if note.document is not None:
            given.append(document_of(note.document))
    left = left_of(document, given).gross
    if (document.totals.gross >= 0 and left < 0) or (document.totals.gross <= 0 < left):
        yield f"its notes take more than it comes to: {left} is left"
    if bill.state == "void" and left:
        yield f"it is void, and {left} of it is left"


def _as_issued(drawn: Document, final: Document, basis: DrawnFrom | None) -> Document:
    """Return a document drawn up again as it would be final with the number and the day of another."""
    due = None
    if basis is not None and final.issued is not None:
        due = final.issued + basis.payment
    return replace(
        drawn,
        state=DocumentState.FINALISED,
        number=final.number,
        series=final.series,
        issued=final.issued,
        due=due,
    )


def _kept_otherwise(bill: StoredBill, document: Document) -> Iterator[str]:
    """Say where what is stored beside a document is not what it says."""
    for name, kept, told in (
        ("number", bill.name, document.number),
        ("kind", bill.kind, document.kind.value),
        ("series", bill.series, document.series),
        ("day", bill.issued, document.issued),
        ("due day", bill.due, document.due),
        ("currency", bill.currency, document.currency),
        ("gross", bill.gross, document.totals.gross),
        ("amount due", bill.owed, document.owed.due),
    ):
        if kept != told:
            yield f"its {name} is kept as {kept}, its document says {told}"


def _told_as(document: Document, again: Document) -> Document:
    """Return a document that is drawn up again without pools, where the kept one's release told of none."""
    if any(line.pools for line in document.lines):
        return again
    return replace(
        again,
        lines=packed_lines(replace(line, from_pool=None, pools=()) for line in again.lines),
    )


def _drawn_otherwise(document: Document, again: Document) -> Iterator[str]:
    if document == again or document == (again := _told_as(document, again)):
        return
    if document.lines != again.lines:
        for one, other in zip(document.lines, again.lines, strict=False):
            for each in fields(one):
                kept, due = getattr(one, each.name), getattr(other, each.name)
                if kept != due:
                    yield f"its line {one.number} says {each.name} {kept}, it must be {due}"
        if len(document.lines) != len(again.lines):
            yield f"it has {len(document.lines)} lines, it must have {len(again.lines)}"
    elif document.totals != again.totals or document.taxes != again.taxes:
        yield f"it comes to {document.totals.gross}, its lines and taxes to {again.totals.gross}"
    else:
        yield "it says otherwise who bills whom, for what period, or when it is due"


def _of_note(bill: Document, earlier: Sequence[Document], note: StoredBill) -> Iterator[str]:
    """Draw a note up again after the earlier ones."""
    if note.document is None or note.drawn_from is None:
        yield "has no document"
        return
    document = document_of(note.document)
    yield from _kept_otherwise(note, document)
    again = drawn_note(
        bill,
        earlier,
        note.drawn_from["way"],
        entries_of_json(note.drawn_from["entries"]),
        document.reason or "",
    )
    yield from _drawn_otherwise(document, _as_issued(again, document, None))


def _of_dispute(bill: Document, dispute: Dispute, notes: Sequence[StoredBill]) -> Iterator[str]:
    """Say where a dispute is about no line, or was granted by a note that is none of it."""
    if not 1 <= dispute.line <= len(bill.lines):
        yield f"is about line {dispute.line}, which is not there"
    if dispute.note_no is None:
        return
    for note in notes:
        if note.bill_no == dispute.note_no and note.document is not None:
            credited = [
                each.amount
                for each in document_of(note.document).lines
                if each.corrects == dispute.line
            ]
            if credited != [dispute.amount]:
                yield f"was granted {dispute.amount}, its note takes {credited}"
            return
    yield "was granted by a note of another bill"
