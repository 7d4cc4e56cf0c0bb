"""Scenarios: whatever goes wrong, the truth stays what it is, and the bill's usage is all of it."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from device_sim.scenario.definition import Scenario
from device_sim.scenario.generate import Made, make
from device_sim.scenario.reading import read_scenario
from device_sim.scenario.traffic import TrueUsage
from metering.period import split_by_time
from metering.rating.record import CounterEpoch, EpochKey, StoredReading, Usage, usage_of
from metering.usage import Rejection
from metering.wire import native
from metering.wire.ledger import LedgerLine

PRICES = {name: {"price": {"amount": "1"}} for name in ("data", "sms", "messages", "voice")}
NAMES = (
    "skew", "clock_lost", "reboot", "wrap", "reset", "offline",
    "drop", "duplicate", "reorder", "malformed", "forged_id",
)  # fmt: skip

shares = st.sampled_from(["0", "0.1", "0.4", "1"]).map(Decimal)
faults_drawn = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, shares))
groups = st.fixed_dictionaries(
    {
        "profile": st.sampled_from(["meter", "tracker", "camera", "kiosk"]),
        "count": st.integers(1, 3),
        "steps_per_message": st.integers(1, 4),
        "scale_percent": st.sampled_from([1, 100, 700]),
    }
)
changes_drawn = st.lists(
    st.sampled_from(
        [
            {"at": "2026-05-01T03:00", "state": "suspended"},
            {"at": "2026-05-01T07:30", "state": "active"},
            {"at": "2026-05-01T12:00", "sim": "new"},
            {"at": "2026-05-01T18:00", "state": "retired"},
        ]
    ),
    unique_by=str,
).map(lambda found: sorted(found, key=str))


def scenario_of(
    seed: int, group: dict[str, Any], faults: dict[str, Decimal], changes: list[dict[str, str]]
) -> Scenario:
    # Of half of the seeds, clocks are off by so much that they would leave the period.
    skewed = {"skew_by": "5 h" if seed % 2 else "2 min"} | faults
    given = {"name": "d", "plan": "flat", "faults": skewed, "changes": changes} | group
    fleet = {"id": "f", "currency": "EUR", "time_zone": "Europe/Berlin", "groups": [given]}
    document = {
        "scenario": "s", "seed": seed, "from": "2026-04-30T12:00", "to": "2026-05-02T00:00",
        "step": "40 min", "plans": [{"plan": "flat", "currency": "EUR", "meters": PRICES}],
        "fleets": [fleet],
    }  # fmt: skip
    return read_scenario(document, folder=Path())


def truth(lines: Iterable[LedgerLine]) -> Counter[tuple[str, str]]:
    """Return what was used by device and meter, both directions together."""
    found: Counter[tuple[str, str]] = Counter()
    for line in lines:
        used = (line.used_up or 0) + (line.used_down or 0) + (line.used or 0)
        found[line.device, line.meter] += used
    return found


def by_device(lines: Iterable[LedgerLine]) -> dict[str, list[tuple[object, ...]]]:
    """Return what each device used, in its order."""
    found: dict[str, list[tuple[object, ...]]] = {}
    for line in lines:
        used = (line.meter, line.used_up, line.used_down, line.used)
        found.setdefault(line.device, []).append(used)
    return found


def told(usage: Iterable[TrueUsage]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for each in usage:
        found[each.device, each.meter.meter] += sum(each.used)
    return found


def lost(made: Made) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for device, of_device in made.lost.items():
        for meter, used in of_device.items():
            found[device, meter] += sum(used)
    return found


def heard(
    made: Made, refused_years: tuple[int, ...] = (1970, 2099)
) -> list[tuple[str, str, Usage]]:
    """Return what the platform's own arithmetic makes of the messages, in the order of their coming."""
    epochs: dict[EpochKey, CounterEpoch] = {}
    devices: dict[str, int] = {}
    boots: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    found: list[tuple[str, str, Usage]] = []
    for message in made.messages:
        decoded = native.decode(message.payload, payload_octets_max=10**6, readings_max=5000)
        if isinstance(decoded, Rejection) or "-forged/" in message.topic:
            continue
        device_no = devices.setdefault(message.device, len(devices))
        boot_no = boots.setdefault(decoded.boot, len(boots))
        for reading in decoded.readings:
            if (boot_no, reading.seq) in seen or reading.at.year in refused_years:
                continue
            seen.add((boot_no, reading.seq))
            stored = StoredReading(device_no, boot_no, reading)
            found.append((message.device, reading.meter.meter, usage_of(stored, epochs)))
    return found


def parts(
    quantity: int, start: datetime, end: datetime, cut: datetime
) -> list[tuple[datetime, int]]:
    """Split a quantity at an instant, if it lies within."""
    if not start < cut < end:
        return [(start, quantity)]
    return [(since, part) for since, _, part in split_by_time(quantity, start, end, [cut])]


@given(st.integers(0, 2**32), groups, faults_drawn, changes_drawn)
def test_what_is_billed_and_what_is_lost_is_all_that_was_used(
    seed: int, group: dict[str, Any], faults: dict[str, Decimal], changes: list[dict[str, str]]
) -> None:
    made = make(scenario_of(seed, group, faults, changes))
    assert +(told(made.usage["f"]) + lost(made)) == +truth(made.ledger)
    assert bool(made.lost) <= bool(made.rejected)


@given(st.integers(0, 2**32), groups, faults_drawn, changes_drawn)
def test_faults_never_change_the_truth(
    seed: int, group: dict[str, Any], faults: dict[str, Decimal], changes: list[dict[str, str]]
) -> None:
    made = make(scenario_of(seed, group, faults, changes))
    sound = make(scenario_of(seed, group, {}, changes))
    assert by_device(made.ledger) == by_device(sound.ledger)
    assert not sound.rejected
    assert not sound.lost


@given(st.integers(0, 2**32), groups, faults_drawn, changes_drawn)
@example(  # what is refused stands between two counters' values that change places around a boundary
    0,
    {"profile": "meter", "count": 1, "steps_per_message": 1, "scale_percent": 1},
    {"clock_lost": Decimal("0.4"), "reset": Decimal("0.1"), "reorder": Decimal("0.1")},
    [],
)
def test_the_platform_hears_of_as_much_as_is_expected(
    seed: int, group: dict[str, Any], faults: dict[str, Decimal], changes: list[dict[str, str]]
) -> None:
    scenario = scenario_of(seed, group, faults, changes)
    made = make(scenario)
    cut = datetime(2026, 4, 30, 22, tzinfo=UTC)  # when May begins in Berlin
    quantities: Counter[tuple[str, str, bool]] = Counter()
    for device, meter, usage in heard(made):
        for start, quantity in parts(usage.quantity, usage.start, usage.end, cut):
            quantities[device, meter, start < cut] += quantity
        assert scenario.begins <= usage.start <= usage.end < scenario.ends
    expected: Counter[tuple[str, str, bool]] = Counter()
    for each in made.usage["f"]:
        for start, quantity in parts(sum(each.used), each.start, each.end, cut):
            expected[each.device, each.meter.meter, start < cut] += quantity
    assert +quantities == +expected


@given(st.integers(0, 2**32), groups, faults_drawn, changes_drawn)
def test_a_seed_makes_the_same_again(
    seed: int, group: dict[str, Any], faults: dict[str, Decimal], changes: list[dict[str, str]]
) -> None:
    scenario = scenario_of(seed, group, faults, changes)
    assert make(scenario) == make(scenario)
