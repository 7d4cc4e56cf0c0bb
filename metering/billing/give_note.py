"""Credit and debit notes of a bill that is final: each takes a number, and never takes more than is left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any, Literal

from pydantic import TypeAdapter

from metering.billing.account import enter_note
from metering.billing.document import Document, document_of
from metering.billing.issue import issue
from metering.billing.live_document import settings_of
from metering.billing.notes import (
    NoteEntry,
    credit_note,
    debit_note,
    left_of,
    share_left,
)
from metering.billing.once import checked_text, once
from metering.errors import Conflict, InvalidValue
from metering.event_kinds import EventKind
from metering.ids import TenantNo
from metering.store.bills import StoredBill, bill_by_no, insert_note, notes_of, own_bill
from metering.store.connection import Connection
from metering.store.outbox import NewEvent, record_events
from metering.store.registry import fleets_by_no

Way = Literal["credit", "debit"]

_ENTRIES = TypeAdapter(tuple[NoteEntry, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteOrder:
    """What a note is to take from a bill, or to add: entries, or (a credit alone) a share of what is left."""

    way: Way
    entries: Sequence[NoteEntry] = ()
    share: Fraction | None = None
    reason: str


async def give_note(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    bill_no: int,
    order: NoteOrder,
    key: str,
    now: datetime,
) -> tuple[StoredBill, bool]:
    """Give a note on a final bill; return it, and whether it was given before under the key.

    Raises `Conflict` when the bill is a draft, void, or a note, and `InvalidValue` when more is taken
    than is left.
    """
    checked_text(order.reason, "reason")
    content: dict[str, object] = {
        "bill_no": bill_no,
        "way": order.way,
        "entries": json_of_entries(order.entries),
        "share": None if order.share is None else str(order.share),
        "reason": order.reason,
    }
    async with connection.transaction():
        bill = await own_bill(connection, tenant_no, bill_no)

        async def do() -> dict[str, object]:
            return {"note_no": await add_note(connection, bill, order, now=now)}

        done = await once(connection, tenant_no, key, ("note", content), do, now=now)
        note = await bill_by_no(connection, tenant_no, int(done.outcome["note_no"]))
        return note, done.repeated


async def add_note(
    connection: Connection, bill: StoredBill, order: NoteOrder, *, now: datetime
) -> int:
    """Give a note on a bill; return its number. The caller's transaction owns the fleet's bills."""
    billed, notes = await final_documents(connection, bill)
    entries = list(order.entries)
    if order.share is not None:
        entries = share_left(left_of(billed, notes), order.share)
        if not entries:
            raise InvalidValue("share", "takes nothing of what is left", "give no note")
    draft = drawn_note(billed, notes, order.way, entries, order.reason)
    final, issued = await issue(
        connection,
        bill.tenant_no,
        draft,
        await settings_of(connection, bill.tenant_no),
        drawn_from={"way": order.way, "entries": json_of_entries(entries)},
        payment=None,
        now=now,
    )
    number = await insert_note(connection, bill, final.kind.value, issued, now=now)
    fleet = (await fleets_by_no(connection, [bill.fleet_no]))[bill.fleet_no]
    note = await bill_by_no(connection, bill.tenant_no, number)
    await enter_note(connection, fleet, note, now=now)
    event = NewEvent(
        tenant_no=bill.tenant_no,
        fleet_no=bill.fleet_no,
        device_no=None,
        kind=EventKind(f"{final.kind.value}.issued"),
        payload={"note_no": number, "number": issued.name, "bill_no": bill.bill_no,
                 "gross": str(issued.gross)},
        cause=f"bill:{number}",
    )  # fmt: skip
    await record_events(connection, [event], now=now)
    return number


def drawn_note(
    billed: Document,
    notes: Sequence[Document],
    way: Way,
    entries: Sequence[NoteEntry],
    reason: str,
) -> Document:
    """Draw up a note's draft after earlier ones."""
    draw = credit_note if way == "credit" else debit_note
    return draw(billed, notes, entries, reason=reason)


async def final_documents(
    connection: Connection, bill: StoredBill
) -> tuple[Document, list[Document]]:
    """Return a final bill's document and those of its notes, in order; raise `Conflict` if it is none."""
    if bill.kind != "bill" or bill.document is None or bill.state == "void":
        what = "a note" if bill.kind != "bill" else bill.state
        raise Conflict("bill_no", f"is {what}", "name a bill that is finalised or paid")
    notes = await notes_of(connection, bill.bill_no)
    return document_of(bill.document), [
        document_of(each.document) for each in notes if each.document is not None
    ]


def json_of_entries(entries: Sequence[NoteEntry]) -> list[dict[str, Any]]:
    """Return entries of a note as JSON that loses nothing."""
    told: list[dict[str, Any]] = _ENTRIES.dump_python(
        tuple(entries), mode="json", exclude_defaults=True
    )
    return list(told)


def entries_of_json(told: Sequence[Mapping[str, Any]]) -> tuple[NoteEntry, ...]:
    """Return what `json_of_entries` told."""
    return _ENTRIES.validate_python(list(told))
