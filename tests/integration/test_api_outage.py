"""The API while its database is away, and once it is back."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import psycopg

from api.app import create_app
from metering.settings import Settings

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

KEY = {"Authorization": "Bearer fmk_any"}


def test_an_api_without_its_database_says_so(serve: Callable[..., Any]) -> None:
    with listening_on_nothing() as port:
        url = f"postgresql://nobody@127.0.0.1:{port}/none"
        app = create_app(Settings(database_url=url))
        with serve(app) as address, httpx.Client(base_url=address) as client:
            assert client.get("/health").json() == {"status": "alive"}
            for path in ("/v1/fleets", "/v1/devices/any", "/metrics", "/ready"):
                response = client.get(path, headers=KEY)
                assert response.status_code == 503
                assert response.headers["content-type"] == "application/problem+json"
                assert int(response.headers["retry-after"]) > 0
                assert response.json()["detail"].startswith("the database does not answer")
                assert "127.0.0.1" not in response.text
            assert client.get("/v1/fleets").status_code == 401
            assert client.get("/health").status_code == 200


def test_an_api_recovers_by_itself(api: "ApiUnderTest", serve: Callable[..., Any]) -> None:
    with listening_on_nothing() as port:
        through = psycopg.conninfo.make_conninfo(api.database_url, host="127.0.0.1", port=port)
        app = create_app(Settings(database_url=through))
        key = {"Authorization": f"Bearer {api.acme_key}"}
        with serve(app) as address, httpx.Client(base_url=address, headers=key) as client:
            assert client.get("/v1/fleets").status_code == 503
            with forwarding(port, api.database_url):
                assert answers(client, 200)
            assert answers(client, 503)
            with forwarding(port, api.database_url):
                assert answers(client, 200)


def answers(client: httpx.Client, status: int) -> bool:
    """Whether the API answers with a status within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if client.get("/v1/fleets").status_code == status:
            return True
        time.sleep(0.1)
    return False


@contextmanager
def listening_on_nothing() -> Iterator[int]:
    """Yield a loopback port that is taken, so that nobody else listens there, but refuses."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextmanager
def forwarding(port: int, database_url: str) -> Iterator[None]:
    """Forward a loopback port to the database; at the end, cut every connection."""
    parts = psycopg.conninfo.conninfo_to_dict(database_url)
    target = (str(parts["host"]), int(str(parts.get("port", 5432))))
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def forward() -> None:
        relays: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            relays.add(task)
            with contextlib.suppress(asyncio.CancelledError):
                await relay(reader, writer, target)

        server = await asyncio.start_server(accept, "127.0.0.1", port, reuse_address=True)
        started.set()
        await stop.wait()
        server.close()
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays)

    thread = threading.Thread(target=lambda: loop.run_until_complete(forward()))
    thread.start()
    try:
        assert started.wait(10)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


async def relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: tuple[str, int]
) -> None:
    """Carry bytes both ways until one side ends."""
    onward_reader, onward_writer = await asyncio.open_connection(*target)
    ways = [
        asyncio.create_task(pump(reader, onward_writer)),
        asyncio.create_task(pump(onward_reader, writer)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for each in (writer, onward_writer):
            each.close()
            with contextlib.suppress(OSError):
                await each.wait_closed()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes one way until they end."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
