"""Measure publish → balance visible, with real processes, at half of what saturates them.

Run by `make bench-latency`. A device publishes one reading at a time, and a client of the API, with a
connection that it keeps, asks for the pool's balance again and again until it shows the reading. The time
runs from the moment before the message is written to the broker's socket to the end of the first answer
that shows it, so it holds the API's own answer, and on average half of the question before.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import random
import shutil
import socket
import sys
import tempfile
import urllib.request
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from statistics import median, quantiles
from time import monotonic, perf_counter, sleep

import httpx

from bench.load import Devices, Order, Sent, generate, open_session, publish_packet
from metering import stack
from metering.broker_address import parse_broker_url
from metering.charging.subscribe import subscribe
from metering.demo.processes import Processes
from metering.plan_document import read_plan
from metering.settings import Settings
from metering.stack import lifecycle
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from metering.store.migrate import migrate
from metering.store.registry import ensure_devices, ensure_fleet, ensure_plan, ensure_tenant

TENANT = "bench"
ROOT = "fm/bench"
PROBE = "probe"
FLEETS, DEVICES_A_FLEET = 16, 50
STEP_SECONDS = 6.0
BACKLOG_SECONDS_MAX = 0.5
"""A rate saturates when, at the end of its step, more than this of it is not charged yet."""
PLAN = {
    "plan": "bench",
    "currency": "EUR",
    "meters": {
        "data": {"allowance": "1 GB", "pooled": True, "price": {"amount": "0.10", "per": "1 MB"}},
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds from publishing to an answer that shows it, and of one answer of the API."""

    samples: int
    median: float
    p99: float
    most: float
    answer_median: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One rate that was tried, in readings a second, and the backlog at its end in seconds of it."""

    asked: float
    charged: float
    backlog_seconds: float
    late_seconds: float

    @property
    def is_sustained(self) -> bool:
        """Whether the pipeline kept up; the generator did if it was not late."""
        return self.backlog_seconds < BACKLOG_SECONDS_MAX


@dataclass(slots=True, kw_only=True)
class Bench:
    """The running processes and the ways to them."""

    charge_metrics: int
    api: httpx.Client
    load: Pipe

    def charged(self) -> int:
        """Return how many readings the worker has charged."""
        url = f"http://127.0.0.1:{self.charge_metrics}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            for line in response.read().decode().splitlines():
                if line.startswith("fleetmeter_charging_readings_total "):
                    return int(float(line.split()[-1]))
        return 0

    def used(self) -> int:
        """Return what the API shows as used of the probe's pool."""
        answer = self.api.get(f"/v1/fleets/{PROBE}/balance").raise_for_status().json()
        return sum(pool["pool"]["used"] for pool in answer["pools"])

    def publish(self, order: Order) -> Sent:
        """Have the generator publish, and wait for its end."""
        self.load.send(order)
        sent = self.load.recv()
        assert isinstance(sent, Sent)  # noqa: S101 - it sends nothing else
        return sent

    def settle(self, charged: int) -> None:
        """Wait until so many readings are charged."""
        while self.charged() < charged:
            sleep(0.05)

    def step(self, rate: float) -> Step:
        """Try a rate, then wait until all of it is charged."""
        before, began = self.charged(), perf_counter()
        sent = self.publish(Order(readings_per_second=rate, seconds=STEP_SECONDS))
        charged, seconds = self.charged() - before, perf_counter() - began
        self.settle(before + sent.readings)
        return Step(
            asked=rate,
            charged=charged / seconds,
            backlog_seconds=(sent.readings - charged) / rate,
            late_seconds=sent.late_seconds,
        )


def find_saturation(bench: Bench) -> tuple[float, list[Step]]:
    """Return the highest rate that was sustained: doubled until it is not, then halved in between."""
    steps: list[Step] = []
    low, high = 0.0, 0.0
    rate = 1000.0
    while not high or high / low > 1.15:  # noqa: PLR2004 - closer than the machine repeats itself
        steps.append(bench.step(rate))
        print_step(steps[-1])
        if steps[-1].is_sustained:
            low = rate
        else:
            high = rate
        if not low:
            rate /= 2
        else:
            rate = (low * high) ** 0.5 if high else rate * 2
    return low, steps


def print_step(step: Step) -> None:
    """Print a rate as it was tried."""
    verdict = "kept up" if step.is_sustained else "saturated"
    print(
        f"  {step.asked:>9,.0f} {step.charged:>9,.0f} {step.backlog_seconds:>9.2f} s  {verdict}"
        + (f", generator {step.late_seconds:.2f} s late" if step.late_seconds > 0.1 else ""),  # noqa: PLR2004
        flush=True,
    )


async def probe(
    bench: Bench, host: str, port: int, seconds: float, first: int
) -> tuple[Latency, int]:
    """Publish a reading at a time and wait until the API shows it, for so long."""
    reader, writer = await open_session(host, port, "probe")
    chance = random.Random(1)  # noqa: S311 - moments that do not fall in step with batches
    samples: list[float] = []
    answers: list[float] = []
    seq, expected = first, bench.used()
    deadline = monotonic() + seconds
    while monotonic() < deadline:
        await asyncio.sleep(chance.uniform(0.02, 0.12))
        seq += 1
        expected += 10
        reading = {
            "seq": seq, "at": datetime.now(UTC).isoformat(), "meter": "data", "kind": "delta",
            "up": 4, "down": 6,
        }  # fmt: skip
        payload = json.dumps({"boot": "probe", "readings": [reading]}).encode()
        began = perf_counter()
        writer.write(publish_packet(f"{ROOT}/{TENANT}/{PROBE}/usage", payload, 1 + seq % 60_000))
        await writer.drain()
        while True:
            asked = perf_counter()
            used = bench.used()
            answered = perf_counter()
            answers.append(answered - asked)
            if used >= expected:
                break
        samples.append(answered - began)
        await reader.read(4096)
    writer.close()
    return (
        Latency(
            samples=len(samples),
            median=1000 * median(samples),
            p99=1000 * quantiles(samples, n=100, method="inclusive")[98],
            most=1000 * max(samples),
            answer_median=1000 * median(answers),
        ),
        seq,
    )


def print_latency(label: str, latency: Latency) -> None:
    """Print one row."""
    print(
        f"  {label:<24} {latency.median:>8.1f} {latency.p99:>8.1f} {latency.most:>8.1f}"
        f" {latency.samples:>8} {latency.answer_median:>14.1f}",
        flush=True,
    )


async def register(url: str) -> str:
    """Register the fleets of the load and the probe's own; return an API key."""
    now = datetime.now(UTC)
    since = now - timedelta(days=60)
    async with await connect(url, application="bench", autocommit=True) as connection:
        await migrate(connection)
        tenant = await ensure_tenant(connection, tenant_id=TENANT, name=TENANT, now=now)
        plan_no = await ensure_plan(connection, tenant=tenant, plan=read_plan(PLAN), now=since)
        for fleet_id, device_ids in fleets().items():
            fleet = await ensure_fleet(
                connection, tenant=tenant, fleet_id=fleet_id, name=fleet_id, currency="EUR",
                time_zone="Europe/Berlin", anchor_day=1, now=since,
            )  # fmt: skip
            numbers = await ensure_devices(
                connection, fleet=fleet, device_ids=device_ids, active_from=since, now=since
            )
            await subscribe(
                connection, fleet=fleet, device_nos=list(numbers.values()), plan_no=plan_no,
                valid_from=since, now=now,
            )  # fmt: skip
        return await create_api_key(connection, tenant=tenant, label="bench", now=now)


def fleets() -> dict[str, list[str]]:
    """Return the devices of each fleet."""
    load = {
        f"load-{fleet}": [f"load-{fleet}-{device}" for device in range(DEVICES_A_FLEET)]
        for fleet in range(FLEETS)
    }
    return {**load, PROBE: [PROBE]}


def free_port() -> int:
    """Return a loopback port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> int:
    """Bring everything up, measure, print, and write `bench/latency.json`."""
    parser = argparse.ArgumentParser(prog="make bench-latency", description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="of probing (%(default)s)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fleetmeter-bench-"))
    folder.chmod(0o755)
    settings = Settings(
        database_url=None, broker_url=None, data_dir=folder, cache_dir=Settings().cache_dir
    )
    processes = Processes(folder / "logs")
    try:
        endpoints = stack.up(settings)
        return measure(endpoints, processes, arguments.seconds)
    finally:
        processes.end()
        lifecycle.erase(settings)
        shutil.rmtree(folder)


def measure(endpoints: stack.Endpoints, processes: Processes, seconds: float) -> int:
    """Measure on servers that run."""
    key = asyncio.run(register(endpoints.database_url))
    broker = parse_broker_url(endpoints.broker_url)
    device_ids = [each for ids in fleets().values() for each in ids if each != PROBE]
    pipe, other_end = multiprocessing.Pipe()
    # Spawned, so that it shares nothing with this process.
    generator = multiprocessing.get_context("spawn").Process(
        target=generate,
        args=(other_end, broker.host, broker.port, Devices(ROOT, TENANT, device_ids)),
        daemon=True,
    )
    generator.start()
    ports = {name: free_port() for name in ("ingest", "charge", "api")}
    bench = Bench(
        charge_metrics=ports["charge"],
        api=httpx.Client(
            base_url=f"http://127.0.0.1:{ports['api']}", headers={"Authorization": f"Bearer {key}"}
        ),
        load=pipe,
    )
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    alone = bench.publish(Order(readings_per_second=0, seconds=1))
    alone_rate = alone.readings / alone.seconds
    print(f"the generator alone, nobody subscribed: {alone_rate:,.0f} readings a second")
    environment = {
        "FLEETMETER_DATABASE_URL": endpoints.database_url,
        "FLEETMETER_BROKER_URL": endpoints.broker_url,
        "FLEETMETER_TOPIC_ROOT": ROOT,
        "FLEETMETER_API_PORT": str(ports["api"]),
    }
    for name, port in ports.items():
        processes.start(name, [name], environment | {"FLEETMETER_METRICS_PORT": str(port)})
    wait_until_ready(bench)
    print("readings a second       asked   charged   backlog")
    saturation, steps = find_saturation(bench)
    print("milliseconds              median      p99      max  samples  API's answer")
    idle, seq = asyncio.run(probe(bench, broker.host, broker.port, seconds / 4, 1))
    print_latency("no load", idle)
    half, late = under_load(
        bench, broker.host, broker.port, rate=saturation / 2, seconds=seconds, first=seq
    )
    print_latency(f"{saturation / 2:,.0f} readings a second", half)
    if late > BACKLOG_SECONDS_MAX:
        print(f"NOT valid: the generator was {late:.1f} s late")
    pipe.send(None)
    generator.join(10)
    result = {
        "cores": os.cpu_count(), "python": platform.python_version(),
        "generator_alone": alone_rate, "saturation": saturation, "steps": [asdict(each) for each in steps],
        "idle": asdict(idle), "half": asdict(half), "generator_late_seconds": late,
    }  # fmt: skip
    Path(__file__).with_name("latency.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0


def under_load(
    bench: Bench, host: str, port: int, *, rate: float, seconds: float, first: int
) -> tuple[Latency, float]:
    """Probe while the generator publishes at a rate; return how late it was, too."""
    bench.load.send(Order(readings_per_second=rate, seconds=seconds + 4))
    sleep(2 + rate * (seconds + 4) * 2e-6)  # it makes its packets first
    latency, _ = asyncio.run(probe(bench, host, port, seconds, first))
    sent = bench.load.recv()
    assert isinstance(sent, Sent)  # noqa: S101 - it sends nothing else
    return latency, sent.late_seconds


def wait_until_ready(bench: Bench) -> None:
    """Wait until the API answers and the worker serves its metrics."""
    deadline = monotonic() + 60
    while True:
        try:
            bench.charged()
            bench.used()
        except (OSError, httpx.HTTPError):
            if monotonic() > deadline:
                raise
            sleep(0.1)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
