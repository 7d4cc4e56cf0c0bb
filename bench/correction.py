"""Measure how long a change of terms takes, by how much of the history of a pool it concerns.

Run by `make bench-correction`. A device of a pool of 1000 goes over to another plan: before the last 1 %
of what the pool's devices were charged, or before all of it. Its fleet is owned meanwhile, so nobody else
charges it. The same for a device of a fleet of as many whose plan shares nothing.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter

from bench.own_database import TENANT, fleet_of, migrated, own_database
from metering.charging.change_terms import change_plan
from metering.charging.charge_usage import charge_usage
from metering.ids import DeviceId, PlanNo, TenantId, TenantNo
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.plan_document import read_plan
from metering.store.connection import Connection
from metering.store.registry import ensure_plan
from metering.usage import DATA, Reading, ReadingKind

DEVICES = 1_000
READINGS = (10_000, 100_000)
ROUNDS = 3
AT_ONCE = 2_000
"""Readings of one charging run."""
OCTETS = 1_000
"""What each reading says was used."""
NOW = datetime(2026, 4, 28, 12, tzinfo=UTC)
BEGAN = NOW - timedelta(days=20)


def plan(name: str, allowance: int, *, pooled: bool) -> dict[str, object]:
    """Return a plan whose allowance, of a pool, is a device's contribution."""
    return {
        "plan": name,
        "currency": "EUR",
        "meters": {
            "data": {
                "allowance": allowance,
                "pooled": pooled,
                "price": {"amount": "0.10", "per": "1 MB"},
            }
        },
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """A fleet whose devices were charged in turn, and the plan to which some go over."""

    tenant: TenantNo
    devices: list[int]
    readings: int
    larger: PlanNo

    def instant(self, number: int) -> datetime:
        """Return when one of the fleet's readings was measured, by its number in their order."""
        return BEGAN + (NOW - BEGAN) * number / self.readings


async def charged(connection: Connection, fleet_id: str, readings: int, *, pooled: bool) -> Charged:
    """Register a fleet and charge its devices; what they may use is half of what they do."""
    allowance = OCTETS * readings // DEVICES // 2
    small = plan(f"{fleet_id}-small", allowance, pooled=pooled)
    fleet, device_ids = await fleet_of(connection, fleet_id, DEVICES, small, now=NOW)
    larger = await ensure_plan(
        connection,
        tenant=fleet.tenant_no,
        plan=read_plan(plan(f"{fleet_id}-larger", 3 * allowance, pooled=pooled)),
        now=NOW,
    )
    found = await connection.execute(
        "SELECT device_no FROM device WHERE fleet_no = %s ORDER BY device_no", [fleet.fleet_no]
    )
    numbers = [row[0] for row in await found.fetchall()]
    of_fleet = Charged(tenant=fleet.tenant_no, devices=numbers, readings=readings, larger=larger)
    cache = DeviceCache(100_000)
    for first in range(0, readings, AT_ONCE):
        batch = list(_messages(of_fleet, device_ids, range(first, first + AT_ONCE)))
        await write_batch(connection, cache, batch, now=NOW)
        while await charge_usage(connection, readings_max=AT_ONCE, now=NOW):
            pass
    return of_fleet


def _messages(of_fleet: Charged, device_ids: list[str], numbers: range) -> Iterator[Message]:
    for number in numbers:
        reading = Reading(
            seq=number // DEVICES + 1, at=of_fleet.instant(number), meter=DATA,
            kind=ReadingKind.DELTA, uplink=0, downlink=OCTETS,
        )  # fmt: skip
        device_id = device_ids[number % DEVICES]
        yield Message(
            topic=f"fm/v1/{TENANT}/{device_id}/usage", octets=100,
            sender=(TenantId(TENANT), DeviceId(device_id)), received_at=NOW, published_at=NOW,
            boot="boot-1", readings=[reading], rejections=(),
        )  # fmt: skip


async def changed(connection: Connection, of_fleet: Charged, first: int) -> tuple[float, int]:
    """Change the plan of the device that sent a reading from that on: seconds, charges that differ."""
    started = perf_counter()
    made = await change_plan(
        connection, tenant_no=of_fleet.tenant, device_nos=[of_fleet.devices[first % DEVICES]],
        plan_no=of_fleet.larger, at=of_fleet.instant(first), now=NOW,
    )  # fmt: skip
    seconds = perf_counter() - started
    if made.changed != 1:
        raise RuntimeError("the benchmark changed something else than it asked for")
    return seconds, made.charges


Cell = tuple[float, int]
"""Seconds, and how many charges differ: medians."""


async def measure(url: str) -> dict[tuple[str, int], tuple[Cell, Cell]]:
    """Return what changes of the last 1 % and of all took, by kind of plan and number of readings."""
    cells: dict[tuple[str, int], tuple[Cell, Cell]] = {}
    connection = await migrated(url)
    async with connection:
        for kind in ("pool", "own"):
            for readings in READINGS:
                fleet = await charged(
                    connection, f"{kind}-{readings}", readings, pooled=kind == "pool"
                )
                await connection.execute("VACUUM ANALYZE")
                # The first is for warming up.
                last = [
                    await changed(connection, fleet, readings * 99 // 100 + turn)
                    for turn in range(ROUNDS + 1)
                ][1:]
                every = [
                    await changed(connection, fleet, DEVICES // 2 + turn) for turn in range(ROUNDS)
                ]
                cells[kind, readings] = (_median(last), _median(every))
    return cells


def _median(rounds: list[tuple[float, int]]) -> Cell:
    return median(seconds for seconds, _ in rounds), int(median(count for _, count in rounds))


def main() -> None:
    """Measure, print a table, and write bench/correction.json."""
    with own_database() as url:
        cells = asyncio.run(measure(url))
    print(
        f"one of {DEVICES} devices changes its plan, median of {ROUNDS} rounds,"
        f" Python {sys.version.split()[0]}"
    )
    print("                           from the last 1 % on      from the first on")
    print("              readings      seconds    charges      seconds    charges")
    written: dict[str, float] = {}
    for (kind, readings), both in cells.items():
        name = {"pool": "one pool", "own": "own only"}[kind]
        row = "".join(f"{seconds:>13.3f} {count:>10,}" for seconds, count in both)
        print(f"{name}  {readings:>12,}{row}")
        for part, (seconds, _) in zip(("last_percent", "all"), both, strict=True):
            written[f"{kind}_{readings}_{part}_s"] = round(seconds, 4)
    Path(__file__).with_name("correction.json").write_text(
        json.dumps(written, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
