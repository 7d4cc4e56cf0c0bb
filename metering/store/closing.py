"""Closed bill cycles: what was frozen of them, and what changed since."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from metering.period import BillCycle
from metering.store.connection import Connection
from metering.store.long_documents import storing, with_lines, without_many_lines
from metering.store.registry import Fleet, fleet_of_row

CycleKey = tuple[int, datetime]
"""(fleet_no, cycle_start)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedCycle:
    """A cycle as it was closed: its own statement as a document, and what it was billed in all."""

    run_no: int
    closed_at: datetime
    statement: Mapping[str, Any]
    total: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdjustment:
    """What one closed cycle owes more (or less) than was billed of it before, as it was frozen."""

    cycle: BillCycle
    run_no: int
    late_records: int
    exact: Fraction
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedCycle:
    """A closed cycle that changed since, with all that was billed of it in later cycles.

    `late_records` are those that no adjustment counts yet.
    """

    cycle: BillCycle
    statement: Mapping[str, Any]
    adjustments: Sequence[StoredAdjustment]
    late_records: int


async def cycles_to_close(
    connection: Connection,
    *,
    ended_by: datetime,
    after: tuple[Fleet, BillCycle] | None,
    limit: int,
) -> list[tuple[Fleet, BillCycle]]:
    """Return cycles that are not closed and ended by then, each fleet's in order: those after one."""
    place = None if after is None else (after[0].shard_no, after[0].fleet_no, after[1].start)
    found = await connection.execute(
        "SELECT fleet.fleet_no, tenant_no, fleet_id, name, currency, time_zone, anchor_day,"
        " cycle_months, anchor_month, earlier_zones, shard_no,"
        " first_day, next_first_day, cycle_start, cycle_end FROM fleet_cycle JOIN fleet USING (fleet_no)"
        " WHERE closed_run_no IS NULL AND cycle_end <= %s"
        " AND (%s OR (shard_no, fleet.fleet_no, cycle_start) > (%s, %s, %s))"
        " ORDER BY shard_no, fleet.fleet_no, cycle_start LIMIT %s",
        [ended_by, place is None, *(place or (0, 0, ended_by)), limit],
    )
    return [(fleet_of_row(row[:11]), _cycle(row[11:])) for row in await found.fetchall()]


async def count_cycles_to_close(connection: Connection, *, ended_by: datetime) -> int:
    """Return how many cycles are not closed and ended by then."""
    found = await connection.execute(
        "SELECT count(*) FROM fleet_cycle WHERE closed_run_no IS NULL AND cycle_end <= %s",
        [ended_by],
    )
    row = await found.fetchone()
    return 0 if row is None else int(row[0])


async def unclosed_up_to(connection: Connection, key: CycleKey) -> list[datetime]:
    """Return the starts of a fleet's cycles that are not closed, up to one, ascending."""
    found = await connection.execute(
        "SELECT cycle_start FROM fleet_cycle WHERE fleet_no = %s AND cycle_start <= %s"
        " AND closed_run_no IS NULL ORDER BY cycle_start",
        [*key],
    )
    return [row[0] for row in await found.fetchall()]


async def is_usage_queued(
    connection: Connection, fleet: Fleet, cycle: BillCycle, *, received_before: datetime
) -> bool:
    """Whether readings of a fleet wait that may belong to a cycle and were received before then.

    A reading may tell of usage before it was measured, so each that was measured since the cycle
    began counts; so does one of a device that was in the fleet before.
    """
    homes = await connection.execute(
        "SELECT DISTINCT home.shard_no FROM subscription JOIN device USING (device_no)"
        " JOIN fleet AS home ON home.fleet_no = device.fleet_no WHERE subscription.fleet_no = %s",
        [fleet.fleet_no],
    )
    shards = {fleet.shard_no, *(row[0] for row in await homes.fetchall())}
    found = await connection.execute(
        "SELECT array_agg(batch_no), min(measured_from), max(measured_to) FROM work_item"
        " WHERE shard_no = ANY(%s) AND measured_to >= %s",
        [sorted(shards), cycle.start],
    )
    row = await found.fetchone()
    if row is None or row[0] is None:
        return False
    batch_nos, measured_from, measured_to = row
    found = await connection.execute(
        "SELECT min(received_at) FROM reading WHERE batch_no = ANY(%s) AND measured_at BETWEEN %s AND %s"
        " AND device_no IN (SELECT device_no FROM device WHERE fleet_no = %s"
        "   UNION SELECT device_no FROM subscription WHERE fleet_no = %s)"
        " AND EXISTS (SELECT FROM work_item WHERE work_item.shard_no = reading.shard_no"
        "   AND work_item.batch_no = reading.batch_no)",
        [
            batch_nos,
            max(measured_from, cycle.start),
            measured_to,
            fleet.fleet_no,
            fleet.fleet_no,
        ],
    )
    row = await found.fetchone()
    return row is not None and row[0] is not None and row[0] < received_before


async def store_closed_cycle(
    connection: Connection,
    key: CycleKey,
    *,
    run_no: int,
    now: datetime,
    statement: Mapping[str, object],
    total: Decimal,
    adjustments: Sequence[StoredAdjustment],
) -> None:
    """Close a cycle that is open: freeze its statement and the adjustments that its bill carries.

    The cycles that those name count as unchanged from then on.
    """
    fleet_no, cycle_start = key
    async with storing(connection, statement) as (document, told):
        await connection.execute(
            "INSERT INTO closed_cycle (fleet_no, cycle_start, run_no, closed_at, statement, total)"  # noqa: S608 - an expression of the store
            f" VALUES (%s, %s, %s, %s, {document}, %s)".encode(),
            [fleet_no, cycle_start, run_no, now, *told, total],
        )
    await connection.execute(
        "UPDATE fleet_cycle SET closed_run_no = %s WHERE fleet_no = %s AND cycle_start = %s",
        [run_no, fleet_no, cycle_start],
    )
    if not adjustments:
        return
    starts = [each.cycle.start for each in adjustments]
    await connection.execute(
        "INSERT INTO period_adjustment"
        " (fleet_no, billed_in, run_no, cycle_start, late_records, amount, exact_amount)"
        " SELECT %s, %s, %s, * FROM unnest(%s::timestamptz[], %s::bigint[], %s::numeric[], %s::text[])",
        [
            fleet_no,
            cycle_start,
            run_no,
            starts,
            [each.late_records for each in adjustments],
            [each.amount for each in adjustments],
            [str(each.exact) for each in adjustments],
        ],
    )
    await connection.execute(
        "UPDATE fleet_cycle SET changed = false WHERE fleet_no = %s AND cycle_start = ANY(%s)",
        [fleet_no, starts],
    )


async def add_late_records(connection: Connection, records: Mapping[CycleKey, int]) -> int:
    """Count usage records that were just charged: those of cycles that are closed, which are late.

    Returns how many those are.
    """
    keys = sorted(records)
    counted = await connection.execute(
        "UPDATE fleet_cycle SET late_records = late_records + given.records, changed = true"
        " FROM unnest(%s::int[], %s::timestamptz[], %s::bigint[])"
        " AS given (fleet_no, cycle_start, records)"
        " WHERE fleet_cycle.fleet_no = given.fleet_no"
        " AND fleet_cycle.cycle_start = given.cycle_start AND closed_run_no IS NOT NULL"
        " RETURNING given.records",
        [[key[0] for key in keys], [key[1] for key in keys], [records[key] for key in keys]],
    )
    return sum(row[0] for row in await counted.fetchall())


async def mark_changed_after_close(connection: Connection, keys: Iterable[CycleKey]) -> None:
    """Have cycles reckoned again for an adjustment because terms or charges of theirs changed.

    For whatever changes what a cycle owes other than by new charges. Cycles that are open are left
    alone. The caller owns the fleets' shards and has taken its run's number.
    """
    wanted = sorted(set(keys))
    await connection.execute(
        "UPDATE fleet_cycle SET changed = true,"
        " corrected_run_no = (SELECT last_value FROM charging_run_no)"
        " FROM unnest(%s::int[], %s::timestamptz[]) AS given (fleet_no, cycle_start)"
        " WHERE fleet_cycle.fleet_no = given.fleet_no"
        " AND fleet_cycle.cycle_start = given.cycle_start AND closed_run_no IS NOT NULL",
        [[key[0] for key in wanted], [key[1] for key in wanted]],
    )


async def closed_since(connection: Connection, fleet_no: int, since: datetime) -> list[CycleKey]:
    """Return a fleet's closed cycles that end at an instant or after it."""
    found = await connection.execute(
        "SELECT fleet_no, cycle_start FROM fleet_cycle"
        " WHERE fleet_no = %s AND cycle_end >= %s AND closed_run_no IS NOT NULL",
        [fleet_no, since],
    )
    return [(row[0], row[1]) for row in await found.fetchall()]


async def closed_cycle(connection: Connection, key: CycleKey) -> ClosedCycle | None:
    """Return a cycle as it was closed; None while it is open."""
    found = await connection.execute(
        f"SELECT run_no, closed_at, {without_many_lines('statement')}, total FROM closed_cycle"  # noqa: S608 - columns of this module
        " WHERE fleet_no = %s AND cycle_start = %s".encode(),
        [*key],
    )
    row = await found.fetchone()
    if row is None:
        return None
    statement = await statement_with_lines(connection, key, row[2])
    return ClosedCycle(run_no=row[0], closed_at=row[1], statement=statement, total=row[3])


async def statement_with_lines(
    connection: Connection, key: CycleKey, statement: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return a frozen statement that was read `without_many_lines` with its lines."""
    source = "statement FROM closed_cycle WHERE fleet_no = %s AND cycle_start = %s"
    return await with_lines(connection, statement, source, key)


async def carrying_cycle(connection: Connection, fleet_no: int) -> datetime | None:
    """Return the start of the cycle whose bill carries adjustments; None where none was closed.

    It is the first that is not closed after the last that is.
    """
    found = await connection.execute(
        "SELECT coalesce((SELECT min(cycle_start) FROM fleet_cycle WHERE fleet_no = %s"
        "   AND closed_run_no IS NULL AND cycle_start > last.cycle_start), last.cycle_end)"
        " FROM (SELECT cycle_start, cycle_end FROM fleet_cycle WHERE fleet_no = %s"
        "   AND closed_run_no IS NOT NULL ORDER BY cycle_start DESC LIMIT 1) AS last",
        [fleet_no, fleet_no],
    )
    row = await found.fetchone()
    return None if row is None else row[0]


async def changed_cycles(connection: Connection, fleet_no: int) -> list[ChangedCycle]:
    """Return a fleet's closed cycles that changed since, ascending."""
    found = await connection.execute(
        "SELECT first_day, next_first_day, fleet_cycle.cycle_start, cycle_end,"  # noqa: S608 - columns of this module
        f" {without_many_lines('statement')}, late_records"
        " FROM fleet_cycle JOIN closed_cycle USING (fleet_no, cycle_start)"
        " WHERE fleet_no = %s AND changed ORDER BY cycle_start".encode(),
        [fleet_no],
    )
    changed: list[ChangedCycle] = []
    for row in await found.fetchall():
        cycle = _cycle(row[:4])
        adjustments = await _adjustments(connection, fleet_no, "cycle_start", cycle.start)
        adjustments += await _noted(connection, fleet_no, cycle)
        counted = sum(each.late_records for each in adjustments)
        changed.append(
            ChangedCycle(
                cycle=cycle,
                statement=await statement_with_lines(connection, (fleet_no, cycle.start), row[4]),
                adjustments=adjustments,
                late_records=row[5] - counted,
            )
        )
    return changed


async def adjustments_in(connection: Connection, key: CycleKey) -> list[StoredAdjustment]:
    """Return the adjustments that a closed cycle's bill carries, by the cycle that they name."""
    return await _adjustments(connection, key[0], "billed_in", key[1])


async def closed_cycles_since(
    connection: Connection, fleet_no: int, since: datetime
) -> list[BillCycle]:
    """Return a fleet's closed cycles that end after an instant, ascending."""
    found = await connection.execute(
        "SELECT first_day, next_first_day, cycle_start, cycle_end FROM fleet_cycle"
        " WHERE fleet_no = %s AND cycle_end > %s AND closed_run_no IS NOT NULL ORDER BY cycle_start",
        [fleet_no, since],
    )
    return [_cycle(row) for row in await found.fetchall()]


async def store_noted_adjustment(
    connection: Connection,
    key: CycleKey,
    *,
    run_no: int,
    late_records: int,
    exact: Fraction,
    amount: Decimal,
    note_no: int | None,
) -> None:
    """Keep what a closed cycle owes since and a note settled; it counts as unchanged from then on."""
    await connection.execute(
        "INSERT INTO noted_adjustment"
        " (fleet_no, cycle_start, run_no, late_records, amount, exact_amount, note_no)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        [*key, run_no, late_records, amount, str(exact), note_no],
    )
    await connection.execute(
        "UPDATE fleet_cycle SET changed = false WHERE fleet_no = %s AND cycle_start = %s", [*key]
    )


STANDING_NOTED = (
    "NOT EXISTS (SELECT FROM bill AS note JOIN bill AS billed ON billed.bill_no = note.corrects_no"
    "   WHERE note.bill_no = noted_adjustment.note_no AND billed.state = 'void')"
)
"""Of `noted_adjustment`, what still counts as billed: not what notes on a bill settled that is void now."""


async def is_settled_by_notes(connection: Connection, bill_no: int) -> bool:
    """Whether a note on a bill settled what its cycle owed since it closed."""
    found = await connection.execute(
        "SELECT EXISTS (SELECT FROM bill AS note JOIN noted_adjustment ON note_no = note.bill_no"
        " WHERE note.corrects_no = %s)",
        [bill_no],
    )
    row = await found.fetchone()
    return row is not None and bool(row[0])


async def _noted(connection: Connection, fleet_no: int, cycle: BillCycle) -> list[StoredAdjustment]:
    found = await connection.execute(
        "SELECT run_no, late_records, amount, exact_amount FROM noted_adjustment"  # noqa: S608 - text of this module
        f" WHERE fleet_no = %s AND cycle_start = %s AND {STANDING_NOTED} ORDER BY run_no".encode(),
        [fleet_no, cycle.start],
    )
    return [
        StoredAdjustment(
            cycle=cycle,
            run_no=row[0],
            late_records=row[1],
            amount=row[2],
            exact=Fraction(row[3]),
        )
        for row in await found.fetchall()
    ]


async def _adjustments(
    connection: Connection, fleet_no: int, column: str, start: datetime
) -> list[StoredAdjustment]:
    query = (
        "SELECT first_day, next_first_day, cycle_start, cycle_end, period_adjustment.run_no,"  # noqa: S608 - columns of this module
        " period_adjustment.late_records, amount, exact_amount"
        " FROM period_adjustment JOIN fleet_cycle USING (fleet_no, cycle_start)"
        f" WHERE fleet_no = %s AND period_adjustment.{column} = %s ORDER BY cycle_start, billed_in"
    )
    found = await connection.execute(query.encode(), [fleet_no, start])
    return [
        StoredAdjustment(
            cycle=_cycle(row[:4]),
            run_no=row[4],
            late_records=row[5],
            amount=row[6],
            exact=Fraction(row[7]),
        )
        for row in await found.fetchall()
    ]


def _cycle(row: Sequence[Any]) -> BillCycle:
    return BillCycle(first_day=row[0], next_first_day=row[1], start=row[2], end=row[3])
