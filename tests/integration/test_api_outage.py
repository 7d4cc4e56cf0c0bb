"""The API while its database is away, and once it is back."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import psycopg

from api.app import create_app
from metering.settings import Settings
from metering.stack.probe import free_port
from tests.proxy import Proxy

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
        taken.bind(("127.0.0.1", free_port()))
        yield taken.getsockname()[1]


@contextmanager
def forwarding(port: int, database_url: str) -> Iterator[None]:
    """Forward a loopback port to the database; at the end, cut every connection."""
    parts = psycopg.conninfo.conninfo_to_dict(database_url)
    proxy = Proxy(str(parts["host"]), int(str(parts.get("port", 5432))), listen=port)
    try:
        yield
    finally:
        proxy.close()
