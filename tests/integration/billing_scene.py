"""A fleet whose cycles are closed and billed: who bills whom, and steps that tests share."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from metering.billing.document import Document, document_of
from metering.billing.enter_adjustment import Entry, enter_adjustment
from metering.billing.finalise import finalise
from metering.billing.give_note import NoteOrder, Way, give_note
from metering.billing.notes import NoteEntry
from metering.billing.void import void
from metering.period import BillCycle
from metering.store.billing_settings import (
    Finalising,
    FleetBilling,
    NumberSeries,
    TaxRuleRow,
    TenantBilling,
    replace_tax_rules,
    set_fleet_billing,
    set_tenant_billing,
)
from metering.store.bills import StoredBill, bill_by_no, bill_that_holds, list_bills
from tests.integration.closing_scene import APRIL, FEBRUARY, MARCH, Scene, T, day, played

NOW = datetime(2026, 5, 20, 12, tzinfo=UTC)
SELLER: dict[str, Any] = {
    "name": "Acme Networks SAS",
    "address": {
        "lines": ["1 rue des Ondes"],
        "postcode": "75001",
        "city": "Paris",
        "country": "FR",
    },
    "tax_id": "FR12345678901",
    "bank_account": {"iban": "FR7630006000011234567890189"},
}
BUYER: dict[str, Any] = {
    "name": "Vans GmbH",
    "address": {"lines": ["Hafenstr. 2"], "postcode": "10115", "city": "Berlin", "country": "DE"},
}


def settings(
    *, finalising: Finalising = "by_hand", after_days: int | None = None, by_year: bool = True
) -> TenantBilling:
    """Return a tenant's settings: bills are B2026-0001 and so on, notes N2026-0001."""
    return TenantBilling(
        seller=SELLER, prices_include_tax=False, payment_days=14, finalising=finalising,
        finalise_after_days=after_days,
        series={
            "bill": NumberSeries(series="bill", prefix="B", by_year=by_year, digits=4),
            "note": NumberSeries(series="note", prefix="N", by_year=by_year, digits=4),
        },
    )  # fmt: skip


RULE = TaxRuleRow(
    country="DE", customer="business", category="S", rate=Decimal(19), first_day=None, end_day=None,
    reason=None, reason_code=None,
)  # fmt: skip


async def set_up(
    scene: Scene,
    *,
    finalising: Finalising = "by_hand",
    after_days: int | None = None,
    by_year: bool = True,
) -> None:
    """Say who bills whom, with 19 % of tax."""
    tenant = scene.operator.tenant
    given = settings(finalising=finalising, after_days=after_days, by_year=by_year)
    await set_tenant_billing(scene.connection, tenant, given, now=NOW)
    await replace_tax_rules(scene.connection, tenant, [RULE], now=NOW)
    buyer = FleetBilling(buyer=BUYER, customer="business")
    await set_fleet_billing(scene.connection, scene.fleet.fleet_no, buyer, now=NOW)


async def used_and_closed(scene: Scene) -> None:
    """Use something in three months, and close the first two, the first with late usage in the second."""
    for cycle in (FEBRUARY, MARCH, APRIL):
        await scene.use("van-1", day(cycle, 5), sms=4, data=2222)
        await scene.use("van-2", day(cycle, 20), sms=3)
    await scene.close(FEBRUARY)
    await scene.use("van-2", day(FEBRUARY, 6), sms=3, data=1111, received_at=day(MARCH, 20))
    await scene.close(MARCH)


async def bill_of(scene: Scene, cycle: BillCycle) -> StoredBill:
    """Return a cycle's bill that holds."""
    found = await bill_that_holds(scene.connection, (scene.fleet.fleet_no, cycle.start))
    assert found is not None
    return found


async def finalised(scene: Scene, cycle: BillCycle, *, now: datetime = NOW) -> StoredBill:
    """Finalise a cycle's bill."""
    draft = await bill_of(scene, cycle)
    bill, repeated = await finalise(
        scene.connection, tenant_no=scene.operator.tenant, bill_no=draft.bill_no, now=now
    )
    assert not repeated
    return bill


async def noted(
    scene: Scene,
    bill: StoredBill,
    *entries: NoteEntry,
    way: Way = "credit",
    key: str | None = None,
    share: Fraction | None = None,
) -> StoredBill:
    """Give a note on a bill."""
    note, _ = await give_note(
        scene.connection, tenant_no=scene.operator.tenant, bill_no=bill.bill_no,
        order=NoteOrder(way=way, entries=entries, reason="a test", share=share),
        key=key or f"note {await count(scene)}", now=NOW,
    )  # fmt: skip
    return note


async def count(scene: Scene) -> int:
    """Return how many bills and notes there are."""
    return len(await every(scene))


async def every(scene: Scene) -> list[StoredBill]:
    """Return all bills and notes."""
    tenant = scene.operator.tenant
    listed = await list_bills(
        scene.connection, tenant, fleet_no=None, state=None, after=0, limit=500
    )
    return [await bill_by_no(scene.connection, tenant, each.bill_no) for each in listed]


async def voided(scene: Scene, bill: StoredBill, *, rebill: bool = True) -> StoredBill:
    """Void a bill."""
    now_void, _, _, _ = await void(
        scene.connection, tenant_no=scene.operator.tenant, bill_no=bill.bill_no, reason="wrong buyer",
        rebill=rebill, key=f"void {bill.bill_no}", now=NOW,
    )  # fmt: skip
    return now_void


async def entered(
    scene: Scene,
    amount: str,
    *,
    bill: StoredBill | None = None,
    key: str = "a",
    currency: str = "EUR",
) -> datetime | None:
    """Enter a credit or debit; return the cycle whose bill it is in."""
    made, _ = await enter_adjustment(
        scene.connection, fleet=scene.fleet, bill_no=None if bill is None else bill.bill_no,
        entry=Entry(name="goodwill", amount=Decimal(amount), currency=currency, reason="an outage"),
        key=key, now=NOW,
    )  # fmt: skip
    return made.billed_in


def document(bill: StoredBill) -> Document:
    """Return what a final bill or note says."""
    assert bill.document is not None
    return document_of(bill.document)


async def again(scene: Scene, bill: StoredBill) -> StoredBill:
    """Return a bill as it is now."""
    return await bill_by_no(scene.connection, scene.operator.tenant, bill.bill_no)


def billed(url: str, story: Callable[[Scene], Awaitable[T]]) -> T:
    """Play a story with two closed cycles whose bills are drafts, and audit it at the end."""

    async def whole(scene: Scene) -> T:
        await set_up(scene)
        await used_and_closed(scene)
        return await story(scene)

    return played(url, whole)
