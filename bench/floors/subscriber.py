"""mosquitto_sub, the C subscriber that comes with the broker, on a persistent session at QoS 1."""

import contextlib
import fcntl
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from bench.servers import Servers, program

_PIPE_OCTETS = 1024 * 1024
_WAIT_SECONDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session at the broker that is subscribed, under a topic root of its own."""

    servers: Servers
    client_id: str
    root: str

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a mosquitto_sub that takes what this session is due."""
        broker = self.servers.broker
        return [
            program(self.servers, "mosquitto_sub"), "-h", broker.host, "-p", str(broker.port),
            "-u", broker.username or "", "-P", broker.password or "",
            "-i", self.client_id, "-c", "-q", "1", "-t", f"{self.root}/+/+/usage", *arguments,
        ]  # fmt: skip


@contextlib.contextmanager
def session(servers: Servers) -> Iterator[Session]:
    """Yield a session that gathers messages from now on, whether its subscriber runs or not."""
    name = f"bench-floor-{secrets.token_hex(4)}"
    made = Session(servers=servers, client_id=name, root=f"fm/{name}")
    subprocess.run(made.command("-E"), check=True, timeout=_WAIT_SECONDS)
    try:
        yield made
    finally:
        # Without -c the broker forgets the session.
        forget = [each for each in made.command("-E") if each != "-c"]
        subprocess.run(forget, check=False, timeout=_WAIT_SECONDS)


class LineCounter:
    """Counts the lines that a process has written to its standard output."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output.fileno()
        self.lines = 0
        os.set_blocking(self._output, False)
        with contextlib.suppress(OSError, AttributeError):  # where a pipe cannot be made larger
            fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, _PIPE_OCTETS)

    def count(self) -> int:
        """Take what was written by now; return how many lines that makes in all."""
        while True:
            try:
                taken = os.read(self._output, _PIPE_OCTETS)
            except BlockingIOError:
                return self.lines
            if not taken:
                return self.lines
            self.lines += taken.count(b"\n")


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process, and end it at the end."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
