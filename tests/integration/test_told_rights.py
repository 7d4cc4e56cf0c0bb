"""What the broker was told, beside changes that are under way: none is forgotten."""

import asyncio
from datetime import UTC, datetime

from metering.credentials.password import hash_of
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
            return [each.device_no for each in due if each.right.value == "listen"]

    assert len(asyncio.run(asyncio.wait_for(scene(), 60))) == 1
