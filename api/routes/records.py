"""Usage records and charges, one by one, with the filters that narrow them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query

from api import usage_schemas as schemas
from api.auth import AsCaller
from api.errors import bad_input
from api.parameters import (
    ChargeId,
    Cursor,
    Instant,
    Limit,
    OfDevice,
    OfFleet,
    OfMeter,
    OfPlan,
    OfPlanVersion,
    OfVariant,
    OfZone,
    cursor_of,
    read_cursor,
)
from api.plan_filters import plan_must_exist
from api.routes.charges import charge_id_of, charge_of, prices_of
from metering.plan_document import stored_terms
from metering.rating.plan import PlanTerms
from metering.store.bill_views import BilledPlan, billed_plans
from metering.store.device_views import device_view
from metering.store.fleet_views import fleet_view
from metering.store.record_views import (
    RecordKey,
    RecordsWanted,
    RecordView,
    key_of,
    list_records,
    plans_used,
    record_view,
)
from metering.usage import METERS_BY_NO

_SPAN_MAX = timedelta(days=31)

router = APIRouter(prefix="/v1", tags=["usage"])

_MeasuredFrom = Annotated[
    Instant | None,
    Query(description="only measured from then on; unset: 31 days before `measured_to`"),
]
_MeasuredTo = Annotated[
    Instant | None,
    Query(
        description="only measured before; unset: up to the last; at most 31 days after `measured_from`"
    ),
]
_ReceivedFrom = Annotated[Instant | None, Query(description="only received from then on")]
_ReceivedTo = Annotated[Instant | None, Query(description="only received before")]


async def _wanted(
    *,
    caller: AsCaller,
    fleet_id: OfFleet = None,
    device_id: OfDevice = None,
    meter: OfMeter = None,
    zone: OfZone = None,
    plan: OfPlan = None,
    plan_version: OfPlanVersion = None,
    variant: OfVariant = None,
    measured_from: _MeasuredFrom = None,
    measured_to: _MeasuredTo = None,
    received_from: _ReceivedFrom = None,
    received_to: _ReceivedTo = None,
) -> RecordsWanted:
    """Find which records a request means."""
    if plan_version is not None and plan is None:
        raise bad_input("plan_version", "is given without 'plan'", "give both, or the plan alone")
    if variant is not None and meter is None:
        raise bad_input("variant", "is given without 'meter'", "give both, or the meter alone")
    begins = measured_from or (measured_to or caller.now) - _SPAN_MAX
    if measured_to is not None and not begins < measured_to <= begins + _SPAN_MAX:
        raise bad_input(
            "measured_to",
            "is not within 31 days after 'measured_from'",
            "ask for at most 31 days at a time",
        )
    if measured_to is None and begins < caller.now - _SPAN_MAX:
        raise bad_input(
            "measured_from",
            "is more than 31 days ago, without 'measured_to'",
            "ask for at most 31 days at a time",
        )
    await plan_must_exist(caller, plan, plan_version)
    fleet_no = device_no = None
    if fleet_id is not None:
        fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
        fleet_no = fleet.fleet_no
    if device_id is not None:
        device = await device_view(
            caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
        )
        device_no = device.device_no
    prices = None
    if plan is not None or meter is not None:
        rows = await plans_used(
            caller.connection,
            caller.tenant_no,
            fleet_no=fleet_no,
            device_no=device_no,
            plan_id=plan,
            version=plan_version,
        )
        terms = {row.plan_no: stored_terms(row.terms, row.subunits_per_unit) for row in rows}
        prices = prices_of(terms, meter, variant)
    return RecordsWanted(
        fleet_no=fleet_no,
        device_no=device_no,
        measured_from=begins,
        measured_to=measured_to,
        received_from=received_from,
        received_to=received_to,
        prices=prices,
        zone=zone,
    )


_Wanted = Annotated[RecordsWanted, Depends(_wanted, scope="function")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    plan_id: str
    version: int
    terms: PlanTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class _PageOfRecords:
    rows: Sequence[RecordView]
    plans: Mapping[int, _Plan]
    next_cursor: str | None


async def _page(
    caller: AsCaller, wanted: RecordsWanted, limit: int, cursor: str | None
) -> _PageOfRecords:
    before = cast("RecordKey", tuple(read_cursor(cursor, "iii"))) if cursor else None
    rows = await list_records(
        caller.connection, caller.tenant_no, wanted, before=before, limit=limit + 1
    )
    plans = await billed_plans(
        caller.connection, caller.tenant_no, plan_nos=sorted({row.plan_no for row in rows})
    )
    return _PageOfRecords(
        rows=rows[:limit],
        plans={row.plan_no: _plan(row) for row in plans},
        next_cursor=cursor_of(key_of(wanted, rows[limit - 1])) if len(rows) > limit else None,
    )


@router.get("/usage-records")
async def get_usage_records(
    caller: AsCaller, wanted: _Wanted, limit: Limit = 100, cursor: Cursor = None
) -> schemas.UsageRecords:
    """List usage records as they are charged: the last charged first, or a device's by boot and number.

    A reading that waits is not among them yet, and what cannot be charged is under `/v1/parked`.
    """
    page = await _page(caller, wanted, limit, cursor)
    return schemas.UsageRecords(
        items=[_record(row, page.plans[row.plan_no]) for row in page.rows],
        next_cursor=page.next_cursor,
    )


@router.get("/usage-records/{record_id}")
async def get_usage_record(
    caller: AsCaller,
    record_id: ChargeId,
) -> schemas.UsageRecord:
    """Show one usage record as it is charged."""
    boot_no, seq, part = map(int, record_id.split("-"))
    row = await record_view(
        caller.connection, caller.tenant_no, boot_no=boot_no, seq=seq, part=part
    )
    (plan,) = await billed_plans(caller.connection, caller.tenant_no, plan_nos=[row.plan_no])
    return _record(row, _plan(plan))


@router.get("/charges")
async def get_charges(
    caller: AsCaller, wanted: _Wanted, limit: Limit = 100, cursor: Cursor = None
) -> schemas.Charges:
    """List what usage records are charged, in the order of usage records, each with its explanation."""
    page = await _page(caller, wanted, limit, cursor)
    return schemas.Charges(
        items=[_charge(row, page.plans[row.plan_no]) for row in page.rows],
        next_cursor=page.next_cursor,
    )


def _plan(row: BilledPlan) -> _Plan:
    terms = stored_terms(row.terms, row.subunits_per_unit)
    return _Plan(plan_id=row.plan_id, version=row.version, terms=terms)


def _record(row: RecordView, plan: _Plan) -> schemas.UsageRecord:
    meter = METERS_BY_NO[row.meter_no]
    charge_id = charge_id_of((row.boot_no, row.seq, row.part))
    return schemas.UsageRecord(
        record_id=charge_id,
        fleet_id=row.fleet_id,
        device_id=row.device_id,
        boot_id=row.boot_id,
        seq=row.seq,
        part=row.part,
        meter=meter.meter,
        unit=meter.unit,
        quantity=row.quantity,
        uplink_quantity=row.uplink,
        usage_from=row.usage_from,
        usage_to=row.usage_to,
        measured_at=row.measured_at,
        received_at=row.received_at,
        charged_at=row.charged_at,
        zone=row.zone,
        rat=row.rat,
        apn=row.apn,
        session=row.session,
        plan_id=plan.plan_id,
        plan_version=plan.version,
        variant=plan.terms.meters[meter.meter].label(row.variant),
        corrected=row.correction_no is not None,
        charge=f"/v1/charges/{charge_id}",
    )


def _charge(row: RecordView, plan: _Plan) -> schemas.ListedCharge:
    shown = charge_of(row, plan.plan_id, plan.version, plan.terms)
    return schemas.ListedCharge(
        **shown.model_dump(),
        fleet_id=row.fleet_id,
        currency=row.currency,
        cycle_start=row.cycle_start,
        explanation=f"/v1/charges/{shown.charge_id}",
    )
