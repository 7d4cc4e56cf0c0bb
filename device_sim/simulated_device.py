"""One simulated device at work: what it measures goes to its outbox, and from there to the platform."""

import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from random import Random
from typing import assert_never

from device_sim.connection import KEEP_ALIVE_SECONDS, Connection
from device_sim.device import Device, moments
from device_sim.faults import Faults
from device_sim.formats import FORMATS, Outgoing, Sender
from device_sim.mischief import Mischief, Misdeed, Verdicts
from device_sim.scene import Scenario
from metering.broker_address import BrokerAddress
from metering.errors import InvalidValue
from metering.settings import Settings
from metering.uplink.backoff import reconnect_seconds
from metering.uplink.dialogue import Dialogue, Traffic
from metering.uplink.ledger import LedgerFile
from metering.uplink.outbox import MemoryOutbox
from metering.uplink.schedule import Batch, Pace
from metering.wire.command import Command, CommandKind
from metering.wire.ledger import line_of
from metering.wire.mqtt import FAILURE
from metering.wire.sample import EPOCH
from metering.wire.topics import ack_topic, command_ack_topic, command_topic

NEVER = float("inf")
_ANSWER_SECONDS_MAX = 30.0
"""A broker that does not answer a subscription for so long is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all devices of a simulation share. Instants of `steady` are seconds of one clock.

    `connect` lets a device in when its turn comes; `arrange` is told when a device has something to do.
    """

    scenario: Scenario
    settings: Settings
    ledger: LedgerFile
    clock: Callable[[], datetime]
    steady: Callable[[], float]
    random: Random
    pace: Pace
    connect: Callable[["SimulatedDevice"], None]
    arrange: Callable[["SimulatedDevice"], None]
    traffic: Traffic = field(default_factory=Traffic)
    faults: Counter[str] = field(default_factory=Counter)
    verdicts: Verdicts = field(default_factory=Verdicts)


class _State(Enum):
    AWAY = auto()
    CONNECTING = auto()
    SUBSCRIBING = auto()
    CONNECTED = auto()


class SimulatedDevice:
    """A device with its outbox and its connection. Its owner calls `step` whenever `due` has come."""

    __slots__ = (
        "_around", "_balance_told_by", "_connect_due", "_connection", "_device", "_dialogue", "_failures",
        "_faults", "_is_held_up", "_measure_due", "_measured_until", "_mischief", "_ping_due", "_state",
        "_writer", "arranged_for", "balance", "outbox",
    )  # fmt: skip

    def __init__(
        self,
        around: Surroundings,
        device: str,
        *,
        other: str,
        iccid: str | None,
        broker: BrokerAddress,
        started: datetime,
    ) -> None:
        scenario, settings = around.scenario, around.settings
        self._around = around
        self._measured_until = started
        self._device = Device(
            seed=scenario.seed, device=device, started=started, habits=scenario.habits
        )
        self._writer = FORMATS[scenario.payload_format].writer(
            Sender(settings.topic_root, scenario.tenant, device, iccid)
        )
        self.outbox = MemoryOutbox(scenario.outbox_readings)
        self._dialogue = Dialogue(
            f"{scenario.tenant}/{device}", self.outbox, around.pace, around.traffic
        )
        self._faults: Faults[Batch] = Faults(
            around.random,
            duplicates=scenario.duplicates,
            reorder=scenario.reorder,
            drops=scenario.drops,
            counts=around.faults,
        )
        self._mischief = (
            Mischief(
                tenant=scenario.tenant,
                device=device,
                other=other,
                settings=settings,
                rates=scenario.misdeeds,
                random=around.random,
                started=started,
                verdicts=around.verdicts,
                resend_seconds=2 * scenario.resend_seconds,
            )
            if scenario.misdeeds.any
            else None
        )
        self._connection = Connection(
            broker,
            mqtt5=settings.mqtt_version == "5",
            heard=self._heard,
            began=self._began,
            room=self._use_room,
            lost=self._lost,
        )
        self._state = _State.AWAY
        self._failures = 0
        self._is_held_up = False
        now = around.steady()
        self._connect_due = now
        self._measure_due = now + around.random.uniform(0, scenario.interval_seconds)
        self._ping_due = NEVER
        self.arranged_for = NEVER
        self.balance: dict[str, object] = {}
        self._balance_told_by = 0

    @property
    def name(self) -> str:
        """The device's id."""
        return self._device.device

    @property
    def is_connected(self) -> bool:
        """Whether the device hears what it is told."""
        return self._state is _State.CONNECTED

    @property
    def is_settled(self) -> bool:
        """Whether nothing is pending, neither what is true nor what is bad."""
        return not len(self.outbox) and not self.bad_pending

    @property
    def bad_pending(self) -> bool:
        """Whether a bad message was not refused yet."""
        return self._mischief is not None and self._mischief.is_pending

    def oldest(self) -> datetime | None:
        """Return when the oldest reading was measured that is pending."""
        first = self.outbox.pending(1)
        return first[0].reading.at if first else None

    def due(self) -> float:
        """Return when this device next has something to do by itself."""
        due = self._measure_due
        if self._state is _State.AWAY:
            return min(due, self._connect_due)
        if self._state is _State.SUBSCRIBING:
            due = min(due, self._ping_due)
        if self._state is _State.CONNECTED:
            due = min(due, self._ping_due)
            if not self._is_held_up:
                due = min(due, self._dialogue.schedule.next_due() or NEVER)
            if self._mischief is not None:
                due = min(due, self._mischief.next_due() or NEVER)
        return due

    def step(self, now: float) -> None:
        """Do what is due."""
        if self._measure_due <= now:
            self._measure(now)
        if self._state is _State.AWAY and self._connect_due <= now:
            self._state = _State.CONNECTING
            self._around.connect(self)
        if self._ping_due <= now and self._state is _State.SUBSCRIBING:
            self._connection.close()
            self._be_away()
        elif self._ping_due <= now:
            self._ping_due = now + KEEP_ALIVE_SECONDS / 2
            self._connection.keep_alive()
        self._publish()

    def measure_no_more(self, now: float) -> None:
        """Only deliver what is pending from now on; who is away comes back."""
        self._measure_due = NEVER
        self._connect_due = min(self._connect_due, now)

    async def connect(self, tls_context: ssl.SSLContext | None) -> str | None:
        """Connect now; return why it did not come to that. Tried again after a while."""
        around, device = self._around, self._device.device
        root, tenant = around.settings.topic_root, around.scenario.tenant
        topics = [ack_topic(root, tenant, device), command_topic(root, tenant, device)]
        if self._writer.command_topic is not None:
            topics.append(self._writer.command_topic)
        problem = await self._connection.open(
            client_id=f"{tenant}/{device}",
            topics=topics,
            will=self._writer.will(around.clock()),
            tls_context=tls_context,
        )
        if problem is not None:
            self._be_away()
        else:
            self._state = _State.SUBSCRIBING
            self._ping_due = around.steady() + _ANSWER_SECONDS_MAX
            around.arrange(self)
        return problem

    def close(self) -> None:
        """Leave the broker for good."""
        self._measure_due = NEVER
        self._connection.close()

    @property
    def is_closed(self) -> bool:
        """Whether the device has left the broker."""
        return self._connection.is_closed

    def abort(self) -> None:
        """Leave the broker at once."""
        self._connection.abort()

    def _measure(self, now: float) -> None:
        """Measure, note what was truly used, and then only have it published."""
        around, scenario = self._around, self._around.scenario
        self._measure_due = now + scenario.interval_seconds * around.random.uniform(0.8, 1.2)
        count = scenario.readings_per_message
        if not self.outbox.has_room(count):
            return
        instants = self._instants(around.clock(), count)
        if not instants:
            return
        self._measured_until = instants[-1]
        boot, measured = self._device.measure(instants)
        known = [(self._writer.identified(boot, one), one.used) for one in measured]
        told = [(*one, used) for one, used in known if one is not None]
        around.ledger.write(
            line_of(scenario.tenant, self._device.device, boot_id, reading, used)
            for boot_id, reading, used in told
        )
        for boot_id, reading, _ in told:
            self.outbox.put(boot_id, [reading])
        if self.is_connected and around.random.random() < scenario.offline:
            self._go_offline(now)

    def _instants(self, until: datetime, count: int) -> list[datetime]:
        found = moments(self._around.random, self._measured_until, until, count)
        precision = self._writer.precision
        if precision > timedelta(microseconds=1):
            found = sorted({at - (at - EPOCH) % precision for at in found})
            found = [at for at in found if at > self._measured_until]
        return found

    def _go_offline(self, now: float) -> None:
        around = self._around
        around.faults["offline"] += 1
        self._connection.close()
        self._be_away()
        self._connect_due = now + around.scenario.offline_seconds * around.random.uniform(0.5, 1)

    def _be_away(self) -> None:
        around = self._around
        self._state = _State.AWAY
        self._ping_due = NEVER
        self._connect_due = around.steady() + reconnect_seconds(self._failures, around.random)
        self._failures += 1
        around.arrange(self)

    def _lost(self) -> None:
        if self._state in {_State.SUBSCRIBING, _State.CONNECTED}:
            self._be_away()

    def _began(self) -> None:
        around = self._around
        self._state = _State.CONNECTED
        self._failures = 0
        self._ping_due = around.steady() + KEEP_ALIVE_SECONDS * around.random.uniform(0.25, 0.5)
        around.traffic.connections += 1
        self._dialogue.schedule.start_over()
        self._greet()
        self._publish()

    def _greet(self) -> None:
        for message in self._writer.greeting(self._around.clock()):
            self._connection.publish(message)

    def _use_room(self) -> None:
        """Publish what the broker had no room for."""
        if self._is_held_up:
            self._publish()

    def _publish(self) -> None:
        """Publish whatever is due, as much as the broker takes."""
        around, connection = self._around, self._connection
        if not connection.is_ready:
            return
        window = around.pace.window_messages
        self._is_held_up = False
        while len(self.outbox):
            if not connection.has_room(window):
                self._is_held_up = True
                break
            batch = self._dialogue.next_batch(around.steady())
            if batch is None:
                break
            for disturbed in self._faults.disturb(batch):
                self._send(disturbed)
        if self._mischief is not None:
            for kind, message in self._mischief.due(around.steady()):
                connection.publish(message, _told(self._mischief, kind))
        around.arrange(self)

    def _send(self, batch: Batch) -> None:
        # Written only now: `sent` is when a message goes, however long it was held.
        now = self._around.clock()
        message = self._writer.write(batch.boot, now, batch.readings)
        self._connection.publish(message, self._confirmed)
        if self._mischief is not None:
            self._mischief.tempt(message, now, self._around.steady())

    def _confirmed(self, reason: int) -> None:
        if reason < FAILURE:
            self._around.traffic.messages += 1

    def _heard(self, topic: str, payload: bytes) -> None:
        if topic.endswith("/ack"):
            self._hear_ack(payload)
        elif topic == self._writer.command_topic:
            if self._writer.is_greeting_asked(payload):
                self._around.faults["rebirths"] += 1
                self._greet()
        else:
            self._hear_command(payload)

    def _hear_ack(self, payload: bytes) -> None:
        ack = self._dialogue.read_ack(payload)
        if ack is not None and self._mischief is not None:
            ack = self._mischief.without_expected(ack)
        if ack is not None:
            self._dialogue.hear(self._writer.decided(ack), self._around.steady())
            if len(self.outbox):
                self._publish()

    def _hear_command(self, payload: bytes) -> None:
        answer = self._dialogue.read_command(payload)
        if isinstance(answer, Command):
            command = answer
            answer = self._dialogue.known_answer(command)
            if answer is None:
                try:
                    refused = self._obey(command)
                except InvalidValue as error:
                    refused = str(error)
                answer = self._dialogue.answer(command, refused)
        if answer is not None:
            settings, tenant = self._around.settings, self._around.scenario.tenant
            topic = command_ack_topic(settings.topic_root, tenant, self._device.device)
            self._connection.publish(Outgoing(topic, answer))

    def _obey(self, command: Command) -> str | None:
        """Do what a command says; return why not if it does not."""
        match command.kind:
            case CommandKind.THROTTLE | CommandKind.SUSPEND | CommandKind.RESUME:
                limits = self._device.limits.after(command)
                self._device.obey(limits, self._around.clock())
            case CommandKind.BALANCE:
                if command.number > self._balance_told_by:
                    self._balance_told_by, self.balance = command.number, command.payload
            case CommandKind.GRANT:
                return "this device asked for no grant"
            case CommandKind.HOLD:
                pass  # while nothing is acknowledged, hardly anything is sent
            case _:
                assert_never(command.kind)
        return None


def _told(mischief: Mischief, kind: Misdeed) -> Callable[[int], None]:
    return lambda reason: mischief.confirmed(kind, reason)
