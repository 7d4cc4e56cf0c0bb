"""`fleetmeter explain`: says why a reading costs what it costs."""

import argparse
import asyncio

from metering.clock import now
from metering.errors import NotFound
from metering.insight.explain import Explained, explained_reading
from metering.settings import Settings
from metering.store.charge_views import list_readings
from metering.store.connection import connect, database_url
from metering.store.device_views import device_view
from metering.store.registry import tenant_no


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare which reading."""
    parser.add_argument("--tenant", required=True, help="the tenant's id")
    parser.add_argument("--device", required=True, help="the device's id")
    parser.add_argument("--boot", required=True, help="the boot id that the device told")
    parser.add_argument("--seq", required=True, type=int, help="the reading's number in its boot")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print why; 1 if it is not charged."""
    explained, parked = asyncio.run(_explained(arguments, settings))
    for each in explained:
        print(*each.words, sep="\n")
        print()
    if not explained:
        print(f"it is parked: {parked}" if parked else "it waits to be charged")
    return 0 if explained else 1


async def _explained(
    arguments: argparse.Namespace, settings: Settings
) -> tuple[list[Explained], str | None]:
    async with await connect(database_url(settings), application="explain") as connection:
        tenant = await tenant_no(connection, arguments.tenant)
        device = await device_view(connection, tenant, device_id=arguments.device, now=now())
        readings = await list_readings(
            connection, tenant, device_no=device.device_no, boot_id=arguments.boot,
            seq=arguments.seq, before=None, limit=1,
        )  # fmt: skip
        if not readings:
            raise NotFound("reading", f"{arguments.seq} of boot {arguments.boot}")
        (reading,) = readings
        explained = await explained_reading(
            connection, tenant, boot_no=reading.boot_no, seq=reading.seq
        )
        return explained, reading.parked
