"""A fleet whose bills are paid: steps that tests of payments share."""

from datetime import UTC, datetime
from decimal import Decimal

from metering.billing.pay import Share, record_payment, refund, reverse
from metering.billing.wallet import set_wallet
from metering.store.bills import StoredBill
from metering.store.connection import Connection
from metering.store.payments import (
    AccountBalances,
    NewPayment,
    Payment,
    Purpose,
    Standing,
    Wallet,
    WalletTerms,
    account_balances,
    standing_of,
)
from tests.integration.closing_scene import Scene
from tests.told_events import problem_of

NOW = datetime(2026, 5, 20, 12, tzinfo=UTC)


def money(text: str) -> Decimal:
    """Return an amount."""
    return Decimal(text)


async def paid(
    scene: Scene,
    amount: str,
    *,
    key: str,
    shares: list[Share] | None = None,
    purpose: Purpose = "account",
    connection: Connection | None = None,
    now: datetime = NOW,
) -> Payment:
    """Record a payment."""
    payment = NewPayment(
        purpose=purpose,
        amount=Decimal(amount),
        currency="EUR",
        method="transfer",
        reference=f"statement {key}",
        received_at=now,
    )
    recorded, _ = await record_payment(
        connection or scene.connection, fleet=scene.fleet, payment=payment, shares=shares, key=key,
        now=now,
    )  # fmt: skip
    return recorded


async def given_back(
    scene: Scene, amount: str, *, key: str, payment: Payment | None = None
) -> bool:
    """Refund money."""
    return await refund(
        scene.connection, fleet=scene.fleet, payment_no=payment.payment_no if payment else None,
        amount=Decimal(amount), reason="asked for", key=key, now=NOW,
    )  # fmt: skip


async def bounced(scene: Scene, payment: Payment, *, key: str, now: datetime = NOW) -> Payment:
    """Take back a payment."""
    taken, _ = await reverse(
        scene.connection, tenant_no=scene.operator.tenant, payment_no=payment.payment_no,
        reason="no such account", key=key, now=now,
    )  # fmt: skip
    return taken


async def account(scene: Scene) -> AccountBalances:
    """Return what the fleet's account holds."""
    return await account_balances(scene.connection, scene.fleet.fleet_no)


async def standing(scene: Scene, bill: StoredBill) -> Standing:
    """Return how a bill stands."""
    return await standing_of(scene.connection, scene.fleet.fleet_no, bill.bill_no)


async def wallet(scene: Scene, **terms: str) -> Wallet:
    """Say when the wallet is low, and how it is topped up."""
    amounts = {name: Decimal(value) for name, value in terms.items() if name[0] != "c"}
    given = WalletTerms(
        low_balance=amounts.get("low_balance"),
        top_up_below=amounts.get("top_up_below"),
        top_up_amount=amounts.get("top_up_amount"),
        customer="cus_1" if "top_up_below" in amounts else None,
        payment_method="pm_1" if "top_up_below" in amounts else None,
    )
    return await set_wallet(scene.connection, scene.fleet, given, now=NOW)


async def events(scene: Scene, kind: str) -> int:
    """Return how many events of a kind there are, each as the API tells it."""
    found = await scene.connection.execute("SELECT payload FROM event WHERE kind = %s", [kind])
    payloads = [row[0] for row in await found.fetchall()]
    assert [problem for each in payloads if (problem := problem_of(kind, each))] == []
    return len(payloads)
