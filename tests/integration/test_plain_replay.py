"""What the audit replays many readings at a time is what the core makes of each, and no damage passes."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest

from metering.insight.audit import audit_database, audit_fleet
from metering.rating.account import MeterUse
from metering.replay import plain
from metering.replay.load import load_replay
from metering.replay.plain import NotSums, PlainReplay
from metering.settings import Settings
from metering.store import history
from metering.store.audit import all_fleets
from metering.store.connection import Connection, connect
from metering.store.history import run_steps
from metering.store.registry import Fleet
from tests.integration import ample, rich, test_uniform_usage
from tests.integration.pipeline import fresh_database
from tests.integration.rich import publish

WORLDS = ("alike", "ample", "rich")


@pytest.fixture(scope="module")
def worlds(stack_settings: Settings) -> Iterator[dict[str, str]]:
    """Yield databases: of readings most of which are alike, of ample allowances, and of rich plans."""
    assert stack_settings.database_url is not None
    server_url = stack_settings.database_url.get_secret_value()
    with (
        fresh_database(server_url) as alike,
        fresh_database(server_url) as of_ample,
        fresh_database(server_url) as of_rich,
    ):
        asyncio.run(_charge(alike, of_ample, of_rich))
        yield {"alike": alike, "ample": of_ample, "rich": of_rich}


async def _charge(alike: str, of_ample: str, of_rich: str) -> None:
    async with await connect(of_ample, application="test", autocommit=True) as connection:
        await ample.begin(connection)
    async with await connect(alike, application="test", autocommit=True) as connection:
        await test_uniform_usage.begin(connection)
        every = list(test_uniform_usage.sent(random.Random(5)))  # noqa: S311 - no secret
        for first in range(0, len(every), 7):
            await publish(connection, every[first : first + 7], readings_max=60)
    async with await connect(of_rich, application="test", autocommit=True) as connection:
        await rich.begin(connection)
        for batch in rich.batched(list(rich.messages(seed=4)), size=20):
            await publish(connection, batch, readings_max=10)


async def _replayed(
    connection: Connection, ways: Counter[str] | None = None, *, sums: bool = False
) -> list[object]:
    """Return all accounts of all fleets, replayed as sums, many readings at a time, or (None) one by one."""
    found: list[object] = []
    for fleet in await all_fleets(connection):
        try:
            found += await _replayed_fleet(connection, fleet, ways, sums=sums)
        except NotSums:
            assert ways is not None
            ways["in order after all"] += 1
            found += await _replayed_fleet(connection, fleet, ways, sums=False)
    return found


async def _replayed_fleet(
    connection: Connection, fleet: Fleet, ways: Counter[str] | None, *, sums: bool
) -> list[object]:
    replay = await load_replay(connection, fleet)
    many = PlainReplay(replay)
    steps = (
        run_steps(connection, fleet.fleet_no)
        if ways is None
        else many.steps_beside(connection, sums=sums)
    )
    places: list[tuple[int, int]] = []
    async for step in steps:
        replay.step(step)
        places.append((step.run_no, step.run_position))
    replay.finish()
    if ways is not None:
        ways["as sums"] += many.summed.total()
        ways["many at a time"] += many.charges - many.summed.total()
        ways["one by one"] += len(places)
    drawn = Counter(many.drawn)
    assert places == sorted(set(places))
    assert all(drawn[number] <= replay.buckets[number].used for number in drawn)
    return [
        replay.accounts.uses,
        replay.accounts.counts,
        replay.hours,
        {key: epoch.points for key, epoch in replay.epochs.items()},
        replay.buckets,
        replay.rolled_otherwise,
        replay.differences,
    ]


@pytest.mark.parametrize("rows_at_once", [5000, 3])
@pytest.mark.parametrize("world", WORLDS)
def test_what_is_replayed_many_at_a_time_comes_to_the_same_accounts(
    worlds: dict[str, str], world: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_ROWS_AT_ONCE", rows_at_once)
    ways: Counter[str] = Counter()

    async def both() -> tuple[list[object], list[object]]:
        async with await connect(worlds[world], application="test") as connection:
            return await _replayed(connection, ways), await _replayed(connection)

    many, one_by_one = asyncio.run(both())
    assert many == one_by_one
    assert ways["many at a time"] > (20 if world == "alike" else 0), ways
    assert ways["one by one"] > (20 if world == "alike" else 0), ways


@pytest.mark.parametrize("world", WORLDS)
def test_what_is_added_up_comes_to_the_same_accounts(worlds: dict[str, str], world: str) -> None:
    ways: Counter[str] = Counter()

    async def both() -> tuple[list[object], list[object]]:
        async with await connect(worlds[world], application="test") as connection:
            return await _replayed(connection, ways, sums=True), await _replayed(connection)

    sums, one_by_one = asyncio.run(both())
    assert sums == one_by_one
    if world == "ample":
        assert ways["as sums"] > 200, ways
        assert all(ways[each] for each in ("many at a time", "one by one", "in order after all")), (
            ways
        )
        used = [use.quantity for each in sums if isinstance(each, dict) for use in each.values()
                if isinstance(use, MeterUse)]  # fmt: skip
        assert 10 * ample.VAST in used


def test_an_order_of_which_sums_do_not_tell_is_found_wrong(worlds: dict[str, str]) -> None:
    """A device drew from a pool before another emptied it; what says that it was after that is wrong."""

    async def damaged() -> list[str]:
        async with await connect(worlds["ample"], application="test") as connection:
            changed = await connection.execute(
                "UPDATE charge SET run_no = other.run_no FROM charge AS other, fleet"
                " WHERE fleet.fleet_id = 'brim' AND charge.fleet_no = fleet.fleet_no"
                " AND other.fleet_no = fleet.fleet_no AND other.device_no <> charge.device_no"
            )
            assert changed.rowcount == 2
            found = (await audit_database(connection)).differences
            await connection.rollback()
            return found

    assert sum("is charged as" in each for each in asyncio.run(damaged())) == 2


def test_two_charges_at_one_place_are_named_where_no_sum_changes_by_it(
    worlds: dict[str, str],
) -> None:
    async def damaged() -> tuple[list[str], list[str], list[str]]:
        async with await connect(worlds["ample"], application="test") as connection:
            boots = await _boots(connection, summed=True)
            found = await connection.execute(
                "SELECT boot_no, seq, run_no, run_position FROM charge JOIN fleet USING (fleet_no)"
                " WHERE fleet_id = 'pool' AND boot_no = ANY(%s)"
                " ORDER BY run_no, run_position OFFSET 30 LIMIT 2",
                [boots],
            )
            first, second = await found.fetchall()
            await connection.execute(
                "UPDATE charge SET run_no = %s, run_position = %s WHERE (boot_no, seq) = (%s, %s)",
                [*first[2:], *second[:2]],
            )
            differences = (await audit_database(connection)).differences
            fleet = next(each for each in await all_fleets(connection) if each.fleet_id == "pool")
            of_fleet = (await audit_fleet(connection, fleet)).differences
            await connection.rollback()
            # Which of the two is taken for the other's is not told by anything.
            either = [
                f"reading boot {each[0]} seq {each[1]} is charged as" for each in (first, second)
            ]
            return either, differences, of_fleet

    named, *found = asyncio.run(damaged())
    for differences in found:
        assert any(one in each for each in differences for one in named), differences


_PLAIN_CHARGE = (
    "(boot_no, seq) IN (SELECT charge.boot_no, charge.seq FROM charge JOIN reading"
    " USING (boot_no, seq, measured_at) JOIN device ON device.device_no = reading.device_no"
    " WHERE kind = 1 AND since IS NULL AND charge.meter_no = 1 AND {paid} AND charge.quantity > 2"
    " AND reading.downlink > 0 AND charge.boot_no = ANY(%(boots)s::bigint[])"
    " ORDER BY run_no DESC, run_position DESC LIMIT 1)"
)
PAID = {
    "by a pool": "from_pool = charge.quantity",
    "by an allowance": "from_allowance = charge.quantity AND device_id LIKE 'own-%%'",
    "by nobody": "overage = charge.quantity",
}
CHANGES = {
    "charge": {
        "part": "part + 1",
        "fleet_no": "3 - fleet_no",
        "subscription_no": "subscription_no + 1",
        "plan_no": "3 - plan_no",
        "meter_no": "meter_no + 1",
        "cycle_start": "cycle_start + interval '1 microsecond'",
        "usage_from": "usage_from - interval '1 microsecond'",
        "usage_to": "usage_to + interval '1 microsecond'",
        "quantity": "quantity + 1",
        "uplink": "uplink + 1",
        "variant": "variant + 1",
        "zone": "'eu'",
        "band": "'night'",
        "billed": "billed + 1",
        "from_allowance": "from_allowance + 1",
        "from_pool": "from_pool + 1",
        "overage": "overage + 1",
        "priced_before": "priced_before + 1",
        "amount": "amount + 1",
        "connection_fee": "connection_fee + 1",
        "draw_buckets": "ARRAY[coalesce(draw_buckets[1], 1) + 1]",
        "draw_quantities": "ARRAY[coalesce(draw_quantities[1], 1) + 1]",
        "from_allowance, as if something else had paid": (
            "from_pool + overage, from_pool = from_allowance, overage = 0, amount = 0,"
            " draw_buckets = coalesce(draw_buckets, ARRAY[1::bigint]), draw_quantities = ARRAY[quantity]"
        ),
        "amount, beyond what eight octets hold": "10::numeric ^ 25",
        "priced_before, beyond what eight octets hold": "10::numeric ^ 25",
    },
    "reading": {
        "meter_no": "2",
        "kind": "2",
        "uplink": "uplink + 1",
        "downlink": "downlink - 1",
        "since": "measured_at - interval '1 second'",
    },
}


_ALIKE = re.compile(
    r"Decimal\('(-?[\dE+]+)'\)|, tzinfo=(?:datetime\.timezone\.utc|zoneinfo\.\S+?\))"
)
"""How one value may be told: as another type of the same number, by another name of UTC."""


async def _boots(connection: Connection, *, summed: bool) -> list[int]:
    """Return the boots whose charges are added up, or all of them."""
    if not summed:
        found = await connection.execute("SELECT boot_no FROM boot")
        return [row[0] for row in await found.fetchall()]
    boots: list[int] = []
    for fleet in await all_fleets(connection):
        many = PlainReplay(await load_replay(connection, fleet))
        with suppress(NotSums):
            async for step in many.steps_beside(connection, sums=True):
                many._replay.step(step)
            boots += many.summed
    return boots


@pytest.mark.parametrize(
    ("world", "table", "paid"),
    [
        *(("alike", "charge", paid) for paid in PAID),
        ("alike", "reading", "by nobody"),
        ("ample", "charge", "by a pool"),
        ("ample", "reading", "by a pool"),
    ],
)
def test_damage_to_any_column_is_named_as_the_core_names_it(
    worlds: dict[str, str], world: str, table: str, paid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps(self: PlainReplay, connection: Connection, **_: bool) -> object:
        async for step in run_steps(connection, self._replay.fleet.fleet_no):
            yield step

    async def audited(connection: Connection) -> set[str]:
        differences = (await audit_database(connection)).differences
        return {_ALIKE.sub(r"\1", each) for each in differences}

    async def damaged(
        connection: Connection, column: str, boots: list[int]
    ) -> tuple[set[str], set[str]]:
        async with connection.transaction(force_rollback=True):
            changed = await connection.execute(
                f"UPDATE {table} SET {column.split(',', maxsplit=1)[0]} = {CHANGES[table][column]} WHERE "  # noqa: S608
                + _PLAIN_CHARGE.format(paid=PAID[paid]),
                {"boots": boots},
            )
            assert changed.rowcount == 1
            many = await audited(connection)
            with monkeypatch.context() as patched:
                patched.setattr(plain.PlainReplay, "steps_beside", steps)
                return many, await audited(connection)

    async def every() -> None:
        async with await connect(worlds[world], application="test") as connection:
            boots = await _boots(connection, summed=world == "ample")
            found = await connection.execute(
                "SELECT conrelid::regclass, conname FROM pg_constraint WHERE contype = 'c'"
                " AND conrelid IN ('charge'::regclass, 'reading'::regclass)"
            )
            for of_table, name in await found.fetchall():
                await connection.execute(f"ALTER TABLE {of_table} DROP CONSTRAINT {name}")
            assert await audited(connection) == set()
            for column in CHANGES[table]:
                many, one_by_one = await damaged(connection, column, boots)
                assert many, column
                assert many == one_by_one, column
            await connection.rollback()

    asyncio.run(every())
