"""Several ingesters share what comes: each message goes to one, and a killed one costs nothing."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.integration.pipeline import (
    TRACKERS,
    DeviceClient,
    MqttVersion,
    Pipeline,
    pipeline_of,
    wait_until,
)

MESSAGES = "fleetmeter_ingest_messages_total"
START = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture(params=["5", "3.1.1"])
def version(request: pytest.FixtureRequest) -> MqttVersion:
    given: MqttVersion = request.param
    return given


@pytest.fixture
def pipeline(
    database_url: str, broker_url: str, tmp_path: Path, version: MqttVersion
) -> Iterator[Pipeline]:
    with pipeline_of(
        database_url,
        broker_url,
        tmp_path,
        FLEETMETER_MQTT_VERSION=version,
        FLEETMETER_INGEST_SHARED_GROUP=f"group-{tmp_path.name}",
        FLEETMETER_INGEST_BATCH_READINGS_MAX="20",
    ) as prepared:
        prepared.start_ingest()
        start_second(prepared)
        prepared.start("charge")
        yield prepared
        prepared.assert_running()


def start_second(pipeline: Pipeline) -> None:
    """Start a second ingester and wait until it hears what is published."""
    before = subscriptions(pipeline)
    pipeline.start("ingest#2")
    wait_until(lambda: subscriptions(pipeline) > before, "the second subscription")


def subscriptions(pipeline: Pipeline) -> int:
    log = pipeline.log("ingest#2")
    return log.read_text().count("subscribed to") if log.exists() else 0


def message(number: int) -> str:
    at = (START + timedelta(milliseconds=number)).isoformat()
    reading = {"seq": number, "at": at, "meter": "sms", "quantity": 1}
    return json.dumps({"boot": "b", "readings": [reading]})


def test_two_ingesters_share_the_load_and_survive_each_others_death(pipeline: Pipeline) -> None:
    client = DeviceClient(pipeline)
    for number in range(1, 101):
        client.publish(TRACKERS[number % 2], message((number + 1) // 2), wait=False)
    wait_until(lambda: pipeline.count("reading") == 100, "all readings")
    client.wait_for_ack(TRACKERS[0], "b", up_to=50)
    client.close()
    wait_until(lambda: 0 < (pipeline.metric(MESSAGES) or 0) < 100, "a share of the messages")

    run = pipeline.simulate(0, seed=7, interval=0.2, reorder=0.1)
    run.wait_for_more(200)
    pipeline.kill("ingest#2")
    run.wait_for_more(200)
    start_second(pipeline)
    pipeline.kill("ingest")
    run.wait_for_more(200)
    pipeline.start_ingest()
    assert run.end() == 0, "not all was acknowledged end to end"
    code, verdict = pipeline.audit(run.ledger)
    assert code == 0, verdict
    assert pipeline.count("reading") == 100 + len(set(run.ledger.read_text().splitlines()))
