"""Opened bill cycles: which there are, whom they concern, and what opening them wrote."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from metering.money import Money
from metering.period import BillCycle
from metering.rating.guide import Subscription
from metering.rating.proration import Grant
from metering.store.connection import Connection
from metering.store.registry import Fleet, fleet_of_row, subscription_of_row


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurringFee:
    """A subscription's fee of one cycle, for the days on which it runs."""

    subscription_no: int
    days: int
    amount: Money


async def opened_cycles(
    connection: Connection, keys: Iterable[tuple[int, datetime]]
) -> set[tuple[int, datetime]]:
    """Return which of `(fleet_no, cycle_start)` are open."""
    wanted = list(keys)
    found = await connection.execute(
        "SELECT fleet_no, cycle_start FROM unnest(%s::int[], %s::timestamptz[])"
        " AS given (fleet_no, cycle_start) JOIN fleet_cycle USING (fleet_no, cycle_start)",
        [[key[0] for key in wanted], [key[1] for key in wanted]],
    )
    return set(await found.fetchall())


async def insert_cycle(
    connection: Connection, fleet_no: int, cycle: BillCycle, *, now: datetime
) -> bool:
    """Mark a cycle as open and return True; False when it already was."""
    inserted = await connection.execute(
        "INSERT INTO fleet_cycle"
        " (fleet_no, cycle_start, cycle_end, first_day, next_first_day, opened_at)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (fleet_no, cycle_start) DO NOTHING",
        [fleet_no, cycle.start, cycle.end, cycle.first_day, cycle.next_first_day, now],
    )
    return inserted.rowcount == 1


async def cycles_open_in(
    connection: Connection, fleet_no: int, start: datetime, end: datetime | None
) -> list[BillCycle]:
    """Return a fleet's open cycles that overlap `[start, end)`."""
    found = await connection.execute(
        "SELECT first_day, next_first_day, cycle_start, cycle_end FROM fleet_cycle"
        " WHERE fleet_no = %s AND cycle_end > %s AND (%s::timestamptz IS NULL OR cycle_start < %s)"
        " ORDER BY cycle_start",
        [fleet_no, start, end, end],
    )
    return [
        BillCycle(first_day=row[0], next_first_day=row[1], start=row[2], end=row[3])
        for row in await found.fetchall()
    ]


async def billed_subscriptions(
    connection: Connection, fleet_no: int, cycle: BillCycle
) -> list[Subscription]:
    """Return the subscriptions in a cycle whose device is active when they begin in it.

    What begins in the cycle is looked at when it begins, what began before at the cycle's start.
    """
    found = await connection.execute(
        "SELECT subscription_no, device_no, plan_no, lower(valid), upper(valid)"
        " FROM device JOIN subscription USING (device_no)"
        " WHERE fleet_no = %s AND valid && tstzrange(%s, %s) AND 'active' = ("
        "   SELECT state FROM device_state_change AS change"
        "   WHERE change.device_no = device.device_no"
        "   AND change.effective_from <= greatest(lower(valid), %s)"
        "   ORDER BY effective_from DESC LIMIT 1)"
        " ORDER BY subscription_no",
        [fleet_no, cycle.start, cycle.end, cycle.start],
    )
    return [subscription_of_row(row) for row in await found.fetchall()]


async def store_grants(
    connection: Connection,
    fleet_no: int,
    cycle_start: datetime,
    grants: Sequence[Grant],
    *,
    run_no: int,
    now: datetime,
) -> None:
    """Put grants into their buckets, creating those, each subscription's once.

    They count from charging run `run_no` on. A bucket's cached sum grows by exactly the entries
    that were new.
    """
    own = [grant for grant in grants if not grant.pooled]
    await connection.execute(
        "INSERT INTO bucket (kind, fleet_no, subscription_no, meter_no, cycle_start)"
        " SELECT 'allowance', %s, subscription_no, meter_no, %s"
        " FROM unnest(%s::bigint[], %s::smallint[]) AS given (subscription_no, meter_no)"
        " ON CONFLICT DO NOTHING",
        [
            fleet_no,
            cycle_start,
            [grant.subscription_no for grant in own],
            [grant.meter_no for grant in own],
        ],
    )
    await connection.execute(
        "INSERT INTO bucket (kind, fleet_no, subscription_no, meter_no, cycle_start)"
        " SELECT 'pool', %s, NULL, meter_no, %s FROM unnest(%s::smallint[]) AS given (meter_no)"
        " ON CONFLICT DO NOTHING",
        [fleet_no, cycle_start, sorted({grant.meter_no for grant in grants if grant.pooled})],
    )
    await connection.execute(
        "WITH entered AS ("
        "   INSERT INTO bucket_entry (bucket_no, kind, quantity, subscription_no, run_no,"
        "     entered_at)"
        "   SELECT bucket_no, 'grant', given.quantity, given.subscription_no, %s, %s"
        "   FROM unnest(%s::bigint[], %s::smallint[], %s::boolean[], %s::numeric[])"
        "     AS given (subscription_no, meter_no, pooled, quantity)"
        "   JOIN bucket ON bucket.meter_no = given.meter_no AND bucket.cycle_start = %s"
        "     AND bucket.fleet_no = %s"
        "     AND CASE WHEN given.pooled THEN bucket.kind = 'pool'"
        "       ELSE bucket.subscription_no = given.subscription_no END"
        "   ON CONFLICT (bucket_no, kind, subscription_no) DO NOTHING"
        "   RETURNING bucket_no, quantity)"
        " UPDATE bucket SET granted = granted + added.quantity"
        " FROM (SELECT bucket_no, sum(quantity) AS quantity FROM entered GROUP BY bucket_no) AS added"
        " WHERE bucket.bucket_no = added.bucket_no",
        [
            run_no,
            now,
            [grant.subscription_no for grant in grants],
            [grant.meter_no for grant in grants],
            [grant.pooled for grant in grants],
            [grant.quantity for grant in grants],
            cycle_start,
            fleet_no,
        ],
    )


async def store_fees(
    connection: Connection,
    fleet_no: int,
    cycle_start: datetime,
    fees: Sequence[RecurringFee],
    *,
    now: datetime,
) -> None:
    """Charge recurring fees of a cycle, each subscription's once."""
    cursor = connection.cursor()
    await cursor.executemany(
        "INSERT INTO recurring_charge"
        " (subscription_no, cycle_start, kind, fleet_no, days, amount, subunits_per_unit, charged_at)"
        " VALUES (%s, %s, 'monthly_fee', %s, %s, %s, %s, %s)"
        " ON CONFLICT (subscription_no, cycle_start, kind) DO NOTHING",
        [
            (
                fee.subscription_no, cycle_start, fleet_no, fee.days,
                fee.amount.count, fee.amount.per_unit, now,
            )
            for fee in fees
        ],
    )  # fmt: skip


async def fleets_without_open_cycle(connection: Connection, now: datetime) -> list[Fleet]:
    """Return the fleets that have no open cycle for the present instant."""
    found = await connection.execute(
        "SELECT fleet_no, tenant_no, fleet_id, name, currency, time_zone, anchor_day, shard_no"
        " FROM fleet WHERE NOT EXISTS (SELECT FROM fleet_cycle"
        "   WHERE fleet_cycle.fleet_no = fleet.fleet_no"
        "   AND cycle_start <= %s AND cycle_end > %s)"
        " ORDER BY shard_no, fleet_no LIMIT 100",
        [now, now],
    )
    return [fleet_of_row(row) for row in await found.fetchall()]
