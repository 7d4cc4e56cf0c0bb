"""Carriers' usage records, as their data streamers send them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, cast

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from api import assurance_schemas as schemas
from api.auth import AsCaller, AsWriter
from api.errors import FieldProblem, ProblemError, problem_response
from api.parameters import Cursor, Instant, Limit, OfDevice, OfFleet, cursor_of, read_cursor
from api.state import state_of
from metering.errors import NotFound
from metering.ids import ID_PATTERN
from metering.ingest.carrier_records import take_records
from metering.store.compared_views import ComparedReading, compared_view, list_compared
from metering.store.device_views import device_view
from metering.store.fleet_views import fleet_view
from metering.store.registry import tenant_id
from metering.usage import METERS_BY_NO, ReadingKind, Rejection
from metering.wire.carrier import NAME_DEFAULT
from metering.wire.identity import BY_ID

router = APIRouter(prefix="/v1", tags=["carriers"])


class RecordRejected(BaseModel):
    """A record that was kept as rejected."""

    field: str | None = Field(description="where, beginning with the record's position")
    reason: str = Field(description="why, for programs")
    detail: str = Field(description="what is wrong, and what would be right")


class RecordsTaken(BaseModel):
    """What became of the records of a request; they are durable."""

    stored: int = Field(description="records that are new")
    duplicates: int = Field(description="records that came before")
    rejected: list[RecordRejected]


_RECORD = {
    "id": 819948096,
    "sim": {"iccid": "8988303000000000035"},
    "operator": {"mnc": "05", "country": {"mcc": "247"}},
    "traffic_type": {"id": 5, "description": "Data"},
    "volume": {"total": 269.500001, "rx": 268.5, "tx": 1.000001},
    "start_timestamp": "2026-03-29T00:45:00Z",
    "end_timestamp": "2026-03-29T01:00:00Z",
}
_CSV_AND_JSON = ("application/json", "text/csv")
_TAKEN = frozenset(
    {*_CSV_AND_JSON, "", "application/x-ndjson", "application/octet-stream", "text/plain"}
)
"""Types of a body; what is none of CSV's is read as JSON."""
_BODY = {
    "required": True,
    "description": "as the carrier sends it: JSON, or CSV with a line of names (docs/formats.md)",
    "content": {
        "application/json": {
            "schema": {"type": "array", "items": {"type": "object"}},
            "example": [_RECORD],
        }
    },
}


@router.post("/carrier-records", response_model=RecordsTaken, openapi_extra={"requestBody": _BODY})
async def post_carrier_records(
    caller: AsWriter,
    request: Request,
    carrier: Annotated[str, Query(pattern=ID_PATTERN, description="whose records")] = NAME_DEFAULT,
) -> RecordsTaken | Response:
    """Take a carrier's usage records, one or a list; each counts once, however often it is sent.

    They are JSON, or CSV where the content type is `text/csv`. Those that are rejected are kept with their
    reason. If none was taken, the answer is 422.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in _TAKEN:
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"{content_type[:100]!r} is not taken; send application/json or text/csv",
            headers={"Accept": ", ".join(_CSV_AND_JSON)},
        )
    outcome = await take_records(
        caller.connection,
        await tenant_id(caller.connection, caller.tenant_no),
        await request.body(),
        source="http",
        carrier_name=carrier,
        settings=state_of(request).settings,
        now=caller.now,
        form="csv" if content_type == "text/csv" else "json",
    )
    if outcome.rejections and not outcome.stored and not outcome.duplicates:
        return problem_response(_none_taken(outcome.rejections))
    return RecordsTaken(
        stored=outcome.stored,
        duplicates=outcome.duplicates,
        rejected=[
            RecordRejected(field=each.field, reason=each.reason.value, detail=each.detail)
            for each in outcome.rejections
        ],
    )


@router.get("/carrier-records")
async def get_carrier_records(
    caller: AsCaller,
    *,
    fleet_id: OfFleet = None,
    device_id: OfDevice = None,
    measured_from: Annotated[
        Instant | None, Query(description="only measured from then on")
    ] = None,
    measured_to: Annotated[Instant | None, Query(description="only measured before")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.ComparedReadings:
    """List what is counted of SIMs and not charged: of a carrier's count and a device's own, the other one.

    What is charged of a carrier's count is under the device's readings and charges.
    """
    fleet_no = device_no = None
    if fleet_id is not None:
        fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
        fleet_no = fleet.fleet_no
    if device_id is not None:
        device = await device_view(
            caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
        )
        device_no = device.device_no
    key = tuple(read_cursor(cursor, "tii")) if cursor else None
    rows = await list_compared(
        caller.connection,
        caller.tenant_no,
        fleet_no=fleet_no,
        device_no=device_no,
        measured_from=measured_from,
        measured_to=measured_to,
        before=cast("tuple[datetime, int, int] | None", key),
        limit=limit + 1,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.ComparedReadings(
        items=[_compared(row) for row in rows[:limit]],
        next_cursor=cursor_of([last.measured_at, last.boot_no, last.seq]) if last else None,
    )


@router.get("/carrier-records/{carrier_record_id}")
async def get_carrier_record(
    caller: AsCaller,
    carrier_record_id: Annotated[
        str,
        Path(
            pattern=r"^[0-9]{1,18}-[0-9]{1,18}-[0-9]{1,16}$",
            description="the record's id",
            examples=["17-3-1776254400000000"],
        ),
    ],
) -> schemas.ComparedReading:
    """Show one count that is compared and not charged."""
    boot_no, seq, microseconds = map(int, carrier_record_id.split("-"))
    row = await compared_view(
        caller.connection,
        caller.tenant_no,
        boot_no=boot_no,
        seq=seq,
        measured_at=_EPOCH + timedelta(microseconds=microseconds),
    )
    if row is None:
        raise NotFound("carrier record", carrier_record_id)
    return _compared(row)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CARRIER = f"{BY_ID}carrier/"


def _compared(row: ComparedReading) -> schemas.ComparedReading:
    meter = METERS_BY_NO[row.meter_no]
    is_carriers = row.boot_id.startswith(_CARRIER)
    microseconds = (row.measured_at - _EPOCH) // timedelta(microseconds=1)
    return schemas.ComparedReading(
        record_id=f"{row.boot_no}-{row.seq}-{microseconds}",
        counted_by="carrier" if is_carriers else "device",
        carrier=row.boot_id.removeprefix(_CARRIER) if is_carriers else None,
        device_id=row.device_id,
        fleet_id=row.fleet_id,
        boot_id=row.boot_id,
        seq=row.seq,
        meter=meter.meter,
        unit=meter.unit,
        kind="delta" if row.kind == ReadingKind.DELTA else "total",
        uplink_quantity=row.uplink,
        downlink_quantity=row.downlink,
        quantity=row.uplink + row.downlink if meter.directed else row.quantity,
        since=row.since,
        measured_at=row.measured_at,
        received_at=row.received_at,
        zone=row.zone,
        rat=row.rat,
        apn=row.apn,
        session=row.session,
    )


def _none_taken(rejections: Sequence[Rejection]) -> ProblemError:
    errors = []
    for each in rejections:
        problem, _, fix = each.detail.partition("; ")
        errors.append(FieldProblem(field=each.field or "payload", problem=problem, fix=fix))
    return ProblemError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f"no record was taken; all were kept as rejected, {len(errors)} in number",
        errors=errors,
    )
