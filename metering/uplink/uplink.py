"""One device's MQTT session: publishes what the schedule says, hears what the platform holds.

Commands are handed to whoever obeys them, each once, and answered.
"""

import asyncio
import contextlib
import inspect
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from random import Random

import aiomqtt
from pydantic import ValidationError

from metering.broker_address import BrokerAddress
from metering.errors import InvalidValue
from metering.settings import Settings
from metering.uplink.backoff import reconnect_seconds
from metering.uplink.outbox import Outbox
from metering.uplink.schedule import Batch, Pace, Schedule
from metering.uplink.waiting import happens_within
from metering.usage import Reading
from metering.wire import native
from metering.wire.ack import decode as decode_ack
from metering.wire.command import Command, command_id_of, decode_command, encode_ack
from metering.wire.topics import ack_topic, command_ack_topic, command_topic, usage_topic

KEEPALIVE_SECONDS = 20
BROKER_SECONDS_MAX = 10.0
"""A broker that does not answer for so long is taken for gone."""

Disturbance = Callable[[Batch], Iterable[Batch]]
"""Takes what is about to be published as a message and returns what to publish in its place."""

Encode = Callable[[str, datetime, list[Reading]], bytes]
"""Writes a message: its boot, when it is sent, and its readings."""

Obey = Callable[[Command], str | Awaitable[str | None] | None]
"""Does what a command says; returns None, or why it was refused. One command at a time."""

_COMMANDS_REMEMBERED_MAX = 1000
_log = logging.getLogger(__name__)


def undisturbed(batch: Batch) -> Iterable[Batch]:
    """Publish each message once, in its turn."""
    return (batch,)


def refuse_all(command: Command) -> str | None:
    """Refuse a command: this device obeys none."""
    return f"this device does not know {command.kind.value}"


@dataclass(slots=True)
class Traffic:
    """What an uplink did so far.

    `readings` counts those published for the first time by this process, `resent` each further
    time; `acknowledged` those that are durable, `rejected` those refused for good, and `refusals`
    the refusals of whole messages, whose readings stay pending; both by reason. `obeyed` and
    `disobeyed` count commands by kind, each command once however often it came.
    """

    messages: int = 0
    readings: int = 0
    resent: int = 0
    acknowledged: int = 0
    connections: int = 0
    bad_acks: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    obeyed: Counter[str] = field(default_factory=Counter)
    disobeyed: Counter[str] = field(default_factory=Counter)
    repeated_commands: int = 0
    bad_commands: int = 0


class Uplink:
    """Publishes an outbox's readings until the platform acknowledges them.

    Works from `run()` in one task; put readings into the outbox, then call `wake()`. `encode` writes
    the native document in whatever format the level of the topic after `usage` names.
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
        disturb: Disturbance = undisturbed,
        obey: Obey = refuse_all,
        encode: Encode = native.encode,
        topic_level: str = "",
    ) -> None:
        self.client_id = f"{tenant}/{device}"
        self.outbox = outbox
        self.pace = Pace() if pace is None else pace
        self.traffic = Traffic()
        self._broker = broker
        self._tls_context = broker.tls_context()
        self._protocol = (
            aiomqtt.ProtocolVersion.V5
            if settings.mqtt_version == "5"
            else aiomqtt.ProtocolVersion.V311
        )
        self._usage_topic = usage_topic(settings.topic_root, tenant, device) + topic_level
        self._encode = encode
        self._ack_topic = ack_topic(settings.topic_root, tenant, device)
        self._command_topic = command_topic(settings.topic_root, tenant, device)
        self._command_ack_topic = command_ack_topic(settings.topic_root, tenant, device)
        self._clock = clock
        self._random = random
        self._steady = steady
        self._disturb = disturb
        self._obey = obey
        self._answers: dict[str, bytes] = {}
        self._obeying: set[asyncio.Future[bytes | None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._schedule = Schedule(outbox, self.pace)
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
            self._schedule.start_over()
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
        octets = payload if isinstance(payload, bytes) else b""
        try:
            command = decode_command(octets)
        except ValidationError as error:
            self.traffic.bad_commands += 1
            _log.warning("%s: not a command: %s", self.client_id, error)
            command_id = command_id_of(octets)
            refusal = "this device cannot read the command"
            return None if command_id is None else encode_ack(command_id, "refused", refusal)
        async with self._one_at_a_time:
            return await self._obeyed(command)

    async def _obeyed(self, command: Command) -> bytes:
        if command.id in self._answers:
            self.traffic.repeated_commands += 1
            return self._answers[command.id]
        try:
            done = self._obey(command)
            refused = await done if inspect.isawaitable(done) else done
        except InvalidValue as error:
            refused = str(error)
        counted = self.traffic.obeyed if refused is None else self.traffic.disobeyed
        counted[command.kind.value] += 1
        answer = encode_ack(command.id, "done" if refused is None else "refused", refused)
        self._answers[command.id] = answer
        if len(self._answers) > _COMMANDS_REMEMBERED_MAX:
            del self._answers[next(iter(self._answers))]
        return answer

    def _hear(self, payload: object) -> None:
        """Take one acknowledgement; one that cannot be read is counted and changes nothing."""
        try:
            ack = decode_ack(payload if isinstance(payload, bytes) else b"")
        except ValidationError as error:
            self.traffic.bad_acks += 1
            _log.warning("%s: not an acknowledgement: %s", self.client_id, error)
            return
        settled = self._schedule.acknowledge(ack, self._steady())
        for refusal in settled.rejected:
            self.traffic.rejected[refusal.reason] += 1
            _log.warning(
                "%s: reading %s of boot %s was rejected: %s: %s",
                *(self.client_id, refusal.seq, ack.boot, refusal.reason, refusal.detail),
            )
        for refusal in ack.rejected:
            if refusal.seq is None:
                self._count_refusal(refusal.reason, refusal.detail)
        self.traffic.acknowledged += len(settled.positions) - len(settled.rejected)
        self._settled.set()
        self._wakened.set()

    def _count_refusal(self, reason: str, detail: str) -> None:
        if reason not in self.traffic.refusals:
            _log.warning("%s: a message was refused: %s: %s", self.client_id, reason, detail)
        self.traffic.refusals[reason] += 1

    async def _publish_due(self, client: aiomqtt.Client, tasks: asyncio.TaskGroup) -> None:
        """Publish whatever is due, at most `window_messages` at once, for ever."""
        slots = asyncio.Semaphore(self.pace.window_messages)
        while True:
            self._wakened.clear()
            while (batch := self._next_batch()) is not None:
                for disturbed in self._disturb(batch):
                    await slots.acquire()
                    # Encoded only now: `sent` is when a message goes, however long it was held.
                    payload = self._encode(disturbed.boot, self._clock(), disturbed.readings)
                    tasks.create_task(self._publish(client, payload, slots))
            await self._wait_until_due()

    def _next_batch(self) -> Batch | None:
        batch = self._schedule.next_batch(self._steady())
        if batch is None:
            return None
        if batch.resent:
            self.traffic.resent += len(batch.readings)
        else:
            self.traffic.readings += len(batch.readings)
        return batch

    async def _publish(
        self, client: aiomqtt.Client, payload: bytes, slots: asyncio.Semaphore
    ) -> None:
        try:
            await client.publish(self._usage_topic, payload, qos=1)
            self.traffic.messages += 1
        finally:
            slots.release()

    async def _wait_until_due(self) -> None:
        due = self._schedule.next_due()
        wait = None if due is None else max(0.0, due - self._steady())
        await happens_within(self._wakened, wait)


def _reasons(group: BaseExceptionGroup[BaseException]) -> str:
    return "; ".join(str(error) or type(error).__name__ for error in _leaves(group))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
