"""What the provider says becomes what the account says: whatever comes, how often, in which order."""

import logging
from datetime import datetime
from decimal import Decimal

from metering.billing.pay import enter_payment, take_back
from metering.payments.provider import Facts, ProviderEvent
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
from metering.store.payments import NewPayment, payment_by_no
from metering.store.provider_refunds import refunded_by
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
    refunded = max(known.refunded, await refunded_by(connection, payment_no, "succeeded"))
    gone = min(refunded + known.disputed, payment.amount)
    missing = gone - payment.returned
    if missing > Decimal(0):
        kind = "reversal" if known.disputed else "refund"
        reason = "disputed at the buyer's bank" if known.disputed else "refunded at the provider"
        await take_back(connection, fleet, payment, missing, kind, reason, now=now)


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
        kind="payment.failed",
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
