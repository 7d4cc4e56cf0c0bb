"""A final bill is paid, or, when its payment is taken back, no longer. Once by its key."""

from datetime import datetime

from metering.billing.once import once
from metering.errors import Conflict
from metering.ids import TenantNo
from metering.store.bills import StoredBill, bill_by_no, own_bill, set_state
from metering.store.connection import Connection


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

    Raises `Conflict` when it is neither finalised nor paid.
    """
    state = "paid" if paid else "finalised"
    async with connection.transaction():
        bill = await own_bill(connection, tenant_no, bill_no)

        async def do() -> dict[str, object]:
            if bill.kind != "bill" or bill.state not in {"finalised", "paid"}:
                raise Conflict("bill_no", f"is {bill.state}", "name a bill that is finalised")
            if bill.state != state:
                await set_state(connection, bill_no, state, now=now)
            return {"state": state}

        content: dict[str, object] = {"bill_no": bill_no, "paid": paid}
        done = await once(connection, tenant_no, key, ("pay", content), do, now=now)
        return await bill_by_no(connection, tenant_no, bill_no), done.repeated
