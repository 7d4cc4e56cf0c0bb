"""A small volume for the database, mounted where nobody else sees it, and what fills it."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

INSIDE = "FLEETMETER_TEST_MOUNTS_ARE_OWN"
"""Set in the environment of a process whose mounts are its own, and end with it."""


def alone_with_mounts(command: Sequence[str]) -> list[str]:
    """Return a command line that runs a command where its mounts are seen by its children only."""
    as_user = [] if os.geteuid() == 0 else ["--map-current-user", "--keep-caps"]
    return ["unshare", *as_user, "--mount", "--propagation", "private", *command]


def obstacle() -> str | None:
    """Return why no volume can be mounted on this machine, or None."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "there is no unshare(1)"
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        done = subprocess.run(alone_with_mounts(mount), capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip() or "unshare fails")


@contextmanager
def volume(folder: Path, octets: int) -> Iterator[None]:
    """Mount a volume of so many octets on a folder; its content is gone afterwards."""
    assert os.environ.get(INSIDE), "a volume is mounted by a process of its own"
    folder.mkdir(parents=True)
    options = f"size={octets},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Keep a volume full meanwhile: whatever is freed is taken at once."""
    ballast = folder / "ballast"
    enough = threading.Event()

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            while not enough.is_set():
                with contextlib.suppress(OSError):
                    while file.write(bytes(4096)):
                        pass
                enough.wait(0.05)

    filling = threading.Thread(target=fill, name="ballast")
    filling.start()
    try:
        yield
    finally:
        enough.set()
        filling.join()
        ballast.unlink()
