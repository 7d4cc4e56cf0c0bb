"""The control process: one session at the broker, and the loops that share it."""

import asyncio

from metering.broker_address import broker_of
from metering.broker_connection import BrokerConnection
from metering.control import metrics
from metering.control.command_acks import store_acks
from metering.control.grant_claims import ClaimGranter
from metering.control.hearing import Hearing
from metering.control.prune import Pruner
from metering.control.quota import quota_handler
from metering.control.send_commands import CommandSender
from metering.control.send_webhooks import WebhookSender
from metering.control.tell_rights import Revocations, RightsTeller
from metering.control.waking import away
from metering.control.watch import Watch
from metering.settings import Settings
from metering.store.connection import UNREACHABLE, connect_patiently, database_url
from metering.store.outbox import OUTBOX_CHANNEL
from metering.wire.topics import command_ack_filter, quota_filter

_WINDOW = 1000
"""Messages that the broker may have under way to here."""


class Controller:
    """One control process. Any number may run: what one takes, the others leave alone for a while."""

    def __init__(self, settings: Settings, publish_revocations: Revocations) -> None:
        self._database_url = database_url(settings)
        self._answer_seconds_max = settings.database_answer_seconds_max
        self._hearing = Hearing(
            settings,
            handlers={"command-ack": store_acks, "quota": quota_handler(settings)},
            singly=frozenset({"quota"}),
            messages_max=2 * _WINDOW,
        )
        self._broker = BrokerConnection(
            broker_of(None, settings),
            client_id=settings.control_client_id,
            version=settings.mqtt_version,
            topic_filters=[
                command_ack_filter(settings.topic_root),
                quota_filter(settings.topic_root),
            ],
            window=_WINDOW,
            received=self._hearing.received,
            lost=self._hearing.connection_lost,
        )
        self._commands = CommandSender(settings, self._broker)
        self._webhooks = WebhookSender(settings)
        self._rights = RightsTeller(settings, publish_revocations)
        self._claims = ClaimGranter(settings)
        self._watch = Watch(settings)
        self._pruner = Pruner(settings)
        metrics.CONNECTED.set_function(lambda: float(self._broker.is_subscribed))

    async def run(self) -> None:
        """Deliver until cancelled; what was taken and not delivered is due again by itself."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._broker.run())
            tasks.create_task(self._hearing.run(self._broker.acknowledge))
            tasks.create_task(self._commands.run())
            tasks.create_task(self._webhooks.run())
            tasks.create_task(self._rights.run())
            tasks.create_task(self._claims.run())
            tasks.create_task(self._watch.run())
            tasks.create_task(self._pruner.run())
            tasks.create_task(self._listen_for_ever())

    async def _listen_for_ever(self) -> None:
        while True:
            connection = await connect_patiently(
                self._database_url,
                application="control listen",
                autocommit=True,
                answer_seconds_max=self._answer_seconds_max,
                waiting=away,
            )
            try:
                await connection.execute(f"LISTEN {OUTBOX_CHANNEL}".encode())
                self._wake()
                while True:
                    async for _ in connection.notifies(timeout=self._answer_seconds_max / 2):
                        self._wake()
                    await connection.execute("SELECT 1")  # is anybody still there?
            except UNREACHABLE as error:
                away(error)
            finally:
                await connection.close()

    def _wake(self) -> None:
        self._commands.wake()
        self._webhooks.wake()
        self._rights.wake()
