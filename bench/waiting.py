"""Waiting for what another process does: asking is the only way to know."""

import time
from collections.abc import Callable

from bench.servers import BenchError


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 60.0) -> None:
    """Wait until a condition holds; raises `BenchError` with what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)
