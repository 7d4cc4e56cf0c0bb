"""The published JSON Schema is the generated one, and takes what plan documents are taken as."""

import copy
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from metering.cli import main
from metering.errors import InvalidValue
from metering.plan_document import read_plan, stored_document
from metering.plan_document.document import ADJUSTMENT_TYPES, PRICE_MODELS
from metering.plan_document.schema import plan_schema, plan_schema_text

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "plan.schema.json"
SCHEMA = Draft202012Validator(plan_schema())

EVERYTHING: dict[str, Any] = {
    "plan": "everything",
    "name": "Everything",
    "currency": "EUR",
    "time_zone": "Europe/Berlin",
    "octet_multiple": 1024,
    "monthly_fee": Decimal("2.00"),
    "proration": "days",
    "plan_changes": {"upward": "at_once", "downward": "next_period"},
    "groups": {"nordics": ["SE", "NO", "DK", "FI"]},
    "zones": {"home": ["DE"], "north": ["nordics", 26202, "+47"]},
    "default_zone": "home",
    "bands": {
        "peak": [{"days": ["mon"], "from": "08:00", "to": "20:00"}],
        "holiday": [{"dates": ["2026-12-25"]}],
    },
    "band_crossing": "start",
    "meters": {
        "data": {
            "allowance": "500 MB",
            "pooled": True,
            "allowances": [
                {
                    "name": "bundle",
                    "quantity": "1.5 GB",
                    "shared_by": "plan",
                    "fixed": True,
                    "states": ["active", "suspended"],
                    "priority": 50,
                    "zones": ["home", "elsewhere"],
                    "bands": ["peak", "otherwise"],
                    "proration": "seconds",
                    "rollover": {
                        "minimum": 0,
                        "maximum": "1 GB",
                        "periods": 2,
                        "burn": "newest_first",
                    },
                    "floor": 10,
                    "ceiling": "1 million",
                    "from": "2026-01-01",
                    "to": "2026-04-01",
                    "periods": 3,
                    "coupon": "HELLO",
                },
                {"name": "once", "quantity": 5, "renews": "never", "lasts": "10 years"},
            ],
            "price": {
                "model": "graduated",
                "per": "1 MB",
                "bounds": "lower_inclusive",
                "flat_at_zero": True,
                "tiers": [
                    {"up_to": "1 GB", "amount": "0.10", "flat": 1},
                    {"block": "1 MB", "blocks": 3, "amount": Decimal("0.05")},
                    {"flat": 0},
                ],
                "free": 10,
                "minimum": 1,
                "maximum": "100",
                "prorated": True,
                "counted_per": "fleet",
                "counted_with": "meter",
                "connection_fee": "0.01",
                "connection_fee_on_allowance": True,
            },
            "increment": {"step": "1 kB", "first": 50, "direction": "up", "scope": "session"},
            "overhead": {"per_record": 40, "per_packet": 28},
            "variants": [
                {
                    "zones": ["north"],
                    "bands": ["peak"],
                    "where": {"rat": ["LTE"], "class": [1]},
                    "from": "2026-01-01",
                    "to": "2026-02-01",
                    "price": {"amount": 1},
                    "increment": {"first": 1},
                    "overhead": {"per_record": 1},
                }
            ],
        },
        "voice": {"price": {"model": "package", "amount": 1, "size": "10 min"}},
        "sms": {"price": {"model": "volume", "block": 10, "tiers": [{"amount": 1}]}},
        "power": {
            "unit": "kWh",
            "decimals": 3,
            "aggregate": "max",
            "price": {"model": "stair_step", "tiers": [{"up_to": 10.5, "flat": 1}, {"flat": 2}]},
        },
    },
    "fees": [
        {
            "name": "line",
            "amount": "2.00",
            "charged": "in_advance",
            "every": "year",
            "refund": True,
        },
        {"name": "states", "by_state": {"active": 1, "active_unused": "0.50"}, "every": "day"},
        {
            "name": "size",
            "price": {"amount": 1},
            "count": "peak",
            "quantity": 2,
            "states": ["active"],
        },
        {"name": "once", "amount": 5, "per": "fleet", "every": "once", "proration": "none"},
    ],
    "adjustments": [
        {"type": "percentage_discount", "name": "rebate", "percent": 10, "on": "usage"},
        {"type": "fixed_discount", "amount": 5, "on": ["data", "line"]},
        {"type": "credit", "amount": "20.00", "scope": "fleet", "coupon": "HELLO"},
        {"type": "minimum", "amount": 100, "prorated": True},
        {"type": "commitment", "amount": 100},
        {"type": "maximum", "amount": 500, "scope": "device"},
    ],
    "rounding": {"at": "record", "mode": "half_even", "digits": 4},
    "lines_per": "device",
}
# JSON knows one kind of number; what is read of a file is a Decimal, never a float.
EVERYTHING["meters"]["power"]["price"]["tiers"][0]["up_to"] = Decimal("10.5")

SMALL = [
    {"plan": "a", "currency": "EUR", "monthly_fee": 1},
    {"plan": "a", "currency": "EUR", "fees": [{"name": "a", "amount": 1}]},
    {"plan": "a", "currency": "JPY", "meters": {"sms": {"price": {"amount": 3}}}},
    {
        "plan": "a",
        "currency": "EUR",
        "meters": {"sms": {"price": {"model": "per_unit", "amount": "0.1"}}},
        "rounding": {"step": "0.05"},
    },
]


def examples() -> list[Any]:
    demo = [
        json.loads(path.read_text("utf-8"))
        for path in sorted((ROOT / "metering" / "demo" / "plans").glob("*.json"))
    ]
    return [EVERYTHING, *SMALL, *demo]


def changed(path: str, value: object) -> dict[str, Any]:
    """Return the document of everything with the value at a dotted path replaced or added."""
    plan = copy.deepcopy(EVERYTHING)
    *parents, last = path.split(".")
    place: Any = plan
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    place[last] = value
    return plan


def without(path: str) -> dict[str, Any]:
    plan = changed(path, None)
    *parents, last = path.split(".")
    place: Any = plan
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    del place[last]
    return plan


def test_the_published_schema_is_the_generated_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert PUBLISHED.read_text("utf-8") == plan_schema_text(), (
        "write it anew: fleetmeter plan schema > docs/plan.schema.json"
    )
    assert main(["plan", "schema"]) == 0
    assert capsys.readouterr().out == plan_schema_text()


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(plan_schema())
    assert plan_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert '"null"' not in plan_schema_text()


@pytest.mark.parametrize("example", examples(), ids=lambda example: str(example["plan"]))
def test_it_takes_every_plan_that_is_taken(example: dict[str, Any]) -> None:
    plan = read_plan(example)
    SCHEMA.validate(example)
    SCHEMA.validate(stored_document(plan))


def test_it_names_every_model_of_a_price_and_type_of_adjustment() -> None:
    schema: Any = plan_schema()
    definitions = schema["$defs"]
    prices = definitions["MeterDocument"]["properties"]["price"]["oneOf"]
    models = [
        definitions[each["$ref"].rpartition("/")[2]]["properties"]["model"] for each in prices
    ]
    assert [each["const"] for each in models] == list(PRICE_MODELS)
    adjustments = schema["properties"]["adjustments"]["items"]["oneOf"]
    types = [
        definitions[each["$ref"].rpartition("/")[2]]["properties"]["type"] for each in adjustments
    ]
    named = [name for each in types for name in each.get("enum", [each.get("const")])]
    assert named == list(ADJUSTMENT_TYPES)


@pytest.mark.parametrize(
    "plan",
    [
        [],
        {},
        {"plan": "a", "currency": "EUR"},
        {"plan": "a", "currency": "EUR", "meters": {}},
        changed("plan", "a b"),
        changed("colour", "red"),
        changed("monthly_fee", None),
        changed("monthly_fee", "-1"),
        changed("monthly_fee", -1),
        changed("monthly_fee", "1,50"),
        changed("octet_multiple", 1001),
        changed("rounding", {"at": "year"}),
        changed("rounding", {"digits": 2, "step": 1}),
        changed("meters.a b", {"price": {"amount": 1}}),
        changed("meters.sms", {}),
        changed("meters.sms.overage", {"amount": 1}),
        changed("meters.sms.price", {}),
        changed("meters.sms.price", {"model": "tiered", "amount": 1}),
        changed("meters.sms.price", {"amount": 1, "tiers": []}),
        changed("meters.sms.price", {"model": "volume", "tiers": []}),
        changed("meters.sms.price", {"model": "volume", "tiers": [{}]}),
        changed("meters.sms.price", {"model": "volume", "tiers": [{"up_to": -1, "amount": 1}]}),
        changed(
            "meters.sms.price",
            {"model": "volume", "tiers": [{"up_to": 1, "blocks": 1, "amount": 1}, {"flat": 1}]},
        ),
        changed("meters.sms.increment", {}),
        changed("meters.sms.allowance", value=True),
        changed("meters.sms.allowances", [{"name": "x"}]),
        changed("meters.sms.allowances", [{"name": "x", "quantity": 1, "renews": "hour"}]),
        changed("meters.sms.variants", [{"price": {"amount": 1}}]),
        without("fees.0.amount"),
        changed("fees.0.price", {"amount": 1}),
        changed("fees.1.by_state", {"retired": 1}),
        changed("adjustments.0.type", "rebate"),
        changed("adjustments.0.amount", 5),
        changed("adjustments.5.prorated", value=True),
        changed("adjustments.5.on", "data"),
    ],
)
def test_it_refuses_what_is_refused(plan: object) -> None:
    assert not SCHEMA.is_valid(plan)
    with pytest.raises(InvalidValue):
        read_plan(plan)
