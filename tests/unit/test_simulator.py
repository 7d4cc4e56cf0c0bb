"""The simulator's arguments, faults and moments."""

import argparse
import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from device_sim import command
from device_sim.device import Habits, boot_id, grown, may_reset, moments
from device_sim.faults import Faults
from device_sim.groups import Group
from device_sim.profile import profile_of, rhythm
from device_sim.scene import Scenario
from device_sim.simulation import Simulation
from metering import clock
from metering.broker_address import parse_broker_url
from metering.errors import InvalidValue
from metering.settings import Settings
from metering.uplink.ledger import LedgerFile

AT = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)  # a Monday


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(given)


def rng(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - a test


def test_groups_name_their_devices() -> None:
    assert Group.parse("truck:2").devices() == ["truck-0001", "truck-0002"]
    given = command.scenario_of(
        arguments("--group", "truck:1", "--group", "meter:1", "--seed", "5")
    )
    assert (given.devices, given.seed, given.tenant) == (["truck-0001", "meter-0001"], 5, "demo")


@pytest.mark.parametrize("text", ["truck", "truck:0", "truck:-1", "a/b:2", ":3", "truck:x", "+:1"])
def test_a_group_that_names_no_devices_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="group"):
        Group.parse(text)


@pytest.mark.parametrize(
    "given",
    [
        ("--duplicates", "1.5"),
        ("--reorder", "-0.1"),
        ("--resets", "nan"),
        ("--interval", "0"),
        ("--readings", "0"),
        ("--tenant", "a/b"),
        ("--group", "a:1", "--group", "a:2"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(InvalidValue):
        command.scenario_of(arguments(*given))


def test_a_day_has_a_rhythm() -> None:
    noon, night = rhythm(AT, 0), rhythm(AT - timedelta(hours=9), 0)
    assert noon > 5 * night
    assert rhythm(AT, 0) == rhythm(AT - timedelta(hours=2), 2)
    assert rhythm(AT + timedelta(days=5), 0) < noon


def test_about_the_asked_share_counts_cumulatively() -> None:
    profiles = [profile_of(rng(seed), 0.4) for seed in range(1000)]
    assert 350 < sum(profile.cumulative for profile in profiles) < 450
    assert {profile.width for profile in profiles if profile.cumulative} == {32, 64, None}
    assert not any(profile_of(rng(seed), 0).cumulative for seed in range(50))


def test_moments_are_different_ascending_and_never_in_the_future() -> None:
    found = moments(rng(1), AT, AT + timedelta(seconds=1), 50)
    assert found == sorted(set(found))
    assert len(found) == 50
    assert found[0] > AT
    assert found[-1] <= AT + timedelta(seconds=1)
    assert len(moments(rng(1), AT, AT + timedelta(microseconds=3), 5)) == 3
    assert moments(rng(1), AT, AT - timedelta(seconds=1), 5) == []


def test_a_boot_has_another_name_in_another_run_or_on_another_device() -> None:
    later = AT + timedelta(microseconds=1)
    names = {
        boot_id(1, "a", AT, 1),
        boot_id(2, "a", AT, 1),
        boot_id(1, "b", AT, 1),
        boot_id(1, "a", later, 1),
        boot_id(1, "a", AT, 2),
    }
    assert len(names) == 5
    assert boot_id(1, "a", AT, 1) in names


def test_a_counter_wraps_at_its_width_and_resets_only_below_its_top_quarter() -> None:
    assert grown(2**32 - 100, 150, 32) == 50
    assert grown(2**32 - 100, 150, None) == 2**32 + 50
    assert may_reset((5, 3 * 2**30 - 1), 32)
    assert not may_reset((5, 3 * 2**30), 32)
    assert not may_reset((0, 5), 32)
    assert may_reset((2**40, 2**63), 64)


def test_faults_repeat_and_reorder_but_lose_nothing() -> None:
    payloads = [str(number).encode() for number in range(500)]
    faults: Faults[bytes] = Faults(rng(1), duplicates=0.1, reorder=0.1)
    published = [out for payload in payloads for out in faults.disturb(payload)]
    assert len(published) > 520
    assert set(payloads[:-1]) <= set(published)
    first = [published.index(payload) for payload in payloads[:-1]]
    assert first != sorted(first)
    quiet: Faults[bytes] = Faults(rng(1), duplicates=0, reorder=0)
    assert [out for payload in payloads for out in quiet.disturb(payload)] == payloads


def test_without_a_broker_nothing_is_lost_and_the_run_says_so(tmp_path: Path) -> None:
    scenario = Scenario(
        tenant="demo",
        devices=["truck-0001", "truck-0002"],
        seed=1,
        for_seconds=0.3,
        interval_seconds=0.05,
        habits=Habits(),
        drain_seconds=0.1,
    )

    async def scene() -> None:
        with LedgerFile(tmp_path / "ledger.jsonl") as ledger:
            tally = await Simulation(
                scenario,
                brokers=lambda _: parse_broker_url("mqtt://127.0.0.1:1"),
                settings=Settings(_env_file=None),
                ledger=ledger,
                clock=clock.now,
                say=print,
            ).run()
        lines = (tmp_path / "ledger.jsonl").read_text().count("\n")
        assert tally.pending == lines > 0
        assert not tally.is_clean
        assert tally.traffic.acknowledged == 0

    asyncio.run(scene())
