"""Bills and notes: drafts, what is final of them, manual adjustments, disputes, and what was asked once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from metering.errors import Conflict, NotFound
from metering.period import BillCycle
from metering.store.closing import CycleKey
from metering.store.connection import Connection
from metering.store.long_documents import storing, with_lines, without_many_lines
from metering.store.rows import ALWAYS, During


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBill:
    """A bill or note as it is stored; a draft has no number, amounts nor document.

    `name` is its number as it is written. `gross` is what it comes to with tax, `owed` what it adds to
    what is to be paid. `drawn_from` is what its document was drawn up from.
    """

    bill_no: int
    tenant_no: int
    fleet_no: int
    fleet_id: str
    cycle: BillCycle
    kind: str
    corrects_no: int | None
    state: str
    drafted_at: datetime
    series: str | None
    year: int | None
    number: int | None
    name: str | None
    issued: date | None
    due: date | None
    currency: str | None
    gross: Decimal | None
    owed: Decimal | None
    document: Mapping[str, Any] | None
    drawn_from: Mapping[str, Any] | None
    finalised_at: datetime | None
    state_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """What a document gets when it becomes final."""

    series: str
    year: int
    number: int
    name: str
    issued: date
    due: date | None
    currency: str
    gross: Decimal
    owed: Decimal
    document: Mapping[str, Any]
    drawn_from: Mapping[str, Any]


_COLUMNS = (
    "bill.bill_no, bill.tenant_no, bill.fleet_no, fleet.fleet_id, fleet_cycle.first_day,"
    " fleet_cycle.next_first_day, bill.cycle_start, fleet_cycle.cycle_end, bill.kind,"
    " bill.corrects_no, bill.state, bill.drafted_at, bill.series, bill.year, bill.number, bill.name,"
    " bill.issued, bill.due, bill.currency, bill.gross, bill.owed, {document}, {drawn_from},"
    " bill.finalised_at, bill.state_at"
)
_FROM = (
    f"SELECT {_COLUMNS} FROM bill JOIN fleet USING (fleet_no)"  # noqa: S608 - columns of this module
    " JOIN fleet_cycle ON fleet_cycle.fleet_no = bill.fleet_no"
    "   AND fleet_cycle.cycle_start = bill.cycle_start"
)


# A page of bills tells no documents: they may be large.
_LISTED = _FROM.format(document="NULL::jsonb", drawn_from="NULL::jsonb")


def _bills() -> str:
    """Return what selects bills with their documents, which `_whole` gives those lines that are many."""
    return _FROM.format(document=without_many_lines("bill.document"), drawn_from="bill.drawn_from")


async def _whole(connection: Connection, bill: StoredBill) -> StoredBill:
    if bill.document is None:
        return bill
    document = await with_lines(
        connection, bill.document, "document FROM bill WHERE bill_no = %s", [bill.bill_no]
    )
    return replace(bill, document=document)


def _bill(row: Sequence[Any]) -> StoredBill:
    cycle = BillCycle(first_day=row[4], next_first_day=row[5], start=row[6], end=row[7])
    values = [*row[:4], cycle, *row[8:]]
    return StoredBill(**dict(zip(StoredBill.__slots__, values, strict=True)))


_SILENT_MS_A_SUBSCRIPTION = 5
"""Several times what a line costs: 0.3 ms on a machine that is busy."""


async def lock_billing(connection: Connection, fleet_no: int) -> None:
    """Own a fleet's bills until the transaction ends; whoever owns its shard too, does so before."""
    await connection.execute("SELECT FROM fleet WHERE fleet_no = %s FOR NO KEY UPDATE", [fleet_no])


async def allow_for_size(connection: Connection, fleet_no: int) -> None:
    """Let this transaction be silent for longer, by how many subscriptions its fleet has or had.

    The server ends a session whose transaction is idle for too long, and drawing up the bill of a large
    fleet takes seconds without a statement.
    """
    await connection.execute(
        "SELECT set_config('idle_in_transaction_session_timeout',"
        "   (1000 * extract(epoch FROM allowed) + %s * count(*))::bigint::text, true)"
        " FROM (SELECT current_setting('idle_in_transaction_session_timeout')::interval AS allowed)"
        "   AS now JOIN subscription ON fleet_no = %s"
        " WHERE allowed > interval '0' GROUP BY allowed",
        [_SILENT_MS_A_SUBSCRIPTION, fleet_no],
    )


async def insert_draft(
    connection: Connection, tenant_no: int, key: CycleKey, *, now: datetime
) -> int:
    """Make the draft of a closed cycle's bill; adjustments that waited for one are in it from now on.

    The caller owns the fleet's bills.
    """
    fleet_no, cycle_start = key
    made = await connection.execute(
        "INSERT INTO bill (tenant_no, fleet_no, cycle_start, drafted_at, state_at)"
        " VALUES (%s, %s, %s, %s, %s) RETURNING bill_no",
        [tenant_no, fleet_no, cycle_start, now, now],
    )
    row = await made.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    await connection.execute(
        "UPDATE bill_adjustment SET billed_in = %s WHERE fleet_no = %s AND billed_in IS NULL",
        [cycle_start, fleet_no],
    )
    return int(row[0])


async def bill_by_no(
    connection: Connection, tenant_no: int, bill_no: int, *, documents: bool = True
) -> StoredBill:
    """Return one of a tenant's bills or notes, without its `documents` if told so; raise `NotFound`."""
    found = await connection.execute(
        (_bills() if documents else _LISTED).encode()
        + b" WHERE bill.tenant_no = %s AND bill.bill_no = %s",
        [tenant_no, bill_no],
    )
    row = await found.fetchone()
    if row is None:
        raise NotFound("bill", str(bill_no))
    return await _whole(connection, _bill(row))


async def own_bill(connection: Connection, tenant_no: int, bill_no: int) -> StoredBill:
    """Own the fleet's bills, and return one of them as it is then; raise `NotFound`."""
    before = await bill_by_no(connection, tenant_no, bill_no, documents=False)
    await lock_billing(connection, before.fleet_no)
    return await bill_by_no(connection, tenant_no, bill_no)


async def notes_of(connection: Connection, bill_no: int) -> list[StoredBill]:
    """Return a bill's notes in their order."""
    found = await connection.execute(
        _bills().encode() + b" WHERE bill.corrects_no = %s ORDER BY bill.bill_no", [bill_no]
    )
    return [await _whole(connection, _bill(row)) for row in await found.fetchall()]


async def list_bills(
    connection: Connection,
    tenant_no: int,
    *,
    fleet_no: int | None,
    state: str | None,
    after: int,
    limit: int,
    kind: str | None = None,
    number: str | None = None,
    during: During = ALWAYS,
) -> list[StoredBill]:
    """Return a tenant's bills and notes without their documents, ascending by number, after one.

    Of one `name`, which is a document's number as it is written, there is one at most.
    """
    found = await connection.execute(
        _LISTED.encode() + b" WHERE bill.tenant_no = %(tenant_no)s AND bill.bill_no > %(after)s"
        b" AND (%(fleet_no)s::int IS NULL OR bill.fleet_no = %(fleet_no)s)"
        b" AND (%(state)s::text IS NULL OR bill.state = %(state)s)"
        b" AND (%(kind)s::text IS NULL OR bill.kind = %(kind)s)"
        b" AND (%(number)s::text IS NULL OR bill.name = %(number)s)"
        + during.condition("bill.drafted_at").encode()
        + b" ORDER BY bill.bill_no LIMIT %(limit)s",
        {
            "kind": kind,
            "number": number,
            "tenant_no": tenant_no,
            "after": after,
            "fleet_no": fleet_no,
            "state": state,
            **during.parameters,
            "limit": limit,
        },
    )
    return [_bill(row) for row in await found.fetchall()]


async def bill_that_holds(connection: Connection, key: CycleKey) -> StoredBill | None:
    """Return a cycle's bill that is not void; None if it has none."""
    found = await connection.execute(
        _bills().encode()
        + b" WHERE bill.fleet_no = %s AND bill.cycle_start = %s AND bill.kind = 'bill'"
        b" AND bill.state <> 'void'",
        [*key],
    )
    row = await found.fetchone()
    return None if row is None else await _whole(connection, _bill(row))


async def first_draft(connection: Connection, fleet_no: int) -> StoredBill | None:
    """Return a fleet's earliest draft; None if it has none."""
    found = await connection.execute(
        _LISTED.encode()
        + b" WHERE bill.fleet_no = %s AND bill.state = 'draft' ORDER BY bill.cycle_start LIMIT 1",
        [fleet_no],
    )
    row = await found.fetchone()
    return None if row is None else _bill(row)


async def make_final(
    connection: Connection, bill_no: int, issued: Issued, *, now: datetime
) -> None:
    """Make a draft final, with all that it says; raise `Conflict` if another document has its name."""
    async with storing(connection, issued.document) as (document, told):
        with _named_once(issued):
            await connection.execute(
                (
                    "UPDATE bill SET state = 'finalised', series = %s, year = %s, number = %s,"  # noqa: S608 - an expression of the store
                    " name = %s, issued = %s, due = %s, currency = %s, gross = %s, owed = %s,"
                    f" document = {document}, drawn_from = %s, finalised_at = %s, state_at = %s"
                    " WHERE bill_no = %s"
                ).encode(),
                [*_issued(issued, told), now, now, bill_no],
            )


async def insert_note(
    connection: Connection, bill: StoredBill, kind: str, issued: Issued, *, now: datetime
) -> int:
    """Add a note to a bill; return its number. Raise `Conflict` if another document has its name."""
    async with storing(connection, issued.document) as (document, told):
        with _named_once(issued):
            made = await connection.execute(
                (
                    "INSERT INTO bill (tenant_no, fleet_no, cycle_start, kind, corrects_no, state,"  # noqa: S608 - an expression of the store
                    " drafted_at, series, year, number, name, issued, due, currency, gross, owed,"
                    " document, drawn_from, finalised_at, state_at)"
                    " VALUES (%s, %s, %s, %s, %s, 'finalised', %s, %s, %s, %s, %s, %s, %s, %s, %s,"
                    f" %s, {document}, %s, %s, %s) RETURNING bill_no"
                ).encode(),
                [
                    bill.tenant_no, bill.fleet_no, bill.cycle.start, kind, bill.bill_no, now,
                    *_issued(issued, told), now, now,
                ],
            )  # fmt: skip
        row = await made.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    return int(row[0])


@contextmanager
def _named_once(issued: Issued) -> Iterator[None]:
    """Tell in words that a name is taken: of a series that had the same prefix before."""
    try:
        yield
    except UniqueViolation as error:
        if error.diag.constraint_name != "a_number_names_one_document":
            raise
        raise Conflict(
            "number", f"{issued.name} is another document's", "give the series another prefix"
        ) from error


def _issued(issued: Issued, document: Sequence[Jsonb]) -> list[object]:
    return [
        issued.series, issued.year, issued.number, issued.name, issued.issued, issued.due,
        issued.currency, issued.gross, issued.owed, *document, Jsonb(issued.drawn_from),
    ]  # fmt: skip


async def set_state(connection: Connection, bill_no: int, state: str, *, now: datetime) -> None:
    """Let a final bill be in another state; the database refuses what does not follow."""
    await connection.execute(
        "UPDATE bill SET state = %s, state_at = %s WHERE bill_no = %s", [state, now, bill_no]
    )


# Manual adjustments ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BillAdjustment:
    """A credit (below 0) or debit; `billed_in` is the cycle whose bill it is in, None: the next."""

    adjustment_no: int
    fleet_no: int
    name: str
    reason: str
    amount: Decimal
    currency: str
    billed_in: datetime | None
    made_at: datetime


_ADJUSTMENT = "adjustment_no, fleet_no, name, reason, amount, currency, billed_in, made_at"


async def insert_adjustment(
    connection: Connection,
    tenant_no: int,
    *,
    fleet_no: int,
    name: str,
    reason: str,
    amount: Decimal,
    currency: str,
    billed_in: datetime | None,
    now: datetime,
) -> int:
    """Enter an adjustment; return its number. The caller owns the fleet's bills."""
    made = await connection.execute(
        "INSERT INTO bill_adjustment (tenant_no, fleet_no, name, reason, amount, currency, billed_in,"
        " made_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING adjustment_no",
        [tenant_no, fleet_no, name, reason, amount, currency, billed_in, now],
    )
    row = await made.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    return int(row[0])


async def bill_adjustments(
    connection: Connection, fleet_no: int, billed_in: datetime | None, *, up_to: int | None = None
) -> list[BillAdjustment]:
    """Return the adjustments in a cycle's bill (None: that wait for one), up to a number, in order."""
    found = await connection.execute(
        f"SELECT {_ADJUSTMENT} FROM bill_adjustment"  # noqa: S608 - columns of this module
        " WHERE fleet_no = %s AND billed_in IS NOT DISTINCT FROM %s"
        " AND (%s::bigint IS NULL OR adjustment_no <= %s) ORDER BY adjustment_no",
        [fleet_no, billed_in, up_to, up_to],
    )
    return [_adjustment(row) for row in await found.fetchall()]


async def adjustment_by_no(
    connection: Connection, tenant_no: int, adjustment_no: int
) -> BillAdjustment:
    """Return one of a tenant's adjustments; raise `NotFound`."""
    found = await connection.execute(
        f"SELECT {_ADJUSTMENT} FROM bill_adjustment"  # noqa: S608 - columns of this module
        " WHERE tenant_no = %s AND adjustment_no = %s",
        [tenant_no, adjustment_no],
    )
    row = await found.fetchone()
    if row is None:
        raise NotFound("adjustment", str(adjustment_no))
    return _adjustment(row)


async def adjustment_with_fleet(
    connection: Connection, tenant_no: int, adjustment_no: int
) -> tuple[str, BillAdjustment]:
    """Return one of a tenant's adjustments with its fleet's id; raise `NotFound`."""
    rows = await list_adjustments(
        connection, tenant_no, fleet_no=None, after=adjustment_no - 1, limit=1
    )
    if not rows or rows[0][1].adjustment_no != adjustment_no:
        raise NotFound("adjustment", str(adjustment_no))
    return rows[0]


async def list_adjustments(
    connection: Connection,
    tenant_no: int,
    *,
    fleet_no: int | None,
    after: int,
    limit: int,
    during: During = ALWAYS,
) -> list[tuple[str, BillAdjustment]]:
    """Return at most `limit` of a tenant's adjustments after a number, each with its fleet's id."""
    found = await connection.execute(
        (
            "SELECT fleet.fleet_id, adjustment_no, bill_adjustment.fleet_no, bill_adjustment.name, reason,"  # noqa: S608 - columns
            " amount, bill_adjustment.currency, billed_in, made_at"
            " FROM bill_adjustment JOIN fleet ON fleet.fleet_no = bill_adjustment.fleet_no"
            " WHERE bill_adjustment.tenant_no = %(tenant)s AND fleet.tenant_no = %(tenant)s"
            " AND adjustment_no > %(after)s"
            " AND (%(fleet)s::int IS NULL OR bill_adjustment.fleet_no = %(fleet)s)"
            + during.condition("made_at")
            + " ORDER BY adjustment_no LIMIT %(limit)s"
        ).encode(),
        {
            "tenant": tenant_no,
            "after": after,
            "fleet": fleet_no,
            **during.parameters,
            "limit": limit,
        },
    )
    return [(row[0], _adjustment(row[1:])) for row in await found.fetchall()]


def _adjustment(row: Sequence[Any]) -> BillAdjustment:
    return BillAdjustment(**dict(zip(BillAdjustment.__slots__, row, strict=True)))


# Disputes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """A dispute about a line of a bill: `amount` of it, which with tax is the `held` amount."""

    dispute_no: int
    tenant_no: int
    bill_no: int
    line: int
    amount: Decimal
    held: Decimal
    reason: str
    opened_at: datetime
    state: str
    resolution: str | None
    resolved_at: datetime | None
    note_no: int | None


_DISPUTE = (
    "dispute_no, tenant_no, bill_no, line, amount, held, reason, opened_at, state, resolution,"
    " resolved_at, note_no"
)


async def insert_dispute(
    connection: Connection,
    tenant_no: int,
    *,
    bill_no: int,
    line: int,
    amount: Decimal,
    held: Decimal,
    reason: str,
    now: datetime,
) -> int:
    """Open a dispute; return its number. The caller owns the fleet's bills."""
    made = await connection.execute(
        "INSERT INTO dispute (tenant_no, bill_no, line, amount, held, reason, opened_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING dispute_no",
        [tenant_no, bill_no, line, amount, held, reason, now],
    )
    row = await made.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    return int(row[0])


async def dispute_by_no(connection: Connection, tenant_no: int, dispute_no: int) -> Dispute:
    """Return one of a tenant's disputes; raise `NotFound`."""
    found = await connection.execute(
        f"SELECT {_DISPUTE} FROM dispute WHERE tenant_no = %s AND dispute_no = %s",  # noqa: S608 - columns
        [tenant_no, dispute_no],
    )
    row = await found.fetchone()
    if row is None:
        raise NotFound("dispute", str(dispute_no))
    return _dispute(row)


async def disputes_of(connection: Connection, bill_no: int) -> list[Dispute]:
    """Return the disputes about a bill, in the order in which they were opened."""
    found = await connection.execute(
        f"SELECT {_DISPUTE} FROM dispute WHERE bill_no = %s ORDER BY dispute_no",  # noqa: S608 - columns
        [bill_no],
    )
    return [_dispute(row) for row in await found.fetchall()]


async def list_disputes(
    connection: Connection,
    tenant_no: int,
    *,
    fleet_no: int | None,
    state: str | None,
    after: int,
    limit: int,
    during: During = ALWAYS,
) -> list[tuple[str, Dispute]]:
    """Return at most `limit` of a tenant's disputes after a number, each with its fleet's id."""
    columns = ", ".join(f"dispute.{name}" for name in _DISPUTE.split(", "))
    found = await connection.execute(
        (
            f"SELECT fleet.fleet_id, {columns} FROM dispute"  # noqa: S608 - columns of this module
            " JOIN bill ON bill.bill_no = dispute.bill_no JOIN fleet ON fleet.fleet_no = bill.fleet_no"
            " WHERE dispute.tenant_no = %(tenant)s AND dispute.dispute_no > %(after)s"
            " AND (%(fleet)s::int IS NULL OR bill.fleet_no = %(fleet)s)"
            " AND (%(state)s::text IS NULL OR dispute.state = %(state)s)"
            + during.condition("dispute.opened_at")
            + " ORDER BY dispute.dispute_no LIMIT %(limit)s"
        ).encode(),
        {
            "tenant": tenant_no,
            "after": after,
            "fleet": fleet_no,
            "state": state,
            **during.parameters,
            "limit": limit,
        },
    )
    return [(row[0], _dispute(row[1:])) for row in await found.fetchall()]


async def end_dispute(
    connection: Connection,
    dispute_no: int,
    *,
    state: str,
    resolution: str,
    note_no: int | None,
    now: datetime,
) -> None:
    """Resolve a dispute that is open."""
    await connection.execute(
        "UPDATE dispute SET state = %s, resolution = %s, note_no = %s, resolved_at = %s"
        " WHERE dispute_no = %s AND state = 'open'",
        [state, resolution, note_no, now, dispute_no],
    )


def _dispute(row: Sequence[Any]) -> Dispute:
    return Dispute(**dict(zip(Dispute.__slots__, row, strict=True)))


# What was asked, once ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingOperation:
    """What a tenant asked for under a key, and the numbers of what it made."""

    kind: str
    content: Mapping[str, Any]
    outcome: Mapping[str, Any]
    made_at: datetime


async def billing_operation(
    connection: Connection, tenant_no: int, key: str
) -> BillingOperation | None:
    """Return what a tenant did under a key; None when nothing yet."""
    found = await connection.execute(
        "SELECT kind, content, outcome, made_at FROM billing_operation"
        " WHERE tenant_no = %s AND idempotency_key = %s",
        [tenant_no, key],
    )
    row = await found.fetchone()
    if row is None:
        return None
    return BillingOperation(kind=row[0], content=row[1], outcome=row[2], made_at=row[3])


async def insert_billing_operation(
    connection: Connection, tenant_no: int, key: str, operation: BillingOperation
) -> bool:
    """Keep what was done under a key; False if the key was used meanwhile."""
    made = await connection.execute(
        "INSERT INTO billing_operation (tenant_no, idempotency_key, kind, content, outcome, made_at)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        [
            tenant_no, key, operation.kind, Jsonb(operation.content), Jsonb(operation.outcome),
            operation.made_at,
        ],
    )  # fmt: skip
    return made.rowcount == 1


# The bill run ------------------------------------------------------------------------------------


_DUE = (
    " FROM bill JOIN tenant_billing USING (tenant_no) WHERE state = 'draft'"
    " AND (%(tenant_no)s::int IS NULL OR tenant_no = %(tenant_no)s)"
    " AND (%(by_hand)s OR finalising = 'at_once' OR (finalising = 'after_days'"
    "   AND drafted_at + make_interval(days => finalise_after_days) <= %(now)s))"
)


async def count_due_drafts(
    connection: Connection, *, tenant_no: int | None, by_hand: bool, now: datetime
) -> int:
    """Return how many drafts may be final by now."""
    found = await connection.execute(
        b"SELECT count(*)" + _DUE.encode(),
        {"tenant_no": tenant_no, "by_hand": by_hand, "now": now},
    )
    row = await found.fetchone()
    return int(row[0]) if row else 0


async def due_drafts(
    connection: Connection,
    *,
    tenant_no: int | None,
    by_hand: bool,
    now: datetime,
    after: int,
    limit: int,
) -> list[tuple[int, int]]:
    """Return `(tenant_no, bill_no)` of drafts that may be final by now, ascending, after a number.

    Of a tenant that finalises after days, those that were drafted so many days ago.
    """
    found = await connection.execute(
        b"SELECT tenant_no, bill_no"
        + _DUE.encode()
        + b" AND bill_no > %(after)s ORDER BY bill_no LIMIT %(limit)s",
        {"tenant_no": tenant_no, "by_hand": by_hand, "now": now, "after": after, "limit": limit},
    )
    return [(row[0], row[1]) for row in await found.fetchall()]
