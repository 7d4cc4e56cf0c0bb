"""A balance is the fold over its postings, in whatever order things happen to it."""

import random
from collections import Counter
from datetime import timedelta
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from metering.rating.account import Accounts
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.charge import charge
from metering.rating.lots import Lots, top_up_lot
from metering.usage import DATA
from tests.property.test_rating_properties import CYCLE, FLEET_NO, NOON, plan, record

TERMS = plan({"amount": "1", "per": 1})
ACCOUNTS = ("top_ups", "adjustments", "consumption")


class Posting(NamedTuple):
    """What one account got (negative: gave) in one transaction."""

    transaction: int
    account: str
    quantity: int


class Step(NamedTuple):
    """Something that happens: what, to which device or which lots, and how much."""

    what: str
    device: int
    first: int
    second: int
    quantity: int
    days: int


steps = st.builds(
    Step,
    what=st.sampled_from(["top_up", "top_up", "use", "use", "transfer", "adjust"]),
    device=st.integers(0, 2),
    first=st.integers(0, 5),
    second=st.integers(0, 5),
    quantity=st.integers(1, 1_000),
    days=st.integers(-2, 3),
)


class Books:
    """A fleet's top-ups while they are changed, and every posting that this wrote."""

    def __init__(self) -> None:
        self.lots = Lots()
        self.buckets: list[Bucket] = []
        self.postings: list[Posting] = []
        self.transactions = 0

    def post(self, *sides: tuple[str, int]) -> None:
        self.transactions += 1
        self.postings += [Posting(self.transactions, *side) for side in sides]

    def take(self, step: Step) -> None:
        match step.what:
            case "top_up":
                self._top_up(step)
            case "use":
                self._use(step)
            case "transfer" if self.buckets:
                source, target = (
                    self.buckets[each % len(self.buckets)] for each in (step.first, step.second)
                )
                quantity = min(step.quantity, int(source.left))
                source.granted -= quantity
                target.granted += quantity
                self.post((source.bucket_id, -quantity), (target.bucket_id, quantity))
            case "adjust" if self.buckets:
                bucket = self.buckets[step.first % len(self.buckets)]
                quantity = step.quantity if step.days > 0 else -min(step.quantity, int(bucket.left))
                bucket.granted += quantity
                self.post((bucket.bucket_id, quantity), ("adjustments", -quantity))

    def _top_up(self, step: Step) -> None:
        bucket = top_up_lot(
            bucket_id=f"bucket {len(self.buckets):03}",
            name="top-up",
            of_device=step.device > 0,
            priority=step.first,
            zones=None,
            begins_at=NOON - timedelta(days=step.second),
            expires_at=NOON + timedelta(days=step.days),
        )
        bucket.granted = step.quantity
        self.lots.put_top_up((FLEET_NO, step.device, "data"), bucket)
        self.buckets.append(bucket)
        self.post((bucket.bucket_id, step.quantity), ("top_ups", -step.quantity))

    def _use(self, step: Step) -> None:
        used = record(1 + step.device, step.quantity)
        accounts = Accounts()
        self.lots.fill(
            accounts, [used], meter="data", meter_no=DATA.meter_no, fleet_no=FLEET_NO,
            plans={1: TERMS},
        )  # fmt: skip
        buckets = accounts.buckets[1 + step.device, DATA.meter_no, CYCLE.start]
        assert [each.burn_key for each in buckets] == sorted(each.burn_key for each in buckets)
        holding = [each for each in buckets if each.admits(NOON, None, None)]
        before = sum(int(each.left) for each in holding)
        parts = charge(
            used, step.quantity, buckets=buckets, rate=TERMS.rates["data"][0], before=0, terms=TERMS
        )
        drawn = parts.from_allowance + parts.from_pool
        assert drawn == min(step.quantity, before)
        assert {each.bucket.kind for each in parts.draws} <= {
            BucketKind.ALLOWANCE,
            BucketKind.POOL,
        }
        self.post(
            *((each.bucket.bucket_id, -each.quantity) for each in parts.draws),
            ("consumption", drawn),
        )


def fold(postings: list[Posting]) -> Counter[str]:
    balances: Counter[str] = Counter()
    for posting in postings:
        balances[posting.account] += posting.quantity
    return balances


@given(done=st.lists(steps, max_size=25), seed=st.integers(0, 1000))
def test_what_is_left_is_the_fold_over_the_postings(done: list[Step], seed: int) -> None:
    books = Books()
    for step in done:
        books.take(step)
        assert all(bucket.left >= 0 for bucket in books.buckets)
    by_transaction: Counter[int] = Counter()
    for posting in books.postings:
        by_transaction[posting.transaction] += posting.quantity
    assert not any(by_transaction.values())
    shuffled = list(books.postings)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - the seed must reproduce it
    balances = fold(shuffled)
    assert {each.bucket_id: balances[each.bucket_id] for each in books.buckets} == {
        each.bucket_id: each.left for each in books.buckets
    }
    assert sum(balances.values()) == 0
    assert sum(each.used for each in books.buckets) == balances["consumption"]


@given(done=st.lists(steps.filter(lambda step: step.what == "top_up"), max_size=8), data=st.data())
def test_the_order_of_top_ups_changes_nothing_that_is_drawn(
    done: list[Step], data: st.DataObject
) -> None:
    """But for the ids, by which lots of the same priority, end and beginning are told apart."""
    other = data.draw(st.permutations(done))
    left: list[list[tuple[object, ...]]] = []
    for order in (done, other):
        books = Books()
        for step in order:
            books.take(step)
        books.take(Step("use", 1, 0, 0, 700, 0))
        books.take(Step("use", 0, 0, 0, 700, 0))
        held: Counter[tuple[object, ...]] = Counter()
        for bucket in books.buckets:
            held[bucket.kind, bucket.burn_key[:3]] += int(bucket.left)
        left.append(sorted(held.items()))
    assert left[0] == left[1]
