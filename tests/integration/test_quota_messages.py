"""Devices ask for quota over MQTT and are told grants; what cannot be granted is refused, not lost."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from metering.broker_address import parse_broker_url
from tests.integration.pipeline import TENANT, TRACKERS, Pipeline, pipeline_of, wait_until

DEVICE = TRACKERS[0]


class AskingDevice:
    """A plain MQTT client in the place of one device: it asks, and answers what it is told."""

    def __init__(self, pipeline: Pipeline) -> None:
        address = parse_broker_url(pipeline.broker_url)
        self.branch = f"{pipeline.topic_root}/{TENANT}/{DEVICE}"
        self.heard: list[dict[str, Any]] = []
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.on_message = self._on_message
        subscribed: list[int] = []
        self.client.on_subscribe = lambda *_: subscribed.append(1)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{self.branch}/command", 1)
        self.client.username_pw_set(address.username, address.password)
        self.client.connect(address.host, address.port)
        self.client.loop_start()
        wait_until(lambda: subscribed, "the device's subscription")

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        command = json.loads(message.payload)
        if command["id"] not in [each["id"] for each in self.heard]:
            self.heard.append(command)
        answer = json.dumps({"id": command["id"], "outcome": "done"})
        self.client.publish(f"{self.branch}/command-ack", answer, qos=1)

    def send(self, payload: str) -> None:
        self.client.publish(f"{self.branch}/quota", payload, qos=1).wait_for_publish(30)

    def ask(self, **asked: object) -> dict[str, Any]:
        """Publish a request and return the next answer."""
        return self.told(json.dumps(asked))

    def told(self, payload: str) -> dict[str, Any]:
        before = len(self.heard)
        self.send(payload)
        wait_until(lambda: len(self.heard) > before, f"an answer to {payload[:80]}")
        return self.heard[before]


@pytest.fixture
def pipeline(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline_of(
        database_url, broker_url, tmp_path,
        FLEETMETER_CONTROL_POLL_SECONDS="0.1", FLEETMETER_CHARGING_POLL_SECONDS="0.2",
        FLEETMETER_QUOTA_VALIDITY_SECONDS="3", FLEETMETER_QUOTA_OCTETS_MIN="500",
        FLEETMETER_QUOTA_FINAL_ACTION="restrict",
    ) as made:  # fmt: skip
        yield made


@pytest.fixture
def device(pipeline: Pipeline) -> Iterator[AskingDevice]:
    pipeline.start_control()
    asking = AskingDevice(pipeline)
    yield asking
    asking.client.disconnect()
    asking.client.loop_stop()


def test_a_device_asks_and_settles(pipeline: Pipeline, device: AskingDevice) -> None:
    grant = device.ask(request="r1", meter="data", quantity=300)
    assert (grant["kind"], grant["request"], grant["outcome"]) == ("grant", "r1", "granted")
    assert (grant["granted"], grant["overshoot_bound"], grant["meter"]) == (300, 300, "data")
    assert 0 < grant["validity_seconds"] <= 3
    assert "final" not in grant
    again = device.ask(request="r1", meter="data", quantity=300)
    assert (again["granted"], again["expires_at"]) == (300, grant["expires_at"])
    assert again["id"] != grant["id"]
    ended = device.ask(request="r1", action="settle", used=120)
    assert (ended["outcome"], ended["state"], ended["drawn"]) == ("ended", "settled", 0)
    sms = device.ask(request="r2", meter="sms")
    assert (sms["granted"], sms["final"]) == (3, "restrict")
    assert device.ask(request="r2", action="release")["state"] == "released"
    assert pipeline.query("SELECT count(*), sum(reserved) FROM bucket WHERE reserved > 0") == [
        (0, None)
    ]


def test_a_bad_request_is_refused_and_stops_nothing(
    pipeline: Pipeline, device: AskingDevice
) -> None:
    for payload, reason, detail in (
        ("{", "invalid_request", "JSON"),
        ('{"request": "r1", "meter": "fuel"}', "invalid_request", "use one of data"),
        ('{"request": "r1", "meter": "data", "much": 1}', "invalid_request", "much"),
        ('{"request": "r1", "action": "settle"}', "invalid_request", "used"),
        ('{"request": "r/1", "meter": "data"}', "invalid_request", "request"),
        ('{"request": "r9", "action": "release"}', "unknown_request", "r9"),
        (
            json.dumps({"request": "x", "meter": "data", "zone": "z" * 5000}),
            "invalid_request",
            "4096",
        ),
    ):
        refused = device.told(payload)
        assert (refused["outcome"], refused["reason"]) == ("refused", reason), refused
        assert detail in refused["detail"]
    pipeline.execute("UPDATE device_state_change SET state = 'suspended'")
    assert device.ask(request="r2", meter="data")["reason"] == "not_active"
    assert pipeline.processes["control"].poll() is None
    assert pipeline.count("reservation") == 0


def test_workers_end_grants_whose_time_is_over(pipeline: Pipeline, device: AskingDevice) -> None:
    pipeline.start("charge")
    pipeline.start("charge#2")
    grant = device.ask(request="r1", meter="data", quantity=300)
    asked_at = time.monotonic()
    wait_until(
        lambda: pipeline.query("SELECT state FROM reservation") == [("expired",)], "the expiry"
    )
    # It holds for as long as it was granted, and no longer than a look of the worker after that.
    assert time.monotonic() - asked_at > grant["validity_seconds"] - 1
    late = pipeline.query("SELECT extract(epoch FROM ended_at - expires_at) FROM reservation")
    assert 0 <= late[0][0] < 10
    assert pipeline.query("SELECT count(*) FROM bucket_entry WHERE kind = 'release'") == [(1,)]
    assert pipeline.query("SELECT count(*) FROM event WHERE kind = 'reservation.expired'") == [(1,)]
    assert pipeline.audit_here(settle_seconds=30)[0] == 0


def test_a_killed_control_process_answers_each_request_once_it_is_back(
    pipeline: Pipeline, device: AskingDevice
) -> None:
    device.ask(request="r0", meter="data", quantity=10)
    pipeline.kill("control")
    device.send(json.dumps({"request": "r1", "meter": "data", "quantity": 20}))
    device.send(json.dumps({"request": "r2", "meter": "sms", "quantity": 2}))
    pipeline.start_control()
    wait_until(
        lambda: {each["request"] for each in device.heard} == {"r0", "r1", "r2"}, "the answers"
    )
    assert pipeline.query("SELECT request_id, granted FROM reservation ORDER BY 1") == [
        ("r0", 10), ("r1", 20), ("r2", 2),
    ]  # fmt: skip
    assert pipeline.audit_here(settle_seconds=30)[0] == 0
