"""Measure what credentials cost at the broker, and how soon a suspension holds there.

Run by `make bench-credentials`. For each number of devices: how long it takes to give all of them a
credential with a restart of the broker, and some more while it runs; and from the commit of a device's
suspension to the moment at which the broker takes nothing more of it, with a real `fleetmeter control` and
a device that never stops publishing.
"""

import argparse
import asyncio
import json
import os
import platform
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from bench.databases import database_on
from bench.own_database import TENANT, migrated
from bench.servers import own_servers
from metering.control.give_credentials import Given
from metering.credentials.authority import authority_folder
from metering.provisioning.credentials import provisioning
from metering.rating.plan import DeviceState
from metering.settings import Settings
from metering.stack import lifecycle
from metering.store.connection import Connection
from metering.store.registry import Fleet, ensure_devices, ensure_fleet, ensure_tenant, lock_shard
from metering.store.terms import set_state

WAIT_SECONDS_MAX = 120.0
TOGETHER = 100
"""Devices that are given a credential by one command, unless it is asked for fewer."""


class Publisher:
    """A device that publishes without a pause, and when the broker last took something of it.

    `cut_off_at` is when it was told that the broker takes nothing more; the broker may be busy until then.
    """

    def __init__(self, given: Given, port: int, authority: Path) -> None:
        self.cut_off_at: float | None = None
        self.taken_at = 0.0
        self._taken = threading.Event()
        self._topic = f"fm/v1/{given.username}/usage"
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="", protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )  # fmt: skip
        self._client.tls_set_context(ssl.create_default_context(cafile=authority))
        self._client.username_pw_set(given.username, given.password)
        self._client.on_connect = lambda *_: self._publish()
        self._client.on_publish = lambda *told: self._answered(refused=told[3].value >= 0x80)  # noqa: PLR2004
        self._client.on_disconnect = lambda *_: self._answered(refused=True)
        self._client.connect("localhost", port)

    def _publish(self) -> None:
        self._client.publish(self._topic, "{}", qos=1)

    def _answered(self, *, refused: bool) -> None:
        if not refused:
            self.taken_at = time.monotonic()
            self._taken.set()
            self._publish()
        elif self.cut_off_at is None:
            self.cut_off_at = time.monotonic()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish once the first message was taken."""
        self._client.loop_start()
        try:
            if not self._taken.wait(WAIT_SECONDS_MAX):
                raise RuntimeError("the broker takes nothing of a device that may publish")
            yield
        finally:
            self._client.disconnect()
            self._client.loop_stop()


class Bench:
    """A deployment of one tenant, whose broker is the stack's."""

    def __init__(self, settings: Settings, connection: Connection, fleet: Fleet) -> None:
        self.settings = settings
        self.connection = connection
        self.fleet = fleet
        self.devices = 0

    async def add(self, count: int, *, restart_broker: bool = False) -> tuple[float, list[Given]]:
        """Give more devices a password each, so many at once; return the seconds and the passwords."""
        names = [f"device-{number}" for number in range(self.devices, self.devices + count)]
        self.devices += count
        now = datetime.now(UTC)
        async with self.connection.transaction():
            await ensure_devices(
                self.connection, fleet=self.fleet, device_ids=names, active_from=now, now=now
            )
        began = time.monotonic()
        async with provisioning(self.settings, TENANT, restart_broker=restart_broker) as made:
            given = await made.give_passwords(names, now=now, anew=False)
        return time.monotonic() - began, given

    async def suspend(self, *given: Given) -> tuple[float, float]:
        """Suspend devices that publish, all at once; return for how long after the commit that took.

        The first is until it last acknowledged something, the second until it had cut the last one off.
        """
        record = lifecycle.broker_record(self.settings)
        if record is None:
            raise RuntimeError("no broker runs")
        authority = authority_folder(self.settings) / "authority.pem"
        port = lifecycle.ports_of(record).passwords
        devices = [Publisher(each, port, authority) for each in given]
        with ExitStack() as publishing:
            for device in devices:
                publishing.enter_context(device.publishing())
            async with self.connection.transaction():
                await lock_shard(self.connection, self.fleet.shard_no)
                await self._set_suspended(given)
            committed = time.monotonic()
            deadline = committed + WAIT_SECONDS_MAX
            while any(device.cut_off_at is None for device in devices):
                if time.monotonic() > deadline:
                    raise RuntimeError("a suspended device publishes for ever")
                await asyncio.sleep(0.001)
        taken = max(device.taken_at for device in devices) - committed
        cut_off = max(device.cut_off_at or 0.0 for device in devices) - committed
        return max(taken, 0.0), cut_off

    async def _set_suspended(self, given: Sequence[Given]) -> None:
        now = datetime.now(UTC)
        found = await self.connection.execute(
            "SELECT device_no FROM device WHERE device_id = ANY(%s)",
            [[each.username.partition("/")[2] for each in given]],
        )
        numbers = [row[0] for row in await found.fetchall()]
        await set_state(self.connection, numbers, state=DeviceState.SUSPENDED, at=now, now=now)


@contextmanager
def running(settings: Settings, folder: Path, command: str) -> Iterator[None]:
    """Run a process of the platform."""
    assert settings.database_url is not None  # noqa: S101 - set by `main`
    assert settings.broker_url is not None  # noqa: S101 - set by `main`
    own = {
        "FLEETMETER_DATABASE_URL": settings.database_url.get_secret_value(),
        "FLEETMETER_BROKER_URL": settings.broker_url.get_secret_value(),
        "FLEETMETER_DATA_DIR": str(settings.data_dir),
        "FLEETMETER_METRICS_PORT": "0",
        "PYTHONPATH": str(Path.cwd()),
    }
    with (folder / f"{command}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "metering.cli", command],
            env={**os.environ, **own}, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def measure(
    settings: Settings, sizes: Sequence[int], rounds: int, together: int, at_once: int
) -> dict[str, float]:
    """Measure at each number of devices, print a table, and return the figures."""
    assert settings.database_url is not None  # noqa: S101 - set by `main`
    written: dict[str, float] = {}
    now = datetime.now(UTC)
    async with await migrated(settings.database_url.get_secret_value()) as connection:
        tenant = await ensure_tenant(connection, tenant_id=TENANT, name="Bench", now=now)
        fleet = await ensure_fleet(
            connection, tenant=tenant, fleet_id="fleet", name="Fleet", currency="EUR",
            time_zone="Europe/Berlin", anchor_day=1, now=now,
        )  # fmt: skip
        bench = Bench(settings, connection, fleet)
        print(
            f"devices   all, with a restart   {together:>3} more   1 more"
            "   suspension, ms: taken until   longest   cut off   longest"
            f"   {at_once:>2} at once"
        )
        for size in sizes:
            first, _ = await bench.add(size - bench.devices, restart_broker=True)
            (many, given), (one, _) = await bench.add(together), await bench.add(1)
            with (
                tempfile.TemporaryDirectory() as folder,
                running(settings, Path(folder), "control"),
            ):
                await bench.suspend(given.pop())  # the first one waits until the process is up
                measured = [await bench.suspend(given.pop()) for _ in range(rounds)]
                last, _ = await bench.suspend(*(given.pop() for _ in range(at_once)))
                taken, delays = ([each[which] for each in measured] for which in (0, 1))
            print(
                f"{size:>7} {first:>19.2f} s {many:>8.2f} s {one:>6.2f} s"
                f" {1000 * median(taken):>28.0f} {1000 * max(taken):>9.0f}"
                f" {1000 * median(delays):>9.0f} {1000 * max(delays):>9.0f} {1000 * last:>12.0f}",
                flush=True,
            )
            written |= {
                f"add_{size}_with_a_restart_s": round(first, 3),
                f"add_{together}_at_{size}_s": round(many, 3),
                f"add_1_at_{size}_s": round(one, 3),
                f"taken_at_{size}_ms_p50": round(1000 * median(taken), 1),
                f"taken_at_{size}_ms_most": round(1000 * max(taken), 1),
                f"taken_of_{at_once}_at_{size}_ms_most": round(1000 * last, 1),
                f"suspension_at_{size}_ms_p50": round(1000 * median(delays), 1),
                f"suspension_at_{size}_ms_most": round(1000 * max(delays), 1),
            }
    return written


def main() -> None:
    """Measure, print a table, and write bench/credentials.json."""
    parser = argparse.ArgumentParser(prog="make bench-credentials", description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--rounds", type=int, default=30, help="suspensions each (%(default)s)")
    parser.add_argument(
        "--together", type=int, default=TOGETHER, help="devices added at once (%(default)s)"
    )
    parser.add_argument(
        "--at-once", type=int, default=20, help="devices suspended at once (%(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.rounds + arguments.at_once >= arguments.together:
        parser.error("suspends one device a round, one more, and some at once: add more together")
    print(f"{arguments.rounds} suspensions each, Python {platform.python_version()}")
    with own_servers() as servers, database_on(servers.database_url) as url:
        settings = Settings(
            database_url=url, broker_url=servers.broker_url, data_dir=servers.settings.data_dir
        )
        written = asyncio.run(
            measure(
                settings,
                arguments.devices,
                arguments.rounds,
                arguments.together,
                arguments.at_once,
            )
        )
    Path(__file__).with_name("credentials.json").write_text(
        json.dumps(written, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
