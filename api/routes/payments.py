"""Payments, accounts and wallets: recorded, allocated, given back, asked for, and what follows if unpaid."""

from dataclasses import asdict
from decimal import Decimal
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Response

from api import etags
from api import payment_schemas as schemas
from api.auth import AsCaller, AsWriter, Caller
from api.errors import bad_input
from api.parameters import (
    ALREADY_DONE,
    Cursor,
    FleetId,
    IdempotencyKey,
    Limit,
    OfFleet,
    cursor_of,
    number_after,
    tell_repeated,
)
from api.spans import Within
from metering.billing.pay import Share, allocate_credit, record_payment, refund, reverse
from metering.billing.wallet import set_wallet
from metering.payments.request_payment import Wanted, request_payment
from metering.store import collecting
from metering.store import payment_requests as requests
from metering.store import payments as store
from metering.store.balances import fleet_of_id
from metering.store.holding import hold
from metering.store.provider_refunds import list_refunds
from metering.store.registry import Fleet

router = APIRouter(prefix="/v1", tags=["payments"])

_CREATED = HTTPStatus.CREATED
_EDITABLE = frozenset({"low_balance", "top_up"})
"""What of a wallet people may change, of which its entity tag tells."""
PaymentNo = Annotated[
    int, Path(ge=1, le=2**63 - 1, description="the payment's number", examples=[3])
]


@router.get("/payments")
async def get_payments(
    caller: AsCaller,
    within: Within,
    fleet: OfFleet = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> schemas.Payments:
    """List payments, in the order in which they were recorded."""
    of = await fleet_of_id(caller.connection, caller.tenant_no, fleet) if fleet else None
    rows = await store.list_payments(
        caller.connection,
        caller.tenant_no,
        fleet_no=of.fleet_no if of else None,
        after=number_after(cursor),
        limit=limit + 1,
        during=within,
    )
    more = len(rows) > limit
    return schemas.Payments(
        items=[_payment(row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].payment_no]) if more else None,
    )


@router.get("/payments/{payment_no}")
async def get_payment(caller: AsCaller, payment_no: PaymentNo) -> schemas.Payment:
    """Show one payment, and what of it pays no bill."""
    return _payment(await store.payment_by_no(caller.connection, caller.tenant_no, payment_no))


@router.post("/fleets/{fleet_id}/payments", status_code=_CREATED, responses=ALREADY_DONE)
async def post_payment(
    caller: AsWriter,
    fleet_id: FleetId,
    order: schemas.PaymentOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Payment:
    """Record money that came; it pays the bills that it is told to, or those that are due first first."""
    fleet = await _fleet(caller, fleet_id)
    if order.received_at > caller.now:
        raise bad_input("received_at", "is still to come", "record a payment once it came")
    payment = store.NewPayment(
        purpose=order.purpose,
        amount=Decimal(order.amount),
        currency=order.currency,
        method=order.method,
        reference=order.reference,
        received_at=order.received_at,
    )
    shares = order.allocations
    recorded, repeated = await record_payment(
        caller.connection,
        fleet=fleet,
        payment=payment,
        shares=None if shares is None else [_share(each) for each in shares],
        key=key,
        now=caller.now,
    )
    tell_repeated(response, repeated=repeated)
    return _payment(recorded)


@router.post("/payments/{payment_no}/reversal", status_code=_CREATED, responses=ALREADY_DONE)
async def post_reversal(
    caller: AsWriter,
    payment_no: PaymentNo,
    order: schemas.ReversalOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Payment:
    """Take back a payment that bounced: bills that it paid are open again."""
    taken, repeated = await reverse(
        caller.connection,
        tenant_no=caller.tenant_no,
        payment_no=payment_no,
        reason=order.reason,
        key=key,
        now=caller.now,
    )
    tell_repeated(response, repeated=repeated)
    return _payment(taken)


@router.post("/fleets/{fleet_id}/allocations", status_code=_CREATED, responses=ALREADY_DONE)
async def post_allocation(
    caller: AsWriter,
    fleet_id: FleetId,
    order: schemas.AllocationOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Account:
    """Let the account's credit pay a bill, or those that are due first first."""
    fleet = await _fleet(caller, fleet_id)
    share = None
    if order.bill_no is not None and order.amount is not None:
        share = Share(bill_no=order.bill_no, amount=Decimal(order.amount))
    repeated = await allocate_credit(
        caller.connection, fleet=fleet, share=share, key=key, now=caller.now
    )
    tell_repeated(response, repeated=repeated)
    return await _account(caller, fleet)


@router.post("/fleets/{fleet_id}/refunds", status_code=_CREATED, responses=ALREADY_DONE)
async def post_refund(
    caller: AsWriter,
    fleet_id: FleetId,
    order: schemas.RefundOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.Account:
    """Give money back, or note that it was: never more than pays no bill.

    What came by the payment provider goes back by it: the bill run asks for that, and the account gives it
    once the provider does.
    """
    fleet = await _fleet(caller, fleet_id)
    repeated = await refund(
        caller.connection,
        fleet=fleet,
        payment_no=order.payment_no,
        amount=Decimal(order.amount),
        reason=order.reason,
        key=key,
        now=caller.now,
    )
    tell_repeated(response, repeated=repeated)
    return await _account(caller, fleet)


@router.get("/fleets/{fleet_id}/refunds")
async def get_refunds(
    caller: AsCaller, within: Within, fleet_id: FleetId, limit: Limit = 100, cursor: Cursor = None
) -> schemas.Refunds:
    """List the refunds by the payment provider, also those made at it, and what became of them."""
    fleet = await _fleet(caller, fleet_id)
    rows = await list_refunds(
        caller.connection,
        fleet.fleet_no,
        after=number_after(cursor),
        limit=limit + 1,
        during=within,
    )
    more = len(rows) > limit
    return schemas.Refunds(
        items=[
            schemas.Refund.model_validate(asdict(row) | {"amount": format(row.amount, "f")})
            for row in rows[:limit]
        ],
        next_cursor=cursor_of([rows[limit - 1].refund_no]) if more else None,
    )


@router.get("/fleets/{fleet_id}/account")
async def get_account(caller: AsCaller, fleet_id: FleetId) -> schemas.Account:
    """Show what a fleet's account holds and owes, and what follows from bills that are not paid."""
    return await _account(caller, await _fleet(caller, fleet_id))


@router.get("/fleets/{fleet_id}/account/entries")
async def get_account_entries(
    caller: AsCaller, within: Within, fleet_id: FleetId, limit: Limit = 100, cursor: Cursor = None
) -> schemas.AccountEntries:
    """List the entries of which the account's balances are the fold."""
    fleet = await _fleet(caller, fleet_id)
    rows = await store.list_entries(
        caller.connection,
        fleet.fleet_no,
        after=number_after(cursor),
        limit=limit + 1,
        during=within,
    )
    more = len(rows) > limit
    return schemas.AccountEntries(
        items=[
            schemas.AccountEntry.model_validate(
                asdict(row) | {"amount": format(row.amount, "f"), "created_at": row.made_at}
            )
            for row in rows[:limit]
        ],
        next_cursor=cursor_of([rows[limit - 1].entry_no]) if more else None,
    )


@router.get("/fleets/{fleet_id}/wallet")
async def get_wallet(caller: AsCaller, fleet_id: FleetId, response: Response) -> schemas.Wallet:
    """Show a fleet's prepaid wallet."""
    fleet = await _fleet(caller, fleet_id)
    return etags.tagged(response, await _present_wallet(caller, fleet), _EDITABLE)


@router.put("/fleets/{fleet_id}/wallet", responses=etags.MATCHED)
async def put_wallet(
    caller: AsWriter,
    fleet_id: FleetId,
    order: schemas.WalletOrder,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.Wallet:
    """Say when a wallet is low and how it is topped up; a top-up that failed is asked for again."""
    fleet = await _fleet(caller, fleet_id)
    await hold(caller.connection, "wallet", str(fleet.fleet_no))
    etags.check_match(if_match, await _present_wallet(caller, fleet), _EDITABLE)
    top_up = order.top_up
    terms = store.WalletTerms(
        low_balance=None if order.low_balance is None else Decimal(order.low_balance),
        top_up_below=Decimal(top_up.below) if top_up else None,
        top_up_amount=Decimal(top_up.amount) if top_up else None,
        customer=top_up.customer if top_up else None,
        payment_method=top_up.payment_method if top_up else None,
    )
    wallet = await set_wallet(caller.connection, fleet, terms, now=caller.now)
    return etags.tagged(response, await _wallet(caller, fleet, wallet), _EDITABLE)


@router.get("/fleets/{fleet_id}/payment-requests")
async def get_payment_requests(
    caller: AsCaller, within: Within, fleet_id: FleetId, limit: Limit = 100, cursor: Cursor = None
) -> schemas.PaymentRequests:
    """List what was asked of the payment provider, and what became of it."""
    fleet = await _fleet(caller, fleet_id)
    rows = await requests.list_requests(
        caller.connection,
        fleet.fleet_no,
        after=number_after(cursor),
        limit=limit + 1,
        during=within,
    )
    more = len(rows) > limit
    return schemas.PaymentRequests(
        items=[_request(row) for row in rows[:limit]],
        next_cursor=cursor_of([rows[limit - 1].request_no]) if more else None,
    )


@router.post("/fleets/{fleet_id}/payment-requests", status_code=_CREATED, responses=ALREADY_DONE)
async def post_payment_request(
    caller: AsWriter,
    fleet_id: FleetId,
    order: schemas.PaymentRequestOrder,
    key: IdempotencyKey,
    response: Response,
) -> schemas.PaymentRequest:
    """Ask the payment provider for a payment; the bill run does, and its events tell what came."""
    fleet = await _fleet(caller, fleet_id)
    wanted = Wanted(**order.model_dump() | {"amount": Decimal(order.amount)})
    request, repeated = await request_payment(
        caller.connection, fleet=fleet, wanted=wanted, key=key, now=caller.now
    )
    tell_repeated(response, repeated=repeated)
    return _request(request)


@router.get("/payment-policy")
async def get_payment_policy(caller: AsCaller, response: Response) -> schemas.PaymentPolicy:
    """Show what follows when a bill is not paid."""
    return etags.tagged(response, await _policy(caller))


@router.put("/payment-policy", responses=etags.MATCHED)
async def put_payment_policy(
    caller: AsWriter,
    order: schemas.PaymentPolicy,
    response: Response,
    if_match: etags.IfMatch = None,
) -> schemas.PaymentPolicy:
    """Say what follows when a bill is not paid; reminders that were told are not told again."""
    await hold(caller.connection, "payment policy", str(caller.tenant_no))
    etags.check_match(if_match, await _policy(caller))
    policy = collecting.PaymentPolicy(
        reminder_days=order.reminder_days, suspend_days=order.suspend_days
    )
    await collecting.set_payment_policy(caller.connection, caller.tenant_no, policy, now=caller.now)
    return etags.tagged(response, await _policy(caller))


async def _policy(caller: Caller) -> schemas.PaymentPolicy:
    policy = await collecting.payment_policy(caller.connection, caller.tenant_no)
    return schemas.PaymentPolicy(
        reminder_days=list(policy.reminder_days), suspend_days=policy.suspend_days
    )


async def _fleet(caller: Caller, fleet_id: str) -> Fleet:
    return await fleet_of_id(caller.connection, caller.tenant_no, fleet_id)


async def _account(caller: Caller, fleet: Fleet) -> schemas.Account:
    held = await store.account_balances(caller.connection, fleet.fleet_no)
    return schemas.Account(
        currency=fleet.currency,
        balance=format(held.credit - held.owed, "f"),
        credit=format(held.credit, "f"),
        owed=format(held.owed, "f"),
        wallet=format(held.wallet, "f"),
        unpaid_bills=[
            schemas.UnpaidBill(
                bill_no=each.bill_no,
                number=each.name,
                due=each.due,
                open=format(each.open, "f"),
                held=format(each.held, "f"),
                payable=format(each.open - each.held, "f"),
            )
            for each in await store.unpaid_bills(caller.connection, fleet.fleet_no)
        ],
        suspensions=[
            await _suspension(caller, each)
            for each in await collecting.suspensions_of(caller.connection, fleet.fleet_no)
        ],
    )


async def _suspension(caller: Caller, row: collecting.Suspension) -> schemas.Suspension:
    devices, resumed = await collecting.device_counts(caller.connection, row.suspension_no)
    return schemas.Suspension(
        suspension_no=row.suspension_no,
        bill_no=row.bill_no,
        state=row.state,
        devices=devices,
        resumed=resumed,
        began_at=row.began_at,
        ended_at=row.ended_at,
    )


async def _present_wallet(caller: Caller, fleet: Fleet) -> schemas.Wallet:
    return await _wallet(caller, fleet, await store.wallet_of(caller.connection, fleet.fleet_no))


async def _wallet(caller: Caller, fleet: Fleet, wallet: store.Wallet) -> schemas.Wallet:
    held = await store.account_balances(caller.connection, fleet.fleet_no)
    top_up = None
    if wallet.top_up_below is not None:
        top_up = schemas.TopUpTerms(
            below=format(wallet.top_up_below, "f"),
            amount=format(wallet.top_up_amount or Decimal(0), "f"),
            customer=wallet.customer or "",
            payment_method=wallet.payment_method or "",
        )
    return schemas.Wallet(
        currency=fleet.currency,
        balance=format(held.wallet, "f"),
        low_balance=None if wallet.low_balance is None else format(wallet.low_balance, "f"),
        is_low=wallet.is_low,
        top_up=top_up,
        top_up_asked=wallet.is_asked,
    )


def _share(order: schemas.Share) -> Share:
    return Share(bill_no=order.bill_no, amount=Decimal(order.amount))


def _payment(row: store.Payment) -> schemas.Payment:
    amounts = {name: format(getattr(row, name), "f") for name in ("amount", "free", "returned")}
    return schemas.Payment.model_validate(asdict(row) | amounts)


def _request(row: requests.PaymentRequest) -> schemas.PaymentRequest:
    return schemas.PaymentRequest.model_validate(asdict(row) | {"amount": format(row.amount, "f")})
