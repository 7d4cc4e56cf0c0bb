"""What somebody who runs a webhook's receiver needs: to change it, its log, tests, replays, a new secret."""

import base64
import secrets
from dataclasses import asdict
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response

from api import control_schemas as schemas
from api import etags
from api.auth import AsCaller, AsWriter
from api.errors import ProblemError, bad_input
from api.parameters import Cursor, Limit, cursor_of
from api.routes.control import (
    EDITED,
    EndpointId,
    check_url,
    endpoint_of,
    number_of,
    owned_endpoint,
    shown_delivery,
    shown_endpoint,
)
from api.spans import Within
from api.state import state_of
from metering.errors import NotFound
from metering.sealing import sealer_of
from metering.store.control_views import (
    EndpointView,
    change_endpoint,
    delivery_view,
    enable_endpoint,
    list_attempts,
    replay_deliveries,
    rotate_secret,
    send_test_event,
)
from metering.store.outbox import notify

_SECRET_OCTETS = 32
_REPLAYED_MAX = 1000

router = APIRouter(prefix="/v1", tags=["control"])


@router.get("/webhook-endpoints/{endpoint_id}")
async def get_webhook_endpoint(
    caller: AsCaller, endpoint_id: EndpointId, response: Response
) -> schemas.WebhookEndpoint:
    """Show one endpoint; not its secret."""
    return etags.tagged(response, shown_endpoint(await endpoint_of(caller, endpoint_id)), EDITED)


@router.patch("/webhook-endpoints/{endpoint_id}", responses=etags.MATCHED)
async def patch_webhook_endpoint(  # noqa: PLR0917 - as a route takes them
    caller: AsWriter,
    endpoint_id: EndpointId,
    patch: schemas.WebhookEndpointPatch,
    request: Request,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.WebhookEndpoint:
    """Change where an endpoint is told, and of what; what is still queued goes to the new address."""
    endpoint = await owned_endpoint(caller, endpoint_id, if_match)
    if patch.url is not None:
        check_url(request, patch.url)
    await change_endpoint(
        caller.connection,
        endpoint.endpoint_no,
        url=endpoint.url if patch.url is None else patch.url,
        kinds=endpoint.kinds if patch.kinds is None else patch.kinds,
    )
    return etags.tagged(response, shown_endpoint(await endpoint_of(caller, endpoint_id)), EDITED)


@router.post("/webhook-endpoints/{endpoint_id}/enabling", responses=etags.MATCHED)
async def enable_webhook_endpoint(
    caller: AsWriter, endpoint_id: EndpointId, response: Response, if_match: etags.IfMatch = None
) -> schemas.WebhookEndpoint:
    """Tell an endpoint that was disabled or deleted again what happens from now on.

    What it missed is queued by a replay. Of one that is enabled nothing changes.
    """
    endpoint = await owned_endpoint(caller, endpoint_id, if_match)
    await enable_endpoint(caller.connection, endpoint.endpoint_no)
    return etags.tagged(response, shown_endpoint(await endpoint_of(caller, endpoint_id)), EDITED)


@router.post("/webhook-endpoints/{endpoint_id}/secret", status_code=HTTPStatus.CREATED)
async def post_webhook_secret(
    caller: AsWriter,
    endpoint_id: EndpointId,
    given: schemas.SecretRotation,
    request: Request,
    response: Response,
) -> schemas.CreatedWebhookEndpoint:
    """Replace an endpoint's secret; the answer holds the new one, this once.

    For `overlap_seconds` both sign. Sent again meanwhile, it makes another new one beside the old.
    """
    endpoint = _enabled(await endpoint_of(caller, endpoint_id))
    secret = secrets.token_bytes(_SECRET_OCTETS)
    await rotate_secret(
        caller.connection,
        endpoint.endpoint_no,
        secret=sealer_of(state_of(request).settings).seal(secret),
        until=caller.now + timedelta(seconds=given.overlap_seconds),
        now=caller.now,
    )
    shown = schemas.CreatedWebhookEndpoint(
        **shown_endpoint(await endpoint_of(caller, endpoint_id)).model_dump(),
        secret=f"whsec_{base64.b64encode(secret).decode()}",
    )
    return etags.tagged(response, shown, EDITED)


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
        raise ProblemError(HTTPStatus.CONFLICT, "the endpoint is disabled; enable it first")
    return endpoint
