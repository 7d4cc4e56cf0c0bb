"""What went wrong, kept until someone looks: rejected content, parked usage, anomalies."""

import base64
from datetime import datetime
from typing import Annotated, cast

from fastapi import APIRouter, Path, Query

from api import schemas
from api.auth import AsCaller, Caller
from api.parameters import Cursor, Limit, OfDevice, OfFleet, ReadingId, cursor_of, read_cursor
from api.spans import Within
from metering.rating.guide import ParkReason
from metering.store.device_views import device_view
from metering.store.fault_views import (
    ParkedView,
    RejectedView,
    list_anomalies,
    list_parked,
    list_rejected,
    parked_view,
    rejected_view,
)
from metering.store.fleet_views import fleet_view
from metering.usage import METERS_BY_NO, RejectReason

_PREVIEW_CHARACTERS = 200

router = APIRouter(prefix="/v1", tags=["faults"])


@router.get("/rejected")
async def get_rejected(
    caller: AsCaller,
    within: Within,
    *,
    fleet_id: OfFleet = None,
    device_id: OfDevice = None,
    reason: Annotated[RejectReason | None, Query(description="only of this reason")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.RejectedPage:
    """List messages and readings that were not admitted, the last received first.

    One that comes again moves to the front.
    """
    before = cast("tuple[datetime, int]", tuple(read_cursor(cursor, "ti"))) if cursor else None
    rows = await list_rejected(
        caller.connection,
        caller.tenant_no,
        fleet_no=await _fleet_no(caller, fleet_id),
        device_no=await _device_no(caller, device_id),
        reason=reason,
        before=before,
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.RejectedPage(
        items=[_rejected(row) for row in rows[:limit]],
        next_cursor=cursor_of([last.last_received_at, last.rejected_no]) if last else None,
    )


@router.get("/rejected/{rejected_no}")
async def get_rejection(
    caller: AsCaller,
    rejected_no: Annotated[
        int, Path(ge=1, le=2**63 - 1, description="the number in `/v1/rejected`", examples=[4])
    ],
) -> schemas.Rejected:
    """Show one message or reading that was not admitted."""
    return _rejected(await rejected_view(caller.connection, caller.tenant_no, rejected_no))


@router.get("/parked")
async def get_parked(
    caller: AsCaller,
    within: Within,
    *,
    fleet_id: OfFleet = None,
    device_id: OfDevice = None,
    reason: Annotated[ParkReason | None, Query(description="only of this reason")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.ParkedPage:
    """List usage that cannot be charged yet and why, the last parked first."""
    key = tuple(read_cursor(cursor, "tii")) if cursor else None
    rows = await list_parked(
        caller.connection,
        caller.tenant_no,
        fleet_no=await _fleet_no(caller, fleet_id),
        device_no=await _device_no(caller, device_id),
        reason=reason,
        before=cast("tuple[datetime, int, int] | None", key),
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.ParkedPage(
        items=[_parked(row) for row in rows[:limit]],
        next_cursor=cursor_of([last.parked_at, last.boot_no, last.seq]) if last else None,
    )


@router.get("/parked/{parked_reading_id}")
async def get_parked_reading(caller: AsCaller, parked_reading_id: ReadingId) -> schemas.Parked:
    """Show the usage of one reading that cannot be charged yet; 404 once it is charged."""
    boot_no, seq = map(int, parked_reading_id.split("-"))
    row = await parked_view(caller.connection, caller.tenant_no, boot_no=boot_no, seq=seq)
    return _parked(row)


@router.get("/anomalies")
async def get_anomalies(
    caller: AsCaller,
    within: Within,
    device_id: OfDevice = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.AnomalyPage:
    """List what readings revealed, such as a counter that fell, the last measured first."""
    key = tuple(read_cursor(cursor, "tiis")) if cursor else None
    rows = await list_anomalies(
        caller.connection,
        caller.tenant_no,
        device_no=await _device_no(caller, device_id),
        before=cast("tuple[datetime, int, int, str] | None", key),
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.AnomalyPage(
        items=[
            schemas.Anomaly(
                device_id=row.device_id,
                fleet_id=row.fleet_id,
                boot_id=row.boot_id,
                seq=row.seq,
                kind=row.kind,
                meter=METERS_BY_NO[row.meter_no].meter,
                measured_at=row.measured_at,
                recorded_at=row.recorded_at,
            )
            for row in rows[:limit]
        ],
        next_cursor=cursor_of([last.measured_at, last.boot_no, last.seq, last.kind])
        if last
        else None,
    )


async def _fleet_no(caller: Caller, fleet_id: str | None) -> int | None:
    if fleet_id is None:
        return None
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    return fleet.fleet_no


async def _device_no(caller: Caller, device_id: str | None) -> int | None:
    if device_id is None:
        return None
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    return device.device_no


def _rejected(row: RejectedView) -> schemas.Rejected:
    return schemas.Rejected(
        rejected_no=row.rejected_no,
        device_id=row.device_id,
        topic=row.topic,
        reason=row.reason,
        field=row.field,
        detail=row.detail,
        boot_id=row.boot_id,
        seq=row.seq,
        content_base64=base64.b64encode(row.content).decode(),
        content_preview=_preview(row.content),
        times=row.times,
        first_received_at=row.first_received_at,
        last_received_at=row.last_received_at,
    )


def _preview(content: bytes) -> str:
    text = content[: _PREVIEW_CHARACTERS * 4].decode(errors="replace")[:_PREVIEW_CHARACTERS]
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def _parked(row: ParkedView) -> schemas.Parked:
    meter = METERS_BY_NO.get(row.meter_no) if row.meter_no is not None else None
    return schemas.Parked(
        reading_id=f"{row.boot_no}-{row.seq}",
        device_id=row.device_id,
        fleet_id=row.fleet_id,
        boot_id=row.boot_id,
        seq=row.seq,
        meter=meter.meter if meter else None,
        unit=meter.unit if meter else None,
        reason=row.reason,
        quantity=row.quantity,
        uplink_quantity=row.uplink,
        usage_from=row.usage_from,
        usage_to=row.usage_to,
        measured_at=row.measured_at,
        parked_at=row.parked_at,
    )
