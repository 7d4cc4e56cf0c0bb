"""Asks a server whether it really answers, by a connection of its own protocol."""

import secrets
import socket
import ssl
from collections.abc import Collection
from contextlib import suppress
from urllib.parse import unquote, urlsplit

import psycopg

from metering.errors import StackError

_SECONDS = 3.0
_CONNACK_OCTETS = 4
_PORT_MIN, _PORT_END = 15_000, 32_000


def database_answers(url: str) -> str | None:
    """Return None when PostgreSQL takes a connection, else what stands against it."""
    try:
        with psycopg.connect(url, connect_timeout=int(_SECONDS)):
            return None
    except psycopg.Error as error:
        return str(error).partition("\n")[0] or type(error).__name__


def broker_answers(url: str) -> str | None:
    """Return None when the broker takes a CONNECT (MQTT 3.1.1), else what stands against it."""
    parts = urlsplit(url)
    secure = parts.scheme in {"mqtts", "ssl", "tls"}
    host, port = parts.hostname or "127.0.0.1", parts.port or (8883 if secure else 1883)
    user = unquote(parts.username) if parts.username is not None else None
    password = unquote(parts.password) if parts.password is not None else None
    try:
        with socket.create_connection((host, port), timeout=_SECONDS) as plain:
            connection: socket.socket = plain
            if secure:
                context = ssl.create_default_context()
                connection = context.wrap_socket(plain, server_hostname=host)
            connection.settimeout(_SECONDS)
            connection.sendall(_connect(user, password))
            answer = b""
            while len(answer) < _CONNACK_OCTETS:
                if not (received := connection.recv(_CONNACK_OCTETS - len(answer))):
                    return "the broker closed the connection"
                answer += received
            with suppress(OSError):
                connection.sendall(b"\xe0\x00")
                # Not left open behind us: a close that the broker has not read may be reset.
                connection.shutdown(socket.SHUT_WR)
    except OSError as error:
        return error.strerror or str(error)
    if answer[:1] != b"\x20" or answer[3] != 0:
        return f"the broker refused the connection (code {answer[3]})"
    return None


def _connect(user: str | None, password: str | None) -> bytes:
    flags = 0x02  # clean session
    payload = _text("fleetmeter-probe-" + secrets.token_hex(4))
    if user is not None:
        flags |= 0x80
        payload += _text(user)
        if password is not None:
            flags |= 0x40
            payload += _text(password)
    body = _text("MQTT") + bytes([4, flags, 0, 30]) + payload
    length = len(body)
    prefix = b""
    while True:
        length, low = divmod(length, 128)
        prefix += bytes([low | 0x80 if length else low])
        if not length:
            return b"\x10" + prefix + body


def _text(value: str) -> bytes:
    encoded = value.encode()
    return len(encoded).to_bytes(2, "big") + encoded


def free_port(preferred: int | None = None, *, besides: Collection[int] = ()) -> int:
    """Return a free port of the loopback interface, the preferred one if nobody listens there.

    One that is given away already, `besides`, does not count.

    Others come from below the range (Linux: from 32768) out of which the system gives ports to
    clients, one of which might otherwise hold ours at the next start. Raises StackError when none
    is free.
    """
    drawn = (_PORT_MIN + secrets.randbelow(_PORT_END - _PORT_MIN) for _ in range(200))
    for port in drawn if preferred is None else (preferred, *drawn):
        if port in besides:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                trial.bind(("127.0.0.1", port))
                return port
    raise StackError(f"no free port between {_PORT_MIN} and {_PORT_END}")
