"""While the database is slow or locked, the broker holds what comes: at most one window is taken."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.integration.pipeline import (
    TRACKERS,
    DeviceClient,
    Pipeline,
    pipeline_of,
    wait_until,
)

WINDOW = 50
IN_FLIGHT = "fleetmeter_ingest_in_flight_messages"


@pytest.fixture
def pipeline(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline_of(
        database_url, broker_url, tmp_path, FLEETMETER_INGEST_WINDOW=str(WINDOW)
    ) as prepared:
        prepared.start_ingest()
        prepared.start("charge")
        yield prepared
        prepared.assert_running()


@pytest.fixture
def client(pipeline: Pipeline) -> Iterator[DeviceClient]:
    connected = DeviceClient(pipeline)
    yield connected
    connected.close()


def one_reading(number: int) -> str:
    """Return a message with the `number`-th reading of its device's boot."""
    at = datetime.now(UTC).isoformat()
    reading = {"seq": number, "at": at, "meter": "sms", "quantity": 1}
    return json.dumps({"boot": "b", "readings": [reading]})


def publish(client: DeviceClient, messages: int) -> None:
    """Publish so many messages of one reading each, spread over the trackers."""
    for number in range(messages):
        device = TRACKERS[number % len(TRACKERS)]
        client.publish(device, one_reading(number // len(TRACKERS) + 1))


@contextmanager
def locked_readings(pipeline: Pipeline) -> Iterator[None]:
    """Keep everyone from writing readings."""
    with psycopg.connect(pipeline.database_url) as connection:
        connection.execute("LOCK TABLE reading IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()


@contextmanager
def frozen_writer(pipeline: Pipeline) -> Iterator[None]:
    """Stop the server process that writes for the ingester: connected, but it does not answer."""
    wait_until(lambda: _writers(pipeline), "the ingester's connection")
    pids = _writers(pipeline)
    if not all(psutil.pid_exists(pid) and "postgres" in psutil.Process(pid).name() for pid in pids):
        pytest.skip("the database runs in a container, where its processes are not ours to stop")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _writers(pipeline: Pipeline) -> list[int]:
    rows = pipeline.query(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'fleetmeter ingest'"
    )
    return [row[0] for row in rows]


def wait_until_charged(pipeline: Pipeline, readings: int) -> None:
    wait_until(lambda: pipeline.count("charge") >= readings, f"{readings} charges")
    assert pipeline.count("reading") == readings
    assert pipeline.count("charge") == readings
    code, found = pipeline.audit_here(settle_seconds=30)
    assert code == 0, found


@pytest.mark.parametrize("hindrance", [locked_readings, frozen_writer])
def test_at_most_one_window_is_taken_and_nothing_is_lost(
    pipeline: Pipeline,
    client: DeviceClient,
    hindrance: Callable[[Pipeline], AbstractContextManager[None]],
) -> None:
    publish(client, len(TRACKERS))
    wait_until(lambda: pipeline.count("charge") == len(TRACKERS), "the first charges")
    acknowledged = len(client.acks)
    seen: list[float] = []
    with hindrance(pipeline):
        for device in TRACKERS:
            for number in range(2, 10):
                client.publish(device, one_reading(number))
            seen.append(pipeline.metric(IN_FLIGHT) or 0)
        wait_until(lambda: pipeline.metric(IN_FLIGHT) == WINDOW, "a full window")
        time.sleep(0.5)  # several times as long as acknowledgements are gathered for
        assert len(client.acks) == acknowledged
    assert max(seen) <= WINDOW
    wait_until_charged(pipeline, 9 * len(TRACKERS))
    wait_until(lambda: pipeline.metric(IN_FLIGHT) == 0, "nothing in flight")


def test_what_was_not_committed_is_delivered_again_after_a_kill(
    pipeline: Pipeline, client: DeviceClient
) -> None:
    with locked_readings(pipeline):
        publish(client, 3 * WINDOW)
        wait_until(lambda: pipeline.metric(IN_FLIGHT) == WINDOW, "a full window")
        pipeline.kill("ingest")
        pipeline.start_ingest()
        wait_until(lambda: pipeline.metric(IN_FLIGHT) == WINDOW, "the same window again")
        pipeline.restart("ingest")
    wait_until_charged(pipeline, 3 * WINDOW)
    for number, device in enumerate(TRACKERS):
        readings = len(range(number, 3 * WINDOW, len(TRACKERS)))
        client.wait_for_ack(device, "b", up_to=readings)


def test_the_ingesters_memory_does_not_grow_with_what_waits(
    pipeline: Pipeline, client: DeviceClient
) -> None:
    publish(client, WINDOW)
    wait_until(lambda: pipeline.count("reading") == WINDOW, "the first readings")
    before = pipeline.memory_octets("ingest")
    padded = json.dumps({"boot": "x", "readings": []}) + " " * 100_000
    with locked_readings(pipeline):
        for number in range(WINDOW * 8):
            client.publish(TRACKERS[0], padded)
            client.publish(TRACKERS[0], one_reading(100 + number))
        wait_until(lambda: pipeline.metric(IN_FLIGHT) == WINDOW, "a full window")
        grown = pipeline.memory_octets("ingest") - before
    # A window of these is 2.5 MB, all of them are 40 MB.
    assert grown < 20_000_000
    wait_until_charged(pipeline, WINDOW * 9)


def test_reading_pauses_at_its_bound_in_octets(
    database_url: str, broker_url: str, tmp_path: Path
) -> None:
    bound = 20_000
    with pipeline_of(
        database_url, broker_url, tmp_path, FLEETMETER_INGEST_BUFFER_OCTETS_MAX=str(bound)
    ) as pipeline:
        pipeline.start_ingest()
        pipeline.start("charge")
        client = DeviceClient(pipeline)
        padded = [one_reading(number) + " " * 5000 for number in range(1, 41)]
        with locked_readings(pipeline):
            for payload in padded:
                client.publish(TRACKERS[0], payload)
            time.sleep(0.5)
            held = pipeline.metric(IN_FLIGHT) or 0
            assert held <= bound // 5000 + 2
        wait_until_charged(pipeline, len(padded))
        client.close()
        pipeline.assert_running()


def test_messages_at_qos_0_cut_nothing_and_are_bounded_as_well(
    pipeline: Pipeline, client: DeviceClient
) -> None:
    topic = f"{client.root}/demo/{TRACKERS[0]}/usage"
    client.publish(TRACKERS[1], one_reading(1))
    client.wait_for_ack(TRACKERS[1], "b", up_to=1)
    for number in range(1, 31):
        client.client.publish(topic, one_reading(number), qos=0)
        client.publish(TRACKERS[1], one_reading(number + 1))
    client.wait_for_ack(TRACKERS[0], "b", up_to=30)
    client.wait_for_ack(TRACKERS[1], "b", up_to=31)
    with locked_readings(pipeline):
        for number in range(31, 31 + 4 * WINDOW):
            client.client.publish(topic, one_reading(number), qos=0)
        time.sleep(0.5)
        assert (pipeline.metric(IN_FLIGHT) or 0) <= 2 * WINDOW
    wait_until_charged(pipeline, 61 + 4 * WINDOW)
    assert "the broker is away" not in pipeline.log("ingest").read_text()
