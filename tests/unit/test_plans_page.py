"""docs/plans.md, rate.md and bill.md say what the code does: each example is run, each figure compared.

A fenced block with a file's name (`yaml plan.yaml`) is that file, until the next heading. A `console`
block holds commands and what they print. A table whose first column is `with` changes the example
above it, one row at a time, and says what comes of it. `a × b = c` in code is reckoned.
"""

import dataclasses
import io
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from metering.billing import document as billed
from metering.cli import main
from metering.plan_document import SUBUNIT_PRICE_MAX, SUBUNITS_PER_UNIT_MAX
from metering.plan_document.file import parse_documents
from metering.plan_document.schema import plan_schema
from metering.units import MULTIPLES, NUMBER_WORDS
from metering.usage import QUANTITY_MAX
from metering.whatif import account_file, state_file, usage_file

DOCS = Path(__file__).parents[2] / "docs"
PLANS, RATE = (DOCS / "plans.md").read_text("utf-8"), (DOCS / "rate.md").read_text("utf-8")
BILL = (DOCS / "bill.md").read_text("utf-8")
README = (DOCS.parent / "README.md").read_text("utf-8")
SCHEMA: dict[str, Any] = plan_schema()

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,4} (?P<title>.+)$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")
_SUM = re.compile(r"[0-9 .×+−/()⌈⌉=≈]+")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is (or none), and its text."""

    language: str
    file: str
    text: str


@dataclass(frozen=True)
class Section:
    """What stands under one heading: blocks and tables (rows of cells), in their order."""

    page: str
    title: str
    content: Sequence[Block | list[list[str]]]

    @property
    def blocks(self) -> list[Block]:
        return [each for each in self.content if isinstance(each, Block)]

    @property
    def tables(self) -> list[list[list[str]]]:
        return [each for each in self.content if not isinstance(each, Block)]


def sections(page: str, text: str) -> list[Section]:
    """Return a page's sections; a heading inside a fenced block is none."""
    hidden = _FENCE.sub(lambda found: "\n" * found.group().count("\n"), text)
    lines, bare = text.split("\n"), hidden.split("\n")
    starts = [number for number, line in enumerate(bare) if _HEADING.match(line)]
    found: list[Section] = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        body = "\n".join(lines[start + 1 : end])
        found.append(Section(page, lines[start].lstrip("# "), list(_content(body))))
    return found


def _content(body: str) -> Iterator[Block | list[list[str]]]:
    position = 0
    for fence in _FENCE.finditer(body):
        yield from _tables(body[position : fence.start()])
        language, _, file = fence["info"].partition(" ")
        yield Block(language, file, fence["body"])
        position = fence.end()
    yield from _tables(body[position:])


def _tables(text: str) -> Iterator[list[list[str]]]:
    rows: list[list[str]] = []
    for line in [*text.split("\n"), ""]:
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            rows.append([cell.strip().replace("\\|", "|") for cell in cells])
        elif rows:
            yield [rows[0], *rows[2:]]
            rows = []


PAGES = {"plans": PLANS, "rate": RATE, "bill": BILL}
ALL_SECTIONS = [
    section
    for page, text in [*PAGES.items(), ("README", README)]
    for section in sections(page, text)
]
_COMMANDS = ("fleetmeter plan", "fleetmeter rate", "fleetmeter bill")
EXAMPLES = [
    each
    for each in ALL_SECTIONS
    if any(command in block.text for block in each.blocks for command in _COMMANDS)
    or any(table[0][0] == "with" for table in each.tables)
]


def run(arguments: Sequence[str]) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it prints, as a terminal shows it."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = main(arguments)
    return code, printed.getvalue()


def commands(block: Block) -> list[tuple[str, str]]:
    """Return each command of a console block, and what stands below it."""
    found: list[tuple[str, str]] = []
    for line in block.text.split("\n"):
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            command, shown = found[-1]
            found[-1] = (command, shown + line + "\n")
    return found


def tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().split("\n"))


def outputs(block: Block) -> Iterator[tuple[str, str, str]]:
    """Run a console block: yield each command, what is shown, and what it prints."""
    code = 0
    for command, shown in commands(block):
        if command == "echo $?":
            printed = str(code)
        else:
            words = shlex.split(command)
            assert words[0] == "fleetmeter", command
            code, printed = run(words[1:])
        yield command, tidy(shown), tidy(printed)


def files_of(section: Section, folder: Path) -> Iterator[Block | list[list[str]]]:
    """Yield a section's consoles and tables, the files before each written."""
    for each in section.content:
        if isinstance(each, Block) and each.file:
            (folder / each.file).write_text(each.text, "utf-8")
        elif not isinstance(each, Block) or each.language == "console":
            yield each


@pytest.mark.parametrize("section", EXAMPLES, ids=lambda each: f"{each.page}: {each.title}")
def test_an_example_prints_what_the_page_shows(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for each in files_of(section, tmp_path):
        if isinstance(each, Block):
            for command, shown, printed in outputs(each):
                assert printed == shown, command


def plan_files(section: Section) -> list[Block]:
    return [each for each in section.blocks if each.file.startswith("plan")]


@pytest.mark.parametrize(
    "section",
    [each for each in ALL_SECTIONS if plan_files(each)],
    ids=lambda each: f"{each.page}: {each.title}",
)
def test_a_plan_is_whole_rated_and_fits_the_schema(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    consoles = "".join(each.text for each in section.blocks if each.language == "console")
    for each in plan_files(section):
        Path(each.file).write_text(each.text, "utf-8")
        assert run(["plan", "check", each.file])[0] == 0
        assert f"--plan {each.file}" in consoles
        for document in parse_documents(each.text, is_json=each.file.endswith(".json")):
            Draft202012Validator(SCHEMA).validate(document)


def test_every_block_of_yaml_or_json_is_a_file_of_an_example() -> None:
    for section in ALL_SECTIONS:
        if section.page == "README":
            continue
        consoles = "".join(each.text for each in section.blocks if each.language == "console")
        for each in section.blocks:
            if each.language in {"yaml", "json"}:
                assert each.file
                assert each.file in consoles, (section.title, each.file)


def anchors(page: str) -> set[str]:
    """Return what links to a page's headings may say, as forges make them."""
    found: list[str] = []
    for section in ALL_SECTIONS:
        if section.page == page:
            bare = re.sub(r"[^a-z0-9 _-]", "", section.title.lower()).replace(" ", "-")
            number = found.count(bare)
            found += [bare, f"{bare}-{number}"] if number else [bare]
    return set(found)


@pytest.mark.parametrize(("page", "text"), PAGES.items())
def test_a_link_leads_somewhere(page: str, text: str) -> None:
    for file, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", _FENCE.sub("", text)):
        if file:
            assert (DOCS / file).exists(), file
        if anchor:
            assert anchor in anchors(file.removesuffix(".md") or page), anchor


# Tables that change an example


def put(document: dict[str, Any], path: str, value: object) -> None:
    """Set the value at a dotted path; a list grows by one at most."""
    *parents, last = path.split(".")
    place: Any = document
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
    if isinstance(place, list):
        place[int(last) : int(last) + 1] = [value]
    else:
        place[last] = value


_IN_STATE = {"fleet", "devices", "buckets", "counted"}


def with_changes(cell: str, plan: dict[str, Any], state: dict[str, Any]) -> None:
    """Apply what a table's first cell says to a plan and a state; `nothing` changes nothing."""
    for code in _CODE.findall(cell):
        [change] = parse_documents(code)
        assert isinstance(change, dict), code
        for path, value in change.items():
            put(state if path.split(".")[0] in _IN_STATE else plan, path, value)


def _results(answer: dict[str, Any]) -> dict[str, str]:
    """Return what a table's columns may ask of an answer."""
    periods = answer["periods"]
    records = [each for period in periods for each in period["records"]]
    lines = [each for period in periods for each in period["lines"]]

    def of(key: str, rows: Sequence[Mapping[str, Any]]) -> str:
        return ", ".join(str(each[key]) for each in rows)

    return {
        "total": answer["total"],
        "totals": of("total", periods),
        "exact": of("exact", periods),
        "billed": of("billed", records),
        "allowance": of("from_allowance", records),
        "pool": of("from_pool", records),
        "priced": of("priced", records),
        "amounts": of("amount", records),
        "rounded": of("rounded", records),
        "variants": of("variant", records),
        "zones": of("zone", records),
        "bands": of("band", records),
        "lines": of("amount", lines),
        "drawn from": ", ".join(
            "+".join(each["bucket"] for each in record["buckets"]) or "—" for record in records
        ),
    }


def answered(
    command: str, plan: dict[str, Any], state: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Run a section's `fleetmeter rate` with another plan and state; return its JSON."""
    words = shlex.split(command)[1:]
    for option, document in (("--plan", plan), ("--state", state)):
        if option in words:
            changed = folder / f"changed{option}.json"
            changed.write_text(json.dumps(document, default=str), "utf-8")
            words[words.index(option) + 1] = str(changed)
    code, printed = run([*words, "--json"])
    assert code == 0, printed
    answer: dict[str, Any] = json.loads(printed)
    return answer


def compared(section: Section, folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Yield each row of a section's tables of changes, and its cells as they come out."""
    command = ""
    for each in files_of(section, folder):
        if isinstance(each, Block):
            command = next(
                (line for line, _ in commands(each) if line.startswith("fleetmeter rate")), command
            )
            continue
        heads, *rows = each
        if heads[0] != "with":
            continue
        for row in rows:
            plan, state = (
                parse_documents((folder / file).read_text("utf-8"))[0]
                if (folder / file).exists()
                else {}
                for file in ("plan.yaml", "state.yaml")
            )
            assert isinstance(plan, dict)
            assert isinstance(state, dict)
            with_changes(row[0], plan, state)
            if "periods" not in heads:
                results = _results(answered(command, plan, state, folder))
                yield row, [row[0], *(results[head] for head in heads[1:])]


@pytest.mark.parametrize(
    "section",
    [each for each in ALL_SECTIONS if any(table[0][0] == "with" for table in each.tables)],
    ids=lambda each: f"{each.page}: {each.title}",
)
def test_a_change_to_an_example_comes_to_what_its_row_says(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for stated, found in compared(section, tmp_path):
        assert stated == found


# Sentences of price lists

_RECIPES = [
    row
    for section in ALL_SECTIONS
    for table in section.tables
    if table[0][0] == "a price list says"
    for row in table[1:]
]
_PLAN_FIELDS = SCHEMA["properties"]


def recipe_cost(meter: str, written: str, used: str, folder: Path) -> str:
    """Return what usage costs under a plan of one meter and what a recipe writes."""
    plan: dict[str, Any] = {
        "plan": "recipe",
        "currency": "EUR",
        "meters": {meter: {"price": {"amount": "0"}}},
    }
    for code in _CODE.findall(written):
        [fragment] = parse_documents(code)
        assert isinstance(fragment, dict), code
        for field, value in fragment.items():
            place = plan if field in _PLAN_FIELDS else plan["meters"][meter]
            place[field] = value
    (folder / "plan.json").write_text(json.dumps(plan, default=str), "utf-8")
    lines = []
    for number, each in enumerate(used.strip("`").split(", ")):
        device, _, quantity = each.rpartition(": ")
        lines.append(
            {
                "device": device or "d1",
                "meter": meter,
                "quantity": int(quantity) if quantity.isdigit() else quantity,
                "time": f"2026-01-05T10:00:{number:02}Z",
            }
        )
    text = "\n".join(json.dumps(each) for each in lines)
    (folder / "usage.jsonl").write_text(text, "utf-8")
    code, printed = run(
        ["rate", "--plan", f"{folder}/plan.json", "--usage", f"{folder}/usage.jsonl", "--json"]
    )
    assert code == 0, printed
    return str(json.loads(printed)["total"])


@pytest.mark.parametrize("row", _RECIPES, ids=lambda row: row[0])
def test_a_recipe_costs_what_its_row_says(row: list[str], tmp_path: Path) -> None:
    _, meter, written, used, costs = row
    assert recipe_cost(meter, written, used, tmp_path) == costs


# Arithmetic


def reckoned(text: str) -> Fraction:
    """Return what an expression of numbers comes to, exactly."""
    text = re.sub(r"(?<=\d) (?=\d)", "", text).replace("×", "*").replace("−", "-")
    text = text.replace("⌈", "ceil(").replace("⌉", ")")
    exact = re.sub(r"\d+(\.\d+)?", lambda number: f"Fraction('{number.group()}')", text)
    names = {"Fraction": Fraction, "ceil": lambda value: Fraction(math.ceil(value))}
    return Fraction(eval(exact, {"__builtins__": {}}, names))  # noqa: S307 - digits and signs


SUMS = [
    code
    for text in PAGES.values()
    for code in _CODE.findall(_FENCE.sub("", text))
    if _SUM.fullmatch(code) and re.search("[=≈]", code) and re.search("[×+−/]", code)
]


@pytest.mark.parametrize("code", SUMS)
def test_a_sum_is_right(code: str) -> None:
    exact, about, told = code.partition("≈")
    values = [reckoned(each) for each in exact.split("=")]
    assert all(value == values[0] for value in values)
    if about:
        told = told.replace(" ", "")
        digits = len(told.partition(".")[2])
        assert abs(reckoned(told) - values[0]) <= Fraction(1, 2 * 10**digits)


# Tables of fields

Fields = dict[str, tuple[str, str, str]]
"""Name → type, default and meaning."""


def reference(page: str, title: str) -> Fields:
    """Return the table of fields under a heading."""
    under_it = [each for each in ALL_SECTIONS if (each.page, each.title) == (page, title)]
    found: Fields = {}
    for table in chain.from_iterable(each.tables for each in under_it):
        if table[0] != ["field", "type", "default", "meaning"]:
            continue
        for names, kind, default, meaning in table[1:]:
            for name in _CODE.findall(names):
                assert name not in found, name
                found[name] = (kind, default, meaning)
    return found


def definition(name: str) -> dict[str, Any]:
    return SCHEMA if name == "PlanDocument" else dict(SCHEMA["$defs"][name])


PLAN_TABLES = {
    "Plan": ["PlanDocument"],
    "Meter": ["MeterDocument"],
    "Price": [
        "PerUnitPriceDocument",
        "GraduatedPriceDocument",
        "VolumePriceDocument",
        "StairStepPriceDocument",
        "PackagePriceDocument",
    ],
    "Tier": ["TierDocument"],
    "Increment": ["IncrementDocument"],
    "Overhead": ["OverheadDocument"],
    "Variant": ["VariantDocument"],
    "Allowance": ["AllowanceDocument"],
    "Rollover": ["RolloverDocument"],
    "Fee": ["FeeDocument"],
    "Adjustment": [
        "PercentageDiscountDocument",
        "FixedDiscountDocument",
        "CreditDocument",
        "CommitmentDocument",
        "MaximumDocument",
    ],
    "Window of a band": ["WindowDocument"],
    "Plan changes": ["PlanChangesDocument"],
    "Rounding of amounts": ["RoundingDocument"],
}


def test_every_object_of_the_schema_has_a_table() -> None:
    told = {name for names in PLAN_TABLES.values() for name in names}
    objects = {name for name, each in SCHEMA["$defs"].items() if "properties" in each}
    assert told == objects | {"PlanDocument"}


def choices(schema: object) -> set[str]:
    """Return every text that a field of the schema may be, of those that it lists."""
    if isinstance(schema, list):
        return set[str]().union(*map(choices, schema))
    if not isinstance(schema, dict):
        return set()
    found = {str(each) for each in [*schema.get("enum", ()), *filter(None, [schema.get("const")])]}
    for key, value in schema.items():
        if key == "$ref":
            referred = SCHEMA["$defs"][value.rsplit("/", 1)[-1]]
            if "properties" not in referred:
                found |= choices(referred)
        elif key not in {"enum", "const", "default"}:
            found |= choices(value)
    return found


@pytest.mark.parametrize("title", PLAN_TABLES)
def test_a_table_tells_every_field_with_its_default_and_choices(title: str) -> None:
    told = reference("plans", title)
    fields: dict[str, list[dict[str, Any]]] = {}
    required: dict[str, set[bool]] = {}
    for name in PLAN_TABLES[title]:
        model = definition(name)
        for field, schema in model["properties"].items():
            fields.setdefault(field, []).append(schema)
            required.setdefault(field, set()).add(field in model.get("required", ()))
    assert set(told) == set(fields)
    for field, (kind, default, _) in told.items():
        missing = choices(fields[field]) - set(_CODE.findall(kind))
        assert not missing, field
        given = {json.dumps(each["default"]) for each in fields[field] if "default" in each}
        if required[field] == {True}:
            assert default == "required", field
        elif len(given) == 1 and (stated := json.loads(given.pop())) not in ([], {}):
            assert default == ("see there" if isinstance(stated, dict) else _default(stated)), field
        else:
            assert "`" not in default or field == "model", field


def _default(stated: object) -> str:
    if isinstance(stated, list):
        return f"`[{', '.join(map(str, stated))}]`"
    return f"`{stated}`" if isinstance(stated, str) else f"`{json.dumps(stated)}`"


def test_the_page_tells_the_limits_and_the_units() -> None:
    assert f"{QUANTITY_MAX:,}".replace(",", " ") in PLANS
    assert math.log10(SUBUNITS_PER_UNIT_MAX) == 18
    assert math.log10(SUBUNIT_PRICE_MAX) == 20
    assert "10^-18" in PLANS
    assert "10^20" in PLANS
    codes = set(_CODE.findall(_FENCE.sub("", PLANS)))
    assert {unit for units in MULTIPLES.values() for unit in units} | set(NUMBER_WORDS) <= codes


MODELS: dict[str, type[BaseModel]] = {
    "Usage lines": usage_file.UsageLineDocument,
    "State file": state_file.StateDocument,
    "Fleet": state_file.FleetDocument,
    "Device": state_file.DeviceDocument,
    "Plan of a device": state_file.AssignedPlanDocument,
    "State of a device": state_file.DatedStateDocument,
    "Coupon": state_file.CouponDocument,
    "Bucket": state_file.BucketDocument,
    "Counted": state_file.CountedDocument,
}


BILL_MODELS: dict[str, type[BaseModel]] = {
    "Account file": account_file.AccountDocument,
    "Seller": account_file.SellerDocument,
    "Buyer": account_file.BuyerDocument,
    "Address": account_file.AddressDocument,
    "Bank account": account_file.BankDocument,
    "Tax rules": account_file.TaxDocument,
    "Tax rule": account_file.TaxRuleDocument,
    "Adjustment": account_file.AdjustmentDocument,
    "Earlier period": account_file.EarlierPeriodDocument,
    "Number": account_file.NumberDocument,
}
_OF_A_STATE = state_file.StateDocument.model_fields.keys()


@pytest.mark.parametrize(
    ("page", "title", "model"),
    [
        *(("rate", title, model) for title, model in MODELS.items()),
        *(("bill", title, model) for title, model in BILL_MODELS.items()),
    ],
)
def test_a_table_tells_every_field_of_a_file(page: str, title: str, model: type[BaseModel]) -> None:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if page == "bill":
        fields = {name: field for name, field in fields.items() if name not in _OF_A_STATE}
    told = reference(page, title)
    assert set(told) == set(fields)
    for name, (_, default, _) in told.items():
        assert (default == "required") == fields[name].is_required(), name


DOCUMENT_TABLES: dict[str, type] = {
    "The document": billed.Document,
    "Line of a document": billed.DocumentLine,
    "Tax total": billed.TaxTotal,
    "Totals": billed.Totals,
    "Period of a document": billed.SupplyPeriod,
    "Party": billed.Party,
}


@pytest.mark.parametrize("title", DOCUMENT_TABLES)
def test_a_table_tells_every_field_of_a_document(title: str) -> None:
    fields = {each.name: each.default for each in dataclasses.fields(DOCUMENT_TABLES[title])}
    if title == "The document":
        fields["form"] = dataclasses.MISSING
    told = reference("bill", title)
    assert set(told) == set(fields)
    for name, (_, default, _) in told.items():
        assert (default == "required") == (fields[name] is dataclasses.MISSING), name


@pytest.mark.parametrize(
    ("title", "field", "values"),
    [
        ("The document", "kind", billed.DocumentKind),
        ("The document", "state", billed.DocumentState),
        ("Line of a document", "kind", billed.DocumentLineKind),
    ],
)
def test_a_table_tells_every_value(title: str, field: str, values: type[StrEnum]) -> None:
    assert reference("bill", title)[field][0].split(", ") == list(values)


ANSWERS = {
    "The answer": (),
    "Period": ("periods",),
    "Record": ("periods", "records"),
    "Draw": ("periods", "records", "buckets"),
    "Step": ("periods", "records", "tiers"),
    "Line": ("periods", "lines"),
    "Bucket of a period": ("periods", "buckets"),
    "Rejected line": ("rejected",),
}


def at(answer: dict[str, Any], path: Sequence[str]) -> list[dict[str, Any]]:
    """Return the objects at a path of an answer, through lists."""
    found = [answer]
    for part in path:
        found = [inner for each in found for inner in each[part]]
    return found


def test_the_answers_tables_tell_every_field_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, set[str]] = {title: set() for title in ANSWERS}
    for section in EXAMPLES:
        for block in files_of(section, tmp_path):
            if not isinstance(block, Block):
                continue
            for command, _ in commands(block):
                if command.startswith("fleetmeter rate") and ".jsonl" in command:
                    _, printed = run([*shlex.split(command)[1:], "--json"])
                    if printed.startswith("{"):
                        answer = json.JSONDecoder().raw_decode(printed)[0]
                        for title, path in ANSWERS.items():
                            for each in at(answer, path):
                                found[title] |= each.keys()
    for title, keys in found.items():
        assert set(reference("rate", title)) == keys, title
