"""A whole pipeline of real processes for the tests: ingester, worker, simulator, audit."""

import argparse
import asyncio
import contextlib
import io
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import paho.mqtt.client as paho
import psutil
import psycopg
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import SecretStr

from metering.broker_address import parse_broker_url
from metering.charging.subscribe import subscribe
from metering.ids import PlanNo, TenantNo
from metering.insight import command as audit_command
from metering.period import cycle_at
from metering.plan_document import read_plan
from metering.settings import Settings
from metering.stack.probe import free_port
from metering.stack.scratch import migrated_template, scratch_database
from metering.store.connection import Connection, connect
from metering.store.mappings import set_mapping
from metering.store.migrate import migrate
from metering.store.registry import (
    Fleet,
    calendar_of,
    ensure_devices,
    ensure_fleet,
    ensure_plan,
    ensure_tenant,
    tenant_no,
)
from metering.wire.ack import Ack
from metering.wire.ack import decode as decode_ack
from metering.wire.mapping import read_mapping

MqttVersion = Literal["5", "3.1.1"]

TENANT = "demo"
TRACKERS = [f"tracker-{number:04}" for number in range(1, 21)]
METERS = [f"meter-{number:04}" for number in range(1, 13)]
LONG_AGO = timedelta(days=500)

OWN_PLAN = {
    "plan": "tracker",
    "name": "Own allowances that run out within seconds",
    "currency": "EUR",
    "monthly_fee": "2.99",
    "meters": {
        "data": {"allowance": "2 kB", "price": {"amount": "0.13", "per": "1 MB"}},
        "sms": {"allowance": 3, "price": {"amount": "0.07", "per": 1}},
        "voice": {"allowance": 60, "price": {"amount": "0.05", "per": 60}},
        "messages": {"allowance": 2, "price": {"amount": "0.001", "per": 1}},
    },
}
POOLED_PLAN = {
    "plan": "meter",
    "name": "A pooled data allowance that runs out within seconds",
    "currency": "EUR",
    "monthly_fee": "0.90",
    "meters": {
        "data": {"allowance": "3 kB", "pooled": True, "price": {"amount": "0.2", "per": "1 MB"}},
        "sms": {"price": {"amount": "0.09", "per": 1}},
        "voice": {"price": {"amount": "0.01", "per": 1}},
        "messages": {"allowance": 5, "pooled": True, "price": {"amount": "0.002", "per": 3}},
    },
}


@contextmanager
def fresh_database(server_url: str, *, empty: bool = False) -> Iterator[str]:
    """Yield the URL of a new database on a server, dropped at the end if the server still runs.

    It has this release's schema, or nothing at all if it is to be `empty`.
    """
    template = "template0" if empty else migrated_template(server_url)
    with scratch_database(server_url, prefix="test", template=template) as url:
        yield url


async def migrated(url: str) -> None:
    """Bring a database's schema up to this release."""
    async with await connect(url, application="test", autocommit=True) as connection:
        await migrate(connection)


@dataclass(slots=True, kw_only=True)
class Operator:
    """A tenant at work: registers fleets, devices, plans and subscriptions."""

    connection: Connection
    tenant: TenantNo
    now: datetime

    @classmethod
    async def of(cls, connection: Connection, *, now: datetime | None = None) -> "Operator":
        now = now or datetime.now(UTC)
        tenant = await ensure_tenant(connection, tenant_id=TENANT, name="Demo", now=now)
        return cls(connection=connection, tenant=tenant, now=now)

    async def fleet(
        self,
        fleet_id: str,
        *,
        time_zone: str = "Europe/Berlin",
        anchor_day: int = 1,
        cycle_months: int = 1,
        anchor_month: int = 1,
        currency: str = "EUR",
    ) -> Fleet:
        return await ensure_fleet(
            self.connection, tenant=self.tenant, fleet_id=fleet_id, name=fleet_id,
            currency=currency, time_zone=time_zone, anchor_day=anchor_day,
            cycle_months=cycle_months, anchor_month=anchor_month, now=self.now,
        )  # fmt: skip

    async def plan(self, document: Mapping[str, object]) -> PlanNo:
        plan = read_plan(document)
        return await ensure_plan(self.connection, tenant=self.tenant, plan=plan, now=self.now)

    async def devices(
        self,
        fleet: Fleet,
        device_ids: Sequence[str],
        *,
        plan: PlanNo | None,
        valid_from: datetime | None = None,
        valid_to: datetime | None = None,
    ) -> list[int]:
        """Register devices as active since long ago, and subscribe them if there is a plan.

        Unless it is said since when, they have it for the present cycle.
        """
        since = self.now - LONG_AGO
        present = calendar_of(fleet).cycle_at(self.now)
        numbers = await ensure_devices(
            self.connection, fleet=fleet, device_ids=device_ids, active_from=since, now=self.now
        )
        device_nos = [int(numbers[device_id]) for device_id in device_ids]
        if plan is not None:
            await subscribe(
                self.connection, fleet=fleet, device_nos=device_nos, plan_no=plan,
                valid_from=valid_from or present.start, valid_to=valid_to, now=self.now,
            )  # fmt: skip
        return device_nos


async def register_fleets(url: str, more_trackers: Sequence[str]) -> None:
    """Register the tenant with `trackers` (own allowances) and `meters` (a pool)."""
    async with await connect(url, application="test", autocommit=True) as connection:
        operator = await Operator.of(connection)
        for fleet_id, document, device_ids in (
            ("trackers", OWN_PLAN, [*TRACKERS, *more_trackers]),
            ("meters", POOLED_PLAN, METERS),
        ):
            fleet = await operator.fleet(fleet_id)
            # The first readings may look back over a cycle's start.
            yesterday = cycle_at(
                operator.now - timedelta(days=1), fleet.time_zone, fleet.anchor_day
            )
            await operator.devices(
                fleet, device_ids, plan=await operator.plan(document),
                valid_from=yesterday.start,
            )  # fmt: skip


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 90.0) -> None:
    """Wait until a condition holds; fail with what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@dataclass(slots=True, kw_only=True)
class SimulatedRun:
    """A running `fleetmeter simulate` and its ledger."""

    process: subprocess.Popen[bytes]
    ledger: Path
    log: Path

    def lines(self) -> int:
        """Return how many readings the devices have made so far."""
        if not self.ledger.exists():
            return 0
        with self.ledger.open("rb") as file:
            return sum(1 for _ in file)

    def wait_for_more(self, lines: int) -> None:
        """Wait until the devices have made so many readings more."""
        reached = self.lines() + lines
        wait_until(
            lambda: self.lines() >= reached or self.process.poll() is not None,
            f"{reached} ledger lines",
        )
        assert self.process.poll() is None, "the simulator ended early; see its log"

    def end(self) -> int:
        """Have the devices measure no more; return the exit code, as `finish` does."""
        self.process.send_signal(signal.SIGTERM)
        return self.finish()

    def finish(self, seconds: float = 100.0) -> int:
        """Wait for the end and return the exit code: 0 when all is acknowledged end to end."""
        return self.process.wait(seconds)


@dataclass(slots=True, weakref_slot=True, kw_only=True)
class Pipeline:
    """Processes of one test, apart from every other test's by topic root and session."""

    database_url: str
    broker_url: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    metrics_port: int = field(default_factory=free_port)
    control_metrics_port: int = field(default_factory=free_port)
    name: str = field(default_factory=lambda: f"test-{secrets.token_hex(4)}")
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _kept: psycopg.Connection[Any] | None = field(default=None, init=False)

    @property
    def topic_root(self) -> str:
        return f"fm/{self.name}"

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a subcommand; `charge` and `charge#2` are two processes of one."""
        command, _, number = name.partition("#")
        ports = {"ingest": self.metrics_port, "control": self.control_metrics_port}
        metrics_port = str(ports.get(name, 0))
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("FLEETMETER_")
        }
        environment |= {
            "FLEETMETER_DATABASE_URL": self.database_url,
            "FLEETMETER_BROKER_URL": self.broker_url,
            "FLEETMETER_TOPIC_ROOT": self.topic_root,
            "FLEETMETER_INGEST_CLIENT_ID": self.name + number,
            "FLEETMETER_CONTROL_CLIENT_ID": f"{self.name}-{name}",
            "FLEETMETER_METRICS_PORT": metrics_port,
            "FLEETMETER_DATA_DIR": str(self.folder / "var"),
        }
        with self.log(name).open("ab") as log:
            # In a folder of its own: the developer's .env is none of its business.
            process = subprocess.Popen(
                [sys.executable, "-m", "metering.cli", command, *arguments],
                cwd=self.folder,
                env=environment | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes[name] = process
        return process

    def start_ingest(self) -> None:
        """Start the ingester and wait until it hears what is published."""
        self.start("ingest")
        self.wait_until_subscribed()

    def start_control(self) -> None:
        """Start the control process and wait until it hears what devices answer."""
        self.start("control")
        wait_until(
            lambda: self.control_metric("fleetmeter_control_subscribed") == 1, "the subscription"
        )

    def wait_until_subscribed(self) -> None:
        wait_until(
            lambda: self.metric("fleetmeter_ingest_subscribed") == 1,
            "the subscription",
            seconds=120,
        )

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal that ends a process, wait for its end, and return its exit code."""
        process = self.processes[name]
        assert process.poll() is None, f"{name} has ended by itself: {self.log(name).read_text()}"
        process.send_signal(number)
        return process.wait(30)

    def restart(self, name: str) -> None:
        """Kill a process with SIGKILL and start it again."""
        self.kill(name)
        self.start(name)

    def stop(self) -> None:
        """End every process, and print what each said: pytest shows it if the test failed."""
        self.end()
        self.print_logs()

    def end(self) -> None:
        """End every process that still runs, and the connection."""
        if self._kept is not None:
            self._kept.close()
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for process in self.processes.values():
            process.wait()

    def print_logs(self) -> None:
        """Print the end of what each process said."""
        for name in self.processes:
            lines = self.log(name).read_text(errors="replace").splitlines()
            print(f"--- {name}", *lines[-60:], sep="\n")

    def assert_running(self) -> None:
        """Fail if a service has ended by itself."""
        for name, process in self.processes.items():
            if name.startswith(("ingest", "charge", "control")):
                assert process.poll() is None, f"{name} has ended by itself"

    def memory_octets(self, name: str) -> int:
        return int(psutil.Process(self.processes[name].pid).memory_info().rss)

    def metric(self, name: str) -> float | None:
        """Return a value that the ingester exports; None while it does not answer."""
        return self._metric(self.metrics_port, name)

    def control_metric(self, name: str) -> float | None:
        """Return a value that the control process exports; None while it does not answer."""
        return self._metric(self.control_metrics_port, name)

    @staticmethod
    def _metric(port: int, name: str) -> float | None:
        url = f"http://127.0.0.1:{port}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                lines = response.read().decode().splitlines()
        except OSError:
            return None
        values = [float(line.split()[-1]) for line in lines if line.partition(" ")[0] == name]
        return values[0] if values else None

    def execute(self, statement: str) -> None:
        """Run and commit one statement."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def query(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query.

        It keeps its connection: who waits asks many times a second, and to connect costs more than
        what is waited for.
        """
        if (kept := self._kept) is not None and not kept.closed:
            with contextlib.suppress(psycopg.OperationalError):
                return kept.execute(query.encode(), parameters or None).fetchall()
        self._kept = psycopg.connect(self.database_url, autocommit=True)
        weakref.finalize(self, self._kept.close)
        return self._kept.execute(query.encode(), parameters or None).fetchall()

    def count(self, table: str) -> int:
        return int(self.query(f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608 - ours

    def simulate(
        self,
        seconds: float,
        *,
        seed: int,
        interval: float = 0.5,
        reorder: float = 0.05,
        drain_seconds: float = 90,
    ) -> SimulatedRun:
        """Start 32 devices with every fault that the simulator knows; 0 seconds: until told."""
        ledger = self.folder / "ledger.jsonl"
        process = self.start(
            "simulate", "--tenant", TENANT, "--group", f"tracker:{len(TRACKERS)}",
            "--group", f"meter:{len(METERS)}", "--seed", str(seed), "--for", str(seconds),
            "--interval", str(interval), "--readings", "5", "--duplicates", "0.05", "--reorder", str(reorder),
            "--resets", "0.01", "--reboots", "0.02", "--ledger", str(ledger), "--drain", str(drain_seconds),
        )  # fmt: skip
        return SimulatedRun(process=process, ledger=ledger, log=self.log("simulate"))

    def audit(self, *ledgers: Path, settle_seconds: float = 30.0) -> tuple[int, str]:
        """Run `fleetmeter audit` and return its exit code and the last line that it printed."""
        told = [argument for ledger in ledgers for argument in ("--ledger", str(ledger))]
        process = self.start("audit", *told, "--settle", str(settle_seconds))
        code = process.wait(settle_seconds + 60)
        return code, self.log("audit").read_text().splitlines()[-1]

    def audit_here(self, *ledgers: Path, settle_seconds: float = 0.1) -> tuple[int, list[str]]:
        """Run `fleetmeter audit` in this process; return its exit code and the lines that it printed.

        To start a process takes longer than most audits of a test.
        """
        told = [argument for ledger in ledgers for argument in ("--ledger", str(ledger))]
        parser = argparse.ArgumentParser()
        audit_command.configure(parser)
        arguments = parser.parse_args([*told, "--settle", str(settle_seconds)])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = audit_command.run(arguments, Settings(database_url=SecretStr(self.database_url)))
        print(printed.getvalue())
        return code, printed.getvalue().splitlines()


@contextmanager
def pipeline_of(
    database_url: str,
    broker_url: str,
    folder: Path,
    *,
    more_trackers: Sequence[str] = (),
    **environment: str,
) -> Iterator[Pipeline]:
    """Yield a pipeline on a migrated database with both fleets; nothing runs yet."""
    asyncio.run(migrated(database_url))
    asyncio.run(register_fleets(database_url, more_trackers))
    pipeline = Pipeline(
        database_url=database_url, broker_url=broker_url, folder=folder, environment=environment
    )
    try:
        yield pipeline
    finally:
        pipeline.stop()


class DeviceClient:
    """A plain MQTT client that publishes as any device and hears every acknowledgement."""

    def __init__(self, pipeline: Pipeline, version: MqttVersion = "5") -> None:
        address = parse_broker_url(pipeline.broker_url)
        self.root = pipeline.topic_root
        self.acks: list[tuple[str, Ack]] = []
        self.disconnects: list[str] = []
        self.published: set[tuple[str, bytes]] = set()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            protocol=MQTTProtocolVersion.MQTTv5 if version == "5" else MQTTProtocolVersion.MQTTv311,
        )
        self.client.on_message = self._on_message
        self.client.on_disconnect = self._on_disconnect
        self.client.max_inflight_messages_set(1000)
        self.client.username_pw_set(address.username, address.password)
        self.client.connect(address.host, address.port)
        self.client.loop_start()
        subscribed: list[int] = []
        self.client.on_subscribe = lambda *_: subscribed.append(1)
        wait_until(self.client.is_connected, "a connection")
        self.client.subscribe(f"{self.root}/+/+/ack", qos=1)
        wait_until(lambda: subscribed, "the acks' subscription")

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        self.acks.append((message.topic.split("/")[-2], decode_ack(bytes(message.payload))))

    def _on_disconnect(self, *arguments: object) -> None:
        self.disconnects.append(str(arguments[3]))

    def publish(self, device: str, payload: bytes | str, *, wait: bool = True) -> None:
        """Publish to a device's usage topic; `wait` for the broker's acknowledgement."""
        self.publish_to(f"{self.root}/{TENANT}/{device}/usage", payload, wait=wait)

    def publish_to(
        self,
        topic: str,
        payload: bytes | str,
        *,
        wait: bool = True,
        content_type: str | None = None,
        user: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Publish to a topic; with a content type and user properties only over MQTT 5."""
        octets = payload.encode() if isinstance(payload, str) else payload
        self.published.add((topic, octets))
        properties = None
        if content_type is not None or user:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if content_type is not None:
                properties.ContentType = content_type
            if user:
                properties.UserProperty = list(user)
        sent = self.client.publish(topic, payload, qos=1, properties=properties)
        if wait:
            sent.wait_for_publish(30)
            assert sent.is_published(), "the broker did not take the message"

    def acks_of(self, device: str, boot: str) -> list[Ack]:
        return [ack for sender, ack in list(self.acks) if sender == device and ack.boot == boot]

    def wait_for_ack(self, device: str, boot: str, up_to: int) -> Ack:
        """Wait until readings 1 to `up_to` of a boot are acknowledged, and return that ack."""
        wait_until(
            lambda: any(ack.up_to >= up_to for ack in self.acks_of(device, boot)),
            f"the acknowledgement of {device}/{boot} up to {up_to}",
        )
        return next(ack for ack in self.acks_of(device, boot) if ack.up_to >= up_to)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def use_mapping(pipeline: Pipeline, document: Mapping[str, object]) -> None:
    """Set the tenant's mapping."""

    async def store() -> None:
        async with await connect(pipeline.database_url, application="test") as connection:
            tenant = await tenant_no(connection, TENANT)
            mapping = read_mapping(document)
            await set_mapping(connection, tenant=tenant, mapping=mapping, now=datetime.now(UTC))

    asyncio.run(store())
