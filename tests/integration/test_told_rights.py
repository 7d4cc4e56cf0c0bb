"""What the broker was told, beside changes that are under way: none is forgotten."""

import asyncio
from datetime import UTC, datetime

from metering.control.tell_rights import urgent
from metering.credentials.password import hash_of
from metering.ids import DeviceId
from metering.store.broker_clients import clients_of, clients_to_look_at, note_told, save_client
from metering.store.connection import connect
from metering.store.registry import ensure_devices, ensure_fleet, ensure_tenant

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_suspension_that_commits_while_it_is_noted_what_was_told_is_looked_at(
    database_url: str,
) -> None:
    async def scene() -> list[int]:
        async with (
            await connect(database_url, application="test", autocommit=True) as connection,
            await connect(database_url, application="suspends") as other,
        ):
            tenant = await ensure_tenant(connection, tenant_id="acme", name="Acme", now=BEGAN)
            fleet = await ensure_fleet(
                connection, tenant=tenant, fleet_id="vans", name="Vans", currency="EUR",
                time_zone="UTC", anchor_day=1, now=BEGAN,
            )  # fmt: skip
            numbers = await ensure_devices(
                connection, fleet=fleet, device_ids=["van-1"], active_from=BEGAN, now=BEGAN
            )
            number = next(iter(numbers.values()))
            await save_client(connection, number, hash_of("secret"), now=BEGAN)
            told = await clients_of(connection, [number])
            await other.execute(
                "INSERT INTO device_state_change (device_no, effective_from, state, recorded_at)"
                " VALUES (%s, %s, 'suspended', %s)",
                [number, BEGAN.replace(month=2), BEGAN.replace(month=2)],
            )
            noting = asyncio.create_task(note_told(connection, told))
            waiting = False
            async with await connect(
                database_url, application="looks", autocommit=True
            ) as onlooker:
                while not waiting:
                    found = await onlooker.execute(
                        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                        " AND wait_event_type = 'Lock'"
                    )
                    ((count,),) = await found.fetchall()
                    waiting = count > 0
            await other.commit()
            await noting
            due = await clients_to_look_at(connection, now=datetime.now(UTC), limit=10)
            return [each.device_no for each in due if each.right.value == "suspended"]

    assert len(asyncio.run(asyncio.wait_for(scene(), 60))) == 1


def test_a_suspension_waits_for_none_of_whom_the_broker_knows_nothing(database_url: str) -> None:
    async def scene() -> tuple[list[str], list[str]]:
        async with await connect(database_url, application="test", autocommit=True) as connection:
            tenant = await ensure_tenant(connection, tenant_id="acme", name="Acme", now=BEGAN)
            fleet = await ensure_fleet(
                connection, tenant=tenant, fleet_id="vans", name="Vans", currency="EUR",
                time_zone="UTC", anchor_day=1, now=BEGAN,
            )  # fmt: skip
            names = [f"van-{number}" for number in range(20)]
            numbers = await ensure_devices(
                connection, fleet=fleet, device_ids=names, active_from=BEGAN, now=BEGAN
            )
            for name in names:  # the longest due first
                await save_client(connection, numbers[DeviceId(name)], hash_of("secret"), now=BEGAN)
            suspended = numbers[DeviceId("van-19")]
            await note_told(connection, await clients_of(connection, [suspended]))
            await connection.execute(
                "INSERT INTO device_state_change (device_no, effective_from, state, recorded_at)"
                " VALUES (%s, %s, 'suspended', now())",
                [suspended, BEGAN.replace(month=2)],
            )
            told: list[list[str]] = []
            for _ in range(2):
                due = urgent(await clients_to_look_at(connection, now=datetime.now(UTC), limit=10))
                told.append([each.device_id for each in due])
                await note_told(connection, due)
            return told[0], told[1]

    first, second = asyncio.run(asyncio.wait_for(scene(), 60))
    assert first == ["van-19"]
    assert len(second) == 5
    assert set(second) <= {f"van-{number}" for number in range(19)}
