"""A whole bill as it was believed to be at a past moment is the bill that was shown then."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from metering.billing.dispute import open_dispute, payable, resolve_dispute
from metering.billing.document import document_of, json_of
from metering.billing.enter_adjustment import Entry, enter_adjustment
from metering.billing.finalise import finalise
from metering.billing.give_note import NoteOrder, give_note
from metering.billing.known_document import KnownDocument, document_known_at
from metering.billing.notes import NoteEntry
from metering.billing.pay import record_payment, refund, reverse
from metering.billing.preview import preview
from metering.billing.void import rebill, void
from metering.errors import FleetmeterError
from metering.period import BillCycle
from metering.store.api_keys import create_api_key
from metering.store.billing_settings import (
    FleetBilling,
    TaxRuleRow,
    replace_tax_rules,
    set_fleet_billing,
    set_tenant_billing,
)
from metering.store.bills import StoredBill, bill_by_no, disputes_of, list_bills, notes_of
from metering.store.payments import NewPayment, Purpose, list_payments
from metering.store.provider_refunds import NewRefund, insert_refund, store_refund
from tests.integration.billing_scene import BUYER, RULE, SELLER, settings
from tests.integration.closing_scene import (
    APRIL,
    BEGAN,
    DEVICES,
    FEBRUARY,
    MARCH,
    MAY,
    Scene,
    day,
    played,
)
from tests.integration.test_api import body, problem
from tests.integration.test_drill_down import asking

CYCLES = (FEBRUARY, MARCH, APRIL, MAY)
HOUR = timedelta(hours=1)
REFUSED = "no bill can be made"
_REDUCED = replace(RULE, rate=Decimal(7), customer="reduced")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """All that is shown of a cycle's bill."""

    state: str
    document: dict[str, Any]
    bill_no: int | None
    payable: Decimal
    held: Decimal
    notes: list[tuple[int, str | None, Decimal | None]]


async def bills_of(scene: Scene, cycle: BillCycle) -> list[StoredBill]:
    """Return a cycle's bills, those that are void too, in their order."""
    rows = await list_bills(
        scene.connection, scene.operator.tenant, fleet_no=scene.fleet.fleet_no, state=None,
        kind="bill", after=0, limit=500,
    )  # fmt: skip
    found = [each for each in rows if each.cycle.start == cycle.start]
    return [
        await bill_by_no(scene.connection, scene.operator.tenant, each.bill_no) for each in found
    ]


async def live(scene: Scene, cycle: BillCycle) -> Shown | str:
    """Return what is shown of a cycle's bill now."""
    bills = await bills_of(scene, cycle)
    bill = bills[-1] if bills else None
    if bill is None or bill.document is None:
        try:
            drawn = await preview(scene.connection, scene.fleet, at=cycle.start)
        except FleetmeterError:
            return REFUSED
        return Shown(
            state="draft" if bill else "open",
            document=json_of(drawn),
            bill_no=bill.bill_no if bill else None,
            payable=Decimal(0),
            held=Decimal(0),
            notes=[],
        )
    to_pay, held = await payable(scene.connection, bill)
    return Shown(
        state=bill.state,
        document=json_of(document_of(bill.document)),
        bill_no=bill.bill_no,
        payable=to_pay,
        held=held,
        notes=[
            (each.bill_no, each.name, each.gross)
            for each in await notes_of(scene.connection, bill.bill_no)
        ],
    )


async def known(scene: Scene, cycle: BillCycle, at: datetime) -> Shown | str:
    """Return what is told of it as of a past moment."""
    try:
        found = await known_document(scene, cycle, at)
    except FleetmeterError:
        return REFUSED
    assert not found.not_kept
    return Shown(
        state=found.state,
        document=json_of(found.document),
        bill_no=found.bill_no,
        payable=found.payable,
        held=found.held,
        notes=[(each.bill_no, each.name, each.gross) for each in found.notes],
    )


async def known_document(scene: Scene, cycle: BillCycle, at: datetime) -> KnownDocument:
    return await document_known_at(scene.connection, scene.fleet, at=cycle.start, known_at=at)


@dataclass(slots=True, kw_only=True)
class Office:
    """Whoever bills: does something to the bills, by chance; what is refused is left."""

    scene: Scene
    chance: random.Random
    now: datetime
    done: int = 0

    async def act(self) -> None:
        """Do one thing."""
        self.done += 1
        acts: list[Callable[[], Awaitable[object]]] = [
            self._rules, self._settings, self._buyer, self._enter, self._pay, self._pay, self._give_back,
            self._bounce, self.finalise_one, self.finalise_one, self.finalise_one, self._void, self._note,
            self._dispute, self._resolve, self._rebill,
        ]  # fmt: skip
        try:
            async with self.scene.connection.transaction():
                await self.chance.choice(acts)()
        except FleetmeterError:
            return

    async def _bill(self, *states: str) -> StoredBill | None:
        bills = [each for cycle in CYCLES for each in await bills_of(self.scene, cycle)]
        bills = [each for each in bills if each.state in states]
        return self.chance.choice(bills) if bills else None

    @property
    def _once(self) -> dict[str, Any]:
        return {"key": f"{self.done}", "now": self.now}

    @property
    def _owned(self) -> dict[str, Any]:
        return {"tenant_no": self.scene.operator.tenant, **self._once}

    async def _rules(self) -> None:
        rules: list[TaxRuleRow] = [
            replace(RULE, rate=Decimal(self.chance.choice([16, 19, 20]))),
            _REDUCED,
        ]
        rules = rules[: self.chance.choice([1, 2, 2])]
        await replace_tax_rules(
            self.scene.connection, self.scene.operator.tenant, rules, now=self.now
        )

    async def _settings(self) -> None:
        given = replace(
            settings(), prices_include_tax=self.chance.random() < 0.3,
            seller=SELLER | {"name": f"Acme {self.done}"},
        )  # fmt: skip
        tenant = self.scene.operator.tenant
        await set_tenant_billing(self.scene.connection, tenant, given, now=self.now)

    async def _buyer(self) -> None:
        buyer = FleetBilling(buyer=BUYER, customer=self.chance.choice(["business", "reduced"]))
        await set_fleet_billing(
            self.scene.connection, self.scene.fleet.fleet_no, buyer, now=self.now
        )

    async def _enter(self) -> None:
        amount = Decimal(self.chance.choice(["-0.30", "0.55", "1.20", "-5.00"]))
        entry = Entry(name="goodwill", amount=amount, currency="EUR", reason="an outage")
        bill = await self._bill("draft") if self.chance.random() < 0.4 else None
        await enter_adjustment(
            self.scene.connection, fleet=self.scene.fleet, bill_no=bill.bill_no if bill else None,
            entry=entry, **self._once,
        )  # fmt: skip

    async def _pay(self) -> None:
        payment = NewPayment(
            purpose="wallet" if self.chance.random() < 0.5 else "account",
            amount=Decimal(self.chance.choice(["1.00", "2.50", "7.00"])),
            currency="EUR", method="transfer", reference=None, received_at=self.now,
        )  # fmt: skip
        await record_payment(
            self.scene.connection, fleet=self.scene.fleet, payment=payment, **self._once
        )

    async def _payment_no(self) -> int:
        rows = await list_payments(
            self.scene.connection, self.scene.operator.tenant,
            fleet_no=self.scene.fleet.fleet_no, after=0, limit=500,
        )  # fmt: skip
        return self.chance.choice(rows).payment_no if rows else 1

    async def _give_back(self) -> None:
        await refund(
            self.scene.connection, fleet=self.scene.fleet, payment_no=await self._payment_no(),
            amount=Decimal("0.40"), reason="asked for", **self._once,
        )  # fmt: skip

    async def _bounce(self) -> None:
        await reverse(
            self.scene.connection,
            payment_no=await self._payment_no(),
            reason="bounced",
            **self._owned,
        )

    async def finalise_one(self) -> None:
        """Make a draft final."""
        bill = await self._bill("draft")
        if bill is not None:
            await finalise(
                self.scene.connection, tenant_no=self.scene.operator.tenant, bill_no=bill.bill_no,
                now=self.now,
            )  # fmt: skip

    async def _void(self) -> None:
        bill = await self._bill("finalised", "paid")
        if bill is not None:
            await void(
                self.scene.connection, bill_no=bill.bill_no, reason="wrong buyer",
                rebill=self.chance.random() < 0.6, **self._owned,
            )  # fmt: skip

    async def _rebill(self) -> None:
        bill = await self._bill("void")
        if bill is not None:
            await rebill(
                self.scene.connection, tenant_no=self.scene.operator.tenant, bill_no=bill.bill_no,
                now=self.now,
            )  # fmt: skip

    async def _note(self) -> None:
        bill = await self._bill("finalised", "paid")
        if bill is not None:
            entry = NoteEntry(line=1, amount=Decimal("0.10"))
            way = self.chance.choice(["credit", "debit"])
            order = NoteOrder(
                way="credit" if way == "credit" else "debit", entries=[entry], reason="test"
            )
            await give_note(self.scene.connection, bill_no=bill.bill_no, order=order, **self._owned)

    async def _dispute(self) -> None:
        bill = await self._bill("finalised")
        if bill is not None:
            await open_dispute(
                self.scene.connection, bill_no=bill.bill_no, line=self.chance.choice([1, 2]), amount=None,
                reason="never used", **self._owned,
            )  # fmt: skip

    async def _resolve(self) -> None:
        bill = await self._bill("finalised", "paid")
        for each in await disputes_of(self.scene.connection, bill.bill_no) if bill else []:
            await resolve_dispute(
                self.scene.connection, dispute_no=each.dispute_no, granted=self.chance.random() < 0.5,
                resolution="looked into", **self._owned,
            )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_past_moments_whole_bill_is_what_was_shown_then(database_url: str, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - the seed must reproduce it

    async def story(scene: Scene) -> None:
        now = BEGAN + HOUR
        office = Office(scene=scene, chance=chance, now=now)
        shown: list[tuple[datetime, list[Shown | str]]] = []
        while now < MAY.start + timedelta(days=25):
            now += timedelta(hours=chance.uniform(12, 50))
            office.now = now
            match chance.choices(["use", "late", "look", "act"], [3, 1, 2, 9])[0]:
                case "use":
                    await scene.use(chance.choice(DEVICES), now, sms=4, data=2900)
                case "late":
                    at = max(now - timedelta(days=chance.uniform(1, 40)), BEGAN)
                    await scene.use(chance.choice(DEVICES), at, sms=3, received_at=now)
                case "look":
                    await scene.look(now)
                case _:
                    await office.act()
            shown.append((now + timedelta(minutes=1), [await live(scene, each) for each in CYCLES]))
        for at, bills in shown:
            for cycle, bill in zip(CYCLES, bills, strict=True):
                assert await known(scene, cycle, at) == bill, (at, cycle.first_day)
        told = [each for _, bills in shown for each in bills if isinstance(each, Shown)]
        states = {each.state for each in told}
        assert {"open", "draft"} < states, states
        assert len({str(each.document["taxes"]) for each in told}) > 2

    played(database_url, story)


def test_the_whole_bill_is_told_as_of_a_past_moment(database_url: str) -> None:
    """Of February: 3.00 of fees, 1.35 of minimums less a rebate, and what is entered."""

    async def story(scene: Scene) -> str:
        connection, tenant = scene.connection, scene.operator.tenant
        office = Office(scene=scene, chance=random.Random(1), now=day(FEBRUARY, 2))  # noqa: S311
        await set_tenant_billing(connection, tenant, settings(), now=day(FEBRUARY, 2))
        buyer = FleetBilling(buyer=BUYER, customer="business")
        await set_fleet_billing(connection, scene.fleet.fleet_no, buyer, now=day(FEBRUARY, 2))
        await replace_tax_rules(connection, tenant, [RULE, _REDUCED], now=day(FEBRUARY, 3))
        await scene.look(day(FEBRUARY, 3))
        await _entered(scene, "-1.00", now=day(FEBRUARY, 5))
        await _paid(scene, "2.00", purpose="wallet", now=day(FEBRUARY, 7))
        await set_fleet_billing(
            connection,
            scene.fleet.fleet_no,
            replace(buyer, customer="reduced"),
            now=day(FEBRUARY, 9),
        )
        await scene.close(FEBRUARY)
        office.now = day(MARCH, 10)
        await office.finalise_one()
        (bill,) = await bills_of(scene, FEBRUARY)
        dispute, _ = await open_dispute(
            connection, tenant_no=tenant, bill_no=bill.bill_no, line=2, amount=None, reason="unused",
            key="d", now=day(MARCH, 12),
        )  # fmt: skip
        await resolve_dispute(
            connection, tenant_no=tenant, dispute_no=dispute.dispute_no, granted=True,
            resolution="so it was", key="r", now=day(MARCH, 14),
        )  # fmt: skip
        await _paid(scene, "9.00", purpose="account", now=day(MARCH, 16))
        await void(
            connection, tenant_no=tenant, bill_no=bill.bill_no, reason="wrong buyer", rebill=True,
            key="v", now=day(MARCH, 18),
        )  # fmt: skip
        return await create_api_key(connection, tenant=tenant, label="test", now=day(MARCH, 20))

    key = played(database_url, story)
    with asking(database_url, key, day(MARCH, 20)) as client:

        def told(at: datetime) -> tuple[Any, ...]:
            given = {"at": day(FEBRUARY, 2).isoformat(), "known_at": at.isoformat()}
            answer = body(client.get("/v1/fleets/vans/bill-preview", params=given))
            known, totals = answer["known"], answer["document"]["totals"]
            assert known["not_kept"] == (["tax_service"] if at < day(FEBRUARY, 3) else [])
            return (
                known["state"],
                *(totals[name] for name in ("net", "tax", "prepaid", "due")),
                known["payable"],
                known["held"],
                [(each["kind"], each["gross"]) for each in known["notes"]],
            )

        plain = {"at": day(FEBRUARY, 2).isoformat(), "known_at": day(FEBRUARY, 1).isoformat()}
        refused = problem(client.get("/v1/fleets/vans/bill-preview", params=plain), 409)
        assert "nobody had said who the seller is" in refused["detail"]
        # 4.25 with 19 %; less 1.00; of which the wallet pays 2.00; then with 7 %.
        found = [told(day(FEBRUARY, each)) for each in (4, 6, 8, 10)]
        assert found == [
            ("open", "4.25", "0.81", "0.00", "5.06", "0", "0", []),
            ("open", "3.25", "0.62", "0.00", "3.87", "0", "0", []),
            ("open", "3.25", "0.62", "2.00", "1.87", "0", "0", []),
            ("open", "3.25", "0.23", "2.00", "1.48", "0", "0", []),
        ]
        found = [told(day(MARCH, each)) for each in (9, 11, 13, 15, 17, 19)]
        final = ("3.25", "0.23", "2.00", "1.48")
        assert found == [
            ("draft", *final, "0", "0", []),
            ("finalised", *final, "1.48", "0", []),
            ("finalised", *final, "0.00", "1.48", []),
            *[("paid", *final, "0", "0", [("credit_note", "3.21")])] * 2,
            ("draft", *final, "0", "0", []),
        ]
        problem(
            client.get("/v1/fleets/vans/bill-preview", params={"known_at": "2027-01-01T00:00:00Z"}),
            422,
        )


async def _entered(scene: Scene, amount: str, *, now: datetime) -> None:
    entry = Entry(name="goodwill", amount=Decimal(amount), currency="EUR", reason="an outage")
    await enter_adjustment(
        scene.connection, fleet=scene.fleet, bill_no=None, entry=entry, key="e", now=now
    )


async def _paid(scene: Scene, amount: str, *, purpose: Purpose, now: datetime) -> None:
    payment = NewPayment(
        purpose=purpose, amount=Decimal(amount), currency="EUR", method="transfer", reference=None,
        received_at=now,
    )  # fmt: skip
    await record_payment(
        scene.connection, fleet=scene.fleet, payment=payment, key=f"p {now}", now=now
    )


def test_what_was_not_kept_is_said(database_url: str) -> None:
    """What stood when keeping began counts for the time before, and a refund's end is not known."""

    async def story(scene: Scene) -> None:
        connection, tenant = scene.connection, scene.operator.tenant
        await set_tenant_billing(connection, tenant, settings(), now=day(FEBRUARY, 2))
        buyer = FleetBilling(buyer=BUYER, customer="business")
        await set_fleet_billing(connection, scene.fleet.fleet_no, buyer, now=day(FEBRUARY, 2))
        await replace_tax_rules(connection, tenant, [RULE], now=day(FEBRUARY, 10))
        # As a database comes up from before this was kept.
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("UPDATE billing_said SET is_first = true WHERE what = 'tax_rules'")
        await connection.execute("RESET session_replication_role")
        await _paid(scene, "2.00", purpose="wallet", now=day(FEBRUARY, 3))
        found = await known_document(scene, FEBRUARY, day(FEBRUARY, 4))
        assert found.not_kept == ["tax_rules"]
        assert found.document.taxes[0].rate == 19
        assert found.document.totals.prepaid == 2
        assert not (await known_document(scene, FEBRUARY, day(FEBRUARY, 11))).not_kept
        asked = NewRefund(
            refund_id=uuid4(), tenant_no=tenant, fleet_no=scene.fleet.fleet_no, payment_no=1,
            intent_id="pi_1", amount=Decimal("1.50"), currency="EUR", reason="asked for",
        )  # fmt: skip
        number = await insert_refund(connection, asked, now=day(FEBRUARY, 12))
        for at, prepaid in ((day(FEBRUARY, 11), "2.00"), (day(FEBRUARY, 13), "0.50")):
            found = await known_document(scene, FEBRUARY, at)
            assert not found.not_kept
            assert str(found.document.totals.prepaid) == prepaid
        await store_refund(connection, number, state="failed", problem="no")
        assert (await known_document(scene, FEBRUARY, day(FEBRUARY, 13))).not_kept == ["refunds"]

    played(database_url, story)
