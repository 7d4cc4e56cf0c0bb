"""Devices that flooded: the broker keeps each away for a while, and everybody is told."""

from datetime import datetime, timedelta

from metering.event_kinds import EventKind
from metering.flood import Flood
from metering.store.connection import Connection
from metering.store.outbox import NewCommand, NewEvent, enqueue_commands, notify, record_events
from metering.wire.command import CommandKind

_TOLD_FOR = timedelta(days=1)
"""For so long after its end a device is told of a hold."""


async def hold_device(
    connection: Connection, flood: Flood, *, hold: timedelta, now: datetime
) -> bool:
    """Have a device kept away for a while, within a transaction; tell it and its tenant.

    It is told at once, if it hears that before it is cut off, or when it comes back.

    False when nobody registered it, or it is held already. One that floods although it is held has come
    back with a certificate that the broker does not know to be on hold: it is cut off again.
    """
    found = await connection.execute(
        "SELECT device_no, tenant_no, fleet_no FROM device JOIN tenant USING (tenant_no)"
        " WHERE tenant_id = %s AND device_id = %s FOR NO KEY UPDATE OF device",
        list(flood.sender),
    )
    row = await found.fetchone()
    if row is None:
        return False
    device_no, tenant_no, fleet_no = row
    inserted = await connection.execute(
        "INSERT INTO device_flood (device_no, held_from, held_until, messages, octets, seconds)"
        " SELECT %(device)s, %(now)s, %(until)s, %(messages)s, %(octets)s, %(seconds)s"
        " WHERE NOT EXISTS (SELECT FROM device_flood WHERE device_no = %(device)s"
        "   AND held_until > %(now)s)",
        {
            "device": device_no,
            "now": now,
            "until": now + hold,
            "messages": flood.messages,
            "octets": flood.octets,
            "seconds": flood.seconds,
        },
    )
    if not inserted.rowcount:
        await _cut_off_again(connection, device_no, now=now)
        return False
    await connection.execute(
        "UPDATE broker_client SET look_at = least(look_at, %s) WHERE device_no = %s",
        [now, device_no],
    )
    await notify(connection)
    told = {
        "until": (now + hold).isoformat(),
        "messages": flood.messages,
        "octets": flood.octets,
        "seconds": round(flood.seconds, 3),
    }
    cause = f"flood:{device_no}:{now.isoformat()}"
    await enqueue_commands(
        connection,
        [
            NewCommand(
                device_no=device_no,
                kind=CommandKind.HOLD,
                payload=told,
                cause=cause,
                published_at=None,
                expires_at=now + hold + _TOLD_FOR,
            )
        ],
        now=now,
    )
    event = NewEvent(
        tenant_no=tenant_no,
        fleet_no=fleet_no,
        device_no=device_no,
        kind=EventKind.DEVICE_FLOODING,
        payload={"device_id": flood.sender[1], "from": now.isoformat(), **told},
        cause=cause,
    )
    await record_events(connection, [event], now=now)
    return True


async def _cut_off_again(connection: Connection, device_no: int, *, now: datetime) -> None:
    """Have the broker told anew to keep a device away that needs no password to come back."""
    told = await connection.execute(
        "UPDATE broker_client SET told = NULL, look_at = %s"
        " WHERE device_no = %s AND password_digest IS NULL",
        [now, device_no],
    )
    if told.rowcount:
        await notify(connection)
