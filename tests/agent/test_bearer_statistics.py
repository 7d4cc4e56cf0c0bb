"""Bearer statistics as no modem here tells them: wraps, resets, new connections, a daemon that restarts.

The other side is python-dbusmock's, on a real bus.
"""

import asyncio
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Variant

from metering.agent.modem_manager import ModemManager
from metering.agent.state import StateFile
from tests.agent.conftest import program
from tests.agent.dbus_calls import ROOT, SERVICE, Call, appears, on_bus

MODEM, BEARER = f"{ROOT}/Modem/0", f"{ROOT}/Bearer/0"
IMEI = "356938035643809"
START = 1_795_433_934


class Manager:
    """A ModemManager that says what a test tells it to, and the agent's memory."""

    def __init__(self, address: str, folder: Path) -> None:
        self.net = folder / "net"
        self.state = StateFile(folder / "agent.db", tenant="t", device="d", kernel_boot="k")
        self._address = address
        self._mock = program("python3-dbusmock")
        self._process = self._started()
        self.interface: str | None = None

    def close(self) -> None:
        self.state.close()
        self._stop()

    def restart(self) -> None:
        """Be a new process on the bus: bearers are numbered from 0 again."""
        self._stop()
        self._process = self._started()

    def show(self, up: int, down: int, *, start: int = START, reloads: bool | None = True) -> None:
        """Have one connected bearer with these statistics."""
        stats = {
            "tx-bytes": Variant("t", up),
            "rx-bytes": Variant("t", down),
            "start-date": Variant("t", start),
            "attempts": Variant("u", 1),
        }
        properties = {
            "Interface": Variant("s", "wwan0"),
            "Connected": Variant("b", True),  # noqa: FBT003 - D-Bus
            "Stats": Variant("a{sv}", stats),
            "Properties": Variant("a{sv}", {"apn": Variant("s", "internet")}),
        }
        if reloads is not None:
            properties["ReloadStatsSupported"] = Variant("b", reloads)
        asyncio.run(on_bus(self._address, lambda call: _shown(call, properties)))

    def carry(self, up: int, down: int) -> None:
        folder = self.net / "wwan0" / "statistics"
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "ifindex").write_text("3\n")
        (folder / "tx_bytes").write_text(str(up))
        (folder / "rx_bytes").write_text(str(down))

    def used(self) -> tuple[int, int]:
        """Measure; return what was used since the measurement before, as the readings tell it."""

        async def samples() -> Any:  # noqa: ANN401
            agent = ModemManager(bus_address=self._address, folder=self.net)
            try:
                return await agent.samples()
            finally:
                await agent.close()

        found = asyncio.run(samples())
        for sample in found.watched:
            self.state.watch(sample)
        for sample in found.metered:
            self.state.measure(sample, datetime.now(UTC))
        held = self.state.held()
        for one in held:
            self.state.release(one.position)
        return sum(one.used[0] for one in held), sum(one.used[1] for one in held)

    def epochs(self) -> list[str]:
        return list(dict.fromkeys(str(one.reading.epoch) for one in self.state.pending(100)))

    def _started(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [
                *(self._mock.path("usr/bin/python3.*[0-9]"), "-m", "dbusmock", "-m", "--session"),
                *(SERVICE, ROOT, "org.example.None"),
            ],
            env=self._mock.environment | {"DBUS_SESSION_BUS_ADDRESS": self._address},
            stderr=subprocess.DEVNULL,
        )
        asyncio.run(on_bus(self._address, appears))
        return process

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait()


async def _shown(call: Call, properties: dict[str, Variant]) -> None:
    mock = "org.freedesktop.DBus.Mock"
    await call(ROOT, mock, "Reset")
    modem = {
        "EquipmentIdentifier": Variant("s", IMEI),
        "Sim": Variant("o", "/"),
        "Bearers": Variant("ao", [BEARER]),
        "AccessTechnologies": Variant("u", 1 << 14),
        "SignalQuality": Variant("(ub)", (83, True)),
    }
    for path, interface, values in (
        (BEARER, f"{SERVICE}.Bearer", properties),
        (MODEM, f"{SERVICE}.Modem", modem),
    ):
        await call(
            path if path == "" else ROOT,
            mock,
            "AddObject",
            "ssa{sv}a(ssss)",
            path,
            interface,
            values,
            [],
        )


@pytest.fixture
def manager(bus_address: str, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(bus_address, tmp_path)
    yield made
    made.close()


def test_a_connection_counts_from_its_start_and_the_first_one_from_where_it_stood(
    manager: Manager,
) -> None:
    manager.show(1000, 5000)
    assert manager.used() == (0, 0)
    manager.show(1500, 5001)
    assert manager.used() == (500, 1)
    manager.show(70, 80, start=START + 3600)
    assert manager.used() == (70, 80)
    manager.restart()
    manager.show(100, 200, start=START + 3600)  # the same second and number, another daemon
    assert manager.used() == (100, 200)
    assert len(manager.epochs()) == 3
    assert all(one.startswith("bearer,octets,30s/k/") for one in manager.epochs())


def test_statistics_that_fall_within_a_connection_begin_an_epoch(manager: Manager) -> None:
    manager.show(1000, 2**32 - 50)
    manager.used()
    manager.show(1100, 30)
    assert manager.used() == (100, 30)  # 64 bits by their type: no wrap, so they began again
    manager.show(1200, 2**32 + 30)
    assert manager.used() == (100, 2**32)
    assert manager.epochs()[1] == f"{manager.epochs()[0]}/1"


def test_what_the_bearer_counts_is_not_metered_again_by_its_interface(manager: Manager) -> None:
    manager.carry(100, 100)
    manager.show(0, 0)
    assert manager.used() == (0, 0)
    manager.carry(1100, 2100)
    manager.show(900, 1900)
    assert manager.used() == (900, 1900)
    manager.show(0, 0, start=START + 60, reloads=False)  # a modem that lost its counters
    manager.carry(1110, 2120)
    assert manager.used() == (10, 20)


@pytest.mark.parametrize("reloads", [False, None])
def test_a_bearer_without_byte_source_is_metered_by_its_interface(
    manager: Manager,
    reloads: bool | None,  # noqa: FBT001
) -> None:
    manager.carry(100, 100)
    manager.show(0, 0, reloads=reloads)
    assert manager.used() == (0, 0)
    manager.carry(175, 125)
    assert manager.used() == (75, 25)
    assert manager.epochs() == ["interface,octets/k/wwan0/3"]


def test_while_modem_manager_is_away_there_is_no_reading(manager: Manager) -> None:
    manager.show(5, 5)
    manager.used()
    manager._stop()
    assert manager.used() == (0, 0)
    assert len(manager.state) == 1
    manager.restart()
