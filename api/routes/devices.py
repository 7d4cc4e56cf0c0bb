"""Devices: state, subscription, what arrived of them and what they have left."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from api import etags, presenting, schemas
from api.auth import AsCaller, Caller
from api.parameters import (
    At,
    Cursor,
    DeviceId,
    Limit,
    OfFleet,
    OfLabel,
    OfTag,
    Search,
    checked_at,
    cursor_of,
    label_of,
    read_cursor,
)
from api.plan_filters import plan_must_exist
from api.spans import Within
from metering.ids import ID_PATTERN
from metering.plan_document import stored_terms
from metering.rating.bucket import Bucket, BucketKind, burn_order
from metering.rating.grants import lot_of
from metering.rating.lots import top_up_lot
from metering.rating.plan import MeterTerms, PlanTerms, SharedBy
from metering.sequence import SequenceSet
from metering.store.bucket_views import LotView, own_lots, pool_lots, top_ups_of_device
from metering.store.device_views import (
    BootView,
    DeviceFilter,
    DeviceView,
    SubscriptionMeterView,
    SubscriptionView,
    boots_of_device,
    device_view,
    last_flood,
    list_devices,
    meters_of_subscriptions,
    subscriptions_in_cycle,
)
from metering.store.fleet_views import FleetView, cycle_opened_at, fleet_view
from metering.store.past_balances import fleet_then, lots_then, meters_then, subscriptions_then
from metering.store.registry import calendar_of
from metering.usage import METERS

_GAPS_MAX = 32
_BOOTS_MAX = 21

router = APIRouter(prefix="/v1", tags=["devices"])


OfState = Annotated[
    Literal["inventory", "active", "suspended", "retired"] | None,
    Query(alias="state", description="only those that are in this state now"),
]
_OfPlan = Annotated[
    str | None,
    Query(alias="plan", pattern=ID_PATTERN, description="only those that are on this plan now"),
]
OfIccid = Annotated[
    str | None,
    Query(
        alias="iccid",
        pattern=r"^[0-9]{17,20}$",
        description="only the one with this SIM; with or without the check digit",
    ),
]
OfImsi = Annotated[
    str | None,
    Query(alias="imsi", pattern=r"^[0-9]{6,15}$", description="only the one with this SIM"),
]
OfImei = Annotated[
    str | None, Query(alias="imei", pattern=r"^[0-9]{14,16}$", description="only those with it")
]
OfEid = Annotated[
    str | None, Query(alias="eid", pattern=r"^[0-9]{32}$", description="only those with it")
]
OfMsisdn = Annotated[
    str | None,
    Query(alias="msisdn", pattern=r"^[1-9][0-9]{4,14}$", description="only those with it"),
]

EDITABLE = frozenset({"name", "imei", "eid", "msisdn", "tags", "labels"})
"""What of a device people may change, of which its entity tag tells."""


@router.get("/devices")
async def get_devices(
    *,
    caller: AsCaller,
    within: Within,
    fleet_id: OfFleet = None,
    state: OfState = None,
    plan_id: _OfPlan = None,
    tag: OfTag = None,
    label: OfLabel = None,
    search: Search = None,
    iccid: OfIccid = None,
    imsi: OfImsi = None,
    imei: OfImei = None,
    eid: OfEid = None,
    msisdn: OfMsisdn = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.Devices:
    """List devices, ascending by id: all, or those of which all that is given is so now."""
    fleet_no = None
    if fleet_id is not None:
        fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
        fleet_no = fleet.fleet_no
    await plan_must_exist(caller, plan_id)
    rows = await list_devices(
        caller.connection,
        caller.tenant_no,
        fleet_no=fleet_no,
        which=DeviceFilter(
            state=state,
            plan_id=plan_id,
            tag=tag,
            label=label_of(label),
            text=search,
            iccid=iccid,
            imsi=imsi,
            imei=imei,
            eid=eid,
            msisdn=msisdn,
        ),
        after=str(read_cursor(cursor, "s")[0]) if cursor else "",
        limit=limit + 1,
        during=within,
        now=caller.now,
    )
    more = len(rows) > limit
    return schemas.Devices(
        items=[shown_device(row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].device_id]) if more else None,
    )


@router.get("/devices/{device_id}")
async def get_device(
    caller: AsCaller, device_id: DeviceId, response: Response
) -> schemas.DeviceDetail:
    """Show one device: its state, its plan, and which readings of it are missing."""
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    boots = await boots_of_device(
        caller.connection, caller.tenant_no, device_no=device.device_no, most=_BOOTS_MAX
    )
    shown = shown_device(device)
    etags.tagged(response, shown, EDITABLE)
    flood = await last_flood(caller.connection, caller.tenant_no, device_no=device.device_no)
    return schemas.DeviceDetail(
        **shown.model_dump(),
        last_boot=_boot(boots[0]) if boots else None,
        earlier_boots_with_gaps=[_boot(boot) for boot in boots[1:]],
        last_flood=None
        if flood is None
        else schemas.Flood(
            held_from=flood.held_from,
            held_until=flood.held_until,
            messages=flood.messages,
            octets=flood.octets,
            seconds=flood.seconds,
        ),
    )


@router.get("/devices/{device_id}/balance")
async def get_device_balance(
    caller: AsCaller, device_id: DeviceId, at: At = None
) -> schemas.DeviceBalance:
    """Show what a device has left in its cycle, and what its overage costs: now, or as it was at a moment."""
    checked_at(at, caller.now)
    connection, tenant_no = caller.connection, caller.tenant_no
    then = at or caller.now
    device = await device_view(connection, tenant_no, device_id=device_id, now=then)
    fleet_id = device.fleet_id
    if at is not None:
        was_in = await fleet_then(connection, tenant_no, device_no=device.device_no, at=at)
        fleet_id = was_in or fleet_id
    fleet = await fleet_view(connection, tenant_no, fleet_id=fleet_id)
    cycle = calendar_of(fleet).cycle_at(then)
    opened_at = await cycle_opened_at(
        connection, tenant_no, fleet_no=fleet.fleet_no, cycle_start=cycle.start
    )
    held = await (
        _held(caller, device, fleet) if at is None else _held_then(caller, device, fleet, at)
    )
    subscriptions, used, lots = held
    uses = {(row.subscription_no, row.meter_no): row for row in used}
    return schemas.DeviceBalance(
        device_id=device.device_id,
        fleet_id=fleet.fleet_id,
        cycle=presenting.cycle(cycle),
        cycle_opened_at=opened_at if opened_at is not None and opened_at <= then else None,
        meters=[
            balance
            for subscription in subscriptions
            for balance in _balances(subscription, uses, lots)
        ],
    )


_Held = tuple[list[SubscriptionView], list[SubscriptionMeterView], list[LotView]]
"""Subscriptions in a cycle, what was used of them, and the lots from which they draw."""


async def _held(caller: Caller, device: DeviceView, fleet: FleetView) -> _Held:
    """Return what a device has now, from what charging maintains."""
    connection, tenant_no = caller.connection, caller.tenant_no
    cycle = calendar_of(fleet).cycle_at(caller.now)
    subscriptions = await subscriptions_in_cycle(
        connection,
        tenant_no,
        device_no=device.device_no,
        cycle_start=cycle.start,
        cycle_end=cycle.end,
    )
    used = await meters_of_subscriptions(
        connection,
        tenant_no,
        device_no=device.device_no,
        subscription_nos=[each.subscription_no for each in subscriptions],
        cycle_start=cycle.start,
    )
    own, pools = await _lots(caller, device, fleet, subscriptions, caller.now)
    return subscriptions, used, own + pools


async def _held_then(caller: Caller, device: DeviceView, fleet: FleetView, at: datetime) -> _Held:
    """Return what a device had at a past moment, from what was entered and charged by then."""
    connection = caller.connection
    cycle = calendar_of(fleet).cycle_at(at)
    subscriptions = await subscriptions_then(
        connection,
        caller.tenant_no,
        device_no=device.device_no,
        cycle_start=cycle.start,
        cycle_end=cycle.end,
        at=at,
    )
    used = await meters_then(
        connection,
        device_no=device.device_no,
        fleet_no=fleet.fleet_no,
        cycle_start=cycle.start,
        at=at,
    )
    own, pools = await _lots(caller, device, fleet, subscriptions, at)
    own = await lots_then(
        connection, own, fleet_no=fleet.fleet_no, device_no=device.device_no, at=at
    )
    return (
        subscriptions,
        used,
        own + await lots_then(connection, pools, fleet_no=fleet.fleet_no, device_no=None, at=at),
    )


async def _lots(
    caller: Caller,
    device: DeviceView,
    fleet: FleetView,
    subscriptions: Sequence[SubscriptionView],
    now: datetime,
) -> tuple[list[LotView], list[LotView]]:
    """Return the lots from which a device alone draws, and those that it shares."""
    connection, tenant_no = caller.connection, caller.tenant_no
    own = await own_lots(
        connection,
        tenant_no,
        device_no=device.device_no,
        subscription_nos=[each.subscription_no for each in subscriptions],
        now=now,
    )
    own += await top_ups_of_device(
        connection,
        tenant_no,
        device_no=device.device_no,
        fleet_no=fleet.fleet_no,
        now=now,
    )
    return own, await pool_lots(connection, tenant_no, fleet_no=fleet.fleet_no, now=now)


def shown_device(device: DeviceView) -> schemas.Device:
    """Present a device."""
    return schemas.Device.model_validate(
        {
            "device_id": device.device_id,
            "fleet_id": device.fleet_id,
            "iccid": device.iccid,
            "imsi": device.imsi,
            "imei": device.imei,
            "eid": device.eid,
            "msisdn": device.msisdn,
            "name": device.name,
            "tags": device.tags,
            "labels": device.labels,
            "state": device.state,
            "state_since": device.state_since,
            "subscription": presenting.subscription(
                plan_id=device.plan_id,
                version=device.plan_version,
                start=device.subscribed_from,
                end=device.subscribed_to,
            ),
            "created_at": device.created_at,
        }
    )


def _boot(boot: BootView) -> schemas.Boot:
    arrived = SequenceSet.from_flattened(boot.up_to, boot.beyond)
    gaps, _ = arrived.gaps(_GAPS_MAX)
    held = arrived.up_to + sum(last - first + 1 for first, last in arrived.beyond)
    return schemas.Boot(
        boot_id=boot.boot_id,
        first_seen_at=boot.first_seen_at,
        up_to_seq=arrived.up_to,
        highest_seq=arrived.highest,
        missing_readings=arrived.highest - held,
        gaps=[schemas.Gap(first_seq=first, last_seq=last) for first, last in gaps],
    )


def _balances(
    subscription: SubscriptionView,
    uses: Mapping[tuple[int, int], SubscriptionMeterView],
    lots: Sequence[LotView],
) -> list[schemas.MeterBalance]:
    terms = stored_terms(subscription.terms, subscription.subunits_per_unit)
    metered = (meter_terms for name, meter_terms in terms.meters.items() if name in METERS)
    return [
        _balance(
            subscription,
            terms,
            meter_terms,
            uses.get((subscription.subscription_no, METERS[meter_terms.meter].meter_no)),
            lots,
        )
        for meter_terms in sorted(metered, key=lambda each: METERS[each.meter].meter_no)
    ]


def _balance(
    subscription: SubscriptionView,
    terms: PlanTerms,
    meter_terms: MeterTerms,
    used: SubscriptionMeterView | None,
    lots: Sequence[LotView],
) -> schemas.MeterBalance:
    meter = METERS[meter_terms.meter]
    buckets = _buckets(subscription, meter_terms, lots)
    return schemas.MeterBalance(
        meter=meter.meter,
        unit=meter.unit,
        plan_id=subscription.plan_id,
        plan_version=subscription.plan_version,
        subscribed_from=subscription.subscribed_from,
        subscribed_to=subscription.subscribed_to,
        allowance=presenting.sum_of([each for each in buckets if each.kind == "allowance"]),
        pool=presenting.sum_of([each for each in buckets if each.kind == "pool"]),
        buckets=buckets,
        quantity=used.quantity if used else 0,
        uplink_quantity=used.uplink if used else 0,
        billed_quantity=used.billed if used else 0,
        in_allowance_quantity=used.from_allowance if used else 0,
        from_pool_quantity=used.from_pool if used else 0,
        overage_quantity=used.overage if used else 0,
        overage=presenting.money(terms.money(used.amount if used else 0)),
    )


def _buckets(
    subscription: SubscriptionView, meter_terms: MeterTerms, lots: Sequence[LotView]
) -> list[schemas.NamedBucket]:
    """Return what the subscription's meter draws from now, in the order in which it burns."""
    drawn_from = {
        _drawn_from(subscription, each.shared_by, each.name): each
        for each in meter_terms.allowances
    }
    held: dict[str, LotView] = {}
    buckets = []
    for lot in lots:
        if lot.meter_no != METERS[meter_terms.meter].meter_no:
            continue
        number = f"{lot.bucket_no:020}"
        if lot.source == "top_up":
            bucket = _top_up(lot, number)
        else:
            allowance = drawn_from.get((lot.subscription_no, lot.plan_no, lot.name))
            if allowance is None:
                continue
            bucket = lot_of(
                allowance, bucket_id=number, begins_at=lot.begins_at, expires_at=lot.expires_at
            )
        held[number] = lot
        buckets.append(bucket)
    return [
        schemas.NamedBucket(
            name=bucket.name,
            kind="pool" if bucket.kind is BucketKind.POOL else "allowance",
            source=lot.source,
            bucket_no=lot.bucket_no,
            begins_at=lot.begins_at,
            expires_at=lot.expires_at,
            granted=lot.granted,
            used=lot.used,
            left=lot.granted - lot.used,
            reserved=lot.reserved,
        )
        for bucket in burn_order(buckets)
        for lot in [held[bucket.bucket_id]]
    ]


def _top_up(lot: LotView, number: str) -> Bucket:
    return top_up_lot(
        bucket_id=number,
        name=lot.name,
        of_device=lot.device_no is not None,
        priority=lot.priority or 0,
        zones=lot.zones,
        begins_at=lot.begins_at,
        expires_at=lot.expires_at,
    )


def _drawn_from(
    subscription: SubscriptionView, shared_by: SharedBy, name: str
) -> tuple[int | None, int | None, str]:
    """Return the subscription_no, plan_no and name that an allowance's lots bear."""
    match shared_by:
        case SharedBy.DEVICE:
            return (subscription.subscription_no, None, name)
        case SharedBy.PLAN:
            return (None, subscription.plan_no, name)
        case SharedBy.FLEET:
            return (None, None, name)
