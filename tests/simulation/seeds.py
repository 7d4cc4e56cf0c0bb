"""Many seeds on all cores: each on an empty database, its failures with their traces."""

import asyncio
import logging
import multiprocessing
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from tests.integration.pipeline import fresh_database, migrated
from tests.simulation.world import simulate

_CHUNKED = ("reading", "charge", "usage_hour")
_TRACE_SHOWN_MAX = 400
_WATCH = (
    "CREATE SCHEMA watched",
    "CREATE TABLE watched.run (shard_no smallint, by text, leased_by text)",
    # At the very end of a transaction that charges: who commits, and whose lease the shard is then.
    (
        "CREATE FUNCTION watched.note_run() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO watched.run SELECT OLD.shard_no, current_setting('application_name'),"
        "  (SELECT session FROM charging_shard LEFT JOIN charging_worker USING (worker_no)"
        "   WHERE shard_no = OLD.shard_no);"
        " RETURN NULL; END $$"
    ),
    (
        "CREATE CONSTRAINT TRIGGER watched_run AFTER DELETE ON work_item DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION watched.note_run()"
    ),
)
"""Has a database remember which sessions charged which shards."""


@dataclass(slots=True, kw_only=True)
class SeedRun:
    """What became of one seed: its trace, and what was broken, if anything."""

    seed: int
    seconds: float = 0.0
    broken: str | None = None
    trace: list[str] = field(default_factory=list)

    @property
    def report(self) -> str:
        """What somebody needs to see who looks for the cause."""
        shown = self.trace[-_TRACE_SHOWN_MAX:]
        return "\n".join(
            [
                *shown,
                f"seed {self.seed}: {self.broken}",
                f"again: make simulation FIRST={self.seed} SEEDS=1",
            ]
        )


@contextmanager
def simulation_database(server_url: str) -> Iterator[str]:
    """Yield the URL of a migrated database that `emptied` brings back to its beginning."""
    with fresh_database(server_url) as url:
        asyncio.run(migrated(url))
        with psycopg.connect(url, autocommit=True) as made:
            # The server itself does not crash here, so nothing needs to wait for its disk.
            name = sql.Identifier(url.rpartition("/")[2])
            made.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
            for chunked in _CHUNKED:
                made.execute("SELECT set_chunk_time_interval(%s, interval '2 years')", [chunked])
            for statement in _WATCH:
                made.execute(statement.encode())
            made.execute("CREATE SCHEMA seeded")
            for table in _tables(made):
                filled = made.execute(sql.SQL("SELECT FROM public.{} LIMIT 1").format(table))
                if filled.rowcount:
                    kept = sql.SQL("CREATE TABLE seeded.{} AS TABLE public.{}").format(table, table)
                    made.execute(kept)
        yield url


def emptied(url: str) -> None:
    """Bring a database back to what its migrations left: rows, numbers and all."""
    with psycopg.connect(url) as connection:
        tables = _tables(connection)
        every = sql.SQL(", ").join(sql.SQL("public.{}").format(table) for table in tables)
        # What was consistent before is filled in whatever order; what is immutable goes, too.
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(sql.SQL("TRUNCATE {}, watched.run RESTART IDENTITY").format(every))
        for table in _tables(connection, "seeded"):
            connection.execute(
                sql.SQL(
                    "INSERT INTO public.{} OVERRIDING SYSTEM VALUE SELECT * FROM seeded.{}"
                ).format(table, table)
            )
        for (sequence,) in connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace"
            " AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype IN ('a', 'i'))"
        ).fetchall():
            connection.execute(
                sql.SQL("ALTER SEQUENCE {} RESTART").format(sql.Identifier(sequence))
            )
        connection.execute("DROP TRIGGER IF EXISTS shares_a_shard ON fleet")
        connection.execute("DROP FUNCTION IF EXISTS share_a_shard")


def _tables(connection: psycopg.Connection[Any], schema: str = "public") -> list[sql.Identifier]:
    found = connection.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = %s::regnamespace"
        " ORDER BY relname",
        [schema],
    )
    return [sql.Identifier(row[0]) for row in found.fetchall()]


def run_seed(url: str, seed: int) -> SeedRun:
    """Simulate one seed; what it breaks is told, not raised."""
    run = SeedRun(seed=seed)
    emptied(url)
    began = time.perf_counter()
    try:
        asyncio.run(simulate(url, seed, run.trace))
    except Exception as error:  # noqa: BLE001 - any error of the product is a finding
        run.broken = f"{type(error).__name__}: {error}"
        if not isinstance(error, AssertionError) or error.__cause__:
            run.broken += "\n" + "".join(traceback.format_exception(error.__cause__ or error)[-8:])
    run.seconds = time.perf_counter() - began
    return run


def run_seeds(server_url: str, seeds: Sequence[int], *, jobs: int) -> Iterator[SeedRun]:
    """Simulate seeds in so many processes; yield them as they end.

    Traces of those that hold are left out.
    """
    if jobs == 1:
        with simulation_database(server_url) as url:
            yield from map(_without_trace, (run_seed(url, seed) for seed in seeds))
        return
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        urls = context.Queue()
        for _ in range(jobs):
            urls.put(stack.enter_context(simulation_database(server_url)))
        pool = stack.enter_context(
            ProcessPoolExecutor(jobs, context, initializer=_take_database, initargs=(urls,))
        )
        due = [pool.submit(_run_seed_here, seed) for seed in seeds]
        try:
            for done in as_completed(due):
                yield _without_trace(done.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _without_trace(run: SeedRun) -> SeedRun:
    if run.broken is None:
        run.trace.clear()
    return run


_own_url = ""
"""The database of this process of the pool."""


def _take_database(urls: "multiprocessing.Queue[str]") -> None:
    global _own_url  # noqa: PLW0603 - a process of a pool keeps what it was given so
    _own_url = urls.get()
    logging.disable(logging.CRITICAL)


def _run_seed_here(seed: int) -> SeedRun:
    return run_seed(_own_url, seed)
