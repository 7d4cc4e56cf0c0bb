"""The promises of quota, held against a fold of the test's own over what was entered and charged.

Only where nothing was charged again: a correction may leave less than was held.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from metering.rating.reservation import overshoot_bound
from metering.store.connection import Connection
from metering.store.reservation_views import ended_in_fleet, quota_of_fleet
from metering.usage import DATA
from tests.simulation.device import SimulatedDevice
from tests.simulation.scenes import SimulatedFleet

if TYPE_CHECKING:
    from tests.simulation.promises import Found
    from tests.simulation.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSeen:
    """What was published of a fleet's overshoot of data, and what there was at that instant."""

    fleet_no: int
    bound: int
    granted: frozenset[tuple[int, str]]
    """(device_no, request) of all grants until then."""
    charged: frozenset[tuple[int, int]]
    """(boot_no, seq) of all readings of data that were charged until then."""


async def bound_of_fleet(connection: Connection, fleet_no: int) -> BoundSeen | None:
    """Return what is published of a fleet's overshoot now; None where it has no grants of data."""
    found = await connection.execute(
        "SELECT device_no, request_id FROM reservation WHERE fleet_no = %s AND meter_no = %s",
        [fleet_no, DATA.meter_no],
    )
    granted = frozenset((row[0], row[1]) for row in await found.fetchall())
    if not granted:
        return None
    views = {each.meter_no: each for each in await quota_of_fleet(connection, fleet_no)}
    found = await connection.execute("SELECT max(ended_at) FROM reservation")
    ((latest,),) = await found.fetchall()
    ended = {}
    if latest is not None:
        ended = await ended_in_fleet(connection, fleet_no, latest - timedelta(days=1000))
    found = await connection.execute(
        "SELECT DISTINCT boot_no, seq FROM charge WHERE fleet_no = %s AND meter_no = %s",
        [fleet_no, DATA.meter_no],
    )
    view = views.get(DATA.meter_no)
    return BoundSeen(
        fleet_no=fleet_no,
        bound=overshoot_bound(
            0 if view is None else view.outstanding, ended.get(DATA.meter_no, ())
        ),
        granted=granted,
        charged=frozenset((row[0], row[1]) for row in await found.fetchall()),
    )


async def check_quota(world: "World", found: "Found") -> list[str]:
    """Return what of the promises of quota is broken."""
    if not world.features.asking:
        return []
    rows = await world.admin.execute(
        "SELECT reservation_no, device_no, request_id, fleet_no, subscription_no, meter_no, requested,"
        " granted, held, state, run_no, ended_run_no, drawn, used, replaces_no, overshoot_bound"
        " FROM reservation ORDER BY run_no"
    )
    names = [column.name for column in rows.description or ()]
    grants = [dict(zip(names, row, strict=True)) for row in await rows.fetchall()]
    entries = await world.admin.execute(
        "SELECT bucket_no, other_bucket_no, run_no, kind, quantity::bigint, subscription_no,"
        " reservation_no FROM bucket_entry ORDER BY run_no, bucket_entry_no"
    )
    entered = await entries.fetchall()
    corrected: set[int] = {each.fleet.fleet_no for each in world.fleets if each.corrected}
    bucket_fleet = {number: fleet_no for number, (_, fleet_no) in found.bucket_names.items()}
    whole = [row for row in entered if bucket_fleet[row[0]] not in corrected]
    return [
        *_folded(found, whole),
        *_entered(grants, entered, corrected),
        *_drawn(found, grants, whole),
        *_asked(world, grants),
        *_bounded(world, found, grants, corrected),
        *_fleets_bounded(world, found, corrected),
    ]


def _folded(  # noqa: C901, PLR0912 - one fold
    found: "Found", entered: list[tuple[Any, ...]]
) -> Iterator[str]:
    """Never more is drawn or held of a bucket than it has, and nobody draws what is held for others."""
    events: dict[int, list[tuple[int, int, int, str, int, int | None]]] = defaultdict(list)
    for bucket_no, other_no, run_no, kind, quantity, subscription_no, _ in entered:
        events[bucket_no].append((run_no, 0, 0, kind, quantity, subscription_no))
        if other_no is not None and kind == "transfer":
            events[other_no].append((run_no, 0, 0, "transfer", -quantity, None))
    for charges in found.charges.values():
        for each in charges:
            for bucket_no, drawn in each.draws:
                if bucket_no in events:
                    events[bucket_no].append(
                        (*each.place, each.part, "draw", drawn, each.subscription_no)
                    )
    for bucket_no, of_bucket in events.items():
        left = 0
        held: dict[int | None, int] = defaultdict(int)
        # A run's own entries come before what it charges; holds are runs of their own.
        for run_no, _, _, kind, quantity, owner in sorted(
            of_bucket, key=lambda event: (event[:3], event[3] == "draw")
        ):
            if kind == "hold":
                held[owner] += quantity
            elif kind == "release":
                held[owner] -= quantity
            elif kind == "draw":
                left -= quantity
                held[owner] -= min(held[owner], quantity)
            elif kind != "rollover":
                left += quantity
            if left < sum(held.values()) or min(held.values(), default=0) < 0:
                yield (
                    f"bucket {bucket_no} has {left} left after the {kind} of {quantity} in run {run_no},"
                    f" held are {dict(held)}"
                )


def _entered(  # noqa: C901 - one look at each grant
    grants: list[dict[str, Any]], entered: list[tuple[Any, ...]], corrected: set[int]
) -> Iterator[str]:
    """Each grant is held in full when it is granted, and ends exactly once, with all of it."""
    held: dict[int, list[tuple[int, int]]] = defaultdict(list)
    released: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for bucket_no, _, run_no, kind, quantity, _, reservation_no in entered:
        if kind in {"hold", "release"}:
            (held if kind == "hold" else released)[reservation_no].append((run_no, quantity))
            del bucket_no
    for each in grants:
        number, name = each["reservation_no"], f"{each['device_no']}/{each['request_id']}"
        holds, releases = held.get(number, []), released.get(number, [])
        if any(run_no != each["run_no"] for run_no, _ in holds):
            yield f"{name} is held in {holds}, not in its run {each['run_no']}"
        if each["fleet_no"] not in corrected and sum(q for _, q in holds) != each["granted"]:
            yield f"{name} was granted {each['granted']}, held are {holds}"
        if each["requested"] is not None and each["granted"] > each["requested"]:
            yield f"{name} was granted {each['granted']}, asked were {each['requested']}"
        if each["state"] == "active":
            if releases:
                yield f"{name} is active, released are {releases}"
            continue
        if len(releases) != len(holds) or any(run != each["ended_run_no"] for run, _ in releases):
            yield f"{name} ended in run {each['ended_run_no']}, released are {releases} of {holds}"
        given_back = sum(quantity for _, quantity in releases)
        if each["drawn"] != each["held"] - given_back:
            yield f"{name} drew {each['drawn']} of {each['held']}, released were {given_back}"
    replaced = {each["replaces_no"] for each in grants} - {None}
    if replaced != {each["reservation_no"] for each in grants if each["state"] == "replaced"}:
        yield f"replaced are {sorted(replaced)}"
    active = [(each["device_no"], each["meter_no"]) for each in grants if not each["ended_run_no"]]
    if len(active) != len(set(active)):
        yield f"active at once are grants of {sorted(active)}"


def _drawn(
    found: "Found", grants: list[dict[str, Any]], entered: list[tuple[Any, ...]]
) -> Iterator[str]:
    """See that what its device drew while it was held was drawn of it first, and the rest released."""
    drawn: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for charges in found.charges.values():
        for each in charges:
            for bucket_no, quantity in each.draws:
                drawn[bucket_no, each.subscription_no].append((each.place[0], quantity))
    runs = {each["reservation_no"]: (each["run_no"], each["ended_run_no"]) for each in grants}
    held = {(row[0], row[6]): row[4] for row in entered if row[3] == "hold"}
    for bucket_no, _, _, kind, quantity, subscription_no, reservation_no in entered:
        if kind != "release":
            continue
        first, last = runs[reservation_no]
        used = sum(
            each for run, each in drawn.get((bucket_no, subscription_no), ()) if first < run < last
        )
        rest = max(0, held[bucket_no, reservation_no] - used)
        if quantity != rest:
            yield (
                f"reservation {reservation_no} released {quantity} of bucket {bucket_no}; its device"
                f" drew {used} of {held[bucket_no, reservation_no]}"
            )


def _asked(world: "World", grants: list[dict[str, Any]]) -> Iterator[str]:
    """Nothing was granted that nobody asked for, and what a device was told is what is stored."""
    stored = {(each["device_no"], each["request_id"]): each for each in grants}
    asked = set[tuple[int, str]]()
    for device, number in _numbered(world):
        for request, grant in device.quota.grants.items():
            asked.add((number, request))
            known = stored.get((number, request))
            if grant.is_answered and (known is None or known["granted"] != grant.granted):
                yield f"{device.name} was told of {grant.granted} for {request}, stored is {known}"
    if stored.keys() - asked:
        yield f"granted is what nobody asked for: {sorted(stored.keys() - asked)}"


def _numbered(world: "World") -> Iterator[tuple[SimulatedDevice, int]]:
    for fleet in world.fleets:
        for device in fleet.devices:
            if device.device_id in fleet.numbers:
                yield device, fleet.numbers[device.device_id]


def _uncharged(
    found: "Found", device: SimulatedDevice, requests: set[str], run_no: int | None
) -> Iterator[tuple[tuple[str, str, str, int], int]]:
    """Yield what a device used under some grants and was not charged before a run (None: ever)."""
    for key, request in device.under.items():
        name = (device.tenant, device.device_id, *key)
        stored = found.readings.get(name)
        if request in requests and stored and stored[0].meter is DATA:
            charged = found.charges.get(name)
            if run_no is None or not charged or charged[0].place[0] > run_no:
                yield name, stored[0].uplink + stored[0].downlink


def _bounded(
    world: "World", found: "Found", grants: list[dict[str, Any]], corrected: set[int]
) -> Iterator[str]:
    """Hold what an obedient device used, and was not charged for, to the bound that it was told."""
    for device, number in _numbered(world):
        requests = set[str]()
        for each in grants:
            if (each["device_no"], each["meter_no"]) != (number, DATA.meter_no):
                continue
            requests.add(each["request_id"])
            if each["fleet_no"] in corrected:
                continue
            used = sum(
                quantity for _, quantity in _uncharged(found, device, requests, each["run_no"])
            )
            if used > each["overshoot_bound"]:
                yield (
                    f"{device.name} was told of a bound of {each['overshoot_bound']} with"
                    f" {each['request_id']}, and used {used} that was not charged yet"
                )


def _fleets_bounded(world: "World", found: "Found", corrected: set[int]) -> Iterator[str]:
    """Hold what a fleet's obedient devices used, and were not charged for, to its bound."""
    fleets: dict[int, SimulatedFleet] = {each.fleet.fleet_no: each for each in world.fleets}
    for seen in world.bounds:
        if seen.fleet_no in corrected:
            continue
        used = 0
        fleet = fleets[seen.fleet_no]
        for device in fleet.devices:
            number = fleet.numbers.get(device.device_id)
            requests = {request for owner, request in seen.granted if owner == number}
            for name, quantity in _uncharged(found, device, requests, None):
                if (found.boots[name[:3]], name[3]) not in seen.charged:
                    used += quantity
        if used > seen.bound:
            yield f"fleet {seen.fleet_no} published a bound of {seen.bound}, and used {used}"
