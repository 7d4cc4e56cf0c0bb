"""Whole statements, worked by hand: lines, their order, rounding, minimums and adjustments."""

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import pytest

from metering.errors import InvalidValue
from metering.money import Rounding, RoundingMode
from metering.rating.membership import Fleet, Member
from metering.rating.plan import AdjustmentScope, PlanTerms, RoundAt
from metering.rating.price import CountedPer, UnitPrice
from metering.rating.statement import Line, LineKind, Statement, UseTotal, statement
from tests.fleets import (
    adjust,
    at,
    cycle,
    device,
    fee,
    fleet,
    graduated,
    meter,
    offer,
    plan,
    priced,
    use,
    volume,
)

F = Fraction
D = Decimal
CENT = priced(UnitPrice(amount=D("0.01")))
"""A price of which amounts may be stated in hundredths, and thousandths with it."""
MILL = priced(UnitPrice(amount=D("0.001")))


def drawn(
    *plans: PlanTerms,
    members: Sequence[Member] = (),
    uses: Sequence[UseTotal] = (),
    on: str = "2026-01-01",
    of: Fleet | None = None,
) -> Statement:
    """Draw up the statement of the plans, numbered from 1, for the cycle that holds a day."""
    of = of or fleet(currency=plans[0].currency)
    return statement(
        fleet=of,
        cycle=cycle(on, of),
        plans=dict(enumerate(plans, 1)),
        members=members or [device(1)],
        uses=uses,
    )


def told(made: Statement) -> list[tuple[str, str, str]]:
    """Return kind, name and rounded amount of every line."""
    return [(line.kind.value, line.name, str(line.amount)) for line in made.lines]


def only(made: Statement, kind: LineKind) -> list[Line]:
    return [line for line in made.lines if line.kind is kind]


def test_no_use_and_no_fee_make_an_empty_statement() -> None:
    made = drawn(plan())
    assert made.lines == ()
    assert [str(each) for each in (made.total, made.from_money, made.due)] == ["0.00"] * 3


def test_lines_come_as_usage_minimums_fees_and_adjustments_by_plan() -> None:
    first = plan(
        fee("2"),
        fee("1", name="support"),
        meters=[
            meter(CENT, priced(UnitPrice(amount=D("0.01")), minimum=D(3))),
            meter(CENT, name="sms"),
        ],
        adjustments=[adjust("credit", "1")],
    )
    second = plan(fee("5"), meters=[meter(CENT)])
    made = drawn(
        first,
        second,
        members=[device(1), device(2, ("2025-01-01", None, 2))],
        uses=[
            use(second, "7", by=2),
            use(first, "0.40", of="sms"),
            use(first, "0.30", variant=1),
            use(first, "0.20"),
        ],
    )
    assert told(made) == [
        ("usage", "data", "0.20"),
        ("usage", "data", "0.30"),
        ("usage", "sms", "0.40"),
        ("usage", "data", "7.00"),
        ("minimum", "data", "2.70"),
        ("fee", "rental", "2.00"),
        ("fee", "support", "1.00"),
        ("fee", "rental", "5.00"),
        ("adjustment", "credit", "-1.00"),
    ]
    assert [(line.plan_no, line.variant, line.label) for line in made.lines[:4]] == [
        (1, 0, 0),
        (1, 1, None),  # the meter's own price
        (1, 0, None),
        (2, 0, None),
    ]
    assert made.total == D("17.60")


def test_a_usage_line_sums_all_devices_and_keeps_zero() -> None:
    terms = plan(meters=[meter(CENT)])
    made = drawn(
        terms,
        members=[device(1), device(2), device(3)],
        uses=[use(terms, "0", quantity=5), use(terms, "0", by=2, quantity=7)],
    )
    [line] = made.lines
    assert (line.records, line.quantity, line.devices, line.exact) == (2, 12, 2, F(0))
    assert line.amount == D("0.00")


def test_lines_per_device_are_rounded_each() -> None:
    # 0.005 each: 0.01 + 0.01 by device, 0.01 by plan.
    for per_device, total in ((True, "0.02"), (False, "0.01")):
        terms = plan(meters=[meter(MILL)], lines_per_device=per_device)
        made = drawn(
            terms,
            members=[device(1), device(2)],
            uses=[use(terms, "0.005", by=2), use(terms, "0.005", by=1)],
        )
        numbers = [line.device_no for line in made.lines]
        assert (numbers, str(made.total)) == ([1, 2] if per_device else [None], total)


# Rounding


def test_a_line_is_rounded_once_and_the_total_sums_the_lines() -> None:
    # 2 × 21/31 = 1.354 8…: 1.35; usage 0.005: 0.01; less 10 % of 1.359 8… = 0.135 9…: 0.14.
    terms = plan(fee("2"), meters=[meter(MILL)], adjustments=[adjust("percentage_discount", "10")])
    made = drawn(terms, members=[device(1, ("2026-01-11", None))], uses=[use(terms, "0.005")])
    assert [str(line.amount) for line in made.lines] == ["0.01", "1.35", "-0.14"]
    assert made.exact == (F("0.005") + F(42, 31)) * F(9, 10)
    assert made.total == D("1.22")


def test_a_plan_may_round_its_sum_once() -> None:
    terms = plan(fee("2"), meters=[meter(MILL)], round_at=RoundAt.BILL)
    made = drawn(terms, members=[device(1, ("2026-01-11", None))], uses=[use(terms, "0.005")])
    # 0.005 + 1.354 8… = 1.359 8…
    assert [line.amount for line in made.lines] == [None, None]
    assert made.total == D("1.36")


@pytest.mark.parametrize(
    ("currency", "amount", "rounding", "expected"),
    [
        ("EUR", "0.125", Rounding(), "0.13"),
        ("EUR", "0.125", Rounding(mode=RoundingMode.HALF_EVEN), "0.12"),
        ("EUR", "0.121", Rounding(mode=RoundingMode.UP), "0.13"),
        ("EUR", "0.129", Rounding(mode=RoundingMode.DOWN), "0.12"),
        ("EUR", "0.129", Rounding(digits=4), "0.1290"),
        ("CHF", "0.129", Rounding(step=D("0.05")), "0.15"),
        ("JPY", "1.5", Rounding(), "2"),
        ("KWD", "1.001", Rounding(), "1.001"),
    ],
)
def test_each_currency_and_mode_rounds_its_own_way(
    currency: str, amount: str, rounding: Rounding, expected: str
) -> None:
    terms = plan(meters=[meter(MILL)], currency=currency, rounding=rounding)
    made = drawn(terms, uses=[use(terms, amount)])
    assert str(made.lines[0].amount) == expected
    assert made.total == D(expected)


def test_yen_and_dinar_fees_of_part_of_a_month() -> None:
    # 100 × 21/31 = 67.74…
    for currency, expected in (("JPY", "68"), ("KWD", "67.742"), ("EUR", "67.74")):
        made = drawn(plan(fee("100"), currency=currency), members=[device(1, ("2026-01-11", None))])
        assert str(made.total) == expected


# Prepaid money


def test_what_prepaid_money_paid_is_not_due() -> None:
    terms = plan(fee("2"), meters=[meter(MILL)])
    made = drawn(terms, uses=[use(terms, "1.234", from_money="1.234")])
    assert (made.total, made.from_money, made.due) == (D("3.23"), D("1.23"), D("2.00"))
    whole = plan(fee("2"), meters=[meter(MILL)], round_at=RoundAt.BILL)
    made = drawn(whole, uses=[use(whole, "1.234", from_money="0.1")])
    assert (made.total, made.from_money, made.due) == (D("3.23"), D("0.10"), D("3.13"))


# What is due at no quantity


def test_a_flat_fee_at_zero_is_a_line_for_each_active_device() -> None:
    terms = plan(meters=[meter(graduated((10, "0.01", "5"), (None, "0.02"), flat_at_zero=True))])
    members = [
        device(1),
        device(2),
        device(3, states=[("suspended", "2025-01-01")]),
        device(4, ("2026-02-01", None)),
    ]
    made = drawn(terms, members=members, uses=[use(terms, "0.03", quantity=3)])
    assert told(made) == [("usage", "data", "0.03"), ("base", "data", "10.00")]
    assert made.lines[1].devices == 2
    # A suspended device of which something is priced owes it too.
    made = drawn(terms, members=members, uses=[use(terms, "0.03", by=3, quantity=3)])
    assert made.lines[1].exact == 15


def test_fleet_wide_it_is_due_once() -> None:
    price = volume((None, "0.01", "5"), flat_at_zero=True, counted_per=CountedPer.FLEET)
    terms = plan(meters=[meter(price)])
    [line] = drawn(terms, members=[device(1), device(2)]).lines
    assert (line.kind, line.exact, line.devices) == (LineKind.BASE, F(5), 2)


# Minimums of prices


@pytest.mark.parametrize(
    ("prorated", "counted_per", "expected"),
    [
        # Device 1 used 4 of at least 10; device 2 is there for 10 of 31 days; device 3 used 12.
        (False, CountedPer.DEVICE, 6 + 10 + 0),
        (True, CountedPer.DEVICE, 6 + F(100, 31) + 0),
        # Together they used 16.
        (False, CountedPer.FLEET, 0),
    ],
)
def test_a_price_is_trued_up_to_its_minimum(
    *, prorated: bool, counted_per: CountedPer, expected: Fraction
) -> None:
    price = priced(
        UnitPrice(amount=D(1)),
        minimum=D(10),
        minimum_prorated=prorated,
        counted_per=counted_per,
    )
    terms = plan(meters=[meter(price)])
    members = [device(1), device(2, ("2026-01-22", None)), device(3)]
    made = drawn(terms, members=members, uses=[use(terms, "4"), use(terms, "12", by=3)])
    assert sum(line.exact for line in only(made, LineKind.MINIMUM)) == expected


def test_a_minimum_counts_what_is_due_at_zero() -> None:
    price = graduated((None, "1", "6"), flat_at_zero=True, minimum=D(10))
    terms = plan(meters=[meter(price)])
    made = drawn(terms, uses=[use(terms, "3", quantity=3)])
    assert told(made) == [
        ("usage", "data", "3.00"),
        ("base", "data", "6.00"),
        ("minimum", "data", "1.00"),
    ]


def test_a_minimum_of_each_record_is_not_trued_up_again() -> None:
    price = priced(UnitPrice(amount=D(1)), minimum=D(10), counted_per=CountedPer.RECORD)
    assert drawn(plan(meters=[meter(price)])).lines == ()


# Fees


def test_a_fee_of_which_a_share_is_due_stays_though_it_is_zero() -> None:
    made = drawn(plan(fee("0"), fee("1", name="late", offer=offer("2027-01-01"))))
    [line] = made.lines
    assert (line.name, line.shares, line.exact, line.devices) == ("rental", F(1), F(0), 1)
    assert (line.term, line.due) == ((at("2026-01-01"), at("2026-02-01")), at("2026-02-01"))


def test_unused_is_told_by_the_subscriptions_own_use() -> None:
    terms = plan(fee(by_state={"active": "2", "active_unused": "0.50"}), meters=[meter(CENT)])
    made = drawn(
        terms,
        members=[device(1), device(2), device(3)],
        uses=[use(terms, "0.10"), use(terms, "0", by=2, quantity=0)],
    )
    [line] = only(made, LineKind.FEE)
    assert (line.exact, line.devices, line.shares) == (F(3), 3, F(3))  # 2 + 0.50 + 0.50


def test_a_fleets_part_of_a_fee_is_a_line_of_its_own_where_devices_have_theirs() -> None:
    terms = plan(fee(price=volume((None, "1", "7"))), lines_per_device=True)
    made = drawn(terms, members=[device(2), device(1)])
    assert [(line.device_no, line.exact) for line in made.lines] == [
        (2, F(1)),
        (1, F(1)),
        (None, F(7)),
    ]


# Adjustments


def test_the_order_of_adjustments_matters() -> None:
    ten_percent, five_off = adjust("percentage_discount", "10"), adjust("fixed_discount", "5")
    one = drawn(plan(fee("100"), adjustments=[ten_percent, five_off]))
    other = drawn(plan(fee("100"), adjustments=[five_off, ten_percent]))
    assert (one.total, other.total) == (D("85.00"), D("85.50"))  # 100 − 10 − 5; 100 − 5 − 9.50


def test_a_credit_may_leave_less_than_nothing() -> None:
    made = drawn(plan(fee("3"), adjustments=[adjust("credit", "20")]))
    assert made.total == D("-17.00")


def test_a_commitment_on_usage_counts_minimums_but_no_fees() -> None:
    price = priced(UnitPrice(amount=D(1)), minimum=D(10))
    terms = plan(
        fee("50"),
        meters=[meter(price)],
        adjustments=[adjust("commitment", "100", on="usage"), adjust("maximum", "120")],
    )
    made = drawn(terms, uses=[use(terms, "4")])
    # Usage 4 + 6 = 10: up 90 to 100; with the fee 150: down 30 to 120.
    assert [line.exact for line in only(made, LineKind.ADJUSTMENT)] == [90, -30]


def test_an_adjustment_on_each_device() -> None:
    terms = plan(
        fee("2"),
        meters=[meter(CENT)],
        adjustments=[
            adjust("fixed_discount", "5", scope=AdjustmentScope.DEVICE),
            adjust("percentage_discount", "50"),
        ],
    )
    members = [device(1), device(2), device(3, states=[("suspended", "2025-01-01")])]
    made = drawn(terms, members=members, uses=[use(terms, "10")])
    # Device 1 owes 12: less 5. Device 2 owes 2: less 2. Half of the 7 that are left.
    first, second = only(made, LineKind.ADJUSTMENT)
    assert (first.exact, first.devices, second.exact) == (F(-7), 2, F("-3.5"))
    by_device = drawn(
        plan(
            fee("2"),
            lines_per_device=True,
            adjustments=[adjust("commitment", "31", scope=AdjustmentScope.DEVICE, prorated=True)],
        ),
        members=[device(1), device(2, ("2026-01-22", None))],
    )
    # Up to 31 from 2; up to 10 from 20/31.
    assert [(line.device_no, line.exact) for line in only(by_device, LineKind.ADJUSTMENT)] == [
        (1, F(29)),
        (2, 10 - F(20, 31)),
    ]


def test_an_adjustment_on_the_fleet_sees_all_plans_and_applies_once() -> None:
    rebate = adjust("percentage_discount", "10", scope=AdjustmentScope.FLEET)
    one = plan(fee("100"), adjustments=[rebate])
    other = plan(fee("50"), adjustments=[adjust("credit", "10"), rebate])
    made = drawn(one, other, members=[device(1), device(2, ("2025-01-01", None, 2))])
    # 10 % of 100 + 50 − 10.
    assert [(line.plan_no, line.name, line.exact) for line in only(made, LineKind.ADJUSTMENT)] == [
        (2, "credit", F(-10)),
        (1, "percentage_discount", F(-14)),
    ]


def test_a_prorated_commitment_of_a_plan_is_for_the_days_with_any_active_device() -> None:
    terms = plan(adjustments=[adjust("commitment", "31", prorated=True)])
    made = drawn(terms, members=[device(1, ("2026-01-11", None)), device(2, ("2026-01-21", None))])
    assert made.exact == 21


def test_an_adjustment_by_coupon_holds_from_its_redemption() -> None:
    terms = plan(
        fee("100"), adjustments=[adjust("credit", "10", offer=offer(coupon="C", periods=1))]
    )
    of = fleet(coupons={"C": "2026-02-10"})
    assert [drawn(terms, on=f"2026-0{month}-01", of=of).total for month in (1, 2, 3)] == [
        100,
        90,
        100,
    ]


# Several plans


def test_a_plan_change_bills_each_plan_for_its_days() -> None:
    member = device(1, ("2025-01-01", "2026-01-16", 1), ("2026-01-16", None, 2))
    made = drawn(plan(fee("3.10")), plan(fee("6.20")), members=[member])
    assert [(line.plan_no, line.exact) for line in made.lines] == [(1, F("1.5")), (2, F("3.2"))]


def test_a_use_after_a_device_left_has_its_line() -> None:
    terms = plan(fee("2"), meters=[meter(CENT)])
    made = drawn(terms, members=[device(1, ("2025-01-01", "2025-12-31"))], uses=[use(terms, "1")])
    assert told(made) == [("usage", "data", "1.00")]


@pytest.mark.parametrize(
    ("plans", "by", "field"),
    [
        ([plan(currency="USD")], 1, "currency"),
        ([plan(meters=[meter(CENT)])], 9, "members"),
        ([plan(meters=[meter(CENT)])], 2, "plans"),
    ],
)
def test_what_does_not_fit_together_is_refused(plans: list[PlanTerms], by: int, field: str) -> None:
    members = [device(1), device(2, ("2025-01-01", None, 2))]
    with pytest.raises(InvalidValue) as caught:
        drawn(
            *plans,
            members=members,
            uses=[use(plans[0], "1", by=by)],
            of=fleet(),
        )
    assert caught.value.field == field
