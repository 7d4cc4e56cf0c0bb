"""Asking for a payment by hand: kept, then asked of the provider by the bill run. Once by its key."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from decimal import Decimal
from uuid import uuid4

from metering.billing.amounts import checked_amount, checked_currency
from metering.billing.once import once
from metering.store.bills import lock_billing
from metering.store.connection import Connection
from metering.store.payment_requests import (
    NewPaymentRequest,
    PaymentRequest,
    insert_request,
    request_by_no,
)
from metering.store.payments import Purpose
from metering.store.registry import Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A payment that somebody wants, from a customer's stored method at the provider."""

    purpose: Purpose
    amount: Decimal
    currency: str
    customer: str
    payment_method: str


async def request_payment(
    connection: Connection, *, fleet: Fleet, wanted: Wanted, key: str, now: datetime
) -> tuple[PaymentRequest, bool]:
    """Have the provider asked for a payment; return the request, and whether it was made before."""
    checked_currency(wanted.currency, fleet.currency)
    wanted = replace(wanted, amount=checked_amount(wanted.amount, fleet.currency))
    async with connection.transaction():
        await lock_billing(connection, fleet.fleet_no)

        async def do() -> Mapping[str, object]:
            request = NewPaymentRequest(
                request_id=uuid4(),
                tenant_no=fleet.tenant_no,
                fleet_no=fleet.fleet_no,
                cause=f"operator:{key}",
                **asdict(wanted),
            )
            return {"request_no": await insert_request(connection, request, now=now)}

        content: dict[str, object] = asdict(wanted) | {
            "amount": str(wanted.amount),
            "fleet_no": fleet.fleet_no,
        }
        done = await once(
            connection, fleet.tenant_no, key, ("payment_request", content), do, now=now
        )
        request = await request_by_no(connection, int(done.outcome["request_no"]))
        return request, done.repeated
