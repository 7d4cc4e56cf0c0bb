"""`make bench-messages`: what keeping messages as they came costs the ingester, with and without in turn."""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from statistics import median

import psutil

from bench.own_database import TENANT, fleet_of, migrated, own_database
from bench.resources import wal_octets
from bench.workload import ONE, TWENTY, Manner
from metering.ingest.admission import admit
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.settings import Settings
from metering.store.connection import Connection

DEVICES = 1000
ROUNDS = 9
PLAN = {
    "plan": "bench",
    "currency": "EUR",
    "meters": {"data": {"price": {"amount": "0.10", "per": "1 MB"}}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a record costs: microseconds of CPU time of the ingester and of its database session, octets."""

    ingester_us: float
    database_us: float
    wal_octets: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Messages of one manner, so many a batch, so many batches a round."""

    manner: Manner
    messages_a_batch: int
    batches: int

    @property
    def records(self) -> int:
        """How many records a round has."""
        return self.manner.readings_a_message * self.messages_a_batch * self.batches


LOADS = (
    Load(manner=ONE, messages_a_batch=200, batches=40),
    Load(manner=TWENTY, messages_a_batch=100, batches=10),
)


@dataclass(slots=True)
class Fleet:
    """Devices that take turns; what each sends differs in whatever a real one's does."""

    chance: Random
    turn: int = 0
    sent: dict[int, int] = field(default_factory=dict)

    def message(self, readings: int) -> tuple[int, bytes]:
        """Return the next device, and its message of so many readings."""
        device = self.turn = (self.turn + 1) % DEVICES
        first = self.sent.get(device, 0) + 1
        self.sent[device] = first + readings - 1
        told = [
            {
                "seq": seq,
                "at": (datetime.now(UTC) - timedelta(seconds=self.chance.random())).isoformat(),
                "meter": "data",
                "up": self.chance.randrange(100_000),
                "down": self.chance.randrange(10_000_000),
            }
            for seq in range(first, first + readings)
        ]
        sent = datetime.now(UTC).isoformat()
        return device, json.dumps(
            {"boot": f"{device:08x}", "sent": sent, "readings": told}
        ).encode()


async def one_round(
    url: str,
    connection: Connection,
    load: Load,
    outgoing: Sequence[tuple[int, bytes]],
    *,
    days: int,
) -> Cell:
    """Admit and write messages, keeping them or not."""
    settings = Settings(messages_kept_days=days)
    cache = DeviceCache(10_000)
    session = psutil.Process(connection.info.backend_pid)
    wal = wal_octets(url)
    before, in_session = time.process_time(), sum(session.cpu_times()[:2])
    for first in range(0, len(outgoing), load.messages_a_batch):
        now = datetime.now(UTC)
        batch = [
            admit(
                f"fm/v1/{TENANT}/fleet-{device}/usage", payload, received_at=now,
                settings=settings,
            )
            for device, payload in outgoing[first : first + load.messages_a_batch]
        ]  # fmt: skip
        outcome = await write_batch(connection, cache, batch, now=now)
        if outcome.stored != load.manner.readings_a_message * len(batch):
            raise RuntimeError("the benchmark wrote something else than it published")
    spent = time.process_time() - before
    in_session = sum(session.cpu_times()[:2]) - in_session
    return Cell(
        ingester_us=spent / load.records * 1e6,
        database_us=in_session / load.records * 1e6,
        wal_octets=(wal_octets(url) - wal) / load.records,
    )


async def measure(url: str) -> dict[str, tuple[list[Cell], list[Cell], float, float]]:
    """Return the rounds with and without by manner, and octets and rows kept for a record."""
    found: dict[str, tuple[list[Cell], list[Cell], float, float]] = {}
    connection = await migrated(url)
    async with connection:
        await fleet_of(connection, "fleet", DEVICES, PLAN, now=datetime.now(UTC))
        fleet = Fleet(Random(1))  # noqa: S311 - a benchmark has no secrets
        for load in LOADS:
            await connection.execute("TRUNCATE message_batch")
            with_: list[Cell] = []
            without: list[Cell] = []
            for number in range(2 * ROUNDS + 2):
                count = load.messages_a_batch * load.batches
                sent = [fleet.message(load.manner.readings_a_message) for _ in range(count)]
                cell = await one_round(url, connection, load, sent, days=400 * (number % 2))
                (with_ if number % 2 else without).append(cell)
            rows = await connection.execute(
                "SELECT hypertable_size('message_batch')::float, count(*)::float FROM message_batch"
            )
            row = await rows.fetchone()
            assert row is not None  # noqa: S101 - an aggregate returns one row
            kept = load.records * (ROUNDS + 1)
            # The first rounds are for warming up.
            found[load.manner.name] = (with_[1:], without[1:], row[0] / kept, row[1] / kept)
    return found


def main() -> None:
    """Measure, print a table, and write bench/kept_messages.json."""
    with own_database() as url:
        found = asyncio.run(measure(url))
    print(f"a record's cost, median of {ROUNDS} rounds in turn, Python {sys.version.split()[0]}")
    print("readings a message               without      kept   ratio")
    written: dict[str, float] = {}
    for name, (with_, without, octets, rows) in found.items():
        for what in ("ingester_us", "database_us", "wal_octets"):
            pairs = [
                (getattr(one, what), getattr(other, what))
                for one, other in zip(with_, without, strict=True)
            ]
            kept, bare = (median(each[place] for each in pairs) for place in (0, 1))
            ratio = median(each[0] / each[1] for each in pairs)
            print(f"{name:>8} {what:20} {bare:>10.2f} {kept:>9.2f} {ratio:>7.3f}")
            written[f"{name}_{what}_ratio"] = round(ratio, 4)
        print(f"{name:>8} kept: {octets:.1f} octets and {rows:.5f} rows a record")
        written |= {f"{name}_octets": round(octets, 1), f"{name}_rows": round(rows, 5)}
    Path(__file__).with_name("kept_messages.json").write_text(
        json.dumps(written, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
