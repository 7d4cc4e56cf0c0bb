"""What is asked of the payment provider, and what it says: facts that only grow."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.payments import Purpose
from metering.store.rows import ALWAYS, During


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPaymentRequest:
    """A payment to ask the provider for. `request_id` is its key there; `cause` is asked for once."""

    request_id: UUID
    tenant_no: int
    fleet_no: int
    purpose: Purpose
    amount: Decimal
    currency: str
    customer: str
    payment_method: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentRequest(NewPaymentRequest):
    """A request as it stands; `due_at` is when it is asked next, None: it is not any more."""

    request_no: int
    state: str
    attempts: int
    due_at: datetime | None
    intent_id: str | None
    problem: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPayment:
    """What is known of a payment intent by all that the provider said; amounts only grow."""

    intent_id: str
    request_no: int | None
    currency: str
    received: Decimal
    refunded: Decimal
    disputed: Decimal
    failure: str | None
    payment_no: int | None


_REQUEST = (
    "request_id, tenant_no, fleet_no, purpose, amount, currency, customer, payment_method, cause,"
    " request_no, state, attempts, due_at, intent_id, problem, created_at"
)


def _request(row: Sequence[Any]) -> PaymentRequest:
    names = (*NewPaymentRequest.__slots__, *PaymentRequest.__slots__)
    return PaymentRequest(**dict(zip(names, row, strict=True)))


async def insert_request(
    connection: Connection, request: NewPaymentRequest, *, now: datetime
) -> int | None:
    """Ask the provider for a payment from now on; return the number, None if its cause was asked before."""
    made = await connection.execute(
        "INSERT INTO payment_request (request_id, tenant_no, fleet_no, purpose, amount, currency,"
        " customer, payment_method, cause, due_at, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (tenant_no, cause) DO NOTHING RETURNING request_no",
        [
            request.request_id, request.tenant_no, request.fleet_no, request.purpose, request.amount,
            request.currency, request.customer, request.payment_method, request.cause, now, now,
        ],
    )  # fmt: skip
    row = await made.fetchone()
    return None if row is None else int(row[0])


async def claim_request(
    connection: Connection, *, now: datetime, until: datetime
) -> PaymentRequest | None:
    """Take a request that is due; it is due again at `until` if whoever asks dies meanwhile.

    `attempts` counts this one.
    """
    claimed = await connection.execute(
        "UPDATE payment_request SET attempts = attempts + 1, due_at = %s WHERE request_no = ("  # noqa: S608 - columns
        "   SELECT request_no FROM payment_request WHERE due_at <= %s ORDER BY due_at, request_no"
        f"   LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING {_REQUEST}",
        [until, now],
    )
    row = await claimed.fetchone()
    return None if row is None else _request(row)


async def request_by_no(connection: Connection, request_no: int) -> PaymentRequest:
    """Return a request that there is."""
    found = await connection.execute(
        f"SELECT {_REQUEST} FROM payment_request WHERE request_no = %s",  # noqa: S608 - columns
        [request_no],
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - a foreign key, or the caller's own
    return _request(row)


async def request_by_id(connection: Connection, request_id: UUID) -> PaymentRequest | None:
    """Return a request by the id that the provider names it by; None if there is none."""
    found = await connection.execute(
        f"SELECT {_REQUEST} FROM payment_request WHERE request_id = %s",  # noqa: S608 - columns
        [request_id],
    )
    row = await found.fetchone()
    return None if row is None else _request(row)


async def tenant_of_payment(
    connection: Connection, *, request_id: UUID | None, intent_id: str
) -> TenantNo | None:
    """Return whose request a provider's event concerns; None while nothing names it."""
    found = await connection.execute("SELECT tenant_of_payment(%s, %s)", [request_id, intent_id])
    row = await found.fetchone()
    return None if row is None or row[0] is None else TenantNo(row[0])


async def list_requests(
    connection: Connection,
    fleet_no: int,
    *,
    after: int,
    limit: int,
    during: During = ALWAYS,
) -> list[PaymentRequest]:
    """Return what was asked of the provider for a fleet, in order, after one."""
    found = await connection.execute(
        (
            f"SELECT {_REQUEST} FROM payment_request WHERE fleet_no = %(fleet)s AND request_no > %(after)s"  # noqa: S608 - columns
            + during.condition("created_at")
            + " ORDER BY request_no LIMIT %(limit)s"
        ).encode(),
        {"fleet": fleet_no, "after": after, **during.parameters, "limit": limit},
    )
    return [_request(row) for row in await found.fetchall()]


async def store_request(
    connection: Connection,
    request_no: int,
    *,
    state: str,
    due_at: datetime | None,
    intent_id: str | None,
    problem: str | None,
) -> bool:
    """Note what became of a request; one that has succeeded stays so, and False is returned."""
    noted = await connection.execute(
        "UPDATE payment_request SET state = %s, due_at = %s,"
        " intent_id = coalesce(%s, intent_id), problem = %s"
        " WHERE request_no = %s AND state <> 'succeeded'",
        [state, due_at, intent_id, problem, request_no],
    )
    return noted.rowcount == 1


async def insert_provider_event(
    connection: Connection, event_id: str, *, kind: str, intent_id: str, now: datetime
) -> bool:
    """Keep that an event came; False if it had come before. Of two at once, one waits for the other."""
    made = await connection.execute(
        "INSERT INTO provider_event (event_id, kind, intent_id, received_at) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        [event_id, kind, intent_id, now],
    )
    return made.rowcount == 1


async def add_facts(connection: Connection, facts: ProviderPayment) -> ProviderPayment:
    """Add what was said of an intent to what is known, and own that; return it. Amounts only grow."""
    added = await connection.execute(
        "INSERT INTO provider_payment AS known"
        " (intent_id, request_no, currency, received, refunded, disputed, failure)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (intent_id) DO UPDATE SET"
        " request_no = coalesce(known.request_no, excluded.request_no),"
        " received = greatest(known.received, excluded.received),"
        " refunded = greatest(known.refunded, excluded.refunded),"
        " disputed = greatest(known.disputed, excluded.disputed),"
        " failure = coalesce(excluded.failure, known.failure)"
        " RETURNING intent_id, request_no, currency, received, refunded, disputed, failure, payment_no",
        [
            facts.intent_id, facts.request_no, facts.currency, facts.received, facts.refunded,
            facts.disputed, facts.failure,
        ],
    )  # fmt: skip
    row = await added.fetchone()
    assert row is not None  # noqa: S101 - an upsert of one row returns it
    return ProviderPayment(**dict(zip(ProviderPayment.__slots__, row, strict=True)))


async def refunded_of_intent(connection: Connection, intent_id: str) -> Decimal:
    """Return what of an intent the provider's events say went back."""
    found = await connection.execute(
        "SELECT refunded FROM provider_payment WHERE intent_id = %s", [intent_id]
    )
    row = await found.fetchone()
    return Decimal(0) if row is None else Decimal(row[0])


async def note_payment_of_intent(connection: Connection, intent_id: str, payment_no: int) -> None:
    """Note which payment an intent became."""
    await connection.execute(
        "UPDATE provider_payment SET payment_no = %s WHERE intent_id = %s", [payment_no, intent_id]
    )
