"""A soak: what must stay level over hours is looked at now and then, and told when it only grows.

The rule: looks are taken together in windows of four. A figure grows without bound when the lowest value
of a window was above that of the window before five times in a row, and by more than a tenth and a floor
in all. What swings, or grows to a level and stays there, does not.
"""

import re
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from urllib.parse import urlsplit

import psutil

from device_sim.tally import Status
from metering.errors import InvalidValue

LOOKS_PER_WINDOW = 4
WINDOWS = 6
"""Windows that are compared: each of the last five with the one before."""
_SHARE = 0.1
_MEMORY_FLOOR = 8 * 1024 * 1024
_QUEUE_FLOOR = 1000.0
_AGE_FLOOR_SECONDS = 30.0
_ANSWER_SECONDS_MAX = 5.0
_MEMORY_METRIC = "process_resident_memory_bytes"
_QUEUE_METRICS = (
    "fleetmeter_ingest_in_flight_messages",
    "fleetmeter_control_commands_due",
    "fleetmeter_control_webhook_deliveries_due",
)


class Growth:
    """Tells whether a figure grows without bound; `floor` is what it may grow by in any case."""

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self._window: list[float] = []
        self._lowest: deque[float] = deque(maxlen=WINDOWS)

    def grows(self, value: float) -> bool:
        """Take a value; return whether by now the figure grows without bound."""
        self._window.append(value)
        if len(self._window) < LOOKS_PER_WINDOW:
            return False
        self._lowest.append(min(self._window))
        self._window.clear()
        lowest = list(self._lowest)
        rises = all(low < high for low, high in pairwise(lowest))
        grown = lowest[-1] - lowest[0]
        return (
            len(lowest) == WINDOWS and rises and grown > max(self._floor, _SHARE * abs(lowest[0]))
        )


class Soak:
    """Watches this process and others: by their process id, or by the address of their metrics."""

    def __init__(self, watched: Sequence[str], interval_seconds: float) -> None:
        self.interval_seconds = interval_seconds
        self._processes = [psutil.Process()] + [_process(each) for each in watched if _is_id(each)]
        self._addresses = [_address(each) for each in watched if not _is_id(each)]
        self._figures: dict[str, Growth] = {}

    def look(self, status: Status) -> str | None:
        """Return what is wrong, if anything is: something grows, is lost, or is gone."""
        if status.rejected:
            return f"soak: {status.rejected} readings were rejected"
        try:
            figures = [*_of_simulation(status), *self._of_processes(), *self._of_addresses()]
        except psutil.NoSuchProcess as gone:
            return f"soak: process {gone.pid} has ended"
        except OSError as error:
            return f"soak: metrics do not answer: {error}"
        growing = [
            f"{name}, now {value:,.0f}"
            for name, value, floor in figures
            if self._figures.setdefault(name, Growth(floor)).grows(value)
        ]
        return f"soak: grows without bound: {'; '.join(growing)}" if growing else None

    def _of_processes(self) -> Iterator[tuple[str, float, float]]:
        for process in self._processes:
            name = f"memory of process {process.pid} in octets"
            yield name, float(process.memory_info().rss), _MEMORY_FLOOR

    def _of_addresses(self) -> Iterator[tuple[str, float, float]]:
        for address in self._addresses:
            with urllib.request.urlopen(address, timeout=_ANSWER_SECONDS_MAX) as response:  # noqa: S310 - checked
                text = response.read().decode()
            for name in (_MEMORY_METRIC, *_QUEUE_METRICS):
                found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
                if found is not None:
                    floor = _MEMORY_FLOOR if name == _MEMORY_METRIC else _QUEUE_FLOOR
                    yield f"{name} of {address}", float(found[1]), floor


def _of_simulation(status: Status) -> Iterator[tuple[str, float, float]]:
    yield "pending readings", float(status.pending), _QUEUE_FLOOR
    yield "age of the oldest in seconds", status.oldest_seconds, _AGE_FLOOR_SECONDS


def _is_id(watched: str) -> bool:
    return watched.isascii() and watched.isdigit()


def _process(watched: str) -> psutil.Process:
    try:
        return psutil.Process(int(watched))
    except psutil.NoSuchProcess:
        raise InvalidValue(
            "--watch", f"there is no process {watched}", "name a running one"
        ) from None


def _address(watched: str) -> str:
    if urlsplit(watched).scheme not in ("http", "https"):
        raise InvalidValue(
            "--watch", f"{watched!r} is neither a process id nor a web address",
            "use a number, or http://host:port/metrics",
        )  # fmt: skip
    return watched
