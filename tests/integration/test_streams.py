"""What happens in a fleet is told once, in the order of its commits, also to who was away meanwhile."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from api.app import create_app
from api.streaming import Place, Streams
from metering.access import Identity, Role
from metering.event_kinds import EventKind
from metering.ids import TenantNo
from metering.settings import Settings
from metering.stack.probe import free_port
from metering.store.api_keys import create_api_key
from metering.store.connection import Connection, connect, connection_pool
from metering.store.outbox import NewEvent, record_events
from metering.store.registry import tenant_no
from tests.integration.api_scene import operating
from tests.integration.conftest import NOW, serving
from tests.integration.pipeline import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

NORTH = "/v1/fleets/acme-north/stream"
_SECONDS = 60.0
_LISTENERS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE '%api streams'
"""
Session = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Told:
    """One message of a stream."""

    topic: str
    data: dict[str, Any]
    place: str


@dataclass(slots=True)
class Stream:
    """An open stream, read as the standard says."""

    lines: Iterator[str]
    place: str = ""
    comments: list[str] = field(default_factory=list)

    def next(self) -> Told:
        """Wait for the next message."""
        topic, data = "message", ""
        deadline = time.monotonic() + _SECONDS
        for line in self.lines:
            assert time.monotonic() < deadline, "nothing but heartbeats"
            name, _, value = line.partition(": ")
            match name:
                case "event":
                    topic = value
                case "data":
                    data += value
                case "id":
                    self.place = value
                case "":
                    if line:
                        self.comments.append(value)
                    elif data:
                        return Told(topic, json.loads(data), self.place)
                    topic, data = "message", ""
        raise EOFError

    def until(self, topic: str) -> Told:
        """Wait for the next message of a topic."""
        while (told := self.next()).topic != topic:
            pass
        return told


@contextmanager
def listening(
    client: httpx.Client, *, since: str | None = None, path: str = NORTH
) -> Iterator[Stream]:
    headers = {} if since is None else {"Last-Event-ID": since}
    with client.stream("GET", path, headers=headers, timeout=_SECONDS) as response:
        if response.status_code != 200:
            response.read()
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        yield Stream(response.iter_lines())


def happened(*causes: str, fleet_no: int = 1, tenant: int = 1, payload: str = "") -> list[NewEvent]:
    return [
        NewEvent(
            tenant_no=tenant,
            fleet_no=fleet_no,
            device_no=None,
            kind=EventKind.THRESHOLD_CROSSED,
            payload={"of": cause, "more": payload},
            cause=cause,
        )
        for cause in causes
    ]


def record(url: str, *causes: str, payload: str = "") -> None:
    """Record events of fleet acme-north, each in a transaction of its own."""

    async def work() -> None:
        async with await connect(url, application="test", autocommit=True) as connection:
            for event in happened(*causes, payload=payload):
                await record_events(connection, [event], now=NOW)

    asyncio.run(work())


def change_balance(session: Session) -> None:
    session.execute("UPDATE bucket SET used = used - 1 WHERE kind = 'pool' AND fleet_no = 1")


@contextmanager
def served(
    url: str, *, now: Callable[[], datetime] = lambda: NOW, **settings: float
) -> Iterator[str]:
    """Serve the API with settings of its own over a database that is there."""
    with serving(create_app(Settings(database_url=url, **settings), now=now)) as address:  # type: ignore[arg-type]
        yield address


def key_of(url: str, *, expires_at: datetime | None = None) -> str:
    async def create() -> str:
        async with await connect(url, application="test") as connection:
            tenant = await tenant_no(connection, "acme")
            return await create_api_key(
                connection,
                tenant=tenant,
                label="stream",
                now=NOW,
                role=Role.READ_ONLY,
                expires_at=expires_at,
            )

    return asyncio.run(create())


@contextmanager
def client_of(address: str, key: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=address, headers=headers, timeout=_SECONDS) as client:
        yield client


def refusal(client: httpx.Client) -> httpx.Response:
    """Ask for a stream; what was not refused is not read, for it has no end."""
    with client.stream("GET", NORTH) as response:
        if not response.is_success:
            response.read()
        return response


def alerts(stream: Stream, number: int) -> list[str]:
    return [stream.until("alert").data["payload"]["of"] for _ in range(number)]


def test_the_balance_comes_first_and_what_happens_after_it(api: "ApiUnderTest") -> None:
    with listening(api.acme) as stream:
        first = stream.next()
        shown = api.acme.get("/v1/fleets/acme-north/balance").json()
        assert first.topic == "balance"
        assert first.data == {"version": first.data["version"]} | shown
        assert first.place.endswith(f".{first.data['version']}")
        headers = {"Idempotency-Key": "stream"}
        order = {"kind": "throttle", "payload": {"octets_per_second": 16000}}
        made = api.acme.post("/v1/devices/acme-2/commands", json=order, headers=headers).json()
        told = stream.until("command")
        assert (told.data["command_id"], told.data["state"]) == (made["command_id"], "queued")
        assert told.data["device_id"] == "acme-2"
        change = {"device_ids": ["acme-3"], "state": "suspended", "at": "2026-04-15T11:00:00Z"}
        answer = api.acme.post("/v1/state-changes", json=change, headers=headers)
        assert answer.status_code == 201, answer.text
        told = stream.until("device_state")
        assert (told.data["device_id"], told.data["state"]) == ("acme-3", "suspended")
        assert told.data["from"] == "2026-04-15T11:00:00Z"
        record(api.database_url, "one")
        told = stream.until("alert")
        listed = api.acme.get("/v1/events", params={"limit": 1}).json()["items"][0]
        assert told.data == listed


def test_what_is_committed_once_a_stream_is_open_is_told(api: "ApiUnderTest") -> None:
    with psycopg.connect(api.database_url) as session:
        session.execute("LOCK stream_head IN ACCESS EXCLUSIVE MODE")
        # Where it begins cannot be known, so it is not open: nothing comes, not even the answer's head.
        with pytest.raises(httpx.ReadTimeout), api.acme.stream("GET", NORTH, timeout=2):
            pass
        session.rollback()
        session.execute("LOCK fleet_cycle IN ACCESS EXCLUSIVE MODE")
        with listening(api.acme) as stream:  # though its balance cannot be read yet
            record(api.database_url, "one", "two")
            session.rollback()
            assert stream.next().topic == "balance"
            assert alerts(stream, 2) == ["one", "two"]


def test_who_begins_hears_the_balance_before_what_came_meanwhile(api_database_url: str) -> None:
    async def balance(_connection: Connection) -> dict[str, object]:
        return {}

    async def unrefused() -> None:
        return None

    async def heard() -> list[str]:
        pool = connection_pool(
            api_database_url, application="test", size_max=2, answer_seconds_max=_SECONDS
        )
        streams = Streams(
            pool, database_url=api_database_url, answer_seconds_max=_SECONDS,
            heartbeat_seconds=_SECONDS, per_caller_max=1,
        )  # fmt: skip
        identity = Identity(tenant_no=TenantNo(1), role=Role.READ_ONLY, fleets=(1,))
        async with (
            pool,
            streams.reading(
                identity, tenant_no=TenantNo(1), fleet_no=1, place=Place(), balance=balance,
                refusal=unrefused,
            ) as reader,
        ):  # fmt: skip
            await reader.begin()
            await asyncio.to_thread(record, api_database_url, "meanwhile")
            messages = reader.messages()
            told = [(await anext(messages)).decode().partition("\n")[0] for _ in range(3)]
            await messages.aclose()
            await streams.close()
        return told

    assert asyncio.run(heard()) == ["retry: 2000", "event: balance", "event: alert"]


def test_who_returns_hears_each_of_what_they_missed_once(api: "ApiUnderTest") -> None:
    with listening(api.acme) as stream:
        record(api.database_url, "0")
        place = stream.until("alert").place
    record(api.database_url, *map(str, range(1, 251)))  # more than a page
    with listening(api.acme, since=place) as stream:
        assert alerts(stream, 120) == [str(number) for number in range(1, 121)]
        place = stream.place
    with listening(api.acme, since=place) as stream:
        assert alerts(stream, 130) == [str(number) for number in range(121, 251)]
        record(api.database_url, "last")
        assert alerts(stream, 1) == ["last"]


def test_what_commits_later_is_told_later_however_early_it_began(api: "ApiUnderTest") -> None:
    async def work(stream: Stream) -> str:
        async with await connect(api.database_url, application="test") as early:
            await record_events(early, happened("early"), now=NOW)
            record_events_of = asyncio.to_thread(record, api.database_url, "late")
            await record_events_of
            assert await asyncio.to_thread(alerts, stream, 1) == ["late"]
            place = stream.place
            await early.commit()
        assert await asyncio.to_thread(alerts, stream, 1) == ["early"]
        return place

    with listening(api.acme) as stream:
        place = asyncio.run(work(stream))
    with listening(api.acme, since=place) as stream:
        assert alerts(stream, 1) == ["early"]


def test_balances_are_gathered_and_the_last_one_is_told(api: "ApiUnderTest") -> None:
    with (
        psycopg.connect(api.database_url, autocommit=True) as session,
        listening(api.acme) as stream,
    ):
        before = stream.next().data
        for _ in range(200):
            change_balance(session)
        row = session.execute("SELECT version FROM balance_version WHERE fleet_no = 1").fetchone()
        assert row is not None
        told = None
        versions = [before["version"]]
        while versions[-1] < row[0]:
            told = stream.until("balance")
            versions.append(told.data["version"])
        assert row[0] == before["version"] + 200
        assert versions == sorted(set(versions))
        assert len(versions) < 100
        assert told is not None
        used = before["pools"][0]["pool"]["used"]
        assert told.data["pools"][0]["pool"]["used"] == used - 200
        place = stream.place
    # Nothing changed since: the balance is not told again.
    with listening(api.acme, since=place) as stream:
        record(api.database_url, "one")
        assert stream.next().topic == "alert"


def test_other_fleets_and_tenants_are_not_heard(api: "ApiUnderTest") -> None:
    with psycopg.connect(api.database_url) as session:
        found = session.execute("SELECT fleet_id, tenant_no, fleet_no FROM fleet")
        fleets = {fleet_id: numbers for fleet_id, *numbers in found.fetchall()}

    async def work() -> None:
        async with await connect(api.database_url, application="test") as connection:
            for fleet_id in ("rival-north", "acme-empty", "acme-north"):
                tenant, fleet_no = fleets[fleet_id]
                events = happened(fleet_id, fleet_no=fleet_no, tenant=tenant)
                await record_events(connection, events, now=NOW)

    with (
        listening(api.acme) as stream,
        listening(api.rival, path="/v1/fleets/rival-north/stream") as rival,
    ):
        asyncio.run(work())
        assert alerts(stream, 1) == ["acme-north"]
        assert alerts(rival, 1) == ["rival-north"]
        record(api.database_url, "next")
        assert alerts(stream, 1) == ["next"]


def test_a_revoked_key_ends_its_streams_at_once(api: "ApiUnderTest") -> None:
    key = key_of(api.database_url)
    with (
        served(api.database_url, stream_heartbeat_seconds=3600.0) as address,
        client_of(address, key) as client,
        listening(client) as stream,
    ):
        assert stream.next().topic == "balance"
        keys = api.acme.get("/v1/api-keys").json()["items"]
        number = next(each["api_key_no"] for each in keys if each["label"] == "stream")
        assert api.acme.delete(f"/v1/api-keys/{number}").status_code == 204
        told = stream.until("end")
        assert told.data["reason"] == "access"
        assert told.data["detail"].startswith("this API key is unknown or revoked")
        with pytest.raises(EOFError):
            stream.next()
        assert refusal(client).status_code == 401


def test_a_key_revoked_while_nobody_listened_ends_its_streams(api: "ApiUnderTest") -> None:
    key = key_of(api.database_url)
    with (
        served(api.database_url, stream_heartbeat_seconds=3600.0) as address,
        client_of(address, key) as client,
        listening(client) as stream,
        psycopg.connect(api.database_url, autocommit=True) as connection,
    ):
        assert stream.next().topic == "balance"
        wait_until(lambda: connection.execute(_LISTENERS).rowcount == 1, "a session that listens")
        connection.execute(
            f"WITH ended AS (SELECT pg_terminate_backend(pid) FROM ({_LISTENERS}) AS one)"  # noqa: S608
            " UPDATE api_key SET revoked_at = now() FROM ended WHERE label = 'stream'"
        )
        assert stream.until("end").data["reason"] == "access"


def test_an_expired_key_ends_its_streams(api: "ApiUnderTest") -> None:
    times = [NOW]
    key = key_of(api.database_url, expires_at=NOW + timedelta(hours=1))
    with (
        served(api.database_url, now=lambda: times[-1], stream_heartbeat_seconds=0.2) as address,
        client_of(address, key) as client,
        listening(client) as stream,
    ):
        assert stream.next().topic == "balance"
        times.append(NOW + timedelta(hours=1))
        assert stream.until("end").data["detail"] == "this API key has expired"
        assert stream.comments[:1] in ([], ["heartbeat"])


def test_a_quiet_stream_beats(api: "ApiUnderTest") -> None:
    with (
        served(api.database_url, stream_heartbeat_seconds=0.2) as address,
        client_of(address, api.acme_key) as client,
        listening(client) as stream,
    ):
        place = stream.next().place
        lines = (line for line in stream.lines if line)
        assert [next(lines) for _ in range(4)] == [": heartbeat", f"id: {place}"] * 2


def test_a_key_has_so_many_streams_and_all_share_one_connection(api: "ApiUnderTest") -> None:
    with (
        served(api.database_url, streams_per_key_max=2) as address,
        client_of(address, api.acme_key) as client,
        client_of(address, key_of(api.database_url)) as other,
        psycopg.connect(api.database_url, autocommit=True) as session,
    ):
        with listening(client) as first, listening(client) as second, listening(other) as third:
            assert {each.next().topic for each in (first, second, third)} == {"balance"}
            refused = refusal(client)
            assert refused.status_code == 429
            assert refused.json()["type"] == "urn:fleetmeter:too-many-requests"
            assert "Retry-After" in refused.headers
            found = session.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'fleetmeter api streams'"
            )
            assert found.fetchone() == (1,)
            record(api.database_url, "one")
            assert [alerts(each, 1) for each in (first, second, third)] == [["one"]] * 3

        wait_until(lambda: refusal(client).is_success, "a stream in place of those that ended")


def test_a_reader_that_takes_nothing_is_dropped_and_returns(api: "ApiUnderTest") -> None:
    with served(api.database_url, stream_send_seconds_max=0.5) as address:
        parts = urlsplit(address)
        with (
            client_of(address, api.acme_key) as client,
            operating(address, api.database_url) as operator,
        ):
            with listening(client) as stream:
                place = stream.next().place
            with socket.socket() as slow:
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                slow.connect((parts.hostname, parts.port))
                slow.sendall(
                    f"GET {NORTH} HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {place}\r\n"
                    f"Authorization: Bearer {api.acme_key}\r\n\r\n".encode()
                )
                assert slow.recv(12) == b"HTTP/1.1 200"
                causes = [str(number) for number in range(200)]
                record(api.database_url, *causes, payload="x" * 100_000)

                def dropped() -> bool:
                    text = operator.get("/metrics", headers={"Fleetmeter-Tenant": "acme"}).text
                    return 'fleetmeter_stream_ends_total{reason="slow"} 1.0' in text

                wait_until(dropped, "the end of the slow reader's stream")
            with listening(client, since=place) as stream:
                assert alerts(stream, 200) == causes


def test_who_stayed_away_for_too_long_is_told_so(api: "ApiUnderTest") -> None:
    with listening(api.acme) as stream:
        place = stream.next().place
        record(api.database_url, "gone", "kept")
        assert alerts(stream, 2) == ["gone", "kept"]
    with psycopg.connect(api.database_url, autocommit=True) as session:
        session.execute(
            "UPDATE stream_entry SET recorded_at = now() - interval '9 days'"
            " WHERE detail ->> 'cause' = 'gone'"
        )
        session.execute("SELECT prune_stream(now() - interval '3 days')")
    with listening(api.acme, since=place) as stream:
        assert [stream.next().topic for _ in range(2)] == ["reset", "balance"]
        record(api.database_url, "next")
        assert alerts(stream, 1) == ["next"]
    with listening(api.acme, since="999999999.1") as stream:  # of another deployment
        assert stream.next().topic == "reset"


def test_streams_outlive_their_connection_to_the_database(api: "ApiUnderTest") -> None:
    with (
        psycopg.connect(api.database_url, autocommit=True) as session,
        listening(api.acme) as stream,
    ):
        assert stream.next().topic == "balance"

        def ended() -> int:
            found = session.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'fleetmeter api%'"
            ).fetchone()
            assert found is not None
            return int(found[0])

        wait_until(lambda: ended() >= 2, "its connections")
        record(api.database_url, "meanwhile")
        assert alerts(stream, 1) == ["meanwhile"]


def test_a_stream_says_when_the_server_ends(api: "ApiUnderTest", tmp_path: Path) -> None:
    port = free_port()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("FLEETMETER_")
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "metering.cli", "api", "--port", str(port)],
        cwd=tmp_path,
        env=environment | {"FLEETMETER_DATABASE_URL": api.database_url},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"API")
        with (
            client_of(f"http://127.0.0.1:{port}", api.acme_key) as client,
            listening(client) as stream,
        ):
            assert stream.next().topic == "balance"
            process.send_signal(signal.SIGTERM)
            assert stream.until("end").data["reason"] == "shutdown"
        assert process.wait(_SECONDS) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_place_that_is_none_is_refused(api: "ApiUnderTest") -> None:
    for place in ("x", "1", "1.2.3", "-1.2", "9" * 40):
        answer = api.acme.get(NORTH, headers={"Last-Event-ID": place})
        assert answer.status_code == 422, place
        assert answer.json()["errors"][0]["field"] == "Last-Event-ID"
