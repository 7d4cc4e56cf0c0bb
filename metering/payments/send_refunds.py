"""Having the provider give money back: a refund is asked for again by its one key until it is answered."""

from datetime import datetime, timedelta
from random import Random

from metering.payments.ask_provider import (
    ASKED_HOURS_MAX,
    NO_PROVIDER,
    SPARE_SECONDS,
    UNANSWERED_MAX,
    again_at,
)
from metering.payments.provider import (
    Facts,
    PaymentProvider,
    RefundAnswer,
    Refunded,
    RefundOrder,
    Refused,
    Unanswered,
)
from metering.payments.reconcile import take_facts, tell_refund_failed
from metering.settings import Settings
from metering.store.connection import Connection
from metering.store.payment_requests import refunded_of_intent
from metering.store.payments import payment_by_no
from metering.store.provider_refunds import (
    ProviderRefund,
    claim_refund,
    refunds_made,
    store_refund,
)


async def send_due_refunds(
    connection: Connection,
    provider: PaymentProvider | None,
    settings: Settings,
    *,
    now: datetime,
    random: Random,
) -> int:
    """Ask for the refunds that are due, as `ask_due` asks for payments; return how many those were.

    The account gives the money when the provider says that it does; its event later says the same. With no
    provider, what was never asked for fails at once: it would hold back the money for nothing.
    """
    asked = unanswered = 0
    while unanswered < UNANSWERED_MAX:
        left_alone = timedelta(seconds=settings.payment_timeout_seconds + SPARE_SECONDS)
        async with connection.transaction():
            refund = await claim_refund(connection, now=now, until=now + left_alone)
            if refund is None:
                break
            was_asked = refund.attempts > 1
            if (
                was_asked
                and _too_old(refund, now)
                and await _is_known_to_be_made(connection, refund)
            ):
                await store_refund(connection, refund.refund_no, state="succeeded")
                continue
            problem = await _obstacle(connection, refund, now)
            if provider is None and not was_asked:
                problem = NO_PROVIDER
            if problem is not None:
                await _fail(connection, refund, problem, now=now)
                continue
        answer = await _answer(provider, refund)
        asked += 1
        async with connection.transaction():
            match answer:
                case Refunded(provider_id=provider_id):
                    await store_refund(
                        connection, refund.refund_no, state="succeeded", provider_id=provider_id
                    )
                    facts = Facts(
                        intent_id=refund.intent_id, request_id=None, currency=refund.currency
                    )
                    await take_facts(connection, facts, now=now)
                case Refused(problem=problem):
                    await _fail(connection, refund, problem, now=now)
                case Unanswered(problem=problem):
                    unanswered += 1
                    again = again_at(refund.attempts, settings, now=now, random=random)
                    await store_refund(
                        connection, refund.refund_no, state="queued", due_at=again, problem=problem
                    )
    return asked


async def _answer(provider: PaymentProvider | None, refund: ProviderRefund) -> RefundAnswer:
    if provider is None:
        return Unanswered(problem=NO_PROVIDER)
    order = RefundOrder(
        refund_id=refund.refund_id,
        intent_id=refund.intent_id,
        amount=refund.amount,
        currency=refund.currency,
    )
    return await provider.refund(order)


def _too_old(refund: ProviderRefund, now: datetime) -> bool:
    return now - refund.created_at > timedelta(hours=ASKED_HOURS_MAX)


async def _is_known_to_be_made(connection: Connection, refund: ProviderRefund) -> bool:
    """Whether the provider told that so much went back, beside the refunds that it answered."""
    answered = await refunds_made(connection, refund.payment_no)
    return await refunded_of_intent(connection, refund.intent_id) - answered >= refund.amount


async def _obstacle(connection: Connection, refund: ProviderRefund, now: datetime) -> str | None:
    """Return why a refund is not asked for; None: it is.

    What was asked for before may have been made, and taken from the account by the event that told it: what
    is left of the payment says nothing then, and the key alone tells.
    """
    if _too_old(refund, now):
        return refund.problem or "nobody was there to ask for it"
    if refund.attempts > 1:
        return None
    payment = await payment_by_no(connection, refund.tenant_no, refund.payment_no)
    left = payment.amount - payment.returned
    return None if refund.amount <= left else f"only {left} of the payment is left"


async def _fail(
    connection: Connection, refund: ProviderRefund, problem: str, *, now: datetime
) -> None:
    """Note that nothing was given back, and tell it, once."""
    if await store_refund(connection, refund.refund_no, state="failed", problem=problem):
        await tell_refund_failed(connection, refund, problem, now=now)
