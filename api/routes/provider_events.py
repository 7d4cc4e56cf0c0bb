"""What the payment provider tells: signed by it, taken once, in any order."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Request

from api import payment_schemas as schemas
from api.auth import open_transaction
from api.errors import ProblemError
from api.state import state_of
from metering.payments.provider import SignatureRefused
from metering.payments.reconcile import receive_event
from metering.payments.stripe import provider_of
from metering.store.payment_requests import tenant_of_payment
from metering.store.reach import speak_for_provider

router = APIRouter(prefix="/v1", tags=["payments"])

_OCTETS_MAX = 256 * 1024


@router.post("/payment-provider/events")
async def post_provider_event(
    request: Request,
    signature: Annotated[
        str,
        Header(
            alias="Stripe-Signature", max_length=2000, description="`t=…,v1=…`, by the provider"
        ),
    ] = "",
) -> schemas.EventTaken:
    """Take an event of the payment provider, which signs it; what does not matter here is let pass."""
    state = state_of(request)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _OCTETS_MAX:
            raise ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the event is too large")
    provider = provider_of(state.settings, None)
    now = state.now()
    try:
        event = provider.read_event(body, signature, now=now)
    except SignatureRefused as error:
        raise ProblemError(HTTPStatus.UNAUTHORIZED, str(error)) from error
    if event is None:
        return schemas.EventTaken(new=False)
    # Only now: who is not known holds no connection to the database.
    async with open_transaction(state) as connection:
        facts = event.facts
        tenant = await tenant_of_payment(
            connection, request_id=facts.request_id, intent_id=facts.intent_id
        )
        await speak_for_provider(connection, tenant)
        new = await receive_event(connection, event, now=now)
    return schemas.EventTaken(new=new)
