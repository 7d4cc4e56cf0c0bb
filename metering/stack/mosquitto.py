"""Starts and stops Mosquitto with the project's own configuration."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from metering.credentials.rights import PROCESS_USERNAME
from metering.errors import StackError
from metering.stack import probe, process
from metering.stack.account import own, server_account
from metering.stack.model import Ports

_STOP = ((signal.SIGTERM, 60.0), (signal.SIGKILL, 15.0))
_START_SECONDS = 60.0


def url(port: int, password: str) -> str:
    """Return the URL of a broker on this machine for our own processes, with their password."""
    return f"mqtt://{PROCESS_USERNAME}:{password}@127.0.0.1:{port}"


def marker(folder: Path) -> Path:
    """Return the path by which a broker of this folder is recognised: its configuration."""
    return folder / "mosquitto.conf"


def template() -> Path:
    """Return the project's configuration, in a checkout as in an installed package."""
    path = Path(__file__).resolve().parents[2] / "broker_config" / "mosquitto" / "mosquitto.conf"
    if not path.is_file():
        raise StackError(f"{path} is missing: install fleetmeter again")
    return path


def plugin_of(program: Path) -> Path:
    """Return the dynamic security plugin that came with a broker; raises StackError without one."""
    for folder in (program.resolve().parents[1], Path("/usr"), Path("/usr/local")):
        for pattern in (
            "lib*/mosquitto_dynamic_security.so",
            "lib*/*/mosquitto_dynamic_security.so",
        ):
            if (found := next(iter(sorted(folder.glob(pattern))), None)) is not None:
                return found
    raise StackError(
        f"{program} has no mosquitto_dynamic_security.so: install the whole package mosquitto"
    )


def render(
    text: str,
    *,
    ports: Ports,
    host: str,
    folder: Path,
    plugin: Path,
    log: str,
    processes_host: str = "127.0.0.1",
) -> str:
    """Return the configuration for one machine: its addresses, its folder, its plugin, its log.

    Devices reach the broker on `host`. Raises StackError when the template lacks a line that has to
    be set.
    """
    for directive, value in {
        "listener 1883": f"listener {ports.processes} {processes_host}",
        "listener 8883": f"listener {ports.passwords} {host}",
        "listener 8884": f"listener {ports.certificates} {host}",
        "listener 8885": f"listener {ports.claims} {host}",
        "persistence_location": f"persistence_location {folder}/",
        "log_dest": f"log_dest {log}",
        "plugin": f"plugin {plugin}",
    }.items():
        pattern = re.compile(rf"^{directive} .*$", re.MULTILINE)
        if len(pattern.findall(text)) != 1:
            raise StackError(f"mosquitto.conf must have one line `{directive}`")
        text = pattern.sub(value.replace("\\", r"\\"), text)
    return text.replace("/etc/fleetmeter/", f"{folder}/")


def start(
    program: Path,
    folder: Path,
    *,
    ports: Ports,
    host: str,
    password: str,
    started: Callable[[psutil.Process], None],
) -> None:
    """Start the broker and wait until it answers; tell `started` its process before waiting.

    What it reads of keys and credentials is in its folder. Raises PortTakenError, or StackError with
    the end of its log, when it does not come up.
    """
    account = server_account(folder)
    config = marker(folder)
    text = template().read_text(encoding="utf-8")
    plugin = plugin_of(program)
    log = folder / "server.log"
    text = render(text, ports=ports, host=host, folder=folder, plugin=plugin, log=f"file {log}")
    config.write_text(text, encoding="utf-8")
    own(config, account, 0o600)
    server = process.start(
        [str(program), "-c", str(config)], folder=folder, log=log, account=account
    )
    started(server)
    deadline = time.monotonic() + _START_SECONDS
    while (obstacle := probe.broker_answers(url(ports.processes, password))) is not None:
        if not process.is_alive(server):
            raise process.ended("broker", log)
        if time.monotonic() > deadline:
            raise StackError(f"the broker does not answer ({obstacle}); {process.log_tail(log)}")
        time.sleep(0.02)


def write_container_config(folder: Path) -> None:
    """Write the configuration of a broker in a container, to which the folder is mounted.

    In there it has to listen on every interface; which ports the container has is what keeps our
    processes' listener to this machine.
    """
    text = render(
        template().read_text(encoding="utf-8"),
        ports=Ports(processes=1883, passwords=8883, certificates=8884, claims=8885),
        host="0.0.0.0",  # noqa: S104 - within the container
        folder=Path("/fleetmeter"),
        plugin=Path("/usr/lib/mosquitto_dynamic_security.so"),
        log="stderr",
        processes_host="0.0.0.0",  # noqa: S104
    )
    config = marker(folder)
    config.write_text(text, encoding="utf-8")
    own(config, server_account(folder), 0o600)


def reload(server: psutil.Process) -> None:
    """Have a broker read its certificates and the list of revoked ones again (SIGHUP)."""
    server.send_signal(signal.SIGHUP)


def stop(server: psutil.Process) -> None:
    """Stop the broker cleanly: it writes its sessions and queues first."""
    process.stop(server, _STOP)
