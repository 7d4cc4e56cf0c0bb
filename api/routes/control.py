"""Control: telling devices, and being told: commands, events, webhooks."""

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, cast
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response

from api import control_schemas as schemas
from api import etags
from api.auth import AsCaller, AsWriter, Caller
from api.errors import ProblemError, bad_input
from api.event_schemas import Event, Events, event_of
from api.parameters import (
    ALREADY_DONE,
    Cursor,
    DeviceId,
    IdempotencyKey,
    Limit,
    OfDevice,
    OfFleet,
    cursor_of,
    read_cursor,
)
from api.spans import Within
from api.state import state_of
from metering.errors import InvalidValue, NotFound
from metering.event_kinds import EventKind
from metering.sealing import sealer_of
from metering.store.control_views import (
    CommandView,
    DeliveryView,
    EndpointView,
    command_of_cause,
    command_view,
    create_endpoint,
    endpoint_view,
    event_view,
    list_commands,
    list_deliveries,
    list_endpoints,
    list_events,
    lock_endpoint,
    replay_delivery,
)
from metering.store.device_views import device_view
from metering.store.fleet_views import fleet_view
from metering.store.outbox import NewCommand, enqueue_commands, notify
from metering.store.webhooks import disable_endpoint
from metering.webhook_address import check_webhook_url
from metering.wire.command import CommandKind

_PAYLOAD_OCTETS_MAX = 4096
_SECRET_OCTETS = 32

EDITED = ("url", "kinds", "disabled_at")
"""What of a webhook endpoint people change; the rest changes by itself."""

router = APIRouter(prefix="/v1", tags=["control"])

EndpointId = Annotated[
    UUID,
    Path(
        description="the webhook endpoint's id", examples=["0a1b2c3d-4e5f-4061-8273-8495a6b7c8d9"]
    ),
]


@router.get("/commands")
async def get_commands(
    *,
    caller: AsCaller,
    within: Within,
    fleet_id: OfFleet = None,
    device_id: OfDevice = None,
    kind: Annotated[CommandKind | None, Query(description="only of this kind")] = None,
    state: Annotated[schemas.CommandState | None, Query(description="only in this state")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.Commands:
    """List what devices were told, and what they answered, the last first."""
    fleet_no = None
    if fleet_id is not None:
        fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
        fleet_no = fleet.fleet_no
    rows = await list_commands(
        caller.connection,
        caller.tenant_no,
        fleet_no=fleet_no,
        device_no=await _device_no(caller, device_id),
        kind=kind,
        state=state,
        before=number_of(cursor),
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.Commands(
        items=[_command(row) for row in rows[:limit]],
        next_cursor=cursor_of([last.command_no]) if last else None,
    )


@router.get("/commands/{command_id}")
async def get_command(
    caller: AsCaller, command_id: Annotated[UUID, Path(description="the command's id")]
) -> schemas.Command:
    """Show one command, and what its device answered."""
    row = await command_view(caller.connection, caller.tenant_no, command_id)
    if row is None:
        raise NotFound("command", str(command_id))
    return _command(row)


@router.post(
    "/devices/{device_id}/commands", status_code=HTTPStatus.CREATED, responses=ALREADY_DONE
)
async def post_command(
    caller: AsWriter,
    device_id: DeviceId,
    given: schemas.NewCommand,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Command:
    """Tell a device something: it is delivered until the device answers, or it expires.

    Sent again with the same key, the answer is 200 and the command as it now stands.
    """
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    cause = f"operator:{key}"
    before = await command_of_cause(
        caller.connection, caller.tenant_no, device_no=device.device_no, cause=cause
    )
    if before is not None:
        told = (before.kind, before.payload, before.expires_at)
        if told != (given.kind, given.payload, given.expires_at):
            raise _key_of_another("command")
        response.status_code = HTTPStatus.OK
        return _command(before)
    _check_storable(given.payload)
    if given.expires_at is not None and given.expires_at <= caller.now:
        raise bad_input("expires_at", "is past", "use a time to come, or none")
    command = NewCommand(
        device_no=device.device_no,
        kind=CommandKind(given.kind),
        payload=given.payload,
        cause=cause,
        published_at=None,
        expires_at=given.expires_at,
    )
    try:
        await enqueue_commands(caller.connection, [command], now=caller.now)
    except InvalidValue as error:
        raise bad_input(f"payload.{error.field}", error.problem, error.fix) from error
    made = await command_of_cause(
        caller.connection, caller.tenant_no, device_no=device.device_no, cause=cause
    )
    assert made is not None  # noqa: S101 - it was enqueued in this transaction
    return _command(made)


@router.get("/events")
async def get_events(
    *,
    caller: AsCaller,
    within: Within,
    fleet_id: OfFleet = None,
    device_id: OfDevice = None,
    kind: Annotated[EventKind | None, Query(description="only of this kind")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Events:
    """List what happened, as webhooks were told it, the last first."""
    fleet_no = None
    if fleet_id is not None:
        fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
        fleet_no = fleet.fleet_no
    rows = await list_events(
        caller.connection,
        caller.tenant_no,
        fleet_no=fleet_no,
        device_no=await _device_no(caller, device_id),
        kind=kind,
        before=number_of(cursor),
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return Events.model_validate(
        {
            "items": [asdict(row) for row in rows[:limit]],
            "next_cursor": cursor_of([last.event_no]) if last else None,
        }
    )


@router.get("/events/{event_id}")
async def get_event(
    caller: AsCaller, event_id: Annotated[UUID, Path(description="the event's id")]
) -> Event:
    """Show one event, as webhooks were told it."""
    row = await event_view(caller.connection, caller.tenant_no, event_id)
    if row is None:
        raise NotFound("event", str(event_id))
    return event_of(asdict(row))


@router.get("/webhook-endpoints")
async def get_webhook_endpoints(
    caller: AsCaller, within: Within, limit: Limit = 100, cursor: Cursor = None
) -> schemas.WebhookEndpoints:
    """List where events are told, in the order of their making."""
    rows = await list_endpoints(
        caller.connection,
        caller.tenant_no,
        after=number_of(cursor) or 0,
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.WebhookEndpoints(
        items=[shown_endpoint(row) for row in rows[:limit]],
        next_cursor=cursor_of([last.endpoint_no]) if last else None,
    )


@router.post("/webhook-endpoints", status_code=HTTPStatus.CREATED, responses=ALREADY_DONE)
async def post_webhook_endpoint(
    caller: AsWriter,
    given: schemas.NewWebhookEndpoint,
    key: IdempotencyKey,
    request: Request,
    response: Response,
) -> schemas.CreatedWebhookEndpoint:
    """Have events told to a URL from now on; the answer holds the secret, this once.

    Sent again with the same key, the answer is 200 and no secret.
    """
    check_url(request, given.url)
    secret = secrets.token_bytes(_SECRET_OCTETS)
    endpoint, new = await create_endpoint(
        caller.connection,
        caller.tenant_no,
        url=given.url,
        secret=sealer_of(state_of(request).settings).seal(secret),
        kinds=given.kinds,
        cause=f"operator:{key}",
        now=caller.now,
    )
    if not new:
        if (endpoint.url, endpoint.kinds) != (given.url, given.kinds):
            raise _key_of_another("endpoint")
        response.status_code = HTTPStatus.OK
    shown = schemas.CreatedWebhookEndpoint(
        **shown_endpoint(endpoint).model_dump(),
        secret=f"whsec_{base64.b64encode(secret).decode()}" if new else None,
    )
    return etags.tagged(response, shown, EDITED)


@router.delete(
    "/webhook-endpoints/{endpoint_id}",
    status_code=HTTPStatus.NO_CONTENT,
    responses=etags.MATCHED,
)
async def delete_webhook_endpoint(
    caller: AsWriter, endpoint_id: EndpointId, if_match: etags.IfMatch = None
) -> None:
    """Tell a URL nothing more; what was still queued has failed. It stays in the list, disabled.

    It may be enabled again.
    """
    endpoint = await owned_endpoint(caller, endpoint_id, if_match)
    await disable_endpoint(
        caller.connection, endpoint.endpoint_no, reason="the endpoint was deleted", now=caller.now
    )


@router.get("/webhook-endpoints/{endpoint_id}/deliveries")
async def get_webhook_deliveries(
    *,
    caller: AsCaller,
    within: Within,
    endpoint_id: EndpointId,
    state: Annotated[schemas.DeliveryState | None, Query(description="only in this state")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.WebhookDeliveries:
    """List what an endpoint was told, and what became of it, the last first."""
    endpoint = await endpoint_of(caller, endpoint_id)
    rows = await list_deliveries(
        caller.connection,
        endpoint.endpoint_no,
        state=state,
        before=number_of(cursor),
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.WebhookDeliveries(
        items=[shown_delivery(row) for row in rows[:limit]],
        next_cursor=cursor_of([last.delivery_no]) if last else None,
    )


@router.post(
    "/webhook-endpoints/{endpoint_id}/deliveries/{event_id}/replay",
    status_code=HTTPStatus.ACCEPTED,
)
async def post_webhook_replay(
    caller: AsWriter,
    endpoint_id: EndpointId,
    event_id: Annotated[UUID, Path(description="which event")],
) -> schemas.WebhookDelivery:
    """Try a failed delivery again, with as many attempts as a new one."""
    endpoint = await endpoint_of(caller, endpoint_id)
    if endpoint.disabled_at is not None:
        raise ProblemError(HTTPStatus.CONFLICT, "the endpoint is disabled; enable it first")
    delivery, was_failed = await replay_delivery(
        caller.connection, endpoint.endpoint_no, event_id, now=caller.now
    )
    if delivery is None:
        raise NotFound("delivery of event", str(event_id))
    if not was_failed:
        raise ProblemError(
            HTTPStatus.CONFLICT, f"the delivery is {delivery.state}; one that failed is replayed"
        )
    await notify(caller.connection)
    return shown_delivery(delivery)


async def _device_no(caller: Caller, device_id: str | None) -> int | None:
    if device_id is None:
        return None
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    return device.device_no


async def endpoint_of(caller: Caller, endpoint_id: UUID) -> EndpointView:
    """Return an endpoint of the caller's tenant; raise `NotFound`."""
    endpoint = await endpoint_view(caller.connection, caller.tenant_no, endpoint_id)
    if endpoint is None:
        raise NotFound("webhook endpoint", str(endpoint_id))
    return endpoint


async def owned_endpoint(caller: Caller, endpoint_id: UUID, if_match: str | None) -> EndpointView:
    """Return an endpoint that nobody else changes meanwhile, if it is as its changer saw it."""
    await lock_endpoint(caller.connection, caller.tenant_no, endpoint_id)
    endpoint = await endpoint_of(caller, endpoint_id)
    etags.check_match(if_match, shown_endpoint(endpoint), EDITED)
    return endpoint


def check_url(request: Request, url: str) -> None:
    """Refuse an address that no endpoint may have."""
    try:
        check_webhook_url(url, private_addresses=state_of(request).webhook_private_addresses)
    except InvalidValue as error:
        raise bad_input(error.field, error.problem, error.fix) from error


def number_of(cursor: str | None) -> int | None:
    """Return the number in a cursor."""
    return cast("int", read_cursor(cursor, "i")[0]) if cursor else None


def _check_storable(payload: Mapping[str, object]) -> None:
    """Refuse a payload that is too large, or that the database could not keep as JSON."""
    try:
        text = json.dumps(payload, allow_nan=False, ensure_ascii=False)
        octets = len(text.encode())
    except ValueError as error:
        raise bad_input(
            "payload", "is not JSON that can be kept", "leave out NaN, Infinity and lone surrogates"
        ) from error
    if "\\u0000" in text.replace("\\\\", ""):
        raise bad_input("payload", "holds the character U+0000", "leave it out")
    if octets > _PAYLOAD_OCTETS_MAX:
        raise bad_input("payload", f"has {octets} octets", f"use at most {_PAYLOAD_OCTETS_MAX}")


def _key_of_another(kind: str) -> ProblemError:
    return bad_input(
        "Idempotency-Key",
        f"was used for another {kind}",
        "take a new key for each request",
        kind="idempotency-key-reused",
    )


def _command(row: CommandView) -> schemas.Command:
    return schemas.Command.model_validate({**asdict(row), "number": row.command_no})


def shown_endpoint(row: EndpointView) -> schemas.WebhookEndpoint:
    """Return an endpoint as it is answered."""
    return schemas.WebhookEndpoint.model_validate(asdict(row))


def shown_delivery(row: DeliveryView) -> schemas.WebhookDelivery:
    """Return a delivery as it is answered."""
    return schemas.WebhookDelivery.model_validate(asdict(row))
