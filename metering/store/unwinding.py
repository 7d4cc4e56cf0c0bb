"""What is recorded of a fleet from a place in its history on, summed: what unwinding takes away."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from metering.rating.account import MeterUse, UseKey
from metering.store.accounts import BUCKET_COLUMNS
from metering.store.connection import Connection
from metering.store.history import (
    ENTRY_COLUMNS,
    Place,
    StoredBucket,
    StoredEntry,
    entry_of_row,
    with_members,
)
from metering.store.kept_sums import HourKey

_FROM: LiteralString = " (run_no, run_position) >= (%(run_no)s, %(run_position)s)"
_CHARGED: LiteralString = (
    f" FROM charge WHERE charge.fleet_no = %(fleet_no)s AND{_FROM}"
    " AND charge.device_no = ANY(%(devices)s)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """A place in the history of a fleet's devices from which on something is asked for."""

    fleet_no: int
    place: Place
    devices: Sequence[int]

    @property
    def _values(self) -> dict[str, object]:
        return {
            "fleet_no": self.fleet_no,
            "devices": self.devices,
            "run_no": self.place[0],
            "run_position": self.place[1],
        }


async def devices_since(
    connection: Connection,
    fleets: Sequence[int],
    among: Sequence[int],
    place: Place,
) -> list[int]:
    """Return which of some devices have readings that were charged or parked at a place or later.

    `fleets` are all in which the devices are or were.
    """
    found = await connection.execute(
        "SELECT device_no FROM charge"  # noqa: S608 - own text
        f" WHERE fleet_no = ANY(%(fleets)s) AND device_no = ANY(%(devices)s) AND{_FROM}"
        " UNION SELECT device_no FROM parked"
        f" WHERE device_no = ANY(%(devices)s) AND{_FROM} ORDER BY device_no",
        {
            "fleets": list(fleets),
            "devices": list(among),
            "run_no": place[0],
            "run_position": place[1],
        },
    )
    return [row[0] for row in await found.fetchall()]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSince:
    """The time that usage spans which was charged or parked from a place on, and its meters."""

    begins: datetime
    ends: datetime
    meters: AbstractSet[int]
    """meter_no"""


async def usage_since(
    connection: Connection, fleets: Sequence[int], since: Since
) -> UsageSince | None:
    """Return what usage there is from a place on, in all fleets in which the devices are or were."""
    found = await connection.execute(
        "SELECT min(begins), max(ends), array_agg(DISTINCT meter_no) FROM ("  # noqa: S608 - own text
        " SELECT min(usage_from) AS begins, max(usage_to) AS ends, meter_no FROM charge"
        f" WHERE fleet_no = ANY(%(fleets)s) AND device_no = ANY(%(devices)s) AND{_FROM}"
        " GROUP BY meter_no"
        " UNION ALL SELECT usage_from, usage_to, reading.meter_no"
        " FROM parked JOIN reading USING (boot_no, seq, measured_at)"
        f" WHERE parked.device_no = ANY(%(devices)s) AND{_FROM}) AS usage",
        since._values | {"fleets": list(fleets)},  # noqa: SLF001 - of this module
    )
    row = await found.fetchone()
    if row is None or row[0] is None:
        return None
    return UsageSince(begins=row[0], ends=row[1], meters=set(row[2]))


async def uses_since(connection: Connection, since: Since) -> dict[UseKey, MeterUse]:
    """Return what was used from a place on, as cumulative use counts it."""
    found = await connection.execute(
        "SELECT subscription_no, meter_no, cycle_start, variant, count(*), sum(quantity), sum(uplink),"
        " sum(billed), sum(from_allowance), sum(from_pool), sum(overage), sum(amount)"
        f"{_CHARGED} GROUP BY subscription_no, meter_no, cycle_start, variant",
        since._values,  # noqa: SLF001 - of this module
    )
    return {
        (row[0], row[1], row[2], row[3]): MeterUse(*map(int, row[4:]))
        for row in await found.fetchall()
    }


async def draws_since(connection: Connection, since: Since) -> dict[tuple[int, int], int]:
    """Return what subscriptions drew from buckets from a place on: `(bucket_no, subscription_no)`."""
    found = await connection.execute(
        "SELECT bucket_no, subscription_no, sum(drawn) FROM (SELECT subscription_no,"  # noqa: S608
        "   unnest(draw_buckets) AS bucket_no, unnest(draw_quantities) AS drawn"
        f"   {_CHARGED} AND draw_buckets IS NOT NULL) AS draw GROUP BY bucket_no, subscription_no",
        since._values,  # noqa: SLF001 - of this module
    )
    return {(row[0], row[1]): int(row[2]) for row in await found.fetchall()}


async def hours_since(
    connection: Connection, since: Since
) -> dict[HourKey, tuple[int, int, int, int, int]]:
    """Return what charges from a place on added to hourly rollups."""
    found = await connection.execute(
        "SELECT device_no, meter_no, plan_no, date_trunc('hour', usage_from, 'UTC') AS hour,"
        " coalesce(charge.zone, '') AS in_zone, count(*),"
        " sum(quantity), sum(uplink), sum(overage), sum(amount)"
        f"{_CHARGED} GROUP BY device_no, meter_no, plan_no, hour, in_zone",
        since._values,  # noqa: SLF001 - of this module
    )
    return {
        (row[0], row[1], row[2], row[3], row[4]): (
            int(row[5]), int(row[6]), int(row[7]), int(row[8]), int(row[9]),
        )
        for row in await found.fetchall()
    }  # fmt: skip


async def openings_since(
    connection: Connection, fleet_no: int, place: Place
) -> list[tuple[Place, datetime]]:
    """Return where cycles were opened at a place or later, ascending: `(place, cycle_start)`."""
    found = await connection.execute(
        "SELECT run_no, run_position, cycle_start FROM fleet_cycle"  # noqa: S608 - own text
        f" WHERE fleet_no = %(fleet_no)s AND{_FROM} ORDER BY run_no, run_position, cycle_start",
        {"fleet_no": fleet_no, "run_no": place[0], "run_position": place[1]},
    )
    return [((row[0], row[1]), row[2]) for row in await found.fetchall()]


# Buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldThen:
    """A reservation that was active when a place came, and where it is held."""

    reservation_no: int
    subscription_no: int
    held: int
    """What was held for it in all buckets together."""
    place: Place
    entered: Mapping[int, int]
    """bucket_no → what was entered as held; less was where a correction left less."""


async def held_at(
    connection: Connection, fleet_no: int, place: Place, devices: Sequence[int] | None
) -> list[HeldThen]:
    """Return a fleet's reservations that began before a place and had not ended then.

    `devices` narrows them to those of some devices.
    """
    found = await connection.execute(
        "SELECT reservation.reservation_no, reservation.subscription_no, reservation.held,"
        " reservation.run_no, array_agg(bucket_no), array_agg(quantity)"
        " FROM reservation JOIN bucket_entry USING (reservation_no)"
        " WHERE reservation.fleet_no = %(fleet_no)s AND bucket_entry.kind = 'hold'"
        " AND (reservation.run_no, -1) < (%(run_no)s, %(run_position)s)"
        " AND (ended_run_no IS NULL OR (ended_run_no, -1) >= (%(run_no)s, %(run_position)s))"
        " AND (%(devices)s::bigint[] IS NULL OR reservation.device_no = ANY(%(devices)s::bigint[]))"
        " GROUP BY reservation.reservation_no",
        {"fleet_no": fleet_no, "run_no": place[0], "run_position": place[1], "devices": devices},
    )
    return [
        HeldThen(
            reservation_no=row[0],
            subscription_no=row[1],
            held=row[2],
            place=(row[3], -1),
            entered=dict(zip(row[4], map(int, row[5]), strict=True)),
        )
        for row in await found.fetchall()
    ]


async def drawn_of_holds(
    connection: Connection, fleet_no: int, holds: Sequence[HeldThen], place: Place
) -> dict[tuple[int, int], int]:
    """Return what was drawn before a place from each hold's bucket by its subscription since it began."""
    keys = [(each, number) for each in holds for number in each.entered]
    if not keys:
        return {}
    found = await connection.execute(
        "SELECT hold.bucket_no, hold.subscription_no, sum(draw.drawn)"
        " FROM (SELECT run_no, subscription_no, unnest(draw_buckets) AS bucket_no,"
        "     unnest(draw_quantities) AS drawn"
        "   FROM charge WHERE fleet_no = %(fleet_no)s AND draw_buckets IS NOT NULL"
        "   AND run_no >= %(first)s AND (run_no, run_position) < (%(run_no)s, %(run_position)s)"
        "   AND subscription_no = ANY(%(subscriptions)s::bigint[])) AS draw"
        " JOIN unnest(%(buckets)s::bigint[], %(subscriptions)s::bigint[], %(runs)s::bigint[])"
        "   AS hold (bucket_no, subscription_no, held_from)"
        " ON hold.bucket_no = draw.bucket_no AND hold.subscription_no = draw.subscription_no"
        " AND draw.run_no >= held_from GROUP BY hold.bucket_no, hold.subscription_no",
        {
            "fleet_no": fleet_no,
            "first": min(each.place[0] for each, _ in keys),
            "run_no": place[0],
            "run_position": place[1],
            "buckets": [number for _, number in keys],
            "subscriptions": [each.subscription_no for each, _ in keys],
            "runs": [each.place[0] for each, _ in keys],
        },
    )
    return {(row[0], row[1]): int(row[2]) for row in await found.fetchall()}


async def buckets_concerned(
    connection: Connection,
    fleet_no: int,
    *,
    owners: Sequence[int],
    shared: bool,
    span: tuple[datetime, datetime] | None,
    place: Place,
) -> dict[int, StoredBucket]:
    """Return the buckets on which usage of some subscriptions may depend, by number.

    They are those that overlap a time; None: all. With `shared` the fleet's pools and top-ups are among
    them, and all in which anything is held for a reservation that ends at a place or later.
    """
    found = await connection.execute(
        f"SELECT {BUCKET_COLUMNS}, cycle_start FROM bucket WHERE fleet_no = %(fleet_no)s"  # noqa: S608
        " AND (subscription_no = ANY(%(owners)s) OR %(shared)s)"
        " AND (%(first)s::timestamptz IS NULL"
        "   OR ((subscription_no = ANY(%(owners)s) OR subscription_no IS NULL)"
        "     AND begins_at < %(last)s AND coalesce(expires_at, 'infinity') > %(first)s)"
        f"   OR bucket_no IN ({_HELD_SINCE})) ORDER BY bucket_no",
        {
            "fleet_no": fleet_no,
            "owners": owners,
            "shared": shared,
            "first": span and span[0],
            "last": span and span[1],
            "run_no": place[0],
            "run_position": place[1],
        },
    )
    return await with_members(connection, await found.fetchall())


_HELD_SINCE: LiteralString = (
    "SELECT bucket_no FROM reservation JOIN bucket_entry USING (reservation_no)"
    " WHERE reservation.fleet_no = %(fleet_no)s AND (ended_run_no IS NULL"
    "   OR (ended_run_no, -1) >= (%(run_no)s, %(run_position)s))"
)


async def begun_before(connection: Connection, bucket_nos: Sequence[int], place: Place) -> set[int]:
    """Return which buckets something was entered into before a place, so that they were there."""
    found = await connection.execute(
        "SELECT bucket_no FROM unnest(%(buckets)s::bigint[]) AS given (bucket_no)"
        " WHERE EXISTS (SELECT FROM bucket_entry WHERE bucket_entry.bucket_no = given.bucket_no"
        "   AND kind NOT IN ('rollover', 'transfer', 'adjustment')"
        "   AND (run_no, run_position) < (%(run_no)s, %(run_position)s))",
        {"buckets": list(bucket_nos), "run_no": place[0], "run_position": place[1]},
    )
    return {row[0] for row in await found.fetchall()}


async def entries_since(
    connection: Connection, bucket_nos: Sequence[int], place: Place
) -> list[StoredEntry]:
    """Return the entries into or out of some buckets that count from a place on, in their order."""
    found = await connection.execute(
        f"SELECT {ENTRY_COLUMNS} FROM bucket_entry"  # noqa: S608 - own text
        " WHERE (bucket_no = ANY(%(buckets)s) OR other_bucket_no = ANY(%(buckets)s))"
        f" AND{_FROM} ORDER BY run_no, run_position, bucket_entry_no",
        {"buckets": list(bucket_nos), "run_no": place[0], "run_position": place[1]},
    )
    return [entry_of_row(row) for row in await found.fetchall()]


async def others_use(
    connection: Connection,
    fleet_no: int,
    *,
    plan_no: int,
    meter_no: int,
    cycle_start: datetime,
    variants: Sequence[int],
    owners: Sequence[int],
) -> bool:
    """Whether subscriptions other than `owners` used a meter at some of a plan's prices in a cycle."""
    found = await connection.execute(
        "SELECT FROM meter_use JOIN subscription USING (subscription_no)"
        " WHERE meter_use.fleet_no = %s AND cycle_start = %s AND meter_no = %s AND plan_no = %s"
        " AND variant = ANY(%s) AND subscription_no <> ALL(%s::bigint[]) LIMIT 1",
        [fleet_no, cycle_start, meter_no, plan_no, list(variants), list(owners)],
    )
    return found.rowcount == 1
