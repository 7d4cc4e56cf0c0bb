"""A fleet of simulated devices on one event loop: measure, write the ledger, publish, drain."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import assert_never

from device_sim.device import Device, Habits, moments
from device_sim.faults import Faults
from device_sim.formats import FORMATS
from metering.broker_address import BrokerAddress
from metering.settings import Settings
from metering.uplink.ledger import LedgerFile
from metering.uplink.outbox import MemoryOutbox
from metering.uplink.schedule import Batch, Pace
from metering.uplink.uplink import Uplink
from metering.uplink.waiting import happens_within
from metering.wire.command import Command, CommandKind
from metering.wire.ledger import line_of

PROGRESS_SECONDS = 5.0

Clock = Callable[[], datetime]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is simulated. Durations in seconds; `for_seconds` 0: until it is stopped."""

    tenant: str
    devices: Sequence[str]
    seed: int
    for_seconds: float = 0.0
    interval_seconds: float = 1.0
    readings_per_message: int = 5
    habits: Habits = field(default_factory=Habits)
    duplicates: float = 0.0
    reorder: float = 0.0
    drain_seconds: float = 60.0
    payload_format: str = "json"
    """A name of `FORMATS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What all devices together have done so far."""

    messages: int
    readings: int
    resent: int
    pending: int
    acknowledged: int
    rejected: Counter[str]
    refusals: Counter[str]
    obeyed: Counter[str]
    disobeyed: Counter[str]
    repeated_commands: int

    @property
    def is_clean(self) -> bool:
        """Whether everything is durable and nothing was rejected."""
        return self.pending == 0 and not self.rejected

    def __str__(self) -> str:
        text = (
            f"messages {self.messages}  readings {self.readings}  resent {self.resent}"
            f"  pending {self.pending}  acknowledged {self.acknowledged}"
        )
        for name, counted in (
            ("rejected", self.rejected),
            ("refused messages", self.refusals),
            ("obeyed", self.obeyed),
            ("not obeyed", self.disobeyed),
        ):
            if counted:
                reasons = ", ".join(f"{reason} {times}" for reason, times in counted.items())
                text += f"  {name}: {reasons}"
        if self.repeated_commands:
            text += f"  commands that came again {self.repeated_commands}"
        return text


class SimulatedDevice:
    """One device with its outbox and its uplink."""

    def __init__(
        self,
        scenario: Scenario,
        device: str,
        *,
        broker: BrokerAddress,
        settings: Settings,
        ledger: LedgerFile,
        clock: Clock,
    ) -> None:
        # Apart from the device's own, so that timing and faults never change what it measures.
        self._random = Random(f"{scenario.seed}/{device}/network")  # noqa: S311 - a simulation
        self._scenario = scenario
        self._clock = clock
        self._ledger = ledger
        self._measured_until = clock()
        self._device = Device(
            seed=scenario.seed,
            device=device,
            started=self._measured_until,
            habits=scenario.habits,
        )
        self.outbox = MemoryOutbox()
        faults: Faults[Batch] = Faults(
            self._random, duplicates=scenario.duplicates, reorder=scenario.reorder
        )
        self.uplink = Uplink(
            broker=broker,
            settings=settings,
            tenant=scenario.tenant,
            device=device,
            outbox=self.outbox,
            clock=clock,
            random=self._random,
            pace=Pace(readings_per_message=scenario.readings_per_message),
            disturb=faults.disturb,
            obey=self._obey,
            encode=FORMATS[scenario.payload_format].encode,
            topic_level=FORMATS[scenario.payload_format].topic_level,
        )
        self.balance: dict[str, object] = {}
        self._balance_told_by = 0

    def _obey(self, command: Command) -> str | None:
        """Do what a command says; return why not if it does not."""
        match command.kind:
            case CommandKind.THROTTLE | CommandKind.SUSPEND | CommandKind.RESUME:
                self._device.obey(self._device.limits.after(command), self._clock())
            case CommandKind.BALANCE:
                if command.number > self._balance_told_by:
                    self._balance_told_by, self.balance = command.number, command.payload
            case CommandKind.GRANT:
                return "this device asked for no grant"
            case _:
                assert_never(command.kind)
        return None

    async def measure_until(self, stopping: asyncio.Event) -> None:
        """Measure at a jittered interval until stopped; pause while the outbox has no room."""
        interval = self._scenario.interval_seconds
        wait = self._random.uniform(0, interval)
        while not await happens_within(stopping, wait):
            self._measure()
            wait = interval * self._random.uniform(0.8, 1.2)

    def _measure(self) -> None:
        scenario = self._scenario
        if not self.outbox.has_room(scenario.readings_per_message):
            return
        now = self._clock()
        instants = moments(self._random, self._measured_until, now, scenario.readings_per_message)
        if not instants:
            return
        self._measured_until = instants[-1]
        boot, measured = self._device.measure(instants)
        self._ledger.write(
            line_of(scenario.tenant, self._device.device, boot, one.reading, one.used)
            for one in measured
        )
        self.outbox.put(boot, [one.reading for one in measured])
        self.uplink.wake()


class Simulation:
    """Runs a scenario until it is stopped, then drains it; `brokers` says where each device connects."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        brokers: Callable[[str], BrokerAddress],
        settings: Settings,
        ledger: LedgerFile,
        clock: Clock,
        say: Say,
    ) -> None:
        self._scenario = scenario
        self._say = say
        self._stopping = asyncio.Event()
        self._devices = [
            SimulatedDevice(
                scenario,
                device,
                broker=brokers(device),
                settings=settings,
                ledger=ledger,
                clock=clock,
            )
            for device in scenario.devices
        ]

    def stop(self) -> None:
        """Measure no more; what is pending is still delivered."""
        self._stopping.set()

    async def run(self) -> Tally:
        """Simulate, drain, and return what was done."""
        async with asyncio.TaskGroup() as background:
            running = [background.create_task(device.uplink.run()) for device in self._devices]
            running.append(background.create_task(self._tell_progress()))
            await self._measure()
            await self._drain()
            for task in running:
                task.cancel()
        return self.tally()

    def tally(self) -> Tally:
        """Add up what the devices have done so far."""
        traffics = [device.uplink.traffic for device in self._devices]
        return Tally(
            messages=sum(traffic.messages for traffic in traffics),
            readings=sum(traffic.readings for traffic in traffics),
            resent=sum(traffic.resent for traffic in traffics),
            pending=sum(len(device.outbox) for device in self._devices),
            acknowledged=sum(traffic.acknowledged for traffic in traffics),
            rejected=sum((traffic.rejected for traffic in traffics), Counter()),
            refusals=sum((traffic.refusals for traffic in traffics), Counter()),
            obeyed=sum((traffic.obeyed for traffic in traffics), Counter()),
            disobeyed=sum((traffic.disobeyed for traffic in traffics), Counter()),
            repeated_commands=sum(traffic.repeated_commands for traffic in traffics),
        )

    async def _measure(self) -> None:
        async with asyncio.TaskGroup() as measuring:
            if self._scenario.for_seconds:
                measuring.create_task(self._stop_after(self._scenario.for_seconds))
            for device in self._devices:
                measuring.create_task(device.measure_until(self._stopping))

    async def _drain(self) -> None:
        async with asyncio.TaskGroup() as draining:
            for device in self._devices:
                draining.create_task(device.uplink.drain(self._scenario.drain_seconds))

    async def _stop_after(self, seconds: float) -> None:
        await happens_within(self._stopping, seconds)
        self._stopping.set()

    async def _tell_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            self._say(str(self.tally()))
