"""One device sends as fast as it can: others get through, it is held for a while, and nothing is lost."""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion
from pydantic import SecretStr

from bench.flood import Flooder
from bench.flood import flood as flood_until_cut_off
from metering.control.give_credentials import Given
from metering.control.hearing import _IDLE_SECONDS
from metering.settings import Settings
from metering.wire.ack import decode as decode_ack
from tests.integration.access import Device, Refused, broker_folder, ports
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
def limits() -> dict[str, str]:
    """Return the settings of what a device may send, less than by default."""
    return {
        "FLEETMETER_DEVICE_MESSAGES_PER_SECOND_MAX": str(RATE),
        "FLEETMETER_DEVICE_REQUESTS_PER_SECOND_MAX": "20",
        "FLEETMETER_FLOOD_WINDOW_SECONDS": str(WINDOW_SECONDS),
        "FLEETMETER_FLOOD_BACKLOG_SECONDS_MAX": "0",
    }


@pytest.fixture
def pipeline(
    database_url: str, broker_url: str, tmp_path: Path, limits: dict[str, str]
) -> Iterator[Pipeline]:
    with pipeline_of(
        database_url,
        broker_url,
        tmp_path,
        **limits,
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


def usage(boot: str, *seqs: int) -> str:
    """Return the message of some readings, the same each time."""
    readings = [{"seq": seq, "at": AT, "meter": "sms", "quantity": 1} for seq in seqs]
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


def granted(device: Device) -> set[str]:
    """Return which of a device's requests were granted."""
    told = [json.loads(payload) for name, payload in device.heard if name.endswith("/command")]
    return {each["request"] for each in told if each["kind"] == "grant"}


def heard_command(device: Device) -> dict[str, object]:
    """Wait for a command and return it."""

    def commands() -> list[bytes]:
        return [payload for name, payload in device.heard if name.endswith("/command")]

    wait_until(commands, "a command")
    command: dict[str, object] = json.loads(commands()[0])
    return command


@contextmanager
def let_in(settings: Settings, given: Given, version: MQTTProtocolVersion) -> Iterator[Device]:
    """Connect a device as soon as it is let in."""
    deadline = time.monotonic() + 90
    with ExitStack() as stack:
        while True:
            try:
                device = stack.enter_context(by_password(settings, given, version=version))
            except Refused:
                assert time.monotonic() < deadline, "it is never let in"
            else:
                yield device
                return


@pytest.mark.parametrize(
    ("qos", "version"), [(0, MQTTProtocolVersion.MQTTv5), (1, MQTTProtocolVersion.MQTTv311)]
)
def test_a_flood_is_ended_and_costs_no_reading(
    pipeline: Pipeline, settings: Settings, qos: int, version: MQTTProtocolVersion
) -> None:
    """At QoS 1 the device keeps nothing that the broker acknowledged, and is told of no refusal."""
    flooder, other = give_passwords(settings, FLOODING, OTHER)
    own, others = (topic(settings, each, "usage") for each in (FLOODING, OTHER))
    with by_password(settings, other) as beside:
        assert beside.may_subscribe(topic(settings, OTHER, "ack"))
        with by_password(settings, flooder, version=version) as device:
            sent = flood(device, own, lambda number: usage("flood", number), qos=qos)
            assert beside.may_publish(others, usage("calm", 1))
            wait_until(lambda: device.ends, "end of the flood")
            # Nothing else was published, so packet ids count the readings.
            taken = set(device.published) if qos else set()
        with pytest.raises(Refused), by_password(settings, flooder, version=version):
            pytest.fail("it came back too late, or is not kept away")
        wait_until(lambda: acknowledged(beside) == 1, "the other's reading")
        assert beside.may_publish(others, usage("calm", 2))
        with let_in(settings, flooder, version) as device:
            assert pipeline.query("SELECT held_until <= now() FROM device_flood") == [(True,)]
            assert device.may_subscribe(topic(settings, FLOODING, "command"))
            assert device.may_subscribe(topic(settings, FLOODING, "ack"))
            command = heard_command(device)
            assert command["kind"] == "hold"
            answer = json.dumps({"id": command["id"], "outcome": "done"})
            assert device.may_publish(topic(settings, FLOODING, "command-ack"), answer)
            # What is left is sent again, as much in a message as can be, which is no flood.
            left = [seq for seq in range(1, sent + 1) if seq not in taken]
            for first in range(0, len(left), 1000):
                assert device.may_publish(own, usage("flood", *left[first : first + 1000]))
            assert device.may_publish(own, usage("flood", sent + 1))
            wait_until(lambda: acknowledged(device) == sent + 1, "the acknowledgement of all")
            assert device.ends == []
        if qos:
            assert len(taken) > LIMIT
        wait_until(lambda: acknowledged(beside) == 2, "the other's second reading")
    assert stored(pipeline, "flood") == sent + 1
    ((messages, seconds),) = pipeline.query(
        "SELECT messages, extract(epoch FROM held_until - held_from)::float FROM device_flood"
    )
    assert messages > LIMIT
    assert seconds == HOLD_SECONDS
    assert pipeline.query("SELECT kind, payload ->> 'device_id' FROM event") == [
        ("device.flooding", FLOODING)
    ]
    assert pipeline.query("SELECT kind, state FROM command") == [("hold", "done")]


OTHERS_WAIT_SECONDS_MAX = 30.0
"""What docs/operations.md says, with one ingester and the limits of the settings."""


@pytest.mark.parametrize("limits", [{"FLEETMETER_FLOOD_BACKLOG_SECONDS_MAX": "0"}])
def test_others_wait_no_longer_than_stated(pipeline: Pipeline, settings: Settings) -> None:
    """A device of its own process floods, as fast as the broker reads, while another sends now and then."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    assert f"**{OTHERS_WAIT_SECONDS_MAX:.0f} seconds** is the bound" in page
    flooder, other = give_passwords(settings, FLOODING, OTHER)
    how = Flooder(
        given=flooder,
        port=ports(settings).passwords,
        authority=broker_folder(settings) / "authority.pem",
        qos=1,
        root=settings.topic_root,
    )
    spawn = multiprocessing.get_context("spawn")
    began_at = spawn.Value("d", 0.0)
    process = spawn.Process(target=flood_until_cut_off, args=(how, began_at))
    published: dict[int, float] = {}
    with by_password(settings, other) as beside:
        assert beside.may_subscribe(topic(settings, OTHER, "ack"))
        process.start()

        def send_one() -> None:
            seq = len(published) + 1
            published[seq] = time.monotonic()
            beside.client.publish(topic(settings, OTHER, "usage"), usage("calm", seq), qos=1)

        def nobody_waits_too_long() -> int:
            held = acknowledged(beside)
            now = time.monotonic()
            waits = [now - at for seq, at in published.items() if seq > held]
            assert max(waits, default=0.0) < OTHERS_WAIT_SECONDS_MAX
            return held

        def is_over() -> bool:
            send_one()
            nobody_waits_too_long()
            return not process.is_alive()

        try:
            wait_until(is_over, "end of the flood")
            send_one()
            wait_until(lambda: nobody_waits_too_long() == len(published), "what came last")
        finally:
            process.kill()
            process.join()
            process.close()
    assert pipeline.query("SELECT messages > 20000 FROM device_flood") == [(True,)]


@pytest.mark.parametrize(
    "limits",
    [
        {
            "FLEETMETER_DEVICE_REQUESTS_PER_SECOND_MAX": "20",
            "FLEETMETER_FLOOD_WINDOW_SECONDS": str(WINDOW_SECONDS),
        }
    ],
)
def test_a_flood_of_requests_is_left_out(pipeline: Pipeline, settings: Settings) -> None:
    """What might have waited for the start is excused, until something came after a pause."""
    flooder, other = give_passwords(settings, FLOODING, OTHER)

    def request(number: int) -> str:
        return json.dumps({"request": f"r{number}", "meter": "sms", "quantity": 1})

    with by_password(settings, other) as beside, by_password(settings, flooder) as device:
        assert beside.may_subscribe(topic(settings, OTHER, "command"))
        assert beside.may_publish(topic(settings, OTHER, "quota"), request(0))
        wait_until(lambda: beside.heard, "answer")
        time.sleep(5 * _IDLE_SECONDS)  # nothing tells that nothing comes
        flood(device, topic(settings, FLOODING, "quota"), request, qos=1)
        assert beside.may_publish(topic(settings, OTHER, "quota"), request(1))
        wait_until(lambda: device.ends, "end of the flood")
        wait_until(lambda: len(granted(beside)) == 2, "both grants")
        assert granted(beside) == {"r0", "r1"}
    wait_until(
        lambda: pipeline.control_metric('fleetmeter_control_bad_messages_total{reason="flood"}'),
        "requests that were left out",
    )
    assert pipeline.query("SELECT count(*) FROM device_flood") == [(1,)]
