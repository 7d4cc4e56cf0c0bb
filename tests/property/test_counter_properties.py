"""A counter's usage does not depend on the order in which its readings come."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from metering.rating.counter import CounterEvent, CounterPoint, growth, step

START = datetime(2026, 1, 1, tzinfo=UTC)


def usage_in_order(
    points: list[CounterPoint], *, from_first: bool = False
) -> tuple[int, list[int]]:
    """Charge points as they come, each between the neighbours that came before it."""
    known: list[CounterPoint] = []
    added: list[int] = []
    for point in points:
        before = max(
            (k for k in known if k.order < point.order), key=lambda k: k.order, default=None
        )
        after = min(
            (k for k in known if k.order > point.order), key=lambda k: k.order, default=None
        )
        added.append(growth(before, point, after, from_first=from_first).quantities[0])
        known.append(point)
    return sum(added), added


@given(data=st.data(), width=st.sampled_from([None, 8, 16, 32, 64]), from_first=st.booleans())
def test_any_order_gives_the_same_usage_and_never_a_negative_part(
    *, data: st.DataObject, width: int | None, from_first: bool
) -> None:
    top = 2 ** (width or 20) - 1
    values = data.draw(st.lists(st.integers(0, top), min_size=1, max_size=8))
    points = [
        CounterPoint(
            boot_no=1, seq=seq, at=START + timedelta(seconds=seq), values=(value,), width=width
        )
        for seq, value in enumerate(values, 1)
    ]
    straight, _ = usage_in_order(points, from_first=from_first)
    shuffled, added = usage_in_order(data.draw(st.permutations(points)), from_first=from_first)
    assert shuffled == straight
    assert all(quantity >= 0 for quantity in added)
    from_zero, _ = usage_in_order(points)
    assert from_zero - straight == (values[0] if from_first else 0)


@given(st.lists(st.integers(0, 10**12), min_size=1), st.integers(0, 6))
def test_a_lost_reading_heals_with_the_next(increments: list[int], lost: int) -> None:
    total = 0
    points = []
    for seq, increment in enumerate(increments, 1):
        total += increment
        points.append(CounterPoint(boot_no=1, seq=seq, at=START, values=(total,)))
    kept = [point for point in points[:-1] if point.seq % 7 != lost] + points[-1:]
    assert usage_in_order(kept)[0] == total


def test_a_32_bit_wrap_is_told_from_a_reset() -> None:
    top = 2**32
    assert step(top - 100, 50, 32) == (150, CounterEvent.WRAP)
    assert step(3_000_000, 50, 32) == (50, CounterEvent.RESET)
    assert step(top - 100, 50, None) == (50, CounterEvent.RESET)
    assert step(top - 100, 50, 64) == (50, CounterEvent.RESET)


def test_a_reset_found_only_by_a_late_reading_adds_what_was_hidden() -> None:
    # 100 → 900 looked like 800 of growth; the late 40 between them shows a reset: 100, 40, 900.
    points = [
        CounterPoint(boot_no=1, seq=seq, at=START, values=(value,))
        for seq, value in [(1, 100), (3, 900), (2, 40)]
    ]
    assert usage_in_order(points) == (100 + 40 + 860, [100, 800, 100])


@given(
    data=st.data(),
    points=st.lists(
        st.tuples(st.integers(0, 2**40), st.sampled_from([None, 8, 16, 32, 64])),
        min_size=1,
        max_size=8,
    ),
)
def test_no_part_is_ever_negative_even_if_widths_contradict_one_another(
    data: st.DataObject, points: list[tuple[int, int | None]]
) -> None:
    stored = [
        CounterPoint(boot_no=1, seq=seq, at=START, values=(value,), width=width)
        for seq, (value, width) in enumerate(points, 1)
    ]
    _, added = usage_in_order(data.draw(st.permutations(stored)))
    assert all(quantity >= 0 for quantity in added)
