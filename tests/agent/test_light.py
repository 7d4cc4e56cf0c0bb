"""The agent is light: it works where nothing of the platform is installed, and its unit is sound."""

import configparser
import shutil
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

_NOT_ON_A_GATEWAY = (
    *("psycopg", "psycopg_pool", "fastapi", "starlette", "uvicorn", "httpx", "prometheus_client"),
    *("psutil", "yaml", "metering.stack", "metering.store"),
)
_BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[1].split(",") or name.split(".")[0] in sys.argv[1].split(","):
            raise ImportError(f"{name} is not on a gateway")

sys.meta_path.insert(0, Blocked())
from metering.cli import main
raise SystemExit(main(sys.argv[2:]))
"""
ROOT = Path(__file__).parents[2]


def test_the_agent_needs_nothing_of_the_platform(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c", _BLOCKED, ",".join(_NOT_ON_A_GATEWAY), "agent"),
            *("--interface", "lo", "--tenant", "t", "--device", "d", "--state", str(tmp_path)),
            *("--broker", "mqtt://127.0.0.1:9", "--for", "0.1", "--drain", "0"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr  # nothing is durable: no broker answers
    assert "metering lo as t/d" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    ("option", "missing"), [("--modem=any", "dbus_fast"), ("--serial=/dev/null", "serial")]
)
def test_what_a_source_needs_besides_is_named(tmp_path: Path, option: str, missing: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c", _BLOCKED, missing, "agent", option, "--tenant", "t"),
            *("--device", "d", "--broker", "mqtt://127.0.0.1:9", "--for", "0.1", "--drain", "0"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "install fleetmeter[agent]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gateways_lock_holds_what_the_agent_needs_and_no_server() -> None:
    lock = (ROOT / "requirements" / "agent.txt").read_text(encoding="utf-8")
    names = {line.split("==")[0] for line in lock.splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = {one.split(">")[0] for one in project["optional-dependencies"]["agent"]}
    assert extra <= names
    assert not names & {"psycopg", "fastapi", "uvicorn", "httpx", "prometheus-client", "psutil"}
    of_all = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lock.splitlines() if "==" in line} <= set(of_all)


def unit() -> Path:
    return Path(str(files("metering.agent").joinpath("fleetmeter-agent.service")))


def test_the_unit_restarts_waits_for_the_end_and_keeps_its_state() -> None:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(unit().read_text(encoding="utf-8"))
    service = parsed["Service"]
    assert service["Restart"] == "always"
    assert service["StateDirectory"] == "fleetmeter-agent"
    assert "%S/fleetmeter-agent" in service["ExecStart"]
    drain = int(service["ExecStart"].split("--drain ")[1].split()[0])
    assert int(service["TimeoutStopSec"]) > drain
    assert parsed["Install"]["WantedBy"] == "multi-user.target"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not on this machine")
    program = tmp_path / "fleetmeter"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / "fleetmeter-agent.service"
    text = unit().read_text(encoding="utf-8")
    copy.write_text(text.replace("/opt/fleetmeter/bin/fleetmeter", str(program)))
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in done.stderr.splitlines() if "fleetmeter-agent" in line]
    assert not told
    assert done.returncode == 0, done.stderr
