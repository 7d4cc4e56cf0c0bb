"""Payments: recorded, allocated to bills, given back, taken back when they bounce. Each once by its key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from uuid import uuid4

from metering.billing.account import (
    allocate,
    let_state_follow,
    oldest_first,
    release,
    shared_out,
    spend_credit,
)
from metering.billing.amounts import checked_amount, checked_currency
from metering.billing.once import checked_text, once
from metering.billing.wallet import watch_wallet
from metering.errors import Conflict, InvalidValue
from metering.event_kinds import EventKind
from metering.store.bills import lock_billing
from metering.store.connection import Connection
from metering.store.outbox import NewEvent, record_events
from metering.store.payments import (
    Entry,
    Lot,
    NewPayment,
    Payment,
    Pocket,
    insert_entry,
    insert_payment,
    lots_of,
    paid_with,
    payment_by_no,
    standing_of,
    unpaid_bills,
)
from metering.store.provider_refunds import NewRefund, insert_refund
from metering.store.registry import Fleet, fleets_by_no

_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What of a payment is to pay a bill."""

    bill_no: int
    amount: Decimal


async def record_payment(
    connection: Connection,
    *,
    fleet: Fleet,
    payment: NewPayment,
    shares: Sequence[Share] | None = None,
    key: str,
    now: datetime,
) -> tuple[Payment, bool]:
    """Record money that came; return it, and whether it was recorded before under the key.

    It pays `shares`; None: whatever is open, what is due first first. What is left is the account's credit,
    or, of a payment into the wallet, all of it the wallet's. Raises `InvalidValue` when more is allocated
    than the payment brings or a bill has open.
    """
    checked_currency(payment.currency, fleet.currency)
    payment = replace(payment, amount=checked_amount(payment.amount, fleet.currency))
    for text, field in ((payment.method, "method"), (payment.reference, "reference")):
        if text is not None:
            checked_text(text, field)
    if shares and payment.purpose == "wallet":
        raise InvalidValue("allocations", "the wallet pays bills by itself", "give none")
    async with connection.transaction():
        await lock_billing(connection, fleet.fleet_no)

        async def do() -> Mapping[str, object]:
            return {"payment_no": await enter_payment(connection, fleet, payment, shares, now=now)}

        content: dict[str, object] = {
            "fleet_no": fleet.fleet_no,
            "purpose": payment.purpose,
            "amount": str(payment.amount),
            "method": payment.method,
            "reference": payment.reference,
            "received_at": payment.received_at.isoformat(),
            "shares": None
            if shares is None
            else [[each.bill_no, str(each.amount.normalize())] for each in shares],
        }
        done = await once(connection, fleet.tenant_no, key, ("payment", content), do, now=now)
        number = int(done.outcome["payment_no"])
        return await payment_by_no(connection, fleet.tenant_no, number), done.repeated


async def enter_payment(
    connection: Connection,
    fleet: Fleet,
    payment: NewPayment,
    shares: Sequence[Share] | None,
    *,
    now: datetime,
) -> int:
    """Enter a payment and let it pay; return its number. The caller owns the fleet's bills."""
    number = await insert_payment(connection, fleet.tenant_no, fleet.fleet_no, payment, now=now)
    pocket: Pocket = "wallet" if payment.purpose == "wallet" else "credit"
    entry = Entry(
        kind="payment", from_account="outside", to_account=pocket, amount=payment.amount,
        payment_no=number,
    )  # fmt: skip
    await insert_entry(connection, fleet.fleet_no, fleet.currency, entry, now=now)
    event = NewEvent(
        tenant_no=fleet.tenant_no,
        fleet_no=fleet.fleet_no,
        device_no=None,
        kind=EventKind.PAYMENT_RECEIVED,
        payload={
            "payment_no": number,
            "purpose": payment.purpose,
            "amount": str(payment.amount),
            "currency": payment.currency,
        },
        cause=f"payment:{number}",
    )
    await record_events(connection, [event], now=now)
    if pocket == "wallet":
        await watch_wallet(connection, fleet, now=now)
    elif shares is None:
        lot = Lot(pocket=pocket, payment_no=number, amount=payment.amount)
        for bill_no, part in oldest_first([lot], await unpaid_bills(connection, fleet.fleet_no)):
            await allocate(connection, fleet, bill_no, part, now=now)
            await let_state_follow(connection, fleet, bill_no, now=now)
    else:
        left = payment.amount
        for share in shares:
            left -= share.amount
            if left < 0:
                raise InvalidValue(
                    "allocations", f"come to more than {payment.amount}", "allocate less"
                )
            lots = [Lot(pocket=pocket, payment_no=number, amount=share.amount)]
            await _pay_bill(connection, fleet, share.bill_no, lots, share.amount, now=now)
    return number


async def allocate_credit(
    connection: Connection,
    *,
    fleet: Fleet,
    share: Share | None,
    key: str,
    now: datetime,
) -> bool:
    """Let the account's credit pay a bill; None: what is due first first. Whether it was done before.

    Raises `InvalidValue` when there is less credit, or less open of the bill.
    """
    async with connection.transaction():
        await lock_billing(connection, fleet.fleet_no)

        async def do() -> Mapping[str, object]:
            if share is None:
                await spend_credit(connection, fleet, now=now)
            else:
                lots = await lots_of(connection, fleet.fleet_no, "credit")
                await _pay_bill(connection, fleet, share.bill_no, lots, share.amount, now=now)
            return {}

        content: dict[str, object] = {
            "fleet_no": fleet.fleet_no,
            "share": share and [share.bill_no, str(share.amount.normalize())],
        }
        done = await once(connection, fleet.tenant_no, key, ("allocate", content), do, now=now)
        return done.repeated


async def _pay_bill(
    connection: Connection,
    fleet: Fleet,
    bill_no: int,
    lots: Sequence[Lot],
    amount: Decimal,
    *,
    now: datetime,
) -> None:
    amount = checked_amount(amount, fleet.currency, "allocations.amount")
    bill = await standing_of(connection, fleet.fleet_no, bill_no)
    if amount > bill.open:
        raise InvalidValue(
            "allocations.amount",
            f"bill {bill.name} has {max(bill.open, _NOTHING)} open",
            "allocate no more than that",
        )
    if amount > sum((lot.amount for lot in lots), _NOTHING):
        raise InvalidValue("allocations.amount", "is more than there is", "allocate less")
    for lot in shared_out(lots, amount):
        await allocate(connection, fleet, bill_no, lot, now=now)
    await let_state_follow(connection, fleet, bill_no, now=now)


async def refund(
    connection: Connection,
    *,
    fleet: Fleet,
    payment_no: int | None,
    amount: Decimal,
    reason: str,
    key: str,
    now: datetime,
) -> bool:
    """Give money back, or note that it was; return whether that was done before under the key.

    It is free money of a payment, in the wallet or not; None: the account's credit, whichever came first.
    Of a payment that came by the provider, the provider is asked to give back: the account gives it when the
    provider does, and until then it pays nothing. Raises `InvalidValue` when less is free.
    """
    checked_text(reason, "reason")
    amount = checked_amount(amount, fleet.currency)
    async with connection.transaction():
        await lock_billing(connection, fleet.fleet_no)

        async def do() -> Mapping[str, object]:
            lots = await _refundable(connection, fleet, payment_no)
            free = sum((lot.amount for lot in lots), _NOTHING)
            payment = None
            if payment_no is not None:
                payment = await payment_by_no(connection, fleet.tenant_no, payment_no)
            if amount > free:
                raise InvalidValue("amount", f"only {free} is free", "refund no more than that")
            if payment is not None and payment.intent_id is not None:
                queued = NewRefund(
                    refund_id=uuid4(), tenant_no=fleet.tenant_no, fleet_no=fleet.fleet_no,
                    payment_no=payment.payment_no, intent_id=payment.intent_id, amount=amount,
                    currency=fleet.currency, reason=reason,
                )  # fmt: skip
                return {"refund_no": await insert_refund(connection, queued, now=now)}
            entries = [
                await _give_back(connection, fleet, "refund", lot, reason, now=now)
                for lot in shared_out(lots, amount)
            ]
            await _tell_returned(
                connection, fleet, EventKind.PAYMENT_REFUNDED, amount, entries, now=now
            )
            await watch_wallet(connection, fleet, now=now)
            return {"entries": entries}

        content: dict[str, object] = {
            "fleet_no": fleet.fleet_no,
            "payment_no": payment_no,
            "amount": str(amount),
            "reason": reason,
        }
        done = await once(connection, fleet.tenant_no, key, ("refund", content), do, now=now)
        return done.repeated


async def _refundable(connection: Connection, fleet: Fleet, payment_no: int | None) -> list[Lot]:
    lots = await lots_of(connection, fleet.fleet_no, "credit")
    if payment_no is None:
        kept = []
        for lot in lots:
            if lot.payment_no is not None:
                payment = await payment_by_no(connection, fleet.tenant_no, lot.payment_no)
                if payment.intent_id is not None:
                    continue
            kept.append(lot)
        return kept
    payment = await payment_by_no(connection, fleet.tenant_no, payment_no)
    if payment.fleet_no != fleet.fleet_no:
        raise InvalidValue("payment_no", "is another fleet's", "name one of this fleet's payments")
    lots += await lots_of(connection, fleet.fleet_no, "wallet")
    return [lot for lot in lots if lot.payment_no == payment_no]


async def reverse(
    connection: Connection,
    *,
    tenant_no: int,
    payment_no: int,
    reason: str,
    key: str,
    now: datetime,
) -> tuple[Payment, bool]:
    """Take back a payment that bounced: what was not given back of it; bills that it paid are open again.

    Returns it, and whether it was taken back before under the key. Raises `Conflict` when nothing of it is
    left.
    """
    checked_text(reason, "reason")
    before = await payment_by_no(connection, tenant_no, payment_no)
    fleet = (await fleets_by_no(connection, [before.fleet_no]))[before.fleet_no]
    async with connection.transaction():
        await lock_billing(connection, fleet.fleet_no)

        async def do() -> Mapping[str, object]:
            payment = await payment_by_no(connection, tenant_no, payment_no)
            left = payment.amount - payment.returned
            if left <= 0:
                raise Conflict("payment_no", "is given or taken back already", "name another")
            await take_back(connection, fleet, payment, left, "reversal", reason, now=now)
            return {"payment_no": payment_no}

        content: dict[str, object] = {"payment_no": payment_no, "reason": reason}
        done = await once(connection, tenant_no, key, ("reverse", content), do, now=now)
        return await payment_by_no(connection, tenant_no, payment_no), done.repeated


async def take_back(  # noqa: PLR0917 - what, of what, and why
    connection: Connection,
    fleet: Fleet,
    payment: Payment,
    amount: Decimal,
    kind: str,
    reason: str,
    *,
    now: datetime,
) -> None:
    """Take an amount of a payment out of the account: what is free of it, then what pays bills.

    A `reversal`, or a `refund` that was made elsewhere. Bills that are due last lose it first. The caller
    owns the fleet's bills, and there is so much left of the payment.
    """
    pocket: Pocket = "wallet" if payment.purpose == "wallet" else "credit"
    missing = amount - payment.free
    for bill_no, lot in await paid_with(connection, payment.payment_no):
        for part in shared_out([lot], missing):
            await release(connection, fleet, bill_no, part, now=now)
            await let_state_follow(connection, fleet, bill_no, now=now)
            missing -= part.amount
    lot = Lot(pocket=pocket, payment_no=payment.payment_no, amount=amount)
    entry = await _give_back(connection, fleet, kind, lot, reason, now=now)
    told = EventKind.PAYMENT_REVERSED if kind == "reversal" else EventKind.PAYMENT_REFUNDED
    await _tell_returned(connection, fleet, told, amount, [entry], now=now)
    await watch_wallet(connection, fleet, now=now)


async def _give_back(
    connection: Connection, fleet: Fleet, kind: str, lot: Lot, reason: str, *, now: datetime
) -> int:
    entry = Entry(
        kind="reversal" if kind == "reversal" else "refund", from_account=lot.pocket,
        to_account="outside", amount=lot.amount, payment_no=lot.payment_no, reason=reason,
    )  # fmt: skip
    return await insert_entry(connection, fleet.fleet_no, fleet.currency, entry, now=now)


async def _tell_returned(
    connection: Connection,
    fleet: Fleet,
    kind: EventKind,
    amount: Decimal,
    entries: Sequence[int],
    *,
    now: datetime,
) -> None:
    event = NewEvent(
        tenant_no=fleet.tenant_no,
        fleet_no=fleet.fleet_no,
        device_no=None,
        kind=kind,
        payload={"amount": str(amount), "currency": fleet.currency, "entries": list(entries)},
        cause=f"entry:{entries[0]}",
    )
    await record_events(connection, [event], now=now)
