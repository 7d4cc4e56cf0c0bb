"""The product beside the raw parts, in turn: what else the machine does then meets all alike."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench.amount import amount
from bench.charging import Charged, charge
from bench.conditions import Conditions
from bench.floors.broker import into_the_void, through_broker
from bench.floors.copy import copied_rows_per_s
from bench.floors.naive import through_psql, through_python
from bench.flow import Flow
from bench.load import Generator
from bench.product import product, start, stop
from bench.replaying import audit
from bench.resources import memory_of, written
from bench.workload import ONE, TWENTY, Population

BASE = Population(name="base", fleets=20, devices_a_fleet=50)
BATCH_ROWS = 5_000
"""Rows of one COPY: as many as a batch of the ingester holds at most."""
_COPY_ROWS_FIRST = 100_000
_VOID_TIMES = 10
"""So many first amounts go to nobody: the broker is done with them sooner than anybody else."""
NAIVE_PIPES: dict[str, Callable[..., Flow]] = {
    "mosquitto_sub | psql": through_psql,
    "Python, paho-mqtt and psycopg": through_python,
}


@dataclass(slots=True, kw_only=True)
class _Rounds:
    """What each round measured: messages or records a second."""

    broker: list[float] = field(default_factory=list)
    naive: dict[str, list[float]] = field(
        default_factory=lambda: {each: [] for each in NAIVE_PIPES}
    )
    one: list[Charged] = field(default_factory=list)
    copy: list[float] = field(default_factory=list)
    twenty: list[Charged] = field(default_factory=list)


def compare(conditions: Conditions) -> dict[str, Any]:
    """Measure floors and product in turn, and return all rounds, their medians and the ratios."""
    servers, extent, say = conditions.servers, conditions.extent, conditions.say
    with (
        conditions.generator(BASE) as generator,
        product(servers, [BASE], conditions.processing, conditions.folder) as made,
    ):
        before = written(made.database_url)
        start(made)
        speeds = _Speeds(conditions, generator)
        one = charge(made, generator, ONE, extent.first_messages)
        first = made.roots[:1]  # one ingester takes more of them than all workers charge
        wanted = max(1, extent.first_messages // 20)
        twenty = charge(made, generator, TWENTY, wanted, roots=first)
        rounds = _Rounds()
        for number in range(extent.rounds):
            rounds.broker.append(speeds.broker())
            # One way round, then the other: neither pipe is always the one next to the product.
            for pipe in list(NAIVE_PIPES)[:: 1 if number % 2 else -1]:
                rounds.naive[pipe].append(speeds.naive(pipe))
            wanted = amount(one.messages_per_s, extent.seconds)
            rounds.one.append(one := charge(made, generator, ONE, wanted))
            rounds.copy.append(speeds.copy())
            wanted = amount(twenty.messages_per_s, extent.seconds)
            twenty = charge(made, generator, TWENTY, wanted, roots=first)
            rounds.twenty.append(twenty)
            say(
                f"  round {number + 1}: broker {rounds.broker[-1]:,.0f},"
                f" naive {' and '.join(f'{each[-1]:,.0f}' for each in rounds.naive.values())},"
                f" one {one.messages_per_s:,.0f} messages/s;"
                f" copy {rounds.copy[-1]:,.0f}, twenty {twenty.records_per_s:,.0f} records/s"
            )
        memory = memory_of(made.pids, servers.pids.get("database"))
        stop(made)
        wrote = written(made.database_url).since(before)
        audited = audit(made)
        say(f"  audit: {audited.verdict}, {audited.readings} readings in {audited.seconds:.1f} s")
    naive_pipe = max(NAIVE_PIPES, key=lambda pipe: median(rounds.naive[pipe]))
    naive = rounds.naive[naive_pipe]
    return {
        "naive_pipe": naive_pipe,
        "naive_pipes_messages_per_s": rounds.naive,
        "generator_messages_per_s": speeds.generator,
        "generator_cpu_us_per_message": speeds.generator_cpu_us,
        "generator_times_broker": {
            "nobody_subscribed": speeds.generator / median(rounds.broker),
            "by_its_cpu_time": 1e6 / speeds.generator_cpu_us / median(rounds.broker),
        },
        "generator_times_product": {
            "one": speeds.generator / median(each.messages_per_s for each in rounds.one),
            "twenty": speeds.generator_of_twenty
            / median(each.messages_per_s for each in rounds.twenty),
        },
        "generator_of_twenty_messages_per_s": speeds.generator_of_twenty,
        "broker_messages_per_s": rounds.broker,
        "naive_messages_per_s": naive,
        "copy_rows_per_s": rounds.copy,
        "one": [asdict(each) for each in rounds.one],
        "twenty": [asdict(each) for each in rounds.twenty],
        **{
            name: figure
            for floor, ratios in {
                "broker": _ratios([each.messages_per_s for each in rounds.one], rounds.broker),
                "naive_pipe": _ratios([each.messages_per_s for each in rounds.one], naive),
                "copy": _ratios([each.records_per_s for each in rounds.twenty], rounds.copy),
            }.items()
            for name, figure in (
                (f"ratio_to_{floor}", median(ratios)),
                (f"ratios_to_{floor}", ratios),
            )
        },
        "memory": {role: asdict(each) for role, each in memory.items()},
        "written": asdict(wrote),
        "audit": asdict(audited) | {"records_per_s_core": audited.records_per_s_core},
    }


def _ratios(ours: Sequence[float], floor: Sequence[float]) -> list[float]:
    """Return each round's ratio: of two figures that were measured within a minute or two."""
    return [mine / raw for mine, raw in zip(ours, floor, strict=True)]


class _Speeds:
    """The floors. The first, small amounts tell how much to measure with."""

    def __init__(self, conditions: Conditions, generator: Generator) -> None:
        self._servers, self._generator = conditions.servers, generator
        self._seconds = conditions.extent.seconds
        servers, first = conditions.servers, conditions.extent.first_messages
        void = into_the_void(generator, ONE, _VOID_TIMES * first)
        self.generator = void.messages / (void.ended - void.began)
        self.generator_cpu_us = 1e6 * void.cpu_seconds / void.messages
        large = into_the_void(generator, TWENTY, first)
        self.generator_of_twenty = large.messages / (large.ended - large.began)
        self._broker = _speed(through_broker(servers, generator, ONE, first))
        self._naive = {
            name: _speed(pipe(servers, generator, ONE, first)) for name, pipe in NAIVE_PIPES.items()
        }
        self._copy = copied_rows_per_s(servers, _COPY_ROWS_FIRST, rows_a_batch=BATCH_ROWS)
        conditions.say(
            f"  the generator alone {self.generator:,.0f} messages/s of one reading,"
            f" {self.generator_of_twenty:,.0f} of twenty"
        )

    def broker(self) -> float:
        """Return the messages a second of the broker alone."""
        wanted = amount(self._broker, self._seconds)
        self._broker = _speed(through_broker(self._servers, self._generator, ONE, wanted))
        return self._broker

    def naive(self, name: str) -> float:
        """Return the messages a second of one of the naive pipes."""
        wanted = amount(self._naive[name], self._seconds)
        self._naive[name] = _speed(NAIVE_PIPES[name](self._servers, self._generator, ONE, wanted))
        return self._naive[name]

    def copy(self) -> float:
        """Return the rows a second of COPY over one connection, as the one ingester has."""
        wanted = max(BATCH_ROWS, amount(self._copy, self._seconds))
        self._copy = copied_rows_per_s(self._servers, wanted, rows_a_batch=BATCH_ROWS)
        return self._copy


def _speed(taken: Flow) -> float:
    return taken.messages / taken.seconds
