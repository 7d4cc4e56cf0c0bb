"""What the auditor reads: every reading with its charges in charging order, and all kept sums."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import groupby
from typing import Any, LiteralString

from psycopg.rows import TupleRow

from metering.period import BillCycle
from metering.rating.account import CountKey, MeterUse, UseKey
from metering.rating.guide import Subscription
from metering.rating.record import EpochKey, StoredReading
from metering.rating.threshold import Counted
from metering.store.accounts import BUCKET_COLUMNS, CounterEnds, counter_of_row
from metering.store.balances import (
    OPERATION_COLUMNS,
    TOP_UP_COLUMNS,
    Operation,
    TopUpRow,
    operation_of_row,
)
from metering.store.charges import ChargeColumns
from metering.store.connection import Connection
from metering.store.readings import reading_of
from metering.store.registry import Fleet, fleet_of_row, subscription_of_row
from metering.store.thresholds import LOTS_GIVEN, LOTS_HOLD, Lots, sums_of_lots
from metering.usage import Reading

Place = tuple[int, int]
"""(run_no, run_position): what counts from there on counts before the reading there; -1: before all."""

_DEVICES = (
    "SELECT device_no FROM subscription WHERE fleet_no = %(fleet_no)s"
    " UNION SELECT device_no FROM device WHERE fleet_no = %(fleet_no)s"
)
"""Devices that are or were in a fleet."""


def _narrowed(devices: Sequence[int] | None) -> str:
    return _DEVICES if devices is None else "SELECT unnest(%(devices)s::bigint[])"


class EntryKind(StrEnum):
    """What a bucket entry is. The texts are stored and public."""

    GRANT = "grant"
    """What a subscription brings in."""
    REGRANT = "regrant"
    """What a change of terms added to a grant or took from it."""
    EXPIRY = "expiry"
    """What does not roll over."""
    ROLLOVER = "rollover"
    """What goes on into a cycle: out of the bucket in the one before, and into it again."""
    TOP_UP = "top_up"
    """What was bought on top."""
    TRANSFER = "transfer"
    """What was moved from another bucket."""
    ADJUSTMENT = "adjustment"
    """What an operator gave, or took away."""
    HOLD = "hold"
    """What is promised to a subscription ahead of its use; it does not change what was granted."""
    RELEASE = "release"
    """What of a hold was not used when its reservation ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """One reading as charging left it, at its place in the history: its charges, or why it is parked.

    `stored` is None when the charges' reading is missing. `charges` are those in every fleet.
    """

    run_no: int
    run_position: int
    boot_no: int
    seq: int
    stored: StoredReading | None
    charges: Sequence[ChargeColumns]
    parked: tuple[str, int, int, datetime, datetime] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry:
    """A stored bucket entry: from where in the history it counts, what caused it, and how much.

    `subscription_no` is that of a grant, `other_bucket_no` where a transfer or a rollover comes from;
    `reservation_no` is set on holds and releases.
    """

    entry_no: int
    kind: EntryKind
    place: Place
    bucket_no: int
    subscription_no: int | None
    quantity: int
    reservation_no: int | None = None
    other_bucket_no: int | None = None
    operation_no: int | None = None
    cycle_start: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBucket:
    """A stored bucket: its row as the store reads it, and the cycle in which it was granted."""

    row: Sequence[Any]
    cycle_start: datetime | None
    drawn: Mapping[int, int]
    """subscription_no → what it drew, of a pool with a floor or a ceiling."""
    members: AbstractSet[int]
    """subscription_no of those who brought something into a pool with a floor or a ceiling."""
    held: Mapping[int, int]
    """subscription_no → what is held for it."""

    @property
    def terms_plan_no(self) -> int | None:
        """The plan version that says how it is drawn from; None of a top-up."""
        return None if self.row[5] is None else int(self.row[5])


async def read_from_one_snapshot(connection: Connection) -> None:
    """Make the open transaction read-only and see one state throughout."""
    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


async def all_fleets(connection: Connection) -> list[Fleet]:
    """Return every fleet."""
    found = await connection.execute(
        "SELECT fleet_no, tenant_no, fleet_id, name, currency, time_zone, anchor_day, shard_no"
        " FROM fleet ORDER BY fleet_no"
    )
    return [fleet_of_row(row) for row in await found.fetchall()]


async def fleet_subscriptions(
    connection: Connection, fleet_no: int, devices: Sequence[int] | None = None
) -> dict[int, list[Subscription]]:
    """Return all subscriptions of devices that are or were in a fleet, each's ascending in time.

    `devices` narrows them to some, here and elsewhere.
    """
    found = await connection.execute(
        "SELECT subscription_no, device_no, plan_no, lower(valid), upper(valid), fleet_no"  # noqa: S608
        f" FROM subscription WHERE device_no IN ({_narrowed(devices)})"
        " AND NOT isempty(valid) ORDER BY device_no, lower(valid)",
        {"fleet_no": fleet_no, "devices": devices},
    )
    subscriptions: dict[int, list[Subscription]] = {}
    for row in await found.fetchall():
        subscriptions.setdefault(row[1], []).append(subscription_of_row(row))
    return subscriptions


async def plans_of_subscriptions(
    connection: Connection, fleet_no: int, devices: Sequence[int] | None = None
) -> dict[int, int]:
    """Return the plan version of each subscription in a fleet, of empty ones too."""
    found = await connection.execute(
        "SELECT subscription_no, plan_no FROM subscription WHERE fleet_no = %s"
        " AND (%s::bigint[] IS NULL OR device_no = ANY(%s::bigint[]))",
        [fleet_no, devices, devices],
    )
    return dict(await found.fetchall())


async def device_homes(
    connection: Connection, fleet_no: int, devices: Sequence[int] | None = None
) -> dict[int, int]:
    """Return the devices that are or were in a fleet, and the fleet in which each is now."""
    found = await connection.execute(
        "SELECT device_no, fleet_no FROM device"  # noqa: S608 - own text
        f" WHERE device_no IN ({_narrowed(devices)})",
        {"fleet_no": fleet_no, "devices": devices},
    )
    return dict(await found.fetchall())


async def run_steps(
    connection: Connection,
    fleet_no: int,
    devices: Sequence[int] | None = None,
    *,
    since: Place | None = None,
    fleets: Sequence[int] = (),
) -> AsyncIterator[RunStep]:
    """Return the readings of a fleet's devices in the order in which they were charged or parked.

    `devices` narrows them to some, `since` to those from a place on: then `fleets` must be all in which
    the devices are or were. Rows come through a server-side cursor, so memory does not grow with the
    fleet's history.
    """
    narrowed = "" if since is None else _SINCE_PLACE
    async with connection.cursor(name="run_steps") as cursor:
        cursor.itersize = 5000
        await cursor.execute(
            _RUN_STEPS.format(
                devices=_narrowed(devices),
                charged=narrowed and f" AND charge.fleet_no = ANY(%(fleets)s){narrowed}",
                parked=narrowed,
            ).encode(),
            {
                "fleet_no": fleet_no,
                "devices": devices,
                "fleets": list(fleets),
                "run_no": since and since[0],
                "run_position": since and since[1],
            },
        )
        group: list[TupleRow] = []
        async for row in cursor:
            if group and row[:2] != group[0][:2]:
                yield _step(group)
                group = []
            group.append(row)
        if group:
            yield _step(group)


_SINCE_PLACE = " AND (run_no, run_position) >= (%(run_no)s, %(run_position)s)"
_RUN_STEPS = (
    "SELECT run_no, run_position, charge.boot_no, charge.seq,"
    " reading.device_no, reading.measured_at, reading.meter_no, reading.kind, reading.uplink,"
    " reading.downlink, reading.quantity, reading.since, reading.epoch, reading.width,"
    " reading.zone, reading.rat, reading.apn, reading.session, reading.packets,"
    " NULL::text AS reason,"
    " part, charge.fleet_no, subscription_no, plan_no, charge.meter_no, cycle_start,"
    " usage_from, usage_to, charge.quantity, charge.uplink, variant, charge.zone, band,"
    " billed, from_allowance, from_pool, overage, priced_before, amount, connection_fee,"
    " draw_buckets, draw_quantities"
    " FROM charge LEFT JOIN reading ON reading.boot_no = charge.boot_no"
    " AND reading.seq = charge.seq AND reading.measured_at = charge.measured_at"
    " WHERE charge.boot_no IN (SELECT boot_no FROM boot WHERE device_no IN ({devices})){charged}"
    " UNION ALL"
    " SELECT run_no, run_position, parked.boot_no, parked.seq,"
    " reading.device_no, reading.measured_at, reading.meter_no, reading.kind, reading.uplink,"
    " reading.downlink, reading.quantity, reading.since, reading.epoch, reading.width,"
    " reading.zone, reading.rat, reading.apn, reading.session, reading.packets, parked.reason,"
    " NULL, NULL, NULL, NULL, NULL, NULL, usage_from, usage_to,"
    " parked.quantity, parked.uplink, NULL, NULL, NULL, NULL, NULL, NULL,"
    " NULL, NULL, NULL, NULL, NULL, NULL"
    " FROM parked LEFT JOIN reading ON reading.boot_no = parked.boot_no"
    " AND reading.seq = parked.seq AND reading.measured_at = parked.measured_at"
    " WHERE parked.boot_no IN (SELECT boot_no FROM boot WHERE device_no IN ({devices})){parked}"
    " ORDER BY run_no, run_position, part"
)


def _step(rows: Sequence[TupleRow]) -> RunStep:
    first = rows[0]
    stored = None
    if first[4] is not None:
        stored = StoredReading(
            device_no=first[4],
            boot_no=first[2],
            reading=reading_of((first[3], *first[5:19])),
        )
    reason = first[19]
    return RunStep(
        run_no=first[0],
        run_position=first[1],
        boot_no=first[2],
        seq=first[3],
        stored=stored,
        charges=[tuple(row[20:]) for row in rows if row[19] is None],
        parked=(reason, first[28], first[29], first[26], first[27]) if reason else None,
    )


ENTRY_COLUMNS = (
    "bucket_entry.run_no, bucket_no, bucket_entry.subscription_no, quantity,"
    " bucket_entry.kind, bucket_entry.run_position, bucket_entry_no, other_bucket_no,"
    " operation_no, bucket_entry.cycle_start, reservation_no"
)


async def stored_entries(
    connection: Connection, fleet_no: int, owners: Sequence[int] | None = None
) -> list[StoredEntry]:
    """Return the entries of a fleet's buckets in the order in which they count.

    `owners` narrows them, here and elsewhere, to what belongs to some subscriptions alone.
    """
    found = await connection.execute(
        f"SELECT {ENTRY_COLUMNS}"  # noqa: S608 - columns of this module
        " FROM bucket_entry JOIN bucket USING (bucket_no)"
        " WHERE fleet_no = %s"
        " AND (%s::bigint[] IS NULL OR bucket.subscription_no = ANY(%s::bigint[]))"
        " ORDER BY run_no, run_position, bucket_entry_no",
        [fleet_no, owners, owners],
    )
    return [entry_of_row(row) for row in await found.fetchall()]


def entry_of_row(row: Sequence[Any]) -> StoredEntry:
    """Return the entry in a row of its columns."""
    return StoredEntry(
        entry_no=row[6],
        kind=EntryKind(row[4]),
        place=(row[0], row[5]),
        bucket_no=row[1],
        subscription_no=row[2],
        quantity=int(row[3]),
        other_bucket_no=row[7],
        operation_no=row[8],
        cycle_start=row[9],
        reservation_no=row[10],
    )


async def stored_operations(connection: Connection, fleet_no: int) -> list[Operation]:
    """Return what was asked of a fleet's balances, in the order in which it was done."""
    found = await connection.execute(
        f"SELECT {OPERATION_COLUMNS} FROM balance_operation"  # noqa: S608 - columns of the store
        " WHERE fleet_no = %s ORDER BY run_no",
        [fleet_no],
    )
    return [operation_of_row(row) for row in await found.fetchall()]


async def stored_top_ups(connection: Connection, fleet_no: int) -> dict[int, TopUpRow]:
    """Return the lots of a fleet's top-ups by number, as rows of their columns."""
    found = await connection.execute(
        f"SELECT {TOP_UP_COLUMNS} FROM bucket"  # noqa: S608 - columns of the store
        " WHERE fleet_no = %s AND source = 'top_up'",
        [fleet_no],
    )
    return {row[0]: row for row in await found.fetchall()}


async def unequal_folds(
    connection: Connection, fleet_no: int
) -> list[tuple[int, int, int, int, int]]:
    """Return a fleet's buckets whose cached sums differ from the fold over their postings.

    Each is `(bucket_no, granted, used, entered, drawn)`. At most 20 are returned.
    """
    found = await connection.execute(
        "SELECT bucket_no, granted, used, coalesce(entered, 0), coalesce(drawn, 0)"
        " FROM bucket LEFT JOIN (SELECT bucket_no,"
        "   sum(quantity) FILTER (WHERE kind <> 'consumption') AS entered,"
        "   -sum(quantity) FILTER (WHERE kind = 'consumption') AS drawn"
        "   FROM posting WHERE fleet_no = %(fleet_no)s AND account = 'bucket'"
        "   GROUP BY bucket_no) AS fold USING (bucket_no)"
        " WHERE fleet_no = %(fleet_no)s"
        " AND (granted <> coalesce(entered, 0) OR used <> coalesce(drawn, 0))"
        " ORDER BY bucket_no LIMIT 20",
        {"fleet_no": fleet_no},
    )
    return [
        (row[0], int(row[1]), int(row[2]), int(row[3]), int(row[4]))
        for row in await found.fetchall()
    ]


async def unbalanced_transactions(connection: Connection, fleet_no: int) -> list[tuple[str, int]]:
    """Return a fleet's transactions that do not sum to zero over their accounts, and what they sum to.

    At most 20 are returned.
    """
    found = await connection.execute(
        "SELECT bucket_entry_no, boot_no, seq, part, sum(quantity) FROM posting WHERE fleet_no = %s"
        " GROUP BY bucket_entry_no, boot_no, seq, part HAVING sum(quantity) <> 0"
        " ORDER BY bucket_entry_no, boot_no, seq, part LIMIT 20",
        [fleet_no],
    )
    return [
        (
            f"charge boot {row[1]} seq {row[2]} part {row[3]}"
            if row[0] is None
            else f"entry {row[0]}",
            int(row[4]),
        )
        for row in await found.fetchall()
    ]


async def stored_openings(connection: Connection, fleet_no: int) -> list[tuple[Place, datetime]]:
    """Return where each of a fleet's cycles was opened, ascending: `(place, cycle_start)`."""
    found = await connection.execute(
        "SELECT run_no, run_position, cycle_start FROM fleet_cycle WHERE fleet_no = %s"
        " ORDER BY run_no, run_position, cycle_start",
        [fleet_no],
    )
    return [((row[0], row[1]), row[2]) for row in await found.fetchall()]


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


async def stored_uses(
    connection: Connection, fleet_no: int, owners: Sequence[int] | None = None
) -> dict[UseKey, MeterUse]:
    """Return a fleet's kept cumulative use."""
    found = await connection.execute(
        "SELECT subscription_no, meter_no, cycle_start, variant, records, quantity, uplink, billed,"
        " from_allowance, from_pool, overage, amount FROM meter_use WHERE fleet_no = %s"
        " AND (%s::bigint[] IS NULL OR subscription_no = ANY(%s::bigint[]))",
        [fleet_no, owners, owners],
    )
    return {
        (row[0], row[1], row[2], row[3]): MeterUse(*map(int, row[4:]))
        for row in await found.fetchall()
    }


async def stored_counts(
    connection: Connection, fleet_no: int, owners: Sequence[int] | None = None
) -> dict[CountKey, int]:
    """Return a fleet's kept counts."""
    found = await connection.execute(
        "SELECT subscription_no, meter_no, cycle_start, variant, name, quantity FROM rating_count"
        " WHERE fleet_no = %s"
        " AND (%s::bigint[] IS NULL OR subscription_no = ANY(%s::bigint[]))",
        [fleet_no, owners, owners],
    )
    return {(row[0], row[1], row[2], row[3], row[4]): int(row[5]) for row in await found.fetchall()}


async def stored_buckets(
    connection: Connection, fleet_no: int, owners: Sequence[int] | None = None
) -> dict[int, StoredBucket]:
    """Return a fleet's buckets by number."""
    found = await connection.execute(
        f"SELECT {BUCKET_COLUMNS}, cycle_start FROM bucket"  # noqa: S608 - columns of the store
        " WHERE fleet_no = %s AND (%s::bigint[] IS NULL OR subscription_no = ANY(%s::bigint[]))"
        " ORDER BY bucket_no",
        [fleet_no, owners, owners],
    )
    return await with_members(connection, await found.fetchall())


async def with_members(
    connection: Connection, rows: Sequence[Sequence[Any]]
) -> dict[int, StoredBucket]:
    """Return the buckets in rows of their columns and their cycle, with all their members' shares."""
    numbers = [row[0] for row in rows]
    found = await connection.execute(
        "SELECT bucket_no, pool_draw.subscription_no, drawn, member FROM pool_draw"
        " WHERE bucket_no = ANY(%s)",
        [numbers],
    )
    draws: dict[int, dict[int, int]] = {}
    members: dict[int, set[int]] = {}
    for bucket_no, subscription_no, drawn, member in await found.fetchall():
        if drawn:
            draws.setdefault(bucket_no, {})[subscription_no] = int(drawn)
        if member:
            members.setdefault(bucket_no, set()).add(subscription_no)
    found = await connection.execute(
        "SELECT bucket_no, subscription_no, quantity FROM bucket_hold"
        " WHERE bucket_no = ANY(%s) AND quantity > 0",
        [numbers],
    )
    held: dict[int, dict[int, int]] = {}
    for bucket_no, subscription_no, quantity in await found.fetchall():
        held.setdefault(bucket_no, {})[subscription_no] = int(quantity)
    return {
        row[0]: StoredBucket(
            row=row[:-1],
            cycle_start=row[-1],
            drawn=draws.get(row[0], {}),
            members=members.get(row[0], set()),
            held=held.get(row[0], {}),
        )
        for row in rows
    }


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


HourKey = tuple[int, int, int, datetime]
"""(device_no, meter_no, plan_no, hour)"""


async def stored_hours(
    connection: Connection, fleet_no: int, devices: Sequence[int] | None = None
) -> dict[HourKey, tuple[int, int, int, int, int]]:
    """Return a fleet's hourly rollups: records, quantity, uplink, overage, amount."""
    found = await connection.execute(
        "SELECT device_no, meter_no, plan_no, hour, records, quantity, uplink, overage, amount"
        " FROM usage_hour WHERE fleet_no = %s"
        " AND (%s::bigint[] IS NULL OR device_no = ANY(%s::bigint[]))",
        [fleet_no, devices, devices],
    )
    return {
        (row[0], row[1], row[2], row[3]): (
            int(row[4]), int(row[5]), int(row[6]), int(row[7]), int(row[8]),
        )
        for row in await found.fetchall()
    }  # fmt: skip


async def stored_counters(connection: Connection, fleet_no: int) -> dict[EpochKey, CounterEnds]:
    """Return the kept counter ends of the devices that are or were in a fleet."""
    found = await connection.execute(
        "SELECT device_no, meter_no, epoch, first_boot_no, first_seq, first_measured_at,"  # noqa: S608
        " first_uplink, first_downlink, first_quantity, first_width, counter.boot_no, seq,"
        " measured_at, uplink, downlink, quantity, width"
        f" FROM counter WHERE device_no IN ({_DEVICES})",
        {"fleet_no": fleet_no},
    )
    return dict(counter_of_row(row) for row in await found.fetchall())


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many readings there are, and what has become of them."""

    readings: int
    stored_twice: int
    charges: int
    parked: int
    queued: int
    unaccounted: Sequence[tuple[int, int]]
    """(boot_no, seq) of readings that are neither charged nor parked nor queued; at most 20."""
    charged_and_parked: Sequence[tuple[int, int]]
    """(boot_no, seq); at most 20."""
    charged_and_queued: Sequence[tuple[int, int]]
    """(boot_no, seq); at most 20."""


async def tally(connection: Connection, fleet_no: int | None = None) -> Tally:
    """Count readings and their fates: of the whole database, or of the devices that a fleet has now."""
    given = {"fleet_no": fleet_no}
    of_reading = _of_fleet("reading.device_no", fleet_no)
    of_parked = _of_fleet("parked.device_no", fleet_no)
    unaccounted = await _names(
        connection,
        "SELECT boot_no, seq FROM reading WHERE"  # noqa: S608
        " NOT EXISTS (SELECT FROM charge WHERE charge.boot_no = reading.boot_no"
        "   AND charge.seq = reading.seq AND charge.measured_at = reading.measured_at)"
        " AND NOT EXISTS (SELECT FROM parked WHERE parked.boot_no = reading.boot_no"
        "   AND parked.seq = reading.seq)"
        " AND NOT EXISTS (SELECT FROM work_item WHERE work_item.shard_no = reading.shard_no"
        f"   AND work_item.batch_no = reading.batch_no){of_reading} LIMIT 20",
        given,
    )
    charged_and_parked = await _names(
        connection,
        "SELECT DISTINCT boot_no, seq FROM parked JOIN charge USING (boot_no, seq)"  # noqa: S608
        f" WHERE true{of_parked} LIMIT 20",
        given,
    )
    charged_and_queued = await _names(
        connection,
        "SELECT DISTINCT boot_no, reading.seq FROM work_item"  # noqa: S608
        " JOIN reading USING (shard_no, batch_no)"
        f" JOIN charge USING (boot_no, seq, measured_at) WHERE true{of_reading} LIMIT 20",
        given,
    )
    of_charge = _of_fleet("charge.device_no", fleet_no)
    counted = await connection.execute(
        f"SELECT (SELECT count(*) FROM reading WHERE true{of_reading}),"  # noqa: S608 - own text
        " (SELECT count(*) FROM (SELECT FROM reading"
        f"   WHERE true{of_reading} GROUP BY boot_no, seq HAVING count(*) > 1) AS two),"
        f" (SELECT count(*) FROM charge WHERE true{of_charge}),"
        f" (SELECT count(*) FROM parked WHERE true{of_parked}),"
        " (SELECT coalesce(sum(readings), 0)::bigint FROM work_item WHERE %(fleet_no)s::int IS NULL)",
        given,
    )
    row = await counted.fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM returns one row
    return Tally(
        readings=row[0],
        stored_twice=row[1],
        charges=row[2],
        parked=row[3],
        queued=row[4],
        unaccounted=unaccounted,
        charged_and_parked=charged_and_parked,
        charged_and_queued=charged_and_queued,
    )


def _of_fleet(column: str, fleet_no: int | None) -> str:
    """Return what narrows a query to devices that a fleet has now; nothing for all fleets."""
    if fleet_no is None:
        return ""
    return f" AND {column} IN (SELECT device_no FROM device WHERE fleet_no = %(fleet_no)s)"  # noqa: S608


async def _names(
    connection: Connection, query: str, given: Mapping[str, object]
) -> list[tuple[int, int]]:
    found = await connection.execute(query.encode(), given)
    return sorted((row[0], row[1]) for row in await found.fetchall())


async def unequal_arrivals(
    connection: Connection, fleet_no: int | None = None
) -> list[tuple[int, int, int]]:
    """Return `(boot_no, arrived, kept)` of boots that count more or fewer arrivals than are kept.

    Kept is a sequence number that is stored or rejected. At most 20 boots are returned; of all fleets,
    or of the devices that one has now.
    """
    query = _UNEQUAL_ARRIVALS.format(
        of_boot=_of_fleet("boot.device_no", fleet_no),
        of_reading=_of_fleet("reading.device_no", fleet_no),
    )
    found = await connection.execute(query.encode(), {"fleet_no": fleet_no})
    return [(row[0], int(row[1]), row[2]) for row in await found.fetchall()]


# The kept bytes of some rejections do not tell their boot, so the same reading of a later boot only
# raises `times`: there, a number that arrived counts as kept if the device has it in any boot.
_UNEQUAL_ARRIVALS = (
    "WITH arrivals AS (SELECT boot_no, up_to + coalesce((SELECT sum(beyond[at + 1] - beyond[at] + 1)"
    "   FROM generate_series(1, cardinality(beyond), 2) AS at), 0) AS arrived FROM boot"
    "   WHERE true{of_boot}),"
    " keeping AS (SELECT boot_no, count(*) AS kept FROM ("
    "   SELECT boot_no, seq FROM reading WHERE true{of_reading}"
    "   UNION SELECT boot_no, seq FROM rejected JOIN boot USING (device_no, boot_id)"
    "   WHERE seq IS NOT NULL{of_boot}"
    "   UNION SELECT boot_no, seq FROM rejected JOIN boot USING (device_no)"
    "   WHERE seq IS NOT NULL{of_boot} AND times > 1 AND reason IN ('invalid_reading', 'unknown_meter')"
    "   AND (seq <= up_to OR EXISTS (SELECT FROM generate_series(1, cardinality(beyond), 2) AS at"
    "     WHERE seq BETWEEN beyond[at] AND beyond[at + 1]))) AS numbers GROUP BY boot_no)"
    " SELECT boot_no, coalesce(arrived, 0), coalesce(kept, 0)"
    " FROM arrivals FULL JOIN keeping USING (boot_no)"
    " WHERE coalesce(arrived, 0) <> coalesce(kept, 0) ORDER BY boot_no LIMIT 20"
)


async def unequal_states(
    connection: Connection, fleet_no: int | None = None
) -> list[tuple[str, datetime, str | None, str | None]]:
    """Return where a device's dated state is not what was said of it last: device, instant, both."""
    query = (
        "WITH said AS (SELECT DISTINCT ON (device_no, effective_from) device_no, effective_from, state,"  # noqa: S608 - a clause of this module
        "   recorded_at FROM device_state_entry ORDER BY device_no, effective_from, entry_no DESC)"
        " SELECT device_id, effective_from, kept.state, said.state FROM device_state_change AS kept"
        " FULL JOIN said USING (device_no, effective_from) JOIN device USING (device_no)"
        " WHERE (kept.state, kept.recorded_at) IS DISTINCT FROM (said.state, said.recorded_at)"
        f"{_of_fleet('device.device_no', fleet_no)} ORDER BY device_id, effective_from LIMIT 100"
    )
    found = await connection.execute(query.encode(), {"fleet_no": fleet_no})
    return [(row[0], row[1], row[2], row[3]) for row in await found.fetchall()]


async def missing_states(
    connection: Connection, fleet_no: int | None = None
) -> list[tuple[str, int, int]]:
    """Return where what was said of a device's states has gaps: device, last number, how many."""
    query = (
        "SELECT device_id, coalesce(max(entry_no), 0), count(entry_no) FROM device"  # noqa: S608 - a clause of this module
        " LEFT JOIN device_state_entry USING (device_no)"
        f" WHERE true{_of_fleet('device.device_no', fleet_no)}"
        " GROUP BY device_no HAVING count(entry_no) <> max(entry_no) ORDER BY device_id LIMIT 100"
    )
    found = await connection.execute(query.encode(), {"fleet_no": fleet_no})
    return [(row[0], row[1], row[2]) for row in await found.fetchall()]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingFate:
    """A stored reading and what became of it; `charged` is None when it has no charge."""

    reading: Reading
    charged: int | None
    parked: bool


async def readings_by_name(
    connection: Connection, names: Sequence[tuple[str, str, str, int]]
) -> dict[tuple[str, str, str, int], list[ReadingFate]]:
    """Return what is stored of `(tenant_id, device_id, boot_id, seq)`, and what became of it."""
    found = await connection.execute(
        "SELECT given.tenant_id, given.device_id, given.boot_id, reading.seq, reading.measured_at,"
        " reading.meter_no, reading.kind, reading.uplink, reading.downlink, reading.quantity,"
        " reading.since, reading.epoch, reading.width, reading.zone, reading.rat, reading.apn,"
        " reading.session, reading.packets,"
        " (SELECT sum(charge.quantity) FROM charge WHERE charge.boot_no = reading.boot_no"
        "   AND charge.seq = reading.seq AND charge.measured_at = reading.measured_at),"
        " EXISTS (SELECT FROM parked WHERE parked.boot_no = reading.boot_no"
        "   AND parked.seq = reading.seq)"
        " FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[])"
        " AS given (tenant_id, device_id, boot_id, seq)"
        " JOIN tenant USING (tenant_id) JOIN device USING (tenant_no, device_id)"
        " JOIN boot USING (device_no, boot_id)"
        " JOIN reading ON reading.boot_no = boot.boot_no AND reading.seq = given.seq"
        " ORDER BY 1, 2, 3, 4",
        [[name[column] for name in names] for column in range(4)],
    )
    rows = await found.fetchall()
    return {
        key: [
            ReadingFate(
                reading=reading_of(row[3:18]),
                charged=None if row[18] is None else int(row[18]),
                parked=row[19],
            )
            for row in same
        ]
        for key, same in groupby(rows, key=lambda row: (row[0], row[1], row[2], row[3]))
    }


async def arrived_counts(
    connection: Connection, boots: Sequence[tuple[str, str, str]]
) -> dict[tuple[str, str, str], int]:
    """Return how many readings of `(tenant_id, device_id, boot_id)` are stored."""
    found = await connection.execute(
        "SELECT tenant_id, device_id, boot_id, (SELECT count(*) FROM reading"
        "   WHERE reading.boot_no = boot.boot_no)"
        " FROM unnest(%s::text[], %s::text[], %s::text[]) AS given (tenant_id, device_id, boot_id)"
        " JOIN tenant USING (tenant_id) JOIN device USING (tenant_no, device_id)"
        " JOIN boot USING (device_no, boot_id)",
        [[boot[column] for boot in boots] for column in range(3)],
    )
    return {(row[0], row[1], row[2]): row[3] for row in await found.fetchall()}


async def queued_count(connection: Connection) -> int:
    """Return how many readings are queued for charging."""
    found = await connection.execute("SELECT coalesce(sum(readings), 0)::bigint FROM work_item")
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns one row
    return int(row[0])


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
