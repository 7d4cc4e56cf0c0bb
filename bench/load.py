"""A load generator that is not the limit: ready-made MQTT packets, sent when they are due."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from time import perf_counter

READINGS_PER_MESSAGE = 5
_CONNECTIONS = 4
_TICK_SECONDS = 0.002
_CONNACK_OCTETS = 4
_PUBLISH_QOS1, _CONNECT = 0x32, 0x10
_CLEAN_SESSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to publish: so many readings a second for so long; 0: as fast as the broker takes them."""

    readings_per_second: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What was published; `late_seconds` is how far the last message was behind its time."""

    readings: int
    seconds: float
    late_seconds: float


def connect_packet(client_id: str) -> bytes:
    """Return an MQTT 3.1.1 CONNECT with a clean session and no keepalive."""
    name = client_id.encode()
    body = b"\x00\x04MQTT\x04" + bytes([_CLEAN_SESSION]) + b"\x00\x00"
    return _packet(_CONNECT, body + len(name).to_bytes(2) + name)


def publish_packet(topic: str, payload: bytes, packet_id: int) -> bytes:
    """Return an MQTT 3.1.1 PUBLISH at QoS 1."""
    name = topic.encode()
    return _packet(_PUBLISH_QOS1, len(name).to_bytes(2) + name + packet_id.to_bytes(2) + payload)


def _packet(kind: int, body: bytes) -> bytes:
    length, left = bytearray(), len(body)
    while True:
        left, digit = divmod(left, 128)
        length.append(digit | (128 if left else 0))
        if not left:
            return bytes([kind]) + bytes(length) + body


async def open_session(
    host: str, port: int, client_id: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a broker that lets anybody in."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(connect_packet(client_id))
    await reader.readexactly(_CONNACK_OCTETS)
    return reader, writer


class Devices:
    """Devices that take turns; each numbers its readings."""

    def __init__(self, root: str, tenant: str, device_ids: Sequence[str]) -> None:
        self._topics = [f"{root}/{tenant}/{device_id}/usage" for device_id in device_ids]
        self._seqs = [0] * len(device_ids)
        self._turn = 0

    def packets(self, messages: int) -> Iterator[bytes]:
        """Return so many messages, a device's after the other's."""
        at = datetime.now(UTC)
        for number in range(messages):
            turn = self._turn = (self._turn + 1) % len(self._topics)
            first = self._seqs[turn] + 1
            self._seqs[turn] += READINGS_PER_MESSAGE
            readings = [
                {
                    "seq": seq,
                    "at": (at + timedelta(microseconds=seq)).isoformat(),
                    "meter": "data",
                    "kind": "delta",
                    "up": 100 + seq % 7,
                    "down": 400,
                }
                for seq in range(first, first + READINGS_PER_MESSAGE)
            ]
            payload = json.dumps({"boot": "bench", "readings": readings}, separators=(",", ":"))
            yield publish_packet(self._topics[turn], payload.encode(), 1 + number % 60_000)


def generate(commands: Connection, host: str, port: int, devices: Devices) -> None:
    """Publish what is ordered until the order is None; a process of its own runs this."""
    asyncio.run(_generate(commands, host, port, devices))


async def _generate(commands: Connection, host: str, port: int, devices: Devices) -> None:
    sessions = [await open_session(host, port, f"load-{each}") for each in range(_CONNECTIONS)]
    acknowledged = [asyncio.create_task(_swallow(reader)) for reader, _ in sessions]
    writers = [writer for _, writer in sessions]
    while True:
        order: Order | None = await asyncio.to_thread(commands.recv)
        if order is None:
            break
        commands.send(await _publish(order, devices, writers))
    for task, writer in zip(acknowledged, writers, strict=True):
        task.cancel()
        writer.close()


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


async def _publish(order: Order, devices: Devices, writers: Sequence[asyncio.StreamWriter]) -> Sent:
    rate = order.readings_per_second / READINGS_PER_MESSAGE
    total = int((rate or 40_000) * order.seconds)
    packets = list(devices.packets(total))
    began = perf_counter()
    sent = 0
    while sent < total:
        elapsed = perf_counter() - began
        due = min(total, int(rate * elapsed)) if rate else min(total, sent + 200)
        for number in range(sent, due):
            writers[number % len(writers)].write(packets[number])
        sent = max(sent, due)
        for writer in writers:
            await writer.drain()
        if rate:
            await asyncio.sleep(_TICK_SECONDS)
    seconds = perf_counter() - began
    return Sent(
        readings=total * READINGS_PER_MESSAGE,
        seconds=seconds,
        late_seconds=max(0.0, seconds - order.seconds) if rate else 0.0,
    )
