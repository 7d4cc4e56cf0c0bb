"""The naive pipe: a stock subscriber whose lines go into a plain hypertable by COPY.

It knows no duplicates, charges nothing, and acknowledges to the broker what may never be stored. There
are two of them: mosquitto_sub piped into psql, which commits once, at the end, and a Python program of
the kind that everybody writes.
"""

import subprocess
import sys
from typing import Any

import psycopg

from bench.databases import database_on
from bench.floors.subscriber import LineCounter, Session, running, session
from bench.flow import Flow, flow
from bench.load import Generator, Order, Ready
from bench.servers import BenchError, Servers, program
from bench.workload import Manner

TABLE = (
    "CREATE TABLE line (received_at timestamptz NOT NULL DEFAULT clock_timestamp(),"
    " topic text NOT NULL, payload text NOT NULL)"
)
_COPY = "COPY line (topic, payload) FROM STDIN"
_COPIED = "SELECT coalesce(max(bytes_processed), 0) FROM pg_stat_progress_copy"


def through_psql(servers: Servers, generator: Generator, manner: Manner, messages: int) -> Flow:
    """Store so many messages by `mosquitto_sub | psql -c 'COPY …'`, in one transaction."""
    with database_on(servers.database_url) as url, session(servers) as made:
        _make_table(url)
        ready = _prepared(generator, made, manner, messages)
        line_octets = ready.topic_octets + ready.payload_octets + 2  # a tab and a line end
        subscribe = made.command("-F", "%t\t%p", "-C", str(messages))
        copy = [program(servers, "psql"), url, "-q", "-v", "ON_ERROR_STOP=1", "-c", _COPY]
        with (
            running(subprocess.Popen(subscribe, stdout=subprocess.PIPE)) as subscriber,
            running(subprocess.Popen(copy, stdin=subscriber.stdout)) as copying,
            psycopg.connect(url, autocommit=True) as watching,
        ):

            def done() -> int:
                if copying.poll() is None:
                    # Not all of it before the end: it is stored when it is committed.
                    row = watching.execute(_COPIED).fetchone()
                    return min(messages - 1, int(row[0] / line_octets) if row else 0)
                return _stored(watching)

            return flow(generator, ready, window=manner.window, done=done)


def through_python(servers: Servers, generator: Generator, manner: Manner, messages: int) -> Flow:
    """Store so many messages by a program with paho-mqtt and psycopg, in transactions of its own size."""
    with database_on(servers.database_url) as url, session(servers) as made:
        _make_table(url)
        command = [
            sys.executable, "-m", "bench.floors.naive_subscriber", servers.broker_url,
            made.client_id, f"{made.root}/+/+/usage", url,
        ]  # fmt: skip
        with running(subprocess.Popen(command, stdout=subprocess.PIPE)) as subscriber:
            assert subscriber.stdout is not None  # noqa: S101 - it is a pipe
            counter = LineCounter(subscriber.stdout)
            ready = _prepared(generator, made, manner, messages)
            return flow(generator, ready, window=manner.window, done=counter.count)


def _prepared(generator: Generator, made: Session, manner: Manner, messages: int) -> Ready:
    return generator.prepare(Order(roots=[made.root], manner=manner, messages=messages))


def _make_table(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        connection.execute(TABLE)
        connection.execute("SELECT create_hypertable('line', by_range('received_at'))")


def _stored(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM line").fetchone()
    stored = int(row[0]) if row else 0
    if not stored:
        raise BenchError("the naive pipe has ended without having stored anything")
    return stored
