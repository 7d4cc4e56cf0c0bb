"""The audit at the end of everything: whether it is equal, and how fast it replays."""

import asyncio
from dataclasses import dataclass
from time import perf_counter, process_time

from bench.product import Product
from bench.resources import cpu_times
from bench.workload import Population
from metering.insight.audit import AuditResult, audit_database, audit_fleet
from metering.store.audit import all_fleets, read_from_one_snapshot
from metering.store.connection import connect

_KEPT_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What an audit found, in how long, and how much CPU that took here and in the database."""

    verdict: str
    """`equal`, or how many differences there are, and the first of them."""
    readings: int
    charges: int
    seconds: float
    cpu_seconds: float
    database_cpu_seconds: float

    @property
    def records_per_s_core(self) -> float:
        """Readings a second of CPU time, the database's included."""
        return self.readings / (self.cpu_seconds + self.database_cpu_seconds)


def audit(made: Product, population: Population | None = None) -> Audited:
    """Audit all that was charged, or only a population's fleets.

    Nothing else runs meanwhile, and nothing may be left in the queue.
    """
    postmaster = made.servers.pids.get("database")
    before = cpu_times({}, postmaster, made.database_url)
    began, cpu = perf_counter(), process_time()
    result = asyncio.run(_audit(made.database_url, population))
    seconds, cpu_seconds = perf_counter() - began, process_time() - cpu
    used = cpu_times({}, postmaster, made.database_url).since(before)
    differences = list(result.differences)
    if result.queued or result.parked:
        differences.append(f"{result.queued} readings are queued, {result.parked} are parked")
    return Audited(
        verdict=_verdict(differences),
        readings=result.readings,
        charges=result.charges,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        database_cpu_seconds=sum(used.values()),
    )


def _verdict(differences: list[str]) -> str:
    if not differences:
        return "equal"
    return f"{len(differences)} differences: {'; '.join(differences[:_KEPT_MAX])}"


async def _audit(url: str, population: Population | None) -> AuditResult:
    async with await connect(url, application="audit") as connection:
        await read_from_one_snapshot(connection)
        if population is None:
            return await audit_database(connection)
        fleet_ids = population.device_ids().keys()
        fleets = [each for each in await all_fleets(connection) if each.fleet_id in fleet_ids]
        together = AuditResult()
        for fleet in fleets:
            of_fleet = await audit_fleet(connection, fleet)
            together.readings += of_fleet.readings
            together.charges += of_fleet.charges
            together.parked += of_fleet.parked
            together.queued += of_fleet.queued
            together.differences += of_fleet.differences
        return together
