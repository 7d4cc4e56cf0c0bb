"""The naive reference itself, against tables worked by hand."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from tests.reference.amounts import Measure, rounded_money
from tests.reference.naive import Line, Rated, rate
from tests.reference.prices import affordable, billed, rated

MESSAGES = Measure("messages")
VOICE = Measure("voice")
STEPS = [
    {"up_to": 100, "amount": "1"},
    {"up_to": 200, "amount": "0.5"},
    {"amount": "0.1"},
]
CALLS = {"unit": "call", "price": {"amount": "1"}}
ONE = {"amount": "1"}

Doc = dict[str, Any]


def plan(meter: Doc, **more: Any) -> Doc:  # noqa: ANN401
    return {"plan": "p", "currency": "EUR", "meters": {"messages": meter}, **more}


def use(quantity: int, time: str = "2026-01-10T10:00:00Z", **more: object) -> Doc:
    return {"device": "d1", "meter": "messages", "quantity": quantity, "time": time, **more}


def amounts(rating: Rated, period: int = 0) -> list[Fraction]:
    return [record["amount"] for record in rating["periods"][period]["records"]]


def lines(rating: Rated, period: int = 0) -> list[tuple[str, str, object]]:
    """Give those that are not zero."""
    every: Sequence[Line] = rating["periods"][period]["lines"]
    return [(line.kind, line.name, line.amount) for line in every if line.amount]


def draws(rating: Rated, period: int = 0) -> list[Mapping[str, int]]:
    return [record["draws"] for record in rating["periods"][period]["records"]]


def priced(rating: Rated, period: int = 0) -> list[int]:
    return [record["priced"] for record in rating["periods"][period]["records"]]


# Prices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "quantity", "amount"),
    [
        ("graduated", 0, "0"),
        ("graduated", 100, "100"),
        ("graduated", 101, "100.5"),
        ("graduated", 250, "155"),  # 100 x 1 + 100 x 0.5 + 50 x 0.1
        ("volume", 100, "100"),
        ("volume", 101, "50.5"),
        ("volume", 250, "25"),
    ],
)
def test_tiers(model: str, quantity: int, amount: str) -> None:
    assert rated({"model": model, "tiers": STEPS}, quantity, MESSAGES) == Fraction(amount)


@pytest.mark.parametrize(
    ("model", "quantity", "amount"),
    [
        ("graduated", 99, "99"),
        ("graduated", 100, "99.5"),  # the hundredth is of the next tier
        ("graduated", 250, "154.1"),  # 99 x 1 + 100 x 0.5 + 51 x 0.1
        ("volume", 99, "99"),
        ("volume", 100, "50"),
        ("volume", 200, "20"),
    ],
)
def test_tiers_whose_bound_belongs_to_the_next(model: str, quantity: int, amount: str) -> None:
    price = {"model": model, "tiers": STEPS, "bounds": "lower_inclusive"}
    assert rated(price, quantity, MESSAGES) == Fraction(amount)


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [(0, 0), (1, 10), (10, 10), (11, 20), (1000, 20)],
)
def test_stairs(quantity: int, amount: int) -> None:
    tiers = [{"up_to": 10, "flat": "10"}, {"flat": "20"}]
    assert rated({"model": "stair_step", "tiers": tiers}, quantity, MESSAGES) == amount
    if quantity == 0:
        with_zero = {"model": "stair_step", "tiers": tiers, "flat_at_zero": True}
        assert rated(with_zero, quantity, MESSAGES) == 10


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [(0, 0), (10, 0), (11, 3), (60, 3), (61, 6), (1000, 50)],  # at most 50
)
def test_package_with_free_units_and_maximum(quantity: int, amount: int) -> None:
    price = {"model": "package", "amount": "3", "size": 50, "free": 10, "maximum": "50"}
    assert rated(price, quantity, MESSAGES) == amount


def test_blocks_and_flats_within_tiers() -> None:
    price = {
        "model": "graduated",
        "block": 10,
        "tiers": [{"blocks": 2, "amount": "5"}, {"amount": "3", "flat": "1"}],
    }
    # 20 units are two blocks of 5; five more begin one block of 3, and owe the flat of 1
    assert [rated(price, n, MESSAGES) for n in (1, 20, 25)] == [5, 10, 14]
    assert rated({**price, "model": "volume"}, 25, MESSAGES) == 3 * 3 + 1


@pytest.mark.parametrize(
    ("increment", "raw", "expected"),
    [
        ({"first": 60, "step": 6}, 0, 0),
        ({"first": 60, "step": 6}, 1, 60),
        ({"first": 60, "step": 6}, 61, 66),
        ({"first": 50, "step": 20}, 71, 90),
        ({"first": 30}, 31, 31),
        ({"step": "1 min"}, 61, 120),
        ({"step": 60, "direction": "down"}, 119, 60),
        ({"step": 60, "direction": "half_up"}, 90, 120),
    ],
)
def test_increments(increment: Doc, raw: int, expected: int) -> None:
    assert billed(increment, raw, VOICE) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("half_up", "0.13 -0.13 0.12"),
        ("half_even", "0.12 -0.12 0.12"),
        ("up", "0.13 -0.13 0.13"),
        ("down", "0.12 -0.12 0.12"),
    ],
)
def test_rounding(mode: str, expected: str) -> None:
    values = [Fraction("0.125"), Fraction("-0.125"), Fraction("0.121")]
    found = [rounded_money(value, mode=mode, step=Decimal("0.01")) for value in values]
    assert found == [Decimal(text) for text in expected.split()]


@pytest.mark.parametrize("money", ["0", "0.5", "1", "99.9", "100.5", "140", "150.05", "1000"])
@pytest.mark.parametrize("model", ["graduated", "volume"])
def test_affordable_is_the_most_that_fits(model: str, money: str) -> None:
    price = {"model": model, "tiers": STEPS}
    fitting = [n for n in range(301) if rated(price, n, MESSAGES) <= Fraction(money)]

    def fits(units: int) -> bool:
        return rated(price, units, MESSAGES) <= Fraction(money)

    assert affordable(price, 0, 300, MESSAGES, fits) == max(fitting)


# Records -----------------------------------------------------------------------------------


def test_a_record_costs_what_it_adds() -> None:
    rating = rate(
        [plan({"price": {"model": "volume", "tiers": STEPS}})], [use(100), use(1), use(149)]
    )
    # 100 x 1 = 100; 101 x 0.5 = 50.5; 250 x 0.1 = 25
    assert amounts(rating) == [100, Fraction("-49.5"), Fraction("-25.5")]
    assert rating["total"] == Decimal("25.00")


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("record", [10, 10, 10, 10]),
        ("session", [10, 10, 10, 0]),  # the last two are one session
        ("device_day", [10, 0, 10, 0]),  # 6 -> 10 on each day
        ("device_month", [10, 0, 0, 10]),  # 3, 6, 9 -> 10; 12 -> 20
        ("period", [10, 0, 0, 10]),
    ],
)
def test_scope_of_an_increment(scope: str, expected: list[int]) -> None:
    later = use(3, "2026-01-11T10:00:00Z", session="s")
    meter = {"price": ONE, "increment": {"step": 10, "scope": scope}}
    rating = rate([plan(meter)], [use(3), use(3), later, later])
    assert [record["billed"] for record in rating["periods"][0]["records"]] == expected


def test_overhead_comes_before_the_increment() -> None:
    meter = {
        "price": ONE,
        "overhead": {"per_record": 40, "per_packet": 28},
        "increment": {"step": 100},
    }
    rating = rate([plan(meter)], [use(5, packets=2), use(0)])
    # 5 + 40 + 2 x 28 = 101
    assert [record["billed"] for record in rating["periods"][0]["records"]] == [200, 0]


def test_connection_fee_once_a_session() -> None:
    price = {"amount": "1", "connection_fee": "0.5"}
    usage = [use(2), use(2), use(2, session="s"), use(2, session="s"), use(0)]
    half = Fraction(1, 2)
    assert amounts(rate([plan({"allowance": 3, "price": price})], usage)) == [
        0,
        1 + half,
        2 + half,
        2,
        0,
    ]
    always = {"allowance": 3, "price": {**price, "connection_fee_on_allowance": True}}
    assert amounts(rate([plan(always)], usage)) == [half, 1 + half, 2 + half, 2, 0]


def test_a_record_is_divided_at_bands() -> None:
    meter = {
        "price": {"amount": "1"},
        "variants": [{"bands": ["peak"], "price": {"amount": "2"}}],
    }
    bands = {"peak": [{"days": ["mon"], "from": "08:00", "to": "20:00"}]}
    document = plan(meter, bands=bands, time_zone="Europe/Berlin")
    # Monday 5 January, 07:50 to 08:10:20 in Berlin: 600 of 1220 seconds before the band
    usage = {
        "device": "d1",
        "meter": "messages",
        "start": "2026-01-05T06:50:00Z",
        "end": "2026-01-05T07:10:20Z",
        "quantity": 122,
    }
    rating = rate([document], [usage])
    records = rating["periods"][0]["records"]
    assert [(r["band"], r["priced"]) for r in records] == [(None, 60), ("peak", 62)]
    assert amounts(rating) == [60, 124]
    whole = rate([{**document, "band_crossing": "start"}], [usage])
    assert amounts(whole) == [122]


def test_a_record_is_divided_at_the_period_and_rounded_as_one() -> None:
    meter = {"price": ONE, "increment": {"step": 10}}
    usage = {
        "device": "d1",
        "meter": "messages",
        "start": "2026-01-31T23:00:00Z",
        "end": "2026-02-01T02:00:00Z",
        "quantity": 32,
    }
    rating = rate([plan(meter)], [usage])
    # 10 and 22; together 32 -> 40: 10 and 30
    assert [period["total"] for period in rating["periods"]] == [Decimal("10.00"), Decimal("30.00")]


def test_zones_by_the_longest_digits_then_country_then_world() -> None:
    document = plan(
        {"price": ONE},
        groups={"nordics": ["SE", "NO"], "far": ["nordics", "310"]},
        zones={"far": ["far"], "own": ["26201"], "land": ["262"], "rest": ["world"]},
    )
    usage = [
        use(1, network="26201", country="SE"),
        use(1, network="26202"),
        use(1, network="310260"),
        use(1, country="NO"),
        use(1, zone="land", network="26201"),
        use(1, zone="SE"),
        use(1),
    ]
    records = rate([document], usage)["periods"][0]["records"]
    assert [r["zone"] for r in records] == ["own", "land", "far", "far", "land", "far", "rest"]


# Allowances --------------------------------------------------------------------------------


def test_allowances_burn_by_priority_and_place() -> None:
    meter = {
        "price": ONE,
        "allowances": [
            {"name": "late", "quantity": 10, "priority": 150},
            {"name": "home", "quantity": 5, "zones": ["home"]},
        ],
    }
    document = plan(meter, zones={"home": ["DE"]})
    rating = rate([document], [use(3, country="FR"), use(7, country="DE"), use(9)])
    assert draws(rating) == [{"late": 3}, {"home": 5, "late": 2}, {"late": 5}]
    assert priced(rating) == [0, 0, 4]


def test_a_pool_with_floor_and_ceiling() -> None:
    allowance = {"name": "pool", "quantity": 10, "shared_by": "plan", "floor": 4, "ceiling": 12}
    state = {"devices": {"d1": {}, "d2": {}, "d3": {"from": "2026-01-17"}}}
    usage = [use(30), {**use(9), "device": "d2"}, {**use(5, "2026-01-20"), "device": "d3"}]
    rating = rate([plan({"price": ONE, "allowances": [allowance]})], usage, state)
    # 10 + 10 + floor(10 x 15/31) = 24: 12 at most for d1; 4 are kept for d3
    assert draws(rating) == [{"pool": 12}, {"pool": 8}, {"pool": 4}]
    assert priced(rating) == [18, 1, 1]


def test_a_day_allowance_and_a_lifetime_one() -> None:
    day = {"name": "day", "quantity": 2, "renews": "day"}
    life = {"name": "life", "quantity": 5, "renews": "never", "priority": 200}
    usage = [
        use(3),
        use(3, "2026-01-11"),
        use(3, "2026-02-01"),
        use(3, "2026-02-01"),
    ]
    rating = rate([plan({"price": ONE, "allowances": [day, life]})], usage)
    assert draws(rating) == [{"day": 2, "life": 1}, {"day": 2, "life": 1}]
    assert draws(rating, 1) == [{"day": 2, "life": 1}, {"life": 2}]
    assert priced(rating, 1) == [0, 1]


@pytest.mark.parametrize(
    ("rollover", "march"),
    [
        ({}, 10),  # February's 10; January's 7 are too old
        ({"periods": 2}, 17),
        ({"periods": 2, "maximum": 12}, 12),  # 2 of January, 10 of February
        ({"minimum": 11}, 0),
    ],
)
def test_rollover(rollover: Doc, march: int) -> None:
    allowance = {"name": "a", "quantity": 10, "rollover": rollover}
    usage = [use(3), use(100, "2026-03-05")]
    rating = rate([plan({"price": ONE, "allowances": [allowance]})], usage)
    assert draws(rating, 2) == [{"a": 10 + march}]


def test_money_pays_whole_units_before_an_allowance_and_anything_after() -> None:
    meter = {"price": {"amount": "0.3"}, "allowance": 4}
    state = {
        "buckets": [
            {"id": "first", "device": "d1", "money": "1", "priority": 50},
            {"id": "last", "device": "d1", "money": "1", "priority": 300},
        ]
    }
    rating = rate([plan(meter)], [use(12)], state)
    # 3 for 0.90, 4 of the allowance, 5 for 1.50, of which 1.00 is paid
    [record] = rating["periods"][0]["records"]
    assert record["draws"] == {"allowance": 4}
    assert record["money"] == {"first": Fraction("0.9"), "last": 1}
    assert record["amount"] - record["from_money"] == Fraction("0.5")
    assert (rating["total"], rating["periods"][0]["due"]) == (Decimal("2.40"), Decimal("0.50"))


# Walks, places and terms of other kinds -------------------------------------------------------

FIRST_DEARER = {
    "model": "graduated",
    "tiers": [{"up_to": 2, "amount": "5"}, {"amount": "1"}],
    "minimum": "7",
    "maximum": "20",
}


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        ("record", [7, 13, 7, 7, 20]),  # 5 -> 7; 2 x 5 + 3; 7; 7; 2 x 5 + 18 -> 20
        ("session", [7, 13, 7, 3, 10]),  # the last three: 5 -> 7; 10; 2 x 5 + 18 -> 20
    ],
)
def test_walk_of_a_record_or_session(per: str, expected: list[int]) -> None:
    meter = {"price": {**FIRST_DEARER, "counted_per": per}}
    usage = [use(1), use(5)] + [use(n, session="s") for n in (1, 1, 20)]
    rating = rate([plan(meter)], usage)
    assert amounts(rating) == expected
    assert [line[0] for line in lines(rating)] == ["usage"]


def test_variants_counted_together() -> None:
    def price(amount: str) -> Doc:
        tiers = [{"up_to": 10, "amount": amount}, {"amount": "1"}]
        return {"model": "graduated", "counted_with": "meter", "tiers": tiers}

    meter = {
        "price": price("2"),
        "variants": [
            {"where": {"rat": ["LTE"]}, "price": price("3")},
            {"where": {"speed": ["fast"]}, "from": "2026-01-20", "price": {"amount": "9"}},
        ],
    }
    usage = [
        use(8, rat="LTE"),
        use(4),  # units 9 to 12: 2 x 2 + 2 x 1
        use(1, attributes={"speed": "fast"}),  # the thirteenth
        use(1, "2026-01-20", attributes={"speed": "fast"}),
        use(1, "2026-01-21", rat="LTE"),  # the fourteenth
    ]
    assert amounts(rate([plan(meter)], usage)) == [24, 6, 1, 9, 1]


def test_the_largest_value_counts() -> None:
    meter = {"aggregate": "max", "price": ONE, "increment": {"step": 10}}
    rating = rate([plan(meter)], [use(15), use(7), use(21), use(18)])
    assert [record["billed"] for record in rating["periods"][0]["records"]] == [20, 0, 10, 0]


def test_the_number_called_comes_before_the_network() -> None:
    document = plan({"price": ONE}, zones={"german": ["+49"], "mobile": ["+4917"], "net": ["262"]})
    called = ["+491712345", "+4930123", "+33123", ""]
    usage = [use(1, destination=number, network="26201") for number in called]
    records = rate([document], usage)["periods"][0]["records"]
    assert [record["zone"] for record in records] == ["mobile", "german", "net", "net"]


def test_a_weekly_allowance_runs_from_the_subscription() -> None:
    allowance = {"name": "w", "quantity": 10, "renews": "week"}
    state = {"devices": {"d1": {"from": "2026-01-28"}}}
    usage = [use(6, "2026-01-29"), use(6, "2026-02-03"), use(6, "2026-02-04")]
    rating = rate([plan({"price": ONE, "allowances": [allowance]})], usage, state)
    assert [*draws(rating), *draws(rating, 1)] == [{"w": 6}, {"w": 4}, {"w": 6}]


def test_records_are_rounded_to_a_step() -> None:
    rounding = {"at": "record", "step": "0.05"}
    document = plan({"price": {"amount": "0.03"}}, rounding=rounding)
    rating = rate([document], [use(1), use(2), use(4)])
    # 0.03, 0.06 and 0.12
    assert amounts(rating) == [Fraction("0.05"), Fraction("0.05"), Fraction("0.1")]
    assert rating["total"] == Decimal("0.20")


def test_a_fee_for_each_day_and_times_a_number() -> None:
    fee = {"name": "f", "amount": "0.5", "every": "day", "quantity": 20}
    state = {"devices": {"d1": {"from": "2026-01-11", "to": "2026-01-14"}}}
    document = {"plan": "p", "currency": "EUR", "fees": [fee]}
    rating = rate([document], [], state, "2026-01-01", "2026-02-01")
    assert lines(rating) == [("fee", "f", 30)]


# Fees and adjustments ------------------------------------------------------------------------


def test_price_minimum_for_each_active_device() -> None:
    meter = {"price": {"amount": "1", "minimum": "31", "prorated": True}}
    state = {"devices": {"d1": {}, "d2": {"from": "2026-01-22"}}}
    rating = rate([plan(meter)], [use(11)], state)
    # d1: 31 - 11; d2: 31 x 10/31
    assert lines(rating) == [("usage", "messages", 11), ("minimum", "messages", 30)]


@pytest.mark.parametrize(
    ("proration", "amount"),
    [
        ("days", Fraction(31 * 10, 31)),
        ("days_inclusive", Fraction(31 * 11, 31)),
        ("seconds", Fraction(31 * 10, 31)),
        ("thirty_days", Fraction(31 * 10, 30)),
        ("none", Fraction(31)),
    ],
)
def test_fee_of_ten_days(proration: str, amount: Fraction) -> None:
    document = plan(CALLS, fees=[{"name": "f", "amount": "31", "proration": proration}])
    state = {"devices": {"d1": {"from": "2026-01-11", "to": "2026-01-21"}}}
    rating = rate([document], [], state, "2026-01-01", "2026-02-01")
    assert lines(rating) == [("fee", "f", amount)]


@pytest.mark.parametrize(
    ("more", "amount"),
    [
        ({}, 31),
        ({"from": "2026-01-11"}, 21),
        ({"to": "2026-01-11"}, 31),
        ({"from": "2026-01-11", "to": "2026-01-21"}, 21),
    ],
)
def test_fee_in_advance(more: Doc, amount: int) -> None:
    fee = {"name": "f", "amount": "31", "charged": "in_advance"}
    state = {"devices": {"d1": more}}
    rating = rate([plan(CALLS, fees=[fee])], [], state, "2026-01-01", "2026-02-01")
    assert lines(rating) == [("fee", "f", amount)]
    back = rate(
        [plan(CALLS, fees=[{**fee, "refund": True}])], [], state, "2026-01-01", "2026-02-01"
    )
    used = amount - (21 if more.get("to") == "2026-01-11" else 11 if "to" in more else 0)
    assert lines(back) == [("fee", "f", used)]


@pytest.mark.parametrize(
    ("model", "amount"),
    [
        ("graduated", 10 + 10 + 5 * Fraction(1, 31)),
        ("volume", 5 + 5 + 5 * Fraction(1, 31)),
    ],
)
def test_fee_by_number_of_devices(model: str, amount: Fraction) -> None:
    tiers = [{"up_to": 2, "amount": "10"}, {"amount": "5"}]
    fee = {"name": "f", "price": {"model": model, "tiers": tiers}}
    state = {"devices": {"d2": {}, "d1": {}, "d3": {"from": "2026-01-31"}}}
    rating = rate([plan(CALLS, fees=[fee])], [], state, "2026-01-01", "2026-02-01")
    [line] = rating["periods"][0]["lines"]
    assert line.amount == amount


def test_fee_by_state() -> None:
    fee = {"name": "f", "by_state": {"active": "31", "active_unused": "3.1", "suspended": "6.2"}}
    states = [{"state": "active"}, {"state": "suspended", "from": "2026-01-11"}]
    state = {"devices": {"d1": {"states": states}}}
    documents = [plan({"price": {"amount": "0"}}, fees=[fee])]
    used = rate(documents, [use(1)], state)
    unused = rate(documents, [], state, "2026-01-01", "2026-02-01")
    # 10 and 21 days: 10 + 4.2, and 1 + 4.2
    assert lines(used) == [("fee", "f", Fraction("14.2"))]
    assert lines(unused) == [("fee", "f", Fraction("5.2"))]


def test_quarterly_fee_runs_from_the_subscription() -> None:
    state = {"devices": {"d1": {"from": "2026-01-31"}}}

    def months_of(charged: str) -> list[int]:
        fee = {"name": "f", "amount": "3", "every": "quarter", "charged": charged}
        rating = rate([plan(CALLS, fees=[fee])], [], state, "2026-01-01", "2026-09-01")
        return [n + 1 for n, _ in enumerate(rating["periods"]) if lines(rating, n)]

    assert months_of("in_advance") == [1, 4, 7]  # 31 January, 30 April, 31 July
    assert months_of("in_arrears") == [4, 7]


def test_a_cheaper_plan_waits_for_the_next_period() -> None:
    small = {**plan(CALLS, monthly_fee="31"), "plan": "small"}
    big = {**plan(CALLS, monthly_fee="62"), "plan": "big"}

    def change(first: str, then: str) -> list[list[tuple[str, str, object]]]:
        plans = [{"plan": first}, {"plan": then, "from": "2026-01-11"}]
        state = {"devices": {"d1": {"plans": plans}}}
        rating = rate([small, big], [], state, "2026-01-01", "2026-03-01")
        return [lines(rating, 0), lines(rating, 1)]

    assert change("small", "big") == [
        [("fee", "monthly_fee", 10), ("fee", "monthly_fee", 42)],
        [("fee", "monthly_fee", 62)],
    ]
    assert change("big", "small") == [
        [("fee", "monthly_fee", 62)],
        [("fee", "monthly_fee", 31)],
    ]


def test_adjustments_in_the_stated_order() -> None:
    adjustments = [
        {"type": "percentage_discount", "percent": "10", "on": "usage"},
        {"type": "commitment", "amount": "100", "on": "usage"},
        {"type": "fixed_discount", "amount": "200", "on": "fees"},
        {"type": "maximum", "amount": "90"},
        {"type": "credit", "amount": "95"},
    ]
    document = plan({"price": ONE}, monthly_fee="5", adjustments=adjustments)
    rating = rate([document], [use(80)])
    assert [amount for *_, amount in lines(rating)] == [80, 5, -8, 28, -5, -10, -95]
    assert rating["total"] == Decimal("-5.00")


def test_lines_and_the_bill_are_rounded() -> None:
    document = plan({"price": {"amount": "0.005"}}, lines_per="device")
    usage = [use(1), {**use(1), "device": "d2"}]
    assert rate([document], usage)["total"] == Decimal("0.02")
    at_bill = {**document, "rounding": {"at": "bill"}}
    assert rate([at_bill], usage)["total"] == Decimal("0.01")


def test_duplicates_conflicts_and_what_is_outside() -> None:
    usage = [use(1, id="a"), use(1, id="a"), use(2, id="a"), use(1), use(1, "2026-03-01")]
    rating = rate([plan({"price": ONE})], usage, None, "2026-01-01", "2026-02-01")
    assert (rating["duplicates"], rating["rejected"]) == (1, [(3, "conflict")])
    assert (rating["outside"], rating["total"]) == (1, Decimal("2.00"))
