"""Writing dated terms: subscriptions, states, SIMs and fleets of devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.types.range import TimestamptzRange

from metering.ids import ShardNo, TenantNo
from metering.rating.guide import Subscription
from metering.rating.plan import DeviceState
from metering.store.connection import Connection


async def end_subscription_at(
    connection: Connection, subscription_no: int, ends_at: datetime
) -> None:
    """End a subscription at an instant; one that begins no earlier is left no time at all."""
    await connection.execute(
        "UPDATE subscription SET valid = CASE WHEN lower(valid) >= %(at)s THEN 'empty'::tstzrange"
        " ELSE tstzrange(lower(valid), %(at)s) END"
        " WHERE subscription_no = %(no)s AND NOT isempty(valid)",
        {"no": subscription_no, "at": ends_at},
    )


async def insert_subscription(connection: Connection, subscription: Subscription) -> int:
    """Add a subscription as it is described, but for its number; return that."""
    inserted = await connection.execute(
        "INSERT INTO subscription (device_no, fleet_no, plan_no, valid) VALUES (%s, %s, %s, %s)"
        " RETURNING subscription_no",
        [
            subscription.device_no,
            subscription.fleet_no,
            subscription.plan_no,
            TimestamptzRange(subscription.valid_from, subscription.valid_to),
        ],
    )
    row = await inserted.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    return int(row[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class StatesAround:
    """The states of a device before and after an instant; None: there is no change before, or after."""

    device_id: str
    before: DeviceState | None
    after: DeviceState | None


async def states_around(
    connection: Connection, device_nos: Sequence[int], at: datetime
) -> list[StatesAround]:
    """Return between which states a change at an instant would stand, for each of some devices."""
    found = await connection.execute(
        "SELECT device_id,"
        " (SELECT state FROM device_state_change AS known WHERE known.device_no = device.device_no"
        "   AND known.effective_from < %(at)s ORDER BY known.effective_from DESC LIMIT 1),"
        " (SELECT state FROM device_state_change AS known WHERE known.device_no = device.device_no"
        "   AND known.effective_from > %(at)s ORDER BY known.effective_from LIMIT 1)"
        " FROM device WHERE device_no = ANY(%(devices)s) ORDER BY device_id",
        {"at": at, "devices": list(device_nos)},
    )
    return [
        StatesAround(
            device_id=row[0],
            before=DeviceState(row[1]) if row[1] else None,
            after=DeviceState(row[2]) if row[2] else None,
        )
        for row in await found.fetchall()
    ]


async def set_state(
    connection: Connection,
    device_nos: Sequence[int],
    *,
    state: DeviceState,
    at: datetime,
    now: datetime,
) -> int:
    """Let devices be in a state from an instant on; return how many were not.

    The caller owns the shards of their fleets, so that what is said of one is numbered in turn.
    """
    changed = await connection.execute(
        "WITH said AS (INSERT INTO device_state_change (device_no, effective_from, state, recorded_at)"
        " SELECT device_no, %(at)s, %(state)s, %(now)s FROM unnest(%(devices)s::bigint[])"
        "   AS given (device_no)"
        " WHERE (SELECT state FROM device_state_change AS known"
        "   WHERE known.device_no = given.device_no AND known.effective_from <= %(at)s"
        "   ORDER BY known.effective_from DESC LIMIT 1) IS DISTINCT FROM %(state)s"
        " ON CONFLICT (device_no, effective_from) DO UPDATE SET state = excluded.state,"
        " recorded_at = excluded.recorded_at RETURNING *)"
        " INSERT INTO device_state_entry (device_no, entry_no, effective_from, state, recorded_at)"
        " SELECT device_no, 1 + (SELECT coalesce(max(entry_no), 0) FROM device_state_entry AS earlier"
        "   WHERE earlier.device_no = said.device_no), effective_from, state, recorded_at FROM said",
        {"devices": list(device_nos), "at": at, "state": state.value, "now": now},
    )
    return changed.rowcount


async def plan_move(
    connection: Connection, device_nos: Sequence[int], fleet_no: int, *, at: datetime
) -> None:
    """Plan that devices are in a fleet from an instant on, in place of what was planned for later."""
    await connection.execute(
        "DELETE FROM device_move WHERE device_no = ANY(%s) AND effective_from >= %s",
        [list(device_nos), at],
    )
    await connection.execute(
        "INSERT INTO device_move (device_no, effective_from, fleet_no)"
        " SELECT device_no, %s, %s FROM unnest(%s::bigint[]) AS given (device_no)",
        [at, fleet_no, list(device_nos)],
    )


async def due_moves(
    connection: Connection, now: datetime
) -> dict[tuple[ShardNo, ShardNo], list[int]]:
    """Return the devices that are to have moved by now, by the shards that they leave and enter."""
    found = await connection.execute(
        "SELECT left_fleet.shard_no, entered.shard_no, array_agg(DISTINCT device_no)"
        " FROM device_move JOIN device USING (device_no)"
        " JOIN fleet AS left_fleet ON left_fleet.fleet_no = device.fleet_no"
        " JOIN fleet AS entered ON entered.fleet_no = device_move.fleet_no"
        " WHERE effective_from <= %s GROUP BY 1, 2 LIMIT 100",
        [now],
    )
    return {(row[0], row[1]): row[2] for row in await found.fetchall()}


async def make_moves(connection: Connection, device_nos: Sequence[int], *, now: datetime) -> int:
    """Make the moves of some devices that are due, the last one count; return how many moved."""
    moved = await connection.execute(
        "WITH due AS (DELETE FROM device_move WHERE device_no = ANY(%s) AND effective_from <= %s"
        "   RETURNING device_no, effective_from, fleet_no),"
        " last AS (SELECT DISTINCT ON (device_no) device_no, fleet_no FROM due"
        "   ORDER BY device_no, effective_from DESC)"
        " UPDATE device SET fleet_no = last.fleet_no FROM last"
        " WHERE device.device_no = last.device_no AND device.fleet_no <> last.fleet_no",
        [list(device_nos), now],
    )
    return moved.rowcount


async def set_sim(
    connection: Connection,
    tenant_no: TenantNo,
    device_no: int,
    *,
    iccid: str,
    imsi: str | None,
    at: datetime,
    now: datetime,
) -> int:
    """Let a SIM be in a device from an instant on, out of any other; return 1, or 0 if it was there.

    What was planned for either of them after that instant no longer holds.
    """
    there = await connection.execute(
        "SELECT FROM device_sim WHERE device_no = %s AND iccid = %s"
        " AND imsi IS NOT DISTINCT FROM %s AND valid @> tstzrange(%s, NULL)",
        [device_no, iccid, imsi, at],
    )
    if there.rowcount:
        return 0
    ending = {"tenant": tenant_no, "device": device_no, "iccid": iccid, "at": at}
    await connection.execute(
        "DELETE FROM device_sim WHERE lower(valid) >= %(at)s"
        " AND (device_no = %(device)s OR (tenant_no = %(tenant)s AND iccid = %(iccid)s))",
        ending,
    )
    await connection.execute(
        "UPDATE device_sim SET valid = tstzrange(lower(valid), %(at)s)"
        " WHERE valid && tstzrange(%(at)s, NULL)"
        " AND (device_no = %(device)s OR (tenant_no = %(tenant)s AND iccid = %(iccid)s))",
        ending,
    )
    await connection.execute(
        "INSERT INTO device_sim (tenant_no, device_no, iccid, imsi, valid, recorded_at)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        [tenant_no, device_no, iccid, imsi, TimestamptzRange(at, None), now],
    )
    return 1
