"""Cycles tile time; splitting conserves quantity."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from metering.period import Calendar, cycle_at, cycle_of_day, split_by_time

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
