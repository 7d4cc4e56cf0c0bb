"""A usage file: what a line may hold, what is told of one that is not right, and how a file is read."""

import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from metering.cli import main
from metering.errors import InvalidValue
from metering.plan_document import read_plan, terms_of
from metering.usage import QUANTITY_MAX
from metering.whatif.usage_file import MeterUnits, UsageFile, read_instant, read_usage

PLAN = {
    "plan": "p",
    "currency": "EUR",
    "meters": {
        "data": {"price": {"amount": "0.10", "per": "1 MB"}},
        "voice": {"price": {"amount": "0.06", "per": "1 min"}},
        "energy": {"unit": "kWh", "decimals": 3, "price": {"amount": "0.30"}},
    },
}
_TERMS = terms_of(read_plan(PLAN))
UNITS = {
    name: MeterUnits(terms=meter, octet_multiple=1000) for name, meter in _TERMS.meters.items()
}
SOUND: dict[str, Any] = {"device": "d1", "meter": "data", "quantity": 1, "time": "2026-01-05"}


def read(*lines: str | dict[str, Any]) -> UsageFile:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return read_usage(texts, meters=UNITS, time_zone="Europe/Berlin", default_time=None)


def changed(**changes: object) -> dict[str, Any]:
    """Return a sound line with some fields changed; None takes one away."""
    return {name: value for name, value in (SOUND | changes).items() if value is not None}


def told(line: str | dict[str, Any]) -> str:
    """Return what is told of a bad line."""
    [rejected] = read(line).rejected
    return f"{rejected.field}: {rejected.problem}; {rejected.fix}"


TO_MAX = {"uplink": QUANTITY_MAX, "downlink": 1}
NO_COUNTRY = "write its two letters (ISO 3166), such as DE"
NO_NETWORK = "write MCC and MNC, 5 or 6 digits, or the 3 of the MCC alone"
NO_TIME = "is no time; write it like 2026-01-31T12:00:00Z"
OUT_OF_RANGE = "is out of range; use a time of the years 1970 to 9000"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"country": "UK"}, f"country: 'UK' is no country; {NO_COUNTRY}"),
        ({"country": "DEU"}, f"country: 'DEU' is no country; {NO_COUNTRY}"),
        ({"country": "Germany"}, f"country: 'Germany' is no country; {NO_COUNTRY}"),
        ({"network": "2620"}, f"network: '2620' is no network; {NO_NETWORK}"),
        ({"network": "262-01"}, f"network: '262-01' is no network; {NO_NETWORK}"),
        ({"network": 2620123}, f"network: '2620123' is no network; {NO_NETWORK}"),
        ({"network": "٢٦٢"}, f"network: '٢٦٢' is no network; {NO_NETWORK}"),
        (
            {"start": "2026-01-05", "end": "2026-01-06"},
            "time: stands beside start or end; give start and end, or time",
        ),
        ({"start": "2026-01-05"}, "time: stands beside start or end; give start and end, or time"),
        ({"end": "2026-01-05"}, "time: stands beside start or end; give start and end, or time"),
        (
            {"time": None, "start": "2026-01-05"},
            "end: is missing beside start; give both, or time",
        ),
        ({"time": None, "end": "2026-01-05"}, "start: is missing beside end; give both, or time"),
        (
            {"time": None, "start": "2026-01-06", "end": "2026-01-05"},
            "end: is before start; an interval ends after it begins",
        ),
        (
            {"rat": "LTE", "attributes": {"rat": "LTE"}},
            "rat: stands in attributes too; give it once",
        ),
        ({"apn": "a", "attributes": {"apn": "b"}}, "apn: stands in attributes too; give it once"),
        (
            {"quantity": None, **TO_MAX},
            f"uplink and downlink: is more than {QUANTITY_MAX} octets; send it in several readings",
        ),
        (
            {"quantity": QUANTITY_MAX + 1},
            f"quantity: is more than {QUANTITY_MAX} octets; send it in several readings",
        ),
        (
            {"quantity": "1.5"},
            "quantity: '1.5' is not a whole number of octets; use whole octets",
        ),
        (
            {"meter": "energy", "quantity": "9007199254740.992"},
            "quantity: is more than 9007199254740.991 kWhs; send it in several readings",
        ),
        (
            {"meter": "energy", "quantity": "0.0001"},
            "quantity: '0.0001' has more than 3 decimals of kWh; use fewer",
        ),
        ({"quantity": -1}, "quantity: '-1' is negative; use 0 or more; correct by a credit"),
        (
            {"quantity": True},
            'quantity: is not a quantity; use a whole number, or text such as "1.5 MB"',
        ),
        ({"device": "a\nb"}, "device: holds a control character; take it out"),
        ({"device": "a\u2028b"}, "device: holds a control character; take it out"),
        ({"device": "\x7f"}, "device: holds a control character; take it out"),
        ({"session": "\x00"}, "session: holds a control character; take it out"),
        ({"destination": "+49\x9b"}, "destination: holds a control character; take it out"),
        ({"attributes": {"a": "\t"}}, "attributes.a: holds a control character; take it out"),
        ({"attributes": {"\t": "a"}}, r"attributes.\t: holds a control character; take it out"),
        ({"attributes": {"": "a"}}, "attributes.: is empty; give it a value, or leave it out"),
        (
            {"device": "\ud800"},
            "device: holds half a character (a surrogate); write the character itself",
        ),
        ({"id": "\udfff"}, "id: holds half a character (a surrogate); write the character itself"),
        ({"device": ""}, "device: is empty; give it a value, or leave it out"),
        ({"device": "d" * 129}, "device: has more than 128 characters; shorten it"),
        ({"device": True}, "device: is not text; write text; a number in quotes is text"),
        ({"device": 1.5}, "device: is not text; write text; a number in quotes is text"),
        ({"meter": 7}, "meter: is not text; write text; a number in quotes is text"),
        ({"\x1b[0m": 1}, r"\x1b[0m: is no field here; see docs/rate.md for what a line may hold"),
        ({"packets": -1}, "packets: is too small; use 0 or more"),
        ({"packets": "3"}, "packets: is not a whole number; write a whole number"),
        (
            {"quantity\ud800": 1},
            "line: holds half a character (a surrogate); write the character itself",
        ),
        ({"time": "2026-W02-1"}, f"time: '2026-W02-1' {NO_TIME}"),
        ({"time": "2026W021"}, f"time: '2026W021' {NO_TIME}"),
        ({"time": "20260105"}, f"time: '20260105' {NO_TIME}"),
        ({"time": "2026-01-05T10"}, f"time: '2026-01-05T10' {NO_TIME}"),
        ({"time": "2026-01-05x10:00"}, f"time: '2026-01-05x10:00' {NO_TIME}"),
        ({"time": "2026-01-05T10:00:00+01:00:30"}, f"time: '2026-01-05T10:00:00+01:00:30' {NO_TIME}"),
        ({"time": "2026-02-30"}, f"time: '2026-02-30' {NO_TIME}"),
        ({"time": "2026-01-05T24:00"}, f"time: '2026-01-05T24:00' {NO_TIME}"),
        ({"time": "\ud800"}, rf"time: '\ud800' {NO_TIME}"),
        ({"time": "x" * 100}, f"time: '{'x' * 60}…' {NO_TIME}"),
        ({"time": "1969-12-31T23:59:59Z"}, f"time: '1969-12-31T23:59:59Z' {OUT_OF_RANGE}"),
        ({"time": "0001-01-01"}, f"time: '0001-01-01' {OUT_OF_RANGE}"),
        ({"time": "9001-01-01"}, f"time: '9001-01-01' {OUT_OF_RANGE}"),
        ({"time": "9999-12-31T23:59:59-23:59"}, f"time: '9999-12-31T23:59:59-23:59' {OUT_OF_RANGE}"),
    ],
)  # fmt: skip
def test_what_is_told_of_a_bad_line(changes: dict[str, Any], message: str) -> None:
    assert told(changed(**changes)) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7", "line: is not an object with fields; see docs/rate.md for what a line may hold"),
        ('{"device": "d1", "device": "d2"}', "device: stands twice; give each field once"),
        ('{"\\n": 1, "\\n": 2}', r"\n: stands twice; give each field once"),
        ('{"packets": ' + "9" * 5000 + "}", "line: holds a number of too many digits; use fewer"),
        ("[" * 100_000, "line: is nested too deeply; write one JSON object"),
    ],
)
def test_what_is_told_of_a_line_that_is_no_object(line: str, message: str) -> None:
    assert told(line) == message


@pytest.mark.parametrize(
    "changes",
    [
        {"country": "DE"},
        {"country": "de"},
        {"country": "XK"},
        {"network": "262"},
        {"network": "26201"},
        {"network": "310410"},
        {"network": 26201},
        {"device": 17, "session": 1, "zone": 26201, "destination": 4930, "id": 5},
        {"attributes": {"class": 3}, "rat": 4, "apn": "iot"},
        {"device": "Zähler 1 – 電"},
        {"country": None, "network": None, "id": None},
        {"quantity": None, "uplink": QUANTITY_MAX - 1, "downlink": 1},
        {"time": None, "start": "2026-01-05", "end": "2026-01-05"},
    ],
)
def test_what_a_line_may_hold(changes: dict[str, Any]) -> None:
    line = json.dumps(SOUND | changes)
    assert read(line).rejected == []


def test_numbers_stand_for_their_digits() -> None:
    [line] = read(changed(device=17, network=26201, attributes={"class": 3}, rat=4)).lines
    assert line.device == "17"
    assert line.usage.network == "26201"
    assert line.usage.attributes == {"class": "3", "rat": "4"}


@pytest.mark.parametrize(
    ("written", "instant"),
    [
        ("2026-01-05", datetime(2026, 1, 4, 23, tzinfo=UTC)),
        ("2026-01-05T10:00", datetime(2026, 1, 5, 9, tzinfo=UTC)),
        ("2026-01-05 10:00:30", datetime(2026, 1, 5, 9, 0, 30, tzinfo=UTC)),
        ("2026-01-05t10:00:00z", datetime(2026, 1, 5, 10, tzinfo=UTC)),
        ("2026-01-05T10:00:00.25+01:00", datetime(2026, 1, 5, 9, 0, 0, 250_000, tzinfo=UTC)),
        ("2026-01-05T10:00:00,123456789Z", datetime(2026, 1, 5, 10, 0, 0, 123_456, tzinfo=UTC)),
        ("2026-01-05T10:00-0130", datetime(2026, 1, 5, 11, 30, tzinfo=UTC)),
        ("1970-01-01T00:00:00+14:00", datetime(1969, 12, 31, 10, tzinfo=UTC)),
        ("9000-12-31T23:59:59-12:00", datetime(9001, 1, 1, 11, 59, 59, tzinfo=UTC)),
    ],
)
def test_how_a_time_is_written(written: str, instant: datetime) -> None:
    assert read_instant(written, "Europe/Berlin", "time") == instant


def test_the_first_and_last_years_are_rated(tmp_path: Path) -> None:
    for time in ("1970-01-01T00:00:00+14:00", "9000-12-31T23:59:59-12:00"):
        code, printed, _ = rated(tmp_path, json.dumps(SOUND | {"time": time}), "--json")
        assert code == 0
        assert len(json.loads(printed)["periods"]) == 1


@pytest.mark.parametrize("option", ["--from", "--to"])
@pytest.mark.parametrize(
    ("time", "problem"), [("9999-12-31", OUT_OF_RANGE), ("2026-W01-1", NO_TIME)]
)
def test_times_of_options_are_checked_too(option: str, time: str, problem: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        read_instant(time, "UTC", option)
    assert str(caught.value) == f"{option}: {time!r} {problem}"


# Files


def rated(
    folder: Path, usage: str | bytes, *options: str, plan: object = PLAN
) -> tuple[int, str, str]:
    """Rate a usage file; return the exit code and what stands on standard output and error."""
    (folder / "plan.json").write_text(json.dumps(plan), "utf-8")
    content = usage if isinstance(usage, bytes) else usage.encode()
    (folder / "usage.jsonl").write_bytes(content)
    return run("--plan", f"{folder}/plan.json", "--usage", f"{folder}/usage.jsonl", *options)


def run(*options: str) -> tuple[int, str, str]:
    printed, said = io.StringIO(), io.StringIO()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = printed, said
    try:
        code = main(["rate", *options])
    finally:
        sys.stdout, sys.stderr = before
    return code, printed.getvalue(), said.getvalue()


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    code, printed, _ = rated(tmp_path, b"\xef\xbb\xbf" + json.dumps(SOUND).encode(), "--json")
    assert code == 0
    assert json.loads(printed)["total"] == "0.00"


def test_standard_input_is_read_as_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rated(tmp_path, "")
    plan = f"{tmp_path}/plan.json"
    content = io.BytesIO(b"\xef\xbb\xbf" + json.dumps(SOUND).encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content))
    assert run("--plan", plan, "--usage", "-", "--json")[0] == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert run("--plan", plan, "--usage", "-") == (
        1,
        "",
        "fleetmeter rate: standard input: line 1: is not UTF-8; save the file as UTF-8\n",
    )


def test_a_file_that_cannot_be_read_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rated(tmp_path, json.dumps(SOUND))
    (tmp_path / "latin").write_bytes(b"\n{\xe9}")
    (tmp_path / "state.yaml").write_text("{}", "utf-8")
    files = {"--plan": "plan.json", "--usage": "usage.jsonl", "--state": "state.yaml"}
    missing = "cannot be read: No such file or directory; name a file that can be"
    folder = "cannot be read: Is a directory; name a file that can be"
    for option in files:
        for name, problem in (("no", missing), (".", folder), ("./no", missing)):
            given = [word for pair in (files | {option: name}).items() for word in pair]
            shown = name if option == "--usage" else name.removeprefix("./")
            assert run(*given) == (1, "", f"fleetmeter rate: {shown}: {problem}\n")
        given = [word for pair in (files | {option: "latin"}).items() for word in pair]
        assert run(*given) == (
            1,
            "",
            "fleetmeter rate: latin: line 2: is not UTF-8; save the file as UTF-8\n",
        )


@pytest.mark.parametrize(
    ("usage", "line"),
    [
        ("", None),
        ("\n \n", None),
        ("{}", (1, "device", "is missing", "see docs/rate.md for what a line may hold")),
        ('\n{"device": "d1", "meter": "data", "quantity": 1}',
         (2, "time", "is missing", "say when it was used, or give the command --from")),
    ],
)  # fmt: skip
def test_where_no_line_is_sound_the_lines_are_told_without_periods(
    usage: str, line: tuple[int, str, str, str] | None, tmp_path: Path
) -> None:
    hint = (
        f"{tmp_path}/usage.jsonl: holds nothing that tells which periods;"
        " correct it, or give --from\n"
    )
    code, printed, said = rated(tmp_path, usage, "--json", "--to", "2026-02-01")
    assert code == 1
    answer = json.loads(printed)
    assert answer["periods"] == []
    assert (answer["total"], answer["due"], answer["outside"]) == ("0", "0", 0)
    names = ("line", "field", "problem", "fix")
    assert answer["rejected"] == ([] if line is None else [dict(zip(names, line, strict=True))])
    assert said.endswith(hint)
    code, printed, said = rated(tmp_path, usage)
    told = [] if line is None else [f"line {line[0]} is not rated: {line[1]}: {line[2]}; {line[3]}"]
    assert (code, said) == (1, hint)
    assert printed.splitlines() == ["total 0 EUR", *told]
    code, printed, said = rated(tmp_path, usage, "--from", "2026-01-01", "--json")
    assert (hint in said, len(json.loads(printed)["periods"])) == (False, 1)


def test_the_state_is_checked_where_no_line_is_sound(tmp_path: Path) -> None:
    state = tmp_path / "state.yaml"
    state.write_text("devices: {d1: {plan: q}}", "utf-8")
    _, _, said = rated(tmp_path, "", "--state", str(state))
    assert (
        said == f"fleetmeter rate: {state}: devices.d1.plans.0.plan: 'q' is no plan; use one of p\n"
    )
    state.write_text("devices: {d1: {to: 2026-03-01, states: [{state: active}]}}", "utf-8")
    assert rated(tmp_path, "", "--state", str(state))[0] == 1
