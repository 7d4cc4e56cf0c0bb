"""Database and broker of a run: where they are, what they are, and whether they keep what they promise."""

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from metering import stack
from metering.broker_address import BrokerAddress, parse_broker_url
from metering.errors import FleetmeterError
from metering.settings import Settings
from metering.stack import fetch, finder, lifecycle
from metering.stack.folders import cache_folder
from metering.stack.model import Program, ServerName


class BenchError(FleetmeterError):
    """Something without which no figure would mean what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Two servers that run. `pids` has those of the servers that run on this machine as ours."""

    database_url: str
    broker_url: str
    pids: dict[ServerName, int]
    cache: Path
    settings: Settings

    @property
    def broker(self) -> BrokerAddress:
        """Where the broker listens."""
        return parse_broker_url(self.broker_url)


@contextlib.contextmanager
def own_servers() -> Iterator[Servers]:
    """Yield servers that are started for this run, and erase them at the end."""
    settings = Settings()
    folder = Path(tempfile.mkdtemp(prefix="fleetmeter-bench-"))
    folder.chmod(0o755)  # root's servers run as another account, which must come in
    own = Settings(
        database_url=None, broker_url=None, data_dir=folder, cache_dir=settings.cache_dir
    )
    try:
        yield servers_of(own)
    finally:
        lifecycle.erase(own)
        shutil.rmtree(folder)


def servers_of(settings: Settings) -> Servers:
    """Start what does not run of the settings' servers; return both."""
    endpoints = stack.up(settings)
    servers = Servers(
        database_url=endpoints.database_url,
        broker_url=endpoints.broker_url,
        pids={each.name: each.pid for each in stack.status(settings) if each.pid is not None},
        cache=cache_folder(settings),
        settings=stack.resolve(settings),
    )
    refuse_unless_durable(servers.database_url)
    return servers


_DURABLE = ("fsync", "synchronous_commit", "full_page_writes")


def refuse_unless_durable(url: str) -> dict[str, str]:
    """Return the database's settings on which durability rests; raises `BenchError` if one is off."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(_DURABLE)]
        ).fetchall()
    settings = {str(name): str(setting) for name, setting in rows}
    for name in _DURABLE:
        if settings[name] != "on":
            raise BenchError(
                f"{name} is {settings[name]}: what is measured without it is not durable; set it to on"
            )
    return settings


def program(servers: Servers, name: str) -> str:
    """Return a client program that came with a server: `mosquitto_sub` or `psql`.

    Raises `BenchError` where there is none.
    """
    server: ServerName = "broker" if name.startswith("mosquitto") else "database"
    if server == "broker":
        installed = finder.installed_broker()
    else:
        installed = finder.installed_database(finder.postgres_folders())
    if isinstance(installed, Program):
        executable: Path | None = installed.executable
    else:
        executable = fetch.fetched(servers.cache, server)
    if executable is not None:
        for folder in (executable.parent, executable.parent.parent / "bin"):
            if (folder / name).exists():
                return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise BenchError(f"{name} is not here: install the {server}'s clients")
    return found


def versions(servers: Servers) -> dict[str, str]:
    """Return the versions of the servers."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT current_setting('server_version'), default_version"
            " FROM pg_available_extensions WHERE name = 'timescaledb'"
        ).fetchall()
    told = subprocess.run(
        [program(servers, "mosquitto_sub"), "--help"], capture_output=True, text=True, check=False
    ).stdout
    mosquitto = re.search(r"version (\S+)", told)
    return {
        "postgresql": str(rows[0][0]).split()[0],
        "timescaledb": str(rows[0][1]),
        "mosquitto": mosquitto.group(1) if mosquitto else "unknown",
    }
