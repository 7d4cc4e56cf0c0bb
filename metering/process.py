"""What every long-running process does: logs, metrics, and a clean end on a signal."""

import asyncio
import gc
import logging
import signal
from collections.abc import Awaitable, Callable

from prometheus_client import start_http_server

LATENCY_BUCKETS = (
    0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5,
    10, 30, 60,
)  # fmt: skip
"""Upper bounds, in seconds, of every latency that is counted."""


def serve(work: Callable[[], Awaitable[None]], *, metrics_port: int) -> int:
    """Run `work` until it ends or SIGINT or SIGTERM comes; return the exit code.

    `metrics_port` 0 serves no metrics.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if metrics_port:
        start_http_server(metrics_port, addr="127.0.0.1")
    _collect_garbage_seldom()
    return asyncio.run(_until_told_to_stop(work))


def _collect_garbage_seldom() -> None:
    """Look for cycles of garbage less often.

    A batch makes tens of thousands of objects, next to none of them in a cycle; looking through them
    every 700 took a fifth of the time of a charging run.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


async def _until_told_to_stop(work: Callable[[], Awaitable[None]]) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return 0
    return 0
