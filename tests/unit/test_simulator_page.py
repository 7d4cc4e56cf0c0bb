"""docs/simulator.md: its example is what the command says, its tables tell what there is."""

import re
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel

from device_sim.profile import SHAPES
from device_sim.scenario import command, document
from device_sim.scenario.reading import read_scenario_file
from metering.cli import main

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "simulator.md").read_text("utf-8")
_FENCE = re.compile(
    r"^```(?P<language>\w+) ?(?P<file>[^\n`]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE
)


def table(title: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its head."""
    section = re.split(r"^#{2,3} ", PAGE, flags=re.MULTILINE)
    [under] = [each for each in section if each.startswith(f"{title}\n")]
    rows = [line for line in under.split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_example_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for fence in _FENCE.finditer(PAGE):
        if fence["language"] == "yaml":
            (tmp_path / fence["file"]).write_text(fence["body"], "utf-8")
        if fence["language"] == "console":
            called, _, shown = fence["body"].removeprefix("$ fleetmeter ").partition("\n")
            assert main(shlex.split(called)) == 0
            assert capsys.readouterr().out == shown
            ran += 1
    assert ran
    told = {path.name for path in (tmp_path / "made" / "depot").iterdir()}
    assert told == {"bill.json", "plans", "usage.jsonl", "state.json"}


def test_the_page_lists_the_shipped_scenarios_and_the_profiles() -> None:
    shipped = [
        [f"`{path.stem}`", read_scenario_file(path).title] for path in command.shipped_files()
    ]
    assert table("Scenarios") == shipped
    assert table("Profiles") == [
        [
            f"`{kind}`",
            shape.summary,
            "cumulative" if shape.cumulative else "deltas",
            ", ".join(f"`{use.meter.meter}`" for use in shape.uses),
        ]
        for kind, shape in SHAPES.items()
    ]


MODELS: dict[str, type[BaseModel]] = {
    "Scenario": document.ScenarioDocument,
    "Fleet": document.FleetDocument,
    "Group": document.GroupDocument,
    "Storm": document.StormDocument,
    "Place": document.RoamingDocument,
    "Change": document.ChangeDocument,
    "Faults": document.FaultsDocument,
}


@pytest.mark.parametrize("title", MODELS)
def test_a_table_tells_every_field(title: str) -> None:
    fields = {field.alias or name: field for name, field in MODELS[title].model_fields.items()}
    told = {name: row[2] for row in table(title) for name in re.findall("`([^`]+)`", row[0])}
    assert set(told) == set(fields)
    for name, default in told.items():
        assert (default == "required") == fields[name].is_required(), name
        if re.fullmatch(r"`[0-9]+`", default):
            assert default == f"`{fields[name].default}`", name


def test_links_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#{1,3} (.+)$", PAGE, flags=re.MULTILINE)
    }
    for file, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", PAGE):
        assert not file or (DOCS / file).exists(), file
        assert not anchor or file or anchor in anchors, anchor
