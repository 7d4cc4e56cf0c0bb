"""Reads through the API, one after the other, of fleets that are being charged."""

from itertools import cycle
from time import monotonic, perf_counter

import httpx

from bench.percentiles import Latency, latency_of
from bench.workload import Population

_PATHS = {
    "balance": "/v1/fleets/{fleet}/balance",
    "device_balance": "/v1/devices/{device}/balance",
    "bill": "/v1/fleets/{fleet}/bill",
    "usage_hours": "/v1/fleets/{fleet}/usage",
    "usage_days": "/v1/fleets/{fleet}/usage?bucket=day",
    "device_usage": "/v1/devices/{device}/usage",
    "devices": "/v1/devices?fleet={fleet}",
}
"""What is read, by its key among the results."""


def read(api: httpx.Client, population: Population, seconds: float) -> dict[str, Latency]:
    """Read what is read of a population's fleets, and of a device of each, in turn; return the times."""
    times: dict[str, list[float]] = {name: [] for name in _PATHS}
    deadline = monotonic() + seconds
    fleets = cycle(population.device_ids().items())
    rounds = 0
    while monotonic() < deadline or rounds < 3:  # noqa: PLR2004 - percentiles need two
        fleet, devices = next(fleets)
        for name, path in _PATHS.items():
            began = perf_counter()
            api.get(
                path.format(fleet=fleet, device=devices[rounds % len(devices)])
            ).raise_for_status()
            if rounds:  # an application draws up its routes when they are first asked
                times[name].append(perf_counter() - began)
        rounds += 1
    return {name: latency_of(of_name) for name, of_name in times.items()}
