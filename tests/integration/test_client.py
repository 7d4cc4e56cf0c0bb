"""The Python client: generated from the committed document, typed for its users, true in its quick start."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

_ROOT = Path(__file__).parents[2]
_BLOCKS = re.findall(
    r"```python\n(.*?)```", (_ROOT / "client/README.md").read_text("utf-8"), re.DOTALL
)


def _run(*command: str | Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=_ROOT,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate the client as `make client` does; return the folder that holds the package."""
    folder = tmp_path_factory.mktemp("client")
    program = Path(sys.executable).with_name("openapi-python-client")
    told = _run(
        *(program, "generate", "--path", "docs/openapi.json", "--config", "client/config.yaml"),
        *("--meta", "none", "--output-path", folder / "fleetmeter_client"),
        environment={},
    )
    assert "Warning" not in told, told  # an operation or a schema that it left out
    (folder / "fleetmeter_client" / "py.typed").touch()
    return folder


def test_the_quick_start_is_typed(generated: Path, tmp_path: Path) -> None:
    assert len(_BLOCKS) == 2
    files = []
    for number, block in enumerate(_BLOCKS):
        files.append(tmp_path / f"start_{number}.py")
        files[-1].write_text(block, "utf-8")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--follow-imports=silent",
    ]
    command += ["--cache-dir", str(tmp_path / "cache")]
    told = _run(*command, *files, environment={"MYPYPATH": str(generated)})
    assert "Success: no issues found in 2 source files" in told


def test_the_quick_start_does_what_it_says(api: "ApiUnderTest", generated: Path) -> None:
    environment = {
        "PYTHONPATH": str(generated),
        "FLEETMETER_URL": api.url,
        "FLEETMETER_API_KEY": api.acme_key,
    }
    told = [
        _run(sys.executable, "-W", "error", "-c", block, environment=environment)
        for block in _BLOCKS
    ]
    devices, first, again = told[0].splitlines()
    assert devices == "3 devices"  # in pages of two
    assert re.fullmatch(r"\d+ has 500000000 left", first)
    assert again == first
    assert {line.partition(" [")[0] for line in told[1].splitlines()} == {
        each["name"] for each in api.acme.get("/v1/fleets").json()["items"]
    }
    assert "('data', " in told[1]
