"""What somebody who runs a webhook's receiver needs: its log, tests, replays, and a new secret."""

import base64
import secrets
from dataclasses import asdict
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request

from api import control_schemas as schemas
from api.auth import AsCaller, AsWriter
from api.errors import ProblemError, bad_input
from api.parameters import Cursor, Limit, cursor_of
from api.routes.control import EndpointId, endpoint_of, number_of, shown_delivery, shown_endpoint
from api.spans import Within
from api.state import state_of
from metering.errors import NotFound
from metering.sealing import sealer_of
from metering.store.control_views import (
    EndpointView,
    delivery_view,
    list_attempts,
    replay_deliveries,
    rotate_secret,
    send_test_event,
)
from metering.store.outbox import notify

_SECRET_OCTETS = 32
_REPLAYED_MAX = 1000

router = APIRouter(prefix="/v1", tags=["control"])


@router.post("/webhook-endpoints/{endpoint_id}/secret", status_code=HTTPStatus.CREATED)
async def post_webhook_secret(
    caller: AsWriter, endpoint_id: EndpointId, given: schemas.SecretRotation, request: Request
) -> schemas.CreatedWebhookEndpoint:
    """Replace an endpoint's secret; the answer holds the new one, this once.

    For `overlap_hours` both sign. Sent again meanwhile, it makes another new one beside the old.
    """
    endpoint = _enabled(await endpoint_of(caller, endpoint_id))
    secret = secrets.token_bytes(_SECRET_OCTETS)
    await rotate_secret(
        caller.connection,
        endpoint.endpoint_no,
        secret=sealer_of(state_of(request).settings).seal(secret),
        until=caller.now + timedelta(hours=given.overlap_hours),
        now=caller.now,
    )
    return schemas.CreatedWebhookEndpoint(
        **shown_endpoint(await endpoint_of(caller, endpoint_id)).model_dump(),
        secret=f"whsec_{base64.b64encode(secret).decode()}",
    )


@router.post("/webhook-endpoints/{endpoint_id}/test", status_code=HTTPStatus.ACCEPTED)
async def post_webhook_test(caller: AsWriter, endpoint_id: EndpointId) -> schemas.WebhookDelivery:
    """Tell an endpoint an event of kind `webhook.test`, whichever kinds it wants; nobody else is told."""
    endpoint = _enabled(await endpoint_of(caller, endpoint_id))
    delivery = await send_test_event(caller.connection, caller.tenant_no, endpoint, now=caller.now)
    await notify(caller.connection)
    return shown_delivery(delivery)


@router.post("/webhook-endpoints/{endpoint_id}/replays", status_code=HTTPStatus.ACCEPTED)
async def post_webhook_replays(
    caller: AsWriter, endpoint_id: EndpointId, given: schemas.Replay
) -> schemas.Replayed:
    """Tell an endpoint again what happened since an instant; what failed, or all of it.

    At most 1000 events a request, the first ones first: while `more` is true, send it again with
    `from` as it was. What was delivered is known by its `webhook-id`.
    """
    endpoint = _enabled(await endpoint_of(caller, endpoint_id))
    until = given.to or caller.now
    if until <= given.start:
        raise bad_input("from", "is not before 'to'", "use an earlier time")
    queued = await replay_deliveries(
        caller.connection,
        endpoint.endpoint_no,
        since=given.start,
        until=until,
        only_failed=given.only_failed,
        now=caller.now,
        limit=_REPLAYED_MAX,
    )
    if queued:
        await notify(caller.connection)
    return schemas.Replayed(queued=queued, more=queued == _REPLAYED_MAX)


@router.get("/webhook-endpoints/{endpoint_id}/deliveries/{event_id}/attempts")
async def get_webhook_attempts(
    *,
    caller: AsCaller,
    within: Within,
    endpoint_id: EndpointId,
    event_id: Annotated[UUID, Path(description="which event")],
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.WebhookAttempts:
    """List the calls by which an endpoint was told an event, the last first."""
    endpoint = await endpoint_of(caller, endpoint_id)
    delivery = await delivery_view(caller.connection, endpoint.endpoint_no, event_id)
    if delivery is None:
        raise NotFound("delivery of event", str(event_id))
    rows = await list_attempts(
        caller.connection,
        delivery.delivery_no,
        before=number_of(cursor),
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.WebhookAttempts(
        items=[schemas.WebhookAttempt.model_validate(asdict(row)) for row in rows[:limit]],
        next_cursor=cursor_of([last.attempt_no]) if last else None,
    )


def _enabled(endpoint: EndpointView) -> EndpointView:
    if endpoint.disabled_at is not None:
        raise ProblemError(HTTPStatus.CONFLICT, "the endpoint is disabled; create another")
    return endpoint
