"""Finalising a draft: its document is drawn up, numbered and frozen in one transaction. Once."""

from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from metering.billing.account import enter_bill
from metering.billing.document import with_prepaid
from metering.billing.issue import issue
from metering.billing.live_document import (
    AskedTaxes,
    DrawnFrom,
    ask_taxes,
    current_basis,
    draw_asked,
    draw_live,
    json_of_basis,
    manual_adjustments,
    settings_of,
    tax_request,
)
from metering.billing.once import once
from metering.billing.tax import TaxRequest, TaxService
from metering.event_kinds import EventKind
from metering.ids import TenantNo
from metering.store.bills import StoredBill, allow_for_size, bill_by_no, make_final, own_bill
from metering.store.connection import Connection
from metering.store.outbox import NewEvent, record_events
from metering.store.registry import Fleet, fleets_by_no


async def finalise(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    bill_no: int,
    tax_service: TaxService | None = None,
    asked: AskedTaxes | None = None,
    now: datetime,
) -> tuple[StoredBill, bool]:
    """Make a draft final; return the bill, and whether it was final before: then nothing is done.

    `tax_service` finds the tax of a tenant without tax rules, or was `asked` already. Raises `NotFound` for a
    bill that the tenant has not, `InvalidValue` when no document can be drawn up, and `TaxServiceFailed`; a
    draft is left then.
    """
    # Asked before the fleet's bills are owned: others go on while it takes its time.
    if tax_service is not None:
        question = await tax_question(connection, tenant_no, bill_no)
        asked = None if question is None else await ask_taxes(*question, tax_service)
    async with connection.transaction():
        bill = await own_bill(connection, tenant_no, bill_no)
        if bill.state != "draft":
            return bill, True
        await allow_for_size(connection, bill.fleet_no)
        fleet = (await fleets_by_no(connection, [bill.fleet_no]))[bill.fleet_no]
        basis = await _basis(connection, fleet, bill)
        unpaid = replace(basis, wallet=Decimal(0))
        if asked is None or basis.rules:
            draft = await draw_live(connection, fleet, bill.cycle, unpaid)
        else:
            draft = await draw_asked(connection, fleet, bill.cycle, unpaid, asked)
            basis = replace(basis, service_taxes=asked.answer)
        from_wallet = min(basis.wallet, max(draft.totals.due, Decimal(0)))
        draft = with_prepaid(draft, from_wallet)
        _, issued = await issue(
            connection,
            tenant_no,
            draft,
            await settings_of(connection, tenant_no),
            drawn_from=json_of_basis(basis),
            payment=basis.payment,
            now=now,
        )
        await make_final(connection, bill_no, issued, now=now)
        event = NewEvent(
            tenant_no=tenant_no,
            fleet_no=fleet.fleet_no,
            device_no=None,
            kind=EventKind.BILL_FINALISED,
            payload={"bill_no": bill_no, "number": issued.name, "gross": str(issued.gross)},
            cause=f"bill:{bill_no}",
        )
        await record_events(connection, [event], now=now)
        final = await bill_by_no(connection, tenant_no, bill_no, documents=False)
        await enter_bill(connection, fleet, final, from_wallet=from_wallet, now=now)
        made = await bill_by_no(connection, tenant_no, bill_no, documents=False)
        # What was just stored need not be read.
        return replace(made, document=issued.document, drawn_from=issued.drawn_from), False


async def finalise_once(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    bill_no: int,
    key: str,
    tax_service: TaxService | None = None,
    now: datetime,
) -> tuple[StoredBill, bool]:
    """Do what `finalise` does, under a key: the same key again answers the bill and does nothing.

    Raises what `finalise` does, and `Conflict` when the key was another request's.
    """
    asked = None
    # Asked before the fleet's bills are owned: others go on while it takes its time.
    if tax_service is not None:
        question = await tax_question(connection, tenant_no, bill_no)
        asked = None if question is None else await ask_taxes(*question, tax_service)
    async with connection.transaction():
        await own_bill(connection, tenant_no, bill_no)
        bill: StoredBill | None = None

        async def do() -> dict[str, object]:
            nonlocal bill
            bill, before = await finalise(
                connection, tenant_no=tenant_no, bill_no=bill_no, asked=asked, now=now
            )
            return {"final_before": before}

        done = await once(
            connection, tenant_no, key, ("finalise", {"bill_no": bill_no}), do, now=now
        )
        if bill is None:
            bill = await bill_by_no(connection, tenant_no, bill_no)
        return bill, done.repeated or done.outcome["final_before"]


async def tax_question(
    connection: Connection, tenant_no: TenantNo, bill_no: int
) -> tuple[TaxRequest, DrawnFrom] | None:
    """Return what a tax service is to be asked of a draft, and what that is drawn up from; None: it is none.

    Raises `NotFound` for a bill that the tenant has not, and `InvalidValue` when it cannot be drawn up.
    """
    async with connection.transaction():
        bill = await bill_by_no(connection, tenant_no, bill_no)
        if bill.state != "draft":
            return None
        fleet = (await fleets_by_no(connection, [bill.fleet_no]))[bill.fleet_no]
        basis = await _basis(connection, fleet, bill)
        return await tax_request(connection, fleet, bill.cycle, basis), basis


async def _basis(connection: Connection, fleet: Fleet, bill: StoredBill) -> DrawnFrom:
    """Return what a draft is drawn up from now."""
    _, adjusted_to = await manual_adjustments(connection, fleet, bill.cycle)
    return replace(await current_basis(connection, fleet), adjusted_to=adjusted_to)
