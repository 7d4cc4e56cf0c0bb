"""What the API reads of what went wrong: rejected content, parked usage, counter anomalies."""

from dataclasses import dataclass
from datetime import datetime

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedView:
    """A message, or one reading of it, that was not admitted, and how often it came."""

    rejected_no: int
    topic: str
    device_id: str | None
    reason: str
    field: str | None
    detail: str
    boot_id: str | None
    seq: int | None
    content: bytes
    first_received_at: datetime
    last_received_at: datetime
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedView:
    """A reading's usage that cannot be charged yet; `meter_no` is None once the reading is gone."""

    boot_no: int
    seq: int
    boot_id: str
    device_id: str
    fleet_id: str
    meter_no: int | None
    reason: str
    quantity: int
    uplink: int
    usage_from: datetime
    usage_to: datetime
    measured_at: datetime
    parked_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalyView:
    """Something odd that a reading revealed, such as a counter that fell."""

    boot_no: int
    seq: int
    kind: str
    boot_id: str
    device_id: str
    fleet_id: str
    meter_no: int
    measured_at: datetime
    recorded_at: datetime


_REJECTED = (
    "SELECT rejected.rejected_no, rejected.topic, device.device_id, rejected.reason,"
    " rejected.field, rejected.detail, rejected.boot_id, rejected.seq, rejected.content,"
    " rejected.first_received_at, rejected.last_received_at, rejected.times"
    " FROM rejected LEFT JOIN device ON device.device_no = rejected.device_no"
    "   AND device.tenant_no = %(tenant_no)s"
    " WHERE rejected.tenant_no = %(tenant_no)s"
)
_PARKED = (
    "SELECT parked.boot_no, parked.seq, boot.boot_id, device.device_id, fleet.fleet_id,"
    " reading.meter_no, parked.reason, parked.quantity, parked.uplink, parked.usage_from,"
    " parked.usage_to, parked.measured_at, parked.parked_at"
    " FROM parked JOIN device ON device.device_no = parked.device_no"
    " JOIN fleet ON fleet.fleet_no = device.fleet_no"
    " JOIN boot ON boot.boot_no = parked.boot_no"
    " LEFT JOIN reading ON reading.boot_no = parked.boot_no AND reading.seq = parked.seq"
    "   AND reading.measured_at = parked.measured_at"
    " WHERE fleet.tenant_no = %(tenant_no)s AND device.tenant_no = %(tenant_no)s"
)


async def rejected_view(
    connection: Connection, tenant_no: TenantNo, rejected_no: int
) -> RejectedView:
    """Return one rejection of a tenant; raise `NotFound`."""
    found = await fetch_one(
        connection,
        RejectedView,
        _REJECTED + " AND rejected.rejected_no = %(rejected_no)s",
        {"tenant_no": tenant_no, "rejected_no": rejected_no},
    )
    if found is None:
        raise NotFound("rejection", str(rejected_no))
    return found


async def parked_view(
    connection: Connection, tenant_no: TenantNo, *, boot_no: int, seq: int
) -> ParkedView:
    """Return the parked usage of a reading; raise `NotFound` where none of it is parked."""
    found = await fetch_one(
        connection,
        ParkedView,
        _PARKED + " AND parked.boot_no = %(boot_no)s AND parked.seq = %(seq)s",
        {"tenant_no": tenant_no, "boot_no": boot_no, "seq": seq},
    )
    if found is None:
        raise NotFound("parked reading", f"{boot_no}-{seq}")
    return found


async def list_rejected(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int | None,
    reason: str | None,
    before: tuple[datetime, int] | None,
    limit: int,
    fleet_no: int | None = None,
    during: During = ALWAYS,
) -> list[RejectedView]:
    """Return at most `limit` rejections, the last received first.

    `before` is the `(last_received_at, rejected_no)` that the page before ended at.
    """
    return await fetch_all(
        connection,
        RejectedView,
        _REJECTED + " AND (%(device_no)s::bigint IS NULL OR rejected.device_no = %(device_no)s)"
        " AND (%(fleet_no)s::integer IS NULL OR device.fleet_no = %(fleet_no)s)"
        " AND (%(reason)s::text IS NULL OR rejected.reason = %(reason)s)"
        " AND (%(time)s::timestamptz IS NULL"
        "   OR (rejected.last_received_at, rejected.rejected_no) < (%(time)s, %(no)s))"
        + during.condition("rejected.last_received_at")
        + " ORDER BY rejected.last_received_at DESC, rejected.rejected_no DESC LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "fleet_no": fleet_no,
            "reason": reason,
            "time": before[0] if before else None,
            "no": before[1] if before else None,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )


async def list_parked(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int | None,
    device_no: int | None,
    before: tuple[datetime, int, int] | None,
    limit: int,
    reason: str | None = None,
    during: During = ALWAYS,
) -> list[ParkedView]:
    """Return at most `limit` parked usages, the last parked first.

    Each stands in the fleet in which its device is now.
    `before` is the `(parked_at, boot_no, seq)` that the page before ended at.
    """
    return await fetch_all(
        connection,
        ParkedView,
        _PARKED + " AND (%(fleet_no)s::integer IS NULL OR device.fleet_no = %(fleet_no)s)"
        " AND (%(device_no)s::bigint IS NULL OR parked.device_no = %(device_no)s)"
        " AND (%(reason)s::text IS NULL OR parked.reason = %(reason)s)"
        " AND (%(time)s::timestamptz IS NULL"
        "   OR (parked.parked_at, parked.boot_no, parked.seq) < (%(time)s, %(boot_no)s, %(seq)s))"
        + during.condition("parked.parked_at")
        + " ORDER BY parked.parked_at DESC, parked.boot_no DESC, parked.seq DESC LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "fleet_no": fleet_no,
            "device_no": device_no,
            "reason": reason,
            "time": before[0] if before else None,
            "boot_no": before[1] if before else None,
            "seq": before[2] if before else None,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )


async def list_anomalies(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int | None,
    before: tuple[datetime, int, int, str] | None,
    limit: int,
    during: During = ALWAYS,
) -> list[AnomalyView]:
    """Return at most `limit` anomalies, the last measured first.

    `before` is the `(measured_at, boot_no, seq, kind)` that the page before ended at.
    """
    return await fetch_all(
        connection,
        AnomalyView,
        "SELECT anomaly.boot_no, anomaly.seq, anomaly.kind, boot.boot_id, device.device_id,"  # noqa: S608 - columns
        " fleet.fleet_id, anomaly.meter_no, anomaly.measured_at, anomaly.recorded_at"
        " FROM anomaly JOIN device ON device.device_no = anomaly.device_no"
        " JOIN fleet ON fleet.fleet_no = device.fleet_no"
        " JOIN boot ON boot.boot_no = anomaly.boot_no"
        " WHERE device.tenant_no = %(tenant_no)s AND fleet.tenant_no = %(tenant_no)s"
        " AND (%(device_no)s::bigint IS NULL OR anomaly.device_no = %(device_no)s)"
        " AND (%(time)s::timestamptz IS NULL"
        "   OR (anomaly.measured_at, anomaly.boot_no, anomaly.seq, anomaly.kind)"
        "   < (%(time)s, %(boot_no)s, %(seq)s, %(kind)s))"
        + during.condition("anomaly.measured_at")
        + " ORDER BY anomaly.measured_at DESC, anomaly.boot_no DESC, anomaly.seq DESC,"
        " anomaly.kind DESC LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "time": before[0] if before else None,
            "boot_no": before[1] if before else None,
            "seq": before[2] if before else None,
            "kind": before[3] if before else None,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )
