"""The bill so far, worked by hand."""

import asyncio
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from metering.billing.bill import Bill, bill_of, drawn_up
from metering.errors import InvalidValue
from metering.rating.membership import Member
from metering.rating.statement import LineKind
from metering.store.bill_views import BilledPlan, UseRow
from metering.usage import DATA, SMS
from tests import fleets

APRIL = fleets.cycle("2026-04-15")
"""Thirty local days of Europe/Berlin."""


def terms(currency: str = "EUR", monthly_fee: str = "5.00", **more: object) -> Mapping[str, object]:
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
        **more,
    }


def plan(
    plan_no: int = 1, *, version: int = 1, document: Mapping[str, object] | None = None
) -> BilledPlan:
    return BilledPlan(
        plan_no=plan_no,
        plan_id="basic",
        version=version,
        name="Basic",
        terms=document or terms(),
        subunits_per_unit=10_000_000,
    )


def use(device_no: int, overage: int, amount: int, **more: Any) -> UseRow:  # noqa: ANN401 - its fields
    """Return what a device's subscription used of data beyond its allowance and pool."""
    fields = {
        "meter_no": DATA.meter_no,
        "variant": 0,
        "records": 3,
        "quantity": overage,
        "billed": overage,
        "from_allowance": 0,
        "from_pool": 0,
    } | more
    return UseRow(subscription_no=10 * device_no, overage=overage, amount=amount, **fields)


def bill(
    members: Sequence[Member],
    *,
    plans: Sequence[BilledPlan],
    uses: Sequence[UseRow] = (),
    currency: str = "EUR",
) -> Bill:
    return bill_of(
        fleet=fleets.fleet(currency=currency), cycle=APRIL, plans=plans, members=members, uses=uses
    )


def test_hand_worked_bill() -> None:
    # Fee: 5.00 for a whole cycle of 30 days.
    #   two subscriptions of 30 days: 2 x 5                = 10
    #   one of 20 days:               5 x 20/30 = 10/3     =  3.333…
    #   exact 40/3 = 13.333…, rounded                        13.33
    # Data: 0.10 per 1 000 000 octets, so one octet is 1/10 000 000 of a euro: the sub-unit that
    #   also makes 0.07 whole. 1 234 567 octets over: 0.1234567, rounded                   0.12
    # SMS: 0.07 each is 700 000 sub-units; 5 of them: 3 500 000 / 10 000 000 = 0.35,  0.35
    # Total: 0.12 + 0.35 + 13.33                                                     13.80
    #   (the exact sum is 13.8067900333…)
    members = [
        fleets.device(1),
        fleets.device(2),
        fleets.device(3, ("2026-04-11", None)),
    ]
    over = {"quantity": 101_234_567, "billed": 101_234_567, "from_pool": 100_000_000}
    within = {"quantity": 200_000_000, "billed": 200_000_000, "from_pool": 200_000_000}
    made = bill(
        members,
        plans=[plan()],
        uses=[
            use(1, 1_234_567, 1_234_567, **over),
            use(2, 0, 0, **within),
            use(2, 5, 3_500_000, meter_no=SMS.meter_no),
        ],
    )
    data, sms, fee = made.statement.lines
    assert (fee.kind, fee.name, fee.devices) == (LineKind.FEE, "monthly_fee", 3)
    assert (fee.shares, fee.exact) == (Fraction(80, 30), Fraction(40, 3))
    assert (data.meter, data.devices, data.records) == ("data", 2, 6)
    assert data.billed == data.from_allowance + data.from_pool + data.priced == 301_234_567
    assert data.exact == Fraction("0.1234567")
    unit_price = made.unit_price(data)
    assert unit_price is not None
    assert (unit_price.amount, unit_price.per) == (Decimal("0.10"), 1_000_000)
    assert sms.meter == "sms"
    assert [str(line.amount) for line in made.statement.lines] == ["0.12", "0.35", "13.33"]
    assert str(made.statement.total) == "13.80"


def test_total_is_the_sum_of_the_rounded_lines_not_the_rounded_sum() -> None:
    # Three plan versions, each with 50 000 octets over: 0.005 rounds half-up to 0.01, thrice 0.03,
    # though the exact sum is 0.015, which alone would round to 0.02.
    made = bill(
        [fleets.device(number, ("2025-01-01", None, number)) for number in (1, 2, 3)],
        plans=[
            plan(number, version=number, document=terms(monthly_fee="0")) for number in (1, 2, 3)
        ],
        uses=[use(number, 50_000, 50_000) for number in (1, 2, 3)],
    )
    used = [line for line in made.statement.lines if line.kind is LineKind.USAGE]
    assert [str(line.amount) for line in used] == ["0.01", "0.01", "0.01"]
    assert str(made.statement.total) == "0.03"


@pytest.mark.parametrize(("currency", "total"), [("EUR", "0.00"), ("JPY", "0"), ("KWD", "0.000")])
def test_an_empty_bill_has_the_digits_of_its_currency(currency: str, total: str) -> None:
    made = bill([], plans=[], currency=currency)
    assert made.statement.lines == ()
    assert str(made.statement.total) == total


def test_a_plan_in_another_currency_is_refused() -> None:
    with pytest.raises(InvalidValue, match="plan 'basic' is in USD, its fleet's bill in EUR"):
        bill([fleets.device(1)], plans=[plan(document=terms("USD"))], uses=[use(1, 1, 1)])


def test_a_use_whose_plan_is_missing_is_refused() -> None:
    with pytest.raises(InvalidValue, match="plan number 7 is missing"):
        bill([fleets.device(1, ("2025-01-01", None, 7))], plans=[plan()], uses=[use(1, 1, 1)])


def test_lines_come_in_the_order_of_the_plans_usage_first() -> None:
    made = bill(
        [fleets.device(number, ("2025-01-01", None, number)) for number in (4, 9)],
        plans=[plan(9, version=1), plan(4, version=2)],
        uses=[use(number, 0, 0) for number in (4, 9)],
    )
    assert [(made.plans[line.plan_no].version, line.kind) for line in made.statement.lines] == [
        (1, LineKind.USAGE),
        (2, LineKind.USAGE),
        (1, LineKind.FEE),
        (2, LineKind.FEE),
    ]


TIERS = [{"up_to": 5, "amount": "0.1"}, {"amount": "0.05"}]


@pytest.mark.parametrize(
    ("price", "more", "plain"),
    [
        ({"amount": "0.1"}, {}, True),
        ({"amount": "0.1", "minimum": "3"}, {}, True),  # trued up by a line of its own
        ({"amount": "0.1", "free": 3}, {}, False),
        ({"amount": "0.1", "maximum": "3"}, {}, False),
        ({"amount": "0.1", "connection_fee": "0.01"}, {}, False),
        ({"amount": "0.1", "minimum": "1", "counted_per": "record"}, {}, False),
        ({"amount": "0.1"}, {"rounding": {"at": "record"}}, False),
        ({"model": "graduated", "tiers": TIERS}, {}, False),
        ({"model": "package", "amount": "1", "size": 10}, {}, False),
    ],
)
def test_a_unit_price_is_told_only_where_it_says_all(
    price: Mapping[str, object], more: Mapping[str, object], *, plain: bool
) -> None:
    document = {**terms(), "meters": {"data": {"price": price}}, **more}
    made = bill([fleets.device(1)], plans=[plan(document=document)], uses=[use(1, 100, 1)])
    line = made.statement.lines[0]
    unit_price = made.unit_price(line)
    assert (unit_price is not None) is plain
    if unit_price is not None:
        assert (unit_price.amount, unit_price.per) == (Decimal("0.1"), 1)
    assert made.unit_price(made.statement.lines[-1]) is None  # a fee has none


def test_a_large_fleets_bill_holds_nobody_up() -> None:
    members = [fleets.device(number) for number in range(1, 2001)]

    async def others_while_it_is_drawn_up() -> int:
        """Return how often the event loop went round meanwhile."""
        rounds = 0
        drawing = asyncio.create_task(
            drawn_up(fleet=fleets.fleet(), cycle=APRIL, plans=[plan()], members=members, uses=[])
        )
        while not drawing.done():
            await asyncio.sleep(0)
            rounds += 1
        drawn = await drawing
        assert drawn.statement == bill(members, plans=[plan()]).statement
        return rounds

    # The task's own step and the one that ends it are two; whoever computes in the loop has no more.
    assert asyncio.run(others_while_it_is_drawn_up()) > 5
