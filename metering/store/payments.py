"""A fleet's account: payments, and the entries of which every balance is a fold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

from metering.errors import NotFound
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During

Purpose = Literal["account", "wallet"]
Pocket = Literal["credit", "wallet"]
"""Where money is that pays no bill yet: the account's credit, or the prepaid wallet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """Money that came. `free` is what of it pays no bill, `returned` what was given or taken back."""

    payment_no: int
    tenant_no: int
    fleet_no: int
    fleet_id: str
    purpose: Purpose
    amount: Decimal
    currency: str
    method: str
    reference: str | None
    intent_id: str | None
    received_at: datetime
    recorded_at: datetime
    free: Decimal
    returned: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPayment:
    """A payment as it is to be recorded; `intent_id` is the provider's payment intent, if it came so."""

    purpose: Purpose
    amount: Decimal
    currency: str
    method: str
    reference: str | None
    intent_id: str | None = None
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Lot:
    """Money in a pocket, by the payment that it came from; None: from a bill that took less."""

    pocket: Pocket
    payment_no: int | None
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A final bill and what of it is `open` (below 0: it has more than it owes); disputes hold `held` of it.

    `last_entry` is the number of the last entry about it, 0 if there is none.
    """

    bill_no: int
    name: str
    state: str
    due: date | None
    open: Decimal
    held: Decimal
    last_entry: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An amount that moves from one account of a fleet to another."""

    kind: Literal["payment", "billing", "credit", "allocation", "release", "refund", "reversal"]
    from_account: str
    to_account: str
    amount: Decimal
    bill_no: int | None = None
    document_no: int | None = None
    payment_no: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry(Entry):
    """An entry as it was made."""

    entry_no: int
    currency: str
    made_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountBalances:
    """What a fleet's account holds: `credit` pays no bill yet, `owed` is open of final bills."""

    credit: Decimal
    owed: Decimal
    wallet: Decimal


_PAYMENT = (
    "SELECT payment.payment_no, payment.tenant_no, payment.fleet_no, fleet.fleet_id, payment.purpose,"
    " payment.amount, payment.currency, payment.method, payment.reference, payment.intent_id,"
    " payment.received_at, payment.recorded_at,"
    " (SELECT coalesce(sum(amount), 0) FROM account_posting"
    "   WHERE account_posting.payment_no = payment.payment_no AND account IN ('credit', 'wallet')),"
    " (SELECT coalesce(sum(amount), 0) FROM account_entry WHERE account_entry.payment_no ="
    "   payment.payment_no AND to_account = 'outside')"
    " FROM payment JOIN fleet USING (fleet_no)"
)


async def insert_payment(
    connection: Connection, tenant_no: int, fleet_no: int, payment: NewPayment, *, now: datetime
) -> int:
    """Record a payment; return its number. The caller owns the fleet's bills."""
    made = await connection.execute(
        "INSERT INTO payment (tenant_no, fleet_no, purpose, amount, currency, method, reference,"
        " intent_id, received_at, recorded_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " RETURNING payment_no",
        [
            tenant_no, fleet_no, payment.purpose, payment.amount, payment.currency, payment.method,
            payment.reference, payment.intent_id, payment.received_at, now,
        ],
    )  # fmt: skip
    row = await made.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    return int(row[0])


async def payment_by_no(connection: Connection, tenant_no: int, payment_no: int) -> Payment:
    """Return one of a tenant's payments; raise `NotFound`."""
    found = await connection.execute(
        _PAYMENT.encode() + b" WHERE payment.tenant_no = %s AND payment_no = %s",
        [tenant_no, payment_no],
    )
    row = await found.fetchone()
    if row is None:
        raise NotFound("payment", str(payment_no))
    return _payment(row)


async def is_referred_to(
    connection: Connection, fleet_no: int, *, method: str, reference: str
) -> bool:
    """Whether a fleet has a payment of a method that is known by a reference outside."""
    found = await connection.execute(
        "SELECT FROM payment WHERE fleet_no = %s AND method = %s AND reference = %s LIMIT 1",
        [fleet_no, method, reference],
    )
    return await found.fetchone() is not None


async def list_payments(
    connection: Connection,
    tenant_no: int,
    *,
    fleet_no: int | None,
    after: int,
    limit: int,
    during: During = ALWAYS,
) -> list[Payment]:
    """Return a tenant's payments, ascending by number, after one."""
    found = await connection.execute(
        _PAYMENT.encode() + b" WHERE payment.tenant_no = %(tenant)s AND payment_no > %(after)s"
        b" AND (%(fleet)s::int IS NULL OR payment.fleet_no = %(fleet)s)"
        + during.condition("payment.received_at").encode()
        + b" ORDER BY payment_no LIMIT %(limit)s",
        {
            "tenant": tenant_no,
            "after": after,
            "fleet": fleet_no,
            **during.parameters,
            "limit": limit,
        },
    )
    return [_payment(row) for row in await found.fetchall()]


def _payment(row: Sequence[Any]) -> Payment:
    return Payment(**dict(zip(Payment.__slots__, row, strict=True)))


async def insert_entry(
    connection: Connection, fleet_no: int, currency: str, entry: Entry, *, now: datetime
) -> int:
    """Make an entry; return its number. The database refuses what is not there to be moved."""
    made = await connection.execute(
        "INSERT INTO account_entry (fleet_no, kind, from_account, to_account, amount, currency,"
        " bill_no, document_no, payment_no, reason, made_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING entry_no",
        [
            fleet_no, entry.kind, entry.from_account, entry.to_account, entry.amount, currency,
            entry.bill_no, entry.document_no, entry.payment_no, entry.reason, now,
        ],
    )  # fmt: skip
    row = await made.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    return int(row[0])


async def list_entries(
    connection: Connection,
    fleet_no: int,
    *,
    after: int,
    limit: int,
    during: During = ALWAYS,
) -> list[StoredEntry]:
    """Return the entries of a fleet's account in their order, after one."""
    found = await connection.execute(
        (
            "SELECT kind, from_account, to_account, amount, bill_no, document_no, payment_no, reason,"  # noqa: S608 - columns
            " entry_no, currency, made_at FROM account_entry"
            " WHERE fleet_no = %(fleet)s AND entry_no > %(after)s"
            + during.condition("made_at")
            + " ORDER BY entry_no LIMIT %(limit)s"
        ).encode(),
        {"fleet": fleet_no, "after": after, **during.parameters, "limit": limit},
    )
    names = (*Entry.__slots__, *StoredEntry.__slots__)
    return [StoredEntry(**dict(zip(names, row, strict=True))) for row in await found.fetchall()]


async def account_balances(connection: Connection, fleet_no: int) -> AccountBalances:
    """Return the balances of a fleet's account: the fold of its entries."""
    found = await connection.execute(
        "SELECT coalesce(sum(amount) FILTER (WHERE account = 'credit'), 0),"
        " -coalesce(sum(amount) FILTER (WHERE account = 'bill'), 0),"
        " coalesce(sum(amount) FILTER (WHERE account = 'wallet'), 0)"
        " FROM account_posting WHERE fleet_no = %s",
        [fleet_no],
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - aggregates without GROUP BY return one row
    return AccountBalances(credit=row[0], owed=row[1], wallet=row[2])


async def lots_of(connection: Connection, fleet_no: int, pocket: Pocket) -> list[Lot]:
    """Return what is in a fleet's pocket, the earliest payment first, after what bills left.

    What refunds by the provider wait for is not among it: it is promised. Of one that was asked for, the
    event may have come before the answer: what the account gave by events that no answer explains is not
    promised any more.
    """
    found = await connection.execute(
        "SELECT payment_no, lot.amount - promised.amount FROM"
        " (SELECT payment_no, sum(amount) AS amount FROM account_posting"
        "   WHERE fleet_no = %s AND account = %s GROUP BY payment_no) AS lot"
        " CROSS JOIN LATERAL (SELECT coalesce(max(known.refunded), 0) - (SELECT coalesce(sum(amount), 0)"
        "     FROM provider_refund AS made WHERE made.payment_no = lot.payment_no"
        "     AND (state = 'succeeded' OR provider_id IS NOT NULL)) AS amount"
        "   FROM provider_payment AS known WHERE known.payment_no = lot.payment_no) AS unexplained"
        " CROSS JOIN LATERAL (SELECT coalesce(sum(amount), 0) AS amount FROM"
        "     (SELECT amount, attempts, sum(amount) FILTER (WHERE attempts > 0) OVER (ORDER BY refund_no)"
        "       AS asked FROM provider_refund AS waiting"
        "       WHERE waiting.payment_no = lot.payment_no AND state = 'queued') AS waiting"
        "   WHERE attempts = 0 OR asked > unexplained.amount) AS promised"
        " WHERE lot.amount > promised.amount ORDER BY payment_no NULLS FIRST",
        [fleet_no, pocket],
    )
    return [Lot(pocket=pocket, payment_no=row[0], amount=row[1]) for row in await found.fetchall()]


_STANDING = (
    "SELECT bill.bill_no, bill.name, bill.state, bill.due,"
    " (SELECT -coalesce(sum(amount), 0) FROM account_posting"
    "   WHERE account = 'bill' AND account_posting.bill_no = bill.bill_no),"
    " (SELECT coalesce(sum(held), 0) FROM dispute"
    "   WHERE dispute.bill_no = bill.bill_no AND dispute.state = 'open'),"
    " (SELECT coalesce(max(entry_no), 0) FROM account_entry"
    "   WHERE account_entry.bill_no = bill.bill_no)"
    " FROM bill WHERE kind = 'bill' AND state <> 'draft'"
)


async def unpaid_bills(connection: Connection, fleet_no: int) -> list[Standing]:
    """Return a fleet's final bills that are not paid, the earliest due first."""
    found = await connection.execute(
        _STANDING.encode() + b" AND fleet_no = %s AND state = 'finalised' ORDER BY due, bill_no",
        [fleet_no],
    )
    return [_standing(row) for row in await found.fetchall()]


async def standing_of(connection: Connection, fleet_no: int, bill_no: int) -> Standing:
    """Return how one of a fleet's final bills stands; raise `NotFound`."""
    found = await connection.execute(
        _STANDING.encode() + b" AND fleet_no = %s AND bill_no = %s", [fleet_no, bill_no]
    )
    row = await found.fetchone()
    if row is None:
        raise NotFound("final bill", str(bill_no))
    return _standing(row)


def _standing(row: Sequence[Any]) -> Standing:
    told = Standing(**dict(zip(Standing.__slots__, row, strict=True)))
    # A note, or a payment that was told to, may have left less than is disputed.
    return replace(told, held=min(told.held, max(told.open, Decimal(0))))


async def paid_from(connection: Connection, bill_no: int) -> list[Lot]:
    """Return what paid a bill and was not taken back, what came last first."""
    found = await connection.execute(
        "SELECT other_account, payment_no, sum(amount) FROM account_posting"
        " WHERE account = 'bill' AND bill_no = %s AND other_account IN ('credit', 'wallet')"
        " GROUP BY other_account, payment_no HAVING sum(amount) > 0 ORDER BY max(entry_no) DESC",
        [bill_no],
    )
    return [Lot(pocket=row[0], payment_no=row[1], amount=row[2]) for row in await found.fetchall()]


async def paid_with(connection: Connection, payment_no: int) -> list[tuple[int, Lot]]:
    """Return which bills a payment pays, and how much of each, the bill that is due last first."""
    found = await connection.execute(
        "SELECT bill_no, other_account, sum(amount) FROM account_posting JOIN bill USING (bill_no)"
        " WHERE account = 'bill' AND payment_no = %s GROUP BY bill_no, other_account, due"
        " HAVING sum(amount) > 0 ORDER BY due DESC, bill_no DESC",
        [payment_no],
    )
    return [
        (row[0], Lot(pocket=row[1], payment_no=payment_no, amount=row[2]))
        for row in await found.fetchall()
    ]


async def released_of(connection: Connection, payment_no: int) -> dict[int, Decimal]:
    """Return which bills a payment paid and pays no longer, and how much of each."""
    found = await connection.execute(
        "SELECT bill_no, sum(amount) FROM account_entry WHERE payment_no = %s AND kind = 'release'"
        " GROUP BY bill_no",
        [payment_no],
    )
    return dict(await found.fetchall())


async def paid_with_credit(connection: Connection, fleet_no: int) -> list[tuple[int, Lot]]:
    """Return which bills credit that came from no payment pays, the one that is due last first."""
    found = await connection.execute(
        "SELECT bill_no, sum(account_posting.amount) FROM account_posting JOIN bill USING (bill_no)"
        " WHERE account_posting.fleet_no = %s AND account = 'bill' AND other_account = 'credit'"
        " AND payment_no IS NULL GROUP BY bill_no, due HAVING sum(account_posting.amount) > 0"
        " ORDER BY due DESC, bill_no DESC",
        [fleet_no],
    )
    return [
        (row[0], Lot(pocket="credit", payment_no=None, amount=row[1]))
        for row in await found.fetchall()
    ]


# Wallets -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletTerms:
    """When a wallet is low, and how it is topped up by itself: below what, by how much, from whom."""

    low_balance: Decimal | None = None
    top_up_below: Decimal | None = None
    top_up_amount: Decimal | None = None
    customer: str | None = None
    payment_method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wallet(WalletTerms):
    """A wallet's terms, and what was told and asked since its balance fell."""

    is_low: bool = False
    is_asked: bool = False
    occasion: int = 0


async def wallet_of(connection: Connection, fleet_no: int) -> Wallet:
    """Return a fleet's wallet; one of which nobody said anything is never low."""
    found = await connection.execute(
        "SELECT low_balance, top_up_below, top_up_amount, customer, payment_method, is_low, is_asked,"
        " occasion FROM wallet WHERE fleet_no = %s",
        [fleet_no],
    )
    row = await found.fetchone()
    names = (*WalletTerms.__slots__, *Wallet.__slots__)
    return Wallet() if row is None else Wallet(**dict(zip(names, row, strict=True)))


async def set_wallet_terms(
    connection: Connection, fleet_no: int, terms: WalletTerms, *, now: datetime
) -> None:
    """Say when a wallet is low and how it is topped up; what failed before may be asked again."""
    await connection.execute(
        "INSERT INTO wallet (fleet_no, low_balance, top_up_below, top_up_amount, customer,"
        " payment_method, updated_at) VALUES (%s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (fleet_no) DO UPDATE SET low_balance = excluded.low_balance,"
        " top_up_below = excluded.top_up_below, top_up_amount = excluded.top_up_amount,"
        " customer = excluded.customer, payment_method = excluded.payment_method,"
        " updated_at = excluded.updated_at",
        [
            fleet_no, terms.low_balance, terms.top_up_below, terms.top_up_amount, terms.customer,
            terms.payment_method, now,
        ],
    )  # fmt: skip


async def note_wallet(connection: Connection, fleet_no: int, wallet: Wallet) -> None:
    """Note what was told of a wallet and asked for it."""
    await connection.execute(
        "UPDATE wallet SET is_low = %s, is_asked = %s, occasion = %s WHERE fleet_no = %s",
        [wallet.is_low, wallet.is_asked, wallet.occasion, fleet_no],
    )
