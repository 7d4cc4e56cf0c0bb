"""Disputes: open on a line of a final bill, which holds its amount, until it is resolved with a reason."""

from datetime import datetime
from decimal import Decimal

from metering.billing.give_note import NoteOrder, add_note, final_documents
from metering.billing.notes import NoteEntry, credit_note, left_of
from metering.billing.once import checked_text, once
from metering.errors import Conflict, InvalidValue
from metering.ids import TenantNo
from metering.store.bills import (
    Dispute,
    StoredBill,
    dispute_by_no,
    disputes_of,
    end_dispute,
    insert_dispute,
    notes_of,
    own_bill,
)
from metering.store.connection import Connection


async def open_dispute(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    bill_no: int,
    line: int,
    amount: Decimal | None,
    reason: str,
    key: str,
    now: datetime,
) -> tuple[Dispute, bool]:
    """Open a dispute on a line: what of its amount (None: all that is left) is not to be paid now.

    Returns it, and whether it was opened before under the key. Raises `Conflict` when one is open on the
    line already, or the bill is not final, and `InvalidValue` when the line has not so much left.
    """
    checked_text(reason, "reason")
    async with connection.transaction():
        bill = await own_bill(connection, tenant_no, bill_no)

        async def do() -> dict[str, object]:
            billed, notes = await final_documents(connection, bill)
            left = left_of(billed, notes).of_line(line)
            if any(
                e.line == line and e.state == "open" for e in await disputes_of(connection, bill_no)
            ):
                raise Conflict("line", "has an open dispute", "resolve that first")
            if left <= 0:
                raise InvalidValue("line", "has nothing left to pay", "name another line")
            entry = NoteEntry(line=line, amount=None if amount == left else amount)
            note = credit_note(billed, notes, [entry], reason=reason)
            number = await insert_dispute(
                connection,
                tenant_no,
                bill_no=bill_no,
                line=line,
                amount=left if amount is None else amount,
                held=note.totals.gross,
                reason=reason,
                now=now,
            )
            return {"dispute_no": number}

        content: dict[str, object] = {
            "bill_no": bill_no,
            "line": line,
            "amount": None if amount is None else str(amount),
            "reason": reason,
        }
        done = await once(connection, tenant_no, key, ("dispute", content), do, now=now)
        number = int(done.outcome["dispute_no"])
        return await dispute_by_no(connection, tenant_no, number), done.repeated


async def resolve_dispute(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    dispute_no: int,
    granted: bool,
    resolution: str,
    key: str,
    now: datetime,
) -> tuple[Dispute, bool]:
    """Resolve a dispute: what was held is to be paid again, or a credit note takes it off if `granted`.

    Raises `Conflict` when it is resolved already, and `InvalidValue` when notes left less than is disputed.
    """
    checked_text(resolution, "resolution")
    about = await dispute_by_no(connection, tenant_no, dispute_no)
    async with connection.transaction():
        bill = await own_bill(connection, tenant_no, about.bill_no)
        dispute = await dispute_by_no(connection, tenant_no, dispute_no)

        async def do() -> dict[str, object]:
            if dispute.state != "open":
                raise Conflict("dispute_no", f"is {dispute.state}", "open another dispute")
            note_no = None
            if granted:
                entry = NoteEntry(line=dispute.line, amount=dispute.amount, reason=dispute.reason)
                order = NoteOrder(way="credit", entries=[entry], reason=resolution)
                note_no = await add_note(connection, bill, order, now=now)
            await end_dispute(
                connection,
                dispute_no,
                state="granted" if granted else "refused",
                resolution=resolution,
                note_no=note_no,
                now=now,
            )
            return {"note_no": note_no}

        content: dict[str, object] = {
            "dispute_no": dispute_no,
            "granted": granted,
            "resolution": resolution,
        }
        done = await once(connection, tenant_no, key, ("resolve", content), do, now=now)
        return await dispute_by_no(connection, tenant_no, dispute_no), done.repeated


async def payable(connection: Connection, bill: StoredBill) -> tuple[Decimal, Decimal]:
    """Return what of a final bill is to be paid now, and what open disputes hold of it.

    Its amount due with what notes took off or added, less what is held; nothing once it is paid or void.
    """
    if bill.owed is None or bill.kind != "bill" or bill.state in {"paid", "void"}:
        return Decimal(0), Decimal(0)
    notes = await notes_of(connection, bill.bill_no)
    owed = sum((each.owed for each in notes if each.owed is not None), bill.owed)
    disputes = await disputes_of(connection, bill.bill_no)
    held = sum((each.held for each in disputes if each.state == "open"), Decimal(0))
    return owed - held, held
