"""Latency at shares of what saturates the product: to the balance, to the command, and of reads."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from time import sleep
from typing import Any

import httpx

from bench.amount import amount, held_amount
from bench.balance_probe import (
    LOST_SECONDS,
    PROBE,
    PROBES_PER_SECOND,
    BalanceProbe,
    api_client,
    used,
)
from bench.charging import charge
from bench.command_probe import CommandProbe, limit_each_device
from bench.comparison import BASE
from bench.conditions import Conditions
from bench.extent import Extent
from bench.load import Generator, Order
from bench.percentiles import Latency, latency_of
from bench.product import Product, product, start, stop
from bench.reads import read
from bench.replaying import audit
from bench.servers import BenchError
from bench.waiting import wait_until
from bench.workload import ONE, Population
from metering.stack.probe import free_port

_SETTLE_SECONDS = 1.0
_DEVICES_A_COMMAND = 1.5
"""So many devices wait for each command that is expected at a load: moments are random."""
_READS_SHARE = 0.5
"""Reads come without a pause: they need less time for as many samples."""


def measure_latency(conditions: Conditions) -> dict[str, Any]:
    """Find how much the product takes, then probe it at shares of that; an audit follows."""
    servers, extent, say = conditions.servers, conditions.extent, conditions.say
    expected = PROBES_PER_SECOND * extent.probe_seconds * len(extent.load_shares)
    commands = int(_DEVICES_A_COMMAND * expected)
    commanded = Population(name="commanded", fleets=1, devices_a_fleet=max(10, commands))
    with (
        conditions.generator(BASE) as generator,
        product(
            servers, [BASE, PROBE, commanded], conditions.processing, conditions.folder
        ) as made,
    ):
        asyncio.run(limit_each_device(made, commanded))
        with api_client(made, start_all(made)) as api:
            saturation = find_saturation(made, generator, extent)
            say(f"  saturation {saturation:,.0f} messages/s")
            loads: dict[str, Any] = {}
            with BalanceProbe(made, api) as balance, CommandProbe(made, commanded) as command:
                for share in extent.load_shares:
                    load = Load(made, generator, saturation * share)
                    found: dict[str, Any] = {"messages_per_s": saturation * share}
                    loads[f"{share:.0%}"] = found
                    try:
                        found |= _probe(load, extent.probe_seconds, balance, command, api)
                    except (BenchError, httpx.HTTPError, OSError) as error:
                        # What was found at the loads before stands; of those after it nothing would.
                        found["why_not"] = f"{type(error).__name__}: {error}"
                        say(f"  at {share:.0%}: {found['why_not']}")
                        break
                    say(f"  at {share:.0%}: {_told(found)}")
        stop(made)
        audited = audit(made)
    say(f"  audit: {audited.verdict}")
    return {"saturation_messages_per_s": saturation, "loads": loads, "audit": asdict(audited)}


def start_all(made: Product) -> int:
    """Start everything that the product has; return the port of the API."""
    start(made)
    port = free_port()
    made.start("control", "control")
    made.start("api", "api", api_port=str(port))
    with api_client(made, port) as api:

        def is_ready() -> bool:
            made.processes.check()
            try:
                used(api)
            except httpx.HTTPError:
                return False
            return made.metric("control", "fleetmeter_control_subscribed") == 1

        wait_until(is_ready, "API and control process")
    return port


def find_saturation(made: Product, generator: Generator, extent: Extent) -> float:
    """Return the messages a second that are charged when as many come as are taken."""
    first = charge(made, generator, ONE, extent.first_messages)
    wanted = amount(first.messages_per_s, extent.seconds)
    return charge(made, generator, ONE, wanted).messages_per_s


class Load:
    """Messages that come at a rate while something is probed."""

    def __init__(self, made: Product, generator: Generator, rate: float) -> None:
        self._made, self._generator, self._rate = made, generator, rate
        self.late_seconds = 0.0
        """How far the generator was behind at the worst."""

    def probed(self, probe: Callable[[float], list[float]], seconds: float) -> list[float]:
        """Return what a probe, one reading a sample, finds in so long; all of the load is charged then."""
        began = self._made.charged()
        sent = self._start(seconds)
        sleep(_SETTLE_SECONDS)
        found = probe(seconds)
        self._finish(began + sent + len(found))
        return found

    def read(self, api: httpx.Client, seconds: float) -> dict[str, Latency]:
        """Return the times of reads in so long; all of the load is charged then."""
        began = self._made.charged()
        sent = self._start(seconds)
        sleep(_SETTLE_SECONDS)
        found = read(api, BASE, seconds)
        self._finish(began + sent)
        return found

    def _start(self, seconds: float) -> int:
        messages = held_amount(self._rate, seconds + 2 * _SETTLE_SECONDS)
        order = Order(
            roots=self._made.roots, manner=ONE, messages=messages, messages_per_second=self._rate
        )
        self._generator.prepare(order)
        self._generator.start()
        return messages

    def _finish(self, charged: int) -> None:
        self.late_seconds = max(self.late_seconds, self._generator.finish().late_seconds)
        wait_until(
            lambda: self._made.charged() >= charged, "the load to be charged", seconds=LOST_SECONDS
        )


def _probe(
    load: Load, seconds: float, balance: BalanceProbe, command: CommandProbe, api: httpx.Client
) -> dict[str, Any]:
    """Probe balances, commands and reads, one after the other."""
    balances = load.probed(balance.run, seconds)
    commands = load.probed(command.run, seconds)
    reads = load.read(api, _READS_SHARE * seconds)
    return {
        "generator_late_seconds": load.late_seconds,
        "balance_ms": asdict(latency_of(balances)),
        "command_ms": asdict(latency_of(commands)),
        "reads_ms": {path: asdict(each) for path, each in reads.items()},
    }


def _told(load: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {load[f'{name}_ms']['p50']:.1f} ms (p99 {load[f'{name}_ms']['p99']:.1f})"
        for name in ("balance", "command")
    )
