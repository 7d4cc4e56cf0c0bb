"""A fleet's accounts while readings are charged to them: the step that charging and audit share.

Readings come in order; each first becomes usage (a delta as it stands, a counter by its growth),
then usage records by cycle and subscription, then charges. The accounts are the one thing here that
changes: their owner loads them, hands them through, and stores them.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from metering.period import Calendar, local_day, split_by_time
from metering.rating.band import BandTable, Crossing
from metering.rating.bucket import Bucket
from metering.rating.charge import ChargeParts, charge
from metering.rating.counter import CounterEvent, CounterPoint, growth
from metering.rating.guide import ParkReason, Subscription, UsageRecord, guide, whole_record
from metering.rating.increment import Increment, IncrementScope
from metering.rating.plan import DIRECTION, Aggregate, MeterTerms, PlanTerms
from metering.rating.price import CountedPer, Price
from metering.usage import Reading, ReadingKind

UseKey = tuple[int, int, datetime, int]
"""(subscription_no, meter_no, cycle_start, variant)"""
EpochKey = tuple[int, int, str]
"""(device_no, meter_no, epoch); the epoch is `boot_no/` and the name that the device gave it."""
CountKey = tuple[int, int, datetime, int, str]
"""(subscription_no, meter_no, cycle_start, variant, name); a whole fleet's stand under −fleet_no."""

_ANY_VARIANT = -1
_ANY_CYCLE = datetime(1970, 1, 1, tzinfo=UTC)
_OF_A_CYCLE = ("max", "period")
_NO_ATTRIBUTES: Mapping[str, str] = {}


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


@dataclass(slots=True)
class CounterEpoch:
    """The counted points of one epoch, ascending, as far as the readings at hand need them.

    Between `points` and whatever lies outside of them nothing is counted that they would need.
    """

    points: list[CounterPoint] = field(default_factory=list)

    def insert(self, point: CounterPoint) -> tuple[CounterPoint | None, CounterPoint | None]:
        """Add a point and return its neighbours, before and after."""
        orders = [known.order for known in self.points[-2:]]
        if not orders or orders[-1] < point.order:
            position = len(self.points)
        else:
            position = bisect_left(self.points, point.order, key=lambda known: known.order)
        before = self.points[position - 1] if position else None
        following = self.points[position] if position < len(self.points) else None
        self.points.insert(position, point)
        return before, following


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReading:
    """A reading as charging finds it."""

    device_no: int
    boot_no: int
    reading: Reading

    @property
    def epoch_key(self) -> EpochKey:
        """Which counter epoch a TOTAL reading belongs to: one of its boot, named or not."""
        epoch = f"{self.boot_no}/{self.reading.epoch or ''}"
        return (self.device_no, self.reading.meter.meter_no, epoch)

    @property
    def point(self) -> CounterPoint:
        """The reading as a point of its counter."""
        reading = self.reading
        directed = reading.meter.directed
        return CounterPoint(
            boot_no=self.boot_no,
            seq=reading.seq,
            at=reading.at,
            values=(reading.uplink, reading.downlink) if directed else (reading.quantity,),
            width=reading.width,
        )


class Usage(NamedTuple):
    """What one reading says was used, over `[start, end)`; `uplink` is part of `quantity`.

    `zone`, `network` (MCC and MNC) and `country` are where, `destination` (E.164) is whereto; `session`,
    `packets` and `attributes` what else it told.
    """

    quantity: int
    uplink: int
    start: datetime
    end: datetime
    event: CounterEvent | None = None
    zone: str | None = None
    network: str | None = None
    country: str | None = None
    session: str | None = None
    packets: int = 0
    destination: str | None = None
    attributes: Mapping[str, str] = _NO_ATTRIBUTES


class FleetTerms:
    """What guiding needs to know of a fleet: its number, its bill cycles, and its time zone."""

    __slots__ = ("_bands", "calendar", "fleet_no")

    def __init__(self, fleet_no: int, calendar: Calendar) -> None:
        self.fleet_no = fleet_no
        self.calendar = calendar
        self._bands: dict[int, BandTable] = {}

    @property
    def time_zone(self) -> str:
        """The fleet's IANA time zone."""
        return self.calendar.time_zone

    def zone_of(self, terms: PlanTerms) -> str:
        """Return the time zone of a plan's days and bands: its own, or the fleet's."""
        return terms.time_zone or self.calendar.time_zone

    def bands_of(self, plan_no: int, terms: PlanTerms) -> BandTable | None:
        """Return a plan's time bands in its zone."""
        if terms.bands is None:
            return None
        if plan_no not in self._bands:
            self._bands[plan_no] = replace(terms.bands, time_zone=self.zone_of(terms))
        return self._bands[plan_no]


class Charge(NamedTuple):
    """One usage record and how it was charged."""

    record: UsageRecord
    parts: ChargeParts


def usage_of(stored: StoredReading, epochs: dict[EpochKey, CounterEpoch]) -> Usage:
    """Return what a reading says was used; a counter's point is added to its epoch."""
    reading = stored.reading
    event: CounterEvent | None = None
    if reading.kind is ReadingKind.TOTAL:
        point = stored.point
        before, following = epochs.setdefault(stored.epoch_key, CounterEpoch()).insert(point)
        grown = growth(before, point, following)
        uplink = grown.quantities[0] if reading.meter.directed else 0
        quantity, start, event = sum(grown.quantities), grown.since, grown.event
    else:
        start = reading.since or reading.at
        uplink = reading.uplink
        quantity = uplink + reading.downlink if reading.meter.directed else reading.quantity
    return Usage(
        quantity,
        uplink,
        start,
        reading.at,
        event,
        zone=reading.zone,
        session=reading.session,
        packets=reading.packets,
        attributes=_attributes(reading),
    )


def _attributes(reading: Reading) -> Mapping[str, str]:
    """Return what a plan may price a reading by, beside its zone."""
    if reading.rat is None and reading.apn is None:
        return _NO_ATTRIBUTES
    given = {"rat": reading.rat, "apn": reading.apn}
    return {name: value for name, value in given.items() if value is not None}


def records_of(
    usage: Usage,
    *,
    meter: str,
    fleet: FleetTerms,
    subscriptions: Sequence[Subscription],
    plans: Mapping[int, PlanTerms],
) -> list[UsageRecord] | ParkReason:
    """Split a usage into records that each have one cycle and one price, or say why it cannot be."""
    record = whole_record(
        usage.quantity, usage.uplink, usage.start, usage.end, fleet.calendar, subscriptions
    )
    if record is not None and meter in plans[record.subscription.plan_no].plain_meters:
        return [record]
    records = guide(
        quantity=usage.quantity,
        uplink=usage.uplink,
        start=usage.start,
        end=usage.end,
        calendar=fleet.calendar,
        subscriptions=subscriptions,
    )
    if isinstance(records, ParkReason):
        return records
    plain = True
    for record in records:
        terms = plans[record.subscription.plan_no]
        if meter not in terms.plain_meters:
            if meter not in terms.meters:
                return ParkReason.NO_PRICE
            plain = False
    return records if plain else _priced(records, usage, meter=meter, fleet=fleet, plans=plans)


def _priced(
    records: Sequence[UsageRecord],
    usage: Usage,
    *,
    meter: str,
    fleet: FleetTerms,
    plans: Mapping[int, PlanTerms],
) -> list[UsageRecord] | ParkReason:
    """Find each record's zone, band, variant and billed quantity; split it where its band changes."""
    pieces: list[UsageRecord] = []
    for record in records:
        terms = plans[record.subscription.plan_no]
        placed = record._replace(zone=_zone_of(usage, terms))
        bands = fleet.bands_of(record.subscription.plan_no, terms)
        pieces += _by_band(placed, bands, usage.start)
    found: list[UsageRecord] = []
    for piece in _shared_out(pieces, usage, meter, plans):
        terms = plans[piece.subscription.plan_no]
        of_meter = terms.meters[meter]
        day = local_day(piece.start, fleet.zone_of(terms))
        for part, attributes in _by_direction(piece, usage, of_meter):
            variant = of_meter.variant_of(piece.zone, piece.band, attributes, day)
            if variant is None:
                return ParkReason.NO_PRICE
            found.append(part._replace(part=len(found), variant=variant))
    return _billed(found, usage, meter=meter, fleet=fleet, plans=plans)


def _zone_of(usage: Usage, terms: PlanTerms) -> str | None:
    if terms.zones is None:
        return usage.zone
    return terms.zones.zone_of(
        zone=usage.zone,
        network=usage.network,
        country=usage.country,
        destination=usage.destination,
    )


def _billed(
    found: list[UsageRecord],
    usage: Usage,
    *,
    meter: str,
    fleet: FleetTerms,
    plans: Mapping[int, PlanTerms],
) -> list[UsageRecord]:
    """Find what is billed of each record of a reading, or the group on which it depends."""
    raw_before = 0
    for position, record in enumerate(found):
        terms = plans[record.subscription.plan_no]
        variant = terms.meters[meter].variants[record.variant]
        raw = record.quantity
        if variant.overhead and position == len(found) - 1:
            raw += variant.overhead.per_packet * usage.packets
            raw += variant.overhead.per_record if usage.quantity else 0
        increment = variant.increment
        billed, group = raw, None
        if terms.meters[meter].aggregate is Aggregate.MAX:
            group = "max"
        elif increment:
            group = _group(increment, usage, record, fleet.zone_of(terms))
            if group is None:
                billed = increment.billed(raw_before + raw) - increment.billed(raw_before)
        if group is None:
            raw_before += raw
        found[position] = record._replace(raw=raw, billed=billed, group=group)
    return found


def _by_band(record: UsageRecord, bands: BandTable | None, start: datetime) -> list[UsageRecord]:
    """Split a record where its time band changes, unless the reading's start decides for all of it."""
    if bands is None:
        return [record]
    if bands.crossing is Crossing.START:
        return [record._replace(band=bands.band_at(start))]
    cuts = bands.split(record.start, record.end) if record.start < record.end else []
    edges = [record.start, *cuts, record.end]
    return [
        record._replace(start=left, end=right, band=bands.band_at(left))
        for left, right in pairwise(edges)
    ]


def _shared_out(
    pieces: Sequence[UsageRecord], usage: Usage, meter: str, plans: Mapping[int, PlanTerms]
) -> list[UsageRecord]:
    """Give each piece its share of the usage, by time; of a capacity each has the whole."""
    if len(pieces) == 1:
        return list(pieces)
    cuts = [piece.start for piece in pieces[1:]]
    downs = split_by_time(usage.quantity - usage.uplink, usage.start, usage.end, cuts)
    ups = split_by_time(usage.uplink, usage.start, usage.end, cuts)
    found: list[UsageRecord] = []
    for piece, (_, _, down), (_, _, up) in zip(pieces, downs, ups, strict=True):
        quantity, uplink = down + up, up
        if plans[piece.subscription.plan_no].meters[meter].aggregate is Aggregate.MAX:
            quantity, uplink = usage.quantity, usage.uplink
        found.append(piece._replace(quantity=quantity, uplink=uplink))
    return found


def _by_direction(
    record: UsageRecord, usage: Usage, of_meter: MeterTerms
) -> list[tuple[UsageRecord, Mapping[str, str]]]:
    """Split a record into uplink and downlink where the plan prices them apart."""
    if not of_meter.directed:
        return [(record, usage.attributes)]
    up, down = record.uplink, record.quantity - record.uplink
    return [
        (record._replace(quantity=quantity, uplink=of_part), {**usage.attributes, DIRECTION: name})
        for name, quantity, of_part in (("uplink", up, up), ("downlink", down, 0))
        if quantity or not record.quantity
    ]


def _group(increment: Increment, usage: Usage, record: UsageRecord, time_zone: str) -> str | None:
    """Name what a record is rounded together with; None: with the rest of its reading alone."""
    day = local_day(record.start, time_zone)
    match increment.scope:
        case IncrementScope.RECORD:
            return None
        case IncrementScope.SESSION:
            return None if usage.session is None else f"session:{usage.session}"
        case IncrementScope.DEVICE_DAY:
            return f"day:{day}"
        case IncrementScope.DEVICE_MONTH:
            return f"month:{day:%Y-%m}"
        case IncrementScope.DEVICE_NETWORK_MONTH:
            # A place that is told in digits is a network.
            place = usage.zone if usage.zone and usage.zone.isdecimal() else ""
            return f"network:{usage.network or place}:{day:%Y-%m}"
        case IncrementScope.PERIOD:
            return "period"


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


def _connection(record: UsageRecord, session: str | None, meter_no: int) -> CountKey | None:
    if session is None:
        return None
    subscription_no = record.subscription.subscription_no
    return (subscription_no, meter_no, _ANY_CYCLE, _ANY_VARIANT, f"connected:{session}")
