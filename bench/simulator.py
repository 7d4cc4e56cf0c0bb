"""Measure the simulator: how many connected devices one process drives, and what that costs.

Run by `make bench-simulator`. Database, broker, an ingester and a charging worker run on the same machine;
each step keeps the devices that are connected and has them publish more often. Read the steps that the
platform keeps up with: acknowledged is as much as published, and what is pending does not grow.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from time import monotonic

import psutil

from bench.machine import machine
from bench.product import Processing, Product, product, start, stop
from bench.servers import BenchError, Servers, own_servers, program
from bench.waiting import wait_until
from bench.workload import TENANT, Population
from device_sim.command import allow_many_connections
from device_sim.groups import Group
from device_sim.scene import Scenario, outbox_readings_of
from device_sim.simulation import Simulation, run_simulation
from device_sim.tally import Status
from metering import clock
from metering.broker_address import BrokerAddress, parse_broker_url
from metering.settings import Settings
from metering.stack import lifecycle, probe
from metering.stack.probe import free_port
from metering.uplink.ledger import LedgerFile

FLEETS = 100
INTERVALS = (60.0, 10.0, 4.0, 2.0)
_SETTLE_SECONDS = 10.0
_CONNECT_SECONDS_MAX = 300.0
_MEBIBYTE = 2**20
OUTPUT = Path(__file__).with_name("simulator.json")


class Simulated(Population):
    """Fleets whose devices are named as the simulator names those of a group."""

    def device_ids(self) -> dict[str, list[str]]:
        """Return the devices of each fleet."""
        return {
            f"{self.name}-{fleet}": Group(
                name=f"{self.name}-{fleet}", count=self.devices_a_fleet
            ).devices()
            for fleet in range(self.fleets)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What was measured while each device published one message of `readings` an interval."""

    interval_seconds: float
    readings: int
    devices: int
    connected: int
    messages_per_second: float
    acknowledged_per_second: float
    pending_before: int
    pending_after: int
    oldest_seconds: float
    cpu_cores: float
    broker_cores: float
    ingester_cores: float
    memory_mib: float
    memory_kib_per_device: float
    load_average: float
    all_acknowledged: bool
    """Whether in the end nothing was left, within the time that is given for it."""


class _Reports:
    """Sends how far a simulation is through a pipe, and lets it be stopped."""

    interval_seconds = 0.5

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self.simulation: Simulation | None = None

    def look(self, status: Status) -> None:
        """Send the status; stop when told to."""
        self._pipe.send(status)
        if self._pipe.poll() and self.simulation is not None:
            self._pipe.recv()
            self.simulation.stop()


@contextlib.contextmanager
def _tls_broker(servers: Servers) -> Iterator[tuple[Servers, BrokerAddress]]:
    """Yield servers whose broker is one that lets anybody in over TLS, and where that is.

    The stack's own is told of each device's credential, which takes long for thousands.
    """
    record = lifecycle.broker_record(servers.settings)
    if record is None:
        raise BenchError("the broker is not ours: there is none to take the certificate of")
    kept, plain, secure = Path(record.folder), free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "mosquitto.conf"
        config.write_text(
            f"user root\nallow_anonymous true\nmax_queued_messages 0\nlistener {plain} 127.0.0.1\n"
            f"listener {secure} 127.0.0.1\ncertfile {kept}/server.pem\nkeyfile {kept}/server.key\n"
        )
        command = [program(servers, "mosquitto_sub").removesuffix("_sub"), "-c", str(config)]
        executable = Path(command[0])
        if not executable.exists():
            command[0] = str(executable.parent.parent / "sbin" / executable.name)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as broker:
            try:
                url = f"mqtt://127.0.0.1:{plain}"
                wait_until(lambda: probe.broker_answers(url) is None, "a broker that speaks TLS")
                told = replace(servers, broker_url=url, pids={**servers.pids, "broker": broker.pid})
                address = parse_broker_url(f"mqtts://localhost:{secure}")
                yield told, replace(address, ca_file=kept / "authority.pem")
            finally:
                broker.terminate()


def _simulate(pipe: Pipe, scenario: Scenario, address: BrokerAddress, topic_root: str) -> None:
    """Run a simulation in a process of its own."""
    allow_many_connections(len(scenario.devices))
    pipe.recv()  # by now memory was looked at
    reports = _Reports(pipe)
    with LedgerFile(None) as ledger:
        reports.simulation = Simulation(
            scenario,
            brokers=lambda _device: address,
            settings=Settings(topic_root=topic_root),
            ledger=ledger,
            clock=clock.now,
            say=lambda line: print(line, file=sys.stderr, flush=True),
            watchers=[reports],
        )
        tally = run_simulation(reports.simulation)
    pipe.send(tally.is_clean)


class _Running:
    """A simulation that runs, and its last report."""

    def __init__(self, scenario: Scenario, address: BrokerAddress, topic_root: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        arguments = (other, scenario, address, topic_root)
        self.process = context.Process(target=_simulate, args=arguments, daemon=True)
        self.process.start()
        other.close()
        self._of_process = psutil.Process(self.process.pid)

    def status(self) -> Status:
        """Wait for the next report."""
        while True:
            if not self.pipe.poll(60):
                raise BenchError("the simulator does not report")
            told = self.pipe.recv()
            if isinstance(told, Status) and not self.pipe.poll():
                return told

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process used so far."""
        times = self._of_process.cpu_times()
        return float(times.user + times.system)

    def memory_octets(self) -> int:
        """Return the memory that the process holds."""
        return int(self._of_process.memory_info().rss)

    def finish(self) -> bool:
        """Have it drained; return whether everything was acknowledged."""
        self.pipe.send("stop")
        while True:
            if not self.pipe.poll(120):
                raise BenchError("the simulator does not come to an end")
            told = self.pipe.recv()
            if isinstance(told, bool):
                self.process.join(30)
                return told


@contextlib.contextmanager
def _running(scenario: Scenario, address: BrokerAddress, topic_root: str) -> Iterator[_Running]:
    running = _Running(scenario, address, topic_root)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.join()


def _measure(
    made: Product,
    address: BrokerAddress,
    devices: Sequence[str],
    *,
    interval: float,
    readings: int,
    seconds: float,
) -> Step:
    """Connect all devices, let them settle, and measure for some seconds."""
    scenario = Scenario(
        tenant=TENANT,
        devices=devices,
        seed=1,
        interval_seconds=interval,
        readings_per_message=readings,
        outbox_readings=outbox_readings_of(len(devices)),
    )
    with _running(scenario, address, made.roots[0]) as simulated:
        _wait_until_started(simulated)
        empty = simulated.memory_octets()
        simulated.pipe.send("go")
        deadline = monotonic() + _CONNECT_SECONDS_MAX
        while (before := simulated.status()).connected < len(devices):
            if monotonic() > deadline:
                raise BenchError(f"{before.connected} of {len(devices)} devices are connected")
        settled = before.at_seconds + _SETTLE_SECONDS
        while before.at_seconds < settled:
            before = simulated.status()
        cpu = [simulated.cpu_seconds(), *_cpu_of(made)]
        after = before
        while after.at_seconds < before.at_seconds + seconds:
            after = simulated.status()
        used = [
            now - then
            for now, then in zip([simulated.cpu_seconds(), *_cpu_of(made)], cpu, strict=True)
        ]
        memory = simulated.memory_octets()
        load = os.getloadavg()[0]
        all_acknowledged = simulated.finish()
    elapsed = after.at_seconds - before.at_seconds
    return Step(
        interval_seconds=interval,
        readings=readings,
        devices=len(devices),
        connected=after.connected,
        messages_per_second=(after.messages - before.messages) / elapsed,
        acknowledged_per_second=(after.acknowledged - before.acknowledged) / elapsed,
        pending_before=before.pending,
        pending_after=after.pending,
        oldest_seconds=after.oldest_seconds,
        cpu_cores=used[0] / elapsed,
        broker_cores=used[1] / elapsed,
        ingester_cores=used[2] / elapsed,
        memory_mib=memory / _MEBIBYTE,
        memory_kib_per_device=(memory - empty) / 1024 / len(devices),
        load_average=load,
        all_acknowledged=all_acknowledged,
    )


def _wait_until_started(simulated: _Running) -> None:
    """Wait until a process has loaded its modules: it then uses no more CPU time."""
    before, used = -1.0, simulated.cpu_seconds()
    while used == 0 or used != before:
        if simulated.process.exitcode is not None:
            raise BenchError("the simulator has ended by itself")
        before = used
        simulated.process.join(0.5)
        used = simulated.cpu_seconds()


def _cpu_of(made: Product) -> list[float]:
    spent: list[float] = []
    for role in ("broker", "ingester"):
        times = [psutil.Process(pid).cpu_times() for pid in made.pids.get(role, ())]
        spent.append(sum(each.user + each.system for each in times))
    return spent


def main() -> int:
    """Measure, print a table, and write bench/simulator.json."""
    parser = argparse.ArgumentParser(prog="bench.simulator", description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000, help="a multiple of 100 (10 000)")
    parser.add_argument("--readings", type=int, default=1, help="readings a message (1)")
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure a step for (20)")
    parser.add_argument(
        "--intervals", type=float, nargs="+", default=INTERVALS, help="seconds between messages"
    )
    parser.add_argument("--tls", action="store_true", help="over TLS")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file of the result")
    arguments = parser.parse_args()
    allow_many_connections(arguments.devices)  # the broker inherits it
    population = Simulated(name="sim", fleets=FLEETS, devices_a_fleet=arguments.devices // FLEETS)
    devices = population.interleaved()
    steps: list[Step] = []
    try:
        with contextlib.ExitStack() as running:
            servers = running.enter_context(own_servers())
            told = machine(servers)
            address = servers.broker
            if arguments.tls:
                servers, address = running.enter_context(_tls_broker(servers))
            folder = running.enter_context(tempfile.TemporaryDirectory())
            print(_HEADING)
            with product(servers, [population], Processing(), Path(folder)) as made:
                start(made)
                for interval in arguments.intervals:
                    step = _measure(
                        made,
                        address,
                        devices,
                        interval=interval,
                        readings=arguments.readings,
                        seconds=arguments.seconds,
                    )
                    steps.append(step)
                    print(_line(step), flush=True)
                stop(made)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    last = steps[0]
    print(
        f"{last.connected} connected, {last.memory_mib:.0f} MiB,"
        f" {last.memory_kib_per_device:.1f} KiB a device"
    )
    result = {"machine": told, "steps": [asdict(each) for each in steps]}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


_HEADING = (
    "interval  msg/s  acknowledged/s  pending  oldest  CPU: simulator  broker  ingester   load"
)


def _line(step: Step) -> str:
    return (
        f"{step.interval_seconds:6g} s {step.messages_per_second:6,.0f}"
        f" {step.acknowledged_per_second:15,.0f} {step.pending_after:8,}"
        f" {step.oldest_seconds:5.1f} s {step.cpu_cores:15.2f} {step.broker_cores:7.2f}"
        f" {step.ingester_cores:9.2f} {step.load_average:6.1f}"
        + ("" if step.all_acknowledged else "  not all acknowledged within the time for it")
    )


if __name__ == "__main__":
    sys.exit(main())
