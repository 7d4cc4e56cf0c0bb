"""A lock between processes that cannot be left over: the kernel drops it with its holder."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metering.stack.model import Progress


@contextmanager
def locked(path: Path, *, waiting: str, progress: Progress) -> Iterator[None]:
    """Hold the lock file `path`; while another process does, say `waiting` once and wait."""
    with path.open("ab") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    progress(f"{waiting}; waiting for it")
                    told = True
                time.sleep(0.1)
        yield
