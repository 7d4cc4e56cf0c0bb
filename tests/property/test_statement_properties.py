"""What holds for every statement: sums, shares, and parts that make a whole."""

from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metering.period import midnight
from metering.rating.guide import Subscription
from metering.rating.membership import (
    Fleet,
    Member,
    StateChange,
    effective_subscriptions,
    shares,
    spans,
    term_of,
)
from metering.rating.plan import (
    AdjustmentKind,
    AdjustmentTerms,
    ChangeTakesEffect,
    DeviceState,
    FeeBasis,
    FeeTerms,
    PlanTerms,
    Proration,
    RoundAt,
)
from metering.rating.price import Price, UnitPrice
from metering.rating.recurring import fees_of
from metering.rating.statement import Statement, statement
from tests.fleets import at, cycle, fee, fleet, graduated, meter, plan, use, volume

F = Fraction
JANUARY = at("2026-01-01")
ZONES = st.sampled_from(["Europe/Berlin", "America/New_York", "UTC", "Asia/Beirut"])
AMOUNTS = st.decimals(0, 1000, places=3)
MINUTES = st.integers(-60 * 24 * 40, 60 * 24 * 130)
"""From 22 November 2025 to 11 May 2026."""
MONTHS = ["2026-01-01", "2026-02-01", "2026-03-01", "2026-10-01", "2028-02-01"]


@st.composite
def histories(draw: st.DrawFn, device_no: int = 1, plans: int = 1) -> Member:
    """Draw a device with any states, and adjoining subscriptions to plans from 1 to `plans`."""
    edges = sorted(draw(st.sets(MINUTES, min_size=1, max_size=4)))
    ends_at = [*edges[1:], draw(st.none() | st.integers(edges[-1], edges[-1] + 100_000))]
    changes = sorted(draw(st.sets(MINUTES, min_size=1, max_size=5)))
    return Member(
        device_no=device_no,
        subscriptions=[
            Subscription(
                subscription_no=10 * device_no + position,
                device_no=device_no,
                plan_no=draw(st.integers(1, plans)),
                valid_from=JANUARY + timedelta(minutes=begins),
                valid_to=None if ends is None else JANUARY + timedelta(minutes=ends),
            )
            for position, (begins, ends) in enumerate(zip(edges, ends_at, strict=True))
        ],
        states=[
            StateChange(
                state=draw(st.sampled_from(list(DeviceState))),
                effective_from=JANUARY + timedelta(minutes=change),
            )
            for change in changes
        ],
    )


@st.composite
def fleets_members(draw: st.DrawFn, plans: int = 1) -> list[Member]:
    return [
        draw(histories(device_no=number, plans=plans))
        for number in range(1, draw(st.integers(1, 4)) + 1)
    ]


def prices() -> st.SearchStrategy[Price]:
    return st.sampled_from(
        [
            Price(shape=UnitPrice(amount=Decimal("0.37"))),
            volume((2, "3"), (None, "1", "5")),
            graduated((1, "3.33"), (None, "1", "0.77"), flat_at_zero=True),
        ]
    )


@st.composite
def fees(draw: st.DrawFn) -> FeeTerms:
    common: dict[str, Any] = {
        "proration": draw(st.sampled_from(list(Proration))),
        "every": draw(st.sampled_from(list(FeeBasis))),
        "in_advance": draw(st.booleans()),
        "refund": draw(st.booleans()),
        "per_fleet": draw(st.booleans()),
    }
    if draw(st.booleans()):
        return fee(str(draw(AMOUNTS)), **common)
    return fee(price=draw(prices()), **common)


@st.composite
def adjustments(draw: st.DrawFn) -> AdjustmentTerms:
    return AdjustmentTerms(
        name="adjustment",
        kind=draw(st.sampled_from(list(AdjustmentKind))),
        amount=draw(st.decimals(0, 100, places=2)),
        on=draw(st.sampled_from(["all", "usage", "fees"]) | st.just(frozenset({"data"}))),
    )


def drawn(plans: Sequence[PlanTerms], members: Sequence[Member], on: str, of: Fleet) -> Statement:
    return statement(
        fleet=of,
        cycle=cycle(on, of),
        plans=dict(enumerate(plans, 1)),
        members=members,
        uses=[
            use(plans[member.subscriptions[0].plan_no - 1], "1.005", by=member.device_no)
            for member in members
        ],
    )


METERS = [meter(Price(shape=UnitPrice(amount=Decimal("0.001")), minimum=Decimal("1.7")))]


@given(
    members=fleets_members(plans=2),
    own=st.lists(fees(), max_size=3),
    adjusted=st.lists(adjustments(), max_size=3),
    per_device=st.booleans(),
    on=st.sampled_from(MONTHS),
    zone=ZONES,
    anchor_day=st.sampled_from([1, 15, 31]),
)
def test_the_total_is_the_sum_of_the_rounded_lines(
    *,
    members: list[Member],
    own: list[FeeTerms],
    adjusted: list[AdjustmentTerms],
    per_device: bool,
    on: str,
    zone: str,
    anchor_day: int,
) -> None:
    by_line, by_bill = (
        plan(
            *own,
            meters=METERS,
            adjustments=adjusted,
            lines_per_device=per_device,
            round_at=round_at,
        )
        for round_at in (RoundAt.LINE, RoundAt.BILL)
    )
    of = fleet(anchor_day=anchor_day, tz=zone)
    made = drawn([by_line, by_line], members, on, of)
    assert made.total == sum(line.amount or 0 for line in made.lines)
    assert made.exact == sum(line.exact for line in made.lines)
    assert made.due == made.total - made.from_money
    assert sum(item.exact for item in made.fees) == sum(
        line.exact for line in made.lines if line.kind == "fee"
    )
    # A bill that is rounded as a whole is at most half a cent a plan away from the exact sum.
    whole = drawn([by_bill, by_bill], members, on, of)
    assert whole.exact == made.exact
    assert abs(F(whole.total) - whole.exact) <= F("0.01")


@given(
    member=histories(),
    proration=st.sampled_from(list(Proration)),
    on=st.sampled_from(MONTHS),
    zone=ZONES,
)
def test_shares_lie_between_nothing_and_all_and_never_sum_to_more(
    member: Member, proration: Proration, on: str, zone: str
) -> None:
    term = term_of(cycle(on, fleet(tz=zone)))
    billed = spans(member.states, term.begins, term.ends)
    by_state = shares(billed, term=term, proration=proration, time_zone=zone)
    assert all(0 < share <= 1 for share in by_state.values())
    if proration is not Proration.NONE:
        assert sum(by_state.values()) <= 1
    if proration in (Proration.DAYS, Proration.DAYS_INCLUSIVE, Proration.SECONDS):
        assert sum(by_state.values()) == 1


@given(
    cuts=st.sets(st.integers(1, 31 * 24 * 60 - 1), max_size=4),
    amount=AMOUNTS,
    proration=st.sampled_from([Proration.DAYS, Proration.DAYS_INCLUSIVE, Proration.SECONDS]),
    on=st.sampled_from(MONTHS),
    zone=ZONES,
)
def test_changes_between_equal_plans_never_change_a_months_fee(
    cuts: set[int], amount: Decimal, proration: Proration, on: str, zone: str
) -> None:
    of = fleet(tz=zone)
    month = cycle(on, of)
    inner = (month.start + timedelta(minutes=cut) for cut in sorted(cuts))
    edges = [month.start, *(edge for edge in inner if edge < month.end), None]
    member = Member(
        device_no=1,
        subscriptions=[
            Subscription(
                subscription_no=number,
                device_no=1,
                plan_no=number,
                valid_from=begins,
                valid_to=ends,
            )
            for number, (begins, ends) in enumerate(pairwise(edges))
            if begins is not None
        ],
        states=[StateChange(state=DeviceState.ACTIVE, effective_from=month.start)],
    )
    terms = plan(fee(str(amount), proration=proration))
    found = fees_of(
        fleet=of,
        cycle=month,
        plans={each.plan_no: terms for each in member.subscriptions},
        members=[member],
        used=frozenset(),
    )
    assert sum(item.exact for item in found) == F(amount)
    assert sum(item.share for item in found) == 1


@given(
    base=st.decimals(20, 1000, places=2),
    percent=st.integers(1, 99),
    off=st.decimals("0.01", "10", places=2),
)
def test_a_percentage_first_leaves_less_than_a_fixed_discount_first(
    base: Decimal, percent: int, off: Decimal
) -> None:
    def exact(*ordered: AdjustmentTerms) -> Fraction:
        member = Member(
            device_no=1,
            subscriptions=[
                Subscription(
                    subscription_no=10,
                    device_no=1,
                    plan_no=1,
                    valid_from=JANUARY,
                    valid_to=None,
                )
            ],
            states=[StateChange(state=DeviceState.ACTIVE, effective_from=JANUARY)],
        )
        terms = plan(fee(str(base)), adjustments=ordered)
        return statement(
            fleet=fleet(),
            cycle=cycle("2026-01-01"),
            plans={1: terms},
            members=[member],
            uses=[],
        ).exact

    def of(kind: AdjustmentKind, amount: Decimal) -> AdjustmentTerms:
        return AdjustmentTerms(name=kind, kind=kind, amount=amount)

    share = of(AdjustmentKind.PERCENTAGE_DISCOUNT, Decimal(percent))
    fixed = of(AdjustmentKind.FIXED_DISCOUNT, off)
    kept = 1 - F(percent, 100)
    share_first = max(F(0), F(base) * kept - F(off))
    assert exact(share, fixed) == share_first
    assert exact(fixed, share) == (F(base) - F(off)) * kept
    assert exact(share, fixed) <= exact(fixed, share)


@given(
    member=histories(),
    every=st.sampled_from([FeeBasis.MONTH, FeeBasis.QUARTER, FeeBasis.YEAR]),
    in_advance=st.booleans(),
    zone=ZONES,
    anchor_day=st.integers(1, 31),
    months=st.sampled_from([1, 3]),
)
def test_every_term_of_months_falls_due_once(
    *,
    member: Member,
    every: FeeBasis,
    in_advance: bool,
    zone: str,
    anchor_day: int,
    months: int,
) -> None:
    of = fleet(anchor_day=anchor_day, months=months, tz=zone)
    terms = plan(fee("12", every=every, in_advance=in_advance, proration=Proration.SECONDS))
    found = []
    now = of.cycle_of(midnight(date(2025, 10, 1), zone))
    while now.first_day < date(2028, 1, 1):
        found += fees_of(fleet=of, cycle=now, plans={1: terms}, members=[member], used=frozenset())
        now = of.cycle_of(now.end)
    seen = [(item.subscription_no, item.begins) for item in found]
    assert len(seen) == len(set(seen))
    if not in_advance:
        # All that was active is paid for once: in seconds, by each term's own length.
        for subscription in member.subscriptions:
            last = subscription.valid_to
            if last is None:
                continue
            paid = sum(
                (
                    item.share * ((item.ends - item.begins) // timedelta(microseconds=1))
                    for item in found
                    if item.subscription_no == subscription.subscription_no
                ),
                F(0),
            )
            active = sum(
                (right - left) // timedelta(microseconds=1)
                for state, left, right in spans(member.states, subscription.valid_from, last)
                if state is DeviceState.ACTIVE
            )
            first = midnight(subscription.valid_from.date(), zone)
            assert paid == active or first != subscription.valid_from


@given(
    assigned=histories(plans=3), rules=st.tuples(*[st.sampled_from(list(ChangeTakesEffect))] * 2)
)
def test_changes_of_plan_cover_the_same_time_without_overlap(
    assigned: Member, rules: tuple[ChangeTakesEffect, ChangeTakesEffect]
) -> None:
    plans = {
        number: plan(fee(str(number)), upward=rules[0], downward=rules[1]) for number in (1, 2, 3)
    }
    ordered = assigned.subscriptions
    found = effective_subscriptions(ordered, plans, fleet().cycle_of)
    for before, following in pairwise(found):
        assert before.valid_to == following.valid_from
    real = [each for each in ordered if each.valid_to is None or each.valid_from < each.valid_to]
    assert bool(found) == bool(real)
    if real:
        assert found[0].valid_from == real[0].valid_from
        assert found[-1].valid_to == real[-1].valid_to
    if set(rules) == {ChangeTakesEffect.AT_ONCE}:
        assert found == real
