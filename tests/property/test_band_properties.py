"""Bands follow the clock on the wall, minute by minute, and cuts lie where they change."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import example, given
from hypothesis import strategies as st

from metering.rating.band import BandTable, Window

ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "America/St_Johns",
        "America/Havana",
        "America/Nuuk",
        "Antarctica/Troll",
        "Asia/Beirut",
        "Asia/Kathmandu",
        "Australia/Lord_Howe",
        "Pacific/Apia",
    ]
)
MINUTE = timedelta(minutes=1)
# When clocks were set in these zones, so that the examples lie there as often as elsewhere.
CHANGES = [
    datetime(2010, 11, 7, 2, tzinfo=UTC),
    datetime(2011, 12, 30, 10, tzinfo=UTC),
    datetime(2025, 3, 29, 22, tzinfo=UTC),
    datetime(2025, 10, 25, 21, tzinfo=UTC),
    datetime(2026, 3, 8, 7, tzinfo=UTC),
    datetime(2026, 3, 29, 1, tzinfo=UTC),
    datetime(2026, 4, 4, 15, tzinfo=UTC),
    datetime(2026, 10, 25, 1, tzinfo=UTC),
    datetime(2026, 11, 1, 6, tzinfo=UTC),
]
STARTS = st.one_of(
    st.builds(
        lambda change, minutes: change - minutes * MINUTE,
        st.sampled_from(CHANGES),
        st.integers(0, 36 * 60),
    ),
    st.integers(0, 15 * 365 * 24 * 60).map(
        lambda minutes: datetime(2011, 1, 1, tzinfo=UTC) + minutes * MINUTE
    ),
)
CLOCKS = st.one_of(st.integers(0, 1440), st.integers(0, 240), st.integers(22 * 60, 1440))
DATES = st.one_of(
    st.sampled_from(CHANGES).map(datetime.date),
    st.dates(date(2025, 3, 25), date(2025, 4, 5)),
)
WINDOWS = st.builds(
    lambda when, begins, ends: Window(days=when[0], dates=when[1], begins=begins, ends=ends),
    st.one_of(
        st.just((None, None)),
        st.frozensets(st.integers(0, 6), min_size=1).map(lambda days: (days, None)),
        st.frozensets(DATES, min_size=1, max_size=4).map(lambda dates: (None, dates)),
    ),
    CLOCKS.filter(lambda minute: minute < 1440),
    CLOCKS,
)
BANDS = st.lists(st.lists(WINDOWS, min_size=1, max_size=3), max_size=3).map(
    lambda bands: {f"band-{number}": windows for number, windows in enumerate(bands)}
)


def bands_by_the_minute(table: BandTable, start: datetime, end: datetime) -> list[str | None]:
    """Return the band of every minute of `[start, end)`, looked up by the clock on the wall.

    The clock is taken never to go back: while it shows a time for the second time, it is as late
    as it was before.
    """
    found: list[str | None] = []
    shown = datetime.min  # noqa: DTZ901 - a wall clock knows no zone
    instant = start - timedelta(days=1)
    while instant < end:
        shown = max(shown, instant.astimezone(ZoneInfo(table.time_zone)).replace(tzinfo=None))
        if instant >= start:
            found.append(band_by_the_clock(table, shown))
        instant += MINUTE
    return found


def band_by_the_clock(table: BandTable, shown: datetime) -> str | None:
    minute = shown.hour * 60 + shown.minute
    today, yesterday = shown.date(), shown.date() - timedelta(days=1)
    for name, windows in table.bands.items():
        for each in windows:
            if each.begins <= each.ends:
                held = is_of(each, today) and each.begins <= minute < each.ends
            else:
                held = (is_of(each, today) and minute >= each.begins) or (
                    is_of(each, yesterday) and minute < each.ends
                )
            if held:
                return name
    return None


def is_of(each: Window, day: date) -> bool:
    if each.dates is not None:
        return day in each.dates
    return each.days is None or day.weekday() in each.days


@given(start=STARTS, minutes=st.integers(1, 40 * 60), zone=ZONES, bands=BANDS)
@example(
    start=datetime(2026, 10, 24, 20, tzinfo=UTC),
    minutes=12 * 60,
    zone="Europe/Berlin",
    bands={"late": [Window(days=None, dates=None, begins=150, ends=151)]},
)
def test_bands_and_cuts_are_those_of_a_lookup_minute_by_minute(
    start: datetime, minutes: int, zone: str, bands: dict[str, list[Window]]
) -> None:
    table = BandTable(bands=bands, time_zone=zone)
    end = start + minutes * MINUTE
    expected = bands_by_the_minute(table, start, end)
    assert [table.band_at(start + number * MINUTE) for number in range(minutes)] == expected
    assert table.split(start, end) == [
        start + (number + 1) * MINUTE
        for number, (before, after) in enumerate(pairwise(expected))
        if before != after
    ]


@given(
    start=STARTS,
    seconds=st.integers(1, 120 * 24 * 3600),
    zone=ZONES,
    bands=BANDS,
    share=st.floats(0, 1),
)
def test_the_band_is_constant_between_cuts_and_changes_at_each(
    start: datetime, seconds: int, zone: str, bands: dict[str, list[Window]], share: float
) -> None:
    table = BandTable(bands=bands, time_zone=zone)
    end = start + timedelta(seconds=seconds)
    cuts = table.split(start, end)
    assert all(start < cut < end for cut in cuts)
    assert cuts == sorted(set(cuts))
    last = timedelta.resolution
    for left, right in pairwise([start, *cuts, end]):
        band = table.band_at(left)
        assert table.band_at(left + (right - last - left) * share) == band
        assert table.band_at(right - last) == band
        assert right == end or table.band_at(right) != band


@given(start=STARTS, hours=st.integers(1, 2000), zone=ZONES, bands=BANDS, share=st.floats(0, 1))
def test_cuts_of_two_parts_are_the_cuts_of_the_whole(
    start: datetime, hours: int, zone: str, bands: dict[str, list[Window]], share: float
) -> None:
    table = BandTable(bands=bands, time_zone=zone)
    end = start + timedelta(hours=hours)
    middle = start + timedelta(hours=hours) * share
    between = [middle] if middle in table.split(start, end) else []
    parts = [*table.split(start, middle), *between, *table.split(middle, end)]
    assert parts == table.split(start, end)


@given(start=STARTS, zone=ZONES, bands=BANDS)
@example(
    start=datetime(2026, 10, 25, 1, 30, tzinfo=UTC),
    zone="Europe/Berlin",
    bands={
        "day": [Window(days=None, dates=None, begins=150, ends=1200)],
        "night": [Window(days=None, dates=None, begins=1200, ends=150)],
    },
)
def test_where_the_bands_cover_the_week_no_instant_is_outside(
    start: datetime, zone: str, bands: dict[str, list[Window]]
) -> None:
    table = BandTable(bands=bands, time_zone=zone)
    by_day = bands_by_the_minute(
        BandTable(bands=bands, time_zone="UTC"),
        datetime(1901, 1, 7, tzinfo=UTC),
        datetime(1901, 1, 14, tzinfo=UTC),
    )
    assert table.covers_whole_week() is (None not in by_day)
    if table.covers_whole_week():
        assert table.band_at(start) is not None
