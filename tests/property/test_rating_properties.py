"""What holds for every way in which a cycle's usage may come: split, batched or in another order.

The differential check has a rating of its own, in fractions, that shares no code with the core.
"""

from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metering.period import BillCycle, Calendar
from metering.plan_document import read_plan, terms_of
from metering.rating.account import Accounts, charge_records
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.charge import charge
from metering.rating.guide import ParkReason, Subscription, UsageRecord, guide
from metering.rating.plan import PlanTerms
from metering.rating.record import Usage
from metering.usage import DATA, QUANTITY_MAX

ZONE = "Europe/Berlin"
NOON = datetime(2026, 4, 15, 12, tzinfo=UTC)
CYCLE = Calendar(ZONE, 1).cycle_at(NOON)
FLEET_NO = 3

Document = dict[str, Any]

quantities = st.integers(0, 10_000)
amounts = st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,4})?", fullmatch=True)
pers = st.one_of(st.integers(1, 3_000), st.sampled_from(["1 kB", "1 KiB", "1 MB", "7 B"]))


@st.composite
def tiered(draw: st.DrawFn) -> Document:
    """Return a price of graduated or volume tiers."""
    bounds = sorted(draw(st.sets(st.integers(1, 12_000), max_size=3)))
    document: Document = {
        "model": draw(st.sampled_from(["graduated", "volume", "stair_step"])),
        "per": draw(pers),
        "bounds": draw(st.sampled_from(["upper_inclusive", "lower_inclusive"])),
        "tiers": [
            {"amount": draw(amounts), "flat": draw(amounts)}
            | ({} if bound is None else {"up_to": bound + 1})
            for bound in [*bounds, None]
        ],
    }
    return document


unit_prices = st.fixed_dictionaries({"amount": amounts, "per": pers})
packages = st.fixed_dictionaries(
    {"model": st.just("package"), "amount": amounts, "size": st.integers(1, 5_000)}
)
limits = st.fixed_dictionaries({}, optional={"free": st.integers(0, 9_000), "maximum": amounts})
prices = st.builds(
    lambda price, limit: {**price, **limit}, st.one_of(unit_prices, tiered(), packages), limits
)


def plan(price: Document) -> PlanTerms:
    return terms_of(
        read_plan({"plan": "p", "currency": "EUR", "meters": {"data": {"price": price}}})
    )


def member(number: int) -> Subscription:
    return Subscription(
        subscription_no=number,
        device_no=number,
        plan_no=1,
        valid_from=CYCLE.start,
        valid_to=None,
    )


def record(number: int, quantity: int, cycle: BillCycle = CYCLE) -> UsageRecord:
    return UsageRecord(
        part=0,
        start=NOON,
        end=NOON,
        quantity=quantity,
        uplink=0,
        cycle=cycle,
        subscription=member(number),
        raw=quantity,
        billed=quantity,
    )


def charged(
    terms: PlanTerms, uses: list[tuple[int, int]], *, allowance: int, pool: int | None
) -> tuple[Accounts, Bucket, list[tuple[int, int, int, int]]]:
    """Charge (member, quantity) in order; each member has `allowance`, all of them the pool."""
    accounts = Accounts()
    shared = Bucket(granted=pool or 0, kind=BucketKind.POOL)
    for number in {number for number, _ in uses}:
        own = Bucket(granted=allowance)
        buckets = [own] if pool is None else [own, shared]
        accounts.buckets[number, DATA.meter_no, CYCLE.start] = buckets
    parts = []
    for number, quantity in uses:
        (made,) = charge_records(
            [record(number, quantity)],
            Usage(quantity, 0, NOON, NOON),
            meter="data",
            meter_no=DATA.meter_no,
            fleet_no=FLEET_NO,
            plans={1: terms},
            accounts=accounts,
        )
        part = made.parts
        assert part.from_allowance + part.from_pool + part.overage == part.billed == quantity
        assert min(part.from_allowance, part.from_pool, part.overage) >= 0
        parts.append((part.from_allowance, part.from_pool, part.overage, part.amount))
    return accounts, shared, parts


def totals(accounts: Accounts, number: int) -> tuple[int, int, int, int, int]:
    use = accounts.uses[number, DATA.meter_no, CYCLE.start, 0]
    return (use.quantity, use.from_allowance, use.from_pool, use.overage, use.amount)


@given(
    quantity=st.integers(0, QUANTITY_MAX),
    allowance_left=st.integers(-10, QUANTITY_MAX),
    pool_left=st.integers(-10, QUANTITY_MAX),
    overage_before=st.integers(0, QUANTITY_MAX),
    price=prices,
)
def test_the_parts_sum_to_the_quantity_and_take_no_more_than_there_is(
    quantity: int, allowance_left: int, pool_left: int, overage_before: int, price: Document
) -> None:
    terms = plan(price)
    rate = terms.rates["data"][0]
    own = Bucket(granted=allowance_left)
    pool = Bucket(granted=pool_left, kind=BucketKind.POOL)
    parts = charge(
        record(1, quantity),
        quantity,
        buckets=[own, pool],
        rate=rate,
        before=overage_before,
        terms=terms,
    )
    assert parts.from_allowance + parts.from_pool + parts.overage == quantity
    assert 0 <= parts.from_allowance <= max(0, allowance_left)
    assert 0 <= parts.from_pool <= max(0, pool_left)
    assert (own.used, pool.used) == (parts.from_allowance, parts.from_pool)
    # The pool is asked only when the own allowance is used up, the price only after the pool.
    assert parts.from_pool == 0 or parts.from_allowance == max(0, allowance_left)
    assert parts.overage == 0 or parts.from_pool == max(0, pool_left)
    after = overage_before + parts.overage
    assert parts.amount == rate.rated(after) - rate.rated(overage_before)
    steps = rate.walk(overage_before, parts.overage)
    assert sum(step.amount for step in steps) == parts.amount


@given(
    uses=st.lists(quantities, min_size=1, max_size=8),
    price=prices,
    allowance=quantities,
    pool=st.one_of(st.none(), quantities),
    data=st.data(),
)
def test_splitting_batching_and_reordering_never_change_a_devices_cycle(
    uses: list[int],
    price: Document,
    *,
    allowance: int,
    pool: int | None,
    data: st.DataObject,
) -> None:
    terms = plan(price)

    def cycle_of(parts: list[int]) -> tuple[int, int, int, int, int]:
        accounts, _, _ = charged(
            terms, [(1, part) for part in parts], allowance=allowance, pool=pool
        )
        return totals(accounts, 1)

    whole = cycle_of([sum(uses)])
    assert cycle_of(uses) == whole
    assert cycle_of(data.draw(st.permutations(uses))) == whole
    cuts = [data.draw(st.integers(0, quantity)) for quantity in uses]
    halves = [part for cut, use in zip(cuts, uses, strict=True) for part in (cut, use - cut)]
    assert cycle_of(halves) == whole


@given(steps=st.lists(st.integers(0, QUANTITY_MAX), max_size=20), price=prices)
def test_the_differences_of_what_is_rated_sum_to_what_all_of_it_is_rated(
    steps: list[int], price: Document
) -> None:
    rate = plan(price).rates["data"][0]
    cumulative = 0
    amount = 0
    for step in steps:
        before, cumulative = cumulative, cumulative + step
        assert rate.increment(before, step) == rate.rated(cumulative) - rate.rated(before)
        amount += rate.increment(before, step)
    assert amount == rate.rated(sum(steps)) - rate.rated(0)


fleet_uses = st.lists(st.tuples(st.integers(1, 4), quantities), min_size=1, max_size=12)


@given(
    uses=fleet_uses, allowance=st.integers(0, 5_000), pool=st.integers(0, 20_000), data=st.data()
)
def test_a_pool_gives_what_it_has_and_no_more_in_any_order(
    uses: list[tuple[int, int]], allowance: int, pool: int, data: st.DataObject
) -> None:
    terms = plan({"amount": "0.10", "per": 1000})
    seen = set()
    for order in (uses, data.draw(st.permutations(uses))):
        accounts, bucket, parts = charged(terms, order, allowance=allowance, pool=pool)
        drawn = sum(part[1] for part in parts)
        assert bucket.used == drawn == sum(use.from_pool for use in accounts.uses.values())
        assert 0 <= bucket.left <= pool
        overage = sum(part[2] for part in parts)
        # Nobody pays while the pool still holds something.
        assert overage == 0 or bucket.left == 0
        seen.add((drawn, overage, sum(part[3] for part in parts)))
    # Who drew depends on the order; what the fleet drew and owes does not, at one price.
    assert len(seen) == 1


def naive(
    uses: list[tuple[int, int]], unit_price: Fraction, *, allowance: int, pool: int
) -> dict[int, Fraction]:
    """Return what each member owes, octet by octet: whoever has one left gives it."""
    own: dict[int, int] = {}
    owed: dict[int, Fraction] = {}
    for number, quantity in uses:
        own.setdefault(number, allowance)
        owed.setdefault(number, Fraction(0))
        for _ in range(quantity):
            if own[number] > 0:
                own[number] -= 1
            elif pool > 0:
                pool -= 1
            else:
                owed[number] += unit_price
    return owed


@given(
    uses=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 60)), min_size=1, max_size=12),
    amount=amounts,
    per=st.integers(1, 3_000),
    allowance=st.integers(0, 50),
    pool=st.integers(0, 200),
    pooled=st.booleans(),
)
def test_the_core_agrees_with_a_naive_rating_in_fractions(
    uses: list[tuple[int, int]],
    amount: str,
    per: int,
    *,
    allowance: int,
    pool: int,
    pooled: bool,
) -> None:
    terms = plan({"amount": amount, "per": per})
    accounts, _, _ = charged(terms, uses, allowance=allowance, pool=pool if pooled else None)
    owed = naive(uses, Fraction(amount) / per, allowance=allowance, pool=pool if pooled else 0)
    for number, expected in owed.items():
        money = terms.money(accounts.uses[number, DATA.meter_no, CYCLE.start, 0].amount)
        assert money.exact == expected
        with localcontext() as context:
            context.prec = 60
            line = Decimal(expected.numerator) / Decimal(expected.denominator)
            assert money.rounded() == line.quantize(Decimal("0.01"), ROUND_HALF_UP)


@given(
    quantity=st.integers(0, QUANTITY_MAX),
    uplink_share=st.fractions(0, 1),
    length=st.timedeltas(timedelta(0), timedelta(days=100)),
    changes=st.lists(st.timedeltas(timedelta(0), timedelta(days=100)), max_size=3, unique=True),
    anchor_day=st.integers(1, 31),
)
def test_a_guided_usage_keeps_its_quantity_and_its_place(
    quantity: int,
    uplink_share: Fraction,
    length: timedelta,
    changes: list[timedelta],
    anchor_day: int,
) -> None:
    edges = [NOON - timedelta(days=1), *(NOON + change for change in sorted(changes)), None]
    subscriptions = [
        Subscription(
            subscription_no=number, device_no=1, plan_no=number, valid_from=begins, valid_to=ends
        )
        for number, (begins, ends) in enumerate(pairwise(edges), 1)
        if begins is not None
    ]
    uplink = int(quantity * uplink_share)
    records = guide(
        quantity=quantity,
        uplink=uplink,
        start=NOON,
        end=NOON + length,
        calendar=Calendar(ZONE, anchor_day),
        subscriptions=subscriptions,
    )
    assert not isinstance(records, ParkReason)
    assert sum(part.quantity for part in records) == quantity
    assert sum(part.uplink for part in records) == uplink
    assert records[0].start == NOON
    assert records[-1].end == NOON + length
    assert [part.part for part in records] == list(range(len(records)))
    for before, after in pairwise(records):
        assert before.end == after.start
    for part in records:
        assert 0 <= part.uplink <= part.quantity
        assert part.cycle.start <= part.start
        assert part.end <= part.cycle.end
        assert part.subscription.covers(part.start)
        assert part.subscription.valid_to is None or part.end <= part.subscription.valid_to
