"""Builders of documents and what they are drawn up from."""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal

from metering.billing.document import (
    BankAccount,
    Document,
    Party,
    PostalAddress,
    TaxCategory,
)
from metering.billing.draw_up import Account, ManualAdjustment, NamedPlan, draw_up
from metering.billing.tax import TaxRule, TaxRules
from metering.whatif.run import RatedPeriod, RatingRun

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


def drawn(
    run: RatingRun,
    period: RatedPeriod,
    by: TaxRules | None = None,
    *,
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
        manual=manual,
        wallet=wallet,
    )
