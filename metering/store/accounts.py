"""Charging's state: counters, buckets and cumulative use, loaded for a batch and stored after it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from metering.rating.account import Accounts, Bucket, EpochKey, MeterUse, PoolKey, UseKey
from metering.rating.counter import CounterPoint
from metering.store.connection import Connection
from metering.usage import METERS_BY_NO


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterEnds:
    """The first and the last counted point of an epoch."""

    first: CounterPoint
    last: CounterPoint


@dataclass(frozen=True, slots=True)
class BucketNos:
    """The numbers of loaded buckets, by which they are stored again."""

    allowances: dict[UseKey, int]
    pools: dict[PoolKey, int]


async def load_accounts(
    connection: Connection, uses: Iterable[UseKey], pools: Iterable[PoolKey]
) -> tuple[Accounts, BucketNos]:
    """Load the accounts of some subscriptions' meters and fleets' pools, by cycle."""
    accounts = Accounts()
    numbers = BucketNos({}, {})
    use_keys = _columns(uses)
    found = await connection.execute(
        "SELECT subscription_no, meter_no, cycle_start, records, quantity, uplink, from_allowance,"
        " from_pool, overage, amount"
        " FROM unnest(%s::bigint[], %s::smallint[], %s::timestamptz[])"
        " AS given (subscription_no, meter_no, cycle_start)"
        " JOIN meter_use USING (subscription_no, meter_no, cycle_start)",
        use_keys,
    )
    for row in await found.fetchall():
        accounts.uses[row[0], row[1], row[2]] = MeterUse(*map(int, row[3:]))
    found = await connection.execute(
        "SELECT subscription_no, meter_no, cycle_start, bucket_no, granted, used"
        " FROM unnest(%s::bigint[], %s::smallint[], %s::timestamptz[])"
        " AS given (subscription_no, meter_no, cycle_start)"
        " JOIN bucket USING (subscription_no, meter_no, cycle_start) WHERE bucket.kind = 'allowance'",
        use_keys,
    )
    for row in await found.fetchall():
        accounts.allowances[row[0], row[1], row[2]] = Bucket(int(row[4]), int(row[5]))
        numbers.allowances[row[0], row[1], row[2]] = row[3]
    found = await connection.execute(
        "SELECT fleet_no, meter_no, cycle_start, bucket_no, granted, used"
        " FROM unnest(%s::int[], %s::smallint[], %s::timestamptz[])"
        " AS given (fleet_no, meter_no, cycle_start)"
        " JOIN bucket USING (fleet_no, meter_no, cycle_start) WHERE bucket.kind = 'pool'",
        _columns(pools),
    )
    for row in await found.fetchall():
        accounts.pools[row[0], row[1], row[2]] = Bucket(int(row[4]), int(row[5]))
        numbers.pools[row[0], row[1], row[2]] = row[3]
    return accounts, numbers


async def store_accounts(
    connection: Connection, accounts: Accounts, numbers: BucketNos, fleets: dict[UseKey, int]
) -> None:
    """Store loaded accounts as they are now; `fleets` tells each use's fleet.

    The caller owns the fleets' shards, so what it loaded is still what is stored.
    """
    uses = sorted(accounts.uses.items())
    await connection.execute(
        "INSERT INTO meter_use (subscription_no, meter_no, cycle_start, fleet_no, records, quantity,"
        " uplink, from_allowance, from_pool, overage, amount)"
        " SELECT * FROM unnest(%s::bigint[], %s::smallint[], %s::timestamptz[], %s::int[],"
        " %s::bigint[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[],"
        " %s::numeric[])"
        " ON CONFLICT (subscription_no, meter_no, cycle_start) DO UPDATE SET"
        " records = excluded.records, quantity = excluded.quantity, uplink = excluded.uplink,"
        " from_allowance = excluded.from_allowance, from_pool = excluded.from_pool,"
        " overage = excluded.overage, amount = excluded.amount",
        [
            [key[0] for key, _ in uses],
            [key[1] for key, _ in uses],
            [key[2] for key, _ in uses],
            [fleets[key] for key, _ in uses],
            [use.records for _, use in uses],
            [use.quantity for _, use in uses],
            [use.uplink for _, use in uses],
            [use.from_allowance for _, use in uses],
            [use.from_pool for _, use in uses],
            [use.overage for _, use in uses],
            [use.amount for _, use in uses],
        ],
    )
    drawn = [(number, accounts.allowances[key].used) for key, number in numbers.allowances.items()]
    drawn += [(number, accounts.pools[key].used) for key, number in numbers.pools.items()]
    await connection.execute(
        "UPDATE bucket SET used = given.used"
        " FROM unnest(%s::bigint[], %s::numeric[]) AS given (bucket_no, used)"
        " WHERE bucket.bucket_no = given.bucket_no AND bucket.used <> given.used",
        [[number for number, _ in drawn], [used for _, used in drawn]],
    )


async def load_counters(
    connection: Connection, keys: Sequence[EpochKey]
) -> dict[EpochKey, CounterEnds]:
    """Return the ends of some counter epochs; one that was never counted is left out."""
    found = await connection.execute(
        "SELECT device_no, meter_no, epoch, first_boot_no, first_seq, first_measured_at,"
        " first_uplink, first_downlink, first_quantity, first_width,"
        " boot_no, seq, measured_at, uplink, downlink, quantity, width"
        " FROM unnest(%s::bigint[], %s::smallint[], %s::text[]) AS given (device_no, meter_no, epoch)"
        " JOIN counter USING (device_no, meter_no, epoch)",
        _columns(keys),
    )
    return dict(counter_of_row(row) for row in await found.fetchall())


def counter_of_row(row: Sequence[Any]) -> tuple[EpochKey, CounterEnds]:
    """Return the key and the ends in a row of `counter`'s columns."""
    key = (row[0], row[1], row[2])
    return key, CounterEnds(first=_point(row[1], row[3:10]), last=_point(row[1], row[10:17]))


async def store_counters(connection: Connection, counters: dict[EpochKey, CounterEnds]) -> None:
    """Store the ends of some counter epochs."""
    rows = [
        (*key, *_point_columns(key[1], ends.first), *_point_columns(key[1], ends.last))
        for key, ends in sorted(counters.items())
    ]
    await connection.execute(
        "INSERT INTO counter (device_no, meter_no, epoch, first_boot_no, first_seq,"
        " first_measured_at, first_uplink, first_downlink, first_quantity, first_width, boot_no, seq,"
        " measured_at, uplink, downlink, quantity, width)"
        " SELECT * FROM unnest(%s::bigint[], %s::smallint[], %s::text[],"
        " %s::bigint[], %s::bigint[], %s::timestamptz[], %s::bigint[], %s::bigint[], %s::bigint[],"
        " %s::smallint[],"
        " %s::bigint[], %s::bigint[], %s::timestamptz[], %s::bigint[], %s::bigint[], %s::bigint[],"
        " %s::smallint[])"
        " ON CONFLICT (device_no, meter_no, epoch) DO UPDATE SET"
        " first_boot_no = excluded.first_boot_no, first_seq = excluded.first_seq,"
        " first_measured_at = excluded.first_measured_at, first_uplink = excluded.first_uplink,"
        " first_downlink = excluded.first_downlink, first_quantity = excluded.first_quantity,"
        " first_width = excluded.first_width, boot_no = excluded.boot_no, seq = excluded.seq,"
        " measured_at = excluded.measured_at, uplink = excluded.uplink,"
        " downlink = excluded.downlink, quantity = excluded.quantity, width = excluded.width",
        [list(column) for column in zip(*rows, strict=True)],
    )


async def counted_neighbours(
    connection: Connection, key: EpochKey, point: CounterPoint, batch_nos: Sequence[int]
) -> list[CounterPoint]:
    """Return the counted points just before and just after one that came out of order.

    Points still queued for charging, and those of the batches at hand, are not counted yet.
    """
    boot_no, _, epoch = key[2].partition("/")
    arguments = [int(boot_no), key[1], epoch or None, list(batch_nos), point.seq]
    neighbours: list[CounterPoint] = []
    for query in (NEIGHBOUR_BEFORE, NEIGHBOUR_AFTER):
        found = await connection.execute(query, arguments)
        neighbours += [_point(key[1], row) for row in await found.fetchall()]
    return neighbours


_NEIGHBOUR = (
    "SELECT boot_no, seq, measured_at, uplink, downlink, quantity, width FROM reading"
    " WHERE boot_no = %s AND meter_no = %s AND kind = 2 AND epoch IS NOT DISTINCT FROM %s"
    " AND batch_no <> ALL(%s)"
    " AND NOT EXISTS (SELECT FROM work_item WHERE work_item.shard_no = reading.shard_no"
    " AND work_item.batch_no = reading.batch_no)"
)
NEIGHBOUR_BEFORE = _NEIGHBOUR + " AND seq < %s ORDER BY seq DESC LIMIT 1"
NEIGHBOUR_AFTER = _NEIGHBOUR + " AND seq > %s ORDER BY seq LIMIT 1"


def _columns(keys: Iterable[tuple[object, ...]]) -> list[list[object]]:
    """Turn keys into one list a column, three columns even of no keys."""
    rows = list(keys)
    return [[row[column] for row in rows] for column in range(3)]


def _point(meter_no: int, row: Sequence[Any]) -> CounterPoint:
    boot_no, seq, at, uplink, downlink, quantity, width = row
    directed = METERS_BY_NO[meter_no].directed
    return CounterPoint(
        boot_no=boot_no,
        seq=seq,
        at=at,
        values=(uplink, downlink) if directed else (quantity,),
        width=width,
    )


def _point_columns(meter_no: int, point: CounterPoint) -> tuple[object, ...]:
    directed = METERS_BY_NO[meter_no].directed
    values = (*point.values, 0) if directed else (0, 0, *point.values)
    return (point.boot_no, point.seq, point.at, *values, point.width)
