"""What the provider says becomes what the account says: whatever comes, how often, in which order."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from uuid import UUID, uuid5

from metering.billing.account import oldest_first
from metering.billing.pay import Share, enter_payment, take_back
from metering.errors import Conflict
from metering.event_kinds import EventKind
from metering.payments.provider import Facts, ProviderEvent, RefundTold
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
    tenant_of_payment,
)
from metering.store.payments import (
    Lot,
    NewPayment,
    Payment,
    Purpose,
    is_referred_to,
    payment_by_no,
    released_of,
    unpaid_bills,
)
from metering.store.provider_refunds import (
    MADE_THERE,
    NewRefund,
    ProviderRefund,
    came_back_of,
    fail_made_refund,
    insert_made_refund,
    note_made_refund,
    refund_by_id,
    refunds_made,
)
from metering.store.registry import Fleet, fleets_by_no

log = logging.getLogger(__name__)

METHOD = "provider"
"""The method of a payment that came by the provider."""
_NOTHING = Decimal(0)
_REFUNDS_THERE = UUID("6f6f1c0e-6d0b-4f0e-9c43-0c5c5d3a7b52")
"""Refunds that were made at the provider have their keys in this namespace, by what it calls them."""


async def receive_event(connection: Connection, event: ProviderEvent, *, now: datetime) -> bool:
    """Take an event of the provider; return False, having done nothing, if it had come before.

    Nothing is done either for a refund of a payment that is not known here. Raises `Conflict` for one of a
    payment that is asked for and has not come yet: the provider sends it again.
    """
    facts = event.facts
    async with connection.transaction():
        if facts.refund is not None and not await tenant_of_payment(
            connection, request_id=None, intent_id=facts.intent_id
        ):
            return False
        new = await insert_provider_event(
            connection, event.event_id, kind=event.kind, intent_id=facts.intent_id, now=now
        )
        if new:
            await take_facts(connection, facts, now=now)
        return new


async def take_facts(connection: Connection, facts: Facts, *, now: datetime) -> None:
    """Add what was said of an intent to what is known, and let the account follow.

    What the account does depends on all that is known, never on what came last. Until something names the
    request, it waits. The caller's transaction holds both.
    """
    refund: ProviderRefund | None = None
    if facts.refund is not None and facts.refund.refund_id is not None:
        # Owned first, as whoever asks for it does.
        refund = await refund_by_id(connection, facts.refund.refund_id)
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
    await _follow(connection, fleet, known, payment_no, facts, refund, now=now)


async def _follow(  # noqa: PLR0917 - whose payment, and what is known and said of it
    connection: Connection,
    fleet: Fleet,
    known: ProviderPayment,
    payment_no: int | None,
    facts: Facts,
    refund: ProviderRefund | None,
    *,
    now: datetime,
) -> None:
    """Let a payment's account follow what is known, and refunds what was said of one."""
    if payment_no is None:
        if facts.refund is not None:
            raise Conflict("payment_intent", "has not come yet", "send this again after it came")
        return
    failed = False
    if facts.refund is not None:
        if refund is None:
            refund = await refund_by_id(connection, _key_of(facts.refund)) or await _made_there(
                connection, fleet, payment_no, facts, now=now
            )
        failed = await _follow_refund(connection, refund, facts.refund, now=now)
    await _returned(connection, fleet, known, payment_no, now=now)
    if facts.dispute_won is not None:
        await _won(connection, fleet, known, payment_no, facts.dispute_won, now=now)
    if failed and refund is not None and facts.refund is not None:
        reference = facts.refund.provider_id
        shares = await _lost_by(connection, fleet, refund)
        await _came_back(connection, fleet, payment_no, refund.amount, reference, shares, now=now)


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
    missing = await _refunded(connection, known, payment_no) + known.disputed
    payments = await _with_what_came_back(connection, fleet, payment_no)
    missing -= sum((each.returned for each in payments), _NOTHING)
    kind = "reversal" if known.disputed else "refund"
    reason = "disputed at the buyer's bank" if known.disputed else "refunded at the provider"
    for payment in payments:
        taken = min(missing, payment.amount - payment.returned)
        if taken > _NOTHING:
            await take_back(connection, fleet, payment, taken, kind, reason, now=now)
            missing -= taken


async def _refunded(connection: Connection, known: ProviderPayment, payment_no: int) -> Decimal:
    """Return what was refunded of an intent, with what failed later.

    What was asked for here and answered is gone, whether its event came or not.
    """
    return max(known.refunded, await refunds_made(connection, payment_no))


async def _with_what_came_back(
    connection: Connection, fleet: Fleet, payment_no: int
) -> list[Payment]:
    """Return a payment, and those that refunds of it which failed became: both may be refunded."""
    numbers = [payment_no, *await came_back_of(connection, fleet.fleet_no, payment_no)]
    return [await payment_by_no(connection, fleet.tenant_no, each) for each in numbers]


def _key_of(told: RefundTold) -> UUID:
    return told.refund_id or uuid5(_REFUNDS_THERE, told.provider_id)


async def _made_there(
    connection: Connection, fleet: Fleet, payment_no: int, facts: Facts, *, now: datetime
) -> ProviderRefund:
    """Keep a refund that nobody asked for here."""
    assert facts.refund is not None  # noqa: S101 - the caller looked
    refund = NewRefund(
        refund_id=_key_of(facts.refund), tenant_no=fleet.tenant_no, fleet_no=fleet.fleet_no,
        payment_no=payment_no, intent_id=facts.intent_id, amount=facts.refund.amount,
        currency=fleet.currency, reason=MADE_THERE,
    )  # fmt: skip
    return await insert_made_refund(
        connection, refund, provider_id=facts.refund.provider_id, now=now
    )


async def _follow_refund(
    connection: Connection, refund: ProviderRefund, told: RefundTold, *, now: datetime
) -> bool:
    """Note that a refund was made, or failed after that; return whether the latter is new.

    One that failed counts as made: what it took comes back as a payment.
    """
    if told.problem is None:
        await note_made_refund(connection, refund.refund_no, provider_id=told.provider_id)
        return False
    if refund.state == "failed" and refund.provider_id is not None:
        return False
    await fail_made_refund(
        connection, refund.refund_no, provider_id=told.provider_id, problem=told.problem
    )
    if refund.state != "failed":
        await tell_refund_failed(connection, refund, told.problem, now=now)
    return True


async def _lost_by(connection: Connection, fleet: Fleet, refund: ProviderRefund) -> list[Share]:
    """Return what of a refund is to pay again what its payment paid before.

    What was asked for here was free: it pays nothing, as before. What was made at the provider may have
    been taken from bills.
    """
    if refund.reason != MADE_THERE:
        return []
    released = await released_of(connection, refund.payment_no)
    bills = [
        replace(bill, open=min(bill.open, bill.held + released.get(bill.bill_no, _NOTHING)))
        for bill in await unpaid_bills(connection, fleet.fleet_no)
    ]
    lot = Lot(pocket="credit", payment_no=refund.payment_no, amount=refund.amount)
    return [
        Share(bill_no=bill_no, amount=part.amount) for bill_no, part in oldest_first([lot], bills)
    ]


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
    refunded = await _refunded(connection, known, payment_no)
    payments = await _with_what_came_back(connection, fleet, payment_no)
    returned = sum((each.returned for each in payments), _NOTHING)
    taken = min(known.disputed, returned - refunded)
    if taken > _NOTHING:
        await _came_back(connection, fleet, payment_no, taken, dispute, None, now=now)


async def _came_back(  # noqa: PLR0917 - how much of what came back, and what for
    connection: Connection,
    fleet: Fleet,
    payment_no: int,
    amount: Decimal,
    reference: str,
    shares: Sequence[Share] | None,
    *,
    now: datetime,
) -> None:
    """Enter money that had gone from a payment as one of its own, which pays `shares`; None: what is open.

    The wallet pays bills as they become final, never later: what is to pay one again does not go through it.
    """
    before = await payment_by_no(connection, fleet.tenant_no, payment_no)
    paying = sum((share.amount for share in shares or ()), _NOTHING)
    parts: list[tuple[Purpose, Decimal, Sequence[Share] | None]] = [("account", amount, shares)]
    if before.purpose == "wallet":
        parts = [("account", paying, shares), ("wallet", amount - paying, None)]
    for purpose, part, paid in parts:
        if part > _NOTHING:
            payment = NewPayment(
                purpose=purpose,
                amount=part,
                currency=fleet.currency,
                method=METHOD,
                reference=reference,
                received_at=now,
            )
            await enter_payment(connection, fleet, payment, paid, now=now)


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
