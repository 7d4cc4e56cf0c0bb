"""Whatever way usage comes in, each threshold is crossed once, and by the same sum."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from metering.period import Calendar
from metering.rating.threshold import (
    Calendars,
    Counted,
    Counts,
    Measure,
    Per,
    Recurrence,
    Tallies,
    Tally,
    counts_of,
    crossed_at,
    is_crossed,
    measured,
    together,
    value_of,
)

BERLIN = "Europe/Berlin"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TALLIES = [
    Tally(
        tally_no=number,
        fleet_no=1,
        device_no=device_no,
        per=per,
        measure=measure,
        meter_no=None if measure is Measure.SPEND else 1,
        period=period,
        counted_from=BEGAN,
    )
    for number, (device_no, per, measure, period) in enumerate(
        (device_no, per, measure, period)
        for measure in Measure
        for period in Recurrence
        for device_no, per in ((None, Per.DEVICE), (None, Per.FLEET), (2, Per.DEVICE))
    )
]
# Around both DST changes of 2026, the ends of those months, and a year's end.
INSTANTS = st.sampled_from(
    [(3, 28), (3, 29), (3, 31), (10, 24), (10, 25), (10, 31), (12, 31)]
).flatmap(
    lambda day: st.integers(0, 60 * 60).map(
        lambda minutes: datetime(2026, *day, tzinfo=UTC) + timedelta(minutes=minutes)
    )
)
CHARGES = st.lists(
    st.builds(
        Counted,
        device_no=st.integers(1, 3),
        meter_no=st.integers(1, 2),
        at=INSTANTS,
        quantity=st.integers(0, 50),
        from_allowance=st.integers(0, 20),
        from_pool=st.integers(0, 20),
        amount=st.integers(0, 30),
        per_unit=st.sampled_from([1, 3, 100, 7000]),
    ),
    max_size=25,
)


def calendars() -> Calendars:
    return Calendars(Calendar(BERLIN, 31))


def batches(charges: Sequence[Counted], sizes: Sequence[int]) -> list[Sequence[Counted]]:
    found: list[Sequence[Counted]] = []
    rest = list(charges)
    for size in sizes:
        found.append(rest[:size])
        rest = rest[size:]
    return [*found, rest]


@given(CHARGES, st.lists(st.integers(1, 6), max_size=8), st.randoms(use_true_random=False))
def test_one_alert_however_usage_is_batched_and_ordered(
    charges: list[Counted], sizes: list[int], chance: object
) -> None:
    """Alerts of several limits at once: those that the whole is over, each raised once."""
    shuffled = list(charges)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' random
    limits = [Fraction(10), Fraction(25), Fraction(40)]
    kept: Counts = {}
    raised: list[tuple[object, ...]] = []
    for batch in batches(shuffled, sizes):
        added = counts_of(Tallies(TALLIES), together(batch, calendars(), daily=True), calendars())
        for key, parts in added.items():
            of_key = kept.setdefault(key, {})
            for per_unit, count in parts.items():
                of_key[per_unit] = of_key.get(per_unit, 0) + count
            for limit in limits:
                value = value_of(of_key)
                if value - value_of(parts) < limit <= value:
                    raised.append((key, limit))
    whole = counts_of(Tallies(TALLIES), charges, calendars())
    assert kept == whole
    assert sorted(raised) == sorted(
        (key, limit)
        for key, parts in whole.items()
        for limit in limits
        if is_crossed(value_of(parts), limit)
    )


@given(CHARGES)
def test_summing_first_changes_no_cycle(charges: list[Counted]) -> None:
    of_cycles = [tally for tally in TALLIES if tally.period is Recurrence.CYCLE]
    summed = together(charges, calendars(), daily=False)
    assert counts_of(Tallies(of_cycles), summed, calendars()) == counts_of(
        Tallies(of_cycles), charges, calendars()
    )


@given(st.lists(st.fractions(0, 10), min_size=1), st.fractions(0, 5), st.fractions(1, 30))
def test_the_step_that_crosses_is_the_first_at_the_limit(
    steps: list[Fraction], before: Fraction, limit: Fraction
) -> None:
    position = crossed_at(before, steps, limit)
    if before + sum(steps) >= limit:
        assert before + sum(steps[: position + 1]) >= limit
        assert position == 0 or before + sum(steps[:position]) < limit
    found = measured(before, limit)
    assert Fraction(found.value, found.per_unit) == before
    assert Fraction(found.overshoot, found.per_unit) == before - limit


@given(INSTANTS)
def test_periods_meet_and_hold_their_instant(instant: datetime) -> None:
    for recurrence in Recurrence:
        span = calendars().span(recurrence, instant)
        assert span.start <= instant < span.end
        assert calendars().span(recurrence, span.end).start == span.end
        assert calendars().span(recurrence, span.end - timedelta(microseconds=1)) == span


def test_a_day_of_a_dst_change_has_23_or_25_hours() -> None:
    for day, hours in ((datetime(2026, 3, 29, 12, tzinfo=UTC), 23),
                       (datetime(2026, 10, 25, 12, tzinfo=UTC), 25)):  # fmt: skip
        span = calendars().span(Recurrence.DAY, day)
        assert span.end - span.start == timedelta(hours=hours)
