"""Which operating system account the servers run as, and what it can reach.

PostgreSQL refuses to run as root; so root's servers run as an unprivileged account.
"""

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account of this machine."""

    uid: int
    gid: int

    @property
    def is_self(self) -> bool:
        """True when this process runs as this account already."""
        return self.uid == os.geteuid()


def server_account(data: Path | None = None) -> Account:
    """Return the account for a server whose data is, or will be, in `data`.

    Ordinary users run their own servers. Root runs them as the owner of the data, or as `postgres`
    (else `nobody`) where there is none yet.
    """
    if os.geteuid() != 0:
        return Account(uid=os.geteuid(), gid=os.getegid())
    if data is not None and data.is_dir() and (owner := data.stat()).st_uid != 0:
        return Account(uid=owner.st_uid, gid=owner.st_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(uid=entry.pw_uid, gid=entry.pw_gid)
    return Account(uid=65534, gid=65534)


def can_enter(account: Account, folder: Path) -> bool:
    """Say whether an account can reach into a folder (asks the kernel: modes, groups, ACLs)."""
    if account.is_self:
        return os.access(folder, os.X_OK)
    done = subprocess.run(
        ["/bin/sh", "-c", 'test -x "$1"', "sh", str(folder)],
        cwd="/",
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode == 0


def own(path: Path, account: Account, mode: int) -> None:
    """Give a file or folder to an account, with a mode that does not depend on the umask."""
    if not account.is_self:
        os.chown(path, account.uid, account.gid)
    path.chmod(mode)
