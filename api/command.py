"""`fleetmeter api`: serves the HTTP API until SIGTERM or SIGINT."""

import argparse
import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn

from api.app import create_app
from api.streaming import Streams
from metering.settings import Settings

_GRACE_SECONDS = 5
"""How long a request may finish after the signal."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare where to listen; unset, the settings say."""
    parser.add_argument("--host", help="address to listen on (FLEETMETER_API_HOST)")
    parser.add_argument("--port", type=int, help="port; 0: a free one (FLEETMETER_API_PORT)")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Serve until a signal; return 0, or 1 when the address cannot be listened on."""
    host = settings.api_host if arguments.host is None else arguments.host
    port = settings.api_port if arguments.port is None else arguments.port
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = _Server(config, app.state.fleetmeter.streams)
    try:
        server.run()
    except SystemExit:  # how uvicorn says that it could not listen; it has logged why
        return 1
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    """Says where it listens, and ends with 0 on a signal instead of dying of it."""

    def __init__(self, config: uvicorn.Config, streams: Streams) -> None:
        super().__init__(config)
        self._streams = streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._streams.end()  # else it would wait for their readers to leave
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            print(f"API   {url}/v1\ndocs  {url}/docs\npage  {url}/", flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
