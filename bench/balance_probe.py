"""Publish → balance readable through the API: readings at random moments, in a fleet of its own.

A time runs from the moment before the message is written to the broker's socket to the end of the API's
first answer that shows it. The client keeps its connection and asks without a pause while anything is not
shown, so the figure holds one answer of the API and on average half of another. Readings do not wait for
each other: whatever holds up the pipeline is met by all that come meanwhile.
"""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
PROBES_PER_SECOND = 30.0
"""On average, at moments of which none tells the next: they fall in step with nothing."""
LOST_SECONDS = 300.0
"""Who waits longer for something has lost it: more than what may be queued at a high load."""
IDLE_SECONDS = 0.0005
"""Who has nothing to wait for looks so often whether there is something."""
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
    """A device that publishes readings, and a client that asks the API until each is shown."""

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
        began: list[float] = []
        times: list[float] = []
        shown = self._seq
        with ThreadPoolExecutor(1) as sending:
            sent = sending.submit(self._send, seconds, began)
            while not sent.done() or len(times) < len(began):
                if len(times) == len(began):
                    sleep(IDLE_SECONDS)
                    continue
                known = used(self._api) // _QUANTITY - shown
                ended = perf_counter()
                times += [ended - each for each in began[len(times) : known]]
                if ended - began[-1] > LOST_SECONDS:
                    raise BenchError(f"the API does not show a reading within {LOST_SECONDS:g} s")
            sent.result()
        self._socket.recv(PUBACK_OCTETS * len(began), socket.MSG_WAITALL)
        return times

    def _send(self, seconds: float, began: list[float]) -> None:
        """Publish for so long, and note before each message when that was."""
        for _ in moments(self._chance, seconds):
            self._seq += 1
            payload = one_reading(self._seq, uplink=4, downlink=_QUANTITY - 4)
            packet = publish_packet(self._topic, payload, 1 + self._seq % 60_000)
            began.append(perf_counter())
            self._socket.sendall(packet)


def moments(chance: Random, seconds: float) -> Iterator[None]:
    """Wait for the moments of probes within so many seconds, of two at least: percentiles need them."""
    begins = at = monotonic()
    count = 0
    while (at := at + chance.expovariate(PROBES_PER_SECOND)) < begins + seconds or count < 2:  # noqa: PLR2004
        sleep(max(0.0, at - monotonic()))
        yield
        count += 1


def one_reading(seq: int, *, uplink: int, downlink: int) -> bytes:
    """Return a message with one reading of now."""
    now = datetime.now(UTC).isoformat()
    reading = {"seq": seq, "at": now, "meter": "data", "up": uplink, "down": downlink}
    return json.dumps({"boot": "probe", "sent": now, "readings": [reading]}).encode()
