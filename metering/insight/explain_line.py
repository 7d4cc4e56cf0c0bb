"""What a line of a final bill is made of, in words: devices, or the charges of one of them."""

from datetime import datetime
from fractions import Fraction

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.insight.bill_lines import (
    BilledLine,
    added,
    billed_line,
    charges_of_line,
    devices_of_line,
    fees_of_line,
    line_changes,
    sum_of_line,
    terms_of_plans,
)
from metering.money import decimal_text
from metering.period import instant_text
from metering.store.bills import list_bills
from metering.store.connection import Connection
from metering.store.correction_views import device_nos_of_ids
from metering.store.rows import PAGE_MAX


async def explained_line(
    connection: Connection, tenant_no: TenantNo, *, bill: str, line: int, device: str | None
) -> list[str]:
    """Say what a line of a final bill or note is made of: by device, or the charges of one `device`.

    `bill` is its number as it is written. Raises `NotFound`.
    """
    found = await list_bills(
        connection, tenant_no, fleet_no=None, state=None, after=0, limit=1, number=bill
    )
    if not found:
        raise NotFound("bill", bill)
    of = await billed_line(connection, tenant_no, bill_no=found[0].bill_no, number=line)
    told = of.line
    amounts = f"{told.amount} {of.bill.currency} (exactly {decimal_text(told.exact)})"
    words = [
        f"line {told.number} of {bill}: {told.kind} {told.name}, {amounts}",
        f"It is made of {of.made_of}.",
    ]
    if device is None:
        if of.is_fee:
            return [*words, *await _fees(connection, tenant_no, of, device=None)]
        return [*words, *await _lines(connection, tenant_no, of), *await _devices(connection, of)]
    (device_no,) = await device_nos_of_ids(connection, tenant_no, [device])
    if of.is_fee:
        return [*words, *await _fees(connection, tenant_no, of, device=device)]
    return [*words, *await _charges(connection, of.of_device(device_no))]


async def _lines(connection: Connection, tenant_no: TenantNo, of: BilledLine) -> list[str]:
    return [
        f"  {each.kind} {each.name} of {each.plan[0]} version {each.plan[1]}"
        f"{f', {each.device_id}' if each.device_id else ''}: {decimal_text(each.before)} before,"
        f" {decimal_text(each.after)} then"
        for each in await line_changes(connection, tenant_no, of) or ()
    ]


async def _fees(
    connection: Connection, tenant_no: TenantNo, of: BilledLine, *, device: str | None
) -> list[str]:
    parts = await fees_of_line(connection, tenant_no, of)
    if parts is None:
        return ["Of whom it is for, subscriptions and states of then were not kept."]
    words = [
        f"  {device_id or 'the fleet'}, {instant_text(item.begins)} to {instant_text(item.ends)}:"
        f" {decimal_text(item.share)} of it, {decimal_text(item.exact)}"
        for device_id, item in parts
        if device in (None, device_id)
    ]
    total = sum(
        (item.exact for device_id, item in parts if device in (None, device_id)), Fraction(0)
    )
    return [*words, f"fees: {len(words)}, {decimal_text(total)}"]


async def _devices(connection: Connection, of: BilledLine) -> list[str]:
    words: list[str] = []
    tenant_no = TenantNo(of.bill.tenant_no)
    after = ""
    while rows := await devices_of_line(connection, tenant_no, of, after=after, limit=PAGE_MAX):
        words += [
            f"  {row.device_id}: {row.records} records, {decimal_text(row.exact)}" for row in rows
        ]
        after = rows[-1].device_id or ""
    total = await sum_of_line(connection, tenant_no, of)
    return [*words, f"charges: {total.records} records, {decimal_text(total.exact)}"]


async def _charges(connection: Connection, of: BilledLine) -> list[str]:
    words: list[str] = []
    tenant_no = TenantNo(of.bill.tenant_no)
    after: tuple[datetime, int, int, int] | None = None
    while rows := await charges_of_line(connection, tenant_no, of, after=after, limit=PAGE_MAX):
        plans = await terms_of_plans(connection, tenant_no, sorted({row.plan_no for row in rows}))
        words += [
            f"  {instant_text(row.measured_at)} boot {row.boot_id} seq {row.seq}:"
            f" {row.quantity} for {decimal_text(added(row, plans[row.plan_no][2]))}"
            for row in rows
        ]
        last = rows[-1]
        after = (last.measured_at, last.boot_no, last.seq, last.part)
    total = await sum_of_line(connection, tenant_no, of)
    return [*words, f"charges: {total.records} records, {decimal_text(total.exact)}"]
