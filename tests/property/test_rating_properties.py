"""What holds for every way in which a cycle's usage may come: split, batched or in another order.

The differential check has a rating of its own, in fractions, that shares no code with the core.
"""

from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from metering.period import BillCycle, cycle_at
from metering.plan_document import read_plan, terms_of
from metering.rating.account import Accounts, Bucket, charge_record
from metering.rating.charge import charge, rated
from metering.rating.guide import ParkReason, Subscription, UsageRecord, guide
from metering.rating.plan import PlanTerms
from metering.usage import DATA, QUANTITY_MAX

ZONE = "Europe/Berlin"
NOON = datetime(2026, 4, 15, 12, tzinfo=UTC)
CYCLE = cycle_at(NOON, ZONE, 1)
FLEET_NO = 3

quantities = st.integers(0, 10_000)
amounts = st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,4})?", fullmatch=True)
pers = st.one_of(st.integers(1, 3_000), st.sampled_from(["1 kB", "1 KiB", "1 MB", "7 B"]))


def plan(amount: str, per: int | str, *, pooled: bool) -> PlanTerms:
    return terms_of(
        read_plan(
            {
                "plan": "p",
                "name": "P",
                "currency": "EUR",
                "meters": {"data": {"pooled": pooled, "overage": {"amount": amount, "per": per}}},
            }
        )
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
    )


def charged(
    terms: PlanTerms, uses: list[tuple[int, int]], *, allowance: int, pool: int
) -> tuple[Accounts, list[tuple[int, int, int, int]]]:
    """Charge (member, quantity) in order; each member has `allowance`, all of them the pool."""
    accounts = Accounts()
    for number in {number for number, _ in uses}:
        accounts.allowances[number, DATA.meter_no, CYCLE.start] = Bucket(granted=allowance)
    accounts.pools[FLEET_NO, DATA.meter_no, CYCLE.start] = Bucket(granted=pool)
    parts = []
    for number, quantity in uses:
        made = charge_record(
            record(number, quantity),
            meter="data",
            meter_no=DATA.meter_no,
            fleet_no=FLEET_NO,
            terms=terms,
            accounts=accounts,
        ).parts
        assert made.from_allowance + made.from_pool + made.overage == quantity
        assert min(made.from_allowance, made.from_pool, made.overage, made.amount) >= 0
        parts.append((made.from_allowance, made.from_pool, made.overage, made.amount))
    return accounts, parts


def totals(accounts: Accounts, number: int) -> tuple[int, int, int, int, int]:
    use = accounts.uses[number, DATA.meter_no, CYCLE.start]
    return (use.quantity, use.from_allowance, use.from_pool, use.overage, use.amount)


@given(
    quantity=st.integers(0, QUANTITY_MAX),
    allowance_left=st.integers(-10, QUANTITY_MAX),
    pool_left=st.integers(-10, QUANTITY_MAX),
    overage_before=st.integers(0, QUANTITY_MAX),
    price=st.integers(0, 10**20),
)
def test_the_parts_sum_to_the_quantity_and_take_no_more_than_there_is(
    quantity: int, allowance_left: int, pool_left: int, overage_before: int, price: int
) -> None:
    parts = charge(
        quantity,
        allowance_left=allowance_left,
        pool_left=pool_left,
        overage_before=overage_before,
        subunit_price=price,
    )
    assert parts.from_allowance + parts.from_pool + parts.overage == quantity
    assert 0 <= parts.from_allowance <= max(0, allowance_left)
    assert 0 <= parts.from_pool <= max(0, pool_left)
    # The pool is asked only when the own allowance is used up, the price only after the pool.
    assert parts.from_pool == 0 or parts.from_allowance == max(0, allowance_left)
    assert parts.overage == 0 or parts.from_pool == max(0, pool_left)
    assert parts.amount == rated(overage_before + parts.overage, price) - rated(
        overage_before, price
    )


@given(
    uses=st.lists(quantities, min_size=1, max_size=8),
    amount=amounts,
    per=pers,
    allowance=quantities,
    pool=quantities,
    pooled=st.booleans(),
    data=st.data(),
)
def test_splitting_batching_and_reordering_never_change_a_devices_cycle(
    uses: list[int],
    amount: str,
    per: int | str,
    *,
    allowance: int,
    pool: int,
    pooled: bool,
    data: st.DataObject,
) -> None:
    terms = plan(amount, per, pooled=pooled)

    def cycle_of(parts: list[int]) -> tuple[int, int, int, int, int]:
        accounts, _ = charged(terms, [(1, part) for part in parts], allowance=allowance, pool=pool)
        return totals(accounts, 1)

    whole = cycle_of([sum(uses)])
    assert cycle_of(uses) == whole
    assert cycle_of(data.draw(st.permutations(uses))) == whole
    cuts = [data.draw(st.integers(0, quantity)) for quantity in uses]
    halves = [part for cut, use in zip(cuts, uses, strict=True) for part in (cut, use - cut)]
    assert cycle_of(halves) == whole


@given(steps=st.lists(st.integers(0, QUANTITY_MAX), max_size=20), price=st.integers(0, 10**18))
def test_the_differences_of_what_is_rated_sum_to_what_all_of_it_is_rated(
    steps: list[int], price: int
) -> None:
    cumulative = 0
    amount = 0
    for step in steps:
        before, cumulative = cumulative, cumulative + step
        amount += rated(cumulative, price) - rated(before, price)
    assert amount == rated(sum(steps), price)


fleet_uses = st.lists(st.tuples(st.integers(1, 4), quantities), min_size=1, max_size=12)


@given(
    uses=fleet_uses, allowance=st.integers(0, 5_000), pool=st.integers(0, 20_000), data=st.data()
)
def test_a_pool_gives_what_it_has_and_no_more_in_any_order(
    uses: list[tuple[int, int]], allowance: int, pool: int, data: st.DataObject
) -> None:
    terms = plan("0.10", 1000, pooled=True)
    seen = set()
    for order in (uses, data.draw(st.permutations(uses))):
        accounts, parts = charged(terms, order, allowance=allowance, pool=pool)
        bucket = accounts.pools[FLEET_NO, DATA.meter_no, CYCLE.start]
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
    terms = plan(amount, per, pooled=pooled)
    accounts, _ = charged(terms, uses, allowance=allowance, pool=pool)
    owed = naive(uses, Fraction(amount) / per, allowance=allowance, pool=pool if pooled else 0)
    for number, expected in owed.items():
        money = terms.money(accounts.uses[number, DATA.meter_no, CYCLE.start].amount)
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
        time_zone=ZONE,
        anchor_day=anchor_day,
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
