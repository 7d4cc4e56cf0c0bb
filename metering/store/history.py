"""A fleet's history as it is stored: its readings in charging order, and what was entered into buckets."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8BinaryLoader

from metering.rating.guide import Subscription
from metering.rating.record import StoredReading
from metering.store.accounts import BUCKET_COLUMNS
from metering.store.balances import (
    TOP_UP_COLUMNS,
    TopUpRow,
)
from metering.store.binary import instant_of
from metering.store.charges import ChargeColumns
from metering.store.connection import Connection
from metering.store.readings import reading_of
from metering.store.registry import subscription_of_row
from metering.usage import METERS, METERS_BY_NO, Reading, ReadingKind

Place = tuple[int, int]
"""(run_no, run_position): what counts from there on counts before the reading there; -1: before all."""

DEVICES_EVER = (
    "SELECT device_no FROM subscription WHERE fleet_no = %(fleet_no)s"
    " UNION SELECT device_no FROM device WHERE fleet_no = %(fleet_no)s"
)
"""Devices that are or were in a fleet."""


def narrowed(devices: Sequence[int] | None) -> str:
    """Return which devices a query is about: all of a fleet, or those that it is given."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSubscriptions:
    """Subscriptions of devices that are or were in a fleet: in it, and in others."""

    by_device: Mapping[int, Sequence[Subscription]]
    """Ascending in time, without empty ones."""
    plans: Mapping[int, int]
    """The plan version of each subscription in the fleet, of empty ones too."""


async def fleet_subscriptions(
    connection: Connection, fleet_no: int, devices: Sequence[int] | None = None
) -> FleetSubscriptions:
    """Return all subscriptions of devices that are or were in a fleet.

    `devices` narrows them to some, here and elsewhere.
    """
    found = await connection.execute(
        "SELECT subscription_no, device_no, plan_no, lower(valid), upper(valid), fleet_no,"  # noqa: S608
        f" isempty(valid) FROM subscription WHERE device_no IN ({narrowed(devices)})"
        " ORDER BY device_no, lower(valid)",
        {"fleet_no": fleet_no, "devices": devices},
    )
    by_device: dict[int, list[Subscription]] = {}
    plans: dict[int, int] = {}
    for row in await found.fetchall():
        subscription_no, device_no, plan_no, *_, of_fleet, is_empty = row
        if of_fleet == fleet_no:
            plans[subscription_no] = plan_no
        if not is_empty:
            by_device.setdefault(device_no, []).append(subscription_of_row(row[:-1]))
    return FleetSubscriptions(by_device=by_device, plans=plans)


async def device_homes(
    connection: Connection, fleet_no: int, devices: Sequence[int] | None = None
) -> dict[int, int]:
    """Return the devices that are or were in a fleet, and the fleet in which each is now."""
    found = await connection.execute(
        "SELECT device_no, fleet_no FROM device"  # noqa: S608 - own text
        f" WHERE device_no IN ({narrowed(devices)})",
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
    but_plain: bool = False,
) -> AsyncGenerator[RunStep, None]:
    """Return the readings of a fleet's devices in the order in which they were charged or parked.

    `devices` narrows them to some, `since` to those from a place on: then `fleets` must be all in which
    the devices are or were. `but_plain` leaves out the charges that `charged_rows` tells in full. Rows come
    through a server-side cursor, so memory does not grow with the fleet's history.
    """
    placed = "" if since is None else _SINCE_PLACE
    charged = _BY_BOOT if since is None else f"{_BY_READING}{placed}"
    query = f"{charged} UNION ALL {_PARKED}{placed}{_IN_ORDER}".format(
        devices=narrowed(devices),
        fields=_CHARGE_FIELDS,
        but=f" AND ({_PAID_BY}) IS NULL" if but_plain else "",
    )
    async with connection.cursor(name="run_steps", binary=True) as cursor:
        await cursor.execute(
            query.encode(),
            {
                "fleet_no": fleet_no,
                "devices": devices,
                "fleets": list(fleets),
                "run_no": since and since[0],
                "run_position": since and since[1],
            },
        )
        group: list[TupleRow] = []
        while rows := await cursor.fetchmany(_ROWS_AT_ONCE):
            for row in rows:
                if group and row[:2] != group[0][:2]:
                    yield _step(group)
                    group = []
                group.append(row)
        if group:
            yield _step(group)


_ROWS_AT_ONCE = 5000
_SINCE_PLACE = " AND (run_no, run_position) >= (%(run_no)s, %(run_position)s)"
_CHARGE_FIELDS = (
    "run_no, run_position, charge.boot_no, charge.seq,"
    " reading.device_no, reading.measured_at, reading.meter_no, reading.kind, reading.uplink,"
    " reading.downlink, reading.quantity, reading.since, reading.epoch, reading.width,"
    " reading.zone, reading.rat, reading.apn, reading.session, reading.packets,"
    " NULL::text AS reason,"
    " part, charge.fleet_no, subscription_no, plan_no, charge.meter_no, cycle_start,"
    " usage_from, usage_to, charge.quantity AS used, charge.uplink AS used_up, variant,"
    " charge.zone AS charged_zone, band,"
    " billed, from_allowance, from_pool, overage, priced_before, amount, connection_fee,"
    " draw_buckets, draw_quantities"
)
_BY_READING = (
    f"SELECT {_CHARGE_FIELDS} FROM charge"  # noqa: S608 - columns of this module
    " LEFT JOIN reading ON reading.boot_no = charge.boot_no"
    " AND reading.seq = charge.seq AND reading.measured_at = charge.measured_at"
    " WHERE charge.boot_no IN (SELECT boot_no FROM boot WHERE device_no IN ({devices}))"
    " AND charge.fleet_no = ANY(%(fleets)s)"
)
"""Finds the reading of each charge: for some of many."""
_BY_BOOT = (
    "SELECT charged.* FROM (SELECT boot_no FROM boot WHERE device_no IN ({devices})) AS boots"
    " CROSS JOIN LATERAL (SELECT {fields} FROM charge LEFT JOIN reading"
    "   ON reading.boot_no = boots.boot_no AND reading.seq = charge.seq"
    "   AND reading.measured_at = charge.measured_at WHERE charge.boot_no = boots.boot_no{but}"
    "   OFFSET 0) AS charged"
)
"""Goes through the charges and the readings of each boot side by side: for all of them."""
_PARKED = (
    "SELECT run_no, run_position, parked.boot_no, parked.seq,"
    " reading.device_no, reading.measured_at, reading.meter_no, reading.kind, reading.uplink,"
    " reading.downlink, reading.quantity, reading.since, reading.epoch, reading.width,"
    " reading.zone, reading.rat, reading.apn, reading.session, reading.packets, parked.reason,"
    " NULL, NULL, NULL, NULL, NULL, NULL, usage_from, usage_to,"
    " parked.quantity, parked.uplink, NULL, NULL, NULL, NULL, NULL, NULL,"
    " NULL, NULL, NULL, NULL, NULL, NULL"
    " FROM parked LEFT JOIN reading ON reading.boot_no = parked.boot_no"
    " AND reading.seq = parked.seq AND reading.measured_at = parked.measured_at"
    " WHERE parked.boot_no IN (SELECT boot_no FROM boot WHERE device_no IN ({devices}))"
)
_IN_ORDER = " ORDER BY run_no, run_position, part"


class PlainRow(NamedTuple):
    """A reading and its charge, where few columns tell all of both; or a place with anything else.

    Times are in microseconds since the year 2000. Such a charge is the reading's usage as it stands, met
    wholly by one bucket or by none. `paid_by` is `NOTHING`, `OWN` or `POOL`; where it is None, only the
    place means anything. `quantity` is all of the usage, in both directions.
    """

    run_no: int
    run_position: int
    paid_by: int | None
    boot_no: int
    seq: int
    device_no: int
    meter_no: int
    at: int
    since: int | None
    quantity: int
    uplink: int
    subscription_no: int
    plan_no: int
    cycle_start: int
    bucket_no: int | None
    priced_before: int
    amount: int


NOTHING, OWN, POOL = 0, 1, 2
"""What paid for a charge: no bucket, a device's own, or one that is shared."""
_WHOLE_MAX = 10**18
_DIRECTED = ", ".join(str(meter.meter_no) for meter in METERS.values() if meter.directed)
# What a plain row leaves out is said here: of the reading, of the charge, and of what the charge has of
# the reading. An unknown, as of a charge without its reading, makes it no plain row.
AS_IT_STANDS = (
    "part = 0 AND charge.fleet_no = %(fleet_no)s AND variant = 0 AND charge.zone IS NULL"
    " AND band IS NULL AND billed = charge.quantity AND connection_fee = 0"
    f" AND reading.kind = {ReadingKind.DELTA.value} AND reading.epoch IS NULL"
    " AND reading.width IS NULL AND reading.zone IS NULL AND reading.rat IS NULL"
    " AND reading.apn IS NULL AND reading.session IS NULL AND reading.packets = 0"
    f" AND CASE WHEN reading.meter_no IN ({_DIRECTED}) THEN reading.quantity = 0"
    "   ELSE reading.uplink = 0 AND reading.downlink = 0 END"
    " AND charge.meter_no = reading.meter_no AND usage_to = reading.measured_at"
    " AND usage_from = coalesce(reading.since, reading.measured_at)"
    " AND charge.uplink = reading.uplink"
    " AND charge.quantity = reading.uplink + reading.downlink + reading.quantity"
)
"""Whether a charge is its reading's usage as it stands, at the only price; takes `fleet_no`."""
_PLAIN = (
    f"{AS_IT_STANDS} AND priced_before < {_WHOLE_MAX}"
    f" AND amount BETWEEN -{_WHOLE_MAX} AND {_WHOLE_MAX}"
)
_PAID_BY = (
    f"CASE WHEN NOT coalesce({_PLAIN}, false) THEN NULL"
    " WHEN draw_buckets IS NULL THEN"
    "   CASE WHEN draw_quantities IS NULL AND overage = charge.quantity AND from_allowance = 0"
    f"    AND from_pool = 0 THEN {NOTHING} END"
    " WHEN overage = 0 AND amount = 0 AND array_length(draw_buckets, 1) = 1"
    "   AND array_length(draw_quantities, 1) = 1 AND draw_quantities[1] = charge.quantity THEN"
    f"   CASE WHEN from_allowance = charge.quantity AND from_pool = 0 THEN {OWN}"
    f"     WHEN from_pool = charge.quantity AND from_allowance = 0 THEN {POOL} END END"
)
_PLAIN_FIELDS = (
    f"run_no, run_position, ({_PAID_BY})::int AS paid_by, charge.boot_no, charge.seq,"
    " reading.device_no, charge.meter_no, charge.measured_at, reading.since, charge.quantity,"
    " charge.uplink, subscription_no, plan_no, cycle_start, draw_buckets[1] AS bucket_no,"
    f" CASE WHEN priced_before < {_WHOLE_MAX} THEN priced_before::bigint END AS priced_before,"
    f" CASE WHEN amount BETWEEN -{_WHOLE_MAX} AND {_WHOLE_MAX} THEN amount::bigint END AS amount"
)
_PARKED_PLACES = (
    f"SELECT run_no, run_position{', NULL' * len(PlainRow._fields[2:])} FROM parked"  # noqa: S608 - own text
    " WHERE boot_no IN (SELECT boot_no FROM boot WHERE device_no IN ({devices}))"
)
_ROWS_IN_ORDER = f"{_BY_BOOT} UNION ALL {_PARKED_PLACES} ORDER BY run_no, run_position".replace(
    "{fields}", _PLAIN_FIELDS
).replace("{but}", "")
CHARGED_ROWS = _ROWS_IN_ORDER.replace("{devices}", DEVICES_EVER)
"""What `charged_rows` runs for all devices; takes `fleet_no`."""


PlainRows = list[tuple[Any, ...]]
"""Rows with the columns of `PlainRow`."""


async def charged_rows(
    connection: Connection, fleet_no: int, devices: Sequence[int] | None = None
) -> AsyncGenerator[PlainRows, None]:
    """Return what `run_steps` does, in the same order, as rows of `PlainRow`, many at a time.

    Those of one place come together.
    """
    query = _ROWS_IN_ORDER.replace("{devices}", narrowed(devices))
    async with connection.cursor(name="charged_rows", binary=True) as cursor:
        cursor.adapters.register_loader("timestamptz", Int8BinaryLoader)
        await cursor.execute(query.encode(), {"fleet_no": fleet_no, "devices": devices})
        held: PlainRows = []
        while fetched := await cursor.fetchmany(_ROWS_AT_ONCE):
            rows = held + fetched
            end = len(rows) - 1
            while end and rows[end][:2] == rows[end - 1][:2]:
                end -= 1
            yield rows[:end]
            held = rows[end:]
        if held:
            yield held


def step_of(row: PlainRow, fleet_no: int) -> RunStep:
    """Return a plain row as the step that it tells of."""
    meter = METERS_BY_NO[row.meter_no]
    at = instant_of(row.at)
    since = None if row.since is None else instant_of(row.since)
    down = row.quantity - row.uplink
    reading = Reading(
        seq=row.seq, at=at, meter=meter, kind=ReadingKind.DELTA, uplink=row.uplink,
        downlink=down if meter.directed else 0, quantity=0 if meter.directed else down, since=since,
    )  # fmt: skip
    paid = row.quantity if row.paid_by else 0
    charge: ChargeColumns = (
        0, fleet_no, row.subscription_no, row.plan_no, row.meter_no, instant_of(row.cycle_start),
        since or at, at, row.quantity, row.uplink, 0, None, None, row.quantity,
        paid if row.paid_by == OWN else 0, paid if row.paid_by == POOL else 0, row.quantity - paid,
        row.priced_before, row.amount, 0,
        *(([row.bucket_no], [row.quantity]) if row.paid_by else (None, None)),
    )  # fmt: skip
    return RunStep(
        run_no=row.run_no,
        run_position=row.run_position,
        boot_no=row.boot_no,
        seq=row.seq,
        stored=StoredReading(row.device_no, row.boot_no, reading),
        charges=[charge],
        parked=None,
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
        "SELECT bucket_no, pool_draw.subscription_no, drawn, member, NULL FROM pool_draw"
        " WHERE bucket_no = ANY(%(numbers)s)"
        " UNION ALL SELECT bucket_no, subscription_no, NULL, false, quantity FROM bucket_hold"
        " WHERE bucket_no = ANY(%(numbers)s) AND quantity > 0",
        {"numbers": numbers},
    )
    draws: dict[int, dict[int, int]] = {}
    members: dict[int, set[int]] = {}
    held: dict[int, dict[int, int]] = {}
    for bucket_no, subscription_no, drawn, member, holds in await found.fetchall():
        if drawn:
            draws.setdefault(bucket_no, {})[subscription_no] = int(drawn)
        if member:
            members.setdefault(bucket_no, set()).add(subscription_no)
        if holds:
            held.setdefault(bucket_no, {})[subscription_no] = int(holds)
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
