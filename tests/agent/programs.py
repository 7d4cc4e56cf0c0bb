"""Programs that are not ours, from the distribution's own packages, unpacked into the cache.

Nothing is installed on the machine: they run from the unpacked tree, with its libraries.
"""

import os
import platform
import re
import shutil
import tempfile
from pathlib import Path

from metering.errors import StackError
from metering.settings import Settings
from metering.stack import apt, fetch, sources, unpack
from metering.stack.folders import cache_folder, make_folder
from metering.stack.locking import locked
from metering.stack.model import quiet

_LAYOUT = 1
_NEEDED = re.compile(r"(lib(?!c6$|c-bin|perl|pam|semanage|sepol|gcc|crypt1|db5|ssl)|python3|gir1)")
"""Libraries and Python; not the C library, which is the machine's own."""


class Program:
    """The unpacked tree of a program and what it depends on."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def environment(self) -> dict[str, str]:
        """What its programs need to find their libraries."""
        folders = [
            *self.root.glob("usr/lib/*-linux-*"),
            *self.root.glob("usr/lib/*-linux-*/pulseaudio"),
            *self.root.glob("lib/*-linux-*"),
        ]
        return {
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": ":".join(str(folder) for folder in sorted(folders)),
            "GI_TYPELIB_PATH": ":".join(
                str(folder / "girepository-1.0") for folder in sorted(folders)
            ),
        }

    def path(self, pattern: str) -> Path:
        """Return the one file that fits a pattern."""
        return next(iter(sorted(self.root.glob(pattern))))


def fetched(*packages: str) -> Program:
    """Return the tree of some packages, fetched if it is not there; raises `StackError`."""
    if missing := [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]:
        raise StackError(f"{' and '.join(missing)} not found: no Debian or Ubuntu")
    release, own = fetch._own_sources()
    if not own:
        raise StackError("apt on this machine has no archive of its own distribution")
    cache = cache_folder(Settings(_env_file=None))
    name = f"{'+'.join(packages)}-{platform.machine()}-{release.codename}-{_LAYOUT}"
    root = cache / "test-programs" / name
    make_folder(root.parent)
    with locked(root.parent / "lock", waiting="another run is fetching", progress=quiet):
        if not root.is_dir():
            with tempfile.TemporaryDirectory(dir=root.parent, prefix="fetching-") as work:
                _fetch(packages, Path(work), root, sources.render(own, own[0].suite))
    return Program(root)


def _fetch(packages: tuple[str, ...], work: Path, root: Path, archives: str) -> None:
    config = apt.prepare(work / "apt", archives)
    if complaint := apt.update(config):
        raise StackError(complaint)
    needed = [
        archive
        for archive in apt.closure(config, list(packages))
        if archive.package in packages
        or _NEEDED.match(archive.package)
        or archive.package.startswith("dbus")
    ]
    apt.download(config, needed, work / "debs", quiet)
    unpack.unpack(sorted((work / "debs").glob("*.deb")), work / "root")
    (work / "root").rename(root)
