"""From a bill's lines to devices, charges and readings, and back; and why a charge costs what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from http import HTTPStatus
from typing import Annotated, Literal, TypedDict, cast

from fastapi import APIRouter, Depends, Query

from api import charges_schemas as schemas
from api import presenting
from api.auth import AsCaller, Caller
from api.errors import ProblemError, bad_input
from api.parameters import (
    ChargeId,
    Cursor,
    DeviceId,
    FleetId,
    Instant,
    KnownAt,
    Limit,
    OfDevice,
    OfMeter,
    OfPlan,
    OfPlanVersion,
    OfVariant,
    checked_known_at,
    cursor_of,
    number_after,
    read_cursor,
)
from api.plan_filters import plan_must_exist
from api.spans import Within
from metering.billing.bill import Bill, bill_so_far
from metering.billing.known_bill import NotKnownError, bill_known_at
from metering.errors import InvalidValue
from metering.insight import line_fees
from metering.insight.explain import Explained, explained_charge, explained_reading
from metering.money import decimal_text
from metering.period import BillCycle
from metering.plan_document import stored_terms
from metering.rating.explanation import amount_text, quantity_text, skipped, stated_of, step_text
from metering.rating.plan import PlanTerms
from metering.rating.recurring import FeeItem
from metering.rating.statement import LineKind
from metering.store.charge_views import (
    ChargeKey,
    ChargeSums,
    ChargesWanted,
    ChargeView,
    PriceKey,
    ReadingView,
    list_charges,
    list_readings,
    sum_of_charges,
    sums_of_devices,
)
from metering.store.closing import ClosedCycle, closed_cycle
from metering.store.device_views import device_view
from metering.store.fleet_views import FleetView, fleet_view
from metering.store.known_views import Known
from metering.store.record_views import RecordView, plans_used
from metering.store.registry import fleet_rule
from metering.usage import METERS, METERS_BY_NO, ReadingKind
from metering.wire.identity import BY_ID, BY_TIME

router = APIRouter(prefix="/v1", tags=["charges"])

_At = Annotated[
    Instant | None, Query(description="an instant of the cycle; unset: the present one")
]
_MADE_OF: Mapping[LineKind, str] = {
    LineKind.BASE: "what the price costs at no quantity, for each device or once; no charge holds it",
    LineKind.MINIMUM: "what brings the price up to its minimum, beyond what charges come to",
    LineKind.FEE: "subscriptions and states, whatever was used; …/bill/fees names its devices",
    LineKind.ADJUSTMENT: "a discount, credit, commitment or maximum on the sums of other lines",
}
_LATE = "what a closed cycle owes since: its charges are found under that cycle, with known_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfBill:
    """Which part of which bill is asked for, and the terms of the plans that it may name."""

    fleet: FleetView
    cycle: BillCycle
    as_of: datetime
    closed_at: datetime | None
    wanted: ChargesWanted
    plans: Mapping[int, tuple[str, int, PlanTerms]]
    plan_id: str | None
    version: int | None
    known_at: datetime | None
    closed: ClosedCycle | None


async def _of_bill(
    caller: AsCaller,
    *,
    fleet_id: FleetId,
    at: _At = None,
    known_at: KnownAt = None,
    plan: OfPlan = None,
    plan_version: OfPlanVersion = None,
    meter: OfMeter = None,
    variant: OfVariant = None,
    device_id: OfDevice = None,
) -> _OfBill:
    """Find which charges a request means; refuse what no line of a bill can be."""
    checked_known_at(known_at, caller.now)
    if plan_version is not None and plan is None:
        raise bad_input("plan_version", "is given without 'plan'", "give both, or the plan alone")
    if variant is not None and meter is None:
        raise bad_input("variant", "is given without 'meter'", "give both, or the meter alone")
    await plan_must_exist(caller, plan, plan_version)
    fleet = await fleet_view(caller.connection, caller.tenant_no, fleet_id=fleet_id)
    device_no = None
    if device_id is not None:
        device = await device_view(
            caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
        )
        device_no = device.device_no
    cycle = fleet_rule(fleet, []).cycle_of(at or known_at or caller.now)
    closed = await closed_cycle(caller.connection, (fleet.fleet_no, cycle.start))
    frozen = closed if known_at is None else None
    known = Known(before_run=frozen.run_no) if frozen else Known(at=known_at)
    rows = await plans_used(
        caller.connection,
        caller.tenant_no,
        fleet_no=fleet.fleet_no,
        device_no=None,
        plan_id=plan,
        version=plan_version,
    )
    plans = {
        row.plan_no: (row.plan_id, row.version, stored_terms(row.terms, row.subunits_per_unit))
        for row in rows
    }
    is_narrowed = plan is not None or meter is not None
    return _OfBill(
        fleet=fleet,
        cycle=cycle,
        as_of=known_at or caller.now,
        closed_at=frozen.closed_at if frozen else None,
        wanted=ChargesWanted(
            fleet_no=fleet.fleet_no,
            cycle_start=cycle.start,
            known=known,
            prices=prices_of({no: terms for no, (_, _, terms) in plans.items()}, meter, variant)
            if is_narrowed
            else None,
            device_no=device_no,
        ),
        plans=plans,
        plan_id=plan,
        version=plan_version,
        known_at=known_at,
        closed=closed,
    )


_Part = Annotated[_OfBill, Depends(_of_bill, scope="function")]


async def _of_fees(
    caller: AsCaller,
    *,
    fleet_id: FleetId,
    at: _At = None,
    known_at: KnownAt = None,
    plan: OfPlan = None,
    plan_version: OfPlanVersion = None,
    device_id: OfDevice = None,
) -> _OfBill:
    return await _of_bill(
        caller,
        fleet_id=fleet_id,
        at=at,
        known_at=known_at,
        plan=plan,
        plan_version=plan_version,
        device_id=device_id,
    )


_Fees = Annotated[_OfBill, Depends(_of_fees, scope="function")]


@router.get("/fleets/{fleet_id}/bill/devices")
async def get_bill_devices(
    caller: AsCaller,
    part: _Part,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.BillDevices:
    """List the devices behind a bill's usage lines with their sums, which add up to the lines exactly.

    Of a closed cycle, as it was when it closed; with `known_at`, with all that had come by then.
    """
    after = str(read_cursor(cursor, "s")[0]) if cursor else ""
    rows = await sums_of_devices(
        caller.connection, caller.tenant_no, part.wanted, after=after, limit=limit + 1
    )
    more = len(rows) > limit
    return schemas.BillDevices(
        fleet_id=part.fleet.fleet_id,
        currency=part.fleet.currency,
        cycle=presenting.cycle(part.cycle),
        as_of=part.as_of,
        closed_at=part.closed_at,
        sum=schemas.ChargeSums(
            **sums_of(await sum_of_charges(caller.connection, caller.tenant_no, part.wanted))
        ),
        rolled_up=[] if cursor else await _rolled_up(caller, part),
        items=[
            schemas.DeviceSums(device_id=row.device_id or "", **sums_of(row))
            for row in rows[:limit]
        ],
        next_cursor=cursor_of([rows[limit - 1].device_id or ""]) if more else None,
    )


@router.get("/fleets/{fleet_id}/bill/charges")
async def get_bill_charges(
    caller: AsCaller,
    part: _Part,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.BillCharges:
    """List the charges behind a bill's usage lines, which add up to the lines exactly, as measured.

    Of a closed cycle, as they were when it closed; with `known_at`, all that had come by then.
    """
    key = tuple(read_cursor(cursor, "tiii")) if cursor else None
    rows = await list_charges(
        caller.connection,
        caller.tenant_no,
        part.wanted,
        after=cast("tuple[datetime, int, int, int] | None", key),
        limit=limit + 1,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.BillCharges(
        fleet_id=part.fleet.fleet_id,
        currency=part.fleet.currency,
        cycle=presenting.cycle(part.cycle),
        as_of=part.as_of,
        closed_at=part.closed_at,
        sum=schemas.ChargeSums(
            **sums_of(await sum_of_charges(caller.connection, caller.tenant_no, part.wanted))
        ),
        items=[charge_of(row, *part.plans[row.plan_no]) for row in rows[:limit]],
        next_cursor=cursor_of([last.measured_at, last.boot_no, last.seq, last.part])
        if last
        else None,
    )


@router.get("/fleets/{fleet_id}/bill/fees")
async def get_bill_fees(
    caller: AsCaller,
    part: _Fees,
    *,
    fee: Annotated[
        str | None,
        Query(
            pattern=r"^[^\x00-\x1f\x7f]{1,200}$",
            description="only of this fee, as its line is called",
            examples=["monthly_fee"],
        ),
    ] = None,
    device_id: OfDevice = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.BillFees:
    """List the parts of fees that a bill's lines sum, open or closed: for whom, for what time, how much.

    By plan, fee, and device. The parts of one plan version's fee sum to its line exactly. Of a closed cycle
    as when it closed; `known` is false where subscriptions and states of then were not kept.
    """
    bill = await _bill_or_conflict(caller, part)
    found = await line_fees.fees_of_bill(
        caller.connection,
        caller.tenant_no,
        fleet=part.fleet,
        cycle=part.cycle,
        reckoned=_reckoned(part),
        plans={
            no: replace(terms, fees=tuple(each for each in terms.fees if fee in (None, each.name)))
            for no, (_, _, terms) in part.plans.items()
        },
        lines=[
            line
            for line in bill.statement.lines
            if line.plan_no in part.plans and fee in (None, line.name)
        ],
    )
    parts = [each for each in found or () if device_id in (None, each[0])]
    begins = number_after(cursor)
    return schemas.BillFees.model_validate(
        {
            "fleet_id": part.fleet.fleet_id,
            "currency": part.fleet.currency,
            "cycle": presenting.cycle(part.cycle),
            "as_of": part.as_of,
            "closed_at": part.closed_at,
            "known": found is not None,
            "exact_amount": decimal_text(sum((item.exact for _, item in parts), Fraction(0))),
            "items": [
                {
                    "plan_id": part.plans[item.plan_no][0],
                    "plan_version": part.plans[item.plan_no][1],
                    "name": item.name,
                    **fee_of(owing, item),
                }
                for owing, item in parts[begins : begins + limit]
            ],
            "next_cursor": cursor_of([begins + limit]) if begins + limit < len(parts) else None,
        }
    )


def _reckoned(part: _OfBill) -> line_fees.Reckoned:
    """Return when the fees of a bill were reckoned: a closed cycle's when it closed, as its lines were."""
    if part.closed is not None and part.closed.closed_at <= part.as_of:
        return line_fees.Reckoned(
            at=part.closed.closed_at, uses=Known(before_run=part.closed.run_no)
        )
    return line_fees.Reckoned(at=part.known_at, uses=part.wanted.known)


@router.get("/charges/{charge_id}")
async def get_charge(caller: AsCaller, charge_id: ChargeId) -> schemas.ExplainedCharge:
    """Explain one charge in words and numbers: price, rounding, buckets, tiers, and its history."""
    boot_no, seq, part = map(int, charge_id.split("-"))
    key: ChargeKey = (boot_no, seq, part)
    return _explained(await explained_charge(caller.connection, caller.tenant_no, key))


@router.get("/devices/{device_id}/readings")
async def get_readings(
    caller: AsCaller,
    within: Within,
    device_id: DeviceId,
    *,
    boot: Annotated[
        str | None, Query(max_length=200, description="only of this boot id", examples=["boot-1"])
    ] = None,
    seq: Annotated[
        int | None, Query(ge=1, le=2**63 - 1, description="only this number of its boot")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.StoredReadings:
    """List a device's readings, the last boot and number first.

    With `boot` and `seq` it is one, with its charges, the buckets that paid, and the bill line of each.
    """
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    key = tuple(read_cursor(cursor, "ii")) if cursor else None
    rows = await list_readings(
        caller.connection,
        caller.tenant_no,
        device_no=device.device_no,
        boot_id=boot,
        seq=seq,
        before=cast("tuple[int, int] | None", key),
        limit=limit + 1,
        during=within,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    is_one = boot is not None and seq is not None
    return schemas.StoredReadings(
        items=[
            _reading(
                device.device_id,
                row,
                await explained_reading(
                    caller.connection, caller.tenant_no, boot_no=row.boot_no, seq=row.seq
                )
                if is_one
                else None,
            )
            for row in rows[:limit]
        ],
        next_cursor=cursor_of([last.boot_no, last.seq]) if last else None,
    )


def prices_of(
    plans: Mapping[int, PlanTerms], meter: str | None, variant: str | None
) -> Sequence[PriceKey]:
    """Return the prices of some plan versions that a meter and a variant's number name."""
    return [
        (plan_no, METERS[name].meter_no, position)
        for plan_no, terms in plans.items()
        for name, of_meter in terms.meters.items()
        if name in METERS and meter in (None, name)
        for position in range(len(of_meter.variants))
        if variant is None or variant == _variant_text(of_meter.label(position))
    ]


def _variant_text(label: int | None) -> str:
    return "own" if label is None else str(label)


async def _rolled_up(caller: Caller, part: _OfBill) -> list[schemas.RolledUp]:
    """Return the lines of the same bill that are not made of charges."""
    bill = await _bill_or_conflict(caller, part)
    found = [
        schemas.RolledUp(
            kind=line.kind.value,
            plan_id=billed.plan_id,
            plan_version=billed.version,
            name=line.name,
            device_id=None if line.device_no is None else bill.devices[line.device_no],
            exact_amount=decimal_text(line.exact),
            made_of=_MADE_OF[line.kind],
        )
        for line in bill.statement.lines
        for billed in [bill.plans[line.plan_no]]
        if line.kind is not LineKind.USAGE
        and part.plan_id in (None, billed.plan_id)
        and part.version in (None, billed.version)
    ]
    if part.plan_id is None:
        found += [
            schemas.RolledUp(
                kind="period_adjustment",
                plan_id=None,
                plan_version=None,
                device_id=None,
                name=str(each.cycle.first_day),
                exact_amount=decimal_text(each.exact),
                made_of=_LATE,
            )
            for each in bill.adjustments
            if each.tells
        ]
    return found


async def _bill_or_conflict(caller: Caller, part: _OfBill) -> Bill:
    try:
        return await _bill(caller, part)
    except (InvalidValue, NotKnownError) as error:
        raise ProblemError(HTTPStatus.CONFLICT, f"no bill can be made: {error}") from error


async def _bill(caller: Caller, part: _OfBill) -> Bill:
    if part.known_at is None:
        return await bill_so_far(
            caller.connection, caller.tenant_no, fleet=part.fleet, at=part.cycle.start
        )
    return await bill_known_at(
        caller.connection,
        caller.tenant_no,
        fleet=part.fleet,
        at=part.cycle.start,
        known_at=part.known_at,
    )


def fee_of(device_id: str | None, item: FeeItem) -> dict[str, object]:
    """Present a part of a fee, and who owes it."""
    return {
        "device_id": device_id,
        "subscription_no": item.subscription_no,
        "devices": item.devices,
        "begins_at": item.begins,
        "ends_at": item.ends,
        "due_at": item.due,
        "share": decimal_text(item.share),
        "state": item.state,
        "is_returned": item.refund,
        "exact_amount": decimal_text(item.exact),
    }


class Sums(TypedDict):
    """The fields of `ChargeSums`."""

    records: int
    quantity: int
    billed_quantity: int
    in_allowance_quantity: int
    from_pool_quantity: int
    overage_quantity: int
    exact_amount: str


def sums_of(of: ChargeSums) -> Sums:
    """Present what charges come to."""
    return {
        "records": of.records,
        "quantity": of.quantity,
        "billed_quantity": of.billed,
        "in_allowance_quantity": of.from_allowance,
        "from_pool_quantity": of.from_pool,
        "overage_quantity": of.overage,
        "exact_amount": decimal_text(of.exact),
    }


def charge_id_of(key: ChargeKey) -> str:
    """Write which charge it is."""
    return "-".join(map(str, key))


def charge_of(
    row: ChargeView | RecordView, plan_id: str, version: int, terms: PlanTerms
) -> schemas.Charge:
    """Present a charge of a plan's version."""
    meter = METERS_BY_NO[row.meter_no]
    return schemas.Charge(
        charge_id=charge_id_of((row.boot_no, row.seq, row.part)),
        device_id=row.device_id,
        boot_id=row.boot_id,
        seq=row.seq,
        part=row.part,
        plan_id=plan_id,
        plan_version=version,
        meter=meter.meter,
        unit=meter.unit,
        variant=terms.meters[meter.meter].label(row.variant),
        zone=row.zone,
        band=row.band,
        usage_from=row.usage_from,
        usage_to=row.usage_to,
        measured_at=row.measured_at,
        charged_at=row.charged_at,
        quantity=row.quantity,
        billed_quantity=row.billed,
        in_allowance_quantity=row.from_allowance,
        from_pool_quantity=row.from_pool,
        overage_quantity=row.overage,
        exact_amount=decimal_text(terms.money(row.amount).exact),
        corrected=row.correction_no is not None,
    )


def _explained(of: Explained) -> schemas.ExplainedCharge:
    row, told = of.detail, of.told
    was = {each.correction_no: each for each in told.former}
    return schemas.ExplainedCharge(
        charge_id=charge_id_of(row.key),
        device_id=row.device_id,
        boot_id=row.boot_id,
        seq=row.seq,
        part=row.part,
        plan_id=row.plan_id,
        plan_version=row.plan_version,
        meter=told.meter,
        unit=told.of_meter.unit,
        variant=told.of_meter.label(row.variant),
        zone=row.zone,
        band=row.band,
        usage_from=row.usage_from,
        usage_to=row.usage_to,
        measured_at=row.measured_at,
        charged_at=row.charged_at,
        quantity=row.quantity,
        billed_quantity=row.billed,
        in_allowance_quantity=row.from_allowance,
        from_pool_quantity=row.from_pool,
        overage_quantity=row.overage,
        exact_amount=amount_text(told, row.amount),
        corrected=row.correction_no is not None,
        reading_id=f"{row.key[0]}-{row.key[1]}",
        received_at=row.received_at,
        currency=told.terms.currency,
        told_zone=row.told_zone,
        overhead_quantity=told.overhead,
        skipped=skipped(told),
        buckets=_paid(of),
        priced_before=row.priced_before,
        steps=_steps(of),
        exact_connection_fee=amount_text(told, row.connection_fee),
        exact_rounding=amount_text(told, told.rounding),
        history=[
            schemas.FormerCharge(
                correction_no=each.correction_no,
                cause=each.cause,
                effective_from=each.effective_from,
                recorded_at=each.recorded_at,
                was=former.was if former else None,
                plan=former.plan if former else None,
                exact_difference=decimal_text(Fraction(each.amount, each.subunits_per_unit)),
            )
            for each in of.corrections
            for former in [was.get(each.correction_no)]
        ],
        bill_line=_bill_line(of),
        words=list(of.words),
    )


def _steps(of: Explained) -> list[schemas.Step]:
    told = of.told
    return [
        schemas.Step(
            what=step.what,
            tier=step.tier,
            quantity=step.quantity,
            price=stated[0] if stated else None,
            per=stated[1] if stated else None,
            flat_exact_amount=amount_text(told, step.flat),
            exact_amount=amount_text(told, step.amount),
            text=step_text(
                step,
                stated,
                quantity=quantity_text(step.quantity, told),
                flat=amount_text(told, step.flat),
                amount=amount_text(told, step.amount),
            ),
        )
        for step in told.steps
        for stated in [stated_of(step, told)]
    ]


def _paid(of: Explained) -> list[schemas.Paid]:
    return [
        schemas.Paid(
            bucket_no=bucket.bucket_no,
            name=draw.bucket,
            kind=cast("Literal['allowance', 'pool', 'top-up']", draw.kind),
            paid=draw.paid,
            left_before=draw.left_before,
            left_after=draw.left_after,
        )
        for bucket, draw in zip(of.buckets, of.told.draws, strict=True)
    ]


def _bill_line(of: Explained) -> schemas.BillLineName:
    row = of.detail
    return schemas.BillLineName(
        fleet_id=row.fleet_id,
        cycle=presenting.cycle(of.cycle),
        plan_id=row.plan_id,
        plan_version=row.plan_version,
        meter=of.told.meter,
        variant=of.told.of_meter.label(row.variant),
        held_by=of.billing.held_by,
        closed_at=of.billing.closed_at,
        billed_in=of.billing.billed_in,
        bill_no=of.place and of.place.bill_no,
        number=of.place and of.place.number,
        line=of.place and of.place.line,
    )


def _reading(
    device_id: str, row: ReadingView, charges: Sequence[Explained] | None
) -> schemas.StoredReading:
    meter = METERS_BY_NO[row.meter_no]
    charged: Literal["charged", "parked", "queued"] = "charged" if row.charged else "queued"
    return schemas.StoredReading(
        reading_id=f"{row.boot_no}-{row.seq}",
        device_id=device_id,
        boot_id=row.boot_id,
        seq=row.seq,
        format=_format(row.boot_id),
        batch_no=row.batch_no,
        measured_at=row.measured_at,
        received_at=row.received_at,
        published_at=row.published_at,
        meter=meter.meter,
        unit=meter.unit,
        kind="delta" if row.kind == ReadingKind.DELTA else "total",
        uplink_quantity=row.uplink,
        downlink_quantity=row.downlink,
        quantity=row.quantity,
        since=row.since,
        counter_epoch=row.epoch,
        zone=row.zone,
        rat=row.rat,
        apn=row.apn,
        session=row.session,
        state="parked" if row.parked is not None else charged,
        parked_reason=row.parked,
        charges=None
        if charges is None
        else [
            schemas.ChargeOfReading(
                charge_id=charge_id_of(each.detail.key),
                charged_at=each.detail.charged_at,
                exact_amount=amount_text(each.told, each.detail.amount),
                currency=each.told.terms.currency,
                buckets=_paid(each),
                bill_line=_bill_line(each),
            )
            for each in charges
        ],
    )


def _format(boot_id: str) -> str:
    """Return what a boot's name says of the format that its readings came in."""
    for beginning in (BY_TIME, BY_ID):
        if boot_id.startswith(beginning):
            return boot_id.removeprefix(beginning).partition("/")[0]
    return "native"
