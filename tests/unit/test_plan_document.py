"""A plan document is taken as it stands, or refused naming the path, the problem and the fix."""

import copy
import json
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from metering.errors import InvalidValue
from metering.plan_document import (
    SUBUNIT_PRICE_MAX,
    SUBUNITS_PER_UNIT_MAX,
    MeterDocument,
    PlanDocument,
    read_plan,
    stored_terms,
    terms_of,
)
from metering.rating.charge import rated
from metering.units import MULTIPLES
from metering.usage import METERS, QUANTITY_MAX


def document() -> dict[str, Any]:
    return {
        "plan": "tracker-eu",
        "name": "Tracker Europe",
        "currency": "EUR",
        "monthly_fee": "1.50",
        "meters": {
            "data": {"allowance": "500 kB", "overage": {"amount": "0.12", "per": "1 MB"}},
            "sms": {"allowance": 5, "pooled": True, "overage": {"amount": "0.04", "per": 1}},
        },
    }


def changed(path: str, value: object) -> dict[str, Any]:
    """Return the document with the value at a dotted path replaced or added."""
    plan = copy.deepcopy(document())
    *parents, last = path.split(".")
    place = plan
    for parent in parents:
        place = place[parent]
    place[last] = value
    return plan


def test_a_plan_becomes_the_terms_that_it_states() -> None:
    terms = terms_of(read_plan(document()))
    assert (terms.currency, terms.monthly_fee) == ("EUR", Decimal("1.50"))
    data, sms = terms.meters["data"], terms.meters["sms"]
    assert (data.allowance, data.pooled) == (500_000, False)
    assert (data.overage.amount, data.overage.per) == (Decimal("0.12"), 1_000_000)
    assert (sms.allowance, sms.pooled, sms.overage.per) == (5, True, 1)


def test_the_sub_unit_makes_the_fee_and_each_base_unit_whole() -> None:
    # 0.12 / 1 000 000 = 3 / 25 000 000; 0.04 = 1 / 25; 1.50 = 3 / 2.
    # The least multiple of 25 000 000, 25 and 2 is 25 000 000.
    terms = terms_of(read_plan(document()))
    assert terms.subunits_per_unit == 25_000_000
    assert dict(terms.subunit_prices) == {"data": 3, "sms": 1_000_000}


def test_what_is_left_out_has_a_default() -> None:
    plan = read_plan(
        {
            "plan": "bare",
            "name": "Bare",
            "currency": "JPY",
            "meters": {"voice": {"overage": {"amount": "3", "per": "1 min"}}},
        }
    )
    voice = plan.meters["voice"]
    assert (plan.monthly_fee, voice.allowance, voice.pooled) == ("0", 0, False)


def test_a_stored_document_gives_the_same_terms() -> None:
    plan = read_plan(document())
    assert stored_terms(plan.model_dump(mode="json")) == terms_of(plan)


@pytest.mark.parametrize(
    ("path", "value", "field", "problem", "fix"),
    [
        ("plan", "a/b", "plan", "should match pattern", "docs/plans.md"),
        ("plan", "a\n", "plan", "should match pattern", "docs/plans.md"),
        ("name", "", "name", "at least 1 character", "docs/plans.md"),
        ("name", "x" * 201, "name", "at most 200 characters", "docs/plans.md"),
        ("name", "a\x00b", "name", "should match pattern", "docs/plans.md"),
        ("currency", "EURO", "currency", "'EURO' is no ISO 4217 currency", "'EUR'"),
        ("currency", 978, "currency", "valid string", "docs/plans.md"),
        ("monthly_fee", 1.5, "monthly_fee", "valid string", "docs/plans.md"),
        ("monthly_fee", "-1", "monthly_fee", "should match pattern", "docs/plans.md"),
        ("monthly_fee", "1,50", "monthly_fee", "should match pattern", "docs/plans.md"),
        ("monthly_fee", "1e3", "monthly_fee", "should match pattern", "docs/plans.md"),
        ("monthly_fee", "\u0661", "monthly_fee", "should match pattern", "docs/plans.md"),
        ("monthly_fee", "0.0000000000001", "monthly_fee", "should match", "docs/plans.md"),
        ("meters", {}, "meters", "at least 1 item", "docs/plans.md"),
        (
            "meters.data.allowance",
            "5 XB",
            "meters.data.allowance",
            "'5 XB' is not",
            "one of: octet",
        ),
        ("meters.data.allowance", "-5", "meters.data.allowance", "'-5' is not", "one of: octet"),
        ("meters.data.allowance", -5, "meters.data.allowance", "-5 is negative", "0 or more"),
        ("meters.data.allowance", "0.5 B", "meters.data.allowance", "not a whole", "fewer digits"),
        ("meters.data.allowance", 1.5, "meters.data.allowance", "a quantity", "docs/plans.md"),
        ("meters.data.allowance", True, "meters.data.allowance", "a quantity", "docs/plans.md"),
        ("meters.data.allowance", None, "meters.data.allowance", "a quantity", "docs/plans.md"),
        (
            "meters.data.allowance",
            QUANTITY_MAX + 1,
            "meters.data.allowance",
            f"is more than {QUANTITY_MAX}",
            "use less",
        ),
        (
            "meters.data.allowance",
            "9" * 40,
            "meters.data.allowance",
            f"is more than {QUANTITY_MAX}",
            "use less",
        ),
        ("meters.data.pooled", "yes", "meters.data.pooled", "valid boolean", "docs/plans.md"),
        ("meters.data.overage.amount", 0.12, "meters.data.overage.amount", "string", "docs/plans"),
        ("meters.data.overage.per", 0, "meters.data.overage.per", "is 0", "one base unit"),
        ("meters.data.overage.per", "0 MB", "meters.data.overage.per", "is 0", "one base unit"),
        ("meters.data.overage.per", "1 min", "meters.data.overage.per", "not a", "one of: octet"),
        ("meters.data.overage.per", None, "meters.data.overage.per", "quantity", "docs/plans.md"),
        (
            "meters.data.overage.per",
            QUANTITY_MAX + 1,
            "meters.data.overage.per",
            f"is more than {QUANTITY_MAX}",
            "use less",
        ),
        (
            "meters.data.overage",
            {"amount": "1"},
            "meters.data.overage.per",
            "required",
            "docs/plans",
        ),
        ("meters.data.tiers", [], "meters.data.tiers", "not permitted", "docs/plans.md"),
        (
            "meters.fuel",
            {"overage": {"amount": "1", "per": 1}},
            "meters.fuel",
            "'fuel' is no meter",
            "use one of data, sms, voice, messages",
        ),
        ("colour", "red", "colour", "not permitted", "docs/plans.md"),
    ],
)
def test_an_error_names_the_path_the_problem_and_the_fix(
    path: str, value: object, field: str, problem: str, fix: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        read_plan(changed(path, value))
    assert caught.value.field == field
    assert problem in caught.value.problem
    assert fix in caught.value.fix


@pytest.mark.parametrize("missing", ["plan", "name", "currency", "meters"])
def test_a_missing_field_is_named(missing: str) -> None:
    plan = document()
    del plan[missing]
    with pytest.raises(InvalidValue) as caught:
        read_plan(plan)
    assert (caught.value.field, caught.value.problem) == (missing, "field required")


@pytest.mark.parametrize("nothing", [None, [], "plan", 1])
def test_what_is_no_document_is_refused(nothing: object) -> None:
    with pytest.raises(InvalidValue) as caught:
        read_plan(nothing)
    assert caught.value.field == "plan"


def test_prices_that_need_too_fine_a_sub_unit_are_refused() -> None:
    # One base unit would cost 10⁻¹² / (2⁵³ − 1), so the sub-unit 10²⁷ to the euro.
    plan = changed("meters.data.overage", {"amount": "0.000000000001", "per": QUANTITY_MAX})
    with pytest.raises(InvalidValue, match="too fine a sub-unit; use fewer digits") as caught:
        read_plan(plan)
    assert caught.value.field == "meters"


def test_a_price_whose_cycle_could_not_be_summed_is_refused() -> None:
    # 999 999 999 999 an octet, counted in 10⁻¹², is 10²⁴ sub-units an octet: 2⁵³ octets of it would
    # pass the 38 digits that an amount has.
    plan = changed("meters.data.overage", {"amount": "999999999999", "per": 1})
    plan["monthly_fee"] = "0.000000000001"
    with pytest.raises(InvalidValue, match="is too large; use a lower price") as caught:
        read_plan(plan)
    assert caught.value.field == "meters.data.overage.amount"


def test_the_document_is_strict_and_frozen() -> None:
    assert PlanDocument.model_config["extra"] == "forbid"
    assert PlanDocument.model_config["frozen"] is True


# docs/plans.md

PAGE = (Path(__file__).parents[2] / "docs/plans.md").read_text("utf-8")


def plans_of_the_page() -> dict[str, PlanDocument]:
    found = [
        read_plan(json.loads(block))
        for block in re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    ]
    return {plan.plan: plan for plan in found}


def test_the_bill_lines_of_the_page_are_what_the_core_computes() -> None:
    plans = plans_of_the_page()
    rows = re.findall(
        r"^\| (\S+) \| (\S+) \| (\d+) \| (\S+) \| (\S+) \|$", PAGE, flags=re.MULTILINE
    )
    assert {row[0] for row in rows} == set(plans)
    for plan_id, meter, overage, exact, line in rows:
        terms = terms_of(plans[plan_id])
        money = terms.money(rated(int(overage), terms.subunit_prices[meter]))
        assert money.exact == Fraction(exact), plan_id
        assert str(money.rounded()) == line
        assert f"**{line} EUR**" in PAGE or (plan_id, overage) in {
            ("lift-alarm", "600"),
            ("lift-alarm", "2"),
        }


def test_the_page_names_every_field_unit_and_limit() -> None:
    fields = re.findall(r"^\| `([a-z_.*]+)` \|", PAGE.split("## An allowance")[0], re.MULTILINE)
    documented = set(fields) - set(METERS)
    expected = set(PlanDocument.model_fields) | {
        f"meters.*.{name}" for name in MeterDocument.model_fields
    }
    assert documented == expected
    for meter in METERS.values():
        for unit in MULTIPLES[meter.unit]:
            assert unit in PAGE
    assert str(QUANTITY_MAX) in PAGE
    for power in (SUBUNITS_PER_UNIT_MAX, SUBUNIT_PRICE_MAX):
        assert re.search(rf"10\^-?{len(str(power)) - 1}\b", PAGE)
