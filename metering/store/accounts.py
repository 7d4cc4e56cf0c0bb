"""Charging's state: counters, buckets, counts and cumulative use, loaded for a batch and stored."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from operator import itemgetter
from typing import Any

from psycopg.rows import TupleRow

from metering.rating.account import Accounts, CountKey, MeterUse, UseKey
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.counter import CounterPoint
from metering.rating.grants import lot_of
from metering.rating.guide import Subscription
from metering.rating.lots import Lots, LotsKey, allowance_of, allowances_of
from metering.rating.plan import AllowanceTerms, PlanTerms
from metering.rating.record import EpochKey
from metering.store.balances import Owner, TopUpRow, top_up_of_row, top_up_rows, top_ups_by_no
from metering.store.binary import (
    int2_array,
    int4_array,
    int8_array,
    numeric_array,
    text_array,
    timestamptz_array,
)
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
    owners: AbstractSet[Owner] = frozenset()
    """Whose top-ups may be drawn from."""


@dataclass(slots=True, kw_only=True)
class Loaded:
    """Loaded accounts, with the buckets by number, by which they are stored again."""

    accounts: Accounts
    lots: Lots
    buckets: dict[int, Bucket] = field(default_factory=dict)
    before: dict[int, tuple[int, int]] = field(default_factory=dict)
    """bucket_no → what of it was used and reserved as it was loaded."""
    held_before: dict[tuple[int, int], int] = field(default_factory=dict)
    """(bucket_no, subscription_no) → what was held as it was loaded."""


async def load_accounts(
    connection: Connection, wanted: Wanted, plans: Mapping[int, PlanTerms]
) -> Loaded:
    """Load the accounts that a batch touches; its buckets are in `lots`, not yet put in burn order."""
    loaded = Loaded(accounts=Accounts(), lots=Lots())
    if wanted.uses:
        await _load_uses(connection, wanted, loaded.accounts)
    if wanted.counts:
        await _load_counts(connection, wanted, loaded.accounts)
    if wanted.meters:
        await _load_buckets(connection, wanted, plans, loaded)
    if wanted.owners:
        _put_top_ups(
            loaded,
            await top_up_rows(connection, wanted.owners, first=wanted.first, last=wanted.last),
        )
    await _put_holds(connection, loaded, sorted({key[0] for key in (*wanted.uses, *wanted.meters)}))
    return loaded


async def _load_uses(connection: Connection, wanted: Wanted, accounts: Accounts) -> None:
    found = await connection.execute(
        # As text: it is read as a whole number in a fraction of the time that a Decimal takes.
        "SELECT subscription_no, meter_no, cycle_start, variant, records, quantity::text, uplink::text,"
        " billed::text, from_allowance::text, from_pool::text, overage::text, amount::text"
        " FROM unnest(%s::bigint[], %s::smallint[], %s::timestamptz[], %s::smallint[])"
        " AS given (subscription_no, meter_no, cycle_start, variant)"
        " JOIN meter_use USING (subscription_no, meter_no, cycle_start, variant)",
        _use_keys(list(wanted.uses)),
        binary=True,
    )
    for subscription_no, meter_no, cycle_start, variant, *sums in await found.fetchall():
        accounts.uses[subscription_no, meter_no, cycle_start, variant] = MeterUse(*map(int, sums))


async def load_overage(connection: Connection, keys: Sequence[UseKey]) -> dict[UseKey, int]:
    """Return what of some uses was priced; of those that are left out, nothing was."""
    found = await connection.execute(
        "SELECT subscription_no, meter_no, cycle_start, variant, overage::text"
        " FROM unnest(%s::bigint[], %s::smallint[], %s::timestamptz[], %s::smallint[])"
        " AS given (subscription_no, meter_no, cycle_start, variant)"
        " JOIN meter_use USING (subscription_no, meter_no, cycle_start, variant) WHERE overage <> 0",
        _use_keys(keys),
        binary=True,
    )
    return {(row[0], row[1], row[2], row[3]): int(row[4]) for row in await found.fetchall()}


def _use_keys(keys: Sequence[UseKey]) -> list[bytes]:
    """Return the columns of `meter_use`'s key."""
    return [
        int8_array([key[0] for key in keys]),
        int2_array([key[1] for key in keys]),
        timestamptz_array([key[2] for key in keys]),
        int2_array([key[3] for key in keys]),
    ]


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
    " bucket.granted, bucket.used, bucket.promised, bucket.reserved"
)
_HOLDS = " AND bucket.begins_at <= %s AND coalesce(bucket.expires_at, 'infinity') > %s::timestamptz"


async def _load_buckets(
    connection: Connection, wanted: Wanted, plans: Mapping[int, PlanTerms], loaded: Loaded
) -> None:
    own: list[tuple[int, int]] = []
    shared: set[tuple[int, int]] = set()
    keys: set[LotsKey] = set()
    alike: set[tuple[int, int, int]] = set()
    for (number, meter_no), (fleet_no, subscription) in wanted.meters.items():
        plan = plans[subscription.plan_no]
        if plan.meters[METERS_BY_NO[meter_no].meter].has_own_allowance:
            own.append((number, meter_no))
        elif (fleet_no, subscription.plan_no, meter_no) in alike:
            continue  # who has nothing of their own has what their plan's others have
        alike.add((fleet_no, subscription.plan_no, meter_no))
        shared.add((fleet_no, meter_no))
        keys.update(allowances_of(fleet_no, [subscription], plans))
    rows: list[TupleRow] = []
    if own:
        found = await connection.execute(
            f"SELECT {BUCKET_COLUMNS}"  # noqa: S608 - columns of this module
            " FROM unnest(%s::bigint[], %s::smallint[]) AS given (subscription_no, meter_no)"
            " JOIN bucket USING (subscription_no, meter_no) WHERE bucket.kind = 'allowance'"
            + _HOLDS,
            [
                int8_array([key[0] for key in own]),
                int2_array([key[1] for key in own]),
                wanted.last,
                wanted.first,
            ],
        )
        rows += await found.fetchall()
    found = await connection.execute(
        f"SELECT {BUCKET_COLUMNS}"  # noqa: S608 - columns of this module
        " FROM unnest(%s::int[], %s::smallint[]) AS given (fleet_no, meter_no)"
        " JOIN bucket USING (fleet_no, meter_no)"
        " WHERE bucket.kind = 'pool' AND bucket.source = 'plan'" + _HOLDS,
        [*_columns(sorted(shared), 2), wanted.last, wanted.first],
    )
    rows += await found.fetchall()
    rows = [row for row in rows if _key(row) in keys]
    await _put_buckets(connection, rows, plans, loaded, sorted({key[0] for key in wanted.meters}))


async def load_buckets(
    connection: Connection,
    bucket_nos: Sequence[int],
    subscription_nos: Sequence[int],
    plans: Mapping[int, PlanTerms],
) -> Loaded:
    """Load some buckets, with what some subscriptions drew from them and what is held for those."""
    found = await connection.execute(
        f"SELECT {BUCKET_COLUMNS} FROM bucket"  # noqa: S608 - columns of this module
        " WHERE bucket_no = ANY(%s) AND source = 'plan' ORDER BY bucket_no",
        [list(bucket_nos)],
    )
    loaded = Loaded(accounts=Accounts(), lots=Lots())
    await _put_buckets(connection, await found.fetchall(), plans, loaded, subscription_nos)
    if len(loaded.buckets) < len(set(bucket_nos)):
        _put_top_ups(loaded, await top_ups_by_no(connection, bucket_nos))
    await _put_holds(connection, loaded, subscription_nos)
    return loaded


async def _put_buckets(
    connection: Connection,
    rows: Sequence[Sequence[Any]],
    plans: Mapping[int, PlanTerms],
    loaded: Loaded,
    subscription_nos: Sequence[object],
) -> None:
    """Put buckets into what is loaded, with the shares of some subscriptions in them."""
    bounded: list[int] = []
    for key, begins_at, _, bucket in await buckets_of_rows(connection, rows, plans):
        number = int(bucket.bucket_id)
        loaded.lots.put(key, begins_at, bucket)
        loaded.buckets[number] = bucket
        loaded.before[number] = (int(bucket.used), bucket.reserved)
        if bucket.floor or bucket.ceiling is not None:
            bounded.append(number)
    if bounded:
        found = await connection.execute(
            "SELECT bucket_no, subscription_no, drawn, member FROM pool_draw"
            " WHERE bucket_no = ANY(%s) AND subscription_no = ANY(%s)",
            [bounded, subscription_nos],
        )
        for bucket_no, subscription_no, drawn, member in await found.fetchall():
            loaded.buckets[bucket_no].drawn[subscription_no] = int(drawn)
            if member:
                loaded.buckets[bucket_no].members.add(subscription_no)


async def _put_holds(
    connection: Connection, loaded: Loaded, subscription_nos: Sequence[object]
) -> None:
    """Let loaded buckets know what is held in them for some subscriptions."""
    reserved = [number for number, bucket in loaded.buckets.items() if bucket.reserved]
    if reserved:
        found = await connection.execute(
            "SELECT bucket_no, subscription_no, quantity FROM bucket_hold"
            " WHERE bucket_no = ANY(%s) AND subscription_no = ANY(%s) AND quantity > 0",
            [reserved, subscription_nos],
        )
        for bucket_no, subscription_no, quantity in await found.fetchall():
            loaded.buckets[bucket_no].held[subscription_no] = int(quantity)
            loaded.held_before[bucket_no, subscription_no] = int(quantity)


def _put_top_ups(loaded: Loaded, rows: Iterable[TopUpRow]) -> None:
    for row in rows:
        key, bucket = top_up_of_row(row)
        number = int(bucket.bucket_id)
        loaded.lots.put_top_up(key, bucket)
        loaded.buckets[number] = bucket
        loaded.before[number] = (int(bucket.used), bucket.reserved)


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
     promised, reserved) = row  # fmt: skip
    allowance = allowance_of(plans[terms_plan_no], METERS_BY_NO[meter_no].meter, name)
    bucket = lot_of(
        allowance, bucket_id=f"{number:020}", begins_at=begins_at, expires_at=expires_at
    )
    bucket.granted = int(granted)
    bucket.used = int(used)
    bucket.reserved = int(reserved)
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
    keys = sorted(accounts.uses)
    await connection.execute(
        _STORE_USES
        + " records = excluded.records, quantity = excluded.quantity, uplink = excluded.uplink,"
        " billed = excluded.billed, from_allowance = excluded.from_allowance,"
        " from_pool = excluded.from_pool, overage = excluded.overage, amount = excluded.amount",
        _uses([(key, wanted.uses[key], accounts.uses[key]) for key in keys]),
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
    await store_buckets(connection, loaded)


_STORE_USES = (
    "INSERT INTO meter_use (subscription_no, meter_no, cycle_start, variant, fleet_no, records,"
    " quantity, uplink, billed, from_allowance, from_pool, overage, amount)"
    " SELECT * FROM unnest(%s::bigint[], %s::smallint[], %s::timestamptz[], %s::smallint[],"
    " %s::int[], %s::bigint[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[],"
    " %s::numeric[], %s::numeric[], %s::numeric[])"
    " ON CONFLICT (subscription_no, meter_no, cycle_start, variant) DO UPDATE SET"
)
FleetUse = tuple[UseKey, int, MeterUse]
"""A use, and the fleet that it belongs to."""


def _uses(uses: Sequence[FleetUse]) -> list[bytes | list[Decimal]]:
    """Return the parameters of `_STORE_USES`."""
    sums = [each[2] for each in uses]
    return [
        *_use_keys([each[0] for each in uses]),
        int4_array([each[1] for each in uses]),
        int8_array([use.records for use in sums]),
        numeric_array([use.quantity for use in sums]),
        numeric_array([use.uplink for use in sums]),
        numeric_array([use.billed for use in sums]),
        numeric_array([use.from_allowance for use in sums]),
        numeric_array([use.from_pool for use in sums]),
        numeric_array([use.overage for use in sums]),
        numeric_array([use.amount for use in sums]),
    ]


async def add_uses(connection: Connection, added: Iterable[FleetUse]) -> None:
    """Add to stored uses, each at most once; the caller owns the fleets' shards."""
    await connection.execute(
        _STORE_USES + " records = meter_use.records + excluded.records,"
        " quantity = meter_use.quantity + excluded.quantity,"
        " uplink = meter_use.uplink + excluded.uplink,"
        " billed = meter_use.billed + excluded.billed,"
        " from_allowance = meter_use.from_allowance + excluded.from_allowance,"
        " from_pool = meter_use.from_pool + excluded.from_pool,"
        " overage = meter_use.overage + excluded.overage,"
        " amount = meter_use.amount + excluded.amount",
        _uses(sorted(added, key=itemgetter(0))),
    )


async def store_buckets(connection: Connection, loaded: Loaded) -> None:
    """Store what was drawn from loaded buckets, and what is still held in them.

    A hold that is not stored yet is left out: it comes with its reservation.
    """
    drawn = {
        number: bucket
        for number, bucket in loaded.buckets.items()
        if (bucket.used, bucket.reserved) != loaded.before[number]
    }
    if not drawn:
        return
    await connection.execute(
        "UPDATE bucket SET used = given.used, promised = given.promised, reserved = given.reserved"
        " FROM unnest(%s::bigint[], %s::numeric[], %s::numeric[], %s::numeric[])"
        " AS given (bucket_no, used, promised, reserved) WHERE bucket.bucket_no = given.bucket_no",
        [
            int8_array(drawn),
            numeric_array(int(bucket.used) for bucket in drawn.values()),
            numeric_array(bucket.promised or 0 for bucket in drawn.values()),
            numeric_array(bucket.reserved for bucket in drawn.values()),
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
    held = [
        (number, subscription_no, loaded.buckets[number].held.get(subscription_no, 0))
        for (number, subscription_no), before in loaded.held_before.items()
        if loaded.buckets[number].held.get(subscription_no, 0) != before
    ]
    if held:
        await connection.execute(
            "UPDATE bucket_hold SET quantity = given.quantity"
            " FROM unnest(%s::bigint[], %s::bigint[], %s::numeric[])"
            " AS given (bucket_no, subscription_no, quantity)"
            " WHERE bucket_hold.bucket_no = given.bucket_no"
            " AND bucket_hold.subscription_no = given.subscription_no",
            _columns(held, 3),
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
        [
            int8_array([key[0] for key in keys]),
            int2_array([key[1] for key in keys]),
            text_array([key[2] for key in keys]),
        ],
        binary=True,
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
        [
            form(column)
            for form, column in zip(_COUNTER_FORMS, zip(*rows, strict=True), strict=True)
        ],
    )


_POINT_FORMS = (
    int8_array, int8_array, timestamptz_array, int8_array, int8_array, int8_array, int2_array,
)  # fmt: skip
_COUNTER_FORMS: tuple[Callable[[Any], bytes], ...] = (
    int8_array, int2_array, text_array, *_POINT_FORMS, *_POINT_FORMS,
)  # fmt: skip


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
