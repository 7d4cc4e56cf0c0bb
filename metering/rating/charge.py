"""The charge of one usage record: own allowance, then the fleet's pool, then overage at a price."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChargeParts:
    """How one usage record's quantity was met, in base units, and what it costs in sub-units.

    `from_allowance + from_pool + overage` is the record's quantity.
    """

    from_allowance: int
    from_pool: int
    overage: int
    amount: int


def rated(overage: int, subunit_price: int) -> int:
    """Return what a cycle's cumulative overage costs, in sub-units."""
    return overage * subunit_price


def charge(
    quantity: int,
    *,
    allowance_left: int,
    pool_left: int,
    overage_before: int,
    subunit_price: int,
) -> ChargeParts:
    """Charge one usage record.

    `allowance_left` and `pool_left` are what the device's own bucket and its fleet's pool still
    hold (0 or less: nothing); `overage_before` is the device's overage earlier in the cycle. The
    amount is rated(after) − rated(before), so that splitting or batching records never changes a
    cycle's total.
    """
    from_allowance = max(0, min(quantity, allowance_left))
    rest = quantity - from_allowance
    from_pool = max(0, min(rest, pool_left))
    overage = rest - from_pool
    before = rated(overage_before, subunit_price)
    amount = rated(overage_before + overage, subunit_price) - before
    return ChargeParts(from_allowance, from_pool, overage, amount)
