"""The outbox: commands and events are written in the transaction of their cause and leave after it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from metering.event_kinds import EventKind
from metering.store.connection import Connection
from metering.wire.command import CommandKind, check_payload

OUTBOX_CHANNEL = "fleetmeter_outbox"
"""NOTIFY channel that wakes the control processes; its messages carry nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCommand:
    """Something to tell a device.

    `payload` is what the device is told beside id, number and kind: a JSON object. `cause` names
    what asked for it, such as "alert:17": (device, kind, cause) is enqueued once. `published_at` is
    when the message that caused it was sent, for the latency; `expires_at` when it is no longer worth
    telling, None for never.
    """

    device_no: int
    kind: CommandKind
    payload: Mapping[str, object]
    cause: str
    published_at: datetime | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """Something that happened, as webhooks tell it: (tenant, kind, cause) is recorded once.

    `payload` is a JSON object. `fleet_no` is None where it concerns no fleet, but a webhook endpoint.
    """

    tenant_no: int
    fleet_no: int | None
    device_no: int | None
    kind: EventKind
    payload: Mapping[str, object]
    cause: str


async def enqueue_commands(
    connection: Connection, commands: Sequence[NewCommand], *, now: datetime
) -> None:
    """Enqueue commands, in their order for each device, to be published once this commits.

    One that was enqueued before, by its device, kind and cause, is left out. Waits for nobody who
    delivers. Raises `InvalidValue` for a payload that its kind cannot have.
    """
    if not commands:
        return
    for each in commands:
        check_payload(each.kind, each.payload)
    ordered = sorted(commands, key=lambda each: each.device_no)
    inserted = await connection.execute(
        "INSERT INTO command"
        " (tenant_no, device_no, kind, payload, cause, published_at, expires_at, created_at, due_at)"
        " SELECT tenant_no, given.device_no, kind, payload::jsonb, cause, published_at, expires_at,"
        "   %s, %s"
        " FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::timestamptz[],"
        "   %s::timestamptz[]) WITH ORDINALITY"
        "   AS given (device_no, kind, payload, cause, published_at, expires_at, position)"
        " LEFT JOIN device USING (device_no)"
        " ORDER BY position ON CONFLICT (device_no, kind, cause) DO NOTHING",
        [
            now,
            now,
            [each.device_no for each in ordered],
            [each.kind.value for each in ordered],
            [json.dumps(each.payload) for each in ordered],
            [each.cause for each in ordered],
            [each.published_at for each in ordered],
            [each.expires_at for each in ordered],
        ],
    )
    if inserted.rowcount:
        await notify(connection)


async def record_events(
    connection: Connection, events: Sequence[NewEvent], *, now: datetime
) -> None:
    """Record events, and enqueue a delivery of each to every webhook endpoint that wants its kind.

    One that was recorded before, by its tenant, kind and cause, is left out.
    """
    if not events:
        return
    ordered = sorted(events, key=lambda each: (each.tenant_no, each.kind, each.cause))
    delivered = await connection.execute(
        "WITH recorded AS ("
        " INSERT INTO event (tenant_no, fleet_no, device_no, kind, payload, cause, created_at)"
        " SELECT tenant_no, fleet_no, device_no, kind, payload::jsonb, cause, %s"
        " FROM unnest(%s::integer[], %s::integer[], %s::bigint[], %s::text[], %s::text[], %s::text[])"
        "   WITH ORDINALITY"
        "   AS given (tenant_no, fleet_no, device_no, kind, payload, cause, position)"
        " ORDER BY position ON CONFLICT (tenant_no, kind, cause) DO NOTHING"
        " RETURNING event_no, tenant_no, kind)"
        " INSERT INTO webhook_delivery (event_no, endpoint_no, due_at)"
        " SELECT event_no, endpoint_no, %s FROM recorded JOIN webhook_endpoint USING (tenant_no)"
        " WHERE disabled_at IS NULL AND (kinds = '{}' OR kind = ANY(kinds)) ORDER BY event_no",
        [
            now,
            [each.tenant_no for each in ordered],
            [each.fleet_no for each in ordered],
            [each.device_no for each in ordered],
            [each.kind for each in ordered],
            [json.dumps(each.payload) for each in ordered],
            [each.cause for each in ordered],
            now,
        ],
    )
    if delivered.rowcount:
        await notify(connection)


async def notify(connection: Connection) -> None:
    """Wake the control processes once this transaction commits."""
    await connection.execute(f"NOTIFY {OUTBOX_CHANNEL}".encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What is due to leave the platform and did not yet, and since when the oldest of it is due."""

    commands: int
    commands_due_since: datetime | None
    deliveries: int
    deliveries_due_since: datetime | None


async def outbox_backlog(connection: Connection, now: datetime) -> Backlog:
    """Return how many commands and webhook deliveries are due, in the whole deployment."""
    found = await connection.execute(
        "SELECT commands.*, deliveries.*"
        " FROM (SELECT count(*), min(due_at) FROM command WHERE due_at <= %(now)s) AS commands,"
        " (SELECT count(*), min(due_at) FROM webhook_delivery WHERE due_at <= %(now)s) AS deliveries",
        {"now": now},
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - aggregates without GROUP BY return one row
    return Backlog(
        commands=row[0],
        commands_due_since=row[1],
        deliveries=row[2],
        deliveries_due_since=row[3],
    )
