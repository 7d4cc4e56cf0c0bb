"""The settings are documented as they are."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from metering.cli import main
from metering.settings import Settings

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_setting_stands_in_the_docs_with_its_default_and_meaning(name: str) -> None:
    field = Settings.model_fields[name]
    default = "none" if field.default is None else f"`{field.default}`"
    assert f"| `FLEETMETER_{name.upper()}` | {default} | {field.description} |" in OPERATIONS


def test_a_setting_out_of_bounds_is_refused() -> None:
    with pytest.raises(ValidationError, match="ingest_window"):
        Settings(ingest_window=0)


def test_the_command_names_the_setting_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETMETER_INGEST_WINDOW", "many")
    assert main(["migrate"]) == 2
    assert "FLEETMETER_INGEST_WINDOW" in capsys.readouterr().err
