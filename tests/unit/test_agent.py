"""The agent: what it meters, what it numbers, what it keeps."""

import argparse
import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from metering.agent import command
from metering.agent.agent import Meterer
from metering.agent.counters import (
    InterfaceCounters,
    InterfaceSource,
    checked_interface,
    interface_sample,
    interfaces,
    kernel_boot_id,
    read_counters,
)
from metering.agent.epoch import CounterState, observed, used_since
from metering.agent.sample import Sample
from metering.agent.state import StateFile
from metering.errors import InvalidValue, NotFound
from metering.settings import Settings
from metering.uplink.ledger import LedgerFile
from metering.wire.ack import Ack, RejectedReading
from metering.wire.ledger import LedgerLine, read_ledger

START = datetime(2026, 3, 1, tzinfo=UTC)


class Machine:
    """A folder of files like /sys/class/net, and an agent's folder beside it."""

    def __init__(self, folder: Path) -> None:
        self.net = folder / "net"
        self.net.mkdir()
        self.state_path = folder / "state" / "agent.db"
        self.ledger_path = folder / "ledger.jsonl"
        self.said: list[str] = []
        self.now = START
        self.kernel_boot = "kernel-1"
        self.readings_max = 100
        self.width = 64
        self.state = self._state()

    def carry(self, up: int, down: int, *, ifindex: int = 2, interface: str = "wwan0") -> None:
        folder = self.net / interface
        (folder / "statistics").mkdir(parents=True, exist_ok=True)
        (folder / "ifindex").write_text(f"{ifindex}\n")
        (folder / "statistics" / "tx_bytes").write_text(f"{up}\n")
        (folder / "statistics" / "rx_bytes").write_text(f"{down}\n")

    def restart(self, *, kernel_boot: str | None = None) -> None:
        """Start the agent again, perhaps after the machine itself."""
        self.kernel_boot = kernel_boot or self.kernel_boot
        self.state.close()
        self.state = self._state()

    def measure(self, interface: str = "wwan0") -> bool:
        self.now += timedelta(seconds=5)
        with LedgerFile(self.ledger_path) as ledger:
            meterer = Meterer(
                tenant="demo",
                device="gateway-1",
                source=InterfaceSource(interface, folder=self.net, width=self.width),
                state=self.state,
                ledger=ledger,
                clock=lambda: self.now,
                say=self.said.append,
            )
            return asyncio.run(meterer.measure())

    def pending(self) -> list[tuple[str, int, int, int]]:
        """Released readings as (numbering boot's count, seq, up, down)."""
        return [
            (one.boot.rpartition("-")[2], one.reading.seq, one.reading.uplink, one.reading.downlink)
            for one in self.state.pending(1000)
        ]

    def ledger(self) -> list[LedgerLine]:
        with self.ledger_path.open() as lines:
            return list(read_ledger(lines))

    def _state(self) -> StateFile:
        return StateFile(
            self.state_path,
            tenant="demo",
            device="gateway-1",
            kernel_boot=self.kernel_boot,
            readings_max=self.readings_max,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.state.close()


def boot_of(machine: Machine) -> str:
    return machine.state.pending(1)[0].boot


def test_counters_are_read_and_their_absence_is_not_zero(machine: Machine) -> None:
    machine.carry(5, 7)
    (machine.net / "bonding_masters").write_text("")
    assert read_counters(machine.net, "wwan0") == InterfaceCounters(ifindex=2, up=5, down=7)
    assert interfaces(machine.net) == ["wwan0"]
    assert checked_interface(machine.net, "wwan0") == "wwan0"
    (machine.net / "wwan0" / "statistics" / "tx_bytes").unlink()
    assert read_counters(machine.net, "wwan0") is None
    assert read_counters(machine.net, "eth9") is None
    with pytest.raises(InvalidValue, match="wwan0"):
        checked_interface(machine.net, "../eth0")
    with pytest.raises(NotFound):
        kernel_boot_id(machine.net / "missing")


def test_traffic_from_before_the_installation_is_not_metered(machine: Machine) -> None:
    machine.carry(1000, 2000)
    machine.measure()
    machine.carry(1100, 2300)
    machine.measure()
    machine.restart()
    machine.carry(1150, 2300)
    machine.measure()
    assert machine.pending() == [("1", 1, 0, 0), ("1", 2, 100, 300), ("1", 3, 150, 300)]
    assert [(line.used_up, line.used_down) for line in machine.ledger()] == [
        (0, 0),
        (100, 300),
        (50, 0),
    ]


def test_after_a_reboot_counting_begins_at_zero_in_a_new_epoch_and_boot(machine: Machine) -> None:
    machine.carry(1000, 2000)
    machine.measure()
    machine.restart(kernel_boot="kernel-2")
    machine.carry(40, 50)
    machine.measure()
    assert machine.pending() == [("1", 1, 0, 0), ("2", 1, 40, 50)]
    assert [line.epoch for line in machine.ledger()] == [
        "interface,octets/kernel-1/wwan0/2",
        "interface,octets/kernel-2/wwan0/2",
    ]
    assert len({line.boot for line in machine.ledger()}) == 2


def test_an_interface_that_is_made_anew_begins_at_zero(machine: Machine) -> None:
    machine.carry(1000, 2000)
    machine.measure()
    machine.carry(1500, 10, ifindex=3)
    machine.measure()
    assert machine.pending()[1] == ("1", 2, 1500, 10)
    assert machine.ledger()[1].epoch == "interface,octets/kernel-1/wwan0/3"


def octets(up: int, down: int, *, width: int = 64) -> Sample:
    return interface_sample("wwan0", InterfaceCounters(ifindex=2, up=up, down=down), width)


def states(*samples: Sample) -> list[CounterState]:
    """Each state after a sample, from the first that was ever seen."""
    found: list[CounterState] = []
    for sample in samples:
        found.append(observed(found[-1] if found else None, sample, "k"))
    return found


def test_a_counter_that_falls_begins_an_epoch_without_losing_or_repeating_usage() -> None:
    first, grown, fallen, later = states(
        octets(100, 100), octets(150, 130), octets(20, 140), octets(25, 141)
    )
    assert [state.counted for state in (first, grown, fallen, later)] == [
        (0, 0),
        (50, 30),
        (20, 10),  # up began again at 0; down grew by 10
        (25, 11),
    ]
    assert [state.epoch for state in (grown, fallen)] == [
        "interface,octets/k/wwan0/2",
        "interface,octets/k/wwan0/2/1",
    ]
    assert used_since(grown, fallen) == (20, 10)
    assert used_since(fallen, later) == (5, 1)


def test_a_counter_of_32_bits_goes_on_over_its_wrap_and_a_reset_is_none() -> None:
    top = 2**32 - 100
    wrapped = states(octets(top, 0, width=32), octets(50, 10, width=32), octets(60, 20, width=32))
    assert [state.counted for state in wrapped] == [(0, 0), (150, 10), (160, 20)]
    assert len({state.epoch for state in wrapped}) == 1
    reset = states(octets(1000, 0, width=32), octets(50, 10, width=32))
    assert [(state.falls, state.counted) for state in reset] == [(0, (0, 0)), (1, (50, 10))]
    assert states(octets(top, 0), octets(50, 10))[1].falls == 1  # no 64-bit counter wraps there


def test_a_counter_that_outlives_the_kernel_goes_on_in_a_new_epoch() -> None:
    sample = replace(octets(1000, 2000), survives_boot=True)
    first = observed(None, sample, "k1")
    after = observed(first, replace(sample, up=1300, down=2400), "k2")
    assert after.counted == (300, 400)
    assert after.epoch != first.epoch
    cleared = observed(after, replace(sample, up=7, down=8), "k3")
    assert cleared.counted == (7, 8)


def test_what_is_only_watched_is_never_metered(machine: Machine) -> None:
    machine.state.measure(octets(1000, 1000), START)
    machine.state.watch(octets(5000, 6000))
    machine.state.measure(octets(5010, 6020), START)
    held = machine.state.held()
    assert [(one.reading.uplink, one.used) for one in held] == [(10, (10, 20))]


def test_what_no_reading_can_carry_is_left_out(machine: Machine) -> None:
    sample = replace(octets(1, 2), apn="my internet", rat="x" * 65, zone="26201", session="a b")
    machine.state.measure(sample, START)
    (held,) = machine.state.held()
    reading = held.reading
    assert (reading.apn, reading.rat, reading.zone, reading.session) == (None, None, "26201", None)
    machine.carry(2**53, 0)
    machine.measure()
    machine.carry(5, 0)
    machine.measure()
    assert "ignored" in machine.said[0]
    assert [up for _, _, up, _ in machine.pending()] == [0, 4]


def test_the_first_of_a_family_has_a_baseline_and_the_next_counts_from_zero(
    machine: Machine,
) -> None:
    for number in (1, 2):
        bearer = replace(octets(100, 200), counter=f"bearer-{number}", family="bearers")
        machine.state.measure(bearer, START)
    assert [one.reading.uplink for one in machine.state.held()] == [0, 100]


def test_counters_side_by_side_hold_one_reading_each_while_the_outbox_is_full(
    machine: Machine,
) -> None:
    for number in range(6):
        for counter in ("a", "b"):
            machine.state.measure(replace(octets(number, 0), counter=counter), START)
    held = machine.state.held()
    assert [(one.reading.seq, one.reading.uplink, one.used[0]) for one in held] == [
        (1, 5, 5),
        (2, 5, 5),
    ]
    assert not any(machine.state.is_of_an_ended_epoch(one) for one in held)


def test_no_number_is_given_twice_whatever_is_acknowledged_or_restarted(machine: Machine) -> None:
    machine.carry(0, 0)
    machine.measure()
    machine.measure()
    machine.state.acknowledge(Ack(boot=boot_of(machine), up_to=2, highest=2))
    assert len(machine.state) == 0
    machine.restart()
    machine.measure()
    assert [seq for _, seq, _, _ in machine.pending()] == [3]


def test_a_full_outbox_holds_the_newest_reading_back_and_loses_nothing(machine: Machine) -> None:
    machine.readings_max = 2
    machine.restart()
    for octets in (0, 10, 20, 30, 40):
        machine.carry(octets, octets)
        machine.measure()
    assert machine.pending() == [("1", 1, 0, 0), ("1", 2, 10, 10)]
    machine.restart()
    machine.state.acknowledge(Ack(boot=boot_of(machine), up_to=1, highest=1))
    machine.carry(50, 50)
    machine.measure()
    assert machine.pending() == [("1", 2, 10, 10), ("1", 3, 50, 50)]
    assert [line.used_up for line in machine.ledger()] == [0, 10, 40]


def test_a_held_reading_of_an_ended_epoch_is_released_although_the_outbox_is_full(
    machine: Machine,
) -> None:
    machine.readings_max = 1
    machine.restart()
    for octets in (0, 10, 20):
        machine.carry(octets, octets)
        machine.measure()
    machine.restart(kernel_boot="kernel-2")
    machine.carry(3, 3)
    machine.measure()
    machine.state.acknowledge(Ack(boot=boot_of(machine), up_to=2, highest=2))
    machine.carry(4, 4)
    machine.measure()
    assert machine.pending() == [("2", 1, 4, 4)]
    assert [(line.up, line.used_up) for line in machine.ledger()] == [(0, 0), (20, 20), (4, 4)]


def test_what_is_rejected_is_forgotten(machine: Machine) -> None:
    machine.carry(0, 0)
    machine.measure()
    machine.measure()
    refusal = RejectedReading(seq=2, reason="clock_ahead", detail="measured tomorrow")
    boot = boot_of(machine)
    settled = machine.state.acknowledge(Ack(boot=boot, up_to=0, highest=0, rejected=(refusal,)))
    assert settled.rejected == (refusal,)
    assert [seq for _, seq, _, _ in machine.pending()] == [1]


def test_an_interface_that_goes_is_told_once_and_gives_no_reading(machine: Machine) -> None:
    said: list[str] = []
    with LedgerFile(None) as ledger:
        meterer = Meterer(
            tenant="demo",
            device="gateway-1",
            source=InterfaceSource("wwan0", folder=machine.net),
            state=machine.state,
            ledger=ledger,
            clock=lambda: START,
            say=said.append,
        )
        assert not asyncio.run(meterer.measure())
        assert not asyncio.run(meterer.measure())
        machine.carry(0, 0)
        assert asyncio.run(meterer.measure())
    assert [line.split(";")[0] for line in said] == ["wwan0 has no counters now", "wwan0 is back"]
    assert len(machine.state) == 1


def test_a_state_is_of_one_agent_and_of_one_device(machine: Machine) -> None:
    with pytest.raises(InvalidValue, match="stop the other agent"):
        StateFile(machine.state_path, tenant="demo", device="gateway-1", kernel_boot="kernel-1")
    machine.state.close()
    with pytest.raises(InvalidValue, match="demo/gateway-1"):
        StateFile(machine.state_path, tenant="demo", device="gateway-2", kernel_boot="kernel-1")


def test_an_interface_that_does_not_exist_is_refused_at_start() -> None:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    given = parser.parse_args(["--interface", "none0", "--tenant", "demo", "--device", "gateway-1"])
    with pytest.raises(InvalidValue, match="none0"):
        command.run(given, Settings(_env_file=None))
