"""Opened bill cycles: which there are, whom they concern, and what opening them wrote."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString

from metering.period import BillCycle
from metering.rating.bucket import BucketKind
from metering.rating.grants import Grant
from metering.rating.guide import Subscription
from metering.rating.lots import LotsKey, LotTerms, Rolled
from metering.rating.membership import Member, StateChange
from metering.rating.plan import DeviceState, PlanTerms
from metering.store.accounts import BUCKET_COLUMNS, buckets_of_rows
from metering.store.binary import int4_array, timestamptz_array
from metering.store.connection import Connection
from metering.store.registry import Fleet, fleet_of_row
from metering.usage import METERS


async def opened_cycles(
    connection: Connection, keys: Iterable[tuple[int, datetime]]
) -> dict[tuple[int, datetime], bool]:
    """Return which of `(fleet_no, cycle_start)` were opened, each with whether it is closed since."""
    wanted = list(keys)
    found = await connection.execute(
        "SELECT fleet_no, cycle_start, closed_run_no IS NOT NULL"
        " FROM unnest(%s::int[], %s::timestamptz[])"
        " AS given (fleet_no, cycle_start) JOIN fleet_cycle USING (fleet_no, cycle_start)",
        [int4_array([key[0] for key in wanted]), timestamptz_array([key[1] for key in wanted])],
        binary=True,
    )
    return {(row[0], row[1]): row[2] for row in await found.fetchall()}


async def insert_cycle(
    connection: Connection,
    fleet_no: int,
    cycle: BillCycle,
    *,
    place: tuple[int, int],
    now: datetime,
) -> None:
    """Mark a cycle that is not open as opened at a place in the history."""
    await connection.execute(
        "INSERT INTO fleet_cycle (fleet_no, cycle_start, cycle_end, first_day, next_first_day,"
        " opened_at, run_no, run_position) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [
            fleet_no, cycle.start, cycle.end, cycle.first_day, cycle.next_first_day, now, *place,
        ],
    )  # fmt: skip


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


async def first_subscribed(connection: Connection, fleet_no: int) -> datetime | None:
    """Return when a fleet's first subscription begins; None while it has none."""
    found = await connection.execute(
        "SELECT min(lower(valid)) FROM subscription WHERE fleet_no = %s AND NOT isempty(valid)",
        [fleet_no],
    )
    row = await found.fetchone()
    return row[0] if row else None


async def first_cycle(connection: Connection, fleet_no: int) -> BillCycle | None:
    """Return the first of a fleet's cycles that were opened; None while none was."""
    return await _opened_cycle(connection, fleet_no, "cycle_start")


async def last_cycle(connection: Connection, fleet_no: int) -> BillCycle | None:
    """Return the last of a fleet's cycles that were opened; None while none was."""
    return await _opened_cycle(connection, fleet_no, "cycle_start DESC")


async def _opened_cycle(
    connection: Connection, fleet_no: int, order: LiteralString
) -> BillCycle | None:
    found = await connection.execute(
        "SELECT first_day, next_first_day, cycle_start, cycle_end FROM fleet_cycle"  # noqa: S608 - above
        f" WHERE fleet_no = %s ORDER BY {order} LIMIT 1",
        [fleet_no],
    )
    row = await found.fetchone()
    if row is None:
        return None
    return BillCycle(first_day=row[0], next_first_day=row[1], start=row[2], end=row[3])


def subscriptions_by_device(
    rows: Iterable[tuple[Any, ...]], fleet_no: int
) -> dict[int, list[Subscription]]:
    """Return a fleet's subscriptions by device, of rows `(device, number, plan, from, to)`."""
    subscriptions: dict[int, list[Subscription]] = {}
    for device_no, number, plan_no, valid_from, valid_to in rows:
        subscriptions.setdefault(device_no, []).append(
            Subscription(
                subscription_no=number,
                device_no=device_no,
                plan_no=plan_no,
                valid_from=valid_from,
                valid_to=valid_to,
                fleet_no=fleet_no,
            )
        )
    return subscriptions


def members_of(
    subscriptions: Mapping[int, Sequence[Subscription]], state_rows: Iterable[tuple[Any, ...]]
) -> list[Member]:
    """Return the devices with their subscriptions and their states, of rows `(device, state, from)`."""
    states: dict[int, list[StateChange]] = {}
    for device_no, state, effective_from in state_rows:
        states.setdefault(device_no, []).append(
            StateChange(state=DeviceState(state), effective_from=effective_from)
        )
    return [
        Member(device_no=device_no, subscriptions=own, states=states.get(device_no, []))
        for device_no, own in subscriptions.items()
    ]


async def fleet_members(
    connection: Connection, fleet_no: int, *, begins: datetime | None, ends: datetime | None
) -> list[Member]:
    """Return the devices with a subscription in a fleet in `[begins, ends)`, with all they had there.

    None is an end without bound.
    """
    found = await connection.execute(
        # In one pass: a join is planned badly while nobody has counted the rows of a large new fleet.
        "SELECT device_no, subscription_no, plan_no, lower(valid), upper(valid) FROM ("
        "   SELECT device_no, subscription_no, plan_no, valid,"
        "     bool_or(valid && tstzrange(%s, %s)) OVER (PARTITION BY device_no) AS is_member"
        "   FROM subscription WHERE fleet_no = %s AND NOT isempty(valid)) AS of_fleet"
        " WHERE is_member ORDER BY device_no, lower(valid)",
        [begins, ends, fleet_no],
    )
    subscriptions = subscriptions_by_device(await found.fetchall(), fleet_no)
    found = await connection.execute(
        "SELECT device_no, state, effective_from FROM device_state_change"
        " WHERE device_no = ANY(%s) ORDER BY device_no, effective_from",
        [list(subscriptions)],
    )
    return members_of(subscriptions, await found.fetchall())


async def store_grants(
    connection: Connection,
    fleet_no: int,
    grants: Sequence[Grant],
    plans: Mapping[int, PlanTerms],
    *,
    place: tuple[int, int],
    now: datetime,
) -> None:
    """Put grants into their lots, creating those, each subscription's once.

    They count from a place in the history on: (run_no, run_position). A bucket's cached sum grows by
    exactly the entries that were new; a pool of fixed size holds one member's.
    """
    keys = [_lot_columns(grant) for grant in grants]
    lots: dict[LotColumns, Grant] = {}
    for key, grant in zip(keys, grants, strict=True):
        lots.setdefault(key, grant)
    await connection.execute(
        "INSERT INTO bucket (kind, subscription_no, plan_no, meter_no, name, begins_at, expires_at,"
        "   cycle_start, terms_plan_no, fleet_no)"
        " SELECT *, %s FROM unnest(%s::text[], %s::bigint[], %s::int[], %s::smallint[], %s::text[],"
        "   %s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::int[])"
        " ON CONFLICT DO NOTHING",
        [
            fleet_no,
            *([key[column] for key in lots] for column in range(6)),
            [grant.expires_at for grant in lots.values()],
            [grant.cycle_start for grant in lots.values()],
            [grant.subscription.plan_no for grant in lots.values()],
        ],
    )
    once: set[LotColumns] = set()
    quantities: list[int] = []
    for key, grant in zip(keys, grants, strict=True):
        quantities.append(0 if grant.allowance.fixed and key in once else grant.quantity)
        once.add(key)
    entered = await connection.execute(
        _ENTER_GRANTS,
        [
            *([key[column] for key in keys] for column in range(6)),
            [grant.subscription_no for grant in grants],
            quantities,
            [grant.allowance.fixed for grant in grants],
            fleet_no,
            *place,
            now,
        ],
    )
    new = await entered.fetchall()
    if new:
        await _count_entries(connection, new, plans)


LotColumns = tuple[str, int | None, int | None, int, str, datetime]
"""kind, subscription_no (None of a pool), plan_no (of a plan's pool), meter_no, name, begins_at"""

_ENTER_GRANTS = (
    "WITH given AS (SELECT * FROM unnest(%s::text[], %s::bigint[], %s::int[], %s::smallint[],"
    "     %s::text[], %s::timestamptz[], %s::bigint[], %s::numeric[], %s::boolean[])"
    "   WITH ORDINALITY AS given (kind, owner, plan_no, meter_no, name, begins_at, subscription_no,"
    "     quantity, fixed, position)),"
    " placed AS (SELECT position, bucket_no, given.subscription_no, given.quantity, fixed"
    "   FROM given JOIN bucket ON bucket.kind = 'allowance' AND bucket.subscription_no = given.owner"
    "     AND bucket.meter_no = given.meter_no AND bucket.name = given.name"
    "     AND bucket.begins_at = given.begins_at WHERE given.kind = 'allowance'"
    "   UNION ALL SELECT position, bucket_no, given.subscription_no, given.quantity, fixed"
    "   FROM given JOIN bucket ON bucket.kind = 'pool' AND bucket.source = 'plan'"
    "     AND bucket.fleet_no = %s AND bucket.meter_no = given.meter_no AND bucket.name = given.name"
    "     AND bucket.begins_at = given.begins_at"
    "     AND coalesce(bucket.plan_no, 0) = coalesce(given.plan_no, 0) WHERE given.kind = 'pool')"
    " INSERT INTO bucket_entry"
    "   (bucket_no, kind, quantity, subscription_no, run_no, run_position, entered_at)"
    " SELECT bucket_no, 'grant', CASE WHEN fixed AND (SELECT sum(earlier.quantity) > 0"
    "   FROM bucket_entry AS earlier WHERE earlier.bucket_no = placed.bucket_no"
    "   AND earlier.kind IN ('grant', 'regrant')) THEN 0 ELSE quantity END,"
    "   subscription_no, %s, %s, %s FROM placed ORDER BY position"
    " ON CONFLICT (bucket_no, subscription_no) WHERE kind = 'grant' DO NOTHING"
    " RETURNING bucket_no, subscription_no, quantity"
)


def _lot_columns(grant: Grant) -> LotColumns:
    kind = BucketKind.POOL if grant.pooled else BucketKind.ALLOWANCE
    owner = None if grant.pooled else grant.subscription_no
    meter_no = METERS[grant.meter].meter_no
    return (
        kind.value, owner, grant.pool_plan_no, meter_no, grant.allowance.name, grant.begins_at,
    )  # fmt: skip


async def _count_entries(
    connection: Connection, new: Sequence[Sequence[Any]], plans: Mapping[int, PlanTerms]
) -> None:
    """Let the buckets' cached sums follow new entries, and let their subscriptions into pools."""
    counted = await connection.execute(
        "UPDATE bucket SET granted = granted + added.quantity"  # noqa: S608 - columns of the store
        " FROM (SELECT bucket_no, sum(quantity) AS quantity"
        "   FROM unnest(%s::bigint[], %s::numeric[]) AS given (bucket_no, quantity)"
        "   GROUP BY bucket_no) AS added"
        f" WHERE bucket.bucket_no = added.bucket_no RETURNING {BUCKET_COLUMNS}",
        [[row[0] for row in new], [row[2] for row in new]],
    )
    pools = [row for row in await counted.fetchall() if row[1] == BucketKind.POOL]
    floors = {
        int(bucket.bucket_id): bucket.floor
        for _, _, _, bucket in await buckets_of_rows(connection, pools, plans)
        if bucket.floor or bucket.ceiling is not None
    }
    joining = [(row[0], row[1], floors[row[0]]) for row in new if row[0] in floors]
    if not joining:
        return
    await connection.execute(
        "WITH given AS (SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::numeric[])"
        "     AS given (bucket_no, subscription_no, floor)),"
        " member AS (INSERT INTO pool_draw (bucket_no, subscription_no, member)"
        "   SELECT bucket_no, subscription_no, true FROM given"
        "   ON CONFLICT (bucket_no, subscription_no) DO UPDATE SET member = true"
        "   RETURNING bucket_no, subscription_no, drawn),"
        " unheld AS (SELECT bucket_no, floor - drawn - coalesce(quantity, 0) AS quantity"
        "   FROM member JOIN given USING (bucket_no, subscription_no)"
        "   LEFT JOIN bucket_hold USING (bucket_no, subscription_no))"
        " UPDATE bucket SET promised = promised + added.quantity"
        " FROM (SELECT bucket_no, sum(greatest(0, quantity)) AS quantity"
        "   FROM unheld GROUP BY bucket_no) AS added"
        " WHERE bucket.bucket_no = added.bucket_no",
        [list(column) for column in zip(*joining, strict=True)],
    )


async def lots_going_on(
    connection: Connection,
    fleet_no: int,
    plans: Mapping[int, PlanTerms],
    *,
    cycle_start: datetime,
) -> dict[LotsKey, list[LotTerms]]:
    """Return a fleet's lots that go on into the cycle that starts then, by allowance."""
    found = await connection.execute(
        f"SELECT {BUCKET_COLUMNS} FROM bucket"  # noqa: S608 - columns of the store
        " WHERE fleet_no = %s AND source = 'plan' AND expires_at > %s AND begins_at < %s"
        " ORDER BY bucket_no",
        [fleet_no, cycle_start, cycle_start],
    )
    lots: dict[LotsKey, list[LotTerms]] = {}
    for key, _, terms, bucket in await buckets_of_rows(connection, await found.fetchall(), plans):
        lots.setdefault(key, []).append((bucket, terms))
    return lots


async def store_rolled(
    connection: Connection,
    rolled: Sequence[Rolled],
    *,
    cycle_start: datetime,
    run_no: int,
    now: datetime,
) -> None:
    """Enter what rolls over into a cycle, and take away for good what expires, from a run on."""
    numbers = [int(each.bucket.bucket_id) for each in rolled]
    lost = [each.lost for each in rolled]
    await connection.execute(
        "WITH given AS (SELECT * FROM unnest(%s::bigint[], %s::numeric[], %s::numeric[])"
        "   AS given (bucket_no, lost, goes_on))"
        " INSERT INTO bucket_entry"
        " (bucket_no, other_bucket_no, kind, quantity, cycle_start, run_no, entered_at)"
        " SELECT bucket_no, NULL, 'expiry', -lost, %s::timestamptz, %s::bigint, %s::timestamptz"
        "   FROM given WHERE lost > 0"
        " UNION ALL SELECT bucket_no, bucket_no, 'rollover', goes_on, %s, %s, %s"
        "   FROM given WHERE goes_on > 0",
        [numbers, lost, [each.goes_on for each in rolled], *[cycle_start, run_no, now] * 2],
    )
    if any(lost):
        await connection.execute(
            "UPDATE bucket SET granted = granted - given.quantity"
            " FROM unnest(%s::bigint[], %s::numeric[]) AS given (bucket_no, quantity)"
            " WHERE bucket.bucket_no = given.bucket_no AND given.quantity > 0",
            [numbers, lost],
        )


async def fleets_without_open_cycle(
    connection: Connection, now: datetime, *, shards: Iterable[int] | None = None
) -> list[Fleet]:
    """Return the fleets, of some shards or of all, that have no open cycle for the present instant."""
    wanted = None if shards is None else list(shards)
    found = await connection.execute(
        "SELECT fleet_no, tenant_no, fleet_id, name, currency, time_zone, anchor_day,"
        " cycle_months, anchor_month, earlier_zones, shard_no"
        " FROM fleet WHERE NOT EXISTS (SELECT FROM fleet_cycle"
        "   WHERE fleet_cycle.fleet_no = fleet.fleet_no"
        "   AND cycle_start <= %s AND cycle_end > %s)"
        " AND (%s::smallint[] IS NULL OR shard_no = ANY(%s))"
        " ORDER BY shard_no, fleet_no LIMIT 100",
        [now, now, wanted, wanted],
    )
    return [fleet_of_row(row) for row in await found.fetchall()]
