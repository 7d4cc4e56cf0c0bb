"""Fleets and devices, made, described and found over the API: nothing needs the database."""

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING, Any

import httpx
import psycopg

from metering.access import Role
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from metering.store.registry import tenant_no
from tests.integration.conftest import NOW

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

NORTH = {
    "fleet_id": "new-north",
    "name": "New North",
    "currency": "EUR",
    "time_zone": "Europe/Berlin",
    "cycle": "quarter",
    "anchor_day": 15,
    "anchor_month": 2,
    "labels": {"customer": "c-17"},
}
ICCID = "8949000000000000018"


def make(client: httpx.Client, path: str, order: object, key: str = "k1") -> httpx.Response:
    """Send an order under an idempotency key."""
    return client.post(f"/v1/{path}", json=order, headers={"Idempotency-Key": key})


def made(client: httpx.Client, path: str, order: object, key: str = "k1") -> dict[str, Any]:
    """Send an order that is done."""
    answer = make(client, path, order, key)
    assert answer.status_code == 201, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def fields(answer: httpx.Response, status: int) -> list[str]:
    """Return the fields that a refusal names, each with a fix."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    errors = answer.json().get("errors", [])
    assert all(each["fix"] for each in errors)
    return [each["field"] for each in errors]


def _listed(client: httpx.Client, path: str, **which: str) -> list[str]:
    """Return the ids that a list holds, by pages of one."""
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get(f"/v1/{path}", params={"limit": "1", **which, **cursor})
        assert page.status_code == 200, page.text
        name = "fleet_id" if path == "fleets" else "device_id"
        found += [each[name] for each in page.json()["items"]]
        if page.json()["next_cursor"] is None:
            return found
        cursor = {"cursor": page.json()["next_cursor"]}


def test_a_fleet_is_made_once_described_and_found(api: "ApiUnderTest") -> None:
    shown = made(api.acme, "fleets", NORTH)
    assert shown == {
        "devices": 0, "created_at": shown["created_at"], "time_zone_from": None, **NORTH,
    }  # fmt: skip
    again = make(api.acme, "fleets", NORTH)
    assert (again.status_code, again.json()) == (200, shown)
    assert fields(make(api.acme, "fleets", NORTH | {"name": "X"}), 422) == ["Idempotency-Key"]
    assert fields(make(api.acme, "fleets", NORTH, "k2"), 409) == ["fleet_id"]
    assert made(api.rival, "fleets", NORTH)["fleet_id"] == "new-north"
    assert _listed(api.acme, "fleets", search="NEW") == ["new-north"]
    assert _listed(api.acme, "fleets", label="customer=c-17") == ["new-north"]
    assert _listed(api.acme, "fleets", label="customer=c-1") == []
    assert "new-north" not in _listed(api.acme, "fleets", currency="USD")


BAD_FLEETS: list[tuple[dict[str, object], str]] = [
    ({"currency": "XYZ"}, "currency"),
    ({"time_zone": "Mars/Olympus"}, "time_zone"),
    ({"time_zone": "../../etc/passwd"}, "time_zone"),
    ({"anchor_day": 32}, "anchor_day"),
    ({"cycle": "week"}, "cycle"),
    ({"fleet_id": "a/b"}, "fleet_id"),
    ({"name": "a\x00b"}, "name"),
    ({"labels": {"a b": "c"}}, "labels.a b.[key]"),
    ({"shard": 3}, "shard"),
]


def test_a_bad_fleet_is_refused_by_the_field(api: "ApiUnderTest") -> None:
    for wrong, field in BAD_FLEETS:
        assert fields(make(api.acme, "fleets", NORTH | wrong), 422) == [field], wrong
    assert "new-north" not in _listed(api.acme, "fleets")


def test_fleets_of_all_tenants_are_dealt_out_to_the_shards(api: "ApiUnderTest") -> None:
    for number in range(3):
        for client in (api.acme, api.rival):
            made(client, "fleets", NORTH | {"fleet_id": f"dealt-{number}"}, f"k{number}")
    with psycopg.connect(api.database_url) as owner:
        row = owner.execute(
            "SELECT count(DISTINCT shard_no) FROM fleet WHERE fleet_id LIKE 'dealt-%'"
        ).fetchone()
    assert row == (6,)


def test_of_two_who_edit_a_fleet_the_second_is_told(api: "ApiUnderTest") -> None:
    address = "/v1/fleets/acme-north"
    seen = api.acme.get(address).headers["ETag"]
    first = api.acme.patch(address, json={"name": "First"}, headers={"If-Match": seen})
    assert first.json()["name"] == "First"
    second = api.acme.patch(address, json={"name": "Second"}, headers={"If-Match": seen})
    assert second.status_code == 412
    assert second.json()["type"] == "urn:fleetmeter:precondition-failed"
    assert api.acme.get(address).json()["name"] == "First"
    for good in (first.headers["ETag"], f'"x", {first.headers["ETag"]}', "*"):
        assert api.acme.patch(address, json={}, headers={"If-Match": good}).status_code == 200
    for bad in ("x", "", f"W/{first.headers['ETag']}"):
        assert api.acme.patch(address, json={}, headers={"If-Match": bad}).status_code == 412
    assert api.acme.patch(address, json={"labels": {"a": "b"}}).json()["labels"] == {"a": "b"}
    assert api.acme.get(address).headers["ETag"] != first.headers["ETag"]


def test_what_bills_are_reckoned_by_is_fixed(api: "ApiUnderTest") -> None:
    address = "/v1/fleets/acme-north"
    zone = api.acme.get(address).json()["time_zone"]
    assert api.acme.patch(address, json={"time_zone": zone}).status_code == 200
    answer = api.acme.patch(address, json={"currency": "USD", "anchor_day": 9, "name": "X"})
    assert fields(answer, 409) == ["currency", "anchor_day"]
    assert api.acme.get(address).json()["name"] != "X"


def test_a_fleets_zone_changes_with_its_next_cycle(api: "ApiUnderTest") -> None:
    made(api.acme, "fleets", NORTH)
    address = "/v1/fleets/new-north"
    before = api.acme.get(address)
    assert (before.json()["time_zone"], before.json()["time_zone_from"]) == ("Europe/Berlin", None)
    cycle = api.acme.get(f"{address}/balance").json()["cycle"]
    stale = api.acme.patch(address, json={"time_zone": "Asia/Tokyo"}, headers={"If-Match": '"x"'})
    assert stale.status_code == 412
    changed = api.acme.patch(address, json={"time_zone": "Asia/Tokyo", "name": "East"})
    assert changed.status_code == 200
    told = api.acme.get(address).json()
    assert (told["time_zone"], told["time_zone_from"]) == ("Asia/Tokyo", cycle["end"])
    assert api.acme.get(f"{address}/balance").json()["cycle"] == cycle
    assert api.acme.get(address).headers["ETag"] != before.headers["ETag"]
    assert fields(api.acme.patch(address, json={"time_zone": "Mars/Olympus"}), 422) == ["time_zone"]
    back = api.acme.patch(address, json={"time_zone": "Europe/Berlin"}).json()
    assert (back["time_zone"], back["time_zone_from"]) == ("Europe/Berlin", None)
    assert api.rival.patch(address, json={"time_zone": "UTC"}).status_code == 404


def test_a_fleet_is_deleted_only_while_nothing_hangs_on_it(api: "ApiUnderTest") -> None:
    made(api.acme, "fleets", NORTH)
    stale = api.acme.delete("/v1/fleets/new-north", headers={"If-Match": '"x"'})
    assert stale.status_code == 412
    assert api.rival.delete("/v1/fleets/new-north").status_code == 404
    assert api.acme.delete("/v1/fleets/new-north").status_code == 204
    assert api.acme.get("/v1/fleets/new-north").status_code == 404
    made(api.acme, "fleets", NORTH, "k2")
    made(api.acme, "devices", {"fleet_id": "new-north", "device_id": "d"}, "k3")
    refused = api.acme.delete("/v1/fleets/new-north")
    assert refused.status_code == 409
    assert "device" in refused.json()["detail"]
    assert api.acme.get("/v1/devices/d").status_code == 200


def test_a_device_is_made_described_and_found_by_all_its_names(api: "ApiUnderTest") -> None:
    order = {
        "fleet_id": "acme-empty",
        "device_id": "new-1",
        "name": "Cellar",
        "imei": "490154203237518",
        "eid": "8" * 32,
        "msisdn": "491701234567",
        "iccid": ICCID,
        "imsi": "262010000000017",
        "tags": ["water", "pilot", "water"],
        "labels": {"site": "Hamburg = Altona"},
        "since": "2026-01-01T00:00:00Z",
    }
    shown = made(api.acme, "devices", order)
    known = {name: value for name, value in order.items() if name not in {"since", "tags"}}
    assert shown == shown | known | {"tags": ["pilot", "water"], "state": "active"}
    assert shown["state_since"] == "2026-01-01T00:00:00Z"
    assert make(api.acme, "devices", order).status_code == 200
    assert fields(make(api.acme, "devices", order, "k2"), 409) == ["iccid"]
    plain = {"fleet_id": "acme-empty", "device_id": "new-1"}
    assert fields(make(api.acme, "devices", plain, "k2"), 409) == ["device_id"]
    for name in ("iccid", "imsi", "imei", "eid", "msisdn"):
        assert _listed(api.acme, "devices", **{name: str(order[name])}) == ["new-1"], name
        assert _listed(api.rival, "devices", **{name: str(order[name])}) == [], name
    assert _listed(api.acme, "devices", iccid=ICCID[:-1]) == ["new-1"]
    assert _listed(api.acme, "devices", tag="water") == ["new-1"]
    assert _listed(api.rival, "devices", tag="water") == []
    assert _listed(api.acme, "devices", label="site=Hamburg = Altona") == ["new-1"]
    assert _listed(api.acme, "devices", search="cell") == ["new-1"]
    assert _listed(api.acme, "devices", fleet="acme-empty", state="active") == ["new-1"]
    assert _listed(api.acme, "devices", fleet="acme-empty", state="retired") == []
    on_plan = _listed(api.acme, "devices", plan="acme-basic")
    assert on_plan
    assert "new-1" not in on_plan
    address = "/v1/devices/new-1"
    seen = api.acme.get(address).headers["ETag"]
    patched = api.acme.patch(
        address, json={"name": None, "tags": ["gas"]}, headers={"If-Match": seen}
    )
    assert patched.json() == shown | {"name": None, "tags": ["gas"]}
    assert patched.headers["ETag"] == api.acme.get(address).headers["ETag"]
    assert api.acme.patch(address, json={}, headers={"If-Match": seen}).status_code == 412
    assert _listed(api.acme, "devices", tag="water") == []
    assert _listed(api.acme, "devices", tag="gas") == ["new-1"]
    assert api.rival.patch(address, json={"name": "x"}).status_code == 404


BAD_DEVICES: list[tuple[dict[str, object], str]] = [
    ({"device_id": "a+b"}, "device_id"),
    ({"device_id": "a/b"}, "device_id"),
    ({"device_id": "a#"}, "device_id"),
    ({"device_id": "a\n"}, "device_id"),
    ({"device_id": "a\x7f"}, "device_id"),
    ({"imei": "490154203237517"}, "imei"),
    ({"eid": "1"}, "eid"),
    ({"msisdn": "+49 170"}, "msisdn"),
    ({"iccid": "8949000000000000017"}, "iccid"),
    ({"imsi": "262010000000017"}, "imsi"),
    ({"tags": ["a b"]}, "tags.0"),
    ({"state": "suspended"}, "state"),
    ({"since": "yesterday"}, "since"),
    ({"labels": {"a": "\x00"}}, "labels.a"),
]


def test_a_bad_device_is_refused_by_the_field(api: "ApiUnderTest") -> None:
    for wrong, field in BAD_DEVICES:
        device = {"device_id": "new-1"} | wrong
        order = {"fleet_id": "acme-empty", **device}
        assert fields(make(api.acme, "devices", order), 422) == [field], wrong
        several = {"fleet_id": "acme-empty", "devices": [{"device_id": "fine"}, device]}
        answer = make(api.acme, "device-batches", several)
        assert fields(answer, 422) == [f"devices.1.{field}"], wrong
    assert api.acme.get("/v1/devices/fine").status_code == 404


def test_devices_are_made_all_or_none(api: "ApiUnderTest") -> None:
    new = [{"device_id": f"new-{number}", "tags": ["batch"]} for number in range(1, 4)]
    order = {"fleet_id": "acme-empty", "devices": new}
    known = {"fleet_id": "acme-empty", "devices": [*new, {"device_id": "acme-1"}]}
    assert fields(make(api.acme, "device-batches", known), 409) == ["devices.3.device_id"]
    twice = {"fleet_id": "acme-empty", "devices": [*new, new[0]]}
    assert fields(make(api.acme, "device-batches", twice), 409) == ["devices.3.device_id"]
    sims = [{"device_id": name, "iccid": ICCID} for name in ("a", "b")]
    order_sims = {"fleet_id": "acme-empty", "devices": sims}
    assert fields(make(api.acme, "device-batches", order_sims), 409) == ["devices.1.iccid"]
    assert _listed(api.acme, "devices", fleet="acme-empty") == []
    shown = made(api.acme, "device-batches", order)
    assert shown["device_ids"] == ["new-1", "new-2", "new-3"]
    assert make(api.acme, "device-batches", order).status_code == 200
    assert _listed(api.acme, "devices", tag="batch") == ["new-1", "new-2", "new-3"]
    too_many = {"fleet_id": "acme-empty", "devices": [{"device_id": f"d{n}"} for n in range(501)]}
    assert fields(make(api.acme, "device-batches", too_many, "k2"), 422) == ["devices"]


def test_an_entity_tag_is_refused_where_several_are_changed(api: "ApiUnderTest") -> None:
    patches = {"devices": [{"device_id": "acme-1", "name": "new"}]}
    refused = api.acme.patch("/v1/devices", json=patches, headers={"If-Match": '"x"'})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "If-Match"
    assert api.acme.get("/v1/devices/acme-1").json()["name"] != "new"


def test_devices_are_changed_all_or_none(api: "ApiUnderTest") -> None:
    patch = {"devices": [{"device_id": "acme-1", "name": "One"}, {"device_id": "no", "name": "x"}]}
    assert fields(api.acme.patch("/v1/devices", json=patch), 404) == ["devices.1.device_id"]
    assert api.acme.get("/v1/devices/acme-1").json()["name"] is None
    twice = {"devices": [{"device_id": "acme-1"}, {"device_id": "acme-1", "name": "x"}]}
    assert fields(api.acme.patch("/v1/devices", json=twice), 422) == ["devices.1.device_id"]
    patch["devices"][1]["device_id"] = "acme-2"
    done = api.acme.patch("/v1/devices", json=patch)
    assert done.json() == {"device_ids": ["acme-1", "acme-2"]}
    assert api.acme.get("/v1/devices/acme-1").json()["name"] == "One"
    assert api.rival.patch("/v1/devices", json=patch).status_code == 404


def test_states_are_listed_with_their_dates(api: "ApiUnderTest") -> None:
    made(
        api.acme,
        "state-changes",
        {"device_ids": ["acme-1"], "state": "suspended", "at": "2027-01-01T00:00:00Z"},
    )
    states = api.acme.get("/v1/devices/acme-1/state-changes").json()["items"]
    assert [each["state"] for each in states] == ["suspended", "active"]
    assert states[0]["effective_from"] == "2027-01-01T00:00:00Z"
    page = api.acme.get("/v1/devices/acme-1/state-changes", params={"limit": 1}).json()
    rest = {"cursor": page["next_cursor"]}
    assert api.acme.get("/v1/devices/acme-1/state-changes", params=rest).json()["items"] == [
        states[1]
    ]


def test_one_key_makes_one_fleet_however_often_it_comes_at_once(api: "ApiUnderTest") -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: make(api.acme, "fleets", NORTH), range(4)))
    assert sorted(each.status_code for each in answers) == [200, 200, 200, 201]


def test_a_manager_of_some_fleets_makes_devices_there_alone(api: "ApiUnderTest") -> None:
    async def key() -> str:
        async with await connect(api.database_url, application="test") as connection:
            tenant = await tenant_no(connection, "acme")
            found = await connection.execute(
                "SELECT fleet_no FROM fleet WHERE fleet_id = 'acme-empty'"
            )
            row = await found.fetchone()
            assert row is not None
            return await create_api_key(
                connection,
                tenant=tenant,
                label="manager",
                now=NOW,
                role=Role.FLEET_MANAGER,
                fleets=[row[0]],
            )

    headers = {"Authorization": f"Bearer {asyncio.run(key())}"}
    with httpx.Client(base_url=api.url, headers=headers) as manager:
        made(manager, "devices", {"fleet_id": "acme-empty", "device_id": "mine"})
        there = {"fleet_id": "acme-north", "device_id": "theirs"}
        assert make(manager, "devices", there, "k2").status_code == 404
        one = {"device_id": "theirs"}
        batch = {"fleet_id": "acme-north", "devices": [one]}
        assert make(manager, "device-batches", batch, "k3").status_code == 404
        both = {"devices": [{"device_id": "mine"}, {"device_id": "acme-1", "name": "x"}]}
        assert manager.patch("/v1/devices", json=both).status_code == 404
        assert make(manager, "fleets", NORTH, "k4").status_code == 403
