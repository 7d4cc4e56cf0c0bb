"""Webhooks on their way: which endpoints have deliveries due, and what became of each attempt."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from metering.event_kinds import EventKind
from metering.store.connection import Connection
from metering.store.outbox import NewEvent, record_events


@dataclass(frozen=True, slots=True, kw_only=True)
class DueEndpoint:
    """An endpoint to which something is to be delivered now; its secrets are as they are stored."""

    endpoint_no: int
    url: str
    secret: bytes
    previous_secret: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DueDelivery:
    """An event that is to be delivered now. `attempts` counts this one."""

    delivery_no: int
    attempts: int
    event_id: UUID
    kind: str
    payload: dict[str, Any]
    created_at: datetime
    fleet_id: str | None
    device_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What became of an attempt; `status` is None where no answer came within `milliseconds`.

    One that did not succeed is tried again at `again_at`; None: never, it has failed for good.
    """

    delivery_no: int
    attempted_at: datetime
    milliseconds: int
    status: int | None
    error: str | None
    again_at: datetime | None

    @property
    def succeeded(self) -> bool:
        """Whether the endpoint took the event."""
        return self.error is None


async def endpoints_with_due_deliveries(
    connection: Connection, *, now: datetime
) -> list[DueEndpoint]:
    """Return the endpoints to which something is due."""
    found = await connection.execute(
        "SELECT endpoint_no, url, secret, CASE WHEN previous_until > %s THEN previous_secret END"
        " FROM webhook_endpoint WHERE disabled_at IS NULL"
        " AND EXISTS (SELECT FROM webhook_delivery WHERE webhook_delivery.endpoint_no"
        "   = webhook_endpoint.endpoint_no AND due_at <= %s) ORDER BY endpoint_no",
        [now, now],
    )
    return [
        DueEndpoint(endpoint_no=row[0], url=row[1], secret=row[2], previous_secret=row[3])
        for row in await found.fetchall()
    ]


async def claim_due_deliveries(
    connection: Connection, endpoint_no: int, *, now: datetime, until: datetime, limit: int
) -> list[DueDelivery]:
    """Take deliveries of an endpoint that are due, oldest first.

    Each is due again at `until`, if whoever claimed it dies before it says what became of it.
    """
    claimed = await connection.execute(
        "WITH due AS (SELECT delivery_no FROM webhook_delivery JOIN webhook_endpoint"
        "   USING (endpoint_no) WHERE endpoint_no = %s AND due_at <= %s AND disabled_at IS NULL"
        "   ORDER BY due_at, delivery_no LIMIT %s FOR UPDATE OF webhook_delivery SKIP LOCKED)"
        " UPDATE webhook_delivery SET attempts = attempts + 1, due_at = %s, attempted_at = %s"
        " FROM due, event LEFT JOIN fleet USING (fleet_no) LEFT JOIN device USING (device_no)"
        " WHERE webhook_delivery.delivery_no = due.delivery_no"
        "   AND event.event_no = webhook_delivery.event_no"
        " RETURNING webhook_delivery.delivery_no, attempts, event_id, kind, payload,"
        "   event.created_at, fleet_id, device_id",
        [endpoint_no, now, limit, until, now],
    )
    deliveries = [
        DueDelivery(**dict(zip(DueDelivery.__slots__, row, strict=True)))
        for row in await claimed.fetchall()
    ]
    return sorted(deliveries, key=lambda each: each.delivery_no)


async def store_attempts(
    connection: Connection, attempts: Sequence[Attempt], *, now: datetime
) -> None:
    """Log some attempts and note what became of each; who succeeded, or failed for good, stays so."""
    await connection.execute(
        "INSERT INTO webhook_attempt (delivery_no, attempted_at, status, milliseconds, error)"
        " SELECT * FROM unnest(%s::bigint[], %s::timestamptz[], %s::smallint[], %s::integer[],"
        "   %s::text[])",
        [
            [each.delivery_no for each in attempts],
            [each.attempted_at for each in attempts],
            [each.status for each in attempts],
            [each.milliseconds for each in attempts],
            [each.error for each in attempts],
        ],
    )
    await connection.execute(
        "UPDATE webhook_delivery SET last_status = given.status, last_error = given.error,"
        "   due_at = given.again_at,"
        "   state = CASE WHEN given.error IS NULL THEN 'delivered'"
        "     WHEN given.again_at IS NULL THEN 'failed' ELSE 'queued' END,"
        "   delivered_at = CASE WHEN given.error IS NULL THEN %s END"
        " FROM unnest(%s::bigint[], %s::smallint[], %s::text[], %s::timestamptz[])"
        "   AS given (delivery_no, status, error, again_at)"
        " WHERE webhook_delivery.delivery_no = given.delivery_no AND state = 'queued'",
        [
            now,
            [each.delivery_no for each in attempts],
            [each.status for each in attempts],
            [each.error for each in attempts],
            [None if each.succeeded else each.again_at for each in attempts],
        ],
    )


async def note_failing(
    connection: Connection, endpoint_no: int, *, succeeded: bool, now: datetime
) -> datetime | None:
    """Return since when all attempts at an endpoint failed; None where one `succeeded` now."""
    noted = await connection.execute(
        "UPDATE webhook_endpoint SET failing_since = CASE WHEN NOT %(succeeded)s"
        "   THEN coalesce(failing_since, %(now)s) END WHERE endpoint_no = %(endpoint_no)s"
        " RETURNING failing_since",
        {"succeeded": succeeded, "now": now, "endpoint_no": endpoint_no},
    )
    row = await noted.fetchone()
    return None if row is None else row[0]


async def disable_endpoint(
    connection: Connection, endpoint_no: int, *, reason: str, now: datetime, tell: bool = False
) -> None:
    """Deliver nothing more to an endpoint; what was still queued has failed, for this reason.

    `tell` makes it an event, for the tenant's other endpoints.
    """
    disabled = await connection.execute(
        "UPDATE webhook_endpoint SET disabled_at = %s, disabled_reason = %s"
        " WHERE endpoint_no = %s AND disabled_at IS NULL RETURNING tenant_no, endpoint_id, url",
        [now, reason, endpoint_no],
    )
    row = await disabled.fetchone()
    if row is not None and tell:
        event = NewEvent(
            tenant_no=row[0],
            fleet_no=None,
            device_no=None,
            kind=EventKind.WEBHOOK_DISABLED,
            payload={"endpoint_id": str(row[1]), "url": row[2], "reason": reason},
            cause=f"endpoint:{endpoint_no}",
        )
        await record_events(connection, [event], now=now)
    await connection.execute(
        "UPDATE webhook_delivery SET state = 'failed', due_at = NULL, last_error = %s"
        " WHERE endpoint_no = %s AND state = 'queued'",
        [reason, endpoint_no],
    )


async def prune_deliveries(connection: Connection, *, before: datetime) -> int:
    """Forget deliveries that ended, with their attempts, where the last one was before an instant."""
    pruned = await connection.execute(
        "DELETE FROM webhook_delivery WHERE due_at IS NULL AND attempted_at < %s", [before]
    )
    return pruned.rowcount
