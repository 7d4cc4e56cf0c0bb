"""A file is read exactly as it is written, and a fault of its syntax is told with its place."""

from decimal import Decimal
from pathlib import Path

import pytest

from metering.cli import main
from metering.errors import InvalidValue
from metering.plan_document.file import parse_documents, read_document, read_plans

PLAN = """\
# A plan as people write it.
plan: iot-eu
currency: EUR
monthly_fee: 0.10
groups: {nordics: [SE, NO, DK, FI]}
zones:
  north: [nordics, 26201, +49]
default_zone: north
bands:
  peak:
    - {days: [mon], from: 08:00, to: 20:00}
meters:
  data:
    price: {amount: 0.10, per: 1 MB}
fees:
  - {name: line, amount: 2, from: 2026-01-01}
"""


def parsed(text: str) -> object:
    (document,) = parse_documents(text)
    return document


def refused(text: str | bytes, *, is_json: bool = False) -> InvalidValue:
    with pytest.raises(InvalidValue) as caught:
        parse_documents(text, is_json=is_json)
    return caught.value


def written(folder: Path, text: str, name: str = "plan.yaml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    "NO no on off Yes y 20:00 1:2:3 00101 0o17 0x1F 1_000 +49 2026-01-01 2026-01-01T00:00:00Z"
    " .5 5. .inf -.INF .nan = 1e".split(),
)
def test_what_yaml_1_1_took_for_something_else_is_text(text: str) -> None:
    assert parsed(f"value: {text}") == {"value": text}
    assert parsed(f"value: '{text}'") == {"value": text}
    assert parsed(f"{text}: 1") == {text: 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-5", -5),
        ("9007199254740993", 9007199254740993),
        ("0.10", Decimal("0.10")),
        ("-0.5", Decimal("-0.5")),
        ("1e3", Decimal("1E+3")),
        ("2.5E-3", Decimal("0.0025")),
        ("0.1000000000000000055511151231257827", Decimal("0.1000000000000000055511151231257827")),
        ("true", True),
        ("false", False),
        ("null", None),
    ],
)
def test_a_number_is_exact_in_yaml_and_in_json(text: str, value: object) -> None:
    for document in (
        parsed(f"value: {text}"),
        parsed(f'{{"value": {text}}}'),
        *parse_documents(f'{{"value": {text}}}', is_json=True),
    ):
        assert document == {"value": value}
        assert isinstance(document, dict)
        assert type(document["value"]) is type(value)
        assert str(document["value"]) == str(value)


def test_a_key_is_its_text() -> None:
    assert parsed("1: a\nNO: b\ntrue: c\n262: d\n0.10: e") == {
        "1": "a",
        "NO": "b",
        "true": "c",
        "262": "d",
        "0.10": "e",
    }


def test_a_merge_key_is_a_key_like_any_other() -> None:
    assert parsed("a: &a {x: 1}\nb: {<<: *a}") == {"a": {"x": 1}, "b": {"<<": {"x": 1}}}


def test_an_alias_stands_for_what_it_names() -> None:
    assert parsed("a: &days [mon, tue]\nb: *days") == {"a": ["mon", "tue"], "b": ["mon", "tue"]}


def test_json_that_is_no_yaml_is_read() -> None:
    assert parsed('{\n\t"a": "\\ud83d\\ude00",\n\t"b": 1\n}') == {"a": "\U0001f600", "b": 1}
    assert parsed("{a: 1, b: two}") == {"a": 1, "b": "two"}


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert parse_documents("\ufeffa: 1".encode()) == [{"a": 1}]
    assert parse_documents('\ufeff{"a": 1}'.encode(), is_json=True) == [{"a": 1}]


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        ("a: 1\na: 2", "a", "stands twice (lines 1 and 2)"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "a.b", "stands twice (lines 2 and 4)"),
        ("a: [{b: 1, 'b': 2}]", "a.0.b", "stands twice"),
        ('{"a": {"b": 1, "b": 2}}', "b", "stands twice in one object"),
        ("a: [1\nb: 2", "line 2, column 2", "is no YAML: expected ',' or ']'"),
        ("a:\n\t- b", "line 2, column 1", "is no YAML: found character '\\t'"),
        ("a: b: c", "line 1, column 5", "is no YAML: mapping values are not allowed"),
        ("a: *x", "line 1, column 4", "is no YAML: found undefined alias"),
        ("a: 'x", "line 1, column 6", "is no YAML: found unexpected end of stream"),
        ("a: \x07", "line 1", "holds a character that YAML does not allow"),
        ("a: 1\nb: &x [*x]", "b.0", "holds itself (line 2, column 4)"),
        ("? [a]\n: b", "document", "a key is no text (line 1, column 3)"),
        ("a: !!python/name:os.system ''", "a", "the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("a: !!binary aGk=", "a", "the tag 'tag:yaml.org,2002:binary' is not read"),
        ("a: !own {b: 1}", "a", "the tag '!own' is not read"),
        ("a: !!set {b}", "a", "the tag 'tag:yaml.org,2002:set' is not read"),
        ("a: !!int 00101", "a", "'00101' is no number"),
        ("a: 1e999999999", "a", "is too large or small"),
        ("a: " + "9" * 5000, "a", "is too long"),
        ('{"a": 1e999999999}', "document", "is too large or small"),
        ('{"a": NaN}', "document", "NaN is no number"),
        ('{"a": -Infinity}', "document", "-Infinity is no number"),
        ("[" * 100_000, "document", "is nested too deeply"),
        ('a: "\\ud800"', "document", "an escape is half a character"),
        ('{"\\ud800": 1}', "document", "an escape is half a character"),
        ("", "document", "the file is empty"),
        ("# nothing\n---\n", "document", "the file is empty"),
    ],
)
def test_what_cannot_be_read_says_where_and_why(text: str, field: str, problem: str) -> None:
    error = refused(text)
    assert error.field == field
    assert problem in error.problem
    assert error.fix


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        ('{"a": 1,}', "line 1, column 9", "is no JSON: expecting property name"),
        ('{\n  "a": 01}', "line 2, column 9", "is no JSON"),
        ("a: 1", "line 1, column 1", "is no JSON: expecting value"),
        ('{"a": ' + "9" * 5000 + "}", "document", "is too long"),
        ("[" * 100_000, "document", "is nested too deeply"),
    ],
)
def test_a_json_file_is_json(text: str, field: str, problem: str) -> None:
    error = refused(text, is_json=True)
    assert error.field == field
    assert problem in error.problem


def test_what_is_not_utf_8_is_told_by_its_line() -> None:
    error = refused(b"a: 1\nb: \xff")
    assert (error.field, error.problem) == ("line 2", "is not UTF-8")


def test_aliases_that_stand_for_billions_of_values_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        ten = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{ten}]")
    error = refused("\n".join(lines))
    assert error.problem == "aliases stand for more than 10000 values"


def test_a_file_without_aliases_may_be_long() -> None:
    text = "\n".join(f"d{number}: {{plan: a}}" for number in range(10_001))
    document = parsed(text)
    assert isinstance(document, dict)
    assert len(document) == 10_001


# Files


def test_a_plan_is_read_from_a_file(tmp_path: Path) -> None:
    (plan,) = read_plans(written(tmp_path, PLAN))
    assert plan.monthly_fee == "0.10"
    assert plan.groups["nordics"] == ["SE", "NO", "DK", "FI"]
    assert plan.zones["north"] == ["nordics", "26201", "+49"]
    assert (plan.bands["peak"][0].begins, plan.bands["peak"][0].ends) == ("08:00", "20:00")
    assert plan.fees[0].first_day == "2026-01-01"


def test_a_file_may_hold_several_plans(tmp_path: Path) -> None:
    second = PLAN.replace("iot-eu", "iot-us")
    plans = read_plans(written(tmp_path, f"---\n{PLAN}---\n{second}---\n"))
    assert [plan.plan for plan in plans] == ["iot-eu", "iot-us"]
    with pytest.raises(InvalidValue, match="'iot-eu' is the id of two plans"):
        read_plans(written(tmp_path, f"{PLAN}---\n{PLAN}"))


def test_a_document_is_read_from_a_file(tmp_path: Path) -> None:
    assert read_document(written(tmp_path, "devices: {00101: {}}")) == {"devices": {"00101": {}}}
    assert read_document(written(tmp_path, '{"a": 0.1}', "a.json")) == {"a": Decimal("0.1")}
    with pytest.raises(InvalidValue, match="holds 2 documents"):
        read_document(written(tmp_path, "a: 1\n---\nb: 1"))
    with pytest.raises(InvalidValue, match="cannot be read: No such file"):
        read_document(tmp_path / "none.yaml")


def test_check_tells_what_a_plan_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, PLAN)
    assert main(["plan", "check", str(path)]) == 0
    output = capsys.readouterr()
    # 0.10 / 1 000 000 = 1 / 10 000 000
    assert output.out.splitlines() == [
        f"{path}: plan 'iot-eu': fine",
        "  data, by the octet: per unit",
        "  fees: monthly_fee, line",
        "  1 EUR is 10000000 sub-units",
    ]
    assert output.err == ""


def test_check_tells_all_errors_of_all_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty = written(tmp_path, PLAN.replace("1 MB", "1 Mb").replace("EUR", "EURO"), "faulty.yaml")
    broken = written(tmp_path, "a: [", "broken.yaml")
    two = written(tmp_path, f"{PLAN}---\nplan: x\n", "two.yaml")
    same = written(tmp_path, f"{PLAN}---\n{PLAN}", "same.yaml")
    assert main(["plan", "check", *map(str, (faulty, broken, two, same))]) == 1
    output = capsys.readouterr()
    cause = "expected the node content, but found '<stream end>'"
    known = "octet, B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB, thousand, million, billion"
    assert output.err.splitlines() == [
        f"{faulty}: meters.data.price.per: '1 Mb' is not a quantity; use a number and one of: {known}",
        f"{faulty}: currency: 'EURO' is no ISO 4217 currency; use a code such as 'EUR'",
        f"{broken}: line 1, column 5: is no YAML: {cause}; mend the syntax",
        f"{two}: document 2: currency: is missing; add it: ISO 4217, such as EUR",
        f"{same}: plan: 'iot-eu' is the id of two plans; give each its own",
    ]
    assert [line for line in output.out.splitlines() if not line.startswith(" ")] == [
        f"{two}: plan 'iot-eu': fine",
        f"{same}: plan 'iot-eu': fine",
        f"{same}: plan 'iot-eu': fine",
    ]


def test_check_tells_the_shapes_of_prices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """\
plan: p
currency: EUR
zones: {home: [DE], far: [world]}
meters:
  data:
    allowance: 1 MB
    price: {model: graduated, tiers: [{up_to: 5, amount: 2}, {amount: 1}]}
    variants:
      - {zones: [home], price: {model: volume, tiers: [{flat: 1}]}}
      - {zones: [far], price: {model: package, amount: 1, size: 1 MB}}
adjustments: [{type: credit, amount: 1}]
"""
    assert main(["plan", "check", str(written(tmp_path, text))]) == 0
    shapes = ["volume in 1 tier (variant 0)", "package (variant 1)", "graduated in 2 tiers"]
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"  data, by the octet: {', '.join(shapes)}; allowances: allowance",
        "  adjustments: credit",
        "  1 EUR is 100 sub-units",
    ]
