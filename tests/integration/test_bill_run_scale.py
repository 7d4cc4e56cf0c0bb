"""A bill run of many fleets, and of one with a line of each device: killed and begun again."""

import asyncio
import io
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest

from bench import bill_run
from bench.bill_run import measure
from bench.bill_run_history import Wanted, fill
from metering.charging import close_cycle
from metering.payments.progress import Progress, progress_line
from metering.store.bills import allow_for_size
from metering.store.connection import Connection, connect
from tests.integration.closing_scene import Scene, played

_HOLD = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE done bigint;
BEGIN
    EXECUTE TG_ARGV[0] INTO done;
    IF done > 60 THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
    RETURN NULL;
END $$
"""


@pytest.fixture
def held_half_way(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let neither step come beyond its half before it was killed, however fast the machine is."""
    started = Counter[str]()
    start = bill_run._start
    with psycopg.connect(database_url, autocommit=True) as holder:
        holder.execute(_HOLD.encode())
        for event, counting in (
            ("INSERT ON closed_cycle", bill_run._CLOSED), ("UPDATE ON bill", bill_run._FINAL),
        ):  # fmt: skip
            holder.execute(
                f"CREATE TRIGGER held AFTER {event}"
                f" FOR EACH ROW EXECUTE FUNCTION hold($q${counting}$q$)".encode()
            )

        def start_held(url: str, command: list[str]) -> subprocess.Popen[bytes]:
            started[command[0]] += 1
            way = "pg_advisory_lock" if started[command[0]] == 1 else "pg_advisory_unlock"
            holder.execute(f"SELECT {way}(1)".encode())
            return start(url, command)

        monkeypatch.setattr(bill_run, "_start", start_held)
        yield


@pytest.mark.usefixtures("held_half_way")
def test_many_fleets_are_billed_once_each_though_both_steps_are_killed(database_url: str) -> None:
    # `measure` looks at numbers, amounts and the audit itself.
    wanted = Wanted(devices=120, charges=240, devices_a_copy=1)
    done = measure(database_url, wanted, kill=True)
    assert (done.fleets, done.charges, done.lines) == (120, 240, 240)
    assert (done.closing.kills, done.finalising.kills) == (1, 1)
    assert 0 < done.closing.done_at_kill < done.fleets
    assert 0 < done.finalising.done_at_kill < done.fleets
    assert Decimal(done.total) == 120 * Decimal("2.38")


def test_a_fleet_is_billed_with_a_line_of_each_device(database_url: str) -> None:
    wanted = Wanted(devices=60, charges=1_800, one_fleet=True, per_device=True, devices_a_copy=20)
    done = measure(database_url, wanted, kill=False)
    assert (done.fleets, done.charges, done.lines) == (1, 1_800, 120)


def test_a_large_fleets_bill_may_take_longer_than_a_session_may_be_silent(
    database_url: str,
) -> None:
    async def story(scene: Scene) -> None:
        connection = scene.connection
        for allowed, then in (("10s", "10015ms"), ("0", "0")):
            await connection.execute(
                f"SET idle_in_transaction_session_timeout = '{allowed}'".encode()
            )
            async with connection.transaction():
                await allow_for_size(connection, scene.fleet.fleet_no)
                assert await _allowed(connection) == then
            assert await _allowed(connection) == allowed

    played(database_url, story)


async def _allowed(connection: Connection) -> str:
    found = await connection.execute("SHOW idle_in_transaction_session_timeout")
    row = await found.fetchone()
    assert row is not None
    return str(row[0])


def test_more_cycles_than_a_page_that_have_to_wait_hold_up_no_other(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(close_cycle, "_PAGE", 1)

    async def story() -> None:
        now = datetime.now(UTC)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            wanted = Wanted(devices=4, charges=4, devices_a_copy=1)
            cycle = await fill(connection, wanted, now=now)
            found = await connection.execute("SELECT fleet_no FROM fleet ORDER BY shard_no LIMIT 2")
            refused = {(row[0], cycle.start) for row in await found.fetchall()}
            done = await close_cycle.close_due_cycles(
                connection, grace=timedelta(0), now=now, refused=refused
            )
            assert done == 2

    asyncio.run(story())


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (io.StringIO(), "25 of 100 bills (25 %), 2.5 a second, 0:00:30 left\n"),
        (Terminal(), "\r\x1b[K25 of 100 bills (25 %), 2.5 a second, 0:00:30 left\r\x1b[K"),
    ],
)
def test_progress_is_one_line_on_a_terminal_and_seldom_one_elsewhere(
    stream: io.StringIO, told: str
) -> None:
    at = 0.0
    progress = Progress("bills", 100, stream, seconds=lambda: at)
    progress.tell(0)
    at = 10.0
    progress.tell(25)
    at = 10.1
    progress.tell(26)
    progress.end()
    assert stream.getvalue() == told


def test_progress_counts_what_came_since() -> None:
    assert progress_line("bills", 0, 7, 1.0) == "0 of 7 bills"
    assert progress_line("bills", 8, 7, 4.0) == "8 of 8 bills (100 %), 2.0 a second, 0:00:00 left"
