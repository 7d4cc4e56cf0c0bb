"""What the API reads and changes of the outbox: commands, events, webhook endpoints, deliveries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandView:
    """A command, and how far it got."""

    command_no: int
    command_id: UUID
    device_id: str
    fleet_id: str
    kind: str
    payload: Mapping[str, object]
    cause: str
    state: str
    attempts: int
    created_at: datetime
    expires_at: datetime | None
    sent_at: datetime | None
    acknowledged_at: datetime | None
    detail: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """Something that happened."""

    event_no: int
    event_id: UUID
    kind: str
    fleet_id: str | None
    device_id: str | None
    payload: Mapping[str, object]
    cause: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """A webhook endpoint, without its secrets."""

    endpoint_no: int
    endpoint_id: UUID
    url: str
    kinds: list[str]
    created_at: datetime
    previous_until: datetime | None
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryView:
    """One event on its way to one endpoint."""

    delivery_no: int
    event_id: UUID
    kind: str
    state: str
    attempts: int
    due_at: datetime | None
    attempted_at: datetime | None
    delivered_at: datetime | None
    last_status: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """One call of an endpoint; `status` is None where no answer came."""

    attempt_no: int
    attempted_at: datetime
    status: int | None
    milliseconds: int
    error: str | None


_COMMAND = (
    "SELECT command_no, command_id, device_id, fleet_id, kind, payload, cause, state, attempts,"
    " command.created_at, expires_at, sent_at, acknowledged_at, detail"
    " FROM command JOIN device ON device.device_no = command.device_no"
    " JOIN fleet ON fleet.fleet_no = device.fleet_no WHERE command.tenant_no = %(tenant_no)s"
)
_EVENT = (
    "SELECT event_no, event_id, kind, fleet_id, device_id, payload, cause, event.created_at"
    " FROM event LEFT JOIN fleet ON fleet.fleet_no = event.fleet_no"
    " LEFT JOIN device ON device.device_no = event.device_no"
    " WHERE event.tenant_no = %(tenant_no)s"
)
_ENDPOINT = (
    "SELECT endpoint_no, endpoint_id, url, kinds, created_at, previous_until, failing_since,"
    " disabled_at, disabled_reason FROM webhook_endpoint"
    " WHERE tenant_no = %(tenant_no)s"
)
_DELIVERY = (
    "SELECT delivery_no, event_id, kind, state, attempts, due_at, attempted_at, delivered_at,"
    " last_status, last_error FROM webhook_delivery JOIN event USING (event_no)"
    " WHERE endpoint_no = %(endpoint_no)s"
)


async def list_commands(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int | None,
    kind: str | None,
    state: str | None,
    before: int | None,
    limit: int,
    fleet_no: int | None = None,
    during: During = ALWAYS,
) -> list[CommandView]:
    """Return at most `limit` commands, the last first, that came before `before`."""
    narrowed = "" if device_no is None else " AND command.device_no = %(device_no)s"
    if fleet_no is not None:
        narrowed += " AND device.fleet_no = %(fleet_no)s"
    return await fetch_all(
        connection,
        CommandView,
        _COMMAND + narrowed + " AND (%(kind)s::text IS NULL OR kind = %(kind)s)"
        " AND (%(state)s::text IS NULL OR state = %(state)s)"
        " AND (%(before)s::bigint IS NULL OR command_no < %(before)s)"
        + during.condition("command.created_at")
        + " ORDER BY command_no DESC LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "fleet_no": fleet_no,
            "kind": kind,
            "state": state,
            "before": before,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )


async def command_of_cause(
    connection: Connection, tenant_no: TenantNo, *, device_no: int, cause: str
) -> CommandView | None:
    """Return the command of a device that this cause enqueued; the device is locked until the end.

    So of two requests of one cause the later sees what the earlier did.
    """
    await connection.execute(
        "SELECT FROM device WHERE device_no = %s FOR NO KEY UPDATE", [device_no]
    )
    return await fetch_one(
        connection,
        CommandView,
        _COMMAND + " AND command.device_no = %(device_no)s AND cause = %(cause)s",
        {"tenant_no": tenant_no, "device_no": device_no, "cause": cause},
    )


async def command_view(
    connection: Connection, tenant_no: TenantNo, command_id: UUID
) -> CommandView | None:
    """Return a command of a tenant by the id that its device sees."""
    return await fetch_one(
        connection,
        CommandView,
        _COMMAND + " AND command_id = %(command_id)s",
        {"tenant_no": tenant_no, "command_id": command_id},
    )


async def event_view(
    connection: Connection, tenant_no: TenantNo, event_id: UUID
) -> EventView | None:
    """Return an event of a tenant by its id."""
    return await fetch_one(
        connection,
        EventView,
        _EVENT + " AND event_id = %(event_id)s",
        {"tenant_no": tenant_no, "event_id": event_id},
    )


async def list_events(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int | None,
    device_no: int | None,
    kind: str | None,
    before: int | None,
    limit: int,
    during: During = ALWAYS,
) -> list[EventView]:
    """Return at most `limit` events, the last first, that came before `before`."""
    of_fleet = "" if fleet_no is None else " AND event.fleet_no = %(fleet_no)s"
    of_device = "" if device_no is None else " AND event.device_no = %(device_no)s"
    return await fetch_all(
        connection,
        EventView,
        _EVENT + of_fleet + of_device + " AND (%(kind)s::text IS NULL OR kind = %(kind)s)"
        " AND (%(before)s::bigint IS NULL OR event_no < %(before)s)"
        + during.condition("event.created_at")
        + " ORDER BY event_no DESC LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "fleet_no": fleet_no,
            "device_no": device_no,
            "kind": kind,
            "before": before,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )


async def create_endpoint(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    url: str,
    secret: bytes,
    kinds: Sequence[str],
    cause: str,
    now: datetime,
) -> tuple[EndpointView, bool]:
    """Create an endpoint; return it, and whether it is new: a cause creates one once."""
    created = await connection.execute(
        "INSERT INTO webhook_endpoint (tenant_no, cause, url, secret, kinds, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (tenant_no, cause) DO NOTHING",
        [tenant_no, cause, url, secret, list(kinds), now],
    )
    found = await fetch_one(
        connection,
        EndpointView,
        _ENDPOINT + " AND cause = %(cause)s",
        {"tenant_no": tenant_no, "cause": cause},
    )
    assert found is not None  # noqa: S101 - it was there, or is now
    return found, created.rowcount == 1


async def list_endpoints(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    after: int,
    limit: int,
    during: During = ALWAYS,
) -> list[EndpointView]:
    """Return at most `limit` endpoints in the order of their making, after `after`."""
    return await fetch_all(
        connection,
        EndpointView,
        _ENDPOINT
        + " AND endpoint_no > %(after)s"
        + during.condition("created_at")
        + " ORDER BY endpoint_no LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "after": after,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )


async def endpoint_view(
    connection: Connection, tenant_no: TenantNo, endpoint_id: UUID
) -> EndpointView | None:
    """Return an endpoint of a tenant."""
    return await fetch_one(
        connection,
        EndpointView,
        _ENDPOINT + " AND endpoint_id = %(endpoint_id)s",
        {"tenant_no": tenant_no, "endpoint_id": endpoint_id},
    )


async def lock_endpoint(connection: Connection, tenant_no: TenantNo, endpoint_id: UUID) -> None:
    """Own an endpoint of a tenant until the transaction ends."""
    await connection.execute(
        "SELECT FROM webhook_endpoint WHERE tenant_no = %s AND endpoint_id = %s FOR NO KEY UPDATE",
        [tenant_no, endpoint_id],
    )


async def change_endpoint(
    connection: Connection, endpoint_no: int, *, url: str, kinds: Sequence[str]
) -> None:
    """Write where an endpoint is told, and of what; what is queued goes to the new place."""
    await connection.execute(
        "UPDATE webhook_endpoint SET url = %s, kinds = %s WHERE endpoint_no = %s",
        [url, list(kinds), endpoint_no],
    )


async def enable_endpoint(connection: Connection, endpoint_no: int) -> None:
    """Let an endpoint be told again of what happens from now on; one that is told is left as it is."""
    await connection.execute(
        "UPDATE webhook_endpoint SET disabled_at = NULL, disabled_reason = NULL, failing_since = NULL"
        " WHERE endpoint_no = %s AND disabled_at IS NOT NULL",
        [endpoint_no],
    )


async def list_deliveries(
    connection: Connection,
    endpoint_no: int,
    *,
    state: str | None,
    before: int | None,
    limit: int,
    during: During = ALWAYS,
) -> list[DeliveryView]:
    """Return at most `limit` deliveries to an endpoint, the last first, that came before `before`."""
    return await fetch_all(
        connection,
        DeliveryView,
        _DELIVERY + " AND (%(state)s::text IS NULL OR state = %(state)s)"
        " AND (%(before)s::bigint IS NULL OR delivery_no < %(before)s)"
        + during.condition("attempted_at")
        + " ORDER BY delivery_no DESC LIMIT %(limit)s",
        {
            "endpoint_no": endpoint_no,
            "state": state,
            "before": before,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )


async def replay_delivery(
    connection: Connection, endpoint_no: int, event_id: UUID, *, now: datetime
) -> tuple[DeliveryView | None, bool]:
    """Queue a failed delivery again, with all its attempts; return it, and whether it had failed."""
    replayed = await connection.execute(
        "UPDATE webhook_delivery SET state = 'queued', attempts = 0, due_at = %s FROM event"
        " WHERE event.event_no = webhook_delivery.event_no AND event_id = %s AND endpoint_no = %s"
        " AND state = 'failed'",
        [now, event_id, endpoint_no],
    )
    delivery = await delivery_view(connection, endpoint_no, event_id)
    return delivery, replayed.rowcount == 1


async def replay_deliveries(
    connection: Connection,
    endpoint_no: int,
    *,
    since: datetime,
    until: datetime,
    only_failed: bool,
    now: datetime,
    limit: int,
) -> int:
    """Queue what ended again, of events in `[since, until)`, the first ones first; return how many.

    Those that are queued are left as they are.
    """
    replayed = await connection.execute(
        "UPDATE webhook_delivery SET state = 'queued', attempts = 0, due_at = %(now)s,"
        " delivered_at = NULL WHERE delivery_no IN (SELECT delivery_no FROM webhook_delivery"
        "   JOIN event USING (event_no) WHERE endpoint_no = %(endpoint_no)s AND due_at IS NULL"
        "   AND (state = 'failed' OR NOT %(only_failed)s) AND created_at >= %(since)s"
        "   AND created_at < %(until)s ORDER BY delivery_no LIMIT %(limit)s FOR UPDATE)",
        {
            "endpoint_no": endpoint_no,
            "since": since,
            "until": until,
            "only_failed": only_failed,
            "now": now,
            "limit": limit,
        },
    )
    return replayed.rowcount


async def rotate_secret(
    connection: Connection, endpoint_no: int, *, secret: bytes, until: datetime, now: datetime
) -> None:
    """Give an endpoint a new secret; the one that it has signs on until an instant, unless that is past.

    While one signs on already, that one stays: what came between was perhaps seen by nobody.
    """
    await connection.execute(
        "UPDATE webhook_endpoint SET secret = %(secret)s,"
        " previous_secret = CASE WHEN %(until)s <= %(now)s THEN NULL"
        "   WHEN previous_until > %(now)s THEN previous_secret ELSE secret END,"
        " previous_until = CASE WHEN %(until)s > %(now)s THEN %(until)s::timestamptz END"
        " WHERE endpoint_no = %(endpoint_no)s",
        {"secret": secret, "until": until, "now": now, "endpoint_no": endpoint_no},
    )


async def send_test_event(
    connection: Connection, tenant_no: TenantNo, endpoint: EndpointView, *, now: datetime
) -> DeliveryView:
    """Record an event of kind `webhook.test` and queue it to one endpoint alone."""
    made = await connection.execute(
        "WITH recorded AS (INSERT INTO event (tenant_no, kind, payload, cause, created_at)"
        "   VALUES (%s, 'webhook.test', jsonb_build_object('endpoint_id', %s::text),"
        "   'test:' || gen_random_uuid(), %s) RETURNING event_no, event_id),"
        " queued AS (INSERT INTO webhook_delivery (event_no, endpoint_no, due_at)"
        "   SELECT event_no, %s, %s FROM recorded) SELECT event_id FROM recorded",
        [tenant_no, str(endpoint.endpoint_id), now, endpoint.endpoint_no, now],
    )
    row = await made.fetchone()
    assert row is not None  # noqa: S101 - RETURNING
    delivery = await delivery_view(connection, endpoint.endpoint_no, row[0])
    assert delivery is not None  # noqa: S101 - it was queued in this transaction
    return delivery


async def delivery_view(
    connection: Connection, endpoint_no: int, event_id: UUID
) -> DeliveryView | None:
    """Return what became of an event at an endpoint."""
    return await fetch_one(
        connection,
        DeliveryView,
        _DELIVERY + " AND event_id = %(event_id)s",
        {"endpoint_no": endpoint_no, "event_id": event_id},
    )


async def list_attempts(
    connection: Connection,
    delivery_no: int,
    *,
    before: int | None,
    limit: int,
    during: During = ALWAYS,
) -> list[AttemptView]:
    """Return at most `limit` attempts of a delivery, the last first, that came before `before`."""
    return await fetch_all(
        connection,
        AttemptView,
        "SELECT attempt_no, attempted_at, status, milliseconds, error FROM webhook_attempt"  # noqa: S608 - columns
        " WHERE delivery_no = %(delivery_no)s AND (%(before)s::bigint IS NULL OR attempt_no < %(before)s)"
        + during.condition("attempted_at")
        + " ORDER BY attempt_no DESC LIMIT %(limit)s",
        {
            "delivery_no": delivery_no,
            "before": before,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )
