"""Fees, shares of terms, offers and changes of plan, worked by hand. January 2026 has 31 days."""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction

import pytest

from metering.period import months_later
from metering.rating.guide import Subscription
from metering.rating.membership import (
    Fleet,
    Member,
    effective_subscriptions,
    intervals,
    offer_holds,
    share_of,
    state_at,
    term_of,
)
from metering.rating.plan import (
    AllowanceTerms,
    ChangeTakesEffect,
    DeviceState,
    FeeBasis,
    FeeCount,
    FeeTerms,
    MeterTerms,
    Offer,
    PlanTerms,
    Proration,
    Variant,
)
from metering.rating.price import PackagePrice, Price, UnitPrice
from metering.rating.recurring import FeeItem, fees_of
from tests.fleets import (
    BERLIN,
    at,
    cycle,
    device,
    fee,
    fleet,
    graduated,
    offer,
    plan,
    priced,
    redemptions,
    subscription,
    volume,
)

ACTIVE = frozenset({DeviceState.ACTIVE})
F = Fraction


def items(
    terms: FeeTerms,
    *members: Member,
    on: str = "2026-01-01",
    used: Sequence[int] = (),
    of: Fleet | None = None,
) -> list[FeeItem]:
    """Return what falls due of one fee on plan 1 in the cycle that holds a day."""
    of = of or fleet()
    return fees_of(
        fleet=of,
        cycle=cycle(on, of),
        plans={1: plan(terms)},
        members=members,
        used=frozenset(used),
    )


def owed(
    terms: FeeTerms,
    *members: Member,
    on: str = "2026-01-01",
    used: Sequence[int] = (),
    of: Fleet | None = None,
) -> Fraction:
    return sum((item.exact for item in items(terms, *members, on=on, used=used, of=of)), F(0))


# States


def test_a_device_is_in_inventory_until_its_first_state_and_then_in_the_latest() -> None:
    states = device(1, states=[("active", "2026-01-10"), ("suspended", "2026-01-20")]).states
    assert state_at(states, at("2026-01-09T23:59:59")) is DeviceState.INVENTORY
    assert state_at(states, at("2026-01-10")) is DeviceState.ACTIVE
    assert state_at(states, at("2026-01-20")) is DeviceState.SUSPENDED
    assert state_at([], at("2026-01-20")) is DeviceState.INVENTORY


def test_adjoining_states_make_one_interval() -> None:
    changes = [("active", "2026-01-05"), ("active", "2026-01-07"), ("suspended", "2026-01-10")]
    states = device(1, states=changes).states
    both = frozenset({DeviceState.ACTIVE, DeviceState.SUSPENDED})
    month = (at("2026-01-01"), at("2026-02-01"))
    assert intervals(states, ACTIVE, *month) == [(at("2026-01-05"), at("2026-01-10"))]
    assert intervals(states, both, *month) == [(at("2026-01-05"), at("2026-02-01"))]
    assert intervals(states, ACTIVE, at("2026-01-06"), at("2026-01-06")) == []


# Shares of a term


@pytest.mark.parametrize(
    ("proration", "month", "begins", "ends", "expected"),
    [
        # 11 January to the end: 31 − 10 = 21 days of 31.
        ("days", "2026-01-01", "2026-01-11", "2026-02-01", F(21, 31)),
        ("days_inclusive", "2026-01-01", "2026-01-11", "2026-02-01", F(21, 31)),
        ("thirty_days", "2026-01-01", "2026-01-11", "2026-02-01", F(21, 30)),
        ("none", "2026-01-01", "2026-01-11", "2026-02-01", F(1)),
        # 11 to 21 January: 10 days, with the end day 11.
        ("days", "2026-01-01", "2026-01-11", "2026-01-21", F(10, 31)),
        ("days_inclusive", "2026-01-01", "2026-01-11", "2026-01-21", F(11, 31)),
        ("thirty_days", "2026-01-01", "2026-01-11", "2026-01-21", F(1, 3)),
        # From noon to noon: the day it begins counts, the day it ends does not.
        ("days", "2026-01-01", "2026-01-11T12:00", "2026-01-21T12:00", F(10, 31)),
        ("seconds", "2026-01-01", "2026-01-11T12:00", "2026-01-22", F(21, 62)),
        # Half an hour of one day.
        ("days", "2026-01-01", "2026-01-11T12:00", "2026-01-11T12:30", F(0)),
        ("days_inclusive", "2026-01-01", "2026-01-11T12:00", "2026-01-11T12:30", F(1, 31)),
        ("none", "2026-01-01", "2026-01-11T12:00", "2026-01-11T12:30", F(1)),
        ("none", "2026-01-01", "2026-01-11T12:00", "2026-01-11T12:00", F(0)),
        # Whole months are 1 however long, and 30 days of 31 are 1 by thirties.
        ("thirty_days", "2026-02-01", "2026-02-01", "2026-03-01", F(1)),
        ("thirty_days", "2026-01-01", "2026-01-01", "2026-01-31", F(1)),
        ("thirty_days", "2026-01-01", "2026-01-01", "2026-02-01", F(1)),
        # 2028 has a 29 February.
        ("days", "2028-02-01", "2028-02-29", "2028-03-01", F(1, 29)),
        # On 29 March 2026 Berlin skips an hour: March has 31 days, but 743 hours.
        ("days", "2026-03-01", "2026-03-29", "2026-03-30", F(1, 31)),
        ("seconds", "2026-03-01", "2026-03-29", "2026-03-30", F(23, 743)),
        # On 25 October 2026 it repeats one.
        ("seconds", "2026-10-01", "2026-10-25", "2026-10-26", F(25, 745)),
    ],
)
def test_the_share_of_a_term(
    proration: str, month: str, begins: str, ends: str, expected: Fraction
) -> None:
    share = share_of(
        [(at(begins), at(ends))],
        term=term_of(cycle(month)),
        proration=Proration(proration),
        time_zone=BERLIN,
    )
    assert share == expected


def test_a_day_on_which_billed_time_ends_and_begins_again_counts_once() -> None:
    # 1 to 16 January 10:00, and from 16 January 14:00 to the 21st: 20 days, with the end day 21.
    parts = [
        (at("2026-01-01"), at("2026-01-16T10:00")),
        (at("2026-01-16T14:00"), at("2026-01-21")),
    ]
    term = term_of(cycle("2026-01-01"))
    by_days = share_of(parts, term=term, proration=Proration.DAYS, time_zone=BERLIN)
    inclusive = share_of(parts, term=term, proration=Proration.DAYS_INCLUSIVE, time_zone=BERLIN)
    assert (by_days, inclusive) == (F(20, 31), F(21, 31))


# Fees per device and period


def test_a_fee_is_prorated_by_the_days_in_a_billed_state() -> None:
    terms = fee("3.10")
    assert owed(terms, device(1)) == F("3.10")
    assert owed(terms, device(1, ("2026-01-11", None))) == F("2.10")  # 0.10 a day, 21 days
    assert owed(terms, device(1, ("2025-06-01", "2026-01-11"))) == F("1.00")
    suspended = device(1, states=[("active", "2025-01-01"), ("suspended", "2026-01-21")])
    assert owed(terms, suspended) == F("2.00")
    back = [("active", "2025-01-01"), ("suspended", "2026-01-06"), ("active", "2026-01-26")]
    assert owed(terms, device(1, states=back)) == F("1.10")  # 1 to 5, and 26 to 31: 5 + 6 days
    assert owed(fee("3.10", quantity=20), device(1, ("2026-01-11", None))) == 42  # 20 × 2.10


@pytest.mark.parametrize(
    "member",
    [
        device(1, ("2026-02-01", None)),
        device(1, ("2025-01-01", "2026-01-01")),
        device(1, ("2026-01-11T10:00", "2026-01-11T18:00")),  # no day ends in it
        device(1, states=[("inventory", "2025-01-01")]),
        device(1, states=[("retired", "2025-12-31")]),
        device(1, ("2025-01-01", None, 2)),
    ],
)
def test_who_is_not_billed_has_no_item(member: Member) -> None:
    assert items(fee("3.10"), member) == []


def test_an_item_tells_its_term_share_and_due_instant() -> None:
    [item] = items(fee("3.10"), device(7, ("2026-01-11", None)))
    assert item == FeeItem(
        plan_no=1,
        fee=0,
        name="rental",
        device_no=7,
        subscription_no=70,
        begins=at("2026-01-01"),
        ends=at("2026-02-01"),
        share=F(21, 31),
        state=None,
        exact=F("2.10"),
        due=at("2026-02-01"),
    )


def test_a_plan_change_gives_its_day_to_the_new_plan() -> None:
    member = device(1, ("2025-01-01", "2026-01-16T15:00", 1), ("2026-01-16T15:00", None, 2))
    for proration in (Proration.DAYS, Proration.DAYS_INCLUSIVE):
        terms = plan(fee("31", proration=proration))
        found = fees_of(
            fleet=fleet(),
            cycle=cycle("2026-01-01"),
            plans={1: terms, 2: terms},
            members=[member],
            used=frozenset(),
        )
        # 1 to 15, then 16 to 31.
        assert [(item.plan_no, item.exact) for item in found] == [(1, F(15)), (2, F(16))]


BY_STATE = {
    "active": "31.00",
    "active_unused": "15.50",
    "suspended": "6.20",
    "suspended_used": "9.30",
    "inventory": "0",
}


@pytest.mark.parametrize(
    ("by_state", "used", "expected"),
    [
        # 10 days in inventory, 11 active (11 to 21), 10 suspended (22 to 31).
        (BY_STATE, True, [("inventory", 0), ("active", 11), ("suspended_used", 3)]),
        (BY_STATE, False, [("inventory", 0), ("active_unused", F("5.5")), ("suspended", 2)]),
        ({"active": "31", "suspended": "6.20"}, False, [("active", 11), ("suspended", 2)]),
        ({"active": "31", "suspended": "6.20"}, True, [("active", 11), ("suspended", 2)]),
        ({"active_unused": "31"}, True, []),
    ],
)
def test_each_state_costs_its_own_amount(
    by_state: dict[str, str],
    *,
    used: bool,
    expected: list[tuple[str, Fraction]],
) -> None:
    states = [("active", "2026-01-11"), ("suspended", "2026-01-22")]
    found = items(fee(by_state=by_state), device(1, states=states), used=[10] if used else [])
    assert [(item.state, item.exact) for item in found] == expected


def test_a_daily_fee_costs_its_amount_for_each_billed_day() -> None:
    [item] = items(
        fee("0.25", every=FeeBasis.DAY), device(1, ("2026-02-20", None)), on="2026-02-01"
    )
    assert (item.share, item.exact) == (F(9), F("2.25"))  # 20 to 28 February


# Once


def test_a_fee_once_is_due_when_a_subscription_starts() -> None:
    terms = fee("5", every=FeeBasis.ONCE)
    member = device(1, ("2026-01-20", "2026-01-25"), states=[("inventory", "2026-01-01")])
    [item] = items(terms, member)
    assert (item.exact, item.due, item.begins, item.ends) == (
        F(5),
        at("2026-01-20"),
        at("2026-01-20"),
        at("2026-01-20"),
    )
    assert items(terms, member, on="2026-02-01") == []


def test_an_activation_fee_is_due_the_first_time_a_device_is_active() -> None:
    terms = fee("5", every=FeeBasis.ACTIVATION)
    states = [("active", "2026-01-20"), ("suspended", "2026-02-01"), ("active", "2026-03-01")]
    member = device(1, ("2025-12-01", None), states=states)
    assert [owed(terms, member, on=f"2026-0{month}-01") for month in (1, 2, 3)] == [5, 0, 0]
    # Active before it has a plan: due when it has one; a later plan's is none.
    early = device(1, ("2026-01-05", "2026-02-05", 2), ("2026-02-05", None, 1), states=states[:1])
    assert owed(terms, early, on="2026-02-01") == 0
    ready = device(1, ("2026-01-05", None), states=[("active", "2025-01-01")])
    [item] = items(terms, ready)
    assert item.due == at("2026-01-05")


# Terms of months


@pytest.mark.parametrize(
    ("months", "expected"),
    [
        (0, "2026-01-31"),
        (1, "2026-02-28"),
        (2, "2026-03-31"),
        (3, "2026-04-30"),
        (25, "2028-02-29"),
    ],
)
def test_months_from_the_31st_do_not_drift(months: int, expected: str) -> None:
    assert months_later(date(2026, 1, 31), months) == date.fromisoformat(expected)


def test_a_year_from_29_february_ends_on_the_28th_and_comes_back() -> None:
    assert months_later(date(2028, 2, 29), 12) == date(2029, 2, 28)
    assert months_later(date(2028, 2, 29), 48) == date(2032, 2, 29)


def test_monthly_terms_run_from_the_subscriptions_day_and_are_due_where_they_end() -> None:
    terms = fee("28", every=FeeBasis.MONTH)
    member = device(1, ("2026-01-31", None))
    found = [items(terms, member, on=f"2026-0{month}-01") for month in (1, 2, 3, 4)]
    assert found[0] == []
    # 31 January to 28 February, to 31 March, to 30 April.
    assert [(i.begins, i.ends, i.exact) for each in found[1:] for i in each] == [
        (at("2026-01-31"), at("2026-02-28"), F(28)),
        (at("2026-02-28"), at("2026-03-31"), F(28)),
        (at("2026-03-31"), at("2026-04-30"), F(28)),
    ]


def test_a_quarter_in_advance_falls_in_the_period_of_its_start_and_in_arrears_of_its_end() -> None:
    member = device(1, ("2026-01-15", None))
    advance = fee("90", every=FeeBasis.QUARTER, in_advance=True)
    arrears = fee("90", every=FeeBasis.QUARTER)
    months = ["2026-01-01", "2026-02-01", "2026-03-01", "2026-04-01"]
    assert [owed(advance, member, on=month) for month in months] == [90, 0, 0, 90]
    assert [owed(arrears, member, on=month) for month in months] == [0, 0, 0, 90]


def test_a_term_that_ends_at_midnight_is_due_in_the_period_before() -> None:
    member = device(1, ("2026-01-01", None))
    arrears = fee("90", every=FeeBasis.QUARTER)
    assert [owed(arrears, member, on=f"2026-0{month}-01") for month in (3, 4)] == [90, 0]


def test_a_term_in_arrears_is_settled_when_the_subscription_ends() -> None:
    # 15 January to 15 April are 90 days; it ends after 31 − 14 + 28 + 15 = 60: on 16 March.
    member = device(1, ("2026-01-15", "2026-03-16"))
    arrears = fee("90", every=FeeBasis.QUARTER)
    months = ["2026-01-01", "2026-02-01", "2026-03-01", "2026-04-01"]
    assert [owed(arrears, member, on=month) for month in months] == [0, 0, 60, 0]


def test_several_monthly_terms_may_end_in_one_period() -> None:
    quarterly = fleet(months=3)
    member = device(1, ("2025-12-10", None))
    found = items(fee("5", every=FeeBasis.MONTH), member, of=quarterly)
    assert [item.ends for item in found] == [
        at("2026-01-10"),
        at("2026-02-10"),
        at("2026-03-10"),
    ]


# In advance


def test_in_advance_the_state_at_the_start_pays_for_the_whole_term() -> None:
    terms = fee("3.10", in_advance=True)
    ends = device(1, ("2025-01-01", "2026-01-11"))
    assert owed(terms, ends) == F("3.10")
    stops = device(1, states=[("active", "2025-01-01"), ("suspended", "2026-01-02")])
    assert owed(terms, stops) == F("3.10")
    joins = device(1, ("2026-01-11", "2026-01-12"))
    [item] = items(terms, joins)
    assert (item.exact, item.due) == (F("2.10"), at("2026-01-11"))
    states = [("suspended", "2025-01-01"), ("active", "2026-01-11")]
    by_state = fee(by_state={"active": "3.10", "suspended": "0.31"}, in_advance=True)
    assert owed(by_state, device(1, states=states)) == F("0.31")
    assert owed(terms, device(1, states=states)) == F("2.10")


def test_a_refund_gives_back_the_unused_part() -> None:
    terms = fee("3.10", in_advance=True, refund=True)
    charged, back = items(terms, device(1, ("2025-01-01", "2026-01-11")))
    assert (charged.exact, charged.share) == (F("3.10"), F(1))
    assert (back.exact, back.share, back.refund) == (F("-2.10"), F(21, 31), True)
    assert back.due == at("2026-01-11")
    retired = device(1, states=[("active", "2025-01-01"), ("retired", "2026-01-11")])
    assert owed(terms, retired) == F("1.00")
    kept = fee("3.10", in_advance=True, refund=True, proration=Proration.NONE)
    assert owed(kept, device(1, ("2025-01-01", "2026-01-11"))) == F("3.10")


def test_a_refund_of_a_year_comes_in_the_period_that_ends_it() -> None:
    terms = fee("365", in_advance=True, refund=True, every=FeeBasis.YEAR)
    member = device(1, ("2026-01-01", "2026-05-11"))
    # 130 of 365 days were used: 31 + 28 + 31 + 30 + 10; 235 are given back.
    months = [f"2026-0{month}-01" for month in range(1, 8)]
    assert [owed(terms, member, on=month) for month in months] == [365, 0, 0, 0, -235, 0, 0]


def test_a_refund_by_number_of_devices_gives_back_what_was_charged() -> None:
    # In January two devices: the first 10, the second 4. In March the second leaves after 73 days
    # of 365: 4 × 292/365 = 3.20 back, though a third device has joined by then.
    terms = fee(
        price=graduated((1, "10"), (None, "4")),
        in_advance=True,
        refund=True,
        every=FeeBasis.YEAR,
    )
    members = [
        device(1, ("2026-01-01", None)),
        device(2, ("2026-01-01", "2026-03-15")),
        device(3, ("2026-02-10", None)),
    ]
    assert owed(terms, *members) == 14
    [back] = items(terms, *members, on="2026-03-01")
    assert (back.device_no, back.exact) == (2, F("-3.2"))


# Per fleet


def test_a_fleets_fee_is_due_while_any_of_its_devices_is_billed() -> None:
    terms = fee("31", per_fleet=True)
    first = device(1, ("2026-01-06", "2026-01-16"))
    second = device(2, ("2026-01-11", "2026-01-21"))
    [item] = items(terms, first, second)
    assert (item.device_no, item.share, item.exact) == (None, F(15, 31), F(15))  # 6 to 20
    assert items(terms, device(1, states=[("suspended", "2025-01-01")])) == []


def test_a_fleets_fee_once_is_due_in_its_first_period() -> None:
    terms = fee("100", per_fleet=True, every=FeeBasis.ONCE)
    young = fleet("2026-01-10")
    [item] = items(terms, device(1, ("2026-01-12", None)), of=young)
    assert (item.exact, item.due) == (F(100), at("2026-01-12"))
    assert items(terms, device(1, ("2026-01-12", None)), on="2026-02-01", of=young) == []


def test_a_fleets_activation_fee_is_due_with_its_first_active_device() -> None:
    terms = fee("100", per_fleet=True, every=FeeBasis.ACTIVATION)
    members = [device(1, ("2026-02-03", None)), device(2, ("2026-01-12", None))]
    assert [owed(terms, *members, on=f"2026-0{month}-01") for month in (1, 2)] == [100, 0]


# By number of devices


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        # Three devices; the last from 11 January on: 21/31.
        (priced(UnitPrice(amount=Decimal(31))), 31 + 31 + 21),
        # Volume: all at 31, the tier's flat fee of 7 once and whole.
        (volume((2, "62"), (None, "31", "7")), 7 + 31 + 31 + 21),
        # Graduated: the first two at 62, the third at 31.
        (graduated((2, "62"), (None, "31")), 62 + 62 + 21),
        # A graduated tier's flat fee comes with the device that enters it, in its share.
        (graduated((2, "62"), (None, "31", "31")), 62 + 62 + 21 + 21),
        # The second and third device share a package: rated 31, 31, 62.
        (priced(PackagePrice(amount=Decimal(31), size=2)), 31 + 0 + 21),
        # One device is free, and never more than 50 in all: rated 0, 31, 50.
        (priced(UnitPrice(amount=Decimal(31)), free=1, maximum=Decimal(50)), 31 + F(19 * 21, 31)),
        (priced(UnitPrice(amount=Decimal(31)), minimum=Decimal(100)), 100),
        # By stairs a number of devices has one price, which is not prorated.
        (volume((2, "0", "10"), (None, "0", "20")), 20),
    ],
)
def test_a_price_by_number_of_devices(price: Price, expected: Fraction) -> None:
    members = [device(1), device(2), device(3, ("2026-01-11", None))]
    assert owed(fee(price=price), *members) == expected


def test_devices_count_in_the_order_of_their_activation() -> None:
    late = device(1, ("2026-01-11", None))
    early = device(2)
    found = items(fee(price=graduated((1, "62"), (None, "31"))), late, early)
    assert {item.device_no: item.exact for item in found} == {2: 62, 1: 21}


def test_a_device_that_comes_back_counts_once() -> None:
    returns = device(1, ("2025-01-01", "2026-01-11"), ("2026-01-21", None))
    found = items(fee(price=volume((1, "31"), (None, "1"))), returns)
    assert [item.exact for item in found] == [10, 11]


def test_a_flat_fee_at_zero_is_due_with_no_device_billed() -> None:
    terms = fee(price=volume((None, "1", "10"), flat_at_zero=True))
    assert owed(terms, device(1, states=[("suspended", "2025-01-01")])) == 10
    assert owed(terms, device(1)) == 11


def test_a_fleets_price_by_number_is_prorated_as_a_whole() -> None:
    terms = fee(price=volume((2, "31"), (None, "62")), per_fleet=True)
    members = [device(1, ("2026-01-11", None)), device(2, ("2026-01-21", None))]
    [item] = items(terms, *members)
    assert (item.devices, item.exact) == (2, F(42))  # 2 × 31 for 21 of 31 days


def test_the_peak_is_the_most_devices_at_one_time() -> None:
    terms = fee(price=volume((1, "10"), (None, "4")), count=FeeCount.PEAK)
    relay = [
        device(1, ("2026-01-01", "2026-01-11")),
        device(2, ("2026-01-11", "2026-01-21")),
        device(3, ("2026-01-05", "2026-01-11T00:01")),
    ]
    # The first leaves as the second comes; for one minute the second and third are together.
    [item] = items(terms, *relay)
    assert (item.devices, item.exact, item.share) == (2, F(8), F(1))
    [alone] = items(terms, *relay[:2])
    assert (alone.devices, alone.exact) == (1, F(10))
    assert items(terms, device(1, states=[("suspended", "2025-01-01")])) == []


# Offers


@pytest.mark.parametrize(
    ("terms", "month", "expected"),
    [
        (offer("2026-01-01", "2026-03-01"), "2025-12-01", False),
        (offer("2026-01-01", "2026-03-01"), "2026-01-01", True),
        (offer("2026-01-01", "2026-03-01"), "2026-02-01", True),
        (offer("2026-01-01", "2026-03-01"), "2026-03-01", False),
        (offer("2026-01-02"), "2026-01-01", False),  # the period's first day counts
        # The subscription starts on 20 January, which is period 1.
        (offer(periods=2), "2026-01-01", True),
        (offer(periods=2), "2026-02-01", True),
        (offer(periods=2), "2026-03-01", False),
        # The coupon is redeemed on 10 February.
        (offer(coupon="WELCOME"), "2026-01-01", False),
        (offer(coupon="WELCOME"), "2026-02-01", True),
        (offer(coupon="WELCOME"), "2027-02-01", True),
        (offer(coupon="WELCOME", periods=2), "2026-03-01", True),
        (offer(coupon="WELCOME", periods=2), "2026-04-01", False),
        (offer(coupon="OTHER"), "2026-02-01", False),
    ],
)
def test_when_an_offer_holds(terms: Offer, month: str, *, expected: bool) -> None:
    holds = offer_holds(
        terms,
        cycle=cycle(month),
        cycle_of=fleet().cycle_of,
        begins=at("2026-01-20"),
        redemptions=redemptions({"WELCOME": "2026-02-10"}),
    )
    assert holds is expected


def test_a_coupon_is_a_devices_or_its_fleets() -> None:
    terms = fee("1", offer=offer(coupon="C"))
    members = [device(1, coupons={"C": "2026-01-05"}), device(2)]
    assert owed(terms, *members) == 1
    assert owed(terms, *members, of=fleet(coupons={"C": "2026-01-05"})) == 2


# Changes of plan


def allowance(quantity: int, *fees: FeeTerms, **others: ChangeTakesEffect) -> PlanTerms:
    bundle = AllowanceTerms(name="bundle", quantity=quantity)
    meter = MeterTerms(
        meter="data",
        unit="octet",
        variants=[Variant(price=priced(UnitPrice(amount=Decimal(1))))],
        allowances=[bundle],
    )
    return plan(*fees, meters=[meter], **others)


SMALL, BIG = 1, 2
PLANS = {
    SMALL: allowance(100, fee("2.00")),
    BIG: allowance(100, fee("3.00"), fee("99", every=FeeBasis.ONCE, name="setup")),
    3: allowance(50, fee("24.00", every=FeeBasis.YEAR)),  # 2.00 a month, the smaller allowance
    4: allowance(100, fee("9"), downward=ChangeTakesEffect.AT_ONCE),
}


def stints(*assigned: tuple[int, str, str | None]) -> list[tuple[int, datetime, datetime | None]]:
    """Return how assigned `(plan_no, from, to)` take effect in months from the 1st."""
    ordered = [
        subscription(begins, ends, plan_no=plan_no, number=number)
        for number, (plan_no, begins, ends) in enumerate(assigned)
    ]
    found: list[Subscription] = effective_subscriptions(ordered, PLANS, fleet().cycle_of)
    return [(each.plan_no, each.valid_from, each.valid_to) for each in found]


JANUARY, MID, FEBRUARY = "2026-01-01", "2026-01-16", "2026-02-01"


def test_upward_at_once_and_downward_from_the_next_period() -> None:
    assert stints((SMALL, JANUARY, MID), (BIG, MID, None)) == [
        (SMALL, at(JANUARY), at(MID)),
        (BIG, at(MID), None),
    ]
    assert stints((BIG, JANUARY, MID), (SMALL, MID, None)) == [
        (BIG, at(JANUARY), at(FEBRUARY)),
        (SMALL, at(FEBRUARY), None),
    ]


def test_equal_fees_compare_by_allowance_and_equal_plans_change_at_once() -> None:
    assert stints((SMALL, JANUARY, MID), (3, MID, None))[0][2] == at(FEBRUARY)
    assert stints((3, JANUARY, MID), (SMALL, MID, None))[0][2] == at(MID)
    assert stints((SMALL, JANUARY, MID), (SMALL, MID, None))[0][2] == at(MID)


def test_the_plan_that_is_left_says_when_a_change_takes_effect() -> None:
    assert stints((4, JANUARY, MID), (SMALL, MID, None))[0][2] == at(MID)


def test_a_change_at_a_periods_start_does_not_wait() -> None:
    assert stints((BIG, JANUARY, FEBRUARY), (SMALL, FEBRUARY, None))[1][1] == at(FEBRUARY)


def test_a_change_that_never_takes_effect_leaves_the_plan_before_it() -> None:
    later = "2026-01-20"
    # Down on the 16th, up to the first plan again on the 20th: never on the small plan.
    assert stints((BIG, JANUARY, MID), (SMALL, MID, later), (BIG, later, None)) == [
        (BIG, at(JANUARY), at(later)),
        (BIG, at(later), None),
    ]
    # Down on the 16th, gone on the 20th.
    assert stints((BIG, JANUARY, MID), (SMALL, MID, later)) == [(BIG, at(JANUARY), at(later))]


def test_after_a_gap_a_subscription_is_no_change() -> None:
    assert stints((BIG, JANUARY, MID), (SMALL, "2026-01-17", None)) == [
        (BIG, at(JANUARY), at(MID)),
        (SMALL, at("2026-01-17"), None),
    ]
