"""The audit: readings, charges, balances and rollups replayed from nothing and compared."""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from itertools import zip_longest
from typing import TypeVar

from metering.insight.account_audit import account_differences
from metering.insight.bill_audit import bill_differences, number_differences
from metering.insight.closing_audit import closed_cycle_differences
from metering.insight.operations import operation_differences
from metering.insight.thresholds import audit_thresholds
from metering.period import BillCycle
from metering.rating.account import CountKey
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.grants import cycle_grants
from metering.rating.guide import ParkReason
from metering.rating.membership import Member
from metering.rating.record import EpochKey
from metering.rating.reservation import ended_as
from metering.replay.load import load_replay
from metering.replay.plain import NotSums, PlainReplay
from metering.replay.replay import Outcome, Replay
from metering.store.accounts import CounterEnds
from metering.store.audit import (
    Rare,
    StoredReservation,
    all_fleets,
    charge_count,
    entered_sums,
    missing_states,
    rare_of_fleets,
    stored_operations,
    stored_reservations,
    unbalanced_entries,
    unequal_states,
    unequal_subscriptions,
)
from metering.store.bills import allow_for_size
from metering.store.charges import (
    DRAW_BUCKETS,
    DRAW_QUANTITIES,
    FROM_ALLOWANCE,
    FROM_POOL,
    PART,
    ChargeColumns,
    charge_columns,
)
from metering.store.closing_audit import audited_cycles
from metering.store.connection import Connection
from metering.store.corrections import last_corrected, unequal_corrections
from metering.store.cycles import fleet_members
from metering.store.history import EntryKind, RunStep, StoredBucket, StoredEntry
from metering.store.kept_sums import (
    hours_of_fleet,
    stored_counters,
    stored_counts,
    stored_hours,
    stored_hours_of_fleet,
    stored_uses,
)
from metering.store.messages import batches_not_kept, compare_messages, days_without_messages
from metering.store.registry import Fleet, fleet_rule
from metering.store.tally import tally
from metering.store.usage_sums import place_counts, share_places
from metering.usage import METERS_BY_NO

_UNBALANCED_MAX = 20
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(slots=True, kw_only=True)
class AuditResult:
    """What an audit counted and every difference that it found."""

    readings: int = 0
    charges: int = 0
    parked: int = 0
    queued: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """One line: equal, with the counts, or how many differences there are."""
        if self.differences:
            count = len(self.differences)
            return f"audit: {count} difference{'' if count == 1 else 's'}"
        counts = [f"{self.readings} readings", f"{self.charges} charges"]
        counts += [f"{self.parked} parked"] if self.parked else []
        counts += [f"{self.queued} queued"] if self.queued else []
        return f"audit: equal ({', '.join(counts)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class _AuditedFleet:
    """How many charges a fleet has, and how what is kept of it differs from its replay."""

    charges: int
    differences: list[str]
    summed: Mapping[int, int]
    """By boot, how many readings were found to be charged when their charges were added up."""


async def audit_fleet(connection: Connection, fleet: Fleet) -> AuditResult:
    """Replay one fleet from nothing and compare all that charging keeps of it.

    `connection`'s transaction must read from one snapshot, so that a live system can be audited.
    """
    known = await _known(connection, fleet.fleet_no)
    audited = await _audit_fleet(connection, fleet, known)
    result = await _fates(connection, fleet.fleet_no, audited.summed)
    differences = [*audited.differences, *await _strangers(connection, fleet, audited.charges)]
    result.differences += [f"fleet {fleet.fleet_id}: {each}" for each in differences]
    return result


async def audit_database(
    connection: Connection, *, messages_kept_since: datetime | None = None
) -> AuditResult:
    """Replay every fleet from nothing and compare all that charging keeps.

    `connection`'s transaction must read from one snapshot, as for one fleet. What was received since
    `messages_kept_since` should have its message; None: messages are not kept.
    """
    replayed, summed = dict[int, int](), Counter[int]()
    differences: list[str] = []
    fleets = await all_fleets(connection)
    known = await _known(connection, None)
    for fleet in fleets:
        audited = await _audit_fleet(connection, fleet, known)
        replayed[fleet.fleet_no] = audited.charges
        summed.update(audited.summed)
        differences += [f"fleet {fleet.fleet_id}: {each}" for each in audited.differences]
    result = await _fates(connection, None, summed)
    result.differences += differences
    result.differences += await number_differences(connection)
    compared = await compare_messages(connection)
    result.differences += compared.differences
    if messages_kept_since is not None:
        result.differences += await days_without_messages(connection, since=messages_kept_since)
        result.differences += await batches_not_kept(
            connection, since=messages_kept_since, compared=compared
        )
    total = sum(replayed.values())
    if total != result.charges:  # else every charge was found in its own fleet
        for fleet in fleets:
            strange = await _strangers(connection, fleet, replayed[fleet.fleet_no])
            result.differences += [f"fleet {fleet.fleet_id}: {each}" for each in strange]
        result.differences.append(f"{result.charges} charges, of which {total} belong to a fleet")
    return result


async def _strangers(connection: Connection, fleet: Fleet, charges: int) -> list[str]:
    """Say whether a fleet has other charges than those of its devices."""
    kept = await charge_count(connection, fleet.fleet_no)
    if kept == charges:
        return []
    return [f"{kept} charges, of which {charges} are of devices that are or were in it"]


async def _fates(
    connection: Connection, fleet_no: int | None, charged: Mapping[int, int]
) -> AuditResult:
    """Hold each reading to one fate, its charge to its corrections, and arrivals to what is kept.

    `charged` is by boot how many readings are known to be charged.
    """
    counted = await tally(connection, fleet_no, charged)
    result = AuditResult(
        readings=counted.readings,
        charges=counted.charges,
        parked=counted.parked,
        queued=counted.queued,
    )
    result.differences += [
        f"reading boot {boot_no} seq {seq} is stored, but not charged, parked or queued"
        for boot_no, seq in counted.unaccounted
    ]
    result.differences += [
        f"reading boot {boot_no} seq {seq} is both charged and {fate}"
        for fate, names in (
            ("parked", counted.charged_and_parked),
            ("queued", counted.charged_and_queued),
        )
        for boot_no, seq in names
    ]
    result.differences += [
        f"boot {boot_no}: {arrived} sequence numbers arrived, {kept} are stored or rejected"
        for boot_no, arrived, kept in counted.unequal_arrivals
    ]
    result.differences += [
        f"boot {boot_no}: kept as measured and complete up to {kept}, its readings say {stored}"
        for boot_no, kept, stored in counted.unequal_watermarks
    ]
    result.differences += [
        f"reading boot {boot_no} seq {seq}: its corrections in fleet {fleet_no} are not what it is"
        " charged now less what it was charged first"
        for boot_no, seq, fleet_no in await unequal_corrections(connection, fleet_no)
    ]
    result.differences += [
        f"device {device_id}: from {at.isoformat()} on it is kept as {kept}, it was said to be {said}"
        for device_id, at, kept, said in await unequal_states(connection, fleet_no)
    ]
    result.differences += [
        f"device {device_id}: {count} of {last} entries of its states are there"
        for device_id, last, count in await missing_states(connection, fleet_no)
    ]
    result.differences += [
        f"device {device_id}: subscription {number} is kept as {kept}, it was said to be {said}"
        for device_id, number, kept, said in await unequal_subscriptions(connection, fleet_no)
    ]
    if counted.stored_twice:
        result.differences.append(f"{counted.stored_twice} readings are stored more than once")
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is asked of all fleets at once: how many places charges have, and what few fleets have."""

    places: Mapping[int, int]
    rare: Mapping[int, AbstractSet[Rare]]
    unbalanced: Mapping[int, Sequence[tuple[int, int]]]
    """Entries that do not sum to zero, and what they sum to."""


async def _known(connection: Connection, fleet_no: int | None) -> _Known:
    return _Known(
        places=await place_counts(connection, fleet_no),
        rare=await rare_of_fleets(connection, fleet_no),
        unbalanced=await unbalanced_entries(connection, fleet_no),
    )


async def _audit_fleet(connection: Connection, fleet: Fleet, known: _Known) -> _AuditedFleet:
    """Compare what is kept of a fleet with its replay: by sums first, and in order if they differ.

    Sums do not tell whether each reading has a place of its own.
    """
    rare = known.rare.get(fleet.fleet_no, frozenset())
    if Rare.LARGE in rare:
        await allow_for_size(connection, fleet.fleet_no)
    try:
        audited = await _replayed_fleet(connection, fleet, known, sums=True)
    except NotSums:
        return await _replayed_fleet(connection, fleet, known, sums=False)
    if not audited.summed or not (
        audited.differences
        or (
            known.places.get(fleet.fleet_no, 0) != audited.charges
            and await share_places(connection, fleet.fleet_no)
        )
    ):
        return audited
    return await _replayed_fleet(connection, fleet, known, sums=False)


async def _replayed_fleet(
    connection: Connection, fleet: Fleet, known: _Known, *, sums: bool
) -> _AuditedFleet:
    rare = known.rare.get(fleet.fleet_no, frozenset())
    replay = await load_replay(connection, fleet, top_ups=Rare.TOP_UPS in rare)
    differences = replay.differences
    charges = 0
    corrected: Mapping[int, int] | None = None
    drawn: Counter[int] = Counter()
    unbalanced: list[str] = []
    plain = PlainReplay(replay)
    async for step in plain.steps_beside(connection, sums=sums, uneven=Rare.UNEVEN in rare):
        here = [each for each in step.charges if each[1] == fleet.fleet_no]
        charges += len(here)
        unbalanced += _fold(step, here, drawn)
        outcome = replay.step(step)
        difference = _step_difference(step, here, outcome)
        if difference is None and outcome is not None and step.parked is not None:
            if corrected is None:
                corrected = await last_corrected(connection, fleet.fleet_no)
            at_home = replay.homes.get(outcome.device_no) == fleet.fleet_no
            if at_home and corrected.get(outcome.device_no, 0) <= step.run_no:
                difference = _parking_difference(step.parked[0], outcome)
        if difference:
            differences.append(f"reading boot {step.boot_no} seq {step.seq} {difference}")
    charges += plain.charges
    drawn.update(plain.drawn)
    replay.finish()
    differences += [
        f"run {each.place[0]}: {each.kind} of bucket {each.bucket_no} as {each.cycle_start} begins"
        f" is {each.entered}, replay says {each.due}"
        for each in replay.rolled_otherwise
    ]
    differences += _unequal_folds(
        replay.stored_buckets, await entered_sums(connection, fleet.fleet_no), drawn
    )
    differences += [
        f"{transaction} over its accounts, not to zero"
        for transaction in (
            *(
                f"entry {number} sums to {quantity}"
                for number, quantity in known.unbalanced.get(fleet.fleet_no, ())
            ),
            *unbalanced[:_UNBALANCED_MAX],
        )
    ]
    operations = []
    if Rare.OPERATIONS in rare:
        operations = await stored_operations(connection, fleet.fleet_no)
    differences += operation_differences(operations, replay.entries, replay.top_ups)
    differences += [
        f"reservation {number} released {kept} of bucket {bucket_no}, replay says {due}"
        for number, bucket_no, kept, due in replay.released_otherwise
    ]
    await _compare_kept_sums(connection, fleet, replay, rare)
    members = await fleet_members(connection, fleet.fleet_no, begins=None, ends=None)
    cycles = await audited_cycles(connection, fleet.fleet_no)
    for each in cycles:
        _compare_grants(fleet, each.cycle, members, replay)
    used_in = {cycle_start for _, _, cycle_start, _ in replay.accounts.uses}
    differences += await closed_cycle_differences(
        connection, fleet, members, cycles, used_in=used_in
    )
    differences += await _documents_and_promises(connection, fleet, replay, rare)
    return _AuditedFleet(charges=charges, differences=differences, summed=plain.summed)


async def _documents_and_promises(
    connection: Connection, fleet: Fleet, replay: Replay, rare: AbstractSet[Rare]
) -> list[str]:
    """Hold what was billed, paid, alerted and promised to what it must be."""
    differences: list[str] = []
    if Rare.BILLS in rare:
        differences += await bill_differences(connection, fleet)
    if Rare.ACCOUNTS in rare:
        differences += await account_differences(connection, fleet)
    if Rare.THRESHOLDS in rare:
        differences += await audit_thresholds(connection, fleet)
    reservations: list[StoredReservation] = []
    if Rare.RESERVATIONS in rare:
        reservations = await stored_reservations(connection, fleet.fleet_no)
    differences += _compare_reservations(reservations, replay)
    return differences


def _fold(step: RunStep, here: Sequence[ChargeColumns], drawn: Counter[int]) -> list[str]:
    """Add up what charges drew from buckets; return those that drew something else than they say."""
    unbalanced: list[str] = []
    for charge in here:
        buckets, quantities = charge[DRAW_BUCKETS] or (), charge[DRAW_QUANTITIES] or ()
        for number, quantity in zip_longest(buckets, quantities):
            drawn[number] += quantity or 0
        consumed = max(0, charge[FROM_ALLOWANCE] + charge[FROM_POOL])
        if consumed != sum(quantities) * bool(buckets):
            unbalanced.append(
                f"charge boot {step.boot_no} seq {step.seq} part {charge[PART]}"
                f" sums to {consumed - sum(quantities) * bool(buckets)}"
            )
    return unbalanced


def _unequal_folds(
    buckets: Mapping[int, StoredBucket], entered: Mapping[int, int], drawn: Mapping[int, int]
) -> list[str]:
    """Say which buckets' cached sums differ from the fold over their postings: entries and draws."""
    found: list[str] = []
    for number, bucket in buckets.items():
        *_, granted, used, _, _ = bucket.row
        fold = (entered.get(number, 0), drawn.get(number, 0))
        if (granted, used) != fold:
            found.append(
                f"bucket {number}: granted {granted}, used {used};"
                f" its postings sum to {fold[0]}, {fold[1]}"
            )
    return found


def _step_difference(
    step: RunStep, here: Sequence[ChargeColumns], outcome: Outcome | None
) -> str | None:
    """Say how what became of a reading differs from what a replay says."""
    if outcome is None:
        return "is charged but not stored"
    if step.parked is not None:
        usage = outcome.usage
        expected = (usage.quantity, usage.uplink, usage.start, usage.end)
        if step.parked[1:] != expected:
            return f"is parked as {step.parked[1:]}, replay says {expected}"
        return None
    if isinstance(outcome.charges, ParkReason):
        return f"is charged, replay says {outcome.charges.value}"
    assert step.stored is not None  # noqa: S101 - else there is no outcome
    meter_no = step.stored.reading.meter.meter_no
    again = [charge_columns(each, meter_no) for each in outcome.charges]
    return None if here == again else f"is charged as {here}, replay says {again}"


def _parking_difference(reason: str, outcome: Outcome) -> str | None:
    """Say how the terms, which are as they were when a reading was parked, say something else."""
    if outcome.stays_parked:
        return f"is parked as {reason}, replay says that it is charged"
    if outcome.charges != reason:
        return f"is parked as {reason}, replay says {outcome.charges}"
    return None


async def _compare_kept_sums(
    connection: Connection, fleet: Fleet, replay: Replay, rare: AbstractSet[Rare]
) -> None:
    """Compare cumulative use, counts, balances, rollups and counters with the replayed ones."""
    differences = replay.differences
    accounts = replay.accounts
    differences += _unequal("use", await stored_uses(connection, fleet.fleet_no), accounts.uses)
    counted: Mapping[CountKey, int] = {}
    if Rare.COUNTS in rare:
        counted = await stored_counts(connection, fleet.fleet_no)
    differences += _unequal("count", counted, accounts.counts)
    for kind in BucketKind:
        stored = {
            number: _kept_balance(bucket)
            for number, bucket in replay.stored_buckets.items()
            if bucket.row[1] == kind
        }
        replayed = {
            number: _replayed_balance(bucket)
            for number, bucket in replay.buckets.items()
            if bucket.kind is kind
        }
        differences += _unequal(kind.value, stored, replayed)
    hours = {key: tuple(sums) for key, sums in replay.hours.items()}
    differences += _unequal("hour", await stored_hours(connection, fleet.fleet_no), hours)
    differences += _unequal(
        "hour of the fleet",
        await stored_hours_of_fleet(connection, fleet.fleet_no),
        hours_of_fleet(hours),
    )
    ends = {
        key: CounterEnds(first=epoch.points[0], last=epoch.points[-1])
        for key, epoch in replay.epochs.items()
    }
    counters: Mapping[EpochKey, CounterEnds] = {}
    if Rare.UNEVEN in rare:
        counters = await stored_counters(connection, fleet.fleet_no)
    differences += _unequal("counter", counters, ends)


_Balance = tuple[int, int, int, int, Mapping[int, int], AbstractSet[int], Mapping[int, int]]
"""granted, used, promised, reserved, drawn by member, members, held by member"""


def _kept_balance(bucket: StoredBucket) -> _Balance:
    *_, granted, used, promised, reserved = bucket.row
    return (
        int(granted), int(used), int(promised), int(reserved), bucket.drawn, bucket.members,
        bucket.held,
    )  # fmt: skip


def _replayed_balance(bucket: Bucket) -> _Balance:
    bounded = bucket.floor or bucket.ceiling is not None
    return (
        int(bucket.granted),
        int(bucket.used),
        bucket.promised_to_all() if bucket.floor else 0,
        bucket.reserved,
        bucket.drawn,
        bucket.members if bounded else set(),
        bucket.held,
    )


_GrantKey = tuple[int, str, str, datetime, bool]
"""subscription_no, meter, allowance, begins_at, pooled"""
_GrantValue = tuple[int, datetime | None]
"""quantity, expires_at"""


def _compare_grants(
    fleet: Fleet, cycle: BillCycle, members: Sequence[Member], replay: Replay
) -> None:
    """Compare what an open cycle granted with what its members' plans say."""
    expected: dict[_GrantKey, _GrantValue] = {}
    sizes: dict[tuple[str, str, int | None], int] = {}
    for grant in cycle_grants(members, replay.plans, cycle=cycle, fleet=fleet_rule(fleet, members)):
        name = grant.allowance.name
        quantity = grant.quantity
        if grant.allowance.fixed:
            # A pool of fixed size holds one member's grant; the others enter with nothing.
            sizes.setdefault((grant.meter, name, grant.pool_plan_no), quantity)
            quantity = 0
        key = (grant.subscription_no, grant.meter, name, grant.begins_at, grant.pooled)
        expected[key] = (quantity, grant.expires_at)
    made: dict[_GrantKey, _GrantValue] = {}
    made_sizes: dict[tuple[str, str, int | None], int] = {}
    for entry in replay.entries:
        bucket = replay.stored_buckets[entry.bucket_no]
        granted = entry.kind in {EntryKind.GRANT, EntryKind.REGRANT}
        if bucket.cycle_start != cycle.start or entry.subscription_no is None or not granted:
            continue
        _, kind, _, _, plan_no, _, meter_no, name, begins_at, expires_at, *_ = bucket.row
        meter = METERS_BY_NO[meter_no].meter
        quantity = entry.quantity
        size_key = (meter, name, plan_no)
        if kind == BucketKind.POOL and size_key in sizes:
            made_sizes[size_key] = made_sizes.get(size_key, 0) + quantity
            quantity = 0
        key = (entry.subscription_no, meter, name, begins_at, kind == BucketKind.POOL)
        made[key] = (quantity + made.get(key, (0, None))[0], expires_at)
    # What a change took back altogether counts as never granted.
    made = {key: value for key, value in made.items() if value[0] or key in expected}
    made_sizes = {key: size for key, size in made_sizes.items() if size or key in sizes}
    day = cycle.first_day
    replay.differences += _unequal(f"grant of {day}", made, expected)
    replay.differences += _unequal(f"pool size of {day}", made_sizes, sizes)


_Reservation = tuple[str, int, int, int | None, int | None, set[int | None], AbstractSet[int]]
"""state, granted, held, drawn, buckets released from, runs of holds and releases, buckets held in"""


def _compare_reservations(reservations: Sequence[StoredReservation], replay: Replay) -> list[str]:
    """Compare each reservation with the holds and releases that were entered for it."""
    entered: dict[int, dict[str, list[StoredEntry]]] = {}
    for entry in replay.entries:
        if entry.reservation_no is not None:
            of_kind = entered.setdefault(entry.reservation_no, {"hold": [], "release": []})
            of_kind[entry.kind].append(entry)
    openings = {place[0] for place, _ in replay.openings}
    kept: dict[int, _Reservation] = {}
    expected: dict[int, _Reservation] = {}
    for each in reservations:
        entries = entered.get(each.reservation_no, {"hold": [], "release": []})
        held = {entry.bucket_no: entry.quantity for entry in entries["hold"]}
        released = {entry.bucket_no for entry in entries["release"]}
        granted = sum(held.values())
        kept_for_it = replay.held_of.get(each.reservation_no, 0)
        runs = {entry.place[0] for of_kind in entries.values() for entry in of_kind}
        said: set[int | None] = {each.run_no, each.ended_run_no} - {None}
        kept[each.reservation_no] = (
            each.state, each.granted, each.held, each.drawn, None if each.ended_at is None else len(held),
            said if held else set(), each.held_in,
        )  # fmt: skip
        if each.ended_at is None:
            expected[each.reservation_no] = (
                "active",
                granted,
                kept_for_it,
                None,
                None,
                {*runs},
                held.keys(),
            )
            continue
        state = ended_as(
            replaced=each.replaced,
            used=each.used,
            ended_at=each.ended_at,
            expires_at=each.expires_at,
            cut=each.ended_run_no in openings,
        )
        drawn = kept_for_it - replay.given_back.get(each.reservation_no, 0)
        expected[each.reservation_no] = (
            state.value, granted, kept_for_it, drawn, len(released), {*runs}, set(),
        )  # fmt: skip
    return _unequal("reservation", kept, expected)


def _unequal(kind: str, kept: Mapping[Key, Value], replayed: Mapping[Key, Value]) -> list[str]:
    return [
        f"{kind} {key}: stored {kept.get(key)}, replay says {replayed.get(key)}"
        for key in [*replayed, *(key for key in kept if key not in replayed)]
        if kept.get(key) != replayed.get(key)
    ]
