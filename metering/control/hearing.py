"""Hears devices: gathers their messages, hands each kind to its handler, acknowledges after commit.

What a handler cannot take is counted and acknowledged: a bad message stops nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from time import monotonic

import psycopg

from metering import clock
from metering.broker_link import Delivery
from metering.control import metrics
from metering.control.waking import away
from metering.flood import Flood, FloodGuard
from metering.ids import DeviceId, TenantId
from metering.settings import Settings
from metering.store.connection import UNREACHABLE, Connection, connect_patiently, database_url
from metering.store.floods import hold_device
from metering.wire.topics import device_of_topic

log = logging.getLogger(__name__)

_REFUSALS = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
"""Errors that trying again does not mend: the data itself is refused."""
_IDLE_SECONDS = 0.2
"""After all was acknowledged, the broker would have sent by then what waited there."""


class HeardMessage:
    """A device's message: whose it is by its topic, and what it says."""

    __slots__ = ("device_id", "payload", "tenant_id")

    @property
    def sender(self) -> tuple[TenantId, DeviceId]:
        """The device's tenant and its id."""
        return self.tenant_id, self.device_id

    def __init__(self, tenant_id: TenantId, device_id: DeviceId, payload: bytes) -> None:
        self.tenant_id = tenant_id
        self.device_id = device_id
        self.payload = payload


Handler = Callable[[Connection, Sequence[HeardMessage], datetime], Awaitable[Callable[[], object]]]
"""Stores what some messages say, within the transaction that it is called in.

Returns what is called once that has committed, to count what was done.
"""


class Hearing:
    """Takes messages in batches; `handlers` are found by the last level of the topic.

    Those of `singly` are handed one message at a time, each in a transaction of its own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        handlers: Mapping[str, Handler],
        messages_max: int,
        singly: frozenset[str] = frozenset(),
    ) -> None:
        self._settings = settings
        self._handlers = handlers
        self._singly = singly
        self._messages_max = messages_max
        self._database_url = database_url(settings)
        self._answer_seconds_max = settings.database_answer_seconds_max
        self._pending: list[Delivery] = []
        self._arrived = asyncio.Event()
        self._guard = FloodGuard(
            messages_per_second=settings.device_requests_per_second_max,
            octets_per_second=settings.device_octets_per_second_max,
            window_seconds=settings.flood_window_seconds,
            backlog_seconds_max=settings.flood_backlog_seconds_max,
        )

    def received(self, delivery: Delivery) -> None:
        """Take a message from the broker; one at QoS 0, which no window bounds, if there is room."""
        if not delivery.packet_id and len(self._pending) >= self._messages_max:
            metrics.BAD_MESSAGES.labels("no_room").inc()
            return
        self._pending.append(delivery)
        self._arrived.set()

    def connection_lost(self) -> None:
        """Forget what no batch has taken yet: the broker delivers it again."""
        self._guard.interrupted(monotonic())
        self._pending.clear()

    async def run(self, acknowledge: Callable[[Iterable[Delivery]], None]) -> None:
        """Handle messages until cancelled; each batch is acknowledged once it is committed."""
        connection: Connection | None = None
        try:
            while True:
                idle_since = monotonic()
                await self._arrived.wait()
                if monotonic() - idle_since > _IDLE_SECONDS:
                    self._guard.caught_up()
                self._arrived.clear()
                batch, self._pending = self._pending, []
                began = monotonic()
                heard = {last: self._messages(batch, last) for last in self._handlers}
                for flood in self._floods(heard):
                    connection = await self._handle(connection, self._holding(flood), ())
                for last, handler in self._handlers.items():
                    messages = self._without_floods(heard[last])
                    size = 1 if last in self._singly else max(1, len(messages))
                    for first in range(0, len(messages), size):
                        together = messages[first : first + size]
                        connection = await self._handle(connection, handler, together)
                acknowledge(batch)
                if monotonic() - began > self._settings.flood_window_seconds:
                    self._guard.interrupted(began)  # the database was away, and all waited
        finally:
            if connection is not None:
                await connection.close()

    def _floods(self, heard: Mapping[str, Sequence[HeardMessage]]) -> list[Flood]:
        """Count what devices sent; return who sent too much."""
        sent = [(each.sender, len(each.payload)) for all_ in heard.values() for each in all_]
        return self._guard.count(sent, at=monotonic())

    def _without_floods(self, messages: Sequence[HeardMessage]) -> list[HeardMessage]:
        """Leave out what is one too many: it is asked again, as no answer comes."""
        kept = [each for each in messages if not self._guard.is_flooding(each.sender)]
        metrics.BAD_MESSAGES.labels("flood").inc(len(messages) - len(kept))
        return kept

    def _holding(self, flood: Flood) -> Handler:
        """Return what has a device that floods kept away for a while."""
        hold = timedelta(seconds=self._settings.flood_hold_seconds)

        async def held(
            connection: Connection, _: Sequence[HeardMessage], now: datetime
        ) -> Callable[[], object]:
            if await hold_device(connection, flood, hold=hold, now=now):
                log.warning("%s/%s floods with requests or answers", *flood.sender)
            return lambda: None

        return held

    def _messages(self, batch: Sequence[Delivery], last: str) -> list[HeardMessage]:
        """Return the messages of a batch on topics that end so; one of a bad topic is counted."""
        messages = []
        for delivery in batch:
            if delivery.topic.rpartition("/")[2] != last:
                continue
            sender = device_of_topic(self._settings.topic_root, delivery.topic, last)
            if sender is None:
                metrics.BAD_MESSAGES.labels("bad_topic").inc()
            else:
                messages.append(HeardMessage(*sender, delivery.payload))
        return messages

    async def _handle(
        self, connection: Connection | None, handler: Handler, messages: Sequence[HeardMessage]
    ) -> Connection:
        """Handle messages for as long as it takes; the connection that did it is returned."""
        while True:
            try:
                if connection is None:
                    connection = await connect_patiently(
                        self._database_url,
                        application="control hear",
                        answer_seconds_max=self._answer_seconds_max,
                        waiting=away,
                    )
                await _store(connection, handler, messages)
            except UNREACHABLE as error:
                away(error)
                metrics.RETRIES.inc()
                if connection is not None:
                    await connection.close()
                connection = None
                await asyncio.sleep(0.1)
            else:
                return connection


async def _store(
    connection: Connection, handler: Handler, messages: Sequence[HeardMessage]
) -> None:
    """Commit what messages say; where the database refuses one, the others are stored alone."""
    try:
        async with connection.transaction():
            count = await handler(connection, messages, clock.now())
    except _REFUSALS:
        if len(messages) == 1:
            log.exception("the database refuses a message of %s", messages[0].device_id)
            metrics.BAD_MESSAGES.labels("storage_error").inc()
            return
        for message in messages:
            await _store(connection, handler, [message])
    else:
        count()
