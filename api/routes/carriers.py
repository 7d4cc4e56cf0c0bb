"""Carriers' usage records, as their data streamers send them."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from api.auth import AsWriter
from api.state import state_of
from metering.ids import ID_PATTERN
from metering.ingest.carrier_records import take_records
from metering.store.registry import tenant_id
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


@router.post("/carrier-records")
async def post_carrier_records(
    caller: AsWriter,
    request: Request,
    carrier: Annotated[str, Query(pattern=ID_PATTERN, description="whose records")] = NAME_DEFAULT,
) -> RecordsTaken:
    """Take a carrier's usage records, one or a list; each counts once, however often it is sent."""
    outcome = await take_records(
        caller.connection,
        await tenant_id(caller.connection, caller.tenant_no),
        await request.body(),
        source="http",
        carrier_name=carrier,
        settings=state_of(request).settings,
        now=caller.now,
    )
    return RecordsTaken(
        stored=outcome.stored,
        duplicates=outcome.duplicates,
        rejected=[
            RecordRejected(field=each.field, reason=each.reason.value, detail=each.detail)
            for each in outcome.rejections
        ],
    )
