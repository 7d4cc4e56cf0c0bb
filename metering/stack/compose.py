"""Runs a server as a container of the project's compose.yaml, where a docker engine answers."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from metering.errors import StackError
from metering.stack.model import ServerName


def file() -> Path | None:
    """Return compose.yaml, which only a checkout has."""
    path = Path(__file__).resolve().parents[2] / "compose.yaml"
    return path if path.is_file() else None


def obstacle() -> str | None:
    """Say what stands against containers on this machine, or None."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    if file() is None:
        return "compose.yaml is part of a checkout only"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=15,
                check=False,
            )
        except (subprocess.TimeoutExpired, OSError):
            return f"`{' '.join(command)}` does not answer"
        if done.returncode != 0:
            return f"`{' '.join(command)}` fails: no engine answers"
    return None


def up(stack: Path, name: ServerName, *, port: int, password: str) -> None:
    """Start one container and wait until it is healthy. Raises StackError in docker's words."""
    _compose(stack, ["up", "--detach", "--wait", name], name=name, port=port, password=password)


def down(stack: Path, name: ServerName) -> None:
    """Stop one container; its volume stays."""
    _compose(stack, ["stop", name], name=name)


def erase(stack: Path) -> None:
    """Remove both containers and their volumes."""
    _compose(stack, ["down", "--volumes"], name="database")


def _compose(
    stack: Path, words: list[str], *, name: ServerName, port: int = 0, password: str = ""
) -> None:
    path = file()
    if path is None:
        raise StackError("compose.yaml is part of a checkout only")
    # One project for each data folder: two checkouts do not share volumes.
    project = "fleetmeter-" + hashlib.sha256(str(stack).encode()).hexdigest()[:8]
    ports = {"FLEETMETER_DATABASE_PORT": "0", "FLEETMETER_BROKER_PORT": "0"}
    ports[f"FLEETMETER_{name.upper()}_PORT"] = str(port)
    done = subprocess.run(
        ["docker", "compose", "--project-name", project, "--file", str(path), *words],
        env={**os.environ, **ports, "FLEETMETER_DATABASE_PASSWORD": password},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"docker compose {words[0]} {name} failed: {done.stderr.strip()[-2000:]}")
