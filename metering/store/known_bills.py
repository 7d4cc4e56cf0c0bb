"""How a cycle's bill stood at a past moment: its state, what was entered, owed, paid and held by then."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, LiteralString, TypeVar

from psycopg.rows import class_row

from metering.store.bills import BillAdjustment
from metering.store.connection import Connection

T = TypeVar("T")
KnownState = Literal["open", "draft", "finalised", "paid", "void"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BillThen:
    """The bill that a cycle had at a past moment; `is_paid` where nothing of it was open then.

    `open` is what was to be paid of it with its notes of then, `held` what disputes held of that.
    """

    bill_no: int
    is_final: bool
    is_void: bool
    open: Decimal
    held: Decimal

    @property
    def state(self) -> KnownState:
        """The state that it was in."""
        if not self.is_final:
            return "draft"
        if self.is_void:
            return "void"
        return "paid" if self.open <= 0 else "finalised"


async def bill_then(
    connection: Connection, fleet_no: int, cycle_start: datetime, *, at: datetime
) -> BillThen | None:
    """Return the last bill that a cycle had by an instant; None where it had none: it was open.

    Postings are never changed, so what was open then is their sum by then.
    """
    found = await _rows(
        connection,
        BillThen,
        "SELECT bill.bill_no, coalesce(bill.finalised_at <= %(at)s, false) AS is_final,"
        " bill.state = 'void' AND bill.state_at <= %(at)s AS is_void,"
        " (SELECT -coalesce(sum(amount), 0) FROM account_posting WHERE account = 'bill'"
        "   AND account_posting.bill_no = bill.bill_no AND made_at <= %(at)s) AS open,"
        " (SELECT coalesce(sum(held), 0) FROM dispute WHERE dispute.bill_no = bill.bill_no"
        "   AND opened_at <= %(at)s AND coalesce(resolved_at > %(at)s, true)) AS held"
        " FROM bill WHERE fleet_no = %(fleet_no)s AND cycle_start = %(cycle_start)s"
        " AND kind = 'bill' AND drafted_at <= %(at)s ORDER BY bill.bill_no DESC LIMIT 1",
        {"fleet_no": fleet_no, "cycle_start": cycle_start, "at": at},
    )
    return found[0] if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteThen:
    """A note on a bill."""

    bill_no: int
    name: str
    kind: str
    gross: Decimal


async def notes_then(connection: Connection, bill_no: int, *, at: datetime) -> list[NoteThen]:
    """Return the notes that a bill had by an instant, in their order."""
    return await _rows(
        connection,
        NoteThen,
        "SELECT bill_no, name, kind, gross FROM bill"
        " WHERE corrects_no = %(bill_no)s AND finalised_at <= %(at)s ORDER BY bill_no",
        {"bill_no": bill_no, "at": at},
    )


# An adjustment came into its cycle's bill as it was entered, where that was a draft then, else with the
# first draft that was made of the cycle after that.
_ENTERED = (
    "SELECT adjustment_no, fleet_no, name, reason, amount, currency, billed_in, made_at"
    " FROM bill_adjustment AS entered CROSS JOIN LATERAL (SELECT CASE WHEN EXISTS (SELECT FROM bill"
    "     WHERE bill.fleet_no = entered.fleet_no AND bill.cycle_start = entered.billed_in"
    "     AND kind = 'bill' AND drafted_at <= made_at AND coalesce(finalised_at >= made_at, true))"
    "   THEN made_at ELSE (SELECT min(drafted_at) FROM bill"
    "     WHERE bill.fleet_no = entered.fleet_no AND bill.cycle_start = entered.billed_in"
    "     AND kind = 'bill' AND drafted_at >= made_at) END AS billed_at) AS taken"
    " WHERE entered.fleet_no = %(fleet_no)s AND made_at <= %(at)s"
)


async def adjustments_then(
    connection: Connection, fleet_no: int, cycle_start: datetime | None, *, at: datetime
) -> Sequence[BillAdjustment]:
    """Return the adjustments in a cycle's bill (None: that waited for one) at an instant, in order."""
    query = (
        _ENTERED + " AND coalesce(billed_at > %(at)s, true) ORDER BY adjustment_no"
        if cycle_start is None
        else _ENTERED
        + " AND billed_in = %(cycle_start)s AND billed_at <= %(at)s ORDER BY adjustment_no"
    )
    return await _rows(
        connection,
        BillAdjustment,
        query,
        {"fleet_no": fleet_no, "cycle_start": cycle_start, "at": at},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletThen:
    """What was in a fleet's wallet; `is_sure` is False where a refund may have been promised then.

    When the payment provider refused a refund, or had made it, is not kept, but when the account gave it is.
    """

    amount: Decimal
    is_sure: bool


async def wallet_then(connection: Connection, fleet_no: int, *, at: datetime) -> WalletThen:
    """Return what was in a fleet's wallet at an instant and not promised to the payment provider."""
    (found,) = await _rows(
        connection,
        WalletThen,
        "WITH lot AS (SELECT payment_no, sum(amount) AS amount FROM account_posting"
        "   WHERE fleet_no = %(fleet_no)s AND account = 'wallet' AND made_at <= %(at)s"
        "   GROUP BY payment_no),"
        " asked AS (SELECT refund.payment_no, refund.amount, refund.state,"
        "     refund.state <> 'queued' AND NOT EXISTS (SELECT FROM account_entry AS entry"
        "       WHERE entry.payment_no = refund.payment_no AND entry.kind = 'refund'"
        "       AND entry.made_at BETWEEN refund.created_at AND %(at)s) AS is_doubtful"
        "   FROM provider_refund AS refund WHERE refund.fleet_no = %(fleet_no)s"
        "   AND refund.created_at <= %(at)s)"
        " SELECT coalesce(sum(greatest(lot.amount - coalesce(("
        "     SELECT sum(asked.amount) FROM asked WHERE asked.payment_no = lot.payment_no"
        "     AND asked.state = 'queued'), 0), 0)), 0) AS amount,"
        " NOT coalesce(bool_or(EXISTS (SELECT FROM asked WHERE asked.payment_no = lot.payment_no"
        "   AND asked.is_doubtful)), false) AS is_sure FROM lot",
        {"fleet_no": fleet_no, "at": at},
    )
    return found


async def _rows(
    connection: Connection, of: type[T], query: LiteralString, parameters: Mapping[str, object]
) -> list[T]:
    """Return what a query finds; amounts stay decimals."""
    async with connection.cursor(row_factory=class_row(of)) as cursor:
        await cursor.execute(query, parameters)
        return await cursor.fetchall()
