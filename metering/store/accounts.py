"""Charging's state: counters, buckets, counts and cumulative use, loaded for a batch and stored."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from metering.rating.account import Accounts, CountKey, MeterUse, UseKey
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.counter import CounterPoint
from metering.rating.grants import lot_of
from metering.rating.guide import Subscription
from metering.rating.lots import Lots, LotsKey, allowance_of, allowances_of
from metering.rating.plan import AllowanceTerms, PlanTerms
from metering.rating.record import EpochKey
from metering.store.connection import Connection
from metering.store.registry import plan_terms
from metering.usage import METERS_BY_NO


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterEnds:
    """The first and the last counted point of an epoch."""

    first: CounterPoint
    last: CounterPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which accounts a batch touches: uses and counts by the fleet that they belong to.

    `meters` are `(fleet_no, subscription, meter_no)` whose buckets may be drawn from by usage that
    begins between `first` and `last`.
    """

    uses: Mapping[UseKey, int]
    counts: Mapping[CountKey, int]
    meters: Mapping[tuple[int, int], tuple[int, Subscription]]
    """(subscription_no, meter_no) → (fleet_no, subscription)"""
    first: datetime
    last: datetime


@dataclass(slots=True, kw_only=True)
class Loaded:
    """Loaded accounts, with the buckets by number, by which they are stored again."""

    accounts: Accounts
    lots: Lots
    buckets: dict[int, Bucket] = field(default_factory=dict)
    drawn_before: dict[int, int] = field(default_factory=dict)


async def load_accounts(
    connection: Connection, wanted: Wanted, plans: Mapping[int, PlanTerms]
) -> Loaded:
    """Load the accounts that a batch touches; its buckets are in `lots`, not yet put in burn order."""
    loaded = Loaded(accounts=Accounts(), lots=Lots())
    await _load_uses(connection, wanted, loaded.accounts)
    if wanted.counts:
        await _load_counts(connection, wanted, loaded.accounts)
    if wanted.meters:
        await _load_buckets(connection, wanted, plans, loaded)
    return loaded


async def _load_uses(connection: Connection, wanted: Wanted, accounts: Accounts) -> None:
    found = await connection.execute(
        "SELECT subscription_no, meter_no, cycle_start, variant, records, quantity, uplink, billed,"
        " from_allowance, from_pool, overage, amount"
        " FROM unnest(%s::bigint[], %s::smallint[], %s::timestamptz[], %s::smallint[])"
        " AS given (subscription_no, meter_no, cycle_start, variant)"
        " JOIN meter_use USING (subscription_no, meter_no, cycle_start, variant)",
        _columns(wanted.uses, 4),
    )
    for row in await found.fetchall():
        accounts.uses[row[0], row[1], row[2], row[3]] = MeterUse(*map(int, row[4:]))


async def _load_counts(connection: Connection, wanted: Wanted, accounts: Accounts) -> None:
    found = await connection.execute(
        "SELECT subscription_no, meter_no, cycle_start, variant, name, quantity"
        " FROM unnest(%s::bigint[], %s::smallint[], %s::timestamptz[], %s::smallint[], %s::text[])"
        " AS given (subscription_no, meter_no, cycle_start, variant, name)"
        " JOIN rating_count USING (subscription_no, meter_no, cycle_start, variant, name)",
        _columns(wanted.counts, 5),
    )
    for row in await found.fetchall():
        accounts.counts[row[0], row[1], row[2], row[3], row[4]] = int(row[5])


BUCKET_COLUMNS = (
    "bucket.bucket_no, bucket.kind, bucket.fleet_no, bucket.subscription_no, bucket.plan_no,"
    " bucket.terms_plan_no, bucket.meter_no, bucket.name, bucket.begins_at, bucket.expires_at,"
    " bucket.granted, bucket.used, bucket.promised"
)
_HOLDS = " AND bucket.begins_at <= %s AND coalesce(bucket.expires_at, 'infinity') > %s::timestamptz"


async def _load_buckets(
    connection: Connection, wanted: Wanted, plans: Mapping[int, PlanTerms], loaded: Loaded
) -> None:
    subscriptions, meters = _columns(wanted.meters, 2)
    own = await connection.execute(
        f"SELECT {BUCKET_COLUMNS}"  # noqa: S608 - columns of this module
        " FROM unnest(%s::bigint[], %s::smallint[]) AS given (subscription_no, meter_no)"
        " JOIN bucket USING (subscription_no, meter_no) WHERE bucket.kind = 'allowance'" + _HOLDS,
        [subscriptions, meters, wanted.last, wanted.first],
    )
    fleets = sorted({(fleet, key[1]) for key, (fleet, _) in wanted.meters.items()})
    shared = await connection.execute(
        f"SELECT {BUCKET_COLUMNS}"  # noqa: S608 - columns of this module
        " FROM unnest(%s::int[], %s::smallint[]) AS given (fleet_no, meter_no)"
        " JOIN bucket USING (fleet_no, meter_no) WHERE bucket.kind = 'pool'" + _HOLDS,
        [*_columns(fleets, 2), wanted.last, wanted.first],
    )
    keys: set[LotsKey] = set()
    for fleet_no, subscription in wanted.meters.values():
        keys.update(allowances_of(fleet_no, [subscription], plans))
    rows = [row for row in [*await own.fetchall(), *await shared.fetchall()] if _key(row) in keys]
    bounded: list[int] = []
    for key, begins_at, _, bucket in await buckets_of_rows(connection, rows, plans):
        number = int(bucket.bucket_id)
        loaded.lots.put(key, begins_at, bucket)
        loaded.buckets[number] = bucket
        loaded.drawn_before[number] = int(bucket.used)
        if bucket.floor or bucket.ceiling is not None:
            bounded.append(number)
    if bounded:
        found = await connection.execute(
            "SELECT bucket_no, subscription_no, drawn, member FROM pool_draw"
            " WHERE bucket_no = ANY(%s) AND subscription_no = ANY(%s)",
            [bounded, subscriptions],
        )
        for bucket_no, subscription_no, drawn, member in await found.fetchall():
            loaded.buckets[bucket_no].drawn[subscription_no] = int(drawn)
            if member:
                loaded.buckets[bucket_no].members.add(subscription_no)


LotOfRow = tuple[LotsKey, datetime, AllowanceTerms, Bucket]
"""Where a lot stands, when it begins, the terms that say how it is drawn from, and what it holds."""


async def buckets_of_rows(
    connection: Connection, rows: Iterable[Sequence[Any]], plans: Mapping[int, PlanTerms]
) -> list[LotOfRow]:
    """Return the buckets in rows of their columns; plans that are not at hand are loaded."""
    rows = list(rows)
    missing = {row[5] for row in rows} - plans.keys()
    if missing:
        plans = {**plans, **await plan_terms(connection, sorted(missing))}
    return [bucket_of_row(row, plans) for row in rows]


def bucket_of_row(row: Sequence[Any], plans: Mapping[int, PlanTerms]) -> LotOfRow:
    """Return the bucket in a row of its columns; raise `LookupError` when no plan knows it."""
    (number, _, _, _, _, terms_plan_no, meter_no, name, begins_at, expires_at, granted, used,
     promised) = row  # fmt: skip
    allowance = allowance_of(plans[terms_plan_no], METERS_BY_NO[meter_no].meter, name)
    bucket = lot_of(
        allowance, bucket_id=f"{number:020}", begins_at=begins_at, expires_at=expires_at
    )
    bucket.granted = int(granted)
    bucket.used = int(used)
    if allowance.floor:
        bucket.promised = int(promised)
    return _key(row), begins_at, allowance, bucket


def _key(row: Sequence[Any]) -> LotsKey:
    _, kind, fleet_no, subscription_no, plan_no, _, meter_no, name, *_ = row
    owner = subscription_no if kind == BucketKind.ALLOWANCE else -(plan_no or 0)
    return (fleet_no, owner, METERS_BY_NO[meter_no].meter, name)


async def store_accounts(connection: Connection, loaded: Loaded, wanted: Wanted) -> None:
    """Store loaded accounts as they are now.

    The caller owns the fleets' shards, so what it loaded is still what is stored.
    """
    accounts = loaded.accounts
    uses = sorted(accounts.uses.items())
    await connection.execute(
        "INSERT INTO meter_use (subscription_no, meter_no, cycle_start, variant, fleet_no, records,"
        " quantity, uplink, billed, from_allowance, from_pool, overage, amount)"
        " SELECT * FROM unnest(%s::bigint[], %s::smallint[], %s::timestamptz[], %s::smallint[],"
        " %s::int[], %s::bigint[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[],"
        " %s::numeric[], %s::numeric[], %s::numeric[])"
        " ON CONFLICT (subscription_no, meter_no, cycle_start, variant) DO UPDATE SET"
        " records = excluded.records, quantity = excluded.quantity, uplink = excluded.uplink,"
        " billed = excluded.billed, from_allowance = excluded.from_allowance,"
        " from_pool = excluded.from_pool, overage = excluded.overage, amount = excluded.amount",
        [
            *_columns((key for key, _ in uses), 4),
            [wanted.uses[key] for key, _ in uses],
            [use.records for _, use in uses],
            [use.quantity for _, use in uses],
            [use.uplink for _, use in uses],
            [use.billed for _, use in uses],
            [use.from_allowance for _, use in uses],
            [use.from_pool for _, use in uses],
            [use.overage for _, use in uses],
            [use.amount for _, use in uses],
        ],
    )
    if accounts.counts:
        counts = sorted(accounts.counts.items())
        await connection.execute(
            "INSERT INTO rating_count"
            " (subscription_no, meter_no, cycle_start, variant, name, fleet_no, quantity)"
            " SELECT * FROM unnest(%s::bigint[], %s::smallint[], %s::timestamptz[], %s::smallint[],"
            " %s::text[], %s::int[], %s::numeric[])"
            " ON CONFLICT (subscription_no, meter_no, cycle_start, variant, name)"
            " DO UPDATE SET quantity = excluded.quantity",
            [
                *_columns((key for key, _ in counts), 5),
                [wanted.counts[key] for key, _ in counts],
                [quantity for _, quantity in counts],
            ],
        )
    await _store_draws(connection, loaded)


async def _store_draws(connection: Connection, loaded: Loaded) -> None:
    drawn = {
        number: bucket
        for number, bucket in loaded.buckets.items()
        if bucket.used != loaded.drawn_before[number]
    }
    if not drawn:
        return
    await connection.execute(
        "UPDATE bucket SET used = given.used, promised = given.promised"
        " FROM unnest(%s::bigint[], %s::numeric[], %s::numeric[])"
        " AS given (bucket_no, used, promised) WHERE bucket.bucket_no = given.bucket_no",
        [
            list(drawn),
            [int(bucket.used) for bucket in drawn.values()],
            [bucket.promised or 0 for bucket in drawn.values()],
        ],
    )
    members = [
        (number, subscription_no, quantity)
        for number, bucket in drawn.items()
        for subscription_no, quantity in bucket.drawn.items()
    ]
    if members:
        await connection.execute(
            "INSERT INTO pool_draw (bucket_no, subscription_no, drawn)"
            " SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::numeric[])"
            " ON CONFLICT (bucket_no, subscription_no) DO UPDATE SET drawn = excluded.drawn",
            _columns(members, 3),
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
    connection: Connection, key: EpochKey, point: CounterPoint, claimed: Sequence[tuple[int, int]]
) -> list[CounterPoint]:
    """Return the counted points just before and just after one that came out of order.

    Points still queued for charging, and those of the `(shard_no, batch_no)` at hand, are not counted
    yet. Of one batch, one shard's readings may be counted and another's at hand.
    """
    boot_no, _, epoch = key[2].partition("/")
    shard_nos, batch_nos = [each[0] for each in claimed], [each[1] for each in claimed]
    arguments = [int(boot_no), key[1], epoch or None, shard_nos, batch_nos, point.seq]
    neighbours: list[CounterPoint] = []
    for query in (NEIGHBOUR_BEFORE, NEIGHBOUR_AFTER):
        found = await connection.execute(query, arguments)
        neighbours += [_point(key[1], row) for row in await found.fetchall()]
    return neighbours


_NEIGHBOUR = (
    "SELECT boot_no, seq, measured_at, uplink, downlink, quantity, width FROM reading"
    " WHERE boot_no = %s AND meter_no = %s AND kind = 2 AND epoch IS NOT DISTINCT FROM %s"
    " AND NOT EXISTS (SELECT FROM unnest(%s::smallint[], %s::bigint[]) AS claimed (shard_no, batch_no)"
    " WHERE claimed.shard_no = reading.shard_no AND claimed.batch_no = reading.batch_no)"
    " AND NOT EXISTS (SELECT FROM work_item WHERE work_item.shard_no = reading.shard_no"
    " AND work_item.batch_no = reading.batch_no)"
)
NEIGHBOUR_BEFORE = _NEIGHBOUR + " AND seq < %s ORDER BY seq DESC LIMIT 1"
NEIGHBOUR_AFTER = _NEIGHBOUR + " AND seq > %s ORDER BY seq LIMIT 1"


def _columns(keys: Iterable[tuple[object, ...]], width: int = 3) -> list[list[object]]:
    """Turn keys into one list a column, `width` columns even of no keys."""
    rows = list(keys)
    return [[row[column] for row in rows] for column in range(width)]


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
