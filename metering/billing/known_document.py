"""A cycle's whole bill as it was believed to be at a past moment: with tax, adjustments, and what was due."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from metering.billing.bill import Bill
from metering.billing.document import Document, document_of
from metering.billing.draw_up import ManualAdjustment
from metering.billing.known_bill import bill_known_at
from metering.billing.live_document import (
    PARTY,
    DrawnFrom,
    ask_taxes,
    draw_bill,
    request_of,
    tax_rule_of,
)
from metering.billing.tax import TaxService
from metering.errors import InvalidValue
from metering.ids import TenantNo
from metering.store.billing_settings import Said, SaidOf, said_by, tax_rules_said
from metering.store.bills import BillAdjustment, bill_by_no
from metering.store.connection import Connection
from metering.store.known_bills import (
    BillThen,
    KnownState,
    NoteThen,
    adjustments_then,
    bill_then,
    notes_then,
    wallet_then,
)
from metering.store.registry import Fleet, calendar_of

NotKept = Literal["settings", "tax_rules", "buyer", "tax_service", "refunds"]
"""A part that is not as it was then.

What was said of `settings`, `tax_rules` or the `buyer` before that began to be kept; a `tax_service`, which
is asked now; whether `refunds` were promised to the payment provider.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDocument:
    """A cycle's bill as it was believed to be: what it would have been, or from when it was final, was.

    `payable` is what was to be paid of a final bill then, `held` what disputes held of it, as its `notes` of
    then left it. `not_kept` names what is not as it was then.
    """

    document: Document
    state: KnownState
    bill_no: int | None = None
    payable: Decimal = Decimal(0)
    held: Decimal = Decimal(0)
    notes: Sequence[NoteThen] = ()
    not_kept: Sequence[NotKept] = ()


async def document_known_at(
    connection: Connection,
    fleet: Fleet,
    *,
    at: datetime,
    known_at: datetime,
    tax_service: TaxService | None = None,
) -> KnownDocument:
    """Return the bill of the cycle that holds `at` as it was believed to be at `known_at`.

    `tax_service` finds the tax of a bill that was not final, if the tenant had no tax rules then. Raises
    `InvalidValue` when it could not be drawn up then, `NotKnownError`, and `TaxServiceFailed`.
    """
    cycle = calendar_of(fleet).cycle_at(at)
    then = await bill_then(connection, fleet.fleet_no, cycle.start, at=known_at)
    if then is not None and then.is_final:
        return await _final(connection, fleet, then, at=known_at)
    bill = await bill_known_at(
        connection, TenantNo(fleet.tenant_no), fleet=fleet, at=cycle.start, known_at=known_at
    )
    entered = await adjustments_then(
        connection, fleet.fleet_no, None if then is None else cycle.start, at=known_at
    )
    basis, not_kept = await _basis(connection, fleet, at=known_at)
    document = await _drawn(bill, fleet, basis, entered, tax_service=tax_service)
    if not basis.rules:
        not_kept.append("tax_service")
    return KnownDocument(
        document=document,
        state="open" if then is None else then.state,
        bill_no=None if then is None else then.bill_no,
        not_kept=not_kept,
    )


async def _final(
    connection: Connection, fleet: Fleet, then: BillThen, *, at: datetime
) -> KnownDocument:
    bill = await bill_by_no(connection, fleet.tenant_no, then.bill_no)
    assert bill.document is not None  # noqa: S101 - it is final
    is_payable = then.state == "finalised"
    # A note, or a payment that was told to, may have left less than was disputed.
    held = min(then.held, max(then.open, Decimal(0))) if is_payable else Decimal(0)
    return KnownDocument(
        document=document_of(bill.document),
        state=then.state,
        bill_no=then.bill_no,
        payable=then.open - held if is_payable else Decimal(0),
        held=held,
        notes=await notes_then(connection, then.bill_no, at=at),
    )


async def _drawn(
    bill: Bill,
    fleet: Fleet,
    basis: DrawnFrom,
    entered: Sequence[BillAdjustment],
    *,
    tax_service: TaxService | None,
) -> Document:
    manual = [
        ManualAdjustment(name=each.name, amount=each.amount, reason=each.reason) for each in entered
    ]
    answer = None
    if tax_service is not None:
        asked = await ask_taxes(request_of(bill, fleet, basis, manual), basis, tax_service)
        answer = None if asked is None else asked.answer
    return draw_bill(bill, fleet, basis, manual, service_taxes=answer)


async def _basis(
    connection: Connection, fleet: Fleet, *, at: datetime
) -> tuple[DrawnFrom, list[NotKept]]:
    """Return what a bill would have been drawn up from, and which parts of that are not as they were."""
    not_kept: list[NotKept] = []

    async def said(what: SaidOf, fleet_no: int | None = None) -> Said | None:
        found = await said_by(connection, fleet.tenant_no, what, fleet_no=fleet_no, at=at)
        if found is not None and not found.kept:
            not_kept.append(what)
        return found

    settings = await said("settings")
    buyer = await said("buyer", fleet.fleet_no)
    rules = await said("tax_rules")
    if settings is None:
        raise InvalidValue("billing", "nobody had said who the seller is", "ask for a later moment")
    if buyer is None:
        raise InvalidValue(
            "billing",
            f"nobody had said whom bills of fleet {fleet.fleet_id!r} are for",
            "ask for a later moment",
        )
    wallet = await wallet_then(connection, fleet.fleet_no, at=at)
    if not wallet.is_sure:
        not_kept.append("refunds")
    basis = DrawnFrom(
        seller=PARTY.validate_python(settings.content["seller"]),
        buyer=PARTY.validate_python(buyer.content["buyer"]),
        customer=buyer.content["customer"],
        rules=tuple(
            tax_rule_of(row) for row in tax_rules_said([] if rules is None else rules.content)
        ),
        prices_include_tax=settings.content["prices_include_tax"],
        wallet=wallet.amount,
        payment=timedelta(days=settings.content["payment_days"]),
    )
    return basis, not_kept
