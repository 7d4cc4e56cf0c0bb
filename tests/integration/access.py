"""Clients of the real broker, by password or certificate, that say what it lets them do."""

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from metering.settings import Settings
from metering.stack import lifecycle
from metering.stack.model import Ports

WAIT_SECONDS = 20


def ports(settings: Settings) -> Ports:
    """Return the ports of the stack's broker."""
    record = lifecycle.broker_record(settings)
    assert record is not None
    return lifecycle.ports_of(record)


def broker_folder(settings: Settings) -> Path:
    """Return the folder of the stack's broker."""
    record = lifecycle.broker_record(settings)
    assert record is not None
    return Path(record.folder)


class Refused(Exception):
    """The broker did not let a client in."""


@dataclass(slots=True)
class Device:
    """A connected client. Over MQTT 3.1.1 it is told of no refusal of what it publishes."""

    client: paho.Client
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    published: dict[int, ReasonCode] = field(default_factory=dict)
    subscribed: dict[int, list[ReasonCode]] = field(default_factory=dict)
    ends: list[ReasonCode] = field(default_factory=list)
    limits: dict[str, object] = field(default_factory=dict)
    """What the broker told of itself in its CONNACK."""

    def may_publish(self, topic: str, payload: str = "{}") -> bool:
        """Publish and say whether the broker took it."""
        told = self.client.publish(topic, payload, qos=1)
        wait(lambda: told.mid in self.published or self.ends, f"an answer to {topic}")
        return told.mid in self.published and self.published[told.mid].value < 0x80

    def may_subscribe(self, topic_filter: str) -> bool:
        """Subscribe and say whether the broker took it."""
        _, mid = self.client.subscribe(topic_filter, qos=1)
        assert mid is not None
        wait(lambda: mid in self.subscribed, f"an answer to {topic_filter}")
        return all(each.value < 0x80 for each in self.subscribed[mid])


def wait(happened: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def connected(
    settings: Settings,
    port: int,
    *,
    username: str | None = None,
    password: str | None = None,
    client_id: str = "",
    certificate: tuple[Path, Path] | None = None,
    tls: ssl.TLSVersion | None = ssl.TLSVersion.TLSv1_3,
    version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
) -> Iterator[Device]:
    """Connect, over TLS unless `tls` is None; raises `Refused` when the broker lets nobody in."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=client_id, protocol=version,
        reconnect_on_failure=False,
    )  # fmt: skip
    device = Device(client)
    answers: list[ReasonCode] = []

    def on_connect(
        _client: object, _data: object, _flags: object, code: ReasonCode, told: Properties | None
    ) -> None:
        device.limits.update({} if told is None else told.json())  # type: ignore[no-untyped-call]
        answers.append(code)

    client.on_connect = on_connect
    client.on_message = lambda *told: device.heard.append((told[2].topic, told[2].payload))
    client.on_publish = lambda *told: device.published.update({told[2]: told[3]})
    client.on_subscribe = lambda *told: device.subscribed.update({told[2]: told[3]})
    client.on_disconnect = lambda *told: device.ends.append(told[3])
    if tls is not None:
        context = ssl.create_default_context(cafile=broker_folder(settings) / "authority.pem")
        context.maximum_version = tls
        if certificate is not None:
            context.load_cert_chain(*certificate)
        client.tls_set_context(context)
    if username is not None:
        client.username_pw_set(username, password)
    try:
        client.connect("localhost", port)
    except OSError as error:
        raise Refused(str(error)) from error
    client.loop_start()
    try:
        wait(lambda: answers or device.ends, "an answer to the connection")
        if not answers or answers[0].value:
            raise Refused(str(answers[0] if answers else device.ends[0]))
        yield device
    finally:
        client.disconnect()
        client.loop_stop()
