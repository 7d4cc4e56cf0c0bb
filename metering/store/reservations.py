"""Reservations as they are stored: asked for, held in buckets, and ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from metering.rating.reservation import Ended, Grant, RecentUse
from metering.store.connection import Connection
from metering.store.rows import fetch_all, fetch_one

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Quota promised to a device; quantities are in the meter's base unit.

    `requested` is None where the device left the size open, `used` where it never said what it used.
    `held` is what was held for it: less than granted where a correction left less. `drawn` is what was
    charged of that until it ended; None while it is active.
    """

    reservation_no: int
    request_id: str
    device_no: int
    fleet_no: int
    subscription_no: int
    meter_no: int
    zone: str | None
    requested: int | None
    granted: int
    held: int
    overshoot_bound: int
    final_action: str | None
    state: str
    granted_at: datetime
    expires_at: datetime
    run_no: int
    replaces_no: int | None
    used: int | None
    ended_at: datetime | None
    ended_run_no: int | None
    drawn: int | None


_COLUMNS = ", ".join(f"reservation.{name}" for name in Reservation.__slots__)
_SELECT = f"SELECT {_COLUMNS} FROM reservation"  # noqa: S608 - columns of this module


@dataclass(frozen=True, slots=True, kw_only=True)
class NewReservation:
    """A reservation to be stored, but for what its grant says."""

    request_id: str
    device_no: int
    fleet_no: int
    subscription_no: int
    meter_no: int
    zone: str | None
    requested: int | None
    overshoot_bound: int
    rounded_up: bool
    """Whether its price may charge more than is used."""
    replaces_no: int | None


async def shards_of_device(connection: Connection, device_no: int) -> list[int]:
    """Return the shards of a device's fleets, now and before, and of its grants, ascending."""
    found = await connection.execute(
        "SELECT DISTINCT shard_no FROM fleet WHERE fleet_no IN ("
        " SELECT fleet_no FROM device WHERE device_no = %(device_no)s"
        " UNION SELECT fleet_no FROM subscription WHERE device_no = %(device_no)s"
        " UNION SELECT fleet_no FROM reservation WHERE device_no = %(device_no)s"
        "   AND state = 'active') ORDER BY shard_no",
        {"device_no": device_no},
    )
    return [row[0] for row in await found.fetchall()]


async def device_state(connection: Connection, device_no: int, now: datetime) -> str | None:
    """Return the state in which a device is; None before its first."""
    found = await connection.execute(
        "SELECT state FROM device_state_change WHERE device_no = %s AND effective_from <= %s"
        " ORDER BY effective_from DESC LIMIT 1",
        [device_no, now],
    )
    row = await found.fetchone()
    return None if row is None else str(row[0])


async def reservation_of_request(
    connection: Connection, device_no: int, request_id: str
) -> Reservation | None:
    """Return what a device's request was granted."""
    return await fetch_one(
        connection,
        Reservation,
        _SELECT + " WHERE device_no = %(device_no)s AND request_id = %(request_id)s",
        {"device_no": device_no, "request_id": request_id},
    )


async def active_reservation(
    connection: Connection, device_no: int, meter_no: int
) -> Reservation | None:
    """Return the grant of a meter that a device has."""
    return await fetch_one(
        connection,
        Reservation,
        _SELECT + " WHERE device_no = %(device_no)s AND meter_no = %(meter_no)s"
        " AND state = 'active'",
        {"device_no": device_no, "meter_no": meter_no},
    )


async def orphaned_reservations(
    connection: Connection, device_nos: Sequence[int], now: datetime
) -> list[Reservation]:
    """Return the active grants of devices that are not active, or whose subscription has ended."""
    return await fetch_all(
        connection,
        Reservation,
        _SELECT + " WHERE reservation.device_no = ANY(%(devices)s) AND state = 'active'"  # noqa: S608
        " AND (NOT EXISTS (SELECT FROM subscription"
        "     WHERE subscription.subscription_no = reservation.subscription_no"
        "     AND subscription.valid @> %(now)s::timestamptz)"
        "   OR (SELECT change.state FROM device_state_change AS change"
        "     WHERE change.device_no = reservation.device_no AND change.effective_from <= %(now)s"
        "     ORDER BY change.effective_from DESC LIMIT 1) IS DISTINCT FROM 'active')"
        " ORDER BY reservation.reservation_no",
        {"devices": list(device_nos), "now": now},
    )


async def recent_use(
    connection: Connection, device_no: int, meter_no: int, now: datetime
) -> list[RecentUse]:
    """Return what a device used of a meter since the hour before this one, and in a day."""
    hour = now.replace(minute=0, second=0, microsecond=0) - _HOUR
    day = hour - _DAY + _HOUR
    found = await connection.execute(
        "SELECT coalesce(sum(quantity) FILTER (WHERE hour >= %s), 0), coalesce(sum(quantity), 0)"
        " FROM usage_hour WHERE device_no = %s AND meter_no = %s AND hour >= %s AND hour <= %s",
        [hour, device_no, meter_no, day, now],
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns one row
    return [
        RecentUse(int(quantity), int((now - since).total_seconds()))
        for quantity, since in zip(row, (hour, day), strict=True)
    ]


async def recently_ended(
    connection: Connection, device_no: int, meter_no: int, since: datetime
) -> list[Ended]:
    """Return a device's reservations of a meter that ended since an instant."""
    return await fetch_all(
        connection,
        Ended,
        "SELECT CASE WHEN rounded_up THEN 0 ELSE drawn END AS charged,"
        " CASE WHEN rounded_up THEN granted ELSE granted - drawn END AS unreported, used"
        " FROM reservation"
        " WHERE device_no = %(device_no)s AND meter_no = %(meter_no)s AND ended_at > %(since)s",
        {"device_no": device_no, "meter_no": meter_no, "since": since},
    )


async def insert_reservation(
    connection: Connection, new: NewReservation, grant: Grant, *, run_no: int, now: datetime
) -> Reservation:
    """Store a reservation and where it is held; its buckets' sums are stored by their owner."""
    parameters: dict[str, object] = {name: getattr(new, name) for name in NewReservation.__slots__}
    final_action = grant.final_action
    stored = await fetch_one(
        connection,
        Reservation,
        "INSERT INTO reservation (request_id, device_no, fleet_no, subscription_no, meter_no, zone,"  # noqa: S608 - columns of this module
        " requested, granted, held, overshoot_bound, rounded_up, final_action, granted_at, expires_at,"
        " run_no,"
        " replaces_no) VALUES (%(request_id)s, %(device_no)s, %(fleet_no)s, %(subscription_no)s,"
        " %(meter_no)s, %(zone)s, %(requested)s, %(granted)s, %(granted)s, %(overshoot_bound)s,"
        " %(rounded_up)s,"
        " %(final_action)s, %(granted_at)s, %(expires_at)s, %(run_no)s, %(replaces_no)s)"
        f" RETURNING {_COLUMNS}",
        parameters
        | {
            "granted": grant.quantity,
            "final_action": None if final_action is None else final_action.value,
            "granted_at": now,
            "expires_at": grant.expires_at,
            "run_no": run_no,
        },
    )
    assert stored is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    if grant.parts:
        buckets = [int(part.bucket.bucket_id) for part in grant.parts]
        quantities = [part.quantity for part in grant.parts]
        await connection.execute(
            "INSERT INTO bucket_hold (bucket_no, subscription_no, reservation_no, quantity)"
            " SELECT bucket_no, %s, %s, quantity"
            " FROM unnest(%s::bigint[], %s::numeric[]) AS given (bucket_no, quantity)",
            [new.subscription_no, stored.reservation_no, buckets, quantities],
        )
        await connection.execute(
            _ENTER,
            [
                "hold", run_no, now, buckets, [new.subscription_no] * len(buckets),
                [stored.reservation_no] * len(buckets), quantities,
            ],
        )  # fmt: skip
    return stored


_ENTER = (
    "INSERT INTO bucket_entry"
    " (kind, run_no, entered_at, bucket_no, subscription_no, reservation_no, quantity)"
    " SELECT %s, %s, %s, bucket_no, subscription_no, reservation_no, quantity"
    " FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::numeric[])"
    " AS given (bucket_no, subscription_no, reservation_no, quantity)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What is still held in a bucket for a reservation."""

    bucket_no: int
    subscription_no: int
    reservation_no: int


async def holds_of(connection: Connection, reservation_nos: Sequence[int]) -> list[Hold]:
    """Return where some reservations are held, also where all of it is drawn."""
    return await fetch_all(
        connection,
        Hold,
        "SELECT bucket_no, subscription_no, reservation_no FROM bucket_hold"
        " WHERE reservation_no = ANY(%(numbers)s) ORDER BY reservation_no, bucket_no",
        {"numbers": list(reservation_nos)},
    )


async def store_releases(
    connection: Connection, released: Sequence[tuple[Hold, int]], *, run_no: int, now: datetime
) -> None:
    """Enter what was released of some holds, which end; their buckets' sums are stored by their owner."""
    await connection.execute(
        _ENTER,
        [
            "release", run_no, now,
            [hold.bucket_no for hold, _ in released],
            [hold.subscription_no for hold, _ in released],
            [hold.reservation_no for hold, _ in released],
            [quantity for _, quantity in released],
        ],
    )  # fmt: skip
    await connection.execute(
        "DELETE FROM bucket_hold WHERE reservation_no = ANY(%s)",
        [sorted({hold.reservation_no for hold, _ in released})],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a reservation ends."""

    reservation_no: int
    state: str
    used: int | None
    released: int


async def store_endings(
    connection: Connection, endings: Sequence[Ending], *, run_no: int, now: datetime
) -> list[Reservation]:
    """End reservations that are active, and return them as they are then."""
    return await fetch_all(
        connection,
        Reservation,
        "UPDATE reservation SET state = given.state, used = given.used, ended_at = %(now)s,"  # noqa: S608 - columns of this module
        " ended_run_no = %(run_no)s, drawn = reservation.held - given.released"
        " FROM unnest(%(numbers)s::bigint[], %(states)s::text[], %(used)s::bigint[],"
        "   %(released)s::bigint[]) AS given (reservation_no, state, used, released)"
        " WHERE reservation.reservation_no = given.reservation_no AND reservation.state = 'active'"
        f" RETURNING {_COLUMNS}",
        {
            "now": now,
            "run_no": run_no,
            "numbers": [each.reservation_no for each in endings],
            "states": [each.state for each in endings],
            "used": [each.used for each in endings],
            "released": [each.released for each in endings],
        },
    )


async def shards_with_expired(connection: Connection, now: datetime) -> list[int]:
    """Return the shards in which reservations are active past their time, ascending."""
    found = await connection.execute(
        "SELECT DISTINCT shard_no FROM reservation JOIN fleet USING (fleet_no)"
        " WHERE state = 'active' AND expires_at <= %s ORDER BY shard_no",
        [now],
    )
    return [row[0] for row in await found.fetchall()]


async def expired_in_shard(
    connection: Connection, shard_no: int, now: datetime, most: int
) -> list[Reservation]:
    """Return reservations of a shard's fleets that are active past their time, the oldest first."""
    return await fetch_all(
        connection,
        Reservation,
        _SELECT + " JOIN fleet USING (fleet_no) WHERE shard_no = %(shard_no)s"
        " AND state = 'active' AND expires_at <= %(now)s"
        " ORDER BY expires_at, reservation_no LIMIT %(most)s",
        {"shard_no": shard_no, "now": now, "most": most},
    )


async def held_in(connection: Connection, bucket_nos: Sequence[int]) -> list[Reservation]:
    """Return the reservations that are held in some buckets."""
    return await fetch_all(
        connection,
        Reservation,
        _SELECT + " WHERE reservation_no IN (SELECT reservation_no FROM bucket_hold"  # noqa: S608 - columns of this module
        "   WHERE bucket_no = ANY(%(buckets)s)) ORDER BY reservation_no",
        {"buckets": list(bucket_nos)},
    )


async def names_of_devices(
    connection: Connection, device_nos: Sequence[int]
) -> dict[int, tuple[int, str]]:
    """Return `(tenant_no, device_id)` of some devices by number."""
    found = await connection.execute(
        "SELECT device_no, tenant_no, device_id FROM device WHERE device_no = ANY(%s)",
        [list(device_nos)],
    )
    return {row[0]: (row[1], row[2]) for row in await found.fetchall()}
