"""What the API reads of a device's terms that are still to change, and of the SIMs that it had."""

from dataclasses import dataclass
from datetime import datetime

from metering.ids import TenantNo
from metering.store.connection import Connection
from metering.store.rows import ALWAYS, During, checked_limit, fetch_all


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedView:
    """One change of a device's terms at an instant to come; what is not of its kind is None."""

    effective_from: datetime
    kind: str
    state: str | None
    plan_id: str | None
    plan_version: int | None
    fleet_id: str | None
    iccid: str | None


async def list_planned(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int,
    after: tuple[datetime, str] | None,
    limit: int,
    now: datetime,
) -> list[PlannedView]:
    """Return at most `limit` changes of a device's terms that are still to come, the next first.

    A subscription that follows another at once is a change of plan; where the fleet is another one, the
    move is listed beside it.
    """
    after_at, after_kind = after or (None, None)
    return await fetch_all(
        connection,
        PlannedView,
        _PLANNED,
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "after_at": after_at,
            "after_kind": after_kind,
            "limit": checked_limit(limit),
            "now": now,
        },
    )


_PLANNED = (
    "WITH own AS (SELECT device.device_no, device.fleet_no FROM device"
    "   WHERE device.tenant_no = %(tenant_no)s AND device.device_no = %(device_no)s),"
    " terms AS (SELECT lower(subscription.valid) AS begins, upper(subscription.valid) AS ends,"
    "   lag(upper(subscription.valid)) OVER in_time AS ended_before,"
    "   lead(lower(subscription.valid)) OVER in_time AS begins_after,"
    "   plan.plan_id, plan.version AS plan_version, fleet.fleet_id"
    "   FROM own JOIN subscription ON subscription.device_no = own.device_no"
    "   JOIN plan ON plan.plan_no = subscription.plan_no"
    "   JOIN fleet ON fleet.fleet_no = subscription.fleet_no"
    "   WHERE NOT isempty(subscription.valid)"
    "   WINDOW in_time AS (ORDER BY lower(subscription.valid))),"
    " planned AS (SELECT terms.begins AS effective_from,"
    "     CASE WHEN terms.ended_before = terms.begins THEN 'plan_change' ELSE 'subscription' END AS kind,"
    "     NULL::text AS state, terms.plan_id, terms.plan_version, terms.fleet_id, NULL::text AS iccid"
    "   FROM terms WHERE terms.begins > %(now)s"
    "   UNION ALL SELECT terms.ends, 'subscription_end', NULL, terms.plan_id, terms.plan_version,"
    "     terms.fleet_id, NULL FROM terms WHERE terms.ends > %(now)s"
    "     AND terms.begins_after IS DISTINCT FROM terms.ends"
    "   UNION ALL SELECT change.effective_from, 'state_change', change.state, NULL, NULL, NULL, NULL"
    "   FROM own JOIN device_state_change AS change ON change.device_no = own.device_no"
    "   WHERE change.effective_from > %(now)s"
    "   UNION ALL SELECT move.effective_from, 'fleet_change', NULL, NULL, NULL, fleet.fleet_id, NULL"
    "   FROM own JOIN device_move AS move ON move.device_no = own.device_no"
    "   JOIN fleet ON fleet.fleet_no = move.fleet_no WHERE move.effective_from > %(now)s"
    "   UNION ALL SELECT lower(sim.valid), 'sim_swap', NULL, NULL, NULL, NULL, sim.iccid"
    "   FROM own JOIN device_sim AS sim ON sim.device_no = own.device_no"
    "   WHERE lower(sim.valid) > %(now)s)"
    " SELECT effective_from, kind, state, plan_id, plan_version, fleet_id, iccid FROM planned"
    " WHERE %(after_at)s::timestamptz IS NULL"
    "   OR (effective_from, kind) > (%(after_at)s, %(after_kind)s::text)"
    " ORDER BY effective_from, kind LIMIT %(limit)s"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimView:
    """A SIM that is, was, or is to be in a device during `[valid_from, valid_to)`."""

    iccid: str
    imsi: str | None
    valid_from: datetime
    valid_to: datetime | None
    recorded_at: datetime


async def list_sims(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int,
    before: datetime | None,
    limit: int,
    during: During = ALWAYS,
) -> list[SimView]:
    """Return at most `limit` SIMs of a device, the last first; each begins before `before`."""
    return await fetch_all(
        connection,
        SimView,
        "SELECT sim.iccid, sim.imsi, lower(sim.valid) AS valid_from, upper(sim.valid) AS valid_to,"  # noqa: S608 - columns
        " sim.recorded_at FROM device_sim AS sim"
        " WHERE sim.tenant_no = %(tenant_no)s AND sim.device_no = %(device_no)s"
        " AND (%(before)s::timestamptz IS NULL OR lower(sim.valid) < %(before)s)"
        + during.condition("lower(sim.valid)")
        + " ORDER BY lower(sim.valid) DESC LIMIT %(limit)s",
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "before": before,
            **during.parameters,
            "limit": checked_limit(limit),
        },
    )
