"""A tenant's own tax service, and one that is down: asked once a pause, while the bills of others go on."""

import json
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from metering.billing.run_bills import ASKED_AT_ONCE, BillRun, run_bills
from metering.billing.tax_services import TaxServices
from metering.errors import InvalidValue, TaxServiceFailed
from metering.settings import Settings
from metering.store.billing_settings import replace_tax_rules, set_tenant_billing
from metering.store.registry import calendar_of, ensure_tenant
from tests.integration.billing_scene import NOW, count, document, every, set_up, settings
from tests.integration.closing_scene import (
    APRIL,
    BEGAN,
    FEBRUARY,
    GRACE,
    MARCH,
    PLAN,
    Scene,
    played,
)
from tests.integration.pipeline import Operator
from tests.tax_service import served


async def _another_tenant(scene: Scene) -> Scene:
    """Return a fleet of another tenant, whose bills are of fees alone."""
    tenant = await ensure_tenant(scene.connection, tenant_id="other", name="Other", now=BEGAN)
    operator = Operator(connection=scene.connection, tenant=tenant, now=BEGAN)
    fleet = await operator.fleet("trucks")
    await operator.devices(fleet, ["truck-1"], plan=await operator.plan(PLAN), valid_from=BEGAN)
    return Scene(connection=scene.connection, operator=operator, fleet=fleet)


def _ten_per_cent(body: bytes) -> tuple[int, bytes]:
    lines = json.loads(body)["lines"]
    net = sum((Decimal(line["amount"]) for line in lines), Decimal(0))
    tax = (net / 10).quantize(Decimal("0.01"), ROUND_HALF_UP)
    return 200, json.dumps({
        "reference": "T",
        "lines": [{"number": line["number"], "category": "S", "rate": "10"} for line in lines],
        "totals": [{"category": "S", "rate": "10", "net": str(net), "tax": str(tax)}],
    }).encode()  # fmt: skip


def test_a_service_that_is_down_is_asked_once_a_pause_and_others_go_on(database_url: str) -> None:
    is_up = False

    def answer(body: bytes) -> tuple[int, bytes]:
        return _ten_per_cent(body) if is_up else (503, b"")

    async def story(scene: Scene) -> None:
        nonlocal is_up
        other = await _another_tenant(scene)
        for each in (scene, other):
            await set_up(each)
        for cycle in (FEBRUARY, MARCH):
            await scene.use("van-1", cycle.start + timedelta(days=3), sms=4)
            await scene.look(cycle.end + timedelta(days=3))
        own = replace(settings(), tax_service_url=url, tax_service_secret="main")
        await set_tenant_billing(scene.connection, scene.operator.tenant, own, now=NOW)
        await replace_tax_rules(scene.connection, scene.operator.tenant, [], now=NOW)
        clock = [NOW]
        given: dict[str, Any] = {
            "tax_service_url": "http://127.0.0.1:1/the-deployments",
            "tax_service_secrets": {"demo/main": SecretStr("a token")},
            "webhook_private_addresses": True,
        }
        services = TaxServices(Settings(**given), now=lambda: clock[0])

        async def run(now: datetime) -> BillRun:
            clock[0] = now
            runs = [
                each
                async for each in run_bills(
                    scene.connection, by_hand=True, tax_services=services, now=NOW
                )
            ]
            return runs[-1]

        assert await run(NOW) == BillRun(finalised=2, waiting=2)
        assert await run(NOW + timedelta(seconds=59)) == BillRun(waiting=2)
        assert len(asked) == 1
        assert await run(NOW + timedelta(seconds=60)) == BillRun(waiting=2)
        assert len(asked) == 2
        is_up = True
        assert await run(NOW + timedelta(seconds=130)) == BillRun(finalised=2)
        assert {headers["Authorization"] for headers, _ in asked} == {"Bearer a token"}
        assert {document(each).tax_service for each in await every(scene)} == {f"{url} T"}
        assert {document(each).tax_service for each in await every(other)} == {None}
        # Nobody names another tenant's secret, nor reaches what is not public.
        await replace_tax_rules(scene.connection, other.operator.tenant, [], now=NOW)
        await set_tenant_billing(scene.connection, other.operator.tenant, own, now=NOW)
        with pytest.raises(InvalidValue, match="no secret 'main' of tenant 'other'"):
            await services.of_tenant(scene.connection, other.operator.tenant)
        outside = TaxServices(
            Settings(**given | {"webhook_private_addresses": False}), now=lambda: NOW
        )
        found = await outside.of_tenant(scene.connection, scene.operator.tenant)
        assert found is not None
        with pytest.raises(OSError, match="not public"):
            await found.service._post(b"", {}, 1)
        own = replace(own, tax_service_url=None, tax_service_secret=None)
        await set_tenant_billing(scene.connection, scene.operator.tenant, own, now=NOW)
        found = await services.of_tenant(scene.connection, scene.operator.tenant)
        assert found is not None
        assert found.service.url == given["tax_service_url"]

    with served(answer) as (url, asked):
        played(database_url, story)


@pytest.mark.parametrize(
    ("bad", "runs"),
    [
        ((422, b"no such customer"), [BillRun(finalised=2, waiting=1), BillRun(waiting=1)]),
        ((200, b"not JSON"), [BillRun(finalised=2, waiting=1), BillRun(waiting=1)]),
        # One that seems to be down: the next run begins after the bill of which it gave no answer.
        ((500, b""), [BillRun(waiting=3), BillRun(finalised=2, waiting=1)]),
    ],
)
def test_one_bad_draft_holds_up_no_other(
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    bad: tuple[int, bytes],
    runs: list[BillRun],
) -> None:
    def answer(body: bytes) -> tuple[int, bytes]:
        return bad if b"2026-02-28" in body else _ten_per_cent(body)

    async def story(scene: Scene) -> None:
        await set_up(scene)
        await replace_tax_rules(scene.connection, scene.operator.tenant, [], now=NOW)
        for cycle in (FEBRUARY, MARCH, APRIL):
            await scene.use("van-1", cycle.start + timedelta(days=3), sms=4)
            await scene.look(cycle.end + timedelta(days=3))
        clock = [NOW]
        services = TaxServices(Settings(tax_service_url=url), now=lambda: clock[0])
        done = []
        for _ in runs:
            done += [
                [
                    each
                    async for each in run_bills(
                        scene.connection, by_hand=True, tax_services=services, now=NOW
                    )
                ][-1]
            ]
            clock[0] += timedelta(seconds=70)
        assert done == runs
        assert ("422 'no such customer'" in caplog.text) == (bad[0] == 422)

    with served(answer) as (url, _):
        played(database_url, story)


def test_a_service_that_answers_is_asked_about_several_drafts_at_once(database_url: str) -> None:
    """Each but the first waits until others are asked; they are numbered in their order all the same."""
    arrived = 0
    several = threading.Condition()

    def answer(body: bytes) -> tuple[int, bytes]:
        nonlocal arrived
        with several:
            arrived += 1
            several.notify_all()
            if arrived > 1 and not several.wait_for(lambda: arrived > ASKED_AT_ONCE, timeout=60):
                return 500, b""
        return _ten_per_cent(body)

    async def story(scene: Scene) -> None:
        await set_up(scene)
        await replace_tax_rules(scene.connection, scene.operator.tenant, [], now=NOW)
        for cycle in (FEBRUARY, MARCH):
            await scene.use("van-1", cycle.start + timedelta(days=3), sms=4)
        cycle = MARCH
        while await count(scene) <= ASKED_AT_ONCE + 2:
            await scene.look(cycle.end + GRACE)
            cycle = calendar_of(scene.fleet).following(cycle)
        services = TaxServices(Settings(tax_service_url=url), now=lambda: NOW)
        runs = [
            each
            async for each in run_bills(
                scene.connection, by_hand=True, tax_services=services, now=NOW
            )
        ]
        bills = await every(scene)
        assert runs[-1] == BillRun(finalised=len(bills))
        assert [each.finalised for each in runs] == list(range(1, len(bills) + 1))
        assert [each.name for each in bills] == [
            f"B2026-{number:04}" for number in range(1, len(bills) + 1)
        ]

    with served(answer) as (url, _):
        played(database_url, story)


def test_a_service_that_fails_one_tenant_is_up_for_another(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        other = await _another_tenant(scene)
        for each in (scene, other):
            await set_up(each)
            await replace_tax_rules(each.connection, each.operator.tenant, [], now=NOW)
            own = replace(settings(), tax_service_url="http://127.0.0.1:1/taxes")
            await set_tenant_billing(each.connection, each.operator.tenant, own, now=NOW)
        services = TaxServices(Settings(webhook_private_addresses=True), now=lambda: NOW)
        one = await services.of_tenant(scene.connection, scene.operator.tenant)
        another = await services.of_tenant(scene.connection, other.operator.tenant)
        assert one is not None
        assert another is not None
        services.note(one.key, TaxServiceFailed("gone"))
        assert (one.is_down, another.is_down) == (True, False)

    played(database_url, story)
