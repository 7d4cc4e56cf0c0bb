"""`fleetmeter simulate`: publish as a fleet of simulated devices."""

import argparse
import asyncio
import resource
import secrets
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from device_sim.device import Habits
from device_sim.formats import FORMATS
from device_sim.groups import Group
from device_sim.profile import Kind
from device_sim.simulation import Scenario, Simulation
from metering import clock
from metering.broker_address import BrokerAddress, broker_of
from metering.credentials.rights import broker_username
from metering.errors import InvalidValue
from metering.ids import checked_id
from metering.settings import Settings
from metering.uplink.ledger import LedgerFile


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fleetmeter simulate`."""
    add = parser.add_argument
    add("--broker", metavar="URL", help="mqtt://[user:password@]host:port; default: the setting")
    add(
        "--credentials", type=Path, metavar="FILE",
        help="what each device connects with: lines of a name, a space and a password",
    )  # fmt: skip
    add(
        "--certificates", type=Path, metavar="DIR",
        help="what each device connects with: files DEVICE.pem and DEVICE.key",
    )  # fmt: skip
    add("--tenant", default="demo", help="tenant of the devices (%(default)s)")
    add(
        "--group",
        action="append",
        metavar="NAME:COUNT",
        help="devices NAME-0001 and so on; repeatable (truck:10)",
    )
    add("--seed", type=int, help="makes the same devices again; default: a random one, printed")
    add("--for", dest="for_seconds", type=float, default=0, metavar="SECONDS", help="0: until ^C")
    add("--interval", type=float, default=1.0, metavar="SECONDS", help="between messages (1.0)")
    add("--readings", type=int, default=5, metavar="N", help="readings a message (%(default)s)")
    add(
        "--cumulative", type=float, default=0.4, metavar="SHARE", help="devices with counters (0.4)"
    )
    add("--duplicates", type=float, default=0.0, metavar="RATE", help="messages sent twice (0)")
    add("--reorder", type=float, default=0.0, metavar="RATE", help="messages sent late (0)")
    add(
        "--resets", type=float, default=0.0, metavar="RATE", help="readings of a fallen counter (0)"
    )
    add(
        "--reboots", type=float, default=0.002, metavar="RATE", help="messages after a boot (0.002)"
    )
    add("--wraps", type=float, default=0.06, metavar="SHARE", help="counters that soon wrap (0.06)")
    add("--profile", choices=list(Kind), help="what all devices are; default: a mix")
    add("--rate", type=float, default=1.0, metavar="FACTOR", help="how much is used (1.0)")
    add("--format", choices=list(FORMATS), default="json", help="of the messages (%(default)s)")
    add("--ledger", type=Path, metavar="FILE", help="append what was truly used, as JSON Lines")
    add(
        "--drain",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="wait for acknowledgements (60)",
    )


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Simulate until told to stop; 0 when every reading is durable and none was rejected."""
    scenario = scenario_of(arguments)
    broker = broker_of(arguments.broker, settings)
    brokers = brokers_of(arguments, broker, scenario)
    _allow_many_connections()
    print(
        f"simulating {len(scenario.devices)} devices of tenant {scenario.tenant}"
        f" at {broker.host}:{broker.port}, seed {scenario.seed}",
        flush=True,
    )
    with LedgerFile(arguments.ledger) as ledger:
        return asyncio.run(_simulate(scenario, brokers, settings, ledger))


def brokers_of(
    arguments: argparse.Namespace, broker: BrokerAddress, scenario: Scenario
) -> Callable[[str], BrokerAddress]:
    """Return where each device connects, and with what; raises `InvalidValue` where one has nothing."""
    if arguments.certificates is not None:
        folder: Path = arguments.certificates
        return lambda device: replace(
            broker, certificate_file=folder / f"{device}.pem", key_file=folder / f"{device}.key"
        )
    if arguments.credentials is None:
        return lambda _device: broker
    lines = arguments.credentials.read_text("utf-8").splitlines()
    passwords = dict(line.split(" ", 1) for line in lines if " " in line)
    names = {device: broker_username(scenario.tenant, device) for device in scenario.devices}
    for name in names.values():
        if name not in passwords:
            raise InvalidValue("--credentials", f"has no line for {name}", "add the device")
    return lambda device: replace(broker, username=names[device], password=passwords[names[device]])


def scenario_of(arguments: argparse.Namespace) -> Scenario:
    """Return what the arguments ask for; raises `InvalidValue`."""
    for name in ("cumulative", "duplicates", "reorder", "resets", "reboots", "wraps"):
        if not 0 <= getattr(arguments, name) <= 1:
            raise InvalidValue(name, "not a share", "use a number from 0 to 1")
    for name, least in (
        ("interval", 0.001),
        ("readings", 1),
        ("for_seconds", 0),
        ("drain", 0),
        ("rate", 0),
    ):
        if not getattr(arguments, name) >= least:
            raise InvalidValue(name.removesuffix("_seconds"), "too small", f"use {least} or more")
    groups = [Group.parse(text) for text in arguments.group or ["truck:10"]]
    devices = [device for group in groups for device in group.devices()]
    if len(set(devices)) < len(devices):
        raise InvalidValue("group", "two groups have one name", "use a name once")
    return Scenario(
        tenant=checked_id(arguments.tenant, "tenant"),
        devices=devices,
        seed=secrets.randbits(32) if arguments.seed is None else arguments.seed,
        for_seconds=arguments.for_seconds,
        interval_seconds=arguments.interval,
        readings_per_message=arguments.readings,
        habits=Habits(
            cumulative_share=arguments.cumulative,
            reset_rate=arguments.resets,
            reboot_rate=arguments.reboots,
            nearly_full_share=arguments.wraps,
            rate=arguments.rate,
            kind=arguments.profile and Kind(arguments.profile),
        ),
        duplicates=arguments.duplicates,
        reorder=arguments.reorder,
        drain_seconds=arguments.drain,
        payload_format=arguments.format,
    )


async def _simulate(
    scenario: Scenario,
    brokers: Callable[[str], BrokerAddress],
    settings: Settings,
    ledger: LedgerFile,
) -> int:
    simulation = Simulation(
        scenario, brokers=brokers, settings=settings, ledger=ledger, clock=clock.now, say=_say
    )
    loop = asyncio.get_running_loop()
    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(stop_signal, simulation.stop)
    tally = await simulation.run()
    left = "" if tally.is_clean else "  NOT everything is durable"
    _say(f"done: {tally}{left}")
    return 0 if tally.is_clean else 1


def _allow_many_connections() -> None:
    """Raise the soft limit of open files: a connection takes three."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(line: str) -> None:
    print(line, flush=True)
