"""Commands on their way: which are due, which the broker took, and what devices answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from metering.ids import DeviceId, TenantId
from metering.store.connection import Connection
from metering.wire.command import CommandAck, CommandKind

SUPERSEDED_BY = {
    CommandKind.THROTTLE: (CommandKind.THROTTLE, CommandKind.SUSPEND, CommandKind.RESUME),
    CommandKind.SUSPEND: (CommandKind.SUSPEND, CommandKind.RESUME),
    CommandKind.RESUME: (CommandKind.SUSPEND, CommandKind.RESUME),
    CommandKind.HOLD: (CommandKind.HOLD,),
}
"""After which later commands an earlier one need not be obeyed any more.

A throttle ends no suspension, so it supersedes neither `suspend` nor `resume`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueCommand:
    """A command that is to be published now. `attempts` counts this one.

    `was_sent` says that the broker took it before; `published_at` when the message that caused it was
    sent.
    """

    command_no: int
    command_id: UUID
    tenant_id: TenantId
    device_id: DeviceId
    kind: CommandKind
    payload: dict[str, Any]
    attempts: int
    was_sent: bool
    published_at: datetime | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedCommands:
    """What one look into the outbox found: commands to publish, in order, and others it ended."""

    due: list[DueCommand]
    expired: int
    superseded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardAck:
    """A device's answer and whose it is, by the topic on which it came."""

    tenant_id: TenantId
    device_id: DeviceId
    ack: CommandAck


async def claim_due_commands(
    connection: Connection,
    *,
    now: datetime,
    resend_after: timedelta,
    resend_after_max: timedelta,
    limit: int,
) -> ClaimedCommands:
    """Take the commands that are due, oldest first for each device; end what expired or is superseded.

    Each is due again after a wait that doubles: whoever claimed it may die before it is published.
    A command is held back while an earlier one of its device is under way for the first time, so
    they first reach the broker in order.
    """
    expired = await connection.execute(
        "UPDATE command SET state = 'expired', due_at = NULL WHERE command_no IN ("
        " SELECT command_no FROM command WHERE due_at IS NOT NULL AND expires_at <= %s"
        " ORDER BY expires_at LIMIT %s FOR UPDATE SKIP LOCKED)",
        [now, limit],
    )
    found = await connection.execute(
        "SELECT command_no, device_no, kind FROM command WHERE due_at <= %s"
        " ORDER BY due_at, command_no LIMIT %s FOR UPDATE SKIP LOCKED",
        [now, limit],
    )
    rows = await found.fetchall()
    if not rows:
        return ClaimedCommands(due=[], expired=expired.rowcount, superseded=0)
    superseded = await _supersede(
        connection, sorted({row[1] for row in rows if CommandKind(row[2]) in SUPERSEDED_BY})
    )
    claimed = await connection.execute(
        "WITH due AS (SELECT command_no, device_no FROM command WHERE command_no = ANY(%(found)s)"
        "   AND due_at IS NOT NULL)"
        " UPDATE command SET attempts = attempts + 1,"
        "   due_at = %(now)s + least(%(first)s * 2 ^ least(attempts, 16), %(longest)s)"
        "     * interval '1 second'"
        " FROM due JOIN device USING (device_no) JOIN tenant USING (tenant_no)"
        " WHERE command.command_no = due.command_no AND NOT EXISTS ("
        "   SELECT FROM command AS earlier WHERE earlier.device_no = due.device_no"
        "   AND earlier.due_at IS NOT NULL AND earlier.state = 'queued'"
        "   AND earlier.command_no < due.command_no"
        "   AND NOT earlier.command_no = ANY(%(found)s))"
        " RETURNING command.command_no, command_id, tenant_id, device_id, kind, payload, attempts,"
        "   sent_at IS NOT NULL, published_at, expires_at",
        {
            "found": [row[0] for row in rows],
            "now": now,
            "first": resend_after.total_seconds(),
            "longest": resend_after_max.total_seconds(),
        },
    )
    due = [
        DueCommand(
            command_no=row[0],
            command_id=row[1],
            tenant_id=row[2],
            device_id=row[3],
            kind=CommandKind(row[4]),
            payload=row[5],
            attempts=row[6],
            was_sent=row[7],
            published_at=row[8],
            expires_at=row[9],
        )
        for row in await claimed.fetchall()
    ]
    due.sort(key=lambda each: each.command_no)
    return ClaimedCommands(due=due, expired=expired.rowcount, superseded=superseded)


async def _supersede(connection: Connection, device_nos: Sequence[int]) -> int:
    """End the open commands of some devices that a later one makes needless; return how many."""
    if not device_nos:
        return 0
    pairs = [(older, newer) for older, all_newer in SUPERSEDED_BY.items() for newer in all_newer]
    ended = await connection.execute(
        "UPDATE command SET state = 'superseded', due_at = NULL WHERE command_no IN ("
        " SELECT command_no FROM command AS older WHERE device_no = ANY(%s) AND due_at IS NOT NULL"
        "   AND EXISTS (SELECT FROM command AS newer WHERE newer.device_no = older.device_no"
        "     AND newer.command_no > older.command_no AND (older.kind, newer.kind) IN ("
        "       SELECT * FROM unnest(%s::text[], %s::text[])))"
        " FOR UPDATE SKIP LOCKED)",
        [
            list(device_nos),
            [older.value for older, _ in pairs],
            [newer.value for _, newer in pairs],
        ],
    )
    return ended.rowcount


async def mark_sent(connection: Connection, command_nos: Sequence[int], *, now: datetime) -> None:
    """Note that the broker took some commands; whose device has answered already stays as it is."""
    await _lock(connection, command_nos)
    await connection.execute(
        "UPDATE command SET sent_at = %s, state = CASE state WHEN 'queued' THEN 'sent' ELSE state END"
        " WHERE command_no = ANY(%s) AND sent_at IS NULL",
        [now, list(command_nos)],
    )


async def _lock(connection: Connection, command_nos: Sequence[int]) -> None:
    """Lock some commands in the one order in which everybody does."""
    await connection.execute(
        "SELECT FROM command WHERE command_no = ANY(%s) ORDER BY command_no FOR UPDATE",
        [list(command_nos)],
    )


async def store_command_acks(
    connection: Connection, heard: Sequence[HeardAck], *, now: datetime
) -> tuple[list[tuple[CommandKind, str]], int]:
    """Store what devices answered; an answer that was stored before changes nothing.

    Returns kind and outcome of each command that was answered for the first time, and how many
    answers name no command of their device. A device may answer what has expired since or was
    superseded: what it says is what happened.
    """
    answers = {(each.tenant_id, each.device_id, each.ack.id): each for each in heard}
    found = await connection.execute(
        "SELECT command_no, command_id, tenant_id, device_id"
        " FROM unnest(%s::text[], %s::text[], %s::uuid[]) AS given (tenant_id, device_id, command_id)"
        " JOIN tenant USING (tenant_id) JOIN device USING (tenant_no, device_id)"
        " JOIN command USING (device_no, command_id) ORDER BY command_no FOR UPDATE OF command",
        [
            [tenant_id for tenant_id, _, _ in answers],
            [device_id for _, device_id, _ in answers],
            [command_id for _, _, command_id in answers],
        ],
    )
    known = {row[0]: answers[row[2], row[3], row[1]].ack for row in await found.fetchall()}
    stored = await connection.execute(
        "UPDATE command SET state = outcome, acknowledged_at = %s, detail = given.detail,"
        "   due_at = NULL, sent_at = coalesce(sent_at, %s)"
        " FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS given (command_no, outcome, detail)"
        " WHERE command.command_no = given.command_no AND acknowledged_at IS NULL"
        " RETURNING kind, outcome",
        [
            now,
            now,
            list(known),
            [ack.outcome for ack in known.values()],
            [ack.detail for ack in known.values()],
        ],
    )
    told = [(CommandKind(row[0]), str(row[1])) for row in await stored.fetchall()]
    return told, len(answers) - len(known)
