"""Sparkplug's host application: says on its STATE topic whether anybody takes what edge nodes publish.

An edge node that has us for its primary host keeps what it measures while we are offline. The broker says
that we are, by a will (§6.4.13 of version 3.0). Of several ingesters each says it; when one ends, the
others say that somebody is there.
"""

import asyncio
import contextlib
import logging
from datetime import datetime, timedelta

import aiomqtt

from metering import clock
from metering.broker_address import broker_of
from metering.broker_administration import connected, end_if_cancelled
from metering.settings import Settings
from metering.wire.sparkplug import host_state, offline_since, state_topic

log = logging.getLogger(__name__)

_AWAY_SECONDS = 2.0
_STEP = timedelta(milliseconds=1)
"""Instants of states are whole milliseconds."""


class HostState:
    """Keeps the state of this host application true, over a connection of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._broker = broker_of(None, settings)
        self._after: datetime | None = None
        """A state that somebody told; ours has to be later."""

    async def run(self) -> None:
        """Be online until cancelled, then offline."""
        while True:
            at = clock.now()
            if self._after is not None:
                at = max(at, self._after + _STEP)
            try:
                async with connected(self._client(at)) as client:
                    try:
                        await self._be_online(client, at)
                    except asyncio.CancelledError:
                        with contextlib.suppress(aiomqtt.MqttError):
                            await self._say(client, at, is_online=False)
                        raise
            except (aiomqtt.MqttError, OSError) as error:
                log.warning("cannot tell edge nodes that we are there: %s", error)
                end_if_cancelled()
                await asyncio.sleep(_AWAY_SECONDS)
            end_if_cancelled()

    def _client(self, at: datetime) -> aiomqtt.Client:
        return aiomqtt.Client(
            self._broker.host,
            self._broker.port,
            identifier=f"{self._settings.ingest_client_id}-state",
            username=self._broker.username,
            password=self._broker.password,
            tls_context=self._broker.tls_context(),
            will=aiomqtt.Will(state_topic(), host_state(at, is_online=False), qos=1, retain=True),
        )

    async def _be_online(self, client: aiomqtt.Client, at: datetime) -> None:
        """Say that we are online, and again whenever it is denied; return to say it of a later instant."""
        await client.subscribe(state_topic(), qos=1)
        end_if_cancelled()
        await self._say(client, at, is_online=True)
        async for message in client.messages:
            offline = offline_since(message.payload)
            if offline is None:
                continue
            if offline + _STEP > at:  # edge nodes heed the later one, and our will has our instant
                self._after = offline
                return
            await self._say(client, at, is_online=True)

    @staticmethod
    async def _say(client: aiomqtt.Client, at: datetime, *, is_online: bool) -> None:
        payload = host_state(at, is_online=is_online)
        await client.publish(state_topic(), payload, qos=1, retain=True)
        end_if_cancelled()
