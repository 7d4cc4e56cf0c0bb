"""How far a long command is: one line that is written over on a terminal, else a line every few seconds."""

from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import TextIO

_TERMINAL_SECONDS = 0.2
_LINE_SECONDS = 5.0
_ERASE = "\r\x1b[K"
"""To the start of a terminal's line, and nothing of it left."""


class Progress:
    """Tells on a stream how many of `total` things are done, how fast, and how long the rest takes.

    `seconds` is a clock that only goes forward.
    """

    def __init__(
        self,
        things: str,
        total: int,
        stream: TextIO,
        *,
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        self._things = things
        self._total = total
        self._stream = stream
        self._seconds = seconds
        self._on_terminal = stream.isatty()
        self._began = self._told_at = seconds()

    def tell(self, done: int) -> None:
        """Say that so many are done, where it is time to say so again."""
        every = _TERMINAL_SECONDS if self._on_terminal else _LINE_SECONDS
        now = self._seconds()
        if now - self._told_at < every:
            return
        self._told_at = now
        line = progress_line(self._things, done, self._total, now - self._began)
        self._stream.write(f"{_ERASE}{line}" if self._on_terminal else f"{line}\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave a terminal's line empty for what comes next."""
        if self._on_terminal:
            self._stream.write(_ERASE)
            self._stream.flush()


def progress_line(things: str, done: int, total: int, seconds: float) -> str:
    """Return how far something is after some seconds; there may be more than was counted at first."""
    total = max(done, total)
    told = f"{done:,} of {total:,} {things}"
    if not done or seconds <= 0:
        return told
    left = timedelta(seconds=round((total - done) * seconds / done))
    return f"{told} ({100 * done // total} %), {done / seconds:,.1f} a second, {left} left"
