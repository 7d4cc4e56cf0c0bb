"""Laws of rating: what holds however usage comes, and whatever a price is."""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.plan_document import read_plan, terms_of
from metering.rating.bucket import BucketKind
from metering.rating.price import Rate
from metering.whatif.run import RatingRun
from tests.property import rating_documents as documents
from tests.property.rating_comparison import Case, run_core
from tests.property.rating_documents import METER, START, Doc, meter, plan, text
from tests.property.test_rating_differential import mixed, pooled, prepaid, rolling, used


def january(plans: Sequence[Doc], usage: Sequence[Doc], state: Doc | None = None) -> Case:
    """Return a case of which January is shown."""
    return Case(plans, usage, state, since="2026-01-01", until="2026-02-01")


def rate_of(price: Doc) -> Rate:
    """Compile a price document."""
    return terms_of(read_plan(plan({METER: meter(price)}))).rates[METER][0]


def reading(quantity: int, hours: int, device: str = "d1", **more: Any) -> Doc:  # noqa: ANN401
    at = text(START + timedelta(hours=hours))
    return {"device": device, "meter": METER, "quantity": quantity, "time": at, **more}


def total(of_plan: Doc, usage: Sequence[Doc]) -> tuple[Fraction, Decimal]:
    [period] = run_core(january([of_plan], usage)).periods
    return period.statement.exact, period.statement.total


# Prices

any_price = documents.prices(per=["device", "fleet", "record"])
quantities = st.lists(st.integers(0, 60), min_size=1, max_size=6)


@given(any_price, quantities, st.integers(0, 60))
def test_increments_sum_to_what_all_costs(price: Doc, parts: list[int], before: int) -> None:
    rate = rate_of(price)
    starts = list(accumulate([before, *parts]))
    increments = [rate.increment(at, part) for at, part in zip(starts, parts, strict=False)]
    assert sum(increments) == rate.rated(starts[-1]) - rate.rated(before)


@given(any_price, st.integers(0, 80), st.integers(0, 80))
def test_the_steps_of_a_walk_sum_to_the_increment(price: Doc, before: int, quantity: int) -> None:
    rate = rate_of(price)
    steps = rate.walk(before, quantity)
    assert sum(step.amount for step in steps) == rate.increment(before, quantity)


@given(any_price.filter(lambda price: price.get("model") not in {"volume", "stair_step"}))
def test_more_never_costs_less_but_by_volume(price: Doc) -> None:
    rate = rate_of(price)
    costs = [rate.rated(quantity) for quantity in range(120)]
    assert costs[0] >= 0
    assert costs == sorted(costs)


@given(any_price, st.integers(0, 40), st.integers(0, 60), st.integers(0, 10_000))
def test_money_pays_the_most_units(price: Doc, before: int, quantity: int, money: int) -> None:
    rate = rate_of(price)
    fitting = [n for n in range(quantity + 1) if n == 0 or rate.increment(before, n) <= money]
    assert rate.affordable(before, quantity, money) == max(fitting)


def test_one_more_unit_by_volume_is_a_credit() -> None:
    price = {"model": "volume", "tiers": [{"up_to": 100, "amount": "1"}, {"amount": "0.30"}]}
    usage = [reading(101 - 1, 1), reading(1, 2)]
    [period] = run_core(january([plan({METER: meter(price)})], usage)).periods
    money = [record.charge.parts.amount for record in period.records]
    # 100 at 1 is 100; 101 at 0.30 is 30.30: the last one is worth 30.30 - 100 = -69.70.
    assert [Fraction(count, 100) for count in money] == [100, Fraction("-69.70")]
    assert period.statement.total == Decimal("30.30")


def test_one_more_unit_is_worth_minus_seventy() -> None:
    price = {"model": "stair_step", "tiers": [{"up_to": 10, "flat": "100"}, {"flat": "30"}]}
    usage = [reading(10, 1), reading(1, 2)]
    [period] = run_core(january([plan({METER: meter(price)})], usage)).periods
    assert [record.charge.parts.amount for record in period.records] == [10_000, -7_000]
    assert period.statement.total == Decimal("30.00")


# How usage comes


@st.composite
def device_plans(draw: st.DrawFn) -> Doc:
    """Draw a plan whose total does not depend on how usage is cut: nothing goes by record."""
    of_meter = meter(draw(documents.prices(per=["device", "fleet"])))
    if documents.chance(draw, 60):
        of_meter["allowances"] = [draw(documents.allowances("own"))]
    if documents.chance(draw, 40):
        of_meter["increment"] = draw(documents.increments(["device_month", "period"]))
    return plan({METER: of_meter})


hours = st.integers(0, 24 * 31 - 1)
readings = st.lists(st.builds(reading, st.integers(1, 40), hours), min_size=1, max_size=6)


@given(device_plans(), readings, st.data())
def test_splitting_a_reading_changes_nothing(
    of_plan: Doc, usage: list[Doc], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(usage) - 1))
    part = data.draw(st.integers(0, usage[position]["quantity"]))
    first, second = dict(usage[position]), dict(usage[position])
    first["quantity"], second["quantity"] = part, usage[position]["quantity"] - part
    split = [*usage[:position], first, second, *usage[position + 1 :]]
    assert total(of_plan, split) == total(of_plan, usage)


@given(device_plans(), readings)
def test_batching_readings_changes_nothing(of_plan: Doc, usage: list[Doc]) -> None:
    batch = {**usage[0], "quantity": sum(each["quantity"] for each in usage)}
    assert total(of_plan, [batch]) == total(of_plan, usage)


@given(device_plans(), readings, st.data())
def test_order_changes_nothing(of_plan: Doc, usage: list[Doc], data: st.DataObject) -> None:
    assert total(of_plan, data.draw(st.permutations(usage))) == total(of_plan, usage)


@given(mixed(), st.data())
def test_a_duplicate_changes_nothing(case: Case, data: st.DataObject) -> None:
    usage = [{**line, "id": f"i{number}"} for number, line in enumerate(case.usage)]
    again = data.draw(st.lists(st.sampled_from(usage), max_size=3))
    once = run_core(Case(case.plans, usage, case.state))
    twice = run_core(Case(case.plans, [*usage, *again], case.state))
    assert twice.duplicates == len(again)
    assert twice.periods == once.periods


# What is conserved


@given(st.one_of(mixed(), pooled(), rolling(), prepaid()))
def test_the_same_again_gives_the_same(case: Case) -> None:
    once, again = run_core(case), run_core(case)
    assert once.periods == again.periods
    assert (once.total, once.rejected) == (again.total, again.rejected)


@given(st.one_of(mixed(), pooled(), rolling(), prepaid()))
def test_what_is_billed_is_drawn_or_priced(case: Case) -> None:
    run = run_core(case)
    for period in run.periods:
        for rated in period.records:
            parts = rated.charge.parts
            drawn = sum(
                draw.quantity for draw in parts.draws if draw.bucket.kind is not BucketKind.MONEY
            )
            assert parts.from_allowance + parts.from_pool == drawn
            assert drawn + parts.overage == parts.billed >= 0
            assert 0 <= parts.from_money <= max(0, parts.amount)
        billed = sum(each.charge.parts.billed for each in period.records)
        assert billed == sum(line.billed for line in period.statement.lines)
    _assert_parts_make_the_whole(case, run)


def _assert_parts_make_the_whole(case: Case, run: RatingRun) -> None:
    """Check that a reading's parts hold its quantity, where all its periods are shown."""
    first, last = run.periods[0].cycle.start, run.periods[-1].cycle.end
    found: dict[int, int] = {}
    for period in run.periods:
        for rated in period.records:
            record = rated.charge.record
            assert first <= record.start <= record.end <= last
            found[rated.line] = found.get(rated.line, 0) + record.quantity
    for line, quantity in found.items():
        assert quantity == case.usage[line - 1]["quantity"]


@given(st.one_of(mixed(), pooled(), rolling(), prepaid()))
def test_no_bucket_is_overdrawn(case: Case) -> None:
    for period in run_core(case).periods:
        for held in period.buckets:
            assert 0 <= held.bucket.used <= held.bucket.granted


@given(
    st.integers(1, 30),
    st.integers(0, 10),
    used(10, devices=["d1", "d2", "d3"], days_max=31),
)
def test_a_floor_is_guaranteed(size: int, floor: int, usage: list[Doc]) -> None:
    floor = min(floor, size)
    pool = {"name": "pool", "quantity": size, "shared_by": "fleet", "floor": floor}
    of_plan = plan({METER: meter({"amount": "1"}, allowances=[pool])})
    state: Doc = {"devices": {name: {} for name in ("d1", "d2", "d3")}}
    [period] = run_core(january([of_plan], usage, state)).periods
    drawn = dict.fromkeys(state["devices"], 0)
    wanted = dict.fromkeys(state["devices"], 0)
    for rated in period.records:
        drawn[rated.device] += rated.charge.parts.from_pool
        wanted[rated.device] += rated.charge.parts.billed
        assert drawn[rated.device] >= min(wanted[rated.device], floor)
    assert sum(drawn.values()) <= 3 * size


@pytest.mark.parametrize("at", ["line", "bill", "record"])
@given(readings)
def test_a_total_is_rounded_once(at: str, usage: list[Doc]) -> None:
    of_plan = plan({METER: meter({"amount": "0.125"})}, rounding={"at": at})
    exact, rounded = total(of_plan, usage)
    slack = Fraction(len(usage) if at == "record" else 1, 200)
    assert abs(Fraction(rounded) - exact) <= (0 if at == "record" else slack)
    assert abs(exact - sum(each["quantity"] for each in usage) * Fraction(1, 8)) <= slack
