"""A fleet's history as it is stored: its readings in charging order, and what was entered into buckets."""

from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from psycopg.rows import TupleRow

from metering.rating.guide import Subscription
from metering.rating.record import StoredReading
from metering.store.accounts import BUCKET_COLUMNS
from metering.store.balances import (
    TOP_UP_COLUMNS,
    TopUpRow,
)
from metering.store.charges import ChargeColumns
from metering.store.connection import Connection
from metering.store.readings import reading_of
from metering.store.registry import subscription_of_row

Place = tuple[int, int]
"""(run_no, run_position): what counts from there on counts before the reading there; -1: before all."""

DEVICES_EVER = (
    "SELECT device_no FROM subscription WHERE fleet_no = %(fleet_no)s"
    " UNION SELECT device_no FROM device WHERE fleet_no = %(fleet_no)s"
)
"""Devices that are or were in a fleet."""


def _narrowed(devices: Sequence[int] | None) -> str:
    return DEVICES_EVER if devices is None else "SELECT unnest(%(devices)s::bigint[])"


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


async def stored_top_ups(connection: Connection, fleet_no: int) -> dict[int, TopUpRow]:
    """Return the lots of a fleet's top-ups by number, as rows of their columns."""
    found = await connection.execute(
        f"SELECT {TOP_UP_COLUMNS} FROM bucket"  # noqa: S608 - columns of the store
        " WHERE fleet_no = %s AND source = 'top_up'",
        [fleet_no],
    )
    return {row[0]: row for row in await found.fetchall()}


async def stored_openings(connection: Connection, fleet_no: int) -> list[tuple[Place, datetime]]:
    """Return where each of a fleet's cycles was opened, ascending: `(place, cycle_start)`."""
    found = await connection.execute(
        "SELECT run_no, run_position, cycle_start FROM fleet_cycle WHERE fleet_no = %s"
        " ORDER BY run_no, run_position, cycle_start",
        [fleet_no],
    )
    return [((row[0], row[1]), row[2]) for row in await found.fetchall()]


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
