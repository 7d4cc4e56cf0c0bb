"""The bill so far, worked by hand."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest

from metering.billing.bill import Bill, FeeLine, UseLine, bill_of
from metering.errors import InvalidValue
from metering.period import BillCycle, cycle_at
from metering.store.bill_views import BilledPlan, FeeRow, UseRow
from metering.usage import DATA, SMS


def april() -> BillCycle:
    """Thirty local days of Europe/Berlin."""
    return cycle_at(datetime(2026, 4, 15, tzinfo=UTC), "Europe/Berlin", 1)


def terms(currency: str = "EUR", monthly_fee: str = "5.00") -> Mapping[str, object]:
    return {
        "plan": "basic",
        "name": "Basic",
        "currency": currency,
        "monthly_fee": monthly_fee,
        "meters": {
            "data": {
                "allowance": "100 MB",
                "pooled": True,
                "price": {"amount": "0.10", "per": "1 MB"},
            },
            "sms": {"price": {"amount": "0.07", "per": 1}},
        },
    }


def plan(plan_no: int = 1, *, version: int = 1, currency: str = "EUR") -> BilledPlan:
    return BilledPlan(
        plan_no=plan_no, plan_id="basic", version=version, name="Basic", terms=terms(currency)
    )


def data_use(plan_no: int, *, overage: int, amount: int) -> UseRow:
    return UseRow(
        plan_no=plan_no,
        meter_no=DATA.meter_no,
        subscriptions=3,
        quantity=300_000_000 + overage,
        uplink=1_000,
        from_allowance=100_000_000,
        from_pool=200_000_000,
        overage=overage,
        amount=amount,
    )


def bill(*, fees: list[FeeRow], uses: list[UseRow], plans: list[BilledPlan]) -> Bill:
    return bill_of(currency="EUR", cycle=april(), plans=plans, fees=fees, uses=uses)


def test_hand_worked_bill() -> None:
    # Fee: 5.00 for a whole cycle of 30 days.
    #   two subscriptions of 30 days: 2 x 5                = 10
    #   one of 20 days:               5 x 20/30 = 10/3     =  3.333…
    #   exact 40/3 = 13.333…, rounded                        13.33
    # Data: 0.10 per 1 000 000 octets, so one octet is 1/10 000 000 of a euro: the sub-unit that
    #   also makes 0.07 and 5.00 whole. 1 234 567 octets over: 0.1234567, rounded          0.12
    # SMS: 0.07 each is 700 000 sub-units; 5 of them: 3 500 000 / 10 000 000 = 0.35,  0.35
    # Total: 13.33 + 0.12 + 0.35                                                     13.80
    #   (the exact sum is 13.8067900333…)
    made = bill(
        plans=[plan()],
        fees=[
            FeeRow(plan_no=1, subscriptions=2, days=60, amount=10, subunits_per_unit=1),
            FeeRow(plan_no=1, subscriptions=1, days=20, amount=10, subunits_per_unit=3),
        ],
        uses=[
            UseRow(
                plan_no=1,
                meter_no=SMS.meter_no,
                subscriptions=1,
                quantity=5,
                uplink=0,
                from_allowance=0,
                from_pool=0,
                overage=5,
                amount=3_500_000,
            ),
            data_use(1, overage=1_234_567, amount=1_234_567),
        ],
    )
    fee, data, sms = made.lines
    assert isinstance(fee, FeeLine)
    assert isinstance(data, UseLine)
    assert isinstance(sms, UseLine)
    assert (fee.subscriptions, fee.days, fee.monthly_fee) == (3, 80, Decimal("5.00"))
    assert fee.money.exact == Fraction(40, 3)
    assert data.meter is DATA
    assert data.quantity == data.in_allowance + data.from_pool + data.overage
    assert data.money.exact == Fraction("0.1234567")
    assert (data.price.amount, data.price.per) == (Decimal("0.10"), 1_000_000)
    assert sms.meter is SMS
    assert [str(line.amount) for line in made.lines] == ["13.33", "0.12", "0.35"]
    assert str(made.total) == "13.80"


def test_total_is_the_sum_of_the_rounded_lines_not_the_rounded_sum() -> None:
    # Three plan versions, each with 50 000 octets over: 0.005 rounds half-up to 0.01, thrice 0.03,
    # though the exact sum is 0.015, which alone would round to 0.02.
    made = bill(
        plans=[plan(number, version=number) for number in (1, 2, 3)],
        fees=[],
        uses=[data_use(number, overage=50_000, amount=50_000) for number in (1, 2, 3)],
    )
    assert [str(line.amount) for line in made.lines] == ["0.01", "0.01", "0.01"]
    assert str(made.total) == "0.03"


@pytest.mark.parametrize(("currency", "total"), [("EUR", "0.00"), ("JPY", "0"), ("KWD", "0.000")])
def test_an_empty_bill_has_the_digits_of_its_currency(currency: str, total: str) -> None:
    made = bill_of(currency=currency, cycle=april(), plans=[], fees=[], uses=[])
    assert made.lines == ()
    assert str(made.total) == total


def test_a_plan_in_another_currency_is_refused() -> None:
    with pytest.raises(InvalidValue, match="'basic' version 1 is in USD, its fleet's bill in EUR"):
        bill(plans=[plan(currency="USD")], fees=[], uses=[data_use(1, overage=1, amount=1)])


def test_a_row_whose_plan_is_missing_is_refused() -> None:
    with pytest.raises(InvalidValue, match="plan number 7 is missing"):
        bill(plans=[plan()], fees=[], uses=[data_use(7, overage=1, amount=1)])


def test_lines_are_ordered_by_version_with_the_fee_first() -> None:
    made = bill(
        plans=[plan(9, version=2), plan(4, version=1)],
        fees=[
            FeeRow(plan_no=number, subscriptions=1, days=30, amount=5, subunits_per_unit=1)
            for number in (9, 4)
        ],
        uses=[data_use(number, overage=0, amount=0) for number in (9, 4)],
    )
    assert [(line.plan.version, type(line)) for line in made.lines] == [
        (1, FeeLine),
        (1, UseLine),
        (2, FeeLine),
        (2, UseLine),
    ]
