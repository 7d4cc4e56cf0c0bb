"""Measure charging of one hot pool, end to end in its transaction, for pools of 10 to 10 000 devices.

Run by `make bench-hot-pool`. What is compared is the cost of a reading as the pool grows while all else
stays: once with one pool and ten devices a batch, and once with 10 000 devices, in pools of ten, of a
hundred, of a thousand or in one, whose batches hold one reading a device. Read the ratios.
"""

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter

from bench.own_database import fleet_of, message, migrated, own_database
from metering.charging.charge_usage import charge_usage
from metering.charging.open_cycle import open_due_cycles
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.store.connection import Connection

SIZES = (10, 100, 1_000, 10_000)
READINGS = 2_000
"""Readings of one charging run."""
ROUNDS = 15
DEVICES = 10_000
"""How many devices all pools have together where batches hold one reading a device."""
NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)
PLAN = {
    "plan": "bench",
    "currency": "EUR",
    "meters": {
        "data": {"allowance": "1 GB", "pooled": True, "price": {"amount": "0.10", "per": "1 MB"}}
    },
}


@dataclass(slots=True, kw_only=True)
class Pool:
    """Devices of one pool or of several, and how far they have counted."""

    devices: list[str]
    at_once: int
    """How many devices a batch holds readings of."""
    next_device: int = 0
    counted: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def batch(self) -> dict[str, list[int]]:
        """Return the numbers of the readings that each device sends next."""
        first, count = self.next_device, min(self.at_once, len(self.devices), READINGS)
        self.next_device += count
        chosen = [self.devices[(first + number) % len(self.devices)] for number in range(count)]
        sent: dict[str, list[int]] = {}
        for number in range(READINGS):
            device = chosen[number % count]
            self.counted[device] += 1
            sent.setdefault(device, []).append(self.counted[device])
        return sent


async def charge_once(connection: Connection, cache: DeviceCache, pool: Pool) -> float:
    """Store a batch, charge it in one run, and return the seconds that the run took."""
    messages = [message(device, seqs, now=NOW) for device, seqs in pool.batch().items()]
    await write_batch(connection, cache, messages, now=NOW)
    started = perf_counter()
    outcome = await charge_usage(connection, readings_max=READINGS, now=NOW)
    seconds = perf_counter() - started
    if outcome is None or outcome.charges != READINGS:
        raise RuntimeError("the benchmark charged something else than it sent")
    return seconds


async def measure(url: str) -> dict[tuple[str, int], Pool]:
    """Return the measured pools, by how their batches are made and by size."""
    connection = await migrated(url)
    async with connection:
        cache = DeviceCache(100_000)
        pools: dict[tuple[str, int], Pool] = {}
        for size in SIZES:
            for kind, fleets, at_once in (("one", 1, 10), ("many", DEVICES // size, READINGS)):
                devices: list[str] = []
                for number in range(fleets):
                    fleet_id = f"{kind}-{size}-{number}"
                    devices += (await fleet_of(connection, fleet_id, size, PLAN, now=NOW))[1]
                pools[kind, size] = Pool(devices=devices, at_once=at_once)
        while await open_due_cycles(connection, now=NOW):
            pass
        await connection.execute("VACUUM ANALYZE")
        for turn in range(ROUNDS + 2):
            for pool in pools.values():  # in turn: what else the machine does meets all alike
                seconds = await charge_once(connection, cache, pool)
                if turn >= 2:  # noqa: PLR2004 - the first are for warming up
                    pool.seconds.append(seconds)
    return pools


def main() -> None:
    """Measure, print a table, and write bench/hot_pool.json."""
    with own_database() as url:
        pools = asyncio.run(measure(url))
    print(
        f"{READINGS} readings a transaction, median of {ROUNDS} rounds, one worker,"
        f" Python {sys.version.split()[0]}"
    )
    print("               one pool, 10 devices a batch   10 000 devices, one reading each")
    print("devices a pool     charges/s       cost              charges/s       cost")
    written: dict[str, float] = {}
    for size in SIZES:
        cells = ""
        for kind in ("one", "many"):
            seconds = median(pools[kind, size].seconds)
            ratio = seconds / median(pools[kind, SIZES[0]].seconds)
            cells += f"{READINGS / seconds:>14,.0f} {ratio:>10.2f}         "
            written[f"{kind}_{size}_charges_per_s"] = round(READINGS / seconds)
            written[f"{kind}_{size}_cost_ratio"] = round(ratio, 3)
        print(f"{size:>14,}{cells}".rstrip())
    Path(__file__).with_name("hot_pool.json").write_text(
        json.dumps(written, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
