"""`fleetmeter demo`: the whole pipeline on this machine, live, with an audit at the end."""

import argparse
import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import quote

import httpx
import psutil

from metering import clock, stack
from metering.broker_address import broker_of
from metering.credentials.authority import authority_folder, write_private
from metering.credentials.rights import broker_username
from metering.demo.processes import Processes, Started
from metering.demo.tenant import (
    OPERATION,
    TENANT,
    DemoFleet,
    demo_fleets,
    good_api_key,
    load_demo,
    machine_device_id,
)
from metering.demo.watch import Watch
from metering.errors import InvalidValue, ProcessEnded
from metering.provisioning.credentials import provisioning
from metering.settings import Settings
from metering.stack import lifecycle
from metering.stack.probe import free_port

_MEASURED = ("ingest", "charge", "control")
"""The platform's processes that serve metrics of their own."""
_SHOW_EVERY_SECONDS = 5
_READY_SECONDS = 60
_DRAIN_SECONDS = 60


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare for how long to run, and how large the fleets are."""
    add = parser.add_argument
    add("--for", dest="seconds", type=float, default=0, metavar="SECONDS", help="0: until ^C")
    add("--trackers", type=int, default=60, help="devices with an allowance of their own (60)")
    add("--meters", type=int, default=90, help="devices that share a pool (90)")
    add("--interval", type=float, default=1.0, help="seconds between a device's messages (1.0)")
    add("--seed", type=int, help="makes the same devices again; default: a random one, printed")
    add(
        "--interface", action="append", metavar="IFACE",
        help="interface of this machine to meter; repeatable (lo, and the first other one that is up)",
    )  # fmt: skip
    add("--keep-stack", action="store_true", help="leave TimescaleDB and Mosquitto running")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the pipeline until the time is over or ^C; return 0 if the audit says equal."""
    for name in ("trackers", "meters"):
        if not 0 <= getattr(arguments, name) <= 5000:  # noqa: PLR2004 - the ids have four digits
            raise InvalidValue(f"--{name}", "out of range", "use 0 to 5000")
    stopping = _Stopping()
    settings = settings.model_copy(update={"data_dir": settings.data_dir.resolve()})
    was_running = all(server.running for server in stack.status(settings))
    try:
        stack.up(settings, progress=_say)
        return _Demo(arguments, stack.resolve(settings), stopping).run()
    finally:
        if not was_running and not arguments.keep_stack:
            stack.down(settings)


class _Stopping:
    """Whether ^C, or a request to end, has come; a second one ends at once."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._request)

    def _request(self, _number: int, _frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class _Demo:
    """One run of the demonstration."""

    def __init__(
        self, arguments: argparse.Namespace, settings: Settings, stopping: _Stopping
    ) -> None:
        self._arguments = arguments
        self._settings = settings
        self._stopping = stopping
        self._folder = settings.data_dir / "demo"
        self._run_name = clock.now().astimezone(UTC).strftime("%Y%m%dT%H%M%S") + secrets.token_hex(
            2
        )
        self._processes = Processes(self._folder / "logs")
        self._ports = {name: free_port() for name in _MEASURED}
        self._ports["api"] = free_port(settings.api_port or None)
        self._api_url = f"http://127.0.0.1:{self._ports['api']}"
        self._interfaces: list[str] = arguments.interface or _interfaces()
        # An agent goes on where it was, so its state and its ledger span all runs on a database.
        self._agents = self._folder / "agents"
        self._agents.mkdir(parents=True, exist_ok=True)
        self._credentials = self._folder / "credentials"
        self._passwords: dict[str, str] = {}
        self._ledgers: list[Path] = []
        self._devices: list[Started] = []
        self._began = monotonic()

    def run(self) -> int:
        url = self._secret(self._settings.database_url)
        fleets = demo_fleets(self._arguments.trackers, self._arguments.meters, self._interfaces)
        _say("loading the demo tenant: 3 fleets")
        asyncio.run(load_demo(url, fleets, now=clock.now()))
        asyncio.run(self._give_credentials(fleets))
        key_file = self._folder / "api_key"
        key = self._kept_api_key(url, key_file)
        watch = Watch(
            ingest_port=self._ports["ingest"],
            charge_port=self._ports["charge"],
            control_port=self._ports["control"],
            api_url=self._api_url,
            api_key=key,
        )
        try:
            self._start_platform(watch)
            self._say_where(key_file)
            self._start_devices()
            self._show_until_stopped(watch)
            return self._end(watch)
        finally:
            watch.close()
            self._processes.end()

    async def _give_credentials(self, fleets: Sequence[DemoFleet]) -> None:
        """Give each device a password of this run, if the broker is the stack's own."""
        if lifecycle.broker_record(self._settings) is None:
            return
        devices = [device for fleet in fleets for device in fleet.device_ids]
        _say(f"giving {len(devices)} devices passwords")
        async with provisioning(self._settings, TENANT) as made:
            await made.audit(OPERATION, devices, now=clock.now())
            given = await made.give_passwords(devices, now=clock.now(), anew=True)
        self._passwords = {each.username: each.password or "" for each in given}
        lines = "".join(f"{name} {password}\n" for name, password in self._passwords.items())
        write_private(self._credentials, lines.encode())

    def _kept_api_key(self, url: str, file: Path) -> str:
        """Return a key that opens the API to the demo tenant, and keep it for the next run.

        A kept key that is good no more tells that the database is another one, of which the
        machine's agents have to know nothing.
        """
        kept = file.read_text("utf-8").strip() if file.exists() else ""
        key = asyncio.run(good_api_key(url, kept, now=clock.now()))
        if key != kept:
            shutil.rmtree(self._agents)
            self._agents.mkdir()
        file.touch(mode=0o600)
        file.write_text(key + "\n", "utf-8")
        return key

    def _start_platform(self, watch: Watch) -> None:
        _say("starting ingester, charging worker, control and API")
        for name in (*_MEASURED, "api"):
            self._processes.start(name, [name], self._environment(name))
        deadline = monotonic() + _READY_SECONDS
        while not watch.is_ready():
            self._processes.check()
            if monotonic() > deadline:
                raise ProcessEnded(f"the platform is not ready; see {self._folder / 'logs'}")
            sleep(0.1)

    def _start_devices(self) -> None:
        arguments = self._arguments
        ledger = self._ledger("simulator")
        simulate = [
            "simulate", "--tenant", TENANT, "--interval", str(arguments.interval),
            "--group", f"tracker:{arguments.trackers}", "--group", f"meter:{arguments.meters}",
            "--duplicates", "0.05", "--reorder", "0.05", "--resets", "0.005",
            "--reboots", "0.002", "--wraps", "0", "--rate", "20", "--ledger", str(ledger),
            "--drain", str(_DRAIN_SECONDS),
        ]  # fmt: skip
        if self._passwords:
            simulate += ["--credentials", str(self._credentials)]
        if arguments.seed is not None:
            simulate += ["--seed", str(arguments.seed)]
        self._devices.append(
            self._processes.start(
                "simulate", simulate, self._environment("simulate") | self._device_environment()
            )
        )
        for interface in self._interfaces:
            device = machine_device_id(interface)
            self._ledgers.append(self._agents / f"{device}.jsonl")
            agent = [
                "agent", "--interface", interface, "--tenant", TENANT, "--device", device,
                "--interval", "1", "--state", str(self._agents / device),
                "--ledger", str(self._agents / f"{device}.jsonl"), "--drain", str(_DRAIN_SECONDS),
            ]  # fmt: skip
            environment = self._environment(device) | self._device_environment(device)
            self._devices.append(self._processes.start(device, agent, environment))

    def _show_until_stopped(self, watch: Watch) -> None:
        self._began = monotonic()
        shown = 0.0
        while not self._stopping.requested:
            elapsed = monotonic() - self._began
            if self._arguments.seconds and elapsed >= self._arguments.seconds:
                return
            self._processes.check()
            if elapsed - shown >= _SHOW_EVERY_SECONDS:
                shown = elapsed
                for line in self._lines(watch):
                    print(line, flush=True)
            sleep(0.1)

    def _end(self, watch: Watch) -> int:
        """Stop the devices, wait until all is charged, stop the platform, and audit."""
        print()
        _say("stopping the devices; they wait until each reading is acknowledged")
        unacknowledged = [
            device.name
            for device in self._devices
            if self._processes.finish(device, seconds=_DRAIN_SECONDS + 15)
        ]
        for line in self._lines(watch):
            print(line)
        ended = self._processes.ended()
        _say("auditing: ledger, readings, charges, balances")
        # Where a process is gone, what it left undone stays so: waiting is of no use.
        audit = ["audit", "--settle", str(0 if ended else _DRAIN_SECONDS)]
        for ledger in self._ledgers:
            audit += ["--ledger", str(ledger)] if ledger.exists() else []
        audited = subprocess.run(
            [sys.executable, "-m", "metering.cli", *audit],
            env={**os.environ, **self._environment("audit")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        self._processes.end()
        for told in ended:
            print(told)
        for name in unacknowledged:
            print(f"{name} has readings left that were not acknowledged; see its log")
        print(audited.stderr, end="", file=sys.stderr)
        print(audited.stdout, end="", flush=True)
        return 1 if audited.returncode or unacknowledged or ended else 0

    def _lines(self, watch: Watch) -> list[str]:
        """Return how things stand, or that this cannot be told."""
        try:
            return watch.lines(monotonic() - self._began)
        except httpx.HTTPError as error:
            return [f"how things stand is not known ({error}); see {_short(self._folder / 'logs')}"]

    def _say_where(self, key_file: Path) -> None:
        print(f"\n  API docs   {self._api_url}/docs")
        print(f"  page       {self._api_url}/")
        key = f'"Authorization: Bearer $(cat {_short(key_file)})"'
        print(f"  try        curl -H {key} {self._api_url}/v1/fleets")
        print("             the same with /v1/alerts, /v1/commands, /v1/events")
        print(f"  broker     {self._device_address()}")
        if self._passwords:
            print(f"  passwords  {_short(self._credentials)}")
        print(f"  logs       {_short(self._folder / 'logs')}")
        print("  ^C ends it with an audit\n", flush=True)

    def _ledger(self, name: str) -> Path:
        folder = self._folder / "ledgers" / self._run_name
        folder.mkdir(parents=True, exist_ok=True)
        self._ledgers.append(folder / f"{name}.jsonl")
        return self._ledgers[-1]

    def _device_environment(self, device: str | None = None) -> dict[str, str]:
        """Return where devices connect: over TLS, one with its password, as the stack's broker asks."""
        record = lifecycle.broker_record(self._settings)
        if record is None or not self._passwords:
            return {}
        username = broker_username(TENANT, device) if device else ""
        login = f"{quote(username, safe='')}:{self._passwords[username]}@" if device else ""
        port = lifecycle.ports_of(record).passwords
        return {
            "FLEETMETER_BROKER_URL": f"mqtts://{login}{self._settings.device_host_name}:{port}",
            "FLEETMETER_BROKER_CA_FILE": str(authority_folder(self._settings) / "authority.pem"),
        }

    def _device_address(self) -> str:
        """Return where devices connect, without anybody's password."""
        known = self._device_environment().get("FLEETMETER_BROKER_URL")
        broker = broker_of(known, self._settings)
        return f"{'mqtts' if broker.tls else 'mqtt'}://{broker.host}:{broker.port}"

    def _environment(self, name: str) -> dict[str, str]:
        return {
            "FLEETMETER_DATABASE_URL": self._secret(self._settings.database_url),
            "FLEETMETER_BROKER_URL": self._secret(self._settings.broker_url),
            "FLEETMETER_DATA_DIR": str(self._settings.data_dir),
            "FLEETMETER_METRICS_PORT": str(self._ports[name] if name in _MEASURED else 0),
            "FLEETMETER_API_PORT": str(self._ports["api"]),
            "FLEETMETER_API_HOST": "127.0.0.1",
        }

    @staticmethod
    def _secret(value: object) -> str:
        return value.get_secret_value() if hasattr(value, "get_secret_value") else ""


def _interfaces() -> list[str]:
    """Return the loopback interface, on which the demonstration's own traffic runs, and another."""
    up = [name for name, state in psutil.net_if_stats().items() if state.isup]
    loopback = [name for name in up if name.startswith("lo")][:1]
    others = sorted(name for name in up if name not in loopback)[:1]
    return loopback + others


def _short(path: Path) -> str:
    return os.path.relpath(path)


def _say(text: str) -> None:
    print(f"· {text}", flush=True)
