"""A plan document is taken as it stands, or refused naming the path, the problem and the fix."""

import copy
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from metering.errors import InvalidValue
from metering.money import Rounding, RoundingMode
from metering.plan_document import (
    PlanDocument,
    check_plan,
    read_plan,
    stored_document,
    stored_terms,
    terms_of,
)
from metering.rating.increment import Direction, Increment, IncrementScope
from metering.rating.plan import (
    AdjustmentKind,
    AdjustmentScope,
    AdjustmentTerms,
    Aggregate,
    AllowanceTerms,
    Burn,
    ChangeTakesEffect,
    DeviceState,
    FeeBasis,
    FeeCount,
    FeeState,
    FeeTerms,
    LifetimeUnit,
    MeterTerms,
    Offer,
    Overhead,
    PlanTerms,
    Proration,
    Renews,
    Rollover,
    RoundAt,
    SharedBy,
)
from metering.rating.price import (
    CountedPer,
    GraduatedPrice,
    PackagePrice,
    Price,
    PriceShape,
    Tier,
    UnitPrice,
    VolumePrice,
)
from metering.usage import QUANTITY_MAX

Document = dict[str, Any]


def document() -> Document:
    return {
        "plan": "tracker-eu",
        "name": "Tracker Europe",
        "currency": "EUR",
        "monthly_fee": "1.50",
        "meters": {
            "data": {"allowance": "500 kB", "price": {"amount": "0.12", "per": "1 MB"}},
            "sms": {"allowance": 5, "pooled": True, "price": {"amount": "0.04", "per": 1}},
        },
    }


def rich() -> Document:
    """Return a document with zones, bands, variants, allowances, fees and adjustments."""
    return {
        "plan": "rich",
        "currency": "EUR",
        "time_zone": "Europe/Berlin",
        "groups": {"nordics": ["SE", "NO", "DK", "FI"]},
        "zones": {"home": ["DE"], "north": ["nordics", 26203]},
        "default_zone": "home",
        "bands": {"peak": [{"days": ["mon", "fri"], "from": "08:00", "to": "20:00"}]},
        "meters": {
            "data": {
                "allowances": [
                    {"name": "own", "quantity": "1 MB"},
                    {"name": "pool", "quantity": "1 GB", "shared_by": "fleet"},
                ],
                "price": {
                    "model": "graduated",
                    "tiers": [{"up_to": 10, "amount": 2}, {"amount": 1}],
                },
                "variants": [{"zones": ["north"], "bands": ["peak"], "price": {"amount": "3"}}],
            },
            "power": {
                "unit": "kWh",
                "decimals": 3,
                "price": {"model": "package", "amount": "1", "size": "0.5 kWh"},
            },
        },
        "fees": [
            {"name": "line", "amount": "2.00"},
            {"name": "size", "price": {"model": "volume", "tiers": [{"flat": "5"}]}},
        ],
        "adjustments": [
            {"type": "credit", "amount": "5"},
            {"type": "commitment", "amount": "5", "on": "usage"},
        ],
    }


def changed(path: str, value: object, given: Document | None = None) -> Document:
    """Return the document with the value at a dotted path replaced or added."""
    plan = copy.deepcopy(document() if given is None else given)
    *parents, last = path.split(".")
    place: Any = plan
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    place[int(last) if isinstance(place, list) else last] = value
    return plan


def priced(price: Mapping[str, object], *, meter: str = "data", **more: object) -> Document:
    """Return a document of one meter with a price."""
    return {"plan": "p", "currency": "EUR", "meters": {meter: {"price": price, **more}}}


def price_of(price: Mapping[str, object], meter: str = "data", **more: object) -> Price:
    terms = terms_of(read_plan(priced(price, meter=meter, **more)))
    return terms.meters[meter].variants[0].price


def shape_of(price: Mapping[str, object], meter: str = "data", **more: object) -> PriceShape:
    return price_of(price, meter, **more).shape


def meter_of(meter: Mapping[str, object], name: str = "data", **plan: object) -> MeterTerms:
    given = {"plan": "p", "currency": "EUR", "meters": {name: meter}, **plan}
    return terms_of(read_plan(given)).meters[name]


def allowance_of(**allowance: object) -> AllowanceTerms:
    terms = meter_of(
        {
            "allowances": [{"name": "bundle", "quantity": 100, **allowance}],
            "price": {"amount": "1"},
        },
        zones={"home": ["DE"]},
        bands={"night": [{"from": "22:00", "to": "06:00"}]},
    )
    return terms.allowances[0]


def fee_of(**fee: object) -> FeeTerms:
    given = {"plan": "p", "currency": "EUR", "fees": [{"name": "line", **fee}]}
    return terms_of(read_plan(given)).fees[0]


def stated(terms: PlanTerms) -> dict[str, object]:
    """Return the terms without what is computed of them, which does not compare."""
    return {each.name: getattr(terms, each.name) for each in fields(terms) if each.init}


def refused(plan: object) -> InvalidValue:
    with pytest.raises(InvalidValue) as caught:
        read_plan(plan)
    return caught.value


# The plan


def test_a_plan_becomes_the_terms_that_it_states() -> None:
    terms = terms_of(read_plan(document()))
    assert (terms.plan, terms.currency) == ("tracker-eu", "EUR")
    assert terms.fees == [FeeTerms(name="monthly_fee", amount=Decimal("1.50"))]
    data, sms = terms.meters["data"], terms.meters["sms"]
    assert data.allowances == [AllowanceTerms(name="allowance", quantity=500_000)]
    assert data.variants[0].price.shape == UnitPrice(amount=Decimal("0.12"), per=1_000_000)
    assert sms.allowances == [
        AllowanceTerms(name="pool", quantity=5, shared_by=SharedBy.FLEET, priority=200)
    ]
    assert sms.variants[0].price.shape == UnitPrice(amount=Decimal("0.04"), per=1)


def test_the_sub_unit_makes_the_price_of_each_base_unit_whole() -> None:
    # 0.12 / 1 000 000 = 3 / 25 000 000; 0.04 = 1 / 25. The least multiple of both is 25 000 000.
    terms = terms_of(read_plan(document()))
    assert terms.subunits_per_unit == 25_000_000
    assert terms.rates["data"][0].rated(1) == 3
    assert terms.rates["sms"][0].rated(1) == 1_000_000


def test_what_is_left_out_has_a_default() -> None:
    plan = read_plan(
        {"plan": "bare", "currency": "JPY", "meters": {"voice": {"price": {"amount": 3}}}}
    )
    terms = terms_of(plan)
    assert plan.name == "bare"
    assert (terms.fees, terms.adjustments, terms.zones, terms.bands) == ([], [], None, None)
    assert (terms.octet_multiple, terms.time_zone, terms.proration) == (1000, None, Proration.DAYS)
    assert (terms.upward, terms.downward) == (
        ChangeTakesEffect.AT_ONCE,
        ChangeTakesEffect.NEXT_PERIOD,
    )
    assert (terms.rounding, terms.round_at) == (Rounding(), RoundAt.LINE)
    assert not terms.lines_per_device
    voice = terms.meters["voice"]
    assert (voice.allowances, voice.unit, voice.decimals) == ([], "second", 0)
    assert voice.variants[0].price == Price(shape=UnitPrice(amount=Decimal(3)))
    assert voice.aggregate is Aggregate.SUM


def test_the_plan_states_how_it_counts_and_rounds() -> None:
    terms = terms_of(
        read_plan(
            document()
            | {
                "time_zone": "America/New_York",
                "octet_multiple": 1024,
                "proration": "thirty_days",
                "plan_changes": {"upward": "next_period", "downward": "at_once"},
                "rounding": {"at": "bill", "mode": "half_even", "step": "0.05"},
                "lines_per": "device",
            }
        )
    )
    assert terms.time_zone == "America/New_York"
    assert terms.meters["data"].allowances[0].quantity == 500 * 1024
    assert terms.meters["data"].variants[0].price.shape == UnitPrice(
        amount=Decimal("0.12"), per=1024**2
    )
    assert terms.fees[0].proration is Proration.THIRTY_DAYS
    assert terms.meters["data"].allowances[0].proration is Proration.THIRTY_DAYS
    assert (terms.upward, terms.downward) == (
        ChangeTakesEffect.NEXT_PERIOD,
        ChangeTakesEffect.AT_ONCE,
    )
    assert terms.rounding == Rounding(mode=RoundingMode.HALF_EVEN, step=Decimal("0.05"))
    assert terms.round_at is RoundAt.BILL
    assert terms.lines_per_device


def test_a_plan_of_fees_alone_needs_no_meter() -> None:
    terms = terms_of(read_plan({"plan": "p", "currency": "EUR", "monthly_fee": 2}))
    assert (terms.meters, len(terms.fees)) == ({}, 1)
    assert fee_of(amount="1").name == "line"


@pytest.mark.parametrize("given", [document(), rich()], ids=["plain", "rich"])
def test_a_stored_document_gives_the_same_terms(given: Document) -> None:
    plan = read_plan(given)
    stored = json.loads(json.dumps(stored_document(plan)))
    subunits = terms_of(plan).subunits_per_unit
    expected = replace(terms_of(plan), stated_subunits=subunits)
    assert stated(stored_terms(stored, subunits)) == stated(expected)
    assert stored_document(PlanDocument.model_validate(stored)) == stored
    # What an earlier release stored holds every field, those that were left out too.
    full = json.loads(json.dumps(plan.model_dump(mode="json")))
    assert stated(stored_terms(full, subunits)) == stated(expected)
    # Amounts that are stored keep their sub-unit.
    finer = stored_terms(stored, 6 * subunits)
    assert finer.money(6).exact == terms_of(plan).money(1).exact


def test_what_is_stored_is_what_was_written_and_amounts_are_text() -> None:
    given = priced({"amount": Decimal("0.10"), "per": "1 MB"}, allowance=Decimal("5.0"))
    given["monthly_fee"] = 2
    given["fees"] = [{"name": "promotion", "amount": "1", "from": "2026-01-01"}]
    assert stored_document(read_plan(given)) == {
        "plan": "p",
        "currency": "EUR",
        "monthly_fee": "2",
        "meters": {"data": {"allowance": "5.0", "price": {"amount": "0.10", "per": "1 MB"}}},
        "fees": [{"name": "promotion", "amount": "1", "from": "2026-01-01"}],
    }


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0.10", "0.10"),
        (Decimal("0.10"), "0.10"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1E-12"), "0.000000000001"),
        (1, "1"),
        (0, "0"),
    ],
)
def test_an_amount_may_be_text_or_an_exact_number(amount: object, text: str) -> None:
    assert read_plan(changed("monthly_fee", amount)).monthly_fee == text


@pytest.mark.parametrize(
    ("quantity", "count"),
    [
        (500, 500),
        ("500", 500),
        (Decimal("500.0"), 500),
        ("1.5 GB", 1_500_000_000),
        ("1 KB", 1_000),
        ("1 million", 1_000_000),
        ("2 thousand kB", 2_000_000),
    ],
)
def test_a_quantity_may_be_a_number_or_text_with_a_unit(quantity: object, count: int) -> None:
    terms = terms_of(read_plan(changed("meters.data.allowance", quantity)))
    assert terms.meters["data"].allowances[0].quantity == count


@pytest.mark.parametrize(
    ("path", "value", "field", "problem", "fix"),
    [
        ("plan", "a/b", "plan", "'a/b' is no id", "64 letters"),
        ("plan", "a\n", "plan", "is no id", "64 letters"),
        ("plan", 7, "plan", "7 is no text", "in quotes"),
        ("name", "", "name", "'' is no name", "1 to 200 characters"),
        ("name", "x" * 201, "name", "is no name", "1 to 200 characters"),
        ("name", "a\x00b", "name", "is no name", "1 to 200 characters"),
        ("name", None, "name", "is empty", "leave it out"),
        ("currency", "EURO", "currency", "'EURO' is no ISO 4217 currency", "'EUR'"),
        ("currency", 978, "currency", "978 is no text", "in quotes"),
        ("time_zone", "Berlin", "time_zone", "'Berlin' is not a time zone", "'Europe/Berlin'"),
        ("octet_multiple", 1001, "octet_multiple", "1001 is not allowed", "1000 or 1024"),
        ("proration", "weeks", "proration", "'weeks' is not allowed", "'thirty_days'"),
        ("plan_changes", {"upwards": "x"}, "plan_changes.upwards", "no field here", "write upward"),
        ("monthly_fee", 1.5, "monthly_fee", "1.5 is a float", 'as text: "0.10"'),
        ("monthly_fee", "-1", "monthly_fee", "'-1' is negative", "use a credit"),
        ("monthly_fee", -1, "monthly_fee", "'-1' is negative", "use a credit"),
        ("monthly_fee", Decimal("-0.5"), "monthly_fee", "'-0.5' is negative", "use a credit"),
        ("monthly_fee", True, "monthly_fee", "True is no amount", '"0.10"'),
        ("monthly_fee", [], "monthly_fee", "[] is no amount", '"0.10"'),
        ("monthly_fee", "1,50", "monthly_fee", "'1,50' is no amount", '"0.10"'),
        ("monthly_fee", "1e3", "monthly_fee", "'1e3' is no amount", '"0.10"'),
        ("monthly_fee", "1 EUR", "monthly_fee", "'1 EUR' is no amount", '"0.10"'),
        ("monthly_fee", "\u0661", "monthly_fee", "is no amount", '"0.10"'),
        ("monthly_fee", "0.0000000000001", "monthly_fee", "is no amount", "12 digits"),
        ("monthly_fee", 10**12, "monthly_fee", "is no amount", "12 digits"),
        ("monthly_fee", 10**30, "monthly_fee", "has too many digits", "write it like"),
        ("currency", 10**30, "currency", "a number of so many digits is no text", "in quotes"),
        ("monthly_fee", Decimal("1E+999999"), "monthly_fee", "is no amount", "12 digits"),
        ("monthly_fee", Decimal("NaN"), "monthly_fee", "'NaN' is no amount", "12 digits"),
        ("rounding", {"mode": "up", "digits": 99}, "rounding.digits", "99 is too large", "use 12"),
        ("rounding", {"at": "year"}, "rounding.at", "'year' is not", "'record', 'line' or 'bill'"),
        ("rounding", {"digits": 2, "step": "0.05"}, "rounding.step", "beside `digits`", "keep one"),
        ("rounding", {"step": 0}, "rounding.step", "is 0", '"0.05"'),
        ("lines_per", "fleet", "lines_per", "'fleet' is not allowed", "'plan' or 'device'"),
        ("colour", "red", "colour", "is no field here", "use one of plan, name"),
        ("meter", {}, "meter", "is no field here", "write meters"),
        ("meters", [], "meters", "[] is no mapping", "docs/plans.md"),
        ("meters", {"a b": {}}, "meters.a b", "is no name of a meter", "64 letters"),
        (
            "meters.fuel",
            {"price": {"amount": "1"}},
            "meters.fuel",
            "'fuel' is no meter",
            "use one of data, sms, voice, messages, or make it one with `unit`",
        ),
        ("meters.data.tiers", [], "meters.data.tiers", "no field here", "use one of unit"),
        ("meters.data.overage", {}, "meters.data.overage", "no field here", "write price"),
        ("meters.data.unit", "kWh", "meters.data.unit", "unit of data is the octet", "its own"),
        ("meters.sms.decimals", 2, "meters.sms.decimals", "is the message", "leave it out"),
        ("meters.data.aggregate", "mean", "meters.data.aggregate", "'mean' is", "'sum' or 'max'"),
        ("meters.data.pooled", "yes", "meters.data.pooled", "neither true nor", "true or false"),
        ("meters.data.price", None, "meters.data.price", "is empty", "leave it out"),
        ("meters.data.price", "0.1", "meters.data.price", "'0.1' is no mapping", "write fields"),
        ("meters.data.price", {}, "meters.data.price.amount", "is missing", "add it: units of"),
    ],
)
def test_an_error_names_the_path_the_problem_and_the_fix(
    path: str, value: object, field: str, problem: str, fix: str
) -> None:
    error = refused(changed(path, value))
    assert error.field == field
    assert problem in error.problem
    assert fix in error.fix


@pytest.mark.parametrize(
    ("value", "problem", "fix"),
    [
        ("5 XB", "'5 XB' is not", "one of: octet"),
        ("-5", "'-5' is not", "one of: octet"),
        (-5, "-5 is negative", "0 or more"),
        ("0.5 B", "not a whole", "use whole octets"),
        ("1 min", "'1 min' is not a quantity", "kB, KB, MB"),
        ("1 trillion", "'1 trillion' is not", "thousand, million, billion"),
        (1.5, "1.5 is a float", "as text"),
        (True, "True is no quantity", '"1.5 GB"'),
        ([], "[] is no quantity", '"1.5 GB"'),
        (None, "is empty", "leave it out"),
        (Decimal("1E+999999"), "is not a quantity", "use a number"),
        (QUANTITY_MAX + 1, f"is more than {QUANTITY_MAX}", "use less"),
        ("9" * 40, f"is more than {QUANTITY_MAX}", "use less"),
    ],
)
@pytest.mark.parametrize("path", ["meters.data.allowance", "meters.data.price.per"])
def test_what_is_no_quantity_is_refused(path: str, value: object, problem: str, fix: str) -> None:
    error = refused(changed(path, value))
    assert error.field == path
    assert problem in error.problem
    assert fix in error.fix


@pytest.mark.parametrize("missing", ["plan", "currency"])
def test_a_missing_field_is_named(missing: str) -> None:
    plan = document()
    del plan[missing]
    error = refused(plan)
    assert (error.field, error.problem) == (missing, "is missing")
    assert error.fix.startswith("add it: ")


@pytest.mark.parametrize("nothing", [None, [], "plan", 1])
def test_what_is_no_document_is_refused(nothing: object) -> None:
    error = refused(nothing)
    assert error.field == "plan"
    assert "is no mapping" in error.problem


def test_a_plan_of_nothing_is_refused() -> None:
    for nothing in ("meters", "fees", "adjustments"):
        error = refused(
            {"plan": "p", "currency": "EUR", nothing: {} if nothing == "meters" else []}
        )
        assert (error.field, error.problem) == ("meters", "is missing")
        assert "add a meter" in error.fix


def test_all_errors_are_found_at_once() -> None:
    plan = changed("meters.data.price.per", "1 min", changed("meters.sms.allowance", -1))
    plan["currency"] = "EURO"
    _, problems = check_plan(plan)
    assert [each.field for each in problems] == [
        "meters.data.price.per",
        "meters.sms.allowance",
        "currency",
    ]
    _, problems = check_plan(
        changed("fees", [{"name": "a", "amount": 0.1, "evry": "day"}])
        | {"currency": 1, "colour": None}
    )
    assert {each.field for each in problems} == {
        "colour",
        "currency",
        "fees.0.amount",
        "fees.0.evry",
    }
    assert all("write every" in each.fix for each in problems if each.field == "fees.0.evry")


def test_prices_that_need_too_fine_a_sub_unit_are_refused() -> None:
    # One base unit would cost 10⁻¹² / (2⁵³ − 1), so the sub-unit 10²⁷ to the euro.
    error = refused(priced({"amount": "0.000000000001", "per": QUANTITY_MAX}))
    assert str(error) == "meters: prices need too fine a sub-unit; use fewer digits"


@pytest.mark.parametrize(
    ("price", "field"),
    [
        ({"amount": "999999999999"}, "amount"),
        ({"model": "package", "amount": "999999999999", "size": 1}, "amount"),
        ({"model": "volume", "tiers": [{"amount": "999999999999"}]}, "tiers.0.amount"),
        ({"amount": 1, "connection_fee": "999999999999"}, "connection_fee"),
    ],
)
def test_a_price_whose_cycle_could_not_be_summed_is_refused(
    price: dict[str, object], field: str
) -> None:
    # 999 999 999 999 an octet, counted in 10⁻¹², is 10²⁴ sub-units an octet: 2⁵³ octets of it would
    # pass the 38 digits that an amount has.
    plan = priced(price)
    plan["meters"]["sms"] = {"price": {"amount": "0.000000000001"}}
    error = refused(plan)
    assert str(error) == f"meters.data.price.{field}: is too large; use a lower price"


def test_the_document_is_strict_and_frozen() -> None:
    assert PlanDocument.model_config["extra"] == "forbid"
    assert PlanDocument.model_config["frozen"] is True


# Meters


def test_a_meter_of_the_plans_own_counts_its_last_decimal() -> None:
    power = meter_of(
        {
            "unit": "kWh",
            "decimals": 3,
            "allowance": Decimal("1.5"),
            "price": {"amount": "0.30", "minimum": "1"},
            "increment": {"step": "0.1 kWh", "first": 1},
        },
        name="power",
    )
    assert (power.unit, power.decimals, power.allowances[0].quantity) == ("kWh", 3, 1500)
    variant = power.variants[0]
    assert variant.price.shape == UnitPrice(amount=Decimal("0.30"), per=1000)
    assert variant.increment == Increment(step=100, first=1000)


def test_a_meter_of_the_plans_own_may_count_seconds() -> None:
    terms = meter_of({"unit": "second", "price": {"amount": 1, "per": "1 h"}}, name="compute")
    assert terms.variants[0].price.shape == UnitPrice(amount=Decimal(1), per=3600)


def test_a_meter_says_whether_readings_add_up_or_the_largest_counts() -> None:
    assert meter_of({"aggregate": "max", "price": {"amount": 1}}).aggregate is Aggregate.MAX


@pytest.mark.parametrize(
    ("meter", "field", "problem", "fix"),
    [
        ({"unit": "million", "price": {"amount": 1}}, "unit", "is a number", "what is counted"),
        ({"unit": "3 m", "price": {"amount": 1}}, "unit", "no name of a unit", "kWh"),
        ({"unit": "m", "decimals": 13, "price": {"amount": 1}}, "decimals", "too large", "use 12"),
        (
            {"unit": "second", "decimals": 1, "price": {"amount": 1}},
            "decimals",
            "no part of one second",
            "leave it out",
        ),
        (
            {"unit": "m", "decimals": 1, "allowance": "0.25", "price": {"amount": 1}},
            "allowance",
            "'0.25' has more than 1 decimals of m",
            "use fewer",
        ),
        ({"unit": "m", "allowance": "1 km", "price": {"amount": 1}}, "allowance", "'1 km'", "m, t"),
        ({"unit": "m"}, "price", "is missing", "add it, or `variants`"),
        (
            {"unit": "m", "pooled": True, "price": {"amount": 1}},
            "pooled",
            "no `allowance`",
            "add `allowance`",
        ),
        (
            {"unit": "m", "price": {"amount": 1}, "increment": {}},
            "increment",
            "says no increment",
            "`step`, `first`",
        ),
        (
            {"unit": "m", "price": {"amount": 1}, "increment": {"step": 0}},
            "increment.step",
            "is 0",
            "use at least one m",
        ),
        (
            {"unit": "m", "price": {"amount": 1}, "increment": {"step": 1, "scope": "week"}},
            "increment.scope",
            "'week' is not allowed",
            "'device_network_month'",
        ),
        (
            {"unit": "m", "price": {"amount": 1}, "overhead": {"per_packet": "1 x"}},
            "overhead.per_packet",
            "'1 x' is not a quantity",
            "one of: m",
        ),
    ],
)
def test_a_meter_is_refused(meter: dict[str, object], field: str, problem: str, fix: str) -> None:
    error = refused({"plan": "p", "currency": "EUR", "meters": {"own": meter}})
    assert error.field == f"meters.own.{field}"
    assert problem in error.problem
    assert fix in error.fix


def test_increment_and_overhead_are_those_of_the_meter_unless_a_variant_has_its_own() -> None:
    terms = meter_of(
        {
            "price": {"amount": 1},
            "increment": {"step": "1 kB", "direction": "half_up", "scope": "session"},
            "overhead": {"per_record": 40, "per_packet": "28 B"},
            "variants": [
                {"zones": ["home"], "price": {"amount": 2}},
                {
                    "zones": ["elsewhere"],
                    "price": {"amount": 3},
                    "increment": {"first": 50},
                    "overhead": {"per_record": 1},
                },
            ],
        },
        zones={"home": ["DE"]},
    )
    of_meter = Increment(step=1000, direction=Direction.HALF_UP, scope=IncrementScope.SESSION)
    assert [each.increment for each in terms.variants] == [
        of_meter,
        Increment(step=1, first=50),
        of_meter,
    ]
    assert [each.overhead for each in terms.variants] == [
        Overhead(per_record=40, per_packet=28),
        Overhead(per_record=1),
        Overhead(per_record=40, per_packet=28),
    ]


# Prices


@pytest.mark.parametrize(
    ("price", "shape"),
    [
        ({"amount": "0.5"}, UnitPrice(amount=Decimal("0.5"))),
        (
            {"model": "per_unit", "amount": 1, "per": "1 GB"},
            UnitPrice(amount=Decimal(1), per=10**9),
        ),
        (
            {"model": "package", "amount": "3", "size": "100 MB"},
            PackagePrice(amount=Decimal(3), size=10**8),
        ),
        (
            {
                "model": "graduated",
                "per": "1 kB",
                "tiers": [{"up_to": "1 MB", "amount": "2", "flat": "10"}, {"amount": "1"}],
            },
            GraduatedPrice(
                tiers=[
                    Tier(last=10**6, amount=Decimal(2), per=1000, flat=Decimal(10)),
                    Tier(last=None, amount=Decimal(1), per=1000),
                ]
            ),
        ),
        (
            {
                "model": "volume",
                "bounds": "lower_inclusive",
                "flat_at_zero": True,
                "tiers": [{"up_to": 10, "amount": "2"}, {"up_to": 20, "amount": 1}, {"amount": 0}],
            },
            VolumePrice(
                tiers=[
                    Tier(last=9, amount=Decimal(2)),
                    Tier(last=19, amount=Decimal(1)),
                    Tier(last=None, amount=Decimal(0)),
                ],
                flat_at_zero=True,
            ),
        ),
        (
            {"model": "stair_step", "tiers": [{"up_to": 10, "flat": "10"}, {"flat": "20"}]},
            VolumePrice(tiers=[Tier(last=10, flat=Decimal(10)), Tier(last=None, flat=Decimal(20))]),
        ),
        (  # Two blocks of 100, then to the fifth block, then blocks of 50 without an end.
            {
                "model": "graduated",
                "block": 100,
                "tiers": [
                    {"blocks": 2, "amount": 3},
                    {"up_to_blocks": 5, "amount": 2},
                    {"block": 50, "amount": 1},
                ],
            },
            GraduatedPrice(
                tiers=[
                    Tier(last=200, amount=Decimal(3), block=100),
                    Tier(last=500, amount=Decimal(2), block=100),
                    Tier(last=None, amount=Decimal(1), block=50),
                ]
            ),
        ),
        (  # `blocks` counts on from the bound before it, whichever tier unit number 100 belongs to.
            {
                "model": "graduated",
                "bounds": "lower_inclusive",
                "tiers": [
                    {"up_to": 100, "amount": 1},
                    {"block": 10, "blocks": 3, "amount": 1},
                    {"amount": 1},
                ],
            },
            GraduatedPrice(
                tiers=[
                    Tier(last=99, amount=Decimal(1)),
                    Tier(last=120, amount=Decimal(1), block=10),
                    Tier(last=None, amount=Decimal(1)),
                ]
            ),
        ),
    ],
)
def test_a_price_becomes_its_shape(price: dict[str, object], shape: PriceShape) -> None:
    assert shape_of(price) == shape


def test_a_price_states_what_is_common_to_all_shapes() -> None:
    common: dict[str, object] = {
        "free": "1 MB",
        "minimum": "1",
        "maximum": "20.00",
        "prorated": True,
        "counted_per": "fleet",
        "counted_with": "meter",
        "connection_fee": "0.05",
        "connection_fee_on_allowance": True,
    }
    assert price_of({"amount": 1, **common}) == Price(
        shape=UnitPrice(amount=Decimal(1)),
        free=10**6,
        minimum=Decimal(1),
        maximum=Decimal(20),
        minimum_prorated=True,
        counted_per=CountedPer.FLEET,
        joint=True,
        connection_fee=Decimal("0.05"),
        connection_fee_on_allowance=True,
    )


OPEN: dict[str, object] = {"amount": 1}


def tiers(*given: dict[str, object], **price: object) -> dict[str, object]:
    return {"model": "graduated", "tiers": list(given), **price}


@pytest.mark.parametrize(
    ("price", "field", "problem", "fix"),
    [
        ({"model": "tiered"}, "model", "'tiered' is no price model", "per_unit, graduated, volume"),
        ({"model": 1}, "model", "1 is no price model", "use one of"),
        ({"amont": 1}, "amount", "is missing", "add it"),
        ({"amount": 1, "tiers": []}, "tiers", "no field here", "use one of"),
        ({"amount": 1, "per": 0}, "per", "is 0", "at least one octet"),
        ({"amount": 1, "per": "0 MB"}, "per", "is 0", "at least one octet"),
        ({"amount": 0.1}, "amount", "0.1 is a float", "as text"),
        ({"amount": -1}, "amount", "'-1' is negative", "use a credit"),
        (
            {"amount": 1, "minimum": 3, "maximum": 2},
            "minimum",
            "3 is more than the maximum",
            "less",
        ),
        ({"amount": 1, "free": -1}, "free", "-1 is negative", "0 or more"),
        ({"amount": 1, "prorated": True}, "prorated", "there is none", "add `minimum`"),
        (
            {"amount": 1, "minimum": 1, "prorated": True, "counted_per": "record"},
            "prorated",
            "that of a record",
            "leave it out",
        ),
        ({"amount": 1, "counted_per": "sim"}, "counted_per", "'sim' is not", "'session'"),
        (
            {"amount": 1, "connection_fee_on_allowance": True},
            "connection_fee_on_allowance",
            "there is none",
            "add `connection_fee`",
        ),
        ({"model": "package", "amount": 1}, "size", "is missing", "how much a package holds"),
        ({"model": "package", "amount": 1, "size": 0}, "size", "is 0", "at least one"),
        ({"model": "volume"}, "tiers", "is missing", "ascending"),
        ({"model": "volume", "tiers": []}, "tiers", "is empty", "at least one"),
        ({"model": "volume", "tiers": {}}, "tiers", "is no list", "write a list"),
        ({"model": "volume", "tiers": [1]}, "tiers.0", "1 is no mapping", "write fields"),
        (tiers({}), "tiers.0", "says no price", 'add `amount` or `flat`; "0" if'),
        (tiers({"up_to": 1.5}, OPEN), "tiers.0.up_to", "1.5 is a float", "as text"),
        (tiers({"upto": 1}, OPEN), "tiers.0.upto", "no field here", "write up_to"),
        (tiers({"up_to": 5, "amount": 1}), "tiers.0.up_to", "ends the last tier", "leave out"),
        (tiers(OPEN, OPEN), "tiers.0", "has no end", "add `up_to`"),
        (
            tiers({"up_to": 5, "amount": 1}, {"up_to": 5, "amount": 1}, OPEN),
            "tiers.1.up_to",
            "ends at 5 and the one before it at 5",
            "ascend",
        ),
        (
            tiers({"up_to": "1 MB", "amount": 1}, {"up_to": "1 kB", "amount": 1}, OPEN),
            "tiers.1.up_to",
            "ends at 1000 and the one before it at 1000000",
            "ascend",
        ),
        (tiers({"up_to": 0, "amount": 1}, OPEN), "tiers.0.up_to", "is 0", "at least one"),
        (
            tiers({"up_to": 5, "blocks": 1, "amount": 1}, OPEN, block=5),
            "tiers.0.blocks",
            "beside `up_to`",
            "in one way",
        ),
        (
            tiers({"blocks": 2, "amount": 1}, OPEN),
            "tiers.0.blocks",
            "there is no `block`",
            "add `block`",
        ),
        (
            tiers({"up_to_blocks": 2, "amount": 1}, OPEN),
            "tiers.0.up_to_blocks",
            "there is no `block`",
            "add `block`",
        ),
        (
            tiers({"blocks": 0, "amount": 1}, OPEN, block=5),
            "tiers.0.blocks",
            "0 is too small",
            "use 1 or more",
        ),
        (
            tiers({"blocks": 2**53, "amount": 1}, OPEN, block=5),
            "tiers.0.blocks",
            "is more than",
            "use less",
        ),
        (tiers({"block": 0, "amount": 1}), "tiers.0.block", "is 0", "at least one"),
        (tiers(OPEN, block="1 min"), "block", "not a quantity", "octet"),
        (tiers(OPEN, block=5, per=5), "per", "beside `block`", "keep one"),
        (tiers(OPEN, bounds="open"), "bounds", "'open' is not", "'lower_inclusive'"),
    ],
)
def test_a_price_is_refused(price: dict[str, object], field: str, problem: str, fix: str) -> None:
    error = refused(priced(price))
    assert error.field == f"meters.data.price.{field}"
    assert problem in error.problem
    assert fix in error.fix


# Variants


def test_variants_come_in_their_order_and_the_meters_own_price_last() -> None:
    terms = meter_of(
        {
            "price": {"amount": 1},
            "variants": [
                {"zones": ["home", "elsewhere"], "bands": ["night", "otherwise"], "price": OPEN},
                {
                    "where": {"rat": ["LTE"], "class": [1, "2"]},
                    "from": "2026-01-01",
                    "to": "2026-02-01",
                    "price": OPEN,
                },
            ],
        },
        zones={"home": ["DE"]},
        bands={"night": [{"from": "22:00", "to": "06:00"}]},
    )
    first, second, own = terms.variants
    assert first.zones == frozenset({"home", None})
    assert first.bands == frozenset({"night", None})
    assert dict(second.where) == {"rat": {"LTE"}, "class": {"1", "2"}}
    assert (second.first_day, second.end_day) == (date(2026, 1, 1), date(2026, 2, 1))
    assert own.unconditional
    assert [terms.label(position) for position in range(3)] == [0, 1, None]


def varied(*variants: dict[str, object], **plan: object) -> Document:
    return {
        "plan": "p",
        "currency": "EUR",
        "zones": {"home": ["DE"], "far": ["US"]},
        "bands": {"night": [{"from": "22:00", "to": "06:00"}]},
        "meters": {"data": {"variants": [{"price": OPEN, **each} for each in variants]}},
        **plan,
    }


WHOLE_WEEK = {
    "day": [{"from": "06:00", "to": "22:00"}],
    "night": [{"from": "22:00", "to": "06:00"}],
}


@pytest.mark.parametrize(
    "plan",
    [
        varied({"zones": ["home", "far", "elsewhere"]}),
        varied({"zones": ["home", "far"]}, default_zone="far"),
        varied({"bands": ["night", "otherwise"]}),
        varied({"bands": ["night", "day"]}, bands=WHOLE_WEEK),
        varied({"zones": ["home"]}, {"bands": ["night"]}, {"bands": ["otherwise"]}),
        varied({"to": "2026-01-01"}, {"from": "2026-01-01"}),
        varied(
            {"to": "2026-02-01"},
            {"zones": ["home"], "from": "2026-01-01"},
            {"zones": ["far", "elsewhere"], "from": "2026-01-15"},
        ),
    ],
)
def test_variants_that_price_everything_need_no_price_beside_them(plan: Document) -> None:
    assert not terms_of(read_plan(plan)).meters["data"].has_own_price


@pytest.mark.parametrize(
    ("plan", "field", "problem", "fix"),
    [
        (
            varied({"zones": ["home", "far"]}),
            "price",
            "nothing prices usage in the zone 'elsewhere' in the band 'night', and 1 more",
            "add `price` to the meter, or a variant that holds there; or add `default_zone`",
        ),
        (
            varied({"zones": ["home"]}, default_zone="far", bands={}),
            "price",
            "nothing prices usage in the zone 'far'",
            "add `price`",
        ),
        (
            varied({"bands": ["night"]}, zones={}),
            "price",
            "nothing prices usage in the band 'otherwise'",
            "add `price`",
        ),
        (
            varied({"from": "2026-01-01"}, zones={}, bands={}),
            "price",
            "nothing prices usage before 2026-01-01",
            "add `price`",
        ),
        (
            varied({"to": "2026-01-01"}, zones={}, bands={}),
            "price",
            "nothing prices usage from 2026-01-01",
            "add `price`",
        ),
        (
            varied({"where": {"rat": ["LTE"]}}, zones={}, bands={}),
            "price",
            "nothing prices usage of other attributes",
            "add `price`",
        ),
        (varied({}), "variants.0", "has no condition", "the meter's own `price`"),
        (varied({"zones": []}), "variants.0.zones", "is empty", "at least one"),
        (varied({"where": {}}), "variants.0.where", "is empty", "at least one"),
        (varied({"where": {"rat": []}}), "variants.0.where.rat", "is empty", "at least one"),
        (
            varied({"zones": ["hme"]}),
            "variants.0.zones.0",
            "'hme' is no zone of this plan",
            "use one of far, home, elsewhere",
        ),
        (
            varied({"bands": ["night", "day"]}),
            "variants.0.bands.1",
            "'day' is no band of this plan",
            "use one of night, otherwise",
        ),
        (
            varied({"zones": ["elsewhere"]}, zones={}),
            "variants.0.zones.0",
            "this plan has no zones",
            "add `zones` to the plan",
        ),
        (
            varied({"from": "2026-02-01", "to": "2026-02-01"}),
            "variants.0.to",
            "2026-02-01 is not after 2026-02-01",
            "a day after `from`",
        ),
        (varied({"from": "1 May"}), "variants.0.from", "'1 May' is no date", "YYYY-MM-DD"),
        (
            varied({"zones": ["home"], "price": {"model": "x"}}),
            "variants.0.price.model",
            "'x'",
            "p",
        ),
        (
            varied(
                {"zones": ["home"], "price": {"amount": 1, "counted_with": "meter"}},
                {
                    "zones": ["far", "elsewhere"],
                    "price": {"amount": 1, "counted_with": "meter", "counted_per": "fleet"},
                },
            ),
            "variants.1.price.counted_per",
            "prices that count per device",
            "use `counted_per: device`",
        ),
    ],
)
def test_a_variant_is_refused(plan: Document, field: str, problem: str, fix: str) -> None:
    error = refused(plan)
    assert error.field == f"meters.data.{field}"
    assert problem in error.problem
    assert fix in error.fix


# Zones and bands


def test_zones_and_bands_become_tables() -> None:
    terms = terms_of(read_plan(rich()))
    assert terms.zones is not None
    assert terms.bands is not None
    assert terms.zones.names == ("home", "north")
    assert terms.zones.zone_of(zone=None, network="26203", country=None) == "north"
    assert terms.zones.zone_of(zone=None, network=None, country="NO") == "north"
    assert terms.zones.zone_of(zone=None, network=None, country="US") == "home"
    assert (terms.bands.names, terms.bands.time_zone) == (("peak",), "Europe/Berlin")


@pytest.mark.parametrize(
    ("path", "value", "field", "problem", "fix"),
    [
        ("zones.home", ["XX"], "zones.home.0", "'XX' is no network, country or group", "MCC"),
        ("zones.home", ["26203"], "zones.north.1", "in the zone 'home' too", "in one zone"),
        ("zones.home", [False], "zones.home.0", "False is no text", "in quotes"),
        ("default_zone", "moon", "default_zone", "'moon' is no zone", "name one of `zones`"),
        ("bands.peak", [], "bands.peak", "has no window", "add one"),
        ("bands.peak.0.from", "8:00", "bands.peak.0.from", "'8:00' is no time", "HH:MM"),
        ("bands.peak.0.days", ["monday"], "bands.peak.0.days.0", "no day of the week", "mon"),
        ("bands.peak.0.dates", ["2026-12-25"], "bands.peak.0.dates", "beside `days`", "keep one"),
        ("band_crossing", "end", "band_crossing", "'end' is not allowed", "'split' or 'start'"),
    ],
)
def test_a_zone_or_band_is_refused(
    path: str, value: object, field: str, problem: str, fix: str
) -> None:
    error = refused(changed(path, value, rich()))
    assert error.field == field
    assert problem in error.problem
    assert fix in error.fix


# Allowances


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"quantity": "1 kB", "priority": 7}, {"quantity": 1000, "priority": 7}),
        ({"shared_by": "plan"}, {"shared_by": SharedBy.PLAN, "priority": 200}),
        (
            {"shared_by": "fleet", "fixed": True, "floor": 5, "ceiling": "1 kB"},
            {
                "shared_by": SharedBy.FLEET,
                "fixed": True,
                "floor": 5,
                "ceiling": 1000,
                "priority": 200,
            },
        ),
        (
            {"states": ["active", "suspended"]},
            {"states": frozenset({DeviceState.ACTIVE, DeviceState.SUSPENDED})},
        ),
        (
            {"zones": ["home", "elsewhere"], "bands": ["night"]},
            {"zones": frozenset({"home", None}), "bands": frozenset({"night"})},
        ),
        ({"renews": "day"}, {"renews": Renews.DAY, "proration": Proration.NONE}),
        ({"renews": "week"}, {"renews": Renews.WEEK, "proration": Proration.NONE}),
        ({"renews": "never"}, {"renews": Renews.NEVER, "proration": Proration.NONE}),
        (
            {"renews": "never", "lasts": "10 years", "proration": "none"},
            {
                "renews": Renews.NEVER,
                "lifetime": (10, LifetimeUnit.YEARS),
                "proration": Proration.NONE,
            },
        ),
        (
            {"renews": "never", "lasts": "1 day"},
            {
                "renews": Renews.NEVER,
                "lifetime": (1, LifetimeUnit.DAYS),
                "proration": Proration.NONE,
            },
        ),
        ({"proration": "seconds"}, {"proration": Proration.SECONDS}),
        ({"rollover": {}}, {"rollover": Rollover()}),
        (
            {"rollover": {"minimum": 1, "maximum": 9, "periods": 3, "burn": "newest_first"}},
            {"rollover": Rollover(minimum=1, maximum=9, periods=3, burn=Burn.NEWEST_FIRST)},
        ),
        (
            {"from": "2026-01-01", "to": "2026-04-01", "periods": 3, "coupon": "HELLO"},
            {
                "offer": Offer(
                    first_day=date(2026, 1, 1),
                    end_day=date(2026, 4, 1),
                    periods=3,
                    coupon="HELLO",
                )
            },
        ),
    ],
)
def test_an_allowance_becomes_its_terms(given: dict[str, object], expected: dict[str, Any]) -> None:
    plain = AllowanceTerms(name="bundle", quantity=100)
    assert allowance_of(**given) == replace(plain, **expected)


@pytest.mark.parametrize(
    ("given", "field", "problem", "fix"),
    [
        ({"name": None}, "name", "is empty", "leave it out"),
        ({"quantity": "1 min"}, "quantity", "not a quantity", "octet"),
        ({"shared_by": "tenant"}, "shared_by", "'tenant' is not", "'device', 'plan' or 'fleet'"),
        ({"fixed": True}, "fixed", "several devices share", "`shared_by: plan`"),
        ({"floor": 1}, "floor", "several devices share", "`shared_by: plan`"),
        ({"ceiling": 1}, "ceiling", "several devices share", "`shared_by: plan`"),
        (
            {"shared_by": "plan", "floor": 2, "ceiling": 1},
            "floor",
            "2 is more than the ceiling of 1",
            "use less",
        ),
        ({"states": ["retired"]}, "states.0", "'retired' is not allowed", "'suspended'"),
        ({"states": []}, "states", "is empty", "at least one"),
        ({"priority": -1}, "priority", "-1 is too small", "0 or more"),
        ({"priority": "high"}, "priority", "'high' is no whole number", "write a whole number"),
        ({"zones": ["away"]}, "zones.0", "'away' is no zone", "use one of home, elsewhere"),
        ({"bands": ["day"]}, "bands.0", "'day' is no band", "use one of night, otherwise"),
        ({"renews": "hour"}, "renews", "'hour' is not allowed", "'never'"),
        ({"lasts": "10 years"}, "lasts", "renews each period", "`renews: never`"),
        ({"renews": "never", "lasts": "ten years"}, "lasts", "no lifetime", '"6 months"'),
        ({"renews": "never", "lasts": 10}, "lasts", "10 is no text", "in quotes"),
        ({"renews": "never", "lasts": "0 days"}, "lasts", "no lifetime", '"6 months"'),
        ({"renews": "day", "proration": "days"}, "proration", "never prorated", "leave it out"),
        ({"renews": "day", "rollover": {}}, "rollover", "renews each period", "leave it out"),
        (
            {"rollover": {"minimum": 2, "maximum": 1}},
            "rollover.minimum",
            "2 is more than the maximum of 1",
            "use less",
        ),
        ({"rollover": {"periods": 0}}, "rollover.periods", "0 is too small", "1 or more"),
        ({"from": "2026-02-30"}, "from", "'2026-02-30' is no date", "YYYY-MM-DD"),
        ({"from": "20260228"}, "from", "is no date", "YYYY-MM-DD"),
        ({"from": "2026-03-01", "to": "2026-02-01"}, "to", "is not after", "a day after `from`"),
        ({"periods": 0}, "periods", "0 is too small", "1 or more"),
        ({"coupon": ""}, "coupon", "is no name", "1 to 200"),
        ({"first_day": "2026-01-01"}, "first_day", "no field here", "use one of"),
    ],
)
def test_an_allowance_is_refused(
    given: dict[str, object], field: str, problem: str, fix: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        allowance_of(**given)
    assert caught.value.field == f"meters.data.allowances.0.{field}"
    assert problem in caught.value.problem
    assert fix in caught.value.fix


def test_two_allowances_of_a_meter_have_two_names() -> None:
    given = priced(OPEN, allowance=5, allowances=[{"name": "allowance", "quantity": 1}])
    error = refused(given)
    assert error.field == "meters.data.allowances.0.name"
    assert error.problem == "the name 'allowance' is that of meters.data.allowance too"
    given["meters"]["data"]["allowances"][0]["name"] = "bundle"
    terms = terms_of(read_plan(given)).meters["data"]
    assert [each.name for each in terms.allowances] == ["allowance", "bundle"]


# Fees


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"amount": "2.00"}, {"amount": Decimal(2)}),
        (
            {"amount": 2, "charged": "in_advance", "every": "quarter", "refund": True},
            {
                "amount": Decimal(2),
                "in_advance": True,
                "every": FeeBasis.QUARTER,
                "refund": True,
            },
        ),
        (
            {"amount": 2, "per": "fleet", "proration": "none", "states": ["inventory"]},
            {
                "amount": Decimal(2),
                "per_fleet": True,
                "proration": Proration.NONE,
                "states": frozenset({DeviceState.INVENTORY}),
            },
        ),
        (
            {"amount": 2, "every": "once", "quantity": 20},
            {
                "amount": Decimal(2),
                "every": FeeBasis.ONCE,
                "proration": Proration.NONE,
                "quantity": 20,
            },
        ),
        (
            {"amount": 2, "every": "activation"},
            {"amount": Decimal(2), "every": FeeBasis.ACTIVATION, "proration": Proration.NONE},
        ),
        (
            {"by_state": {"active": "2", "active_unused": "0.50", "inventory": 0}},
            {
                "by_state": {
                    FeeState.ACTIVE: Decimal(2),
                    FeeState.ACTIVE_UNUSED: Decimal("0.50"),
                    FeeState.INVENTORY: Decimal(0),
                }
            },
        ),
        (
            {
                "price": {
                    "model": "graduated",
                    "tiers": [{"up_to": "1 thousand", "amount": 2}, {"amount": 1}],
                    "maximum": 50,
                },
                "count": "peak",
            },
            {
                "price": Price(
                    shape=GraduatedPrice(
                        tiers=[
                            Tier(last=1000, amount=Decimal(2)),
                            Tier(last=None, amount=Decimal(1)),
                        ]
                    ),
                    maximum=Decimal(50),
                ),
                "count": FeeCount.PEAK,
            },
        ),
        (
            {"amount": 2, "periods": 1, "coupon": "HELLO"},
            {"amount": Decimal(2), "offer": Offer(periods=1, coupon="HELLO")},
        ),
    ],
)
def test_a_fee_becomes_its_terms(given: dict[str, object], expected: dict[str, Any]) -> None:
    assert fee_of(**given) == replace(FeeTerms(name="line"), **expected)


@pytest.mark.parametrize(
    ("given", "field", "problem", "fix"),
    [
        ({}, "", "says nothing that is due", "add one of amount, by_state, price"),
        ({"amount": 1, "price": OPEN}, "price", "stands beside `amount`", "keep one"),
        ({"amount": 1, "by_state": {"active": 1}}, "by_state", "beside `amount`", "keep one"),
        ({"amount": "-1"}, "amount", "'-1' is negative", "use a credit"),
        ({"amount": 1, "every": "week"}, "every", "'week' is not allowed", "'day', 'period'"),
        ({"amount": 1, "quantity": 0}, "quantity", "0 is too small", "1 or more"),
        ({"amount": 1, "per": "sim"}, "per", "'sim' is not allowed", "'device' or 'fleet'"),
        ({"amount": 1, "charged": "later"}, "charged", "'later' is not", "'in_arrears'"),
        ({"amount": 1, "refund": True}, "refund", "nothing is charged ahead", "in_advance"),
        ({"amount": 1, "count": "peak"}, "count", "there is none", "add `price`"),
        (
            {"amount": 1, "every": "once", "proration": "days"},
            "proration",
            "due once is never prorated",
            "leave it out",
        ),
        ({"by_state": {}}, "by_state", "is empty", "at least one"),
        ({"by_state": {"retired": 1}}, "by_state.retired", "'retired' is not", "'inventory'"),
        ({"by_state": {"active": 0.5}}, "by_state.active", "0.5 is a float", "as text"),
        (
            {"by_state": {"active": 1, "suspended_used": 1}, "charged": "in_advance"},
            "by_state.suspended_used",
            "is not known in advance",
            "in_arrears",
        ),
        ({"by_state": {"active": 1}, "states": ["active"]}, "states", "beside", "leave it out"),
        ({"by_state": {"active": 1}, "per": "fleet"}, "per", "no state", "`per: device`"),
        ({"by_state": {"active": 1}, "every": "once"}, "every", "no days", "recurring"),
        (
            {"price": OPEN, "count": "peak", "charged": "in_advance"},
            "count",
            "not known in advance",
            "in_arrears",
        ),
        (
            {"price": {"amount": 1, "connection_fee": 1}},
            "price.connection_fee",
            "no meaning in a fee",
            "leave it out",
        ),
        (
            {"price": {"amount": 1, "minimum": 1}},
            "price.minimum",
            "no meaning in a fee",
            "an adjustment of type minimum",
        ),
        ({"price": {"amount": 1, "per": "1 MB"}}, "price.per", "'1 MB'", "one of: device, th"),
        ({"price": {"model": "volume", "tiers": []}}, "price.tiers", "is empty", "at least one"),
        ({"amount": 1, "coupon": 5}, "coupon", "5 is no text", "in quotes"),
    ],
)
def test_a_fee_is_refused(given: dict[str, object], field: str, problem: str, fix: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        fee_of(**given)
    assert caught.value.field == f"fees.0.{field}".rstrip(".")
    assert problem in caught.value.problem
    assert fix in caught.value.fix


def test_two_fees_have_two_names() -> None:
    plan = document() | {"fees": [{"name": "monthly_fee", "amount": 1}]}
    error = refused(plan)
    assert error.field == "fees.0.name"
    assert error.problem == "the name 'monthly_fee' is that of monthly_fee too"


# Adjustments


def adjusted(*adjustments: dict[str, object]) -> Document:
    return document() | {
        "fees": [{"name": "line rental", "amount": 1}],
        "adjustments": list(adjustments),
    }


def test_adjustments_become_terms_in_their_order() -> None:
    terms = terms_of(
        read_plan(
            adjusted(
                {"type": "percentage_discount", "name": "rebate", "percent": "10", "on": "usage"},
                {"type": "fixed_discount", "amount": "5.00", "scope": "device"},
                {"type": "credit", "amount": 20, "to": "2026-02-01"},
                {"type": "minimum", "amount": 100, "on": ["data", "line rental", "monthly_fee"]},
                {"type": "commitment", "amount": 90, "prorated": True, "scope": "fleet"},
                {"type": "maximum", "amount": 500, "on": "fees"},
                {"type": "maximum", "amount": 900},
            )
        )
    )
    assert terms.adjustments == [
        AdjustmentTerms(
            name="rebate",
            kind=AdjustmentKind.PERCENTAGE_DISCOUNT,
            amount=Decimal(10),
            on="usage",
        ),
        AdjustmentTerms(
            name="fixed_discount",
            kind=AdjustmentKind.FIXED_DISCOUNT,
            amount=Decimal(5),
            scope=AdjustmentScope.DEVICE,
        ),
        AdjustmentTerms(
            name="credit",
            kind=AdjustmentKind.CREDIT,
            amount=Decimal(20),
            offer=Offer(end_day=date(2026, 2, 1)),
        ),
        AdjustmentTerms(
            name="minimum",
            kind=AdjustmentKind.COMMITMENT,
            amount=Decimal(100),
            on=frozenset({"data", "line rental", "monthly_fee"}),
        ),
        AdjustmentTerms(
            name="commitment",
            kind=AdjustmentKind.COMMITMENT,
            amount=Decimal(90),
            scope=AdjustmentScope.FLEET,
            prorated=True,
        ),
        AdjustmentTerms(
            name="maximum", kind=AdjustmentKind.MAXIMUM, amount=Decimal(500), on="fees"
        ),
        AdjustmentTerms(name="maximum 2", kind=AdjustmentKind.MAXIMUM, amount=Decimal(900)),
    ]


@pytest.mark.parametrize(
    ("given", "field", "problem", "fix"),
    [
        ({}, "type", "is missing", "use one of percentage_discount"),
        ({"type": "rebate"}, "type", "'rebate' is no type of adjustment", "minimum, commitment"),
        ({"type": "credit"}, "amount", "is missing", "add it"),
        ({"type": "credit", "amount": "-5"}, "amount", "'-5' is negative", "use a credit"),
        ({"type": "credit", "amount": 5, "percent": 5}, "percent", "no field here", "use one of"),
        (
            {"type": "percentage_discount", "percent": "100.5"},
            "percent",
            "100.5 is more than 100",
            "0 to 100",
        ),
        (
            {"type": "maximum", "amount": 1, "prorated": True},
            "prorated",
            "no field here",
            "use one of",
        ),
        ({"type": "credit", "amount": 1, "on": "data"}, "on", "'data' is not", "or a list of m"),
        ({"type": "credit", "amount": 1, "on": []}, "on", "is empty", "at least one"),
        (
            {"type": "credit", "amount": 1, "on": ["data", "fuel"]},
            "on.1",
            "'fuel' is no meter or fee of this plan",
            "use one of data, sms, line rental, monthly_fee",
        ),
        ({"type": "credit", "amount": 1, "scope": "tenant"}, "scope", "'tenant' is", "'fleet'"),
        (
            {"type": "credit", "amount": 1, "from": "2026-02-01", "to": "2026-01-01"},
            "to",
            "is not after",
            "a day after `from`",
        ),
    ],
)
def test_an_adjustment_is_refused(
    given: dict[str, object], field: str, problem: str, fix: str
) -> None:
    error = refused(adjusted(given))
    assert error.field == f"adjustments.0.{field}"
    assert problem in error.problem
    assert fix in error.fix


def test_two_adjustments_have_two_names() -> None:
    credit: dict[str, object] = {"type": "credit", "name": "goodwill", "amount": 1}
    error = refused(adjusted(credit, credit))
    assert error.field == "adjustments.1.name"
    assert error.problem == "the name 'goodwill' is that of adjustments.0 too"
