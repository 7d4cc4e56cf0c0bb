"""Money that is shared out: never more than there is, never more than is to be paid, oldest first."""

from collections import Counter
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from metering.billing.account import less, oldest_first, shared_out
from metering.store.payments import Lot, Standing

CENTS = st.integers(min_value=0, max_value=10_000).map(lambda count: Decimal(count) / 100)
LOTS = st.lists(CENTS.filter(bool), max_size=6).map(
    lambda amounts: [
        Lot(pocket="credit", payment_no=number or None, amount=amount)
        for number, amount in enumerate(amounts)
    ]
)
BILLS = st.lists(st.tuples(CENTS, CENTS), max_size=6).map(
    lambda bills: [
        Standing(
            bill_no=number, name=f"B{number}", state="finalised", due=None, open=open_, held=held,
            last_entry=0,
        )
        for number, (open_, held) in enumerate(bills, start=1)
    ]
)  # fmt: skip


def total(lots: list[Lot]) -> Decimal:
    return sum((lot.amount for lot in lots), Decimal(0))


@given(LOTS, CENTS)
def test_what_is_taken_and_what_is_left_are_what_there_was(
    lots: list[Lot], amount: Decimal
) -> None:
    taken = shared_out(lots, amount)
    assert total(taken) == min(amount, total(lots))
    assert total(taken) + total(less(lots, taken)) == total(lots)
    assert all(lot.amount > 0 for lot in taken)
    assert [lot.payment_no for lot in taken] == [lot.payment_no for lot in lots][: len(taken)]


@given(LOTS, BILLS)
def test_bills_are_paid_in_their_order_and_never_too_much(
    lots: list[Lot], bills: list[Standing]
) -> None:
    paid = oldest_first(lots, bills)
    wanted = {bill.bill_no: max(bill.open - bill.held, Decimal(0)) for bill in bills}
    by_bill: Counter[int] = Counter()
    by_lot: Counter[int | None] = Counter()
    for bill_no, lot in paid:
        by_bill[bill_no] += lot.amount  # type: ignore[assignment]
        by_lot[lot.payment_no] += lot.amount  # type: ignore[assignment]
    assert total([lot for _, lot in paid]) == min(total(lots), sum(wanted.values(), Decimal(0)))
    assert all(by_bill[bill_no] <= wanted[bill_no] for bill_no in wanted)
    assert all(by_lot[lot.payment_no] <= lot.amount for lot in lots)
    short = [bill_no for bill_no in wanted if by_bill[bill_no] < wanted[bill_no]]
    assert all(not by_bill[later] for bill_no in short for later in wanted if later > bill_no)
