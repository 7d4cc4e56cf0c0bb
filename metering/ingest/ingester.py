"""The ingester: gathers deliveries into batches, makes each durable, then acknowledges it.

At most one window of QoS 1 messages is held: the broker sends no more until some are acknowledged.
Reading from it pauses while what is held passes a bound in octets, or in readings that no batch has taken
yet, or two windows, which is what bounds messages at QoS 0.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from time import monotonic, perf_counter

import psycopg

from metering import clock
from metering.broker_address import broker_of
from metering.broker_connection import BrokerConnection
from metering.broker_link import Delivery
from metering.flood import FloodGuard
from metering.ingest import metrics
from metering.ingest.acknowledger import Acknowledger
from metering.ingest.admission import (
    Message,
    admit,
    admit_of_format,
    refused_by_storage,
    unknown_device,
)
from metering.ingest.device_cache import DeviceCache
from metering.ingest.flood_holder import FloodHolder
from metering.ingest.host_state import HostState
from metering.ingest.message_retention import drop_old_messages
from metering.ingest.narrowing import narrowed
from metering.ingest.translating import Translator
from metering.ingest.write_batch import BatchOutcome, BootArrivals, write_batch
from metering.sequence import SequenceSet
from metering.settings import Settings
from metering.store.connection import (
    UNREACHABLE,
    Connection,
    connect_patiently,
    database_url,
    end_session,
    expect_answers,
    reason_of,
)
from metering.store.readings import RejectedInput, begin_batch, store_rejections
from metering.wire import sparkplug
from metering.wire.formats import formats_filter
from metering.wire.topics import shared_filter, usage_filter

log = logging.getLogger(__name__)

_DEVICES_REMEMBERED_MAX = 100_000
"""About 30 MB."""
_COUNTED_TOGETHER = 200
"""Messages of which it is counted who sent them, before a batch takes them."""
_FULL = 0.9
"""Of the window: with as much held, the broker has no more under way, and whatever else comes waits there."""
_NATIVE = "/usage"
"""How the topics of native JSON end, as nearly all do."""
_REFUSALS = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
"""Errors that trying again does not mend: the data itself is refused."""


class Ingester:
    """One ingest process: one persistent session at the broker, one writing connection."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database_url = database_url(settings)
        self._devices = DeviceCache(_DEVICES_REMEMBERED_MAX)
        self._pending: list[tuple[Delivery, Message]] = []
        self._pending_readings = 0
        self._pending_since = 0.0
        self._held_octets = 0
        self._held_messages = 0
        self._session: int | None = None
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._translator = Translator(settings)
        self._guard = FloodGuard(
            messages_per_second=settings.device_messages_per_second_max,
            octets_per_second=settings.device_octets_per_second_max,
            window_seconds=settings.flood_window_seconds,
            backlog_seconds_max=settings.flood_backlog_seconds_max,
        )
        self._behind_since: float | None = None
        self._counted = 0
        """How many of those that no batch has taken yet were counted."""
        self._holder = FloodHolder(settings)
        alone = [usage_filter(settings.topic_root), formats_filter(settings.topic_root)]
        unwanted = sparkplug.topic_filters()
        if settings.ingest_sparkplug:
            alone, unwanted = alone + unwanted, []
        group = settings.ingest_shared_group
        self._broker = BrokerConnection(
            broker_of(None, settings),
            client_id=settings.ingest_client_id,
            version=settings.mqtt_version,
            topic_filters=alone
            if group is None
            else [shared_filter(group, each) for each in alone],
            # A session from before the group would hear everything a second time.
            dropped_filters=unwanted if group is None else [*alone, *unwanted],
            window=settings.ingest_window,
            received=self._received,
            lost=self._connection_lost,
        )
        self._acknowledger = Acknowledger(
            publish=self._broker.publish,
            topic_root=settings.topic_root,
            interval_seconds=settings.ingest_ack_interval_ms / 1000,
        )
        metrics.CONNECTED.set_function(lambda: float(self._broker.is_subscribed))
        metrics.IN_FLIGHT.set_function(lambda: float(self._held_messages))

    async def run(self) -> None:
        """Ingest until cancelled. What was not acknowledged by then, the broker keeps."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write_for_ever())
            tasks.create_task(self._acknowledger.run())
            tasks.create_task(self._holder.run())
            tasks.create_task(self._broker.run())
            tasks.create_task(drop_old_messages(self._settings))
            if self._settings.ingest_sparkplug:
                tasks.create_task(HostState(self._settings).run())

    def _received(self, delivery: Delivery) -> None:
        if delivery.properties or not delivery.topic.endswith(_NATIVE):
            message = admit_of_format(
                delivery.topic,
                delivery.payload,
                delivery.properties,
                received_at=clock.now(),
                settings=self._settings,
            )
        else:
            message = admit(
                delivery.topic, delivery.payload, received_at=clock.now(), settings=self._settings
            )
        if not self._pending:
            self._pending_since = monotonic()
        self._pending.append((delivery, message))
        self._pending_readings += max(1, len(message.readings))
        self._held_octets += message.octets
        self._held_messages += 1
        self._arrived.set()
        if len(self._pending) - self._counted >= _COUNTED_TOGETHER:
            self._count_arrived()
        if self._pending_readings >= self._settings.ingest_batch_readings_max:
            self._full.set()
        if not self._has_room():
            self._broker.pause()

    def _connection_lost(self) -> None:
        """Forget what no batch has taken yet: it comes again, and would else be held twice."""
        self._guard.interrupted(monotonic())
        self._held_octets -= sum(message.octets for _, message in self._pending)
        self._held_messages -= len(self._pending)
        self._pending.clear()
        self._pending_readings = self._counted = 0
        self._full.clear()
        self._resume_if_room()

    def _has_room(self) -> bool:
        """Whether more may be held; QoS 0 messages are in no window, so messages are counted too.

        What waits for the batch under way is at most twice what makes one due: no batch grows without
        bound while it lasts, however many readings a message has.
        """
        return (
            self._held_octets < self._settings.ingest_buffer_octets_max
            and self._pending_readings < 2 * self._settings.ingest_batch_readings_max
            and self._held_messages < 2 * self._settings.ingest_window
        )

    def _resume_if_room(self) -> None:
        if self._has_room():
            self._broker.resume()

    async def _write_for_ever(self) -> None:
        connection: Connection | None = None
        try:
            while True:
                batch = await self._next_batch()
                if not batch:
                    continue
                began = monotonic()
                messages = [message for _, message in batch]
                connection = await self._make_durable(connection, messages)
                self._note_behind(began)
                self._broker.acknowledge([delivery for delivery, _ in batch])
                self._held_messages -= len(batch)
                self._held_octets -= sum([message.octets for message in messages])
                if monotonic() - began > self._settings.flood_window_seconds:
                    self._guard.interrupted(began)  # the database was away, and all waited
                elif not self._pending:
                    self._guard.caught_up()
                self._resume_if_room()
        finally:
            if connection is not None:
                await connection.close()

    def _note_behind(self, began: float) -> None:
        """Tell the guard since when as much is held as may be, so that more waits at the broker."""
        most = _FULL * self._settings.ingest_window
        if self._held_messages < most and self._has_room():
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = began
        self._guard.behind(self._behind_since)

    async def _next_batch(self) -> list[tuple[Delivery, Message]]:
        """Wait until a batch is due by size or by the age of its first message, and take it.

        After a batch that took longer than that, the next one is due at once.
        """
        await self._arrived.wait()
        left = self._pending_since + self._settings.ingest_batch_age_ms / 1000 - monotonic()
        if left > 0:
            try:
                async with asyncio.timeout(left):
                    await self._full.wait()
            except TimeoutError:
                pass
        self._count_arrived()
        batch, self._pending = self._pending, []
        self._pending_readings = self._counted = 0
        self._resume_if_room()
        self._arrived.clear()
        self._full.clear()
        return batch

    def _count_arrived(self) -> None:
        """Count what devices sent that was not counted yet, and have those held that sent too much."""
        arrived = self._pending[self._counted :]
        self._counted = len(self._pending)
        sent = [(message.sender, message.octets) for _, message in arrived]
        self._holder.hold(self._guard.count(sent, at=monotonic()))

    async def _make_durable(
        self, connection: Connection | None, messages: Sequence[Message]
    ) -> Connection:
        """Write a batch, for as long as it takes; the connection that did it is returned.

        Whether an attempt whose connection broke had committed is not known; the readings of the
        next attempt are then recognised as duplicates. Its session is ended first: it may hold locks.
        """
        while True:
            try:
                if connection is None:
                    connection = await connect_patiently(
                        self._database_url, application="ingest", waiting=_away
                    )
                    await self._begin_session(connection)
                await self._write(
                    connection, await self._translator.translated(connection, messages)
                )
                self._ask_for_rebirths()
            except UNREACHABLE as error:
                _away(error)
                metrics.RETRIES.inc()
                if connection is not None:
                    await connection.close()
                connection = None
                await asyncio.sleep(0.1)
            else:
                return connection

    def _ask_for_rebirths(self) -> None:
        now = clock.now()
        for tenant, edge_node in self._translator.rebirths_due(now):
            topic = sparkplug.command_topic(tenant, edge_node)
            self._broker.publish(topic, sparkplug.rebirth_request(now))

    async def _begin_session(self, connection: Connection) -> None:
        expect_answers(connection, within_seconds=self._settings.database_answer_seconds_max)
        await end_session(connection, self._session)
        self._session = connection.info.backend_pid

    async def _write(self, connection: Connection, messages: Sequence[Message]) -> None:
        """Write a batch; one that the database refuses is narrowed to what it refuses of it."""
        started = perf_counter()
        try:
            outcome = await write_batch(connection, self._devices, messages, now=clock.now())
        except _REFUSALS as error:
            smaller = narrowed(messages, str(error))
            if smaller is None:
                log.exception("the database refuses a message on %s", messages[0].topic)
                await _keep_refused(connection, messages[0], str(error))
                return
            for part in smaller:
                await self._write(connection, part)
            return
        metrics.COMMIT_SECONDS.observe(perf_counter() - started)
        self._acknowledger.add(outcome.boots)
        self._acknowledger.add(_refused_messages(outcome, messages))
        _count(outcome, messages, clock.now())


def _refused_messages(outcome: BatchOutcome, messages: Sequence[Message]) -> list[BootArrivals]:
    """Return what to tell senders whose message was refused as a whole.

    So is every message of a device that is not registered: it may have nothing wrong but that.
    """
    if not outcome.rejections:
        return []
    answered = {(each.tenant_id, each.device_id, each.boot) for each in outcome.boots}
    return [
        BootArrivals(
            tenant_id=message.sender[0],
            device_id=message.sender[1],
            boot=message.boot or message.rejections[0].boot or "",
            arrived=SequenceSet(),
            rejections=message.rejections if message.boot is None else [unknown_device(message)],
        )
        for message in messages
        if message.sender is not None
        and (message.boot is not None or message.rejections)  # a birth has neither
        and (*message.sender, message.boot) not in answered
    ]


async def _keep_refused(connection: Connection, message: Message, problem: str) -> None:
    refused = RejectedInput(
        topic=message.topic.replace("\x00", ""),
        tenant_no=None,
        device_no=None,
        received_at=message.received_at,
        rejection=refused_by_storage(message, problem),
    )
    async with connection.transaction():
        batch_no, _ = await begin_batch(connection)
        await store_rejections(connection, [refused], batch_no=batch_no)


def _count(outcome: BatchOutcome, messages: Sequence[Message], committed_at: datetime) -> None:
    metrics.BATCHES.inc()
    metrics.MESSAGES.inc(len(messages))
    metrics.READINGS.labels("stored").inc(outcome.stored)
    metrics.READINGS.labels("duplicate").inc(outcome.duplicates)
    metrics.READINGS.labels("rejected").inc(len(outcome.rejections))
    for rejection in outcome.rejections:
        metrics.REJECTIONS.labels(rejection.reason.value).inc()
    metrics.PUBLISH_TO_DURABLE_SECONDS.observe_all(
        [
            max(0.0, (committed_at - at).total_seconds())
            for message in messages
            if (at := message.published_at) is not None
        ]
    )


def _away(error: Exception) -> None:
    log.warning("the database is away: %s", reason_of(error))
