"""Subscribing devices to a plan version: in its time their usage has a price."""

from collections.abc import Sequence
from datetime import datetime

from metering.charging.change_once import ChangeMade, change_once
from metering.charging.make_change import check_currency
from metering.errors import InvalidValue
from metering.store.connection import Connection
from metering.store.corrections import Cause
from metering.store.registry import Fleet, insert_subscriptions, subscribed_otherwise


async def subscribe(
    connection: Connection,
    *,
    fleet: Fleet,
    device_nos: Sequence[int],
    plan_no: int,
    valid_from: datetime | None = None,
    valid_to: datetime | None = None,
    now: datetime,
    key: str | None = None,
) -> ChangeMade:
    """Subscribe a fleet's devices to a plan version from an instant on, None: from now on.

    Those that have a version of the plan then are left; where all do, nothing is written, unless there is
    a `key` to remember.

    In a cycle that is open they bring their share in at once: a pool grows by the prorated
    contribution. Usage of theirs that was parked is charged. Raises `InvalidValue` when the plan's
    currency is not the fleet's, the end is not after the beginning, or a device has another
    subscription in that time.
    """
    since = valid_from or now
    if valid_to is not None and valid_to <= since:
        raise InvalidValue("to", "is not after the beginning", "use a later time, or none")

    async def write(connection: Connection) -> int:
        await check_currency(connection, plan_no, fleet)
        other = await subscribed_otherwise(
            connection,
            device_nos=device_nos,
            plan_no=plan_no,
            valid_from=since,
            valid_to=valid_to,
        )
        if other is not None:
            raise InvalidValue(
                "device_ids",
                f"{other!r} has another subscription in that time",
                "change its plan, or end that subscription first",
            )
        added = await insert_subscriptions(
            connection,
            device_nos=device_nos,
            plan_no=plan_no,
            valid_from=since,
            valid_to=valid_to,
        )
        return len(added)

    detail = {"plan_no": plan_no, "valid_to": valid_to and valid_to.isoformat()}
    return await change_once(
        connection, Cause.SUBSCRIPTION, detail, write,
        tenant_no=fleet.tenant_no, device_nos=device_nos, at=valid_from, now=now,
        key=key, fleets=[fleet],
    )  # fmt: skip
