"""A dialogue of AT commands on a serial port (3GPP TS 27.007; V.250)."""

import time
from types import TracebackType
from typing import Self

from metering.errors import InvalidValue

ANSWER_SECONDS_MAX = 5.0
_LINE_OCTETS_MAX = 4096


class NoAnswer(Exception):
    """The modem did not answer in time, or the port is gone."""


def check_library() -> None:
    """Raise `InvalidValue` where pyserial, which is of the extra `agent`, is missing."""
    try:
        import serial  # noqa: F401, PLC0415
    except ImportError:
        raise InvalidValue("serial", "pyserial is missing", "install fleetmeter[agent]") from None


class AtPort:
    """One serial port, alone ours while it is open. Raises `NoAnswer`."""

    def __init__(
        self, path: str, baud: int, answer_seconds_max: float = ANSWER_SECONDS_MAX
    ) -> None:
        import serial  # noqa: PLC0415

        self._answer_seconds_max = answer_seconds_max
        self._faults = (serial.SerialException, OSError)
        try:
            self._port = serial.Serial(path, baud, timeout=0.2, write_timeout=1.0, exclusive=True)
            self._port.reset_input_buffer()
        except self._faults as error:
            raise NoAnswer(f"{path}: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._port.close()

    def ask(self, command: str) -> list[str] | None:
        """Return the lines that answer a command; None where the modem says that it cannot.

        What the modem says unasked comes between them.
        """
        try:
            self._port.write(f"{command}\r".encode("ascii"))
            return self._lines(command)
        except self._faults as error:
            raise NoAnswer(f"{command}: {error}") from None

    def _lines(self, command: str) -> list[str] | None:
        lines: list[str] = []
        deadline = time.monotonic() + self._answer_seconds_max
        pending = b""
        while time.monotonic() < deadline:
            pending += self._port.read_until(b"\n", _LINE_OCTETS_MAX)
            if not pending.endswith(b"\n"):
                continue
            line, pending = pending.decode("ascii", errors="replace").strip(), b""
            if line == "OK":
                return lines
            if line == "ERROR" or line.startswith(
                ("+CME ERROR:", "+CMS ERROR:", "COMMAND NOT SUPPORT")
            ):
                return None
            if line and line != command:
                lines.append(line)
        raise NoAnswer(f"{command}: no answer within {self._answer_seconds_max:g} s")
