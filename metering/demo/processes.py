"""The demonstration's processes: started apart from the terminal, watched, and ended in order."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from metering.errors import ProcessEnded

_PR_SET_PDEATHSIG = 1


@dataclass(slots=True, kw_only=True)
class Started:
    """One running subcommand and where it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """Subcommands of `fleetmeter` that run for as long as the demonstration does."""

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._started: list[Started] = []

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Started:
        """Start `fleetmeter` with arguments; its output goes to a log of its own.

        It has its own session, so that ^C reaches the demonstration alone, and is killed by the
        kernel if the demonstration dies.
        """
        self._log_folder.mkdir(parents=True, exist_ok=True)
        log = self._log_folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "metering.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads run here
            )
        started = Started(name=name, process=process, log=log)
        self._started.append(started)
        return started

    def check(self) -> None:
        """Raise `ProcessEnded` if one that should be running is not."""
        for told in self.ended():
            raise ProcessEnded(told)

    def ended(self) -> list[str]:
        """Return a sentence for each that should be running and is not."""
        return [
            f"{started.name} ended by itself; see {started.log}"
            for started in self._started
            if started.process.poll() is not None
        ]

    def finish(self, started: Started, *, seconds: float) -> int:
        """Ask one process to end, wait for it, and return its exit code; kill it after `seconds`."""
        if started in self._started:
            self._started.remove(started)
        if started.process.poll() is None:
            started.process.send_signal(signal.SIGTERM)
        deadline = monotonic() + seconds
        while started.process.poll() is None and monotonic() < deadline:
            sleep(0.05)
        if started.process.poll() is None:
            started.process.kill()
        return started.process.wait()

    def end(self) -> None:
        """End all that still run, the newest first."""
        for started in reversed(list(self._started)):
            self.finish(started, seconds=10)


def _die_with_parent() -> None:
    """Have the kernel kill the process when its parent dies (Linux): they are made to bear it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
