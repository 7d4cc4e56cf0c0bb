"""Rows as frozen values: how the read side of the store takes what a query returns."""

from dataclasses import dataclass
from datetime import datetime
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


@dataclass(frozen=True, slots=True, kw_only=True)
class During:
    """Which rows of a list are meant by their instant: those in `[start, end)`; None: without that bound."""

    start: datetime | None = None
    end: datetime | None = None

    def condition(self, column: str) -> str:
        """Return what holds of a column, to be added to a WHERE; `parameters` belong to it."""
        return ("" if self.start is None else f" AND {column} >= %(span_start)s") + (
            "" if self.end is None else f" AND {column} < %(span_end)s"
        )

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of `condition`."""
        return {"span_start": self.start, "span_end": self.end}


ALWAYS = During()


def checked_limit(limit: int) -> int:
    """Return how many rows to fetch; raise `ValueError` beyond 1 to a page and one row more.

    The one row more tells whether another page follows.
    """
    if not 1 <= limit <= PAGE_MAX + 1:
        raise ValueError(f"a list gives 1 to {PAGE_MAX + 1} rows, not {limit}")
    return limit
