"""A carrier's count beside the devices' own, on stored readings: each cause on its day."""

from datetime import datetime, timedelta

import pytest

from metering.charging.change_terms import swap_sim
from metering.cli import main
from metering.ingest.carrier_records import take_records
from metering.insight.carrier_causes import CarrierCause
from metering.insight.carrier_comparison import SimComparison, compare_sims
from metering.settings import Settings
from metering.usage import DATA, Reading, ReadingKind
from metering.wire.carrier import encode
from tests.integration.closing_scene import MARCH, Scene, day, played
from tests.integration.pipeline import TENANT
from tests.integration.test_closing_corrections import number_of

ICCID, OTHER = "8988303000000000035", "8988303000000000043"
ASKED = day(MARCH, 30)


async def carried(scene: Scene, at: datetime, octets: int, *, iccid: str = ICCID) -> None:
    """Have the carrier tell one record of data that ended at an instant."""
    record = Reading(
        seq=0, at=at, since=at - timedelta(minutes=5), meter=DATA, kind=ReadingKind.DELTA,
        downlink=octets,
    )  # fmt: skip
    async with scene.connection.transaction():
        outcome = await take_records(
            scene.connection, TENANT, encode([(f"{iccid}/{at}/{octets}", record)], iccid=iccid),
            source="test", carrier_name="tel", settings=Settings(), now=at + timedelta(hours=1),
            records_max=10,
        )  # fmt: skip
    assert outcome.stored == 1, outcome


async def counter(scene: Scene, at: datetime, value: int) -> Reading:
    """Return the next value of a cumulative counter."""
    reading = scene.reading("van-2", at, meter=DATA)
    return reading._replace(kind=ReadingKind.TOTAL, downlink=value, epoch="bearer-1")


async def compared(scene: Scene, *, unit: int = 1000) -> list[SimComparison]:
    page = await compare_sims(
        scene.connection, scene.operator.tenant, fleet_no=int(scene.fleet.fleet_no),
        since=MARCH.start, until=MARCH.end, unit=unit, limit=10,
    )  # fmt: skip
    assert page.next_after is None
    return list(page.sims)


def test_each_cause_on_its_day(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(scene: Scene) -> list[SimComparison]:
        for device, iccid in (("van-1", ICCID), ("van-2", OTHER)):
            await swap_sim(
                scene.connection, tenant_no=scene.operator.tenant,
                device_no=await number_of(scene, device), iccid=iccid, imsi=None,
                at=MARCH.start, now=MARCH.start,
            )  # fmt: skip
        own = {1: 50_000, 2: 50_000, 3: 400_000, 4: 300_000, 5: 200_000, 6: 100_000, 7: 100_000}
        network = {1: 50_000, 2: 50_700, 3: 416_000, 4: 312_000, 5: 208_000, 6: 54_000, 7: 154_000}
        for number, octets in own.items():
            await scene.use("van-1", day(MARCH, number), data=octets)
        # A number that never came: something of that day is missing.
        scene.seqs["van-1"] += 1
        await scene.use("van-1", day(MARCH, 9), data=1000)
        await scene.use("van-1", day(MARCH, 11), data=1000)
        for number, octets in (network | {9: 90_000, 11: 900_000}).items():
            await carried(scene, day(MARCH, number), octets)
        for number, value in ((1, 100_000), (2, 20_000)):
            at = day(MARCH, number)
            await scene.publish("van-2", await counter(scene, at, value), received_at=at)
            await scene.charge(at)
        await carried(scene, day(MARCH, 1), 100_000, iccid=OTHER)
        await carried(scene, day(MARCH, 2), 60_000, iccid=OTHER)
        return await compared(scene)

    first, second = played(database_url, story)
    assert (first.device_id, first.iccid, first.meter) == ("van-1", ICCID, DATA)
    assert [cause.value for cause in first.causes.values()] == [
        "none", "rounding", "headers", "headers", "headers", "lag", "lag", "missing", "unknown",
    ]  # fmt: skip
    assert first.by_cause == {
        CarrierCause.ROUNDING: 700,
        CarrierCause.HEADERS: 36_000,
        CarrierCause.LAG: 8_000,
        CarrierCause.MISSING: 89_000,
        CarrierCause.UNKNOWN: 899_000,
    }
    assert sum(first.by_cause.values()) == first.carrier - first.own
    assert (second.iccid, [each.resets for each in second.days]) == (OTHER, [0, 1])
    assert list(second.causes.values()) == [CarrierCause.NONE, CarrierCause.RESET]

    monkeypatch.setenv("FLEETMETER_DATABASE_URL", database_url)
    told = ["assure", "--tenant", TENANT, "--fleet", "vans", "--at", "2026-03-05", "--carrier"]
    assert main(told) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "    2026-03-02 own 50000 in 1, carrier 50700 in 1: +700 rounding" in lines
    assert f"  van-2 {OTHER} data: own 120000, carrier 160000 octets: reset +40000" in lines


def test_days_are_a_sims_not_only_a_devices(database_url: str) -> None:
    async def story(scene: Scene) -> list[SimComparison]:
        device_no = await number_of(scene, "van-1")
        for iccid, at in ((ICCID, MARCH.start), (OTHER, day(MARCH, 5, 13))):
            await swap_sim(
                scene.connection, tenant_no=scene.operator.tenant, device_no=device_no,
                iccid=iccid, imsi=None, at=at, now=at,
            )  # fmt: skip
        for hour, iccid in ((12, ICCID), (14, OTHER)):
            await scene.use("van-1", day(MARCH, 5, hour), data=10_000)
            await carried(scene, day(MARCH, 5, hour), 10_400, iccid=iccid)
        return await compared(scene, unit=100)

    sims = played(database_url, story)
    assert [(each.iccid, each.own, each.carrier) for each in sims] == [
        (ICCID, 10_000, 10_400),
        (OTHER, 10_000, 10_400),
    ]
