"""Decides where a server comes from: installed, else fetched, else a container."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metering.errors import StackError
from metering.settings import Settings
from metering.stack import compose, fetch
from metering.stack.folders import cache_folder
from metering.stack.model import Program, Progress, ServerName

POSTGRES_MAJOR_MIN = 15
MOSQUITTO_MAJOR_MIN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """Why one way does not lead to a server."""

    reason: str


Way = Callable[[], Program | Lacking]

_FIX: dict[ServerName, str] = {
    "database": (
        "install PostgreSQL 15 or newer with the timescaledb extension "
        "(Debian 13: postgresql-17-timescaledb), or set FLEETMETER_DATABASE_URL to a server that "
        "has it, or install Docker"
    ),
    "broker": (
        "install Mosquitto 2.0 or newer (package mosquitto), or set FLEETMETER_BROKER_URL to a "
        "broker, or install Docker"
    ),
}


def find(name: ServerName, ways: Sequence[Way]) -> Program:
    """Return what the first way that leads anywhere finds.

    Raises StackError, which names every way that was tried and what to do.
    """
    reasons: list[str] = []
    for way in ways:
        found = way()
        if isinstance(found, Program):
            return found
        reasons.append(found.reason)
    tried = "".join(f"\n  - {reason}" for reason in reasons)
    raise StackError(f"no {name} can be run here. What to do: {_FIX[name]}. Tried:{tried}")


def ways(
    settings: Settings,
    name: ServerName,
    *,
    major: int | None,
    missing: Sequence[ServerName],
    progress: Progress,
) -> tuple[Way, ...]:
    """Return the ways to a server, in the order in which they are tried.

    `major` is the version an existing cluster asks for; `missing` names every server that may have
    to be fetched, so that one run of apt does for all.
    """

    def installed() -> Program | Lacking:
        if name == "broker":
            return installed_broker()
        return installed_database(postgres_folders(), major=major)

    def fetched() -> Program | Lacking:
        cache = cache_folder(settings)
        if fetch.fetched(cache, name) is None:
            if (obstacle := fetch.obstacle()) is not None:
                return Lacking(reason=f"not fetched: {obstacle}")
            # What is installed need not be fetched along.
            wanted = [one for one in missing if one == name or not _is_installed(one)]
            try:
                fetch.fetch(cache, wanted, progress)
            except (StackError, OSError) as error:
                return Lacking(reason=f"not fetched: {error}")
        executable = fetch.fetched(cache, name)
        if executable is None:
            return Lacking(reason="not fetched")
        return Program(source="fetched", executable=executable)

    def contained() -> Program | Lacking:
        path = compose.file()
        if (obstacle := compose.obstacle()) is not None or path is None:
            return Lacking(reason=f"no container: {obstacle}")
        return Program(source="compose", executable=path)

    return installed, fetched, contained


def _is_installed(name: ServerName) -> bool:
    if name == "broker":
        return isinstance(installed_broker(), Program)
    return isinstance(installed_database(postgres_folders()), Program)


def postgres_folders() -> Iterator[Path]:
    """Yield the folders of programs of every PostgreSQL on this machine, newest first."""
    packaged = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(packaged, key=lambda folder: _number(folder.parent.name), reverse=True)
    if (config := shutil.which("pg_config")) is not None:
        done = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            yield Path(done.stdout.strip())


def installed_database(folders: Iterator[Path], *, major: int | None = None) -> Program | Lacking:
    """Return the first PostgreSQL that is new enough and has TimescaleDB.

    `major` is the only version that will do for a cluster that exists.
    """
    reasons: list[str] = []
    for folder in folders:
        postgres = folder / "postgres"
        version = _number(_output(postgres, "--version"))
        if version == 0 or not (folder / "initdb").exists():
            continue
        if version < POSTGRES_MAJOR_MIN:
            reasons.append(f"PostgreSQL {version} in {folder} is older than {POSTGRES_MAJOR_MIN}")
        elif major not in {None, version}:
            reasons.append(f"the data was written by PostgreSQL {major}, not {version}")
        elif not _has_timescaledb(folder):
            reasons.append(f"PostgreSQL {version} in {folder} has no timescaledb extension")
        else:
            return Program(source="installed", executable=postgres)
    return Lacking(reason="; ".join(dict.fromkeys(reasons)) or "PostgreSQL is not installed")


def _has_timescaledb(folder: Path) -> bool:
    """Look where the server looks; `pg_config` says, or, without it, the layout of Debian."""
    libraries = [folder.parent / "lib"]
    shares = [folder.parent / "share", Path("/usr/share/postgresql") / folder.parent.name]
    config = folder / "pg_config"
    if config.exists():
        libraries.append(Path(_output(config, "--pkglibdir").strip()))
        shares.append(Path(_output(config, "--sharedir").strip()))
    control = any((share / "extension" / "timescaledb.control").exists() for share in shares)
    return control and any(next(path.glob("timescaledb*.so"), None) for path in libraries)


def installed_broker() -> Program | Lacking:
    """Return the machine's Mosquitto, if it is new enough."""
    search = [shutil.which("mosquitto"), "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"]
    reason = "Mosquitto is not installed"
    for path in [Path(found) for found in search if found is not None]:
        if not path.exists():
            continue
        version = _number(_output(path, "-h"))
        if version >= MOSQUITTO_MAJOR_MIN:
            return Program(source="installed", executable=path)
        reason = f"{path} is older than Mosquitto {MOSQUITTO_MAJOR_MIN}.0"
    return Lacking(reason=reason)


def _output(program: Path, option: str) -> str:
    try:
        done = subprocess.run(
            [program, option],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=15,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _number(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found.group()) if found else 0
