"""Measure how long a dead worker's shards wait until another worker charges them, with real processes.

Run by `make bench-takeover`. Two workers lease half of the shards each. One is killed (kill -9), or
stopped (SIGSTOP) while it waits for work, or stopped in the middle of its charging transaction, whose
locks it holds. A reading of each of its shards is stored at that moment; the time is measured until the
last of them is charged.
"""

import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from bench.own_database import fleet_of, message, migrated, own_database
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.settings import Settings
from metering.store.connection import connect

ROUNDS = 9
SHARDS = 64
WAIT_SECONDS_MAX = 60.0
PLAN = {
    "plan": "bench",
    "currency": "EUR",
    "meters": {"data": {"price": {"amount": "0.10", "per": "1 MB"}}},
}


class Bench:
    """A database with a fleet in each shard, and workers that charge it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.devices: list[str] = []
        self.sequence = count(1)
        self.workers: list[subprocess.Popen[bytes]] = []

    async def prepare(self) -> None:
        """Make the schema, and one device in each shard."""
        async with await migrated(self.url) as connection:
            for number in range(SHARDS):
                _, device_ids = await fleet_of(
                    connection, f"fleet-{number}", 1, PLAN, now=datetime.now(UTC)
                )
                self.devices += device_ids

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start a worker and return once the shards are shared out."""
        settings = {"FLEETMETER_DATABASE_URL": self.url, "FLEETMETER_METRICS_PORT": "0"}
        with (self.folder / "workers.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "metering.cli", "charge"],
                env={**os.environ, "PYTHONPATH": str(Path.cwd()), **settings},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.workers.append(worker)
        running = [each.pid for each in self.workers if each.poll() is None]
        share = SHARDS // len(running)
        self.wait(
            lambda: self.shares() == dict.fromkeys(running, share), "shards that are shared out"
        )
        return worker

    def shares(self) -> Mapping[int, int]:
        """Return how many shards each worker leases, by its pid."""
        rows = self.query(
            "SELECT pid, count(*) FROM charging_shard JOIN charging_worker USING (worker_no)"
            " GROUP BY pid"
        )
        return {row[0]: row[1] for row in rows}

    def shards_of(self, worker: subprocess.Popen[bytes]) -> list[int]:
        """Return the shards that a worker leases."""
        rows = self.query(
            "SELECT shard_no FROM charging_shard JOIN charging_worker USING (worker_no)"
            " WHERE pid = %s ORDER BY 1",
            worker.pid,
        )
        return [row[0] for row in rows]

    def send(self, shards: list[int]) -> int:
        """Store a reading of each shard's device; return its sequence number."""
        seq = next(self.sequence)
        asyncio.run(self._send(shards, seq))
        return seq

    async def _send(self, shards: list[int], seq: int) -> None:
        now = datetime.now(UTC)
        async with await connect(self.url, application="bench", autocommit=True) as connection:
            messages = [message(self.devices[shard], [seq], now=now) for shard in shards]
            await write_batch(connection, DeviceCache(100), messages, now=now)

    def wait_for_charges(self, seq: int, charges: int) -> None:
        """Wait until so many readings of a number are charged."""
        self.wait(
            lambda: self.query("SELECT count(*) FROM charge WHERE seq = %s", seq)[0][0] == charges,
            f"{charges} charges",
        )

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {WAIT_SECONDS_MAX} s: {what}")
            time.sleep(0.005)

    def query(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query.encode(), parameters or None).fetchall()

    @contextmanager
    def transaction_held_up(self, shards: list[int]) -> Iterator[None]:
        """Send work, and have the worker that leases the shards stand amid its transaction."""
        with psycopg.connect(self.url) as holder:
            holder.execute("LOCK TABLE usage_hour IN ACCESS EXCLUSIVE MODE")
            self.send(shards)
            self.wait(
                lambda: bool(
                    self.query(
                        "SELECT FROM pg_stat_activity JOIN charging_worker"
                        " ON session = application_name WHERE wait_event_type = 'Lock'"
                    )
                ),
                "a transaction that waits",
            )
            yield

    def round(self, how: str) -> float:
        """Start a worker, end or stop it, and return for how long its shards waited."""
        worker = self.start_worker()
        shards = self.shards_of(worker)
        self.wait_for_charges(self.send(list(range(SHARDS))), SHARDS)
        if how == "stopped amid its transaction":
            with self.transaction_held_up(shards):
                worker.send_signal(signal.SIGSTOP)
                began = time.monotonic()
        else:
            worker.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            began = time.monotonic()
        self.wait_for_charges(self.send(shards), len(shards))
        waited = time.monotonic() - began
        worker.kill()
        worker.wait()
        return waited

    def stop(self) -> None:
        """End every worker."""
        for worker in self.workers:
            worker.kill()
            worker.wait()


def main() -> None:
    """Measure, print a table, and write bench/takeover.json."""
    written: dict[str, float] = {}
    with own_database() as url, tempfile.TemporaryDirectory() as folder:
        bench = Bench(url, Path(folder))
        asyncio.run(bench.prepare())
        try:
            bench.start_worker()
            print(
                f"lease {Settings().charging_lease_seconds} s, {ROUNDS} rounds each,"
                f" Python {platform.python_version()}"
            )
            print("seconds until the last shard is charged    median   longest")
            for how in ("killed", "stopped", "stopped amid its transaction"):
                waits = [bench.round(how) for _ in range(ROUNDS)]
                print(f"  {how:38} {median(waits):>8.2f} {max(waits):>9.2f}", flush=True)
                written[f"{how.replace(' ', '_')}_s"] = round(median(waits), 3)
                written[f"{how.replace(' ', '_')}_longest_s"] = round(max(waits), 3)
        finally:
            bench.stop()
    Path(__file__).with_name("takeover.json").write_text(
        json.dumps(written, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
