"""A long history: what was charged once, copied until the tables hold as many rows as are wanted."""

from typing import Any

import psycopg
from psycopg import sql

from bench.product import Product
from bench.workload import Population

HISTORY = Population(name="history", fleets=1, devices_a_fleet=1000)
"""Whose usage is copied. Only those who are not of it can be audited then."""
_BOOTS = 1_000_000
"""A copy's boots are numbered this much further on than the one's before; they are no rows of `boot`."""
_DAYS = 24
"""Copies are measured up to so many days before."""
_COPIES_AT_ONCE = 10


def copy_history(made: Product, rows: int) -> int:
    """Copy the readings and charges of the history until there are so many of each; return how many are.

    They lie in the days before. Nothing may run meanwhile.
    """
    with psycopg.connect(made.database_url, autocommit=True) as connection:
        device_nos = [
            row[0]
            for row in connection.execute(
                "SELECT device_no FROM device JOIN fleet USING (fleet_no) WHERE fleet_id = ANY(%s)",
                [list(HISTORY.device_ids())],
            ).fetchall()
        ]
        seeds = _count(connection, device_nos)
        copies = -(-(rows - seeds) // seeds)
        for first in range(1, copies + 1, _COPIES_AT_ONCE):
            last = min(copies, first + _COPIES_AT_ONCE - 1)
            for table in ("reading", "charge"):
                connection.execute(
                    _copying(connection, table), {"devices": device_nos, "from": first, "to": last}
                )
        connection.execute("VACUUM ANALYZE reading, charge")
        return _count(connection, device_nos)


def _count(connection: psycopg.Connection[Any], device_nos: list[int]) -> int:
    row = connection.execute(
        "SELECT count(*) FROM reading WHERE device_no = ANY(%s)", [device_nos]
    ).fetchone()
    return int(row[0]) if row else 0


def _copying(connection: psycopg.Connection[Any], table: str) -> sql.Composed:
    """Return what copies rows: other boots, earlier days, and all else as it is."""
    changed = {
        "boot_no": sql.SQL("boot_no + copy * {}").format(_BOOTS),
        "measured_at": sql.SQL("measured_at - (1 + copy %% {}) * interval '1 day'").format(_DAYS),
    }
    found = connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND table_name = %s AND is_generated = 'NEVER' ORDER BY ordinal_position",
        [table],
    ).fetchall()
    columns = [str(row[0]) for row in found]
    return sql.SQL(
        "INSERT INTO {table} ({columns}) SELECT {values}"
        " FROM {table}, generate_series(%(from)s::int, %(to)s::int) AS copy"
        " WHERE device_no = ANY(%(devices)s) AND boot_no < {boots}"
    ).format(
        table=sql.Identifier(table),
        columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
        values=sql.SQL(", ").join(changed.get(each, sql.Identifier(each)) for each in columns),
        boots=_BOOTS,
    )
