"""How far a simulation is, for whoever watches: one line that is rewritten, or a plain one now and then."""

import shutil
from typing import TextIO

from device_sim.tally import Status

_TERMINAL_SECONDS, _PLAIN_SECONDS = 1.0, 5.0
_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """Writes to a terminal or to anything else."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self.interval_seconds = _TERMINAL_SECONDS if self._is_terminal else _PLAIN_SECONDS
        self._before: Status | None = None
        self._open = False

    def look(self, status: Status) -> None:
        """Show where the simulation is, with rates since it was looked at last."""
        line = line_of(status, self._before)
        self._before = status
        if self._is_terminal:
            width = shutil.get_terminal_size().columns
            print(_CLEAR_LINE + line[: width - 1], end="", file=self._out, flush=True)
            self._open = True
        else:
            print(line, file=self._out, flush=True)

    def say(self, line: str) -> None:
        """Write a line that stays."""
        if self._open:
            print(_CLEAR_LINE, end="", file=self._out)
            self._open = False
        print(line, file=self._out, flush=True)


def line_of(status: Status, before: Status | None) -> str:
    """Return one line; without a look before, rates are since the beginning."""
    seconds = status.at_seconds - (before.at_seconds if before else 0.0)
    messages = status.messages - (before.messages if before else 0)
    acknowledged = status.acknowledged - (before.acknowledged if before else 0)
    seconds = max(seconds, 0.001)
    at = int(status.at_seconds)
    return (
        f"{at // 3600}:{at // 60 % 60:02}:{at % 60:02}"
        f"  connected {status.connected}/{status.devices}"
        f"  {messages / seconds:.0f} msg/s  acknowledged {acknowledged / seconds:.0f}/s"
        f"  pending {status.pending}, oldest {max(0.0, status.oldest_seconds):.1f} s"
        f"  rejected {status.rejected}  commands {status.commands}"
    )
