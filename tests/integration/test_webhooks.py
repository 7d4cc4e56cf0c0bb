"""Events reach a real HTTP server: signed, again where it fails, and only where they may go."""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from fastapi import FastAPI

from api.app import create_app
from metering.control.call_webhook import call_webhook, signed_headers
from metering.control.prune import Pruner
from metering.control.send_webhooks import again_at
from metering.event_kinds import EventKind
from metering.settings import Settings
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from metering.store.control_views import create_endpoint
from metering.store.outbox import NewEvent, record_events
from metering.store.registry import tenant_no
from tests.integration.conftest import serving
from tests.integration.pipeline import TENANT, TRACKERS, Pipeline, pipeline_of, wait_until

SECRET = b"a secret of thirty-two octets !!"


@dataclass(slots=True)
class Receiver:
    """An HTTP server that answers each request as it is told, and remembers what came."""

    answers: list[int] = field(default_factory=list)
    """One status for each request; when they are used up, 204."""
    location: str = ""
    delay_seconds: float = 0.0
    requests: list[tuple[Message, bytes]] = field(default_factory=list)
    url: str = ""

    def bodies(self) -> list[dict[str, object]]:
        return [json.loads(body) for _, body in self.requests]


@contextmanager
def receiving(receiver: Receiver) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.requests.append((self.headers, body))
            time.sleep(receiver.delay_seconds)
            self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
            if receiver.location:
                self.send_header("Location", receiver.location)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # the caller hung up: it waited no longer

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook?of=fleetmeter"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(Receiver()) as made:
        yield made


@pytest.fixture
def pipeline(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline_of(
        database_url, broker_url, tmp_path,
        FLEETMETER_CONTROL_POLL_SECONDS="0.1",
        FLEETMETER_WEBHOOK_PRIVATE_ADDRESSES="true",
        FLEETMETER_WEBHOOK_RETRY_SECONDS="0.2",
        FLEETMETER_WEBHOOK_ATTEMPTS_MAX="3",
        FLEETMETER_WEBHOOK_TIMEOUT_SECONDS="30",
    ) as made:  # fmt: skip
        yield made


def subscribe(pipeline: Pipeline, url: str, *kinds: str) -> None:
    """Make an endpoint."""

    async def create() -> None:
        async with await connect(pipeline.database_url, application="test") as connection:
            ((tenant_no,),) = await (
                await connection.execute(
                    "SELECT tenant_no FROM tenant WHERE tenant_id = %s", [TENANT]
                )
            ).fetchall()
            await create_endpoint(
                connection, tenant_no, url=url, secret=SECRET, kinds=kinds, cause=url,
                now=datetime.now(UTC),
            )  # fmt: skip

    asyncio.run(create())


def happen(pipeline: Pipeline, *causes: str, kind: EventKind = EventKind.THRESHOLD_CROSSED) -> None:
    """Record events of the first tracker."""
    ((tenant_no, fleet_no, device_no),) = pipeline.query(
        "SELECT tenant_no, fleet_no, device_no FROM device WHERE device_id = %s", TRACKERS[0]
    )
    events = [
        NewEvent(
            tenant_no=tenant_no,
            fleet_no=fleet_no,
            device_no=device_no,
            kind=kind,
            payload={"share": "0.8"},
            cause=cause,
        )
        for cause in causes
    ]

    async def record() -> None:
        async with await connect(pipeline.database_url, application="test") as connection:
            await record_events(connection, events, now=datetime.now(UTC))

    asyncio.run(record())


def api_of(pipeline: Pipeline) -> FastAPI:
    """Return the API over the same database, with the settings of the control process."""
    names = {
        name.removeprefix("FLEETMETER_").lower(): value
        for name, value in pipeline.environment.items()
    }
    return create_app(Settings(database_url=pipeline.database_url, **names))  # type: ignore[arg-type]


@contextmanager
def manager_of(pipeline: Pipeline) -> Iterator[httpx.Client]:
    """Yield a client of the tenant's admin."""

    async def key() -> str:
        async with await connect(pipeline.database_url, application="test") as connection:
            tenant = await tenant_no(connection, TENANT)
            now = datetime.now(UTC)
            return await create_api_key(connection, tenant=tenant, label="hooks", now=now)

    headers = {"Authorization": f"Bearer {asyncio.run(key())}", "Idempotency-Key": "hook"}
    with (
        serving(api_of(pipeline)) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
    ):
        yield client


def verified(headers: Message, body: bytes, secret: str) -> list[bool]:
    """Return, for each signature, whether it is that of a secret as the API gave it."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return [each == f"v1,{expected}" for each in headers["webhook-signature"].split(" ")]


def deliveries(pipeline: Pipeline) -> list[tuple[str, int, int | None, str | None]]:
    """Return state, attempts, last status and last error of every delivery."""
    return pipeline.query(
        "SELECT state, attempts, last_status, last_error FROM webhook_delivery ORDER BY delivery_no"
    )


def delivered(pipeline: Pipeline) -> Callable[[], bool]:
    return lambda: {each[0] for each in deliveries(pipeline)} == {"delivered"}


def test_an_event_is_told_once_with_a_signature_that_verifies(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    subscribe(pipeline, receiver.url)
    pipeline.start_control()
    happen(pipeline, "alert:1")
    happen(pipeline, "alert:1")
    wait_until(delivered(pipeline), "the delivery")
    assert deliveries(pipeline) == [("delivered", 1, 204, None)]
    ((headers, body),) = receiver.requests
    ((event_id, created_at),) = pipeline.query("SELECT event_id::text, created_at FROM event")
    assert json.loads(body) == {
        "id": event_id,
        "type": "threshold.crossed",
        "timestamp": created_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "fleet": "trackers",
        "device": TRACKERS[0],
        "data": {"share": "0.8"},
    }
    assert headers["webhook-id"] == event_id
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert headers["host"] == receiver.url.split("/")[2]
    signed = f"{event_id}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    outcome = 'fleetmeter_control_webhook_attempts_total{outcome="delivered"}'
    wait_until(lambda: pipeline.control_metric(outcome) == 1, "the count")


def test_the_signature_is_that_of_standard_webhooks() -> None:
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        b'{"test": 2432232314}',
        secret=base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        now=datetime.fromtimestamp(1614265330, UTC),
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_only_the_kinds_that_an_endpoint_wants_are_told(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    subscribe(pipeline, receiver.url, "balance.topped_up")
    happen(pipeline, "alert:1")
    happen(pipeline, "top-up:1", kind=EventKind.BALANCE_TOPPED_UP)
    pipeline.start_control()
    wait_until(delivered(pipeline), "the delivery")
    assert [body["type"] for body in receiver.bodies()] == ["balance.topped_up"]
    assert pipeline.count("event") == 2


def test_what_fails_is_told_again_with_the_same_id(pipeline: Pipeline, receiver: Receiver) -> None:
    receiver.answers = [500, 503]
    subscribe(pipeline, receiver.url)
    happen(pipeline, "alert:1")
    pipeline.start_control()
    wait_until(delivered(pipeline), "the delivery")
    assert deliveries(pipeline) == [("delivered", 3, 204, None)]
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1
    assert len({body for _, body in receiver.requests}) == 1


def test_after_the_last_attempt_it_has_failed_and_says_why(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    receiver.answers = [500] * 9
    subscribe(pipeline, receiver.url)
    happen(pipeline, "alert:1")
    pipeline.start_control()
    wait_until(lambda: deliveries(pipeline)[0][0] == "failed", "the last attempt")
    assert deliveries(pipeline) == [("failed", 3, 500, "answered 500")]
    happen(pipeline, "alert:2")
    wait_until(lambda: len(receiver.requests) > 3, "another event's attempt")
    assert deliveries(pipeline)[0][0] == "failed"


def test_a_slow_endpoint_holds_up_no_other(pipeline: Pipeline, receiver: Receiver) -> None:
    with receiving(Receiver(delay_seconds=5.0)) as slow:
        subscribe(pipeline, slow.url)
        subscribe(pipeline, receiver.url)
        happen(pipeline, *(f"alert:{number}" for number in range(40)))
        pipeline.environment["FLEETMETER_WEBHOOK_TIMEOUT_SECONDS"] = "1"
        pipeline.start_control()
        wait_until(lambda: len(receiver.requests) == 40, "the deliveries to the other")
        assert "queued" in {each[0] for each in deliveries(pipeline)}  # the slow one's
        wait_until(
            lambda: "no answer within 1 s" in {each[3] for each in deliveries(pipeline)},
            "the time-out",
        )


def test_a_redirect_is_not_followed(pipeline: Pipeline, receiver: Receiver) -> None:
    with receiving(Receiver(answers=[307] * 9, location=receiver.url)) as redirecting:
        subscribe(pipeline, redirecting.url)
        happen(pipeline, "alert:1")
        pipeline.start_control()
        wait_until(lambda: deliveries(pipeline)[0][0] == "failed", "the last attempt")
    assert deliveries(pipeline)[0][3] == "answered 307; redirects are not followed"
    assert receiver.requests == []


def test_an_endpoint_that_is_gone_is_told_nothing_more(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    receiver.answers = [410]
    subscribe(pipeline, receiver.url)
    happen(pipeline, "alert:1")
    pipeline.start_control()
    wait_until(lambda: deliveries(pipeline)[0][0] == "failed", "the end")
    assert pipeline.query("SELECT disabled_at IS NOT NULL FROM webhook_endpoint") == [(True,)]
    happen(pipeline, "alert:2")
    assert len(deliveries(pipeline)) == 1


def test_private_addresses_are_refused_unless_allowed(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    pipeline.environment["FLEETMETER_WEBHOOK_PRIVATE_ADDRESSES"] = "false"
    port = receiver.url.split(":")[2]
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0", "127.1"):
        subscribe(pipeline, f"http://{host}:{port}")
    happen(pipeline, "alert:1")
    pipeline.start_control()
    wait_until(lambda: {each[0] for each in deliveries(pipeline)} == {"failed"}, "the refusals")
    assert receiver.requests == []
    for _, _, status, error in deliveries(pipeline):
        assert status is None
        assert error is not None
        assert "which is not public" in error, error


@pytest.mark.parametrize(
    ("answers", "allowed", "reached"),
    [
        # A name that is another address a moment later: the connection goes to the one that was checked.
        ([["127.0.0.1"], ["127.0.0.2"]], True, True),
        ([["127.0.0.1"]], False, False),
        # One private address among public ones refuses them all: which is tried first is no matter.
        ([["198.41.0.4", "127.0.0.1"]], False, False),
        ([["198.41.0.4", "::ffff:169.254.169.254"]], False, False),
    ],
)
def test_a_name_is_resolved_once_and_only_what_was_checked_is_called(
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[list[str]],
    allowed: bool,  # noqa: FBT001 - a parameter of the test
    reached: bool,  # noqa: FBT001
) -> None:
    real = socket.getaddrinfo
    asked: list[str] = []

    def resolve(host: str, port: int, *rest: Any, **named: Any) -> list[Any]:  # noqa: ANN401
        if host != "hooks.example":
            return real(host, port, *rest, **named)
        asked.append(host)
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (family[":" in address], socket.SOCK_STREAM, 6, "", (address, port))
            for address in answers[len(asked) - 1]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    port = receiver.url.split(":")[2].partition("/")[0]
    status, error = asyncio.run(
        call_webhook(
            f"http://hooks.example:{port}/hook", b"{}", {}, tls=ssl.create_default_context(),
            timeout_seconds=30, private_addresses=allowed,
        )
    )  # fmt: skip
    assert asked == ["hooks.example"]
    assert (status == 204) is reached
    assert [told["host"] for told, _ in receiver.requests] == (
        [f"hooks.example:{port}"] if reached else []
    )
    assert reached or "which is not public" in str(error)


def test_a_url_that_cannot_be_called_stops_nothing(pipeline: Pipeline, receiver: Receiver) -> None:
    bad = ("ftp://127.0.0.1/", "http:///", "http://127.0.0.1:1/", "http://no such host/", "x", "")
    for url in (*bad, "http://[::1/", "http://" + "a" * 300 + ".example/", receiver.url):
        subscribe(pipeline, url)
    happen(pipeline, "alert:1")
    pipeline.start_control()
    wait_until(lambda: receiver.requests, "the good one")
    wait_until(
        lambda: sorted({each[0] for each in deliveries(pipeline)}) == ["delivered", "failed"],
        "the others' end",
    )
    pipeline.assert_running()


def test_killed_while_it_calls_it_calls_again(pipeline: Pipeline, receiver: Receiver) -> None:
    receiver.delay_seconds = 0.8
    subscribe(pipeline, receiver.url)
    happen(pipeline, "alert:1")
    pipeline.start_control()
    wait_until(lambda: receiver.requests, "the call")
    pipeline.kill("control")
    assert deliveries(pipeline) == [("queued", 1, None, None)]
    receiver.delay_seconds = 0
    # Whoever died with it is given its time; the test does not wait for that.
    pipeline.execute("UPDATE webhook_delivery SET due_at = now()")
    pipeline.start_control()
    wait_until(delivered(pipeline), "the delivery")
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1


def test_a_replaced_secret_signs_for_a_while_and_what_was_told_is_logged(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    pipeline.environment["FLEETMETER_SECRETS_KEY"] = Fernet.generate_key().decode()
    with manager_of(pipeline) as client:
        made = client.post("/v1/webhook-endpoints", json={"url": receiver.url}).json()
        hook = f"/v1/webhook-endpoints/{made['endpoint_id']}"
        lost = client.post(f"{hook}/secret", json={}).json()["secret"]
        answer = client.post(f"{hook}/secret", json={"overlap_seconds": 3600})
        assert answer.status_code == 201, answer.text
        assert answer.json()["previous_until"] is not None
        secret = answer.json()["secret"]
        stored = pipeline.query("SELECT secret, previous_secret FROM webhook_endpoint")[0]
        assert all(bytes(each).startswith(b"fernet:") for each in stored)
        pipeline.start_control()
        receiver.answers = [500]
        told = client.post(f"{hook}/test")
        assert told.status_code == 202, told.text
        wait_until(delivered(pipeline), "the delivery")
        assert receiver.bodies()[0]["type"] == "webhook.test"
        assert receiver.bodies()[0]["fleet"] is None
        for headers, body in receiver.requests:
            assert verified(headers, body, secret) == [True, False]
            assert verified(headers, body, made["secret"]) == [False, True]
            assert not any(verified(headers, body, lost))
        log = client.get(f"{hook}/deliveries/{told.json()['event_id']}/attempts").json()["items"]
        assert [(each["status"], each["error"]) for each in log] == [
            (204, None),
            (500, "answered 500"),
        ]
        assert all(0 <= each["milliseconds"] < 60_000 for each in log)
        assert (
            client.get("/v1/events", params={"kind": "webhook.test"}).json()["items"][0]["fleet_id"]
            is None
        )
        ended = client.post(f"{hook}/secret", json={"overlap_seconds": 0}).json()
        assert ended["previous_until"] is None
        client.post(f"{hook}/test")
        wait_until(lambda: len(receiver.requests) == 3, "the test event")
        assert verified(*receiver.requests[-1], ended["secret"]) == [True]


def test_a_secret_that_cannot_be_read_fails_its_deliveries_and_says_so(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    pipeline.environment["FLEETMETER_SECRETS_KEY"] = Fernet.generate_key().decode()
    with manager_of(pipeline) as client:
        assert client.post("/v1/webhook-endpoints", json={"url": receiver.url}).status_code == 201
    del pipeline.environment["FLEETMETER_SECRETS_KEY"]
    happen(pipeline, "alert:1")
    pipeline.start_control()
    wait_until(lambda: deliveries(pipeline)[0][3], "the failure")
    assert "FLEETMETER_SECRETS_KEY" in str(deliveries(pipeline)[0][3])
    assert receiver.requests == []


def test_what_happened_since_is_told_again(pipeline: Pipeline, receiver: Receiver) -> None:
    receiver.answers = [500, 500, 500]
    with manager_of(pipeline) as client:
        made = client.post("/v1/webhook-endpoints", json={"url": receiver.url}).json()
        hook = f"/v1/webhook-endpoints/{made['endpoint_id']}"
        pipeline.start_control()
        happen(pipeline, "alert:1")
        wait_until(lambda: deliveries(pipeline)[0][0] == "failed", "the last attempt")
        happen(pipeline, "alert:2")
        wait_until(lambda: len(receiver.requests) == 4, "the other event")
        wait_until(lambda: deliveries(pipeline)[1][0] == "delivered", "its end")
        since = {"from": "2026-01-01T00:00:00Z"}
        assert client.post(f"{hook}/replays", json=since).json() == {"queued": 1, "more": False}
        wait_until(delivered(pipeline), "the failed one")
        assert len(receiver.requests) == 5
        both = client.post(f"{hook}/replays", json=since | {"only_failed": False})
        assert (both.status_code, both.json()["queued"]) == (202, 2)
        wait_until(lambda: len(receiver.requests) == 7, "both again")
        none = since | {"to": "2026-01-02T00:00:00Z", "only_failed": False}
        assert client.post(f"{hook}/replays", json=none).json()["queued"] == 0
        wrong = client.post(f"{hook}/replays", json=since | {"to": "2025-01-02T00:00:00Z"})
        assert wrong.status_code == 422


def test_an_endpoint_at_which_nothing_arrives_for_days_is_disabled(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    with receiving(Receiver(answers=[500] * 99)) as dead:
        subscribe(pipeline, dead.url)
        subscribe(pipeline, receiver.url, "webhook.disabled")
        happen(pipeline, "alert:1")
        pipeline.start_control()
        wait_until(lambda: deliveries(pipeline)[0][0] == "failed", "the last attempt")
        failing = "SELECT failing_since FROM webhook_endpoint WHERE url = %s"
        assert pipeline.query(failing, dead.url)[0][0] is not None
        pipeline.execute(
            "UPDATE webhook_endpoint SET failing_since = failing_since - interval '6 days'"
            " WHERE failing_since IS NOT NULL"
        )
        happen(pipeline, "alert:2")
        wait_until(lambda: receiver.requests, "what the other endpoint is told")
    told = receiver.bodies()[0]
    assert (told["type"], told["fleet"]) == ("webhook.disabled", None)
    reason = "every attempt failed for 5 days"
    assert isinstance(told["data"], dict)
    assert (told["data"]["url"], told["data"]["reason"]) == (dead.url, reason)
    assert pipeline.query(
        "SELECT disabled_reason FROM webhook_endpoint WHERE url = %s", dead.url
    ) == [(reason,)]
    assert {each[0] for each in deliveries(pipeline)[:2]} == {"failed"}


def test_one_success_and_an_endpoint_fails_anew(pipeline: Pipeline, receiver: Receiver) -> None:
    receiver.answers = [500]
    subscribe(pipeline, receiver.url)
    happen(pipeline, "alert:1")
    pipeline.start_control()
    wait_until(delivered(pipeline), "the delivery")
    assert pipeline.query("SELECT failing_since, disabled_at FROM webhook_endpoint") == [
        (None, None)
    ]


def test_what_was_told_long_ago_is_forgotten(pipeline: Pipeline, receiver: Receiver) -> None:
    subscribe(pipeline, receiver.url)
    happen(pipeline, "alert:1", "alert:2", "alert:3")
    pipeline.start_control()
    wait_until(delivered(pipeline), "the deliveries")
    pipeline.execute(
        "UPDATE webhook_delivery SET attempted_at = attempted_at - interval '31 days' WHERE delivery_no = 1"
    )
    pipeline.execute(
        "UPDATE stream_entry SET recorded_at = recorded_at - interval '4 days'"
        " WHERE entry_no = (SELECT min(entry_no) FROM stream_entry)"
    )
    settings = Settings(database_url=pipeline.database_url)

    async def prune() -> None:
        async with await connect(
            pipeline.database_url, application="test", autocommit=True
        ) as connection:
            await Pruner(settings).prune(connection, now=datetime.now(UTC))

    asyncio.run(prune())
    assert [pipeline.count(each) for each in ("webhook_delivery", "webhook_attempt")] == [2, 2]
    assert (pipeline.count("stream_entry"), pipeline.count("event")) == (2, 3)
    assert pipeline.query("SELECT position, pruned_to FROM stream_head") == [(3, 1)]


def test_the_wait_doubles_up_to_its_limit_and_differs() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    random = Random(1)  # noqa: S311 - a test
    for attempts, longest in ((1, 5), (2, 10), (5, 80), (11, 3600), (500, 3600)):
        waits = {
            again_at(now, attempts, first_seconds=5, seconds_max=3600, random=random) - now
            for _ in range(50)
        }
        assert len(waits) > 40
        assert all(
            timedelta(seconds=longest / 2) <= wait <= timedelta(seconds=longest) for wait in waits
        )
