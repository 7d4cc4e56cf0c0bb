"""Under what a run measures: servers, amounts, processes, and where it tells how far it is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.extent import Extent
from bench.load import Generator
from bench.product import Processing
from bench.servers import Servers
from bench.workload import Population


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What all parts of a run have in common. `folder` takes the processes' logs."""

    servers: Servers
    extent: Extent
    processing: Processing
    folder: Path
    say: Callable[[str], None]

    def generator(self, population: Population) -> Generator:
        """Return a load generator that sends as the devices of a population do."""
        broker = self.servers.broker
        return Generator(broker, population.interleaved())
