"""Rows as frozen values: how the read side of the store takes what a query returns."""

from decimal import Decimal
from typing import TypeVar

from psycopg.rows import BaseRowFactory, kwargs_row

from metering.store.connection import Connection

Record = TypeVar("Record")

PAGE_MAX = 500
"""Most rows that one page of a list holds."""


def row_of(record: type[Record]) -> BaseRowFactory[Record]:
    """Return the factory that makes a `record` of each row, by column name.

    Every numeric column of the schema has no fractional digits, so its values become `int`.
    """

    def make(**values: object) -> Record:
        whole = {
            name: int(value) if isinstance(value, Decimal) else value
            for name, value in values.items()
        }
        return record(**whole)

    return kwargs_row(make)


async def fetch_all(
    connection: Connection, record: type[Record], query: str, parameters: dict[str, object]
) -> list[Record]:
    """Run a query and return its rows as `record`s, in its order."""
    async with connection.cursor(row_factory=row_of(record)) as cursor:
        await cursor.execute(query.encode(), parameters)
        return await cursor.fetchall()


async def fetch_one(
    connection: Connection, record: type[Record], query: str, parameters: dict[str, object]
) -> Record | None:
    """Run a query and return its first row as a `record`; None when there is none."""
    async with connection.cursor(row_factory=row_of(record)) as cursor:
        await cursor.execute(query.encode(), parameters)
        return await cursor.fetchone()


def checked_limit(limit: int) -> int:
    """Return how many rows to fetch; raise `ValueError` beyond 1 to a page and one row more.

    The one row more tells whether another page follows.
    """
    if not 1 <= limit <= PAGE_MAX + 1:
        raise ValueError(f"a list gives 1 to {PAGE_MAX + 1} rows, not {limit}")
    return limit
