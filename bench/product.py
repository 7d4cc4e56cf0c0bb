"""The product's own processes on a database of their own, with what they have charged."""

import asyncio
import contextlib
import secrets
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.databases import migrated_database_on
from bench.servers import Servers
from bench.waiting import wait_until
from bench.workload import TENANT, Population
from metering.charging.open_cycle import open_due_cycles
from metering.charging.subscribe import subscribe
from metering.demo.processes import Processes, Started
from metering.plan_document import read_plan
from metering.stack.probe import free_port
from metering.store.api_keys import create_api_key
from metering.store.connection import Connection, connect
from metering.store.registry import (
    SHARDS,
    ensure_devices,
    ensure_fleet,
    ensure_plan,
    ensure_tenant,
)

PLAN: Mapping[str, object] = {
    "plan": "bench",
    "currency": "EUR",
    "meters": {
        "data": {"allowance": "1 GB", "pooled": True, "price": {"amount": "0.10", "per": "1 MB"}},
    },
}
SUBSCRIBED_FOR = timedelta(days=60)
_STOP_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Processing:
    """How many processes of each kind run, and settings of theirs that differ from the defaults."""

    ingesters: int = 1
    workers: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Product:
    """Ingesters and workers that run, each ingester under a topic root of its own."""

    servers: Servers
    database_url: str
    processing: Processing
    folder: Path
    name: str
    api_key: str
    processes: Processes
    running: dict[str, list[Started]] = field(default_factory=dict)
    metrics_ports: dict[str, list[int]] = field(default_factory=dict)

    @property
    def roots(self) -> list[str]:
        """The topic roots; devices are spread over them, unless ingesters share what comes on one."""
        shared = "FLEETMETER_INGEST_SHARED_GROUP" in self.processing.settings
        roots = 1 if shared else self.processing.ingesters
        return [f"fm/{self.name}/{number}" for number in range(roots)]

    @property
    def pids(self) -> dict[str, list[int]]:
        """The processes by role: the product's, and the broker where it is ours."""
        pids = {
            role: [each.process.pid for each in members] for role, members in self.running.items()
        }
        broker = self.servers.pids.get("broker")
        return pids if broker is None else {"broker": [broker], **pids}

    def start(self, role: str, command: str, **settings: str) -> int:
        """Start one process more of a role, with a port for metrics, which is returned."""
        port = free_port()
        number = len(self.running.get(role, ()))
        environment = {
            "FLEETMETER_DATABASE_URL": self.database_url,
            "FLEETMETER_BROKER_URL": self.servers.broker_url,
            "FLEETMETER_TOPIC_ROOT": self.roots[number % len(self.roots)],
            "FLEETMETER_INGEST_CLIENT_ID": f"{self.name}-ingest-{number}",
            "FLEETMETER_CONTROL_CLIENT_ID": f"{self.name}-control-{number}",
            "FLEETMETER_METRICS_PORT": str(port),
            # Requests are counted, as they are elsewhere, but none is refused.
            "FLEETMETER_API_REQUESTS_A_MINUTE_OF_KEY": str(10**8),
            "FLEETMETER_API_REQUESTS_A_MINUTE_OF_TENANT": str(10**8),
            **self.processing.settings,
            **{f"FLEETMETER_{name.upper()}": value for name, value in settings.items()},
        }
        started = self.processes.start(f"{role}-{number}", [command], environment)
        self.running.setdefault(role, []).append(started)
        self.metrics_ports.setdefault(role, []).append(port)
        return port

    def metric(self, role: str, name: str) -> float:
        """Return the sum of a value that the processes of a role export; 0 while none answers."""
        return sum(_metric(port, name) for port in self.metrics_ports.get(role, ()))

    def charged(self) -> int:
        """Return how many readings were charged, in committed transactions."""
        return int(self.metric("worker", "fleetmeter_charging_readings_total"))

    def wait_until_ready(self) -> None:
        """Wait until all ingesters hear what is published and all shards are leased."""
        self._wait("ingester", "fleetmeter_ingest_subscribed", self.processing.ingesters)
        self._wait("worker", "fleetmeter_charging_leased_shards", SHARDS)

    def _wait(self, role: str, name: str, value: int) -> None:
        def reached() -> bool:
            self.processes.check()
            return self.metric(role, name) == value

        wait_until(reached, f"{name} of the {role}s to be {value}")


def _metric(port: int, name: str) -> float:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


@contextlib.contextmanager
def product(
    servers: Servers, populations: Sequence[Population], processing: Processing, folder: Path
) -> Iterator[Product]:
    """Yield the product on an empty database with some populations; nothing of it runs yet."""
    name = f"bench-{secrets.token_hex(4)}"
    with migrated_database_on(servers.database_url) as url:
        key = asyncio.run(_register(url, populations))
        made = Product(
            servers=servers,
            database_url=url,
            processing=processing,
            folder=folder / name,
            name=name,
            api_key=key,
            processes=Processes(folder / name),
        )
        try:
            yield made
        finally:
            made.processes.end()


def start(made: Product) -> None:
    """Start ingesters and workers, and wait until they work."""
    for _ in range(made.processing.ingesters):
        made.start("ingester", "ingest")
    for _ in range(made.processing.workers):
        made.start("worker", "charge")
    made.wait_until_ready()


def stop(made: Product) -> None:
    """End all processes: their sessions then have told the database what they did."""
    for started in [each for members in made.running.values() for each in members]:
        made.processes.finish(started, seconds=_STOP_SECONDS)
    made.running.clear()
    made.metrics_ports.clear()


async def _register(url: str, populations: Sequence[Population]) -> str:
    """Register the populations, open their cycles, and return an API key."""
    now = datetime.now(UTC)
    async with await connect(url, application="bench", autocommit=True) as connection:
        for population in populations:
            await register(connection, population, now=now)
        while await open_due_cycles(connection, now=now):
            pass
        tenant = await ensure_tenant(connection, tenant_id=TENANT, name=TENANT, now=now)
        key = await create_api_key(connection, tenant=tenant, label="bench", now=now)
        await connection.execute("VACUUM ANALYZE")
    return key


async def register(connection: Connection, population: Population, *, now: datetime) -> None:
    """Register a population's fleets, with all devices on the bench's plan since long ago."""
    since = now - SUBSCRIBED_FOR
    tenant = await ensure_tenant(connection, tenant_id=TENANT, name=TENANT, now=now)
    plan_no = await ensure_plan(connection, tenant=tenant, plan=read_plan(PLAN), now=since)
    for fleet_id, device_ids in population.device_ids().items():
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
