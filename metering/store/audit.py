"""What else the auditor reads: fleets, operations, cycles, reservations, states, and what sums to zero."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

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


_UNBALANCED_MAX = 20


class Rare(StrEnum):
    """What few fleets have, or few have yet: asked of all at once, it need not be looked for in each."""

    ACCOUNTS = "accounts"
    """Payments, entries of the account, documents that are no drafts."""
    BILLS = "bills"
    """Closed cycles, bills that are no drafts, adjustments that a note settled."""
    COUNTS = "counts"
    LARGE = "large"
    """So many subscriptions that the audit may be silent for long."""
    OPERATIONS = "operations"
    RESERVATIONS = "reservations"
    THRESHOLDS = "thresholds"
    TOP_UPS = "top_ups"
    UNEVEN = "uneven"
    """Counters, or readings that are parked, of devices that are or were in it."""


_UNEVEN_DEVICES = (
    "SELECT device_no FROM counter"
    " UNION SELECT boot.device_no FROM parked JOIN boot USING (boot_no)"
)
_FLEETS_WITH = {
    Rare.ACCOUNTS: (
        "SELECT fleet_no FROM payment UNION SELECT fleet_no FROM account_entry"
        " UNION SELECT fleet_no FROM bill WHERE state <> 'draft'"
    ),
    Rare.BILLS: (
        "SELECT fleet_no FROM closed_cycle WHERE NOT EXISTS (SELECT FROM bill WHERE bill.kind = 'bill'"
        "   AND bill.fleet_no = closed_cycle.fleet_no AND bill.cycle_start = closed_cycle.cycle_start)"
        " UNION SELECT fleet_no FROM bill WHERE state <> 'draft'"
        " UNION SELECT fleet_no FROM noted_adjustment"
    ),
    Rare.COUNTS: "SELECT fleet_no FROM rating_count",
    Rare.LARGE: "SELECT fleet_no FROM subscription GROUP BY fleet_no HAVING count(*) > 1000",
    Rare.OPERATIONS: "SELECT fleet_no FROM balance_operation",
    Rare.RESERVATIONS: "SELECT fleet_no FROM reservation",
    Rare.THRESHOLDS: "SELECT fleet_no FROM threshold UNION SELECT fleet_no FROM threshold_tally",
    Rare.TOP_UPS: "SELECT fleet_no FROM bucket WHERE source = 'top_up'",
    Rare.UNEVEN: (
        f"SELECT fleet_no FROM device WHERE device_no IN ({_UNEVEN_DEVICES})"  # noqa: S608 - own text
        f" UNION SELECT fleet_no FROM subscription WHERE device_no IN ({_UNEVEN_DEVICES})"
    ),
}


async def rare_of_fleets(
    connection: Connection, fleet_no: int | None = None
) -> dict[int, set[Rare]]:
    """Return by fleet what it has of what few fleets have: of all fleets, or of one.

    One fleet always counts as uneven: that is not found without looking at all of its devices.
    """
    of_one = "" if fleet_no is None else " WHERE fleet_no = %(fleet_no)s"
    query = " UNION ALL ".join(
        f"SELECT DISTINCT '{rare}', fleet_no FROM ({having}) AS known{of_one}"  # noqa: S608 - own text
        for rare, having in _FLEETS_WITH.items()
        if fleet_no is None or rare is not Rare.UNEVEN
    )
    found = await connection.execute(query.encode(), {"fleet_no": fleet_no})
    rare: dict[int, set[Rare]] = {} if fleet_no is None else {fleet_no: {Rare.UNEVEN}}
    for name, having_it in await found.fetchall():
        rare.setdefault(having_it, set()).add(Rare(name))
    return rare


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


async def unbalanced_entries(
    connection: Connection, fleet_no: int | None = None
) -> dict[int, list[tuple[int, int]]]:
    """Return by fleet entries that do not sum to zero over their accounts, and what they sum to.

    At most 20 of each fleet are returned, of all fleets or of one.
    """
    of_fleet = "" if fleet_no is None else " AND fleet_no = %(fleet_no)s"
    found = await connection.execute(
        "SELECT fleet_no, bucket_entry_no, sum(quantity) FROM posting"  # noqa: S608 - own text
        f" WHERE kind <> 'consumption'{of_fleet} GROUP BY fleet_no, bucket_entry_no"
        " HAVING sum(quantity) <> 0 ORDER BY bucket_entry_no",
        {"fleet_no": fleet_no},
    )
    unbalanced: dict[int, list[tuple[int, int]]] = {}
    for number, entry_no, quantity in await found.fetchall():
        of_one = unbalanced.setdefault(number, [])
        if len(of_one) < _UNBALANCED_MAX:
            of_one.append((entry_no, int(quantity)))
    return unbalanced


async def charge_count(connection: Connection, fleet_no: int) -> int:
    """Return how many charges say that they are a fleet's."""
    found = await connection.execute("SELECT count(*) FROM charge WHERE fleet_no = %s", [fleet_no])
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns one row
    return int(row[0])


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
