"""What the auditor reads of bills: cycles without one, and how their numbers were counted."""

from datetime import date, datetime
from decimal import Decimal

from metering.store.connection import Connection


async def final_bill_nos(connection: Connection, fleet_no: int) -> list[int]:
    """Return the numbers of a fleet's bills, without its notes and drafts, ascending."""
    found = await connection.execute(
        "SELECT bill_no FROM bill WHERE fleet_no = %s AND kind = 'bill' AND state <> 'draft'"
        " ORDER BY bill_no",
        [fleet_no],
    )
    return [row[0] for row in await found.fetchall()]


async def undrafted_cycles(connection: Connection, fleet_no: int) -> list[date]:
    """Return the first days of a fleet's closed cycles of which there is no bill at all."""
    found = await connection.execute(
        "SELECT first_day FROM closed_cycle JOIN fleet_cycle USING (fleet_no, cycle_start)"
        " WHERE fleet_no = %s AND NOT EXISTS (SELECT FROM bill"
        "   WHERE bill.kind = 'bill' AND bill.fleet_no = closed_cycle.fleet_no"
        "   AND bill.cycle_start = closed_cycle.cycle_start)"
        " ORDER BY cycle_start",
        [fleet_no],
    )
    return [row[0] for row in await found.fetchall()]


async def unequal_settlements(
    connection: Connection, fleet_no: int
) -> list[tuple[date, str | None, Decimal, Decimal]]:
    """Return what notes settled and come otherwise to: `(first day, note, settled, its lines)`."""
    found = await connection.execute(
        "SELECT first_day, bill.name, noted_adjustment.amount, lines.amount FROM noted_adjustment"
        " JOIN fleet_cycle USING (fleet_no, cycle_start) LEFT JOIN bill ON bill_no = note_no"
        " CROSS JOIN LATERAL (SELECT coalesce(sum((line ->> 'amount')::numeric), 0)"
        "   * CASE bill.kind WHEN 'credit_note' THEN -1 ELSE 1 END AS amount"
        "   FROM jsonb_array_elements(bill.document -> 'lines') AS line) AS lines"
        " WHERE noted_adjustment.fleet_no = %s AND noted_adjustment.amount <> lines.amount",
        [fleet_no],
    )
    return [(row[0], row[1], row[2], row[3]) for row in await found.fetchall()]


async def last_adjustment(connection: Connection, fleet_no: int, billed_in: datetime) -> int:
    """Return the number of the last adjustment in a cycle's bill; 0 if there is none."""
    found = await connection.execute(
        "SELECT coalesce(max(adjustment_no), 0) FROM bill_adjustment"
        " WHERE fleet_no = %s AND billed_in = %s",
        [fleet_no, billed_in],
    )
    row = await found.fetchone()
    return 0 if row is None else int(row[0])


async def uncounted_numbers(
    connection: Connection,
) -> list[tuple[str, str, int, int, int, int]]:
    """Return series whose numbers are not 1 to their count.

    Each as `(tenant_id, series, year, documents, highest number, last number that was counted)`.
    """
    found = await connection.execute(
        "SELECT tenant_id, series, year, coalesce(documents, 0), coalesce(highest, 0),"
        " coalesce(last_number, 0)"
        " FROM (SELECT tenant_no, series, year, count(*) AS documents, max(number) AS highest"
        "   FROM bill WHERE state <> 'draft' GROUP BY tenant_no, series, year) AS numbered"
        " FULL JOIN number_counter USING (tenant_no, series, year) JOIN tenant USING (tenant_no)"
        " WHERE documents IS DISTINCT FROM highest OR highest IS DISTINCT FROM last_number"
        " ORDER BY tenant_id, series, year"
    )
    return [(row[0], row[1], row[2], row[3], row[4], row[5]) for row in await found.fetchall()]
