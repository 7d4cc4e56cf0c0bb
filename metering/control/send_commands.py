"""Publishes the commands that are due, and notes which of them the broker took."""

import asyncio
import math
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from metering import clock
from metering.broker_connection import BrokerConnection
from metering.control import metrics
from metering.control.waking import away, woken_or_after
from metering.settings import Settings
from metering.store.commands import DueCommand, claim_due_commands, mark_sent
from metering.store.connection import UNREACHABLE, Connection, connect_patiently, database_url
from metering.wire.command import encode_command
from metering.wire.topics import command_topic

_COMMANDS_MAX = 500
"""Most commands that one transaction takes."""
_BROKER_SECONDS_MAX = 30.0
"""A broker that acknowledges nothing for so long is not waited for: the commands are due again."""


class CommandSender:
    """Delivers commands of the outbox to the broker until their devices answer."""

    def __init__(self, settings: Settings, broker: BrokerConnection) -> None:
        self._settings = settings
        self._broker = broker
        self._database_url = database_url(settings)
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look into the outbox again: something was put in."""
        self._wake.set()

    async def run(self) -> None:
        """Publish what is due until cancelled."""
        while True:
            connection = await connect_patiently(
                self._database_url,
                application="control commands",
                answer_seconds_max=self._settings.database_answer_seconds_max,
                waiting=away,
            )
            try:
                while True:
                    self._wake.clear()
                    while await self._send_due(connection):
                        pass
                    await woken_or_after(self._wake, self._settings.control_poll_seconds)
            except UNREACHABLE as error:
                away(error)
                metrics.RETRIES.inc()
            finally:
                await connection.close()

    async def _send_due(self, connection: Connection) -> bool:
        """Publish one batch; False when there was nothing to do, or no broker to do it with."""
        if not self._broker.is_subscribed:
            return False
        settings = self._settings
        async with connection.transaction():
            claimed = await claim_due_commands(
                connection,
                now=clock.now(),
                resend_after=timedelta(seconds=settings.control_resend_seconds),
                resend_after_max=timedelta(seconds=settings.control_resend_seconds_max),
                limit=_COMMANDS_MAX,
            )
        metrics.EXPIRED.inc(claimed.expired)
        metrics.SUPERSEDED.inc(claimed.superseded)
        taken = await self._publish(claimed.due)
        if taken:
            async with connection.transaction():
                await mark_sent(connection, [each.command_no for each in taken], now=clock.now())
        return bool(claimed.due or claimed.expired or claimed.superseded)

    async def _publish(self, commands: Sequence[DueCommand]) -> list[DueCommand]:
        """Publish commands in their order; return those that the broker took."""
        if not commands:
            return []
        confirmations: dict[asyncio.Future[bool], DueCommand] = {}
        for each in commands:
            confirmed = self._broker.publish_confirmed(
                command_topic(self._settings.topic_root, each.tenant_id, each.device_id),
                encode_command(str(each.command_id), each.command_no, each.kind, each.payload),
                expires_seconds=_seconds_left(each),
            )
            confirmed.add_done_callback(partial(_count, each))
            confirmations[confirmed] = each
        done, _ = await asyncio.wait(confirmations, timeout=_BROKER_SECONDS_MAX)
        return [
            command
            for confirmed, command in confirmations.items()
            if confirmed in done and confirmed.result()
        ]


def _count(command: DueCommand, confirmed: asyncio.Future[bool]) -> None:
    """Count a command at the moment of the broker's PUBACK, or once it is known that none comes."""
    if confirmed.cancelled() or not confirmed.result():
        metrics.UNCONFIRMED.labels(command.kind.value).inc()
        return
    metrics.SENT.labels(command.kind.value).inc()
    if command.attempts > 1:
        metrics.RESENT.labels(command.kind.value).inc()
    if command.published_at is not None and not command.was_sent:
        seconds = (clock.now() - command.published_at).total_seconds()
        metrics.PUBLISH_TO_COMMAND_SECONDS.observe(max(0.0, seconds))


def _seconds_left(command: DueCommand) -> int | None:
    if command.expires_at is None:
        return None
    return max(1, math.ceil((command.expires_at - clock.now()).total_seconds()))
