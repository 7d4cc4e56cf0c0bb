"""From a bill to its lines, devices, charges and readings, and back: each level is the sum of the next."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

import httpx

from api.app import create_app
from metering.charging.change_terms import change_plan
from metering.settings import Settings
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from tests.integration import rich
from tests.integration.closing_scene import APRIL, MARCH, Scene, day, played
from tests.integration.conftest import serving
from tests.integration.pipeline import migrated
from tests.integration.test_api import body, problem
from tests.integration.test_closing_corrections import DEARER, number_of

_SUMS = {
    "records": "records",
    "quantity": "quantity",
    "billed_quantity": "billed_quantity",
    "in_allowance_quantity": "in_allowance_quantity",
    "from_pool_quantity": "from_pool_quantity",
    "overage_quantity": "overage_quantity",
}


@contextmanager
def asking(url: str, key: str, now: datetime) -> Iterator[httpx.Client]:
    """Serve the API over a database and yield a client of the tenant with a key."""
    app = create_app(Settings(database_url=url), now=lambda: now)
    with (
        serving(app) as address,
        httpx.Client(
            base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=30
        ) as client,
    ):
        yield client


def every(client: httpx.Client, address: str, **given: str) -> Iterator[dict[str, Any]]:
    """Yield the items of all pages."""
    cursor: dict[str, Any] = {}
    while True:
        page = body(client.get(address, params={"limit": 20, **given, **cursor}))
        yield from page["items"]
        if page["next_cursor"] is None:
            return
        cursor = {"cursor": page["next_cursor"]}


def check_lines(client: httpx.Client, fleet: str, at: str) -> int:
    """Hold each usage line of a bill to its devices, and those to their charges; return how many."""
    bill = body(client.get(f"/v1/fleets/{fleet}/bill", params={"at": at}))
    lines = [line for line in bill["lines"] if line["kind"] == "usage"]
    charges = 0
    for line in lines:
        name: dict[str, Any] = {
            "at": at,
            "plan": line["plan_id"],
            "plan_version": line["plan_version"],
            "meter": line["meter"],
            "variant": "own" if line["variant"] is None else line["variant"],
        }
        if line["device_id"] is not None:
            name["device"] = line["device_id"]
        shown = body(client.get(f"/v1/fleets/{fleet}/bill/devices", params=name))
        assert summed([line]) == summed([shown["sum"]]), line
        devices = list(every(client, f"/v1/fleets/{fleet}/bill/devices", **name))
        assert len(devices) == line["devices"]
        assert summed(devices) == summed([line])
        for device in devices:
            of_device = name | {"device": device["device_id"]}
            found = list(every(client, f"/v1/fleets/{fleet}/bill/charges", **of_device))
            assert len(found) == device["records"]
            assert summed(found) == summed([device])
            charges += len(found)
    check_fee_lines(client, fleet, bill, {"at": at})
    shown = body(client.get(f"/v1/fleets/{fleet}/bill/devices", params={"at": at}))
    others = [line for line in bill["lines"] if line["kind"] != "usage"]
    named = ("kind", "plan_id", "plan_version", "device_id", "exact_amount")
    assert [[each[name] for name in named] for each in shown["rolled_up"]] == [
        [line.get(name) for name in named] for line in others
    ]
    assert shown["sum"]["records"] == charges
    return charges


def check_fee_lines(
    client: httpx.Client, fleet: str, bill: dict[str, Any], when: dict[str, str]
) -> list[dict[str, Any]]:
    """Hold each fee's line of a bill to its parts, and those to their devices; return all parts."""
    address = f"/v1/fleets/{fleet}/bill/fees"
    whole = body(client.get(address, params=when))
    lines = [line for line in bill["lines"] if line["kind"] == "fee"]
    assert whole["known"]
    assert nearly([whole]) == nearly(lines)
    parts = []
    for line in lines:
        named = when | {
            "plan": line["plan_id"],
            "plan_version": str(line["plan_version"]),
            "fee": line["name"],
        }
        if line["device_id"] is not None:
            named["device"] = line["device_id"]
        own = list(every(client, address, **named))
        assert {each["name"] for each in own} == {line["name"]}
        assert body(client.get(address, params=named))["exact_amount"] == line["exact_amount"]
        assert nearly(own) == nearly([line])
        owing = {each["device_id"] for each in own}
        if owing != {None}:
            assert len(owing) == line["devices"]
            for device in owing:
                of_device = named | {"device": device}
                theirs = [each for each in own if each["device_id"] == device]
                assert list(every(client, address, **of_device)) == theirs
        parts += own
    found = list(every(client, address, **when))
    assert len(found) == len(parts)
    assert all(each in parts for each in found)
    return parts


def nearly(rows: list[dict[str, Any]]) -> Fraction:
    """Return what rows sum to; each is told to thirty places, where it does not terminate before."""
    whole = sum((Fraction(each["exact_amount"]) for each in rows), Fraction(0))
    return Fraction(round(whole * 10**25), 10**25)


def summed(rows: list[dict[str, Any]]) -> dict[str, Fraction]:
    """Return the sums of rows; one that is a charge is one record."""
    sums = {name: sum((Fraction(row.get(name, 1)) for row in rows), Fraction(0)) for name in _SUMS}
    sums["amount"] = sum((Fraction(row["exact_amount"]) for row in rows), Fraction(0))
    return sums


def test_each_level_is_the_sum_of_the_next(database_url: str) -> None:
    async def build() -> str:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            operator, _ = await rich.begin(connection)
            await rich.publish(connection, list(rich.messages(1))[:80], readings_max=40)
            found = await connection.execute(
                "SELECT device_no, plan_no FROM subscription JOIN device USING (device_no)"
                " WHERE device_id IN ('rich-1', 'neighbour-1') ORDER BY device_id DESC"
            )
            (_, richer), (first, _) = await found.fetchall()
            await change_plan(
                connection,
                tenant_no=operator.tenant,
                device_nos=[first],
                plan_no=richer,
                at=rich.FEBRUARY.start - timedelta(days=16),
                now=rich.NOW,
            )
            return await create_api_key(
                connection, tenant=operator.tenant, label="test", now=rich.NOW
            )

    key = asyncio.run(build())
    with asking(database_url, key, rich.NOW) as client:
        charges = [
            check_lines(client, "rich", each.start.isoformat())
            for each in (rich.JANUARY, rich.FEBRUARY)
        ]
        assert min(charges) > 20
        items = list(every(client, "/v1/fleets/rich/bill/charges", at="2026-01-15T00:00:00Z"))
        left: dict[int, int] = {}
        for item in sorted(items, key=lambda each: each["charge_id"]):
            explained = body(client.get(f"/v1/charges/{item['charge_id']}"))
            assert explained.items() >= item.items()
            check_explained(explained)
            check_back(client, explained)
            for each in explained["buckets"]:
                left[each["bucket_no"]] = min(
                    left.get(each["bucket_no"], each["left_after"]), each["left_after"]
                )
        assert left
        assert any(each["corrected"] for each in items)
    asyncio.run(_left_is_the_fold(database_url, left))


def check_explained(charge: dict[str, Any]) -> None:
    """Check that its parts sum to a charge, and that what its buckets pay is what they lose."""
    parts = [Fraction(step["exact_amount"]) for step in charge["steps"]]
    parts += [Fraction(charge["exact_connection_fee"]), Fraction(charge["exact_rounding"])]
    assert sum(parts) == Fraction(charge["exact_amount"])
    paid = sum(each["paid"] for each in charge["buckets"])
    assert paid == charge["in_allowance_quantity"] + charge["from_pool_quantity"]
    assert all(
        each["left_after"] == each["left_before"] - each["paid"] for each in charge["buckets"]
    )
    cost = f"It costs {charge['exact_amount']} {charge['currency']}."
    told = [each for each in charge["history"] if each["was"] is not None]
    assert charge["words"].index(cost) == len(charge["words"]) - 1 - len(told)


def check_back(client: httpx.Client, charge: dict[str, Any]) -> None:
    """Check that a charge's reading leads back to it, its buckets, and the line that holds it."""
    found = body(
        client.get(
            f"/v1/devices/{charge['device_id']}/readings",
            params={"boot": charge["boot_id"], "seq": charge["seq"]},
        )
    )
    (reading,) = found["items"]
    assert reading["state"] == "charged"
    assert reading["measured_at"] == charge["measured_at"]
    (own,) = [each for each in reading["charges"] if each["charge_id"] == charge["charge_id"]]
    assert own["buckets"] == charge["buckets"]
    assert own["bill_line"] == charge["bill_line"]
    assert own["bill_line"]["variant"] == charge["variant"]


async def _left_is_the_fold(url: str, left: dict[int, int]) -> None:
    """Check that what is told to be left after a bucket's last charge is what it holds."""
    async with await connect(url, application="test") as connection:
        found = await connection.execute(
            "SELECT bucket_no, granted - used FROM bucket WHERE bucket_no = ANY(%s)"
            " AND expires_at IS NOT NULL AND expires_at <= %s AND cycle_start >= %s"
            " AND NOT EXISTS (SELECT FROM bucket_entry WHERE bucket_entry.bucket_no = bucket.bucket_no"
            "   AND kind <> 'grant')",
            [list(left), rich.FEBRUARY.start, rich.JANUARY.start],
        )
        rows = await found.fetchall()
        assert len(rows) > 3
        assert {number: left[number] for number, _ in rows} == {n: int(rest) for n, rest in rows}


def test_a_closed_bill_is_made_of_the_charges_of_then(database_url: str) -> None:
    keys: list[str] = []

    async def story(scene: Scene) -> None:
        await scene.use("van-1", day(MARCH, 5), sms=4, data=2222)
        await scene.use("van-2", day(MARCH, 20), sms=3)
        await scene.look(MARCH.start)
        await scene.look(APRIL.start + timedelta(days=4))
        await scene.use("van-1", day(MARCH, 9), sms=2, received_at=day(APRIL, 6))
        await change_plan(
            scene.connection,
            tenant_no=scene.operator.tenant,
            device_nos=[await number_of(scene, "van-2")],
            plan_no=await scene.operator.plan(DEARER),
            at=day(MARCH, 19),
            now=day(APRIL, 7),
        )
        keys.append(
            await create_api_key(
                scene.connection, tenant=scene.operator.tenant, label="test", now=day(APRIL, 8)
            )
        )

    played(database_url, story)
    march = {"at": day(MARCH, 5).isoformat()}
    with asking(database_url, keys[0], day(APRIL, 8)) as client:
        assert check_lines(client, "vans", march["at"]) == 3
        shown = body(client.get("/v1/fleets/vans/bill/charges", params=march))
        assert shown["closed_at"] is not None
        # With all that has come since: one reading late, two charged again.
        now = march | {"known_at": day(APRIL, 8).isoformat()}
        later = body(client.get("/v1/fleets/vans/bill/charges", params=now))["items"]
        assert [each["corrected"] for each in later] == [False, False, False, True]
        for each in later:
            explained = body(client.get(f"/v1/charges/{each['charge_id']}"))
            late = each["corrected"] or each["seq"] == 3
            assert explained["bill_line"]["held_by"] == ("period_adjustment" if late else "line")
            assert explained["bill_line"]["billed_in"] is None
            assert len(explained["history"]) == each["corrected"]
        dearer = body(client.get(f"/v1/charges/{later[-1]['charge_id']}"))
        # Three SMS at 0.50; two were in an allowance before, the third cost 0.10.
        assert dearer["history"][0]["was"] == "0.1"
        assert dearer["history"][0]["exact_difference"] == "1.4"
        assert dearer["words"][-1].startswith(
            "Until 2026-04-07T12:00:00Z it cost 0.1 EUR under van"
        )
        past = march | {"known_at": day(MARCH, 19).isoformat()}
        then = body(client.get("/v1/fleets/vans/bill/charges", params=past))
        assert then["sum"]["records"] == 2
        ahead = march | {"known_at": day(APRIL, 9).isoformat()}
        for route in ("bill", "bill/charges", "bill/devices"):
            refused = problem(client.get(f"/v1/fleets/vans/{route}", params=ahead), 422)
            assert refused["errors"][0]["field"] == "known_at"
        believed = body(client.get("/v1/fleets/vans/bill", params=past))
        assert (believed["as_of"], believed["usage_complete"]) == ("2026-03-19T12:00:00Z", None)
