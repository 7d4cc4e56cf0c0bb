"""Commands reach their devices at least once, in order, whatever dies on the way."""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from metering.broker_address import parse_broker_url
from metering.store.connection import connect
from metering.store.outbox import NewCommand, enqueue_commands
from metering.wire.command import CommandKind
from tests.integration.pipeline import TENANT, TRACKERS, Pipeline, pipeline_of, wait_until

DEVICE = TRACKERS[0]


class CommandedDevice:
    """A plain MQTT client in the place of one device: it hears commands, and answers if it may."""

    def __init__(self, pipeline: Pipeline, *, answers: bool, client_id: str | None = None) -> None:
        address = parse_broker_url(pipeline.broker_url)
        self.branch = f"{pipeline.topic_root}/{TENANT}/{DEVICE}"
        self.heard: list[dict[str, Any]] = []
        self.answers = answers
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id or secrets.token_hex(8),
            protocol=MQTTProtocolVersion.MQTTv5,
        )  # fmt: skip
        self.client.on_message = self._on_message
        subscribed: list[int] = []
        self.client.on_subscribe = lambda *_: subscribed.append(1)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{self.branch}/command", 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 60 if client_id else 0
        self.client.connect(
            address.host, address.port, properties=properties, clean_start=client_id is None
        )
        self.client.loop_start()
        wait_until(lambda: subscribed, "the device's subscription")

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        command = json.loads(message.payload)
        self.heard.append(command)
        if self.answers:
            self.answer(command["id"])

    def answer(self, command_id: str, outcome: str = "done", **more: str) -> None:
        self.publish(json.dumps({"id": command_id, "outcome": outcome, **more}))

    def publish(self, payload: str | bytes, *, qos: Literal[0, 1] = 1) -> None:
        self.client.publish(f"{self.branch}/command-ack", payload, qos=qos)

    def ids(self) -> list[str]:
        return [each["id"] for each in self.heard]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def pipeline(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline_of(
        database_url, broker_url, tmp_path,
        FLEETMETER_CONTROL_RESEND_SECONDS="0.5", FLEETMETER_CONTROL_RESEND_SECONDS_MAX="2",
        FLEETMETER_CONTROL_POLL_SECONDS="0.1",
    ) as made:  # fmt: skip
        yield made


Connect = Callable[..., CommandedDevice]


@pytest.fixture
def device(pipeline: Pipeline) -> Iterator[Connect]:
    opened: list[CommandedDevice] = []

    def open_device(*, answers: bool = True, client_id: str | None = None) -> CommandedDevice:
        opened.append(CommandedDevice(pipeline, answers=answers, client_id=client_id))
        return opened[-1]

    yield open_device
    for each in opened:
        each.close()


def tell(
    pipeline: Pipeline,
    *kinds: CommandKind,
    device: str = DEVICE,
    cause: str | None = None,
    published_at: datetime | None = None,
    expires_in: timedelta | None = None,
) -> None:
    """Enqueue commands in one transaction, a throttle at 1000 octets per second."""
    ((device_no,),) = pipeline.query("SELECT device_no FROM device WHERE device_id = %s", device)
    now = datetime.now(UTC)

    async def enqueue() -> None:
        async with await connect(pipeline.database_url, application="test") as connection:
            commands = [
                NewCommand(
                    device_no=device_no,
                    kind=kind,
                    payload={"octets_per_second": 1000} if kind is CommandKind.THROTTLE else {},
                    cause=cause or f"test:{secrets.token_hex(4)}",
                    published_at=published_at,
                    expires_at=None if expires_in is None else now + expires_in,
                )
                for kind in kinds
            ]
            await enqueue_commands(connection, commands, now=now)

    asyncio.run(enqueue())


def states(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Return kind and state of every command, in the order in which they were enqueued."""
    return pipeline.query("SELECT kind, state FROM command ORDER BY command_no")


def test_a_command_reaches_its_device_and_its_answer_is_kept(
    pipeline: Pipeline, device: Connect
) -> None:
    pipeline.start_control()
    told = device()
    tell(pipeline, CommandKind.THROTTLE, published_at=datetime.now(UTC) - timedelta(seconds=3))
    wait_until(lambda: states(pipeline) == [("throttle", "done")], "the answer")
    (command,) = told.heard
    ((number, command_id),) = pipeline.query("SELECT command_no, command_id::text FROM command")
    assert command == {
        "id": command_id,
        "number": number,
        "kind": "throttle",
        "octets_per_second": 1000,
    }
    latency = "fleetmeter_publish_to_command_seconds"
    assert pipeline.control_metric(f"{latency}_count") == 1
    assert 3 < (pipeline.control_metric(f"{latency}_sum") or 0) < 20
