"""`fleetmeter agent`: publish what this machine's modem or interface counts."""

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path
from random import SystemRandom

from metering import clock
from metering.agent.agent import Meterer, run_agent
from metering.agent.at.source import TABLES, AtSource
from metering.agent.control import Actor, Control, Hook
from metering.agent.counters import (
    BOOT_ID_FILE,
    NET_FOLDER,
    InterfaceSource,
    checked_interface,
    kernel_boot_id,
)
from metering.agent.modem_manager import ModemManager
from metering.agent.sample import Source
from metering.agent.state import StateFile
from metering.broker_address import broker_of
from metering.errors import InvalidValue
from metering.ids import checked_id
from metering.settings import Settings
from metering.uplink.ledger import LedgerFile
from metering.uplink.uplink import Uplink


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fleetmeter agent`."""
    add = parser.add_argument
    add(
        "--interface",
        metavar="IFACE",
        help="network interface to meter; with --modem: that of a bearer which nobody else counts",
    )
    add("--width", type=int, choices=(32, 64), default=64, help="bits of its counters (64)")
    add(
        "--modem",
        metavar="IMEI",
        help="meter ModemManager's modem with this IMEI, or `any` for all of them",
    )
    add("--serial", metavar="PORT", help="meter the modem that answers AT commands on this port")
    add("--at", choices=sorted(TABLES), help="whose counters it has; default: ask it")
    add("--baud", type=int, default=115_200, help="of the serial port (115200)")
    add(
        "--disconnect",
        action="store_true",
        help="with --modem: obey `suspend` by taking its bearers down, and `resume`",
    )
    add("--hook", type=Path, metavar="PROGRAM", help="obey limits by this program")
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
    source, actor = _source_and_actor(arguments)
    broker = broker_of(arguments.broker, settings)
    folder = arguments.state or settings.data_dir / "agent" / tenant / device
    state = StateFile(
        folder / "agent.db",
        tenant=tenant,
        device=device,
        kernel_boot=kernel_boot_id(BOOT_ID_FILE),
    )
    if state.set_aside is not None:
        _say(
            f"what the agent remembered is damaged and set aside as {state.set_aside}: readings that"
            " were not sent are in it, and metering begins anew"
        )
    control = Control(state=state, actor=actor, say=_say)
    with LedgerFile(arguments.ledger) as ledger, contextlib.closing(state):
        uplink = Uplink(
            broker=broker,
            settings=settings,
            tenant=tenant,
            device=device,
            outbox=state,
            clock=clock.now,
            random=SystemRandom(),
            obey=control.obey,
        )
        meterer = Meterer(
            tenant=tenant,
            device=device,
            source=source,
            state=state,
            ledger=ledger,
            clock=clock.now,
            say=_say,
        )
        _say(f"metering {source.name} as {tenant}/{device}")
        drained = asyncio.run(_run(arguments, uplink, meterer, control, source))
        traffic = uplink.traffic
        _say(
            f"done: readings {traffic.readings}  resent {traffic.resent}  pending {len(state)}"
            f"  acknowledged {traffic.acknowledged}  rejected {traffic.rejected.total()}"
            f"  commands {traffic.obeyed.total()} obeyed, {traffic.disobeyed.total()} refused"
        )
    return 0 if drained and not traffic.rejected else 1


def _source_and_actor(arguments: argparse.Namespace) -> tuple[Source, Actor | None]:
    """Return what is metered, and what obeys; raises `InvalidValue` for what does not fit together."""
    if arguments.interface is None and arguments.modem is None and arguments.serial is None:
        raise InvalidValue(
            "interface", "nothing to meter is named", "give --interface, --modem or --serial"
        )
    if arguments.serial is not None and (arguments.modem or arguments.interface):
        raise InvalidValue("serial", "meters the same octets again", "give one of them")
    if arguments.hook is not None and arguments.disconnect:
        raise InvalidValue("hook", "obeys the same commands as --disconnect", "give one of them")
    if arguments.disconnect and arguments.modem is None:
        raise InvalidValue("disconnect", "needs ModemManager", "give --modem, or use --hook")
    actor: Actor | None = None if arguments.hook is None else Hook(arguments.hook)
    if arguments.serial is not None:
        return AtSource(arguments.serial, vendor=arguments.at, baud=arguments.baud), actor
    if arguments.modem is None:
        interface = checked_interface(NET_FOLDER, arguments.interface)
        return InterfaceSource(interface, width=arguments.width), actor
    modem = ModemManager(
        imei=None if arguments.modem == "any" else arguments.modem, interface=arguments.interface
    )
    return modem, modem if arguments.disconnect else actor


async def _run(
    arguments: argparse.Namespace,
    uplink: Uplink,
    meterer: Meterer,
    control: Control,
    source: Source,
) -> bool:
    try:
        return await run_agent(
            meterer,
            uplink,
            control,
            stopping=_stopping(arguments.for_seconds),
            interval_seconds=arguments.interval,
            drain_seconds=arguments.drain,
        )
    finally:
        await source.close()


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
