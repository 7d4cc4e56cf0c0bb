"""The promises of the product, checked against the ground truth by queries of the test's own.

Nothing here trusts what charging keeps: fates come from the tables, quantities from what the devices
made, prices from the naive reference. The audit of the product is one check among them.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.insight.audit import audit_database
from metering.rating.plan import Aggregate, PlanTerms
from metering.store import device_views, fault_views, fleet_views, usage_views
from metering.store.connection import Connection
from metering.store.readings import reading_of
from metering.store.registry import plan_terms
from metering.usage import METERS_BY_NO, Reading, ReadingKind
from tests.reference import naive
from tests.simulation.alerts import check_alerts
from tests.simulation.bills import check_bills
from tests.simulation.device import Key, SimulatedDevice
from tests.simulation.holds import check_quota
from tests.simulation.outbox import check_outbox
from tests.simulation.scenes import SimulatedFleet

if TYPE_CHECKING:
    from tests.simulation.world import World

BootKey = tuple[str, str, str]
"""(tenant, device, boot)"""
Name = tuple[str, str, str, int]
"""(tenant, device, boot, seq)"""
AHEAD_MAX = timedelta(seconds=600)
_SHOWN_MAX = 8


class BrokenPromise(AssertionError):
    """A promise of the product does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """A stored charge that holds today."""

    name: Name
    fleet_no: int
    device_no: int
    subscription_no: int
    part: int
    place: tuple[int, int]
    plan_no: int
    meter_no: int
    variant: int
    cycle_start: datetime
    usage_from: datetime
    usage_to: datetime
    quantity: int
    uplink: int
    billed: int
    from_allowance: int
    from_pool: int
    overage: int
    priced_before: int
    amount: int
    connection_fee: int
    draws: Sequence[tuple[int, int]]
    """(bucket_no, quantity)"""


@dataclass(slots=True)
class Found:
    """What is in the database once a run is drained."""

    readings: dict[Name, list[Reading]] = field(default_factory=lambda: defaultdict(list))
    rejected: dict[Name, set[str]] = field(default_factory=lambda: defaultdict(set))
    charges: dict[Name, list[Charged]] = field(default_factory=lambda: defaultdict(list))
    parked: dict[Name, list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))
    """(reason, quantity)"""
    queued: int = 0
    plans: dict[int, PlanTerms] = field(default_factory=dict)
    bucket_names: dict[int, tuple[str, int]] = field(default_factory=dict)
    """bucket_no → (name, fleet_no)"""
    holds: list[tuple[int, int, int, str, datetime, int, int, int | None]] = field(
        default_factory=list
    )
    """(fleet_no, device_no, meter_no, bucket, its beginning, quantity, run_no, run of its end)"""
    boots: dict[BootKey, int] = field(default_factory=dict)
    """its boot_no"""


async def check_durable(world: "World", device: SimulatedDevice, keys: Sequence[Key]) -> None:
    """Promise 1, at the very moment in which a device hears that readings are durable."""
    if not keys:
        return
    found = await world.admin.execute(
        "SELECT boot_id, reading.seq FROM reading JOIN boot USING (boot_no)"
        " JOIN device ON device.device_no = boot.device_no JOIN tenant USING (tenant_no)"
        " WHERE tenant_id = %s AND device_id = %s"
        " UNION SELECT boot_id, seq FROM rejected JOIN device USING (device_no)"
        " JOIN tenant ON tenant.tenant_no = device.tenant_no"
        " WHERE tenant_id = %s AND device_id = %s AND seq IS NOT NULL",
        [device.tenant, device.device_id] * 2,
    )
    missing = sorted(set(keys) - {(row[0], row[1]) for row in await found.fetchall()})
    if missing:
        raise BrokenPromise(
            f"{device.name} was told that {missing} are durable, which they are not"
        )


async def check(world: "World") -> None:
    """Check every promise on a drained database; raise what is broken, all of it."""
    found = await _load(world)
    problems = [
        *await _audited(world, found),
        *_fates(world, found),
        *_quantities(world, found),
        *_counters(world, found),
        *_parking(world, found),
        *_explained(found),
        *await _bad_messages(world),
        *await _missing_usage(world, found),
        *await _tenants(world, found),
        *await _balances(world),
        *await check_quota(world, found),
        *await check_alerts(world, found),
        *await check_outbox(world),
        *await check_bills(world, found),
        *await charged_by_others(world.admin),
        *await _dated(world),
    ]
    for fleet in world.fleets:
        problems += _rated_again(fleet, found)
    if problems:
        raise BrokenPromise("\n".join([*problems[:_SHOWN_MAX], f"{len(problems)} in all"]))


async def charged_by_others(connection: Connection) -> list[str]:
    """Return which runs a worker committed in a shard whose lease was not its own at that moment."""
    return [
        f"shard {shard_no} was charged by {by}, leased by {leased_by}"
        for shard_no, by, leased_by in await _rows(
            connection,
            "SELECT DISTINCT shard_no, by, leased_by FROM watched.run WHERE by IS DISTINCT FROM leased_by",
        )
    ]


_LEGAL = {
    ("inventory", "active"), ("active", "suspended"), ("suspended", "active"),
    ("inventory", "retired"), ("active", "retired"), ("suspended", "retired"),
}  # fmt: skip
"""Which state follows which; the same again changes nothing."""


async def _dated(world: "World") -> list[str]:
    """States follow in their order, a SIM is in one device at a time, and moves that are due are made."""
    problems: list[str] = []
    before: tuple[int, str] | None = None
    for device_no, state in await _rows(
        world.admin,
        "SELECT device_no, state FROM device_state_change ORDER BY device_no, effective_from",
    ):
        known = before[1] if before is not None and before[0] == device_no else state
        if known != state and (known, state) not in _LEGAL:
            problems.append(f"device {device_no} went from {known} to {state}")
        before = (device_no, state)
    problems += [
        f"SIM {row[0]} is in devices {row[1]} and {row[2]} at once"
        for row in await _rows(
            world.admin,
            "SELECT one.iccid, one.device_no, other.device_no FROM device_sim AS one"
            " JOIN device_sim AS other USING (tenant_no, iccid)"
            " WHERE one.device_no < other.device_no AND one.valid && other.valid",
        )
    ]
    problems += [
        f"device {row[0]} is in fleet {row[1]}, its subscription now is in {row[2]}"
        for row in await _rows(
            world.admin,
            "SELECT device_no, device.fleet_no, subscription.fleet_no"
            " FROM device JOIN subscription USING (device_no)"
            " WHERE valid @> %s::timestamptz AND device.fleet_no <> subscription.fleet_no"
            " AND NOT EXISTS (SELECT FROM device_move WHERE device_move.device_no = device.device_no)",
            world.now,
        )
    ]
    return problems


async def _load(world: "World") -> Found:
    found = Found()
    names = await _rows(
        world.admin,
        "SELECT boot_no, tenant_id, device_id, boot_id FROM boot JOIN device USING (device_no)"
        " JOIN tenant USING (tenant_no)",
    )
    boots: dict[int, BootKey] = {row[0]: (row[1], row[2], row[3]) for row in names}
    found.boots = {key: number for number, key in boots.items()}
    for row in await _rows(
        world.admin,
        "SELECT boot_no, seq, measured_at, meter_no, kind, uplink, downlink, quantity, since, epoch,"
        " width, zone, rat, apn, session, packets FROM reading",
    ):
        found.readings[*boots[row[0]], row[1]].append(reading_of(row[1:]))
    for row in await _rows(
        world.admin,
        "SELECT tenant_id, device_id, boot_id, seq, reason FROM rejected JOIN device USING (device_no)"
        " JOIN tenant ON tenant.tenant_no = device.tenant_no WHERE seq IS NOT NULL",
    ):
        found.rejected[*row[:3], row[3]].add(row[4])
    for row in await _rows(world.admin, "SELECT boot_no, seq, reason, quantity FROM parked"):
        found.parked[*boots[row[0]], row[1]].append((row[2], row[3]))
    for row in await _rows(
        world.admin,
        "SELECT boot_no, seq, fleet_no, part, run_no, run_position, plan_no, meter_no, variant,"
        " cycle_start, usage_from, usage_to, quantity, uplink, billed, from_allowance, from_pool, overage,"
        " priced_before, amount, connection_fee, draw_buckets, draw_quantities, device_no,"
        " subscription_no FROM charge"
        " ORDER BY run_no, run_position, part",
    ):
        name = (*boots[row[0]], row[1])
        found.charges[name].append(
            Charged(
                name=name, fleet_no=row[2], part=row[3], place=(row[4], row[5]), plan_no=row[6],
                meter_no=row[7], variant=row[8], cycle_start=row[9], usage_from=row[10],
                usage_to=row[11], quantity=row[12], uplink=row[13], billed=row[14],
                from_allowance=row[15], from_pool=row[16], overage=row[17],
                priced_before=int(row[18]), amount=int(row[19]), connection_fee=int(row[20]),
                draws=list(zip(row[21] or (), row[22] or (), strict=True)),
                device_no=row[23], subscription_no=row[24],
            )
        )  # fmt: skip
    found.queued = (await _rows(world.admin, "SELECT count(*) FROM work_item"))[0][0]
    numbers = [row[0] for row in await _rows(world.admin, "SELECT plan_no FROM plan")]
    found.plans = await plan_terms(world.admin, numbers)
    found.bucket_names = {
        row[0]: (row[1], row[2])
        for row in await _rows(world.admin, "SELECT bucket_no, name, fleet_no FROM bucket")
    }
    found.holds = [
        tuple(row)
        for row in await _rows(
            world.admin,
            "SELECT bucket.fleet_no, reservation.device_no, bucket.meter_no, name, begins_at,"
            " entry.quantity::bigint, entry.run_no, ended_run_no FROM bucket_entry AS entry"
            " JOIN bucket USING (bucket_no) JOIN reservation USING (reservation_no)"
            " WHERE entry.kind = 'hold' AND bucket.kind = 'pool'",
        )
    ]
    return found


async def _rows(connection: Connection, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    found = await connection.execute(query.encode(), parameters or None)
    return await found.fetchall()


async def _audited(world: "World", found: Found) -> Iterator[str]:
    """Promise 3, in the product's own words."""
    async with world.admin.transaction():
        result = await audit_database(world.admin)
    queued = [f"{found.queued} work items are still queued"] if found.queued else []
    return iter([*(f"audit: {each}" for each in result.differences), *queued])


def _names(device: SimulatedDevice) -> Iterator[tuple[Key, Name]]:
    for key in device.made:
        yield key, (device.tenant, device.device_id, *key)


def _fates(world: "World", found: Found) -> Iterator[str]:
    """Promises 1, 2 and 5: each reading has one fate, and what is stored is what was made."""
    made = set[Name]()
    for device in world.devices:
        for key, name in _names(device):
            made.add(name)
            yield from _kept(device, key, name, found)
            yield from _charged_once(name, found)
    yield from (f"{name} is stored, but nobody made it" for name in found.readings.keys() - made)


def _kept(device: SimulatedDevice, key: Key, name: Name, found: Found) -> Iterator[str]:
    """Promise 1: what was acknowledged is stored as it was made, or rejected with a true reason.

    A reading may be both: one copy of it came when its clock was still ahead, another one later.
    """
    stored, reasons = found.readings.get(name, []), found.rejected.get(name, set())
    refused = reasons - {"sequence_conflict"}
    contents = device.made[key]
    if len(stored) > 1:
        yield f"{name} is stored {len(stored)} times"
    if stored and stored[0] not in contents:
        yield f"{name} is stored as {stored[0]}, made were {contents}"
    if not stored and not refused and (key not in device.lost or key in device.durable):
        yield f"{name} is neither stored nor rejected, and its device did not lose it"
    if "sequence_conflict" in reasons and len(contents) == 1:
        yield f"{name} is rejected as a conflict, but had one content only"
    if refused - {"clock_ahead"} or (refused and device.skew <= AHEAD_MAX):
        yield f"{name} is rejected as {refused}"


def _charged_once(name: Name, found: Found) -> Iterator[str]:
    """Promise 2: a stored reading is charged, or parked, and that once."""
    stored = found.readings.get(name, [])
    charged, parked = found.charges.get(name, []), found.parked.get(name, [])
    if stored and bool(charged) == bool(parked):
        yield f"{name} has {len(charged)} charges and is parked {len(parked)} times"
    if not stored and (charged or parked):
        yield f"{name} is charged or parked, but not stored"
    if [each.part for each in charged] != list(range(len(charged))):
        yield f"{name} is charged in parts {[each.part for each in charged]}"
    if len({each.place for each in charged}) > 1:
        yield f"{name} is charged at {sorted({each.place for each in charged})}"


def _quantities(world: "World", found: Found) -> Iterator[str]:
    """Promise 2: what a delta says is what is charged or parked of it, to the last unit."""
    del world
    for name, (reading, *_) in found.readings.items():
        used = reading.uplink + reading.downlink if reading.meter.directed else reading.quantity
        charges = found.charges.get(name, ())
        meter = reading.meter.meter
        if any(
            found.plans[each.plan_no].meters[meter].aggregate is Aggregate.MAX for each in charges
        ):
            continue  # each part of a capacity has the whole of it
        if reading.kind is ReadingKind.DELTA and _charged(found, name) != used:
            yield f"{name} used {used}, charged or parked is {_charged(found, name)}"


def _charged(found: Found, name: Name) -> int:
    return sum(each.quantity for each in found.charges.get(name, ())) + sum(
        quantity for _, quantity in found.parked.get(name, ())
    )


def _counters(world: "World", found: Found) -> Iterator[str]:
    """Promise 2 of counters: an epoch's charges sum to its growth, and to what was truly used."""
    epochs: dict[tuple[str, str, str, str], list[Name]] = defaultdict(list)
    for name, (reading, *_) in found.readings.items():
        if reading.kind is ReadingKind.TOTAL:
            epochs[*name[:3], reading.epoch or ""].append(name)
    for key, names in epochs.items():
        points = [found.readings[name][0] for name in sorted(names, key=lambda name: name[3])]
        grown = sum(
            _growth([getattr(point, direction) for point in points], points[0].width)
            for direction in ("uplink", "downlink")
        )
        charged = sum(_charged(found, name) for name in names)
        if charged != grown:
            yield f"counter {key} grew by {grown}, charged or parked is {charged}"
        device = next(each for each in world.devices if (each.tenant, each.device_id) == key[:2])
        truth = device.used.get((key[2], key[3]))
        told = [name for name in device.made if name[0] == key[2]]
        whole = all((*key[:2], *each) in found.readings for each in told)
        alone = all(len(device.made[each]) == 1 for each in told)
        if truth is not None and whole and alone and charged != truth:
            yield f"counter {key} truly counted {truth}, charged or parked is {charged}"


def _growth(values: Iterable[int], width: int | None) -> int:
    """Return how far a counter moved in all: the plainest reading of the rule."""
    grown, before = 0, 0
    for value in values:
        if value >= before:
            grown += value - before
        elif width is not None and width < 64 and before * 4 >= 3 * 2**width:
            grown += 2**width - before + value
        else:
            grown += value
        before = value
    return grown


def _parking(world: "World", found: Found) -> Iterator[str]:
    """Promise 2: what is parked has a true reason, and what is charged had none."""
    for fleet in world.fleets:
        plans = {number: document["meters"] for number, document in fleet.plans.items()}
        for device in fleet.devices:
            begins = fleet.subscribed_from.get(device.device_id)
            plan_no = fleet.plan_of.get(device.device_id)
            if device.device_id in fleet.redated:
                continue
            for _, name in _names(device):
                charged = found.charges.get(name, [])
                if charged and (
                    begins is None or min(each.usage_from for each in charged) < begins
                ):
                    yield f"{name} is charged for a time before its subscription of {begins}"
                for reason, _ in found.parked.get(name, []):
                    reading = found.readings[name][0]
                    priced = plan_no is not None and reading.meter.meter in plans[plan_no]
                    # What was used before, or charged before the operator came, has no price for good.
                    if reason == "no_price" and priced:
                        yield f"{name} is parked for want of a price"
                    if reason != "no_price" and begins is not None and begins == fleet.began:
                        started = reading.since or reading.at
                        if started >= begins and reading.kind is ReadingKind.DELTA:
                            yield f"{name} is parked: {reason}"


def _explained(found: Found) -> Iterator[str]:
    """Promise 7: the tier walk sums to the amount, and the buckets to what they paid."""
    for name, charges in found.charges.items():
        for each in charges:
            terms = found.plans[each.plan_no]
            rate = terms.rates[METERS_BY_NO[each.meter_no].meter][each.variant]
            walked = sum(step.amount for step in rate.walk(each.priced_before, each.overage))
            if terms.record_amount(walked + each.connection_fee) != each.amount:
                yield f"{name} part {each.part} walks to {walked}, costs {each.amount}"
            if each.from_allowance + each.from_pool + each.overage != each.billed:
                yield f"{name} part {each.part} is billed {each.billed}, which its parts do not make"
            if sum(drawn for _, drawn in each.draws) != each.from_allowance + each.from_pool:
                yield f"{name} part {each.part} drew {each.draws}"
            if any(found.bucket_names[number][1] != each.fleet_no for number, _ in each.draws):
                yield f"{name} part {each.part} drew from another fleet's bucket"


async def _balances(world: "World") -> list[str]:
    """Every balance is the fold of its postings, and what came under one key was done once."""
    problems = [
        f"bucket {row[0]} has {row[1]}, its postings fold to {row[2]}"
        for row in await _rows(
            world.admin,
            "SELECT bucket.bucket_no, bucket.granted - bucket.used, coalesce(sum(posting.quantity), 0)"
            " FROM bucket LEFT JOIN posting ON posting.bucket_no = bucket.bucket_no"
            "   AND posting.account = 'bucket' GROUP BY bucket.bucket_no, bucket.granted, bucket.used"
            " HAVING bucket.granted - bucket.used <> coalesce(sum(posting.quantity), 0)",
        )
    ]
    done = await _rows(
        world.admin,
        "SELECT tenant_id || '/' || idempotency_key, entry.kind, entry.bucket_no,"
        " coalesce(entry.other_bucket_no, 0), entry.quantity::bigint"
        " FROM balance_operation JOIN tenant USING (tenant_no)"
        " LEFT JOIN bucket_entry AS entry USING (operation_no)",
    )
    asked = [
        (key, kind, bucket_no, from_no or 0, quantity)
        for key, (kind, bucket_no, from_no, quantity) in world.keys_done.items()
    ]
    if sorted(done) != sorted(asked):
        problems.append(f"done to balances was {sorted(done)}, asked {sorted(asked)}")
    return problems


def _rated_again(fleet: SimulatedFleet, found: Found) -> list[str]:
    """Promise 3, independently: the naive reference rates the same usage to the same prices.

    It rates what no rollover and no member that joined makes depend on when it was charged.
    """
    if fleet.changed or fleet.kind == "rich":
        return []
    charged = sorted(
        (each for each in found.charges.values() if each[0].fleet_no == fleet.fleet.fleet_no),
        key=lambda each: each[0].place,
    )
    if not charged:
        return []
    holds = _holds_by_line(fleet, found, [each[0].place for each in charged])
    began = fleet.began.isoformat()
    documents = list({str(each["plan"]): each for each in reversed(fleet.plans.values())}.values())
    named = {number: str(document["plan"]) for number, document in fleet.plans.items()}
    state = {
        "fleet": {
            "time_zone": fleet.fleet.time_zone, "anchor_day": fleet.fleet.anchor_day,
            "cycle": {1: "month", 3: "quarter", 12: "year"}[fleet.fleet.cycle_months],
            "anchor_month": fleet.fleet.anchor_month, "starts": began,
        },
        "devices": {
            device_id: {"plan": named[plan_no], "from": began, "state": "active"}
            for device_id, plan_no in fleet.plan_of.items()
        },
        "holds": holds,
    }  # fmt: skip
    again = naive.rate(documents, [_line(found, each) for each in charged], state)
    expected: dict[tuple[int, datetime], list[tuple[object, ...]]] = defaultdict(list)
    for period in again["periods"]:
        for record in period["records"]:
            expected[record["line"], record["from"]].append(
                (
                    record["quantity"], record["billed"], dict(record["draws"]), record["priced"],
                    record["amount"],
                )
            )  # fmt: skip
    made: dict[tuple[int, datetime], list[tuple[object, ...]]] = defaultdict(list)
    for line, charges in enumerate(charged, 1):
        for each in charges:
            subunits = found.plans[each.plan_no].subunits_per_unit
            draws = dict[str, int]()
            for number, drawn in each.draws:
                bucket = found.bucket_names[number][0]
                draws[bucket] = draws.get(bucket, 0) + drawn
            made[line, each.usage_from].append(
                (each.quantity, each.billed, draws, each.overage, Fraction(each.amount, subunits))
            )
    return [
        f"{fleet.tenant_id}/{fleet.kind}: {charged[key[0] - 1][0].name} from {key[1]} is charged as"
        f" {made.get(key)}, the reference says {expected.get(key)}"
        for key in sorted(expected.keys() | made.keys())
        if expected.get(key) != made.get(key)
    ] + [
        f"{fleet.tenant_id}/{fleet.kind}: the reference rejects {each}"
        for each in again["rejected"]
    ]


def _holds_by_line(
    fleet: SimulatedFleet, found: Found, places: Sequence[tuple[int, int]]
) -> list[dict[str, object]]:
    """Return what was held in a fleet's buckets while which lines of its usage were charged."""

    def line_of(run_no: int) -> int:
        return 1 + sum(place[0] < run_no for place in places)

    names = {number: device_id for device_id, number in fleet.numbers.items()}
    return [
        {
            "device": names[device_no], "meter": METERS_BY_NO[meter_no].meter, "name": name,
            "begins": begins.isoformat(), "quantity": quantity, "first": line_of(run_no),
            "end": line_of(ended) if ended is not None else len(places) + 1,
        }
        for fleet_no, device_no, meter_no, name, begins, quantity, run_no, ended in found.holds
        if fleet_no == fleet.fleet.fleet_no
    ]  # fmt: skip


def _line(found: Found, charges: Sequence[Charged]) -> dict[str, object]:
    """Return a charged reading as a line of usage; a counter's says what it grew by."""
    first = charges[0]
    reading = found.readings[first.name][0]
    line: dict[str, object] = {
        "device": first.name[1],
        "meter": reading.meter.meter,
        "start": min(each.usage_from for each in charges).isoformat(),
        "end": max(each.usage_to for each in charges).isoformat(),
    }
    if reading.zone is not None:
        line["zone"] = reading.zone
    quantity = sum(each.quantity for each in charges)
    uplink = sum(each.uplink for each in charges)
    if reading.meter.directed:
        return line | {"uplink": uplink, "downlink": quantity - uplink}
    return line | {"quantity": quantity}


async def _bad_messages(world: "World") -> list[str]:
    """Promise 5: every bad message that was handed to an ingester is kept, and its tenant sees it."""
    kept = {
        (row[0], row[1]) for row in await _rows(world.admin, "SELECT topic, reason FROM rejected")
    }
    refused = sorted({topic for topic, reason in kept if reason == "storage_error"})
    return [
        *(f"the database had to refuse what came on {topic}" for topic in refused),
        *_not_kept(world, kept),
    ]


def _not_kept(world: "World", kept: set[tuple[str, str]]) -> list[str]:
    return [
        f"a bad message on {topic} is not kept as {reason}"
        for topic, payload, reason in world.malformed
        if (topic, payload) in world.broker.taken and (topic, reason) not in kept
    ]


async def _missing_usage(world: "World", found: Found) -> list[str]:
    """Promise 2: gaps that stay open are reported, each of them and nothing else."""
    problems: list[str] = []
    kept: dict[BootKey, set[int]] = defaultdict(set)
    for name in [*found.readings, *found.rejected]:
        kept[name[:3]].add(name[3])
    for device in world.devices:
        tenant_no = world.tenants[device.tenant]
        try:
            view = await device_views.device_view(
                world.admin, tenant_no, device_id=device.device_id, now=world.now
            )
        except NotFound:
            problems.append(f"{device.name} is not shown to its tenant")
            continue
        boots = await device_views.boots_of_device(
            world.admin, tenant_no, device_no=view.device_no, most=500
        )
        shown = {each.boot_id: set(_gaps(each.up_to, each.beyond)) for each in boots}
        for (tenant, device_id, boot), seqs in kept.items():
            if (tenant, device_id) == (device.tenant, device.device_id):
                missing = set(range(1, max(seqs) + 1)) - seqs
                if shown.get(boot, set()) != missing and boot != "bad":
                    problems.append(
                        f"{device.name} {boot}: missing are {sorted(missing)},"
                        f" shown as such {sorted(shown.get(boot, set()))}"
                    )
    return problems


def _gaps(up_to: int, beyond: Sequence[int]) -> Iterator[int]:
    told = up_to
    for first, last in zip(beyond[::2], beyond[1::2], strict=True):
        yield from range(told + 1, first)
        told = last


async def _tenants(world: "World", found: Found) -> list[str]:
    """Promise 6: what the API's queries show a tenant is its own, though the names are the same."""
    problems: list[str] = []
    for tenant_id, tenant_no in world.tenants.items():
        fleets = [each for each in world.fleets if each.tenant_id == tenant_id]
        shown = await fleet_views.list_fleets(world.admin, tenant_no, after="", limit=100)
        if {each.fleet_no for each in shown} != {each.fleet.fleet_no for each in fleets}:
            problems.append(f"{tenant_id} is shown the fleets {[each.fleet_id for each in shown]}")
        problems += await _usage_shown(world, found, tenant_id, tenant_no)
        for each in await fault_views.list_rejected(
            world.admin, tenant_no, device_no=None, reason=None, before=None, limit=500
        ):
            if f"/{tenant_id}/" not in each.topic:
                problems.append(f"{tenant_id} is shown what was rejected on {each.topic}")
        parked = await fault_views.list_parked(
            world.admin, tenant_no, fleet_no=None, device_no=None, before=None, limit=500
        )
        listed = sorted((each.device_id, each.boot_id, each.seq) for each in parked)
        own = sorted(
            name[1:] for name, kept in found.parked.items() if name[0] == tenant_id and kept
        )
        if listed != own:
            problems.append(f"{tenant_id} is shown {len(listed)} parked readings of {len(own)}")
    return problems


async def _usage_shown(
    world: "World", found: Found, tenant_id: str, tenant_no: TenantNo
) -> list[str]:
    problems: list[str] = []
    edges = [world.now - timedelta(days=800), world.now + timedelta(days=800)]
    series = usage_views.Series(edges=edges)
    devices = await device_views.list_devices(
        world.admin, tenant_no, fleet_no=None, after="", limit=100, now=world.now
    )
    own = sorted(each.device_id for each in world.devices if each.tenant == tenant_id)
    if [each.device_id for each in devices] != own:
        problems.append(f"{tenant_id} is shown {[each.device_id for each in devices]}, has {own}")
    for device in devices:
        points = await usage_views.usage_of_device(
            world.admin, tenant_no, series, device_no=device.device_no
        )
        shown = {each.meter_no: each.quantity for each in points}
        used: dict[int, int] = {}
        for name, charges in found.charges.items():
            if name[:2] == (tenant_id, device.device_id):
                for each in charges:
                    used[each.meter_no] = used.get(each.meter_no, 0) + each.quantity
        if shown != used:
            problems.append(f"{tenant_id}/{device.device_id} is shown {shown}, was charged {used}")
        for other, other_no in world.tenants.items():
            if other != tenant_id and await usage_views.usage_of_device(
                world.admin, other_no, series, device_no=device.device_no
            ):
                problems.append(f"{other} is shown the use of {tenant_id}/{device.device_id}")
    return problems
