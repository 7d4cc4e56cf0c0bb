"""Revenue assurance finds what does not come out even, and nothing where all does."""

import textwrap
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from metering.billing.document import DocumentLineKind
from metering.billing.notes import NoteEntry
from metering.charging.change_terms import (
    change_plan,
    change_state,
    end_subscriptions,
    move_devices,
)
from metering.insight.assurance import Assurance, Difference, _largest_first, assure
from metering.insight.rejected_usage import UnreadMessages
from metering.rating.plan import DeviceState
from metering.store.bills import StoredBill
from metering.store.fleet_views import fleet_view
from metering.usage import DATA, SMS, Rejection, RejectReason
from tests.integration.billing_scene import (
    document,
    finalised,
    noted,
    set_up,
    used_and_closed,
    voided,
)
from tests.integration.closing_scene import APRIL, FEBRUARY, JUNE, MARCH, Scene, day, played
from tests.integration.conftest import ApiUnderTest
from tests.integration.pipeline import TENANT
from tests.integration.test_api import body
from tests.integration.test_closing_corrections import DEARER, number_of

ASKED = day(APRIL, 20)


async def assured(scene: Scene, at: datetime) -> Assurance:
    view = await fleet_view(scene.connection, scene.operator.tenant, fleet_id="vans")
    return await assure(scene.connection, scene.operator.tenant, fleet=view, at=at, now=ASKED)


def kinds(found: Assurance) -> list[tuple[str, str | None]]:
    """Return what differs, and whose."""
    return [(each.kind, each.device_id) for each in found.differences if each.is_fault]


async def used(scene: Scene) -> None:
    """Use something in March and April, close March, and have March change afterwards."""
    await scene.use("van-1", day(MARCH, 5), sms=4, data=2222)
    await scene.use("van-2", day(MARCH, 20), sms=3)
    await scene.use("van-1", day(APRIL, 2), sms=3, data=4000)
    await scene.look(MARCH.end + timedelta(days=4))
    await scene.use("van-1", day(MARCH, 9), sms=2, received_at=day(APRIL, 6))
    await change_plan(
        scene.connection,
        tenant_no=scene.operator.tenant,
        device_nos=[await number_of(scene, "van-2")],
        plan_no=await scene.operator.plan(DEARER),
        at=day(MARCH, 19),
        now=day(APRIL, 7),
    )


def test_a_sound_history_is_even(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await used(scene)
        await scene.publish(
            "van-1",
            received_at=day(APRIL, 8),
            rejections=[Rejection(reason=RejectReason.UNKNOWN_METER, detail="none", content=b"{}")],
        )
        for at, kind in ((MARCH.start, "bill_is_a_draft"), (APRIL.start, "rejected")):
            found = await assured(scene, at)
            (waits,) = found.differences
            assert waits.kind == kind
            # What an unknown meter told is not known, so neither is what it would cost.
            assert waits.exact == (found.revenue.closed if at == MARCH.start else None)
            assert found.is_even
            assert found.revenue.rest == 0
            assert (found.active_devices, found.billed_devices) == (3, 3)
            for meter in found.meters:
                assert meter.received == meter.rated
                assert meter.received_quantity == meter.rated_quantity
        found = await assured(scene, APRIL.start)
        march = (await assured(scene, MARCH.start)).revenue
        # Late usage and a dearer plan: owed since, in April's bill, which is open.
        assert march.open > 0
        assert march.adjusted == 0
        assert [(each.reason, each.contents) for each in found.rejected] == [("unknown_meter", 1)]
        await scene.use("van-1", day(APRIL, 19), sms=1, charge=False)
        queued = [each.queued for each in (await assured(scene, APRIL.start)).meters]
        assert queued == [0, 1]
        assert (await assured(scene, APRIL.start)).is_even
        await scene.charge(day(APRIL, 19))

    played(database_url, story)


async def _by_hand(scene: Scene, statement: str) -> None:
    """Damage something as no program does."""
    await scene.connection.execute("SET session_replication_role = replica")
    changed = await scene.connection.execute(statement.encode())
    assert changed.rowcount == 1
    await scene.connection.execute("RESET session_replication_role")


async def _delete_charge(scene: Scene) -> list[tuple[str, str | None]]:
    await _by_hand(
        scene,
        "DELETE FROM charge WHERE (boot_no, seq) = (SELECT boot_no, max(seq) FROM charge"
        " JOIN device USING (device_no) WHERE device_id = 'van-1' AND charge.meter_no = 1"
        " AND measured_at > '2026-04-01' GROUP BY boot_no)",
    )
    return [
        ("billed_too_much", None),
        ("use_is_not_its_charges", "van-1"),
        ("not_charged", "van-1"),
    ]


async def _damage_use(scene: Scene) -> list[tuple[str, str | None]]:
    await _by_hand(
        scene,
        "UPDATE meter_use SET amount = amount + 1000 FROM subscription JOIN device USING (device_no)"
        " WHERE meter_use.subscription_no = subscription.subscription_no AND device_id = 'van-1'"
        " AND meter_no = 2 AND cycle_start > '2026-03-20'",
    )
    return [("billed_too_much", None), ("use_is_not_its_charges", "van-1")]


async def _damage_charge(scene: Scene) -> list[tuple[str, str | None]]:
    await _by_hand(
        scene,
        "UPDATE charge SET quantity = quantity - 1 WHERE (boot_no, seq) = (SELECT boot_no, max(seq)"
        " FROM charge JOIN device USING (device_no) WHERE device_id = 'van-1' AND charge.meter_no = 1"
        " AND measured_at > '2026-04-01' GROUP BY boot_no)",
    )
    return [("charged_unequally", "van-1"), ("use_is_not_its_charges", "van-1")]


async def _end_subscription(scene: Scene) -> list[tuple[str, str | None]]:
    await end_subscriptions(
        scene.connection,
        tenant_no=scene.operator.tenant,
        device_nos=[await number_of(scene, "van-3")],
        at=day(APRIL, 10),
        now=day(APRIL, 10),
    )
    return [("active_without_subscription", "van-3")]


async def _park(scene: Scene) -> list[tuple[str, str | None]]:
    await _end_subscription(scene)
    await scene.use("van-3", day(APRIL, 11), sms=7)
    return [("active_without_subscription", "van-3"), ("parked", "van-3")]


async def _suspend(scene: Scene) -> list[tuple[str, str | None]]:
    await scene.use("van-3", day(APRIL, 11), sms=7)
    await change_state(
        scene.connection,
        tenant_no=scene.operator.tenant,
        device_nos=[await number_of(scene, "van-3")],
        state=DeviceState.SUSPENDED,
        at=day(MARCH, 10),
        now=day(APRIL, 12),
    )
    return [("billed_and_never_active", "van-3")]


@pytest.mark.parametrize(
    "damage",
    [_delete_charge, _damage_use, _damage_charge, _end_subscription, _park, _suspend],
)
def test_each_damage_is_found(
    database_url: str, damage: Callable[[Scene], Awaitable[list[tuple[str, str | None]]]]
) -> None:
    async def story(scene: Scene) -> None:
        await used(scene)
        expected = await damage(scene)
        found = await assured(scene, APRIL.start)
        assert sorted(kinds(found), key=str) == sorted(expected, key=str)
        assert not found.is_even
        amounts = [abs(each.exact or Fraction(0)) for each in found.differences]
        assert amounts == sorted(amounts, reverse=True)
        raise _SeenError

    with pytest.raises(_SeenError):  # what is damaged is not audited
        played(database_url, story)


class _SeenError(Exception):
    """All was found."""


def test_a_device_that_came_from_another_fleet(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await used(scene)
        other = await scene.operator.fleet("others")
        await move_devices(
            scene.connection,
            device_nos=[await number_of(scene, "van-3")],
            fleet=other,
            plan_no=await scene.operator.plan(DEARER),
            at=day(APRIL, 10),
            now=day(APRIL, 11),
        )
        found = await assured(scene, APRIL.start)
        assert (kinds(found), found.active_devices, found.billed_devices) == ([], 3, 3)
        view = await fleet_view(scene.connection, scene.operator.tenant, fleet_id="others")
        for at, devices in ((MARCH.start, 0), (APRIL.start, 1), (JUNE.start, 0)):
            found = await assure(
                scene.connection, scene.operator.tenant, fleet=view, at=at, now=ASKED
            )
            assert found.differences == []
            assert (found.active_devices, found.billed_devices) == (devices, devices)

    played(database_url, story)


def test_a_change_of_a_closed_cycle_that_nobody_marked(database_url: str) -> None:
    async def story(scene: Scene) -> None:
        await used(scene)
        due = (await assured(scene, MARCH.start)).revenue.open
        await _by_hand(
            scene,
            "UPDATE fleet_cycle SET changed = false WHERE changed AND cycle_start < '2026-03-20'",
        )
        found = await assured(scene, MARCH.start)
        assert kinds(found) == [("not_billed", None)]
        assert found.revenue.rest == due
        raise _SeenError

    with pytest.raises(_SeenError):
        played(database_url, story)


def test_the_command_tells_the_same(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from metering.cli import main  # noqa: PLC0415 - reads the environment when it is called

    played(database_url, used)
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", database_url)
    told = ["assure", "--tenant", TENANT, "--fleet", "vans", "--at", "2026-03-05"]
    assert main(told) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "  even"
    page = (Path(__file__).parents[2] / "docs" / "assurance.md").read_text("utf-8")
    assert textwrap.indent(shown, "    ") in page

    explained = [
        "explain",
        "--tenant",
        TENANT,
        "--device",
        "van-2",
        "--boot",
        "boot-1",
        "--seq",
        "1",
    ]
    assert main(explained) == 0
    assert "Until 2026-04-07T12:00:00Z it cost 0.1 EUR" in capsys.readouterr().out


def test_the_route_shows_what_is_not_even(api: ApiUnderTest) -> None:
    found = body(api.acme.get("/v1/fleets/acme-north/assurance"))
    assert not found["is_even"]
    parked = [each for each in found["differences"] if each["kind"] == "parked"]
    assert [(each["device_id"], each["records"]) for each in parked] == [("acme-1", 3)]
    # Of what the fixture wrote, two messages at 0.07 have charges.
    assert found["revenue"]["rest"].startswith("-0.3334567")


async def _document_less(scene: Scene) -> list[tuple[str, str | None]]:
    await _by_hand(
        scene,
        "UPDATE bill SET document = jsonb_set(document, '{lines,0,amount}', '\"0.01\"')"
        " WHERE cycle_start > '2026-03-20' AND kind = 'bill'",
    )
    return [("document_is_not_its_cycle", None)]


async def _forgotten(scene: Scene) -> list[tuple[str, str | None]]:
    await _by_hand(
        scene,
        "UPDATE closed_cycle SET statement = jsonb_set(statement, '{devices}', (SELECT jsonb_agg(no)"
        "   FROM jsonb_array_elements(statement -> 'devices') AS each (no)"
        "   WHERE no <> (SELECT to_jsonb(device_no) FROM device WHERE device_id = 'van-3')))"
        " WHERE cycle_start > '2026-03-20'",
    )
    return [("active_and_not_billed", "van-3")]


async def _stranger(scene: Scene) -> list[tuple[str, str | None]]:
    await _by_hand(
        scene,
        "UPDATE closed_cycle SET statement = jsonb_set(statement, '{devices,99}', '4711')"
        " WHERE cycle_start > '2026-03-20'",
    )
    return [("billed_and_not_due", "number 4711")]


@pytest.mark.parametrize("damage", [_document_less, _forgotten, _stranger])
def test_final_documents_are_held_to_what_was_closed_and_who_was_active(
    database_url: str, damage: Callable[[Scene], Awaitable[list[tuple[str, str | None]]]]
) -> None:
    """The cycle of April, whose bill is final and of which a part was credited."""

    async def story(scene: Scene) -> None:
        await set_up(scene)
        for cycle in (FEBRUARY, MARCH, APRIL):
            await scene.use("van-1", day(cycle, 5), sms=4, data=2222)
            await scene.close(cycle)
        bill = await finalised(scene, APRIL)
        before = await assured(scene, APRIL.start)
        assert before.differences == []
        assert (before.active_devices, before.billed_devices) == (3, 3)
        assert before.revenue.billed == document(bill).totals.lines
        assert before.revenue.noted == 0
        note = await noted(scene, bill, NoteEntry(line=1, amount=Decimal("0.20")))
        assert document(note).totals.lines == Decimal("0.20")
        after = await assured(scene, APRIL.start)
        assert after.is_even
        assert after.revenue.noted == Decimal("-0.20")
        expected = await damage(scene)
        found = await assured(scene, APRIL.start)
        assert kinds(found) == expected
        raise _SeenError

    with pytest.raises(_SeenError):
        played(database_url, story)


async def _line_is_nothing(scene: Scene, _bill: StoredBill) -> None:
    await _by_hand(
        scene,
        "UPDATE bill SET document = jsonb_set(document, '{lines}', (SELECT jsonb_agg("
        "   CASE WHEN line ->> 'kind' = 'earlier_period' THEN line || '{\"amount\": \"0.00\"}'"
        "   ELSE line END) FROM jsonb_array_elements(document -> 'lines') AS each (line)))"
        " WHERE state = 'finalised' AND kind = 'bill'",
    )


async def _line_is_gone(scene: Scene, _bill: StoredBill) -> None:
    await _by_hand(
        scene,
        "UPDATE bill SET document = jsonb_set(document, '{lines}', (SELECT jsonb_agg(line)"
        "   FROM jsonb_array_elements(document -> 'lines') AS each (line)"
        "   WHERE line ->> 'kind' <> 'earlier_period')) WHERE state = 'finalised' AND kind = 'bill'",
    )


async def _later_bill_is_void(scene: Scene, bill: StoredBill) -> None:
    await voided(scene, bill, rebill=False)


@pytest.mark.parametrize("damage", [_line_is_nothing, _line_is_gone, _later_bill_is_void])
def test_an_adjustment_that_nobody_is_billed_is_found(
    database_url: str, damage: Callable[[Scene, StoredBill], Awaitable[None]]
) -> None:
    async def story(scene: Scene) -> None:
        await set_up(scene)
        await used_and_closed(scene)
        before = await assured(scene, FEBRUARY.start)
        assert before.is_even
        march = await finalised(scene, MARCH)
        number = next(
            line.number
            for line in document(march).lines
            if line.kind is DocumentLineKind.EARLIER_PERIOD
        )
        final = await assured(scene, FEBRUARY.start)
        assert final.is_even
        adjusted = final.revenue.adjusted
        assert adjusted == before.revenue.adjusted > Fraction("0.1")
        if damage is not _later_bill_is_void:
            await noted(scene, march, NoteEntry(line=number, amount=Decimal("0.10")))
            after = await assured(scene, FEBRUARY.start)
            assert (after.is_even, after.revenue.noted) == (True, Decimal("-0.10"))
        await damage(scene, march)
        found = await assured(scene, FEBRUARY.start)
        assert kinds(found) == [("not_billed", None)]
        assert abs(found.revenue.rest - adjusted) < Fraction(1, 1000)
        raise _SeenError

    with pytest.raises(_SeenError):
        played(database_url, story)


def test_what_has_no_price_is_told_by_its_quantity() -> None:
    found = [
        Difference(kind="not_charged", text="a", quantity=5),
        Difference(kind="parked", text="b", quantity=70),
        Difference(kind="not_billed", text="c", exact=Fraction(1)),
    ]
    assert [each.text for each in sorted(found, key=_largest_first)] == ["c", "b", "a"]


def test_what_was_rejected_stands_in_the_equation(database_url: str) -> None:
    def rejection(reason: RejectReason, content: bytes) -> Rejection:
        return Rejection(reason=reason, detail="a test", content=content)

    def reading(at: datetime, used: str) -> bytes:
        return f'{{"seq":7,"at":"{at:%Y-%m-%dT%H:%M:%SZ}",{used}}}'.encode()

    async def story(scene: Scene) -> None:
        await used(scene)
        message = b'{"boot":"boot-1","readings":[%s,%s]}'
        sms, data = b'"meter":"sms","quantity":%d', b'"meter":"data","up":300,"down":3700'
        rejections = [
            rejection(
                RejectReason.SEQUENCE_CONFLICT,
                message
                % (
                    reading(day(APRIL, 3), (sms % 4).decode()),
                    reading(day(APRIL, 3), data.decode()),
                ),
            ),
            # Measured in March, and in a time that cannot be: that counts when it came.
            rejection(RejectReason.TOO_MANY_GAPS, reading(day(MARCH, 3), (sms % 16).decode())),
            rejection(RejectReason.CLOCK_AHEAD, reading(day(JUNE, 3), (sms % 32).decode())),
            # Of a counter the growth is usage, not what it shows; nothing can be read of the last one.
            rejection(
                RejectReason.INVALID_READING,
                reading(day(APRIL, 4), '"meter":"data","kind":"total","up":1,"down":10000'),
            ),
            rejection(RejectReason.NOT_JSON, b"{"),
            # As CBOR that is cut off: a map that holds nothing of the two entries that it says.
            rejection(RejectReason.UNDECODABLE, b"\xa2\x64boot"),
        ]
        before = {each.meter_no: each for each in (await assured(scene, APRIL.start)).meters}
        for _ in range(2):  # sent again it is the same
            await scene.publish("van-1", received_at=day(APRIL, 8), rejections=rejections)
        found = await assured(scene, APRIL.start)
        assert found.is_even
        assert {
            each.reason: (each.contents, each.times, each.readings, each.unread)
            for each in found.rejected
        } == {
            "sequence_conflict": (1, 2, 2, 0),
            "clock_ahead": (1, 2, 1, 0),
            "invalid_reading": (1, 2, 1, 0),
            "not_json": (1, 2, 0, 1),
            "undecodable": (1, 2, 0, 1),
        }
        assert found.messages == UnreadMessages(received=2, rejected=2)
        unread = {
            each.text: (each.device_id, each.records, each.is_fault)
            for each in found.differences
            if each.kind == "rejected" and each.meter is None
        }
        assert unread == {
            f"1 messages are rejected: {reason}; what readings they hold is not known;"
            " what it would cost is not known": ("van-1", None, False)
            for reason in ("not_json", "undecodable")
        }
        for meter in found.meters:
            was = before[meter.meter_no]
            told = {DATA.meter_no: (2, 4000), SMS.meter_no: (2, 36)}[meter.meter_no]
            assert (meter.rejected, meter.rejected_quantity) == told
            assert meter.received == was.received + meter.rejected
            assert meter.received_quantity == was.received_quantity + meter.rejected_quantity
            assert meter.received == meter.rated + meter.rejected
            assert meter.received_quantity == meter.rated_quantity + meter.rejected_quantity
        notes = {
            (each.meter, each.text.partition(";")[0]): each
            for each in found.differences
            if each.kind == "rejected"
        }
        assert not any(each.is_fault for each in notes.values())
        # An SMS costs 0.10 beyond the allowance. After 2 kB that were priced one is at 0.333, three at 0.111.
        lost = notes["sms", "1 readings are rejected: clock_ahead"]
        assert (lost.device_id, lost.quantity, lost.exact) == ("van-1", 32, Fraction("3.2"))
        data_note = notes["data", "1 readings are rejected: sequence_conflict"]
        assert (data_note.quantity, data_note.exact) == (4000, Fraction("0.666"))
        march = await assured(scene, MARCH.start)
        assert march.messages == UnreadMessages(received=0, rejected=0)
        assert [(each.reason, each.readings) for each in march.rejected] == [("too_many_gaps", 1)]

    played(database_url, story)
