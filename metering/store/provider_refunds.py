"""What the payment provider is to give back, and what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRefund:
    """An amount of a payment that the provider is to give back; `refund_id` is its key there."""

    refund_id: UUID
    tenant_no: int
    fleet_no: int
    payment_no: int
    intent_id: str
    amount: Decimal
    currency: str
    reason: str


MADE_THERE = "made at the payment provider"
"""The reason of a refund that nobody asked for here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRefund(NewRefund):
    """A refund as it stands; `due_at` is when the provider is asked next, None: it is not any more."""

    refund_no: int
    state: str
    attempts: int
    due_at: datetime | None
    provider_id: str | None
    problem: str | None
    created_at: datetime


_REFUND = (
    "refund_id, tenant_no, fleet_no, payment_no, intent_id, amount, currency, reason, refund_no, state,"
    " attempts, due_at, provider_id, problem, created_at"
)


def _refund(row: Sequence[Any]) -> ProviderRefund:
    names = (*NewRefund.__slots__, *ProviderRefund.__slots__)
    return ProviderRefund(**dict(zip(names, row, strict=True)))


async def insert_refund(connection: Connection, refund: NewRefund, *, now: datetime) -> int:
    """Have the provider asked for a refund from now on; return its number."""
    made = await connection.execute(
        "INSERT INTO provider_refund (refund_id, tenant_no, fleet_no, payment_no, intent_id, amount,"
        " currency, reason, due_at, created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " RETURNING refund_no",
        [
            refund.refund_id, refund.tenant_no, refund.fleet_no, refund.payment_no, refund.intent_id,
            refund.amount, refund.currency, refund.reason, now, now,
        ],
    )  # fmt: skip
    row = await made.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    return int(row[0])


async def insert_made_refund(
    connection: Connection, refund: NewRefund, *, provider_id: str, now: datetime
) -> ProviderRefund:
    """Keep a refund that was made at the provider itself; return it."""
    made = await connection.execute(
        "INSERT INTO provider_refund (refund_id, tenant_no, fleet_no, payment_no, intent_id, amount,"  # noqa: S608 - columns
        " currency, reason, state, provider_id, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 'succeeded', %s, %s)"
        f" RETURNING {_REFUND}",
        [
            refund.refund_id, refund.tenant_no, refund.fleet_no, refund.payment_no, refund.intent_id,
            refund.amount, refund.currency, refund.reason, provider_id, now,
        ],
    )  # fmt: skip
    row = await made.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    return _refund(row)


async def claim_refund(
    connection: Connection, *, now: datetime, until: datetime
) -> ProviderRefund | None:
    """Take a refund that is due; it is due again at `until` if whoever asks dies meanwhile.

    `attempts` counts this one.
    """
    claimed = await connection.execute(
        "UPDATE provider_refund SET attempts = attempts + 1, due_at = %s WHERE refund_no = ("  # noqa: S608 - columns
        "   SELECT refund_no FROM provider_refund WHERE due_at <= %s ORDER BY due_at, refund_no"
        f"   LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING {_REFUND}",
        [until, now],
    )
    row = await claimed.fetchone()
    return None if row is None else _refund(row)


async def store_refund(
    connection: Connection,
    refund_no: int,
    *,
    state: str,
    due_at: datetime | None = None,
    provider_id: str | None = None,
    problem: str | None = None,
) -> bool:
    """Note what became of a refund; one that is not queued any more stays so, and False is returned."""
    noted = await connection.execute(
        "UPDATE provider_refund SET state = %s, due_at = %s, provider_id = %s, problem = %s"
        " WHERE refund_no = %s AND state = 'queued'",
        [state, due_at, provider_id, problem, refund_no],
    )
    return noted.rowcount == 1


async def refund_by_id(connection: Connection, refund_id: UUID) -> ProviderRefund | None:
    """Return a refund by the id that the provider names it by, and own it; None if there is none."""
    found = await connection.execute(
        f"SELECT {_REFUND} FROM provider_refund WHERE refund_id = %s FOR UPDATE",  # noqa: S608 - columns
        [refund_id],
    )
    row = await found.fetchone()
    return None if row is None else _refund(row)


async def note_made_refund(connection: Connection, refund_no: int, *, provider_id: str) -> None:
    """Note that the provider made a refund of which no answer was known; any other stays as it is."""
    await connection.execute(
        "UPDATE provider_refund SET state = 'succeeded', due_at = NULL, provider_id = %s,"
        " problem = NULL WHERE refund_no = %s AND provider_id IS NULL",
        [provider_id, refund_no],
    )


async def fail_made_refund(
    connection: Connection, refund_no: int, *, provider_id: str, problem: str
) -> None:
    """Note that a refund failed which the provider had made: it keeps what the provider calls it."""
    await connection.execute(
        "UPDATE provider_refund SET state = 'failed', due_at = NULL, provider_id = %s, problem = %s"
        " WHERE refund_no = %s",
        [provider_id, problem, refund_no],
    )


async def refunds_made(connection: Connection, payment_no: int) -> Decimal:
    """Return what the provider made of a payment's refunds, with those that failed after that."""
    found = await connection.execute(
        "SELECT coalesce(sum(amount), 0) FROM provider_refund WHERE payment_no = %s"
        " AND (state = 'succeeded' OR provider_id IS NOT NULL)",
        [payment_no],
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns one row
    return Decimal(row[0])


async def came_back_of(connection: Connection, fleet_no: int, payment_no: int) -> list[int]:
    """Return the payments as which refunds of a payment came back that failed, ascending."""
    found = await connection.execute(
        "SELECT payment.payment_no FROM provider_refund JOIN payment"
        " ON payment.reference = provider_refund.provider_id AND payment.method = 'provider'"
        " WHERE provider_refund.payment_no = %s AND provider_refund.state = 'failed'"
        " AND payment.fleet_no = %s AND payment.intent_id IS NULL ORDER BY payment.payment_no",
        [payment_no, fleet_no],
    )
    return [row[0] for row in await found.fetchall()]


async def list_refunds(
    connection: Connection,
    fleet_no: int,
    *,
    after: int,
    limit: int,
    during: During = ALWAYS,
) -> list[ProviderRefund]:
    """Return the refunds of a fleet's payments by the provider in order, after one."""
    found = await connection.execute(
        (
            f"SELECT {_REFUND} FROM provider_refund WHERE fleet_no = %(fleet)s AND refund_no > %(after)s"  # noqa: S608 - columns
            + during.condition("created_at")
            + " ORDER BY refund_no LIMIT %(limit)s"
        ).encode(),
        {"fleet": fleet_no, "after": after, **during.parameters, "limit": limit},
    )
    return [_refund(row) for row in await found.fetchall()]
