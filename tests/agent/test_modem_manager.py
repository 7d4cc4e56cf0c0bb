"""The agent and the real ModemManager, in its test mode, with a modem that answers AT commands."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Variant

from metering.agent.control import Control
from metering.agent.modem_manager import ModemManager
from metering.agent.sample import Samples
from metering.agent.state import StateFile
from metering.wire.command import Command, CommandKind
from tests.agent.conftest import program
from tests.agent.dbus_calls import ROOT, SERVICE, Call, appears, on_bus
from tests.agent.virtual_modem import GSM, IMEI, VirtualModem

MODEM = f"{ROOT}/Modem/0"
_OPTIONS = ("--test-session", "--test-enable", "--test-no-udev", "--test-no-suspend-resume")
_REGISTERED = 8


@dataclass(frozen=True)
class Scene:
    """The daemon's bus, the modem behind it, its bearer, and a folder like /sys/class/net."""

    address: str
    modem: VirtualModem
    bearer: str
    net: Path

    def agent(self, interface: str | None = None) -> ModemManager:
        return ModemManager(bus_address=self.address, folder=self.net, interface=interface)

    def call(self, interface: str, member: str) -> None:
        async def work(call: Call) -> None:
            await call(self.bearer, interface, member)

        asyncio.run(on_bus(self.address, work))

    @property
    def is_connected(self) -> bool:
        async def work(call: Call) -> bool:
            name = f"{SERVICE}.Bearer"
            answer = await call(
                self.bearer, "org.freedesktop.DBus.Properties", "Get", "ss", name, "Connected"
            )
            return bool(answer.value)

        return bool(asyncio.run(on_bus(self.address, work)))

    def samples(self, interface: str | None = None) -> Samples:
        async def work() -> Samples:
            agent = self.agent(interface)
            try:
                return await agent.samples()
            finally:
                await agent.close()

        return asyncio.run(work())

    def carry(self, interface: str, up: int, down: int) -> None:
        folder = self.net / interface / "statistics"
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "ifindex").write_text("7\n")
        (folder / "tx_bytes").write_text(f"{up}\n")
        (folder / "rx_bytes").write_text(f"{down}\n")


@pytest.fixture(scope="module")
def scene(bus_address: str, short_folder: Path) -> Iterator[Scene]:
    manager = program("modemmanager")
    plugins = manager.path("usr/lib/*/ModemManager")
    daemon = subprocess.Popen(
        [
            manager.path("usr/sbin/ModemManager"),
            *(*_OPTIONS, "--test-no-qrtr", "--no-auto-scan", f"--test-plugin-dir={plugins}"),
        ],
        env=manager.environment | {"DBUS_SESSION_BUS_ADDRESS": bus_address},
        stderr=subprocess.DEVNULL,
    )
    modem = VirtualModem(dict(GSM)).on_socket(short_folder / "port")
    try:
        bearer = asyncio.run(on_bus(bus_address, lambda call: _connected(call, short_folder)))
        yield Scene(address=bus_address, modem=modem, bearer=bearer, net=short_folder / "net")
    finally:
        daemon.terminate()
        daemon.wait()
        modem.close()


async def _connected(call: Call, folder: Path) -> str:
    """Give the daemon its modem; return the path of a bearer that it connected."""
    await appears(call)
    ports = [str(folder / "port")]
    await call(ROOT, f"{SERVICE}.Test", "SetProfile", "ssas", "virtual", "generic", ports)
    await _reaches(call, 3)
    await call(MODEM, f"{SERVICE}.Modem", "Enable", "b", True)  # noqa: FBT003
    await _reaches(call, _REGISTERED)
    wanted = {"apn": Variant("s", "internet")}
    bearer = await call(MODEM, f"{SERVICE}.Modem", "CreateBearer", "a{sv}", wanted)
    await call(bearer, f"{SERVICE}.Bearer", "Connect")
    return str(bearer)


async def _reaches(call: Call, state: int) -> None:
    async with asyncio.timeout(30):
        while True:
            objects: dict[str, Any] = await call(
                ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"
            )
            if MODEM in objects and objects[MODEM][f"{SERVICE}.Modem"]["State"].value >= state:
                return
            await asyncio.sleep(0.1)


def test_modem_sim_network_and_signal_are_what_the_modem_told(scene: Scene) -> None:
    assert scene.samples().notes[:3] == (
        f"modem {IMEI}: SIM 8944500000000000001, IMSI 001010123456789",
        f"modem {IMEI}: network 00101 Test PLMN, umts",
        f"modem {IMEI}: signal about 50 %",
    )


def test_a_bearer_that_nobody_counts_is_no_idle_bearer(scene: Scene) -> None:
    """ModemManager shows 0 octets for ever: this modem has no command that tells them."""
    samples = scene.samples()
    assert not samples.metered
    assert "is not metered" in samples.notes[-1]


def test_a_bearer_that_nobody_counts_is_metered_by_its_interface(scene: Scene) -> None:
    scene.carry("ppp0", 1000, 2000)
    (sample,) = scene.samples("ppp0").metered
    assert (sample.source, sample.up, sample.down) == ("interface", 1000, 2000)
    assert (sample.zone, sample.rat, sample.apn) == ("00101", "umts", "internet")
    bearer, owner, start = str(sample.session).split("/")
    assert bearer == "bearer-0"
    assert owner
    assert start.isdigit()


def test_a_suspended_device_is_taken_down_stays_down_and_comes_back(
    scene: Scene, tmp_path: Path
) -> None:
    state = StateFile(tmp_path / "agent.db", tenant="t", device="d", kernel_boot="k")

    async def obey(kind: CommandKind | None, number: int = 1) -> str | None:
        agent = scene.agent()
        control = Control(state=state, actor=agent, say=lambda _: None)
        try:
            if kind is None:
                await control.enforce()
                return None
            rate = {"octets_per_second": 100} if kind is CommandKind.THROTTLE else {}
            document = {"id": f"{number}", "number": number, "kind": kind, **rate}
            return await control.obey(Command.model_validate(document))
        finally:
            await agent.close()

    assert scene.is_connected
    assert "hook" in str(asyncio.run(obey(CommandKind.THROTTLE, 1)))
    assert asyncio.run(obey(CommandKind.SUSPEND, 2)) is None
    assert not scene.is_connected
    assert "AT+CGACT=0,1" in scene.modem.asked
    scene.call(f"{SERVICE}.Bearer", "Connect")
    asyncio.run(obey(None))  # by an agent that was started anew since
    assert not scene.is_connected
    assert asyncio.run(obey(CommandKind.RESUME, 3)) is None
    assert scene.is_connected
    assert not state.limits.is_suspended
    state.close()


def test_the_command_meters_over_the_system_bus(scene: Scene, tmp_path: Path) -> None:
    """No broker answers: what is metered waits on disk."""
    command = (sys.executable, "-m", "metering.cli", "agent", "--modem", IMEI, "--interface", "lo")
    done = subprocess.run(
        [
            *(*command, "--tenant", "t", "--device", "d", "--broker", "mqtt://127.0.0.1:9"),
            *("--state", str(tmp_path), "--for", "0.1", "--interval", "0.05", "--drain", "0"),
        ],
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": scene.address},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert f"metering modem {IMEI} as t/d" in done.stdout
    with_boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    state = StateFile(tmp_path / "agent.db", tenant="t", device="d", kernel_boot=with_boot)
    pending = state.pending(100)
    assert pending
    assert pending[0].reading.epoch == f"interface,octets/{with_boot}/lo/1"
    assert str(pending[0].reading.session).startswith("bearer-")
    state.close()
