"""A bill run: the bill so far of every fleet of a tenant, one after the other."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter

from bench.product import Product
from bench.workload import TENANT
from metering.billing.bill import bill_so_far
from metering.store.connection import connect
from metering.store.fleet_views import list_fleets
from metering.store.registry import tenant_no

_FLEETS_AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class BillRun:
    """How many bills with how many lines were drawn up, and how long that took."""

    bills: int
    lines: int
    devices: int
    seconds: float


def bill_run(made: Product) -> BillRun:
    """Draw up the bills of all fleets by one process, each in a transaction of its own."""
    return asyncio.run(_bill_run(made.database_url))


async def _bill_run(url: str) -> BillRun:
    now = datetime.now(UTC)
    bills = lines = devices = 0
    began = perf_counter()
    async with await connect(url, application="bills", autocommit=True) as connection:
        tenant = await tenant_no(connection, TENANT)
        after = ""
        while True:
            fleets = await list_fleets(connection, tenant, after=after, limit=_FLEETS_AT_ONCE)
            if not fleets:
                break
            for fleet in fleets:
                async with connection.transaction():
                    bill = await bill_so_far(connection, tenant, fleet=fleet, at=now)
                bills += 1
                lines += len(bill.statement.lines)
                devices += fleet.devices
            after = fleets[-1].fleet_id
    return BillRun(bills=bills, lines=lines, devices=devices, seconds=perf_counter() - began)
