"""Many seeds on all cores: each on a copy of one migrated database, its failures with their traces."""

import asyncio
import logging
import multiprocessing
import os
import secrets
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from tests.integration.pipeline import migrated
from tests.simulation.world import simulate

_CHUNKED = ("reading", "charge", "usage_hour")
_TRACE_SHOWN_MAX = 400


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


def _beside(server_url: str, name: str) -> str:
    return server_url.rpartition("/")[0] + "/" + name


@contextmanager
def template_database(server_url: str) -> Iterator[str]:
    """Yield the name of a migrated, empty database that nobody is connected to."""
    name = f"simulation_{secrets.token_hex(6)}"
    identifier = sql.Identifier(name)
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(identifier))
        try:
            asyncio.run(migrated(_beside(server_url, name)))
            # The server itself does not crash here, so nothing needs to wait for its disk.
            server.execute(
                sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(identifier)
            )
            with psycopg.connect(_beside(server_url, name), autocommit=True) as made:
                for table in _CHUNKED:
                    made.execute("SELECT set_chunk_time_interval(%s, interval '2 years')", [table])
                made.execute("SELECT _timescaledb_functions.stop_background_workers()")
            server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(identifier))
            yield name
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@contextmanager
def copy_of(server_url: str, template: str) -> Iterator[str]:
    """Yield the URL of a copy of a template database."""
    name = f"{template}_{secrets.token_hex(4)}"
    identifier = sql.Identifier(name)
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(identifier, sql.Identifier(template))
        )
        # Settings of a database are not copied with it.
        server.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(identifier))
        try:
            yield _beside(server_url, name)
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def run_seed(server_url: str, template: str, seed: int) -> SeedRun:
    """Simulate one seed; what it breaks is told, not raised."""
    logging.disable(logging.CRITICAL)
    run = SeedRun(seed=seed)
    with copy_of(server_url, template) as url:
        began = time.perf_counter()
        try:
            asyncio.run(simulate(url, seed, run.trace))
        except Exception as error:  # noqa: BLE001 - any error of the product is a finding
            run.broken = f"{type(error).__name__}: {error}"
            if not isinstance(error, AssertionError) or error.__cause__:
                run.broken += "\n" + "".join(
                    traceback.format_exception(error.__cause__ or error)[-8:]
                )
        run.seconds = time.perf_counter() - began
    return run


def run_seeds(
    server_url: str, seeds: Sequence[int], *, jobs: int | None = None
) -> Iterator[SeedRun]:
    """Simulate seeds on all cores; yield them as they end. Traces of those that hold are left out."""
    with template_database(server_url) as template:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=context) as pool:
            due = [pool.submit(run_seed, server_url, template, seed) for seed in seeds]
            try:
                for done in as_completed(due):
                    run = done.result()
                    if run.broken is None:
                        run.trace.clear()
                    yield run
            finally:
                pool.shutdown(cancel_futures=True)
