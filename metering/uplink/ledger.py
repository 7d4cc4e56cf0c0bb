"""The ledger file of one publisher: lines are flushed before their readings are published."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from metering.wire.ledger import LedgerLine, ledger_line


class LedgerFile:
    """A ledger that is appended to; None for a path writes nothing.

    A torn last line, which a killed writer left and whose reading was never published, is cut off.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            self._cut_torn_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, lines: Iterable[LedgerLine]) -> None:
        """Append lines and hand them to the operating system: they survive this process."""
        if self._file is not None:
            self._file.write("".join(map(ledger_line, lines)).encode())
            self._file.flush()

    def _cut_torn_line(self) -> None:
        assert self._file is not None  # noqa: S101 - called once, when it was opened
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if line.endswith(b"\n"):
                whole += len(line)
        self._file.truncate(whole)
        self._file.seek(0, 2)
