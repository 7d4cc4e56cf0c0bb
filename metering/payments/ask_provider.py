"""Asking the provider for payments: a request is asked again by its one key until it is answered."""

from dataclasses import replace
from datetime import datetime, timedelta
from random import Random

from metering.payments.provider import (
    Answer,
    Asked,
    PaymentOrder,
    PaymentProvider,
    Refused,
    Unanswered,
)
from metering.payments.reconcile import fail_request, take_facts
from metering.settings import Settings
from metering.store.connection import Connection
from metering.store.payment_requests import PaymentRequest, claim_request, store_request

ASKED_HOURS_MAX = 20
"""A provider forgets an idempotency key after a day: asked by it later, it would take the money again."""
NO_PROVIDER = "no payment provider is set up"
SPARE_SECONDS = 10.0
"""How much longer than the time-out somebody else leaves a request alone."""
UNANSWERED_MAX = 3
"""After so many without an answer, the others wait for the next look: each may take the whole time-out."""


async def ask_due(
    connection: Connection,
    provider: PaymentProvider | None,
    settings: Settings,
    *,
    now: datetime,
    random: Random,
) -> int:
    """Ask for what is due; return how many requests that was.

    A provider that does not answer is left alone until the next look. No transaction is open while it is
    asked. A request whose asker died is asked again, by the same key. With no provider, what was never asked
    for fails at once: it would be asked for whenever there is one, up to 20 hours later.
    """
    asked = unanswered = 0
    while unanswered < UNANSWERED_MAX:
        left_alone = timedelta(seconds=settings.payment_timeout_seconds + SPARE_SECONDS)
        async with connection.transaction():
            request = await claim_request(connection, now=now, until=now + left_alone)
            if request is None:
                break
            if _too_old(request, now):
                problem = request.problem or "nobody was there to ask for it"
                await fail_request(connection, request, problem, intent_id=None, now=now)
                continue
            if provider is None and request.attempts == 1:
                await fail_request(connection, request, NO_PROVIDER, intent_id=None, now=now)
                continue
        answer = await _answer(provider, request)
        asked += 1
        unanswered += isinstance(answer, Unanswered)
        again = again_at(request.attempts, settings, now=now, random=random)
        async with connection.transaction():
            await _take_answer(connection, request, answer, again=again, now=now)
    return asked


async def _answer(provider: PaymentProvider | None, request: PaymentRequest) -> Answer:
    if provider is None:
        return Unanswered(problem=NO_PROVIDER)
    return await provider.request_payment(
        PaymentOrder(
            request_id=request.request_id,
            amount=request.amount,
            currency=request.currency,
            customer=request.customer,
            payment_method=request.payment_method,
        )
    )


async def _take_answer(
    connection: Connection,
    request: PaymentRequest,
    answer: Answer,
    *,
    again: datetime,
    now: datetime,
) -> None:
    match answer:
        case Asked(facts=facts):
            named = replace(facts, request_id=request.request_id)
            await take_facts(connection, named, now=now)
        case Refused(problem=problem):
            await fail_request(connection, request, problem, intent_id=None, now=now)
        case Unanswered(problem=problem):
            await store_request(
                connection, request.request_no, state="queued", due_at=again, intent_id=None,
                problem=problem,
            )  # fmt: skip


def _too_old(request: PaymentRequest, now: datetime) -> bool:
    return now - request.created_at > timedelta(hours=ASKED_HOURS_MAX)


def again_at(attempts: int, settings: Settings, *, now: datetime, random: Random) -> datetime:
    """Return when what was not answered is asked again: after a wait that doubles, up to an hour."""
    seconds = min(settings.payment_retry_seconds * (1 << min(attempts - 1, 20)), 3600.0)
    return now + timedelta(seconds=seconds * (0.5 + random.random() / 2))
