"""Balances over HTTP: topped up, moved and adjusted once each, shown, and followed entry by entry."""

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from metering.charging.charge_usage import charge_usage
from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.insight.audit import audit_database
from metering.store.connection import Connection, connect
from metering.usage import SMS, Reading, ReadingKind
from tests.integration.conftest import NOW
from tests.integration.pipeline import Operator, migrated
from tests.integration.test_api import body, pages, problem

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

TOP_UP = {"meter": "sms", "quantity": 20}


def post(
    client: httpx.Client,
    address: str,
    order: object,
    *,
    key: str | None = "k",
) -> httpx.Response:
    return client.post(address, json=order, headers={} if key is None else {"Idempotency-Key": key})


def made(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_device_is_topped_up_once(api: "ApiUnderTest") -> None:
    address = "/v1/devices/acme-1/top-ups"
    first = post(api.acme, address, TOP_UP)
    bucket = made(first)
    assert bucket | {"bucket_no": 0} == {
        "bucket_no": 0,
        "fleet_id": "acme-north",
        "device_id": "acme-1",
        "meter": "sms",
        "unit": "message",
        "name": "top-up",
        "kind": "allowance",
        "source": "top_up",
        "priority": 300,
        "zones": None,
        "begins_at": "2026-04-15T12:00:00Z",
        "expires_at": None,
        "granted": 20,
        "used": 0,
        "left": 20,
        "reserved": 0,
    }
    again = post(api.acme, address, TOP_UP)
    assert (again.status_code, again.json()) == (200, bucket)
    _, sms = body(api.acme.get("/v1/devices/acme-1/balance"))["meters"]
    assert sms["allowance"] == {"granted": 30, "used": 10, "left": 20, "reserved": 0}
    assert [(each["name"], each["source"], each["left"]) for each in sms["buckets"]] == [
        ("allowance", "plan", 0),
        ("top-up", "top_up", 20),
    ]
    assert sms["buckets"][1]["bucket_no"] == bucket["bucket_no"]
    others = body(api.acme.get("/v1/devices/acme-2/balance"))["meters"][1]["buckets"]
    assert [each["source"] for each in others] == ["plan"]


def test_a_fleet_is_topped_up(api: "ApiUnderTest") -> None:
    order = {
        "meter": "data",
        "quantity": 5_000,
        "name": "pool",
        "priority": 7,
        "zones": ["home", "elsewhere"],
        "begins_at": "2026-04-01T00:00:00+02:00",
        "expires_at": "2026-05-01T00:00:00+02:00",
    }
    bucket = made(post(api.acme, "/v1/fleets/acme-north/top-ups", order))
    assert (bucket["device_id"], bucket["kind"], bucket["zones"]) == (
        None,
        "pool",
        ["elsewhere", "home"],
    )
    # It has the name and the beginning of the plan's pool, and yet is no part of it.
    pools = body(api.acme.get("/v1/fleets/acme-north/balance"))["pools"]
    assert [(each["name"], each["source"], each["pool"]["granted"]) for each in pools] == [
        ("pool", "plan", 300_000_000),
        ("pool", "top_up", 5_000),
    ]
    for device in ("acme-1", "acme-3"):
        data, _ = body(api.acme.get(f"/v1/devices/{device}/balance"))["meters"]
        assert [each["source"] for each in data["buckets"]] == ["top_up", "plan"]
        assert data["pool"]["left"] == 5_000
    assert body(api.acme.get(f"/v1/buckets/{bucket['bucket_no']}")) == bucket


def test_units_are_moved_and_adjusted(api: "ApiUnderTest") -> None:
    own = made(post(api.acme, "/v1/devices/acme-1/top-ups", TOP_UP))["bucket_no"]
    shared = made(post(api.acme, "/v1/fleets/acme-north/top-ups", TOP_UP, key="f"))["bucket_no"]
    address = f"/v1/buckets/{own}/transfers"
    order = {"to_bucket_no": shared, "quantity": 5}
    moved = made(post(api.acme, address, order, key="t"))
    again = post(api.acme, address, order, key="t")
    assert (again.status_code, again.json()) == (200, moved)
    assert (moved["kind"], moved["bucket_no"], moved["from_bucket_no"], moved["quantity"]) == (
        "transfer", shared, own, 5,
    )  # fmt: skip
    taken = {"quantity": -3, "reason": "sold by mistake"}
    adjusted = made(post(api.acme, f"/v1/buckets/{own}/adjustments", taken, key="a"))
    assert (adjusted["kind"], adjusted["quantity"], adjusted["reason"]) == (
        "adjustment", -3, "sold by mistake",
    )  # fmt: skip
    assert [body(api.acme.get(f"/v1/buckets/{each}"))["left"] for each in (own, shared)] == [12, 25]
    entries = body(api.acme.get(f"/v1/buckets/{own}/entries"))["items"]
    told = [(each["kind"], each["quantity"], each["against"]) for each in entries]
    assert told == [
        ("adjustment", -3, "adjustments"),
        ("transfer", -5, "bucket"),
        ("top_up", 20, "top_ups"),
    ]
    assert (entries[0]["reason"], entries[1]["against_bucket_no"]) == ("sold by mistake", shared)
    assert [each["operation_no"] for each in entries] == [
        adjusted["operation_no"], moved["operation_no"], 1,
    ]  # fmt: skip
    refused = problem(post(api.acme, address, order | {"quantity": 13}, key="more"), 422)
    assert refused["errors"] == [
        {
            "pointer": "#/quantity",
            "field": "quantity",
            "problem": f"bucket {own} has 12 left, not 13",
            "fix": "transfer at most 12",
        }
    ]


REFUSED = [
    ("/v1/fleets/acme-north/top-ups", {"quantity": 1}, "meter", "give it"),
    ("/v1/fleets/acme-north/top-ups", {"meter": "beer", "quantity": 1}, "meter", "use 'data', "),
    (
        "/v1/fleets/acme-north/top-ups",
        TOP_UP | {"meter": "voice"},
        "meter",
        "add a plan that does first, or use one of data, sms",
    ),
    (
        "/v1/devices/acme-1/top-ups",
        TOP_UP | {"zones": ["home", "hoem"]},
        "zones.1",
        "use one of elsewhere, home, or leave zones out",
    ),
    ("/v1/fleets/acme-north/top-ups", TOP_UP | {"quantity": 0}, "quantity", "use at least 1"),
    ("/v1/fleets/acme-north/top-ups", TOP_UP | {"quantity": 1.5}, "quantity", "use a whole number"),
    ("/v1/fleets/acme-north/top-ups", TOP_UP | {"quantity": "5"}, "quantity", "use a whole number"),
    ("/v1/fleets/acme-north/top-ups", TOP_UP | {"quantity": 10**19}, "quantity", "use at most 10"),
    ("/v1/fleets/acme-north/top-ups", TOP_UP | {"amount": 5}, "amount", "leave it out"),
    (
        "/v1/fleets/acme-north/top-ups",
        TOP_UP | {"name": "a\0b"},
        "name",
        "leave out the character NUL",
    ),
    ("/v1/fleets/acme-north/top-ups", TOP_UP | {"zones": []}, "zones", "use at least 1"),
    ("/v1/fleets/acme-north/top-ups", TOP_UP | {"expires_at": "soon"}, "expires_at", "use a time "),
    (
        "/v1/fleets/acme-north/top-ups",
        TOP_UP | {"expires_at": "2026-04-15T12:00:00Z"},
        "expires_at",
        "use a later time",
    ),
    ("/v1/fleets/acme-north/top-ups", [], "body", "send one JSON object"),
    ("/v1/fleets/acme-north/top-ups?key=1", TOP_UP, "key", "this route takes none"),
    ("/v1/buckets/1/transfers", {"to_bucket_no": 1, "quantity": 1}, "to_bucket_no", "name another"),
    (
        "/v1/buckets/1/transfers",
        {"to_bucket_no": 2, "quantity": 1},
        "to_bucket_no",
        "name a bucket",
    ),
    ("/v1/buckets/1/adjustments", {"quantity": 1}, "reason", "give it"),
    ("/v1/buckets/1/adjustments", {"quantity": 1, "reason": " "}, "reason", "use text"),
    ("/v1/buckets/1/adjustments", {"quantity": 0, "reason": "x"}, "quantity", "use 1 to"),
    (
        "/v1/buckets/1/adjustments",
        {"quantity": -1, "reason": "x"},
        "quantity",
        "take away at most 0",
    ),
    ("/v1/buckets/0/adjustments", {"quantity": 1, "reason": "x"}, "bucket_no", "use at least 1"),
]


def test_what_cannot_be_done_names_the_field_and_the_fix(api: "ApiUnderTest") -> None:
    for address, order, field, fix in REFUSED:
        refused = problem(post(api.acme, address, order), 422)
        (error,) = refused["errors"]
        assert error["field"] == field, (address, order, error)
        assert error["fix"].startswith(fix), (address, order, error)
    # None of them used the key up.
    made(post(api.acme, "/v1/fleets/acme-north/top-ups", TOP_UP))


def test_a_body_that_is_no_json_is_refused(api: "ApiUnderTest") -> None:
    refused = api.acme.post(
        "/v1/fleets/acme-north/top-ups",
        content=b"{",
        headers={"Idempotency-Key": "k", "Content-Type": "application/json"},
    )
    (error,) = problem(refused, 422)["errors"]
    assert (error["field"], error["fix"]) == ("body", "send one JSON object, as application/json")


@pytest.mark.parametrize("key", [None, "", "x" * 201, "a\tb"])
def test_without_a_key_nothing_is_changed(api: "ApiUnderTest", key: str | None) -> None:
    for address, order in (
        ("/v1/fleets/acme-north/top-ups", TOP_UP),
        ("/v1/devices/acme-1/top-ups", TOP_UP),
        ("/v1/buckets/1/transfers", {"to_bucket_no": 2, "quantity": 1}),
        ("/v1/buckets/1/adjustments", {"quantity": 1, "reason": "x"}),
    ):
        (error,) = problem(post(api.acme, address, order, key=key), 422)["errors"]
        if address.endswith("transfers") and key == "a\tb":
            continue  # what is wrong with the order is told first
        assert error["field"] == "Idempotency-Key"
    counts = body(api.acme.get("/v1/fleets/acme-north/balance"))["pools"]
    assert [each["source"] for each in counts] == ["plan"]


def test_a_key_that_was_used_for_another_request_is_refused(api: "ApiUnderTest") -> None:
    made(post(api.acme, "/v1/fleets/acme-north/top-ups", TOP_UP))
    for address, order in (
        ("/v1/fleets/acme-north/top-ups", TOP_UP | {"quantity": 21}),
        ("/v1/fleets/acme-empty/top-ups", TOP_UP),
        ("/v1/devices/acme-1/top-ups", TOP_UP),
        ("/v1/buckets/1/adjustments", {"quantity": 1, "reason": "x"}),
    ):
        (error,) = problem(post(api.acme, address, order), 422)["errors"]
        assert (error["field"], error["problem"]) == (
            "Idempotency-Key",
            "was used for another request",
        )
    # Another tenant's keys are its own.
    made(post(api.rival, "/v1/fleets/rival-north/top-ups", TOP_UP))


def test_another_tenants_balances_are_not_there(api: "ApiUnderTest") -> None:
    own = made(post(api.acme, "/v1/fleets/acme-north/top-ups", TOP_UP))["bucket_no"]
    foreign = made(post(api.rival, "/v1/fleets/rival-north/top-ups", TOP_UP))["bucket_no"]
    move = {"quantity": 1, "to_bucket_no": own}
    for address, order in (
        ("/v1/fleets/acme-north/top-ups", TOP_UP),
        ("/v1/devices/acme-1/top-ups", TOP_UP),
        (f"/v1/buckets/{own}/transfers", move | {"to_bucket_no": foreign}),
        (f"/v1/buckets/{foreign}/transfers", move),
        (f"/v1/buckets/{own}/adjustments", {"quantity": 1, "reason": "x"}),
    ):
        told = problem(post(api.rival, address, order, key="new"), 404)
        named = [each["field"] for each in told.get("errors", [])]
        assert named == (["to_bucket_no"] if f"/{foreign}/" in address else [])
    problem(api.rival.get(f"/v1/buckets/{own}"), 404)
    problem(api.rival.get(f"/v1/buckets/{own}/entries"), 404)


def test_the_entries_of_a_balance_sum_to_what_is_left(database_url: str) -> None:
    """A ledger over grants, charges, a rollover and a transfer, in pages of every size."""
    from api.app import create_app  # noqa: PLC0415 - beside what it serves
    from metering.settings import Settings  # noqa: PLC0415
    from metering.store.api_keys import create_api_key  # noqa: PLC0415
    from tests.integration.conftest import serving  # noqa: PLC0415

    plan = {
        "plan": "p",
        "currency": "EUR",
        "meters": {
            "sms": {
                "price": {"amount": "1"},
                "allowances": [{"name": "own", "quantity": 50, "rollover": {"maximum": 30}}],
            }
        },
    }

    async def begin() -> str:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            operator = await Operator.of(connection, now=NOW)
            fleet = await operator.fleet("north")
            began = NOW - timedelta(days=40)
            await operator.devices(fleet, ["d"], plan=await operator.plan(plan), valid_from=began)
            for seq, days in enumerate((30, 29, 0, 0, 0), start=1):
                await use(connection, seq, 4, days)
            return await create_api_key(connection, tenant=operator.tenant, label="x", now=NOW)

    async def use(
        connection: Connection, seq: int, quantity: int, days: int, *, now: datetime = NOW
    ) -> None:
        reading = Reading(
            seq=seq, at=NOW - timedelta(days=days), meter=SMS, kind=ReadingKind.DELTA,
            quantity=quantity,
        )  # fmt: skip
        message = Message(
            topic="fm/v1/demo/d/usage", octets=10, received_at=NOW, published_at=None,
            sender=(TenantId("demo"), DeviceId("d")), boot="b1", readings=[reading], rejections=(),
        )  # fmt: skip
        await write_batch(connection, DeviceCache(10), [message], now=now)
        while await charge_usage(connection, readings_max=2, now=now):
            pass

    async def finish() -> list[str]:
        async with await connect(database_url, application="test", autocommit=True) as connection:
            await use(connection, 6, 30, 0, now=NOW + timedelta(hours=2))
        async with await connect(database_url, application="test") as connection:
            return (await audit_database(connection)).differences

    key = asyncio.run(begin())
    app = create_app(Settings(database_url=database_url), now=lambda: NOW + timedelta(hours=1))
    with (
        serving(app) as url,
        httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
        ) as client,
    ):
        (sms,) = body(client.get("/v1/devices/d/balance"))["meters"]
        old, new = (each["bucket_no"] for each in sms["buckets"])
        made(post(client, f"/v1/buckets/{new}/transfers", {"to_bucket_no": old, "quantity": 5}))
        assert asyncio.run(finish()) == []
        kinds: set[str] = set()
        instants: set[str] = set()
        for number in (old, new):
            bucket = body(client.get(f"/v1/buckets/{number}"))
            entries = body(client.get(f"/v1/buckets/{number}/entries"))["items"]
            assert sum(each["quantity"] for each in entries) == bucket["left"]
            kinds |= {each["kind"] for each in entries}
            for limit in (1, 2, 3, 5, 500):
                shown = list(pages(client, f"/v1/buckets/{number}/entries", limit))
                assert [item for page in shown for item in page] == entries
            instants |= (here := {each["created_at"] for each in entries})
            for instant in here:
                path = f"/v1/buckets/{number}/entries"
                before = body(client.get(path, params={"to": instant, "limit": 500}))["items"]
                since = list(pages(client, path, 2, **{"from": instant}))
                assert before == [each for each in entries if each["created_at"] < instant]
                assert [item for page in since for item in page] == [
                    each for each in entries if each["created_at"] >= instant
                ]
            drawn = [each for each in entries if each["kind"] == "consumption"]
            assert all(each["device_id"] == "d" and each["boot_id"] == "b1" for each in drawn)
            assert sum(each["quantity"] for each in drawn) == -bucket["used"]
        assert kinds == {"grant", "consumption", "expiry", "rollover", "transfer"}
        assert len(instants) == 3
