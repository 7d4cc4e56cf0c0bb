"""Stripe as the payment provider: payment intents, and signed events (Stripe API reference, 2024-06-20)."""

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

import httpx
import msgspec

from metering.errors import InvalidValue
from metering.money import minor_digits
from metering.payments.provider import (
    Answer,
    Asked,
    Facts,
    PaymentOrder,
    ProviderEvent,
    RefundAnswer,
    Refunded,
    RefundOrder,
    RefundTold,
    Refused,
    SignatureRefused,
    Unanswered,
)
from metering.settings import Settings

VERSION = "2024-06-20"
TOLERANCE_SECONDS = 300
"""A signature that is older, or further ahead, is refused: it may be a recorded one."""
REQUEST = "fleetmeter_request"
"""The field of an intent's metadata that names the request; charges of the intent have it, too."""
REFUND = "fleetmeter_refund"
"""The field of a refund's metadata that names it here."""
_Read = TypeVar("_Read")

_DIGITS = {"ISK": 2, "UGX": 2, "MGA": 0}
"""Currencies whose amounts have other digits there than in ISO 4217."""
_TRY_AGAIN = {401, 403, 408, 409, 429}
"""Answers that say nothing of the order: a bad key, the same order still under way, too many at once."""
_OF_DISPUTE = {"charge.dispute.created", "charge.dispute.closed"}
_WON = {"won", "warning_closed"}
"""How a dispute ends that leaves the seller the money."""
_OF_REFUND = {"charge.refund.updated", "refund.created", "refund.updated", "refund.failed"}
"""Of one refund; which of them is sent depends on the version."""
_REFUND_FAILED = {"failed", "canceled"}
_KINDS = {
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "charge.refunded",
    *_OF_DISPUTE,
    *_OF_REFUND,
}
_PROBLEM_CHARACTERS_MAX = 300


class Stripe:
    """A Stripe account; its keys come from the settings."""

    def __init__(
        self, client: httpx.AsyncClient | None, *, secret: str | None, webhook_secret: str | None
    ) -> None:
        self._client = client
        self._secret = secret
        self._webhook_secret = webhook_secret

    async def request_payment(self, order: PaymentOrder) -> Answer:
        """Create and confirm a payment intent, off session, by the order's id as idempotency key."""
        form = {
            "amount": str(minor_amount(order.amount, order.currency)),
            "currency": order.currency.lower(),
            "customer": order.customer,
            "payment_method": order.payment_method,
            "off_session": "true",
            "confirm": "true",
            # Nobody is there to be sent elsewhere; without this it asks for an address to return to.
            "automatic_payment_methods[enabled]": "true",
            "automatic_payment_methods[allow_redirects]": "never",
            f"metadata[{REQUEST}]": str(order.request_id),
        }
        return await self._posted("/v1/payment_intents", form, order.request_id, _answer)

    async def refund(self, order: RefundOrder) -> RefundAnswer:
        """Create a refund of a payment intent, by the order's id as idempotency key."""
        form = {
            "payment_intent": order.intent_id,
            "amount": str(minor_amount(order.amount, order.currency)),
            f"metadata[{REFUND}]": str(order.refund_id),
        }
        return await self._posted("/v1/refunds", form, order.refund_id, _refund_answer)

    async def _posted(
        self,
        path: str,
        form: Mapping[str, str],
        key: UUID,
        read: Callable[[httpx.Response], _Read],
    ) -> _Read | Unanswered:
        if self._client is None or self._secret is None:
            return Unanswered(problem="no payment provider is set up")
        headers = {
            "Authorization": f"Bearer {self._secret}",
            "Idempotency-Key": str(key),
            "Stripe-Version": VERSION,
        }
        try:
            return read(await self._client.post(path, data=form, headers=headers))
        except httpx.HTTPError as error:
            return Unanswered(problem=_short(f"{type(error).__name__}: {error}"))
        except (msgspec.DecodeError, InvalidValue, UnicodeDecodeError) as error:
            return Unanswered(problem=_short(f"the answer cannot be read: {error}"))

    def read_event(self, body: bytes, signature: str, *, now: datetime) -> ProviderEvent | None:
        """Return what a signed event says of a payment intent; None if it is of another kind."""
        if self._webhook_secret is None:
            raise SignatureRefused("no payment provider is set up")
        check_signature(body, signature, secret=self._webhook_secret, now=now)
        try:
            event = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidValue("event", f"is no JSON: {error}", "send it as it was made") from error
        kind = _text(event, "type")
        if kind not in _KINDS:
            return None
        told = _mapping(_mapping(event, "data"), "object")
        facts = _facts_of_event(kind, told)
        if facts is None:
            return None
        return ProviderEvent(event_id=_text(event, "id"), kind=kind, facts=facts)


def provider_of(settings: Settings, client: httpx.AsyncClient | None) -> Stripe:
    """Return the provider of some settings; without a client it only reads events."""
    key, secret = settings.payment_provider_key, settings.payment_webhook_secret
    return Stripe(
        client,
        secret=key.get_secret_value() if key else None,
        webhook_secret=secret.get_secret_value() if secret else None,
    )


def minor_amount(amount: Decimal, currency: str) -> int:
    """Return an amount as Stripe counts it: in minor units."""
    return int(amount.scaleb(_digits(currency)))


def amount_of(minor: int, currency: str) -> Decimal:
    """Return the amount that Stripe counts so; raise `InvalidValue` for a currency that is not known."""
    return Decimal(minor).scaleb(-_digits(currency))


def _digits(currency: str) -> int:
    return _DIGITS.get(currency, minor_digits(currency))


def check_signature(body: bytes, header: str, *, secret: str, now: datetime) -> None:
    """Check a `Stripe-Signature`, `t=…,v1=…`: one of its HMAC-SHA256 of `t.body` is by this secret.

    Raises `SignatureRefused`.
    """
    parts = [each.strip().partition("=") for each in header.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    given = [value for name, _, value in parts if name == "v1"]
    if len(times) != 1 or not re.fullmatch(r"[0-9]{1,12}", times[0]) or not given:
        raise SignatureRefused("the signature is not of the form t=…,v1=…")
    signed = times[0].encode() + b"." + body
    due = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
    if not any(hmac.compare_digest(each.encode(), due) for each in given):
        raise SignatureRefused("the signature is by another secret, or of another message")
    if abs(now.timestamp() - int(times[0])) > TOLERANCE_SECONDS:
        raise SignatureRefused(f"the signature is more than {TOLERANCE_SECONDS} seconds off")


def _answer(response: httpx.Response) -> Answer:
    told, status = msgspec.json.decode(response.content), response.status_code
    if response.is_success:
        return Asked(facts=_facts_of_intent(told))
    error = _mapping(told, "error")
    problem = _short(f"answered {status}: {error.get('code') or error.get('type')}")
    if not response.is_client_error or status in _TRY_AGAIN:
        return Unanswered(problem=problem)
    # Of an intent whose payment failed it tells the intent: it is known by both from then on.
    if isinstance(error.get("payment_intent"), dict):
        return Asked(facts=_facts_of_intent(error["payment_intent"], failure=problem))
    return Refused(problem=problem)


def _refund_answer(response: httpx.Response) -> RefundAnswer:
    told, status = msgspec.json.decode(response.content), response.status_code
    if response.is_success:
        if told.get("status") in _REFUND_FAILED:
            return Refused(problem=_short(f"{told['status']}: {told.get('failure_reason')}"))
        return Refunded(provider_id=_text(told, "id"))
    error = _mapping(told, "error")
    problem = _short(f"answered {status}: {error.get('code') or error.get('type')}")
    if not response.is_client_error or status in _TRY_AGAIN:
        return Unanswered(problem=problem)
    return Refused(problem=problem)


def _facts_of_event(kind: str, told: Mapping[str, Any]) -> Facts | None:
    match kind:
        case "payment_intent.succeeded" | "payment_intent.payment_failed":
            facts = _facts_of_intent(told)
            return facts if facts.request_id is not None else None
        case _:
            intent_id = told.get("payment_intent")
            request_id = _id_in_metadata(told, REQUEST)
            if isinstance(intent_id, str) and kind in _OF_REFUND:
                return _facts_of_refund(intent_id, told)
            # A dispute names no request. The charge that is refunded does, if it is ours.
            if not isinstance(intent_id, str) or (request_id is None and kind not in _OF_DISPUTE):
                return None
            currency = _text(told, "currency").upper()
            if kind in _OF_DISPUTE:
                disputed = amount_of(_whole(told, "amount"), currency)
                won = _text(told, "id") if told.get("status") in _WON else None
                return Facts(
                    intent_id=intent_id, request_id=request_id, currency=currency, disputed=disputed,
                    dispute_won=won,
                )  # fmt: skip
            refunded = amount_of(_whole(told, "amount_refunded"), currency)
            return Facts(
                intent_id=intent_id, request_id=request_id, currency=currency, refunded=refunded
            )


def _facts_of_refund(intent_id: str, told: Mapping[str, Any]) -> Facts:
    currency = _text(told, "currency").upper()
    status = _text(told, "status")
    failed = status in _REFUND_FAILED
    refund = RefundTold(
        refund_id=_id_in_metadata(told, REFUND),
        provider_id=_text(told, "id"),
        amount=amount_of(_whole(told, "amount"), currency),
        problem=_short(f"{status}: {told.get('failure_reason')}") if failed else None,
    )
    return Facts(intent_id=intent_id, request_id=None, currency=currency, refund=refund)


def _facts_of_intent(told: Any, *, failure: str | None = None) -> Facts:  # noqa: ANN401 - JSON
    currency = _text(told, "currency").upper()
    received = amount_of(_whole(told, "amount_received"), currency)
    if failure is None and told.get("status") in {"requires_payment_method", "canceled"}:
        error = told.get("last_payment_error")
        code = error.get("code") if isinstance(error, dict) else None
        failure = _short(str(code or told["status"]))
    return Facts(
        intent_id=_text(told, "id"),
        request_id=_id_in_metadata(told, REQUEST),
        currency=currency,
        received=received,
        failure=failure,
    )


def _id_in_metadata(told: Mapping[str, Any], field: str) -> UUID | None:
    metadata = told.get("metadata")
    try:
        return UUID(metadata[field]) if isinstance(metadata, dict) else None
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def _text(told: Any, field: str) -> str:  # noqa: ANN401 - JSON
    value = told.get(field) if isinstance(told, dict) else None
    if not isinstance(value, str) or not value or len(value) > _PROBLEM_CHARACTERS_MAX:
        raise InvalidValue(field, "is not there", "send the event as it was made")
    return value


def _whole(told: Mapping[str, Any], field: str) -> int:
    value = told.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidValue(field, "is no whole amount", "send the event as it was made")
    return value


def _mapping(told: Any, field: str) -> Mapping[str, Any]:  # noqa: ANN401 - JSON
    value = told.get(field) if isinstance(told, dict) else None
    if not isinstance(value, dict):
        raise InvalidValue(field, "is not there", "send the event as it was made")
    return value


def _short(text: str) -> str:
    return text.replace("\0", "")[:_PROBLEM_CHARACTERS_MAX]
