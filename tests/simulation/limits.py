"""Operations on thresholds and on the webhook endpoints that are told of their alerts."""

import random
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from metering.charging.change_thresholds import (
    change_threshold,
    create_threshold,
    delete_threshold,
)
from metering.errors import NotFound
from metering.rating.threshold import Measure, Per, Recurrence
from metering.store.connection import Connection
from metering.store.control_views import create_endpoint
from metering.store.thresholds import NewThreshold, Terms
from metering.usage import METERS
from tests.simulation.planned import Plan, Planned
from tests.simulation.scenes import AskedThreshold, SimulatedFleet

if TYPE_CHECKING:
    from tests.simulation.world import World

SECRET = b"a secret of thirty-two octets !!"
_LIMITS = {
    "data": ("900", "2500", "7000"),
    "sms": ("2", "4", "6"),
    "voice": ("1", "120", "600"),
    "messages": ("1", "2", "4"),
}
"""Small enough that usage comes to some of them exactly."""


def make_threshold(world: "World") -> Planned | None:
    """Make a threshold of any kind, over which somebody may be already; the request may come twice."""
    if not world.features.thresholds:
        return None
    chance = world.chance
    fleet = chance.choice(world.fleets)
    new = _drawn(chance, fleet)
    key, now = f"threshold-{len(world.trace)}", world.now
    times = chance.choice([1, 1, 2])
    made: list[int] = []

    async def run(connection: Connection) -> None:
        for _ in range(times):
            threshold, _ = await create_threshold(
                connection,
                fleet=fleet.fleet,
                new=new,
                request_key=key,
                request={"key": key},
                now=now,
            )
            made.append(threshold.threshold_no)

    def done() -> None:
        assert len(set(made)) == 1, f"{key} made {made}"
        fleet.limits[made[0]] = AskedThreshold(new, [new.terms])

    about = f"{new.measure} {new.meter_no} {new.per} {new.period} {new.terms.limit} {new.terms.percent} %"
    return Planned(f"a threshold in {fleet.tenant_id}/{fleet.kind}: {about}", run, done)


def _drawn(chance: random.Random, fleet: SimulatedFleet) -> NewThreshold:
    measure = chance.choice(list(Measure))
    per = Per.DEVICE if measure is Measure.ALLOWANCE else chance.choice(list(Per))
    meter = chance.choice(["data", "sms", "sms", "voice", "messages"])
    meter_no: int | None = METERS[meter].meter_no
    limit: str | None = None
    if measure is Measure.SPEND:
        meter_no = chance.choice([None, meter_no])
        limit = chance.choice(["0.0001", "0.1", "0.45"])
    elif measure is Measure.QUANTITY:
        limit = chance.choice(_LIMITS[meter])
    of_device = per is Per.DEVICE and fleet.numbers and chance.random() < 0.5
    return NewThreshold(
        device_no=chance.choice(sorted(fleet.numbers.values())) if of_device else None,
        per=per,
        measure=measure,
        meter_no=meter_no,
        period=chance.choice([Recurrence.CYCLE, Recurrence.CYCLE, Recurrence.DAY]),
        name="limit",
        terms=Terms(
            limit=None if limit is None else Decimal(limit),
            percent=Decimal(chance.choice(["50", "100", "100"])),
            actions=_actions(chance),
            enabled=chance.random() < 0.9,
        ),
    )


def _actions(chance: random.Random) -> Sequence[dict[str, Any]]:
    return chance.choice(
        [
            [],
            [{"kind": "balance"}],
            [{"kind": "throttle", "octets_per_second": chance.choice([100, 2000])}],
            [{"kind": "suspend"}],
            [{"kind": "balance"}, {"kind": "suspend"}],
        ]
    )


def _some_limit(world: "World") -> tuple[SimulatedFleet, int, AskedThreshold] | None:
    found = [
        (fleet, number, asked)
        for fleet in world.fleets
        for number, asked in fleet.limits.items()
        if asked.said[-1] is not None
    ]
    return world.chance.choice(found) if found else None


def alter_threshold(world: "World") -> Planned | None:
    """Let a threshold say something else: more, less, nothing, or something again."""
    found = _some_limit(world)
    if found is None:
        return None
    fleet, number, asked = found
    chance, now = world.chance, world.now
    before = asked.said[-1]
    assert before is not None
    terms = chance.choice(
        [
            replace(before, limit=None if before.limit is None else before.limit * 3),
            replace(before, limit=None if before.limit is None else before.limit / 2),
            replace(before, percent=Decimal(chance.choice(["10", "60", "100"]))),
            replace(before, enabled=not before.enabled),
        ]
    )

    async def run(connection: Connection) -> None:
        await change_threshold(
            connection, fleet=fleet.fleet, tenant_no=fleet.fleet.tenant_no, threshold_no=number,
            terms=terms, now=now,
        )  # fmt: skip

    def done() -> None:
        if terms != asked.said[-1]:
            asked.said.append(terms)

    about = f"{terms.limit} {terms.percent} % {'' if terms.enabled else 'disabled'}"
    return Planned(f"threshold {number} is {about}", run, done)


def end_threshold(world: "World") -> Planned | None:
    """End a threshold; whom it restrains is resumed."""
    found = _some_limit(world)
    if found is None:
        return None
    fleet, number, asked = found
    now = world.now
    tries: list[int] = []

    async def run(connection: Connection) -> None:
        tries.append(number)
        try:
            await delete_threshold(
                connection, fleet=fleet.fleet, tenant_no=fleet.fleet.tenant_no, threshold_no=number,
                now=now,
            )  # fmt: skip
        except NotFound:
            # Only if it was ended by a try whose answer was lost.
            assert len(tries) > 1
            await connection.rollback()

    return Planned(f"end threshold {number}", run, lambda: asked.said.append(None))


def add_endpoint(world: "World") -> Planned | None:
    """Have a tenant's events told to another URL: all of them, or those of some kinds."""
    if len(world.endpoints) >= world.features.endpoints_max:
        return None
    tenant_id = world.chance.choice(sorted(world.tenants))
    url = f"https://hooks.{tenant_id}.example/{len(world.endpoints)}"
    kinds = world.chance.choice([[], [], ["threshold.crossed", "reservation.expired"]])
    now = world.now
    if world.chance.random() < 0.1:
        world.receivers.gone.add(url)
    world.endpoints[url] = (tenant_id, kinds)

    async def run(connection: Connection) -> None:
        async with connection.transaction():
            await create_endpoint(
                connection, world.tenants[tenant_id], url=url, secret=SECRET, kinds=kinds, cause=url,
                now=now,
            )  # fmt: skip

    def done() -> None:
        world.listening[url] = world.now

    return Planned(f"events of {tenant_id} to {url}: {kinds or 'all'}", run, done)


LIMIT_OPERATIONS: Sequence[tuple[float, Plan]] = (
    (3, make_threshold),
    (1.5, alter_threshold),
    (0.7, end_threshold),
    (1, add_endpoint),
)
"""Each with its weight."""
