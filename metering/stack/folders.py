"""Where packages are cached and where the servers keep their data."""

import hashlib
import os
from pathlib import Path

from metering.errors import StackError
from metering.settings import Settings
from metering.stack.account import can_enter, own, server_account
from metering.stack.model import ServerName


def cache_folder(settings: Settings) -> Path:
    """Return the folder for fetched packages.

    Root's is outside its home, which the account of the servers could not enter.
    """
    if settings.cache_dir is not None:
        return settings.cache_dir.expanduser().resolve()
    if os.geteuid() == 0:
        return Path("/var/cache/fleetmeter")
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "fleetmeter"


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; root's can be entered by the account of its servers."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            path.chmod(0o755)


def stack_folder(settings: Settings) -> Path:
    """Return the folder of the stack's state; made by `create_stack_folder`."""
    return settings.data_dir.expanduser().resolve() / "stack"


def create_stack_folder(settings: Settings) -> Path:
    """Make the stack's folder, or raise StackError when it is not ours to write."""
    folder = stack_folder(settings)
    try:
        make_folder(folder)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise StackError(
            f"cannot write {folder}: if it belongs to another user, set FLEETMETER_DATA_DIR to a "
            "folder of yours"
        )
    return folder


def server_folder(settings: Settings, name: ServerName) -> Path:
    """Make and return a server's own folder, owned by the account that runs it.

    It is `<data_dir>/stack/<name>`; where that account cannot enter (a checkout in root's home),
    `<cache>/data/<hash of data_dir>/<name>`.
    """
    stack = stack_folder(settings)
    account = server_account(stack / name)
    base = stack
    if not can_enter(account, stack):
        digest = hashlib.sha256(str(stack.parent).encode()).hexdigest()[:16]
        base = cache_folder(settings) / "data" / digest
        make_folder(base)
        account = server_account(base / name)
        if not can_enter(account, base):
            raise StackError(
                f"the servers run as user {account.uid}, who cannot enter {stack} or {base}: "
                "set FLEETMETER_CACHE_DIR to a folder that everybody can enter"
            )
    folder = base / name
    folder.mkdir(exist_ok=True)
    own(folder, account, 0o700)
    return folder
