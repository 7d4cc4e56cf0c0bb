"""The payment provider: asked by one key however often, believed whatever order its events come in."""

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from api.app import create_app
from metering import clock
from metering.billing.pay import Share, allocate_credit, refund
from metering.errors import Conflict, InvalidValue
from metering.payments.ask_provider import ask_due
from metering.payments.bill_run_command import BillRunner
from metering.payments.provider import PaymentOrder, SignatureRefused, Unanswered
from metering.payments.reconcile import receive_event
from metering.payments.request_payment import Wanted, request_payment
from metering.payments.send_refunds import send_due_refunds
from metering.payments.stripe import Stripe, amount_of, minor_amount
from metering.settings import Settings
from metering.store.collecting import PaymentPolicy, set_payment_policy
from metering.store.connection import Connection, connect
from metering.store.payment_requests import PaymentRequest, list_requests
from metering.store.payments import Payment, Purpose, list_payments
from metering.store.provider_refunds import list_refunds
from tests.integration.billing_scene import again, billed, entered, finalised
from tests.integration.billing_scene import bill_of as draft_of
from tests.integration.closing_scene import FEBRUARY, Scene
from tests.integration.payment_provider import (
    KEY,
    SECRET,
    Provider,
    Way,
    event_of,
    providing,
    recorded,
    signature_of,
)
from tests.integration.payment_scene import NOW, account, events, money, standing, wallet
from tests.integration.test_bills import die_after

READER = Stripe(None, secret=None, webhook_secret=SECRET)
SETTINGS = Settings(payment_retry_seconds=8)


async def wanted(
    scene: Scene, amount: str, key: str, *, purpose: Purpose = "wallet", now: datetime = NOW
) -> PaymentRequest:
    request, _ = await request_payment(
        scene.connection,
        fleet=scene.fleet,
        wanted=Wanted(
            purpose=purpose, amount=money(amount), currency="EUR", customer="cus_1",
            payment_method="pm_1",
        ),
        key=key,
        now=now,
    )  # fmt: skip
    return request


async def asked(
    scene: Scene, provider: Provider, *, now: datetime, connection: Connection | None = None
) -> int:
    async with httpx.AsyncClient(base_url=provider.url, timeout=60) as client:
        stripe = Stripe(client, secret=KEY, webhook_secret=SECRET)
        return await ask_due(
            connection or scene.connection,
            stripe,
            SETTINGS,
            now=now,
            random=Random(1),  # noqa: S311 - reproducible
        )


async def told(scene: Scene, body: bytes) -> bool:
    event = READER.read_event(body, signature_of(body, NOW), now=NOW)
    assert event is not None
    return await receive_event(scene.connection, event, now=NOW)


async def the_requests(scene: Scene) -> list[PaymentRequest]:
    return await list_requests(scene.connection, scene.fleet.fleet_no, after=0, limit=500)


def test_a_wallet_that_is_low_is_topped_up_once_whatever_the_provider_answers(
    database_url: str,
) -> None:
    ways: Sequence[Way] = ["takes and drops", "in use", "fails", "takes"]

    async def story(scene: Scene, provider: Provider) -> None:
        await wallet(scene, low_balance="10", top_up_below="10", top_up_amount="60")
        now = NOW
        for attempt in range(4):
            assert await asked(scene, provider, now=now) == 1
            assert await asked(scene, provider, now=now) == 0, "it waits before it asks again"
            assert len(provider.requests) == attempt + 1
            now += timedelta(hours=1)
        (request,) = await the_requests(scene)
        assert (request.state, request.attempts, request.intent_id) == ("succeeded", 4, "pi_1")
        assert len(provider.intents) == 1
        first = provider.requests[0]
        assert {each["idempotency-key"] for each in provider.requests} == {str(request.request_id)}
        assert (first["path"], first["authorization"]) == ("/v1/payment_intents", f"Bearer {KEY}")
        assert (first["amount"], first["currency"], first["confirm"]) == ("6000", "eur", "true")
        assert (await account(scene)).wallet == 60
        # The event that tells the same changes nothing.
        body = event_of(
            "payment_intent.succeeded", "evt_late", intent_id="pi_1",
            request_id=str(request.request_id),
        )  # fmt: skip
        assert (await told(scene, body), await told(scene, body)) == (True, False)
        assert (await account(scene)).wallet == 60
        assert await asked(scene, provider, now=now + timedelta(days=2)) == 0

    with providing(Provider(ways=list(ways))) as provider:
        billed(database_url, lambda scene: story(scene, provider))


def test_a_crash_while_the_provider_is_asked_takes_the_money_once(database_url: str) -> None:
    """The session dies after each statement in turn: before the provider is asked, and after it took it."""

    async def story(scene: Scene, provider: Provider) -> None:
        await wanted(scene, "60.00", "one")
        now, survived = NOW, 0
        while True:
            async with await connect(database_url, application="test", autocommit=True) as other:
                die_after(other, survived)
                try:
                    await asked(scene, provider, now=now, connection=other)
                except psycopg.OperationalError:
                    survived += 1
                else:
                    break
            # Whoever died leaves it alone for as long as an answer may take.
            now += timedelta(minutes=2)
            assert survived < 100
        assert survived > 10
        assert len(provider.requests) > 5
        assert len(provider.intents) == 1
        assert (await account(scene)).wallet == 60
        assert await events(scene, "payment.received") == 1

    with providing(Provider()) as provider:
        billed(database_url, lambda scene: story(scene, provider))


def test_an_event_before_the_answer_and_a_card_that_is_declined(database_url: str) -> None:
    async def story(scene: Scene, provider: Provider) -> None:
        await entered(scene, "100.00", bill=await draft_of(scene, FEBRUARY))
        bill = await finalised(scene, FEBRUARY)
        assert bill.owed is not None
        request = await wanted(scene, str(bill.owed), "pay", purpose="account")
        provider.tell = _teller(database_url)
        assert await asked(scene, provider, now=NOW) == 1
        assert (await again(scene, bill)).state == "paid"
        assert len(await list_payments(
            scene.connection, scene.operator.tenant, fleet_no=None, after=0, limit=5
        )) == 1  # fmt: skip
        assert (await the_requests(scene))[0].state == "succeeded"
        assert await wanted(scene, str(bill.owed), "pay", purpose="account") != request
        # A decline ends the request and is told; the next crossing may ask again.
        await wallet(scene, top_up_below="10", top_up_amount="60")
        assert await asked(scene, provider, now=NOW) == 1
        declined = (await the_requests(scene))[-1]
        assert (declined.state, declined.problem) == ("failed", "answered 402: card_declined")
        assert await events(scene, "payment.failed") == 1
        assert await asked(scene, provider, now=NOW + timedelta(hours=3)) == 0
        # Who gave no answer for a day is not asked by a key that the provider may have forgotten.
        await wanted(scene, "5.00", "never")
        assert await asked(scene, provider, now=NOW + timedelta(hours=21)) == 0
        assert (await the_requests(scene))[-1].state == "failed"
        assert len(provider.requests) == 2

    with providing(Provider(ways=["tells first", "declines"])) as provider:
        billed(database_url, lambda scene: story(scene, provider))


def _teller(database_url: str) -> Callable[[dict[str, Any]], None]:
    """Return what sends an event of an intent as the provider does, on a connection of its own."""

    async def tell(intent: dict[str, Any]) -> None:
        event = recorded("payment_intent.succeeded")
        body = json.dumps(event | {"data": {"object": intent}}).encode()
        read = READER.read_event(body, signature_of(body, NOW), now=NOW)
        assert read is not None
        async with await connect(database_url, application="test", autocommit=True) as connection:
            assert await receive_event(connection, read, now=NOW)

    return lambda intent: asyncio.run(tell(intent))


def test_a_provider_that_never_answers_is_given_up_for_now() -> None:
    async def attempt(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=0.2) as client:
            order = PaymentOrder(
                request_id=uuid4(), amount=money("1.00"), currency="EUR",
                customer="c", payment_method="p",
            )  # fmt: skip
            answer = await Stripe(client, secret=KEY, webhook_secret=None).request_payment(order)
            assert isinstance(answer, Unanswered)
            assert "ReadTimeout" in answer.problem

    with providing(Provider(ways=["hangs"])) as provider:
        asyncio.run(attempt(provider.url))


def test_the_order_and_the_number_of_events_change_nothing(database_url: str) -> None:
    """60.00 came; 20.00, then 25.00 in all was refunded, and 30.00 is disputed: 5.00 stay."""

    async def story(scene: Scene) -> None:
        random = Random(7)  # noqa: S311 - reproducible
        for number in range(30):
            request = await wanted(scene, "60.00", f"r{number}")
            intent, named = f"pi_{number}", str(request.request_id)
            bodies = [
                event_of("payment_intent.payment_failed", f"f{number}", intent_id=intent, request_id=named),
                event_of("payment_intent.succeeded", f"s{number}", intent_id=intent, request_id=named),
                event_of("charge.refunded", f"a{number}", intent_id=intent, request_id=named),
                event_of(
                    "charge.refunded", f"b{number}", intent_id=intent, request_id=named,
                    amount_refunded=2500,
                ),
                event_of("charge.dispute.created", f"d{number}", intent_id=intent),
            ]  # fmt: skip
            order = bodies + random.sample(bodies, 3)
            random.shuffle(order)
            seen: set[bytes] = set()
            for body in order:
                assert await told(scene, body) == (body not in seen)
                seen.add(body)
            assert (await account(scene)).wallet == 5 * (number + 1), number
            (payment,) = await list_payments(
                scene.connection, scene.operator.tenant, fleet_no=None, after=number, limit=5
            )
            assert (payment.amount, payment.returned) == (money("60.00"), money("55.00"))
        assert {each.state for each in await the_requests(scene)} == {"succeeded"}

    billed(database_url, story)


def test_what_does_not_come_from_the_provider_is_refused() -> None:
    body = json.dumps(recorded("payment_intent.succeeded")).encode()
    good = signature_of(body, NOW)
    assert READER.read_event(body, good, now=NOW + timedelta(seconds=300)) is not None
    for signature, now, problem in (
        ("", NOW, "form"),
        ("t=1,v1=" + "0" * 64, NOW, "another secret"),
        (good.replace("t=", "t=1"), NOW, "another secret"),
        (signature_of(body, NOW, secret="whsec_other"), NOW, "another secret"),
        (signature_of(body + b" ", NOW), NOW, "another message"),
        (good, NOW + timedelta(seconds=301), "300 seconds"),
        (good, NOW - timedelta(seconds=301), "300 seconds"),
        ("t=x,v1=é", NOW, "form"),
    ):
        with pytest.raises(SignatureRefused, match=problem):
            READER.read_event(body, signature, now=now)
    for wrong in (b"\xff", b"{", b"[]", b'{"type": "charge.refunded"}'):
        with pytest.raises(InvalidValue):
            READER.read_event(wrong, signature_of(wrong, NOW), now=NOW)
    other = json.dumps(recorded("payment_intent.succeeded") | {"type": "invoice.paid"}).encode()
    assert READER.read_event(other, signature_of(other, NOW), now=NOW) is None


def test_amounts_are_in_the_providers_minor_units() -> None:
    for text, currency, minor in (
        ("60.00", "EUR", 6000), ("500", "JPY", 500), ("5.120", "KWD", 5120), ("5", "ISK", 500),
        ("3", "UGX", 300), ("7", "MGA", 7),
    ):  # fmt: skip
        assert minor_amount(money(text), currency) == minor
        assert amount_of(minor, currency) == money(text)


def test_the_route_takes_what_is_signed(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        request = await wanted(scene, "60.00", "one")
        body = event_of(
            "payment_intent.succeeded",
            "evt_1",
            intent_id="pi_1",
            request_id=str(request.request_id),
        )
        settings = Settings(database_url=database_url, payment_webhook_secret=SECRET)
        app = create_app(settings, now=lambda: NOW)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            path, headers = (
                "/v1/payment-provider/events",
                {"Stripe-Signature": signature_of(body, NOW)},
            )
            refused = await client.post(path, content=body + b" ", headers=headers)
            assert refused.status_code == 401
            assert SECRET not in refused.text
            for new in (True, False):
                taken = await client.post(path, content=body, headers=headers)
                assert (taken.status_code, taken.json()) == (200, {"new": new})
            for kind, status, left in (
                ("charge.dispute.created", "needs_response", 30),
                ("charge.dispute.closed", "won", 60),
            ):
                body = event_of(kind, kind, intent_id="pi_1", status=status)
                headers = {"Stripe-Signature": signature_of(body, NOW)}
                taken = await client.post(path, content=body, headers=headers)
                assert (taken.status_code, taken.json()) == (200, {"new": True})
                assert (await account(scene)).wallet == left
            request = await wanted(scene, "9.00", "two")
            body = event_of(
                "payment_intent.succeeded", "evt_2", intent_id="pi_2", amount_received=900,
                request_id=str(request.request_id),
            )  # fmt: skip
            headers = {"Stripe-Signature": signature_of(body, NOW)}
            assert (await client.post(path, content=body, headers=headers)).status_code == 200
            payments = await list_payments(
                scene.connection, scene.operator.tenant, fleet_no=None, after=0, limit=10
            )
            await wanted_back(scene, payments[-1].payment_no, "9.00", "back")
            (kept,) = await list_refunds(scene.connection, scene.fleet.fleet_no, after=0, limit=9)
            body = event_of(
                "charge.refund.updated", "evt_3", intent_id="pi_2",
                metadata={"fleetmeter_refund": str(kept.refund_id)},
            )  # fmt: skip
            headers = {"Stripe-Signature": signature_of(body, NOW)}
            assert (await client.post(path, content=body, headers=headers)).status_code == 200
            assert (await account(scene)).wallet == 69
            assert await events(scene, "refund.failed") == 1
            # One that was made there, of that payment and of one that is still to come.
            failed = event_of(
                "charge.refund.updated", "evt_4", intent_id="pi_2", id="re_there", amount=500,
                metadata={},
            )  # fmt: skip
            headers = {"Stripe-Signature": signature_of(failed, NOW)}
            for new in (True, False):
                taken = await client.post(path, content=failed, headers=headers)
                assert (taken.status_code, taken.json()) == (200, {"new": new})
            assert (await account(scene)).wallet == 69
            assert await events(scene, "refund.failed") == 2
            request = await wanted(scene, "7.00", "three")
            declined = event_of(
                "payment_intent.payment_failed", "evt_5", intent_id="pi_3",
                request_id=str(request.request_id),
            )  # fmt: skip
            early = event_of(
                "charge.refund.updated", "evt_6", intent_id="pi_3", id="re_3", metadata={}
            )
            for content, answer in ((declined, 200), (early, 422)):
                headers = {"Stripe-Signature": signature_of(content, NOW)}
                taken = await client.post(path, content=content, headers=headers)
                assert taken.status_code == answer, taken.text
            large = await client.post(path, content=b"x" * 300_000, headers=headers)
            assert large.status_code == 413

    billed(database_url, story)


def test_the_bill_run_asks_for_payments_and_follows_up_on_bills(database_url: str) -> None:
    async def story(scene: Scene, provider: Provider) -> None:
        await entered(scene, "100.00", bill=await draft_of(scene, FEBRUARY))
        bill = await finalised(scene, FEBRUARY)
        policy = PaymentPolicy(reminder_days=(1,))
        await set_payment_policy(scene.connection, scene.operator.tenant, policy, now=NOW)
        now = max(clock.now(), NOW + timedelta(days=60))
        await wanted(scene, "60.00", "now", now=now)
        settings = Settings(
            database_url=database_url, payment_provider_url=provider.url, payment_provider_key=KEY
        )
        runner = BillRunner(settings, tenant=None, by_hand=False, now=lambda: now)
        for _ in range(2):
            await runner.once()
            assert (await account(scene)).wallet == 60
            assert await events(scene, "bill.overdue") == 1
        assert len(provider.requests) == 1
        assert (await again(scene, bill)).state == "finalised"

    with providing(Provider()) as provider:
        billed(database_url, lambda scene: story(scene, provider))


async def sent(
    scene: Scene, provider: Provider, *, now: datetime, connection: Connection | None = None
) -> int:
    async with httpx.AsyncClient(base_url=provider.url, timeout=60) as client:
        stripe = Stripe(client, secret=KEY, webhook_secret=SECRET)
        return await send_due_refunds(
            connection or scene.connection,
            stripe,
            SETTINGS,
            now=now,
            random=Random(1),  # noqa: S311 - reproducible
        )


async def wanted_back(scene: Scene, payment_no: int, amount: str, key: str) -> bool:
    return await refund(
        scene.connection, fleet=scene.fleet, payment_no=payment_no, amount=money(amount),
        reason="asked for", key=key, now=NOW,
    )  # fmt: skip


def test_a_refund_is_made_by_the_provider_once_and_its_event_changes_nothing(
    database_url: str,
) -> None:
    async def story(scene: Scene, provider: Provider) -> None:
        request = await wanted(scene, "60.00", "first", purpose="account")
        assert await asked(scene, provider, now=NOW) == 1
        (intent,) = (each["id"] for each in provider.intents.values())
        (payment,) = await list_payments(
            scene.connection, scene.operator.tenant, fleet_no=None, after=0, limit=10
        )
        provider.requests.clear()
        assert not await wanted_back(scene, payment.payment_no, "10.00", "back")
        assert await wanted_back(scene, payment.payment_no, "10.00", "back")
        with pytest.raises(InvalidValue, match=r"only 50.00 is free"):
            await wanted_back(scene, payment.payment_no, "50.01", "more")
        assert (await account(scene)).credit == 60

        # Whatever happens on the way, it is one refund: each attempt has its key.
        provider.ways = ["fails", "in use", "takes and drops"]
        now = NOW
        for credit in (60, 60, 60, 50):
            assert await sent(scene, provider, now=now) == 1
            assert (await account(scene)).credit == credit
            now += timedelta(hours=1)
        assert await sent(scene, provider, now=now) == 0
        assert {each["path"] for each in provider.requests} == {"/v1/refunds"}
        assert {each["amount"] for each in provider.requests} == {"1000"}
        assert {each["payment_intent"] for each in provider.requests} == {intent}
        assert len({each["idempotency-key"] for each in provider.requests}) == 1
        (made,) = provider.refunds.values()
        (kept,) = await list_refunds(scene.connection, scene.fleet.fleet_no, after=0, limit=10)
        assert (kept.state, kept.provider_id, kept.attempts) == ("succeeded", made["id"], 4)
        assert made["metadata"] == {"fleetmeter_refund": str(kept.refund_id)}

        def event(name: str, refunded: int) -> bytes:
            return event_of(
                "charge.refunded", name, intent_id=intent, request_id=str(request.request_id),
                amount_refunded=refunded,
            )  # fmt: skip

        assert await told(scene, event("e1", 1000))
        assert (await account(scene)).credit == 50
        assert await events(scene, "payment.refunded") == 1
        # At the provider itself 5.00 more were given back.
        assert await told(scene, event("e2", 1500))
        assert (await account(scene)).credit == 45

        # The event of another comes before the answer.
        await wanted_back(scene, payment.payment_no, "5.00", "again")
        assert await told(scene, event("e3", 2000))
        assert (await account(scene)).credit == 40
        assert await sent(scene, provider, now=NOW) == 1
        assert (await account(scene)).credit == 40

        provider.ways = ["refunded"]
        await wanted_back(scene, payment.payment_no, "40.00", "all")
        assert await sent(scene, provider, now=NOW) == 1
        assert (await account(scene)).credit == 40
        assert await events(scene, "refund.failed") == 1
        states = await list_refunds(scene.connection, scene.fleet.fleet_no, after=0, limit=10)
        assert [each.state for each in states] == ["succeeded", "succeeded", "failed"]
        assert states[-1].problem == "answered 400: charge_already_refunded"
        # Nobody was there to ask for a day: the provider may have forgotten the key.
        await wanted_back(scene, payment.payment_no, "1.00", "late")
        assert await sent(scene, provider, now=NOW + timedelta(hours=21)) == 0
        assert await events(scene, "refund.failed") == 2

    with providing(Provider()) as provider:
        billed(database_url, lambda scene: story(scene, provider))


async def paid_by_provider(
    scene: Scene, provider: Provider, *, purpose: Purpose = "account"
) -> tuple[Payment, PaymentRequest]:
    """Have 60.00 come by the provider."""
    request = await wanted(scene, "60.00", "first", purpose=purpose)
    assert await asked(scene, provider, now=NOW) == 1
    (payment,) = await list_payments(
        scene.connection, scene.operator.tenant, fleet_no=None, after=0, limit=10
    )
    return payment, request


def refunded_event(payment: Payment, request: PaymentRequest, name: str, minor: int) -> bytes:
    assert payment.intent_id is not None
    return event_of(
        "charge.refunded", name, intent_id=payment.intent_id, request_id=str(request.request_id),
        amount_refunded=minor,
    )  # fmt: skip


@pytest.mark.parametrize("lost", ["answer", "asker"])
@pytest.mark.parametrize("amount", [60, 40])
def test_a_refund_whose_answer_was_lost_is_not_told_to_have_failed(
    database_url: str, amount: int, lost: str
) -> None:
    """Its event took the money from the account: what is left does not tell whether it can be made."""

    async def story(scene: Scene, provider: Provider) -> None:
        payment, request = await paid_by_provider(scene, provider)
        await wanted_back(scene, payment.payment_no, f"{amount}.00", "back")
        if lost == "asker":
            async with await connect(database_url, application="test", autocommit=True) as other:
                die_after(other, 2)
                with pytest.raises(psycopg.OperationalError):
                    await sent(scene, provider, now=NOW, connection=other)
        else:
            provider.ways = ["takes and drops"]
            assert await sent(scene, provider, now=NOW) == 1
        assert len(provider.refunds) == 1
        assert await told(scene, refunded_event(payment, request, "e1", amount * 100))
        assert (await account(scene)).credit == 60 - amount
        assert await sent(scene, provider, now=NOW + timedelta(hours=1)) == 1
        (kept,) = await list_refunds(scene.connection, scene.fleet.fleet_no, after=0, limit=10)
        assert (kept.state, kept.provider_id) == ("succeeded", "re_1")
        assert len(provider.refunds) == 1
        assert (await account(scene)).credit == 60 - amount
        assert await events(scene, "refund.failed") == 0

    with providing(Provider()) as provider:
        billed(database_url, lambda scene: story(scene, provider))


def test_a_refund_that_is_given_up_was_made_if_the_provider_said_so(database_url: str) -> None:
    async def story(scene: Scene, provider: Provider) -> None:
        payment, request = await paid_by_provider(scene, provider)
        await wanted_back(scene, payment.payment_no, "40.00", "back")
        provider.ways = ["takes and drops"]
        assert await sent(scene, provider, now=NOW) == 1
        assert await told(scene, refunded_event(payment, request, "e1", 4000))
        assert await sent(scene, provider, now=NOW + timedelta(hours=21)) == 0
        (kept,) = await list_refunds(scene.connection, scene.fleet.fleet_no, after=0, limit=10)
        assert kept.state == "succeeded"
        assert (await account(scene)).credit == 20
        assert await events(scene, "refund.failed") == 0

    with providing(Provider()) as provider:
        billed(database_url, lambda scene: story(scene, provider))


@pytest.mark.parametrize("purpose", ["account", "wallet"])
def test_what_a_refund_waits_for_pays_no_bill_until_it_failed(
    database_url: str, purpose: Purpose
) -> None:
    async def story(scene: Scene, provider: Provider) -> None:
        payment, _ = await paid_by_provider(scene, provider, purpose=purpose)
        await wanted_back(scene, payment.payment_no, "40.00", "back")
        await entered(scene, "100.00", bill=await draft_of(scene, FEBRUARY))
        bill = await finalised(scene, FEBRUARY)
        held = await account(scene)
        assert held.credit + held.wallet == 40

        async def allocated(amount: str, key: str) -> None:
            share = Share(bill_no=bill.bill_no, amount=money(amount))
            await allocate_credit(
                scene.connection, fleet=scene.fleet, share=share, key=key, now=NOW
            )

        with pytest.raises(InvalidValue, match="more than there is"):
            await allocated("0.01", "early")
        await allocate_credit(scene.connection, fleet=scene.fleet, share=None, key="all", now=NOW)
        with pytest.raises(InvalidValue, match=r"only 0 is free"):
            await wanted_back(scene, payment.payment_no, "0.01", "more")
        provider.ways = ["refunded"]
        assert await sent(scene, provider, now=NOW) == 1
        assert await events(scene, "refund.failed") == 1
        if purpose == "account":
            await allocated("40.00", "late")
            assert (await account(scene)).credit == 0
        else:
            await wanted_back(scene, payment.payment_no, "40.00", "again")

    with providing(Provider()) as provider:
        billed(database_url, lambda scene: story(scene, provider))


def test_with_no_provider_a_request_fails_at_once_unless_it_was_asked_for(
    database_url: str,
) -> None:
    async def story(scene: Scene, provider: Provider) -> None:
        await wanted(scene, "10.00", "asked")
        assert await asked(scene, provider, now=NOW) == 1
        await wanted(scene, "20.00", "never asked")
        settings = Settings(database_url=database_url)
        later = NOW + timedelta(hours=2)
        await BillRunner(settings, tenant=None, by_hand=False, now=lambda: later).once()
        first, never = await the_requests(scene)
        assert (first.state, first.attempts) == ("queued", 2)
        assert (never.state, never.problem) == ("failed", "no payment provider is set up")
        assert await events(scene, "payment.failed") == 1
        # The money that was taken by the first is still heard of, by the same key.
        assert await asked(scene, provider, now=later + timedelta(hours=2)) == 1
        assert (await the_requests(scene))[0].state == "succeeded"
        assert len(provider.intents) == 1

    with providing(Provider(ways=["takes and drops", "takes"])) as provider:
        billed(database_url, lambda scene: story(scene, provider))


def test_with_no_provider_a_refund_fails_at_once_unless_it_was_asked_for(database_url: str) -> None:
    async def story(scene: Scene, provider: Provider) -> None:
        payment, _ = await paid_by_provider(scene, provider)
        await wanted_back(scene, payment.payment_no, "10.00", "asked")
        provider.ways = ["takes and drops"]
        assert await sent(scene, provider, now=NOW) == 1
        await wanted_back(scene, payment.payment_no, "20.00", "never asked")
        settings = Settings(database_url=database_url)
        later = NOW + timedelta(hours=2)
        await BillRunner(settings, tenant=None, by_hand=False, now=lambda: later).once()
        asked, never = await list_refunds(scene.connection, scene.fleet.fleet_no, after=0, limit=10)
        assert (asked.state, asked.attempts) == ("queued", 2)
        assert (never.state, never.problem) == ("failed", "no payment provider is set up")
        assert await events(scene, "refund.failed") == 1
        await wanted_back(scene, payment.payment_no, "50.00", "free again")

    with providing(Provider()) as provider:
        billed(database_url, lambda scene: story(scene, provider))


def test_a_refund_that_fails_later_gives_its_money_back(database_url: str) -> None:
    """Whether the event comes before the answer or after, and before or after what tells of the refund."""

    async def story(scene: Scene, provider: Provider) -> None:
        payment, request = await paid_by_provider(scene, provider)
        assert payment.intent_id is not None

        async def failed(name: str, number: int) -> bytes:
            kept = await list_refunds(scene.connection, scene.fleet.fleet_no, after=0, limit=10)
            return event_of(
                "charge.refund.updated", name, intent_id=payment.intent_id or "", id=f"re_{number}",
                metadata={"fleetmeter_refund": str(kept[number - 1].refund_id)},
            )  # fmt: skip

        await wanted_back(scene, payment.payment_no, "20.00", "one")
        assert await sent(scene, provider, now=NOW) == 1
        assert (await account(scene)).credit == 40
        assert await told(scene, await failed("f1", 1))
        assert (await account(scene)).credit == 60
        assert await told(scene, await failed("f2", 1))
        assert await told(scene, refunded_event(payment, request, "r1", 2000))
        assert (await account(scene)).credit == 60
        assert await events(scene, "refund.failed") == 1

        await wanted_back(scene, payment.payment_no, "10.00", "two")
        provider.ways = ["takes and drops"]
        assert await sent(scene, provider, now=NOW) == 1
        assert await told(scene, await failed("f3", 2))
        assert (await account(scene)).credit == 60
        assert await sent(scene, provider, now=NOW + timedelta(hours=1)) == 0
        assert await events(scene, "refund.failed") == 2
        # What is refunded after that counts in full.
        await wanted_back(scene, payment.payment_no, "5.00", "three")
        assert await sent(scene, provider, now=NOW) == 1
        assert (await account(scene)).credit == 55

    with providing(Provider()) as provider:
        billed(database_url, lambda scene: story(scene, provider))


@pytest.mark.parametrize("status", ["won", "lost"])
def test_a_dispute_that_is_won_gives_back_what_it_took(database_url: str, status: str) -> None:
    async def story(scene: Scene, provider: Provider) -> None:
        payment, request = await paid_by_provider(scene, provider)
        assert payment.intent_id is not None
        intent = payment.intent_id
        assert await told(scene, refunded_event(payment, request, "r1", 1000))
        created = event_of("charge.dispute.created", "d1", intent_id=intent)
        closed = [
            event_of("charge.dispute.closed", name, intent_id=intent, status=status)
            for name in ("c1", "c2")
        ]
        if status == "won":
            assert await told(scene, created)
            assert (await account(scene)).credit == 20
        for body in closed:
            assert await told(scene, body)
            assert (await account(scene)).credit == (50 if status == "won" else 20)
        if status == "lost":
            assert await told(scene, created)
            assert (await account(scene)).credit == 20

    with providing(Provider()) as provider:
        billed(database_url, lambda scene: story(scene, provider))


def told_refund(
    payment: Payment, name: str, number: str, minor: int, *, kind: str, status: str
) -> bytes:
    """Return an event of a refund that was made at the provider itself."""
    assert payment.intent_id is not None
    return event_of(
        kind, name, intent_id=payment.intent_id, id=number, amount=minor, status=status,
        metadata={},
    )  # fmt: skip


@pytest.mark.parametrize("known", [False, True], ids=["by the total", "by its name"])
def test_what_the_account_gave_is_not_held_back_until_the_answer_comes(
    database_url: str, *, known: bool
) -> None:
    """The event of a refund may come long before its answer: 40.00 of 60.00 went, and 20.00 are free."""

    async def story(scene: Scene, provider: Provider) -> None:
        payment, request = await paid_by_provider(scene, provider)
        await wanted_back(scene, payment.payment_no, "40.00", "back")
        assert payment.intent_id is not None
        provider.ways = ["takes and drops"]
        assert await sent(scene, provider, now=NOW) == 1
        with pytest.raises(InvalidValue, match=r"only 20.00 is free"):
            await wanted_back(scene, payment.payment_no, "20.01", "held")
        # Another refund was never asked for: nothing that the provider tells can be of it.
        await wanted_back(scene, payment.payment_no, "5.00", "never asked")
        if known:
            (first, _) = await list_refunds(
                scene.connection, scene.fleet.fleet_no, after=0, limit=10
            )
            body = event_of(
                "charge.refund.updated", "e1", intent_id=payment.intent_id, id="re_1", amount=4000,
                status="succeeded", metadata={"fleetmeter_refund": str(first.refund_id)},
            )  # fmt: skip
        else:
            body = refunded_event(payment, request, "e1", 4000)
        assert await told(scene, body)
        assert (await account(scene)).credit == 20
        with pytest.raises(InvalidValue, match=r"only 15.00 is free"):
            await wanted_back(scene, payment.payment_no, "15.01", "more")
        await entered(scene, "100.00", bill=await draft_of(scene, FEBRUARY))
        await finalised(scene, FEBRUARY)
        assert (await account(scene)).credit == 5
        assert await sent(scene, provider, now=NOW + timedelta(hours=1)) == (1 if known else 2)
        assert (await account(scene)).credit == 0
        states = await list_refunds(scene.connection, scene.fleet.fleet_no, after=0, limit=10)
        assert [each.state for each in states] == ["succeeded", "succeeded"]
        assert len(provider.refunds) == 2

    with providing(Provider()) as provider:
        billed(database_url, lambda scene: story(scene, provider))


@pytest.mark.parametrize("purpose", ["account", "wallet"])
def test_a_refund_made_at_the_provider_that_fails_gives_back_to_where_it_was(
    database_url: str, purpose: Purpose
) -> None:
    """Of 60.00, a bill has most: 30.00 are refunded, some of them from the bill, and come back."""

    async def story(scene: Scene, provider: Provider) -> None:
        payment, request = await paid_by_provider(scene, provider, purpose=purpose)
        await entered(scene, "40.00", bill=await draft_of(scene, FEBRUARY))
        bill = await finalised(scene, FEBRUARY)
        assert bill.gross is not None
        free = 60 - bill.gross
        assert 0 < free < 30
        before = await account(scene)
        assert before.credit + before.wallet == free
        assert before.owed == 0
        made = told_refund(
            payment, "m1", "re_there", 3000, kind="refund.created", status="succeeded"
        )
        assert await told(scene, made)
        assert await told(scene, refunded_event(payment, request, "m2", 3000))
        gone = await account(scene)
        assert gone.credit + gone.wallet == 0
        assert gone.owed == 30 - free
        assert await events(scene, "payment.refunded") == 1
        for number, kind in enumerate(("refund.failed", "charge.refund.updated", "refund.updated")):
            body = told_refund(payment, f"f{number}", "re_there", 3000, kind=kind, status="failed")
            assert await told(scene, body)
            assert not await told(scene, body)
            assert await account(scene) == before
        assert (await standing(scene, bill)).state == "paid"
        assert await events(scene, "refund.failed") == 1
        kept = await list_refunds(scene.connection, scene.fleet.fleet_no, after=0, limit=10)
        assert [(each.state, each.provider_id) for each in kept] == [("failed", "re_there")]
        # It is refunded again, all of it: also what came back goes.
        again = told_refund(
            payment, "a1", "re_again", 6000, kind="refund.created", status="pending"
        )
        assert await told(scene, again)
        nothing = await account(scene)
        assert nothing.credit + nothing.wallet == 0
        assert nothing.owed == bill.gross

    with providing(Provider()) as provider:
        billed(database_url, lambda scene: story(scene, provider))


def test_the_order_of_what_is_told_of_refunds_changes_nothing(database_url: str) -> None:
    """60.00 came; 20.00 and 5.00 were refunded there, and the 20.00 failed: 55.00 are left."""

    async def story(scene: Scene) -> None:
        random = Random(11)  # noqa: S311 - reproducible
        for number in range(20):
            request = await wanted(scene, "60.00", f"r{number}")
            intent, named = f"pi_{number}", str(request.request_id)
            assert await told(
                scene,
                event_of(
                    "payment_intent.succeeded", f"s{number}", intent_id=intent, request_id=named
                ),
            )
            (payment,) = await list_payments(
                scene.connection, scene.operator.tenant, fleet_no=None, after=2 * number, limit=5
            )
            bodies = [
                refunded_event(payment, request, f"t{number}", 2000),
                told_refund(
                    payment, f"c{number}", f"re_{number}", 2000, kind="refund.created",
                    status="pending",
                ),
                told_refund(
                    payment, f"f{number}", f"re_{number}", 2000, kind="refund.failed",
                    status="failed",
                ),
                # By then nothing is refunded there any more but this.
                refunded_event(payment, request, f"u{number}", 500),
                told_refund(
                    payment, f"d{number}", f"re_{number}b", 500, kind="refund.created",
                    status="succeeded",
                ),
            ]  # fmt: skip
            order = bodies + random.sample(bodies, 3)
            random.shuffle(order)
            for body in order:
                await told(scene, body)
            assert (await account(scene)).wallet == 55 * (number + 1), number
            assert await events(scene, "refund.failed") == number + 1

    billed(database_url, story)


def test_refunds_of_what_is_not_known_here_are_let_pass_or_sent_again(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        request = await wanted(scene, "60.00", "r")
        intent, named = "pi_late", str(request.request_id)
        failed = event_of(
            "charge.refund.updated", "f", intent_id=intent, id="re_late", amount=2000, metadata={}
        )
        assert not await told(scene, failed)
        declined = event_of(
            "payment_intent.payment_failed", "d", intent_id=intent, request_id=named
        )
        assert await told(scene, declined)
        with pytest.raises(Conflict, match="has not come yet"):
            await told(scene, failed)
        succeeded = event_of("payment_intent.succeeded", "s", intent_id=intent, request_id=named)
        assert await told(scene, succeeded)
        assert await told(scene, failed)
        assert (await account(scene)).wallet == 60
        assert await events(scene, "refund.failed") == 1
        found = await scene.connection.execute(b"SELECT count(*) FROM provider_event")
        assert await found.fetchall() == [(3,)]

    billed(database_url, story)
