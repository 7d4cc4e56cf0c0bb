"""From a final bill's number and line to devices, charges and readings, and back; of notes, too."""

from datetime import timedelta
from fractions import Fraction
from typing import Any

import httpx
import pytest

from metering.charging.change_terms import change_plan, change_state
from metering.charging.rerate import RerateOrder, rerate
from metering.rating.plan import DeviceState
from metering.store.api_keys import create_api_key
from tests.integration.billing_scene import NOW, finalised, noted, set_up, used_and_closed
from tests.integration.closing_scene import APRIL, FEBRUARY, MARCH, MAY, Scene, day, played
from tests.integration.pipeline import TENANT
from tests.integration.test_api import body, problem
from tests.integration.test_closing_corrections import DEARER, number_of
from tests.integration.test_drill_down import asking, check_fee_lines, every, nearly, summed

LATER = day(MAY, 28)


async def key_of(scene: Scene) -> str:
    """Return a key to the scene's tenant."""
    return await create_api_key(
        scene.connection, tenant=scene.operator.tenant, label="test", now=NOW
    )


def bill_named(client: httpx.Client, number: str) -> dict[str, Any]:
    """Return the bill or note with a number as it is written."""
    (found,) = body(client.get("/v1/bills", params={"number": number}))["items"]
    assert found["number"] == number
    return dict(found)


def check_line(client: httpx.Client, address: str) -> list[dict[str, Any]]:
    """Hold a line to its devices, and those to their charges; return these."""
    made = body(client.get(address))
    charges = list(every(client, f"{address}/charges"))
    total = body(client.get(f"{address}/charges"))["sum"]
    added = sum((Fraction(each["exact_difference"]) for each in charges), Fraction(0))
    assert added == Fraction(total["exact_amount"])
    fees = check_fees(client, address, made)
    devices = list(every(client, f"{address}/devices"))
    if not fees:
        assert summed(devices) == summed([total])
    for device in devices:
        own = list(every(client, f"{address}/charges", device=device["device_id"]))
        assert [each["charge_id"] for each in own] == [
            each["charge_id"] for each in charges if each["device_id"] == device["device_id"]
        ]
    changes = made["changes"]
    if changes is None:
        is_usage = made["kind"] == "usage" and made["corrects_no"] is None
        assert made["sum"] == (total if is_usage else None)
        return charges
    whole = Fraction(changes["sum"]["exact_amount"]) + Fraction(changes["others_exact_amount"])
    assert changes["sum"] == total
    assert sum(Fraction(each["exact_difference"]) for each in changes["lines"]) == whole
    if made["kind"] == "earlier_period":
        assert whole == Fraction(made["exact_amount"])
    return charges


def check_fees(client: httpx.Client, address: str, made: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold a line to the parts of a fee that it sums, and those to its devices; return them."""
    fees = list(every(client, f"{address}/fees"))
    answer = body(client.get(f"{address}/fees"))
    is_fee = made["kind"] in {"recurring", "one_time"} and made["meter"] is None
    assert bool(fees) == (is_fee and made["corrects_no"] is None)
    assert answer["known"]
    if not fees:
        assert answer["exact_amount"] == "0"
        return []
    assert answer["exact_amount"] == made["exact_amount"]
    assert nearly(fees) == nearly([made])
    owing = {each["device_id"] for each in fees}
    if owing != {None}:
        assert len(owing) == made["devices"]
    devices = list(every(client, f"{address}/devices"))
    assert [each["device_id"] for each in devices] == sorted(owing - {None})
    assert nearly(devices) == nearly([each for each in fees if each["device_id"]])
    for device in devices:
        own = list(every(client, f"{address}/fees", device=device["device_id"]))
        assert own == [each for each in fees if each["device_id"] == device["device_id"]]
        assert nearly(own) == nearly([device])
    total = body(client.get(f"{address}/devices"))["sum"]
    assert nearly(devices) == nearly([total])
    return fees


def check_bill(client: httpx.Client, number: str) -> dict[int, list[dict[str, Any]]]:
    """Hold all lines of a bill to what makes them, there and back; return their charges."""
    bill = bill_named(client, number)
    lines = f"/v1/bills/{bill['bill_no']}/lines"
    found = {}
    for line in every(client, lines):
        address = f"{lines}/{line['line']}"
        assert body(client.get(address)).items() >= line.items()
        charges = found[line["line"]] = check_line(client, address)
        if line["kind"] == "usage" and line["corrects"] is None:
            total = body(client.get(f"{address}/devices"))["sum"]
            assert Fraction(total["exact_amount"]) == Fraction(line["exact_amount"])
            assert total["records"] == line["records"] == len(charges) > 0
    return found


def place_of(client: httpx.Client, charge: dict[str, Any]) -> tuple[str | None, int | None]:
    """Return the document and line in which a charge says that it stands; its reading says the same."""
    explained = body(client.get(f"/v1/charges/{charge['charge_id']}"))
    told = explained["bill_line"]
    (reading,) = body(
        client.get(
            f"/v1/devices/{charge['device_id']}/readings",
            params={"boot": charge["boot_id"], "seq": charge["seq"]},
        )
    )["items"]
    assert told in [each["bill_line"] for each in reading["charges"]]
    assert (told["bill_no"] is None) == (told["number"] is None) == (told["line"] is None)
    return told["number"], told["line"]


def test_lines_of_final_bills_lead_to_their_charges_and_back(database_url: str) -> None:
    async def story(scene: Scene) -> str:
        await set_up(scene)
        await used_and_closed(scene)
        await finalised(scene, FEBRUARY)
        march = await finalised(scene, MARCH)
        await noted(scene, march, share=Fraction(1, 10))
        # One comes late; three of another are charged again, dearer, from the middle of the month on.
        await scene.use("van-1", day(MARCH, 9), sms=2, received_at=day(APRIL, 6))
        await change_plan(
            scene.connection,
            tenant_no=scene.operator.tenant,
            device_nos=[await number_of(scene, "van-2")],
            plan_no=await scene.operator.plan(DEARER),
            at=day(MARCH, 19),
            now=day(APRIL, 7),
        )
        await scene.close(APRIL)
        # What comes now is of no bill yet.
        await scene.use("van-1", day(MARCH, 10), sms=1, received_at=day(MAY, 20))
        return await key_of(scene)

    key = played(database_url, story)
    with asking(database_url, key, LATER) as client:
        (april,) = body(client.get("/v1/bills", params={"state": "draft"}))["items"]
        refused = problem(client.get(f"/v1/bills/{april['bill_no']}/lines/1"), 422)
        assert "draft" in refused["detail"]
        late = {
            each["seq"]: each
            for each in every(
                client,
                "/v1/fleets/vans/bill/charges",
                at=day(MARCH, 5).isoformat(),
                known_at=LATER.isoformat(),
                device="van-1",
            )
        }
        # April's bill is a draft, so what it will hold has no place yet.
        assert place_of(client, late[7]) == (None, None)
        answer = client.post(
            f"/v1/bills/{april['bill_no']}/finalisation",
            headers={"Idempotency-Key": "finalise"},
        )
        assert answer.status_code == 201
        bills = {number: check_bill(client, number) for number in ("B2026-0001", "B2026-0002")}
        for number, lines in bills.items():
            kinds = {
                line["line"]: line["kind"]
                for line in every(
                    client, f"/v1/bills/{bill_named(client, number)['bill_no']}/lines"
                )
            }
            for line, charges in lines.items():
                for charge in charges:
                    if kinds[line] == "usage" and not was_changed(client, charge):
                        assert place_of(client, charge) == (number, line)
        # February's usage that came late stands in March's bill.
        (earlier,) = [
            line
            for line in every(
                client, f"/v1/bills/{bill_named(client, 'B2026-0002')['bill_no']}/lines"
            )
            if line["kind"] == "earlier_period"
        ]
        came = bills["B2026-0002"][earlier["line"]]
        assert [(each["device_id"], each["meter"]) for each in came] == [
            ("van-2", "sms"),
            ("van-2", "data"),
        ]
        assert all(each["was_exact_amount"] is None and not each["gone"] for each in came)
        assert {place_of(client, each) for each in came} == {("B2026-0002", earlier["line"])}
        assert check_bill(client, "N2026-0001")
        check_adjusted(client, late)


def was_changed(client: httpx.Client, charge: dict[str, Any]) -> bool:
    """Whether a charge that made a line was made again since."""
    explained = body(client.get(f"/v1/charges/{charge['charge_id']}"))
    return bool(explained["corrected"])


def check_adjusted(client: httpx.Client, late: dict[int, dict[str, Any]]) -> None:
    """Check what April's bill has of March: two late SMS, and three that cost more by another plan."""
    bill = bill_named(client, "B2026-0003")
    check_bill(client, "B2026-0003")
    (line,) = [
        each
        for each in every(client, f"/v1/bills/{bill['bill_no']}/lines")
        if each["kind"] == "earlier_period"
    ]
    assert line["period"] == {"first_day": "2026-03-01", "end_day": "2026-04-01"}
    address = f"/v1/bills/{bill['bill_no']}/lines/{line['line']}"
    came, again = every(client, f"{address}/charges")
    assert (came["device_id"], came["exact_difference"]) == ("van-1", "0.2")
    assert came["was_exact_amount"] is None
    # Three SMS at 0.50; two were in an allowance before, the third cost 0.10.
    assert (again["device_id"], again["was_exact_amount"]) == ("van-2", "0.1")
    assert (again["exact_amount"], again["exact_difference"]) == ("1.5", "1.4")
    assert place_of(client, came) == place_of(client, again) == ("B2026-0003", line["line"])
    changes = body(client.get(address))["changes"]
    assert changes["sum"]["exact_amount"] == "1.6"
    assert {(each["kind"], each["plan_id"]) for each in changes["lines"]} >= {
        ("fee", "van"),
        ("fee", "dearer"),
        ("usage", "van"),
        ("usage", "dearer"),
    }
    one = list(every(client, f"{address}/charges", limit="1"))
    assert [each["charge_id"] for each in one] == [came["charge_id"], again["charge_id"]]
    assert place_of(client, late[7]) == ("B2026-0003", line["line"])
    assert place_of(client, late[8]) == (None, None)


def check_command(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check that the command tells the same of lines, and where a charge stands."""
    from metering.cli import main  # noqa: PLC0415 - reads the environment when it is called

    monkeypatch.setenv("FLEETMETER_DATABASE_URL", url)
    asked = ["explain", "--tenant", TENANT]

    def told(*more: str) -> list[str]:
        assert main([*asked, *more]) == 0
        return capsys.readouterr().out.splitlines()

    note = told("--bill", "N2026-0001", "--line", "1")
    assert note[0].startswith("line 1 of N2026-0001: manual correction, ")
    assert note[1] == "It is made of what a re-rating changed of its cycle."
    assert "  van-2: 0 records, 1.4" in note
    assert "  fee monthly_fee of dearer version 1: 0 before, 3 then" in note
    assert note[-1] == "charges: 0 records, 1.4"
    (charge, total) = told("--bill", "N2026-0001", "--line", "1", "--device", "van-2")[2:]
    assert charge.endswith("boot boot-1 seq 2: 3 for 1.4")
    assert total == "charges: 0 records, 1.4"
    explained = told("--device", "van-2", "--boot", "boot-1", "--seq", "2")
    assert "It stands on line 1 of N2026-0001." in explained
    for refused in (
        ["--bill", "N2026-0001"],
        ["--device", "van-2"],
        ["--bill", "N9", "--line", "1"],
    ):
        assert main([*asked, *refused]) != 0
    capsys.readouterr()


def test_a_note_leads_to_what_a_re_rating_changed(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(scene: Scene) -> str:
        await set_up(scene)
        await used_and_closed(scene)
        await finalised(scene, FEBRUARY, now=day(APRIL, 10))
        await finalised(scene, MARCH, now=day(APRIL, 10))
        order = RerateOrder(
            device_nos=[await number_of(scene, "van-2")],
            plan_no=await scene.operator.plan(DEARER),
            at=MARCH.start,
            settling="note",
            reason="the price was wrong",
        )
        await rerate(scene.connection, scene.fleet, order, key="right", now=day(APRIL, 12))
        await scene.use("van-1", day(MARCH, 9), sms=2, received_at=day(APRIL, 14))
        await scene.close(APRIL)
        await finalised(scene, APRIL)
        return await key_of(scene)

    key = played(database_url, story)
    check_command(database_url, monkeypatch, capsys)
    with asking(database_url, key, LATER) as client:
        note = bill_named(client, "N2026-0001")
        address = f"/v1/bills/{note['bill_no']}/lines/1"
        made = body(client.get(address))
        assert made["made_of"] == "what a re-rating changed of its cycle"
        charges = check_line(client, address)
        assert [each["device_id"] for each in charges] == ["van-2"]
        assert place_of(client, charges[0]) == ("N2026-0001", 1)
        explained = body(client.get(f"/v1/charges/{charges[0]['charge_id']}"))
        assert explained["bill_line"]["held_by"] == "note"
        # What came after it is not the note's, but the next bill's.
        april = bill_named(client, "B2026-0003")
        (line,) = [
            each
            for each in every(client, f"/v1/bills/{april['bill_no']}/lines")
            if each["kind"] == "earlier_period"
        ]
        (late,) = check_line(client, f"/v1/bills/{april['bill_no']}/lines/{line['line']}")
        assert late["device_id"] == "van-1"
        assert place_of(client, late) == ("B2026-0003", line["line"])


def test_lines_that_are_not_there_are_refused(database_url: str) -> None:
    async def story(scene: Scene) -> str:
        await set_up(scene)
        await used_and_closed(scene)
        await finalised(scene, FEBRUARY)
        return await key_of(scene)

    key = played(database_url, story)
    with asking(database_url, key, LATER) as client:
        bill = bill_named(client, "B2026-0001")["bill_no"]
        for line in (99, 2**31 - 1):
            for below in ("", "/devices", "/charges"):
                problem(client.get(f"/v1/bills/{bill}/lines/{line}{below}"), 404)
        problem(client.get(f"/v1/bills/{bill}/lines/0"), 422)
        assert body(client.get("/v1/bills", params={"number": "B2026-9"}))["items"] == []
        usage = f"/v1/bills/{bill}/lines/1/charges"
        problem(client.get(usage, params={"device": "nobody"}), 404)
        assert body(client.get(usage, params={"device": "van-3"}))["items"] == []


ALL_FEES: dict[str, Any] = {
    "plan": "all-fees",
    "currency": "EUR",
    "fees": [
        {"name": "SIM", "amount": "3.10"},
        {"name": "day", "amount": "0.10", "every": "day"},
        {"name": "setup", "amount": "7.00", "every": "once"},
        {"name": "fleet", "amount": "20.00", "per": "fleet"},
        {
            "name": "state",
            "by_state": {"active": "2.00", "active_unused": "1.00", "suspended": "0.50"},
        },
        {
            "name": "tiers",
            "price": {
                "model": "graduated",
                "tiers": [
                    {"up_to": 2, "amount": "1.00"},
                    {"amount": "0.70"},
                ],
            },
        },
    ],
    "meters": {"sms": {"price": {"amount": "0.10", "per": 1}}},
}


async def all_fees(scene: Scene) -> None:
    """Have a fleet with every kind of fee: a-2 comes amid February, a-3 is suspended for 7 days."""
    plan_no = await scene.operator.plan(ALL_FEES)
    scene.fleet = await scene.operator.fleet("all", time_zone="Europe/Berlin")
    await set_up(scene)
    for device, from_day in (("a-1", 1), ("a-2", 15), ("a-3", 1)):
        await scene.operator.devices(
            scene.fleet, [device], plan=plan_no, valid_from=day(FEBRUARY, from_day)
        )
    for at, state in ((8, DeviceState.SUSPENDED), (15, DeviceState.ACTIVE)):
        await change_state(
            scene.connection,
            tenant_no=scene.operator.tenant,
            device_nos=[await number_of(scene, "a-3")],
            state=state,
            at=day(FEBRUARY, at),
            now=day(FEBRUARY, at),
        )
    await scene.use("a-1", day(FEBRUARY, 3), sms=4)


@pytest.mark.parametrize("closed", [False, True])
def test_the_fees_of_open_and_draft_bills_lead_to_their_devices(
    database_url: str, *, closed: bool
) -> None:
    async def story(scene: Scene) -> str:
        await all_fees(scene)
        if closed:
            await scene.close_fleet(FEBRUARY)
        # Of a draft it is no part: it was said after the cycle closed.
        await change_state(
            scene.connection,
            tenant_no=scene.operator.tenant,
            device_nos=[await number_of(scene, "a-1")],
            state=DeviceState.SUSPENDED,
            at=day(FEBRUARY, 15),
            now=LATER,
        )
        return await key_of(scene)

    key = played(database_url, story)
    with asking(database_url, key, LATER) as client:
        for then, a_1_in_full in ((None, closed), (LATER - timedelta(days=1), True)):
            when = {"at": day(FEBRUARY, 3).isoformat()}
            when |= {"known_at": then.isoformat()} if then else {}
            bill = body(client.get("/v1/fleets/all/bill", params=when))
            assert (bill["closed_at"] is not None) == closed
            told: dict[str, list[tuple[str | None, str, str]]] = {}
            for part in check_fee_lines(client, "all", bill, when):
                told.setdefault(part["name"], []).append(
                    (part["device_id"], part["share"], part["exact_amount"])
                )
            assert told["SIM"] == [
                ("a-1", "1", "3.1") if a_1_in_full else ("a-1", "0.5", "1.55"),
                ("a-2", "0.5", "1.55"),
                ("a-3", "0.75", "2.325"),
            ]
            assert told["fleet"] == [(None, "1", "20")]
            assert sorted(told) == ["SIM", "day", "fleet", "setup", "state", "tiers"]
        fees = "/v1/fleets/all/bill/fees"
        assert body(client.get(fees, params={"fee": "no such"}))["items"] == []
        problem(client.get(fees, params={"plan_version": "1"}), 422)
        problem(client.get(fees, params={"plan": "another"}), 404)
        problem(client.get(fees, params={"device": "another"}), 404)
        problem(client.get("/v1/fleets/another/bill/fees"), 404)


def test_a_fees_line_leads_to_the_devices_that_it_counts(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of February's 28 days, a-2 is there for the last 14; a-3 is suspended for 7."""

    async def story(scene: Scene) -> str:
        await all_fees(scene)
        await scene.close_fleet(FEBRUARY)
        await finalised(scene, FEBRUARY)
        # What is said of February now is no part of the bill that was given.
        await change_state(
            scene.connection,
            tenant_no=scene.operator.tenant,
            device_nos=[await number_of(scene, "a-1")],
            state=DeviceState.SUSPENDED,
            at=day(FEBRUARY, 2),
            now=LATER,
        )
        return await key_of(scene)

    key = played(database_url, story)
    with asking(database_url, key, LATER) as client:
        check_bill(client, "B2026-0001")
        bill = bill_named(client, "B2026-0001")
        found = {}
        for line in every(client, f"/v1/bills/{bill['bill_no']}/lines"):
            address = f"/v1/bills/{bill['bill_no']}/lines/{line['line']}"
            found[line["kind"], line["name"], line["exact_amount"]] = [
                (each["device_id"], each["share"], each["state"], each["exact_amount"])
                for each in every(client, f"{address}/fees")
            ]
        assert found == {
            ("usage", "sms", "0.4"): [],
            ("recurring", "SIM", "6.975"): [
                ("a-1", "1", None, "3.1"),
                ("a-2", "0.5", None, "1.55"),
                ("a-3", "0.75", None, "2.325"),
            ],
            ("recurring", "day", "6.3"): [
                ("a-1", "28", None, "2.8"),
                ("a-2", "14", None, "1.4"),
                ("a-3", "21", None, "2.1"),
            ],
            ("one_time", "setup", "21"): [(f"a-{each}", "1", None, "7") for each in (1, 2, 3)],
            ("recurring", "fleet", "20"): [(None, "1", None, "20")],
            ("recurring", "state", "3.375"): [
                ("a-1", "1", "active", "2"),
                ("a-2", "0.5", "active_unused", "0.5"),
                ("a-3", "0.75", "active_unused", "0.75"),
                ("a-3", "0.25", "suspended", "0.125"),
            ],
            ("recurring", "tiers", "2.1"): [
                ("a-1", "1", None, "1"),
                ("a-2", "0.5", None, "0.35"),
                ("a-3", "0.75", None, "0.75"),
            ],
        }
    check_fees_told(database_url, monkeypatch, capsys)


def check_fees_told(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check that the command tells the same of a fee's line."""
    from metering.cli import main  # noqa: PLC0415 - reads the environment when it is called

    monkeypatch.setenv("FLEETMETER_DATABASE_URL", url)
    asked = ["explain", "--tenant", TENANT, "--bill", "B2026-0001", "--line", "2"]
    assert main(asked) == 0
    term = "2026-01-31T23:00:00Z to 2026-02-28T23:00:00Z"
    assert capsys.readouterr().out.splitlines()[1:] == [
        "It is made of the parts of a fee that subscriptions and states made due.",
        f"  a-1, {term}: 1 of it, 3.1",
        f"  a-2, {term}: 0.5 of it, 1.55",
        f"  a-3, {term}: 0.75 of it, 2.325",
        "fees: 3, 6.975",
    ]
    assert main([*asked, "--device", "a-2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "fees: 1, 1.55"
