"""What else comes in: one hot pool, a thousand fleets, counters, and messages that come twice or late."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.amount import amount
from bench.bills import bill_run
from bench.charging import Charged, charge
from bench.comparison import BASE
from bench.conditions import Conditions
from bench.extent import Extent
from bench.product import product, start, stop
from bench.replaying import audit
from bench.resources import memory_of, written
from bench.workload import COUNTERS, FAULTS, TWENTY, Manner, Population


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Who sends, and how."""

    population: Callable[[Extent], Population]
    manner: Manner


SCENARIOS: dict[str, Scenario] = {
    "hot_pool": Scenario(
        population=lambda extent: Population(
            name="hot", fleets=1, devices_a_fleet=extent.hot_pool_devices
        ),
        manner=TWENTY,
    ),
    "thousand_fleets": Scenario(
        population=lambda _: Population(name="many", fleets=1_000, devices_a_fleet=10),
        manner=TWENTY,
    ),
    "counters": Scenario(population=lambda _: BASE, manner=COUNTERS),
    "faults": Scenario(population=lambda _: BASE, manner=FAULTS),
}


def measure_scenario(name: str, conditions: Conditions) -> dict[str, Any]:
    """Measure one scenario on a database of its own, with an audit at the end."""
    scenario = SCENARIOS[name]
    servers, extent = conditions.servers, conditions.extent
    population, manner = scenario.population(extent), scenario.manner
    with (
        conditions.generator(population) as generator,
        product(servers, [population], conditions.processing, conditions.folder) as made,
    ):
        before = written(made.database_url)
        start(made)
        first = max(1, extent.first_messages // manner.readings_a_message)
        done = charge(made, generator, manner, first)
        rounds: list[Charged] = []
        for _ in range(extent.scenario_rounds):
            wanted = amount(done.messages_per_s, extent.seconds)
            rounds.append(done := charge(made, generator, manner, wanted))
        memory = memory_of(made.pids, servers.pids.get("database"))
        stop(made)
        wrote = written(made.database_url).since(before)
        bills = bill_run(made)
        audited = audit(made)
    speed = median(each.records_per_s for each in rounds)
    conditions.say(f"  {name}: {speed:,.0f} records/s; audit: {audited.verdict}")
    return {
        "devices": population.fleets * population.devices_a_fleet,
        "fleets": population.fleets,
        "readings_a_message": manner.readings_a_message,
        "records_per_s": speed,
        "messages_per_s": median(each.messages_per_s for each in rounds),
        "rounds": [asdict(each) for each in rounds],
        "memory": {role: asdict(each) for role, each in memory.items()},
        "written": asdict(wrote),
        "bill_run": asdict(bills),
        "audit": asdict(audited) | {"records_per_s_core": audited.records_per_s_core},
    }
