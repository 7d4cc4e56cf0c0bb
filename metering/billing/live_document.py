"""The document of a live fleet's bill: what the tenant and the fleet say of it, and its lines.

What it is drawn up from is kept with it, so that the audit can draw it up again when the settings are
others: `DrawnFrom` beside the frozen statement.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter

from metering.billing.bill import Bill, bill_of_cycle
from metering.billing.document import Document, Party, TaxCategory
from metering.billing.draw_up import Account, Basis, ManualAdjustment, NamedPlan, basis, finished
from metering.billing.tax import (
    TaxAnswer,
    TaxRequest,
    TaxRule,
    TaxRules,
    TaxService,
    taxed,
)
from metering.errors import Conflict, InvalidValue
from metering.ids import TenantNo
from metering.period import BillCycle
from metering.store.billing_settings import (
    NumberSeries,
    SeriesName,
    TaxRuleRow,
    TenantBilling,
    fleet_billing,
    tax_rules,
    tenant_billing,
)
from metering.store.bills import bill_adjustments
from metering.store.connection import Connection
from metering.store.payments import lots_of
from metering.store.registry import Fleet, zone_of

PARTY = TypeAdapter(Party)
"""A party as JSON."""
_ASKING = ThreadPoolExecutor(max_workers=32, thread_name_prefix="tax")
"""Threads of its own: tax services that are slow hold up nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnFrom:
    """What a bill is drawn up from beside its cycle: parties, tax rules, and what prepaid money there is.

    `adjusted_to` is the number of the last manual adjustment in it; 0: none. `service_taxes` is what a tax
    service answered; None: the rules say how it is taxed.
    """

    seller: Party
    buyer: Party
    customer: str
    rules: tuple[TaxRule, ...]
    prices_include_tax: bool
    wallet: Decimal = Decimal(0)
    adjusted_to: int = 0
    payment: timedelta
    service_taxes: TaxAnswer | None = None


_FORM = TypeAdapter(DrawnFrom)


def json_of_basis(basis: DrawnFrom) -> dict[str, Any]:
    """Return what a bill was drawn up from as JSON that loses nothing."""
    told: dict[str, Any] = _FORM.dump_python(basis, mode="json")
    return told


def basis_of_json(told: Mapping[str, Any]) -> DrawnFrom:
    """Return what `json_of_basis` told."""
    return _FORM.validate_python(told)


async def settings_of(connection: Connection, tenant_no: int) -> TenantBilling:
    """Return a tenant's settings of billing; raise `InvalidValue` while it has none."""
    found = await tenant_billing(connection, tenant_no)
    if found is None:
        raise InvalidValue(
            "billing", "nobody said who the seller is", "set it with PUT /v1/billing"
        )
    return found


def series_of(settings: TenantBilling, name: SeriesName) -> NumberSeries:
    """Return how a series of the tenant is numbered."""
    return settings.series[name]


async def current_basis(connection: Connection, fleet: Fleet) -> DrawnFrom:
    """Return what a bill of a fleet would be drawn up from now, without its adjustments.

    Raises `InvalidValue` naming what nobody said yet.
    """
    settings = await settings_of(connection, fleet.tenant_no)
    buyer = await fleet_billing(connection, fleet.fleet_no)
    if buyer is None:
        raise InvalidValue(
            "billing",
            f"nobody said whom bills of fleet {fleet.fleet_id!r} are for",
            f"set it with PUT /v1/fleets/{fleet.fleet_id}/billing",
        )
    wallet = await lots_of(connection, fleet.fleet_no, "wallet")
    return DrawnFrom(
        seller=PARTY.validate_python(settings.seller),
        buyer=PARTY.validate_python(buyer.buyer),
        customer=buyer.customer,
        rules=tuple(tax_rule_of(row) for row in await tax_rules(connection, fleet.tenant_no)),
        prices_include_tax=settings.prices_include_tax,
        wallet=sum((lot.amount for lot in wallet), Decimal(0)),
        payment=timedelta(days=settings.payment_days),
    )


def tax_rule_of(row: TaxRuleRow) -> TaxRule:
    """Return a stored rule; raise `InvalidValue` for one that cannot be."""
    return TaxRule(
        country=row.country,
        customer=row.customer,
        category=TaxCategory(row.category),
        rate=row.rate,
        first_day=row.first_day,
        end_day=row.end_day,
        reason=row.reason,
        reason_code=row.reason_code,
    )


async def manual_adjustments(
    connection: Connection, fleet: Fleet, cycle: BillCycle, *, up_to: int | None = None
) -> tuple[list[ManualAdjustment], int]:
    """Return what was entered into a closed cycle's bill, and the last one's number, 0 if none."""
    entered = await bill_adjustments(connection, fleet.fleet_no, cycle.start, up_to=up_to)
    return [
        ManualAdjustment(name=each.name, amount=each.amount, reason=each.reason) for each in entered
    ], max((each.adjustment_no for each in entered), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedTaxes:
    """What a tax service was asked of a bill, and what it answered."""

    request: TaxRequest
    answer: TaxAnswer


async def tax_request(
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    drawn_from: DrawnFrom,
    *,
    waiting: bool = False,
) -> TaxRequest:
    """Return what a tax service is to be asked of a cycle's bill; the arguments are those of `draw_live`."""
    return (await _basis(connection, fleet, cycle, drawn_from, waiting=waiting)).request


async def ask_taxes(
    request: TaxRequest, drawn_from: DrawnFrom, service: TaxService
) -> AskedTaxes | None:
    """Ask the service for a bill's tax; None where the tenant has rules of its own.

    It may take seconds: the caller owns nothing meanwhile. Raises `TaxServiceFailed`, or `InvalidValue`
    for an answer that contradicts what was asked.
    """
    if drawn_from.rules:
        return None
    loop = asyncio.get_running_loop()
    answer = await loop.run_in_executor(_ASKING, service.taxes, request)
    return AskedTaxes(request=request, answer=answer)


async def draw_live(
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    drawn_from: DrawnFrom,
    *,
    waiting: bool = False,
) -> Document:
    """Draw up the draft of a cycle's bill: as frozen, or as far as it is charged if it is open.

    With what was entered up to `drawn_from.adjusted_to`; of an open cycle, if `waiting`, with what waits
    for its bill. Raises `InvalidValue` when it cannot be drawn up.
    """
    drawn = await _basis(connection, fleet, cycle, drawn_from, waiting=waiting)
    return finished(drawn, _taxes(drawn.request, drawn_from), wallet=drawn_from.wallet)


async def draw_asked(
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    drawn_from: DrawnFrom,
    asked: AskedTaxes,
) -> Document:
    """Draw up the draft of a closed cycle's bill with what a tax service answered, as `draw_live` does.

    Raises `Conflict` where the service was asked about something else than the bill is by now.
    """
    drawn = await _basis(connection, fleet, cycle, drawn_from, waiting=False)
    if drawn.request != asked.request:
        raise Conflict("bill", "changed while the tax service was asked", "try again")
    return finished(drawn, asked.answer, wallet=drawn_from.wallet)


def request_of(
    bill: Bill, fleet: Fleet, drawn_from: DrawnFrom, manual: list[ManualAdjustment]
) -> TaxRequest:
    """Return what a tax service is to be asked of a bill with what was entered by hand."""
    return _basis_of(bill, fleet, drawn_from, manual).request


def draw_bill(
    bill: Bill,
    fleet: Fleet,
    drawn_from: DrawnFrom,
    manual: list[ManualAdjustment],
    *,
    service_taxes: TaxAnswer | None = None,
) -> Document:
    """Draw up the draft of a bill with what was entered by hand; raise `InvalidValue` when it cannot be."""
    drawn = _basis_of(bill, fleet, drawn_from, manual)
    taxes = _taxes(drawn.request, drawn_from) if service_taxes is None else service_taxes
    return finished(drawn, taxes, wallet=drawn_from.wallet)


def _taxes(request: TaxRequest, drawn_from: DrawnFrom) -> TaxAnswer:
    if drawn_from.service_taxes is not None:
        return drawn_from.service_taxes
    rules = TaxRules(rules=drawn_from.rules, prices_include_tax=drawn_from.prices_include_tax)
    return taxed(request, rules)


async def _basis(
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    drawn_from: DrawnFrom,
    *,
    waiting: bool,
) -> Basis:
    bill = await bill_of_cycle(connection, TenantNo(fleet.tenant_no), fleet=fleet, cycle=cycle)
    if bill.closed_at is None:
        entered = await bill_adjustments(connection, fleet.fleet_no, None) if waiting else []
        manual = [
            ManualAdjustment(name=each.name, amount=each.amount, reason=each.reason)
            for each in entered
        ]
    else:
        manual, _ = await manual_adjustments(connection, fleet, cycle, up_to=drawn_from.adjusted_to)
    return _basis_of(bill, fleet, drawn_from, manual)


def _basis_of(
    bill: Bill, fleet: Fleet, drawn_from: DrawnFrom, manual: list[ManualAdjustment]
) -> Basis:
    return basis(
        bill.statement,
        account=Account(
            fleet=fleet.name or fleet.fleet_id,
            time_zone=zone_of(fleet),
            seller=drawn_from.seller,
            buyer=drawn_from.buyer,
            customer=drawn_from.customer,
        ),
        plans={
            number: NamedPlan(plan=plan.plan_id, version=plan.version, terms=bill.terms[number])
            for number, plan in bill.plans.items()
        },
        devices=bill.devices,
        adjustments=bill.adjustments,
        manual=manual,
        prices_include_tax=drawn_from.prices_include_tax,
    )
