"""Fleets most of whose usage allowances and pools pay for: what an audit adds up, among what it cannot."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from metering.charging.balances import TopUp, top_up
from metering.store.connection import Connection
from metering.usage import DATA, SMS, VOICE, Reading, ReadingKind
from tests.integration.pipeline import Operator
from tests.integration.rich import NOW, Published, batched, publish

BEGINS = datetime(2026, 2, 1, tzinfo=UTC)
VAST = 99 * 10**16
"""Most of what one top-up may bring; ten of them are more than eight octets count."""
_PRICE: dict[str, Any] = {"amount": "0.2", "per": "1 MB"}


def _plan(name: str, allowance: dict[str, Any]) -> dict[str, Any]:
    return {
        "plan": name,
        "currency": "EUR",
        "meters": {
            "data": {"price": _PRICE, "allowances": [{"name": "bundle", **allowance}]},
            "sms": {"price": {"amount": "0.09", "per": 1}, "allowance": 1000},
            "voice": {"price": {"amount": "0.05", "per": 60}, "increment": {"step": 60}},
        },
    }


PLANS = {
    "own": _plan("own", {"quantity": "200 kB"}),
    "pool": _plan("pool", {"quantity": "400 kB", "shared_by": "plan"}),
    # That it was empty is not seen by what is kept of it: what is left goes on.
    "brim": _plan(
        "brim", {"quantity": "2 kB", "shared_by": "plan", "rollover": {"maximum": "1 MB"}}
    ),
    "dry": _plan("dry", {"quantity": "9 kB", "shared_by": "plan"}),
    "vast": _plan("vast", {"quantity": "1 kB", "shared_by": "plan"}),
}
"""By fleet."""
DEVICES = {fleet: [f"{fleet}-{number}" for number in range(1, 6)] for fleet in PLANS}


def sent(chance: random.Random) -> Iterator[Published]:
    """Return messages of two months: of each fleet, devices 4 and 5 also use what is not plain."""
    seqs: dict[str, int] = {}
    counted: dict[str, int] = {}
    at = BEGINS
    while at < BEGINS + timedelta(days=58):
        at += timedelta(minutes=chance.choice([20, 200, 900]))
        fleet = chance.choice(["own", "pool", "dry"])
        device = chance.choice(DEVICES[fleet])
        readings: list[Reading] = []
        for _ in range(chance.choice([1, 5, 20])):
            seq = seqs[device] = seqs.get(device, 0) + 1
            at += timedelta(seconds=chance.choice([0, 1, 600]))
            size = chance.choice([0, 1, 60, 900])
            kinds = ["data"] * 8 + ["data since", "sms"]
            if device.endswith("4"):
                kinds += ["voice", "zone", "much"]
            if device.endswith("5"):
                kinds += ["total"] * 4
            kind = chance.choice(kinds)
            total = counted[device] = counted.get(device, 0) + size * (kind == "total")
            since = at - timedelta(minutes=chance.choice([0, 1, 10]))
            readings.append(
                {
                    "data": Reading(seq, at, DATA, ReadingKind.DELTA, size // 3, size),
                    "data since": Reading(seq, at, DATA, ReadingKind.DELTA, size, 7, since=since),
                    "sms": Reading(seq, at, SMS, ReadingKind.DELTA, quantity=seq % 4),
                    "voice": Reading(seq, at, VOICE, ReadingKind.DELTA, quantity=size % 90),
                    "zone": Reading(seq, at, DATA, ReadingKind.DELTA, 1, size, zone="eu"),
                    "much": Reading(seq, at, DATA, ReadingKind.DELTA, 0, 20_000),
                    "total": Reading(seq, at, DATA, ReadingKind.TOTAL, total, 0, epoch="one"),
                }[kind]
            )
        yield Published(device=device, readings=readings)


async def begin(connection: Connection) -> None:
    """Charge all of it; a top-up comes in between, and one device uses more than eight octets count."""
    operator = await Operator.of(connection, now=NOW)
    fleets = {}
    for name, plan in PLANS.items():
        fleets[name] = await operator.fleet(name)
        number = await operator.plan(plan)
        await operator.devices(fleets[name], DEVICES[name], plan=number, valid_from=BEGINS)
    every = list(sent(random.Random(3)))  # noqa: S311 - no secret
    half = len(every) // 2
    for batch in batched(every[:half], size=40):
        await publish(connection, batch, readings_max=200)
    order = TopUp(meter="data", quantity=9_000_000, zones=None, begins_at=BEGINS, priority=5)
    await top_up(
        connection, fleet=fleets["pool"], device_no=None, order=order, key="top-up", now=NOW
    )
    for batch in batched(every[half:], size=40):
        await publish(connection, batch, readings_max=200)
    for seq, (device, size) in enumerate((("brim-1", 1_000), ("brim-2", 20_000)), start=1):
        usage = Reading(seq, BEGINS + timedelta(hours=seq), DATA, ReadingKind.DELTA, 0, size)
        await publish(connection, [Published(device=device, readings=[usage])], readings_max=1)
    vast: list[Reading] = []
    for seq in range(1, 11):
        day = BEGINS + timedelta(days=seq)
        order = TopUp(
            meter="data", quantity=10**18, zones=None, priority=5,
            begins_at=day, expires_at=day + timedelta(hours=12),
        )  # fmt: skip
        await top_up(
            connection, fleet=fleets["vast"], device_no=None, order=order, key=f"{day}", now=NOW
        )
        vast.append(Reading(seq, day, DATA, ReadingKind.DELTA, VAST, 0))
    await publish(connection, [Published(device="vast-1", readings=vast)], readings_max=20)
