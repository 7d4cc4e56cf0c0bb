"""Loading a fleet's history: a replay that is ready to be stepped through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metering.rating.guide import Subscription
from metering.rating.plan import PlanTerms
from metering.rating.record import FleetTerms
from metering.replay.replay import Replay
from metering.store.connection import Connection
from metering.store.history import (
    Place,
    device_homes,
    fleet_subscriptions,
    stored_buckets,
    stored_entries,
    stored_openings,
    stored_top_ups,
)
from metering.store.registry import Fleet, calendar_of, fleets_by_no, plan_terms


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayTerms:
    """The terms by which a fleet's devices are charged, as `Replay` knows them."""

    fleets: Mapping[int, FleetTerms]
    homes: Mapping[int, int]
    subscriptions: Mapping[int, Sequence[Subscription]]
    plan_of: Mapping[int, int]
    plans: Mapping[int, PlanTerms]


async def load_terms(
    connection: Connection, fleet: Fleet, *, devices: Sequence[int] | None = None
) -> ReplayTerms:
    """Return the terms of a fleet's devices, or of some of them."""
    subscriptions = await fleet_subscriptions(connection, fleet.fleet_no, devices)
    of_devices = [each for of_device in subscriptions.by_device.values() for each in of_device]
    plan_nos = {each.plan_no for each in of_devices} | set(subscriptions.plans.values())
    homes = await device_homes(connection, fleet.fleet_no, devices)
    others = ({each.fleet_no for each in of_devices} | set(homes.values())) - {fleet.fleet_no}
    fleets: dict[int, Fleet] = {fleet.fleet_no: fleet}
    if others:
        fleets.update(list((await fleets_by_no(connection, sorted(others))).items()))
    return ReplayTerms(
        fleets={number: FleetTerms(number, calendar_of(each)) for number, each in fleets.items()},
        homes=homes,
        subscriptions=subscriptions.by_device,
        plan_of=subscriptions.plans,
        plans=await plan_terms(connection, sorted(plan_nos)),
    )


async def load_replay(
    connection: Connection,
    fleet: Fleet,
    *,
    devices: Sequence[int] | None = None,
    anew_from: Place | None = None,
    top_ups: bool = True,
) -> Replay:
    """Return a fleet's replay from nothing, before its first step.

    `devices` narrows it to some that share nothing with others; `anew_from` is for corrections; `top_ups`:
    whether the fleet may have any.
    """
    terms = await load_terms(connection, fleet, devices=devices)
    owners = None if devices is None else sorted(terms.plan_of)
    return Replay(
        fleet=terms.fleets[fleet.fleet_no],
        fleets=terms.fleets,
        homes=terms.homes,
        subscriptions=terms.subscriptions,
        plan_of=terms.plan_of,
        plans=terms.plans,
        anew_from=anew_from,
        stored_buckets=await stored_buckets(connection, fleet.fleet_no, owners),
        entries=await stored_entries(connection, fleet.fleet_no, owners),
        openings=await stored_openings(connection, fleet.fleet_no),
        top_ups=await stored_top_ups(connection, fleet.fleet_no)
        if top_ups and devices is None
        else {},
    )
