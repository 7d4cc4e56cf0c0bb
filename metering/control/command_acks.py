"""What devices answer to commands."""

from collections.abc import Callable, Sequence
from datetime import datetime

from pydantic import ValidationError

from metering.control import metrics
from metering.control.hearing import HeardMessage
from metering.store.commands import HeardAck, store_command_acks
from metering.store.connection import Connection
from metering.wire.command import CommandKind, decode_ack


async def store_acks(
    connection: Connection, messages: Sequence[HeardMessage], now: datetime
) -> Callable[[], None]:
    """Store what devices answered; an answer that cannot be read, or names no command, is counted."""
    heard = []
    for message in messages:
        try:
            ack = decode_ack(message.payload)
        except ValidationError:
            continue
        heard.append(HeardAck(tenant_id=message.tenant_id, device_id=message.device_id, ack=ack))
    answered: list[tuple[CommandKind, str]] = []
    unknown = 0
    if heard:
        answered, unknown = await store_command_acks(connection, heard, now=now)

    def count() -> None:
        metrics.BAD_MESSAGES.labels("invalid_command_ack").inc(len(messages) - len(heard))
        metrics.BAD_MESSAGES.labels("unknown_command").inc(unknown)
        for kind, outcome in answered:
            metrics.ACKNOWLEDGED.labels(kind.value, outcome).inc()

    return count
