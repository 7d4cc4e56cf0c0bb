"""Devices as they are registered and described: made, several at once, and changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from psycopg.types.json import Json, Jsonb

from metering.ids import TenantNo
from metering.store.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDevice:
    """A device that is to be registered: in a state, and with a SIM if there is one, from an instant on."""

    device_id: str
    since: datetime
    state: str = "active"
    name: str | None = None
    imei: str | None = None
    eid: str | None = None
    msisdn: str | None = None
    iccid: str | None = None
    imsi: str | None = None
    tags: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDescription:
    """What people say of a device, all of which they may change."""

    name: str | None
    imei: str | None
    eid: str | None
    msisdn: str | None
    tags: Sequence[str]
    labels: Mapping[str, str]


async def insert_devices(
    connection: Connection,
    *,
    tenant_no: int,
    fleet_no: int,
    devices: Sequence[NewDevice],
    now: datetime,
) -> dict[str, int]:
    """Register devices of a fleet, numbered as they stand; return the numbers of the new ones by id."""
    rows = [
        {
            "device_id": each.device_id,
            "name": each.name,
            "imei": each.imei,
            "eid": each.eid,
            "msisdn": each.msisdn,
            "tags": sorted(set(each.tags)),
            "labels": dict(each.labels),
        }
        for each in devices
    ]
    inserted = await connection.execute(
        "INSERT INTO device (tenant_no, fleet_no, device_id, name, imei, eid, msisdn, tags, labels,"
        "   created_at)"
        " SELECT %s, %s, device_id, name, imei, eid, msisdn, tags, labels, %s"
        " FROM ROWS FROM (json_to_recordset(%s) AS (device_id text, name text, imei text, eid text,"
        "   msisdn text, tags text[], labels jsonb)) WITH ORDINALITY"
        "   AS given (device_id, name, imei, eid, msisdn, tags, labels, place)"
        " WHERE NOT EXISTS (SELECT FROM device AS known"
        "   WHERE known.tenant_no = %s AND known.device_id = given.device_id) ORDER BY place"
        " ON CONFLICT (tenant_no, device_id) DO NOTHING RETURNING device_id, device_no",
        [tenant_no, fleet_no, now, Json(rows), tenant_no],
    )
    numbers: dict[str, int] = dict(await inserted.fetchall())
    new = [each for each in devices if each.device_id in numbers]
    await connection.execute(
        "WITH said AS (INSERT INTO device_state_change (device_no, effective_from, state, recorded_at)"
        "   SELECT device_no, since, state, %s"
        "   FROM unnest(%s::bigint[], %s::timestamptz[], %s::text[]) AS new (device_no, since, state)"
        "   RETURNING *)"
        " INSERT INTO device_state_entry (device_no, entry_no, effective_from, state, recorded_at)"
        " SELECT device_no, 1, effective_from, state, recorded_at FROM said",
        [
            now,
            [numbers[each.device_id] for each in new],
            [each.since for each in new],
            [each.state for each in new],
        ],
    )
    carrying = [each for each in new if each.iccid is not None]
    if carrying:
        await connection.execute(
            "INSERT INTO device_sim (tenant_no, device_no, iccid, imsi, valid, recorded_at)"
            " SELECT %s, device_no, iccid, imsi, tstzrange(since, NULL), %s"
            " FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::timestamptz[])"
            "   AS given (device_no, iccid, imsi, since)",
            [
                tenant_no,
                now,
                [numbers[each.device_id] for each in carrying],
                [each.iccid for each in carrying],
                [each.imsi for each in carrying],
                [each.since for each in carrying],
            ],
        )
    return numbers


async def sims_in_use(
    connection: Connection, tenant_no: TenantNo, devices: Sequence[NewDevice]
) -> set[str]:
    """Return the ICCIDs of new devices that are in other devices, now or later than they are wanted."""
    wanted = [(each.iccid, each.since) for each in devices if each.iccid is not None]
    found = await connection.execute(
        "SELECT DISTINCT given.iccid FROM unnest(%s::text[], %s::timestamptz[]) AS given (iccid, since)"
        " JOIN device_sim AS sim ON sim.iccid = given.iccid"
        "   AND sim.valid && tstzrange(given.since, NULL)"
        " WHERE sim.tenant_no = %s",
        [[iccid for iccid, _ in wanted], [since for _, since in wanted], tenant_no],
    )
    return {iccid for (iccid,) in await found.fetchall()}


async def describe_device(
    connection: Connection, device_no: int, description: DeviceDescription
) -> None:
    """Write what people say of a device."""
    await connection.execute(
        "UPDATE device SET name = %s, imei = %s, eid = %s, msisdn = %s, tags = %s, labels = %s"
        " WHERE device_no = %s",
        [
            description.name,
            description.imei,
            description.eid,
            description.msisdn,
            sorted(set(description.tags)),
            Jsonb(dict(description.labels)),
            device_no,
        ],
    )


async def lock_devices(
    connection: Connection, tenant_no: TenantNo, device_ids: Sequence[str]
) -> None:
    """Own devices, in the order of their ids, until the transaction ends: nobody else describes them."""
    await connection.execute(
        "SELECT FROM device WHERE tenant_no = %s AND device_id = ANY(%s) ORDER BY device_id"
        " FOR NO KEY UPDATE",
        [tenant_no, list(device_ids)],
    )
