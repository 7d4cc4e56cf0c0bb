"""Subscribing devices to a plan version: from then on their usage has a price."""

from collections.abc import Sequence
from datetime import datetime

from metering.charging.open_cycle import grant, open_cycle, plans_of_members
from metering.errors import InvalidValue
from metering.store.connection import Connection
from metering.store.cycles import cycles_open_in, fleet_members
from metering.store.registry import Fleet, insert_subscriptions, lock_shard, plan_terms
from metering.store.work import next_run_no


async def subscribe(
    connection: Connection,
    *,
    fleet: Fleet,
    device_nos: Sequence[int],
    plan_no: int,
    valid_from: datetime,
    valid_to: datetime | None = None,
    now: datetime,
) -> int:
    """Subscribe a fleet's devices to a plan version and return how many were not yet.

    In a cycle that is already open they bring their share in at once: a pool grows by the prorated
    contribution. Raises `InvalidValue` when the plan's currency is not the fleet's.
    """
    async with connection.transaction():
        await lock_shard(connection, fleet.shard_no)
        terms = (await plan_terms(connection, [plan_no]))[plan_no]
        if terms.currency != fleet.currency:
            raise InvalidValue(
                "plan.currency",
                f"{terms.currency} differs from the fleet's {fleet.currency}",
                "choose a plan in the fleet's currency",
            )
        added = await insert_subscriptions(
            connection,
            device_nos=device_nos,
            plan_no=plan_no,
            valid_from=valid_from,
            valid_to=valid_to,
        )
        new = set(added)
        cycles = await cycles_open_in(connection, fleet.fleet_no, valid_from, valid_to)
        if cycles:
            # What the plan grants for longer than a cycle may lie in one before those.
            await open_cycle(connection, fleet, cycles[-1], now=now)
        run_no = await next_run_no(connection)
        for cycle in cycles:
            members = await fleet_members(
                connection, fleet.fleet_no, begins=cycle.start, ends=cycle.end
            )
            joining = [
                member
                for member in members
                if any(each.subscription_no in new for each in member.subscriptions)
            ]
            plans = await plans_of_members(connection, joining)
            await grant(connection, fleet, cycle, joining, plans, run_no=run_no, now=now)
        return len(added)
