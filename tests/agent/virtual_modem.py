"""A modem that answers AT commands on a socket or a terminal, as far as a test taught it."""

import os
import pty
import socket
import threading
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Self


class VirtualModem:
    """Answers each command with what `answers` holds, in another thread; ERROR to any other.

    An answer is the lines between command and OK; None is no answer at all, and one that begins with `!`
    is sent as it is. One under two commands answers the second after the first.
    `asked` are the commands in their order.
    """

    def __init__(self, answers: dict[str, str | None]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self._threads: list[threading.Thread] = []
        self._terminals: list[tuple[int, int]] = []
        self._listener: socket.socket | None = None

    def on_socket(self, path: Path) -> Self:
        """Listen on a unix socket."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._start(self._accept)
        return self

    def on_terminal(self) -> str:
        """Answer on a pseudo-terminal; return its path."""
        master, slave = pty.openpty()
        tty.setraw(slave)
        self._terminals.append((master, slave))
        self._start(
            lambda: self._serve(
                lambda: os.read(master, 1024), lambda octets: os.write(master, octets)
            )
        )
        return os.ttyname(slave)

    def close(self) -> None:
        """Be gone; what was opened is closed only once no thread reads it, as its number is used again."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
        for _, slave in self._terminals:
            os.close(slave)
        for thread in self._threads:
            thread.join()
        if self._listener is not None:
            self._listener.close()
        for master, _ in self._terminals:
            os.close(master)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(lambda connection=connection: self._talk(connection))  # type: ignore[misc]

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            self._serve(lambda: connection.recv(1024), connection.send)

    def _serve(self, read: Callable[[], bytes], write: Callable[[bytes], int]) -> None:
        pending = b""
        try:
            while octets := read():
                pending += octets
                while b"\r" in pending:
                    command, _, pending = pending.partition(b"\r")
                    if text := command.decode("ascii", "replace").strip():
                        self.asked.append(text)
                        write(self._answer(text))
        except OSError:
            return

    def _answer(self, command: str) -> bytes:
        if command.startswith("ATD"):
            return b"\r\nCONNECT\r\n"
        both = " ".join(self.asked[-2:])
        known = both if both in self.answers else command
        if known not in self.answers:
            return b"\r\nERROR\r\n"
        answer = self.answers[known]
        if answer is None:
            return b""
        if answer.startswith("!"):
            return answer[1:].encode()
        lines = answer.replace("\n", "\r\n")
        return f"\r\n{lines}\r\n\r\nOK\r\n".encode() if lines else b"\r\nOK\r\n"


IMEI = "490154203237518"
GSM: dict[str, str | None] = {
    **dict.fromkeys(
        ("AT", "ATE0", "ATV1", "AT+CMEE=1", "ATX4", "AT&C1", "AT+IFC=1,1", "ATZ", "AT+CFUN=1"), ""
    ),
    **dict.fromkeys(("AT+CREG=2", "AT+CGREG=2", "AT+CREG=0", "AT+CGREG=0", "AT+CMGF=0"), ""),
    **dict.fromkeys(('AT+CSCS="UCS2"', "AT+CGACT=0,1", "AT+CGACT=1,1", "AT+COPS=3,2"), ""),
    "ATI": "Some vendor",
    "AT+GCAP": "+GCAP: +CGSM +DS +ES",
    "AT+CGMI": "Some vendor",
    "AT+CGMM": "Some model",
    "AT+CGMR": "Some revision",
    "AT+CGSN": IMEI,
    "AT+WS46=?": "+WS46: (12,22)",
    "AT+CGDCONT=?": '+CGDCONT: (1-11),"IP",,,(0-2),(0-3)',
    "AT+CGDCONT?": '+CGDCONT: 1,"IP","internet","",0,0',
    "AT+CGACT?": "+CGACT: 1,0",
    "AT+CIMI": "001010123456789",
    "AT+CRSM=176,12258,0,0,10": '+CRSM: 144,0,"984405000000000000F1"',
    "AT+CRSM=176,28589,0,0,4": '+CRSM: 144,0,"00000002"',
    "AT+CLCK=?": '+CLCK: ("SC")',
    'AT+CLCK="SC",2': "+CLCK: 0",
    "AT+CPIN?": "+CPIN: READY",
    "AT+CFUN?": "+CFUN: 1",
    "AT+CSCS=?": '+CSCS: ("IRA","UCS2","GSM")',
    "AT+CSCS?": '+CSCS: "UCS2"',
    "AT+CREG?": '+CREG: 2,1,"1234","001122BB",2',
    "AT+CGREG?": '+CGREG: 2,1,"31C5","0083F7CD",2',
    "AT+COPS=3,2;+COPS?": '+COPS: 0,2,"00101",2',
    "AT+COPS=3,0;+COPS?": '+COPS: 0,0,"Test PLMN"',
    "AT+COPS=3,0": "",
    "AT+COPS=3,0 AT+COPS?": '+COPS: 0,0,"Test PLMN",2',
    "AT+COPS?": '+COPS: 0,2,"00101",2',
    "AT+CSQ": "+CSQ: 17,99",
}
"""A modem that is registered with network 00101, with a SIM that needs no PIN."""
