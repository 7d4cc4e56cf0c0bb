"""A fresh database for a benchmark, and readings that are stored in it as the ingester would."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from bench.databases import database_on
from bench.servers import own_servers
from metering.charging.subscribe import subscribe
from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.plan_document import read_plan
from metering.settings import Settings
from metering.store.connection import Connection, connect
from metering.store.migrate import migrate
from metering.store.registry import (
    Fleet,
    ensure_devices,
    ensure_fleet,
    ensure_plan,
    ensure_tenant,
)
from metering.usage import DATA, Reading, ReadingKind

TENANT = "bench"


@contextlib.contextmanager
def own_database() -> Iterator[str]:
    """Yield the URL of an empty database: on the server of the settings, or on one started for it."""
    settings = Settings()
    if settings.database_url is not None:
        with database_on(settings.database_url.get_secret_value()) as url:
            yield url
        return
    with own_servers() as servers, database_on(servers.database_url) as url:
        yield url


async def migrated(url: str) -> Connection:
    """Bring a database up to this release; return a connection to it in autocommit mode."""
    connection = await connect(url, application="bench", autocommit=True)
    await migrate(connection)
    return connection


async def fleet_of(
    connection: Connection,
    fleet_id: str,
    devices: int,
    plan: Mapping[str, object],
    *,
    now: datetime,
) -> tuple[Fleet, list[str]]:
    """Register a fleet of so many devices, all subscribed to a plan; return it and their ids."""
    tenant = await ensure_tenant(connection, tenant_id=TENANT, name="Bench", now=now)
    fleet = await ensure_fleet(
        connection, tenant=tenant, fleet_id=fleet_id, name=fleet_id, currency="EUR",
        time_zone="Europe/Berlin", anchor_day=1, now=now,
    )  # fmt: skip
    device_ids = [f"{fleet_id}-{number}" for number in range(devices)]
    since = now - timedelta(days=100)
    numbers = await ensure_devices(
        connection, fleet=fleet, device_ids=device_ids, active_from=since, now=now
    )
    plan_no = await ensure_plan(connection, tenant=tenant, plan=read_plan(plan), now=now)
    await subscribe(
        connection, fleet=fleet, device_nos=[int(numbers[each]) for each in device_ids],
        plan_no=plan_no, valid_from=since, now=now,
    )  # fmt: skip
    return fleet, device_ids


def message(device_id: str, seqs: Sequence[int], *, now: datetime) -> Message:
    """Return a device's message with readings of some numbers, as admission would make it."""
    return Message(
        topic=f"fm/v1/{TENANT}/{device_id}/usage",
        octets=100,
        sender=(TenantId(TENANT), DeviceId(device_id)),
        received_at=now,
        published_at=now,
        boot="boot-1",
        readings=[
            Reading(
                seq=seq,
                at=now - timedelta(hours=1) + timedelta(milliseconds=seq),
                meter=DATA,
                kind=ReadingKind.DELTA,
                uplink=100 + seq % 17,
                downlink=900,
            )
            for seq in seqs
        ],
        rejections=(),
    )
