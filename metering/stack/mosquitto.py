"""Starts and stops Mosquitto with the project's own configuration."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from metering.errors import StackError
from metering.stack import probe, process
from metering.stack.account import own, server_account

_STOP = ((signal.SIGTERM, 60.0), (signal.SIGKILL, 15.0))
_START_SECONDS = 60.0


def url(port: int) -> str:
    """Return the URL of a broker on this machine."""
    return f"mqtt://127.0.0.1:{port}"


def marker(folder: Path) -> Path:
    """Return the path by which a broker of this folder is recognised: its configuration."""
    return folder / "mosquitto.conf"


def template() -> Path:
    """Return the project's configuration, in a checkout as in an installed package."""
    path = Path(__file__).resolve().parents[2] / "broker_config" / "mosquitto" / "mosquitto.conf"
    if not path.is_file():
        raise StackError(f"{path} is missing: install fleetmeter again")
    return path


def render(text: str, *, port: int, folder: Path) -> str:
    """Return the configuration for one machine: its port, its folders.

    Raises StackError when the template lacks a line that has to be set.
    """
    for directive, value in {
        "listener": f"{port} 127.0.0.1",
        "persistence_location": f"{folder}/",
        "log_dest": f"file {folder / 'server.log'}",
    }.items():
        pattern = re.compile(rf"^{directive} .*$", re.MULTILINE)
        if len(pattern.findall(text)) != 1:
            raise StackError(f"mosquitto.conf must have one line `{directive}`")
        text = pattern.sub(f"{directive} {value}".replace("\\", r"\\"), text)
    return text


def start(
    program: Path,
    folder: Path,
    *,
    port: int,
    started: Callable[[psutil.Process], None],
) -> None:
    """Start the broker and wait until it answers; tell `started` its process before waiting.

    Raises PortTakenError, or StackError with the end of its log, when it does not come up.
    """
    account = server_account(folder)
    config = marker(folder)
    text = template().read_text(encoding="utf-8")
    config.write_text(render(text, port=port, folder=folder), encoding="utf-8")
    own(config, account, 0o600)
    log = folder / "server.log"
    server = process.start(
        [str(program), "-c", str(config)], folder=folder, log=log, account=account
    )
    started(server)
    deadline = time.monotonic() + _START_SECONDS
    while (obstacle := probe.broker_answers(url(port))) is not None:
        if not process.is_alive(server):
            raise process.ended("broker", log)
        if time.monotonic() > deadline:
            raise StackError(f"the broker does not answer ({obstacle}); {process.log_tail(log)}")
        time.sleep(0.02)


def stop(server: psutil.Process) -> None:
    """Stop the broker cleanly: it writes its sessions and queues first."""
    process.stop(server, _STOP)
