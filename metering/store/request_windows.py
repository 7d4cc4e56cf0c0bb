"""How many requests callers of the API made in a window, counted by all of its processes together."""

from datetime import datetime

from metering.store.connection import Connection


async def take_requests(
    connection: Connection, who: str, *, since: datetime, wanted: int, most: int
) -> tuple[int, int]:
    """Take requests of a window of `most`; return how many are given, and how many all have taken."""
    found = await connection.execute(
        "SELECT given, taken FROM take_requests(%s, %s, %s, %s)", [who, since, wanted, most]
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - it has one row
    return row[0], row[1]
