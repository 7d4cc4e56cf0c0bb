"""Time bands by the wall clock, on the days that catch others out."""

from datetime import UTC, date, datetime, timedelta

import pytest

from metering.errors import InvalidValue
from metering.rating.band import BandTable, Crossing, Window

WORKDAYS = ["mon", "tue", "wed", "thu", "fri"]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def window(
    begins: str | None = None,
    ends: str | None = None,
    *,
    days: list[str] | None = None,
    dates: list[str] | None = None,
) -> Window:
    return Window.of("bands.it.0", days, dates, begins, ends)


def table(
    time_zone: str = "Europe/Berlin",
    crossing: Crossing = Crossing.SPLIT,
    **bands: list[Window],
) -> BandTable:
    return BandTable(bands=bands, time_zone=time_zone, crossing=crossing)


PEAK = table(peak=[window("08:00", "20:00", days=WORKDAYS)])


@pytest.mark.parametrize(
    ("instant", "band"),
    [
        ("2026-01-05T07:59:59.999999+01:00", None),  # a Monday
        ("2026-01-05T08:00+01:00", "peak"),
        ("2026-01-05T19:59:59.999999+01:00", "peak"),
        ("2026-01-05T20:00+01:00", None),
        ("2026-01-09T08:00+01:00", "peak"),
        ("2026-01-10T12:00+01:00", None),  # a Saturday
        ("2026-07-06T06:00Z", "peak"),  # 08:00 in summer
        ("2026-01-05T23:30-08:00", "peak"),  # 08:30 in Berlin on Tuesday
    ],
)
def test_a_window_holds_its_begin_and_not_its_end(instant: str, band: str | None) -> None:
    assert PEAK.band_at(datetime.fromisoformat(instant)) == band


def test_a_week_is_cut_where_the_band_changes() -> None:
    # Friday 19:00 to Monday 09:00: off at 20:00, on again on Monday at 08:00.
    assert PEAK.split(at("2026-01-09T19:00+01:00"), at("2026-01-12T09:00+01:00")) == [
        at("2026-01-09T20:00+01:00"),
        at("2026-01-12T08:00+01:00"),
    ]


def test_no_cut_lies_on_an_end_of_the_interval() -> None:
    eight, twenty = at("2026-01-05T08:00+01:00"), at("2026-01-05T20:00+01:00")
    assert PEAK.split(eight, twenty) == []
    assert PEAK.split(eight, eight) == []
    assert PEAK.split(twenty, eight) == []
    assert PEAK.split(eight - timedelta.resolution, twenty + timedelta.resolution) == [
        eight,
        twenty,
    ]


def test_neighbouring_windows_of_one_band_make_no_cut() -> None:
    all_day = table(a=[window("00:00", "12:00"), window("12:00", "24:00")])
    assert all_day.split(at("2026-01-01T00:00Z"), at("2026-02-01T00:00Z")) == []


def test_the_first_band_listed_wins() -> None:
    bands = table(
        holiday=[window(dates=["2026-12-25"])],
        peak=[window("08:00", "20:00")],
        day=[window("06:00", "22:00")],
    )
    assert bands.names == ("holiday", "peak", "day")
    assert bands.band_at(at("2026-12-25T09:00+01:00")) == "holiday"
    assert bands.band_at(at("2026-12-24T09:00+01:00")) == "peak"
    assert bands.band_at(at("2026-12-24T07:00+01:00")) == "day"
    assert bands.split(at("2026-12-24T05:00+01:00"), at("2026-12-26T07:00+01:00")) == [
        at("2026-12-24T06:00+01:00"),
        at("2026-12-24T08:00+01:00"),
        at("2026-12-24T20:00+01:00"),
        at("2026-12-24T22:00+01:00"),
        at("2026-12-25T00:00+01:00"),
        at("2026-12-26T00:00+01:00"),
        at("2026-12-26T06:00+01:00"),
    ]


def test_a_window_past_midnight_belongs_to_the_day_it_begins_on() -> None:
    night = table(night=[window("22:00", "06:00", days=["fri"])])
    assert night.split(at("2026-01-05T00:00+01:00"), at("2026-01-12T00:00+01:00")) == [
        at("2026-01-09T22:00+01:00"),
        at("2026-01-10T06:00+01:00"),
    ]
    new_year = table(party=[window("20:00", "03:00", dates=["2026-12-31"])])
    assert new_year.band_at(at("2027-01-01T02:59+01:00")) == "party"
    assert new_year.band_at(at("2026-12-31T02:59+01:00")) is None


def test_a_window_until_midnight_ends_with_its_day() -> None:
    for ends in ("24:00", "00:00"):
        evening = table(evening=[window("20:00", ends, days=["mon"])])
        assert evening.split(at("2026-01-05T12:00+01:00"), at("2026-01-06T12:00+01:00")) == [
            at("2026-01-05T20:00+01:00"),
            at("2026-01-06T00:00+01:00"),
        ]


# Berlin, 29 March 2026: 02:00 becomes 03:00 at 01:00 UTC. 25 October: 03:00 becomes 02:00, also at
# 01:00 UTC. New York, 8 March: 02:00 becomes 03:00 at 07:00 UTC. 1 November: 02:00 becomes 01:00 at
# 06:00 UTC.
@pytest.mark.parametrize(
    ("time_zone", "begins", "ends", "day", "from_utc", "to_utc"),
    [
        # Both edges exist; the window loses or gains the hour between them.
        ("Europe/Berlin", "00:00", "06:00", "2026-03-29", "28T23:00", "29T04:00"),
        ("Europe/Berlin", "00:00", "06:00", "2026-10-25", "24T22:00", "25T05:00"),
        ("America/New_York", "00:00", "06:00", "2026-03-08", "08T05:00", "08T10:00"),
        ("America/New_York", "00:00", "06:00", "2026-11-01", "01T04:00", "01T11:00"),
        # An edge that the clock skips lies at the first instant after.
        ("Europe/Berlin", "02:30", "04:00", "2026-03-29", "29T01:00", "29T02:00"),
        ("Europe/Berlin", "01:00", "02:30", "2026-03-29", "29T00:00", "29T01:00"),
        ("America/New_York", "02:15", "04:00", "2026-03-08", "08T07:00", "08T08:00"),
        ("America/New_York", "01:00", "02:15", "2026-03-08", "08T06:00", "08T07:00"),
        # An edge that comes twice lies at the first.
        ("Europe/Berlin", "02:30", "04:00", "2026-10-25", "25T00:30", "25T03:00"),
        ("Europe/Berlin", "01:00", "02:30", "2026-10-25", "24T23:00", "25T00:30"),
        ("Europe/Berlin", "02:00", "03:00", "2026-10-25", "25T00:00", "25T02:00"),
        ("America/New_York", "01:15", "03:00", "2026-11-01", "01T05:15", "01T08:00"),
        ("America/New_York", "00:00", "01:15", "2026-11-01", "01T04:00", "01T05:15"),
        # The clock goes from 24:00 to 01:00 (Beirut), or from 24:00 back to 23:00.
        ("Asia/Beirut", "00:00", "02:00", "2025-03-30", "29T22:00", "29T23:00"),
        ("Asia/Beirut", "00:30", "02:00", "2025-03-30", "29T22:00", "29T23:00"),
        ("Asia/Beirut", "23:00", "24:00", "2025-10-25", "25T20:00", "25T22:00"),
        ("Asia/Beirut", "00:00", "02:00", "2025-10-26", "25T22:00", "26T00:00"),
        # Midnight comes twice: at 00:01 the clock went back to 23:01 (St. John's, UTC−2:30 to −3:30).
        ("America/St_Johns", "00:00", "02:00", "2010-11-07", "07T02:30", "07T05:30"),
        # It went from 23:00 to 24:00 (Nuuk): the last hour of the day is skipped.
        ("America/Nuuk", "22:00", "24:00", "2024-03-30", "31T00:00", "31T01:00"),
    ],
)
def test_a_window_on_a_day_when_the_clock_is_set(
    *, time_zone: str, begins: str, ends: str, day: str, from_utc: str, to_utc: str
) -> None:
    bands = table(time_zone, it=[window(begins, ends, dates=[day])])
    month = day[:8]
    first, last = at(f"{month}{from_utc}Z"), at(f"{month}{to_utc}Z")
    around = first - timedelta(days=2), last + timedelta(days=2)
    assert bands.split(*around) == [first, last]
    tick = timedelta.resolution
    held = [bands.band_at(each) for each in (first - tick, first, last - tick, last)]
    assert held == [None, "it", "it", None]
    minutes = (last - first) // timedelta(minutes=1)
    assert {bands.band_at(first + timedelta(minutes=each)) for each in range(minutes)} == {"it"}


def test_a_window_that_the_clock_skips_altogether_never_is() -> None:
    gap = table(it=[window("02:10", "02:50")])
    start, end = at("2026-03-29T00:00+01:00"), at("2026-03-30T00:00+02:00")
    assert gap.split(start, end) == []
    assert gap.band_at(at("2026-03-29T01:00Z")) is None
    # and where it separates two windows of another band, that band is one
    around = table(gap=[window("02:00", "03:00")], rest=[window()])
    assert around.split(start, end) == []


def test_a_day_that_the_calendar_skips_has_no_bands() -> None:
    # Samoa had no 30 December 2011 (a Friday): the 31st began at 10:00 UTC on the 30th.
    friday = table("Pacific/Apia", it=[window(days=["fri"])])
    assert friday.split(at("2011-12-29T00:00Z"), at("2012-01-04T00:00Z")) == []
    daily = table("Pacific/Apia", it=[window("12:00", "24:00")])
    assert daily.split(at("2011-12-29T20:00Z"), at("2011-12-31T00:00Z")) == [
        at("2011-12-29T22:00Z"),  # noon of the 29th
        at("2011-12-30T10:00Z"),  # midnight, and the 31st begins
        at("2011-12-30T22:00Z"),  # noon of the 31st
    ]


def test_the_band_at_the_start_may_hold_for_all_of_a_record() -> None:
    bands = table(crossing=Crossing.START, peak=[window("08:00", "20:00")])
    assert bands.split(at("2026-01-05T07:00Z"), at("2026-01-09T08:00Z")) == []


def test_a_plan_without_bands_has_none() -> None:
    assert table().band_at(at("2026-01-01T00:00Z")) is None
    assert table().split(at("2026-01-01T00:00Z"), at("2027-01-01T00:00Z")) == []
    assert not table().covers_whole_week()


def test_a_year_has_two_cuts_each_working_day() -> None:
    cuts = PEAK.split(at("2026-01-01T00:00+01:00"), at("2027-01-01T00:00+01:00"))
    assert len(cuts) == 2 * 261  # 2026 has 261 days from Monday to Friday


@pytest.mark.parametrize(
    ("windows", "covers"),
    [
        ([window()], True),
        ([window("06:00", "24:00"), window("00:00", "06:00")], True),
        ([window("20:00", "08:00"), window("08:00", "20:00")], True),
        ([window("20:00", "08:00"), window("08:00", "19:59")], False),
        ([window(days=WORKDAYS), window(days=["sat", "sun"])], True),
        ([window(days=WORKDAYS), window(days=["sat"])], False),
        # Sunday's night ends on Monday.
        ([window("08:00", "24:00"), window("00:00", "08:00", days=WORKDAYS[1:])], False),
        (
            [
                window("08:00", "24:00"),
                window("00:00", "08:00", days=[*WORKDAYS[1:], "sat", "sun"]),
                window("23:00", "08:00", days=["sun"]),
            ],
            True,
        ),
        ([window(days=WORKDAYS), window(dates=["2001-01-06", "2001-01-07"])], False),
    ],
)
def test_bands_cover_the_week_or_leave_a_gap(windows: list[Window], *, covers: bool) -> None:
    assert table(it=windows).covers_whole_week() is covers
    each = {f"band-{number}": [one] for number, one in enumerate(windows)}
    assert BandTable(bands=each, time_zone="UTC").covers_whole_week() is covers


def test_a_window_reads_days_dates_and_times() -> None:
    assert window() == Window(days=None, dates=None, begins=0, ends=1440)
    assert window("08:30", "20:05", days=["mon", "sun"]) == Window(
        days=frozenset({0, 6}), dates=None, begins=510, ends=1205
    )
    assert window(dates=["2028-02-29"]).dates == frozenset({date(2028, 2, 29)})


@pytest.mark.parametrize(
    ("days", "dates", "begins", "ends", "message"),
    [
        (None, None, "8:00", None, r"bands\.it\.0\.from: '8:00' is no time of day; write 'HH:MM'"),
        (None, None, None, "24:01", r"bands\.it\.0\.to: '24:01' is no time"),
        (None, None, None, "23:60", r"bands\.it\.0\.to: '23:60' is no time"),
        (None, None, "08:00:00", None, r"bands\.it\.0\.from: '08:00:00' is no time"),
        (None, None, "08:00\n", None, r"bands\.it\.0\.from: '08:00\\n' is no time"),
        (None, None, "٢٢:٢٢", None, r"bands\.it\.0\.from: '٢٢:٢٢' is no time"),
        (None, None, "24:00", "06:00", r"bands\.it\.0\.from: no day begins at 24:00; use '00:00'"),
        (None, None, "08:00", "08:00", r"bands\.it\.0\.to: is when the window begins; for a whole"),
        (["mon", "Tue"], None, None, None, r"bands\.it\.0\.days\.1: 'Tue' is no day of the week"),
        ([], None, None, None, r"bands\.it\.0\.days: is empty"),
        (None, [], None, None, r"bands\.it\.0\.dates: is empty"),
        (None, ["2026-02-29"], None, None, r"bands\.it\.0\.dates\.0: '2026-02-29' is no date"),
        (None, ["20261225"], None, None, r"bands\.it\.0\.dates\.0: '20261225' is no date"),
        (["mon"], ["2026-12-25"], None, None, r"bands\.it\.0\.dates: stands beside `days`"),
    ],
)
def test_what_is_no_window_is_refused_by_name(
    days: list[str] | None,
    dates: list[str] | None,
    begins: str | None,
    ends: str | None,
    message: str,
) -> None:
    with pytest.raises(InvalidValue, match=message):
        Window.of("bands.it.0", days, dates, begins, ends)


def test_a_reserved_name_an_empty_band_and_an_unknown_time_zone_are_refused() -> None:
    with pytest.raises(InvalidValue, match=r"bands\.otherwise: the name 'otherwise' is reserved"):
        table(otherwise=[window()])
    with pytest.raises(InvalidValue, match=r"bands\.peak: has no window; add one"):
        table(peak=[])
    with pytest.raises(InvalidValue, match="time_zone: 'Mars/Olympus'"):
        table("Mars/Olympus")


def test_what_is_remembered_is_bounded() -> None:
    for day in range(10_000):
        PEAK.band_at(at("2000-01-01T12:00Z") + timedelta(days=day))
    assert len(PEAK._known) <= 4096
