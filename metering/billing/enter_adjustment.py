"""A credit or debit that somebody enters, with a reason: on a draft, or on the next bill. Once by its key."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from metering.billing.draw_up import check_minor
from metering.billing.once import checked_text, once
from metering.errors import Conflict, InvalidValue
from metering.store.bills import (
    BillAdjustment,
    adjustment_by_no,
    bill_by_no,
    first_draft,
    insert_adjustment,
    lock_billing,
)
from metering.store.connection import Connection
from metering.store.registry import Fleet

AMOUNT_MAX = Decimal(10) ** 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is entered: a credit below 0 or a debit above, in the way that the plans state prices."""

    name: str
    amount: Decimal
    currency: str
    reason: str


async def enter_adjustment(
    connection: Connection,
    *,
    fleet: Fleet,
    bill_no: int | None,
    entry: Entry,
    key: str,
    now: datetime,
) -> tuple[BillAdjustment, bool]:
    """Enter a credit or debit into a draft; None: the fleet's first draft, or the next bill if none is.

    Returns it, and whether it was entered before. Raises `Conflict` when the bill is no draft, and
    `InvalidValue` for an amount of another currency, or finer than its minor unit.
    """
    checked_text(entry.name, "name")
    checked_text(entry.reason, "reason")
    if entry.currency != fleet.currency:
        raise InvalidValue(
            "currency", f"{entry.currency} is not the fleet's", f"use {fleet.currency}"
        )
    if not entry.amount or not entry.amount.is_finite() or abs(entry.amount) > AMOUNT_MAX:
        raise InvalidValue("amount", f"{entry.amount} is none", f"use up to {AMOUNT_MAX}, not 0")
    check_minor(entry.amount, entry.currency, "amount")

    async def do() -> dict[str, object]:
        if bill_no is None:
            draft = await first_draft(connection, fleet.fleet_no)
        else:
            draft = await bill_by_no(connection, fleet.tenant_no, bill_no)
            if draft.state != "draft":
                raise Conflict("bill_no", f"is {draft.state}", "issue a note, or enter it anew")
        number = await insert_adjustment(
            connection,
            fleet.tenant_no,
            fleet_no=fleet.fleet_no,
            name=entry.name,
            reason=entry.reason,
            amount=entry.amount,
            currency=entry.currency,
            billed_in=None if draft is None else draft.cycle.start,
            now=now,
        )
        return {"adjustment_no": number}

    content: dict[str, object] = {
        "fleet_no": fleet.fleet_no,
        "bill_no": bill_no,
        "name": entry.name,
        "amount": str(entry.amount),
        "currency": entry.currency,
        "reason": entry.reason,
    }
    async with connection.transaction():
        await lock_billing(connection, fleet.fleet_no)
        done = await once(connection, fleet.tenant_no, key, ("adjust", content), do, now=now)
        number = int(done.outcome["adjustment_no"])
        return await adjustment_by_no(connection, fleet.tenant_no, number), done.repeated
