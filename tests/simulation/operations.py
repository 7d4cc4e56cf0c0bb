"""What an operator does while everything else goes on: the simulation's vocabulary.

An operation is one entry in `OPERATIONS`. It is planned with the seed's chance and then run as a
transaction of the product, again and again until it has committed: it has to be idempotent, as
every command of the product is. What it changed is noted once it is done.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metering.charging.open_cycle import open_due_cycles
from metering.charging.subscribe import subscribe
from metering.plan_document import read_plan
from metering.store.connection import Connection
from metering.store.registry import ensure_devices, ensure_plan
from tests.simulation.scenes import device

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass(frozen=True, slots=True)
class Planned:
    """An operation that was decided: what it is, how to run it, and what to note when it is done."""

    about: str
    run: Callable[[Connection], Awaitable[object]]
    done: Callable[[], None] = lambda: None


Plan = Callable[["World"], Planned | None]
"""Decides on an operation; None when there is nothing for it to do."""


def add_device(world: "World") -> Planned | None:
    """Register a device that nobody has subscribed yet: what it uses is parked."""
    fleet = world.chance.choice(world.fleets)
    serial = sum(len(each.devices) for each in world.fleets if each.tenant_id == fleet.tenant_id)
    if serial >= world.devices_max:
        return None
    # Ids are the same in both tenants, and published under before they are registered.
    made = device(world.chance, fleet.tenant_id, f"device-{serial + 1}")
    now = world.now
    fleet.devices.append(made)

    async def run(connection: Connection) -> None:
        async with connection.transaction():
            await ensure_devices(
                connection, fleet=fleet.fleet, device_ids=[made.device_id], active_from=now, now=now
            )

    return Planned(f"add {made.name} to {fleet.kind}", run)


def subscribe_device(world: "World") -> Planned | None:
    """Subscribe a device that has no plan, from now on, to a pool that may be in use."""
    waiting = [
        (fleet, each)
        for fleet in world.fleets
        for each in fleet.devices
        if each.device_id not in fleet.plan_of
    ]
    if not waiting:
        return None
    fleet, found = world.chance.choice(waiting)
    plan_no = world.chance.choice(list(fleet.plans))
    now = world.now

    async def run(connection: Connection) -> None:
        async with connection.transaction():
            numbers = await ensure_devices(
                connection,
                fleet=fleet.fleet,
                device_ids=[found.device_id],
                active_from=now,
                now=now,
            )
        await subscribe(
            connection, fleet=fleet.fleet, device_nos=list(numbers.values()), plan_no=plan_no,
            valid_from=now, now=now,
        )  # fmt: skip

    def done() -> None:
        fleet.plan_of[found.device_id] = plan_no
        fleet.subscribed_from[found.device_id] = now

    fleet.changed = True
    return Planned(f"subscribe {found.name}", run, done)


def add_plan_version(world: "World") -> Planned | None:
    """Add a version of a plan; who is subscribed from then on is on it."""
    fleet = world.chance.choice(world.fleets)
    document = world.chance.choice(list(fleet.plans.values()))
    changed = {**document, "monthly_fee": str(1 + len(fleet.plans))}
    if len(fleet.plans) > len({str(each["plan"]) for each in fleet.plans.values()}) + 1:
        return None
    now = world.now
    made: list[int] = []

    async def run(connection: Connection) -> None:
        async with connection.transaction():
            number = await ensure_plan(
                connection, tenant=fleet.fleet.tenant_no, plan=read_plan(changed), now=now
            )
        made.append(number)

    def done() -> None:
        fleet.plans[made[-1]] = changed  # type: ignore[index] # a number of a plan

    return Planned(f"add a version of plan {document['plan']}", run, done)


def open_cycles(world: "World") -> Planned | None:
    """Look for cycles that are due, as every worker does."""
    now = world.now

    async def run(connection: Connection) -> None:
        await open_due_cycles(connection, now=now)

    return Planned("open the cycles that are due", run)


OPERATIONS: Sequence[tuple[float, Plan]] = (
    (2, add_device),
    (4, subscribe_device),
    (1, add_plan_version),
    (1, open_cycles),
)
"""Each with its weight."""
