"""Measure for how long one device that sends as fast as it can delays the others.

Run by `make bench-flood`. Some devices publish a reading now and then, and the time to its end-to-end
acknowledgement is measured: for some seconds of calm, and then while another device publishes over TLS as
fast as the broker reads, until it is cut off, and until all that it got into the queue has gone.
With a real broker, `fleetmeter ingest` and `fleetmeter control`, and the limits of the settings.
"""

import argparse
import asyncio
import json
import multiprocessing
import platform
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from statistics import median

import paho.mqtt.client as paho
import psycopg
from paho.mqtt.enums import CallbackAPIVersion

from bench.credentials import Bench, running
from bench.databases import database_on
from bench.own_database import TENANT, migrated
from bench.packets import (
    CONNACK_OCTETS,
    PACKET_IDS,
    connect_packet,
    publish_packet,
    publish_packet_unacknowledged,
)
from bench.servers import own_servers
from metering.broker_address import BrokerAddress, parse_broker_url
from metering.control.give_credentials import Given
from metering.credentials.authority import authority_folder
from metering.settings import Settings
from metering.stack import lifecycle
from metering.store.registry import ensure_devices, ensure_fleet, ensure_tenant
from metering.wire.ack import decode as decode_ack

CALM_DEVICES = 20
CALM_SECONDS = 5.0
EVERY_SECONDS = 0.01
"""Between two messages of the devices that do not flood, taken together."""
WAIT_SECONDS_MAX = 300.0
_TOGETHER = 100


def message_of(seq: int) -> bytes:
    """Return a message of one reading."""
    at = datetime.now(UTC).isoformat()
    reading = {"seq": seq, "at": at, "meter": "sms", "quantity": 1}
    return json.dumps({"boot": "bench", "readings": [reading]}).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flooder:
    """Who floods, and where."""

    given: Given
    port: int
    authority: Path
    qos: int
    root: str = "fm/v1"


def flood(flooder: Flooder, began_at: "Synchronized[float]") -> None:
    """Publish until the broker ends the connection, and say when it began."""
    given = flooder.given
    broker = BrokerAddress(
        host="localhost",
        port=flooder.port,
        tls=True,
        username=given.username,
        password=given.password,
    )
    topic = f"{flooder.root}/{given.username}/usage".encode()
    context = ssl.create_default_context(cafile=flooder.authority)
    with (
        socket.create_connection(("localhost", flooder.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(connect_packet(given.username, broker))
        connection.recv(CONNACK_OCTETS)
        threading.Thread(target=_drain, args=(connection,), daemon=True).start()
        seq = 0
        began_at.value = time.time()
        try:
            while True:
                packets = []
                for _ in range(_TOGETHER):
                    seq += 1
                    payload = message_of(seq)
                    packets.append(
                        publish_packet(topic, payload, seq % PACKET_IDS + 1)
                        if flooder.qos
                        else publish_packet_unacknowledged(topic, payload)
                    )
                connection.sendall(b"".join(packets))
        except OSError:
            return


def _drain(connection: ssl.SSLSocket) -> None:
    try:
        while connection.recv(65536):
            pass
    except (OSError, ValueError):
        pass


class Others:
    """Devices that publish at a steady pace, and how long each reading waited for its acknowledgement."""

    def __init__(self, broker: BrokerAddress) -> None:
        self.delays: list[tuple[float, float]] = []
        """When each was published, and after how many seconds it was acknowledged."""
        self._sent: dict[str, dict[int, float]] = {}
        self._seq = 0
        self._ended = threading.Event()
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bench-others")
        self._client.username_pw_set(broker.username, broker.password)
        self._client.on_message = lambda *told: self._hear(told[2])
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect(broker.host, broker.port)
        self._client.subscribe(f"fm/v1/{TENANT}/+/ack")

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish while the body runs."""
        self._client.loop_start()
        self._subscribed.wait(WAIT_SECONDS_MAX)
        thread = threading.Thread(target=self._publish)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self._client.disconnect()
            self._client.loop_stop()

    def waits_longer_than(self, seconds: float) -> bool:
        """Whether a reading waits for its acknowledgement since so long ago."""
        before = time.monotonic() - seconds
        return any(at < before for all_ in list(self._sent.values()) for at in list(all_.values()))

    def forget_lost(self) -> None:
        """Forget what nobody heard before the ingester had subscribed."""
        first = min(at for at, _ in list(self.delays))
        for waiting in list(self._sent.values()):
            for seq in [seq for seq, at in list(waiting.items()) if at < first]:
                del waiting[seq]

    def longest(self, since: float, until: float) -> tuple[float, float]:
        """Return the median and the longest delay of what was published in a time."""
        delays = [delay for at, delay in list(self.delays) if since <= at <= until]
        return median(delays), max(delays)

    def _publish(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            number, seq = self._seq % CALM_DEVICES, self._seq // CALM_DEVICES + 1
            self._seq += 1
            device = f"calm-{number}"
            self._sent.setdefault(device, {})[seq] = time.monotonic()
            self._client.publish(f"fm/v1/{TENANT}/{device}/usage", message_of(seq), qos=1)

    def _hear(self, message: paho.MQTTMessage) -> None:
        waiting = self._sent.get(message.topic.split("/")[-2])
        if waiting is None:
            return
        now, ack = time.monotonic(), decode_ack(bytes(message.payload))
        for seq in [each for each in list(waiting) if ack.holds(each)]:
            at = waiting.pop(seq)
            self.delays.append((at, now - at))


def _wait(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not happened():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {what}")
        time.sleep(0.01)


def wait_for_control(url: str) -> None:
    """Wait until the control process looks at what devices may do."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE broker_client SET look_at = now()")
        _wait(
            lambda: (
                not connection.execute(
                    "SELECT FROM broker_client WHERE look_at IS NOT NULL LIMIT 1"
                ).fetchall()
            ),
            "control process",
        )


def one_round(others: Others, flooder: Flooder, url: str) -> dict[str, float]:
    """Let a device flood once; return the figures."""
    calm_from = time.monotonic()
    time.sleep(CALM_SECONDS)
    began = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    began_at = spawn.Value("d", 0.0)
    process = spawn.Process(target=flood, args=(flooder, began_at))
    process.start()
    device = flooder.given.username.partition("/")[2]
    with psycopg.connect(url, autocommit=True) as connection:

        def ask(query: str) -> tuple[object, ...] | None:
            return connection.execute(query.encode(), [device]).fetchone()

        def held() -> tuple[object, ...] | None:
            return ask(
                "SELECT extract(epoch FROM held_from)::float8 FROM device_flood"
                " JOIN device USING (device_no) WHERE device_id = %s"
            )

        _wait(held, "end of the flood")
        _wait(
            lambda: ask(
                "SELECT 1 FROM broker_client JOIN device USING (device_no)"
                " WHERE device_id = %s AND told = 'held'"
            ),
            "word to the broker",
        )
        cut_off = time.time()
        process.join(WAIT_SECONDS_MAX)
        time.sleep(CALM_SECONDS)
        _wait(lambda: not others.waits_longer_than(CALM_SECONDS), "calm")
        count = ask("SELECT up_to FROM boot JOIN device USING (device_no) WHERE device_id = %s")
        noticed = held()
    assert count is not None  # noqa: S101 - it has flooded
    assert noticed is not None  # noqa: S101 - it was held
    calm, calm_most = others.longest(calm_from, began)
    _, most = others.longest(began, time.monotonic())
    return {
        "taken": float(str(count[0])),
        "noticed_s": round(float(str(noticed[0])) - began_at.value, 3),
        "cut_off_s": round(cut_off - began_at.value, 3),
        "calm_ms_p50": round(1000 * calm, 1),
        "calm_ms_most": round(1000 * calm_most, 1),
        "flood_ms_most": round(1000 * most, 1),
    }


async def registered(settings: Settings, rounds: int) -> list[Given]:
    """Register all devices; return the passwords of those that flood."""
    assert settings.database_url is not None  # noqa: S101 - set by `main`
    now = datetime.now(UTC)
    async with await migrated(settings.database_url.get_secret_value()) as connection:
        tenant = await ensure_tenant(connection, tenant_id=TENANT, name="Bench", now=now)
        fleet = await ensure_fleet(
            connection, tenant=tenant, fleet_id="fleet", name="Fleet", currency="EUR",
            time_zone="Europe/Berlin", anchor_day=1, now=now,
        )  # fmt: skip
        calm = [f"calm-{number}" for number in range(CALM_DEVICES)]
        await ensure_devices(connection, fleet=fleet, device_ids=calm, active_from=now, now=now)
        _, given = await Bench(settings, connection, fleet).add(2 * rounds)
    return given


def main() -> None:
    """Measure, print a table, and write bench/flood.json."""
    parser = argparse.ArgumentParser(prog="make bench-flood", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="floods at each QoS (%(default)s)")
    arguments = parser.parse_args()
    written: dict[str, float] = {}
    with own_servers() as servers, database_on(servers.database_url) as url:
        settings = Settings(
            database_url=url, broker_url=servers.broker_url, data_dir=servers.settings.data_dir
        )
        print(
            f"more than {settings.device_messages_per_second_max:g} messages/s over"
            f" {settings.flood_window_seconds:g} s are a flood; Python {platform.python_version()}"
        )
        given = asyncio.run(registered(settings, arguments.rounds))
        record = lifecycle.broker_record(settings)
        assert record is not None  # noqa: S101 - it was started above
        port = lifecycle.ports_of(record).passwords
        authority = authority_folder(settings) / "authority.pem"
        others = Others(parse_broker_url(servers.broker_url))
        print("QoS   messages taken   noticed   cut off   others' delay, ms: calm   in a flood")
        with (
            tempfile.TemporaryDirectory() as folder,
            running(settings, Path(folder), "ingest"),
            running(settings, Path(folder), "control"),
            others.publishing(),
        ):
            _wait(lambda: len(others.delays) > CALM_DEVICES, "acknowledgement")
            others.forget_lost()
            wait_for_control(url)
            for qos in (0, 1):
                found = []
                for _ in range(arguments.rounds):
                    flooder = Flooder(given=given.pop(), port=port, authority=authority, qos=qos)
                    figures = one_round(others, flooder, url)
                    found.append(figures)
                    print(
                        f"{qos:>3} {figures['taken']:>16.0f} {figures['noticed_s']:>7.2f} s"
                        f" {figures['cut_off_s']:>7.2f} s {figures['calm_ms_p50']:>24.0f}"
                        f" {figures['flood_ms_most']:>12.0f}",
                        flush=True,
                    )
                written |= {
                    f"qos_{qos}_{name}_worst": max(each[name] for each in found)
                    for name in ("taken", "cut_off_s", "flood_ms_most")
                }
                written[f"qos_{qos}_calm_ms_p50"] = median(each["calm_ms_p50"] for each in found)
    Path(__file__).with_name("flood.json").write_text(
        json.dumps(written, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
