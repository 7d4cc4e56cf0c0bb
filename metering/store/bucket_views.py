"""What the API reads of buckets: the lots that hold at an instant, own ones and pools."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import fetch_all


@dataclass(frozen=True, slots=True, kw_only=True)
class LotView:
    """One lot of an allowance or a pool, in the meter's base unit.

    `subscription_no` is None of a pool; the plan's fields are None unless it is a pool that only one
    plan version's devices share. It holds in `[begins_at, expires_at)`.
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


_COLUMNS = (
    "SELECT bucket.bucket_no, bucket.subscription_no, bucket.plan_no, plan.plan_id,"
    " plan.version AS plan_version, bucket.meter_no, bucket.name, bucket.begins_at,"
    " bucket.expires_at, bucket.granted, bucket.used"
)
_HOLDS = (
    " AND bucket.begins_at <= %(now)s"
    " AND coalesce(bucket.expires_at, 'infinity') > %(now)s"
    " ORDER BY bucket.meter_no, bucket.name, plan.plan_id, plan.version, bucket.begins_at,"
    " bucket.bucket_no"
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
    """Return the lots of a fleet's pools that hold now, by meter, name and plan."""
    return await fetch_all(
        connection,
        LotView,
        _COLUMNS + " FROM fleet JOIN bucket ON bucket.fleet_no = fleet.fleet_no"
        " LEFT JOIN plan ON plan.plan_no = bucket.plan_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND bucket.fleet_no = %(fleet_no)s"
        " AND bucket.kind = 'pool'" + _HOLDS,
        {"tenant_no": tenant_no, "fleet_no": fleet_no, "now": now},
    )
