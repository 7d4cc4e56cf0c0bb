"""What operators ask: whether the process lives and is ready, and its metrics."""

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from api import schemas
from api.auth import AsCaller, InSnapshot
from api.errors import unavailable
from api.metrics import exposition
from api.state import state_of
from metering.store.health_views import (
    charging_queue,
    parked_count,
    rejected_counts,
    schema_problem,
)

router = APIRouter(tags=["operations"])


@router.get("/health")
async def get_health() -> schemas.Health:
    """Answer as long as the process lives, whatever the database does."""
    return schemas.Health()


@router.get("/ready")
async def get_ready(request: Request, connection: InSnapshot) -> schemas.Ready:
    """Tell whether the database answers with this release's schema; 503 with the reason if not."""
    problem = await schema_problem(connection)
    if problem:
        raise unavailable(problem)
    queue = await charging_queue(connection)
    oldest = queue.oldest_received_at
    age = (state_of(request).now() - oldest).total_seconds() if oldest else None
    return schemas.Ready(oldest_work_item_age_seconds=age)


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "Prometheus text format",
            "content": {"text/plain": {"example": "fleetmeter_work_items_queued 0.0\n"}},
        }
    },
)
async def get_metrics(request: Request, caller: AsCaller) -> PlainTextResponse:
    """Tell Prometheus of this process's requests, the queue, and the tenant's refused readings."""
    text = exposition(
        state_of(request).metrics,
        queue=await charging_queue(caller.connection),
        rejected=await rejected_counts(caller.connection, caller.tenant_no),
        parked=await parked_count(caller.connection, caller.tenant_no),
    )
    return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)
