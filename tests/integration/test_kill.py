"""Kill -9 of everything, in the middle of a run: what was acknowledged is stored and charged once."""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from metering import stack
from metering.settings import Settings
from metering.stack import lifecycle
from metering.stack.model import ServerName
from tests.integration.pipeline import (
    Pipeline,
    SimulatedRun,
    fresh_database,
    pipeline_of,
    wait_until,
)


class OwnStack:
    """Servers of this module's own, which it may kill."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.endpoints = stack.up(settings)

    def up(self) -> None:
        """Start what was killed; it comes back where it was."""
        assert stack.up(self.settings) == self.endpoints

    def kill(self, name: ServerName, number: signal.Signals = signal.SIGKILL) -> None:
        """End a server and wait until it is gone."""
        process = self._process(name)
        process.send_signal(number)
        wait_until(lambda: _has_ended(process), f"the end of the {name}")

    def freeze(self, name: ServerName, seconds: float) -> None:
        """Stop a server and all its children for a while: nobody is told, nothing answers."""
        process = self._process(name)
        family = [process, *process.children(recursive=True)]
        for each in family:  # one that served an autovacuum may be gone by now
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()
        try:
            time.sleep(seconds)
        finally:
            for each in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.resume()

    def forget_sessions(self) -> None:
        """Delete what the killed broker had written: queues and sessions are lost."""
        folder = next(each.folder for each in stack.status(self.settings) if each.name == "broker")
        assert folder is not None
        for file in folder.glob("mosquitto.db*"):
            file.unlink()

    def _process(self, name: ServerName) -> psutil.Process:
        pid = next(each.pid for each in stack.status(self.settings) if each.name == name)
        assert pid is not None, f"the {name} does not run"
        return psutil.Process(pid)


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def own_stack() -> Iterator[OwnStack]:
    folder = Path(tempfile.mkdtemp(prefix=f"fleetmeter-test-{os.getpid()}-"))
    folder.chmod(0o755)
    settings = Settings(
        database_url=None, broker_url=None, data_dir=folder, cache_dir=Settings().cache_dir
    )
    try:
        yield OwnStack(settings)
    finally:
        lifecycle.erase(settings)
        shutil.rmtree(folder)


@pytest.fixture
def pipeline(own_stack: OwnStack, tmp_path: Path) -> Iterator[Pipeline]:
    own_stack.up()
    with (
        fresh_database(own_stack.endpoints.database_url) as database_url,
        pipeline_of(database_url, own_stack.endpoints.broker_url, tmp_path) as prepared,
    ):
        yield prepared


def run_and_audit(
    pipeline: Pipeline, seconds: float, disturb: Callable[[SimulatedRun], None], *, seed: int
) -> None:
    """Simulate, disturb in the middle, and prove that nothing was lost or charged twice."""
    pipeline.start_ingest()
    pipeline.start("charge")
    run = pipeline.simulate(seconds, seed=seed)
    run.wait_for_more(200)
    disturb(run)
    assert run.process.poll() is None, "the run ended before the disturbance did"
    assert run.finish() == 0, f"seed {seed}: not everything was acknowledged"
    pipeline.assert_running()
    code, verdict = pipeline.audit(run.ledger)
    lines = run.lines()
    assert code == 0, f"seed {seed}: {verdict}"
    assert verdict.startswith(f"audit: equal ({lines} readings, "), f"seed {seed}: {verdict}"
    assert "parked" not in verdict
    assert "queued" not in verdict
    assert lines > 1000
    own, pooled, overage = pipeline.query(
        "SELECT sum(from_allowance), sum(from_pool), sum(overage) FROM charge"
    )[0]
    assert min(own, pooled, overage) > 0, "allowance, pool and overage should all be in use"


def test_ingester_and_worker_may_die_at_any_time(pipeline: Pipeline) -> None:
    def disturb(run: SimulatedRun) -> None:
        for name in ("ingest", "charge", "charge", "ingest", "charge", "ingest"):
            run.wait_for_more(150)
            pipeline.restart(name)

    run_and_audit(pipeline, 11, disturb, seed=1)


def test_the_broker_may_die_and_forget_everything(pipeline: Pipeline, own_stack: OwnStack) -> None:
    def disturb(run: SimulatedRun) -> None:
        for _ in range(2):
            run.wait_for_more(300)
            own_stack.kill("broker")
            own_stack.forget_sessions()
            own_stack.up()

    run_and_audit(pipeline, 11, disturb, seed=2)
    sessions = pipeline.log("ingest").read_text().count("session kept: False")
    assert sessions == 3, "the broker should have forgotten the ingester's session twice"


def test_the_broker_may_restart_with_its_memory(pipeline: Pipeline, own_stack: OwnStack) -> None:
    def disturb(run: SimulatedRun) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            run.wait_for_more(200)
            own_stack.kill("broker", number)
            own_stack.up()

    run_and_audit(pipeline, 10, disturb, seed=3)


def test_the_database_may_freeze_and_die(pipeline: Pipeline, own_stack: OwnStack) -> None:
    def disturb(run: SimulatedRun) -> None:
        own_stack.freeze("database", 2.5)
        for _ in range(2):
            run.wait_for_more(200)
            own_stack.kill("database")
            own_stack.up()

    run_and_audit(pipeline, 13, disturb, seed=4)


def test_all_may_die_in_one_run(pipeline: Pipeline, own_stack: OwnStack) -> None:
    def disturb(run: SimulatedRun) -> None:
        pipeline.restart("charge")
        run.wait_for_more(100)
        own_stack.kill("database")
        pipeline.restart("ingest")
        own_stack.up()
        run.wait_for_more(200)
        own_stack.kill("broker")
        own_stack.forget_sessions()
        pipeline.restart("charge")
        run.wait_for_more(100)
        own_stack.up()
        run.wait_for_more(200)
        pipeline.kill("ingest")
        own_stack.kill("broker")
        own_stack.forget_sessions()
        own_stack.kill("database")
        own_stack.up()
        pipeline.start("ingest")
        run.wait_for_more(100)
        pipeline.restart("charge")

    run_and_audit(pipeline, 15, disturb, seed=5)
