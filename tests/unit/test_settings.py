"""The settings are documented as they are."""

import argparse
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from metering.cli import COMMANDS, main
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


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments: this module stands in for a command's."""
    del parser


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Come upon a value that is not valid, and is no setting."""
    del arguments, settings
    Settings(ingest_window=0)
    return 0


def test_a_fault_within_a_command_is_not_told_as_a_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "faulty", (__name__, "meet an invalid value"))
    with pytest.raises(ValidationError):
        main(["faulty"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments",
    [["audit"], ["migrate"], ["apikey", "create", "--tenant", "demo", "--label", "test"]],
    ids=lambda arguments: arguments[0],
)
def test_a_command_says_in_one_line_that_the_database_is_down(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", f"postgresql://nobody@127.0.0.1:{port}/none")
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fleetmeter {arguments[0]}: the database does not answer: ")
    assert str(port) in line
    assert line.endswith("; is it up? 'fleetmeter stack status'")
