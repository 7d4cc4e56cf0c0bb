"""What is read of usage: series sum to the charges whatever came late or was corrected, and past balances.

A balance of a past moment is the balance that was shown then.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, cast

import pytest

from api.auth import Caller
from api.routes.devices import get_device_balance
from api.routes.fleets import get_fleet_balance
from api.routes.usage import (
    BucketSize,
    get_device_usage,
    get_fleet_usage,
    get_top_consumers,
    get_usage,
)
from metering.charging.balances import TopUp, top_up
from metering.charging.change_terms import change_plan, change_state, end_subscriptions
from metering.charging.subscribe import subscribe
from metering.rating.plan import DeviceState
from metering.store.usage_views import Group
from metering.usage import DATA, METERS_BY_NO, SMS
from tests.integration.closing_scene import (
    APRIL,
    BEGAN,
    DEVICES,
    FEBRUARY,
    MARCH,
    MAY,
    PLAN,
    Scene,
    played,
)
from tests.integration.test_closing_corrections import DEARER, number_of

HOUR = timedelta(hours=1)
ZONES: dict[str, Any] = {"zones": {"home": ["DE"], "abroad": ["FR"]}}
SMS_ABROAD: dict[str, Any] = {
    "allowance": 2,
    "price": {"amount": "0.10"},
    "variants": [{"zones": ["abroad"], "price": {"amount": "0.30"}}],
}
PLACED: dict[str, Any] = ZONES | {"meters": PLAN["meters"] | {"sms": SMS_ABROAD}}
"""What makes a plan of the vans tell zones apart, for SMS."""
MINUTE = timedelta(minutes=1)
Balances = dict[str, dict[str, Any]]
Used = Counter[tuple[str, str, str | None]]
"""quantity by what it belongs to, meter and zone"""


def caller_at(scene: Scene, now: datetime) -> Caller:
    """Return who asks at an instant, of everything."""
    return Caller(
        identity=cast("Any", None),
        tenant_no=scene.operator.tenant,
        connection=scene.connection,
        now=now,
        silent_after=timedelta(hours=24),
    )


def _without_reserved(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _without_reserved(part) for name, part in value.items() if name != "reserved"}
    return [_without_reserved(part) for part in value] if isinstance(value, list) else value


async def balances(scene: Scene, now: datetime, at: datetime | None = None) -> Balances:
    """Return the balances of the vans and of their fleet: of now, or of a past moment."""
    caller = caller_at(scene, now)
    shown = {
        device: (await get_device_balance(caller, device, at)).model_dump() for device in DEVICES
    }
    shown["fleet"] = (await get_fleet_balance(caller, "vans", at)).model_dump()
    return cast("Balances", _without_reserved(shown))


@dataclass(slots=True, kw_only=True)
class Story:
    """Some months of three vans: usage, some of it late or abroad, changes of terms, top-ups, closings."""

    scene: Scene
    chance: random.Random
    plans: Sequence[int]
    now: datetime = BEGAN + HOUR

    async def go_on(self) -> None:
        self.now += timedelta(hours=self.chance.uniform(10, 60))
        match self.chance.choices(["use", "late", "change", "top up", "look"], [6, 3, 3, 1, 2])[0]:
            case "use":
                await self._use(self.now)
            case "late":
                await self._use(max(self.now - timedelta(days=self.chance.uniform(1, 40)), BEGAN))
            case "change":
                await self._change()
            case "top up":
                await self._top_up()
            case _:
                await self.scene.look(self.now)

    async def _use(self, at: datetime) -> None:
        device = self.chance.choice(DEVICES)
        readings = [
            self.scene.reading(device, at, meter=meter, used=self.chance.randint(1, most))._replace(
                zone=self.chance.choice([None, "DE", "FR"])
            )
            for meter, most in ((SMS, 3), (DATA, 900))
        ]
        await self.scene.publish(device, *readings, received_at=self.now)
        await self.scene.charge(self.now)

    async def _top_up(self) -> None:
        device = self.chance.choice([None, *DEVICES])
        await top_up(
            self.scene.connection,
            fleet=self.scene.fleet,
            device_no=None if device is None else await number_of(self.scene, device),
            order=TopUp(meter="sms", quantity=self.chance.randint(1, 5)),
            key=str(self.now),
            now=self.now,
        )

    async def _change(self) -> None:
        device = await number_of(self.scene, self.chance.choice(DEVICES))
        at = BEGAN + (self.now - BEGAN) * self.chance.uniform(0.1, 1.1)
        given: dict[str, Any] = {"device_nos": [device], "at": at, "now": self.now}
        owned = {"tenant_no": self.scene.operator.tenant, **given}
        plan = self.chance.choice(self.plans)
        connection = self.scene.connection
        changes: list[Callable[[], Awaitable[object]]] = [
            lambda: change_plan(connection, plan_no=plan, **owned),
            lambda: change_state(connection, state=DeviceState.SUSPENDED, **owned),
            lambda: end_subscriptions(connection, **owned),
            lambda: subscribe(
                connection, fleet=self.scene.fleet, device_nos=[device], plan_no=plan,
                valid_from=at, now=self.now,
            ),
        ]  # fmt: skip
        try:
            await self.chance.choices(changes, [4, 1, 1, 3])[0]()
        except ValueError:
            return  # the terms forbid it


async def begun(scene: Scene, seed: int) -> Story:
    chance = random.Random(seed)  # noqa: S311 - the seed must reproduce it
    plans = [
        await scene.operator.plan(each)
        for each in (DEARER | ZONES, PLAN | ZONES | {"plan": "lean"})
    ]
    return Story(scene=scene, chance=chance, plans=plans)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_past_moments_balance_is_what_was_shown_then(database_url: str, seed: int) -> None:
    async def story(scene: Scene) -> None:
        going = await begun(scene, seed)
        shown: list[tuple[datetime, Balances]] = []
        while going.now < APRIL.end:
            await going.go_on()
            at = going.now + MINUTE
            shown.append((at, await balances(scene, at)))
        found = await scene.connection.execute("SELECT count(*) FROM superseded_charge")
        ((superseded,),) = await found.fetchall()
        assert superseded, "nothing was charged again"
        assert len({str(each) for _, each in shown}) > len(shown) // 2
        for at, then in shown:
            assert await balances(scene, going.now + HOUR, at) == then, at

    played(database_url, story, **PLACED)


async def charged(scene: Scene, by: str) -> Used:
    """Sum the charges: quantities by device or fleet, meter and zone; straight from history."""
    found = await scene.connection.execute(
        "SELECT device_id, meter_no, zone, sum(quantity) FROM charge JOIN device USING (device_no)"
        " GROUP BY 1, 2, 3"
    )
    used: Used = Counter()
    for device, meter_no, zone, quantity in await found.fetchall():
        used[device if by == "device" else "vans", METERS_BY_NO[meter_no].meter, zone] += quantity
    return used


async def series(
    caller: Caller, bucket: BucketSize, *, tag: str | None = None, device: str = ""
) -> Used:
    """Sum what series tell of the story: of the fleet, of those with a tag, or of a device."""
    used: Used = Counter()
    edges = [BEGAN, MAY.start]
    if bucket == "hour":  # a series has a thousand points
        edges = [BEGAN + number * timedelta(days=40) for number in range(3)]
    for start, end in pairwise(edges):
        given: dict[str, Any] = {"from_": start, "to": end, "bucket": bucket, "split": "zone"}
        if device:
            shown = await get_device_usage(caller, device, **given)
        else:
            shown = await get_fleet_usage(caller, "vans", tag=tag, **given)
        for point in shown.points:
            assert point.start < point.end
            for use in point.meters:
                used[device or "vans", use.meter, use.zone] += use.quantity
    return used


async def grouped(caller: Caller, by: Group | None, **given: Any) -> Used:  # noqa: ANN401 - filters
    """Sum the list of usage, page by page: by group, meter and zone."""
    used: Used = Counter()
    cursor: str | None = None
    rows = []
    while True:
        page = await get_usage(
            caller=caller, group_by=by, from_=BEGAN, to=MAY.start, bucket="month",
            split="zone", cursor=cursor, limit=3, **given,
        )  # fmt: skip
        for each in page.items:
            of = {"fleet": each.fleet_id, "device": each.device_id, "tag": each.tag}
            used[str(of[by]) if by else "all", each.meter, each.zone] += each.quantity
            rows.append((each.start, str(of[by]) if by else "", each.meter, each.zone or ""))
        cursor = page.next_cursor
        if cursor is None:
            assert rows == sorted(set(rows)), "a row comes twice, or in no order"
            return used


async def _grouped(caller: Caller, by_device: Used, by_fleet: Used) -> None:
    """Usage of the tenant by group is what charges sum to; a device counts for each of its tags."""
    assert await grouped(caller, "device") == by_device
    assert await grouped(caller, "device", fleet_id="vans") == by_device
    assert await grouped(caller, "fleet") == by_fleet
    everything = await grouped(caller, None)
    assert everything == Counter({("all", *key[1:]): many for key, many in by_fleet.items()})
    tagged: Used = Counter()
    for (device, meter, zone), many in by_device.items():
        if device != "van-3":
            tagged["outdoor", meter, zone] += many
    assert await grouped(caller, "tag") == tagged
    assert await grouped(caller, "tag", tag="outdoor") == tagged
    assert (await grouped(caller, None, tag="outdoor")).total() == tagged.total()
    one = await grouped(caller, None, device_id="van-3")
    assert one.total() == sum(
        many for (device, _, _), many in by_device.items() if device == "van-3"
    )
    sms = await grouped(caller, "fleet", meter="sms", zone="abroad")
    assert sms == Counter({("vans", "sms", "abroad"): by_fleet["vans", "sms", "abroad"]})


@pytest.mark.parametrize("seed", [1, 2])
def test_series_sum_to_the_charges(database_url: str, seed: int) -> None:
    """By hour, day and month, by fleet, device and tag, with every late usage and every correction."""

    async def story(scene: Scene) -> None:
        going = await begun(scene, seed)
        while going.now < APRIL.start + timedelta(days=10):
            await going.go_on()
        await scene.connection.execute(
            "UPDATE device SET tags = '{outdoor}' WHERE device_id <> 'van-3'"
        )
        caller = caller_at(scene, MAY.start)
        by_device, by_fleet = await charged(scene, "device"), await charged(scene, "fleet")
        assert len({zone for _, _, zone in by_fleet}) > 2

        buckets: Sequence[BucketSize] = ("hour", "day", "month")
        for bucket in buckets:
            assert await series(caller, bucket) == by_fleet, bucket
            of_devices: Used = Counter()
            for device in DEVICES:
                of_devices += await series(caller, bucket, device=device)
            assert of_devices == by_device, bucket
            tagged = await series(caller, bucket, tag="outdoor")
            assert tagged.total() == sum(
                quantity for (device, _, _), quantity in by_device.items() if device != "van-3"
            )
        await _narrowed(caller, by_fleet)
        await _grouped(caller, by_device, by_fleet)
        await _most(caller, by_device)

    played(database_url, story, **PLACED)


async def _narrowed(caller: Caller, by_fleet: Used) -> None:
    """One meter in one zone is what a split tells of it; without a split zones are one."""
    shown = await get_fleet_usage(
        caller, "vans", BEGAN, MAY.start, "month", meter="sms", zone="abroad"
    )
    assert {use.meter for point in shown.points for use in point.meters} == {"sms"}
    assert (
        sum(use.quantity for point in shown.points for use in point.meters)
        == by_fleet["vans", "sms", "abroad"]
    )
    assert [point.start for point in shown.points] == sorted({p.start for p in shown.points})
    whole = await get_fleet_usage(caller, "vans", BEGAN, MAY.start, "month")
    # Months of the fleet's zone: clocks change in March, which has an hour less.
    months = [(cycle.start, cycle.end) for cycle in (FEBRUARY, MARCH, APRIL)]
    assert [(point.start, point.end) for point in whole.points] == months
    for point in whole.points:
        assert [use.meter for use in point.meters] == ["data", "sms"][: len(point.meters)]
        assert {use.zone for use in point.meters} == {None}


async def _most(caller: Caller, by_device: Used) -> None:
    """Top consumers are the devices by what they were charged, over all hours and by bill cycle."""
    totals: Counter[str] = Counter()
    for (device, meter, _), quantity in by_device.items():
        if meter == "data":
            totals[device] += quantity
    told = await get_top_consumers(
        caller=caller, meter="data", fleet_id="vans", from_=BEGAN, to=MAY.start
    )
    assert {each.device_id: each.quantity for each in told.items} == totals
    assert [each.quantity for each in told.items] == sorted(totals.values(), reverse=True)
    assert [each.rank for each in told.items] == [1, 2, 3]
    # What is used in the hour that begins at an instant is after it, and never before it, too.
    found = await caller.connection.execute(
        "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY hour) FROM usage_hour"
    )
    ((middle,),) = await found.fetchall()
    parts: Counter[str] = Counter()
    for since, until in ((BEGAN, middle), (middle, MAY.start)):
        part = await get_top_consumers(
            caller=caller, meter="data", fleet_id="vans", from_=since, to=until
        )
        parts.update({each.device_id: each.quantity for each in part.items})
    assert parts == totals
    tagged = await get_top_consumers(
        caller=caller, meter="data", tag="outdoor", from_=BEGAN, to=MAY.start, limit=1
    )
    (first,) = tagged.items
    assert first.quantity == max(totals["van-1"], totals["van-2"])
    summed: Counter[str] = Counter()
    for cycle_at in (FEBRUARY.start, FEBRUARY.end, APRIL.start):
        of_cycle = await get_top_consumers(
            caller=caller, meter="data", fleet_id="vans", cycle_at=cycle_at
        )
        summed.update({each.device_id: each.quantity for each in of_cycle.items})
    assert summed == totals


def test_an_hour_in_which_nothing_is_charged_any_more_is_gone(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        kept = "SELECT (SELECT count(*) FROM usage_hour), (SELECT count(*) FROM fleet_usage_hour)"
        used_at = BEGAN + timedelta(days=2)
        await scene.use("van-1", used_at, sms=5)
        await scene.use("van-2", used_at + HOUR, sms=1)
        found = await scene.connection.execute(kept)
        assert await found.fetchall() == [(2, 2)]
        await end_subscriptions(
            scene.connection,
            tenant_no=scene.operator.tenant,
            device_nos=[await number_of(scene, "van-1")],
            at=BEGAN + timedelta(days=1),
            now=used_at + timedelta(days=1),
        )
        found = await scene.connection.execute(kept)
        assert await found.fetchall() == [(1, 1)]

    played(database_url, story)
