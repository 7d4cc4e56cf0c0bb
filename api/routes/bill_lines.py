"""From the number of a final bill and of its line down to devices and charges."""

from datetime import datetime
from fractions import Fraction
from typing import Annotated, cast

from fastapi import APIRouter, Path

from api import bill_line_schemas as schemas
from api import presenting
from api.auth import AsCaller, Caller
from api.parameters import Cursor, Limit, OfDevice, cursor_of, number_after, read_cursor
from api.routes.bills import BillNo
from api.routes.charges import charge_of, fee_of, sums_of
from metering.billing.document import DocumentLine
from metering.insight import bill_lines
from metering.money import decimal_text
from metering.rating.plan import PlanTerms
from metering.store import billed_lines as store
from metering.store import charge_views
from metering.store.bills import StoredBill, bill_by_no
from metering.store.correction_views import device_nos_of_ids

router = APIRouter(prefix="/v1", tags=["charges"])

_LineNo = Annotated[
    int, Path(ge=1, le=2**31 - 1, description="the line's number on the bill", examples=[1])
]


@router.get("/bills/{bill_no}/lines")
async def get_bill_lines(
    caller: AsCaller, bill_no: BillNo, limit: Limit = 100, cursor: Cursor = None
) -> schemas.BilledLines:
    """List the lines of a final bill or note, in their order."""
    bill = await bill_by_no(caller.connection, caller.tenant_no, bill_no, documents=False)
    rows = await bill_lines.lines_of_document(
        caller.connection, bill, after=number_after(cursor), limit=limit + 1
    )
    more = len(rows) > limit
    return schemas.BilledLines(
        bill_no=bill_no,
        number=bill.name or "",
        fleet_id=bill.fleet_id,
        currency=bill.currency or "",
        items=[schemas.BilledLine.model_validate(_line(row)) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].number]) if more else None,
    )


@router.get("/bills/{bill_no}/lines/{line_no}")
async def get_bill_line(caller: AsCaller, bill_no: BillNo, line_no: _LineNo) -> schemas.MadeLine:
    """Show a line of a final bill or note, and what it is made of."""
    of = await bill_lines.billed_line(
        caller.connection, caller.tenant_no, bill_no=bill_no, number=line_no
    )
    return schemas.MadeLine.model_validate(
        {
            **_line(of.line),
            **_bill(of.bill),
            "cycle": presenting.cycle(of.cycle),
            "corrects_no": of.bill.corrects_no,
            "made_of": of.made_of,
            "sum": None if of.charges is None else sums_of(await _sum(caller, of)),
            "changes": None if of.changed is None else await _changes(caller, of),
        }
    )


@router.get("/bills/{bill_no}/lines/{line_no}/devices")
async def get_bill_line_devices(
    caller: AsCaller,
    bill_no: BillNo,
    line_no: _LineNo,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.LineDevices:
    """List the devices behind a line of a final bill with their sums, which add up to the line's exactly.

    Of a fee what each owes of it, with no records. Of an adjustment of an earlier cycle, what their charges
    differ by. Empty where neither charges nor fees of devices make a line.
    """
    of = await bill_lines.billed_line(
        caller.connection, caller.tenant_no, bill_no=bill_no, number=line_no
    )
    rows = await bill_lines.devices_of_line(
        caller.connection,
        caller.tenant_no,
        of,
        after=str(read_cursor(cursor, "s")[0]) if cursor else "",
        limit=limit + 1,
    )
    more = len(rows) > limit
    return schemas.LineDevices.model_validate(
        {
            **_bill(of.bill),
            "line": line_no,
            "sum": sums_of(await _sum_of_devices(caller, of)),
            "items": [{"device_id": row.device_id or "", **sums_of(row)} for row in rows[:limit]],
            "next_cursor": cursor_of([rows[limit - 1].device_id or ""]) if more else None,
        }
    )


@router.get("/bills/{bill_no}/lines/{line_no}/fees")
async def get_bill_line_fees(
    caller: AsCaller,
    bill_no: BillNo,
    line_no: _LineNo,
    *,
    device_id: OfDevice = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.LineFees:
    """List the parts of a fee that a line of a final bill sums: for whom, for what time, and how much.

    They sum to the line exactly. Empty where no fee makes a line, or where subscriptions and states of then
    were not kept (`known` is false).
    """
    of = await bill_lines.billed_line(
        caller.connection, caller.tenant_no, bill_no=bill_no, number=line_no
    )
    if device_id is not None:
        await device_nos_of_ids(caller.connection, caller.tenant_no, [device_id])
    found = await bill_lines.fees_of_line(caller.connection, caller.tenant_no, of)
    parts = [each for each in found or () if device_id in (None, each[0])]
    begins = number_after(cursor)
    rows = parts[begins : begins + limit]
    return schemas.LineFees.model_validate(
        {
            **_bill(of.bill),
            "line": line_no,
            "known": found is not None or not of.is_fee,
            "exact_amount": decimal_text(sum((item.exact for _, item in parts), Fraction(0))),
            "items": [fee_of(owing, item) for owing, item in rows],
            "next_cursor": cursor_of([begins + limit]) if begins + limit < len(parts) else None,
        }
    )


@router.get("/bills/{bill_no}/lines/{line_no}/charges")
async def get_bill_line_charges(
    caller: AsCaller,
    bill_no: BillNo,
    line_no: _LineNo,
    *,
    device_id: OfDevice = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.LineCharges:
    """List the charges behind a line of a final bill, as measured; what they add sums to the line.

    Of an adjustment of an earlier cycle, those that came, went or were made again since it was billed
    before. Empty where no charge makes a line.
    """
    of = await bill_lines.billed_line(
        caller.connection, caller.tenant_no, bill_no=bill_no, number=line_no
    )
    if device_id is not None:
        numbers = await device_nos_of_ids(caller.connection, caller.tenant_no, [device_id])
        of = of.of_device(numbers[0])
    key = tuple(read_cursor(cursor, "tiii")) if cursor else None
    rows = await bill_lines.charges_of_line(
        caller.connection,
        caller.tenant_no,
        of,
        after=cast("tuple[datetime, int, int, int] | None", key),
        limit=limit + 1,
    )
    plans = await bill_lines.terms_of_plans(
        caller.connection, caller.tenant_no, sorted({row.plan_no for row in rows})
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return schemas.LineCharges.model_validate(
        {
            **_bill(of.bill),
            "line": line_no,
            "sum": sums_of(await _sum(caller, of)),
            "items": [_charge(row, *plans[row.plan_no]) for row in rows[:limit]],
            "next_cursor": cursor_of([last.measured_at, last.boot_no, last.seq, last.part])
            if last
            else None,
        }
    )


async def _sum(caller: Caller, of: bill_lines.BilledLine) -> charge_views.ChargeSums:
    return await bill_lines.sum_of_line(caller.connection, caller.tenant_no, of)


async def _sum_of_devices(caller: Caller, of: bill_lines.BilledLine) -> charge_views.ChargeSums:
    return await bill_lines.sum_of_devices(caller.connection, caller.tenant_no, of)


async def _changes(caller: Caller, of: bill_lines.BilledLine) -> schemas.LineChanges:
    found = await _sum(caller, of)
    whole = Fraction(of.reckonings[0].exact_amount or 0)
    lines = await bill_lines.line_changes(caller.connection, caller.tenant_no, of)
    return schemas.LineChanges.model_validate(
        {
            "sum": sums_of(found),
            "others_exact_amount": decimal_text(whole - found.exact),
            "lines": None
            if lines is None
            else [
                {
                    "kind": each.kind,
                    "plan_id": each.plan[0],
                    "plan_version": each.plan[1],
                    "name": each.name,
                    "variant": each.variant,
                    "device_id": each.device_id,
                    "before_exact_amount": decimal_text(each.before),
                    "after_exact_amount": decimal_text(each.after),
                    "exact_difference": decimal_text(each.after - each.before),
                }
                for each in lines
            ],
        }
    )


def _charge(
    row: charge_views.ChargeView, plan_id: str, version: int, terms: PlanTerms
) -> schemas.LineCharge:
    charge = charge_of(row, plan_id, version, terms)
    was = row.was if isinstance(row, store.ChangedCharge) else None
    return schemas.LineCharge(
        **charge.model_dump(),
        gone=isinstance(row, store.ChangedCharge) and row.gone,
        was_exact_amount=None if was is None else decimal_text(was),
        exact_difference=decimal_text(bill_lines.added(row, terms)),
    )


def _bill(bill: StoredBill) -> dict[str, object]:
    return {
        "bill_no": bill.bill_no,
        "number": bill.name,
        "fleet_id": bill.fleet_id,
        "currency": bill.currency,
    }


def _line(line: DocumentLine) -> dict[str, object]:
    period = line.period
    return {
        "line": line.number,
        "kind": line.kind.value,
        "name": line.name,
        "plan_id": line.plan,
        "plan_version": line.plan_version,
        "device_id": line.device,
        "devices": line.devices,
        "meter": line.meter,
        "variant": line.variant,
        "unit": line.unit,
        "records": line.records,
        "quantity": None if line.quantity is None else format(line.quantity, "f"),
        "in_bundle": None if line.in_bundle is None else format(line.in_bundle, "f"),
        "from_pool": None if line.from_pool is None else format(line.from_pool, "f"),
        "pools": list(line.pools),
        "overage": None if line.overage is None else format(line.overage, "f"),
        "period": None
        if period is None
        else {"first_day": period.first_day, "end_day": period.end_day},
        "reason": line.reason,
        "corrects": line.corrects,
        "exact_amount": decimal_text(line.exact),
        "amount": format(line.amount, "f"),
        "tax_category": line.tax_category.value,
        "tax_rate": format(line.rate, "f"),
    }
