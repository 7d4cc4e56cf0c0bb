"""A fleet's time zones, and the ends of allowances that follow them."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from psycopg.types.json import Jsonb

from metering.store.connection import Connection


async def set_zones(
    connection: Connection, fleet_no: int, time_zone: str, earlier: Sequence[Sequence[str]]
) -> None:
    """Write a fleet's time zone, and those that it had, each with the first day that is the next one's."""
    await connection.execute(
        "UPDATE fleet SET time_zone = %s, earlier_zones = %s WHERE fleet_no = %s",
        [time_zone, Jsonb([list(each) for each in earlier]), fleet_no],
    )


async def allowances_after(
    connection: Connection, fleet_no: int, instant: datetime
) -> dict[int, datetime]:
    """Return which buckets that plans brought a fleet hold beyond an instant, and until when."""
    found = await connection.execute(
        "SELECT bucket_no, expires_at FROM bucket"
        " WHERE fleet_no = %s AND source = 'plan' AND expires_at > %s AND expires_at < 'infinity'",
        [fleet_no, instant],
    )
    return dict(await found.fetchall())


async def set_expiries(connection: Connection, expiries: Mapping[int, datetime]) -> None:
    """Write until when buckets hold."""
    await connection.execute(
        "UPDATE bucket SET expires_at = given.expires_at"
        " FROM unnest(%s::bigint[], %s::timestamptz[]) AS given (bucket_no, expires_at)"
        " WHERE bucket.bucket_no = given.bucket_no",
        [list(expiries), list(expiries.values())],
    )
