"""Reads through the API, one after the other, of fleets that are being charged."""

from itertools import cycle
from time import monotonic, perf_counter

import httpx

from bench.percentiles import Latency, latency_of
from bench.workload import Population

_PATHS = ("balance", "bill")


def read(api: httpx.Client, population: Population, seconds: float) -> dict[str, Latency]:
    """Read balances and bills so far of a population's fleets in turn, for so long; return the times."""
    times: dict[str, list[float]] = {path: [] for path in _PATHS}
    deadline = monotonic() + seconds
    fleets = cycle(population.device_ids())
    while monotonic() < deadline or len(times[_PATHS[-1]]) < 2:  # noqa: PLR2004 - percentiles need two
        fleet_id = next(fleets)
        for path in _PATHS:
            began = perf_counter()
            api.get(f"/v1/fleets/{fleet_id}/{path}").raise_for_status()
            times[path].append(perf_counter() - began)
    return {path: latency_of(of_path) for path, of_path in times.items()}
