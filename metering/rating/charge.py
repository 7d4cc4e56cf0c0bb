"""The charge of one usage record: what its buckets pay, and what the rest costs."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from metering.rating.bucket import Bucket, BucketKind
from metering.rating.guide import UsageRecord
from metering.rating.plan import PlanTerms
from metering.rating.price import Rate


class Draw(NamedTuple):
    """What one bucket paid: base units, or sub-units of money."""

    bucket: Bucket
    quantity: int


class ChargeParts(NamedTuple):
    """How one usage record was met, and what it costs.

    `from_allowance + from_pool + overage` is what is billed of it, in base units; `overage` is what no
    allowance paid, priced after `before` units that were priced already. `amount` is in sub-units,
    `connection_fee` a part of it; `from_money` is what money buckets paid of it. (A named tuple,
    because one is made for every record.)
    """

    from_allowance: int
    from_pool: int
    overage: int
    amount: int
    before: int = 0
    connection_fee: int = 0
    from_money: int = 0
    draws: Sequence[Draw] = ()

    @property
    def billed(self) -> int:
        """What is charged of the record, in base units."""
        return self.from_allowance + self.from_pool + self.overage


def charge(
    record: UsageRecord,
    billed: int,
    *,
    buckets: Sequence[Bucket],
    rate: Rate,
    before: int,
    terms: PlanTerms,
    connection_fee: int = 0,
    fee_on_allowance: bool = False,
) -> ChargeParts:
    """Charge `billed` units of a record: `buckets` in their burn order, then the price.

    What is priced costs rated(after) − rated(before) and, if anything is priced (or
    `fee_on_allowance`), the connection fee. The buckets are drawn from.
    """
    member = record.subscription.subscription_no
    rest = billed
    own = pooled = priced = paid = 0
    draws: list[Draw] = []
    whole_only: list[Bucket] = []
    for position, bucket in enumerate(buckets):
        if not rest:
            break
        if not bucket.admits(record.start, record.zone, record.band):
            continue
        if bucket.kind is not BucketKind.MONEY:
            taken = min(rest, bucket.available(member))
            if taken:
                bucket.draw(member, taken)
                draws.append(Draw(bucket, taken))
                rest -= taken
                if bucket.kind is BucketKind.POOL:
                    pooled += taken
                else:
                    own += taken
        elif _units_follow(buckets, position, record):
            whole_only.append(bucket)
            so_far = rate.increment(before, priced) + connection_fee
            units, cost = _bought(bucket, rate, before + priced, rest, (so_far, paid), terms)
            priced += units
            rest -= units
            if cost:
                draws.append(Draw(bucket, cost))
                paid += cost
    overage = priced + rest
    fee = connection_fee if overage or (fee_on_allowance and billed) else 0
    amount = terms.record_amount(rate.increment(before, overage) + fee)
    if buckets and amount > paid:
        last = [bucket for bucket in buckets if bucket not in whole_only]
        paid += _pay(amount - paid, last, record, terms.subunits_per_unit, draws)
    return ChargeParts(own, pooled, overage, amount, before, fee, paid, tuple(draws))


def _bought(  # noqa: PLR0917 - a step of `charge`
    bucket: Bucket, rate: Rate, before: int, rest: int, earlier: tuple[int, int], terms: PlanTerms
) -> tuple[int, int]:
    """Let a bucket of money pay for as many whole units as it can: `(units, sub-units)`.

    `earlier` is what the record costs so far, and what of that is paid.
    """
    so_far, paid = earlier
    purse = bucket.money_left(terms.subunits_per_unit)
    if not purse:
        return 0, 0
    units = rate.affordable(before, rest, _most_rounded_to(paid + purse, terms) - so_far)
    if not units:
        return 0, 0
    cost = max(0, terms.record_amount(so_far + rate.increment(before, units)) - paid)
    bucket.used += Fraction(cost, terms.subunits_per_unit)
    return units, cost


def _most_rounded_to(amount: int, terms: PlanTerms) -> int:
    """Return the most that a record may cost to be at most `amount` once it is rounded."""
    if terms.record_quantum is None:
        return amount
    low, high = amount - terms.record_quantum, amount + terms.record_quantum
    while high - low > 1:
        middle = (low + high) // 2
        if terms.record_amount(middle) <= amount:
            low = middle
        else:
            high = middle
    return low


def _units_follow(buckets: Sequence[Bucket], position: int, record: UsageRecord) -> bool:
    """Whether a bucket of units stands behind the bucket of money at `position`."""
    member = record.subscription.subscription_no
    return any(
        bucket.kind is not BucketKind.MONEY
        and bucket.admits(record.start, record.zone, record.band)
        and bucket.available(member)
        for bucket in buckets[position + 1 :]
    )


def _pay(
    owed: int,
    buckets: Sequence[Bucket],
    record: UsageRecord,
    subunits_per_unit: int,
    draws: list[Draw],
) -> int:
    """Let money buckets pay what they can of `owed` sub-units; return how much that is."""
    rest = owed
    for bucket in buckets:
        if bucket.kind is BucketKind.MONEY and bucket.admits(
            record.start, record.zone, record.band
        ):
            paid = max(0, min(rest, bucket.money_left(subunits_per_unit)))
            if paid:
                bucket.used += Fraction(paid, subunits_per_unit)
                draws.append(Draw(bucket, paid))
                rest -= paid
    return owed - rest
