"""Binary COPY into a table, also where row-level security holds, under which COPY refuses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg import AsyncCopy

from metering.store.connection import Connection, rows_are_secured


@asynccontextmanager
async def copying_into(
    connection: Connection, table: str, columns: str
) -> AsyncIterator[AsyncCopy]:
    """Yield what takes the rows of a table, in PostgreSQL's binary form; they are there at the end.

    Under row-level security they go by a table of the transaction's own, from which they are inserted, so
    that the policies see each.
    """
    secured = rows_are_secured(connection)
    target = "pg_temp.copied" if secured else table
    async with connection.cursor() as cursor:
        if secured:
            await cursor.execute(
                f"CREATE TEMPORARY TABLE copied ON COMMIT DROP AS SELECT {columns} FROM {table}"  # noqa: S608
                " WITH NO DATA".encode()
            )
        async with cursor.copy(
            f"COPY {target} ({columns}) FROM STDIN (FORMAT binary)".encode()
        ) as copy:
            yield copy
        if secured:
            await cursor.execute(
                f"INSERT INTO {table} ({columns}) SELECT {columns} FROM pg_temp.copied".encode()  # noqa: S608
            )
            await cursor.execute(b"DROP TABLE pg_temp.copied")
