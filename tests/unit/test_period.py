"""Bill cycles on the days that catch others out."""

from datetime import UTC, date, datetime, timedelta

import pytest

from metering.errors import InvalidValue
from metering.period import (
    Calendar,
    cycle_at,
    cycle_of_day,
    instant_text,
    local_day,
    midnight,
    split_by_time,
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def test_a_cycle_in_march_loses_the_hour_that_daylight_saving_takes() -> None:
    cycle = cycle_of_day(date(2026, 3, 15), "Europe/Berlin", 1)
    assert (cycle.start, cycle.end) == (at("2026-02-28T23:00Z"), at("2026-03-31T22:00Z"))
    assert cycle.end - cycle.start == timedelta(days=31, hours=-1)
    assert cycle.days == 31


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)]
)
def test_a_local_day_has_the_hours_it_has(day: str, hours: int) -> None:
    this = date.fromisoformat(day)
    length = midnight(this + timedelta(days=1), "Europe/Berlin") - midnight(this, "Europe/Berlin")
    assert length == timedelta(hours=hours)


@pytest.mark.parametrize(
    ("day", "first", "following"),
    [
        ("2026-01-31", "2026-01-31", "2026-02-28"),
        ("2026-02-27", "2026-01-31", "2026-02-28"),
        ("2026-02-28", "2026-02-28", "2026-03-31"),
        ("2028-02-29", "2028-02-29", "2028-03-31"),
        ("2026-04-30", "2026-04-30", "2026-05-31"),
        ("2026-12-31", "2026-12-31", "2027-01-31"),
    ],
)
def test_anchor_day_31_begins_on_the_last_day_of_a_shorter_month(
    day: str, first: str, following: str
) -> None:
    cycle = cycle_of_day(date.fromisoformat(day), "UTC", 31)
    assert (cycle.first_day.isoformat(), cycle.next_first_day.isoformat()) == (first, following)


def test_the_last_instant_of_a_cycle_belongs_to_it_and_the_next_does_not() -> None:
    end = at("2026-04-01T00:00+02:00")
    assert cycle_at(end - timedelta(microseconds=1), "Europe/Berlin", 1).end == end
    assert cycle_at(end, "Europe/Berlin", 1).start == end


def test_a_day_whose_midnight_does_not_exist_begins_at_its_first_instant() -> None:
    # Beirut's clocks go from 00:00 to 01:00.
    begins = midnight(date(2025, 3, 30), "Asia/Beirut")
    assert begins == at("2025-03-29T22:00Z")
    assert local_day(begins, "Asia/Beirut") == date(2025, 3, 30)
    assert local_day(begins - timedelta(microseconds=1), "Asia/Beirut") == date(2025, 3, 29)


def test_an_unknown_zone_and_a_day_32_are_refused_by_name() -> None:
    with pytest.raises(
        InvalidValue, match="time_zone: 'Mars/Olympus' is not a time zone; use an IANA"
    ):
        midnight(date(2026, 1, 1), "Mars/Olympus")
    with pytest.raises(InvalidValue, match="anchor_day: 32"):
        cycle_of_day(date(2026, 1, 1), "UTC", 32)


def test_ten_octets_over_a_boundary_at_a_third_give_the_remainder_to_the_last_part() -> None:
    start, end = at("2026-03-31T23:50Z"), at("2026-04-01T00:20Z")
    cuts = Calendar("UTC", 1).boundaries_between(start, end)
    assert cuts == [at("2026-04-01T00:00Z")]
    parts = split_by_time(10, start, end, cuts)
    assert [quantity for _, _, quantity in parts] == [3, 7]  # 10 × 10/30 = 3.33 → 3; the rest 7


def test_an_interval_that_ends_on_a_boundary_is_not_split() -> None:
    march = (at("2026-03-01T00:00Z"), at("2026-04-01T00:00Z"))
    assert Calendar("UTC", 1).boundaries_between(*march) == []


def test_an_instant_is_written_in_utc_with_z() -> None:
    assert instant_text(at("2026-03-29T01:59:30+02:00")) == "2026-03-28T23:59:30Z"
    assert instant_text(at("2026-03-29T01:59:30.25Z")) == "2026-03-29T01:59:30.250000Z"
