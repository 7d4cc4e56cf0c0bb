"""Bills that are not paid in time: reminders, and the suspensions that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from metering.store.connection import Connection

SuspensionState = Literal["suspending", "suspended", "resuming", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentPolicy:
    """What follows when a bill is not paid: reminders so many days after it is due, then suspension.

    `suspend_days` None: devices are never suspended.
    """

    reminder_days: Sequence[int] = ()
    suspend_days: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """A bill for which something is due: `days` are those of the reminder, or of the suspension."""

    bill_no: int
    fleet_no: int
    days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspension:
    """A fleet's devices that are suspended, or being so or resumed, because a bill is not paid."""

    suspension_no: int
    tenant_no: int
    fleet_no: int
    bill_no: int
    state: SuspensionState
    began_at: datetime
    ended_at: datetime | None


async def payment_policy(connection: Connection, tenant_no: int) -> PaymentPolicy:
    """Return a tenant's policy; nothing follows while it has none."""
    found = await connection.execute(
        "SELECT reminder_days, suspend_days FROM payment_policy WHERE tenant_no = %s", [tenant_no]
    )
    row = await found.fetchone()
    if row is None:
        return PaymentPolicy()
    return PaymentPolicy(reminder_days=tuple(row[0]), suspend_days=row[1])


async def set_payment_policy(
    connection: Connection, tenant_no: int, policy: PaymentPolicy, *, now: datetime
) -> None:
    """Set a tenant's policy."""
    await connection.execute(
        "INSERT INTO payment_policy (tenant_no, reminder_days, suspend_days, updated_at)"
        " VALUES (%s, %s, %s, %s) ON CONFLICT (tenant_no) DO UPDATE"
        " SET reminder_days = excluded.reminder_days, suspend_days = excluded.suspend_days,"
        " updated_at = excluded.updated_at",
        [tenant_no, sorted(set(policy.reminder_days)), policy.suspend_days, now],
    )


_OF_UNPAID = (
    " FROM bill JOIN payment_policy USING (tenant_no) JOIN fleet USING (fleet_no)"
    # The day by the zone in force, which begins no earlier than the zones that it follows let it.
    " CROSS JOIN LATERAL (SELECT min(position) FILTER (WHERE %(now)s < begins) AS present,"
    "     max(day) FILTER (WHERE %(now)s >= begins) AS first_day"
    "   FROM jsonb_array_elements(fleet.earlier_zones) WITH ORDINALITY AS earlier (zone, position)"
    "   CROSS JOIN LATERAL (SELECT (zone ->> 1)::date AS day) AS following"
    "   CROSS JOIN LATERAL"
    "     (SELECT day::timestamp AT TIME ZONE (zone ->> 0) AS begins) AS beginning) AS zones"
    " CROSS JOIN LATERAL (SELECT greatest(first_day, (%(now)s AT TIME ZONE"
    "   coalesce(fleet.earlier_zones -> (present - 1)::int ->> 0, fleet.time_zone))::date) - bill.due"
    "   AS days) AS late"
)
_UNPAID = _OF_UNPAID + " WHERE bill.kind = 'bill' AND bill.state = 'finalised'"


async def reminders_due(
    connection: Connection, *, now: datetime, after: int, limit: int
) -> list[Overdue]:
    """Return bills of which a reminder is due that was not told, ascending by number, after one.

    By the fleet's local day. Of several only the last is due: what was missed is not made up for.
    """
    query = (
        f"SELECT bill_no, fleet_no, stage.days{_OF_UNPAID}"  # noqa: S608 - a clause of this module
        " CROSS JOIN LATERAL (SELECT max(days) AS days FROM unnest(reminder_days) AS days"
        "   WHERE days <= late.days) AS stage"
        " WHERE bill.kind = 'bill' AND bill.state = 'finalised'"
        " AND stage.days IS NOT NULL AND NOT EXISTS (SELECT FROM payment_reminder AS told"
        "   WHERE told.bill_no = bill.bill_no AND told.days >= stage.days)"
        " AND bill_no > %(after)s ORDER BY bill_no LIMIT %(limit)s"
    )
    found = await connection.execute(query.encode(), {"now": now, "after": after, "limit": limit})
    return [Overdue(bill_no=row[0], fleet_no=row[1], days=row[2]) for row in await found.fetchall()]


async def suspensions_due(
    connection: Connection, *, now: datetime, after: int, limit: int
) -> list[Overdue]:
    """Return bills for which devices are to be suspended and none are, ascending, after one."""
    query = (
        f"SELECT bill_no, fleet_no, suspend_days{_UNPAID}"  # noqa: S608 - a clause of this module
        " AND late.days >= suspend_days AND NOT EXISTS (SELECT FROM payment_suspension AS held"
        "   WHERE held.fleet_no = bill.fleet_no AND held.state <> 'ended')"
        " AND bill_no > %(after)s ORDER BY bill_no LIMIT %(limit)s"
    )
    found = await connection.execute(query.encode(), {"now": now, "after": after, "limit": limit})
    return [Overdue(bill_no=row[0], fleet_no=row[1], days=row[2]) for row in await found.fetchall()]


async def suspending_bills(connection: Connection, fleet_no: int, *, now: datetime) -> list[int]:
    """Return the bills of a fleet that are unpaid for so long that its devices are to be suspended."""
    found = await connection.execute(
        f"SELECT bill_no{_UNPAID}"
        " AND late.days >= suspend_days AND bill.fleet_no = %(fleet_no)s ORDER BY bill_no".encode(),
        {"now": now, "fleet_no": fleet_no},
    )
    return [row[0] for row in await found.fetchall()]


async def insert_reminder(
    connection: Connection, bill_no: int, days: int, *, now: datetime
) -> bool:
    """Note that a reminder is told; False if it was before."""
    made = await connection.execute(
        "INSERT INTO payment_reminder (bill_no, days, told_at) VALUES (%s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        [bill_no, days, now],
    )
    return made.rowcount == 1


async def insert_suspension(
    connection: Connection, tenant_no: int, fleet_no: int, bill_no: int, *, now: datetime
) -> int | None:
    """Begin to suspend a fleet's devices; return the number, None if a suspension has not ended."""
    made = await connection.execute(
        "INSERT INTO payment_suspension (tenant_no, fleet_no, bill_no, began_at)"
        " VALUES (%s, %s, %s, %s) ON CONFLICT (fleet_no) WHERE state <> 'ended' DO NOTHING"
        " RETURNING suspension_no",
        [tenant_no, fleet_no, bill_no, now],
    )
    row = await made.fetchone()
    return None if row is None else int(row[0])


_SUSPENSION = "suspension_no, tenant_no, fleet_no, bill_no, state, began_at, ended_at"


async def open_suspensions(connection: Connection) -> list[Suspension]:
    """Return the suspensions that have not ended."""
    found = await connection.execute(
        f"SELECT {_SUSPENSION} FROM payment_suspension WHERE state <> 'ended'"  # noqa: S608 - columns
        " ORDER BY suspension_no"
    )
    return [
        Suspension(**dict(zip(Suspension.__slots__, row, strict=True)))
        for row in await found.fetchall()
    ]


async def suspensions_of(connection: Connection, fleet_no: int) -> list[Suspension]:
    """Return a fleet's suspensions, the last first, at most 100."""
    found = await connection.execute(
        f"SELECT {_SUSPENSION} FROM payment_suspension WHERE fleet_no = %s"  # noqa: S608 - columns
        " ORDER BY suspension_no DESC LIMIT 100",
        [fleet_no],
    )
    return [
        Suspension(**dict(zip(Suspension.__slots__, row, strict=True)))
        for row in await found.fetchall()
    ]


async def own_suspension(connection: Connection, suspension_no: int) -> SuspensionState:
    """Own a suspension until the transaction ends; return its state."""
    found = await connection.execute(
        "SELECT state FROM payment_suspension WHERE suspension_no = %s FOR UPDATE", [suspension_no]
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - suspensions stay
    state: SuspensionState = row[0]
    return state


async def set_suspension_state(
    connection: Connection, suspension_no: int, state: SuspensionState, *, now: datetime
) -> None:
    """Let a suspension be in its next state."""
    await connection.execute(
        "UPDATE payment_suspension SET state = %s, ended_at = CASE WHEN %s = 'ended' THEN %s END"
        " WHERE suspension_no = %s",
        [state, state, now, suspension_no],
    )


async def devices_to_suspend(
    connection: Connection, suspension: Suspension, *, now: datetime, limit: int
) -> list[int]:
    """Return devices of the fleet that are active now, ascending, after those that it holds already."""
    found = await connection.execute(
        "SELECT device_no FROM device WHERE fleet_no = %(fleet_no)s"
        " AND (SELECT state FROM device_state_change AS said WHERE said.device_no = device.device_no"
        "   AND effective_from <= %(now)s ORDER BY effective_from DESC LIMIT 1) = 'active'"
        " AND device_no > (SELECT coalesce(max(device_no), 0) FROM payment_suspension_device"
        "   WHERE suspension_no = %(suspension_no)s)"
        " ORDER BY device_no LIMIT %(limit)s",
        {
            "fleet_no": suspension.fleet_no,
            "suspension_no": suspension.suspension_no,
            "now": now,
            "limit": limit,
        },
    )
    return [row[0] for row in await found.fetchall()]


async def hold_devices(
    connection: Connection, suspension_no: int, device_nos: Sequence[int], *, refused: bool
) -> None:
    """Put devices into a suspension: with what was said of their state last, or as refused."""
    await connection.execute(
        "INSERT INTO payment_suspension_device (suspension_no, device_no, entry_no, outcome)"
        " SELECT %(suspension_no)s, device_no, CASE WHEN NOT %(refused)s THEN"
        "   (SELECT max(entry_no) FROM device_state_entry AS said"
        "     WHERE said.device_no = given.device_no) END,"
        " CASE WHEN %(refused)s THEN 'refused' END"
        " FROM unnest(%(devices)s::bigint[]) AS given (device_no)",
        {"suspension_no": suspension_no, "devices": list(device_nos), "refused": refused},
    )


async def devices_to_resume(
    connection: Connection, suspension_no: int, *, now: datetime, limit: int
) -> list[tuple[int, bool]]:
    """Return devices that a suspension holds, and whether nobody said anything else of them since."""
    found = await connection.execute(
        "SELECT device_no, entry_no = (SELECT said.entry_no FROM device_state_entry AS said"
        "   WHERE said.device_no = held.device_no AND effective_from <= %s"
        "   ORDER BY effective_from DESC, said.entry_no DESC LIMIT 1)"
        " FROM payment_suspension_device AS held WHERE suspension_no = %s AND outcome IS NULL"
        " ORDER BY device_no LIMIT %s",
        [now, suspension_no, limit],
    )
    return [(row[0], bool(row[1])) for row in await found.fetchall()]


async def release_devices(
    connection: Connection,
    suspension_no: int,
    device_nos: Sequence[int],
    outcome: Literal["resumed", "changed_since", "refused"],
) -> None:
    """Note what became of devices that a suspension held."""
    await connection.execute(
        "UPDATE payment_suspension_device SET outcome = %s"
        " WHERE suspension_no = %s AND device_no = ANY(%s)",
        [outcome, suspension_no, list(device_nos)],
    )


async def device_counts(connection: Connection, suspension_no: int) -> tuple[int, int]:
    """Return how many devices a suspension holds, and how many it resumed."""
    found = await connection.execute(
        "SELECT count(*) FILTER (WHERE outcome IS NULL), count(*) FILTER (WHERE outcome = 'resumed')"
        " FROM payment_suspension_device WHERE suspension_no = %s",
        [suspension_no],
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns one row
    return int(row[0]), int(row[1])
