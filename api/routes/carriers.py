"""Carriers' usage records, as their data streamers send them."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from api.auth import AsWriter
from api.errors import FieldProblem, ProblemError, problem_response
from api.state import state_of
from metering.ids import ID_PATTERN
from metering.ingest.carrier_records import take_records
from metering.store.registry import tenant_id
from metering.usage import Rejection
from metering.wire.carrier import NAME_DEFAULT

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
