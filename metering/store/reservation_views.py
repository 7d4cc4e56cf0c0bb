"""What the API reads of reservations: a device's, and what they bind of a fleet."""

from dataclasses import dataclass
from datetime import datetime

from metering.rating.reservation import Ended
from metering.store.connection import Connection
from metering.store.reservations import Reservation
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all

_COLUMNS = ", ".join(Reservation.__slots__)


async def list_reservations(
    connection: Connection,
    *,
    device_no: int,
    state: str | None,
    before: int | None,
    limit: int,
    during: During = ALWAYS,
) -> list[Reservation]:
    """Return at most `limit` of a device's reservations before a number, the last first."""
    return await fetch_all(
        connection,
        Reservation,
        f"SELECT {_COLUMNS} FROM reservation WHERE device_no = %(device_no)s"  # noqa: S608 - columns
        " AND (%(state)s::text IS NULL OR state = %(state)s)"
        " AND (%(before)s::bigint IS NULL OR reservation_no < %(before)s)"
        + during.condition("granted_at")
        + " ORDER BY reservation_no DESC LIMIT %(limit)s",
        {
            "device_no": device_no,
            "state": state,
            "before": before,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaView:
    """What a fleet's grants of a meter bind: how many are active, what they granted, what is held.

    `outstanding` is what of them may have been used and not been charged yet.
    """

    meter_no: int
    active: int
    granted: int
    held: int
    outstanding: int


async def quota_of_fleet(connection: Connection, fleet_no: int) -> list[QuotaView]:
    """Return what a fleet's active grants bind, by meter."""
    return await fetch_all(
        connection,
        QuotaView,
        "SELECT meter_no, count(*) AS active, sum(granted) AS granted, sum(holds.held) AS held,"
        " sum(CASE WHEN rounded_up THEN granted ELSE holds.held END) AS outstanding"
        " FROM reservation, LATERAL (SELECT coalesce(sum(quantity), 0) AS held FROM bucket_hold"
        "   WHERE bucket_hold.reservation_no = reservation.reservation_no) AS holds"
        " WHERE fleet_no = %(fleet_no)s AND state = 'active' GROUP BY meter_no ORDER BY meter_no",
        {"fleet_no": fleet_no},
    )


async def ended_in_fleet(
    connection: Connection, fleet_no: int, since: datetime
) -> dict[int, list[Ended]]:
    """Return a fleet's reservations that ended since an instant, by meter."""
    found = await connection.execute(
        "SELECT meter_no, CASE WHEN rounded_up THEN 0 ELSE drawn END,"
        " CASE WHEN rounded_up THEN granted ELSE granted - drawn END, used FROM reservation"
        " WHERE fleet_no = %s AND ended_at > %s",
        [fleet_no, since],
    )
    ended: dict[int, list[Ended]] = {}
    for meter_no, charged, unreported, used in await found.fetchall():
        ended.setdefault(meter_no, []).append(Ended(charged, unreported, used))
    return ended
