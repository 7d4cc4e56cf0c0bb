"""Leases of shards: shared evenly, taken over from the dead, and never a reason to charge twice."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from time import monotonic

import psycopg
import pytest
from prometheus_client import REGISTRY
from psycopg.errors import LockNotAvailable

from metering.charging.charge_usage import charge_usage
from metering.charging.leases import LeaseKeeper
from metering.charging.open_cycle import open_due_cycles
from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.store.connection import UNREACHABLE, Connection, connect
from metering.store.cycles import fleets_without_open_cycle
from metering.store.leases import (
    Leases,
    all_shards,
    register_worker,
    seen_workers,
    take_shards,
    tell_leases_changed,
    try_lock_leased,
)
from metering.usage import SMS, Reading, ReadingKind
from tests.integration.pipeline import (
    METERS,
    OWN_PLAN,
    TENANT,
    TRACKERS,
    Operator,
    Pipeline,
    pipeline_of,
    wait_until,
)
from tests.integration.test_claim_queue import (
    NOW,
    audited,
    charge_all,
    deltas,
    play,
    sent_by,
    store,
)
from tests.integration.test_worker import worker

LONG = 600.0
"""A lease of so many seconds does not lapse within a test."""


@pytest.fixture
def pipeline(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline_of(database_url, broker_url, tmp_path) as prepared:
        yield prepared


def shards_of(pipeline: Pipeline) -> dict[int, int]:
    """Return how many shards each worker leases, by the pid of its process."""
    rows = pipeline.query(
        "SELECT pid, count(*) FROM charging_shard JOIN charging_worker USING (worker_no) GROUP BY pid"
    )
    return {row[0]: row[1] for row in rows}


def wait_for_shares(pipeline: Pipeline, **shares: int) -> None:
    """Wait until these processes, and no others, lease so many shards each."""
    expected = {
        pipeline.processes[name.replace("_", "#")].pid: count for name, count in shares.items()
    }
    wait_until(lambda: shards_of(pipeline) == expected, f"shares {shares}")


def start_workers(pipeline: Pipeline, *names: str) -> None:
    """Start workers one after the other: shards 0 and 1, which have the fleets, are the first's."""
    for name in names:
        pid = pipeline.start(name).pid
        wait_until(lambda pid=pid: pid in shards_of(pipeline), f"{name}'s share")  # type: ignore[misc] # bound now


def fences(pipeline: Pipeline) -> list[tuple[object, ...]]:
    """Return who leases each shard under which fence."""
    return pipeline.query("SELECT shard_no, worker_no, fence FROM charging_shard ORDER BY shard_no")


def send(pipeline: Pipeline, seq: int, *devices: str) -> None:
    """Store an SMS of each device, as the ingester would."""
    now = datetime.now(UTC)

    async def stored() -> None:
        async with await connect(
            pipeline.database_url, application="test", autocommit=True
        ) as connection:
            messages = [
                Message(
                    topic=f"fm/v1/{TENANT}/{device}/usage", octets=100,
                    sender=(TenantId(TENANT), DeviceId(device)), received_at=now,
                    published_at=now, boot="boot-1",
                    readings=[
                        Reading(seq=seq, at=now, meter=SMS, kind=ReadingKind.DELTA, quantity=1)
                    ],
                    rejections=(),
                )
                for device in devices
            ]  # fmt: skip
            await write_batch(connection, DeviceCache(100), messages, now=now)

    asyncio.run(stored())


def wait_for_charges(pipeline: Pipeline, count: int) -> None:
    wait_until(lambda: pipeline.count("charge") == count, f"{count} charges", seconds=60)


def audit_is_equal(pipeline: Pipeline, *ledgers: Path) -> None:
    code, (*_, verdict) = pipeline.audit_here(*ledgers, settle_seconds=30)
    assert code == 0, verdict
    assert verdict.startswith("audit: equal ("), verdict
    assert "queued" not in verdict


@contextmanager
def charging_held_up(pipeline: Pipeline, name: str) -> Iterator[None]:
    """Have a worker that was sent work stand in the middle of its transaction."""
    with psycopg.connect(pipeline.database_url) as holder:
        holder.execute("LOCK TABLE usage_hour IN ACCESS EXCLUSIVE MODE")
        send(pipeline, 2, TRACKERS[0], METERS[0])
        wait_until(lambda: waiting_session(pipeline, name), "a charging transaction that waits")
        yield


def waiting_session(pipeline: Pipeline, name: str) -> int | None:
    """Return the server's process of a worker's charging session that waits for a lock."""
    rows = pipeline.query(
        "SELECT activity.pid FROM pg_stat_activity AS activity"
        " JOIN charging_worker ON session = application_name"
        " WHERE charging_worker.pid = %s AND datname = current_database()"
        " AND wait_event_type = 'Lock'",
        pipeline.processes[name].pid,
    )
    return rows[0][0] if rows else None


def test_shards_are_shared_evenly_as_workers_come_and_go(pipeline: Pipeline) -> None:
    pipeline.environment["FLEETMETER_CHARGING_LEASE_SECONDS"] = "2"
    start_workers(pipeline, "charge#1")
    wait_for_shares(pipeline, charge_1=64)
    first = fences(pipeline)
    pipeline.start("charge#2")
    wait_for_shares(pipeline, charge_1=32, charge_2=32)
    second = fences(pipeline)
    assert second[::2] == first[::2], "shards that stay should not change"
    pipeline.start("charge#3")
    wait_for_shares(pipeline, charge_1=22, charge_2=21, charge_3=21)
    third = fences(pipeline)
    moved = [number for number in range(64) if third[number] != second[number]]
    assert len(moved) == 21, "only what the newcomer has should have moved"
    pipeline.kill("charge#2", signal.SIGTERM)
    wait_for_shares(pipeline, charge_1=32, charge_3=32)
    fourth = fences(pipeline)
    pipeline.kill("charge#1")
    wait_for_shares(pipeline, charge_3=64)
    assert len(set(fourth) & set(fences(pipeline))) == 32, "its own should not have moved"
    wait_until(lambda: pipeline.count("charging_worker") == 1, "the dead to be forgotten")
    settled = fences(pipeline)
    pipeline.start("charge#4")
    wait_for_shares(pipeline, charge_3=32, charge_4=32)
    assert len(set(settled) & set(fences(pipeline))) == 32


def test_fleets_that_came_together_are_shared_out(pipeline: Pipeline) -> None:
    """The first fleets have the first shards."""
    start_workers(pipeline, "charge#1", "charge#2")
    wait_for_shares(pipeline, charge_1=32, charge_2=32)
    rows = pipeline.query(
        "SELECT worker_no, count(*) FROM charging_shard WHERE shard_no < 8 GROUP BY worker_no"
    )
    assert [row[1] for row in rows] == [4, 4]


def test_a_worker_that_ends_gives_its_shards_up(pipeline: Pipeline) -> None:
    pipeline.environment["FLEETMETER_CHARGING_LEASE_SECONDS"] = str(LONG)
    start_workers(pipeline, "charge#1", "charge#2")
    wait_for_shares(pipeline, charge_1=32, charge_2=32)
    assert pipeline.kill("charge#1", signal.SIGTERM) == 0
    assert pipeline.count("charging_worker") == 1
    wait_for_shares(pipeline, charge_2=64)
    assert "32 taken, of them 0 over from nobody" in pipeline.log("charge#2").read_text()
    assert pipeline.kill("charge#2", signal.SIGTERM) == 0
    assert shards_of(pipeline) == {}
    send(pipeline, 1, TRACKERS[0], METERS[0])
    pipeline.start("charge#3")
    wait_for_charges(pipeline, 2)


def test_a_killed_worker_s_shards_are_taken_over(pipeline: Pipeline) -> None:
    start_workers(pipeline, "charge#1", "charge#2")
    wait_for_shares(pipeline, charge_1=32, charge_2=32)
    pipeline.start_ingest()
    run = pipeline.simulate(0, seed=31)
    run.wait_for_more(300)
    pipeline.kill("charge#1")
    wait_for_shares(pipeline, charge_2=64)
    run.wait_for_more(100)
    pipeline.start("charge#3")
    wait_for_shares(pipeline, charge_2=32, charge_3=32)
    assert run.end() == 0
    audit_is_equal(pipeline, run.ledger)
    assert "over from" in pipeline.log("charge#2").read_text()


def test_a_worker_stopped_amid_a_run_is_taken_over_and_wakes_to_nothing(
    pipeline: Pipeline,
) -> None:
    start_workers(pipeline, "charge#1", "charge#2")
    wait_for_shares(pipeline, charge_1=32, charge_2=32)
    pipeline.start_ingest()
    run = pipeline.simulate(0, seed=32)
    for _ in range(2):
        run.wait_for_more(150)
        stopped = pipeline.processes["charge#1"]
        stopped.send_signal(signal.SIGSTOP)
        wait_for_shares(pipeline, charge_2=64)
        run.wait_for_more(100)
        stopped.send_signal(signal.SIGCONT)
        wait_for_shares(pipeline, charge_1=32, charge_2=32)
    assert run.end() == 0
    pipeline.assert_running()
    audit_is_equal(pipeline, run.ledger)
    assert "leases of 32 shards were lost" in pipeline.log("charge#1").read_text()


def test_a_worker_stopped_amid_its_transaction_holds_up_no_take_over(pipeline: Pipeline) -> None:
    pipeline.environment["FLEETMETER_CHARGING_LEASE_SECONDS"] = "1.5"
    pipeline.environment["FLEETMETER_CHARGING_SILENCE_SECONDS_MAX"] = str(LONG)
    start_workers(pipeline, "charge#1", "charge#2")
    wait_for_shares(pipeline, charge_1=32, charge_2=32)
    send(pipeline, 1, TRACKERS[0], METERS[0])
    wait_for_charges(pipeline, 2)
    stopped = pipeline.processes["charge#1"]
    with charging_held_up(pipeline, "charge#1"):
        stopped.send_signal(signal.SIGSTOP)
    wait_for_charges(pipeline, 4)
    wait_for_shares(pipeline, charge_2=64)
    assert "ended the sessions" in pipeline.log("charge#2").read_text()
    stopped.send_signal(signal.SIGCONT)
    wait_for_shares(pipeline, charge_1=32, charge_2=32)
    send(pipeline, 3, TRACKERS[0], METERS[0])
    wait_for_charges(pipeline, 6)
    pipeline.assert_running()
    audit_is_equal(pipeline)


def test_the_server_ends_a_silent_transaction_by_itself(pipeline: Pipeline) -> None:
    pipeline.environment["FLEETMETER_CHARGING_LEASE_SECONDS"] = str(LONG)
    pipeline.environment["FLEETMETER_CHARGING_SILENCE_SECONDS_MAX"] = "1"
    start_workers(pipeline, "charge#1")
    send(pipeline, 1, TRACKERS[0], METERS[0])
    wait_for_charges(pipeline, 2)
    stopped = pipeline.processes["charge#1"]
    with charging_held_up(pipeline, "charge#1"):
        stopped.send_signal(signal.SIGSTOP)
    with psycopg.connect(pipeline.database_url) as owner:
        owner.execute("SET lock_timeout = '30s'")
        owner.execute("SELECT FROM charging_shard ORDER BY shard_no FOR NO KEY UPDATE")
    stopped.send_signal(signal.SIGCONT)
    wait_for_charges(pipeline, 4)
    audit_is_equal(pipeline)


def test_a_lease_cannot_be_taken_from_under_an_open_transaction(pipeline: Pipeline) -> None:
    steal = "UPDATE charging_shard SET fence = fence + 1"
    start_workers(pipeline, "charge#1")
    send(pipeline, 1, TRACKERS[0], METERS[0])
    wait_for_charges(pipeline, 2)
    with charging_held_up(pipeline, "charge#1"):
        with psycopg.connect(pipeline.database_url) as thief:
            thief.execute("SET lock_timeout = '300ms'")
            with pytest.raises(LockNotAvailable):
                thief.execute(f"{steal} WHERE shard_no = 0")
        # So the thief ends the session first; the worker goes on believing in its old fences.
        session = waiting_session(pipeline, "charge#1")
        with psycopg.connect(pipeline.database_url) as thief:
            thief.execute("SELECT pg_terminate_backend(%s)", [session])
            thief.execute(steal)
    wait_for_charges(pipeline, 4)
    audit_is_equal(pipeline)
    assert "leases of 64 shards were lost" in pipeline.log("charge#1").read_text()


async def leased_by_all(connection: Connection, dead: list[int]) -> Leases:
    """Register a worker that takes all shards from others."""
    async with connection.transaction():
        worker_no = await register_worker(
            connection, host="here", pid=1, session="test", lease_seconds=LONG
        )
        taken = await take_shards(connection, worker_no, dead=dead, most=64)
    return Leases(worker_no=worker_no, fences={each.shard_no: each.fence for each in taken})


def test_who_lost_a_lease_charges_and_opens_nothing_whatever_it_believes(
    database_url: str,
) -> None:
    async def scene(url: str, connection: Connection) -> None:
        await store(connection, sent_by("device-0-0", deltas(10)))
        old = await leased_by_all(connection, [])
        assert len(old.fences) == 64
        new = await leased_by_all(connection, [old.worker_no])
        assert {number: fence + 1 for number, fence in old.fences.items()} == new.fences
        for leases in (
            old,
            Leases(worker_no=new.worker_no, fences=old.fences),
            Leases(worker_no=old.worker_no, fences=new.fences),
        ):
            assert await charge_usage(connection, readings_max=100, now=NOW, leases=leases) is None
            assert await open_due_cycles(connection, now=NOW, leases=leases) == 0
            async with connection.transaction():
                assert not await try_lock_leased(connection, leases, 0)
        nothing = Leases(worker_no=new.worker_no, fences={1: new.fences[1]})
        assert await charge_usage(connection, readings_max=100, now=NOW, leases=nothing) is None
        due = await fleets_without_open_cycle(connection, NOW, shards=nothing.fences)
        assert [each.shard_no for each in due] == [1]
        assert await open_due_cycles(connection, now=NOW, leases=nothing) == 1
        outcome = await charge_usage(connection, readings_max=100, now=NOW, leases=new)
        assert outcome is not None
        assert outcome.readings == 10
        assert (await audited(url)).differences == []

    play(database_url, scene, fleets=2)


def test_workers_that_all_believe_in_their_leases_charge_each_reading_once(
    database_url: str,
) -> None:
    """Leases change hands at random among three, none of whom is told; each charges what it can."""
    fleets, rounds = 12, 25
    random = Random(7)  # noqa: S311 - nothing secret

    async def believe(url: str, beliefs: list[Leases], me: int, done: Callable[[], bool]) -> int:
        charged = 0
        async with await connect(url, application=f"w{me}", autocommit=True) as connection:
            while not done():
                outcome = await charge_usage(
                    connection, readings_max=20, now=NOW, leases=beliefs[me]
                )
                charged += outcome.readings if outcome else 0
                await asyncio.sleep(random.random() / 200)
        return charged

    async def scene(url: str, connection: Connection) -> None:
        workers = [
            await register_worker(
                connection, host="here", pid=number, session=f"w{number}", lease_seconds=LONG
            )
            for number in range(3)
        ]
        beliefs = [Leases(worker_no=worker_no, fences={}) for worker_no in workers]

        async def publish_and_steal() -> None:
            for turn in range(rounds):
                for fleet in range(fleets):
                    await store(connection, sent_by(f"device-{fleet}-0", deltas(4, 1 + 4 * turn)))
                thief = random.randrange(3)
                async with connection.transaction():
                    taken = await take_shards(connection, workers[thief], dead=workers, most=40)
                new = {each.shard_no: each.fence for each in taken}
                beliefs[thief] = Leases(
                    worker_no=workers[thief], fences={**beliefs[thief].fences, **new}
                )

        publishing = asyncio.create_task(publish_and_steal())
        charged = await asyncio.gather(
            *(believe(url, beliefs, number, publishing.done) for number in range(3))
        )
        await publishing
        assert min(charged) > 0, "each should have had something to charge"
        assert sum(charged) + await charge_all(url) == fleets * rounds * 4
        result = await audited(url)
        assert result.differences == []
        assert result.queued == 0

    play(database_url, scene, fleets=fleets)


def test_a_cut_off_worker_loses_its_transaction_and_nothing_else(database_url: str) -> None:
    async def scene(url: str, connection: Connection) -> None:
        await store(connection, sent_by("device-0-0", deltas(10)))
        old = await leased_by_all(connection, [])
        cut_off = await connect(url, application="cut off")
        await cut_off.execute("SELECT 1")  # charging is a savepoint: it is not committed yet
        assert await charge_usage(cut_off, readings_max=100, now=NOW, leases=old) is not None
        new = await leased_by_all(connection, [old.worker_no])
        assert 0 not in new.fences, "a shard that is being charged should not be taken"
        await connection.execute("SELECT pg_terminate_backend(%s)", [cut_off.info.backend_pid])
        with pytest.raises(UNREACHABLE):
            await cut_off.commit()
        taken: list[int] = []
        while not taken:  # until the server has ended the session
            taken = [
                each.shard_no
                for each in await take_shards(
                    connection, new.worker_no, dead=[old.worker_no], most=64
                )
            ]
        assert taken == [0]
        assert await charge_all(url) == 10
        assert (await audited(url)).differences == []

    play(database_url, scene)


def test_a_worker_stopped_amid_a_heartbeat_holds_up_nobody_s(pipeline: Pipeline) -> None:
    pipeline.environment["FLEETMETER_CHARGING_LEASE_SECONDS"] = "1"
    pipeline.execute(
        "INSERT INTO charging_worker (host, pid, session, backend_pid, started_at, leased_until)"
        " VALUES ('here', 0, 'test', 0, now(), now())"
    )
    pipeline.execute(
        "UPDATE charging_shard SET worker_no = (SELECT worker_no FROM charging_worker)"
    )
    with psycopg.connect(pipeline.database_url) as stopped:
        stopped.execute("SELECT FROM charging_worker FOR UPDATE")
        start_workers(pipeline, "charge#1")
        wait_for_shares(pipeline, charge_1=64)
        heard = "SELECT max(leased_until) FROM charging_worker"
        for _ in range(4):
            before = pipeline.query(heard)
            wait_until(lambda before=before: pipeline.query(heard) != before, "a heartbeat")  # type: ignore[misc] # bound now
    wait_until(lambda: pipeline.count("charging_worker") == 1, "the dead to be forgotten")


def test_what_is_leased_and_lost_is_counted(database_url: str) -> None:
    def told(name: str) -> float:
        return REGISTRY.get_sample_value(f"fleetmeter_charging_{name}") or 0.0

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.02)

    async def scene(url: str, connection: Connection) -> None:
        lost, taken_over = told("lost_leases_total"), told("take_overs_total")
        dead = await register_worker(
            connection, host="here", pid=1, session="test", lease_seconds=0
        )
        await take_shards(connection, dead, dead=[], most=10)
        async with worker(url, poll_seconds=0.2):
            await until(lambda: told("take_overs_total") == taken_over + 10)
            await until(lambda: told("leased_shards") == 64)
            await connection.execute("UPDATE charging_shard SET fence = fence + 1")
            await until(lambda: told("lost_leases_total") == lost + 64)
            assert told("leased_shards") == 64
        assert told("leased_shards") == 0

    play(database_url, scene)


@asynccontextmanager
async def keeper(url: str, *, lease_seconds: float) -> AsyncIterator[LeaseKeeper]:
    keeping = LeaseKeeper(url, lease_seconds=lease_seconds, changed=lambda: None)
    task = asyncio.create_task(keeping.keep())
    try:
        async with asyncio.timeout(30):
            while keeping.leases is None or not keeping.leases.fences:
                await asyncio.sleep(0.01)
        yield keeping
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_a_shard_that_is_to_change_hands_is_charged_no_more(database_url: str) -> None:
    """Else a worker that is never idle would never give one up."""

    async def scene(url: str, connection: Connection) -> None:
        async with (
            keeper(url, lease_seconds=LONG) as keeping,
            await connect(url, application="test") as owner,
        ):
            await owner.execute("SELECT FROM charging_shard WHERE shard_no >= 60 FOR NO KEY UPDATE")
            await register_worker(
                connection, host="here", pid=1, session="test", lease_seconds=LONG
            )
            await tell_leases_changed(connection)
            async with asyncio.timeout(30):
                while keeping.leases is None or len(keeping.leases.fences) != 32:
                    await asyncio.sleep(0.01)
                while sum(each.worker_no is None for each in await all_shards(connection)) < 30:
                    await asyncio.sleep(0.01)
                assert set(keeping.leases.fences) == set(range(0, 64, 2))
                await owner.rollback()
                while sum(each.worker_no is None for each in await all_shards(connection)) < 32:
                    await asyncio.sleep(0.01)

    play(database_url, scene)


def test_a_long_computation_does_not_look_like_death(database_url: str) -> None:
    async def scene(url: str, connection: Connection) -> None:
        async with keeper(url, lease_seconds=3):
            ends = monotonic() + 5
            while monotonic() < ends:
                pass
            (kept,) = await seen_workers(connection)
            assert kept.alive

    play(database_url, scene)


def test_operator_commands_do_not_care_who_leases(database_url: str) -> None:
    async def scene(_: str, connection: Connection) -> None:
        await leased_by_all(connection, [])
        operator = await Operator.of(connection, now=NOW)
        fleet, plan = await operator.fleet("fleet-0"), await operator.plan(OWN_PLAN)
        assert await operator.devices(fleet, ["newcomer"], plan=plan)

    play(database_url, scene)
