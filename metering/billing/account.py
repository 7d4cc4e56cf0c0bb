"""A fleet's account: documents enter it, money in it pays bills, and a bill's state follows.

Every function here runs in a transaction that owns the fleet's bills (`lock_billing`).
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from metering.billing.wallet import watch_wallet
from metering.errors import Conflict
from metering.event_kinds import EventKind
from metering.store.bills import StoredBill, set_state
from metering.store.connection import Connection
from metering.store.outbox import NewEvent, record_events
from metering.store.payments import (
    Entry,
    Lot,
    Standing,
    insert_entry,
    lots_of,
    paid_from,
    paid_with_credit,
    standing_of,
    unpaid_bills,
)
from metering.store.registry import Fleet

_NOTHING = Decimal(0)


def shared_out(lots: Sequence[Lot], amount: Decimal) -> list[Lot]:
    """Return what an amount takes of lots, one after the other, as far as they go."""
    taken: list[Lot] = []
    for lot in lots:
        part = min(lot.amount, amount)
        if part <= 0:
            break
        taken.append(Lot(pocket=lot.pocket, payment_no=lot.payment_no, amount=part))
        amount -= part
    return taken


def less(lots: Sequence[Lot], taken: Iterable[Lot]) -> list[Lot]:
    """Return what is left of lots."""
    gone = {lot.payment_no: lot.amount for lot in taken}
    left = [
        Lot(
            pocket=lot.pocket,
            payment_no=lot.payment_no,
            amount=lot.amount - gone.get(lot.payment_no, _NOTHING),
        )
        for lot in lots
    ]
    return [lot for lot in left if lot.amount > 0]


def oldest_first(lots: Sequence[Lot], bills: Iterable[Standing]) -> list[tuple[int, Lot]]:
    """Return which bill is paid from which lot: bills in their order, but for what disputes hold."""
    paid: list[tuple[int, Lot]] = []
    for bill in bills:
        taken = shared_out(lots, bill.open - bill.held)
        paid += [(bill.bill_no, lot) for lot in taken]
        lots = less(lots, taken)
    return paid


async def enter_bill(
    connection: Connection,
    fleet: Fleet,
    bill: StoredBill,
    *,
    from_wallet: Decimal = _NOTHING,
    now: datetime,
) -> None:
    """Enter a bill that was just made final: the wallet pays its part, then the account's credit."""
    assert bill.owed is not None  # noqa: S101 - it is final
    await _enter_amount(connection, fleet, bill.bill_no, bill, bill.owed + from_wallet, now=now)
    for lot in shared_out(await lots_of(connection, fleet.fleet_no, "wallet"), from_wallet):
        await allocate(connection, fleet, bill.bill_no, lot, now=now)
    await release_surplus(connection, fleet, bill.bill_no, now=now)
    await spend_credit(connection, fleet, now=now)
    await watch_wallet(connection, fleet, may_top_up=from_wallet > 0, now=now)


async def enter_note(
    connection: Connection, fleet: Fleet, note: StoredBill, *, now: datetime
) -> None:
    """Enter a note that was just given: what its bill then has too much goes back where it came from."""
    assert note.owed is not None  # noqa: S101 - it is final
    assert note.corrects_no is not None  # noqa: S101 - it is a note
    await _enter_amount(connection, fleet, note.corrects_no, note, note.owed, now=now)
    await release_surplus(connection, fleet, note.corrects_no, now=now)
    await watch_wallet(connection, fleet, now=now)


async def _enter_amount(
    connection: Connection,
    fleet: Fleet,
    bill_no: int,
    document: StoredBill,
    amount: Decimal,
    *,
    now: datetime,
) -> None:
    if amount > 0:
        entry = Entry(
            kind="billing", from_account="bill", to_account="billed", amount=amount,
            bill_no=bill_no, document_no=document.bill_no,
        )  # fmt: skip
    elif amount < 0:
        entry = Entry(
            kind="credit", from_account="billed", to_account="bill", amount=-amount,
            bill_no=bill_no, document_no=document.bill_no,
        )  # fmt: skip
    else:
        return
    await insert_entry(connection, fleet.fleet_no, fleet.currency, entry, now=now)


async def spend_credit(connection: Connection, fleet: Fleet, *, now: datetime) -> None:
    """Pay bills from the account's credit, those that are due first first; let states follow."""
    bills = await unpaid_bills(connection, fleet.fleet_no)
    lots = await lots_of(connection, fleet.fleet_no, "credit")
    for bill_no, lot in oldest_first(lots, bills):
        await allocate(connection, fleet, bill_no, lot, now=now)
    for bill in bills:
        await let_state_follow(connection, fleet, bill.bill_no, now=now)


async def allocate(
    connection: Connection, fleet: Fleet, bill_no: int, lot: Lot, *, now: datetime
) -> None:
    """Let some money pay a bill."""
    entry = Entry(
        kind="allocation", from_account=lot.pocket, to_account="bill", amount=lot.amount,
        bill_no=bill_no, payment_no=lot.payment_no,
    )  # fmt: skip
    await insert_entry(connection, fleet.fleet_no, fleet.currency, entry, now=now)


async def release(
    connection: Connection, fleet: Fleet, bill_no: int, lot: Lot, *, now: datetime
) -> None:
    """Let some money pay a bill no longer: it goes back where it came from."""
    entry = Entry(
        kind="release", from_account="bill", to_account=lot.pocket, amount=lot.amount,
        bill_no=bill_no, payment_no=lot.payment_no,
    )  # fmt: skip
    await insert_entry(connection, fleet.fleet_no, fleet.currency, entry, now=now)


async def release_surplus(
    connection: Connection, fleet: Fleet, bill_no: int, *, now: datetime
) -> None:
    """Take from a bill what it has more than it owes, what paid it last first; let its state follow.

    What is left of a bill in the buyer's favour becomes credit that came from no payment.
    """
    surplus = -(await standing_of(connection, fleet.fleet_no, bill_no)).open
    if surplus > 0:
        for lot in shared_out(await paid_from(connection, bill_no), surplus):
            await release(connection, fleet, bill_no, lot, now=now)
            surplus -= lot.amount
    if surplus > 0:
        rest = Lot(pocket="credit", payment_no=None, amount=surplus)
        await release(connection, fleet, bill_no, rest, now=now)
    await let_state_follow(connection, fleet, bill_no, now=now)


async def return_credit(
    connection: Connection, fleet: Fleet, bill_no: int, *, now: datetime
) -> None:
    """Take back what a bill in the buyer's favour brought, now that a note takes back the bill.

    The account's credit pays it; where that is not enough, credit that came from no payment pays other bills
    no longer, those that are due last first. Raises `Conflict` where too little of it is there.
    """
    owed = (await standing_of(connection, fleet.fleet_no, bill_no)).open
    if owed <= 0:
        return
    lots = await lots_of(connection, fleet.fleet_no, "credit")
    missing = owed - sum((lot.amount for lot in lots), _NOTHING)
    for other_no, lot in await paid_with_credit(connection, fleet.fleet_no):
        for part in shared_out([lot], missing):
            await release(connection, fleet, other_no, part, now=now)
            await let_state_follow(connection, fleet, other_no, now=now)
            missing -= part.amount
    if missing > 0:
        raise Conflict(
            "bill_no", f"brought credit of which {missing} was given back", "record a payment of it"
        )
    for lot in shared_out(await lots_of(connection, fleet.fleet_no, "credit"), owed):
        await allocate(connection, fleet, bill_no, lot, now=now)
    await let_state_follow(connection, fleet, bill_no, now=now)


async def let_state_follow(
    connection: Connection, fleet: Fleet, bill_no: int, *, now: datetime
) -> None:
    """Let a bill be paid when nothing of it is open, and else not; tell of what changed."""
    bill = await standing_of(connection, fleet.fleet_no, bill_no)
    state = "paid" if bill.open <= 0 else "finalised"
    if bill.state in {state, "void"}:
        return
    await set_state(connection, bill_no, state, now=now)
    event = NewEvent(
        tenant_no=fleet.tenant_no,
        fleet_no=fleet.fleet_no,
        device_no=None,
        kind=EventKind.BILL_PAID if state == "paid" else EventKind.BILL_UNPAID,
        payload={"bill_no": bill_no, "number": bill.name, "open": str(max(bill.open, _NOTHING))},
        cause=f"bill:{bill_no}:entry:{bill.last_entry}",
    )
    await record_events(connection, [event], now=now)
