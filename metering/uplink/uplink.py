"""One device's MQTT session: publishes what the schedule says, hears what the platform holds.

Commands are handed to whoever obeys them, each once, and answered.
"""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from random import Random

import aiomqtt

from metering.broker_address import BrokerAddress
from metering.errors import InvalidValue
from metering.settings import Settings
from metering.uplink.backoff import reconnect_seconds
from metering.uplink.dialogue import Dialogue, Traffic
from metering.uplink.outbox import Outbox
from metering.uplink.schedule import Pace
from metering.uplink.waiting import happens_within
from metering.wire import native
from metering.wire.command import Command
from metering.wire.topics import ack_topic, command_ack_topic, command_topic, usage_topic

KEEPALIVE_SECONDS = 20
BROKER_SECONDS_MAX = 10.0
"""A broker that does not answer for so long is taken for gone."""

Obey = Callable[[Command], str | Awaitable[str | None] | None]
"""Does what a command says; returns None, or why it was refused. One command at a time."""

_log = logging.getLogger(__name__)


def refuse_all(command: Command) -> str | None:
    """Refuse a command: this device obeys none."""
    return f"this device does not know {command.kind.value}"


class Uplink:
    """Publishes an outbox's readings until the platform acknowledges them.

    Works from `run()` in one task; put readings into the outbox, then call `wake()`.
    """

    def __init__(
        self,
        *,
        broker: BrokerAddress,
        settings: Settings,
        tenant: str,
        device: str,
        outbox: Outbox,
        clock: Callable[[], datetime],
        random: Random,
        pace: Pace | None = None,
        steady: Callable[[], float] = time.monotonic,
        obey: Obey = refuse_all,
    ) -> None:
        self.client_id = f"{tenant}/{device}"
        self.outbox = outbox
        self.pace = Pace() if pace is None else pace
        self.traffic = Traffic()
        self._dialogue = Dialogue(self.client_id, outbox, self.pace, self.traffic)
        self._broker = broker
        self._tls_context = broker.tls_context()
        self._protocol = (
            aiomqtt.ProtocolVersion.V5
            if settings.mqtt_version == "5"
            else aiomqtt.ProtocolVersion.V311
        )
        self._usage_topic = usage_topic(settings.topic_root, tenant, device)
        self._ack_topic = ack_topic(settings.topic_root, tenant, device)
        self._command_topic = command_topic(settings.topic_root, tenant, device)
        self._command_ack_topic = command_ack_topic(settings.topic_root, tenant, device)
        self._clock = clock
        self._random = random
        self._steady = steady
        self._obey = obey
        self._obeying: set[asyncio.Future[bytes | None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._wakened = asyncio.Event()
        self._settled = asyncio.Event()
        self._failures = 0

    async def run(self) -> None:
        """Connect, publish and listen until cancelled; connect again whenever the broker goes."""
        while True:
            try:
                await self._session()
            except* (aiomqtt.MqttError, OSError) as gone:
                _log.info("%s: broker is gone: %s", self.client_id, _reasons(gone))
            await asyncio.sleep(reconnect_seconds(self._failures, self._random))
            self._failures += 1

    def wake(self) -> None:
        """Look into the outbox again: something was put in."""
        self._wakened.set()

    async def drain(self, timeout_seconds: float) -> bool:
        """Wait until nothing is pending; False when something still is after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while len(self.outbox):
                    self._settled.clear()
                    await self._settled.wait()
        return len(self.outbox) == 0

    async def _session(self) -> None:
        """Be connected until the broker goes."""
        async with self._client() as client, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(client, tasks))
            await client.subscribe([(self._ack_topic, 0), (self._command_topic, 1)])
            self._failures = 0
            self.traffic.connections += 1
            self._dialogue.schedule.start_over()
            await self._publish_due(client, tasks)

    def _client(self) -> aiomqtt.Client:
        # A clean session: the platform's acknowledgements count, not the broker's memory.
        is_v5 = self._protocol is aiomqtt.ProtocolVersion.V5
        client = aiomqtt.Client(
            self._broker.host,
            self._broker.port,
            identifier=self.client_id,
            username=self._broker.username,
            password=self._broker.password,
            tls_context=self._tls_context,
            protocol=self._protocol,
            clean_session=None if is_v5 else True,
            keepalive=KEEPALIVE_SECONDS,
            timeout=BROKER_SECONDS_MAX,
            max_inflight_messages=self.pace.window_messages,
        )
        client.pending_calls_threshold = self.pace.window_messages
        return client

    async def _listen(self, client: aiomqtt.Client, tasks: asyncio.TaskGroup) -> None:
        async for message in client.messages:
            if message.topic.value != self._command_topic:
                self._hear(message.payload)
                continue
            # Not here: obeying takes its time, and the PUBACK of the answer is read in this loop.
            tasks.create_task(self._answer(client, message.payload))

    async def _answer(self, client: aiomqtt.Client, payload: object) -> None:
        # What was begun is brought to its end, though obeying may cut this very connection.
        obeying = asyncio.ensure_future(self._answer_to(payload))
        self._obeying.add(obeying)
        obeying.add_done_callback(self._obeying.discard)
        answer = await asyncio.shield(obeying)
        if answer is not None:
            await client.publish(self._command_ack_topic, answer, qos=1)

    async def _answer_to(self, payload: object) -> bytes | None:
        """Obey a command and return the answer; one that came before is only answered again."""
        command = self._dialogue.read_command(payload if isinstance(payload, bytes) else b"")
        if not isinstance(command, Command):
            return command
        async with self._one_at_a_time:
            return await self._obeyed(command)

    async def _obeyed(self, command: Command) -> bytes:
        known = self._dialogue.known_answer(command)
        if known is not None:
            return known
        try:
            done = self._obey(command)
            refused = await done if inspect.isawaitable(done) else done
        except InvalidValue as error:
            refused = str(error)
        return self._dialogue.answer(command, refused)

    def _hear(self, payload: object) -> None:
        ack = self._dialogue.read_ack(payload if isinstance(payload, bytes) else b"")
        if ack is not None:
            self._dialogue.hear(ack, self._steady())
            self._settled.set()
            self._wakened.set()

    async def _publish_due(self, client: aiomqtt.Client, tasks: asyncio.TaskGroup) -> None:
        """Publish whatever is due, at most `window_messages` at once, for ever."""
        slots = asyncio.Semaphore(self.pace.window_messages)
        while True:
            self._wakened.clear()
            while (batch := self._dialogue.next_batch(self._steady())) is not None:
                await slots.acquire()
                # Encoded only now: `sent` is when a message goes, however long it waited for its turn.
                payload = native.encode(batch.boot, self._clock(), batch.readings)
                tasks.create_task(self._publish(client, payload, slots))
            await self._wait_until_due()

    async def _publish(
        self, client: aiomqtt.Client, payload: bytes, slots: asyncio.Semaphore
    ) -> None:
        try:
            await client.publish(self._usage_topic, payload, qos=1)
            self.traffic.messages += 1
        finally:
            slots.release()

    async def _wait_until_due(self) -> None:
        due = self._dialogue.schedule.next_due()
        wait = None if due is None else max(0.0, due - self._steady())
        await happens_within(self._wakened, wait)


def _reasons(group: BaseExceptionGroup[BaseException]) -> str:
    return "; ".join(str(error) or type(error).__name__ for error in _leaves(group))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
