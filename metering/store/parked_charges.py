"""Charging what is parked: what was asked for, how far it came, and what could not be charged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.types.json import Json

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.usage import METERS

Reached = tuple[int, int]
"""The fleet and the device up to which all are dealt with, in the order of their numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedUsage:
    """Whose parked usage is meant: some devices', a fleet's, or all of a tenant; each may be None.

    A fleet's is that of the devices that are in it now, wherever they were when it was parked.
    """

    tenant_no: TenantNo
    fleet_no: int | None = None
    device_nos: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredParkedCharge:
    """A request to charge what is parked, and how far it came.

    `charged` counts readings, `charges` those made or made again; `corrections` are the changes of
    terms that hold them. `remaining` is how many readings are still parked by reason; None: under way.
    """

    parked_charge_no: int
    request: Mapping[str, object]
    reached: Reached
    charged: int
    charges: int
    corrections: Sequence[int]
    remaining: Mapping[str, int] | None


async def insert_parked_charge(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    key: str,
    request: Mapping[str, object],
    now: datetime,
) -> bool:
    """Note a request under its key; return False where the key has one already."""
    inserted = await connection.execute(
        "INSERT INTO parked_charge (tenant_no, idempotency_key, request, begun_at)"
        " VALUES (%s, %s, %s, %s) ON CONFLICT (tenant_no, idempotency_key) DO NOTHING",
        [tenant_no, key, Json(request), now],
    )
    return inserted.rowcount == 1


async def is_key_of_parked_charge(connection: Connection, tenant_no: TenantNo, key: str) -> bool:
    """Whether a key is that of a request to charge what is parked."""
    found = await connection.execute(
        "SELECT FROM parked_charge WHERE tenant_no = %s AND idempotency_key = %s", [tenant_no, key]
    )
    return found.rowcount == 1


async def lock_parked_charge(
    connection: Connection, tenant_no: TenantNo, key: str
) -> StoredParkedCharge | None:
    """Return a request by its key, and keep others from going on with it until the transaction ends."""
    found = await connection.execute(
        "SELECT parked_charge_no, request, reached_fleet_no, reached_device_no, charged, charges,"
        " corrections, remaining FROM parked_charge"
        " WHERE tenant_no = %s AND idempotency_key = %s FOR UPDATE",
        [tenant_no, key],
    )
    row = await found.fetchone()
    if row is None:
        return None
    return StoredParkedCharge(
        parked_charge_no=row[0],
        request=row[1],
        reached=(row[2], row[3]),
        charged=row[4],
        charges=row[5],
        corrections=row[6],
        remaining=row[7],
    )


async def store_progress(
    connection: Connection,
    parked_charge_no: int,
    *,
    reached: Reached,
    charged: int,
    charges: int,
    correction_no: int | None,
) -> None:
    """Note how far a request came, and what was charged by its last step."""
    await connection.execute(
        "UPDATE parked_charge SET reached_fleet_no = %s, reached_device_no = %s,"
        " charged = charged + %s, charges = charges + %s,"
        " corrections = corrections || array_remove(ARRAY[%s::bigint], NULL)"
        " WHERE parked_charge_no = %s",
        [*reached, charged, charges, correction_no, parked_charge_no],
    )


async def finish_parked_charge(
    connection: Connection, parked_charge_no: int, remaining: Mapping[str, int], *, now: datetime
) -> None:
    """Note that a request is done, and what is still parked."""
    await connection.execute(
        "UPDATE parked_charge SET finished_at = %s, remaining = %s WHERE parked_charge_no = %s",
        [now, Json(remaining), parked_charge_no],
    )


async def chargeable_devices(
    connection: Connection, usage: ParkedUsage, *, after: Reached, limit: int | None
) -> tuple[int, list[int]] | None:
    """Return the next fleet, and its devices of which parked usage may be chargeable now.

    At most `limit` of them, by number; None where there is none after `after`. A reading may be when a
    subscription runs in its time, whose plan has a price of its meter where it lacked that.
    """
    found = await connection.execute(
        _CHARGEABLE,
        {
            "tenant": usage.tenant_no,
            "fleet": usage.fleet_no,
            "devices": None if usage.device_nos is None else list(usage.device_nos),
            "after_fleet": after[0],
            "after_device": after[1],
            "limit": limit,
            "meters": Json({str(meter.meter_no): meter.meter for meter in METERS.values()}),
        },
    )
    rows = await found.fetchall()
    if not rows:
        return None
    fleet_no = rows[0][0]
    return fleet_no, [row[1] for row in rows if row[0] == fleet_no]


_CHARGEABLE = (
    "SELECT DISTINCT device.fleet_no, parked.device_no FROM parked JOIN device USING (device_no)"
    " WHERE device.tenant_no = %(tenant)s"
    " AND (%(fleet)s::int IS NULL OR device.fleet_no = %(fleet)s)"
    " AND (%(devices)s::bigint[] IS NULL OR parked.device_no = ANY(%(devices)s))"
    " AND (device.fleet_no, parked.device_no) > (%(after_fleet)s, %(after_device)s)"
    " AND EXISTS (SELECT FROM subscription JOIN plan USING (plan_no)"
    "   WHERE subscription.device_no = parked.device_no"
    "   AND subscription.valid && tstzrange(parked.usage_from, parked.usage_to, '[]')"
    "   AND (parked.reason <> 'no_price' OR plan.terms -> 'meters' -> (%(meters)s::jsonb"
    "     ->> (SELECT reading.meter_no::text FROM reading WHERE reading.boot_no = parked.boot_no"
    "       AND reading.seq = parked.seq AND reading.measured_at = parked.measured_at))"
    "     IS NOT NULL))"
    " ORDER BY device.fleet_no, parked.device_no LIMIT %(limit)s"
)


async def parked_by_reason(connection: Connection, usage: ParkedUsage) -> dict[str, int]:
    """Return how many readings are parked, by reason."""
    found = await connection.execute(
        "SELECT parked.reason, count(*) FROM parked JOIN device USING (device_no)"
        " WHERE device.tenant_no = %(tenant)s"
        " AND (%(fleet)s::int IS NULL OR device.fleet_no = %(fleet)s)"
        " AND (%(devices)s::bigint[] IS NULL OR parked.device_no = ANY(%(devices)s))"
        " GROUP BY parked.reason ORDER BY parked.reason",
        {
            "tenant": usage.tenant_no,
            "fleet": usage.fleet_no,
            "devices": None if usage.device_nos is None else list(usage.device_nos),
        },
    )
    return dict(await found.fetchall())
