"""Live bills of lines of every kind: a draft and the rest are the final bill; billed anew, it is the same."""

import random
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from metering.billing.document import Document, DocumentLineKind
from metering.billing.notes import left_of
from metering.billing.preview import preview
from metering.store.billing_settings import FleetBilling, set_fleet_billing
from metering.usage import METERS_BY_NO
from tests.integration.billing_scene import (
    BUYER,
    NOW,
    document,
    entered,
    finalised,
    noted,
    set_up,
    voided,
)
from tests.integration.closing_scene import FEBRUARY, Scene, day, played
from tests.integration.payment_scene import paid

HISTORIES = 12
EMPTY = Fraction(0)


def plan_of(chance: random.Random, name: str) -> dict[str, Any]:
    """Draw a plan: usage at once and shared, fees of each term, discounts, a commitment."""
    fees: list[dict[str, Any]] = [
        {"name": "line", "amount": "1.335"},
        {"name": "platform", "amount": "4.90", "per": "fleet"},
        {"name": "setting up", "amount": "9.90", "every": "once"},
        {"name": "SIM", "amount": "0.05", "every": "day"},
    ]
    adjustments: list[dict[str, Any]] = [
        {"type": "percentage_discount", "name": "rebate", "percent": "7.5", "on": ["data"]},
        {"type": "credit", "name": "welcome", "amount": "1.25"},
        {"type": "commitment", "name": "commitment", "amount": "30.00"},
        {"type": "maximum", "name": "cap", "amount": "12.00", "on": "usage"},
    ]
    return {
        "plan": name,
        "currency": "EUR",
        "meters": {
            "sms": {"allowance": chance.randint(0, 2), "price": {"amount": "0.10", "per": 1}},
            "data": {
                "allowances": [{"name": "common", "quantity": "1 kB", "shared_by": "fleet"}],
                "price": {
                    "model": "graduated",
                    "per": "1 kB",
                    "minimum": chance.choice(["0.45", "9.00"]),
                    "tiers": [{"up_to": "3 kB", "amount": "0.333"}, {"amount": "0.111"}],
                },
            },
        },
        "fees": chance.sample(fees, chance.randint(1, 4)),
        "adjustments": chance.sample(adjustments, chance.randint(0, 4)),
        "lines_per": chance.choice(["plan", "device"]),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a draft said one day, and what was charged by then."""

    document: Document
    charged: dict[str, Fraction]


def summed(drawn: Document, *kinds: DocumentLineKind) -> dict[str, Fraction]:
    """Return what lines of some kinds come to before rounding, by name."""
    found: dict[str, Fraction] = {}
    for line in drawn.lines:
        if line.kind in kinds:
            found[line.name] = found.get(line.name, EMPTY) + line.exact
    return {name: exact for name, exact in found.items() if exact}


async def charged(scene: Scene) -> dict[str, Fraction]:
    """Return what charges of February come to, by meter."""
    rows = await scene.connection.execute(
        "SELECT meter_no, sum(amount), subunits_per_unit FROM charge JOIN plan USING (plan_no)"
        " WHERE cycle_start = %s AND fleet_no = %s GROUP BY meter_no, subunits_per_unit",
        [FEBRUARY.start, scene.fleet.fleet_no],
    )
    return {
        METERS_BY_NO[row[0]].meter: Fraction(int(row[1]), int(row[2]))
        for row in await rows.fetchall()
        if row[1]
    }


def with_rest(draft: Draft, whole: dict[str, Fraction]) -> dict[str, Fraction]:
    """Return a draft's usage lines, with what was charged after it."""
    found = summed(draft.document, DocumentLineKind.USAGE)
    for name, exact in whole.items():
        found[name] = found.get(name, EMPTY) + exact - draft.charged.get(name, EMPTY)
    return {name: exact for name, exact in found.items() if exact}


async def one_history(scene: Scene, seed: int) -> set[DocumentLineKind]:
    """Use, draft, pay ahead and enter adjustments on random days; bill, correct, void and bill anew."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    name = f"fleet-{seed}"
    scene.fleet = await scene.operator.fleet(name, time_zone="Europe/Berlin")
    buyer = FleetBilling(buyer=BUYER, customer="business")
    await set_fleet_billing(scene.connection, scene.fleet.fleet_no, buyer, now=NOW)
    devices = [f"{name}-{number}" for number in range(3)]
    plan = await scene.operator.plan(plan_of(chance, name))
    await scene.operator.devices(scene.fleet, devices, plan=plan, valid_from=FEBRUARY.start)
    drafts: list[Draft] = []
    for number in sorted(chance.sample(range(1, 29), 5)):
        await scene.use(
            chance.choice(devices), day(FEBRUARY, number), sms=chance.randint(0, 3),
            data=chance.randint(0, 9000),
        )  # fmt: skip
        if chance.random() < 0.3:
            amount = f"{chance.randint(-60, 60)}.{chance.randint(0, 99):02}"
            await entered(scene, amount if Decimal(amount) else "1.00", key=f"{name} {number}")
        if chance.random() < 0.3:
            await paid(
                scene, f"{chance.randint(1, 40)}.5", key=f"{name} ahead {number}", purpose="wallet"
            )
        drawn = await preview(scene.connection, scene.fleet, at=FEBRUARY.start)
        drafts.append(Draft(document=drawn, charged=await charged(scene)))
    await scene.close_fleet(FEBRUARY)
    bill = await finalised(scene, FEBRUARY)
    final = document(bill)
    whole = await charged(scene)
    used = summed(final, DocumentLineKind.USAGE)
    fees = DocumentLineKind.RECURRING, DocumentLineKind.ONE_TIME
    for draft in drafts:
        assert with_rest(draft, whole) == used, seed
        assert summed(draft.document, *fees) == summed(final, *fees), seed
    # Nothing came after the last one: it says all that the final bill does.
    last = drafts[-1].document
    assert (last.lines, last.taxes, last.totals) == (final.lines, final.taxes, final.totals), seed
    for _ in range(chance.randint(0, 2)):
        if left_of(final, []).gross > 0:
            share = Fraction(chance.randint(1, 5), 10)
            await noted(scene, bill, share=share, key=f"{name} {share}")
    await voided(scene, bill)
    anew = document(await finalised(scene, FEBRUARY))
    assert (anew.lines, anew.taxes, anew.totals) == (final.lines, final.taxes, final.totals), seed
    return {line.kind for line in final.lines}


def test_drafts_and_the_rest_are_the_final_bill_which_billed_anew_is_the_same(
    database_url: str,
) -> None:
    async def story(scene: Scene) -> None:
        await set_up(scene)
        kinds = set()
        for seed in range(HISTORIES):
            kinds |= await one_history(scene, seed)
        assert kinds == set(DocumentLineKind) - {
            DocumentLineKind.EARLIER_PERIOD, DocumentLineKind.ROUNDING,
        }  # fmt: skip

    played(database_url, story)
