"""Runs a server as a container of the project's compose.yaml, where a docker engine answers."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from metering.errors import StackError
from metering.stack.model import Ports, ServerName


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


def up_database(stack: Path, *, port: int, password: str) -> None:
    """Start the database and wait until it is healthy. Raises StackError in docker's words."""
    variables = {"FLEETMETER_DATABASE_PORT": str(port), "FLEETMETER_DATABASE_PASSWORD": password}
    _compose(stack, ["up", "--detach", "--wait", "database"], variables)


def up_broker(stack: Path, folder: Path, ports: Ports, *, host: str) -> None:
    """Start the broker, which reads its configuration and keys in `folder`, and wait until it is healthy.

    Devices reach it on the address `host`. Raises StackError in docker's words.
    """
    owner = folder.stat()
    variables = {
        "FLEETMETER_BROKER_PORT": str(ports.processes),
        "FLEETMETER_BROKER_PASSWORD_PORT": str(ports.passwords),
        "FLEETMETER_BROKER_CERTIFICATE_PORT": str(ports.certificates),
        "FLEETMETER_BROKER_CLAIM_PORT": str(ports.claims),
        "FLEETMETER_DEVICE_LISTEN_HOST": host,
        "FLEETMETER_BROKER_FOLDER": str(folder),
        "FLEETMETER_BROKER_USER": f"{owner.st_uid}:{owner.st_gid}",
    }
    _compose(stack, ["up", "--detach", "--wait", "broker"], variables)


def reload_broker(stack: Path) -> None:
    """Have the broker read its certificates and the list of revoked ones again."""
    _compose(stack, ["kill", "--signal", "HUP", "broker"], {})


def down(stack: Path, name: ServerName) -> None:
    """Stop one container; its volume stays."""
    _compose(stack, ["stop", name], {})


def erase(stack: Path) -> None:
    """Remove both containers and their volumes."""
    _compose(stack, ["down", "--volumes"], {})


def _compose(stack: Path, words: list[str], variables: Mapping[str, str]) -> None:
    path = file()
    if path is None:
        raise StackError("compose.yaml is part of a checkout only")
    # One project for each data folder: two checkouts do not share volumes.
    project = "fleetmeter-" + hashlib.sha256(str(stack).encode()).hexdigest()[:8]
    done = subprocess.run(
        ["docker", "compose", "--project-name", project, "--file", str(path), *words],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"docker compose {' '.join(words)} failed: {done.stderr.strip()[-2000:]}")
