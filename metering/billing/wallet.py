"""A fleet's prepaid wallet: told when it is low, and topped up by itself, once each time bills bring it down.

Money that was paid ahead and pays bills when they become final. It is not a money bucket of rating, which
pays usage as it is charged.
"""

from dataclasses import replace
from datetime import datetime
from uuid import uuid4

from metering.billing.amounts import checked_amount
from metering.errors import InvalidValue
from metering.event_kinds import EventKind
from metering.store.bills import lock_billing
from metering.store.connection import Connection
from metering.store.outbox import NewEvent, record_events
from metering.store.payment_requests import NewPaymentRequest, insert_request
from metering.store.payments import (
    Wallet,
    WalletTerms,
    account_balances,
    note_wallet,
    set_wallet_terms,
    wallet_of,
)
from metering.store.registry import Fleet


async def set_wallet(
    connection: Connection, fleet: Fleet, terms: WalletTerms, *, now: datetime
) -> Wallet:
    """Say when a wallet is low and how it is topped up; return it. A top-up that failed is asked again.

    Raises `InvalidValue` for amounts finer than the currency's minor unit, or terms that say half of it.
    """
    amounts = {"low_balance": terms.low_balance, "top_up.below": terms.top_up_below}
    for field, amount in (amounts | {"top_up.amount": terms.top_up_amount}).items():
        if amount is not None:
            checked_amount(amount, fleet.currency, field)
    given = [terms.top_up_below, terms.top_up_amount, terms.customer, terms.payment_method]
    if any(each is None for each in given) and any(each is not None for each in given):
        raise InvalidValue("top_up", "says half of it", "give all of it, or none")
    async with connection.transaction():
        await lock_billing(connection, fleet.fleet_no)
        await set_wallet_terms(connection, fleet.fleet_no, terms, now=now)
        before = await wallet_of(connection, fleet.fleet_no)
        await note_wallet(connection, fleet.fleet_no, replace(before, is_low=False, is_asked=False))
        await watch_wallet(connection, fleet, may_top_up=True, now=now)
        return await wallet_of(connection, fleet.fleet_no)


async def watch_wallet(
    connection: Connection, fleet: Fleet, *, may_top_up: bool = False, now: datetime
) -> None:
    """Tell that a wallet is low and ask for a top-up, once each time its balance fell below the limit.

    It is asked for only if it `may` be: when a bill took of the wallet, or its terms were set. Money that was
    given or taken back must not be taken again at once. The caller's transaction owns the fleet's bills.
    """
    wallet = await wallet_of(connection, fleet.fleet_no)
    balance = (await account_balances(connection, fleet.fleet_no)).wallet
    low = wallet.low_balance is not None and balance < wallet.low_balance
    wanting = wallet.top_up_below is not None and balance < wallet.top_up_below
    asked = wanting and (wallet.is_asked or may_top_up)
    if (low, asked) == (wallet.is_low, wallet.is_asked):
        return
    occasion = wallet.occasion + 1
    cause = f"wallet:{fleet.fleet_no}:{occasion}"
    if low and not wallet.is_low:
        event = NewEvent(
            tenant_no=fleet.tenant_no,
            fleet_no=fleet.fleet_no,
            device_no=None,
            kind=EventKind.WALLET_LOW,
            payload={
                "balance": str(balance),
                "low_balance": str(wallet.low_balance),
                "currency": fleet.currency,
            },
            cause=cause,
        )
        await record_events(connection, [event], now=now)
    if asked and not wallet.is_asked:
        assert wallet.top_up_amount is not None  # noqa: S101 - a constraint of the database
        assert wallet.customer is not None  # noqa: S101 - the same
        assert wallet.payment_method is not None  # noqa: S101 - the same
        request = NewPaymentRequest(
            request_id=uuid4(),
            tenant_no=fleet.tenant_no,
            fleet_no=fleet.fleet_no,
            purpose="wallet",
            amount=wallet.top_up_amount,
            currency=fleet.currency,
            customer=wallet.customer,
            payment_method=wallet.payment_method,
            cause=cause,
        )
        await insert_request(connection, request, now=now)
    noted = replace(wallet, is_low=low, is_asked=asked, occasion=occasion)
    await note_wallet(connection, fleet.fleet_no, noted)
