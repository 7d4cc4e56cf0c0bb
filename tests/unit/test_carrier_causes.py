"""Why a carrier's count differs from the device's own: each cause by its rule."""

from collections.abc import Sequence
from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from metering.insight.carrier_causes import CarrierCause, DayCounts, by_cause, causes_of

FIRST = date(2026, 4, 1)
UNIT = 1000


def days(*counts: tuple[int, int] | tuple[int, int, dict[str, int]]) -> list[DayCounts]:
    """Return days in a row: (device's, carrier's), three records each unless it is said otherwise."""
    return [
        DayCounts(
            day=FIRST + timedelta(days=position),
            own=own,
            carrier=carrier,
            **{"own_records": 24, "carrier_records": 3, **(more[0] if more else {})},
        )
        for position, (own, carrier, *more) in enumerate(counts)
    ]


def told(counts: Sequence[DayCounts]) -> list[str]:
    return [cause.value for cause in causes_of(counts, unit=UNIT).values()]


def test_equal_counts_have_no_cause() -> None:
    assert told(days((500, 500), (0, 0))) == ["none", "none"]


def test_rounding_is_at_most_a_unit_for_each_record() -> None:
    assert told(days((500_000, 503_000), (500_000, 497_000))) == ["rounding", "rounding"]
    assert told(days((500_000, 503_001))) == ["unknown"]


def test_a_counter_that_fell_explains_only_what_the_device_lacks() -> None:
    assert told(days((100_000, 700_000, {"resets": 1}))) == ["reset"]
    assert told(days((700_000, 100_000, {"resets": 1}))) == ["unknown"]


def test_missing_readings_or_none_at_all() -> None:
    assert told(days((100_000, 700_000, {"missing": 4}))) == ["missing"]
    assert told(days((0, 700_000, {"own_records": 0}))) == ["missing"]


def test_headers_are_a_steady_share() -> None:
    # 4 % of each day, give or take: 40 000, 83 000, 21 500, 12 500 of 0.3 million.
    steady = days(
        (1_000_000, 1_040_000), (2_000_000, 2_083_000), (500_000, 521_500), (300_000, 312_500)
    )
    assert told(steady) == ["headers"] * 4
    # Two days are no rule.
    assert told(steady[:2]) == ["unknown"] * 2
    # One day that has far more is not explained by it.
    odd = [*steady, *days(*[(0, 0)] * 4, (1_000_000, 1_900_000))[4:]]
    assert told(odd) == ["headers"] * 4 + ["unknown"]


def test_lag_shifts_days_and_leaves_the_sum() -> None:
    assert told(days((900_000, 900_000), (800_000, 500_000), (200_000, 500_000))) == [
        "none",
        "lag",
        "lag",
    ]
    # What is lost for good is no lag.
    assert told(days((800_000, 500_000), (200_000, 200_000))) == ["unknown", "none"]
    # Nor is what comes back a week later.
    far = [*days((800_000, 500_000)), *days(*[(0, 0)] * 7, (200_000, 500_000))[7:]]
    assert told(far) == ["unknown", "unknown"]


def test_lag_beside_headers() -> None:
    counts = days(
        (1_000_000, 1_040_000), (2_000_000, 2_080_000), (500_000, 520_000),
        (1_000_000, 740_000), (1_000_000, 1_340_000),
    )  # fmt: skip
    assert told(counts) == ["headers"] * 3 + ["lag"] * 2
    causes = causes_of(counts, unit=UNIT)
    assert by_cause(counts, causes) == {
        CarrierCause.HEADERS: 140_000,
        CarrierCause.LAG: 80_000,
    }


_COUNTS = st.builds(
    lambda own, carrier, resets, missing: (own, carrier, {"resets": resets, "missing": missing}),
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.integers(0, 1),
    st.integers(0, 2),
)


@given(st.lists(_COUNTS, max_size=31))
def test_each_day_has_one_cause_and_they_sum_to_the_difference(
    counts: list[tuple[int, int, dict[str, int]]],
) -> None:
    given_days = days(*counts)
    causes = causes_of(given_days, unit=UNIT)
    assert causes.keys() == {each.day for each in given_days}
    assert sum(by_cause(given_days, causes).values()) == sum(each.difference for each in given_days)
    for each in given_days:
        assert (causes[each.day] is CarrierCause.NONE) == (each.difference == 0)
