"""Payments: allocated once, never more than there is, and every balance a fold."""

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from metering.billing.dispute import open_dispute, payable
from metering.billing.notes import NoteEntry
from metering.billing.pay import Share, allocate_credit, record_payment
from metering.billing.preview import preview
from metering.billing.settle import settle
from metering.billing.void import void
from metering.errors import Conflict, InvalidValue
from metering.store.bills import StoredBill
from metering.store.connection import connect
from metering.store.payments import NewPayment, list_entries
from tests.integration.billing_scene import again, billed, entered, finalised, noted
from tests.integration.billing_scene import bill_of as draft_of
from tests.integration.closing_scene import FEBRUARY, MARCH, Scene
from tests.integration.payment_scene import (
    NOW,
    account,
    bounced,
    events,
    given_back,
    money,
    paid,
    standing,
    wallet,
)


async def two_bills(scene: Scene) -> tuple[StoredBill, StoredBill]:
    """Finalise February and March, which come to 119.00 and 59.50 more than what was used."""
    await entered(scene, "100.00", bill=await draft_of(scene, FEBRUARY), key="february")
    await entered(scene, "50.00", bill=await draft_of(scene, MARCH), key="march")
    return await finalised(scene, FEBRUARY), await finalised(scene, MARCH)


def owed(bill: StoredBill) -> Decimal:
    assert bill.owed is not None
    return bill.owed


def test_a_payment_pays_what_is_due_first_and_the_rest_is_credit(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        february, march = await two_bills(scene)
        assert (await account(scene)).owed == owed(february) + owed(march)
        first = await paid(scene, "100.00", key="1")
        assert (first.free, first.returned) == (money("0"), money("0"))
        assert (await standing(scene, february)).open == owed(february) - 100
        assert (await again(scene, february)).state == "finalised"
        # The same key again is the same payment; with another content it is refused.
        assert await paid(scene, "100.00", key="1") == first
        with pytest.raises(Conflict, match="Idempotency-Key"):
            await paid(scene, "100.01", key="1")
        rest = owed(february) + owed(march) - 100
        over = await paid(scene, str(rest + 7), key="2")
        assert over.free == 7
        for bill in (february, march):
            assert (await again(scene, bill)).state == "paid"
        held = await account(scene)
        assert (held.credit, held.owed) == (money("7"), money("0"))
        assert (await events(scene, "bill.paid"), await events(scene, "payment.received")) == (2, 2)
        # A credit note of a bill that is paid gives back what it has too much, last paid first.
        await noted(scene, march, NoteEntry(line=1, amount=Decimal("0.10")))
        assert (await account(scene)).credit == money("7.12")

    billed(database_url, story)


def test_a_payment_pays_what_it_is_told_to_and_no_more_than_there_is(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        february, march = await two_bills(scene)
        told = [Share(bill_no=march.bill_no, amount=money("10.00"))]
        payment = await paid(scene, "30.00", key="told", shares=told)
        assert payment.free == 20
        assert (await standing(scene, february)).open == owed(february)
        for amount, shares in (
            ("10.00", [Share(bill_no=march.bill_no, amount=money("10.01"))]),
            ("999.00", [Share(bill_no=march.bill_no, amount=owed(march))]),
            ("10.00", [Share(bill_no=february.bill_no, amount=money("0.001"))]),
        ):
            with pytest.raises(InvalidValue, match="allocations"):
                await paid(scene, amount, key="more", shares=shares)
        other = NewPayment(
            purpose="account", amount=money("5"), currency="USD", method="cash", reference=None,
            received_at=NOW,
        )  # fmt: skip
        with pytest.raises(InvalidValue, match="nothing is converted"):
            await record_payment(
                scene.connection, fleet=scene.fleet, payment=other, key="usd", now=NOW
            )
        assert (await account(scene)).credit == 20
        share = Share(bill_no=march.bill_no, amount=money("20.00"))
        for repeated in (False, True):
            assert repeated == await allocate_credit(
                scene.connection, fleet=scene.fleet, share=share, key="rest", now=NOW
            )
        assert (await account(scene)).credit == 0
        with pytest.raises(InvalidValue, match="more than there is"):
            await allocate_credit(
                scene.connection, fleet=scene.fleet, share=share, key="none", now=NOW
            )

    billed(database_url, story)


def test_a_reversal_opens_bills_again_and_a_refund_takes_what_is_free(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        february, march = await two_bills(scene)
        payment = await paid(scene, str(owed(february) + 10), key="1")
        assert (await standing(scene, march)).open == owed(march) - 10
        with pytest.raises(InvalidValue, match="only 0 is free"):
            await given_back(scene, "0.01", key="none", payment=payment)
        extra = await paid(scene, str(owed(march)), key="2")
        assert not await given_back(scene, "4.00", key="back", payment=extra)
        assert await given_back(scene, "4.00", key="back", payment=extra)
        with pytest.raises(InvalidValue, match=r"only 6\.00 is free"):
            await given_back(scene, "6.01", key="rest")
        before = await account(scene)
        taken = await bounced(scene, payment, key="bounced")
        assert (taken.free, taken.returned) == (money("0"), payment.amount)
        assert await bounced(scene, payment, key="bounced") == taken
        assert (await again(scene, february)).state == "finalised"
        assert (await standing(scene, february)).open == owed(february)
        assert (await standing(scene, march)).open == 10
        after = await account(scene)
        assert after.credit - after.owed == before.credit - before.owed - payment.amount
        with pytest.raises(Conflict, match="already"):
            await bounced(scene, payment, key="twice")
        assert await events(scene, "bill.unpaid") == 2
        assert await events(scene, "payment.reversed") == 1

    billed(database_url, story)


def test_what_is_disputed_is_not_paid_unless_told_to(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        february, march = await two_bills(scene)
        dispute, _ = await open_dispute(
            scene.connection, tenant_no=scene.operator.tenant, bill_no=february.bill_no, line=1,
            amount=None, reason="not ours", key="d", now=NOW,
        )  # fmt: skip
        await paid(scene, str(owed(february) + owed(march)), key="1")
        assert (await account(scene)).credit == dispute.held
        stands = await standing(scene, february)
        assert (stands.state, stands.open, stands.held) == ("finalised", dispute.held, dispute.held)
        assert (await again(scene, march)).state == "paid"
        # Told to, a payment pays what is disputed; no more is held than is open then.
        rest = dispute.held - money("0.01")
        await paid(scene, str(rest), key="2", shares=[Share(bill_no=february.bill_no, amount=rest)])
        assert await payable(scene.connection, await again(scene, february)) == (
            money("0"), money("0.01"),
        )  # fmt: skip

    billed(database_url, story)


def test_a_bill_that_is_voided_gives_back_its_money_to_where_it_came_from(
    database_url: str,
) -> None:
    async def story(scene: Scene) -> None:
        await paid(scene, "40.00", key="ahead", purpose="wallet")
        await entered(scene, "100.00", bill=await draft_of(scene, FEBRUARY))
        shown = await preview(scene.connection, scene.fleet, at=FEBRUARY.start)
        february = await finalised(scene, FEBRUARY)
        assert (shown.totals.prepaid, shown.totals.due) == (money("40.00"), owed(february))
        prepaid = money("40.00")
        assert february.drawn_from is not None
        assert february.drawn_from["wallet"] == "40.00"
        assert february.gross == owed(february) + prepaid
        await paid(scene, str(owed(february)), key="1")
        assert (await again(scene, february)).state == "paid"
        await void(
            scene.connection, tenant_no=scene.operator.tenant, bill_no=february.bill_no,
            reason="wrong buyer", rebill=True, key="v", now=NOW,
        )  # fmt: skip
        held = await account(scene)
        assert (held.credit, held.wallet) == (owed(february), prepaid)
        # The new bill takes both again.
        second = await finalised(scene, FEBRUARY)
        assert (second.owed, second.state) == (february.owed, "paid")
        held = await account(scene)
        assert (held.credit, held.wallet, held.owed) == (money("0"), money("0"), money("0"))

    billed(database_url, story)


def test_voiding_a_bill_in_the_buyers_favour_takes_back_the_credit_that_it_brought(
    database_url: str,
) -> None:
    """Out of the bill that it paid; and it is not voided while what it brought was given back."""

    async def story(scene: Scene) -> None:
        await entered(scene, "-200.00", bill=await draft_of(scene, FEBRUARY))
        await entered(scene, "100.00", bill=await draft_of(scene, MARCH), key="march")
        february, march = await finalised(scene, FEBRUARY), await finalised(scene, MARCH)
        assert (await again(scene, march)).state == "paid"
        left = (await account(scene)).credit
        assert left == -owed(february) - owed(march) > 0
        await given_back(scene, str(left), key="back")

        async def voiding(key: str) -> None:
            await void(
                scene.connection, tenant_no=scene.operator.tenant, bill_no=february.bill_no,
                reason="wrong buyer", rebill=False, key=key, now=NOW,
            )  # fmt: skip

        with pytest.raises(Conflict, match=f"credit of which {left} was given back"):
            await voiding("early")
        assert (await again(scene, february)).state == "paid"
        await paid(scene, str(left), key="returned", shares=[])
        await voiding("late")
        assert (await again(scene, february)).state == "void"
        assert (await again(scene, march)).state == "finalised"
        held = await account(scene)
        assert (held.credit, held.owed) == (money("0"), owed(march))

    billed(database_url, story)


def test_a_wallet_tells_that_it_is_low_and_asks_for_a_top_up_once_a_crossing(
    database_url: str,
) -> None:
    async def story(scene: Scene) -> None:
        await paid(scene, "50.00", key="ahead", purpose="wallet")
        await wallet(scene, low_balance="30", top_up_below="20", top_up_amount="60")
        assert (await events(scene, "wallet.low"), await requests(scene)) == (0, 0)
        await entered(scene, "100.00", bill=await draft_of(scene, FEBRUARY))
        await entered(scene, "100.00", bill=await draft_of(scene, MARCH), key="march")
        await finalised(scene, FEBRUARY)
        assert (await account(scene)).wallet == 0
        assert (await events(scene, "wallet.low"), await requests(scene)) == (1, 1)
        await paid(scene, "5.00", key="little", purpose="wallet")
        assert (await events(scene, "wallet.low"), await requests(scene)) == (1, 1)
        much = await paid(scene, "80.00", key="much", purpose="wallet")
        await given_back(scene, "75.00", key="back", payment=much)
        assert (await events(scene, "wallet.low"), await requests(scene)) == (2, 1)
        with pytest.raises(InvalidValue, match="only 5"):
            await given_back(scene, "5.01", key="more", payment=much)
        # It becomes low after a top-up was asked for: that is told, and nothing is asked again.
        await paid(scene, "80.00", key="again", purpose="wallet")
        await wallet(scene, low_balance="10", top_up_below="95", top_up_amount="60")
        assert (await events(scene, "wallet.low"), await requests(scene)) == (2, 2)
        await given_back(scene, "5.00", key="a little", payment=much)
        assert (await events(scene, "wallet.low"), await requests(scene)) == (2, 2)
        await finalised(scene, MARCH)
        assert (await events(scene, "wallet.low"), await requests(scene)) == (3, 2)

    billed(database_url, story)


def test_what_goes_back_from_a_wallet_is_not_charged_again(database_url: str) -> None:
    """Neither at once, nor by a bill that the wallet pays nothing of; what is used of it later is."""

    async def story(scene: Scene) -> None:
        first = await paid(scene, "60.00", key="first", purpose="wallet")
        await wallet(scene, low_balance="10", top_up_below="10", top_up_amount="60")
        await given_back(scene, "60.00", key="back", payment=first)
        assert (await events(scene, "wallet.low"), await requests(scene)) == (1, 0)
        second = await paid(scene, "60.00", key="second", purpose="wallet")
        await bounced(scene, second, key="bounced")
        assert (await events(scene, "wallet.low"), await requests(scene)) == (2, 0)
        await entered(scene, "100.00", bill=await draft_of(scene, FEBRUARY))
        await entered(scene, "100.00", bill=await draft_of(scene, MARCH), key="march")
        await finalised(scene, FEBRUARY)
        await paid(scene, "5.00", key="little", purpose="wallet")
        assert (await account(scene)).wallet == 5
        assert await requests(scene) == 0
        await finalised(scene, MARCH)
        assert (await account(scene)).wallet == 0
        assert await requests(scene) == 1

    billed(database_url, story)


async def requests(scene: Scene) -> int:
    found = await scene.connection.execute(b"SELECT count(*) FROM payment_request")
    row = await found.fetchone()
    assert row is not None
    return int(row[0])


def test_two_at_once_never_allocate_more_than_there_is(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        february, march = await two_bills(scene)
        await paid(scene, "20.00", key="credit", shares=[])

        async def allocated(number: int) -> bool:
            async with await connect(database_url, application="test", autocommit=True) as other:
                share = Share(bill_no=february.bill_no, amount=money("15.00"))
                try:
                    await allocate_credit(
                        other, fleet=scene.fleet, share=share, key=f"race {number}", now=NOW
                    )
                except InvalidValue:
                    return False
                return True

        assert sorted(await asyncio.gather(*map(allocated, range(4)))) == [False] * 3 + [True]

        async def paying(number: int) -> None:
            async with await connect(database_url, application="test", autocommit=True) as other:
                await paid(scene, str(owed(march)), key=f"{number % 2}", connection=other)

        before = await account(scene)
        await asyncio.gather(*map(paying, range(4)))
        after = await account(scene)
        assert after.credit - after.owed == before.credit - before.owed + 2 * owed(march)
        assert (await standing(scene, february)).open >= 0
        assert (await standing(scene, march)).open >= 0

    billed(database_url, story)


REFUSED = {
    "an entry that changes": "UPDATE account_entry SET amount = 1",
    "an entry that goes": "DELETE FROM account_entry",
    "a payment that changes": "UPDATE payment SET amount = 1",
    "more than is free": """INSERT INTO account_entry (fleet_no, kind, from_account, to_account, amount,
        currency, payment_no, reason, made_at) SELECT fleet_no, 'refund', 'credit', 'outside', 5.01, 'EUR',
        payment_no, 'x', now() FROM payment WHERE purpose = 'account' AND reference = 'statement free'""",
    "more than a bill owes": """INSERT INTO account_entry (fleet_no, kind, from_account, to_account, amount,
        currency, bill_no, payment_no, made_at) SELECT fleet_no, 'allocation', 'credit', 'bill', 0.01, 'EUR',
        (SELECT bill_no FROM bill WHERE kind = 'bill' AND state = 'paid'), payment_no, now()
        FROM payment WHERE reference = 'statement free'""",
    "another currency": """INSERT INTO account_entry (fleet_no, kind, from_account, to_account, amount,
        currency, payment_no, reason, made_at) SELECT fleet_no, 'refund', 'credit', 'outside', 1, 'USD',
        payment_no, 'x', now() FROM payment WHERE reference = 'statement free'""",
    "a document twice": """INSERT INTO account_entry (fleet_no, kind, from_account, to_account, amount,
        currency, bill_no, document_no, made_at) SELECT fleet_no, 'billing', 'bill', 'billed', 1, 'EUR',
        bill_no, bill_no, now() FROM bill WHERE kind = 'bill' AND state = 'paid'""",
    "a payment twice": """INSERT INTO account_entry (fleet_no, kind, from_account, to_account, amount,
        currency, payment_no, made_at) SELECT fleet_no, 'payment', 'outside', 'credit', amount, 'EUR',
        payment_no, now() FROM payment WHERE reference = 'statement free'""",
    "an allocation of a draft": """INSERT INTO account_entry (fleet_no, kind, from_account, to_account,
        amount, currency, bill_no, payment_no, made_at) SELECT fleet_no, 'allocation', 'credit', 'bill', 1,
        'EUR', (SELECT bill_no FROM bill WHERE state = 'draft'), payment_no, now()
        FROM payment WHERE reference = 'statement free'""",
    "a release of what did not pay": """INSERT INTO account_entry (fleet_no, kind, from_account,
        to_account, amount, currency, bill_no, payment_no, made_at) SELECT fleet_no, 'release', 'bill',
        'credit', 1, 'EUR', (SELECT bill_no FROM bill WHERE kind = 'bill' AND state = 'paid'), payment_no,
        now() FROM payment WHERE reference = 'statement free'""",
}  # fmt: skip
DAMAGE = {
    "UPDATE bill SET state = 'finalised' WHERE kind = 'bill' AND state = 'paid'": "is finalised, with 0",
    "DELETE FROM account_entry WHERE kind = 'allocation'": "is paid, with",
    "DELETE FROM account_entry WHERE kind = 'billing'": "its entries say 0",
    "DELETE FROM account_entry WHERE kind = 'payment'": "was not entered",
    "UPDATE account_entry SET amount = amount + 1 WHERE kind = 'payment'": "its entries say",
    "UPDATE account_entry SET amount = amount * 1000 WHERE kind = 'refund'": "holds -",
    "UPDATE payment SET amount = amount + 1": "holds",
}


def test_the_database_itself_keeps_accounts_and_the_audit_names_damage(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await entered(scene, "100.00", bill=await draft_of(scene, FEBRUARY), key="february")
        february = await finalised(scene, FEBRUARY)
        await paid(scene, str(owed(february)), key="all")
        free = await paid(scene, "7.00", key="free")
        await given_back(scene, "2.00", key="back", payment=free)
        before = await list_entries(scene.connection, scene.fleet.fleet_no, after=0, limit=100)
        for name, statement in REFUSED.items():
            with pytest.raises(psycopg.Error) as caught:
                await scene.connection.execute(statement.encode())
            assert caught.value.sqlstate in {"23514", "23505", "P0001"}, (name, caught.value)
        after = await list_entries(scene.connection, scene.fleet.fleet_no, after=0, limit=100)
        assert before == after
        for statement, told in DAMAGE.items():
            async with scene.connection.transaction(force_rollback=True):
                await scene.connection.execute(b"SET LOCAL session_replication_role = replica")
                await scene.connection.execute(statement.encode())
                found = await scene.audit()
            assert any(told in each and "account" in each for each in found), (statement, found)

    billed(database_url, story)


def test_a_bill_that_is_said_to_be_paid_is_paid_by_a_payment(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        february, march = await two_bills(scene)
        common: dict[str, Any] = {"tenant_no": scene.operator.tenant, "now": NOW}
        bill, _ = await settle(
            scene.connection, bill_no=march.bill_no, paid=True, key="p", **common
        )
        assert bill == replace(march, state="paid", state_at=NOW)
        assert (await account(scene)).owed == owed(february)
        bill, _ = await settle(
            scene.connection, bill_no=march.bill_no, paid=False, key="u", **common
        )
        assert (bill.state, (await account(scene)).credit) == ("finalised", money("0"))
        await paid(scene, str(owed(february)), key="1")
        with pytest.raises(Conflict, match="paid by payments"):
            await settle(scene.connection, bill_no=february.bill_no, paid=False, key="x", **common)

    billed(database_url, story)
