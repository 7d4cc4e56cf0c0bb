"""A simulated device's readings, seen through the platform's eyes, say what its ledger says."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from device_sim.device import Device, Habits, Measured, moments
from metering.rating.counter import CounterEvent, CounterPoint, growth
from metering.usage import DATA, Reading, ReadingKind
from metering.wire import native
from metering.wire.command import Command, CommandKind

START = datetime(2026, 3, 1, tzinfo=UTC)
COUNTING = Habits(cumulative_share=1.0, reset_rate=0.1, reboot_rate=0.02)
MIXED = Habits(cumulative_share=0.5, reset_rate=0.1, reboot_rate=0.02)
Published = tuple[str, Measured]


def published(seed: int, messages: int, habits: Habits, *, hours: float = 1.0) -> list[Published]:
    """Return what a device publishes in so many messages of up to five readings each."""
    device = Device(seed=seed, device="truck-0001", started=START, habits=habits)
    random = Random(seed)  # noqa: S311 - a test
    told: list[Published] = []
    until = START
    for _ in range(messages):
        since, until = until, until + timedelta(hours=hours * random.random())
        boot, measured = device.measure(moments(random, since, until, 5))
        told += [(boot, one) for one in measured]
    return told


def replayed(arriving: Sequence[tuple[str, Reading]], boots: list[str]) -> dict[str, list[int]]:
    """Return each epoch and meter's usage when readings are charged as they come, each once."""
    known: dict[str, list[CounterPoint]] = {}
    usage: dict[str, list[int]] = {}
    for boot, reading in arriving:
        key = f"{reading.epoch} {reading.meter.meter}"
        points = known.setdefault(key, [])
        point = CounterPoint(
            boot_no=boots.index(boot),
            seq=reading.seq,
            at=reading.at,
            values=values(reading),
            width=reading.width,
        )
        if any(other.order == point.order for other in points):
            continue
        before = [other for other in points if other.order < point.order]
        after = [other for other in points if other.order > point.order]
        added = growth(
            max(before, key=lambda other: other.order, default=None),
            point,
            min(after, key=lambda other: other.order, default=None),
        )
        points.append(point)
        total = usage.setdefault(key, [0] * len(point.values))
        usage[key] = [was + new for was, new in zip(total, added.quantities, strict=True)]
    return usage


def values(reading: Reading) -> tuple[int, ...]:
    directed = reading.meter.directed
    return (reading.uplink, reading.downlink) if directed else (reading.quantity,)


def truth(told: list[Published]) -> dict[str, list[int]]:
    usage: dict[str, list[int]] = {}
    for _, one in told:
        key = f"{one.reading.epoch} {one.reading.meter.meter}"
        total = usage.setdefault(key, [0] * len(one.used))
        usage[key] = [was + new for was, new in zip(total, one.used, strict=True)]
    return usage


@given(st.integers(0, 2**32), st.integers(1, 25), st.randoms(use_true_random=False))
def test_counters_replayed_in_any_order_and_twice_give_what_was_truly_used(
    seed: int, messages: int, network: Random
) -> None:
    told = published(seed, messages, COUNTING)
    boots = list(dict.fromkeys(boot for boot, _ in told))
    arriving = [(boot, one.reading) for boot, one in told]
    arriving += network.choices(arriving, k=5) if arriving else []
    network.shuffle(arriving)
    assert replayed(arriving, boots) == truth(told)


def test_in_order_each_reading_adds_exactly_its_line() -> None:
    events: set[CounterEvent | None] = set()
    for seed in range(60):
        last: dict[str, CounterPoint] = {}
        # Weeks between the messages of some: then a reading would use more than a counter holds.
        for _, one in published(seed, 60, COUNTING, hours=2000.0 if seed % 3 == 0 else 1.0):
            reading = one.reading
            key = f"{reading.epoch} {reading.meter.meter}"
            point = CounterPoint(
                boot_no=1,
                seq=reading.seq,
                at=reading.at,
                values=values(reading),
                width=reading.width,
            )
            added = growth(last.get(key), point, None)
            assert added.quantities == one.used
            events.add(added.event)
            last[key] = point
    assert events == {None, CounterEvent.WRAP, CounterEvent.RESET}


@given(st.integers(0, 2**32), st.integers(1, 10))
def test_the_same_seed_and_instants_give_the_same_readings(seed: int, messages: int) -> None:
    assert published(seed, messages, MIXED) == published(seed, messages, MIXED)


@given(st.integers(0, 2**32), st.integers(1, 25))
def test_numbers_count_from_one_in_each_boot_and_time_only_goes_on(
    seed: int, messages: int
) -> None:
    told = published(seed, messages, MIXED)
    for boot in dict.fromkeys(boot for boot, _ in told):
        seqs = [one.reading.seq for of, one in told if of == boot]
        assert seqs == list(range(1, len(seqs) + 1))
    instants = [one.reading.at for _, one in told]
    assert all(before < after for before, after in pairwise(instants))
    sinces = [(one.reading.since, one.reading.at) for _, one in told]
    assert all(since is None or since <= at for since, at in sinces)


@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 5_000_000), st.integers(1, 20))
def test_moments_are_never_in_the_future(
    seed: int, days: int, microseconds: int, count: int
) -> None:
    now = START + timedelta(days=days, microseconds=microseconds)
    random = Random(seed)  # noqa: S311 - a test
    found = moments(random, START, now, count)
    assert all(START < at <= now for at in found)
    assert len(set(found)) == len(found) == min(count, (now - START) // timedelta(microseconds=1))


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_the_platform_decodes_exactly_what_was_measured(seed: int, messages: int) -> None:
    for boot, one in published(seed, messages, MIXED):
        payload = native.encode(boot, one.reading.at, [one.reading])
        decoded = native.decode(payload, payload_octets_max=2**16, readings_max=1)
        assert isinstance(decoded, native.DecodedMessage)
        assert (decoded.readings, decoded.rejections) == ([one.reading], [])


def test_a_delta_is_its_own_truth() -> None:
    for _, one in published(1, 50, Habits(cumulative_share=0.0)):
        assert one.reading.kind is ReadingKind.DELTA
        assert values(one.reading) == one.used


@given(st.integers(0, 2**32), st.integers(1, 5000))
def test_limits_cut_what_is_used_and_change_nothing_afterwards(seed: int, rate: int) -> None:
    free, limited = (
        Device(seed=seed, device="d", started=START, habits=Habits(cumulative_share=0.0, rate=50.0))
        for _ in range(2)
    )
    spoken = {
        1: Command(id="a", number=1, kind=CommandKind.THROTTLE, octets_per_second=rate),
        2: Command(id="b", number=2, kind=CommandKind.SUSPEND),
        3: Command(id="c", number=3, kind=CommandKind.RESUME),
    }
    at, last = START, START
    resumed = START + timedelta(seconds=15)
    for turn in range(6):
        if turn in spoken:
            limited.obey(limited.limits.after(spoken[turn]), at)
        instants = [at + timedelta(seconds=seconds) for seconds in (1, 2, 3, 4, 5)]
        at = instants[-1]
        boot, freely = free.measure(instants)
        other_boot, measured = limited.measure(instants)
        assert boot == other_boot
        for would, did in zip(freely, measured, strict=True):
            assert (would.reading.seq, would.reading.at, would.reading.meter) == (
                did.reading.seq, did.reading.at, did.reading.meter,
            )  # fmt: skip
            assert all(less <= more for less, more in zip(did.used, would.used, strict=True))
            if turn == 2:
                assert sum(did.used) == 0
            if turn == 1 and did.reading.meter is DATA:
                assert sum(did.used) <= rate * (did.reading.at - last).total_seconds()
            if turn == 0 or (turn > 2 and (did.reading.meter is not DATA or last > resumed)):
                assert did.used == would.used
            if did.reading.meter is DATA:
                last = did.reading.at
    assert limited.limits.octets_per_second_max is None
