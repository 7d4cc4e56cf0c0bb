"""Whatever is published: good readings are charged, bad ones kept with their reason, none in the way.

Over MQTT 5 and 3.1.1, each with a real ingester and worker. Every test has a device of its own.
"""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from metering.settings import Settings
from metering.usage import QUANTITY_MAX
from metering.wire.ack import RejectedReading
from tests.integration.pipeline import (
    TENANT,
    TRACKERS,
    DeviceClient,
    MqttVersion,
    Pipeline,
    fresh_database,
    pipeline_of,
    wait_until,
)

Fields = dict[str, object]

PROBES = [f"probe-{number}" for number in range(100)]
START = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)


def reading(seq: int, **changes: object) -> Fields:
    """Return one SMS that was sent a second after the reading before."""
    at = (START + timedelta(seconds=seq)).isoformat()
    return {"seq": seq, "at": at, "meter": "sms", "quantity": 1} | changes


def message(boot: str, readings: Sequence[object], **more: object) -> str:
    return json.dumps({"boot": boot, "readings": readings} | more)


class Scene:
    """One boot of one device, and what the platform makes of what it publishes."""

    def __init__(self, pipeline: Pipeline, client: DeviceClient, device: str) -> None:
        self.pipeline = pipeline
        self.client = client
        self.device = device
        self.boot = secrets.token_hex(8)

    @property
    def topic(self) -> str:
        return f"{self.pipeline.topic_root}/{TENANT}/{self.device}/usage"

    def publish(self, *readings: object, **more: object) -> None:
        self.client.publish(self.device, message(self.boot, readings, **more))

    def stored(self) -> list[int]:
        return [
            row[0]
            for row in self.pipeline.query(
                "SELECT seq FROM reading JOIN boot USING (boot_no) WHERE boot_id = %s ORDER BY seq",
                self.boot,
            )
        ]

    def charged(self) -> list[tuple[int, int]]:
        return [
            (row[0], row[1])
            for row in self.pipeline.query(
                "SELECT seq, quantity FROM charge JOIN boot USING (boot_no) WHERE boot_id = %s"
                " ORDER BY seq, part",
                self.boot,
            )
        ]

    def rejected(self, topic: str | None = None) -> list[Mapping[str, object]]:
        names = "reason, field, detail, boot_id, seq, content, times, tenant_no"
        rows = self.pipeline.query(
            f"SELECT {names} FROM rejected WHERE topic = %s ORDER BY rejected_no",  # noqa: S608
            topic or self.topic,
        )
        return [dict(zip(names.split(", "), row, strict=True)) for row in rows]

    def wait_for_rejection(self, topic: str | None = None) -> Mapping[str, object]:
        wait_until(lambda: self.rejected(topic), "a row in rejected")
        (row,) = self.rejected(topic)
        return row

    def wait_for_refusal(self, boot: str) -> RejectedReading:
        """Return the one rejection that was told on the ack topic for a boot."""
        wait_until(lambda: self.refusals(boot), "a refusal on the ack topic")
        return self.refusals(boot)[0]

    def refusals(self, boot: str) -> list[RejectedReading]:
        return [one for ack in self.client.acks_of(self.device, boot) for one in ack.rejected]

    def expect_good_is_charged(self, seq: int = 1) -> None:
        """Publish the next good message and wait until it is acknowledged and charged."""
        self.publish(reading(seq))
        self.client.wait_for_ack(self.device, self.boot, up_to=seq)
        self.wait_until_charged(seq)

    def wait_until_charged(self, seq: int) -> None:
        wait_until(lambda: (seq, 1) in self.charged(), f"the charge of reading {seq}")


@pytest.fixture(scope="module", params=["5", "3.1.1"])
def version(request: pytest.FixtureRequest) -> MqttVersion:
    chosen: MqttVersion = request.param
    return chosen


@pytest.fixture(scope="module")
def pipeline(
    stack_settings: Settings, version: MqttVersion, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    assert stack_settings.database_url is not None
    assert stack_settings.broker_url is not None
    folder: Path = tmp_path_factory.mktemp("inputs")
    with (
        fresh_database(stack_settings.database_url.get_secret_value()) as database_url,
        pipeline_of(
            database_url,
            stack_settings.broker_url.get_secret_value(),
            folder,
            more_trackers=PROBES,
            FLEETMETER_MQTT_VERSION=version,
        ) as prepared,
    ):
        prepared.start_ingest()
        prepared.start("charge")
        yield prepared
        prepared.assert_running()


@pytest.fixture(scope="module")
def client(pipeline: Pipeline, version: MqttVersion) -> Iterator[DeviceClient]:
    connected = DeviceClient(pipeline, version)
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def devices(pipeline: Pipeline) -> Iterator[str]:
    del pipeline
    return iter(PROBES)


@pytest.fixture
def scene(pipeline: Pipeline, client: DeviceClient, devices: Iterator[str]) -> Scene:
    return Scene(pipeline, client, next(devices))


def test_good_readings_are_stored_charged_and_acknowledged(scene: Scene) -> None:
    scene.publish(*[reading(seq) for seq in range(1, 6)], sent=datetime.now(UTC).isoformat())
    ack = scene.client.wait_for_ack(scene.device, scene.boot, up_to=5)
    assert (ack.up_to, ack.highest, ack.gaps, ack.rejected) == (5, 5, (), ())
    scene.wait_until_charged(5)
    assert scene.charged() == [(seq, 1) for seq in range(1, 6)]
    assert scene.rejected() == []


DEEP = '{"boot":"b","readings":[' + "[" * 100_000 + "]" * 100_000 + "]}"
MESSAGES = {
    "invalid UTF-8": (b'{"boot":"\xff\xfe","readings":[{}]}', "not_utf8", None),
    "no JSON": (b"boot=1&seq=2", "not_json", None),
    "nothing": (b"", "not_json", None),
    "half a message": (message("b", [reading(1)])[:-3].encode(), "not_json", None),
    "a lone surrogate": (b'{"boot":"\\ud800","readings":[{}]}', "not_json", None),
    "deep nesting": (DEEP.encode(), "not_json", None),
    "no readings": (message("b", []).encode(), "invalid_message", "readings"),
    "no boot": (b'{"readings":[{}]}', "invalid_message", "boot"),
    "a NUL in the boot": (message("b\x00", [reading(1)]).encode(), "invalid_message", "boot"),
    "an unknown field": (message("b", [reading(1)], a=1).encode(), "invalid_message", "a"),
    "a NUL in a field's name": (
        message("b", [reading(1)], **{"a\x00b": 1}).encode(),
        "invalid_message",
        r"a\x00b",
    ),
    "no time zone": (
        message("b", [reading(1)], sent="2026-01-01T00:00:00").encode(),
        "invalid_message",
        "sent",
    ),
    "a time of sending before year 1": (
        message("b", [reading(1)], sent="0001-01-01T00:00:00+14:00").encode(),
        "invalid_message",
        "sent",
    ),
    "1 MB": (message("b", [reading(1)], x="x" * 1_000_000).encode(), "payload_too_large", None),
    "10 000 readings": (message("b", [1] * 10_000).encode(), "too_many_readings", "readings"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_bad_message_is_kept_and_told_and_holds_nobody_up(scene: Scene, case: str) -> None:
    payload, reason, field = MESSAGES[case]
    scene.client.publish(scene.device, payload)
    row = scene.wait_for_rejection()
    assert (row["reason"], row["field"]) == (reason, field)
    assert row["detail"]
    assert row["tenant_no"] is not None
    assert row["content"] == payload[:4096]
    # One whose boot could be read is told under that boot, any other under none.
    told = scene.wait_for_refusal("b" if reason == "too_many_readings" else "")
    assert (told.seq, told.reason) == (None, reason)
    assert told.detail == row["detail"]
    scene.expect_good_is_charged()


def test_as_many_readings_as_are_allowed_are_taken(scene: Scene) -> None:
    scene.publish(*[reading(seq) for seq in range(1, 5001)])
    scene.client.wait_for_ack(scene.device, scene.boot, up_to=5000)
    wait_until(lambda: len(scene.charged()) == 5000, "5000 charges")
    assert scene.rejected() == []


READINGS: dict[str, tuple[Fields, str, str]] = {
    "a negative quantity": ({"quantity": -1}, "invalid_reading", "readings.1.quantity"),
    "a float": ({"quantity": 1.5}, "invalid_reading", "readings.1.quantity"),
    "not a number": ({"quantity": float("nan")}, "invalid_reading", "readings.1.quantity"),
    "a text": ({"quantity": "1"}, "invalid_reading", "readings.1.quantity"),
    "too large": ({"quantity": QUANTITY_MAX + 1}, "invalid_reading", "readings.1.quantity"),
    "4000 digits": ({"quantity": 10**4000}, "invalid_reading", "readings.1.quantity"),
    "a NUL": ({"meter": "s\x00s"}, "invalid_reading", "readings.1.meter"),
    "a NUL in a name": ({"a\x00b": 1}, "invalid_reading", r"readings.1.a\x00b"),
    "nested": ({"zone": [[[[[1]]]]]}, "invalid_reading", "readings.1.zone"),
    "an unknown meter": ({"meter": "steam"}, "unknown_meter", "readings.1.meter"),
    "directions": ({"up": 1}, "invalid_reading", "readings.1.quantity"),
    "from 2038": ({"at": "2038-01-19T03:14:08Z"}, "clock_ahead", "readings.1.at"),
    "from 1970": ({"at": "1970-01-01T00:00:00Z"}, "clock_behind", "readings.1.at"),
    "since 1970": ({"since": "1970-01-01T00:00:00Z"}, "clock_behind", "readings.1.since"),
    "before year 1": ({"at": "0001-01-01T00:00:00+14:00"}, "invalid_reading", "readings.1.at"),
    "after 9999": ({"at": "9999-12-31T23:59:59-14:00"}, "invalid_reading", "readings.1.at"),
}


@pytest.mark.parametrize("case", READINGS)
def test_a_bad_reading_is_kept_alone_and_its_message_is_charged(scene: Scene, case: str) -> None:
    changes, reason, field = READINGS[case]
    scene.publish(reading(1), reading(2, **changes), reading(3))
    ack = scene.client.wait_for_ack(scene.device, scene.boot, up_to=3)
    (told,) = ack.rejected
    row = scene.wait_for_rejection()
    assert (row["reason"], row["field"], row["boot_id"]) == (reason, field, scene.boot)
    assert (row["seq"], told.seq, told.reason, told.detail) == (2, 2, reason, row["detail"])
    scene.wait_until_charged(3)
    assert scene.stored() == [1, 3]
    assert scene.charged() == [(1, 1), (3, 1)]
    scene.expect_good_is_charged(4)


def test_the_largest_quantity_is_charged_exactly(scene: Scene) -> None:
    scene.publish(reading(1, quantity=QUANTITY_MAX))
    wait_until(lambda: scene.charged() == [(1, QUANTITY_MAX)], "the exact charge")


def test_a_reading_twice_in_one_message_is_a_duplicate(scene: Scene) -> None:
    scene.publish(reading(1), reading(1), reading(2))
    scene.client.wait_for_ack(scene.device, scene.boot, up_to=2)
    scene.expect_good_is_charged(3)
    assert scene.charged() == [(1, 1), (2, 1), (3, 1)]
    assert scene.rejected() == []


def test_a_reading_sent_again_later_is_a_duplicate_and_acknowledged_again(scene: Scene) -> None:
    scene.expect_good_is_charged(1)
    time.sleep(1)
    scene.client.acks.clear()
    scene.publish(reading(1))
    scene.client.wait_for_ack(scene.device, scene.boot, up_to=1)
    scene.expect_good_is_charged(2)
    assert scene.charged() == [(1, 1), (2, 1)]
    assert scene.rejected() == []


@pytest.mark.parametrize("together", [True, False], ids=["in one message", "in a later message"])
@pytest.mark.parametrize(
    "change",
    [{"quantity": 7}, {"at": (START + timedelta(days=-2)).isoformat()}, {"zone": "eu"}],
    ids=["quantity", "measured time", "zone"],
)
def test_one_number_with_two_contents_is_a_conflict_and_charged_once(
    pipeline: Pipeline, client: DeviceClient, change: Fields, *, together: bool
) -> None:
    scene = Scene(pipeline, client, TRACKERS[0])
    if together:
        scene.publish(reading(1), reading(1, **change))
    else:
        scene.expect_good_is_charged(1)
        scene.publish(reading(1, **change))
    told = scene.wait_for_refusal(scene.boot)
    assert (told.seq, told.reason) == (1, "sequence_conflict")
    (row,) = [each for each in scene.rejected() if each["boot_id"] == scene.boot]
    assert (row["reason"], row["field"], row["seq"]) == ("sequence_conflict", "seq", 1)
    scene.expect_good_is_charged(2)
    assert scene.charged() == [(1, 1), (2, 1)]


def test_a_rejected_reading_sent_again_is_no_conflict(scene: Scene) -> None:
    late = reading(1, at="1970-01-01T00:00:00Z")
    scene.publish(late)
    scene.client.wait_for_ack(scene.device, scene.boot, up_to=1)
    scene.publish(late)
    wait_until(lambda: scene.rejected()[0]["times"] == 2, "the count of both")
    scene.expect_good_is_charged(2)
    assert [row["reason"] for row in scene.rejected()] == ["clock_behind"]


def test_gaps_are_told_and_one_too_many_is_refused_until_some_close(scene: Scene) -> None:
    scene.publish(*[reading(seq) for seq in range(2, 2002, 2)])
    wait_until(lambda: scene.client.acks_of(scene.device, scene.boot), "an acknowledgement")
    (ack,) = scene.client.acks_of(scene.device, scene.boot)
    assert ack.up_to == 0
    assert len(ack.gaps) == 32
    assert ack.gaps[:2] == ((1, 1), (3, 3))
    assert ack.highest == 64
    scene.publish(reading(5000))
    told = scene.wait_for_refusal(scene.boot)
    assert (told.seq, told.reason) == (None, "too_many_gaps")
    assert not any(ack.holds(5000) for ack in scene.client.acks_of(scene.device, scene.boot))
    scene.publish(*[reading(seq) for seq in range(1, 2002, 2)])
    scene.client.wait_for_ack(scene.device, scene.boot, up_to=2001)
    scene.publish(reading(5000))
    wait_until(
        lambda: any(ack.holds(5000) for ack in scene.client.acks_of(scene.device, scene.boot)),
        "the acknowledgement of what was refused",
    )
    scene.expect_good_is_charged(2002)
    assert len(scene.charged()) == 2003


@pytest.mark.parametrize("name", ["tracker 1", "$SYS", "-x", "tr\u00e4cker", "x" * 65])
def test_a_topic_of_no_device_is_kept_and_told_to_nobody(scene: Scene, name: str) -> None:
    topic = f"{scene.pipeline.topic_root}/{TENANT}/{name}/usage"
    scene.client.publish_to(topic, message(scene.boot, [reading(1)]))
    row = scene.wait_for_rejection(topic)
    assert (row["reason"], row["field"], row["tenant_no"]) == ("bad_topic", None, None)
    assert "ids" in str(row["detail"])
    assert [sender for sender, _ in scene.client.acks if sender == name] == []
    scene.expect_good_is_charged()


def test_a_topic_as_long_as_the_broker_allows_holds_nobody_up(scene: Scene) -> None:
    name = secrets.token_hex(15_000)
    topic = f"{scene.pipeline.topic_root}/{TENANT}/{name}/usage"
    scene.client.publish_to(topic, b"x")
    scene.expect_good_is_charged()
    (row,) = scene.pipeline.query(
        "SELECT reason, topic FROM rejected WHERE topic LIKE %s", topic[:100] + "%"
    )
    assert row[0] == "bad_topic"
    assert topic.startswith(row[1].removesuffix("…"))


def test_an_unknown_device_is_kept(scene: Scene) -> None:
    topic = f"{scene.pipeline.topic_root}/{TENANT}/stranger/usage"
    scene.client.publish("stranger", message(scene.boot, [reading(1)]))
    row = scene.wait_for_rejection(topic)
    assert (row["reason"], row["boot_id"]) == ("unknown_device", scene.boot)
    assert b'"quantity":1' in bytes(str(row["content"]), "utf-8")
    assert not any(ack.holds(1) for ack in scene.client.acks_of("stranger", scene.boot))
    scene.expect_good_is_charged()


def test_the_broker_refuses_what_is_over_its_own_limit(scene: Scene, version: MqttVersion) -> None:
    giant = DeviceClient(scene.pipeline, version)
    try:
        giant.publish(scene.device, b"x" * 2_200_000, wait=False)
        # Its reason (149, packet too large) may be lost with what the client still writes.
        wait_until(lambda: giant.disconnects, "the end of the connection")
    finally:
        giant.client.loop_stop()
    assert scene.rejected() == []
    scene.expect_good_is_charged()


def test_a_poisoned_batch_harms_only_the_poisoned_reading(
    stack_settings: Settings, version: MqttVersion, tmp_path: Path
) -> None:
    assert stack_settings.database_url is not None
    assert stack_settings.broker_url is not None
    with (
        fresh_database(stack_settings.database_url.get_secret_value()) as database_url,
        pipeline_of(
            database_url,
            stack_settings.broker_url.get_secret_value(),
            tmp_path,
            FLEETMETER_MQTT_VERSION=version,
            FLEETMETER_INGEST_BATCH_AGE_MS="500",
        ) as own,
    ):
        # What no check of ours catches, the database may still refuse.
        own.execute("ALTER TABLE reading ADD CONSTRAINT poison CHECK (quantity <> 666)")
        own.start_ingest()
        own.start("charge")
        client = DeviceClient(own, version)
        scenes = [Scene(own, client, device) for device in TRACKERS[:5]]
        for place, each in enumerate(scenes):
            quantity = 666 if place == 2 else 1
            readings = [reading(1), reading(2, quantity=quantity), reading(3)]
            client.publish(each.device, message(each.boot, readings))
        for place, each in enumerate(scenes):
            for seq in (1, 3) if place == 2 else (1, 2, 3):
                each.wait_until_charged(seq)
        row = scenes[2].wait_for_rejection()
        assert row["reason"] == "storage_error"
        assert "poison" in str(row["detail"])
        assert scenes[2].stored() == [1, 3]
        # The device keeps it: once the database takes it, it is charged like any other.
        name = (scenes[2].device, scenes[2].boot)
        wait_until(
            lambda: any(
                ack.gaps == ((2, 2),) and ack.highest == 3 for ack in client.acks_of(*name)
            ),
            "an acknowledgement with the gap",
        )
        wait_until(
            lambda: (
                (None, "storage_error")
                in [
                    (each.seq, each.reason)
                    for ack in client.acks_of(*name)
                    for each in ack.rejected
                ]
            ),
            "the refusal",
        )
        own.execute("ALTER TABLE reading DROP CONSTRAINT poison")
        client.publish(scenes[2].device, message(scenes[2].boot, [reading(2, quantity=666)]))
        wait_until(lambda: (2, 666) in scenes[2].charged(), "the charge of what was refused")
        client.close()
        own.assert_running()
