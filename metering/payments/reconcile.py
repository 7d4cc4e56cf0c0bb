"""What the provider says becomes what the account says: whatever comes, how often, in which order."""

import logging
from datetime import datetime
from decimal import Decimal

from metering.billing.pay import enter_payment, take_back
from metering.event_kinds import EventKind
from metering.payments.provider import Facts, ProviderEvent, RefundFailed
from metering.store.bills import lock_billing
from metering.store.connection import Connection
from metering.store.outbox import NewEvent, record_events
from metering.store.payment_requests import (
    PaymentRequest,
    ProviderPayment,
    add_facts,
    insert_provider_event,
    note_payment_of_intent,
    request_by_id,
    request_by_no,
    store_request,
)
from metering.store.payments import NewPayment, is_referred_to, payment_by_no
from metering.store.provider_refunds import (
    ProviderRefund,
    fail_made_refund,
    refund_by_id,
    refunds_made,
)
from metering.store.registry import Fleet, fleets_by_no

log = logging.getLogger(__name__)

METHOD = "provider"
"""The method of a payment that came by the provider."""


async def receive_event(connection: Connection, event: ProviderEvent, *, now: datetime) -> bool:
    """Take an event of the provider; return False, having done nothing, if it had come before."""
    async with connection.transaction():
        new = await insert_provider_event(
            connection, event.event_id, kind=event.kind, intent_id=event.facts.intent_id, now=now
        )
        if new:
            await take_facts(connection, event.facts, now=now)
        return new


async def take_facts(connection: Connection, facts: Facts, *, now: datetime) -> None:
    """Add what was said of an intent to what is known, and let the account follow.

    What the account does depends on all that is known, never on what came last. Until something names the
    request, it waits. The caller's transaction holds both.
    """
    failed: ProviderRefund | None = None
    if facts.refund_failed is not None:
        failed = await _refund_failed(connection, facts.refund_failed, now=now)
    request = facts.request_id and await request_by_id(connection, facts.request_id)
    if facts.request_id is not None and request is None:
        log.warning("intent %s names a request that is not known here", facts.intent_id)
        return
    known = await add_facts(
        connection,
        ProviderPayment(
            intent_id=facts.intent_id,
            request_no=request.request_no if request else None,
            currency=facts.currency,
            received=facts.received,
            refunded=facts.refunded,
            disputed=facts.disputed,
            failure=facts.failure,
            payment_no=None,
        ),
    )
    if known.request_no is None:
        return
    request = await request_by_no(connection, known.request_no)
    fleet = (await fleets_by_no(connection, [request.fleet_no]))[request.fleet_no]
    await lock_billing(connection, fleet.fleet_no)
    if known.currency != fleet.currency:
        # Nothing is converted: somebody has to look.
        problem = f"came in {known.currency}, the fleet's account is in {fleet.currency}"
        log.error("intent %s %s", known.intent_id, problem)
        await fail_request(connection, request, problem, intent_id=known.intent_id, now=now)
        return
    payment_no = known.payment_no
    if payment_no is None:
        payment_no = await _received(connection, fleet, request, known, now=now)
    if payment_no is not None:
        await _returned(connection, fleet, known, payment_no, now=now)
        if facts.dispute_won is not None:
            await _won(connection, fleet, known, payment_no, facts.dispute_won, now=now)
        if failed is not None and facts.refund_failed is not None:
            reference = facts.refund_failed.provider_id
            await _came_back(
                connection, fleet, payment_no, failed.amount, reference, pays=False, now=now
            )


async def _received(
    connection: Connection,
    fleet: Fleet,
    request: PaymentRequest,
    known: ProviderPayment,
    *,
    now: datetime,
) -> int | None:
    """Enter the payment, if it came; return its number."""
    if known.received > 0:
        payment = NewPayment(
            purpose=request.purpose,
            amount=known.received,
            currency=fleet.currency,
            method=METHOD,
            reference=known.intent_id,
            intent_id=known.intent_id,
            received_at=now,
        )
        number = await enter_payment(connection, fleet, payment, None, now=now)
        await note_payment_of_intent(connection, known.intent_id, number)
        await store_request(
            connection, request.request_no, state="succeeded", due_at=None,
            intent_id=known.intent_id, problem=None,
        )  # fmt: skip
        return number
    if known.failure is not None:
        await fail_request(connection, request, known.failure, intent_id=known.intent_id, now=now)
    else:
        await store_request(
            connection, request.request_no, state="asked", due_at=None,
            intent_id=known.intent_id, problem=None,
        )  # fmt: skip
    return None


async def _returned(
    connection: Connection, fleet: Fleet, known: ProviderPayment, payment_no: int, *, now: datetime
) -> None:
    """Take back what the provider gave back, or the buyer's bank disputes, and was not taken back yet."""
    payment = await payment_by_no(connection, fleet.tenant_no, payment_no)
    # What was asked for here and answered is gone, whether its event came or not.
    refunded = max(known.refunded, await refunds_made(connection, payment_no))
    gone = min(refunded + known.disputed, payment.amount)
    missing = gone - payment.returned
    if missing > Decimal(0):
        kind = "reversal" if known.disputed else "refund"
        reason = "disputed at the buyer's bank" if known.disputed else "refunded at the provider"
        await take_back(connection, fleet, payment, missing, kind, reason, now=now)


async def _refund_failed(
    connection: Connection, failed: RefundFailed, *, now: datetime
) -> ProviderRefund | None:
    """Note that a refund failed after the provider had taken it; return it, None: that was known.

    It counts as made: what it took, once the provider told of that, comes back as a payment.
    """
    refund = await refund_by_id(connection, failed.refund_id)
    if refund is None or (refund.state == "failed" and refund.provider_id is not None):
        return None
    await fail_made_refund(
        connection, refund.refund_no, provider_id=failed.provider_id, problem=failed.problem
    )
    if refund.state != "failed":
        await tell_refund_failed(connection, refund, failed.problem, now=now)
    return refund


async def _won(
    connection: Connection,
    fleet: Fleet,
    known: ProviderPayment,
    payment_no: int,
    dispute: str,
    *,
    now: datetime,
) -> None:
    """Enter what a dispute took that was won, once."""
    if await is_referred_to(connection, fleet.fleet_no, method=METHOD, reference=dispute):
        return
    payment = await payment_by_no(connection, fleet.tenant_no, payment_no)
    refunded = max(known.refunded, await refunds_made(connection, payment_no))
    taken = min(known.disputed, payment.returned - refunded)
    if taken > Decimal(0):
        await _came_back(connection, fleet, payment_no, taken, dispute, pays=True, now=now)


async def _came_back(
    connection: Connection,
    fleet: Fleet,
    payment_no: int,
    amount: Decimal,
    reference: str,
    *,
    pays: bool,
    now: datetime,
) -> None:
    """Enter money that had gone from a payment as one of its own; whether it `pays` bills at once."""
    before = await payment_by_no(connection, fleet.tenant_no, payment_no)
    payment = NewPayment(
        purpose=before.purpose,
        amount=amount,
        currency=fleet.currency,
        method=METHOD,
        reference=reference,
        received_at=now,
    )
    await enter_payment(connection, fleet, payment, None if pays else [], now=now)


async def tell_refund_failed(
    connection: Connection, refund: ProviderRefund, problem: str, *, now: datetime
) -> None:
    """Tell that nothing was given back."""
    event = NewEvent(
        tenant_no=refund.tenant_no,
        fleet_no=refund.fleet_no,
        device_no=None,
        kind=EventKind.REFUND_FAILED,
        payload={
            "refund_no": refund.refund_no,
            "payment_no": refund.payment_no,
            "amount": str(refund.amount),
            "currency": refund.currency,
            "problem": problem,
        },
        cause=f"refund:{refund.refund_no}",
    )
    await record_events(connection, [event], now=now)


async def fail_request(
    connection: Connection,
    request: PaymentRequest,
    problem: str,
    *,
    intent_id: str | None,
    now: datetime,
) -> None:
    """Note that a payment was not made, and tell it, once."""
    noted = await store_request(
        connection, request.request_no, state="failed", due_at=None, intent_id=intent_id,
        problem=problem,
    )  # fmt: skip
    if not noted:
        return
    event = NewEvent(
        tenant_no=request.tenant_no,
        fleet_no=request.fleet_no,
        device_no=None,
        kind=EventKind.PAYMENT_FAILED,
        payload={
            "request_no": request.request_no,
            "purpose": request.purpose,
            "amount": str(request.amount),
            "currency": request.currency,
            "problem": problem,
        },
        cause=f"request:{request.request_no}",
    )
    await record_events(connection, [event], now=now)
