"""From readings to usage records: what was used, in which cycle, zone and band, and at which price.

Readings come in order; each first becomes usage (a delta as it stands, a counter by its growth), then
usage records, each of one cycle, one subscription and one price. Charging and the audit share this.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from metering.period import BillCycle, Calendar, TimeZone, local_day, split_by_time, zone_at
from metering.rating.band import BandTable, Crossing
from metering.rating.counter import CounterEvent, CounterPoint, growth
from metering.rating.guide import ParkReason, Subscription, UsageRecord, guide, whole_record
from metering.rating.increment import Increment, IncrementScope
from metering.rating.plan import DIRECTION, Aggregate, MeterTerms, PlanTerms
from metering.usage import EPOCH_FROM_FIRST, Reading, ReadingKind

EpochKey = tuple[int, int, str]
"""(device_no, meter_no, epoch); the epoch is `boot_no/` and the name that the device gave it."""

_NO_ATTRIBUTES: Mapping[str, str] = {}
_IN_ONE_FLEET = 2
"""So many records of a reading are of one fleet if the first and the last are."""


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


class StoredReading(NamedTuple):
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
        self._bands: dict[tuple[int, str], BandTable] = {}

    @property
    def time_zone(self) -> TimeZone:
        """The fleet's time zone."""
        return self.calendar.zone

    def zone_of(self, terms: PlanTerms) -> TimeZone:
        """Return the time zone of a plan's days and bands: its own, or the fleet's."""
        return terms.time_zone or self.calendar.zone

    def bands_of(self, plan_no: int, terms: PlanTerms, cycle: BillCycle) -> BandTable | None:
        """Return a plan's time bands in its zone in a cycle, within which that does not change."""
        if terms.bands is None:
            return None
        key = (plan_no, zone_at(cycle.start, self.zone_of(terms)))
        if key not in self._bands:
            self._bands[key] = replace(terms.bands, time_zone=key[1])
        return self._bands[key]


def usage_of(stored: StoredReading, epochs: dict[EpochKey, CounterEpoch]) -> Usage:
    """Return what a reading says was used; a counter's point is added to its epoch."""
    reading = stored.reading
    event: CounterEvent | None = None
    if reading.kind is ReadingKind.TOTAL:
        point = stored.point
        before, following = epochs.setdefault(stored.epoch_key, CounterEpoch()).insert(point)
        from_first = reading.epoch == EPOCH_FROM_FIRST
        grown = growth(before, point, following, from_first=from_first)
        uplink = grown.quantities[0] if reading.meter.directed else 0
        quantity, start, event = sum(grown.quantities), grown.since, grown.event
    else:
        start = reading.since or reading.at
        uplink = reading.uplink
        quantity = uplink + reading.downlink if reading.meter.directed else reading.quantity
    return usage_of_quantity(reading, quantity, uplink, start, event)


def usage_of_quantity(
    reading: Reading,
    quantity: int,
    uplink: int,
    start: datetime,
    event: CounterEvent | None = None,
) -> Usage:
    """Return the usage of a reading of which it is known how much was used since when."""
    plain = reading.rat is None and reading.apn is None
    return Usage(
        quantity, uplink, start, reading.at, event, reading.zone, None, None, reading.session,
        reading.packets, None, _NO_ATTRIBUTES if plain else _attributes(reading),
    )  # fmt: skip


def _attributes(reading: Reading) -> Mapping[str, str]:
    """Return what a plan may price a reading by, beside its zone."""
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


def guided_records(
    usage: Usage,
    *,
    meter: str,
    fleet_no: int,
    fleets: Mapping[int, FleetTerms],
    subscriptions: Sequence[Subscription],
    plans: Mapping[int, PlanTerms],
) -> list[UsageRecord] | ParkReason:
    """Split a usage into records, or say why it cannot be; its device is in fleet `fleet_no` now."""
    for each in subscriptions:
        if each.fleet_no != fleet_no:
            return records_across(
                usage, meter=meter, fleets=fleets, subscriptions=subscriptions, plans=plans
            )
    return records_of(
        usage, meter=meter, fleet=fleets[fleet_no], subscriptions=subscriptions, plans=plans
    )


def records_across(
    usage: Usage,
    *,
    meter: str,
    fleets: Mapping[int, FleetTerms],
    subscriptions: Sequence[Subscription],
    plans: Mapping[int, PlanTerms],
) -> list[UsageRecord] | ParkReason:
    """Split a usage as `records_of` does where its device may have moved from fleet to fleet.

    Each fleet's part is a usage of its own, by time; what packets it had count to the last.
    """
    homes = _homes(subscriptions, usage.start, usage.end)
    if not homes or homes[0][0] > usage.start:
        return ParkReason.NO_SUBSCRIPTION
    cuts = [begins for begins, _ in homes[1:]]
    downs = split_by_time(usage.quantity - usage.uplink, usage.start, usage.end, cuts)
    ups = split_by_time(usage.uplink, usage.start, usage.end, cuts)
    found: list[UsageRecord] = []
    for position, ((start, end, down), (_, _, up)) in enumerate(zip(downs, ups, strict=True)):
        fleet_no = homes[position][1]
        part = usage._replace(
            quantity=down + up,
            uplink=up,
            start=start,
            end=end,
            packets=usage.packets if end == usage.end else 0,
        )
        records = records_of(
            part,
            meter=meter,
            fleet=fleets[fleet_no],
            subscriptions=[each for each in subscriptions if each.fleet_no == fleet_no],
            plans=plans,
        )
        if isinstance(records, ParkReason):
            return records
        found += [record._replace(part=len(found) + record.part) for record in records]
    return found


def by_fleet(records: Sequence[UsageRecord]) -> list[tuple[int, Sequence[UsageRecord]]]:
    """Return a reading's records by the fleet in whose time they lie: `(fleet_no, records)`."""
    first = records[0].subscription.fleet_no
    if records[-1].subscription.fleet_no == first and len(records) <= _IN_ONE_FLEET:
        return [(first, records)]
    found: dict[int, list[UsageRecord]] = {}
    for record in records:
        found.setdefault(record.subscription.fleet_no, []).append(record)
    return list(found.items())


def _homes(
    subscriptions: Sequence[Subscription], start: datetime, end: datetime
) -> list[tuple[datetime, int]]:
    """Return from when on in a usage's time the device was subscribed in which fleet."""
    homes: list[tuple[datetime, int]] = []
    for each in subscriptions:
        ended = each.valid_to is not None and each.valid_to <= start
        began = each.valid_from < end or each.valid_from == start
        if began and not ended and (not homes or homes[-1][1] != each.fleet_no):
            homes.append((max(start, each.valid_from), each.fleet_no))
    return homes


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
        bands = fleet.bands_of(record.subscription.plan_no, terms, record.cycle)
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


def _group(
    increment: Increment, usage: Usage, record: UsageRecord, time_zone: TimeZone
) -> str | None:
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
            # A place that is told in digits is a network; a country stands for its networks.
            place = usage.zone if usage.zone and usage.zone.isdecimal() else ""
            return f"network:{usage.network or place or usage.country or ''}:{day:%Y-%m}"
        case IncrementScope.PERIOD:
            return "period"
