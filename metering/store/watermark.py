"""The watermark: up to when a fleet's usage is believed complete, and which devices hold it back."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProgress:
    """Up to when the usage of an active device has arrived.

    `heard_at` is when something new of it came last (None: never). It has a `gap` while readings are
    missing that may still come, and is `silent` when nothing came for too long.
    """

    device_id: str
    complete_to: datetime
    heard_at: datetime | None
    gap: bool
    silent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """Up to when a fleet's usage is believed complete, and who decides that.

    `complete_to` is None where no device tells: all that are active are silent. `devices` counts
    those that are active, `silent_devices` those of them that hold nothing back. `held_back_by` are
    those that lag most, the first the most, and `silent` those that were silent for longest.
    `queued_from` is the oldest usage that waits for charging.
    """

    complete_to: datetime | None
    devices: int
    silent_devices: int
    held_back_by: Sequence[DeviceProgress]
    silent: Sequence[DeviceProgress]
    queued_from: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row(DeviceProgress):
    active: int
    silent_ones: int
    reached: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batches:
    batch_nos: list[int] | None
    measured_from: datetime | None
    measured_to: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queued:
    queued_from: datetime | None


async def fleet_watermark(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int,
    now: datetime,
    silent_after: timedelta,
    most: int = 20,
) -> Watermark:
    """Return the watermark of a fleet, with at most so many devices that lag and that are silent.

    A device is complete up to the latest measured time before which no number of any of its boots is
    missing; one of which nothing came, up to when it became active. A gap that nothing fills for
    `silent_after` is taken for lost, and a device of which nothing new comes for as long is silent:
    neither holds the watermark back. Without an active device it is the present instant.
    """
    parameters: dict[str, object] = {
        "tenant_no": tenant_no,
        "fleet_no": fleet_no,
        "now": now,
        "heard_since": now - silent_after,
        "most": most,
    }
    rows = await fetch_all(connection, _Row, _DEVICES, parameters)
    queued_from = await _oldest_queued(connection, parameters)
    reached = rows[0].reached if rows else now
    if reached is not None:
        reached = min(reached, now, queued_from or now)
    shown = [
        DeviceProgress(
            device_id=row.device_id,
            complete_to=row.complete_to,
            heard_at=row.heard_at,
            gap=row.gap,
            silent=row.silent,
        )
        for row in rows
    ]
    return Watermark(
        complete_to=reached,
        devices=rows[0].active if rows else 0,
        silent_devices=rows[0].silent_ones if rows else 0,
        held_back_by=[each for each in shown if not each.silent],
        silent=[each for each in shown if each.silent],
        queued_from=queued_from,
    )


async def _oldest_queued(connection: Connection, parameters: dict[str, object]) -> datetime | None:
    """Return since when usage of the fleet waits for charging; None where none does."""
    batches = await fetch_one(connection, _Batches, _QUEUED_BATCHES, parameters)
    if batches is None or batches.batch_nos is None:
        return None
    queued = await fetch_one(
        connection,
        _Queued,
        _OLDEST_QUEUED,
        parameters
        | {
            "batch_nos": batches.batch_nos,
            "measured_from": batches.measured_from,
            "measured_to": batches.measured_to,
        },
    )
    return queued.queued_from if queued else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastWatermark:
    """How far usage of the whole deployment is complete, as the fleet that lags most is.

    `complete_to` is None where no device tells. A fleet is held back while a reading of it is missing
    that may still come.
    """

    complete_to: datetime | None
    fleets_held_back: int


async def least_watermark(
    connection: Connection, *, now: datetime, silent_after: timedelta
) -> LeastWatermark:
    """Return the least of all fleets' watermarks, and how many fleets are held back.

    What `fleet_watermark` tells one by one; of usage that is queued, by when it was measured. It reads
    every active device.
    """
    found = await fetch_one(
        connection,
        LeastWatermark,
        _LEAST,
        {"now": now, "heard_since": now - silent_after},
    )
    assert found is not None  # noqa: S101 - an aggregate without GROUP BY returns one row
    return found


# A boot whose gap begins before anything of it arrived reaches no further than the boot before it.
_PROGRESS = (
    "WITH member AS (SELECT device.device_no, device.device_id, device.fleet_no,"
    "     state.effective_from AS active_from"
    "   FROM device CROSS JOIN LATERAL (SELECT change.state, change.effective_from"
    "     FROM device_state_change AS change WHERE change.device_no = device.device_no"
    "     AND change.effective_from <= %(now)s ORDER BY change.effective_from DESC LIMIT 1) AS state"
    "   WHERE state.state = 'active'{of_fleet}),"
    " told AS (SELECT member.device_no, boot.heard_at, boot.gap_since > %(heard_since)s AS gap,"
    "     CASE WHEN boot.gap_since <= %(heard_since)s THEN boot.measured_to ELSE boot.complete_to END"
    "       AS reached,"
    "     max(boot.measured_to) OVER (PARTITION BY boot.device_no ORDER BY boot.boot_no"
    "       ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before"
    "   FROM member JOIN boot USING (device_no)),"
    " progress AS (SELECT member.fleet_no, member.device_id, max(told.heard_at) AS heard_at,"
    "     coalesce(bool_or(told.gap), false) AS gap,"
    "     coalesce(least(max(told.reached),"
    "       min(coalesce(told.reached, told.before, member.active_from)) FILTER (WHERE told.gap)),"
    "       member.active_from) AS complete_to,"
    "     coalesce(max(told.heard_at), member.active_from) <= %(heard_since)s AS silent"
    "   FROM member LEFT JOIN told USING (device_no)"
    "   GROUP BY member.fleet_no, member.device_no, member.device_id, member.active_from)"
)

_LEAST = (
    _PROGRESS.format(of_fleet="")  # noqa: S608 - a clause of this module
    + " SELECT CASE WHEN bool_and(progress.silent) THEN NULL ELSE"
    "     least(min(progress.complete_to) FILTER (WHERE NOT progress.silent), %(now)s,"
    "       (SELECT min(work_item.measured_from) FROM work_item)) END AS complete_to,"
    "   count(DISTINCT progress.fleet_no) FILTER (WHERE progress.gap AND NOT progress.silent)"
    "     AS fleets_held_back FROM progress"
)

_DEVICES = (
    _PROGRESS.format(  # noqa: S608 - a clause of this module
        of_fleet=" AND device.tenant_no = %(tenant_no)s AND device.fleet_no = %(fleet_no)s"
    )
    + ", ranked AS (SELECT progress.*, count(*) OVER () AS active,"
    "     count(*) FILTER (WHERE progress.silent) OVER () AS silent_ones,"
    "     min(progress.complete_to) FILTER (WHERE NOT progress.silent) OVER () AS reached,"
    "     row_number() OVER (PARTITION BY progress.silent ORDER BY progress.complete_to,"
    "       progress.device_id) AS place FROM progress)"
    " SELECT device_id, complete_to, heard_at, gap, silent, active, silent_ones, reached FROM ranked"
    " WHERE place <= %(most)s ORDER BY silent, complete_to, device_id"
)

_QUEUED_BATCHES = (
    "SELECT array_agg(work_item.batch_no) AS batch_nos, min(work_item.measured_from) AS measured_from,"
    " max(work_item.measured_to) AS measured_to"
    " FROM fleet JOIN work_item ON work_item.shard_no = fleet.shard_no"
    " WHERE fleet.tenant_no = %(tenant_no)s AND fleet.fleet_no = %(fleet_no)s"
)

# A counter's reading tells of usage since the point before it.
_OLDEST_QUEUED = (
    "SELECT min(coalesce(reading.since, CASE WHEN reading.kind = 2 THEN"
    "     (SELECT max(counter.measured_at) FROM counter WHERE counter.device_no = reading.device_no"
    "       AND counter.meter_no = reading.meter_no AND counter.measured_at < reading.measured_at)"
    "   END, reading.measured_at)) AS queued_from"
    " FROM reading JOIN device ON device.device_no = reading.device_no"
    " JOIN work_item ON work_item.shard_no = reading.shard_no"
    "   AND work_item.batch_no = reading.batch_no"
    " WHERE reading.batch_no = ANY(%(batch_nos)s)"
    " AND reading.measured_at BETWEEN %(measured_from)s AND %(measured_to)s"
    " AND device.tenant_no = %(tenant_no)s AND device.fleet_no = %(fleet_no)s"
)
