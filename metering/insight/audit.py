"""The audit: readings, charges, balances and rollups replayed from nothing and compared."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from metering.insight.replay import Replay
from metering.period import BillCycle
from metering.rating.account import Bucket, FleetTerms
from metering.rating.guide import Subscription
from metering.rating.proration import days_in_cycle, grants_of, prorated_fee
from metering.store.accounts import CounterEnds
from metering.store.audit import (
    all_fleets,
    fleet_subscriptions,
    run_steps,
    stored_buckets,
    stored_counters,
    stored_cycles,
    stored_fees,
    stored_grants,
    stored_hours,
    stored_uses,
    tally,
    unequal_arrivals,
)
from metering.store.connection import Connection
from metering.store.cycles import billed_subscriptions
from metering.store.registry import Fleet, plan_terms

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


async def audit_database(connection: Connection) -> AuditResult:
    """Replay every fleet from nothing and compare all that charging keeps.

    `connection`'s transaction must read from one snapshot, so that a live system can be audited.
    """
    counted = await tally(connection)
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
        for boot_no, arrived, kept in await unequal_arrivals(connection)
    ]
    if counted.stored_twice:
        result.differences.append(f"{counted.stored_twice} readings are stored more than once")
    replayed = 0
    for fleet in await all_fleets(connection):
        replay = await _replayed(connection, fleet)
        replayed += replay.charges
        result.differences += [f"fleet {fleet.fleet_id}: {each}" for each in replay.differences]
    if replayed != counted.charges:
        result.differences.append(
            f"{counted.charges} charges, of which {replayed} belong to a fleet"
        )
    return result


async def _replayed(connection: Connection, fleet: Fleet) -> Replay:
    subscriptions = await fleet_subscriptions(connection, fleet.fleet_no)
    plan_nos = {each.plan_no for of_device in subscriptions.values() for each in of_device}
    plans = await plan_terms(connection, sorted(plan_nos))
    replay = Replay(
        fleet=FleetTerms(fleet.fleet_no, fleet.time_zone, fleet.anchor_day),
        subscriptions=subscriptions,
        plans=plans,
        grants=await stored_grants(connection, fleet.fleet_no),
    )
    async for step in run_steps(connection, fleet.fleet_no):
        replay.step(step)
    replay.finish()
    await _compare_kept_sums(connection, fleet, replay)
    for cycle in await stored_cycles(connection, fleet.fleet_no):
        members = await billed_subscriptions(connection, fleet.fleet_no, cycle)
        await _compare_cycle(connection, fleet, cycle, members, replay)
    return replay


async def _compare_kept_sums(connection: Connection, fleet: Fleet, replay: Replay) -> None:
    """Compare cumulative use, balances, rollups and counters with the replayed ones."""
    differences = replay.differences
    accounts = replay.accounts
    differences += _unequal("use", await stored_uses(connection, fleet.fleet_no), accounts.uses)
    allowances, pools = await stored_buckets(connection, fleet.fleet_no)
    differences += _unequal("allowance", _not_empty(allowances), _not_empty(accounts.allowances))
    differences += _unequal("pool", _not_empty(pools), _not_empty(accounts.pools))
    hours = {key: tuple(sums) for key, sums in replay.hours.items()}
    differences += _unequal("hour", await stored_hours(connection, fleet.fleet_no), hours)
    ends = {
        key: CounterEnds(first=epoch.points[0], last=epoch.points[-1])
        for key, epoch in replay.epochs.items()
    }
    differences += _unequal("counter", await stored_counters(connection, fleet.fleet_no), ends)


async def _compare_cycle(
    connection: Connection,
    fleet: Fleet,
    cycle: BillCycle,
    members: Iterable[Subscription],
    replay: Replay,
) -> None:
    """Compare an open cycle's grants and fees with what its members' plans say."""
    expected_grants: dict[tuple[int, int, bool], int] = {}
    expected_fees: dict[int, tuple[int, int, int]] = {}
    for member in members:
        terms = replay.plans[member.plan_no]
        days = days_in_cycle(cycle, member, fleet.time_zone)
        fee = prorated_fee(terms, days, cycle)
        expected_fees[member.subscription_no] = (days, fee.count, fee.per_unit)
        for grant in grants_of(member, terms, days, cycle):
            expected_grants[grant.subscription_no, grant.meter_no, grant.pooled] = grant.quantity
    made = {
        (grant.subscription_no, grant.meter_no, grant.pooled): grant.quantity
        for grant in replay.grants
        if grant.cycle_start == cycle.start
    }
    fees = {
        subscription_no: fee
        for (subscription_no, start), fee in (await stored_fees(connection, fleet.fleet_no)).items()
        if start == cycle.start
    }
    replay.differences += _unequal(f"grant of {cycle.first_day}", made, expected_grants)
    replay.differences += _unequal(f"fee of {cycle.first_day}", fees, expected_fees)


def _not_empty(buckets: Mapping[Key, Bucket]) -> dict[Key, Bucket]:
    """Leave out empty buckets: one is stored where a grant is prorated to nothing, else none is."""
    return {key: bucket for key, bucket in buckets.items() if bucket.granted or bucket.used}


def _unequal(kind: str, kept: Mapping[Key, Value], replayed: Mapping[Key, Value]) -> list[str]:
    return [
        f"{kind} {key}: stored {kept.get(key)}, replay says {replayed.get(key)}"
        for key in [*replayed, *(key for key in kept if key not in replayed)]
        if kept.get(key) != replayed.get(key)
    ]
