"""What else the auditor reads: fleets, operations, cycles, reservations, states, and what sums to zero."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from metering.period import BillCycle
from metering.store.balances import (
    OPERATION_COLUMNS,
    Operation,
    operation_of_row,
)
from metering.store.connection import Connection
from metering.store.registry import Fleet, fleet_of_row
from metering.store.tally import of_fleet


async def read_from_one_snapshot(connection: Connection) -> None:
    """Make the open transaction read-only and see one state throughout."""
    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


async def all_fleets(connection: Connection) -> list[Fleet]:
    """Return every fleet."""
    found = await connection.execute(
        "SELECT fleet_no, tenant_no, fleet_id, name, currency, time_zone, anchor_day,"
        " cycle_months, anchor_month, earlier_zones, shard_no"
        " FROM fleet ORDER BY fleet_no"
    )
    return [fleet_of_row(row) for row in await found.fetchall()]


async def stored_operations(connection: Connection, fleet_no: int) -> list[Operation]:
    """Return what was asked of a fleet's balances, in the order in which it was done."""
    found = await connection.execute(
        f"SELECT {OPERATION_COLUMNS} FROM balance_operation"  # noqa: S608 - columns of the store
        " WHERE fleet_no = %s ORDER BY run_no",
        [fleet_no],
    )
    return [operation_of_row(row) for row in await found.fetchall()]


async def entered_sums(connection: Connection, fleet_no: int) -> dict[int, int]:
    """Return what the entries into and out of each of a fleet's buckets sum to; not what charges drew."""
    found = await connection.execute(
        "SELECT bucket_no, sum(quantity) FROM posting"
        " WHERE fleet_no = %s AND account = 'bucket' AND kind <> 'consumption' GROUP BY bucket_no",
        [fleet_no],
    )
    return {row[0]: int(row[1]) for row in await found.fetchall()}


async def unbalanced_entries(connection: Connection, fleet_no: int) -> list[tuple[int, int]]:
    """Return a fleet's entries that do not sum to zero over their accounts, and what they sum to.

    At most 20 are returned.
    """
    found = await connection.execute(
        "SELECT bucket_entry_no, sum(quantity) FROM posting"
        " WHERE fleet_no = %s AND kind <> 'consumption'"
        " GROUP BY bucket_entry_no HAVING sum(quantity) <> 0 ORDER BY bucket_entry_no LIMIT 20",
        [fleet_no],
    )
    return [(row[0], int(row[1])) for row in await found.fetchall()]


async def charge_count(connection: Connection, fleet_no: int) -> int:
    """Return how many charges say that they are a fleet's."""
    found = await connection.execute("SELECT count(*) FROM charge WHERE fleet_no = %s", [fleet_no])
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns one row
    return int(row[0])


async def stored_cycles(connection: Connection, fleet_no: int) -> list[BillCycle]:
    """Return a fleet's open cycles."""
    found = await connection.execute(
        "SELECT first_day, next_first_day, cycle_start, cycle_end FROM fleet_cycle"
        " WHERE fleet_no = %s ORDER BY cycle_start",
        [fleet_no],
    )
    return [
        BillCycle(first_day=row[0], next_first_day=row[1], start=row[2], end=row[3])
        for row in await found.fetchall()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReservation:
    """A stored reservation, whether another replaced it, and where something is held for it."""

    reservation_no: int
    state: str
    granted: int
    held: int
    run_no: int
    expires_at: datetime
    used: int | None
    ended_at: datetime | None
    ended_run_no: int | None
    drawn: int | None
    replaced: bool
    held_in: AbstractSet[int]


async def stored_reservations(connection: Connection, fleet_no: int) -> list[StoredReservation]:
    """Return a fleet's reservations."""
    found = await connection.execute(
        "SELECT reservation_no, state, granted, held, run_no, expires_at, used, ended_at, ended_run_no,"
        " drawn, EXISTS (SELECT FROM reservation AS later"
        "   WHERE later.replaces_no = reservation.reservation_no),"
        " ARRAY(SELECT bucket_no FROM bucket_hold"
        "   WHERE bucket_hold.reservation_no = reservation.reservation_no)"
        " FROM reservation WHERE fleet_no = %s ORDER BY reservation_no",
        [fleet_no],
    )
    return [
        StoredReservation(
            **dict(zip(StoredReservation.__slots__, (*row[:-1], set(row[-1])), strict=True))
        )
        for row in await found.fetchall()
    ]


async def unequal_states(
    connection: Connection, fleet_no: int | None = None
) -> list[tuple[str, datetime, str | None, str | None]]:
    """Return where a device's dated state is not what was said of it last: device, instant, both."""
    of_device = of_fleet("device_no", fleet_no)
    query = (
        "WITH said AS (SELECT DISTINCT ON (device_no, effective_from) device_no, effective_from, state,"  # noqa: S608 - a clause of the store
        f"   recorded_at FROM device_state_entry WHERE true{of_device}"
        "   ORDER BY device_no, effective_from, entry_no DESC),"
        " kept AS (SELECT device_no, effective_from, state, recorded_at FROM device_state_change"
        f"   WHERE true{of_device})"
        " SELECT device_id, effective_from, kept.state, said.state FROM kept"
        " FULL JOIN said USING (device_no, effective_from) JOIN device USING (device_no)"
        " WHERE (kept.state, kept.recorded_at) IS DISTINCT FROM (said.state, said.recorded_at)"
        " ORDER BY device_id, effective_from LIMIT 100"
    )
    found = await connection.execute(query.encode(), {"fleet_no": fleet_no})
    return [(row[0], row[1], row[2], row[3]) for row in await found.fetchall()]


async def missing_states(
    connection: Connection, fleet_no: int | None = None
) -> list[tuple[str, int, int]]:
    """Return where what was said of a device's states has gaps: device, last number, how many."""
    query = (
        "SELECT device_id, coalesce(max(entry_no), 0), count(entry_no) FROM device"  # noqa: S608 - a clause of the store
        " LEFT JOIN device_state_entry USING (device_no)"
        f" WHERE true{of_fleet('device.device_no', fleet_no)}"
        " GROUP BY device_no HAVING count(entry_no) <> max(entry_no) ORDER BY device_id LIMIT 100"
    )
    found = await connection.execute(query.encode(), {"fleet_no": fleet_no})
    return [(row[0], row[1], row[2]) for row in await found.fetchall()]


async def unequal_subscriptions(
    connection: Connection, fleet_no: int | None = None
) -> list[tuple[str, int, str, str]]:
    """Return where a subscription is not what was said of it last: device, number, both spans.

    Of one that no change of terms ever concerned nothing was said.
    """
    query = (
        "SELECT device_id, subscription_no, subscription.valid::text, said.valid::text"  # noqa: S608 - a clause of the store
        " FROM subscription JOIN device USING (device_no)"
        " JOIN LATERAL (SELECT entry.valid FROM subscription_entry AS entry"
        "   WHERE entry.subscription_no = subscription.subscription_no"
        "   ORDER BY entry.entry_no DESC LIMIT 1) AS said ON true"
        f" WHERE subscription.valid <> said.valid{of_fleet('subscription.device_no', fleet_no)}"
        " ORDER BY device_id, subscription_no LIMIT 100"
    )
    found = await connection.execute(query.encode(), {"fleet_no": fleet_no})
    return [(row[0], row[1], row[2], row[3]) for row in await found.fetchall()]
