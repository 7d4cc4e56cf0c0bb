"""Charging again what a change of terms concerns, in the order in which it was charged first.

A fleet's state is what its history comes to under the terms as they are known now. When they change for
an instant that charging is past, the readings concerned are charged again where they stand in that
history; each charge that differs is replaced, and what it differs by is kept with its cause.

What is recorded before the first reading that a change concerns stays as it is, so charging again begins
there: from the state just before it, which is found by unwinding what came after
(`metering.replay.unwind`), or, for plans of which not all can be unwound, by a replay from nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import lcm

from metering.rating.guide import ParkReason
from metering.rating.plan import PlanTerms, SharedBy
from metering.replay.replay import Outcome
from metering.replay.unwind import Unwound, unwind, unwind_all
from metering.store.balances import fleets_with_operations
from metering.store.charges import (
    ChargeColumns,
    ChargedReading,
    ParkedReading,
    charge_columns,
)
from metering.store.connection import Connection
from metering.store.corrections import (
    ChargeDifference,
    change_hours,
    replace_charges,
    replace_counts,
    replace_draws,
    replace_releases,
    replace_uses,
    store_rolled_otherwise,
)
from metering.store.history import Place, RunStep, device_homes, run_steps
from metering.store.registry import (
    Fleet,
    ever_subscribed,
    fleets_of_devices,
    plan_terms,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is charged again: some fleets' devices; None: all of a fleet's, because they share."""

    fleets: Mapping[int, Fleet]
    devices: Mapping[int, Sequence[int] | None]

    @property
    def shards(self) -> set[int]:
        """The shards that must be owned."""
        return {fleet.shard_no for fleet in self.fleets.values()}


@dataclass(slots=True)
class Corrected:
    """What was charged again: how many charges differ, and how many readings were or became parked.

    `cycles` are those in which a charge differs: `(fleet_no, cycle_start)`.
    """

    charges: int = 0
    unparked: int = 0
    parked: int = 0
    cycles: set[tuple[int, datetime]] = field(default_factory=set)


@dataclass(slots=True)
class _Again:
    """A reading, and what it comes to now, fleet by fleet."""

    step: RunStep
    home: int
    """The fleet in which its device is now."""
    outcomes: list[Outcome] = field(default_factory=list)


async def scope_of(connection: Connection, devices: Sequence[int]) -> Scope:
    """Return what a change concerns: devices, in every fleet that they were in, and who shares there.

    Who shares may have been in further fleets: a reading is charged again as a whole.
    """
    concerned = set(devices)
    sharing: set[int] = set()
    while True:
        fleets, _, _ = await fleets_of_devices(connection, sorted(concerned))
        subscribed = await ever_subscribed(connection, sorted(concerned))
        plans = await plan_terms(connection, sorted({plan_no for _, plan_no in subscribed}))
        found = {fleet_no for fleet_no, plan_no in subscribed if _shares(plans[plan_no])}
        found |= await fleets_with_operations(connection, {fleet_no for fleet_no, _ in subscribed})
        if found <= sharing:
            break
        sharing |= found
        for fleet_no in found:
            concerned.update(await device_homes(connection, fleet_no))
    return Scope(
        fleets=fleets,
        devices={number: None if number in sharing else sorted(concerned) for number in fleets},
    )


def _shares(terms: PlanTerms) -> bool:
    """Whether one device's usage under a plan may change what another's costs."""
    return any(
        any(allowance.shared_by is not SharedBy.DEVICE for allowance in of_meter.allowances)
        or any(variant.price.fleet_wide for variant in of_meter.variants)
        for of_meter in terms.meters.values()
    )


async def charge_again(
    connection: Connection, scope: Scope, *, place: Place, correction_no: int, now: datetime
) -> Corrected:
    """Charge a scope's readings again from a place on, and store whatever comes out otherwise.

    The change concerns none that stands before it. Parked ones are charged if they can be now. The
    caller owns the scope's shards.
    """
    readings: dict[tuple[int, int], _Again] = {}
    plans: dict[int, PlanTerms] = {}
    for fleet_no, fleet in scope.fleets.items():
        devices = scope.devices[fleet_no]
        again = await unwind(
            connection, fleet, place, devices=devices, fleets=list(scope.fleets)
        ) or await unwind_all(connection, fleet, place, devices=devices)
        replay = again.replay
        plans.update(replay.plans)
        async for step in run_steps(
            connection, fleet_no, again.devices, since=again.place, fleets=list(scope.fleets)
        ):
            outcome = replay.step(step)
            if outcome is None or (step.run_no, step.run_position) < place:
                continue
            involved = {each[1] for each in step.charges}
            involved.update(
                each.fleet_no for each in replay.subscriptions.get(outcome.device_no, ())
            )
            involved = involved or {replay.homes[outcome.device_no]}
            # Of a reading that several fleets may have a part in, all parts are kept for comparison.
            if fleet_no in involved and (len(involved) > 1 or _differs(step, fleet_no, outcome)):
                home = replay.homes[outcome.device_no]
                reading = readings.setdefault((step.boot_no, step.seq), _Again(step, home))
                reading.outcomes.append(outcome)
        replay.finish()
        await _store_sums(connection, again, fleet_no, correction_no=correction_no, now=now)
    changed = [each for each in readings.values() if _changed(each, scope)]
    plans.update(await _plans_of_stored(connection, changed, plans))
    return await _store_charges(connection, changed, plans, correction_no=correction_no, now=now)


def _differs(step: RunStep, fleet_no: int, outcome: Outcome) -> bool:
    """Whether a fleet's part of a reading comes out otherwise than it is stored."""
    if isinstance(outcome.charges, ParkReason):
        return step.parked is None or step.parked[0] != outcome.charges.value
    stored = [each for each in step.charges if each[1] == fleet_no]
    return step.parked is not None or stored != _columns_of(step, [outcome])


def _changed(again: _Again, scope: Scope) -> bool:
    """Whether any fleet's part of a reading differs; whose device moved was kept in any case."""
    if any(isinstance(each.charges, ParkReason) for each in again.outcomes):
        return _differs(again.step, 0, again.outcomes[0])
    stored = [each for each in again.step.charges if each[1] in scope.fleets]
    return again.step.parked is not None or sorted(stored) != sorted(
        _columns_of(again.step, again.outcomes)
    )


def _columns_of(step: RunStep, outcomes: Iterable[Outcome]) -> list[ChargeColumns]:
    assert step.stored is not None  # noqa: S101 - else there is no outcome
    meter_no = step.stored.reading.meter.meter_no
    return [
        charge_columns(charge, meter_no)
        for outcome in outcomes
        if not isinstance(outcome.charges, ParkReason)
        for charge in outcome.charges
    ]


async def _store_sums(
    connection: Connection, again: Unwound, fleet_no: int, *, correction_no: int, now: datetime
) -> None:
    replay = again.replay
    if replay.rolled_otherwise:
        rolled = [
            (
                *each.place,
                each.kind.value,
                each.bucket_no,
                each.cycle_start,
                each.due - each.entered,
            )
            for each in replay.rolled_otherwise
        ]
        await store_rolled_otherwise(connection, rolled, correction_no=correction_no, now=now)
    await replace_uses(connection, fleet_no, again.uses, replay.accounts.uses)
    await replace_counts(connection, fleet_no, again.counts, replay.accounts.counts)
    await replace_draws(connection, replay.stored_buckets, replay.buckets)
    await replace_releases(connection, replay.released_otherwise, replay.held_of, replay.given_back)
    hours = {key: tuple(sums) for key, sums in replay.hours.items()}
    await change_hours(connection, fleet_no, again.hours, hours)


async def _plans_of_stored(
    connection: Connection, readings: Iterable[_Again], known: Mapping[int, PlanTerms]
) -> dict[int, PlanTerms]:
    wanted = {charge[3] for each in readings for charge in each.step.charges} - known.keys()
    return await plan_terms(connection, sorted(wanted)) if wanted else {}


async def _store_charges(
    connection: Connection,
    readings: Iterable[_Again],
    plans: Mapping[int, PlanTerms],
    *,
    correction_no: int,
    now: datetime,
) -> Corrected:
    corrected = Corrected()
    superseded: list[tuple[int, int, datetime]] = []
    unparked: list[tuple[int, int, datetime]] = []
    charged: list[ChargedReading] = []
    parked: list[ParkedReading] = []
    differences: list[ChargeDifference] = []
    for each in readings:
        step, outcomes = each.step, each.outcomes
        stored = step.stored
        assert stored is not None  # noqa: S101 - else there is no outcome
        name = (step.boot_no, step.seq, stored.reading.at)
        if step.parked is not None:
            unparked.append(name)
            corrected.unparked += 1
        elif step.charges:
            superseded.append(name)
        reason = next(
            (one.charges for one in outcomes if isinstance(one.charges, ParkReason)), None
        )
        again: list[ChargeColumns] = []
        if reason is not None:
            parked.append(
                ParkedReading(
                    run_no=step.run_no,
                    run_position=step.run_position,
                    fleet_no=each.home,
                    stored=stored,
                    usage=outcomes[0].usage,
                    reason=reason,
                )
            )
            corrected.parked += 1
        else:
            again = _columns_of(step, outcomes)
            charged.append(
                ChargedReading(
                    run_no=step.run_no,
                    run_position=step.run_position,
                    stored=stored,
                    charges=[
                        charge
                        for one in outcomes
                        if not isinstance(one.charges, ParkReason)
                        for charge in one.charges
                    ],
                    correction_no=correction_no,
                )
            )
        differences += _differences(step, again, plans)
    corrected.charges = len(differences)
    corrected.cycles.update((each.fleet_no, each.cycle_start) for each in differences)
    await replace_charges(
        connection,
        correction_no,
        superseded=superseded,
        unparked=unparked,
        charged=charged,
        parked=parked,
        differences=differences,
        now=now,
    )
    return corrected


def _differences(
    step: RunStep, again: Sequence[ChargeColumns], plans: Mapping[int, PlanTerms]
) -> list[ChargeDifference]:
    """Return what each of a reading's charges differs by: those of the same part, fleet and cycle."""
    stored = step.stored
    assert stored is not None  # noqa: S101 - else there is no outcome
    before = {_place(columns): columns for columns in step.charges}
    after = {_place(columns): columns for columns in again}
    found: list[ChargeDifference] = []
    for place in [*before, *(place for place in after if place not in before)]:
        old, new = before.get(place), after.get(place)
        subunits = lcm(
            *(plans[columns[3]].subunits_per_unit for columns in (old, new) if columns is not None)
        )
        part, fleet_no, cycle_start = place
        found.append(
            ChargeDifference(
                boot_no=step.boot_no,
                seq=step.seq,
                part=part,
                measured_at=stored.reading.at,
                fleet_no=fleet_no,
                device_no=stored.device_no,
                cycle_start=cycle_start,
                quantity=(new[8] if new else 0) - (old[8] if old else 0),
                amount=_amount(new, plans, subunits) - _amount(old, plans, subunits),
                subunits_per_unit=subunits,
            )
        )
    return found


def _place(columns: ChargeColumns) -> tuple[int, int, datetime]:
    """Return a charge's part, fleet and cycle."""
    return (columns[0], columns[1], columns[5])


def _amount(
    columns: ChargeColumns | None, plans: Mapping[int, PlanTerms], subunits_per_unit: int
) -> int:
    if columns is None:
        return 0
    scale = subunits_per_unit // plans[columns[3]].subunits_per_unit
    return int(columns[18]) * scale
