"""A fleet on two rich plans: three months of seeded usage, stored and charged in small batches."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from metering.charging.charge_usage import charge_usage
from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.period import BillCycle, Calendar, midnight
from metering.plan_document import read_plan, terms_of
from metering.store.connection import Connection
from metering.store.registry import Fleet
from metering.usage import DATA, MESSAGES, METERS, SMS, VOICE, Reading, ReadingKind
from metering.whatif.run import RatingRun, rate
from metering.whatif.state_file import calendar_of, read_state
from metering.whatif.usage_file import MeterUnits, read_usage
from tests.integration.pipeline import TENANT, Operator

ZONE = "Europe/Berlin"
NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)
CALENDAR = Calendar(ZONE, 1)
JANUARY, FEBRUARY, MARCH = (CALENDAR.cycle_of_day(date(2026, month, 1)) for month in (1, 2, 3))
BEGAN = JANUARY.start

SESSIONS: dict[str, Any] = {
    "plan": "rich",
    "currency": "EUR",
    "zones": {"home": ["DE"], "nordics": ["SE", "DK"]},
    "bands": {
        "peak": [{"days": ["mon", "tue", "wed", "thu", "fri"], "from": "08:00", "to": "20:00"}],
        "night": [{"from": "22:00", "to": "06:00"}],
    },
    "meters": {
        "data": {
            "price": {"model": "graduated", "per": "1 kB", "tiers": [
                {"up_to": "30 kB", "amount": "0.03", "flat": "0.10"},
                {"up_to": "90 kB", "amount": "0.02"},
                {"amount": "0.007", "flat": "0.50"},
            ]},
            "increment": {"step": "1 kB", "scope": "session"},
            "overhead": {"per_record": 40, "per_packet": 28},
            "variants": [
                {
                    "zones": ["home"], "bands": ["peak"],
                    "price": {"amount": "0.05", "per": "1 kB", "connection_fee": "0.01"},
                    "increment": {"first": "2 kB", "step": "500 B"},
                },
                {
                    "zones": ["nordics"],
                    "price": {"model": "volume", "counted_per": "fleet", "per": "1 kB", "tiers": [
                        {"up_to": "15 kB", "amount": "0.09"}, {"amount": "0.04", "flat": "1"},
                    ]},
                    "increment": {"step": "2 kB", "scope": "device_day"},
                },
            ],
            "allowances": [
                {"name": "daily", "quantity": "1 kB", "renews": "day", "priority": 50},
                {"name": "bundle", "quantity": "4 kB", "zones": ["home"],
                 "rollover": {"periods": 2, "minimum": 500, "maximum": "6 kB",
                              "burn": "newest_first"}},
                {"name": "ours", "quantity": "6 kB", "shared_by": "plan",
                 "floor": "2 kB", "ceiling": "11 kB"},
                {"name": "common", "quantity": "15 kB", "shared_by": "fleet", "priority": 250,
                 "rollover": {"maximum": "25 kB"}},
                {"name": "nightly", "quantity": "20 kB", "shared_by": "plan", "fixed": True,
                 "bands": ["night", "otherwise"], "priority": 20},
            ],
        },
        "sms": {
            "price": {"model": "stair_step", "counted_per": "fleet", "tiers": [
                {"up_to": 10, "flat": "1"}, {"up_to": 40, "flat": "3"}, {"flat": "5"},
            ]},
            "allowance": 3,
        },
        "voice": {
            "price": {"model": "package", "amount": "0.25", "size": "10 min", "free": 60,
                      "connection_fee": "0.02"},
            "increment": {"first": 60, "step": 6, "scope": "session"},
        },
        "messages": {
            "price": {"model": "graduated", "minimum": "2", "maximum": "7", "tiers": [
                {"up_to": 10, "amount": "0.1"}, {"amount": "0.07"},
            ]},
            "allowances": [{"name": "lifetime", "quantity": 25, "renews": "never", "lasts": "2 years"}],
        },
    },
    "fees": [
        {"name": "line", "amount": "2.00"},
        {"name": "platform", "amount": "10", "per": "fleet", "charged": "in_advance"},
        {"name": "setup", "amount": "4.99", "every": "once"},
    ],
    "adjustments": [
        {"type": "percentage_discount", "name": "rebate", "percent": "12.5", "on": ["data", "line"]},
        {"type": "commitment", "name": "commitment", "amount": "30", "on": "usage"},
    ],
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "plan": "neighbour",
    "currency": "EUR",
    "lines_per": "device",
    "meters": {
        "data": {
            "price": {"amount": "0.11", "per": "1 kB"},
            "allowances": [
                {"name": "common", "quantity": "5 kB", "shared_by": "fleet", "priority": 250,
                 "rollover": {"maximum": "25 kB"}},
            ],
        },
        "sms": {"price": {"amount": "0.3", "counted_per": "fleet"}},
        "voice": {
            "price": {"model": "graduated", "counted_per": "session", "tiers": [
                {"up_to": 60, "amount": "0.10", "block": 60}, {"amount": "0.01"},
            ]},
        },
        "messages": {"price": {"amount": "0.05"}},
    },
    "rounding": {"at": "line", "mode": "half_even", "digits": 3},
}  # fmt: skip
PECULIAR: dict[str, Any] = {
    "plan": "peculiar",
    "currency": "EUR",
    "meters": {
        "data": {
            "price": {"model": "graduated", "counted_with": "meter", "tiers": [
                {"up_to": 5000, "amount": "0.0001"}, {"amount": "0.00003"},
            ]},
            "increment": {"step": 100, "direction": "half_up", "scope": "period"},
            "variants": [
                {"where": {"direction": ["uplink"], "rat": ["NB-IoT"]},
                 "price": {"amount": "0.00001", "counted_with": "meter"}},
                {"from": "2026-02-15", "zones": ["elsewhere"],
                 "price": {"amount": "0.00002", "maximum": "0.01"},
                 "increment": {"step": 300, "scope": "device_network_month"}},
            ],
            "allowances": [
                {"name": "weekly", "quantity": 900, "renews": "week"},
                {"name": "welcome", "quantity": 5000, "periods": 1, "priority": 10},
            ],
        },
        "sms": {"price": {"amount": "0.003", "counted_per": "record", "minimum": "0.01"}},
        "voice": {"price": {"amount": "0.015"}, "aggregate": "max"},
        "messages": {
            "price": {"model": "stair_step", "flat_at_zero": True, "tiers": [
                {"up_to": 4, "flat": "0.5"}, {"flat": "0.7", "amount": "0.01"},
            ]},
            "increment": {"step": 2, "direction": "down", "scope": "device_month"},
        },
    },
    "zones": {"home": ["DE", "SE"]},
    "rounding": {"at": "record", "step": "0.005"},
}  # fmt: skip
PLANS = (PLAIN, PECULIAR, SESSIONS)
"""In the order of a bill: by id."""
DEVICES: dict[str, str] = {
    f"{document['plan']}-{number}": document["plan"]
    for document, count in zip(PLANS, (2, 2, 4), strict=True)
    for number in range(1, count + 1)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What one device publishes in one message."""

    device: str
    readings: Sequence[Reading]


async def begin(connection: Connection) -> tuple[Operator, Fleet]:
    """Register the fleet; nothing is used yet."""
    operator = await Operator.of(connection, now=NOW)
    fleet = await operator.fleet("rich")
    for document in PLANS:
        device_ids = [device for device, plan in DEVICES.items() if plan == document["plan"]]
        await operator.devices(
            fleet, device_ids, plan=await operator.plan(document), valid_from=BEGAN
        )
    return operator, fleet


def messages(seed: int) -> Iterator[Published]:
    """Return three months of messages in the order of their readings.

    None of data crosses a cycle's end: it would find what rolled over before and after. Voice does.
    """
    chance = random.Random(seed)  # noqa: S311 - the seed must reproduce it
    seqs = dict.fromkeys(DEVICES, 0)
    # Little is used in January, so that much rolls over.
    for cycle, count in ((JANUARY, 40), (FEBRUARY, 150), (MARCH, 70)):
        instants = sorted(_instants(chance, cycle, count))
        for at in instants:
            device = chance.choice(list(DEVICES))
            readings = []
            for _ in range(chance.randint(1, 3)):
                seqs[device] += 1
                readings.append(_reading(chance, seqs[device], at, cycle))
            yield Published(device=device, readings=readings)
        if cycle is not MARCH:
            device = chance.choice(list(DEVICES))
            seqs[device] += 1
            yield Published(device=device, readings=[_crossing(seqs[device], cycle)])


def _instants(chance: random.Random, cycle: BillCycle, count: int) -> Iterator[datetime]:
    minutes = int((cycle.end - cycle.start) / timedelta(minutes=1))
    for _ in range(count):
        yield cycle.start + timedelta(minutes=chance.randrange(24 * 60, minutes - 10))


def _reading(chance: random.Random, seq: int, at: datetime, cycle: BillCycle) -> Reading:
    meter = chance.choices([DATA, SMS, VOICE, MESSAGES], [6, 2, 2, 1])[0]
    since = chance.choice([None, at - timedelta(minutes=chance.randrange(1, 1200))])
    more: dict[str, Any] = {
        "zone": chance.choice([None, "DE", "DE", "SE", "US"]),
        "rat": chance.choice([None, "NB-IoT"]),
        "session": chance.choice([None, f"s{at.day // 5}"]),
        "packets": chance.randrange(5),
    }
    if meter is DATA:
        more |= {"uplink": chance.randrange(1500), "downlink": chance.randrange(4000)}
    else:
        more["quantity"] = chance.randrange(300 if meter is VOICE else 5)
    return Reading(
        seq=seq, at=at, since=since and max(since, cycle.start), meter=meter,
        kind=ReadingKind.DELTA, **more,
    )  # fmt: skip


def _crossing(seq: int, cycle: BillCycle) -> Reading:
    """Return a call that ends in the next cycle."""
    return Reading(
        seq=seq, at=cycle.end + timedelta(minutes=7), since=cycle.end - timedelta(minutes=13),
        meter=VOICE, kind=ReadingKind.DELTA, quantity=20 * 60,
    )  # fmt: skip


async def publish(
    connection: Connection, published: Sequence[Published], *, readings_max: int
) -> None:
    """Store messages and charge them in runs of at most so many readings."""
    devices = DeviceCache(100)
    for each in published:
        message = Message(
            topic=f"fm/v1/{TENANT}/{each.device}/usage",
            octets=100,
            sender=(TenantId(TENANT), DeviceId(each.device)),
            received_at=NOW,
            published_at=None,
            boot="boot-1",
            readings=each.readings,
            rejections=(),
        )
        await write_batch(connection, devices, [message], now=NOW)
    while await charge_usage(connection, readings_max=readings_max, now=NOW):
        pass


def batched(every: Sequence[Published], size: int) -> Iterator[Sequence[Published]]:
    """Return messages in batches; one may hold the end of a cycle and the next one's beginning."""
    for first in range(0, len(every), size):
        yield every[first : first + size]


async def charged_lines(connection: Connection) -> list[str]:
    """Return the readings in the order in which they were charged, as `fleetmeter rate` reads them."""
    found = await connection.execute(
        "SELECT device_id, reading.meter_no, reading.uplink, reading.downlink, reading.quantity,"
        " since, measured_at, reading.zone, reading.rat, session, packets"
        " FROM (SELECT DISTINCT run_no, run_position, boot_no, seq FROM charge) AS charged"
        " JOIN reading USING (boot_no, seq) JOIN device USING (device_no)"
        " ORDER BY run_no, run_position"
    )
    lines = []
    for (
        device,
        meter_no,
        up,
        down,
        quantity,
        since,
        at,
        zone,
        rat,
        session,
        packets,
    ) in await found.fetchall():
        meter = next(meter for meter in METERS.values() if meter.meter_no == meter_no)
        line: dict[str, object] = {
            "device": device, "meter": meter.meter, "start": (since or at).isoformat(),
            "end": at.isoformat(), "zone": zone, "rat": rat, "session": session, "packets": packets,
        }  # fmt: skip
        line |= {"uplink": up, "downlink": down} if meter.directed else {"quantity": quantity}
        lines.append(json.dumps({name: value for name, value in line.items() if value is not None}))
    return lines


def rated(lines: Sequence[str], *, from_: datetime | None = None) -> RatingRun:
    """Rate usage without a database, under the same plans, from the same state.

    The first period is that of `from_`, or of the first usage.
    """
    plans = [terms_of(read_plan(document)) for document in PLANS]
    began = midnight(date(2026, 1, 1), ZONE).isoformat()
    document = {
        "fleet": {"time_zone": ZONE, "anchor_day": 1, "starts": began},
        "devices": {
            device: {"plan": plan, "from": began, "state": "active"}
            for device, plan in DEVICES.items()
        },
    }
    state = read_state(document)
    units = {
        name: MeterUnits(terms=meter, octet_multiple=terms.octet_multiple)
        for terms in plans
        for name, meter in terms.meters.items()
    }
    calendar = calendar_of(state, plans)
    usage = read_usage(lines, meters=units, time_zone=ZONE, default_time=None)
    return rate(
        plans=plans, usage=usage, state=state, units=units, calendar=calendar, from_=from_, to=None
    )
