"""Events reach a real HTTP server: signed, again where it fails, and only where they may go."""

import asyncio
import base64
import hashlib
import hmac
import json
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

import pytest

from metering.control.call_webhook import signed_headers
from metering.control.send_webhooks import again_at
from metering.store.connection import connect
from metering.store.control_views import create_endpoint
from metering.store.outbox import NewEvent, record_events
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
        FLEETMETER_WEBHOOK_TIMEOUT_SECONDS="1",
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


def happen(pipeline: Pipeline, *causes: str, kind: str = "threshold.crossed") -> None:
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
    happen(pipeline, "top-up:1", kind="balance.topped_up")
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
