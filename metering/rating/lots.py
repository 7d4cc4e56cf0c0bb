"""Lots: a fleet's or many fleets' allowance buckets, and which of them a subscription's meter draws from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from metering.period import BillCycle
from metering.rating.account import Accounts
from metering.rating.bucket import Bucket, BucketKind, burn_order
from metering.rating.grants import rolled_over
from metering.rating.guide import Subscription, UsageRecord
from metering.rating.plan import AllowanceTerms, MeterTerms, PlanTerms, SharedBy
from metering.rating.zone import ELSEWHERE

LotsKey = tuple[int, int, str, str]
"""(fleet_no, owner, meter, name of the allowance).

The owner is a subscription_no; of a pool −plan_no, or 0 where it is shared across plans.
"""

TopUpsKey = tuple[int, int, str]
"""(fleet_no, device_no, meter); the device of a whole fleet's top-ups is 0."""


def lots_key(
    fleet_no: int, subscription: Subscription, shared_by: SharedBy, meter: str, name: str
) -> LotsKey:
    """Return where the lots of an allowance of a subscription's plan stand."""
    owner = 0
    if shared_by is SharedBy.DEVICE:
        owner = subscription.subscription_no
    elif shared_by is SharedBy.PLAN:
        owner = -subscription.plan_no
    return (fleet_no, owner, meter, name)


@dataclass(slots=True)
class Lots:
    """Buckets by allowance, each allowance's by when it begins; and what was bought on top."""

    buckets: dict[LotsKey, dict[datetime, Bucket]] = field(default_factory=dict)
    top_ups: dict[TopUpsKey, list[Bucket]] = field(default_factory=dict)
    _common: dict[tuple[int, int, str, datetime], list[Bucket]] = field(default_factory=dict)
    """What all subscriptions of a plan draw from alike: (fleet_no, plan_no, meter, cycle's start)."""

    def put(self, key: LotsKey, begins_at: datetime, bucket: Bucket) -> None:
        """Add a lot."""
        self.buckets.setdefault(key, {})[begins_at] = bucket
        self._common.clear()

    def put_top_up(self, key: TopUpsKey, bucket: Bucket) -> None:
        """Add a lot that was bought."""
        self.top_ups.setdefault(key, []).append(bucket)
        self._common.clear()

    def get(self, key: LotsKey, begins_at: datetime) -> Bucket | None:
        """Return the lot of an allowance that begins at an instant."""
        return self.buckets.get(key, {}).get(begins_at)

    def drawn_by(
        self, fleet_no: int, subscription: Subscription, of_meter: MeterTerms, cycle: BillCycle
    ) -> list[Bucket]:
        """Return what a subscription's meter may draw from in a cycle, in no order."""
        found: list[Bucket] = []
        for allowance in of_meter.allowances:
            key = lots_key(
                fleet_no, subscription, allowance.shared_by, of_meter.meter, allowance.name
            )
            lots = self.buckets.get(key)
            if lots:
                found += [bucket for bucket in lots.values() if overlaps(bucket, cycle)]
        if self.top_ups:
            for owner in (subscription.device_no, 0):
                bought = self.top_ups.get((fleet_no, owner, of_meter.meter), ())
                found += [bucket for bucket in bought if overlaps(bucket, cycle)]
        return found

    def fill(
        self,
        accounts: Accounts,
        records: Iterable[UsageRecord],
        *,
        meter: str,
        meter_no: int,
        fleet_no: int,
        plans: Mapping[int, PlanTerms],
    ) -> None:
        """Put what some records draw from into `accounts`, in burn order, where it is not yet."""
        for record in records:
            subscription = record.subscription
            key = (subscription.subscription_no, meter_no, record.cycle.start)
            if key not in accounts.buckets:
                of_meter = plans[subscription.plan_no].meters[meter]
                if self.top_ups or of_meter.has_own_allowance:
                    buckets = self.drawn_by(fleet_no, subscription, of_meter, record.cycle)
                    accounts.buckets[key] = burn_order(buckets)
                    continue
                common = (fleet_no, subscription.plan_no, meter, record.cycle.start)
                ordered = self._common.get(common)
                if ordered is None:
                    buckets = self.drawn_by(fleet_no, subscription, of_meter, record.cycle)
                    ordered = self._common[common] = burn_order(buckets)
                accounts.buckets[key] = ordered


def allowance_of(terms: PlanTerms, meter: str, name: str) -> AllowanceTerms:
    """Return an allowance of a plan's meter by name; raise `LookupError` when there is none."""
    for allowance in terms.meters[meter].allowances:
        if allowance.name == name:
            return allowance
    raise LookupError(f"plan {terms.plan!r} has no allowance {name!r} of {meter}")


def allowances_of(
    fleet_no: int, subscriptions: Iterable[Subscription], plans: Mapping[int, PlanTerms]
) -> dict[LotsKey, AllowanceTerms]:
    """Return the terms of every allowance that some subscriptions draw from, by where its lots stand.

    Where plans that share a pool disagree on it, the first subscription's is taken.
    """
    found: dict[LotsKey, AllowanceTerms] = {}
    for subscription in subscriptions:
        for meter, of_meter in plans[subscription.plan_no].meters.items():
            for allowance in of_meter.allowances:
                key = lots_key(fleet_no, subscription, allowance.shared_by, meter, allowance.name)
                found.setdefault(key, allowance)
    return found


LotTerms = tuple[Bucket, AllowanceTerms]
"""A lot, and the terms that say how it is drawn from."""


class Rolled(NamedTuple):
    """What becomes of a lot when a cycle begins: what it loses, and what of it goes on."""

    bucket: Bucket
    lost: int
    goes_on: int


def rolled_into(lots: Mapping[LotsKey, Iterable[LotTerms]], cycle_start: datetime) -> list[Rolled]:
    """Return what lots that began before a cycle lose and carry on when it begins.

    The newest lot of an allowance says how all of them roll over; one whose allowance does not roll
    over, or of which nothing is left, is not among them.
    """
    rolled: list[Rolled] = []
    for of_allowance in lots.values():
        begun = [
            each
            for each in of_allowance
            if each[0].created_at is not None and each[0].created_at < cycle_start
        ]
        newest = max(begun, key=lambda each: each[0].burn_key[2], default=None)
        if newest is None or newest[1].rollover is None:
            continue
        buckets = [bucket for bucket, _ in begun]
        lost = {
            id(bucket): quantity
            for bucket, quantity in rolled_over(buckets, newest[1].rollover, cycle_start)
        }
        for bucket in buckets:
            if bucket.left > 0 and (bucket.expires_at is None or bucket.expires_at > cycle_start):
                gone = lost.get(id(bucket), 0)
                rolled.append(Rolled(bucket, gone, int(bucket.left) - gone))
    return rolled


def top_up_lot(
    *,
    bucket_id: str,
    name: str,
    of_device: bool,
    priority: int,
    zones: Iterable[str] | None,
    begins_at: datetime,
    expires_at: datetime | None,
) -> Bucket:
    """Return the lot of a top-up, empty. It says itself when and where it may be drawn from."""
    return Bucket(
        kind=BucketKind.ALLOWANCE if of_device else BucketKind.POOL,
        name=name,
        bucket_id=bucket_id,
        priority=priority,
        created_at=begins_at,
        expires_at=expires_at,
        zones=None
        if zones is None
        else frozenset(None if zone == ELSEWHERE else zone for zone in zones),
    )


def overlaps(bucket: Bucket, cycle: BillCycle) -> bool:
    """Whether a bucket holds at any time of a cycle."""
    return (bucket.created_at is None or bucket.created_at < cycle.end) and (
        bucket.expires_at is None or cycle.start < bucket.expires_at
    )
