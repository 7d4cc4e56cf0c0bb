"""Cases that rating once got wrong, worked by hand."""

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from metering.rating.bucket import Bucket, BucketKind
from tests.property.rating_comparison import Case, Record, assert_same

Doc = dict[str, Any]
ONE: Doc = {"amount": "1"}
NIGHT: Doc = {"night": [{"from": "22:00", "to": "06:00"}]}


def plan(meter: Doc, name: str = "p", **more: object) -> Doc:
    return {"plan": name, "currency": "EUR", "meters": {"messages": meter}, **more}


def use(quantity: int, start: str, end: str | None = None, **more: object) -> Doc:
    when = {"time": start} if end is None else {"start": start, "end": end}
    return {"device": "d1", "meter": "messages", "quantity": quantity, **when, **more}


def records(plans: Sequence[Doc], usage: Sequence[Doc], state: Doc | None = None) -> list[Record]:
    outcome = assert_same(Case(plans, usage, state))
    return [record for period in outcome.periods for record in period.records]


def test_all_bounds_divide_a_reading_at_once() -> None:
    # Eight hours before the end of the cycle to eight after: of 10 units two hours outside the band
    # have floor(1.25), each four or so of the others their own floor, and the last what remains.
    found = records(
        [plan({"price": ONE}, bands=NIGHT)],
        [use(10, "2026-01-31T20:00:00Z", "2026-02-01T12:00:00Z")],
    )
    # 2, 2, 6 and 6 hours of 16: 1.25, 1.25, 3.75, and the rest.
    assert [record.quantity for record in found] == [1, 1, 3, 5]


def test_a_capacity_is_not_divided_and_each_price_has_its_own() -> None:
    meter = {
        "price": ONE,
        "aggregate": "max",
        "variants": [{"bands": ["night"], "price": {"amount": "2"}}],
    }
    usage = [
        use(10, "2026-01-05T12:00:00Z"),
        use(12, "2026-01-05T20:00:00Z", "2026-01-06T00:00:00Z"),
    ]
    # 10 at 1; then 12 outside the band adds 2 at 1, and inside it all 12 at 2.
    assert [record.billed for record in records([plan(meter, bands=NIGHT)], usage)] == [10, 2, 12]


def test_the_start_of_a_reading_decides_its_band_in_the_next_cycle_too() -> None:
    meter = {"price": ONE, "variants": [{"bands": ["night"], "price": {"amount": "2"}}]}
    found = records(
        [plan(meter, bands=NIGHT, band_crossing="start")],
        [use(8, "2026-01-31T20:00:00Z", "2026-02-01T04:00:00Z")],
    )
    assert [record.amount for record in found] == [4, 4]
    assert [record.band for record in found] == [None, None]


def test_the_first_priced_part_decides_the_connection_fee() -> None:
    meter = {
        "price": ONE,
        "variants": [{"bands": ["night"], "price": {"amount": "1", "connection_fee": "0.5"}}],
    }
    usage = [
        use(4, "2026-01-05T20:00:00Z", "2026-01-06T00:00:00Z"),
        use(4, "2026-01-06T04:00:00Z", "2026-01-06T08:00:00Z"),
    ]
    # The first begins by day, whose price has no connection fee; the second at night.
    amounts = [record.amount for record in records([plan(meter, bands=NIGHT)], usage)]
    assert amounts == [2, 2, Fraction("2.5"), 2]


def test_the_walk_of_a_record_goes_on_over_the_end_of_a_cycle() -> None:
    price = {
        "model": "graduated",
        "tiers": [{"up_to": 3, "amount": "1"}, {"amount": "0.1"}],
        "counted_per": "record",
    }
    usage = [use(8, "2026-01-31T20:00:00Z", "2026-02-01T04:00:00Z")]
    # 3 at 1 and 1 at 0.10; the 4 of February at 0.10.
    found = records([plan({"price": price})], usage)
    assert [record.amount for record in found] == [Fraction("3.1"), Fraction("0.4")]


def test_a_network_told_as_a_zone_is_told_in_digits() -> None:
    meter = {"price": ONE, "increment": {"step": 10, "scope": "device_network_month"}}
    usage = [
        use(1, "2026-01-05T12:00:00Z", zone="home"),
        use(1, "2026-01-05T12:00:00Z"),
        use(1, "2026-01-05T12:00:00Z", zone="26201"),
        use(1, "2026-01-05T12:00:00Z", network="26201"),
    ]
    assert [record.billed for record in records([plan(meter)], usage)] == [10, 0, 10, 0]


def test_all_prepaid_money_can_be_paid() -> None:
    # Prices of whole euros alone; the wallet's fifty cents are paid too.
    state = {"devices": {"d1": {}}, "buckets": [{"id": "wallet", "money": "5.50"}]}
    [record] = records([plan({"price": ONE})], [use(10, "2026-01-05T12:00:00Z")], state)
    assert record.money == {"wallet": Fraction("5.5")}


def test_money_before_an_allowance_pays_whole_units_alone() -> None:
    state = {
        "devices": {"d1": {}},
        "buckets": [{"id": "wallet", "money": "1", "priority": 50}],
    }
    meter = {"allowance": 4, "price": {"amount": "0.3"}}
    [record] = records([plan(meter)], [use(9, "2026-01-05T12:00:00Z")], state)
    # 3 for 0.90, 4 of the allowance, 2 for 0.60, of which the wallet's ten cents pay nothing.
    assert (record.draws, record.money) == ({"allowance": 4}, {"wallet": Fraction("0.9")})


def test_money_never_pays_more_than_a_rounded_record_costs() -> None:
    state = {
        "devices": {"d1": {}},
        "buckets": [{"id": "wallet", "money": "10", "priority": 50}],
    }
    meter = {"allowance": 4, "price": {"amount": "0.33"}}
    rounding = {"at": "record", "step": "0.5", "mode": "down"}
    [record] = records([plan(meter, rounding=rounding)], [use(2, "2026-01-05T12:00:00Z")], state)
    assert (record.amount, record.money) == (Fraction("0.5"), {"wallet": Fraction("0.5")})


def test_a_lot_of_a_year_is_brought_when_its_device_becomes_active() -> None:
    meter = {
        "price": ONE,
        "allowances": [{"name": "year", "quantity": 5, "renews": "year"}],
    }
    states = [
        {"state": "inventory", "from": "2026-01-01"},
        {"state": "active", "from": "2026-03-01"},
    ]
    state = {"devices": {"d1": {"from": "2026-01-01", "states": states}}}
    found = records(
        [plan(meter)], [use(1, "2026-01-05T12:00:00Z"), use(3, "2026-03-05T12:00:00Z")], state
    )
    assert [record.draws for record in found] == [{}, {"year": 3}]


def test_a_daily_allowance_is_brought_on_billed_days_alone() -> None:
    meter = {"price": ONE, "allowances": [{"name": "day", "quantity": 5, "renews": "day"}]}
    states = [
        {"state": "active", "from": "2026-01-01"},
        {"state": "suspended", "from": "2026-01-10"},
        {"state": "active", "from": "2026-01-20"},
    ]
    state = {"devices": {"d1": {"from": "2026-01-01", "states": states}}}
    usage = [use(1, f"2026-01-{day}T12:00:00Z") for day in ("09", "15", "20")]
    assert [record.draws for record in records([plan(meter)], usage, state)] == [
        {"day": 1},
        {},
        {"day": 1},
    ]


def test_lots_that_burn_their_newest_first_keep_their_place_among_others() -> None:
    rollover = {"periods": 1, "burn": "newest_first"}
    meter = {
        "price": ONE,
        "allowances": [
            {"name": "rolling", "quantity": 5, "rollover": rollover},
            {"name": "longer", "quantity": 5, "rollover": {"periods": 3}},
        ],
    }
    # The one expires at the end of February, the other at that of April.
    [record] = records([plan(meter)], [use(5, "2026-01-05T12:00:00Z")])
    assert record.draws == {"rolling": 5}


def test_a_reading_that_began_before_the_first_period_is_rated_in_part() -> None:
    usage = [use(8, "2026-01-31T20:00:00Z", "2026-02-01T04:00:00Z")]
    outcome = assert_same(Case([plan({"price": ONE})], usage, since="2026-02-01"))
    assert outcome.rejected == []
    assert outcome.periods[0].total == Decimal("4.00")


def test_what_is_left_rolls_over_from_its_minimum_on() -> None:
    allowance = {"name": "own", "quantity": 10, "rollover": {"minimum": 4}}
    meter = {"price": ONE, "allowances": [allowance]}
    usage = [use(6, "2026-01-05T12:00:00Z"), use(20, "2026-02-05T12:00:00Z")]
    # The 4 left of January are its minimum, and roll: 14 of February's 20 are drawn.
    assert [record.priced for record in records([plan(meter)], usage)] == [0, 6]
    usage[0] = use(7, "2026-01-05T12:00:00Z")
    assert [record.priced for record in records([plan(meter)], usage)] == [0, 10]


def test_a_session_that_goes_on_over_the_end_of_a_cycle_is_connected_there_too() -> None:
    price = {"amount": "1", "connection_fee": "0.5"}
    usage = [
        use(8, "2026-01-31T20:00:00Z", "2026-02-01T04:00:00Z", session="s"),
        use(1, "2026-02-01T04:00:00Z", session="s"),
    ]
    amounts = [record.amount for record in records([plan({"price": price})], usage)]
    assert amounts == [Fraction("4.5"), 4, 1]


def test_a_calendar_month_is_rounded_as_one_across_a_bill_cycle() -> None:
    meter = {"price": ONE, "increment": {"step": 1000, "scope": "device_month"}}
    usage = [use(300, "2026-02-03T00:00:00Z"), use(300, "2026-02-20T00:00:00Z")]
    found = records([plan(meter)], usage, {"fleet": {"anchor_day": 15}})
    assert [record.billed for record in found] == [1000, 0]


def test_a_session_is_rounded_and_connected_once_across_a_bill_cycle() -> None:
    meter = {
        "price": {"amount": "1", "connection_fee": "7"},
        "increment": {"step": 1000, "scope": "session"},
    }
    usage = [
        use(200, "2026-01-31T23:00:00Z", session="a"),
        use(200, "2026-02-01T01:00:00Z", session="a"),
    ]
    found = records([plan(meter)], usage)
    assert [(record.billed, int(record.amount)) for record in found] == [(1000, 1007), (0, 0)]


def test_what_was_granted_before_the_first_period_still_holds() -> None:
    meter = {
        "price": ONE,
        "allowances": [{"name": "year", "quantity": 100, "renews": "year"}],
    }
    state = {"devices": {"d1": {"from": "2025-07-01"}}}
    (record,) = records([plan(meter)], [use(10, "2026-01-10T00:00:00Z")], state)
    assert (record.priced, int(record.amount)) == (0, 0)


def test_a_year_by_thirty_days_has_360() -> None:
    fee = {"name": "y", "amount": "360", "every": "year", "proration": "thirty_days"}
    state = {"devices": {"d1": {"from": "2026-01-01", "to": "2026-02-15"}}}
    usage = [use(0, "2026-01-10T00:00:00Z"), use(0, "2026-02-10T00:00:00Z")]
    outcome = assert_same(Case([plan({"price": ONE}, fees=[fee])], usage, state))
    # 45 days of 360, due when the device leaves.
    assert [period.total for period in outcome.periods] == [0, 45]


def test_a_bound_of_blocks_that_is_lower_inclusive_leaves_its_last_block_to_the_next_tier() -> None:
    price = {
        "model": "graduated",
        "block": 3,
        "bounds": "lower_inclusive",
        "tiers": [{"blocks": 2, "amount": "1"}, {"amount": "0.5"}],
    }
    usage = [use(3, "2026-01-05T00:00:00Z"), use(3, "2026-01-06T00:00:00Z")]
    found = records([plan({"price": price})], [*usage, use(3, "2026-01-07T00:00:00Z")])
    # Block number 1 costs 1; numbers 2 and 3 belong to the next tier.
    assert [record.amount for record in found] == [1, Fraction(1, 2), Fraction(1, 2)]


def test_who_drew_before_joining_a_pool_is_promised_the_rest_of_the_floor_alone() -> None:
    pool = Bucket(granted=100, kind=BucketKind.POOL, floor=10)
    pool.admit(1)
    pool.draw(2, 7)  # 10 are promised to the first
    assert pool.promised_to_all() == 10
    pool.admit(2)
    # 10 to the first, 3 to the second, of 93 that are left: the third may draw 80.
    assert (pool.promised_to_all(), pool.available(3)) == (13, 80)
