"""What more devices, more rows and more workers change: throughput should be flat, or grow with workers."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any

from bench.amount import amount
from bench.balance_probe import PROBE, BalanceProbe, api_client
from bench.charging import Charged, charge
from bench.comparison import BASE
from bench.conditions import Conditions
from bench.extent import Extent
from bench.history import HISTORY, copy_history, expect_space
from bench.latency import Load, start_all
from bench.load import Generator
from bench.percentiles import latency_of
from bench.product import Product, product, start, stop
from bench.replaying import Audited, audit
from bench.resources import memory_of
from bench.workload import EACH, ONE, TWENTY, Manner, Population

_FLEETS = 20
_SEED_MESSAGES = 5_000
"""Of the history that is copied, with twenty readings each; fewer where fewer rows are wanted."""
_PROBED_AT = 0.5


def with_devices(conditions: Conditions, devices: int) -> dict[str, Any]:
    """Measure where so many devices are known: with a thousand of them that send, then with each one."""
    known = Population(name="known", fleets=_FLEETS, devices_a_fleet=devices // _FLEETS)
    few = Population(name="known", fleets=_FLEETS, devices_a_fleet=min(50, devices // _FLEETS))
    began = perf_counter()
    with product(
        conditions.servers, [known, PROBE], conditions.processing, conditions.folder
    ) as made:
        registered = perf_counter() - began
        port = start_all(made)
        with conditions.generator(few) as generator:
            thousand = _throughput(made, generator, ONE, conditions.extent)
            balance = _balance_ms(made, generator, port, thousand.messages_per_s, conditions.extent)
        with conditions.generator(known) as generator:
            wanted = amount(thousand.messages_per_s, conditions.extent.seconds)
            every = charge(made, generator, EACH, max(devices, wanted))
        memory = memory_of(made.pids, conditions.servers.pids.get("database"))
        stop(made)
        audited = audit(made)
    conditions.say(
        f"  {devices:,} devices known: {thousand.messages_per_s:,.0f} messages/s from a thousand,"
        f" {every.messages_per_s:,.0f} from all, balance {balance['p50']:.1f} ms;"
        f" audit: {audited.verdict}"
    )
    return {
        "devices_known": known.fleets * known.devices_a_fleet,
        "registered_seconds": registered,
        "one_from_a_thousand": asdict(thousand),
        "one_from_all": asdict(every),
        "balance_ms": balance,
        "memory": {role: asdict(each) for role, each in memory.items()},
        "audit": _told(audited),
    }


def with_rows(conditions: Conditions, rows: int) -> dict[str, Any]:
    """Measure where so many readings and charges are stored already."""
    expect_space(conditions.servers, rows)
    with (
        product(
            conditions.servers, [BASE, PROBE, HISTORY], conditions.processing, conditions.folder
        ) as made,
    ):
        start(made)
        with conditions.generator(HISTORY) as generator:
            charge(made, generator, TWENTY, max(1, min(_SEED_MESSAGES, rows // 40)))
        stop(made)
        copied = copy_history(made, rows)
        port = start_all(made)
        with conditions.generator(BASE) as generator:
            one = _throughput(made, generator, ONE, conditions.extent)
            twenty = _throughput(made, generator, TWENTY, conditions.extent)
            balance = _balance_ms(made, generator, port, one.messages_per_s, conditions.extent)
        stop(made)
        audited = audit(made, BASE)
    conditions.say(
        f"  {copied:,} usage rows: {one.messages_per_s:,.0f} messages/s,"
        f" {twenty.records_per_s:,.0f} records/s, balance {balance['p50']:.1f} ms;"
        f" audit of the fleets under load: {audited.verdict}"
    )
    return {
        "usage_rows": copied,
        "one": asdict(one),
        "twenty": asdict(twenty),
        "balance_ms": balance,
        "audit": _told(audited),
    }


def with_workers(conditions: Conditions, workers: int) -> dict[str, Any]:
    """Measure with so many workers."""
    processing = replace(conditions.processing, workers=workers)
    with (
        conditions.generator(BASE) as generator,
        product(conditions.servers, [BASE, PROBE], processing, conditions.folder) as made,
    ):
        port = start_all(made)
        one = _throughput(made, generator, ONE, conditions.extent)
        twenty = _throughput(made, generator, TWENTY, conditions.extent)
        balance = _balance_ms(made, generator, port, one.messages_per_s, conditions.extent)
        stop(made)
        audited = audit(made)
    conditions.say(
        f"  {workers} workers: {one.messages_per_s:,.0f} messages/s,"
        f" {twenty.records_per_s:,.0f} records/s, balance {balance['p50']:.1f} ms;"
        f" audit: {audited.verdict}"
    )
    return {
        "workers": workers,
        "one": asdict(one),
        "twenty": asdict(twenty),
        "balance_ms": balance,
        "audit": _told(audited),
    }


def _throughput(made: Product, generator: Generator, manner: Manner, extent: Extent) -> Charged:
    """Return the round in the middle, by speed, of some."""
    first = max(1, extent.first_messages // manner.readings_a_message)
    done = charge(made, generator, manner, first)
    rounds: list[Charged] = []
    for _ in range(extent.growth_rounds):
        wanted = amount(done.messages_per_s, extent.seconds)
        rounds.append(done := charge(made, generator, manner, wanted))
    return _middle(rounds)


def _middle(rounds: Sequence[Charged]) -> Charged:
    return sorted(rounds, key=lambda each: each.records_per_s)[len(rounds) // 2]


def _balance_ms(
    made: Product, generator: Generator, port: int, saturation: float, extent: Extent
) -> dict[str, Any]:
    """Return publish → balance at half of saturation."""
    load = Load(made, generator, _PROBED_AT * saturation)
    with api_client(made, port) as api, BalanceProbe(made, api) as probe:
        return asdict(latency_of(load.probed(probe.run, extent.growth_probe_seconds)))


def _told(audited: Audited) -> dict[str, Any]:
    return asdict(audited) | {"records_per_s_core": audited.records_per_s_core}
