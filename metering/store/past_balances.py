"""Balances as they were at a past moment: what had been entered by then, less what had been charged by then.

Nothing is kept for it: a bucket's entries and what charges drew say it, by the times that they carry.
Charges that were made again since count as they were. So it costs what the fleet (of a device's own
buckets: the device) was charged between the beginning of the buckets that hold then and the moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from metering.ids import TenantNo
from metering.store.bucket_views import LotView
from metering.store.connection import Connection
from metering.store.device_views import SubscriptionMeterView, SubscriptionView
from metering.store.known_views import KNOWN_CHARGES_OF_DEVICE, Known
from metering.store.pool_views import PoolLotView
from metering.store.rows import fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sum:
    bucket_no: int
    quantity: int


_ENTERED = (
    "SELECT side.bucket_no, sum(side.quantity) AS quantity FROM ("
    " SELECT entry.bucket_no, entry.quantity FROM bucket_entry AS entry"
    "   WHERE entry.bucket_no = ANY(%(buckets)s) AND entry.entered_at <= %(at)s"
    "   AND entry.kind NOT IN ('hold', 'release')"
    " UNION ALL SELECT entry.other_bucket_no, -entry.quantity FROM bucket_entry AS entry"
    "   WHERE entry.other_bucket_no = ANY(%(buckets)s) AND entry.entered_at <= %(at)s"
    "   AND entry.kind NOT IN ('hold', 'release')"
    ") AS side GROUP BY side.bucket_no"
)
_DRAWN = (
    "SELECT draw.bucket_no, sum(draw.quantity) AS quantity FROM ("
    " SELECT charge.draw_buckets, charge.draw_quantities FROM charge"
    "   WHERE charge.fleet_no = %(fleet_no)s AND charge.measured_at >= %(since)s{of}"
    "   AND charge.charged_at <= %(at)s AND charge.draw_buckets && %(buckets)s::bigint[]"
    " UNION ALL SELECT charge.draw_buckets, charge.draw_quantities FROM superseded_charge AS charge"
    "   WHERE charge.fleet_no = %(fleet_no)s AND charge.measured_at >= %(since)s{of}"
    "   AND charge.charged_at <= %(at)s AND charge.draw_buckets && %(buckets)s::bigint[]"
    "   AND (SELECT gone.recorded_at FROM correction AS gone"
    "     WHERE gone.correction_no = charge.superseded_by) > %(at)s"
    ") AS then_known CROSS JOIN LATERAL unnest(then_known.draw_buckets, then_known.draw_quantities)"
    "   AS draw (bucket_no, quantity)"
    " WHERE draw.bucket_no = ANY(%(buckets)s) GROUP BY draw.bucket_no"
)
_OF_DEVICE = (
    " AND charge.boot_no IN (SELECT boot_no FROM boot WHERE boot.device_no = %(device_no)s)"
)


_Lot = TypeVar("_Lot", LotView, PoolLotView)


async def lots_then(
    connection: Connection,
    lots: Sequence[_Lot],
    *,
    fleet_no: int,
    device_no: int | None,
    at: datetime,
) -> list[_Lot]:
    """Return lots of a fleet, or those from which one device alone draws, as they were at a past moment.

    Those into which nothing had been entered by then are left out. What was `reserved` of them is not known.
    """
    if not lots:
        return []
    parameters = {
        "buckets": [lot.bucket_no for lot in lots],
        "fleet_no": fleet_no,
        "device_no": device_no,
        "since": min(lot.begins_at for lot in lots),
        "at": at,
    }
    entered = await fetch_all(connection, _Sum, _ENTERED, parameters)
    drawn = await fetch_all(
        connection, _Sum, _DRAWN.format(of="" if device_no is None else _OF_DEVICE), parameters
    )
    granted = {each.bucket_no: each.quantity for each in entered}
    used = {each.bucket_no: each.quantity for each in drawn}
    return [
        replace(lot, granted=granted[lot.bucket_no], used=used.get(lot.bucket_no, 0), reserved=None)
        for lot in lots
        if lot.bucket_no in granted
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fleet:
    fleet_id: str


# As subscriptions were known then: the last that had been said of each by that time; as it is, where nothing
# was ever said of it but that it is there.
_SAID = (
    " FROM subscription JOIN device ON device.device_no = subscription.device_no"
    " JOIN plan ON plan.plan_no = subscription.plan_no"
    " JOIN fleet ON fleet.fleet_no = subscription.fleet_no"
    " JOIN LATERAL (SELECT CASE WHEN EXISTS (SELECT FROM subscription_entry AS entry"
    "     WHERE entry.subscription_no = subscription.subscription_no)"
    "   THEN (SELECT entry.valid FROM subscription_entry AS entry"
    "     WHERE entry.subscription_no = subscription.subscription_no"
    "     AND (entry.correction_no IS NULL OR entry.recorded_at <= %(at)s)"
    "     ORDER BY entry.entry_no DESC LIMIT 1)"
    "   ELSE subscription.valid END AS valid) AS said ON NOT isempty(said.valid)"
    " WHERE device.tenant_no = %(tenant_no)s AND plan.tenant_no = %(tenant_no)s"
    " AND subscription.device_no = %(device_no)s"
)


async def fleet_then(
    connection: Connection, tenant_no: TenantNo, *, device_no: int, at: datetime
) -> str | None:
    """Return the id of the fleet in which a device was subscribed at a past moment; None if in none."""
    found = await fetch_one(
        connection,
        _Fleet,
        "SELECT fleet.fleet_id" + _SAID + " AND said.valid @> %(at)s::timestamptz",
        {"tenant_no": tenant_no, "device_no": device_no, "at": at},
    )
    return None if found is None else found.fleet_id


async def subscriptions_then(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    device_no: int,
    cycle_start: datetime,
    cycle_end: datetime,
    at: datetime,
) -> list[SubscriptionView]:
    """Return the subscriptions of a device that run in a cycle, as they were known at a past moment."""
    return await fetch_all(
        connection,
        SubscriptionView,
        "SELECT subscription.subscription_no, plan.plan_no, plan.plan_id,"
        " plan.version AS plan_version, plan.terms, plan.subunits_per_unit,"
        " lower(said.valid) AS subscribed_from, upper(said.valid) AS subscribed_to"
        + _SAID
        + " AND said.valid && tstzrange(%(cycle_start)s, %(cycle_end)s) ORDER BY lower(said.valid)",
        {
            "tenant_no": tenant_no,
            "device_no": device_no,
            "cycle_start": cycle_start,
            "cycle_end": cycle_end,
            "at": at,
        },
    )


async def meters_then(
    connection: Connection, *, device_no: int, fleet_no: int, cycle_start: datetime, at: datetime
) -> list[SubscriptionMeterView]:
    """Return what a device had used in a cycle by a past moment, by subscription and meter."""
    return await fetch_all(
        connection,
        SubscriptionMeterView,
        "SELECT charge.subscription_no, charge.meter_no, sum(charge.quantity) AS quantity,"  # noqa: S608 - own text
        " sum(charge.uplink) AS uplink, sum(charge.billed) AS billed,"
        " sum(charge.from_allowance) AS from_allowance, sum(charge.from_pool) AS from_pool,"
        " sum(charge.overage) AS overage, sum(charge.amount) AS amount"
        f" FROM {KNOWN_CHARGES_OF_DEVICE} AS charge"
        " GROUP BY charge.subscription_no, charge.meter_no"
        " ORDER BY charge.subscription_no, charge.meter_no",
        {
            "device_no": device_no,
            "fleet_no": fleet_no,
            "cycle_start": cycle_start,
            **Known(at=at).parameters,
        },
    )
