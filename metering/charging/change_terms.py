"""Changes of terms, dated in the past, now, or in the future: plans, states, SIMs, fleets.

Each writes the new terms and has charged again what was charged for later instants (`make_change`). The
plan that is left says when a change to another takes effect; thresholds are a device's and stay.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from metering.charging.change_once import ChangeMade, change_once
from metering.charging.make_change import check_currency
from metering.errors import InvalidValue
from metering.ids import TenantNo, checked_id
from metering.period import Calendar
from metering.rating.guide import Subscription
from metering.rating.membership import effective_subscriptions
from metering.rating.plan import DeviceState, PlanTerms
from metering.store.connection import Connection
from metering.store.corrections import Cause
from metering.store.registry import (
    Fleet,
    calendar_of,
    fleets_by_no,
    lock_shard,
    plan_terms,
    subscriptions_of_devices,
)
from metering.store.reservations import names_of_devices
from metering.store.terms import (
    StatesAround,
    due_moves,
    end_subscription_at,
    insert_subscription,
    make_moves,
    plan_move,
    set_sim,
    set_state,
    states_around,
)

_EVER = datetime(1, 1, 1, tzinfo=UTC)
_FOLLOWS = {
    DeviceState.INVENTORY: {DeviceState.INVENTORY, DeviceState.ACTIVE, DeviceState.RETIRED},
    DeviceState.ACTIVE: {DeviceState.ACTIVE, DeviceState.SUSPENDED, DeviceState.RETIRED},
    DeviceState.SUSPENDED: {DeviceState.SUSPENDED, DeviceState.ACTIVE, DeviceState.RETIRED},
    DeviceState.RETIRED: {DeviceState.RETIRED},
}


async def change_plan(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    device_nos: Sequence[int],
    plan_no: int,
    at: datetime | None = None,
    now: datetime,
    key: str | None = None,
) -> ChangeMade:
    """Let devices go over to another plan version at an instant, past or future; None: now.

    Each must have a subscription then. It ends where the change takes effect, as the plan that is left
    says; the new one runs as long as the old one would have.
    """
    since = at or now
    effective: list[datetime] = []

    async def write(connection: Connection) -> int:
        effective.clear()  # it may be written again, with more fleets owned
        for device_no, own in (await subscriptions_of_devices(connection, device_nos)).items():
            running = await _running(connection, own, since, device_no)
            if running.plan_no == plan_no:
                continue
            fleet = (await fleets_by_no(connection, [running.fleet_no]))[running.fleet_no]
            await check_currency(connection, plan_no, fleet)
            terms = await plan_terms(connection, sorted({running.plan_no, plan_no}))
            calendar = calendar_of(fleet)
            starts = _takes_effect(running, plan_no, since, terms, calendar)
            if running.valid_to is not None and starts >= running.valid_to:
                raise InvalidValue(
                    "at",
                    "the change would take effect when the subscription has ended",
                    "choose an earlier instant, or subscribe the device anew",
                )
            await end_subscription_at(connection, running.subscription_no, starts)
            await insert_subscription(
                connection,
                replace(running, plan_no=plan_no, valid_from=starts),
            )
            effective.append(starts)
        return len(effective)

    return await change_once(
        connection, Cause.PLAN_CHANGE, {"plan_no": plan_no}, write,
        tenant_no=tenant_no, device_nos=device_nos, at=at, now=now,
        key=key, takes_effect=lambda: max(effective, default=since),
    )  # fmt: skip


def _takes_effect(
    running: Subscription,
    plan_no: int,
    at: datetime,
    terms: Mapping[int, PlanTerms],
    calendar: Calendar,
) -> datetime:
    """Return when a change to another plan takes effect, by the rule of the plan that is left."""
    ordered = [
        replace(running, valid_from=min(running.valid_from, at), valid_to=at),
        replace(running, plan_no=plan_no, valid_from=at, valid_to=None),
    ]
    if running.valid_from == at:
        return at
    return effective_subscriptions(ordered, terms, calendar.cycle_at)[-1].valid_from


async def end_subscriptions(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    device_nos: Sequence[int],
    at: datetime | None = None,
    now: datetime,
    key: str | None = None,
) -> ChangeMade:
    """End what devices are subscribed to at an instant, past or future; later usage is parked."""
    since = at or now

    async def write(connection: Connection) -> int:
        changed = 0
        for own in (await subscriptions_of_devices(connection, device_nos)).values():
            changed += await _end(connection, own, since)
        return changed

    return await change_once(
        connection, Cause.SUBSCRIPTION_END, {}, write,
        tenant_no=tenant_no, device_nos=device_nos, at=at, now=now,
        key=key,
    )  # fmt: skip


async def _end(connection: Connection, own: Iterable[Subscription], at: datetime) -> int:
    """End those of a device's subscriptions that run at an instant or later; return how many did."""
    ending = [each for each in own if each.valid_to is None or each.valid_to > at]
    for each in ending:
        await end_subscription_at(connection, each.subscription_no, at)
    return len(ending)


async def change_state(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    device_nos: Sequence[int],
    state: DeviceState,
    at: datetime | None = None,
    now: datetime,
    key: str | None = None,
    because: str | None = None,
) -> ChangeMade:
    """Let devices be in a state from an instant on, past or future, until their next change.

    `because` names what asked for it where no person did, such as "bill:7".

    Inventory, then active and suspended in turns, then retired for good; any may come at once after
    inventory but suspended. Raises `InvalidValue` for what does not follow so. Retirement ends their
    subscriptions.
    """
    since = at or now

    async def write(connection: Connection) -> int:
        for around in await states_around(connection, device_nos, since):
            _check_order(around, state)
        changed = await set_state(connection, device_nos, state=state, at=since, now=now)
        if state is DeviceState.RETIRED:
            for own in (await subscriptions_of_devices(connection, device_nos)).values():
                # Of one that was retired before, and subscribed since, only that changes.
                changed = max(changed, await _end(connection, own, since))
        return changed

    detail: dict[str, object] = {"state": state.value}
    if because is not None:
        detail["because"] = because
    return await change_once(
        connection, Cause.STATE_CHANGE, detail, write,
        tenant_no=tenant_no, device_nos=device_nos, at=at, now=now,
        key=key,
    )  # fmt: skip


def _check_order(around: StatesAround, state: DeviceState) -> None:
    """Raise `InvalidValue` when a state cannot come between two others."""
    before = around.before or DeviceState.INVENTORY
    if state not in _FOLLOWS[before]:
        raise InvalidValue(
            "state",
            f"device {around.device_id!r} is {before.value} then, which {state.value} cannot follow",
            f"use one of {', '.join(sorted(each.value for each in _FOLLOWS[before]))}",
        )
    if around.after is not None and around.after not in _FOLLOWS[state]:
        raise InvalidValue(
            "state",
            f"device {around.device_id!r} is to be {around.after.value} later, which cannot follow"
            f" {state.value}",
            "choose a later instant, or another state",
        )


async def move_devices(
    connection: Connection,
    *,
    device_nos: Sequence[int],
    fleet: Fleet,
    plan_no: int,
    at: datetime | None = None,
    now: datetime,
    key: str | None = None,
) -> ChangeMade:
    """Move devices into another fleet of their tenant, subscribed to a plan there, at an instant.

    What they used before it stays with the fleets in which they were, also if it arrives later. Moves
    that were planned for later no longer hold.
    """
    since = at or now

    async def write(connection: Connection) -> int:
        await check_currency(connection, plan_no, fleet)
        for device_no, own in (await subscriptions_of_devices(connection, device_nos)).items():
            await _end(connection, own, since)
            await insert_subscription(
                connection,
                Subscription(
                    subscription_no=0,
                    device_no=device_no,
                    plan_no=plan_no,
                    valid_from=since,
                    valid_to=None,
                    fleet_no=fleet.fleet_no,
                ),
            )
        await plan_move(connection, device_nos, fleet.fleet_no, at=since)
        await make_moves(connection, device_nos, now=now)
        return len(device_nos)

    return await change_once(
        connection, Cause.FLEET_CHANGE, {"fleet_no": fleet.fleet_no, "plan_no": plan_no}, write,
        tenant_no=fleet.tenant_no, device_nos=device_nos, at=at, now=now,
        key=key, fleets=[fleet],
    )  # fmt: skip


async def move_due(connection: Connection, *, now: datetime) -> int:
    """Let devices be in the fleet into which they were to move by now; return how many.

    Each pair of fleets is a transaction of its own, under both shards' locks. Since the dates of its
    subscriptions decide what a device's usage is charged to, nothing depends on when this comes.
    """
    async with connection.transaction():
        due = await due_moves(connection, now)
    moved = 0
    for shards, device_nos in due.items():
        async with connection.transaction():
            for shard_no in sorted(set(shards)):
                await lock_shard(connection, shard_no)
            moved += await make_moves(connection, device_nos, now=now)
    return moved


async def swap_sim(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    device_no: int,
    iccid: str,
    imsi: str | None,
    at: datetime | None = None,
    now: datetime,
    key: str | None = None,
) -> ChangeMade:
    """Put another SIM into a device at an instant; a device that had it then has none from there on.

    Usage is a device's, whatever SIM carried it: nothing is charged otherwise.
    """
    checked_id(iccid, "iccid")
    since = at or now

    async def write(connection: Connection) -> int:
        return await set_sim(
            connection, tenant_no, device_no, iccid=iccid, imsi=imsi, at=since, now=now
        )

    return await change_once(
        connection, Cause.SIM_SWAP, {"iccid": iccid, "imsi": imsi}, write,
        tenant_no=tenant_no, device_nos=[device_no], at=at, now=now,
        key=key,
    )  # fmt: skip


async def charge_parked(
    connection: Connection,
    *,
    tenant_no: TenantNo,
    device_nos: Sequence[int],
    now: datetime,
    key: str | None = None,
) -> ChangeMade:
    """Charge what is parked of some devices and can be charged now; the rest stays where it is."""

    async def write(connection: Connection) -> int:
        del connection
        return 0

    return await change_once(
        connection, Cause.PARKED, {}, write,
        tenant_no=tenant_no, device_nos=device_nos, at=None, now=now,
        key=key, since=_EVER,
    )  # fmt: skip


async def _running(
    connection: Connection, own: Sequence[Subscription], at: datetime, device_no: int
) -> Subscription:
    for each in own:
        if each.covers(at):
            return each
    names = await names_of_devices(connection, [device_no])
    _, device_id = names.get(device_no, (None, str(device_no)))
    raise InvalidValue(
        "at",
        f"device {device_id!r} has no subscription then",
        "choose an instant at which it has one, or subscribe it",
    )
