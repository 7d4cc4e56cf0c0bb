"""Runs apt-get with a state of its own: needs no root and leaves the machine's apt alone.

The machine's configuration of apt (proxy, certificates, logins) still holds; its sources, pins,
hooks and list of installed packages do not.
"""

import pwd
import re
import subprocess
import time
from dataclasses import dataclass
from os import geteuid
from pathlib import Path

from metering.errors import StackError
from metering.stack.model import Progress

_REPORT_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One file that apt would download: package name and size in octets."""

    package: str
    size_octets: int


def prepare(folder: Path, sources: str) -> Path:
    """Lay out a private apt in `folder`, reading the given deb822 sources; return its apt.conf."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "fleetmeter.sources").write_text(sources, encoding="utf-8")
    settings = {
        "Dir::Etc::SourceList": folder / "fleetmeter.sources",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",  # empty: every dependency is fetched too
        "Dir::Cache": folder / "cache",
        "Dir::Cache::pkgcache": "pkgcache.bin",  # containers switch these two off; parsing anew
        "Dir::Cache::srcpkgcache": "srcpkgcache.bin",  # for each command takes seconds
        "Debug::NoLocking": "1",  # nobody else uses this folder, and locks need root
        "APT::Sandbox::User": _user_name(),
        "Acquire::Languages": "none",
        "APT::Get::AllowUnauthenticated": "false",
        "Acquire::AllowInsecureRepositories": "false",
    }
    lines = ["#clear APT::Update;", "#clear DPkg;", "#clear Acquire::Languages;"]
    lines.append('APT::Update::Error-Mode "any";')  # a list that did not arrive is no success
    lines += [f'{name} "{value}";' for name, value in settings.items()]
    config = folder / "apt.conf"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config


def _user_name() -> str:
    try:
        return pwd.getpwuid(geteuid()).pw_name
    except KeyError:
        return str(geteuid())


def update(config: Path) -> str | None:
    """Fetch the lists of packages; return None, or apt's complaint."""
    done = _run("apt-get", config, "update")
    if done.returncode == 0:
        return None
    complaints = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
    return complaints[0] if complaints else f"apt-get update ended with {done.returncode}"


def package_names(config: Path, prefix: str) -> tuple[str, ...]:
    """Return the names of all packages that start with `prefix`."""
    return tuple(_run("apt-cache", config, "pkgnames", prefix).stdout.split())


def closure(config: Path, packages: list[str]) -> tuple[Archive, ...]:
    """Return `packages` and everything they depend on.

    Raises StackError when a dependency cannot be met.
    """
    done = _run(
        "apt-get", config, "--print-uris", "-y", "--no-install-recommends", "install", *packages
    )
    if done.returncode != 0:
        raise StackError(f"apt cannot resolve {', '.join(packages)}: {done.stderr.strip()}")
    lines = re.findall(r"^'[^']+' ([^_\s]+)_\S+ (\d+) ", done.stdout, re.MULTILINE)
    return tuple(Archive(package=name, size_octets=int(size)) for name, size in lines)


def download(config: Path, archives: list[Archive], folder: Path, progress: Progress) -> None:
    """Download packages into `folder`, each checked against the signed list.

    Raises StackError with apt's words when one cannot be had.
    """
    total = sum(archive.size_octets for archive in archives)
    progress(f"downloading {len(archives)} packages, {_megabytes(total)}")
    folder.mkdir(parents=True, exist_ok=True)
    log = config.with_name("download.log")
    command = ["apt-get", "-c", str(config), "-q", "download"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *(archive.package for archive in archives)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            reported = time.monotonic()
            while process.poll() is None:
                time.sleep(0.05)
                if time.monotonic() - reported >= _REPORT_SECONDS:
                    reported = time.monotonic()
                    progress(f"  {_megabytes(_size(folder))} of {_megabytes(total)}")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        raise StackError(f"downloading packages failed: {log.read_text(errors='replace')[-2000:]}")


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # apt renames a file when it is complete
            continue
    return total


def _megabytes(octets: int) -> str:
    return f"{octets / 1_000_000:.1f} MB"


def _run(program: str, config: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program, "-c", str(config), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
