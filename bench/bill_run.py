"""Measure a bill run: a month of many fleets, or of a large one, is closed and its bills made final.

Run by `make bench-bill-run`. The product's own processes do it: `fleetmeter charge` freezes what each fleet
owes, `fleetmeter bill-run` draws up, numbers and freezes the documents. With `--kill` each of them is killed
after a quarter and begun again. In the end there is one bill a fleet, no number is left out, and all bills
come to what the first fleet's did before anything was closed, as often as there are fleets. With `--forms`
the first bill is written in each form, and its fleet audited, by a process each.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import psycopg

from bench.bill_forms import FORMS, Form
from bench.bill_run_history import Wanted, fill
from bench.own_database import migrated, own_database
from bench.resources import peak_octets
from metering.billing.live_document import current_basis, draw_live
from metering.insight.audit import audit_fleet
from metering.period import BillCycle
from metering.store.audit import all_fleets, read_from_one_snapshot
from metering.store.bills import allow_for_size
from metering.store.connection import connect

_LOOK_SECONDS = 0.02
_PATIENCE_SECONDS = 3600
_CLOSED = "SELECT count(*) FROM closed_cycle"
_FINAL = "SELECT count(*) FROM bill WHERE state <> 'draft'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How long one step took, kills included, and the most memory that one of its processes had.

    `done_at_kill` is how many fleets it had done when it was killed.
    """

    seconds: float
    peak_octets: int
    kills: int = 0
    done_at_kill: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One bill run: what was billed, and how long filling, closing and finalising took."""

    devices: int
    charges: int
    fleets: int
    per_device: bool
    lines: int
    largest_document_octets: int
    filled_seconds: float
    closing: Step
    finalising: Step
    total: str
    load: float
    forms: Mapping[str, Form]
    """What the first bill is in each form; as `audit`, the audit of its fleet."""


def measure(url: str, wanted: Wanted, *, kill: bool, forms: bool = False) -> Measured:
    """Fill a database, bill all of it by the product's processes, and check what came of it."""
    now = datetime.now(UTC)
    began = perf_counter()
    cycle, expected = asyncio.run(_filled(url, wanted, now))
    filled = perf_counter() - began
    _say(f"filled in {filled:.0f} s")
    with psycopg.connect(url, autocommit=True) as connection:
        charges = _one(connection, "SELECT count(*) FROM charge")
        closing = _step(connection, url, ["charge"], _CLOSED, wanted.fleets, kill=kill)
        _say(f"closed in {closing.seconds:.1f} s, {closing.peak_octets / 1e6:.0f} MB")
        command = ["bill-run", "--once"]
        finalising = _step(connection, url, command, _FINAL, wanted.fleets, kill=kill)
        _say(f"finalised in {finalising.seconds:.1f} s, {finalising.peak_octets / 1e6:.0f} MB")
        total = _checked(connection, cycle, wanted, expected)
        told = connection.execute(
            "SELECT sum(jsonb_array_length(document -> 'lines')), max(octet_length(document::text))"
            " FROM bill"
        ).fetchone()
    assert told is not None  # noqa: S101 - aggregates return one row
    asyncio.run(_audited(url))
    written = {name: _written(url, name) for name in FORMS} if forms else {}
    return Measured(
        devices=wanted.devices,
        charges=charges,
        fleets=wanted.fleets,
        per_device=wanted.per_device,
        lines=int(told[0]),
        largest_document_octets=int(told[1]),
        filled_seconds=filled,
        closing=closing,
        finalising=finalising,
        total=str(total),
        load=os.getloadavg()[0],
        forms=written,
    )


def _written(url: str, name: str) -> Form:
    """Write a form of the first bill in a process of its own; return what it took."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.bill_forms", name],
        env=os.environ | {"FLEETMETER_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        check=True,
    )
    form = Form(**json.loads(done.stdout))
    _say(f"{name}: {form.cpu_seconds:.1f} of {form.seconds:.1f} s, {form.peak_octets / 1e6:.0f} MB")
    return form


async def _filled(url: str, wanted: Wanted, now: datetime) -> tuple[BillCycle, Decimal]:
    """Fill the database; return the month, and what all bills should come to."""
    connection = await migrated(url)
    async with connection:
        cycle = await fill(connection, wanted, now=now)
        (first, *_) = await all_fleets(connection)
        async with connection.transaction():
            await allow_for_size(connection, first.fleet_no)
            document = await draw_live(
                connection, first, cycle, await current_basis(connection, first)
            )
    return cycle, document.totals.gross * wanted.fleets


async def _audited(url: str) -> None:
    """Audit the first and the last fleet; raise where one is not equal."""
    async with await connect(url, application="audit") as connection:
        await read_from_one_snapshot(connection)
        fleets = await all_fleets(connection)
        for fleet in {each.fleet_no: each for each in (fleets[0], fleets[-1])}.values():
            differences = (await audit_fleet(connection, fleet)).differences
            if differences:
                raise RuntimeError(f"the audit of {fleet.fleet_id}: {differences[:3]}")


def _step(
    connection: psycopg.Connection[Any],
    url: str,
    command: list[str],
    counting: str,
    wanted: int,
    *,
    kill: bool,
) -> Step:
    """Run a command until so many are done; with `kill`, kill it half way and run it again."""
    began = perf_counter()
    peak = done_at_kill = 0
    if kill:
        process = _start(url, command)
        peak = _watched(process, connection, counting, max(1, wanted // 4), signal.SIGKILL)
        done_at_kill = _one(connection, counting)
    process = _start(url, command)
    peak = max(peak, _watched(process, connection, counting, wanted, signal.SIGTERM))
    return Step(
        seconds=perf_counter() - began,
        peak_octets=peak,
        kills=int(kill),
        done_at_kill=done_at_kill,
    )


def _watched(
    process: subprocess.Popen[bytes],
    connection: psycopg.Connection[Any],
    counting: str,
    aim: int,
    end: signal.Signals,
) -> int:
    """Wait until so many are done and end the process; return the most memory that it had."""
    began = perf_counter()
    try:
        while _one(connection, counting) < aim:
            if process.poll() not in {None, 0}:
                raise RuntimeError(f"a process ended with {process.returncode}")
            if perf_counter() - began > _PATIENCE_SECONDS:
                raise RuntimeError("a process takes too long")
            sleep(_LOOK_SECONDS)
        return peak_octets(process.pid)
    finally:
        process.send_signal(end)
        process.wait()


def _start(url: str, command: list[str]) -> subprocess.Popen[bytes]:
    environment: Mapping[str, str] = os.environ | {
        "FLEETMETER_DATABASE_URL": url,
        "FLEETMETER_CLOSING_GRACE_HOURS": "0",
        "FLEETMETER_METRICS_PORT": "0",
    }
    return subprocess.Popen([sys.executable, "-m", "metering.cli", *command], env=environment)


def _checked(
    connection: psycopg.Connection[Any], cycle: BillCycle, wanted: Wanted, expected: Decimal
) -> Decimal:
    """Return what all bills come to; raise where one is missing, twice, or of another amount."""
    row = connection.execute(
        "SELECT count(*), count(DISTINCT fleet_no), count(DISTINCT number), min(number),"
        " max(number), sum(gross) FROM bill WHERE cycle_start = %s AND state <> 'draft'",
        [cycle.start],
    ).fetchone()
    assert row is not None  # noqa: S101 - aggregates return one row
    if row != (wanted.fleets, wanted.fleets, wanted.fleets, 1, wanted.fleets, expected):
        raise RuntimeError(f"{wanted.fleets} bills that come to {expected} were expected: {row}")
    return Decimal(row[5])


def _one(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure what the arguments say, print it, and write bench/bill_run.json."""
    parser = argparse.ArgumentParser(prog="make bench-bill-run", description=__doc__)
    parser.add_argument("--devices", type=int, default=100_000, help="%(default)s")
    parser.add_argument("--charges", type=int, default=10_000_000, help="%(default)s")
    parser.add_argument("--one-fleet", action="store_true", help="else fleets of 100 devices")
    parser.add_argument("--per-device", action="store_true", help="bills have lines of each device")
    parser.add_argument("--forms", action="store_true", help="write the first bill in each form")
    parser.add_argument("--kill", action="store_true", help="kill each step after a quarter")
    arguments = parser.parse_args()
    wanted = Wanted(
        devices=arguments.devices,
        charges=arguments.charges,
        one_fleet=arguments.one_fleet,
        per_device=arguments.per_device,
    )
    with own_database() as url:
        told = json.dumps(
            asdict(measure(url, wanted, kill=arguments.kill, forms=arguments.forms)), indent=2
        )
    print(told)
    Path(__file__).with_name("bill_run.json").write_text(told + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
