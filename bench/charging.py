"""End to end: from the first publish until the last reading of an amount is charged."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.flow import flow
from bench.load import Generator, Order
from bench.product import Product
from bench.resources import cpu_times, wal_octets
from bench.workload import Manner


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """An amount that was charged, how fast, and what it cost by role, in microseconds of CPU a record."""

    messages: int
    records: int
    seconds: float
    payload_octets: float
    messages_per_s: float
    records_per_s: float
    cpu_us_per_record: dict[str, float]
    wal_octets_per_record: float


def charge(
    made: Product,
    generator: Generator,
    manner: Manner,
    messages: int,
    *,
    roots: Sequence[str] | None = None,
) -> Charged:
    """Publish so many messages, in step with charging, until every reading is charged.

    They go to the ingesters of some topic roots; None: to all.
    """
    order = Order(roots=roots or made.roots, manner=manner, messages=messages)
    ready = generator.prepare(order)
    records = messages * manner.readings_a_message
    charged_before = made.charged()
    postmaster = made.servers.pids.get("database")
    before = cpu_times(made.pids, postmaster, made.database_url)
    wal = wal_octets(made.database_url)
    twice = 1 + manner.duplicates  # how many messages of all come before one more is charged

    def done() -> int:
        made.processes.check()
        charged = made.charged() - charged_before
        if charged >= records:
            return 2 * messages  # duplicates may still be on their way: they end nothing
        return int(charged / manner.readings_a_message * twice)

    taken = flow(generator, ready, window=manner.window, done=done)
    used = cpu_times(made.pids, postmaster, made.database_url).since(before)
    used["generator"] = taken.sent.cpu_seconds
    return Charged(
        messages=taken.messages,
        records=records,
        seconds=taken.seconds,
        payload_octets=taken.payload_octets,
        messages_per_s=taken.messages / taken.seconds,
        records_per_s=records / taken.seconds,
        cpu_us_per_record={role: 1e6 * spent / records for role, spent in sorted(used.items())},
        wal_octets_per_record=(wal_octets(made.database_url) - wal) / records,
    )
