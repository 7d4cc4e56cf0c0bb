"""A fleet's accounts while usage records are charged to them: the step that charging and audit share.

The accounts are the one thing here that changes: their owner loads them, hands them through, and
stores them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from metering.rating.bucket import Bucket
from metering.rating.charge import ChargeParts, charge
from metering.rating.guide import Subscription, UsageRecord
from metering.rating.increment import Increment
from metering.rating.plan import Aggregate, MeterTerms, PlanTerms
from metering.rating.price import CountedPer, Price
from metering.rating.record import Usage

UseKey = tuple[int, int, datetime, int]
"""(subscription_no, meter_no, cycle_start, variant)"""
CountKey = tuple[int, int, datetime, int, str]
"""(subscription_no, meter_no, cycle_start, variant, name); a whole fleet's stand under −fleet_no."""

_ANY_VARIANT = -1
_ANY_CYCLE = datetime(1970, 1, 1, tzinfo=UTC)
_OF_A_CYCLE = ("max", "period")


@dataclass(slots=True)
class MeterUse:
    """One subscription's cumulative use of one meter at one price in one cycle.

    `amount` and `from_money` are in sub-units. `quantity` is what was used, `billed` what is charged
    of it, `overage` what of that was priced.
    """

    records: int = 0
    quantity: int = 0
    uplink: int = 0
    billed: int = 0
    from_allowance: int = 0
    from_pool: int = 0
    overage: int = 0
    amount: int = 0
    from_money: int = 0

    def add(self, record: UsageRecord, parts: ChargeParts) -> None:
        """Count one more charged usage record."""
        own, pooled, overage, amount, _, _, from_money, draws = parts
        self.records += 1
        self.quantity += record.quantity
        self.uplink += record.uplink
        self.billed += own + pooled + overage
        self.overage += overage
        self.amount += amount
        if draws:
            self.from_allowance += own
            self.from_pool += pooled
            self.from_money += from_money


BucketsKey = tuple[int, int, datetime]
"""(subscription_no, meter_no, cycle_start)"""


@dataclass(slots=True)
class Accounts:
    """The accounts that some readings touch.

    `buckets` are what each subscription's meter draws from in a cycle, in burn order; a shared bucket
    stands in many of them. `counts` are cumulative quantities beside the use itself: of a fleet-wide
    price, of an increment's group, of a session that was connected.
    """

    uses: dict[UseKey, MeterUse] = field(default_factory=dict)
    buckets: dict[BucketsKey, list[Bucket]] = field(default_factory=dict)
    counts: dict[CountKey, int] = field(default_factory=dict)

    def count_before(
        self,
        subscription: Subscription,
        meter_no: int,
        cycle_start: datetime,
        variant: int,
        price: Price,
        *,
        fleet_no: int,
        quantity: int,
    ) -> None:
        """Enter units that were priced before at one of a meter's prices."""
        if price.fleet_wide or price.joint:
            place = _ANY_VARIANT if price.joint else variant
            owner = -fleet_no if price.fleet_wide else subscription.subscription_no
            name = f"price:{subscription.plan_no}" if price.fleet_wide else "price"
            self.counts[owner, meter_no, cycle_start, place, name] = quantity
        else:
            key = (subscription.subscription_no, meter_no, cycle_start, variant)
            self.uses.setdefault(key, MeterUse()).overage += quantity


class Charge(NamedTuple):
    """One usage record and how it was charged."""

    record: UsageRecord
    parts: ChargeParts


class Borne:
    """What earlier records of one reading bore: its connection, and units priced alone."""

    __slots__ = ("alone", "connected")

    def __init__(self) -> None:
        self.connected = False
        self.alone: dict[tuple[int, int], int] | None = None
        """By plan and variant."""


def charge_records(
    records: Sequence[UsageRecord],
    usage: Usage,
    *,
    meter: str,
    meter_no: int,
    fleet_no: int,
    plans: Mapping[int, PlanTerms],
    accounts: Accounts,
    borne: Borne | None = None,
) -> list[Charge]:
    """Charge the records of one reading to the accounts: buckets in burn order, then the price.

    `borne` is what earlier records of the reading bore, where they are not charged all at once.
    """
    charges: list[Charge] = []
    borne = borne or Borne()
    for record in records:
        subscription = record.subscription
        subscription_no = subscription.subscription_no
        cycle_start = record.cycle.start
        terms = plans[subscription.plan_no]
        key = (subscription_no, meter_no, cycle_start, record.variant)
        use = accounts.uses.get(key)
        if use is None:
            use = accounts.uses[key] = MeterUse()
        buckets: Sequence[Bucket] = ()
        if accounts.buckets:
            buckets = accounts.buckets.get((subscription_no, meter_no, cycle_start), ())
        if terms.meters[meter].plain:
            rate, billed = terms.rates[meter][record.variant], record.billed
            if buckets:
                parts = charge(
                    record, billed, buckets=buckets, rate=rate, before=use.overage, terms=terms
                )
            else:
                amount = rate.increment(use.overage, billed)
                if terms.record_quantum is not None:
                    amount = terms.record_amount(amount)
                parts = ChargeParts(0, 0, billed, amount, use.overage)
        else:
            place = _Place(meter, meter_no, fleet_no)
            parts = _charge_counted(record, usage, place, terms, accounts, use, buckets, borne)
        use.add(record, parts)
        charges.append(Charge(record, parts))
    return charges


class _Place(NamedTuple):
    meter: str
    meter_no: int
    fleet_no: int


def _charge_counted(  # noqa: PLR0917 - one call a record; keywords would cost more than they tell
    record: UsageRecord,
    usage: Usage,
    place: _Place,
    terms: PlanTerms,
    accounts: Accounts,
    use: MeterUse,
    buckets: Sequence[Bucket],
    borne: Borne,
) -> ChargeParts:
    """Charge a record whose price needs more than its own use: groups, sessions, fleets, connections."""
    meter, meter_no, fleet_no = place
    of_meter = terms.meters[meter]
    price = of_meter.variants[record.variant].price
    billed = record.billed
    if record.group is not None:
        billed = _grouped(record, meter_no, of_meter, accounts)
    counter = _price_count(price, record, usage, meter_no, fleet_no)
    walk = (record.subscription.plan_no, _ANY_VARIANT if price.joint else record.variant)
    if counter is not None:
        before = accounts.counts.get(counter, 0)
    else:
        before = (borne.alone or {}).get(walk, 0) if price.counts_alone else use.overage
    fees = terms.connection_fees[meter]
    connects = bool(usage.quantity) and any(fees)
    connection = _connection(record, usage.session, meter_no) if connects else None
    is_first = connects and not borne.connected and connection not in accounts.counts
    parts = charge(
        record,
        billed,
        buckets=buckets,
        rate=terms.rates[meter][record.variant],
        before=before,
        terms=terms,
        connection_fee=fees[record.variant] if is_first else 0,
        fee_on_allowance=price.connection_fee_on_allowance,
    )
    if counter is not None:
        accounts.counts[counter] = before + parts.overage
    elif price.counts_alone:
        borne.alone = (borne.alone or {}) | {walk: before + parts.overage}
    # The first record of which anything is priced bears the fee, even if its own price has none.
    if connects and (parts.overage or (price.connection_fee_on_allowance and parts.billed)):
        borne.connected = True
        if connection is not None:
            accounts.counts[connection] = 1
    return parts


def count_keys(
    records: Sequence[UsageRecord],
    usage: Usage,
    *,
    meter: str,
    meter_no: int,
    fleet_no: int,
    plans: Mapping[int, PlanTerms],
) -> set[CountKey]:
    """Return the counts that charging these records reads and changes."""
    keys: set[CountKey | None] = set()
    for record in records:
        of_meter = plans[record.subscription.plan_no].meters[meter]
        if of_meter.plain:
            continue
        price = of_meter.variants[record.variant].price
        connects = any(each.price.connection_fee for each in of_meter.variants)
        if record.group is not None:
            keys.add(_group_count(record, meter_no))
        keys.add(_price_count(price, record, usage, meter_no, fleet_no))
        if connects:
            keys.add(_connection(record, usage.session, meter_no))
    return {key for key in keys if key is not None}


def _grouped(record: UsageRecord, meter_no: int, of_meter: MeterTerms, accounts: Accounts) -> int:
    """Return what is billed of a record that is taken together with others of its group."""
    increment = of_meter.variants[record.variant].increment or Increment()
    key = _group_count(record, meter_no)
    before = accounts.counts.get(key, 0)
    together = (
        max(before, record.raw) if of_meter.aggregate is Aggregate.MAX else before + record.raw
    )
    accounts.counts[key] = together
    return increment.billed(together) - increment.billed(before)


def _group_count(record: UsageRecord, meter_no: int) -> CountKey:
    group = record.group or ""
    # A session goes on across bands; days, months and periods are rounded apart at each price. Days,
    # months and sessions may lie across the end of a cycle.
    variant = _ANY_VARIANT if group.startswith("session:") else record.variant
    cycle_start = record.cycle.start if group in _OF_A_CYCLE else _ANY_CYCLE
    return (record.subscription.subscription_no, meter_no, cycle_start, variant, group)


def _price_count(
    price: Price, record: UsageRecord, usage: Usage, meter_no: int, fleet_no: int
) -> CountKey | None:
    """Name what is counted towards a price; None: the use itself, or this reading alone."""
    variant = _ANY_VARIANT if price.joint else record.variant
    subscription_no, plan_no = record.subscription.subscription_no, record.subscription.plan_no
    cycle_start = record.cycle.start
    match price.counted_per:
        case CountedPer.DEVICE:
            return (
                (subscription_no, meter_no, cycle_start, variant, "price") if price.joint else None
            )
        case CountedPer.FLEET:
            return (-fleet_no, meter_no, cycle_start, variant, f"price:{plan_no}")
        case CountedPer.SESSION if usage.session is not None:
            name = f"price:session:{usage.session}"
            return (subscription_no, meter_no, _ANY_CYCLE, variant, name)
        case CountedPer.SESSION | CountedPer.RECORD:
            return None


def count_of_use(
    key: UseKey, of_meter: MeterTerms, *, plan_no: int, fleet_no: int
) -> CountKey | None:
    """Name the count of priced units that cumulative use stands in beside itself; None: there is none.

    Not where a price counts sessions or single records: those are not told by the use.
    """
    subscription_no, meter_no, cycle_start, number = key
    price = of_meter.variants[number].price
    if of_meter.plain or price.counts_alone:
        return None
    variant = _ANY_VARIANT if price.joint else number
    if price.fleet_wide:
        return (-fleet_no, meter_no, cycle_start, variant, f"price:{plan_no}")
    return (subscription_no, meter_no, cycle_start, variant, "price") if price.joint else None


def _connection(record: UsageRecord, session: str | None, meter_no: int) -> CountKey | None:
    if session is None:
        return None
    subscription_no = record.subscription.subscription_no
    return (subscription_no, meter_no, _ANY_CYCLE, _ANY_VARIANT, f"connected:{session}")
