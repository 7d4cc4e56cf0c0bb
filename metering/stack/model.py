"""The words of the stack: servers, where they answer, how they stand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ServerName = Literal["database", "broker"]
SourceName = Literal["installed", "fetched", "compose"]
Progress = Callable[[str], None]

SERVERS: tuple[ServerName, ServerName] = ("database", "broker")


def quiet(_line: str) -> None:
    """Take a progress line and say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The broker's ports: for our processes, for devices by their credential, and for claims."""

    processes: int
    passwords: int
    certificates: int
    claims: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the two servers answer.

    Both URLs hold passwords: do not print them.
    """

    database_url: str
    broker_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """How one server stands.

    `source` is `settings`, `installed`, `fetched`, `compose` or `none`; `address` is the URL
    without its password, empty when there is none; `pid` and `folder` are known only of servers
    that the stack itself started on this machine.
    """

    name: ServerName
    source: str
    running: bool
    address: str
    pid: int | None
    folder: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A server that could be run: where it comes from and its executable.

    `executable` is `postgres`, `mosquitto`, or the compose file for the source `compose`.
    """

    source: SourceName
    executable: Path
