"""A state file: what is told of a value that cannot be meant, with its path and the file's name."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from metering.cli import main

PLAN: dict[str, Any] = {
    "plan": "p",
    "currency": "EUR",
    "zones": {"home": ["DE"]},
    "bands": {"night": [{"from": "22:00", "to": "06:00"}]},
    "meters": {
        "data": {
            "allowances": [{"name": "gift", "quantity": "1 MB", "coupon": "BYTES"}],
            "variants": [
                {"zones": ["home"], "price": {"amount": "0.10", "per": "1 MB"}},
            ],
            "price": {"amount": "0.20", "per": "1 MB"},
        },
        "messages": {"price": {"amount": "0.10", "counted_per": "fleet"}},
    },
    "fees": [{"name": "fee", "amount": "1", "coupon": "FEE"}],
    "adjustments": [
        {"type": "credit", "name": "credit", "amount": "1", "coupon": "CREDIT"},
    ],
}
USAGE = {"device": "d1", "meter": "data", "quantity": 1, "time": "2026-01-05"}


def rated(folder: Path, state: object, usage: object = USAGE) -> tuple[int, str]:
    """Rate from a state; return the exit code and what is printed."""
    (folder / "plan.json").write_text(json.dumps(PLAN), "utf-8")
    (folder / "state.json").write_text(json.dumps(state), "utf-8")
    (folder / "usage.jsonl").write_text(json.dumps(usage), "utf-8")
    printed = io.StringIO()
    options = ["--plan", "plan.json", "--usage", "usage.jsonl", "--state", "state.json"]
    with redirect_stdout(printed), redirect_stderr(printed):
        code = main(["rate", *options])
    return code, printed.getvalue()


def fleet(**fields: object) -> dict[str, Any]:
    return {"fleet": fields}


def device(**fields: object) -> dict[str, Any]:
    return {"devices": {"d1": fields}}


def bucket(**fields: object) -> dict[str, Any]:
    """Return a state with a bucket, sound but for some fields; None takes one away."""
    sound = {"id": "b", "meter": "data", "quantity": "1 MB"}
    return {
        "devices": {"d1": {}},
        "buckets": [{name: value for name, value in (sound | fields).items() if value is not None}],
    }


def money(**fields: object) -> dict[str, Any]:
    return bucket(meter=None, quantity=None, **fields)


def counted(*counts: dict[str, Any]) -> dict[str, Any]:
    return {
        "devices": {"d1": {}, "d2": {}},
        "counted": [{"device": "d1", "meter": "data", "quantity": 1} | each for each in counts],
    }


def states(*names: str) -> dict[str, Any]:
    dated = [{"state": name, "from": f"2026-01-0{day}"} for day, name in enumerate(names, start=1)]
    return device(states=dated)


AMOUNT = 'write it like "12.50", with at most 12 digits on each side of the point'
CYCLE = "use week, month, quarter, year or a number of days such as '30 days'"
EMPTY_LIST = "is an empty list; write at least one, or leave it out"
FINAL = "comes after retired, which is final; leave it out, or suspend the device instead"
NO_TEXT = "is not text; write text; a number in quotes is text"
OUT_OF_RANGE = "is out of range; use a time of the years 1970 to 9000"
STATES = "use 'inventory', 'active', 'suspended' or 'retired'"
ZONE = "use an IANA name such as 'Europe/Berlin'"
GUIDE = "see docs/rate.md for what a state may hold"
SUM = "write one, with their sum"
CONTROL = "holds a control character; take it out"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        # Buckets
        (bucket(used="2 MB"), "buckets.0.used: '2 MB' is more than there was; use '1 MB' at most"),
        (bucket(used="-1"), "buckets.0.used: '-1' is negative; use 0 or more"),
        (bucket(quantity=-1), "buckets.0.quantity: '-1' is negative; use 0 or more"),
        (
            bucket(quantity="0.5"),
            "buckets.0.quantity: '0.5' is not a whole number of octets; use whole octets",
        ),
        (bucket(meter=None), "buckets.0.meter: is missing; use one of data, messages"),
        (
            bucket(meter="fax"),
            "buckets.0.meter: 'fax' is no meter of a plan; use one of data, messages",
        ),
        (bucket(money="1"), "buckets.0.quantity: stands beside money; give one of them"),
        (bucket(quantity=None), "buckets.0.quantity: is missing, and so is money; give one of them"),
        (bucket(device="d9"), "buckets.0.device: 'd9' is no device; list it in devices"),
        (money(money="1", used="2"), "buckets.0.used: '2' is more than there was; use '1' at most"),
        (money(money="1", used="-2"), "buckets.0.used: '-2' is negative; use 0 or more"),
        (money(money="1", used="5 MB"), f"buckets.0.used: '5 MB' is no amount; {AMOUNT}"),
        (money(money="-5"), "buckets.0.money: '-5' is negative; use 0 or more"),
        (money(money=-5), "buckets.0.money: '-5' is negative; use 0 or more"),
        (money(money="5 EUR"), f"buckets.0.money: '5 EUR' is no amount; {AMOUNT}"),
        (money(money="9" * 13), f"buckets.0.money: '{'9' * 13}' is no amount; {AMOUNT}"),
        (money(money="x" * 99), f"buckets.0.money: '{'x' * 60}…' is no amount; {AMOUNT}"),
        (
            money(money=True),
            'buckets.0.money: is neither a number nor text; write it like "12.50" or "1.5 MB"',
        ),
        (
            bucket(quantity=None, money="1"),
            "buckets.0.meter: stands beside money, which any meter draws from; take it out",
        ),
        (
            bucket(created="2026-02-01", expires="2026-01-01"),
            "buckets.0.expires: is not after created; give a later end, or leave it out",
        ),
        (
            bucket(created="2026-02-01", expires="2026-02-01"),
            "buckets.0.expires: is not after created; give a later end, or leave it out",
        ),
        (
            bucket(zones=["home", "away"]),
            "buckets.0.zones.1: 'away' is no zone of a plan; use one of home, elsewhere",
        ),
        (
            bucket(bands=["day"]),
            "buckets.0.bands.0: 'day' is no band of a plan; use one of night, otherwise",
        ),
        (bucket(zones=[]), f"buckets.0.zones: {EMPTY_LIST}"),
        (bucket(bands=[]), f"buckets.0.bands: {EMPTY_LIST}"),
        (bucket(id="a\nb"), f"buckets.0.id: {CONTROL}"),
        (bucket(id=7), f"buckets.0.id: {NO_TEXT}"),
        (
            {"buckets": bucket()["buckets"] * 2},
            "buckets.1.id: 'b' stands twice; give each bucket its own",
        ),
        # Plans and states of devices
        (device(states=[]), f"devices.d1.states: {EMPTY_LIST}"),
        (device(plans=[]), f"devices.d1.plans: {EMPTY_LIST}"),
        (
            states("retired", "active"),
            f"devices.d1.states.1.state: active {FINAL}",
        ),
        (
            states("active", "retired", "retired", "suspended"),
            f"devices.d1.states.3.state: suspended {FINAL}",
        ),
        (
            device(state="on"),
            f"devices.d1.state: is not allowed; {STATES}",
        ),
        (device(plan="q"), "devices.d1.plans.0.plan: 'q' is no plan; use one of p"),
        ({"devices": {"a\nb": {}}}, rf"devices.a\nb: {CONTROL}"),
        ({"devices": {"": {}}}, "devices.: is empty; give it a value, or leave it out"),
        # Counts
        (counted({}, {}), f"counted.1: counts what counted.0 counts; {SUM}"),
        (counted({}, {"variant": 1}), f"counted.1: counts what counted.0 counts; {SUM}"),
        (
            counted({"meter": "messages"}, {"meter": "messages", "device": "d2"}),
            f"counted.1: counts what counted.0 counts; {SUM}",
        ),
        (counted({"variant": 2}), "counted.0.variant: 2 is no variant; use 0 to 1"),
        (counted({"quantity": -1}), "counted.0.quantity: '-1' is negative; use 0 or more"),
        (
            {"devices": {}, "counted": [{"meter": "data", "quantity": 1}]},
            "counted.0.device: is missing; name it, and list it in devices",
        ),
        # The fleet
        (fleet(cycle="decade"), f"fleet.cycle: 'decade' is no cycle; {CYCLE}"),
        (fleet(cycle="0 days"), f"fleet.cycle: '0 days' is no cycle; {CYCLE}"),
        (fleet(cycle="10000 days"), f"fleet.cycle: '10000 days' is no cycle; {CYCLE}"),
        (fleet(cycle=30), f"fleet.cycle: {NO_TEXT}"),
        (fleet(anchor_day=0), "fleet.anchor_day: is too small; use 1 or more"),
        (fleet(anchor_month=13), "fleet.anchor_month: is too large; use 12 or less"),
        (fleet(time_zone="Berlin"), f"fleet.time_zone: 'Berlin' is not a time zone; {ZONE}"),
        (fleet(starts="1969-12-31"), f"fleet.starts: '1969-12-31' {OUT_OF_RANGE}"),
        (fleet(starts="9001-01-01", cycle="week"), f"fleet.starts: '9001-01-01' {OUT_OF_RANGE}"),
        (
            fleet(starts="2026-W01-1"),
            "fleet.starts: '2026-W01-1' is no time; write it like 2026-01-31T12:00:00Z",
        ),
        (fleet(name="x"), f"fleet.name: is no field here; {GUIDE}"),
        ([], f"state: is not an object with fields; {GUIDE}"),
    ],
)  # fmt: skip
def test_what_is_told_of_a_state_that_cannot_be_meant(
    state: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert rated(tmp_path, state) == (1, f"fleetmeter rate: state.json: {message}\n")


@pytest.mark.parametrize(
    "state",
    [
        bucket(used="1 MB"),
        bucket(zones=["home", "elsewhere"], bands=["night", "otherwise"]),
        bucket(created="2026-01-01", expires="2026-01-02"),
        money(money="1.50", used=1),
        money(money="0"),
        fleet(coupons=[{"code": "FEE"}, {"code": "of another plan"}]),
        fleet(cycle="9999 days", starts="9000-12-31"),
        fleet(cycle="1 day"),
        states("active", "retired", "retired"),
        counted({}, {"variant": 0}, {"device": "d2"}, {"meter": "messages"}),
    ],
)
def test_what_a_state_may_hold(
    state: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed = rated(tmp_path, state)
    assert "fleetmeter rate" not in printed
    assert code == (1 if "not rated" in printed else 0)


def test_a_fault_of_the_files_syntax_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rated(tmp_path, {})
    for text, message in (
        ("{", "line 1, column 2: is no JSON: expecting property name enclosed in double quotes"),
        ('{"fleet": {}, "fleet": {}}', "fleet: stands twice in one object"),
    ):
        (tmp_path / "state.json").write_text(text, "utf-8")
        options = ["--plan", "plan.json", "--usage", "usage.jsonl", "--state", "state.json"]
        printed = io.StringIO()
        with redirect_stderr(printed):
            assert main(["rate", *options]) == 1
        assert printed.getvalue().startswith(f"fleetmeter rate: state.json: {message}; ")
