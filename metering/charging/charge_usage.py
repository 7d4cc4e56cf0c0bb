"""The charging transaction: claimed readings become charges, and everything they change, at once."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from metering.charging.open_cycle import open_cycle
from metering.charging.thresholds import ChargedUsage, RaisedAlert, count_usage
from metering.charging.uniform_usage import Terms, charge_uniformly, charged_usage, part
from metering.errors import FleetmeterError
from metering.period import BillCycle
from metering.rating.account import Charge, CountKey, UseKey, charge_records, count_keys
from metering.rating.guide import ParkReason, Subscription, UsageRecord
from metering.rating.plan import PlanTerms
from metering.rating.record import (
    CounterEpoch,
    EpochKey,
    FleetTerms,
    StoredReading,
    Usage,
    by_fleet,
    guided_records,
    usage_of,
)
from metering.store.accounts import (
    CounterEnds,
    Loaded,
    Wanted,
    counted_neighbours,
    load_accounts,
    load_counters,
    store_accounts,
    store_counters,
)
from metering.store.balances import Owner
from metering.store.charges import (
    ChargedReading,
    ParkedReading,
    add_to_hours,
    store_anomalies,
    store_charges,
    store_parked,
)
from metering.store.closing import CycleKey, add_late_records
from metering.store.connection import UNREACHABLE, Connection
from metering.store.cycles import opened_cycles
from metering.store.leases import Leases
from metering.store.registry import (
    Fleet,
    calendar_of,
    fleets_of_devices,
    plan_terms,
    subscriptions_of_devices,
    try_lock_shard,
)
from metering.store.work import (
    QueuedReading,
    WorkItem,
    claim,
    next_run_no,
    queued_columns,
    queued_reading,
    queued_rows,
)
from metering.usage import Meter, ReadingKind


@dataclass(slots=True, kw_only=True)
class RunOutcome:
    """What a charging transaction did, once it has committed."""

    readings: int
    published_at: AbstractSet[datetime | None]
    """When their messages were published, where they said so."""
    charges: int = 0
    parked: int = 0
    late_records: int = 0
    """Usage records of cycles that were closed."""
    alerts: list[RaisedAlert] = field(default_factory=list)


class RunFailed(FleetmeterError):
    """Claimed work could not be charged, which its `__cause__` tells; it is queued as before."""

    def __init__(self, items: Sequence[WorkItem]) -> None:
        super().__init__(f"could not charge work items {[item.work_item_no for item in items]}")
        self.items = items


class ShardBusy(FleetmeterError):
    """Somebody else charges a fleet in which a device was before; the run may be tried again."""


@dataclass(slots=True)
class _Guided:
    """A reading on its way through a run: its usage, then its records or why it has none.

    `fleet` is the one in which its device is now.
    """

    queued: QueuedReading
    fleet: Fleet
    usage: Usage
    records: list[UsageRecord] | ParkReason
    charges: list[Charge] = field(default_factory=list)


async def charge_usage(
    connection: Connection, *, readings_max: int, now: datetime, leases: Leases | None = None
) -> RunOutcome | None:
    """Charge some of what is queued, in one transaction; None when nothing is to be had.

    Only shards whose lease is still that of `leases` are charged; without it, any that nobody owns.
    Charges, balances, counters, rollups and the end of the work items commit together or not at
    all. Raises `UNREACHABLE` or `ShardBusy` when the run may simply be tried again, and `RunFailed`
    when what was claimed could not be charged; after any of them nothing was charged.
    """
    items: list[WorkItem] = []
    try:
        async with connection.transaction():
            items = await claim(connection, readings_max=readings_max, leases=leases)
            return await _charge_items(connection, items, now=now) if items else None
    except (*UNREACHABLE, ShardBusy):
        raise
    except Exception as error:
        # Whatever it is, a fault of the data or of this program: its work items are known by it.
        if not items:
            raise
        raise RunFailed(items) from error


async def _charge_items(
    connection: Connection, items: Sequence[WorkItem], *, now: datetime
) -> RunOutcome:
    queued, received_at, run_no = await queued_columns(connection, items)
    # A reading that came while the run was waiting for its shards was received after `now`.
    now = max(now, received_at)
    devices = np.unique(queued.device_no).tolist()
    fleets, members, counted = await fleets_of_devices(connection, devices)
    subscriptions = await subscriptions_of_devices(connection, devices)
    terms = Terms(
        fleets=fleets,
        members=members,
        of_fleets={
            number: FleetTerms(number, calendar_of(fleet)) for number, fleet in fleets.items()
        },
        subscriptions=subscriptions,
        plans=await _plans_of(connection, subscriptions),
    )
    outcome = RunOutcome(readings=len(queued), published_at=queued.published())
    parted = await part(connection, queued, terms, {item.shard_no for item in items})
    if parted.lines:
        charged, late = await charge_uniformly(connection, run_no, parted, terms, now=now)
        outcome.charges += parted.readings
        outcome.late_records += late
        if counted:  # the fleets of uniform usage were owned before it was read who has any
            usage = (ChargedUsage(*each) for each in charged_usage(parted, charged, counted))
            await _count_usage(connection, run_no, usage, terms, outcome, now=now)
    if parted.readings < len(queued):
        whose = parted.whose
        rest = [
            row for row in await queued_rows(connection, items) if (row[2], row[7]) not in whose
        ]
        readings = [queued_reading(row) for row in rest]
        await _charge_readings(connection, readings, items, terms, outcome, now=now)
    return outcome


async def _count_usage(
    connection: Connection,
    run_no: int,
    charged: Iterable[ChargedUsage],
    terms: Terms,
    outcome: RunOutcome,
    *,
    now: datetime,
) -> None:
    outcome.alerts += await count_usage(
        connection,
        run_no,
        charged,
        fleets=terms.fleets,
        device_nos=terms.members,
        plans=terms.plans,
        now=now,
    )


async def _charge_readings(
    connection: Connection,
    readings: Sequence[QueuedReading],
    items: Sequence[WorkItem],
    terms: Terms,
    outcome: RunOutcome,
    *,
    now: datetime,
) -> None:
    """Charge readings one by one, as the core does, in one run or several."""
    epochs = await _load_epochs(connection, readings, items)
    guided = [_guide(each, terms, epochs) for each in readings]
    touched = _touched_by(guided)
    await _lock_other_shards(connection, touched, terms.fleets, items)
    stretches = await _stretches(connection, guided, touched, terms.fleets)
    for stretch in stretches:
        for fleet, cycle in stretch.opening:
            await open_cycle(connection, fleet, cycle, now=now)
        if len(stretches) > 1:
            touched = _touched_by(stretch.guided)
        run_no, late = await _charge_stretch(
            connection, stretch.guided, touched, terms.plans, now=now
        )
        outcome.late_records += late
        usage = (ChargedUsage(each.queued, each.charges) for each in stretch.guided)
        await _count_usage(connection, run_no, usage, terms, outcome, now=now)
    if epochs:
        await store_counters(connection, _ends(epochs))
    outcome.charges += sum(len(each.charges) for each in guided)
    outcome.parked += sum(isinstance(each.records, ParkReason) for each in guided)


async def _plans_of(
    connection: Connection, subscriptions: dict[int, list[Subscription]]
) -> dict[int, PlanTerms]:
    plan_nos = {each.plan_no for of_device in subscriptions.values() for each in of_device}
    return await plan_terms(connection, sorted(plan_nos))


async def _load_epochs(
    connection: Connection, readings: Sequence[QueuedReading], items: Sequence[WorkItem]
) -> dict[EpochKey, CounterEpoch]:
    """Load the counted points next to which this run's cumulative readings will stand."""
    totals: dict[EpochKey, list[StoredReading]] = {}
    for each in readings:
        if each.stored.reading.kind is ReadingKind.TOTAL:
            totals.setdefault(each.stored.epoch_key, []).append(each.stored)
    if not totals:
        return {}
    known = await load_counters(connection, sorted(totals))
    claimed = [(item.shard_no, item.batch_no) for item in items]
    epochs: dict[EpochKey, CounterEpoch] = {}
    for key, ends in known.items():
        points = {ends.first.order: ends.first, ends.last.order: ends.last}
        for stored in totals[key]:
            if ends.first.order < stored.point.order < ends.last.order:
                for point in await counted_neighbours(connection, key, stored.point, claimed):
                    points[point.order] = point
        epochs[key] = CounterEpoch([points[order] for order in sorted(points)])
    return epochs


def _guide(queued: QueuedReading, terms: Terms, epochs: dict[EpochKey, CounterEpoch]) -> _Guided:
    stored = queued.stored
    usage = usage_of(stored, epochs)
    fleet = terms.fleets[terms.members[stored.device_no]]
    records = guided_records(
        usage,
        meter=stored.reading.meter.meter,
        fleet_no=fleet.fleet_no,
        fleets=terms.of_fleets,
        subscriptions=terms.subscriptions[stored.device_no],
        plans=terms.plans,
    )
    return _Guided(queued, fleet, usage, records)


@dataclass(slots=True)
class _Touched:
    """Usage records that are alike: of one subscription, cycle, meter and price; how many they are."""

    record: UsageRecord
    """The first of them."""
    meter: Meter
    records: int = 0

    @property
    def cycle_key(self) -> CycleKey:
        """The fleet and the cycle in which they lie."""
        return (self.record.subscription.fleet_no, self.record.cycle.start)


def _touched_by(guided: Iterable[_Guided]) -> list[_Touched]:
    """Return what the records of some readings touch, each once, in the order in which it comes."""
    found: dict[tuple[int, int, int, int], _Touched] = {}
    for each in guided:
        if isinstance(each.records, ParkReason):
            continue
        meter = each.queued.stored.reading.meter
        for record in each.records:
            key = (id(record.subscription), id(record.cycle), meter.meter_no, record.variant)
            touched = found.get(key)
            if touched is None:
                touched = found[key] = _Touched(record, meter)
            touched.records += 1
    return list(found.values())


async def _lock_other_shards(
    connection: Connection,
    touched: Iterable[_Touched],
    fleets: Mapping[int, Fleet],
    items: Sequence[WorkItem],
) -> None:
    """Own the shards of fleets that devices of this run have left, which late usage still concerns."""
    concerned = {fleets[each.record.subscription.fleet_no].shard_no for each in touched}
    for shard_no in sorted(concerned - {item.shard_no for item in items}):
        if not await try_lock_shard(connection, shard_no):
            raise ShardBusy(f"shard {shard_no} is being charged by another worker")


@dataclass(slots=True)
class _Stretch:
    """Readings that are charged together, and the cycles that are opened before them."""

    opening: list[tuple[Fleet, BillCycle]] = field(default_factory=list)
    guided: list[_Guided] = field(default_factory=list)


async def _stretches(
    connection: Connection,
    guided: list[_Guided],
    touched: Iterable[_Touched],
    by_no: Mapping[int, Fleet],
) -> list[_Stretch]:
    """Part readings where usage is what comes first in a cycle, so that it must be opened.

    What a fleet used before is charged before its cycle is opened: what rolls over depends on it.
    """
    cycles = {each.cycle_key for each in touched}
    unopened = cycles - (await opened_cycles(connection, cycles)).keys()
    if not unopened:
        return [_Stretch(guided=guided)]
    stretches = [_Stretch()]
    fleets: set[int] = set()
    for each in guided:
        new = {key: cycle for key, cycle in _cycles_touched(each).items() if key in unopened}
        if any(fleet_no in fleets for fleet_no, _ in new):
            stretches.append(_Stretch())
            fleets.clear()
        stretches[-1].opening += [(by_no[key[0]], new[key]) for key in sorted(new)]
        stretches[-1].guided.append(each)
        unopened -= new.keys()
        if not isinstance(each.records, ParkReason):
            fleets.update(record.subscription.fleet_no for record in each.records)
    return stretches


def _cycles_touched(guided: _Guided) -> dict[CycleKey, BillCycle]:
    if isinstance(guided.records, ParkReason):
        return {}
    return {
        (record.subscription.fleet_no, record.cycle.start): record.cycle
        for record in guided.records
    }


async def _charge_stretch(
    connection: Connection,
    guided: Sequence[_Guided],
    touched: Sequence[_Touched],
    plans: Mapping[int, PlanTerms],
    *,
    now: datetime,
) -> tuple[int, int]:
    """Charge readings as one run; opening a cycle was one of its own before it.

    Returns the run's number, and how many usage records were of cycles that are closed.
    """
    run_no = await next_run_no(connection)
    if touched:
        wanted = _accounts_touched(guided, touched, plans)
        loaded = await load_accounts(connection, wanted, plans)
        _fill_lots(loaded, touched, plans)
        for each in guided:
            _charge(each, plans, loaded)
        await store_accounts(connection, loaded, wanted)
    await _store_run(connection, run_no, guided, now=now)
    records: Counter[CycleKey] = Counter()
    for alike in touched:
        records[alike.cycle_key] += alike.records
    return run_no, await add_late_records(connection, records) if records else 0


def _accounts_touched(
    guided: Iterable[_Guided], touched: Iterable[_Touched], plans: Mapping[int, PlanTerms]
) -> Wanted:
    """Return what the run's records are charged to."""
    uses: dict[UseKey, int] = {}
    meters: dict[tuple[int, int], tuple[int, Subscription]] = {}
    owners: set[Owner] = set()
    counted = False
    for each in touched:
        record, meter_no = each.record, each.meter.meter_no
        subscription = record.subscription
        number, fleet_no = subscription.subscription_no, subscription.fleet_no
        of_meter = plans[subscription.plan_no].meters[each.meter.meter]
        owners.add((fleet_no, subscription.device_no, meter_no))
        uses[number, meter_no, record.cycle.start, record.variant] = fleet_no
        if of_meter.allowances:
            meters[number, meter_no] = (fleet_no, subscription)
        counted = counted or not of_meter.plain
    records = [each.records for each in guided if not isinstance(each.records, ParkReason)]
    return Wanted(
        uses=uses,
        counts=_counts_touched(guided, plans) if counted else {},
        meters=meters,
        first=min(each[0].start for each in records),
        last=max(each[-1].start for each in records),
        owners=owners,
    )


def _counts_touched(
    guided: Iterable[_Guided], plans: Mapping[int, PlanTerms]
) -> dict[CountKey, int]:
    """Return the counts beside the use itself that the run's records are charged to."""
    counts: dict[CountKey, int] = {}
    for each in guided:
        if isinstance(each.records, ParkReason):
            continue
        meter = each.queued.stored.reading.meter
        for fleet_no, records in by_fleet(each.records):
            keys = count_keys(
                records,
                each.usage,
                meter=meter.meter,
                meter_no=meter.meter_no,
                fleet_no=fleet_no,
                plans=plans,
            )
            counts |= dict.fromkeys(keys, fleet_no)
    return counts


def _fill_lots(loaded: Loaded, touched: Iterable[_Touched], plans: Mapping[int, PlanTerms]) -> None:
    """Put what is drawn from into the accounts."""
    for each in touched:
        loaded.lots.fill(
            loaded.accounts,
            (each.record,),
            meter=each.meter.meter,
            meter_no=each.meter.meter_no,
            fleet_no=each.record.subscription.fleet_no,
            plans=plans,
        )


def _charge(guided: _Guided, plans: Mapping[int, PlanTerms], loaded: Loaded) -> None:
    if isinstance(guided.records, ParkReason):
        return
    meter = guided.queued.stored.reading.meter
    for fleet_no, records in by_fleet(guided.records):
        guided.charges += charge_records(
            records,
            guided.usage,
            meter=meter.meter,
            meter_no=meter.meter_no,
            fleet_no=fleet_no,
            plans=plans,
            accounts=loaded.accounts,
        )


async def _store_run(
    connection: Connection, run_no: int, guided: Sequence[_Guided], *, now: datetime
) -> None:
    charged: list[ChargedReading] = []
    parked: list[ParkedReading] = []
    for position, each in enumerate(guided):
        stored = each.queued.stored
        if isinstance(each.records, ParkReason):
            parked.append(
                ParkedReading(
                    run_no=run_no,
                    run_position=position,
                    fleet_no=each.fleet.fleet_no,
                    stored=stored,
                    usage=each.usage,
                    reason=each.records,
                )
            )
        else:
            charged.append(ChargedReading(run_no, position, stored, each.charges))
    if charged:
        await store_charges(connection, charged, now=now)
        await add_to_hours(connection, charged)
    if parked:
        await store_parked(connection, parked, now=now)
    anomalies = [
        (each.queued.stored, each.usage.event.value) for each in guided if each.usage.event
    ]
    if anomalies:
        await store_anomalies(connection, anomalies, now=now)


def _ends(epochs: dict[EpochKey, CounterEpoch]) -> dict[EpochKey, CounterEnds]:
    return {
        key: CounterEnds(first=epoch.points[0], last=epoch.points[-1])
        for key, epoch in epochs.items()
    }
