"""Publish → control command at the device: each device passes its limit once, and is told so.

Devices do so at random moments, and do not wait for each other.

A time runs from the moment before a device's client writes the message to the moment at which it has the
`throttle` that the reading caused. The client answers it, as a device does. Its
socket sends each packet at once: else the kernel keeps one back until the broker's has acknowledged the one
before, which takes it up to 40 ms and says nothing of the product.
"""

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from queue import Empty, SimpleQueue
from random import Random
from threading import Event
from time import perf_counter
from types import TracebackType
from typing import Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from bench.balance_probe import LOST_SECONDS, moments, one_reading
from bench.product import Product
from bench.servers import BenchError
from bench.workload import TENANT, Population
from metering.charging.change_thresholds import create_threshold
from metering.rating.threshold import Measure, Per, Recurrence
from metering.store.connection import connect
from metering.store.registry import ensure_fleet, tenant_no
from metering.store.thresholds import NewThreshold, Terms
from metering.usage import DATA

_LIMIT_OCTETS = 1000


def _send_at_once(_client: paho.Client, _data: object, opened: object) -> None:
    assert isinstance(opened, socket.socket)  # noqa: S101 - neither TLS nor WebSockets here
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def limit_each_device(made: Product, population: Population) -> None:
    """Have each device of a population throttled once it has used a little."""
    now = datetime.now(UTC)
    async with await connect(made.database_url, application="bench", autocommit=True) as connection:
        tenant = await tenant_no(connection, TENANT)
        for fleet_id in population.device_ids():
            fleet = await ensure_fleet(
                connection, tenant=tenant, fleet_id=fleet_id, name=fleet_id, currency="EUR",
                time_zone="Europe/Berlin", anchor_day=1, now=now,
            )  # fmt: skip
            terms = Terms(
                limit=Decimal(_LIMIT_OCTETS),
                percent=Decimal(100),
                actions=[{"kind": "throttle", "octets_per_second": 1000}],
                enabled=True,
            )
            new = NewThreshold(
                device_no=None, per=Per.DEVICE, measure=Measure.QUANTITY, meter_no=DATA.meter_no,
                period=Recurrence.CYCLE, name="bench", terms=terms,
            )  # fmt: skip
            await create_threshold(
                connection, fleet=fleet, new=new, request_key=fleet_id, request={}, now=now
            )


class CommandProbe:
    """Devices that pass their limit one after the other, behind one client."""

    def __init__(self, made: Product, population: Population) -> None:
        self._root = f"{made.roots[0]}/{TENANT}"
        self._device_ids: Iterator[str] = iter(population.interleaved())
        self._heard: SimpleQueue[tuple[str, float]] = SimpleQueue()
        self._chance = Random(2)  # noqa: S311 - moments that do not fall in step with batches
        subscribed = Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"{made.name}-commanded")
        self._client.on_message = self._on_message
        self._client.on_socket_open = _send_at_once
        self._client.on_subscribe = lambda *_: subscribed.set()
        broker = made.servers.broker
        self._client.username_pw_set(broker.username, broker.password)
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self._client.subscribe(f"{self._root}/+/command", qos=1)
        if not subscribed.wait(LOST_SECONDS):
            raise BenchError("the broker does not subscribe the commanded devices")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        heard_at = perf_counter()
        device_id = message.topic.split("/")[-2]
        answer = json.dumps({"id": json.loads(message.payload)["id"], "outcome": "done"})
        client.publish(f"{self._root}/{device_id}/command-ack", answer, qos=1)
        self._heard.put((device_id, heard_at))

    def run(self, seconds: float) -> list[float]:
        """Probe for so long, or until no device is left; return each time in seconds."""
        began: dict[str, float] = {}
        for _, device_id in zip(moments(self._chance, seconds), self._device_ids, strict=False):
            payload = one_reading(1, uplink=0, downlink=_LIMIT_OCTETS)
            began[device_id] = perf_counter()
            self._client.publish(f"{self._root}/{device_id}/usage", payload, qos=1)
        times: dict[str, float] = {}
        while len(times) < len(began):
            try:
                told, heard_at = self._heard.get(timeout=LOST_SECONDS)
            except Empty:
                lost = next(each for each in began if each not in times)
                raise BenchError(f"{lost} is not told to throttle") from None
            if told in began:  # else one of an earlier load is told again
                times.setdefault(told, heard_at - began[told])
        return list(times.values())
