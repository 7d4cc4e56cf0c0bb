"""What is done to a running pipeline. Each scenario is one function; the proof follows every one."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil
import psycopg

from metering.stack.model import SERVERS
from tests.chaos.servers import has_ended
from tests.chaos.stage import RECOVERY_SECONDS, SERVICES, WORKERS, Stage
from tests.chaos.volume import full
from tests.integration.pipeline import wait_until

Scenario = Callable[[Stage], None]
NO_SPACE = "No space left on device"
DATABASE_OCTETS = {"disk_full": 320 * 1024 * 1024}
"""The scenarios whose database has a volume of its own, and how large that is."""


def processes_die(stage: Stage) -> None:
    """Kill every process at random moments, again and again: the API and the agent too."""
    for _ in stage.times(2, 20):
        for name in stage.chance.sample(SERVICES, len(SERVICES)):
            stage.pause(0.05, 1.0)
            stage.restart(name)


def broker_restarts(stage: Stage) -> None:
    """Stop and kill the broker; it comes back with what it wrote."""
    for _ in stage.times(1, 5):
        for number in (signal.SIGTERM, signal.SIGKILL):
            stage.pause(0.2, 1.0)
            _end_broker(stage, number, forgetting=False)


def broker_forgets(stage: Stage) -> None:
    """Kill the broker, and with it all that it had acknowledged."""
    forgotten = 0
    for _ in stage.times(2, 10):
        stage.pause(0.2, 1.0)
        _end_broker(stage, signal.SIGKILL, forgetting=True)
        forgotten += 1
    sessions = stage.pipeline.log("ingest").read_text().count("session kept: False")
    assert sessions == 1 + forgotten, "the broker should have forgotten the ingester's session"


def _end_broker(stage: Stage, number: signal.Signals, *, forgetting: bool) -> None:
    stage.note(f"{number.name} to the broker" + (", and it forgets" if forgetting else ""))
    stage.servers.end("broker", number)
    if forgetting:
        stage.servers.forget_sessions()
    stage.pause(0, stage.either(0.5, 10))
    stage.servers.up()
    stage.pipeline.wait_until_subscribed()
    stage.wait_for_charges()


def database_dies(stage: Stage) -> None:
    """Kill the database, stop it at once, stop it in peace, and kill one of its processes."""
    for _ in stage.times(1, 5):
        for kind in stage.chance.sample(_DEATHS, len(_DEATHS)):
            stage.pause(0.2, 1.0)
            kind(stage)
            stage.wait_for_charges()


def _database_ends(stage: Stage, number: signal.Signals) -> None:
    stage.note(f"{number.name} to the database")
    stage.servers.end("database", number)
    stage.pause(0, stage.either(0.5, 10))
    stage.servers.up()


def _database_is_killed(stage: Stage) -> None:
    _database_ends(stage, signal.SIGKILL)


def _database_stops_at_once(stage: Stage) -> None:
    _database_ends(stage, signal.SIGQUIT)


def _database_stops_in_peace(stage: Stage) -> None:
    _database_ends(stage, signal.SIGINT)


def _database_loses_a_session(stage: Stage) -> None:
    """Kill the process that serves a session: the server ends all others, and recovers."""
    pids = [
        row[0]
        for row in stage.pipeline.query(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'fleetmeter charge'"
            " OR application_name = 'fleetmeter ingest' ORDER BY pid"
        )
    ]
    if not pids:
        return
    stage.note("kill -9 of one of the database's sessions")
    psutil.Process(stage.chance.choice(pids)).kill()


_DEATHS: Sequence[Scenario] = (
    _database_is_killed,
    _database_stops_at_once,
    _database_stops_in_peace,
    _database_loses_a_session,
)


def database_unreachable(stage: Stage) -> None:
    """Let nobody reach the database: resets, silence, silence that is never lifted, a freeze."""
    seconds = stage.either(1.5, 60)
    for kind in ("refusing", "silent", "silent and forgetful", "frozen"):
        stage.pause(0.2, 1.0)
        stage.note(f"the database is {kind} for {seconds:.0f} s")
        if kind == "frozen":
            stage.servers.freeze("database", seconds)
        else:
            if kind == "refusing":
                stage.proxy.refuse()
            else:
                stage.proxy.fall_silent()
            time.sleep(seconds)
            stage.proxy.carry(forgetful=kind.endswith("forgetful"))
        stage.wait_for_charges()


def disk_full(stage: Stage) -> None:
    """Fill the database's volume: first for its tables, then until it cannot write its log."""
    volume_folder = stage.servers.folder("database")
    for _ in stage.times(1, 3):
        stage.pause(0.2, 1.0)
        with full(volume_folder):
            stage.note("the database's volume is full")
            told = stage.pipeline.log("ingest").read_text().count(NO_SPACE)
            wait_until(
                lambda: stage.pipeline.log("ingest").read_text().count(NO_SPACE) > told,  # noqa: B023
                "the ingester's complaint",
            )
            time.sleep(stage.either(2, 60))
        stage.note("there is room again")
        stage.wait_for_charges()
    # On a full volume the database may begin no session: this one is there before.
    with (
        contextlib.closing(
            psycopg.connect(stage.pipeline.database_url, autocommit=True)
        ) as session,
        full(volume_folder),
    ):
        stage.note("the database's volume is full, until the database ends")
        server = stage.servers.process("database")
        wait_until(lambda: _log_fills(stage, session) or has_ended(server), "the database's end")
        time.sleep(stage.either(1, 60))
    stage.note("there is room again; whoever operates it starts the database again")
    stage.servers.up()


def _log_fills(stage: Stage, session: psycopg.Connection) -> bool:
    """Have the database begin another file of its log; True once it has given up on that."""
    with contextlib.suppress(psycopg.Error):
        session.execute("SELECT pg_logical_emit_message(false, 'chaos', ''), pg_switch_wal()")
    return "PANIC" in (stage.servers.folder("database") / "server.log").read_text(errors="replace")


def worker_is_robbed(stage: Stage) -> None:
    """Stop a worker in its transaction, which the database ends; wake it when others own its shards.

    It then goes on as if it owned them still.
    """
    for _ in stage.times(1, 15):
        stage.pause(0.2, 1.0)
        with _asleep_in_transaction(stage) as session:
            stage.pipeline.query("SELECT pg_terminate_backend(%s)", session)
            _wait_until_others_charged(stage)
            time.sleep(stage.chance.uniform(0, stage.either(0.5, 5)))


def worker_oversleeps(stage: Stage) -> None:
    """Stop a worker in its transaction until the others have taken its shards by themselves."""
    for _ in stage.times(1, 3):
        stage.pause(0.2, 1.0)
        with _asleep_in_transaction(stage):
            _wait_until_others_charged(stage)
            time.sleep(stage.either(0, 60))


@contextmanager
def _asleep_in_transaction(stage: Stage) -> Iterator[int]:
    """Stop one of the workers while it is in a transaction; yield the session's process number."""
    for _ in range(1000):
        name = stage.chance.choice(WORKERS)
        process = stage.pipeline.processes[name]
        process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(0.02)
            session = None
            if _idle_in_transaction(stage, 0) is not None:
                # Longer than the worker that was not stopped ever is.
                time.sleep(0.2)
                session = _idle_in_transaction(stage, 0.15)
            if session is not None:
                stage.note(f"{name} sleeps in a transaction")
                yield session
                stage.note(f"{name} wakes")
                return
        finally:
            process.send_signal(signal.SIGCONT)
        time.sleep(stage.chance.uniform(0, 0.05))
    raise AssertionError("no worker was ever stopped in a transaction")


def _idle_in_transaction(stage: Stage, seconds: float) -> int | None:
    """Return a session of charging that has been silent in its transaction for so long, if any."""
    found = stage.pipeline.query(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'fleetmeter charge%%'"
        " AND state = 'idle in transaction'"
        " AND state_change <= clock_timestamp() - make_interval(secs => %s)",
        seconds,
    )
    return int(found[0][0]) if found else None


def _wait_until_others_charged(stage: Stage) -> None:
    """Wait until all that is queued now is charged, what the sleeping worker had claimed too."""
    began = time.monotonic()
    ((last,),) = stage.pipeline.query("SELECT coalesce(max(work_item_no), 0) FROM work_item")
    query = f"SELECT count(*) FROM work_item WHERE work_item_no <= {int(last)}"  # noqa: S608
    wait_until(
        lambda: stage.pipeline.query(query) == [(0,)],
        "the others' charging of what the sleeping worker had claimed",
        seconds=RECOVERY_SECONDS,
    )
    stage.note(
        f"the others have charged what it had claimed after {time.monotonic() - began:.1f} s"
    )


def everything(stage: Stage) -> None:
    """Do all of that at random moments, several at once."""
    for _ in stage.times(2, 12):
        for act in stage.chance.sample(_ACTS, len(_ACTS)):
            stage.pause(0, 0.7)
            act(stage)
        _bring_all_up(stage)
        stage.wait_for_charges()


def _bring_all_up(stage: Stage) -> None:
    stage.servers.up()
    stage.proxy.carry()
    for name in SERVICES:
        if stage.pipeline.processes[name].poll() is not None:
            stage.start(name)


def _some_service_dies(stage: Stage) -> None:
    name = stage.chance.choice(SERVICES)
    if stage.pipeline.processes[name].poll() is None:
        stage.kill(name)


def _some_server_dies(stage: Stage) -> None:
    name = stage.chance.choice(SERVERS)
    if stage.servers.runs(name):
        forgetting = stage.chance.random() < 0.5
        stage.note(f"kill -9 of the {name}" + (", and it forgets" if forgetting else ""))
        stage.servers.end(name)
        if name == "broker" and forgetting:
            stage.servers.forget_sessions()


def _network_fails(stage: Stage) -> None:
    if stage.chance.random() < 0.5:
        stage.note("connections to the database are reset")
        stage.proxy.refuse()
    else:
        stage.note("the database is silent")
        stage.proxy.fall_silent()
    stage.pause(0, 0.5)
    stage.proxy.carry(forgetful=stage.chance.random() < 0.5)


_ACTS: Sequence[Scenario] = (
    _some_service_dies,
    _some_service_dies,
    _some_server_dies,
    _some_server_dies,
    _network_fails,
)


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        processes_die,
        broker_restarts,
        broker_forgets,
        database_dies,
        database_unreachable,
        disk_full,
        worker_is_robbed,
        worker_oversleeps,
        everything,
    )
}
