"""A long history: what was charged once, copied until the tables hold as many rows as are wanted."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any

import psycopg
from psycopg import sql

from bench.product import Product
from bench.servers import BenchError, Servers
from bench.workload import Population

HISTORY = Population(name="history", fleets=1, devices_a_fleet=1000)
"""Whose usage is copied. Only those who are not of it can be audited then."""
_BOOTS = 1_000_000
"""A copy's boots are numbered this much further on than the one's before; they are no rows of `boot`."""
_DAYS = 24
"""Copies are measured up to so many days before: each of them fills partitions of its own."""
_CONNECTIONS = 4
_OCTETS_A_ROW = 600
"""Of disk, for a reading and its charge with their indices: 570 were measured."""
_OCTETS_BESIDE = 6 * 10**9
"""Of disk, for the write-ahead log, and for what is charged afterwards."""


def expect_space(servers: Servers, rows: int) -> None:
    """Raise `BenchError` where the disk of a database that is ours is too small for so many rows."""
    free = shutil.disk_usage(servers.settings.data_dir).free
    needed = _OCTETS_A_ROW * rows + _OCTETS_BESIDE
    if "database" in servers.pids and free < needed:
        raise BenchError(
            f"{rows:,} rows take {needed / 1e9:,.0f} GB of disk, {free / 1e9:,.0f} GB are free"
        )


def copy_history(made: Product, rows: int) -> int:
    """Copy the readings and charges of the history until there are so many of each; return how many are.

    They lie in the days before, in the order of their indices, as if they had come one after the other.
    Nothing may run meanwhile.
    """
    with psycopg.connect(made.database_url, autocommit=True) as connection:
        device_nos = [
            row[0]
            for row in connection.execute(
                "SELECT device_no FROM device JOIN fleet USING (fleet_no) WHERE fleet_id = ANY(%s)",
                [list(HISTORY.device_ids())],
            ).fetchall()
        ]
        seeds, since = _count(connection, device_nos)
        copies = -(-(rows - seeds) // seeds)
        seeded = {"devices": device_nos, "since": since}
        statements = [_copying(connection, table, seeded) for table in ("reading", "charge")]

        def copy_day(first: int) -> None:
            with psycopg.connect(made.database_url, autocommit=True) as own:
                for statement in statements:
                    for copy in range(first, copies + 1, _DAYS):
                        own.execute(statement, {"copy": copy})

        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for _ in pool.map(copy_day, range(1, min(copies, _DAYS) + 1)):
                pass
            for _ in pool.map(partial(_settle, made.database_url), _chunks(connection)):
                pass
        connection.execute("DROP TABLE seed_reading, seed_charge")
        connection.execute("ANALYZE reading, charge")
        return _count(connection, device_nos)[0]


def _chunks(connection: psycopg.Connection[Any]) -> list[sql.Identifier]:
    rows = connection.execute(
        "SELECT chunk_schema, chunk_name FROM timescaledb_information.chunks"
        " WHERE hypertable_name IN ('reading', 'charge')"
    ).fetchall()
    return [sql.Identifier(*row) for row in rows]


def _settle(url: str, chunk: sql.Identifier) -> None:
    """Do for a chunk what autovacuum would do some time later, amid what is measured."""
    with psycopg.connect(url, autocommit=True) as own:
        own.execute(sql.SQL("VACUUM {}").format(chunk))


def _count(connection: psycopg.Connection[Any], device_nos: list[int]) -> tuple[int, datetime]:
    """Return how many readings devices have, and when the first one was measured."""
    rows = connection.execute(
        "SELECT count(*), min(measured_at) FROM reading WHERE device_no = ANY(%s)", [device_nos]
    ).fetchall()
    return int(rows[0][0]), rows[0][1]


def _copying(
    connection: psycopg.Connection[Any], table: str, seeded: dict[str, Any]
) -> sql.Composed:
    """Set the seed of a table aside, in order, so that no copy has to find it among the others.

    Return what makes one copy of it: other boots, an earlier day, and all else as it is.
    """
    changed = {
        "boot_no": sql.SQL("boot_no + %(copy)s::bigint * {}").format(_BOOTS),
        "measured_at": sql.SQL("measured_at - (1 + %(copy)s::int %% {}) * interval '1 day'").format(
            _DAYS
        ),
    }
    found = connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND table_name = %s AND is_generated = 'NEVER' ORDER BY ordinal_position",
        [table],
    ).fetchall()
    columns = [str(row[0]) for row in found]
    names = {
        "seed": sql.Identifier(f"seed_{table}"),
        "table": sql.Identifier(table),
        "columns": sql.SQL(", ").join(map(sql.Identifier, columns)),
        "values": sql.SQL(", ").join(changed.get(each, sql.Identifier(each)) for each in columns),
    }
    connection.execute(
        sql.SQL(
            "CREATE UNLOGGED TABLE {seed} AS SELECT {columns} FROM {table}"
            " WHERE device_no = ANY(%(devices)s) AND measured_at >= %(since)s ORDER BY boot_no, seq"
        ).format(**names),
        seeded,
    )
    return sql.SQL("INSERT INTO {table} ({columns}) SELECT {values} FROM {seed}").format(**names)
