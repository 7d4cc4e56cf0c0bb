"""What a scenario disturbs: every process under load, on servers of its own; and the proof after it."""

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import psycopg

from metering.cli import COMMANDS
from metering.ids import TenantId
from metering.stack.probe import free_port
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from metering.store.registry import tenant_no
from tests.chaos.onlooker import Onlooker
from tests.chaos.servers import OwnServers, left_behind
from tests.integration.pipeline import (
    TENANT,
    Pipeline,
    SimulatedRun,
    fresh_database,
    pipeline_of,
    wait_until,
)
from tests.proxy import Proxy

AGENT = "tracker-agent"
WORKERS = ("charge", "charge#2")
SERVICES = tuple(
    name
    for name in ("ingest", *WORKERS, "api", "agent", "control")
    if name.partition("#")[0] in COMMANDS
)
RECOVERY_SECONDS = 90.0
"""Charging goes on at least this soon after what was disturbed works again."""
DRAIN_SECONDS = 600.0
"""What devices had sent again meanwhile is in the broker's queue, before what is new."""

Say = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Stage:
    """The running pipeline of one scenario. Its processes reach the database through the proxy."""

    servers: OwnServers
    pipeline: Pipeline
    proxy: Proxy
    run: SimulatedRun
    onlooker: Onlooker
    seed: int
    chance: Random
    is_long: bool
    say: Say
    began: float = field(default_factory=time.monotonic)

    def note(self, what: str) -> None:
        """Say what is done to the pipeline, and when."""
        self.say(f"    {time.monotonic() - self.began:6.1f} s  {what}")

    def either(self, short: float, long: float) -> float:
        """Return a figure of this form of the scenario."""
        return long if self.is_long else short

    def times(self, short: int, long: int) -> range:
        """Return how often something is done in this form of the scenario."""
        return range(long if self.is_long else short)

    def pause(self, least: float, most: float) -> None:
        """Let the load go on until a moment that only the seed knows."""
        time.sleep(self.chance.uniform(least, most))
        assert self.run.process.poll() is None, "the simulator has ended by itself"

    def start(self, name: str) -> None:
        """Start a service with the arguments that it always has."""
        self.pipeline.start(name, *_arguments(name, self.pipeline))

    def kill(self, name: str) -> None:
        """Kill a service; it must have been running."""
        self.note(f"kill -9 {name}")
        self.pipeline.kill(name)

    def restart(self, name: str) -> None:
        """Kill a service and start it again."""
        self.kill(name)
        self.start(name)

    def charged(self) -> int | None:
        """Return how many charges there are; None while the database does not say."""
        try:
            return self.pipeline.count("charge")
        except psycopg.OperationalError:
            return None

    def wait_for_charges(self) -> None:
        """Wait until charging goes on, and note how long that took."""
        began = time.monotonic()
        before: list[int] = []

        def go_on() -> bool:
            charged = self.charged()
            if charged is not None:
                before.append(charged)
            return len(before) > 0 and before[-1] > before[0]

        wait_until(go_on, "new charges", seconds=RECOVERY_SECONDS)
        self.note(f"charging goes on after {time.monotonic() - began:.1f} s")


def _arguments(name: str, pipeline: Pipeline) -> Sequence[str]:
    if name != "agent":
        return ()
    return (
        "--interface", "lo", "--tenant", TENANT, "--device", AGENT, "--interval", "0.2",
        "--state", str(pipeline.folder / "agent"), "--ledger", str(_agent_ledger(pipeline)),
    )  # fmt: skip


def _agent_ledger(pipeline: Pipeline) -> Path:
    return pipeline.folder / "agent.jsonl"


@contextmanager
def stage(
    servers: OwnServers, folder: Path, *, seed: int, is_long: bool, say: Say
) -> Iterator[Stage]:
    """Yield a pipeline under load; at the end, leave no process behind."""
    servers.up()
    with fresh_database(servers.endpoints.database_url) as url:
        with pipeline_of(url, servers.endpoints.broker_url, folder, more_trackers=[AGENT]) as made:
            yield from _started(servers, made, seed=seed, is_long=is_long, say=say)
        left = left_behind(folder)
        assert not left, f"processes are left behind: {left}"
        servers.up()


def _started(
    servers: OwnServers, pipeline: Pipeline, *, seed: int, is_long: bool, say: Say
) -> Iterator[Stage]:
    chance = Random(seed)  # noqa: S311 - the seed must reproduce it
    parts = psycopg.conninfo.conninfo_to_dict(pipeline.database_url)
    port = free_port()
    proxy = Proxy(str(parts["host"]), int(str(parts["port"])))
    pipeline.environment |= {
        "FLEETMETER_DATABASE_URL": pipeline.database_url.replace(
            f":{parts['port']}/", f":{proxy.port}/"
        ),
        "FLEETMETER_API_PORT": str(port),
        "FLEETMETER_DATABASE_ANSWER_SECONDS_MAX": "30" if is_long else "3",
    }
    key = asyncio.run(_api_key(pipeline.database_url))
    onlooker = Onlooker(url=f"http://127.0.0.1:{port}", key=key, fleet_id="meters")
    try:
        pipeline.start_ingest()
        for name in SERVICES:
            if name != "ingest":
                pipeline.start(name, *_arguments(name, pipeline))
        made = Stage(
            servers=servers,
            pipeline=pipeline,
            proxy=proxy,
            run=pipeline.simulate(
                0,
                seed=chance.randrange(2**32),
                interval=1.0,
                reorder=0.01,
                drain_seconds=DRAIN_SECONDS,
            ),
            onlooker=onlooker,
            seed=seed,
            chance=chance,
            is_long=is_long,
            say=say,
        )
        made.run.wait_for_more(200)
        onlooker.start()
        wait_until(lambda: onlooker.answers, "an answer of the API", seconds=120)
        yield made
    finally:
        onlooker.stop()
        pipeline.end()
        proxy.close()


async def _api_key(url: str) -> str:
    async with await connect(url, application="test", autocommit=True) as connection:
        tenant = await tenant_no(connection, TenantId(TENANT))
        return await create_api_key(connection, tenant=tenant, label="chaos", now=datetime.now(UTC))


def prove(stage: Stage) -> None:
    """End the load, and prove that nothing was lost, nothing charged twice and nothing taken back."""
    run, pipeline = stage.run, stage.pipeline
    stage.wait_for_charges()
    answers = stage.onlooker.answers
    wait_until(lambda: stage.onlooker.answers > answers + 1, "the API's answers")
    assert run.process.poll() is None, "the simulator has ended by itself"
    run.process.send_signal(signal.SIGTERM)
    assert run.finish(DRAIN_SECONDS + 60) == 0, "not everything was acknowledged"
    assert pipeline.kill("agent", signal.SIGTERM) == 0, "not all of the agent's was acknowledged"
    for name in SERVICES:
        if name != "agent":
            assert pipeline.processes[name].poll() is None, f"{name} has ended by itself"
    sent = _sent(run.ledger) | _sent(_agent_ledger(pipeline))
    code, verdict = pipeline.audit(run.ledger, _agent_ledger(pipeline))
    assert code == 0, pipeline.log("audit").read_text()
    assert verdict.startswith(f"audit: equal ({len(sent)} readings, "), f"{len(sent)}: {verdict}"
    assert "parked" not in verdict
    assert "queued" not in verdict
    _prove_by_hand(pipeline, len(sent))
    stage.onlooker.stop()
    assert not stage.onlooker.complaints, stage.onlooker.complaints[:10]
    stage.note(
        f"{verdict}; the API answered {stage.onlooker.answers} times, was not available"
        f" {stage.onlooker.unavailable} times, took at most {stage.onlooker.slowest_seconds:.1f} s"
    )


def _prove_by_hand(pipeline: Pipeline, sent: int) -> None:
    """Count what the audit compares, without its code."""
    ((stored, apart),) = pipeline.query(
        "SELECT count(*), count(DISTINCT (boot_no, seq)) FROM reading"
    )
    assert (stored, apart) == (sent, sent)
    twice = pipeline.query(
        "SELECT boot_no, seq FROM charge GROUP BY boot_no, seq HAVING count(DISTINCT run_no) > 1"
    )
    assert twice == []
    own, pooled, overage = pipeline.query(
        "SELECT sum(from_allowance), sum(from_pool), sum(overage) FROM charge"
    )[0]
    assert min(own, pooled, overage) > 0, "allowance, pool and overage should all be in use"
    drawn = pipeline.query("SELECT sum(used) FROM bucket")[0][0]
    assert drawn == own + pooled
    assert pipeline.query("SELECT count(*) FROM work_item") == [(0,)]


def _sent(ledger: Path) -> set[tuple[str, str, int]]:
    """Return the readings of a ledger; a killed agent may have written one line twice."""
    with ledger.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return {(line["device"], line["boot"], line["seq"]) for line in lines}
