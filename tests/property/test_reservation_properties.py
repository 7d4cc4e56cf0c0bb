"""Holds: never more than there is, the own hold first, and floors and ceilings whatever comes."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from metering.rating.bucket import Bucket, BucketKind
from metering.rating.reservation import (
    Ended,
    FinalAction,
    QuotaRule,
    RecentUse,
    expected_use,
    overshoot_bound,
    reserve,
)

NOW = datetime(2026, 4, 15, tzinfo=UTC)
MEMBERS = (1, 2, 3)
Act = tuple[str, int, int]
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["draw", "hold", "release", "grant"]),
        st.sampled_from(MEMBERS),
        st.integers(0, 150),
    ),
    max_size=30,
)
BOUNDS = st.tuples(st.integers(0, 80), st.none() | st.integers(0, 200))


def pool_of(floor: int, ceiling: int | None, granted: int = 300) -> Bucket:
    return Bucket(
        granted=granted,
        kind=BucketKind.POOL,
        floor=floor,
        ceiling=ceiling,
        members=set(MEMBERS[:2]),
    )


def act(pool: Bucket, done: Act) -> None:
    what, member, quantity = done
    match what:
        case "draw":
            pool.draw(member, min(quantity, pool.available(member)))
        case "hold":
            pool.hold(member, quantity)
        case "release":
            pool.release(member)
        case "grant":
            pool.granted += quantity
            pool.admit(member)


def check(pool: Bucket) -> None:
    """Check what must hold of a pool at any time."""
    assert pool.reserved == sum(pool.held.values())
    assert pool.used + pool.reserved <= pool.granted
    again = Bucket(
        granted=pool.granted, used=pool.used, floor=pool.floor, ceiling=pool.ceiling,
        members=set(pool.members), drawn=dict(pool.drawn), reserved=pool.reserved,
        held=dict(pool.held),
    )  # fmt: skip
    if pool.floor:
        assert pool.promised_to_all() == again.promised_to_all()
    for member in MEMBERS:
        assert pool.available(member) == again.available(member)
        others = pool.reserved - pool.held.get(member, 0)
        assert pool.available(member) + others + pool.used <= pool.granted
        if pool.ceiling is not None:
            drawn = pool.drawn.get(member, 0)
            assert drawn + pool.held.get(member, 0) <= pool.ceiling
            assert drawn + pool.available(member) <= pool.ceiling


@given(bounds=BOUNDS, acts=ACTS)
def test_what_is_available_held_and_used_never_exceeds_what_was_granted(
    bounds: tuple[int, int | None], acts: list[Act]
) -> None:
    pool = pool_of(*bounds)
    for done in acts:
        act(pool, done)
        check(pool)


@given(bounds=BOUNDS, acts=ACTS, member=st.sampled_from(MEMBERS), quantity=st.integers(1, 150))
def test_what_is_held_can_be_drawn_whatever_others_do(
    bounds: tuple[int, int | None], acts: list[Act], member: int, quantity: int
) -> None:
    pool = pool_of(*bounds)
    held = pool.hold(member, quantity)
    for done in acts:
        if done[1] != member:
            act(pool, done)
    assert pool.held.get(member, 0) == held
    assert pool.available(member) >= held
    pool.draw(member, held)
    assert member not in pool.held
    check(pool)


@given(bounds=BOUNDS, acts=ACTS, member=st.sampled_from(MEMBERS), quantity=st.integers(0, 150))
def test_a_hold_that_is_released_leaves_no_trace(
    bounds: tuple[int, int | None], acts: list[Act], member: int, quantity: int
) -> None:
    pool = pool_of(*bounds)
    for done in acts:
        act(pool, done)
    pool.release(member)
    before = [pool.available(each) for each in MEMBERS]
    held = pool.hold(member, quantity)
    assert held == min(quantity, before[member - 1])
    assert pool.available(member) == before[member - 1]
    assert pool.release(member) == held
    assert [pool.available(each) for each in MEMBERS] == before


@given(bounds=BOUNDS, draws=ACTS)
def test_draws_cost_the_same_whether_they_were_held_or_not(
    bounds: tuple[int, int | None], draws: list[Act]
) -> None:
    plain, holding = pool_of(*bounds), pool_of(*bounds)
    for what, member, quantity in draws:
        if what == "draw":
            drawn = min(quantity, plain.available(member))
            plain.draw(member, drawn)
            assert holding.hold(member, quantity) == drawn
            holding.draw(member, drawn)
    assert (plain.used, plain.drawn) == (holding.used, holding.drawn)
    assert holding.reserved == 0
    if plain.floor:
        assert plain.promised_to_all() == holding.promised_to_all()


RULES = st.builds(
    QuotaRule,
    validity_seconds=st.integers(1, 7200),
    quantity_min=st.integers(1, 50),
    quantity_max=st.integers(50, 400),
    share=st.fractions(Fraction(1, 100), 1),
    headroom=st.fractions(Fraction(1, 10), 3),
    report_seconds=st.integers(0, 900),
    final_action=st.sampled_from(FinalAction),
)


@given(
    sizes=st.lists(st.tuples(st.booleans(), st.integers(0, 300), st.integers(0, 200)), max_size=4),
    rule=RULES,
    requested=st.none() | st.integers(0, 500),
    recent=st.lists(
        st.builds(RecentUse, st.integers(0, 10**6), st.integers(0, 90_000)), max_size=3
    ),
)
def test_a_grant_is_bounded_by_all_that_bounds_it(
    sizes: list[tuple[bool, int, int]],
    rule: QuotaRule,
    requested: int | None,
    recent: list[RecentUse],
) -> None:
    buckets = [
        Bucket(granted=size, kind=BucketKind.POOL if pooled else BucketKind.ALLOWANCE)
        for pooled, size, _ in sizes
    ]
    for bucket, (_, _, others) in zip(buckets, sizes, strict=True):
        bucket.hold(2, others)
    before = [bucket.available(1) for bucket in buckets]
    grant = reserve(
        1, buckets, now=NOW, ends=NOW + timedelta(hours=1), requested=requested, recent=recent,
        rule=rule,
    )  # fmt: skip
    assert grant.quantity == sum(bucket.held.get(1, 0) for bucket in buckets)
    assert grant.quantity <= min(sum(before), rule.quantity_max)
    if requested is not None:
        assert grant.quantity <= requested
    for part in grant.parts:
        left = before[[bucket is part.bucket for bucket in buckets].index(True)]
        assert 0 < part.quantity <= left
        if part.bucket.kind is BucketKind.POOL:
            idle = not any(each.quantity and each.seconds for each in recent)
            least = 0 if idle else rule.quantity_min
            assert part.quantity <= max(least, -(-left * rule.share // 1))
    assert (grant.final_action is not None) == (grant.quantity == sum(before))
    assert NOW < grant.expires_at <= NOW + timedelta(hours=1)
    for bucket in buckets:
        assert bucket.used + bucket.reserved <= bucket.granted


@given(
    recent=st.lists(
        st.builds(RecentUse, st.integers(0, 10**9), st.integers(1, 90_000)), min_size=1
    ),
    seconds=st.integers(1, 7200),
)
def test_the_expected_use_is_that_of_the_highest_rate(
    recent: list[RecentUse], seconds: int
) -> None:
    expected = expected_use(recent, seconds)
    assert all(expected * each.seconds >= each.quantity * seconds for each in recent)
    assert any((expected - 1) * each.seconds < each.quantity * seconds for each in recent)


@given(
    outstanding=st.integers(0, 1000),
    ended=st.lists(
        st.builds(Ended, st.integers(0, 100), st.integers(0, 100), st.none() | st.integers(0, 300))
    ),
)
def test_the_bound_counts_what_may_be_reported_after_it_was_released(
    outstanding: int, ended: list[Ended]
) -> None:
    bound = overshoot_bound(outstanding, ended)
    assert outstanding <= bound <= outstanding + sum(each.unreported for each in ended)
    for each in ended:
        # Whatever a device did that kept to its grant: what it used is drawn, said or released.
        most = each.charged + each.unreported
        used = most if each.used is None else min(each.used, most)
        assert used - each.charged <= bound


def test_what_is_held_counts_towards_the_floor() -> None:
    pool = pool_of(80, None)
    pool.hold(1, 60)
    # 60 are held for the first, and 20 of its floor are left to it.
    assert pool.available(2) == 300 - 80
    pool.hold(1, 40)
    assert pool.available(2) == 300 - 100
