"""Builders of documents and what they are drawn up from."""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

from metering.billing.adjustment import PeriodAdjustment
from metering.billing.document import (
    BankAccount,
    Document,
    Party,
    PostalAddress,
    TaxCategory,
    finalised,
)
from metering.billing.draw_up import Account, Basis, ManualAdjustment, NamedPlan, basis, draw_up
from metering.billing.tax import TaxRule, TaxRules
from metering.whatif.run import RatedPeriod, RatingRun
from tests.fleets import cycle
from tests.property.rating_comparison import Case, run_core

SELLER = Party(
    name="Mobile Things GmbH",
    address=PostalAddress(
        lines=("Hafenstraße 12",), postcode="20457", city="Hamburg", country="DE"
    ),
    tax_id="DE123456789",
    email="billing@things.example",
    bank_account=BankAccount(iban="DE02120300000000202051", bic="BYLADEM1001"),
)
BUYER = Party(
    name="Vélos Partagés SARL",
    address=PostalAddress(
        lines=("3 rue du Port",), postcode="13002", city="Marseille", country="FR"
    ),
    tax_id="FR83404833048",
    email="factures@velos.example",
)
ACCOUNT = Account(
    fleet="bikes", time_zone="Europe/Berlin", seller=SELLER, buyer=BUYER, customer="business"
)


def standard(
    rate: str, first: str | None = None, end: str | None = None, *, country: str = "FR"
) -> TaxRule:
    """Return the rule of a standard rate for businesses, `[first, end)`."""
    return TaxRule(
        country=country,
        customer="business",
        rate=Decimal(rate),
        first_day=None if first is None else date.fromisoformat(first),
        end_day=None if end is None else date.fromisoformat(end),
    )


def untaxed(category: TaxCategory, *, reason: str | None = None) -> TaxRule:
    return TaxRule(country="FR", customer="business", category=category, reason=reason)


def rules(*of: TaxRule, inclusive: bool = False) -> TaxRules:
    """Return tax rules; of none: 20 % for businesses in France."""
    return TaxRules(rules=of or (standard("20"),), prices_include_tax=inclusive)


def based(
    run: RatingRun,
    period: RatedPeriod,
    *,
    inclusive: bool = False,
    adjustments: Sequence[PeriodAdjustment] = (),
    manual: Sequence[ManualAdjustment] = (),
) -> Basis:
    """Return a rated period before its tax."""
    return basis(
        period.statement,
        account=ACCOUNT,
        plans={number: NamedPlan(plan=t.plan, terms=t) for number, t in run.plans.items()},
        devices=run.devices,
        adjustments=adjustments,
        manual=manual,
        prices_include_tax=inclusive,
    )


def drawn(
    run: RatingRun,
    period: RatedPeriod,
    by: TaxRules | None = None,
    *,
    adjustments: Sequence[PeriodAdjustment] = (),
    manual: Sequence[ManualAdjustment] = (),
    wallet: Decimal = Decimal(0),
) -> Document:
    """Draw up a rated period."""
    return draw_up(
        period.statement,
        account=ACCOUNT,
        plans={number: NamedPlan(plan=t.plan, terms=t) for number, t in run.plans.items()},
        devices=run.devices,
        rules=by or rules(),
        adjustments=adjustments,
        manual=manual,
        wallet=wallet,
    )


PLAN: dict[str, Any] = {
    "plan": "tracker",
    "currency": "EUR",
    "time_zone": "Europe/Berlin",
    "zones": {"eu": ["DE", "FR"]},
    "meters": {
        "data": {
            "allowance": "1 MB",
            "price": {"amount": "1.00", "per": "1 MB"},
            "variants": [{"zones": ["eu"], "price": {"amount": "0.12", "per": "1 MB"}}],
        },
        "sms": {"price": {"amount": "0.07", "per": 1}},
    },
    "fees": [
        {"name": "line", "amount": "1.50"},
        {"name": "set-up", "amount": "9.90", "every": "once", "per": "fleet"},
    ],
    "adjustments": [
        {"name": "spring offer", "type": "percentage_discount", "percent": "10", "on": "fees"},
        {"name": "commitment", "type": "commitment", "amount": "20.00"},
    ],
}
USAGE: list[dict[str, Any]] = [
    {"device": "bike-1", "meter": "data", "quantity": "12.845678 MB", "time": "2026-04-05T10:00Z",
     "country": "DE"},
    {"device": "bike-2", "meter": "data", "quantity": 500_000, "time": "2026-04-06", "country": "US"},
    {"device": "bike-2", "meter": "sms", "quantity": 3, "time": "2026-04-07"},
]  # fmt: skip


LATE = PeriodAdjustment(
    cycle=cycle("2026-03-10"), late_records=2, exact=Fraction("1.2345"), amount=Decimal("1.23")
)
GOODWILL = ManualAdjustment(name="goodwill", amount=Decimal("-5.00"), reason="outage of 3 April")


def sample_basis() -> Basis:
    """Return a bill before its tax, with lines of every kind but rounding."""
    run = run_core(Case([PLAN], USAGE))
    return based(run, run.periods[0], adjustments=[LATE], manual=[GOODWILL])


def sample_draft(by: TaxRules | None = None, **more: Any) -> Document:  # noqa: ANN401 - of `drawn`
    """Return the draft of a bill with lines of every kind but rounding."""
    run = run_core(Case([PLAN], USAGE))
    entered = {"adjustments": [LATE], "manual": [GOODWILL], **more}
    return drawn(run, run.periods[0], by, **entered)


def sample_bill(by: TaxRules | None = None, **more: Any) -> Document:  # noqa: ANN401 - of `drawn`
    """Return the same, finalised."""
    return finalised(
        sample_draft(by, **more),
        series="2026",
        number="2026-000017",
        issued=date(2026, 5, 4),
        due=date(2026, 5, 18),
    )
