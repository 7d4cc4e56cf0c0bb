"""Subscribing devices to a plan version: from then on their usage has a price."""

from collections.abc import Sequence
from datetime import datetime

from metering.charging.open_cycle import enter_cycle
from metering.errors import InvalidValue
from metering.store.connection import Connection
from metering.store.cycles import billed_subscriptions, cycles_open_in
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
        run_no = await next_run_no(connection)
        for cycle in await cycles_open_in(connection, fleet.fleet_no, valid_from, valid_to):
            members = await billed_subscriptions(connection, fleet.fleet_no, cycle)
            joining = [member for member in members if member.subscription_no in new]
            await enter_cycle(connection, fleet, cycle, joining, run_no=run_no, now=now)
        return len(added)
