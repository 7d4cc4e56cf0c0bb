"""Loading a fleet's history: a replay that is ready to be stepped through."""

from collections.abc import Sequence

from metering.period import Calendar
from metering.rating.record import FleetTerms
from metering.replay.replay import Replay
from metering.store.audit import (
    device_homes,
    fleet_subscriptions,
    plans_of_subscriptions,
    stored_buckets,
    stored_entries,
    stored_openings,
    stored_top_ups,
)
from metering.store.connection import Connection
from metering.store.registry import Fleet, fleets_by_no, plan_terms


async def load_replay(
    connection: Connection,
    fleet: Fleet,
    *,
    devices: Sequence[int] | None = None,
    anew: bool = False,
) -> Replay:
    """Return a fleet's replay before its first step.

    `devices` narrows it to some that share nothing with others; `anew` is for corrections.
    """
    subscriptions = await fleet_subscriptions(connection, fleet.fleet_no, devices)
    plan_of = await plans_of_subscriptions(connection, fleet.fleet_no, devices)
    owners = None if devices is None else sorted(plan_of)
    of_devices = [each for of_device in subscriptions.values() for each in of_device]
    plan_nos = {each.plan_no for each in of_devices} | set(plan_of.values())
    homes = await device_homes(connection, fleet.fleet_no, devices)
    fleet_nos = {each.fleet_no for each in of_devices} | {fleet.fleet_no} | set(homes.values())
    fleets = await fleets_by_no(connection, sorted(fleet_nos))
    terms = {
        number: FleetTerms(number, Calendar(each.time_zone, each.anchor_day))
        for number, each in fleets.items()
    }
    return Replay(
        fleet=terms[fleet.fleet_no],
        fleets=terms,
        homes=homes,
        subscriptions=subscriptions,
        plan_of=plan_of,
        plans=await plan_terms(connection, sorted(plan_nos)),
        anew=anew,
        stored_buckets=await stored_buckets(connection, fleet.fleet_no, owners),
        entries=await stored_entries(connection, fleet.fleet_no, owners),
        openings=await stored_openings(connection, fleet.fleet_no),
        top_ups=await stored_top_ups(connection, fleet.fleet_no) if devices is None else {},
    )
