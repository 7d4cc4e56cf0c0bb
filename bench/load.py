"""The load generator: ready-made MQTT packets, sent when they are due; a process of its own.

It is told how many messages may have been sent by now, so that it is never further ahead of whoever
takes them than a window: the broker's queue stays short, and is as long for everybody measured.
"""

import multiprocessing
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from ctypes import c_longlong
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.sharedctypes import Synchronized
from time import perf_counter, process_time, sleep
from types import TracebackType
from typing import Self

from bench.packets import (
    CONNACK_OCTETS,
    PACKET_IDS,
    PUBACK_OCTETS,
    connect_packet,
    publish_packet,
)
from bench.workload import TENANT, Devices, Manner
from metering.broker_address import BrokerAddress

_CONNECTIONS = 4
_TICK_SECONDS = 0.001
_READ_OCTETS = 65_536
_AT_ONCE = 200
"""Messages that are handed to the sockets in one go."""
UNBOUNDED = 2**62
_SECONDS_MAX = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to publish, and under which topics: device number n's is under root n modulo all roots.

    `messages_per_second` None: as fast as the window lets.
    """

    roots: Sequence[str]
    manner: Manner
    messages: int
    messages_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The packets are made: so many, duplicates among them; the octets are those of the average one."""

    messages: int
    topic_octets: float
    payload_octets: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What was published, and when, by the clock that all processes of the machine share.

    It ended when the broker had acknowledged all. `late_seconds` is how far the last message was behind its
    time, `cpu_seconds` what sending took.
    """

    messages: int
    began: float
    ended: float
    late_seconds: float
    cpu_seconds: float


class Generator:
    """A process that publishes as the devices of a population do."""

    def __init__(self, broker: BrokerAddress, device_ids: Sequence[str]) -> None:
        # Spawned, so that it shares nothing with this process but the pipe and one number.
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._allowed: Synchronized[int] = context.Value(c_longlong, 0)
        self._process = context.Process(
            target=_generate,
            args=(other_end, self._allowed, broker, Devices(device_ids)),
            daemon=True,
        )
        self._process.start()
        other_end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(5)
        self._process.kill()

    def prepare(self, order: Order) -> Ready:
        """Have the packets of an order made."""
        self._pipe.send(order)
        ready = self._receive()
        if not isinstance(ready, Ready):
            raise TypeError("the generator is amid another order")
        return ready

    def start(self, *, allowed: int = UNBOUNDED) -> None:
        """Send what was prepared, so many messages at first."""
        self.allow(allowed)
        self._pipe.send("go")

    def allow(self, messages: int) -> None:
        """Allow so many messages in all of this order."""
        self._allowed.value = messages

    def finish(self) -> Sent:
        """Wait until all is sent and the broker has acknowledged it."""
        sent = self._receive()
        if not isinstance(sent, Sent):
            raise TypeError("the generator has not started")
        return sent

    def _receive(self) -> object:
        if not self._pipe.poll(_SECONDS_MAX):
            raise TimeoutError("the load generator does not come to an end")
        return self._pipe.recv()


def _generate(
    pipe: Pipe, allowed: "Synchronized[int]", broker: BrokerAddress, devices: Devices
) -> None:
    connections = [_Connection(broker, number) for number in range(_CONNECTIONS)]
    while True:
        try:
            order: Order | None = pipe.recv()
        except EOFError:
            return
        if order is None:
            break
        packets, ready = _packets(order, devices)
        pipe.send(ready)
        pipe.recv()
        pipe.send(_publish(order, packets, allowed, connections))
    for connection in connections:
        connection.close()


class _Connection:
    """One of the generator's connections. It reads acknowledgements when it is told to.

    They come one by one: whoever is woken for each does little else.
    """

    def __init__(self, broker: BrokerAddress, number: int) -> None:
        self._socket = socket.create_connection((broker.host, broker.port))
        self._socket.sendall(connect_packet(f"bench-load-{os.getpid()}-{number}", broker))
        self._socket.recv(CONNACK_OCTETS, socket.MSG_WAITALL)
        self._socket.settimeout(0)
        self._unsent = b""
        self.acknowledged_octets = 0

    def write(self, packets: bytes) -> None:
        """Send packets, or keep what the socket does not take."""
        self._unsent += packets
        self.flush()

    def flush(self) -> int:
        """Send what was kept; return how many octets are left of it."""
        if self._unsent:
            with suppress(BlockingIOError):
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        return len(self._unsent)

    def read(self) -> None:
        """Count the acknowledgements that have come."""
        with suppress(BlockingIOError):
            while received := self._socket.recv(_READ_OCTETS):
                self.acknowledged_octets += len(received)
            raise ConnectionError("the broker has closed the generator's connection")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _packets(order: Order, devices: Devices) -> tuple[list[tuple[int, bytes]], Ready]:
    """Return each message's connection and packet, and what they amount to.

    A device keeps to one connection, so that its messages keep their order.
    """
    topics = [
        f"{order.roots[number % len(order.roots)]}/{TENANT}/{device_id}/usage".encode()
        for number, device_id in enumerate(devices.device_ids)
    ]
    packets: list[tuple[int, bytes]] = []
    topic_octets = payload_octets = 0
    for number, message in enumerate(devices.messages(order.manner, order.messages)):
        topic, payload = topics[message.device], message.payload
        topic_octets += len(topic)
        payload_octets += len(payload)
        packet = publish_packet(topic, payload, 1 + number % PACKET_IDS)
        packets.append((message.device % _CONNECTIONS, packet))
    count = len(packets)
    return packets, Ready(
        messages=count, topic_octets=topic_octets / count, payload_octets=payload_octets / count
    )


def _publish(
    order: Order,
    packets: Sequence[tuple[int, bytes]],
    allowed: "Synchronized[int]",
    connections: Sequence[_Connection],
) -> Sent:
    acknowledged = sum(each.acknowledged_octets for each in connections)
    cpu, rate, total = process_time(), order.messages_per_second, len(packets)
    began = perf_counter()
    sent = 0
    while sent < total:
        due = total if rate is None else int(rate * (perf_counter() - began))
        due = min(total, due, allowed.value, sent + _AT_ONCE)
        held_back = sum(each.flush() for each in connections)
        if due > sent and not held_back:
            _write(connections, packets[sent:due])
            sent = due
        else:
            for connection in connections:
                connection.read()
            sleep(_TICK_SECONDS)
    ended = perf_counter()
    expected = acknowledged + PUBACK_OCTETS * total
    while sum(each.acknowledged_octets for each in connections) < expected:
        for connection in connections:
            connection.flush()
            connection.read()
        sleep(_TICK_SECONDS)
    return Sent(
        messages=total,
        began=began,
        ended=perf_counter(),
        late_seconds=0.0 if rate is None else max(0.0, ended - began - total / rate),
        cpu_seconds=process_time() - cpu,
    )


def _write(connections: Sequence[_Connection], packets: Sequence[tuple[int, bytes]]) -> None:
    joined: list[list[bytes]] = [[] for _ in connections]
    for number, packet in packets:
        joined[number].append(packet)
    for connection, of_connection in zip(connections, joined, strict=True):
        if of_connection:
            connection.write(b"".join(of_connection))
