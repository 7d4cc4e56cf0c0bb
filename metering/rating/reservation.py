"""Reservations: how much is granted ahead of use, from which buckets, and how far use may overshoot.

A grant is held in the buckets in their burn order. It follows the device's burn rate, so that an idle
device holds little of what others need, and takes no more of a pool than a share of what is left.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from metering.rating.bucket import Bucket, BucketKind


class ReservationState(StrEnum):
    """What became of a reservation. The texts are stored and public."""

    ACTIVE = "active"
    SETTLED = "settled"
    """The device said what it used; what it did not use is everybody's again."""
    REPLACED = "replaced"
    """The device asked for the next grant."""
    RELEASED = "released"
    """The device gave it back."""
    EXPIRED = "expired"
    """Its time was over, or what it was held in was cut when a cycle began."""


class FinalAction(StrEnum):
    """What a device does once its last grant is used up."""

    TERMINATE = "terminate"
    """It uses nothing more."""
    RESTRICT = "restrict"
    """It uses only what the operator lets through without charge."""
    OVERAGE = "overage"
    """It goes on, and pays what its plan says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRule:
    """How grants are sized; quantities are in the meter's base unit.

    `headroom` is how many times the expected use is granted, `share` the most of what is left of a
    pool that one grant takes. `report_seconds` is the longest time from a use to its charge.
    """

    validity_seconds: int
    quantity_min: int
    quantity_max: int
    share: Fraction
    headroom: Fraction
    report_seconds: int
    final_action: FinalAction


class RecentUse(NamedTuple):
    """What a device used of a meter within some time that ends now."""

    quantity: int
    seconds: int


def expected_use(recent: Iterable[RecentUse], seconds: int) -> int:
    """Return what a device will use within some time at the highest of its recent rates."""
    rates = (Fraction(each.quantity, each.seconds) for each in recent if each.seconds > 0)
    return ceil(max(rates, default=Fraction(0)) * seconds)


class Part(NamedTuple):
    """What is held in one bucket."""

    bucket: Bucket
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What is granted to a device until `expires_at`, and where it is held.

    `final_action` is set on the last grant: what the buckets still have for the device is all in it.
    """

    parts: Sequence[Part]
    expires_at: datetime
    final_action: FinalAction | None

    @property
    def quantity(self) -> int:
        """What the device may use, in the meter's base unit."""
        return sum(part.quantity for part in self.parts)


def reserve(
    member: int,
    buckets: Iterable[Bucket],
    *,
    now: datetime,
    ends: datetime,
    requested: int | None,
    recent: Sequence[RecentUse],
    rule: QuotaRule,
) -> Grant:
    """Hold a grant for a member (a subscription's number) in buckets that come in burn order.

    It is what the device asks for, but no more than its burn rate makes likely to be used while the
    grant holds. Of a pool it takes at most a share of what is left; a device that used something lately
    takes the least of a grant in any case. It holds until `ends` at most, and no longer than the buckets
    that it is held in.
    """
    expected = ceil(expected_use(recent, rule.validity_seconds) * rule.headroom)
    wanted = min(max(expected, rule.quantity_min), rule.quantity_max)
    if requested is not None:
        wanted = min(wanted, requested)
    expires_at = min(ends, now + timedelta(seconds=rule.validity_seconds))
    parts: list[Part] = []
    others = 0
    for bucket in buckets:
        free = max(0, bucket.available(member) - bucket.held.get(member, 0))
        taken = min(wanted, free)
        if bucket.kind is BucketKind.POOL:
            least = rule.quantity_min if expected else 0
            taken = min(taken, max(ceil(free * rule.share), least))
        if taken > 0:
            parts.append(Part(bucket, bucket.hold(member, taken)))
            wanted -= taken
            if bucket.expires_at is not None:
                expires_at = min(expires_at, bucket.expires_at)
        others += free - max(0, taken)
    return Grant(
        parts=parts,
        expires_at=expires_at,
        final_action=None if others > 0 else rule.final_action,
    )


def ended_as(
    *, replaced: bool, used: int | None, ended_at: datetime, expires_at: datetime, cut: bool
) -> ReservationState:
    """Return the state in which a reservation ends.

    `used` is what the device said; `cut` whether a cycle began that took what it was held in.
    """
    if replaced:
        return ReservationState.REPLACED
    if used is not None:
        return ReservationState.SETTLED
    if cut or ended_at >= expires_at:
        return ReservationState.EXPIRED
    return ReservationState.RELEASED


class Ended(NamedTuple):
    """A reservation that ended: what of it was charged, what may not be yet, what the device said.

    Where more is charged than is used, what was drawn does not tell what was used: then nothing
    counts as charged, and all that was granted as what may not be yet.
    """

    charged: int
    unreported: int
    used: int | None


def overshoot_bound(outstanding: int, ended: Iterable[Ended] = ()) -> int:
    """Return the most that devices which keep to their grants can still use beyond what is left.

    What is granted and not yet charged may have been used already. While it is held, nobody else can
    take it; once its time is over, others can, and its use may be reported after that. So what counts
    is what is `outstanding` in grants that hold, and what may not be charged yet of those that `ended`
    less than the longest time from a use to its charge ago: of a settled one, no more than the device
    said. Both in units used, as an increment rounds up what is charged for them.
    """
    late = 0
    for each in ended:
        unreported = each.unreported
        if each.used is not None:
            unreported = min(unreported, max(0, each.used - each.charged))
        late += unreported
    return outstanding + late
