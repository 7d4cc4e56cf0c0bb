"""Closing a cycle, and usage that comes before, after, and while it closes."""

from datetime import timedelta
from decimal import Decimal

from metering.billing.adjustment import PeriodAdjustment
from metering.rating.statement import LineKind
from tests.integration.closing_scene import (
    APRIL,
    FEBRUARY,
    GRACE,
    MARCH,
    MAY,
    Scene,
    day,
    played,
)


def told(adjustments: object) -> list[tuple[str, int, str]]:
    """Return what adjustments say: the month that they name, late records, the amount."""
    assert isinstance(adjustments, list | tuple)
    return [
        (f"{each.cycle.first_day:%B}", each.late_records, format(each.amount, "f"))
        for each in adjustments
        if isinstance(each, PeriodAdjustment) and each.tells
    ]


def test_late_usage_is_an_adjustment_that_names_its_period(database_url: str) -> None:
    """Worked by hand: an SMS beyond a van's two a month costs 0.10, a van 1.00 and 0.45 a month."""

    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 5), sms=5)
        await scene.use("van-1", day(APRIL, 1), sms=2)
        # 3 vans at 1.00, a minimum of 0.45 of data each less 7.5 % of it all, and 3 SMS at 0.10.
        assert (
            (await scene.bill(MARCH)).total
            == Decimal("4.55")
            == Decimal("3.00") + Decimal("1.35") - Decimal("0.10") + Decimal("0.30")
        )
        await scene.close(MARCH)
        closed = await scene.bill(MARCH)
        assert closed.closed_at == MARCH.end + GRACE
        await scene.use("van-1", day(MARCH, 6), sms=4, received_at=day(APRIL, 20))
        await scene.use("van-2", day(MARCH, 7), sms=1, received_at=day(APRIL, 20))
        assert await scene.bill(MARCH) == closed
        april = await scene.bill(APRIL)
        assert told(april.adjustments) == [("March", 2, "0.40")]
        assert april.total == april.statement.total + Decimal("0.40")

    played(database_url, story)


def test_out_of_order_usage_lands_in_its_open_period(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(APRIL, 1), sms=3)
        late = MARCH.end + GRACE - timedelta(seconds=1)
        assert await scene.look(late) == 0
        await scene.use("van-1", day(MARCH, 6), sms=4, received_at=late)
        march, april = await scene.bill(MARCH), await scene.bill(APRIL)
        for made, count in ((march, 4), (april, 3)):
            (used,) = [
                line
                for line in made.statement.lines
                if line.kind is LineKind.USAGE and line.quantity
            ]
            assert (used.name, used.quantity) == ("sms", count)
        assert not april.adjustments
        await scene.close(MARCH)
        assert (await scene.bill(MARCH)).statement.lines == march.statement.lines
        assert told((await scene.bill(APRIL)).adjustments) == []

    played(database_url, story)


def test_late_again_after_the_adjusting_bill_closed(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        for cycle in (FEBRUARY, MARCH, APRIL, MAY):
            await scene.use("van-1", day(cycle, 5), sms=3, data=2345)
        await scene.close(FEBRUARY)
        await scene.close(MARCH)
        february, march = await scene.bill(FEBRUARY), await scene.bill(MARCH)
        await scene.use("van-1", day(FEBRUARY, 9), sms=1, data=777, received_at=day(APRIL, 8))
        await scene.use("van-2", day(MARCH, 9), data=1, received_at=day(APRIL, 8))
        before = told((await scene.bill(APRIL)).adjustments)
        assert [(month, late) for month, late, _ in before] == [("February", 2), ("March", 1)]
        await scene.close(APRIL)
        april = await scene.bill(APRIL)
        assert told(april.adjustments) == before
        assert told((await scene.bill(MAY)).adjustments) == []
        await scene.use("van-3", day(FEBRUARY, 9), sms=9, received_at=day(MAY, 8))
        await scene.use("van-3", day(APRIL, 9), sms=3, received_at=day(MAY, 8))
        assert told((await scene.bill(MAY)).adjustments) == [
            ("February", 1, "0.70"),
            ("April", 1, "0.10"),
        ]
        assert [await scene.bill(each) for each in (FEBRUARY, MARCH, APRIL)] == [
            february,
            march,
            april,
        ]
        cycles = (FEBRUARY, MARCH, APRIL, MAY)
        assert await scene.billed(cycles) == await scene.owed(cycles)

    played(database_url, story)
