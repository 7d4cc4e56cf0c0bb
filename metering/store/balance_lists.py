"""What the API reads of balances across fleets: buckets, what was done to them, and quota.

Each list is read fleet by fleet, the last first by its index, so that a page costs what it holds.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.bucket_views import BucketView
from metering.store.connection import Connection
from metering.store.reservations import Reservation
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceWanted:
    """Whose balances of a tenant: each field narrows them, None does not."""

    fleet_no: int | None
    device_no: int | None
    meter_no: int | None

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters that the lists' texts name."""
        return {
            "fleet_no": self.fleet_no,
            "device_no": self.device_no,
            "meter_no": self.meter_no,
        }


_FLEETS = (
    " FROM fleet CROSS JOIN LATERAL ({each}) AS one WHERE fleet.tenant_no = %(tenant_no)s"
    " AND (%(fleet_no)s::int IS NULL OR fleet.fleet_no = %(fleet_no)s)"
    " ORDER BY one.{key} DESC LIMIT %(limit)s"
)
_BUCKETS = "SELECT one.*, fleet.fleet_id" + _FLEETS.format(  # noqa: S608 - text of this module
    key="bucket_no",
    each="SELECT bucket.bucket_no, bucket.fleet_no, device.device_id, bucket.meter_no, bucket.kind,"
    " bucket.source, bucket.name, bucket.priority, bucket.zones, bucket.begins_at, bucket.expires_at,"
    " bucket.granted, bucket.used, bucket.reserved FROM bucket"
    " LEFT JOIN subscription ON subscription.subscription_no = bucket.subscription_no"
    " LEFT JOIN device ON device.device_no = coalesce(bucket.device_no, subscription.device_no)"
    " WHERE bucket.fleet_no = fleet.fleet_no"
    " AND (%(before)s::bigint IS NULL OR bucket.bucket_no < %(before)s)"
    " AND (%(device_no)s::bigint IS NULL OR bucket.bucket_no = ANY(ARRAY("
    "   SELECT own.bucket_no FROM bucket AS own WHERE own.device_no = %(device_no)s"
    "     AND own.kind = 'allowance' AND own.source = 'top_up'"
    "   UNION ALL SELECT own.bucket_no FROM subscription AS its"
    "     JOIN bucket AS own ON own.subscription_no = its.subscription_no AND own.kind = 'allowance'"
    "     WHERE its.device_no = %(device_no)s)))"
    " AND (%(meter_no)s::int IS NULL OR bucket.meter_no = %(meter_no)s)"
    " AND (%(kind)s::text IS NULL OR bucket.kind = %(kind)s)"
    " AND (%(source)s::text IS NULL OR bucket.source = %(source)s)"
    " AND (%(holds_at)s::timestamptz IS NULL OR bucket.begins_at <= %(holds_at)s"
    "   AND coalesce(bucket.expires_at, 'infinity') > %(holds_at)s)"
    " ORDER BY bucket.bucket_no DESC LIMIT %(limit)s",
)


async def list_buckets(
    connection: Connection,
    tenant_no: TenantNo,
    wanted: BalanceWanted,
    *,
    kind: str | None,
    source: str | None,
    holds_at: datetime | None,
    before: int | None,
    limit: int,
) -> list[BucketView]:
    """Return at most `limit` buckets before a number, the last made first, as they are now."""
    return await fetch_all(
        connection,
        BucketView,
        _BUCKETS,
        {
            "tenant_no": tenant_no,
            "kind": kind,
            "source": source,
            "holds_at": holds_at,
            "before": before,
            "limit": checked_limit(limit),
            **wanted.parameters,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationView:
    """A top-up, a transfer or an adjustment, and whose bucket got the quantity."""

    operation_no: int
    kind: Literal["top_up", "transfer", "adjustment"]
    fleet_id: str
    device_id: str | None
    meter_no: int
    bucket_no: int
    from_bucket_no: int | None
    quantity: int
    reason: str | None
    made_at: datetime


_OPERATION = (
    "SELECT operation.operation_no, operation.kind, fleet.fleet_id, device.device_id, bucket.meter_no,"
    " operation.bucket_no, operation.from_bucket_no, operation.quantity, operation.reason,"
    " operation.made_at FROM balance_operation AS operation"
    " JOIN fleet ON fleet.fleet_no = operation.fleet_no"
    " JOIN bucket ON bucket.bucket_no = operation.bucket_no"
    " LEFT JOIN subscription ON subscription.subscription_no = bucket.subscription_no"
    " LEFT JOIN device ON device.device_no = coalesce(bucket.device_no, subscription.device_no)"
    " WHERE operation.tenant_no = %(tenant_no)s"
)


async def list_operations(
    connection: Connection,
    tenant_no: TenantNo,
    wanted: BalanceWanted,
    *,
    kind: str | None,
    before: int | None,
    limit: int,
    during: During = ALWAYS,
) -> list[OperationView]:
    """Return at most `limit` of what was done to balances before a number, the last first."""
    return await fetch_all(
        connection,
        OperationView,
        _OPERATION + " AND (%(fleet_no)s::int IS NULL OR operation.fleet_no = %(fleet_no)s)"
        " AND (%(device_no)s::bigint IS NULL"
        "   OR coalesce(bucket.device_no, subscription.device_no) = %(device_no)s)"
        " AND (%(meter_no)s::int IS NULL OR bucket.meter_no = %(meter_no)s)"
        " AND (%(kind)s::text IS NULL OR operation.kind = %(kind)s)"
        " AND (%(before)s::bigint IS NULL OR operation.operation_no < %(before)s)"
        + during.condition("operation.made_at")
        + " ORDER BY operation.operation_no DESC LIMIT %(limit)s",
        {
            **during.parameters,
            "tenant_no": tenant_no,
            "kind": kind,
            "before": before,
            "limit": checked_limit(limit),
            **wanted.parameters,
        },
    )


async def operation_view(
    connection: Connection, tenant_no: TenantNo, operation_no: int
) -> OperationView:
    """Return one of a tenant's operations on balances; raise `NotFound`."""
    found = await fetch_one(
        connection,
        OperationView,
        _OPERATION + " AND operation.operation_no = %(operation_no)s",
        {"tenant_no": tenant_no, "operation_no": operation_no},
    )
    if found is None:
        raise NotFound("balance operation", str(operation_no))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationView(Reservation):
    """A reservation, whose it is, and in which fleet it was granted."""

    device_id: str
    fleet_id: str


_COLUMNS = ", ".join(f"reservation.{name}" for name in Reservation.__slots__)
_RESERVATIONS_OF_FLEET = (
    f"SELECT {_COLUMNS}, device.device_id FROM reservation"  # noqa: S608 - columns
    " JOIN device ON device.device_no = reservation.device_no"
    " WHERE reservation.fleet_no = fleet.fleet_no"
    " AND (%(before)s::bigint IS NULL OR reservation.reservation_no < %(before)s)"
    " AND (%(device_no)s::bigint IS NULL OR reservation.device_no = %(device_no)s)"
    " AND (%(meter_no)s::int IS NULL OR reservation.meter_no = %(meter_no)s)"
    " AND (%(state)s::text IS NULL OR reservation.state = %(state)s)"
)


async def list_reservations_of_fleets(
    connection: Connection,
    tenant_no: TenantNo,
    wanted: BalanceWanted,
    *,
    state: str | None,
    before: int | None,
    limit: int,
    during: During = ALWAYS,
) -> list[ReservationView]:
    """Return at most `limit` reservations before a number, the last first."""
    each = (
        _RESERVATIONS_OF_FLEET
        + during.condition("reservation.granted_at")
        + " ORDER BY reservation.reservation_no DESC LIMIT %(limit)s"
    )
    return await fetch_all(
        connection,
        ReservationView,
        "SELECT one.*, fleet.fleet_id" + _FLEETS.format(key="reservation_no", each=each),
        {
            **during.parameters,
            "tenant_no": tenant_no,
            "state": state,
            "before": before,
            "limit": checked_limit(limit),
            **wanted.parameters,
        },
    )
