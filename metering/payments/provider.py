"""What a payment provider can do, whichever it is: be asked for a payment, and tell what became of it."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol
from uuid import UUID

_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentOrder:
    """A payment to ask for, from a customer's stored method. The same `request_id` is one payment."""

    request_id: UUID
    amount: Decimal
    currency: str
    customer: str
    payment_method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundTold:
    """A refund that the provider took, whoever asked for it.

    `refund_id` is its key, None where nobody asked for it here; `provider_id` is what the provider calls it.
    `problem` tells why it did not reach the buyer, maybe long after: its money is there again.
    """

    refund_id: UUID | None
    provider_id: str
    amount: Decimal
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the provider says of one payment intent: how much of it came, went back, or is disputed.

    Amounts are totals up to then, never changes. `request_id` is whose intent it is, where that is said.
    `dispute_won` is what the provider calls a dispute that the seller won: what it took is there again.
    """

    intent_id: str
    request_id: UUID | None
    currency: str
    received: Decimal = _NOTHING
    refunded: Decimal = _NOTHING
    disputed: Decimal = _NOTHING
    failure: str | None = None
    refund: RefundTold | None = None
    dispute_won: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The provider took the order."""

    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundOrder:
    """An amount of a payment intent to give back. The same `refund_id` is one refund."""

    refund_id: UUID
    intent_id: str
    amount: Decimal
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refunded:
    """The provider gives it back; `provider_id` is what it calls the refund."""

    provider_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The provider will not make this payment, or refund, however often it is asked."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """Nobody knows whether the provider took the order: it is to be asked again, by the same id."""

    problem: str


Answer = Asked | Refused | Unanswered
RefundAnswer = Refunded | Refused | Unanswered


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderEvent:
    """Something that the provider tells by itself, maybe more than once, in any order."""

    event_id: str
    kind: str
    facts: Facts


class SignatureRefused(Exception):
    """What came is not signed by the provider, or too long ago; the text says which."""


class PaymentProvider(Protocol):
    """A payment provider."""

    async def request_payment(self, order: PaymentOrder) -> Answer:
        """Ask for a payment; an order that was taken before answers what became of it."""
        ...

    async def refund(self, order: RefundOrder) -> RefundAnswer:
        """Have money given back; an order that was taken before answers the same."""
        ...

    def read_event(self, body: bytes, signature: str, *, now: datetime) -> ProviderEvent | None:
        """Return what a signed message tells; None: nothing that matters here.

        Raises `SignatureRefused`, and `InvalidValue` when it is signed but cannot be read.
        """
        ...
