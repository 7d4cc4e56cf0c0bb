"""Balances that operators change: top-up lots, operations each done once, and their entries."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.lots import TopUpsKey, top_up_lot
from metering.store.binary import int2_array, int4_array, int8_array
from metering.store.connection import Connection
from metering.store.registry import Fleet, fleet_of_row
from metering.usage import METERS_BY_NO

Owner = tuple[int, int, int]
"""(fleet_no, device_no, meter_no): whose usage of what may draw from top-ups."""

TopUpRow = Sequence[Any]
"""A row of `TOP_UP_COLUMNS`."""
TOP_UP_COLUMNS = (
    "bucket.bucket_no, bucket.fleet_no, bucket.device_no, bucket.meter_no, bucket.name,"
    " bucket.priority, bucket.zones, bucket.begins_at, bucket.expires_at, bucket.granted, bucket.used,"
    " bucket.reserved"
)
# The devices are not even looked up while no device of these fleets has a top-up.
_TOP_UPS_THAT_HOLD = (
    f"SELECT {TOP_UP_COLUMNS}"  # noqa: S608 - columns of this module
    " FROM unnest(%(fleets)s::int[], %(fleet_meters)s::smallint[]) AS given (fleet_no, meter_no)"
    " JOIN bucket USING (fleet_no, meter_no)"
    " WHERE bucket.kind = 'pool' AND bucket.source = 'top_up' AND bucket.begins_at <= %(last)s"
    "   AND coalesce(bucket.expires_at, 'infinity') > %(first)s::timestamptz"
    f" UNION ALL SELECT {TOP_UP_COLUMNS}"
    " FROM unnest(%(device_fleets)s::int[], %(devices)s::bigint[], %(device_meters)s::smallint[])"
    "   AS given (fleet_no, device_no, meter_no)"
    " JOIN bucket USING (fleet_no, device_no, meter_no)"
    " WHERE bucket.kind = 'allowance' AND bucket.source = 'top_up' AND bucket.begins_at <= %(last)s"
    "   AND coalesce(bucket.expires_at, 'infinity') > %(first)s::timestamptz"
    "   AND (SELECT EXISTS (SELECT FROM bucket AS any_top_up WHERE any_top_up.fleet_no = ANY(%(fleets)s)"
    "     AND any_top_up.kind = 'allowance' AND any_top_up.source = 'top_up'"
    "     AND coalesce(any_top_up.expires_at, 'infinity') > %(first)s::timestamptz))"
)


async def top_up_rows(
    connection: Connection, owners: AbstractSet[Owner], *, first: datetime, last: datetime
) -> list[TopUpRow]:
    """Return the top-ups that usage of some owners, begun between `first` and `last`, may draw from."""
    of_fleets = sorted({(fleet_no, meter_no) for fleet_no, _, meter_no in owners})
    of_devices = sorted(owners)
    found = await connection.execute(
        _TOP_UPS_THAT_HOLD.encode(),
        {
            "fleets": [fleet_no for fleet_no, _ in of_fleets],
            "fleet_meters": [meter_no for _, meter_no in of_fleets],
            "device_fleets": int4_array([owner[0] for owner in of_devices]),
            "devices": int8_array([owner[1] for owner in of_devices]),
            "device_meters": int2_array([owner[2] for owner in of_devices]),
            "first": first,
            "last": last,
        },
    )
    return list(await found.fetchall())


async def top_ups_by_no(connection: Connection, bucket_nos: Sequence[int]) -> list[TopUpRow]:
    """Return those of some buckets that are top-ups."""
    found = await connection.execute(
        f"SELECT {TOP_UP_COLUMNS} FROM bucket"  # noqa: S608 - columns of this module
        " WHERE bucket_no = ANY(%s) AND source = 'top_up' ORDER BY bucket_no",
        [list(bucket_nos)],
    )
    return list(await found.fetchall())


def top_up_of_row(row: TopUpRow) -> tuple[TopUpsKey, Bucket]:
    """Return where the top-up in a row of `TOP_UP_COLUMNS` stands, and its bucket."""
    number, fleet_no, device_no, meter_no, name, priority, zones, begins_at, expires_at, *sums = row
    bucket = top_up_lot(
        bucket_id=f"{number:020}",
        name=name,
        of_device=device_no is not None,
        priority=priority,
        zones=zones,
        begins_at=begins_at,
        expires_at=expires_at,
    )
    bucket.granted, bucket.used, bucket.reserved = map(int, sums)
    return (fleet_no, device_no or 0, METERS_BY_NO[meter_no].meter), bucket


# Operations --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a tenant asked to do to balances, as it was done: the first and only time.

    `quantity` went into `bucket_no`, out of `from_bucket_no` if it was a transfer; one that an
    adjustment took away is negative. `content` is the request.
    """

    operation_no: int
    kind: str
    fleet_no: int
    bucket_no: int
    from_bucket_no: int | None
    quantity: int
    reason: str | None
    content: Mapping[str, object]
    run_no: int
    made_at: datetime


OPERATION_COLUMNS = (
    "operation_no, kind, fleet_no, bucket_no, from_bucket_no, quantity, reason, content, run_no,"
    " made_at"
)


def operation_of_row(row: Sequence[Any]) -> Operation:
    """Return the operation in a row of `OPERATION_COLUMNS`."""
    values = dict(zip(Operation.__slots__, row, strict=True))
    return Operation(**values | {"quantity": int(values["quantity"])})


async def operation_of_key(
    connection: Connection, tenant_no: int, idempotency_key: str
) -> Operation | None:
    """Return what a tenant did under a key; None when nothing yet."""
    found = await connection.execute(
        f"SELECT {OPERATION_COLUMNS} FROM balance_operation"  # noqa: S608 - columns of this module
        " WHERE tenant_no = %s AND idempotency_key = %s",
        [tenant_no, idempotency_key],
    )
    row = await found.fetchone()
    return None if row is None else operation_of_row(row)


async def insert_operation(
    connection: Connection,
    *,
    tenant_no: int,
    idempotency_key: str,
    kind: str,
    fleet_no: int,
    bucket_no: int,
    from_bucket_no: int | None,
    quantity: int,
    reason: str | None,
    content: Mapping[str, object],
    run_no: int,
    now: datetime,
) -> Operation | None:
    """Do an operation's part on balances: its row, its one entry, and the cached sums that follow it.

    None, and nothing is done, when its key was used meanwhile.
    """
    inserted = await connection.execute(
        "INSERT INTO balance_operation (tenant_no, idempotency_key, kind, fleet_no, bucket_no,"  # noqa: S608 - columns
        " from_bucket_no, quantity, reason, content, run_no, made_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        f" ON CONFLICT (tenant_no, idempotency_key) DO NOTHING RETURNING {OPERATION_COLUMNS}",
        [
            tenant_no, idempotency_key, kind, fleet_no, bucket_no, from_bucket_no, quantity, reason,
            Jsonb(content), run_no, now,
        ],
    )  # fmt: skip
    row = await inserted.fetchone()
    if row is None:
        return None
    operation = operation_of_row(row)
    await connection.execute(
        "INSERT INTO bucket_entry"
        " (bucket_no, other_bucket_no, kind, quantity, operation_no, run_no, entered_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        [bucket_no, from_bucket_no, kind, quantity, operation.operation_no, run_no, now],
    )
    await connection.execute(
        # What is taken out may turn out to have been used, when earlier usage is charged again.
        "UPDATE bucket SET granted = granted + moved.quantity,"
        " taken_back = taken_back + greatest(0, -moved.quantity)"
        " FROM (VALUES (%s::bigint, %s::numeric), (%s::bigint, -%s::numeric)) AS moved (bucket_no, quantity)"
        " WHERE bucket.bucket_no = moved.bucket_no",
        [bucket_no, quantity, from_bucket_no, quantity],
    )
    return operation


async def insert_top_up(
    connection: Connection,
    *,
    fleet_no: int,
    device_no: int | None,
    meter_no: int,
    name: str,
    priority: int,
    zones: Sequence[str] | None,
    begins_at: datetime,
    expires_at: datetime | None,
) -> int:
    """Create the lot of a top-up, still empty; return its number."""
    inserted = await connection.execute(
        "INSERT INTO bucket (source, kind, fleet_no, device_no, meter_no, name, priority, zones,"
        " begins_at, expires_at) VALUES ('top_up', %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " RETURNING bucket_no",
        [
            (BucketKind.POOL if device_no is None else BucketKind.ALLOWANCE).value,
            fleet_no, device_no, meter_no, name, priority,
            None if zones is None else list(zones), begins_at, expires_at,
        ],
    )  # fmt: skip
    row = await inserted.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    return int(row[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketState:
    """A bucket as it is stored: what it holds, until when, and whose shard owns it."""

    bucket_no: int
    tenant_no: int
    fleet_no: int
    shard_no: int
    meter_no: int
    expires_at: datetime | None
    granted: int
    used: int
    promised: int
    reserved: int

    @property
    def movable(self) -> int:
        """How many units may be taken out: what is left, and neither promised nor held for anyone."""
        return max(0, self.granted - self.used - self.promised - self.reserved)


async def bucket_states(
    connection: Connection, tenant_no: TenantNo, bucket_nos: Sequence[int]
) -> dict[int, BucketState]:
    """Return some of a tenant's buckets; raise `NotFound` for one that it has not."""
    found = await connection.execute(
        "SELECT bucket.bucket_no, fleet.tenant_no, bucket.fleet_no, fleet.shard_no, bucket.meter_no,"
        " bucket.expires_at, bucket.granted::text, bucket.used::text, bucket.promised::text,"
        " bucket.reserved::text"
        " FROM bucket JOIN fleet USING (fleet_no)"
        " WHERE fleet.tenant_no = %s AND bucket.bucket_no = ANY(%s)",
        [tenant_no, list(bucket_nos)],
    )
    names = BucketState.__slots__
    states = {
        row[0]: BucketState(**dict(zip(names, [*row[:6], *map(int, row[6:])], strict=True)))
        for row in await found.fetchall()
    }
    for number in bucket_nos:
        if number not in states:
            raise NotFound("bucket", str(number))
    return states


_FLEET_COLUMNS = (
    "fleet.fleet_no, fleet.tenant_no, fleet.fleet_id, fleet.name, fleet.currency, fleet.time_zone,"
    " fleet.anchor_day, fleet.cycle_months, fleet.anchor_month, fleet.earlier_zones, fleet.shard_no"
)


async def fleet_of_id(connection: Connection, tenant_no: TenantNo, fleet_id: str) -> Fleet:
    """Return one of a tenant's fleets; raise `NotFound`."""
    found = await connection.execute(
        f"SELECT {_FLEET_COLUMNS} FROM fleet"  # noqa: S608 - columns of this module
        " WHERE fleet.tenant_no = %s AND fleet.fleet_id = %s",
        [tenant_no, fleet_id],
    )
    row = await found.fetchone()
    if row is None:
        raise NotFound("fleet", fleet_id)
    return fleet_of_row(row)


async def device_of_bucket(connection: Connection, bucket_no: int) -> int | None:
    """Return the device whose a bucket is; None if it is a fleet's."""
    found = await connection.execute(
        "SELECT coalesce(bucket.device_no, subscription.device_no) FROM bucket"
        " LEFT JOIN subscription USING (subscription_no) WHERE bucket_no = %s",
        [bucket_no],
    )
    row = await found.fetchone()
    return row[0] if row else None


async def device_of_id(
    connection: Connection, tenant_no: TenantNo, device_id: str
) -> tuple[int, Fleet]:
    """Return the number of one of a tenant's devices, and its fleet; raise `NotFound`."""
    found = await connection.execute(
        f"SELECT {_FLEET_COLUMNS}, device.device_no"  # noqa: S608 - columns of this module
        " FROM device JOIN fleet USING (fleet_no)"
        " WHERE device.tenant_no = %s AND device.device_id = %s",
        [tenant_no, device_id],
    )
    row = await found.fetchone()
    if row is None:
        raise NotFound("device", device_id)
    return int(row[-1]), fleet_of_row(row[:-1])


async def priced_meters(connection: Connection, tenant_no: TenantNo) -> dict[str, set[str]]:
    """Return the meters that a tenant's plans price, and the zones of those plans that do."""
    found = await connection.execute(
        "SELECT meter, array_agg(DISTINCT zone) FILTER (WHERE zone IS NOT NULL) FROM plan"
        " CROSS JOIN LATERAL json_object_keys(terms -> 'meters') AS meter"
        " LEFT JOIN LATERAL json_object_keys(CASE json_typeof(terms -> 'zones') WHEN 'object'"
        "   THEN terms -> 'zones' END) AS zone ON true"
        " WHERE tenant_no = %s GROUP BY meter ORDER BY meter",
        [tenant_no],
    )
    return {row[0]: set(row[1] or ()) for row in await found.fetchall()}


async def device_is_in(connection: Connection, device_no: int, fleet_no: int) -> bool:
    """Whether a device belongs to a fleet."""
    found = await connection.execute(
        "SELECT FROM device WHERE device_no = %s AND fleet_no = %s", [device_no, fleet_no]
    )
    return found.rowcount == 1


async def fleets_with_operations(connection: Connection, fleet_nos: AbstractSet[int]) -> set[int]:
    """Return in which fleets balances were changed, so that devices may share what they have."""
    found = await connection.execute(
        "SELECT fleet_no FROM unnest(%s::int[]) AS given (fleet_no)"
        " WHERE EXISTS (SELECT FROM balance_operation"
        "   WHERE balance_operation.fleet_no = given.fleet_no)",
        [sorted(fleet_nos)],
    )
    return {row[0] for row in await found.fetchall()}
