"""What the API reads of changes of terms and of what they changed, and the ids that they are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionView:
    """One change of terms, whose devices it concerned, and how many charges it changed."""

    correction_no: int
    cause: str
    detail: Mapping[str, object]
    effective_from: datetime
    recorded_at: datetime
    device_ids: Sequence[str]
    devices: int
    charges: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeDifferenceView:
    """What a change of terms made of one charge: the new one less the old one."""

    boot_no: int
    boot_id: str
    seq: int
    part: int
    device_id: str
    fleet_id: str
    currency: str
    cycle_start: datetime
    measured_at: datetime
    quantity: int
    amount: int
    subunits_per_unit: int


_IDS_SHOWN = 100


async def list_corrections(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int | None,
    before: int | None,
    limit: int,
    during: During = ALWAYS,
) -> list[CorrectionView]:
    """Return at most `limit` changes of terms, the last made first."""
    return await fetch_all(
        connection,
        CorrectionView,
        "SELECT correction.correction_no, correction.cause, correction.detail,"  # noqa: S608 - columns
        " coalesce(correction.takes_effect_at, correction.effective_from) AS effective_from,"
        " correction.recorded_at,"
        " (SELECT coalesce(array_agg(shown.device_id), '{}') FROM (SELECT device.device_id"
        "   FROM correction_device JOIN device USING (device_no)"
        "   WHERE correction_device.correction_no = correction.correction_no"
        "   ORDER BY device.device_id LIMIT %(shown)s) AS shown) AS device_ids,"
        " (SELECT count(*) FROM correction_device"
        "   WHERE correction_device.correction_no = correction.correction_no) AS devices,"
        " (SELECT count(*) FROM charge_correction"
        "   WHERE charge_correction.correction_no = correction.correction_no) AS charges"
        " FROM correction WHERE correction.tenant_no = %(tenant_no)s"
        " AND (%(before)s::bigint IS NULL OR correction.correction_no < %(before)s)"
        " AND (%(device_no)s::bigint IS NULL OR EXISTS (SELECT FROM correction_device AS own"
        "   WHERE own.correction_no = correction.correction_no AND own.device_no = %(device_no)s))"
        + during.condition("correction.recorded_at")
        + " ORDER BY correction.correction_no DESC LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "before": before,
            **during.parameters,
            "limit": checked_limit(limit),
            "shown": _IDS_SHOWN,
        },
    )


async def correction_view(
    connection: Connection, tenant_no: TenantNo, correction_no: int
) -> CorrectionView:
    """Return one change of terms of a tenant; raise `NotFound`."""
    rows = await list_corrections(
        connection, tenant_no, device_no=None, before=correction_no + 1, limit=1
    )
    if not rows or rows[0].correction_no != correction_no:
        raise NotFound("change of terms", str(correction_no))
    return rows[0]


async def list_differences(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    correction_no: int,
    after: tuple[int, int, int, str, datetime] | None,
    limit: int,
) -> list[ChargeDifferenceView]:
    """Return at most `limit` charges that a change of terms changed; raise `NotFound`."""
    known = await connection.execute(
        "SELECT FROM correction WHERE tenant_no = %s AND correction_no = %s",
        [tenant_no, correction_no],
    )
    if not known.rowcount:
        raise NotFound("change of terms", str(correction_no))
    boot_no, seq, part, fleet_id, cycle_start = after or (None, None, None, None, None)
    return await fetch_all(
        connection,
        ChargeDifferenceView,
        "SELECT boot.boot_no, boot.boot_id, difference.seq, difference.part, device.device_id,"
        " fleet.fleet_id, fleet.currency, difference.cycle_start, difference.measured_at,"
        " difference.quantity, difference.amount, difference.subunits_per_unit"
        " FROM charge_correction AS difference"
        " JOIN fleet ON fleet.fleet_no = difference.fleet_no"
        " JOIN device ON device.device_no = difference.device_no"
        " JOIN boot ON boot.boot_no = difference.boot_no"
        " WHERE fleet.tenant_no = %(tenant_no)s AND difference.correction_no = %(correction_no)s"
        " AND (%(boot_no)s::bigint IS NULL OR (difference.boot_no, difference.seq, difference.part,"
        "   fleet.fleet_id, difference.cycle_start)"
        "   > (%(boot_no)s, %(seq)s, %(part)s, %(fleet_id)s, %(cycle_start)s))"
        " ORDER BY difference.boot_no, difference.seq, difference.part, fleet.fleet_id,"
        " difference.cycle_start LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "correction_no": correction_no,
            "boot_no": boot_no,
            "seq": seq,
            "part": part,
            "fleet_id": fleet_id,
            "cycle_start": cycle_start,
            "limit": checked_limit(limit),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    device_no: int
    device_id: str


async def device_nos_of_ids(
    connection: Connection, tenant_no: TenantNo, device_ids: Sequence[str]
) -> list[int]:
    """Return the numbers of a tenant's devices; raise `NotFound` for the first that is not there."""
    found = await fetch_all(
        connection,
        _Device,
        "SELECT device.device_no, device.device_id FROM device"
        " WHERE device.tenant_no = %(tenant_no)s AND device.device_id = ANY(%(device_ids)s)",
        {"tenant_no": tenant_no, "device_ids": list(device_ids)},
    )
    numbers = {each.device_id: each.device_no for each in found}
    for device_id in device_ids:
        if device_id not in numbers:
            raise NotFound("device", device_id)
    return sorted(numbers.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    plan_no: int


async def plan_no_of(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    plan_id: str,
    version: int | None,
    at: datetime | None = None,
) -> int:
    """Return the number of a plan's version; raise `NotFound`.

    Where it is None, the highest that is in effect `at` an instant; unset: whenever.
    """
    found = await fetch_one(
        connection,
        _Version,
        "SELECT plan.plan_no FROM plan WHERE plan.tenant_no = %(tenant_no)s"
        " AND plan.plan_id = %(plan_id)s"
        " AND CASE WHEN %(version)s::int IS NULL"
        "   THEN plan.effective_from <= coalesce(%(at)s, 'infinity'::timestamptz)"
        "   ELSE plan.version = %(version)s END"
        " ORDER BY plan.version DESC LIMIT 1",
        {"tenant_no": tenant_no, "plan_id": plan_id, "version": version, "at": at},
    )
    if found is None:
        name = plan_id if version is None else f"{plan_id} version {version}"
        raise NotFound("plan", name)
    return found.plan_no
