"""`fleetmeter explain`: says why a reading costs what it costs, or what a line of a bill is made of."""

import argparse
import asyncio
from collections.abc import Sequence

from metering.clock import now
from metering.errors import InvalidValue, NotFound
from metering.insight.explain import Explained, explained_reading
from metering.insight.explain_line import explained_line
from metering.settings import Settings
from metering.store.charge_views import list_readings
from metering.store.connection import connect, database_url
from metering.store.device_views import device_view
from metering.store.registry import tenant_no


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare which reading, or which line of which bill."""
    parser.add_argument("--tenant", required=True, help="the tenant's id")
    parser.add_argument("--device", help="the device's id; with --bill: list its charges")
    parser.add_argument("--boot", help="the boot id that the device told")
    parser.add_argument("--seq", type=int, help="the reading's number in its boot")
    parser.add_argument("--bill", metavar="NUMBER", help="a final bill's number, as it is written")
    parser.add_argument("--line", type=int, help="the number of its line")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print why; 1 if it is not charged.

    Raises `InvalidValue` unless a reading, or a line of a bill, is named.
    """
    if arguments.bill is not None:
        _check(arguments, ("line",), without=("boot", "seq"))
        print(*asyncio.run(_line(arguments, settings)), sep="\n")
        return 0
    _check(arguments, ("device", "boot", "seq"), without=("line",))
    explained, parked = asyncio.run(_explained(arguments, settings))
    for each in explained:
        print(*each.words, sep="\n")
        if each.place is not None:
            print(f"It stands on line {each.place.line} of {each.place.number}.")
        print()
    if not explained:
        print(f"it is parked: {parked}" if parked else "it waits to be charged")
    return 0 if explained else 1


def _check(arguments: argparse.Namespace, needed: Sequence[str], *, without: Sequence[str]) -> None:
    for name in needed:
        if getattr(arguments, name) is None:
            raise InvalidValue(
                f"--{name}", "is missing", "give --device, --boot and --seq, or --bill and --line"
            )
    for name in without:
        if getattr(arguments, name) is not None:
            raise InvalidValue(f"--{name}", "is of no use here", "leave it out")


async def _line(arguments: argparse.Namespace, settings: Settings) -> list[str]:
    async with await connect(database_url(settings), application="explain") as connection:
        tenant = await tenant_no(connection, arguments.tenant)
        return await explained_line(
            connection, tenant, bill=arguments.bill, line=arguments.line, device=arguments.device
        )


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
