"""What the audit of thresholds reads: alerts, what was counted, and what there was to share."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from metering.rating.threshold import Counted
from metering.store.connection import Connection
from metering.store.thresholds import LOTS_GIVEN, LOTS_HOLD, Lots, sums_of_lots


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAlert:
    """An alert as it is stored; `per_unit` of its value and limit make one."""

    alert_no: int
    threshold_no: int
    device_no: int | None
    period_start: datetime
    period_end: datetime
    occasion: int
    per_unit: int
    value: int
    limit: int
    run_no: int
    reading: tuple[int, int] | None
    """(boot_no, seq) of what crossed it."""
    cleared_run_no: int | None


async def stored_alerts(connection: Connection, fleet_no: int) -> list[StoredAlert]:
    """Return a fleet's alerts in the order in which they were raised."""
    found = await connection.execute(
        "SELECT alert_no, threshold_no, device_no, period_start, period_end, occasion, per_unit, value,"
        " limit_value, run_no, boot_no, seq, cleared_run_no FROM alert WHERE fleet_no = %s"
        " ORDER BY run_no, alert_no",
        [fleet_no],
    )
    return [
        StoredAlert(
            alert_no=row[0],
            threshold_no=row[1],
            device_no=row[2],
            period_start=row[3],
            period_end=row[4],
            occasion=row[5],
            per_unit=int(row[6]),
            value=int(row[7]),
            limit=int(row[8]),
            run_no=row[9],
            reading=None if row[10] is None else (row[10], row[11]),
            cleared_run_no=row[12],
        )
        for row in await found.fetchall()
    ]


async def counted_charges(
    connection: Connection, fleet_no: int, since: datetime
) -> AsyncIterator[tuple[int, tuple[int, int] | None, Counted]]:
    """Return what a fleet's charges since an instant added, run by run: (run_no, reading, what).

    What was charged again is taken away, and what came of it added, in the run that changed the terms;
    there is no one reading that this is due to, so it is None.
    """
    async with connection.cursor(name="counted_charges") as cursor:
        cursor.itersize = 5000
        values = {"fleet": fleet_no, "since": since}
        await cursor.execute(_COUNTED_CHARGES, values)
        async for row in cursor:
            counted = Counted(
                row[3], row[4], row[5], row[6], row[7], row[8], int(row[9]), int(row[10])
            )
            yield row[0], None if row[1] is None else (row[1], row[2]), counted


_ADDED: LiteralString = (
    " CASE WHEN made.run_no IS NULL THEN boot_no END, seq, charge.device_no, charge.meter_no,"
    " usage_from, charge.quantity, from_allowance, from_pool, amount, subunits_per_unit,"
    " run_position, part"
)
_SINCE: LiteralString = (
    " LEFT JOIN correction AS made ON made.correction_no = charge.correction_no"
    " JOIN plan ON plan.plan_no = charge.plan_no"
)
_WHERE: LiteralString = (
    " WHERE charge.fleet_no = %(fleet)s AND measured_at >= %(since)s AND usage_from >= %(since)s"
)
_COUNTED_CHARGES: LiteralString = (
    f"SELECT coalesce(made.run_no, charge.run_no) AS counts_from,{_ADDED}"  # noqa: S608 - no input
    f" FROM charge{_SINCE}{_WHERE}"
    " UNION ALL"
    f" SELECT coalesce(made.run_no, charge.run_no),{_ADDED}"
    f" FROM superseded_charge AS charge{_SINCE}{_WHERE}"
    " UNION ALL"
    " SELECT undone.run_no, NULL, seq, charge.device_no, charge.meter_no, usage_from,"
    " -charge.quantity, -from_allowance, -from_pool, -amount, subunits_per_unit, run_position, part"
    " FROM superseded_charge AS charge"
    " JOIN correction AS undone ON undone.correction_no = charge.superseded_by"
    f" JOIN plan ON plan.plan_no = charge.plan_no{_WHERE}"
    " ORDER BY counts_from, run_position, part"
)


async def most_granted(connection: Connection, wanted: Iterable[Lots]) -> dict[Lots, int]:
    """Return all that was ever put into the lots that hold at some time of a period."""
    return await sums_of_lots(connection, wanted, own=_OWN_GRANTED, pools=_POOL_GRANTED)


_GRANTED: LiteralString = f"SELECT position, sum(entry.quantity){LOTS_GIVEN}"
_OVERLAPPING: LiteralString = (
    f"{LOTS_HOLD} JOIN bucket_entry AS entry ON entry.bucket_no = bucket.bucket_no AND entry.quantity > 0"
    "   AND entry.kind NOT IN ('hold', 'release') GROUP BY position"
)
_OWN_GRANTED: LiteralString = (
    f"{_GRANTED} JOIN bucket ON bucket.kind = 'allowance' AND (bucket.device_no = given.owner"  # noqa: S608
    "   OR bucket.subscription_no IN (SELECT subscription_no FROM subscription"
    f"     WHERE subscription.device_no = given.owner)){_OVERLAPPING}"
)
_POOL_GRANTED: LiteralString = (
    f"{_GRANTED} JOIN bucket ON bucket.kind = 'pool' AND bucket.fleet_no = given.owner"
    f"{_OVERLAPPING}"
)
