"""Publish → balance readable through the API: one reading at a time, in a fleet of its own.

A time runs from the moment before the message is written to the broker's socket to the end of the API's
first answer that shows it. The client keeps its connection and asks without a pause while it waits, so the
figure holds one answer of the API and on average half of another.
"""

import json
import socket
from datetime import UTC, datetime
from random import Random
from time import monotonic, perf_counter, sleep
from types import TracebackType
from typing import Self

import httpx

from bench.packets import CONNACK_OCTETS, PUBACK_OCTETS, connect_packet, publish_packet
from bench.product import Product
from bench.servers import BenchError
from bench.workload import TENANT, Population

PROBE = Population(name="probe", fleets=1, devices_a_fleet=1)
FLEET, DEVICE = "probe-0", "probe-0-0"
PAUSE_SECONDS = (0.001, 0.02)
"""Between two probes: moments that do not fall in step with batches."""
LOST_SECONDS = 300.0
"""Who waits longer for something has lost it: more than what may be queued at a high load."""
_QUANTITY = 10


def api_client(made: Product, port: int) -> httpx.Client:
    """Return a client of the API that keeps its connection."""
    return httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Authorization": f"Bearer {made.api_key}"},
        timeout=LOST_SECONDS,
    )


def used(api: httpx.Client) -> int:
    """Return what the API shows as used of the probe's pool."""
    answer = api.get(f"/v1/fleets/{FLEET}/balance").raise_for_status().json()
    return sum(pool["pool"]["used"] for pool in answer["pools"])


class BalanceProbe:
    """A device that publishes one reading and waits until the API shows it."""

    def __init__(self, made: Product, api: httpx.Client) -> None:
        self._api = api
        self._topic = f"{made.roots[0]}/{TENANT}/{DEVICE}/usage".encode()
        broker = made.servers.broker
        self._socket = socket.create_connection((broker.host, broker.port), timeout=LOST_SECONDS)
        self._socket.sendall(connect_packet(f"{made.name}-balance", broker))
        self._socket.recv(CONNACK_OCTETS, socket.MSG_WAITALL)
        self._chance = Random(1)  # noqa: S311 - moments that do not fall in step with batches
        self._seq = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def run(self, seconds: float) -> list[float]:
        """Probe for so long; return each time in seconds."""
        times: list[float] = []
        deadline = monotonic() + seconds
        while monotonic() < deadline or len(times) < 2:  # noqa: PLR2004 - percentiles need two
            sleep(self._chance.uniform(*PAUSE_SECONDS))
            times.append(self._once())
        return times

    def _once(self) -> float:
        self._seq += 1
        payload = one_reading(self._seq, uplink=4, downlink=_QUANTITY - 4)
        packet = publish_packet(self._topic, payload, 1 + self._seq % 60_000)
        began = perf_counter()
        self._socket.sendall(packet)
        while used(self._api) < self._seq * _QUANTITY:
            if perf_counter() - began > LOST_SECONDS:
                raise BenchError(f"the API does not show a reading within {LOST_SECONDS:g} s")
        ended = perf_counter()
        self._socket.recv(PUBACK_OCTETS, socket.MSG_WAITALL)
        return ended - began


def one_reading(seq: int, *, uplink: int, downlink: int) -> bytes:
    """Return a message with one reading of now."""
    now = datetime.now(UTC).isoformat()
    reading = {"seq": seq, "at": now, "meter": "data", "up": uplink, "down": downlink}
    return json.dumps({"boot": "probe", "sent": now, "readings": [reading]}).encode()
