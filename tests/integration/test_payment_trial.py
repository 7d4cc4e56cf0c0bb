"""A random history of bills, notes and payments: what the account holds is what was done, at every step."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random

from metering.billing.dispute import open_dispute, resolve_dispute
from metering.billing.finalise import finalise
from metering.billing.give_note import NoteOrder, give_note
from metering.billing.notes import NoteEntry
from metering.billing.pay import Share, allocate_credit, record_payment, refund, reverse
from metering.billing.void import void
from metering.errors import InvalidValue
from metering.store.bills import StoredBill
from metering.store.payments import NewPayment, Payment, Purpose, list_payments
from tests.integration.billing_scene import billed, entered, every
from tests.integration.closing_scene import APRIL, Scene
from tests.integration.payment_scene import NOW, account, standing

STEPS = 120


@dataclass(slots=True, kw_only=True)
class Trial:
    """A scene, its chance, and what came in and went out, as it was asked for."""

    scene: Scene
    random: Random
    came: Decimal = Decimal(0)
    went: Decimal = Decimal(0)
    steps: int = 0
    done: dict[str, int] = field(default_factory=dict)

    def amount(self) -> Decimal:
        return Decimal(self.random.randint(1, 9000)) / 100

    async def bills(self, *states: str) -> list[StoredBill]:
        return [
            each for each in await every(self.scene) if each.kind == "bill" and each.state in states
        ]

    async def pay(self, key: str) -> None:
        amount, purpose = self.amount(), self.random.choice(["account", "account", "wallet"])
        of: Purpose = "wallet" if purpose == "wallet" else "account"
        shares = None
        final = await self.bills("finalised", "paid")
        if of == "account" and final and self.random.random() < 0.4:
            bill = self.random.choice(final)
            shares = [Share(bill_no=bill.bill_no, amount=min(amount, self.amount()))]
        payment = NewPayment(
            purpose=of, amount=amount, currency="EUR", method="m", reference=None, received_at=NOW
        )
        await record_payment(
            self.scene.connection, fleet=self.scene.fleet, payment=payment, shares=shares, key=key,
            now=NOW,
        )  # fmt: skip
        self.came += amount

    async def allocate(self, key: str) -> None:
        final = await self.bills("finalised", "paid")
        share = None
        if final and self.random.random() < 0.7:
            share = Share(bill_no=self.random.choice(final).bill_no, amount=self.amount() / 10)
            share = Share(bill_no=share.bill_no, amount=round(share.amount, 2) + Decimal("0.01"))
        await allocate_credit(
            self.scene.connection, fleet=self.scene.fleet, share=share, key=key, now=NOW
        )

    async def refund(self, key: str) -> None:
        amount = round(self.amount() / 10, 2) + Decimal("0.01")
        number = await self.payment() if self.random.random() < 0.6 else None
        await refund(
            self.scene.connection, fleet=self.scene.fleet, payment_no=number, amount=amount,
            reason="r", key=key, now=NOW,
        )  # fmt: skip
        self.went += amount

    async def reverse(self, key: str) -> None:
        number = await self.payment()
        payments = await self.payments()
        left = next(each.amount - each.returned for each in payments if each.payment_no == number)
        await reverse(
            self.scene.connection, tenant_no=self.scene.operator.tenant, payment_no=number,
            reason="r", key=key, now=NOW,
        )  # fmt: skip
        self.went += left

    async def payments(self) -> list[Payment]:
        return await list_payments(
            self.scene.connection, self.scene.operator.tenant, fleet_no=None, after=0, limit=500
        )

    async def payment(self) -> int:
        numbers = [each.payment_no for each in await self.payments()]
        if not numbers:
            raise InvalidValue("payment", "there is none", "wait")
        return self.random.choice(numbers)

    async def finalise(self, key: str) -> None:
        drafts = await self.bills("draft")
        if not drafts:
            raise InvalidValue("bill", "there is no draft", "wait")
        bill = self.random.choice(drafts)
        sign = self.random.choice([1, 1, 1, -1])
        await entered(self.scene, str(sign * self.amount()), bill=bill, key=f"entered {key}")
        await finalise(
            self.scene.connection,
            tenant_no=self.scene.operator.tenant,
            bill_no=bill.bill_no,
            now=NOW,
        )

    async def final(self) -> StoredBill:
        final = await self.bills("finalised", "paid")
        if not final:
            raise InvalidValue("bill", "there is none", "wait")
        return self.random.choice(final)

    async def note(self, key: str) -> None:
        bill = await self.final()
        assert bill.document is not None
        line = self.random.randint(1, len(bill.document["lines"]))
        way = self.random.choice(["credit", "credit", "debit"])
        entry = NoteEntry(line=line, amount=Decimal(self.random.randint(1, 300)) / 100)
        await give_note(
            self.scene.connection, tenant_no=self.scene.operator.tenant, bill_no=bill.bill_no,
            order=NoteOrder(way="credit" if way == "credit" else "debit", entries=[entry], reason="r"),
            key=key, now=NOW,
        )  # fmt: skip

    async def void(self, key: str) -> None:
        bill = await self.final()
        await void(
            self.scene.connection, tenant_no=self.scene.operator.tenant, bill_no=bill.bill_no,
            reason="r", rebill=True, key=key, now=NOW,
        )  # fmt: skip

    async def dispute(self, key: str) -> None:
        bill = await self.final()
        dispute, _ = await open_dispute(
            self.scene.connection, tenant_no=self.scene.operator.tenant, bill_no=bill.bill_no, line=1,
            amount=None, reason="r", key=key, now=NOW,
        )  # fmt: skip
        if self.random.random() < 0.8:
            await resolve_dispute(
                self.scene.connection, tenant_no=self.scene.operator.tenant,
                dispute_no=dispute.dispute_no, granted=self.random.random() < 0.5, resolution="r",
                key=f"resolve {key}", now=NOW,
            )  # fmt: skip

    async def step(self, act: Callable[[str], Awaitable[None]]) -> None:
        """Do something, or be refused and change nothing; do it again, which changes nothing either."""
        self.steps += 1
        key = f"step {self.steps}"
        state = self.random.getstate()
        before = await account(self.scene), self.came, self.went
        try:
            await act(key)
        except InvalidValue:
            assert (await account(self.scene), self.came, self.went) == before
            return
        self.done[act.__name__] = self.done.get(act.__name__, 0) + 1
        if act.__name__ in {"refund", "reverse"}:
            after, went = await account(self.scene), self.went
            self.random.setstate(state)
            await act(key)
            assert await account(self.scene) == after
            self.went = went

    async def check(self) -> None:
        """Account and wallet are payments less what went back less what bills and notes say."""
        held = await account(self.scene)
        documents = [each for each in await every(self.scene) if each.owed is not None]
        owed = sum((each.owed or Decimal(0) for each in documents), Decimal(0))
        prepaid = sum(
            (Decimal(each.document["totals"]["prepaid"]) for each in documents
             if each.kind == "bill" and each.document is not None), Decimal(0)
        )  # fmt: skip
        assert held.credit - held.owed + held.wallet == self.came - self.went - owed - prepaid
        assert held.credit >= 0
        assert held.wallet >= 0
        open_sum = Decimal(0)
        for bill in await self.bills("finalised", "paid", "void"):
            stands = await standing(self.scene, bill)
            assert stands.open >= 0
            assert (stands.open == 0) == (stands.state in {"paid", "void"})
            open_sum += stands.open
        assert open_sum == held.owed
        payments = await self.payments()
        assert sum((each.amount for each in payments), Decimal(0)) == self.came
        assert sum((each.returned for each in payments), Decimal(0)) <= self.went
        for each in payments:
            assert each.free >= 0
            assert each.returned >= 0
            assert each.free + each.returned <= each.amount


def test_an_account_is_what_was_done_to_it_at_every_step(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.close(APRIL)
        trial = Trial(scene=scene, random=Random(11))  # noqa: S311 - reproducible
        acts = [
            (trial.pay, 8), (trial.allocate, 3), (trial.refund, 4), (trial.reverse, 2),
            (trial.finalise, 5), (trial.note, 4), (trial.void, 1), (trial.dispute, 2),
        ]  # fmt: skip
        for _ in range(STEPS):
            (act,) = trial.random.choices([act for act, _ in acts], [weight for _, weight in acts])
            await trial.step(act)
            await trial.check()
        assert set(trial.done) == {act.__name__ for act, _ in acts}, trial.done

    billed(database_url, story)
