"""A fleet of simulated devices on one event loop: measure, write the ledger, publish, drain."""

import asyncio
import signal
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from random import Random
from typing import Protocol

from device_sim.agenda import Agenda
from device_sim.formats import FORMATS
from device_sim.scene import Scenario
from device_sim.simulated_device import SimulatedDevice, Surroundings
from device_sim.tally import Status, Tally
from metering.broker_address import BrokerAddress
from metering.settings import Settings
from metering.uplink.ledger import LedgerFile
from metering.uplink.schedule import Pace

_REST_SECONDS_MIN, _REST_SECONDS_MAX = 0.002, 0.05
_STEPS_AT_ONCE = 50
"""So many devices do what is due before the broker's answers are read."""
_CONNECTING_MAX = 100
"""Connections that are begun and not open yet."""
_CLOSE_SECONDS_MAX = 5.0

Say = Callable[[str], None]


class Watcher(Protocol):
    """Looks at a simulation now and then."""

    @property
    def interval_seconds(self) -> float:
        """How often it wants to look."""

    def look(self, status: Status) -> str | None:
        """Look; return why the simulation is to stop and has failed, if it has."""


class Simulation:
    """Runs a scenario until it is stopped, then drains it.

    `brokers` says where each device connects; `say` is told of connections that fail, and of why a
    watcher stopped it.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        brokers: Callable[[str], BrokerAddress],
        settings: Settings,
        ledger: LedgerFile,
        clock: Callable[[], datetime],
        say: Say,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self._scenario = scenario
        self._brokers = brokers
        self._say = say
        self._watchers = watchers
        self._stopping = False
        self._agenda = Agenda()
        self._waiting: deque[SimulatedDevice] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._allowed = 0.0
        self._contexts: dict[tuple[Path | None, Path | None, Path | None], ssl.SSLContext] = {}
        self._problem: str | None = None
        self._steady = time.monotonic
        self._began = self._looked = self._steady()
        self._looks = [0.0] * len(watchers)
        self._around = Surroundings(
            scenario=scenario,
            settings=settings,
            ledger=ledger,
            clock=clock,
            steady=self._steady,
            # Apart from the devices' own, so that timing and faults never change what they measure.
            random=Random(f"{scenario.seed}/network"),  # noqa: S311 - a simulation
            pace=_pace_of(scenario),
            connect=self._waiting.append,
            arrange=self._agenda.arrange,
        )
        started = clock()
        ids = scenario.devices
        self._devices = {
            device: SimulatedDevice(
                self._around,
                device,
                other=ids[(number + 1) % len(ids)],
                iccid=scenario.iccids.get(device),
                broker=brokers(device),
                started=started,
            )
            for number, device in enumerate(ids)
        }
        self.failure: str | None = None
        """Why a watcher stopped the simulation, if one did."""

    def stop(self) -> None:
        """Measure no more; what is pending is still delivered."""
        self._stopping = True

    async def run(self) -> Tally:
        """Simulate, drain, and return what was done."""
        self._began = self._looked = self._steady()
        for device in self._devices.values():
            self._agenda.arrange(device)
        try:
            await self._work(self._is_over)
            for device in self._devices.values():
                device.measure_no_more(self._steady())
                self._agenda.arrange(device)
            deadline = self._steady() + self._scenario.drain_seconds
            await self._work(lambda now: now >= deadline or self._is_settled())
        finally:
            await self._close()
        return self.tally()

    def tally(self) -> Tally:
        """Return what the devices have done so far."""
        around, devices = self._around, self._devices.values()
        return Tally(
            devices=len(devices),
            pending=sum(len(device.outbox) for device in devices),
            bad_pending=sum(device.bad_pending for device in devices),
            traffic=around.traffic,
            faults=around.faults,
            verdicts=around.verdicts,
        )

    def status(self) -> Status:
        """Return how far it is."""
        traffic, devices = self._around.traffic, self._devices.values()
        now = self._around.clock()
        oldest = min((at for at in (device.oldest() for device in devices) if at), default=now)
        return Status(
            at_seconds=self._steady() - self._began,
            devices=len(devices),
            connected=sum(device.is_connected for device in devices),
            messages=traffic.messages,
            acknowledged=traffic.acknowledged,
            pending=sum(len(device.outbox) for device in devices),
            oldest_seconds=(now - oldest).total_seconds(),
            rejected=traffic.rejected.total(),
            commands=traffic.obeyed.total() + traffic.disobeyed.total(),
        )

    async def _work(self, is_over: Callable[[float], bool]) -> None:
        """Have the devices do what is due, until it is over."""
        while not is_over(now := self._steady()):
            for device in islice(self._agenda.take_due(now), _STEPS_AT_ONCE):
                device.step(now)
                self._agenda.arrange(device)
            self._connect_some(now)
            self._have_looked_at(now)
            rest = self._agenda.next_due() - self._steady()
            if rest > 0:
                rest = min(max(rest, _REST_SECONDS_MIN), _REST_SECONDS_MAX)
            await asyncio.sleep(max(0.0, rest))

    def _is_over(self, now: float) -> bool:
        seconds = self._scenario.for_seconds
        return self._stopping or (seconds > 0 and now - self._began >= seconds)

    def _is_settled(self) -> bool:
        return all(device.is_settled for device in self._devices.values())

    def _connect_some(self, now: float) -> None:
        """Let devices in that wait for it, as many as the rate of connections allows by now."""
        rate = self._scenario.connections_per_second
        self._allowed = min(self._allowed + (now - self._looked) * rate, max(1.0, rate / 10))
        self._looked = now
        while self._waiting and self._allowed >= 1 and len(self._connecting) < _CONNECTING_MAX:
            self._allowed -= 1
            task = asyncio.create_task(self._connect(self._waiting.popleft()))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, device: SimulatedDevice) -> None:
        problem = await device.connect(self._tls_context(self._brokers(device.name)))
        if problem is not None and problem != self._problem:
            self._say(f"{device.name} cannot connect: {problem}")
        self._problem = problem

    def _tls_context(self, broker: BrokerAddress) -> ssl.SSLContext | None:
        """Return how to speak TLS: those who show no certificate of their own share what it takes."""
        key = (broker.ca_file, broker.certificate_file, broker.key_file)
        if key not in self._contexts:
            context = broker.tls_context()
            if context is None:
                return None
            self._contexts[key] = context
        return self._contexts[key]

    def _have_looked_at(self, now: float) -> None:
        for number, watcher in enumerate(self._watchers):
            if now - self._began - self._looks[number] >= watcher.interval_seconds:
                self._looks[number] = now - self._began
                failure = watcher.look(self.status())
                if failure is not None and self.failure is None:
                    self.failure = failure
                    self._say(failure)
                    self.stop()

    async def _close(self) -> None:
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for device in self._devices.values():
            device.close()
        deadline = self._steady() + _CLOSE_SECONDS_MAX
        while not all(device.is_closed for device in self._devices.values()):
            if self._steady() > deadline:
                for device in self._devices.values():
                    device.abort()
            await asyncio.sleep(_REST_SECONDS_MIN)


def run_simulation(simulation: Simulation) -> Tally:
    """Run a simulation on an event loop of its own, until it is over or this process is told to end."""

    async def run() -> Tally:
        loop = asyncio.get_running_loop()
        for stop_signal in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(stop_signal, simulation.stop)
        return await simulation.run()

    return asyncio.run(run())


def _pace_of(scenario: Scenario) -> Pace:
    pace = Pace(
        readings_per_message=scenario.readings_per_message,
        resend_seconds=scenario.resend_seconds,
        resend_seconds_max=6 * scenario.resend_seconds,
    )
    if FORMATS[scenario.payload_format].one_by_one:
        return replace(pace, readings_per_message=1, window_readings=1)
    return pace
