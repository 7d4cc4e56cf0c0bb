"""Voiding a final bill: a full credit note takes it back, and a new draft may be made of the same cycle."""

from datetime import datetime

from metering.billing.account import return_credit
from metering.billing.give_note import NoteOrder, add_note, final_documents
from metering.billing.notes import all_left, left_of
from metering.billing.once import checked_text, once
from metering.errors import Conflict
from metering.ids import TenantNo
from metering.store.bills import (
    StoredBill,
    bill_by_no,
    bill_that_holds,
    disputes_of,
    insert_draft,
    own_bill,
    set_state,
)
from metering.store.closing import is_settled_by_notes, mark_changed_after_close
from metering.store.connection import Connection
from metering.store.registry import fleets_by_no, lock_shard
from metering.store.work import next_run_no


async def void(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    bill_no: int,
    reason: str,
    rebill: bool,
    key: str,
    now: datetime,
) -> tuple[StoredBill, int, int | None, bool]:
    """Void a bill; return it, the number of its note, that of the new draft, and whether it was before.

    What notes left of it is taken back by one more, also where that is nothing. A draft of the same frozen
    cycle is made if `rebill`; what notes on it settled of the cycle since it closed is owed again, and the
    next bill carries it. Raises `Conflict` when the bill is a draft or void, a dispute is open, or
    it was in the buyer's favour and what it brought is not there any more.
    """
    checked_text(reason, "reason")
    content: dict[str, object] = {"bill_no": bill_no, "reason": reason, "rebill": rebill}
    async with connection.transaction():
        fleet_no = (await bill_by_no(connection, tenant_no, bill_no, documents=False)).fleet_no
        fleet = (await fleets_by_no(connection, [fleet_no]))[fleet_no]
        await lock_shard(connection, fleet.shard_no)  # what its cycle owes may change
        bill = await own_bill(connection, tenant_no, bill_no)

        async def do() -> dict[str, object]:
            disputes = await disputes_of(connection, bill_no)
            if any(each.state == "open" for each in disputes):
                raise Conflict("bill_no", "has an open dispute", "resolve it first")
            billed, notes = await final_documents(connection, bill)
            order = NoteOrder(way="credit", entries=all_left(left_of(billed, notes)), reason=reason)
            note_no = await add_note(connection, bill, order, now=now)
            await return_credit(connection, fleet, bill_no, now=now)
            await set_state(connection, bill_no, "void", now=now)
            if await is_settled_by_notes(connection, bill_no):
                await next_run_no(connection)
                await mark_changed_after_close(connection, [(fleet_no, bill.cycle.start)])
            draft_no = None
            if rebill:
                draft_no = await insert_draft(
                    connection, tenant_no, (bill.fleet_no, bill.cycle.start), now=now
                )
            return {"note_no": note_no, "draft_no": draft_no}

        done = await once(connection, tenant_no, key, ("void", content), do, now=now)
        return (
            await bill_by_no(connection, tenant_no, bill_no),
            done.outcome["note_no"],
            done.outcome["draft_no"],
            done.repeated,
        )


async def rebill(
    connection: Connection, *, tenant_no: TenantNo, bill_no: int, now: datetime
) -> tuple[StoredBill, bool]:
    """Make a draft of a void bill's cycle; return it, and whether a bill held already: then it is that one.

    Raises `NotFound` for a bill that the tenant has not, and `Conflict` for one that is not void.
    """
    async with connection.transaction():
        bill = await own_bill(connection, tenant_no, bill_no)
        if bill.state != "void":
            raise Conflict("bill_no", f"is {bill.state}", "name a bill that is void")
        key = (bill.fleet_no, bill.cycle.start)
        holding = await bill_that_holds(connection, key)
        if holding is not None:
            return holding, True
        number = await insert_draft(connection, tenant_no, key, now=now)
        return await bill_by_no(connection, tenant_no, number), False
