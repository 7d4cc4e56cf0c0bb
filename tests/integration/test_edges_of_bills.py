"""Bills at the edges: a plan change on the anchor day, and a device that lived for one second."""

from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import pytest

from metering.billing.document import Document, DocumentLineKind
from metering.charging.change_terms import change_plan
from metering.insight.assurance import assure
from metering.store.fleet_views import fleet_view
from tests.integration.billing_scene import NOW, document, finalised, set_up
from tests.integration.closing_scene import FEBRUARY, MARCH, PLAN, Scene, day, played
from tests.integration.test_closing_corrections import DEARER, number_of

TICK = timedelta(microseconds=1)


def test_a_plan_change_on_the_anchor_day_parts_no_cycle(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await set_up(scene)
        await change_plan(
            scene.connection,
            tenant_no=scene.operator.tenant,
            device_nos=[await number_of(scene, "van-1")],
            plan_no=await scene.operator.plan(DEARER),
            at=MARCH.start,
            now=day(FEBRUARY, 20),
        )
        await scene.use("van-1", FEBRUARY.end - TICK, sms=4)
        await scene.use("van-1", MARCH.start, sms=4)
        await scene.close(FEBRUARY)
        await scene.close(MARCH)
        before, after = [document(await finalised(scene, each)) for each in (FEBRUARY, MARCH)]
        assert {line.plan for line in before.lines} == {"van"}
        assert _fees(before) == {("van", 3): Fraction(3)}
        dearer = str(DEARER["plan"])
        assert _fees(after)["van", 2] == Fraction(2)
        used = {
            (line.plan, line.name): line.quantity
            for line in after.lines
            if line.kind is DocumentLineKind.USAGE
        }
        assert used == {(dearer, "sms"): 4}
        await _is_even(scene)

    played(database_url, story)


@pytest.mark.parametrize(
    ("proration", "share"),
    [
        ("days", None),
        ("days_inclusive", Fraction(1, 31)),
        # The clock skips an hour in March.
        ("seconds", Fraction(1, 31 * 86_400 - 3600)),
    ],
)
def test_a_device_that_lived_for_one_second_is_billed_for_it(
    database_url: str, proration: str, share: Fraction | None
) -> None:
    """By days it has none that it was there for: its usage is billed, and no fee."""
    begins = day(MARCH, 10)

    async def story(scene: Scene) -> None:
        await set_up(scene)
        plan = await scene.operator.plan(PLAN | {"proration": proration})
        await scene.operator.devices(
            scene.fleet, ["blink"], plan=plan, valid_from=begins,
            valid_to=begins + timedelta(seconds=1),
        )  # fmt: skip
        await scene.use("blink", begins, sms=3)
        # Its second is over: nothing pays this, and it is kept until somebody says who does.
        await scene.use("blink", begins + timedelta(seconds=1), sms=1)
        await scene.close(FEBRUARY)
        await scene.close(MARCH)
        final = document(await finalised(scene, MARCH))
        assert _fees(final) == ({("van", 3): 3} if share is None else {("van", 4): 3 + share})
        (used,) = (line for line in final.lines if line.kind is DocumentLineKind.USAGE)
        assert (used.name, used.records, used.quantity) == ("sms", 1, Decimal(3))
        parked = await scene.connection.execute("SELECT reason FROM parked")
        assert [row[0] for row in await parked.fetchall()] == ["no_subscription"]

    played(database_url, story, proration=proration)


def _fees(final: Document) -> dict[tuple[str | None, int], Fraction]:
    """Return what monthly fees come to, by plan and number of devices."""
    return {
        (line.plan, line.devices): line.exact
        for line in final.lines
        if line.kind is DocumentLineKind.RECURRING and line.name == "monthly_fee"
    }


async def _is_even(scene: Scene) -> None:
    view = await fleet_view(scene.connection, scene.operator.tenant, fleet_id="vans")
    for cycle in (FEBRUARY, MARCH):
        found = await assure(
            scene.connection, scene.operator.tenant, fleet=view, at=cycle.start, now=NOW
        )
        assert found.differences == []
        assert (found.active_devices, found.billed_devices) == (3, 3)
