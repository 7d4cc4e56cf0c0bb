"""Publishing a scenario's messages over MQTT, until the platform has acknowledged each end to end.

One connection carries the messages of all devices, in their order, as the platform's own processes
connect; or each device has one of its own, with its credential, and its messages keep their order on it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import ValidationError

from device_sim.scenario.generate import Published
from metering.broker_address import BrokerAddress
from metering.broker_administration import connected, end_if_cancelled
from metering.settings import Settings
from metering.uplink.waiting import happens_within
from metering.wire.ack import Ack
from metering.wire.ack import decode as decode_ack
from metering.wire.topics import ack_topic

WINDOW_MESSAGES = 500
"""Messages that the broker has not acknowledged."""
RESENT_AFTER_SECONDS = 10.0
"""What the platform has not acknowledged so long after anything was is published again."""
PROGRESS_SECONDS = 5.0

Say = Callable[[str], None]
_Boot = tuple[str, str]
"""(device, boot)"""


@dataclass(slots=True)
class Unacknowledged:
    """Readings that the platform has to say something of: that they are durable, or refused."""

    seqs: dict[_Boot, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, messages: Sequence[Published]) -> "Unacknowledged":
        """Return all readings of some messages."""
        waiting = cls()
        for message in messages:
            if message.boot is not None:
                waiting.seqs.setdefault((message.device, message.boot), set()).update(message.seqs)
        return waiting

    def __len__(self) -> int:
        return sum(map(len, self.seqs.values()))

    def hear(self, device: str, ack: Ack) -> bool:
        """Take an acknowledgement; return whether it told anything new."""
        waiting = self.seqs.get((device, ack.boot))
        if waiting is None:
            return False
        refused = {each.seq for each in ack.rejected} & waiting
        settled = {seq for seq in waiting if ack.holds(seq)} | refused
        waiting -= settled
        if not waiting:
            del self.seqs[device, ack.boot]
        return bool(settled)

    def holds(self, message: Published) -> bool:
        """Whether something of a message is not acknowledged yet."""
        if message.boot is None:
            return False
        return not self.seqs.get((message.device, message.boot), set()).isdisjoint(message.seqs)


class Pace:
    """Keeps a device below what the platform takes for a flood: half at once, the other half in time."""

    def __init__(self, settings: Settings) -> None:
        self._rate = settings.device_messages_per_second_max / 2
        self._burst = self._rate * settings.flood_window_seconds
        self._due: dict[str, float] = {}

    def wait_seconds(self, device: str, now: float) -> float:
        """Return for how long a device's next message has to wait; it is counted."""
        due = max(self._due.get(device, 0.0), now - self._burst / self._rate)
        self._due[device] = due + 1 / self._rate
        return max(0.0, due - now)


class Publisher:
    """Publishes messages once, then again what stays without an answer.

    `brokers` says where each device connects, and with what; None: all by one connection to `broker`. With
    `factor`, a scenario's time passes so many times as fast as the clock's; without, all messages go at once,
    in their order.
    """

    def __init__(
        self,
        *,
        broker: BrokerAddress,
        brokers: Callable[[str], BrokerAddress] | None,
        settings: Settings,
        tenant: str,
        factor: float | None,
        say: Say,
    ) -> None:
        self._broker = broker
        self._brokers = brokers
        self._settings = settings
        self._tenant = tenant
        self._factor = factor
        self._say = say
        self._heard = asyncio.Event()
        self._sent = 0
        self._pace = Pace(settings)
        self._clients: dict[str, aiomqtt.Client] = {}

    async def publish(self, messages: Sequence[Published], *, seconds_max: float) -> Unacknowledged:
        """Publish all; return what is not acknowledged `seconds_max` after the last was sent.

        Raises `aiomqtt.MqttError` when the broker goes.
        """
        waiting = Unacknowledged.of(messages)
        tasks: list[asyncio.Task[None]] = []
        async with AsyncExitStack() as stack:
            try:
                await self._connect(stack, messages, waiting, tasks)
                tasks.append(asyncio.create_task(self._tell(len(messages), waiting)))
                await self._send(messages, paced=True)
                await self._settle(messages, waiting, seconds_max)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return waiting

    async def _connect(
        self,
        stack: AsyncExitStack,
        messages: Sequence[Published],
        waiting: Unacknowledged,
        listening: list[asyncio.Task[None]],
    ) -> None:
        """Connect all devices; add what listens to their acknowledgements."""
        devices = list(dict.fromkeys(each.device for each in messages))
        for device in devices if self._brokers is not None else ["+"]:
            client = await stack.enter_async_context(connected(self._client(device)))
            self._clients[device] = client
            await client.subscribe(
                ack_topic(self._settings.topic_root, self._tenant, device), qos=1
            )
            end_if_cancelled()
            listening.append(asyncio.create_task(self._listen(client, waiting)))
        if self._brokers is None:
            self._clients = dict.fromkeys(devices, self._clients["+"])

    async def _settle(
        self, messages: Sequence[Published], waiting: Unacknowledged, seconds_max: float
    ) -> None:
        deadline = time.monotonic() + seconds_max
        while waiting.seqs and time.monotonic() < deadline:
            self._heard.clear()
            wait = min(RESENT_AFTER_SECONDS, deadline - time.monotonic())
            if not await happens_within(self._heard, wait):
                await self._send([each for each in messages if waiting.holds(each)], paced=False)

    async def _send(self, messages: Sequence[Published], *, paced: bool) -> None:
        """Publish messages in their order, and wait until the broker has them all."""
        slots = asyncio.Semaphore(WINDOW_MESSAGES)
        started = time.monotonic()
        async with asyncio.TaskGroup() as sending:
            for message in messages:
                if paced:
                    await self._wait_for(message.at, messages[0].at, started)
                await asyncio.sleep(self._pace.wait_seconds(message.device, time.monotonic()))
                await slots.acquire()
                sending.create_task(self._send_one(message, slots))

    async def _wait_for(self, at: datetime, first: datetime, started: float) -> None:
        if self._factor is None:
            return
        due = started + (at - first).total_seconds() / self._factor
        if (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    async def _send_one(self, message: Published, slots: asyncio.Semaphore) -> None:
        try:
            topic = message.topic
            if message.below_root:
                topic = f"{self._settings.topic_root}/{topic}"
            await self._clients[message.device].publish(
                topic, message.payload, qos=1, properties=_properties(message)
            )
            self._sent += 1
        finally:
            slots.release()

    async def _listen(self, client: aiomqtt.Client, waiting: Unacknowledged) -> None:
        async for message in client.messages:
            try:
                ack = decode_ack(message.payload)
            except ValidationError:
                continue  # nobody's but the platform's own: what it was to say stays waited for
            if waiting.hear(message.topic.value.split("/")[-2], ack):
                self._heard.set()

    async def _tell(self, messages: int, waiting: Unacknowledged) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            self._say(
                f"published {self._sent} of {messages} messages, {len(waiting)} readings wait"
            )

    def _client(self, device: str) -> aiomqtt.Client:
        is_v5 = self._settings.mqtt_version == "5"
        broker = self._broker if self._brokers is None else self._brokers(device)
        client = aiomqtt.Client(
            broker.host,
            broker.port,
            identifier=f"scenario-{self._tenant}"
            if self._brokers is None
            else f"{self._tenant}/{device}",
            username=broker.username,
            password=broker.password,
            tls_context=broker.tls_context(),
            protocol=aiomqtt.ProtocolVersion.V5 if is_v5 else aiomqtt.ProtocolVersion.V311,
            clean_session=None if is_v5 else True,
            timeout=30,
            max_inflight_messages=WINDOW_MESSAGES,
        )
        client.pending_calls_threshold = WINDOW_MESSAGES
        return client


def _properties(message: Published) -> Properties | None:
    """Return what MQTT 5 tells beside a message."""
    if message.properties is None:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if message.properties.content_type is not None:
        properties.ContentType = message.properties.content_type
    if message.properties.user:
        properties.UserProperty = list(message.properties.user)
    return properties
