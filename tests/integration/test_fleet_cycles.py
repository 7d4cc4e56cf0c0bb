"""Live fleets whose bill cycles are months, quarters and years, with any anchor, closed and audited."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from metering.errors import InvalidValue
from metering.store.registry import calendar_of
from tests.integration.closing_scene import Scene, day, played
from tests.integration.conftest import ApiUnderTest

PLAN: dict[str, Any] = {
    "plan": "tracker",
    "currency": "EUR",
    "fees": [
        {"name": "SIM", "amount": "1.00", "every": "month"},
        {"name": "platform", "amount": "5.00", "every": "month", "per": "fleet"},
    ],
    "meters": {
        "sms": {
            "allowances": [{"name": "own", "quantity": 10, "rollover": {"periods": 1}}],
            "price": {"amount": "0.10", "per": 1},
        },
    },
}
"""A month costs 1.00 a device and 5.00 once; of ten SMS a cycle, what is left rolls over once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A rule of cycles, and the first days of three of them and of the next."""

    zone: str
    months: int
    anchor_day: int
    anchor_month: int
    firsts: tuple[str, ...]


CASES = {
    "months that begin on the 31st": Case(
        zone="Europe/Berlin", months=1, anchor_day=31, anchor_month=1,
        firsts=("2027-12-31", "2028-01-31", "2028-02-29", "2028-03-31"),
    ),
    "quarters over both changes of the clock": Case(
        zone="Europe/Berlin", months=3, anchor_day=29, anchor_month=3,
        firsts=("2026-03-29", "2026-06-29", "2026-09-29", "2026-12-29"),
    ),
    "quarters that begin in the hour that the clock skips": Case(
        zone="Africa/Cairo", months=3, anchor_day=24, anchor_month=4,
        firsts=("2026-04-24", "2026-07-24", "2026-10-24", "2027-01-24"),
    ),
    "years from the last day of February": Case(
        zone="UTC", months=12, anchor_day=31, anchor_month=2,
        firsts=("2026-02-28", "2027-02-28", "2028-02-29", "2029-02-28"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cycles_of_any_rule_open_roll_over_close_and_are_audited(
    name: str, database_url: str
) -> None:
    """Late usage of the first is billed with the second, and the audit says equal all the while."""
    case = CASES[name]

    async def story(scene: Scene) -> None:
        fleet = await scene.operator.fleet(
            "own-rule", time_zone=case.zone, anchor_day=case.anchor_day,
            cycle_months=case.months, anchor_month=case.anchor_month,
        )  # fmt: skip
        calendar = calendar_of(fleet)
        cycles = [calendar.cycle_of_day(date.fromisoformat(first)) for first in case.firsts[:-1]]
        assert [each.first_day.isoformat() for each in cycles] == list(case.firsts[:-1])
        assert cycles[-1].next_first_day.isoformat() == case.firsts[-1]
        first, second, third = cycles
        await scene.operator.devices(
            fleet, ["t-1", "t-2"], plan=await scene.operator.plan(PLAN), valid_from=first.start
        )
        scene.fleet = fleet
        # Ten of the first cycle, of which six roll over into the second; there 16 + 4 beyond them.
        await scene.use("t-1", first.start, sms=4)
        await scene.use("t-1", first.end - timedelta(microseconds=1), sms=0)
        await scene.close_fleet(first)
        await scene.use("t-1", second.start, sms=16)
        await scene.use("t-1", second.end - timedelta(microseconds=1), sms=4)
        await scene.use("t-2", day(first, 3), sms=12, received_at=day(second, 9))
        assert await scene.audit() == []
        await scene.close_fleet(second)
        await scene.close_fleet(third)
        assert await scene.audit() == []
        bills = [await scene.bill_of(fleet, each) for each in cycles]
        monthly = Decimal(7) * case.months
        assert bills[0].total == monthly
        # Twelve late ones of the first, of which ten are free; four beyond what rolled over.
        assert [each.amount for each in bills[1].adjustments] == [Decimal("0.20")]
        assert bills[1].total == monthly + Decimal("0.40") + Decimal("0.20")
        assert bills[2].total == monthly

    played(database_url, story, began=datetime(2035, 1, 1, tzinfo=UTC))


def test_a_rule_that_is_none_is_refused(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        rules: tuple[tuple[dict[str, Any], str], ...] = (
            ({"cycle_months": 6}, "cycle_months"),
            ({"anchor_day": 32}, "anchor_day"),
            ({"anchor_day": 0}, "anchor_day"),
            ({"anchor_month": 13}, "anchor_month"),
        )
        for wrong, field in rules:
            with pytest.raises(InvalidValue, match=f"^{field}: "):
                await scene.operator.fleet("wrong", **wrong)

    played(database_url, story)


def test_a_fleet_tells_its_cycle(api: ApiUnderTest) -> None:
    monthly = api.acme.get("/v1/fleets/acme-north").json()
    assert (monthly["cycle"], monthly["anchor_day"], monthly["anchor_month"]) == ("month", 1, None)

    def told() -> dict[str, Any]:
        answer: httpx.Response = api.acme.get("/v1/fleets/acme-empty")
        return dict(answer.json())

    api.execute(
        lambda connection: connection.execute(
            "UPDATE fleet SET cycle_months = 3, anchor_month = 2, anchor_day = 15"
            " WHERE fleet_id = 'acme-empty'"
        )
    )
    assert (told()["cycle"], told()["anchor_month"]) == ("quarter", 2)
    bill = api.acme.get("/v1/fleets/acme-empty/bill").json()
    assert bill["cycle"]["start"] == "2026-02-14T23:00:00Z"
    assert bill["cycle"]["end"] == "2026-05-14T22:00:00Z"
