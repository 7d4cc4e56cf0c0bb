"""A worker that lost its lease between any two statements commits nothing, whatever it believes."""

import asyncio
import itertools
from datetime import timedelta

import pytest

from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.store.connection import connect
from metering.usage import SMS, Reading, ReadingKind
from tests.simulation.processes import SimulatedWorker
from tests.simulation.promises import charged_by_others
from tests.simulation.scenes import begin
from tests.simulation.seeds import emptied, simulation_database
from tests.simulation.stepping import Actor, Order, State
from tests.simulation.world import World, simulated_world, start_worker

_READINGS = 3
_STEPS_MAX = 400
_PARTS = 4
"""Among how many tests the statements are divided, in turn."""


async def _queue_usage(world: World) -> int:
    """Store readings of every device, in two batches; return how many."""
    async with await connect(world.url, application="scene") as connection:
        _, world.fleets = await begin(connection, world.chance, now=world.now, asking=0)
        devices = world.devices
        for batch in range(2):
            messages = [
                Message(
                    topic=device.topic("fm/v1"), octets=100,
                    sender=(TenantId(device.tenant), DeviceId(device.device_id)),
                    received_at=world.now, published_at=None, boot="boot-1", rejections=(),
                    readings=[
                        Reading(
                            seq=1 + batch * _READINGS + number, at=world.now - timedelta(minutes=1),
                            meter=SMS, kind=ReadingKind.DELTA, quantity=2,
                        )
                        for number in range(_READINGS)
                    ],
                )
                for device in devices
            ]  # fmt: skip
            await write_batch(connection, DeviceCache(100), messages, now=world.now)
    return 2 * _READINGS * len(devices)


async def _until_rest(world: World, actor: Actor) -> None:
    """Let an actor go on until it has nothing to do, or waits for a lock."""
    for _ in range(_STEPS_MAX):
        if actor.state is State.BLOCKED:
            return
        await world.steps.step(actor, Order.GO)
        assert actor.error is None
        if actor.rests:
            return
    raise AssertionError(f"{actor.name} does not come to rest")


async def _new_worker(world: World, number: int) -> SimulatedWorker:
    await start_worker(
        world, world.steps.actor(f"worker-{number}"), world.steps.actor(f"keeper-{number}")
    )
    worker = world.workers[-1]
    await _until_rest(world, worker.keeper.actor)
    return worker


async def _taken_over(url: str, *, after_steps: int, first: int) -> set[str]:
    """Take a worker's shards over after so many of its statements; then both go on, one first.

    Returns who charged; nobody when the worker had nothing left to do before.
    """
    async with simulated_world(url, 11, []) as world:
        world.look_share = 0
        readings = await _queue_usage(world)
        stopped = await _new_worker(world, 1)
        for _ in range(after_steps):
            await world.steps.step(stopped.actor, Order.GO)
            if stopped.actor.rests:
                return set()
        believed = stopped.keeper.leases
        assert believed is not None
        await world.admin.execute("UPDATE charging_worker SET leased_until = '-infinity'")
        other = await _new_worker(world, 2)
        await _until_rest(world, other.keeper.actor)
        taken = other.keeper.leases
        assert taken is not None
        # Both believe now that they lease the same shards; the other one's fences are higher.
        assert stopped.keeper.leases is believed
        shards = {each.fleet.shard_no for each in world.fleets}
        assert all(taken.fences[shard] > believed.fences[shard] for shard in shards)
        for each in (stopped, other) if first == 1 else (other, stopped):
            for _ in range(3):
                await _until_rest(world, each.actor)
        found = await world.admin.execute(
            "SELECT (SELECT count(DISTINCT (boot_no, seq)) FROM charge),"
            " (SELECT count(*) FROM charge) + (SELECT count(*) FROM parked),"
            " (SELECT count(*) FROM work_item)"
        )
        charged, fates, queued = (await found.fetchall())[0]
        assert (fates, queued) == (readings, 0), (charged, fates, queued)
        assert await charged_by_others(world.admin) == []
        found = await world.admin.execute("SELECT DISTINCT by FROM watched.run")
        return {row[0] for row in await found.fetchall()}


@pytest.mark.parametrize("part", range(_PARTS))
def test_who_lost_its_lease_between_any_two_statements_commits_nothing(
    server_url: str, part: int
) -> None:
    every: list[set[str]] = []
    with simulation_database(server_url) as url:
        for after_steps in itertools.count(part, _PARTS):
            emptied(url)
            charged_by = asyncio.run(
                _taken_over(url, after_steps=after_steps, first=1 + after_steps % 2)
            )
            if not charged_by:
                break
            every.append(charged_by)
    # Taken over amid its transaction it commits nothing; after it, everything is charged already.
    assert all(len(each) == 1 for each in every)
    assert sum(each == {"fleetmeter worker-2"} for each in every) > 20 // _PARTS
