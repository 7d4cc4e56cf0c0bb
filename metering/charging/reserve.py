"""Quota ahead of use: granted, settled, replaced, released and expired, each in one transaction.

Each operation takes the lock of the fleet's shard and then a run number, as charging does, so a grant
has its place in the fleet's history. A request is known by its id: asking again gives the same answer.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

import psycopg

from metering.charging.end_reservations import end_reservations
from metering.charging.open_cycle import open_cycle
from metering.rating import reservation as core
from metering.rating.bucket import burn_order
from metering.rating.guide import ParkReason, UsageRecord
from metering.rating.plan import DeviceState
from metering.rating.record import FleetTerms, Usage, guided_records
from metering.rating.reservation import FinalAction, QuotaRule, RecentUse, overshoot_bound
from metering.settings import Settings
from metering.store.accounts import Wanted, load_accounts, store_buckets
from metering.store.connection import Connection
from metering.store.cycles import opened_cycles
from metering.store.registry import (
    Fleet,
    calendar_of,
    fleets_of_devices,
    lock_shard,
    plan_terms,
    subscriptions_of_devices,
    try_lock_shard,
)
from metering.store.reservations import (
    NewReservation,
    Reservation,
    active_reservation,
    device_state,
    expired_in_shard,
    insert_reservation,
    recent_use,
    recently_ended,
    reservation_of_request,
    shards_of_device,
    shards_with_expired,
)
from metering.store.work import next_run_no
from metering.usage import Meter
from metering.wire.quota import QuotaRefusal

_EXPIRED_AT_ONCE = 1000
_RATE_SECONDS_MIN = 60
"""A grant that was used up sooner says no more of the burn rate than if it had held so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why a request for quota was not met; nothing was changed.

    `field` is what of the request contradicts what was done before, "" where that is not the reason.
    """

    reason: QuotaRefusal
    detail: str
    field: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRequest:
    """What a device asks for: quota of a meter under a name of its own.

    `quantity` is the most that it wants, None for as much as it will likely use; `used` what it used
    of the grant that this one replaces; `zone` where it is, as its readings tell it.
    """

    request_id: str
    meter: Meter
    quantity: int | None = None
    used: int | None = None
    zone: str | None = None


def rule_of(settings: Settings, meter: Meter) -> QuotaRule:
    """Return how grants of a meter are sized."""
    quantity_min, quantity_max = {
        "octet": (settings.quota_octets_min, settings.quota_octets_max),
        "second": (settings.quota_seconds_min, settings.quota_seconds_max),
        "message": (settings.quota_messages_min, settings.quota_messages_max),
    }[meter.unit]
    return QuotaRule(
        validity_seconds=settings.quota_validity_seconds,
        quantity_min=quantity_min,
        quantity_max=quantity_max,
        share=Fraction(settings.quota_pool_share_percent, 100),
        headroom=Fraction(settings.quota_headroom_percent, 100),
        report_seconds=settings.quota_report_seconds,
        final_action=FinalAction(settings.quota_final_action),
    )


async def reserve(
    connection: Connection, device_no: int, request: QuotaRequest, rule: QuotaRule, *, now: datetime
) -> Reservation | Refused:
    """Grant quota to a device, in place of the grant of this meter that it has.

    The same request again gets the same answer. A grant of nothing tells what the device does now that
    nothing is left, and until when that holds.
    """
    async with _owning(connection, device_no):
        known = await reservation_of_request(connection, device_no, request.request_id)
        if known is not None:
            return _same(known, request)
        placed = await _placed(connection, device_no, request, now=now)
        if isinstance(placed, Refused):
            return placed
        run_no = await next_run_no(connection)
        recent = await recent_use(connection, device_no, request.meter.meter_no, now)
        active = await active_reservation(connection, device_no, request.meter.meter_no)
        if active is not None:
            (replaced,) = await end_reservations(
                connection, [active], run_no=run_no, now=now, used=request.used, replaced=True
            )
            recent.append(_rate_of(replaced, now))
        return await _grant(
            connection,
            placed,
            request,
            rule,
            recent=recent,
            replaced=active,
            run_no=run_no,
            now=now,
        )


def _same(known: Reservation, request: QuotaRequest) -> Reservation | Refused:
    """Return what a request was granted that is asked again, unless it asks for something else."""
    asked = (request.meter.meter_no, request.quantity, request.zone)
    if (known.meter_no, known.requested, known.zone) != asked:
        return Refused(
            reason=QuotaRefusal.REQUEST_CONFLICT,
            detail=f"request {request.request_id!r} asked for something else before; take a new id",
            field="request",
        )
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """Whom a request concerns, and the usage record that its use would be now."""

    device_no: int
    fleet: Fleet
    record: UsageRecord


async def _placed(
    connection: Connection, device_no: int, request: QuotaRequest, *, now: datetime
) -> _Placed | Refused:
    """Find the fleet, the subscription, the zone and the open cycle in which use now would be charged."""
    state = await device_state(connection, device_no, now)
    if state != DeviceState.ACTIVE:
        return Refused(
            reason=QuotaRefusal.NOT_ACTIVE,
            detail=f"the device is {state or 'in no state yet'}; have it activated",
        )
    fleets, members, _ = await fleets_of_devices(connection, [device_no])
    subscriptions = (await subscriptions_of_devices(connection, [device_no]))[device_no]
    plans = await plan_terms(connection, sorted({each.plan_no for each in subscriptions}))
    records = guided_records(
        Usage(0, 0, now, now, zone=request.zone),
        meter=request.meter.meter,
        fleet_no=members[device_no],
        fleets={number: FleetTerms(number, calendar_of(each)) for number, each in fleets.items()},
        subscriptions=subscriptions,
        plans=plans,
    )
    if isinstance(records, ParkReason):
        return Refused(
            reason=QuotaRefusal(records.value),
            detail=f"use of {request.meter.meter} could not be charged now: {records.value}",
        )
    cycle = records[0].cycle
    fleet = fleets[records[0].subscription.fleet_no]
    key = (fleet.fleet_no, cycle.start)
    if key not in await opened_cycles(connection, [key]):
        await open_cycle(connection, fleet, cycle, now=now)
    return _Placed(device_no=device_no, fleet=fleet, record=records[0])


async def _grant(
    connection: Connection,
    placed: _Placed,
    request: QuotaRequest,
    rule: QuotaRule,
    *,
    recent: Sequence[RecentUse],
    replaced: Reservation | None,
    run_no: int,
    now: datetime,
) -> Reservation:
    """Hold a grant in the buckets that use now would draw from, and store it."""
    fleet_no, record = placed.fleet.fleet_no, placed.record
    subscription, meter = record.subscription, request.meter
    plans = await plan_terms(connection, [subscription.plan_no])
    of_meter = plans[subscription.plan_no].meters[meter.meter]
    key = (subscription.subscription_no, meter.meter_no)
    wanted = Wanted(
        uses={},
        counts={},
        meters={key: (fleet_no, subscription)} if of_meter.allowances else {},
        owners={(fleet_no, placed.device_no, meter.meter_no)},
        first=now,
        last=now,
    )
    loaded = await load_accounts(connection, wanted, plans)
    lots = loaded.lots.drawn_by(fleet_no, subscription, of_meter, record.cycle)
    ends = record.cycle.end
    if subscription.valid_to is not None:
        ends = min(ends, subscription.valid_to)
    grant = core.reserve(
        subscription.subscription_no,
        [lot for lot in burn_order(lots) if lot.admits(now, record.zone, record.band)],
        now=now,
        ends=ends,
        requested=request.quantity,
        recent=recent,
        rule=rule,
    )
    since = now - timedelta(seconds=rule.report_seconds)
    ended = await recently_ended(connection, placed.device_no, meter.meter_no, since)
    await store_buckets(connection, loaded)
    return await insert_reservation(
        connection,
        NewReservation(
            request_id=request.request_id,
            device_no=placed.device_no,
            fleet_no=fleet_no,
            subscription_no=subscription.subscription_no,
            meter_no=meter.meter_no,
            zone=request.zone,
            requested=request.quantity,
            overshoot_bound=overshoot_bound(grant.quantity, ended),
            rounded_up=of_meter.rounds_up,
            replaces_no=None if replaced is None else replaced.reservation_no,
        ),
        grant,
        run_no=run_no,
        now=now,
    )


def _rate_of(ended: Reservation, now: datetime) -> RecentUse:
    """Return what a grant that ends tells of the burn rate: what was charged of it, or what was said."""
    quantity = max(ended.drawn or 0, min(ended.used or 0, ended.granted))
    seconds = int((now - ended.granted_at).total_seconds())
    return RecentUse(quantity, max(_RATE_SECONDS_MIN, seconds))


async def settle(
    connection: Connection, device_no: int, request_id: str, *, used: int, now: datetime
) -> Reservation | Refused:
    """End a grant with what the device used of it; what is still held of it is everybody's again.

    What was used is charged when its readings come, whether that was before or is after this. A grant
    that has ended is returned as it ended, unless it was settled with another quantity.
    """
    return await _end(connection, device_no, request_id, used=used, now=now)


async def release(
    connection: Connection, device_no: int, request_id: str, *, now: datetime
) -> Reservation | Refused:
    """End a grant that the device gives back; one that has ended is returned as it ended."""
    return await _end(connection, device_no, request_id, used=None, now=now)


async def _end(
    connection: Connection, device_no: int, request_id: str, *, used: int | None, now: datetime
) -> Reservation | Refused:
    async with _owning(connection, device_no):
        known = await reservation_of_request(connection, device_no, request_id)
        if known is None:
            return Refused(
                reason=QuotaRefusal.UNKNOWN_REQUEST,
                detail=f"the device was granted nothing as {request_id!r}; use a request's own id",
            )
        if known.state == core.ReservationState.SETTLED and used not in {None, known.used}:
            return Refused(
                reason=QuotaRefusal.REQUEST_CONFLICT,
                detail=f"{request_id!r} was settled with {known.used} used, which stays so;"
                f" send {known.used} again",
                field="used",
            )
        if known.state != core.ReservationState.ACTIVE:
            return known
        run_no = await next_run_no(connection)
        (ended,) = await end_reservations(connection, [known], run_no=run_no, now=now, used=used)
        return ended


async def expire_due(connection: Connection, *, now: datetime) -> int:
    """End every grant whose time is over; return how many.

    Each shard's is a transaction of its own. A shard that somebody else owns is left for the next look.
    """
    async with connection.transaction():
        shards = await shards_with_expired(connection, now)
    ended = 0
    for shard_no in shards:
        while True:
            async with connection.transaction():
                if not await try_lock_shard(connection, shard_no):
                    break
                due = await expired_in_shard(connection, shard_no, now, _EXPIRED_AT_ONCE)
                if not due:
                    break
                run_no = await next_run_no(connection)
                ended += len(await end_reservations(connection, due, run_no=run_no, now=now))
            if len(due) < _EXPIRED_AT_ONCE:
                break
    return ended


@asynccontextmanager
async def _owning(connection: Connection, device_no: int) -> AsyncIterator[None]:
    """Own the shards of a device's fleet and of its active grants, in a transaction of its own.

    The two differ once a device has moved; it may move while its shards are waited for.
    """
    while True:
        async with connection.transaction():
            shards = await shards_of_device(connection, device_no)
            for shard_no in shards:
                await lock_shard(connection, shard_no)
            if set(await shards_of_device(connection, device_no)) <= set(shards):
                yield
                return
            raise psycopg.Rollback
