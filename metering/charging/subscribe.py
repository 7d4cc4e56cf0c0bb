"""Subscribing devices to a plan version: in its time their usage has a price."""

from collections.abc import Sequence
from datetime import datetime

from metering.charging.make_change import TermsChange, TermsChanged, check_currency, make_change
from metering.store.connection import Connection
from metering.store.corrections import Cause
from metering.store.registry import Fleet, insert_subscriptions


async def subscribe(
    connection: Connection,
    *,
    fleet: Fleet,
    device_nos: Sequence[int],
    plan_no: int,
    valid_from: datetime,
    valid_to: datetime | None = None,
    now: datetime,
    key: str | None = None,
) -> TermsChanged:
    """Subscribe a fleet's devices to a plan version; those that have one of the plan then are left.

    In a cycle that is open they bring their share in at once: a pool grows by the prorated
    contribution. Usage of theirs that was parked is charged. Raises `InvalidValue` when the plan's
    currency is not the fleet's.
    """

    async def write(connection: Connection) -> int:
        await check_currency(connection, plan_no, fleet)
        added = await insert_subscriptions(
            connection,
            device_nos=device_nos,
            plan_no=plan_no,
            valid_from=valid_from,
            valid_to=valid_to,
        )
        return len(added)

    change = TermsChange(
        tenant_no=fleet.tenant_no,
        cause=Cause.SUBSCRIPTION,
        detail={"plan_no": plan_no, "valid_to": valid_to and valid_to.isoformat()},
        devices=sorted(device_nos),
        since=valid_from,
        asked_at=valid_from,
        now=now,
        key=key,
        fleets=[fleet],
        write=write,
    )
    return await make_change(connection, change)
