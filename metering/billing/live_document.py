"""The document of a live fleet's bill: what the tenant and the fleet say of it, and its lines.

What it is drawn up from is kept with it, so that the audit can draw it up again when the settings are
others: `DrawnFrom` beside the frozen statement.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter

from metering.billing.bill import Bill, bill_of_cycle
from metering.billing.document import Document, Party, TaxCategory
from metering.billing.draw_up import Account, ManualAdjustment, NamedPlan, draw_up
from metering.billing.tax import TaxRule, TaxRules
from metering.errors import InvalidValue
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
from metering.store.registry import Fleet

PARTY = TypeAdapter(Party)
"""A party as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnFrom:
    """What a bill is drawn up from beside its cycle: parties, tax rules, and what prepaid money there is.

    `adjusted_to` is the number of the last manual adjustment in it; 0: none.
    """

    seller: Party
    buyer: Party
    customer: str
    rules: tuple[TaxRule, ...]
    prices_include_tax: bool
    wallet: Decimal = Decimal(0)
    adjusted_to: int = 0
    payment: timedelta


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
    return DrawnFrom(
        seller=PARTY.validate_python(settings.seller),
        buyer=PARTY.validate_python(buyer.buyer),
        customer=buyer.customer,
        rules=tuple(tax_rule_of(row) for row in await tax_rules(connection, fleet.tenant_no)),
        prices_include_tax=settings.prices_include_tax,
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


async def draw_live(
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    basis: DrawnFrom,
    *,
    waiting: bool = False,
) -> Document:
    """Draw up the draft of a cycle's bill: as frozen, or as far as it is charged if it is open.

    With what was entered up to `basis.adjusted_to`; of an open cycle, if `waiting`, with what waits for
    its bill. Raises `InvalidValue` when it cannot be drawn up.
    """
    bill = await bill_of_cycle(connection, TenantNo(fleet.tenant_no), fleet=fleet, cycle=cycle)
    if bill.closed_at is None:
        entered = await bill_adjustments(connection, fleet.fleet_no, None) if waiting else []
        manual = [
            ManualAdjustment(name=each.name, amount=each.amount, reason=each.reason)
            for each in entered
        ]
    else:
        manual, _ = await manual_adjustments(connection, fleet, cycle, up_to=basis.adjusted_to)
    return drawn(bill, fleet, basis, manual)


def drawn(bill: Bill, fleet: Fleet, basis: DrawnFrom, manual: list[ManualAdjustment]) -> Document:
    """Draw up the draft of a bill that is at hand."""
    return draw_up(
        bill.statement,
        account=Account(
            fleet=fleet.name or fleet.fleet_id,
            time_zone=fleet.time_zone,
            seller=basis.seller,
            buyer=basis.buyer,
            customer=basis.customer,
        ),
        plans={
            number: NamedPlan(plan=plan.plan_id, version=plan.version, terms=bill.terms[number])
            for number, plan in bill.plans.items()
        },
        devices=bill.devices,
        rules=TaxRules(rules=basis.rules, prices_include_tax=basis.prices_include_tax),
        adjustments=bill.adjustments,
        manual=manual,
        wallet=basis.wallet,
    )
