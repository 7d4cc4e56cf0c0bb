"""The watermark: up to when a fleet's usage is believed complete."""

import math
from datetime import datetime, timedelta

from prometheus_client import REGISTRY

from metering.control.watch import Watch
from metering.event_kinds import EventKind
from metering.rating.plan import DeviceState
from metering.settings import Settings
from metering.store.outbox import NewCommand, NewEvent, enqueue_commands, record_events
from metering.store.terms import set_state
from metering.store.watermark import Watermark, fleet_watermark
from metering.usage import DATA, SMS, Reading, ReadingKind, Rejection, RejectReason
from metering.wire.command import CommandKind
from tests.integration.closing_scene import DEVICES, MARCH, ZONE, Scene, day, played

SILENT_AFTER = timedelta(hours=48)


def at(hour: float, number: int = 10) -> datetime:
    return day(MARCH, number, 0) + timedelta(hours=hour)


def sms(seq: int, hour: float) -> Reading:
    return Reading(seq=seq, at=at(hour), meter=SMS, kind=ReadingKind.DELTA, quantity=1)


async def send(
    scene: Scene,
    device: str,
    *readings: Reading,
    boot: str = "boot-1",
    hour: float = 12,
    charge: bool = True,
) -> None:
    await scene.publish(device, *readings, boot=boot, received_at=at(hour))
    if charge:
        await scene.charge(at(hour))


async def watermark(scene: Scene, hour: float = 12) -> Watermark:
    return await fleet_watermark(
        scene.connection,
        scene.operator.tenant,
        fleet_no=scene.fleet.fleet_no,
        now=at(hour),
        silent_after=SILENT_AFTER,
    )


async def others_reach(scene: Scene, hour: float) -> None:
    """Have all devices but the first tell up to an hour."""
    for device in DEVICES[1:]:
        await send(scene, device, sms(1, hour))


def test_the_least_device_holds_it_back(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await send(scene, "van-1", sms(1, 9))
        await send(scene, "van-2", sms(1, 7.5))
        await send(scene, "van-3", sms(1, 11))
        found = await watermark(scene)
        assert found.complete_to == at(7.5)
        assert [each.device_id for each in found.held_back_by] == ["van-2", "van-1", "van-3"]
        assert (found.devices, found.silent_devices, found.silent) == (3, 0, [])
        assert found.queued_from is None

    played(database_url, story)


def test_a_gap_holds_it_back_until_it_closes(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await others_reach(scene, 11)
        await send(scene, "van-1", sms(1, 1), sms(2, 2), sms(4, 4), sms(5, 5), sms(8, 8))
        found = await watermark(scene)
        assert found.complete_to == at(2)
        assert (found.held_back_by[0].device_id, found.held_back_by[0].gap) == ("van-1", True)
        await send(scene, "van-1", sms(7, 7))
        assert (await watermark(scene)).complete_to == at(2)
        # The number that was missing comes: what lay beyond it is known from the table.
        await send(scene, "van-1", sms(3, 3))
        assert (await watermark(scene)).complete_to == at(5)
        await send(scene, "van-1", sms(6, 6))
        found = await watermark(scene)
        assert found.complete_to == at(8)
        assert not any(each.gap for each in found.held_back_by)

    played(database_url, story)


def test_readings_in_any_order_reach_the_same(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await others_reach(scene, 11)
        for seq in (9, 3, 1, 6, 5, 2, 8, 4, 7):
            await send(scene, "van-1", sms(seq, seq))
        assert (await watermark(scene)).complete_to == at(9)
        # A reading that was measured before the one ahead of it takes nothing back.
        await send(scene, "van-1", sms(10, 8.5))
        assert (await watermark(scene)).complete_to == at(9)

    played(database_url, story)


def test_a_rejected_reading_is_no_gap(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await others_reach(scene, 11)
        refused = Rejection(
            reason=RejectReason.INVALID_READING, detail="bad", content=b"{}", boot="boot-1", seq=2
        )
        await send(scene, "van-1", sms(1, 1), sms(3, 3), sms(5, 5))
        assert (await watermark(scene)).complete_to == at(1)
        await scene.publish("van-1", received_at=at(12), rejections=[refused])
        assert (await watermark(scene)).complete_to == at(3)

    played(database_url, story)


def test_silent_devices_and_lost_readings_are_named_and_hold_nothing_back(
    database_url: str,
) -> None:
    async def story(scene: Scene) -> None:
        await others_reach(scene, 11)
        await send(scene, "van-1", sms(1, 1), sms(3, 3))
        just_before, then = 12 + 47.99, 12 + 48
        assert (await watermark(scene, just_before)).complete_to == at(1)
        # By then all three are silent: nobody tells.
        found = await watermark(scene, then)
        assert (found.complete_to, found.silent_devices) == (None, 3)
        assert [each.device_id for each in found.silent] == ["van-1", "van-2", "van-3"]
        # One speaks again, and alone decides.
        await send(scene, "van-2", sms(2, 55), hour=then)
        found = await watermark(scene, then)
        assert found.complete_to == at(55)
        assert [each.device_id for each in found.silent] == ["van-1", "van-3"]
        # Its gap is as old: what is missing is taken for lost, and stays reported as missing.
        await send(scene, "van-1", sms(4, 56), hour=then)
        found = await watermark(scene, then)
        assert found.complete_to == at(55)
        assert [(each.complete_to, each.gap) for each in found.held_back_by] == [
            (at(55), False),
            (at(56), False),
        ]

    played(database_url, story)


def test_each_boot_counts(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await others_reach(scene, 11)
        await send(scene, "van-1", sms(1, 1), sms(3, 3))
        await send(scene, "van-1", sms(1, 9), boot="boot-2")
        assert (await watermark(scene)).complete_to == at(1)
        # Of the third boot the first reading is missing: it reaches no further than the second.
        await send(scene, "van-1", sms(2, 2))
        assert (await watermark(scene)).complete_to == at(9)
        await send(scene, "van-1", sms(2, 10), boot="boot-3")
        assert (await watermark(scene)).complete_to == at(9)
        await send(scene, "van-1", sms(1, 9.5), boot="boot-3")
        assert (await watermark(scene)).complete_to == at(10)

    played(database_url, story)


async def be(scene: Scene, state: DeviceState, since: datetime, *devices: str) -> None:
    """Let devices be in a state from an instant on, whatever comes before and after."""
    found = await scene.connection.execute(
        "SELECT device_no FROM device WHERE device_id = ANY(%s)", [list(devices)]
    )
    numbers = [row[0] for row in await found.fetchall()]
    assert await set_state(scene.connection, numbers, state=state, at=since, now=since)


def test_only_active_devices_count(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await others_reach(scene, 11)
        active_from = (await watermark(scene)).silent[0]
        assert (active_from.device_id, active_from.heard_at) == ("van-1", None)
        await send(scene, "van-1", sms(1, 2), sms(3, 3))
        assert (await watermark(scene)).complete_to == at(2)
        for state, expected in (("retired", 11), ("active", 2), ("suspended", 11)):
            await be(scene, DeviceState(state), at(5), "van-1")
            assert (await watermark(scene)).complete_to == at(expected)
        await be(scene, DeviceState.RETIRED, at(11.9), *DEVICES)
        found = await watermark(scene)
        assert (found.complete_to, found.devices) == (at(12), 0)

    played(database_url, story)


def test_what_is_queued_bounds_it(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await others_reach(scene, 11)
        await send(scene, "van-1", sms(1, 10))
        await send(scene, "van-1", sms(2, 10.5), charge=False)
        found = await watermark(scene)
        assert (found.complete_to, found.queued_from) == (at(10.5), at(10.5))
        since = Reading(
            seq=3, at=at(11), since=at(6), meter=SMS, kind=ReadingKind.DELTA, quantity=1
        )
        await send(scene, "van-1", since, charge=False)
        assert (await watermark(scene)).complete_to == at(6)
        await scene.charge(at(12))
        assert (await watermark(scene)).complete_to == at(11)
        # A counter's reading tells of usage since the point before it.
        totals = [
            Reading(
                seq=seq, at=at(hour), meter=DATA, kind=ReadingKind.TOTAL, downlink=seq, epoch="e"
            )
            for seq, hour in ((4, 11.2), (5, 11.8))
        ]
        await others_reach_again(scene)
        await send(scene, "van-1", totals[0])
        assert (await watermark(scene)).complete_to == at(11.2)
        await send(scene, "van-1", totals[1], charge=False)
        assert (await watermark(scene)).complete_to == at(11.2)
        await scene.charge(at(12))
        assert (await watermark(scene)).complete_to == at(11.8)

    played(database_url, story)


async def others_reach_again(scene: Scene) -> None:
    for device in DEVICES[1:]:
        await send(scene, device, sms(2, 12))


def test_the_control_process_tells_how_far_all_fleets_are(database_url: str) -> None:
    """Of two fleets one lags an hour; then a reading of its second device is missing."""

    async def story(scene: Scene) -> None:
        looked = Watch(Settings(database_url=database_url))
        other = await scene.operator.fleet("cars", time_zone=ZONE)
        await scene.operator.devices(other, ["car-1"], plan=None)
        await send(scene, "car-1", sms(1, 11))
        for device in DEVICES:
            await send(scene, device, sms(1, 10))
        await looked.look(scene.connection, now=at(12))
        assert (gauge("watermark_lag_seconds"), gauge("watermark_fleets_held_back")) == (7200, 0)
        await send(scene, "van-2", sms(3, 11.5))
        await looked.look(scene.connection, now=at(12))
        assert gauge("watermark_fleets_held_back") == 0  # looked at once a minute
        looked = Watch(Settings(database_url=database_url))
        await looked.look(scene.connection, now=at(12))
        assert (gauge("watermark_lag_seconds"), gauge("watermark_fleets_held_back")) == (7200, 1)
        await send(scene, "car-1", sms(2, 9), charge=False)
        await Watch(Settings(database_url=database_url)).look(scene.connection, now=at(12))
        assert gauge("watermark_lag_seconds") == 3 * 3600
        await scene.charge(at(12))
        await Watch(Settings(database_url=database_url)).look(scene.connection, now=at(12 + 72))
        lag = gauge("watermark_lag_seconds")
        assert lag is not None
        assert math.isnan(lag)  # all are silent

    played(database_url, story)


def test_the_control_process_tells_what_is_due(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        looked = Watch(Settings(database_url=database_url))
        await looked.look(scene.connection, now=at(12))
        assert [gauge(f"control_{each}") for each in DUE] == [0, 0, 0, 0]
        await scene.connection.execute(
            "INSERT INTO webhook_endpoint (tenant_no, cause, url, secret, created_at)"
            " SELECT tenant_no, 'test', 'https://example', %s, now() FROM tenant",
            [b"s" * 32],
        )
        for seconds, device_no in ((90, 1), (30, 2), (-60, 3)):
            command = NewCommand(
                device_no=device_no, kind=CommandKind.SUSPEND, payload={}, cause="test",
                published_at=None, expires_at=None,
            )  # fmt: skip
            event = NewEvent(
                tenant_no=scene.operator.tenant, fleet_no=scene.fleet.fleet_no, device_no=device_no,
                kind=EventKind.THRESHOLD_CROSSED, payload={}, cause=f"test {device_no}",
            )  # fmt: skip
            then = at(12) - timedelta(seconds=seconds)
            await enqueue_commands(scene.connection, [command], now=then)
            await record_events(scene.connection, [event], now=then)
        await looked.look(scene.connection, now=at(12))
        assert [gauge(f"control_{each}") for each in DUE] == [2, 90, 2, 90]

    played(database_url, story)


DUE = (
    "commands_due",
    "commands_due_oldest_seconds",
    "webhook_deliveries_due",
    "webhook_deliveries_due_oldest_seconds",
)


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"fleetmeter_{name}")
