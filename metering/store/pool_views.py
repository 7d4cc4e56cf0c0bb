"""What the API reads of pools: their lots, and the members that brought something into each."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLotView:
    """One lot of a fleet's pool, or of a fleet's top-up, in the meter's base unit.

    The plan's fields are None unless only one plan version's devices share it. `reserved` is None of a past
    moment.
    """

    bucket_no: int
    fleet_no: int
    fleet_id: str
    meter_no: int
    name: str
    source: Literal["plan", "top_up"]
    plan_id: str | None
    plan_version: int | None
    begins_at: datetime
    expires_at: datetime | None
    granted: int
    used: int
    reserved: int | None
    members: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMemberView:
    """A subscription that brought something into a lot, and what it drew from pools of that meter.

    `contributed` counts the lot alone, `drawn` the cycle from `cycle_start` on, of all pools of the meter.
    """

    subscription_no: int
    device_id: str
    plan_id: str
    plan_version: int
    subscribed_from: datetime
    subscribed_to: datetime | None
    contributed: int
    drawn: int


_POOL = (
    "SELECT bucket.bucket_no, fleet.fleet_no, fleet.fleet_id, bucket.meter_no, bucket.name, bucket.source,"
    " plan.plan_id, plan.version AS plan_version, bucket.begins_at, bucket.expires_at,"
    " bucket.granted, bucket.used, bucket.reserved,"
    " (SELECT count(DISTINCT entry.subscription_no) FROM bucket_entry AS entry"
    "   WHERE entry.bucket_no = bucket.bucket_no AND entry.kind IN ('grant', 'regrant')"
    "   AND (%(known_at)s::timestamptz IS NULL OR entry.entered_at <= %(known_at)s)) AS members"
    " FROM fleet JOIN bucket ON bucket.fleet_no = fleet.fleet_no"
    " LEFT JOIN plan ON plan.plan_no = bucket.plan_no"
    " WHERE fleet.tenant_no = %(tenant_no)s AND bucket.kind = 'pool'"
)


async def list_pools(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int | None,
    meter_no: int | None,
    at: datetime,
    known_at: datetime | None = None,
    after: tuple[str, int],
    limit: int,
) -> list[PoolLotView]:
    """Return at most `limit` lots of pools that hold at an instant, by fleet and number, after one.

    They are as they are now, but for their members: those that were known at `known_at`; None: now.
    """
    narrowed = "" if fleet_no is None else " AND fleet.fleet_no = %(fleet_no)s"
    narrowed += "" if meter_no is None else " AND bucket.meter_no = %(meter_no)s"
    return await fetch_all(
        connection,
        PoolLotView,
        _POOL
        + narrowed
        + " AND bucket.begins_at <= %(at)s AND coalesce(bucket.expires_at, 'infinity') > %(at)s"
        " AND fleet.fleet_id >= %(after_id)s"
        " AND (fleet.fleet_id, bucket.bucket_no) > (%(after_id)s, %(after_no)s)"
        " ORDER BY fleet.fleet_id, bucket.bucket_no LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "fleet_no": fleet_no,
            "meter_no": meter_no,
            "at": at,
            "known_at": known_at,
            "after_id": after[0],
            "after_no": after[1],
            "limit": checked_limit(limit),
        },
    )


async def pool_lot(connection: Connection, tenant_no: TenantNo, *, bucket_no: int) -> PoolLotView:
    """Return one lot of a pool of the tenant's, also one that holds no more; raise `NotFound`."""
    found = await fetch_one(
        connection,
        PoolLotView,
        _POOL + " AND bucket.bucket_no = %(bucket_no)s",
        {"tenant_no": tenant_no, "bucket_no": bucket_no, "known_at": None},
    )
    if found is None:
        raise NotFound("pool", str(bucket_no))
    return found


async def list_pool_members(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    lot: PoolLotView,
    cycle_start: datetime,
    after: int,
    limit: int,
) -> list[PoolMemberView]:
    """Return at most `limit` members of a lot, by the number of their subscription, after one."""
    return await fetch_all(
        connection,
        PoolMemberView,
        "WITH member AS (SELECT entry.subscription_no, sum(entry.quantity) AS contributed"
        "   FROM bucket_entry AS entry WHERE entry.bucket_no = %(bucket_no)s"
        "   AND entry.kind IN ('grant', 'regrant') AND entry.subscription_no > %(after)s"
        "   GROUP BY entry.subscription_no ORDER BY entry.subscription_no LIMIT %(limit)s)"
        " SELECT member.subscription_no, device.device_id, plan.plan_id,"
        " plan.version AS plan_version, lower(subscription.valid) AS subscribed_from,"
        " upper(subscription.valid) AS subscribed_to, member.contributed,"
        " coalesce((SELECT sum(use.from_pool) FROM meter_use AS use"
        "   WHERE use.subscription_no = member.subscription_no"
        "   AND use.meter_no = %(meter_no)s AND use.cycle_start = %(cycle_start)s), 0) AS drawn"
        " FROM member"
        " JOIN subscription ON subscription.subscription_no = member.subscription_no"
        " JOIN device ON device.device_no = subscription.device_no"
        " JOIN plan ON plan.plan_no = subscription.plan_no"
        " WHERE device.tenant_no = %(tenant_no)s ORDER BY member.subscription_no",
        {
            "tenant_no": tenant_no,
            "bucket_no": lot.bucket_no,
            "meter_no": lot.meter_no,
            "cycle_start": cycle_start,
            "after": after,
            "limit": checked_limit(limit),
        },
    )
