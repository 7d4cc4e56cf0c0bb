"""Adjustments, worked by hand: what each adds, and which earlier ones its base holds."""

from fractions import Fraction

import pytest

from metering.rating.adjustment import PartKind, RunningSum, adjustment, coverage, parts_of
from tests.fleets import adjust, fee, meter, plan, volume

F = Fraction
PRICE = volume((None, "1"))
PARTS = parts_of([plan(fee("1"), meters=[meter(PRICE), meter(PRICE, name="sms")])])
DATA, SMS, RENTAL = (
    (PartKind.USAGE, "data"),
    (PartKind.USAGE, "sms"),
    (PartKind.FEES, "rental"),
)


@pytest.mark.parametrize(
    ("kind", "amount", "base", "expected"),
    [
        ("percentage_discount", "10", F(80), F(-8)),
        ("percentage_discount", "33.3", F(1, 3), F(-111, 1000)),
        ("percentage_discount", "10", F(-80), F(0)),
        ("fixed_discount", "5", F(80), F(-5)),
        ("fixed_discount", "5", F(3), F(-3)),  # never below 0
        ("fixed_discount", "5", F(-3), F(0)),
        ("credit", "20", F(3), F(-20)),
        ("commitment", "100", F(80), F(20)),
        ("commitment", "100", F(120), F(0)),
        ("maximum", "100", F(120), F(-20)),
        ("maximum", "100", F(80), F(0)),
    ],
)
def test_what_an_adjustment_adds(
    kind: str, amount: str, base: Fraction, expected: Fraction
) -> None:
    assert adjustment(adjust(kind, amount), base) == expected


def test_a_commitment_is_prorated_only_on_request() -> None:
    share = F(21, 31)
    assert adjustment(adjust("commitment", "31", prorated=True), F(1), share) == 20
    assert adjustment(adjust("commitment", "31"), F(1), share) == 30


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("usage", {DATA, SMS}),
        ("fees", {RENTAL}),
        (frozenset({"data"}), {DATA}),
        (frozenset({"data", "rental"}), {DATA, RENTAL}),
        (frozenset({"voice"}), set()),
    ],
)
def test_what_an_adjustment_is_on(
    on: str | frozenset[str], expected: set[tuple[PartKind, str]]
) -> None:
    assert coverage(on, PARTS) == frozenset(expected)


@pytest.mark.parametrize(
    ("earlier", "on", "expected"),
    [
        # Lines: data 100, sms 20, rental 7; the earlier adjustment is −10.
        ("usage", "usage", 110),
        ("usage", "all", 117),
        ("usage", "fees", 7),
        ("usage", frozenset({"data"}), 100),  # it is not on data alone
        ("fees", "usage", 120),
        ("fees", "all", 117),
        ("all", "usage", 120),
        ("all", "all", 117),
        (frozenset({"data"}), frozenset({"data"}), 90),
        (frozenset({"data"}), frozenset({"sms"}), 20),
        (frozenset({"data"}), "usage", 110),
        (frozenset({"data"}), frozenset({"data", "rental"}), 97),
        (frozenset({"data", "rental"}), "usage", 120),
    ],
)
def test_the_base_holds_earlier_adjustments_on_nothing_else(
    earlier: str | frozenset[str], on: str | frozenset[str], expected: int
) -> None:
    sums = RunningSum()
    sums.add(DATA, F(60))
    sums.add(DATA, F(40))
    sums.add(SMS, F(20))
    sums.add(RENTAL, F(7))
    sums.adjust(coverage(earlier, PARTS), F(-10))
    assert sums.base(coverage(on, PARTS)) == expected
