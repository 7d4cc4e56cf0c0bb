"""Measure the rating core: usage records per second and core, with each record's full explanation.

Run by `make bench-rating`. Every figure is the best of several rounds in one process; machines differ
and are noisy, so read the ratios, above all those of growth, which should stay near 1.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

from metering.period import Calendar
from metering.plan_document import read_plan, terms_of
from metering.rating.account import Accounts, charge_records
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.guide import ParkReason, Subscription, UsageRecord
from metering.rating.plan import PlanTerms
from metering.rating.record import FleetTerms, Usage, records_of

RECORDS = 100_000
BATCH = 1_000
"""Readings that are found, then rated, together; a charging run takes some thousands."""
ROUNDS = 5
FLEET_NO = 1
METER_NO = 1
START = datetime(2026, 4, 1, tzinfo=UTC)

SIMPLE = {"data": {"price": {"amount": "0.10", "per": "1 MB"}}}
POOLED = {"data": {"allowance": "1 GB", "pooled": True, "price": {"amount": "0.10", "per": "1 MB"}}}


def graduated(tiers: int) -> dict[str, object]:
    """Return a meter with so many tiers of 1 MB, each a little cheaper, and a last one."""
    bounds = [
        {"up_to": f"{number} MB", "amount": f"{1 + 1 / number:.4f}"} for number in range(1, tiers)
    ]
    price = {"model": "graduated", "per": "1 MB", "tiers": [*bounds, {"amount": "1"}]}
    return {"data": {"price": price}}


def plan(meters: Mapping[str, object]) -> PlanTerms:
    """Return the terms of a plan with these meters."""
    return terms_of(read_plan({"plan": "bench", "currency": "EUR", "meters": meters}))


def usages(count: int) -> Iterator[Usage]:
    """Return readings of some kB each, spread over the month."""
    step = timedelta(days=29) / count
    for number in range(count):
        at = START + number * step
        yield Usage(1_000 + number % 977, 400, at, at)


class Workload:
    """A fleet with a plan, and readings that go to its devices in turn."""

    def __init__(
        self, meters: Mapping[str, object], *, devices: int = 100, used_before: int = 0
    ) -> None:
        self.plans = {1: plan(meters)}
        self.subscriptions = [
            [
                Subscription(
                    subscription_no=number,
                    device_no=number,
                    plan_no=1,
                    valid_from=START,
                    valid_to=None,
                )
            ]
            for number in range(1, devices + 1)
        ]
        self.fleet = FleetTerms(FLEET_NO, Calendar("Europe/Berlin"))
        self.used_before = used_before
        self.pooled = any("pooled" in meter for meter in meters.values() if isinstance(meter, dict))

    def accounts(self) -> Accounts:
        """Return fresh accounts; a pool holds half of what the readings will use."""
        accounts = Accounts()
        cycle_start = self.fleet.calendar.cycle_at(START).start
        pool = Bucket(granted=RECORDS * 700, kind=BucketKind.POOL, name="pool", bucket_id="1")
        for (subscription,) in self.subscriptions:
            number = subscription.subscription_no
            if self.pooled:
                accounts.buckets[number, METER_NO, cycle_start] = [pool]
            price = self.plans[1].meters["data"].variants[0].price
            accounts.count_before(
                subscription, METER_NO, cycle_start, 0, price,
                fleet_no=FLEET_NO, quantity=self.used_before,
            )  # fmt: skip
        return accounts

    def guide(self, readings: Sequence[Usage], first: int) -> list[list[UsageRecord]]:
        """Find each reading's usage records; the first is reading number `first`."""
        found: list[list[UsageRecord]] = []
        fleet, plans, subscriptions = self.fleet, self.plans, self.subscriptions
        devices = len(subscriptions)
        for position, usage in enumerate(readings, start=first):
            records = records_of(
                usage,
                meter="data",
                fleet=fleet,
                subscriptions=subscriptions[position % devices],
                plans=plans,
            )
            if isinstance(records, ParkReason):
                raise TypeError(records.value)
            found.append(records)
        return found

    def rate(self, readings: Sequence[Usage]) -> tuple[float, float]:
        """Rate readings, each record with its explanation.

        Return usage records per second, without and with the time in which they were found.
        """
        accounts = self.accounts()
        plans, rates = self.plans, self.plans[1].rates["data"]
        steps = 0
        finding = rating = 0.0
        for first in range(0, len(readings), BATCH):
            batch = readings[first : first + BATCH]
            begun = perf_counter()
            guided = self.guide(batch, first)
            found = perf_counter()
            for usage, records in zip(batch, guided, strict=True):
                charges = charge_records(
                    records,
                    usage,
                    meter="data",
                    meter_no=METER_NO,
                    fleet_no=FLEET_NO,
                    plans=plans,
                    accounts=accounts,
                )
                for record, parts in charges:
                    steps += len(rates[record.variant].walk(parts.before, parts.overage))
            finding += found - begun
            rating += perf_counter() - found
        charged = sum(use.quantity for use in accounts.uses.values())
        if charged != sum(usage.quantity for usage in readings) or steps < len(readings) // 3:
            raise RuntimeError("the benchmark rated something else than it was given")
        return len(readings) / rating, len(readings) / (finding + rating)


def best(workload: Workload, readings: Sequence[Usage]) -> tuple[float, float]:
    """Return the best of some rounds: what the machine can do when nothing else runs."""
    rounds = [workload.rate(readings) for _ in range(ROUNDS)]
    return max(rated for rated, _ in rounds), max(guided for _, guided in rounds)


def main() -> None:
    """Measure, print a table, and write bench/rating.json."""
    readings = list(usages(RECORDS))
    few = readings[:: RECORDS // 1000]
    written: dict[str, float] = {}
    print(f"{RECORDS} records, best of {ROUNDS} rounds, one core, Python {sys.version.split()[0]}")
    print("usage records per second               rated   found and rated")
    for name, meters in (("simple", SIMPLE), ("graduated", graduated(10)), ("pooled", POOLED)):
        rated, guided = best(Workload(meters), readings)
        print(f"  {name:30} {rated:>12,.0f} {guided:>17,.0f}")
        written[f"{name}_records_per_s_core"] = round(rated)
        written[f"{name}_found_and_rated_per_s_core"] = round(guided)
    growth = {
        "tiers used before, 1000 to 0": (
            best(Workload(graduated(1001), used_before=1000 * 10**6), readings),
            best(Workload(graduated(1001)), readings),
        ),
        "devices in the pool, 10 000 to 10": (
            best(Workload(POOLED, devices=10_000), readings),
            best(Workload(POOLED, devices=10), readings),
        ),
        "records in the period, 100 000 to 1000": (
            best(Workload(SIMPLE, devices=1), readings),
            best(Workload(SIMPLE, devices=1), few),
        ),
    }
    print("cost of a record as it grows (1.00: it does not)")
    for name, ((much, _), (little, _)) in growth.items():
        print(f"  {name:40} {little / much:.2f}")
        written[f"cost_ratio_of_{name.partition(',')[0].replace(' ', '_')}"] = round(
            little / much, 3
        )
    Path(__file__).with_name("rating.json").write_text(
        json.dumps(written, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
