"""What the auditor reads of closed cycles: what is kept of each, and charges by when they came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from metering.period import BillCycle
from metering.store.bill_views import UseRow
from metering.store.closing import STANDING_NOTED, statement_with_lines
from metering.store.connection import Connection
from metering.store.long_documents import without_many_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedAdjustment:
    """A frozen adjustment of a cycle, and in which run the bill that carries it says it closed.

    `billed_in` is the cycle whose bill it is in; None: a note settled it, on a bill that is not void.
    """

    billed_in: datetime | None
    run_no: int
    bill_run_no: int
    late_records: int
    exact: Fraction
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedCycle:
    """All that is kept of a cycle's closing.

    `marked_run_no` is in which run the cycle is marked as closed, `run_no`, `document` and `total` what
    was frozen (None: nothing). `adjustments` are those of it in later bills, in the order in which they
    were billed; `carried` is what adjustments in its own bill come to.
    """

    cycle: BillCycle
    marked_run_no: int | None
    late_records: int
    changed: bool
    corrected_run_no: int | None
    run_no: int | None
    document: Mapping[str, Any] | None
    total: Decimal | None
    carried: Decimal
    adjustments: Sequence[AuditedAdjustment] = ()


async def audited_cycles(connection: Connection, fleet_no: int) -> list[AuditedCycle]:
    """Return a fleet's opened cycles, ascending."""
    found = await connection.execute(
        "SELECT first_day, next_first_day, fleet_cycle.cycle_start, cycle_end, closed_run_no,"  # noqa: S608 - columns of this module
        " late_records, changed, corrected_run_no, closed_cycle.run_no,"
        f" {without_many_lines('statement')}, total,"
        " (SELECT coalesce(sum(amount), 0) FROM period_adjustment"
        "   WHERE period_adjustment.fleet_no = fleet_cycle.fleet_no AND billed_in = fleet_cycle.cycle_start),"
        " EXISTS (SELECT FROM period_adjustment AS own WHERE own.fleet_no = fleet_cycle.fleet_no)"
        " OR EXISTS (SELECT FROM noted_adjustment AS own WHERE own.fleet_no = fleet_cycle.fleet_no)"
        " FROM fleet_cycle LEFT JOIN closed_cycle USING (fleet_no, cycle_start)"
        " WHERE fleet_no = %s ORDER BY fleet_cycle.cycle_start".encode(),
        [fleet_no],
    )
    rows = await found.fetchall()
    cycles = {
        row[2]: AuditedCycle(
            cycle=BillCycle(first_day=row[0], next_first_day=row[1], start=row[2], end=row[3]),
            marked_run_no=row[4],
            late_records=row[5],
            changed=row[6],
            corrected_run_no=row[7],
            run_no=row[8],
            document=None
            if row[9] is None
            else await statement_with_lines(connection, (fleet_no, row[2]), row[9]),
            total=row[10],
            carried=row[11],
        )
        for row in rows
    }
    if not any(row[12] for row in rows):
        return list(cycles.values())
    adjusted = await connection.execute(
        "SELECT period_adjustment.cycle_start, billed_in, period_adjustment.run_no, bill.run_no,"  # noqa: S608 - text of the store
        " late_records, exact_amount, amount FROM period_adjustment"
        " JOIN closed_cycle AS bill ON bill.fleet_no = period_adjustment.fleet_no"
        "   AND bill.cycle_start = period_adjustment.billed_in"
        " WHERE period_adjustment.fleet_no = %(fleet_no)s"
        " UNION ALL SELECT cycle_start, NULL, run_no, run_no, late_records, exact_amount, amount"
        f"   FROM noted_adjustment WHERE fleet_no = %(fleet_no)s AND {STANDING_NOTED}"
        " ORDER BY 3".encode(),
        {"fleet_no": fleet_no},
    )
    by_cycle: dict[datetime, list[AuditedAdjustment]] = {}
    for start, billed_in, run_no, bill_run_no, late, exact, amount in await adjusted.fetchall():
        by_cycle.setdefault(start, []).append(
            AuditedAdjustment(
                billed_in=billed_in,
                run_no=run_no,
                bill_run_no=bill_run_no,
                late_records=late,
                exact=Fraction(exact),
                amount=amount,
            )
        )
    return [replace(each, adjustments=by_cycle.get(start, [])) for start, each in cycles.items()]


UsesByPlace = Mapping[datetime, Mapping[int, Sequence[UseRow]]]
"""By cycle, then by how many of some runs came before the charges or are theirs."""


async def uses_between(
    connection: Connection, fleet_no: int, runs: Sequence[int], cycles: Sequence[datetime]
) -> UsesByPlace:
    """Return what a fleet's charges of some cycles sum to, between some runs in ascending order."""
    found = await connection.execute(
        "SELECT cycle_start, width_bucket(run_no, %s::bigint[]) AS place, subscription_no, meter_no,"
        " variant, count(*), sum(quantity), sum(billed), sum(from_allowance), sum(from_pool),"
        " sum(overage), sum(amount) FROM charge WHERE fleet_no = %s AND cycle_start = ANY(%s)"
        " GROUP BY cycle_start, place, subscription_no, meter_no, variant"
        " ORDER BY subscription_no, meter_no, variant",
        [list(runs), fleet_no, list(cycles)],
    )
    uses: dict[datetime, dict[int, list[UseRow]]] = {}
    for row in await found.fetchall():
        cycle_start, place, subscription_no, meter_no, variant, records, *sums = row
        quantity, billed, from_allowance, from_pool, overage, amount = map(int, sums)
        uses.setdefault(cycle_start, {}).setdefault(place, []).append(
            UseRow(
                subscription_no=subscription_no,
                meter_no=meter_no,
                variant=variant,
                records=records,
                quantity=quantity,
                billed=billed,
                from_allowance=from_allowance,
                from_pool=from_pool,
                overage=overage,
                amount=amount,
            )
        )
    return uses
