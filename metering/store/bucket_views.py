"""What the API reads of buckets: the lots that hold at an instant: own ones, pools and top-ups."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class LotView:
    """One lot of an allowance or a pool, or a top-up, in the meter's base unit.

    `subscription_no` is None of a pool and of a top-up; the plan's fields are None unless it is a pool
    that only one plan version's devices share. `device_no`, `priority` and `zones` are of a top-up, the
    device's unless it is the fleet's. It holds in `[begins_at, expires_at)`.
    `reserved` is None of a past moment.
    """

    bucket_no: int
    subscription_no: int | None
    plan_no: int | None
    plan_id: str | None
    plan_version: int | None
    meter_no: int
    name: str
    begins_at: datetime
    expires_at: datetime | None
    granted: int
    used: int
    source: Literal["plan", "top_up"]
    device_no: int | None
    priority: int | None
    zones: Sequence[str] | None
    reserved: int | None


_COLUMNS = (
    "SELECT bucket.bucket_no, bucket.subscription_no, bucket.plan_no, plan.plan_id,"
    " plan.version AS plan_version, bucket.meter_no, bucket.name, bucket.begins_at,"
    " bucket.expires_at, bucket.granted, bucket.used, bucket.source, bucket.device_no, bucket.priority,"
    " bucket.zones, bucket.reserved"
)
_HOLDS = (
    " AND bucket.begins_at <= %(now)s"
    " AND coalesce(bucket.expires_at, 'infinity') > %(now)s"
    " ORDER BY bucket.meter_no, bucket.name, bucket.source, plan.plan_id, plan.version,"
    " bucket.begins_at, bucket.bucket_no"
)


async def own_lots(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int,
    subscription_nos: Sequence[int],
    now: datetime,
) -> list[LotView]:
    """Return the lots of a device's subscriptions that hold now, by meter and name."""
    return await fetch_all(
        connection,
        LotView,
        _COLUMNS + " FROM device JOIN subscription ON subscription.device_no = device.device_no"
        " JOIN bucket ON bucket.subscription_no = subscription.subscription_no"
        " LEFT JOIN plan ON plan.plan_no = bucket.plan_no"
        " WHERE device.tenant_no = %(tenant_no)s AND device.device_no = %(device_no)s"
        " AND subscription.subscription_no = ANY(%(subscription_nos)s)"
        " AND bucket.kind = 'allowance'" + _HOLDS,
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "subscription_nos": list(subscription_nos),
            "now": now,
        },
    )


async def pool_lots(
    connection: Connection, tenant_no: TenantNo, *, fleet_no: int, now: datetime
) -> list[LotView]:
    """Return the lots of a fleet's pools, and its top-ups, that hold now: by meter, name and plan."""
    return await fetch_all(
        connection,
        LotView,
        _COLUMNS + " FROM fleet JOIN bucket ON bucket.fleet_no = fleet.fleet_no"
        " LEFT JOIN plan ON plan.plan_no = bucket.plan_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND bucket.fleet_no = %(fleet_no)s"
        " AND bucket.kind = 'pool'" + _HOLDS,
        {"tenant_no": tenant_no, "fleet_no": fleet_no, "now": now},
    )


async def top_ups_of_device(
    connection: Connection, tenant_no: TenantNo, *, device_no: int, fleet_no: int, now: datetime
) -> list[LotView]:
    """Return the top-ups of a device in a fleet that hold now."""
    return await fetch_all(
        connection,
        LotView,
        _COLUMNS + " FROM fleet JOIN bucket ON bucket.fleet_no = fleet.fleet_no"
        " LEFT JOIN plan ON plan.plan_no = bucket.plan_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND bucket.fleet_no = %(fleet_no)s"
        " AND bucket.device_no = %(device_no)s AND bucket.kind = 'allowance'"
        " AND bucket.source = 'top_up'" + _HOLDS,
        {"tenant_no": tenant_no, "fleet_no": fleet_no, "device_no": device_no, "now": now},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketView:
    """One bucket, whose it is and what it holds."""

    bucket_no: int
    fleet_no: int
    fleet_id: str
    device_id: str | None
    meter_no: int
    kind: Literal["allowance", "pool"]
    source: Literal["plan", "top_up"]
    name: str
    priority: int | None
    zones: Sequence[str] | None
    begins_at: datetime
    expires_at: datetime | None
    granted: int
    used: int
    reserved: int


async def bucket_view(connection: Connection, tenant_no: TenantNo, *, bucket_no: int) -> BucketView:
    """Return one of a tenant's buckets; raise `NotFound`."""
    found = await fetch_one(
        connection,
        BucketView,
        "SELECT bucket.bucket_no, bucket.fleet_no, fleet.fleet_id, device.device_id, bucket.meter_no,"
        " bucket.kind, bucket.source, bucket.name, bucket.priority, bucket.zones, bucket.begins_at,"
        " bucket.expires_at, bucket.granted, bucket.used, bucket.reserved"
        " FROM bucket JOIN fleet ON fleet.fleet_no = bucket.fleet_no"
        " LEFT JOIN subscription ON subscription.subscription_no = bucket.subscription_no"
        " LEFT JOIN device ON device.device_no"
        "   = coalesce(bucket.device_no, subscription.device_no)"
        " WHERE fleet.tenant_no = %(tenant_no)s AND bucket.bucket_no = %(bucket_no)s",
        {"tenant_no": tenant_no, "bucket_no": bucket_no},
    )
    if found is None:
        raise NotFound("bucket", str(bucket_no))
    return found


PostingKey = tuple[int, int, int, int]
"""run_no, position in the run (entries: -1), number of the entry, part or side"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostingView:
    """What one entry or one charge did to a bucket, and the account and the cause that it names."""

    run_no: int
    position: int
    number: int
    part: int
    kind: str
    quantity: int
    against: str
    against_bucket_no: int | None
    cycle_start: datetime | None
    device_id: str | None
    boot_id: str | None
    seq: int | None
    operation_no: int | None
    reason: str | None
    entered_at: datetime

    @property
    def key(self) -> PostingKey:
        """Its place among the bucket's."""
        return (self.run_no, self.position, self.number, self.part)


async def list_postings(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    bucket: BucketView,
    before: PostingKey | None,
    limit: int,
    during: During = ALWAYS,
) -> list[PostingView]:
    """Return at most `limit` postings of a bucket, the last first: the sum of all is what is left of it.

    `before` is the key that the page before ended at. `during` is of `entered_at`.
    """
    run_no, position, number, part = before or (2**63 - 1, 0, 0, 0)
    return await fetch_all(
        connection,
        PostingView,
        _postings(during),
        {
            "tenant_no": tenant_no,
            "bucket_no": bucket.bucket_no,
            "fleet_no": bucket.fleet_no,
            "begins_at": bucket.begins_at,
            "run_no": run_no,
            "position": position,
            "number": number,
            "part": part,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )


_ENTRY_SIDE = (
    "(SELECT entry.run_no, -1 AS position, entry.bucket_entry_no AS number, {part} AS part, entry.kind,"
    " {sign}entry.quantity AS quantity, entry.against, {other} AS against_bucket_no,"
    " entry.cycle_start, device.device_id, NULL::text AS boot_id, NULL::bigint AS seq,"
    " entry.operation_no, operation.reason, entry.entered_at"
    " FROM bucket_entry AS entry"
    " JOIN bucket ON bucket.bucket_no = {own}"
    " JOIN fleet ON fleet.fleet_no = bucket.fleet_no"
    " LEFT JOIN subscription ON subscription.subscription_no = entry.subscription_no"
    " LEFT JOIN device ON device.device_no = subscription.device_no"
    " LEFT JOIN balance_operation AS operation ON operation.operation_no = entry.operation_no"
    " WHERE {own} = %(bucket_no)s AND fleet.tenant_no = %(tenant_no)s"
    " AND entry.kind NOT IN ('hold', 'release')"
    "{entered} AND entry.run_no <= %(run_no)s AND (entry.run_no, -1, entry.bucket_entry_no, {part})"
    "   < (%(run_no)s, %(position)s, %(number)s, %(part)s)"
    " ORDER BY entry.run_no DESC, entry.bucket_entry_no DESC LIMIT %(limit)s)"
)


def _postings(during: During) -> str:
    """Return the query of `list_postings`: of entries on either side, and of what charges drew.

    What charges drew is read backwards through the fleet's charges: a bucket has no list of its own.
    """
    entered = during.condition("entry.entered_at")
    return (
        _ENTRY_SIDE.format(  # noqa: S608 - columns of this module
            part=1, sign="", own="entry.bucket_no", other="entry.other_bucket_no", entered=entered
        )
        + " UNION ALL "
        + _ENTRY_SIDE.format(
            part=0, sign="-", own="entry.other_bucket_no", other="entry.bucket_no", entered=entered
        )
        + " UNION ALL (SELECT charge.run_no, charge.run_position, 0, charge.part, 'consumption',"
        " -draw.quantity::numeric, 'consumption', NULL, charge.cycle_start, device.device_id,"
        " boot.boot_id, charge.seq, NULL, NULL, charge.charged_at"
        " FROM charge CROSS JOIN LATERAL unnest(charge.draw_buckets, charge.draw_quantities)"
        "   AS draw (bucket_no, quantity)"
        " JOIN fleet ON fleet.fleet_no = charge.fleet_no"
        " JOIN device ON device.device_no = charge.device_no"
        " JOIN boot ON boot.boot_no = charge.boot_no"
        " WHERE charge.fleet_no = %(fleet_no)s AND fleet.tenant_no = %(tenant_no)s"
        " AND charge.measured_at >= %(begins_at)s"
        " AND charge.draw_buckets @> ARRAY[%(bucket_no)s::bigint] AND draw.bucket_no = %(bucket_no)s"
        + during.condition("charge.charged_at")
        + " AND charge.run_no <= %(run_no)s AND (charge.run_no, charge.run_position, 0, charge.part)"
        "   < (%(run_no)s, %(position)s, %(number)s, %(part)s)"
        " ORDER BY charge.run_no DESC, charge.run_position DESC, charge.part DESC LIMIT %(limit)s)"
        " ORDER BY run_no DESC, position DESC, number DESC, part DESC LIMIT %(limit)s"
    )
