"""Re-rating of closed cycles: a dry run first, then a line of the next bill, or notes."""

import json
from collections.abc import Callable
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

import pytest

from metering.billing.finalise import finalise
from metering.billing.known_bill import bill_known_at
from metering.billing.notes import left_of
from metering.billing.tax_service import HttpTaxService
from metering.billing.void import void
from metering.charging.rerate import RerateOrder, Settling, rerate
from metering.errors import Conflict, InvalidValue
from metering.insight.explain import explained_charge
from metering.store.billed_lines import reckonings_of
from metering.store.billing_settings import replace_tax_rules
from metering.store.bills import StoredBill
from tests.integration.billing_scene import (
    NOW,
    bill_of,
    document,
    every,
    finalised,
    set_up,
    used_and_closed,
    voided,
)
from tests.integration.closing_scene import APRIL, FEBRUARY, MARCH, MAY, PLAN, Scene, day, played
from tests.integration.test_assurance import assured
from tests.integration.test_closing_corrections import DEARER, OWN, number_of
from tests.tax_service import served

CHEAPER: dict[str, Any] = DEARER | {"plan": "cheaper", "monthly_fee": "0.25"}
CHEAPER["meters"] = DEARER["meters"] | {"sms": {"price": {"amount": "0.01", "per": 1}}}


async def order(scene: Scene, plan: dict[str, Any], settling: Settling = "note") -> RerateOrder:
    return RerateOrder(
        device_nos=[await number_of(scene, "van-2")], plan_no=await scene.operator.plan(plan),
        at=MARCH.start, settling=settling, reason="the price was wrong",
    )  # fmt: skip


async def begun(scene: Scene) -> None:
    await set_up(scene)
    await used_and_closed(scene)
    assert (await scene.bill(APRIL)).adjustments == []


def test_a_dry_run_says_who_gains_and_loses_and_writes_nothing(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await begun(scene)
        for cycle in (FEBRUARY, MARCH):
            await finalised(scene, cycle)
        tables = ("bill", "correction", "charge", "subscription", "period_adjustment", "event",
                  "noted_adjustment", "billing_operation", "number_counter")  # fmt: skip

        async def counted() -> list[Any]:
            found = []
            for table in tables:
                rows = await scene.connection.execute(
                    f"SELECT count(*), md5(string_agg(t::text, ' ' ORDER BY t::text)) FROM {table} AS t".encode()  # noqa: S608, E501
                )
                found.append(await rows.fetchone())
            return found

        before = await counted()
        for plan, sign in ((DEARER, 1), (CHEAPER, -1)):
            told, _ = await rerate(
                scene.connection, scene.fleet, await order(scene, plan), dry_run=True, now=NOW
            )
            (march,) = told["cycles"]
            assert march["first_day"] == "2026-03-01"
            ((device,), lines) = march["devices"], march["lines"]
            assert device["device_id"] == "van-2"
            assert Decimal(device["difference"]) * sign > 0
            assert (Decimal(march["after"]) - Decimal(march["before"])) * sign > 0
            assert {(line["kind"], line["name"]) for line in lines} >= {
                ("usage", "sms"), ("fee", "monthly_fee"),
            }  # fmt: skip
            assert await counted() == before
        # Three SMS at 0.50 for one at 0.10, and a fee of 3.00 for one of 1.00.
        told, _ = await rerate(
            scene.connection, scene.fleet, await order(scene, DEARER), dry_run=True, now=NOW
        )
        assert told["cycles"][0]["devices"] == [
            {"device_id": "van-2", "before": "1.1", "after": "4.5", "difference": "3.4"}
        ]

    played(database_url, story, meters=OWN)


@pytest.mark.parametrize(("plan", "kind"), [(DEARER, "debit_note"), (CHEAPER, "credit_note")])
def test_a_note_settles_what_re_rating_makes_of_a_final_bill(
    database_url: str, plan: dict[str, Any], kind: str
) -> None:
    async def story(scene: Scene) -> None:
        await begun(scene)
        await finalised(scene, FEBRUARY)
        march = await finalised(scene, MARCH)
        wanted = await order(scene, plan)
        told, repeated = await rerate(scene.connection, scene.fleet, wanted, key="right", now=NOW)
        assert not repeated
        (cycle,) = told["cycles"]
        difference = Decimal(cycle["after"]) - Decimal(cycle["before"])
        (note,) = [each for each in await every(scene) if each.corrects_no == march.bill_no]
        assert (note.bill_no, note.kind) == (cycle["note_no"], kind)
        assert document(note).owed.net == difference
        left = left_of(document(march), [document(note)])
        assert left.gross == document(march).totals.gross + document(note).owed.gross
        # The next bill carries nothing of it, and what comes later is billed on its own.
        assert [each for each in (await scene.bill(APRIL)).adjustments if each.tells] == []
        assert await scene.audit() == []
        again = await rerate(scene.connection, scene.fleet, wanted, key="right", now=NOW)
        assert again == (told, True)
        await scene.use("van-2", day(MARCH, 8), sms=1, received_at=day(APRIL, 21))
        (late,) = [each for each in (await scene.bill(APRIL)).adjustments if each.tells]
        assert late.late_records == 1
        assert abs(late.amount) == (Decimal("0.50") if plan is DEARER else Decimal("0.01"))
        with pytest.raises(Conflict, match="something else that the next bill carries"):
            await rerate(
                scene.connection, scene.fleet, await order(scene, PLAN | {"plan": "third"}),
                key="third", now=NOW,
            )  # fmt: skip
        await scene.close(APRIL)
        assert await scene.audit() == []

    played(database_url, story, meters=OWN)


@pytest.mark.parametrize("plan", [DEARER, CHEAPER])
@pytest.mark.parametrize("rebill", [True, False])
def test_what_a_note_settled_is_owed_again_when_its_bill_is_void(
    database_url: str, plan: dict[str, Any], *, rebill: bool
) -> None:
    async def story(scene: Scene) -> None:
        async def in_next() -> list[tuple[Any, Decimal]]:
            return [
                (each.cycle, each.amount)
                for each in (await scene.bill(APRIL)).adjustments
                if each.tells
            ]

        async def believed_next(at: datetime) -> list[tuple[Any, Decimal]]:
            bill = await bill_known_at(
                scene.connection, scene.operator.tenant, fleet=scene.fleet, at=APRIL.start,
                known_at=at,
            )  # fmt: skip
            return [(each.cycle, each.amount) for each in bill.adjustments]

        await begun(scene)
        settled_at, void_at = day(APRIL, 21), day(APRIL, 22)
        march = await finalised(scene, MARCH, now=settled_at)
        told, _ = await rerate(
            scene.connection, scene.fleet, await order(scene, plan), key="k", now=settled_at
        )
        (cycle,) = told["cycles"]
        difference = Decimal(cycle["after"]) - Decimal(cycle["before"])
        assert await in_next() == []
        assert await believed_next(settled_at) == []
        await void(
            scene.connection, tenant_no=scene.operator.tenant, bill_no=march.bill_no,
            reason="wrong buyer", rebill=rebill, key="void", now=void_at,
        )  # fmt: skip
        assert await in_next() == [(MARCH, difference)]
        assert await believed_next(settled_at) == []
        assert await believed_next(void_at) == [(MARCH, difference)]
        assert await scene.audit() == []
        revenue = (await assured(scene, MARCH.start)).revenue
        assert revenue.rest == revenue.adjusted == 0
        assert revenue.open == difference
        if rebill:
            again = document(await finalised(scene, MARCH))
            assert again.totals.net == document(march).totals.net
        await scene.close(APRIL)
        april = document(await finalised(scene, APRIL))
        assert [
            (line.period and line.period.first_day, line.amount)
            for line in april.lines
            if line.kind == "earlier_period"
        ] == [(MARCH.first_day, difference)]
        found = await assured(scene, MARCH.start)
        assert found.is_even
        assert found.revenue.rest == found.revenue.open == 0
        assert found.revenue.adjusted == difference
        assert await scene.audit() == []
        # What the new line is explained by is all that changed since the cycle closed, not since the note.
        reckoned = await reckonings_of(
            scene.connection, fleet_no=scene.fleet.fleet_no, cycle_start=MARCH.start,
            billed_in=APRIL.start,
        )  # fmt: skip
        assert [each.exact_amount for each in reckoned] == [str(Fraction(difference)), None]
        of_note = await reckonings_of(
            scene.connection, fleet_no=scene.fleet.fleet_no, cycle_start=MARCH.start,
            note_no=cycle["note_no"],
        )  # fmt: skip
        assert [each.exact_amount for each in of_note] == [str(Fraction(difference)), None]
        rows = await scene.connection.execute(
            "SELECT charge.boot_no, charge.seq, part FROM charge JOIN device USING (device_no)"
            " WHERE device_id = 'van-2' AND cycle_start = %s LIMIT 1",
            [MARCH.start],
        )
        ((*charge,),) = await rows.fetchall()
        key = (charge[0], charge[1], charge[2])
        explained = await explained_charge(scene.connection, scene.operator.tenant, key)
        billing = explained.billing
        assert (billing.held_by, billing.billed_in) == ("period_adjustment", APRIL.start)
        # It is billed once: nothing of it is left for the bill after.
        assert [each for each in (await scene.bill(MAY)).adjustments if each.tells] == []

    played(database_url, story, meters=OWN)


def test_what_is_not_final_is_settled_by_the_next_bill(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await begun(scene)
        with pytest.raises(Conflict, match="is not final; use next_bill"):
            await rerate(
                scene.connection, scene.fleet, await order(scene, DEARER), key="k", now=NOW
            )
        wanted = await order(scene, DEARER, "next_bill")
        await rerate(scene.connection, scene.fleet, wanted, key="k", now=NOW)
        (march,) = [each for each in (await scene.bill(APRIL)).adjustments if each.tells]
        assert (march.cycle, march.amount) == (MARCH, Decimal("3.40"))
        await finalised(scene, MARCH)
        await scene.close(APRIL)
        april = document(await finalised(scene, APRIL))
        assert [
            (line.period and line.period.first_day, line.amount)
            for line in april.lines
            if line.kind == "earlier_period"
        ] == [(MARCH.first_day, Decimal("3.40"))]
        assert (await bill_of(scene, MARCH)).name == "B2026-0001"

    played(database_url, story, meters=OWN)


def test_a_plan_that_puts_changes_off_is_not_re_rated_amid_a_cycle(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await begun(scene)
        wanted = await order(scene, DEARER, "next_bill")
        amid = RerateOrder(
            device_nos=wanted.device_nos, plan_no=wanted.plan_no, at=day(MARCH, 15),
            settling="next_bill", reason="amid",
        )  # fmt: skip
        with pytest.raises(InvalidValue, match="use the beginning of a cycle"):
            await rerate(scene.connection, scene.fleet, amid, key="k", now=NOW)
        assert await scene.audit() == []

    played(database_url, story, meters=OWN, plan_changes={"upward": "next_period"})


def rated_by(rate: Callable[[dict[str, Any]], int], body: bytes) -> tuple[int, bytes]:
    """Answer as a tax service that has a rate for each line."""
    lines = json.loads(body)["lines"]
    rates = {line["number"]: rate(line) for line in lines}
    bases = dict.fromkeys(rates.values(), Decimal(0))
    for line in lines:
        bases[rates[line["number"]]] += Decimal(line["amount"])
    answer = {
        "reference": "r",
        "lines": [
            {"number": number, "category": "S", "rate": rate} for number, rate in rates.items()
        ],
        "totals": [
            {"category": "S", "rate": rate, "net": str(base),
             "tax": str((base * rate / 100).quantize(Decimal("0.01"), ROUND_HALF_UP))}
            for rate, base in bases.items()
        ],
    }  # fmt: skip
    return 200, json.dumps(answer).encode()


async def taxed_by_service(scene: Scene, url: str) -> StoredBill:
    """Finalise March's bill, taxed by the service alone."""
    await begun(scene)
    await replace_tax_rules(scene.connection, scene.operator.tenant, [], now=NOW)
    march = await bill_of(scene, MARCH)
    final, _ = await finalise(
        scene.connection, tenant_no=scene.operator.tenant, bill_no=march.bill_no,
        tax_service=HttpTaxService(url=url), now=NOW,
    )  # fmt: skip
    assert {total.rate for total in document(final).taxes} == {10, 20}
    return final


@pytest.mark.parametrize(
    ("plan", "kind", "expected"),
    [
        # Three SMS at 0.50 for one at 0.10, and a fee of 3.00 for one of 1.00.
        (DEARER, "debit_note", {10: "1.40", 20: "2.00"}),
        # Three SMS at 0.01 for one at 0.10, and a fee of 0.25.
        (CHEAPER, "credit_note", {10: "-0.07", 20: "-0.75"}),
        # Three SMS at 0.50 and no fee: one rate rises and the other falls by more, or less.
        (DEARER | {"plan": "free", "monthly_fee": "0"}, "debit_note", {10: "1.40", 20: "-1.00"}),
        (CHEAPER | {"plan": "fee", "monthly_fee": "1.50"}, "debit_note", {10: "-0.07", 20: "0.50"}),
        (CHEAPER | {"plan": "less", "monthly_fee": "1.02"}, "credit_note",
         {10: "-0.07", 20: "0.02"}),
    ],
)  # fmt: skip
def test_a_note_bears_the_rates_of_the_lines_that_a_service_taxed(
    database_url: str, plan: dict[str, Any], kind: str, expected: dict[int, str]
) -> None:
    async def story(scene: Scene) -> None:
        march = await taxed_by_service(scene, url)
        told, _ = await rerate(
            scene.connection, scene.fleet, await order(scene, plan), key="k", now=NOW
        )
        (note,) = [each for each in await every(scene) if each.corrects_no == march.bill_no]
        said = document(note)
        assert (note.bill_no, note.kind) == (told["cycles"][0]["note_no"], kind)
        assert {int(each.rate): each.net * said.kind.sign for each in said.taxes} == {
            rate: Decimal(amount) for rate, amount in expected.items()
        }
        assert said.owed.net == sum(map(Decimal, expected.values()))
        for each in said.taxes:
            # What the whole rate's tax differs by.
            assert abs(each.tax - each.net * each.rate / 100) < Decimal("0.01")
        left = left_of(document(march), [said])
        assert left.gross == document(march).totals.gross + said.owed.gross
        assert await scene.audit() == []
        # All that is left can be taken back to nothing.
        await voided(scene, march)

    def of_name(line: dict[str, Any]) -> int:
        return 10 if line["name"] == "sms" else 20

    with served(lambda body: rated_by(of_name, body)) as (url, _):
        played(database_url, story, meters=OWN)


def test_a_note_is_refused_where_lines_that_are_called_alike_bear_several_rates(
    database_url: str,
) -> None:
    """Which of them the difference would bear is not known; the next bill asks anew."""

    def of_number(line: dict[str, Any]) -> int:
        return 10 if line["number"] == 1 else 20

    async def story(scene: Scene) -> None:
        await taxed_by_service(scene, url)
        with pytest.raises(Conflict, match="several rates of tax"):
            await rerate(
                scene.connection, scene.fleet, await order(scene, DEARER), key="k", now=NOW
            )

    with served(lambda body: rated_by(of_number, body)) as (url, _):
        played(database_url, story, meters=OWN, lines_per="device")
