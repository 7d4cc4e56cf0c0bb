"""One device sends as fast as it can: others get through, it is held for a while, and nothing is lost."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from metering.settings import Settings
from metering.wire.ack import decode as decode_ack
from tests.integration.access import Device
from tests.integration.pipeline import TENANT, TRACKERS, Pipeline, pipeline_of, wait_until
from tests.integration.test_credentials import by_password, give_passwords

FLOODING, OTHER = TRACKERS[:2]
HOLD_SECONDS = 6.0
RATE, WINDOW_SECONDS = 100, 2
LIMIT = RATE * WINDOW_SECONDS
MESSAGES_MAX = 10_000
"""As many as a device publishes in a flood that nobody ends."""
AT = datetime.now(UTC).isoformat()


@pytest.fixture
def pipeline(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline_of(
        database_url,
        broker_url,
        tmp_path,
        FLEETMETER_DEVICE_MESSAGES_PER_SECOND_MAX=str(RATE),
        FLEETMETER_DEVICE_REQUESTS_PER_SECOND_MAX="20",
        FLEETMETER_FLOOD_WINDOW_SECONDS=str(WINDOW_SECONDS),
        FLEETMETER_FLOOD_BACKLOG_SECONDS_MAX="0",
        FLEETMETER_FLOOD_HOLD_SECONDS=str(HOLD_SECONDS),
        FLEETMETER_CONTROL_RESEND_SECONDS="0.5",
        FLEETMETER_CONTROL_RESEND_SECONDS_MAX="0.5",
    ) as made:
        yield made


@pytest.fixture
def settings(stack_settings: Settings, pipeline: Pipeline) -> Settings:
    pipeline.start_ingest()
    pipeline.start_control()
    return stack_settings.model_copy(
        update={
            "database_url": SecretStr(pipeline.database_url),
            "topic_root": pipeline.topic_root,
        }
    )


def usage(boot: str, first: int, last: int | None = None) -> str:
    """Return the message of some readings, the same each time."""
    readings = [
        {"seq": seq, "at": AT, "meter": "sms", "quantity": 1}
        for seq in range(first, (last or first) + 1)
    ]
    return json.dumps({"boot": boot, "readings": readings})


def topic(settings: Settings, device: str, last: str) -> str:
    return f"{settings.topic_root}/{TENANT}/{device}/{last}"


def acknowledged(device: Device) -> int:
    """Return up to which number the device's readings are acknowledged end to end."""
    told = [decode_ack(payload).up_to for name, payload in device.heard if name.endswith("/ack")]
    return max(told, default=0)


def flood(device: Device, name: str, payload_of: Callable[[int], str], *, qos: int) -> int:
    """Publish as fast as the client can until the connection ends; return how many messages."""
    for number in range(1, MESSAGES_MAX + 1):
        if device.ends:
            return number - 1
        device.client.publish(name, payload_of(number), qos=qos)
    return MESSAGES_MAX


def stored(pipeline: Pipeline, boot: str) -> int:
    """Return how many readings of a boot are in the database."""
    query = "SELECT count(*) FROM reading JOIN boot USING (boot_no) WHERE boot_id = %s"
    return int(pipeline.query(query, boot)[0][0])


def heard_command(device: Device) -> dict[str, object]:
    """Wait for a command and return it."""

    def commands() -> list[bytes]:
        return [payload for name, payload in device.heard if name.endswith("/command")]

    wait_until(commands, "a command")
    command: dict[str, object] = json.loads(commands()[0])
    return command


@pytest.mark.parametrize("qos", [0, 1])
def test_a_flood_is_ended_and_costs_no_reading(
    pipeline: Pipeline, settings: Settings, qos: int
) -> None:
    flooder, other = give_passwords(settings, FLOODING, OTHER)
    own, others = (topic(settings, each, "usage") for each in (FLOODING, OTHER))
    with by_password(settings, other) as beside:
        assert beside.may_subscribe(topic(settings, OTHER, "ack"))
        with by_password(settings, flooder) as device:
            sent = flood(device, own, lambda number: usage("flood", number), qos=qos)
            assert beside.may_publish(others, usage("calm", 1))
            wait_until(lambda: device.ends, "end of the flood")
            taken = len([each for each in device.published.values() if each.value < 0x80])
        wait_until(lambda: acknowledged(beside) == 1, "the other's reading")
        with by_password(settings, flooder) as device:
            assert not device.may_publish(own, usage("flood", 1)), "or it came back too late"
            assert device.may_subscribe(topic(settings, FLOODING, "command"))
            assert device.may_subscribe(topic(settings, FLOODING, "ack"))
            assert beside.may_publish(others, usage("calm", 2))
            command = heard_command(device)
            assert command["kind"] == "hold"
            answer = json.dumps({"id": command["id"], "outcome": "done"})
            assert device.may_publish(topic(settings, FLOODING, "command-ack"), answer)
            wait_until(lambda: device.may_publish(own, usage("flood", 1)), "right to publish")
            if qos:  # what the broker acknowledged before it ended the connection
                assert taken > LIMIT
                wait_until(lambda: stored(pipeline, "flood") >= taken, "what the broker took")
            # All is sent again, as much in a message as can be, which is no flood.
            for first in range(1, sent + 1, 1000):
                message = usage("flood", first, min(sent, first + 999))
                assert device.may_publish(own, message)
            wait_until(lambda: acknowledged(device) == sent, "the acknowledgement of all")
            assert device.ends == []
        wait_until(lambda: acknowledged(beside) == 2, "the other's second reading")
    assert stored(pipeline, "flood") == sent
    ((messages, seconds),) = pipeline.query(
        "SELECT messages, extract(epoch FROM held_until - held_from)::float FROM device_flood"
    )
    assert messages > LIMIT
    assert seconds == HOLD_SECONDS
    assert pipeline.query("SELECT kind, payload ->> 'device_id' FROM event") == [
        ("device.flooding", FLOODING)
    ]
    assert pipeline.query("SELECT kind, state FROM command") == [("hold", "done")]


def test_a_flood_of_requests_is_left_out(pipeline: Pipeline, settings: Settings) -> None:
    flooder, other = give_passwords(settings, FLOODING, OTHER)

    def request(number: int) -> str:
        return json.dumps({"request": f"r{number}", "meter": "sms", "quantity": 1})

    with by_password(settings, other) as beside, by_password(settings, flooder) as device:
        assert beside.may_subscribe(topic(settings, OTHER, "command"))
        flood(device, topic(settings, FLOODING, "quota"), request, qos=1)
        assert beside.may_publish(topic(settings, OTHER, "quota"), request(1))
        wait_until(lambda: device.ends, "end of the flood")
        answer = heard_command(beside)
        assert (answer["kind"], answer["request"]) == ("grant", "r1")
    wait_until(
        lambda: pipeline.control_metric('fleetmeter_control_bad_messages_total{reason="flood"}'),
        "requests that were left out",
    )
    assert pipeline.query("SELECT count(*) FROM device_flood") == [(1,)]
