"""`fleetmeter agent`: publish this machine's interface counters."""

import argparse
import asyncio
import json
import signal
from pathlib import Path
from random import SystemRandom

from metering import clock
from metering.agent.agent import Meterer, run_agent
from metering.agent.counters import (
    BOOT_ID_FILE,
    NET_FOLDER,
    checked_interface,
    kernel_boot_id,
)
from metering.agent.state import StateFile
from metering.broker_address import BrokerAddress, broker_of
from metering.errors import InvalidValue
from metering.ids import checked_id
from metering.settings import Settings
from metering.uplink.ledger import LedgerFile
from metering.uplink.uplink import Uplink
from metering.wire.command import Command, CommandKind


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fleetmeter agent`."""
    add = parser.add_argument
    add("--interface", required=True, metavar="IFACE", help="network interface to meter")
    add("--tenant", required=True, help="tenant of the device")
    add("--device", required=True, help="id of the device that this machine is")
    add("--broker", metavar="URL", help="mqtt://[user:password@]host:port; default: the setting")
    add("--interval", type=float, default=5.0, metavar="SECONDS", help="between readings (5)")
    add("--state", type=Path, metavar="DIR", help="where unacknowledged readings are kept")
    add("--ledger", type=Path, metavar="FILE", help="append what was metered, as JSON Lines")
    add("--for", dest="for_seconds", type=float, default=0, metavar="SECONDS", help="0: until ^C")
    add(
        "--drain",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="wait for acknowledgements (60)",
    )


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Meter until told to stop; 0 when every reading is durable."""
    for name, least in (("interval", 0.01), ("for_seconds", 0), ("drain", 0)):
        if not getattr(arguments, name) >= least:
            raise InvalidValue(name.removesuffix("_seconds"), "too small", f"use {least} or more")
    tenant = checked_id(arguments.tenant, "tenant")
    device = checked_id(arguments.device, "device")
    checked_interface(NET_FOLDER, arguments.interface)
    broker = broker_of(arguments.broker, settings)
    folder = arguments.state or settings.data_dir / "agent" / tenant / device
    state = StateFile(
        folder / "agent.db",
        tenant=tenant,
        device=device,
        kernel_boot=kernel_boot_id(BOOT_ID_FILE),
    )
    try:
        with LedgerFile(arguments.ledger) as ledger:
            return asyncio.run(_run(arguments, settings, broker, state, ledger))
    finally:
        state.close()


async def _run(
    arguments: argparse.Namespace,
    settings: Settings,
    broker: BrokerAddress,
    state: StateFile,
    ledger: LedgerFile,
) -> int:
    uplink = Uplink(
        broker=broker,
        settings=settings,
        tenant=arguments.tenant,
        device=arguments.device,
        outbox=state,
        clock=clock.now,
        random=SystemRandom(),
        obey=_obey,
    )
    meterer = Meterer(
        tenant=arguments.tenant,
        device=arguments.device,
        interface=arguments.interface,
        folder=NET_FOLDER,
        state=state,
        ledger=ledger,
        clock=clock.now,
        say=_say,
    )
    _say(f"metering {arguments.interface} as {arguments.tenant}/{arguments.device}")
    drained = await run_agent(
        meterer,
        uplink,
        stopping=_stopping(arguments.for_seconds),
        interval_seconds=arguments.interval,
        drain_seconds=arguments.drain,
    )
    traffic = uplink.traffic
    _say(
        f"done: readings {traffic.readings}  resent {traffic.resent}  pending {len(state)}"
        f"  acknowledged {traffic.acknowledged}  rejected {traffic.rejected.total()}"
        f"  commands {traffic.obeyed.total()} obeyed, {traffic.disobeyed.total()} refused"
    )
    return 0 if drained and not traffic.rejected else 1


def _obey(command: Command) -> str | None:
    """Note a balance; refuse the rest: an agent meters an interface, and has no say over its use."""
    if command.kind is CommandKind.BALANCE:
        _say(f"balance: {json.dumps(command.payload)}")
        return None
    return f"an agent only meters its interface; it cannot {command.kind.value} it"


def _stopping(for_seconds: float) -> asyncio.Event:
    """Return the event that a signal, or the end of the time, sets."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(stop_signal, stopping.set)
    if for_seconds:
        loop.call_later(for_seconds, stopping.set)
    return stopping


def _say(line: str) -> None:
    print(line, flush=True)
