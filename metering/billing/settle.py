"""A final bill is paid, or, if that is taken back, no longer: a payment of what is open. Once by its key."""

from datetime import datetime

from metering.billing.once import once
from metering.billing.pay import Share, enter_payment, take_back
from metering.errors import Conflict
from metering.ids import TenantNo
from metering.store.bills import StoredBill, bill_by_no, own_bill
from metering.store.connection import Connection
from metering.store.payments import NewPayment, paid_from, payment_by_no, standing_of
from metering.store.registry import Fleet, fleets_by_no

METHOD = "settlement"
"""The method of a payment of which nothing is known but that the bill is paid."""


async def settle(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    bill_no: int,
    paid: bool,
    key: str,
    now: datetime,
) -> tuple[StoredBill, bool]:
    """Let a bill be paid or unpaid; return it, and whether that was said before under the key.

    Raises `Conflict` when it is neither finalised nor paid, or was paid otherwise than by this.
    """
    async with connection.transaction():
        bill = await own_bill(connection, tenant_no, bill_no)

        async def do() -> dict[str, object]:
            if bill.kind != "bill" or bill.state not in {"finalised", "paid"}:
                raise Conflict("bill_no", f"is {bill.state}", "name a bill that is finalised")
            fleet = (await fleets_by_no(connection, [bill.fleet_no]))[bill.fleet_no]
            if paid and bill.state == "finalised":
                await _pay(connection, fleet, bill, now=now)
            elif not paid and bill.state == "paid":
                await _unpay(connection, fleet, bill, now=now)
            return {"state": "paid" if paid else "finalised"}

        content: dict[str, object] = {"bill_no": bill_no, "paid": paid}
        done = await once(connection, tenant_no, key, ("pay", content), do, now=now)
        return await bill_by_no(connection, tenant_no, bill_no), done.repeated


async def _pay(connection: Connection, fleet: Fleet, bill: StoredBill, *, now: datetime) -> None:
    amount = (await standing_of(connection, fleet.fleet_no, bill.bill_no)).open
    payment = NewPayment(
        purpose="account",
        amount=amount,
        currency=fleet.currency,
        method=METHOD,
        reference=bill.name,
        received_at=now,
    )
    shares = [Share(bill_no=bill.bill_no, amount=amount)]
    await enter_payment(connection, fleet, payment, shares, now=now)


async def _unpay(connection: Connection, fleet: Fleet, bill: StoredBill, *, now: datetime) -> None:
    taken = False
    for lot in await paid_from(connection, bill.bill_no):
        if lot.payment_no is None:
            continue
        payment = await payment_by_no(connection, fleet.tenant_no, lot.payment_no)
        if payment.method == METHOD:
            left = payment.amount - payment.returned
            await take_back(connection, fleet, payment, left, "reversal", "not paid", now=now)
            taken = True
    if not taken:
        raise Conflict("bill_no", "was paid by payments", "take back the payment that bounced")
