"""Cycles tile time; splitting conserves quantity."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from metering.period import (
    Calendar,
    TimeZone,
    cycle_at,
    cycle_of_day,
    local_day,
    midnight,
    split_by_time,
    zone_at,
    zone_since,
)

ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Asia/Beirut",
        "Australia/Lord_Howe",
        "Pacific/Apia",
    ]
)
INSTANTS = st.datetimes(
    min_value=datetime(2011, 1, 1),  # noqa: DTZ001 - made aware below
    max_value=datetime(2040, 1, 1),  # noqa: DTZ001 - made aware below
).map(lambda naive: naive.replace(tzinfo=UTC))


@given(instant=INSTANTS, zone=ZONES, anchor=st.integers(1, 31))
def test_every_instant_is_in_its_cycle_and_cycles_adjoin(
    instant: datetime, zone: str, anchor: int
) -> None:
    cycle = cycle_at(instant, zone, anchor)
    assert cycle.start <= instant < cycle.end
    assert cycle_of_day(cycle.next_first_day, zone, anchor).start == cycle.end
    assert 27 <= cycle.days <= 31


@given(
    start=INSTANTS,
    minutes=st.integers(1, 60 * 24 * 100),
    quantity=st.integers(0, 2**63 - 1),
    zone=ZONES,
    anchor=st.integers(1, 31),
)
def test_split_parts_sum_to_the_whole_and_adjoin(
    start: datetime, minutes: int, quantity: int, zone: str, anchor: int
) -> None:
    end = start + timedelta(minutes=minutes)
    cuts = Calendar(zone, anchor).boundaries_between(start, end)
    parts = split_by_time(quantity, start, end, cuts)
    assert sum(part for _, _, part in parts) == quantity
    assert all(part >= 0 for _, _, part in parts)
    assert [left for left, _, _ in parts] == [start, *cuts]
    assert [right for _, right, _ in parts] == [*cuts, end]


NAMES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Beirut", "Pacific/Apia", "Asia/Tokyo"]


@given(
    names=st.lists(st.sampled_from(NAMES), min_size=2, max_size=4),
    first=st.dates(date(2012, 1, 1), date(2030, 1, 1)),
    months=st.sampled_from([1, 3, 12]),
    anchor=st.integers(1, 31),
    hours=st.lists(st.integers(-24 * 400, 24 * 1500), max_size=20),
)
def test_cycles_and_days_adjoin_where_the_zone_changes(
    names: list[str], first: date, months: int, anchor: int, hours: list[int]
) -> None:
    """Each cycle begins when the one before ends, and each instant is in the day and cycle that hold it."""
    time_zone: TimeZone = names[0]
    cycle = cycle_of_day(first, names[0], anchor, months)
    earlier: list[tuple[str, str]] = []
    cycles = [cycle]
    for before, name in pairwise(names):
        if name != before:
            earlier.append((before, cycle.next_first_day.isoformat()))
            assume(_is_no_day_lost(cycle.next_first_day, zone_since(name, earlier)))
        time_zone = zone_since(name, earlier)
        cycle = Calendar(time_zone, anchor, months=months).following(cycle)
        assert cycle.start == cycles[-1].end
        cycles.append(cycle)
    changed = Calendar(time_zone, anchor, months=months)
    assert [changed.cycle_of_day(each.first_day) for each in cycles] == cycles
    for each in cycles[:-1]:
        assert zone_at(each.end, time_zone) == names[cycles.index(each) + 1]
        assert changed.cycle_at(each.end).start == each.end
        assert changed.cycle_at(each.end - timedelta(microseconds=1)) == each
        assert local_day(each.end, time_zone) == each.next_first_day
    for hour in hours:
        instant = cycles[0].start + timedelta(hours=hour)
        day = local_day(instant, time_zone)
        assert midnight(day, time_zone) <= instant < midnight(day + timedelta(days=1), time_zone)
        held = changed.cycle_at(instant)
        assert held.start <= instant < held.end
        assert held.first_day <= day < held.next_first_day


def _is_no_day_lost(first_day: date, time_zone: TimeZone) -> bool:
    begins, ends = (midnight(first_day + timedelta(days=each), time_zone) for each in (0, 1))
    return begins < ends
