"""Tenants, users, keys and plans over the API, and edits of what two people may edit."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from metering.access import Role
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from tests.integration.conftest import NOW
from tests.integration.test_api_registry import fields, made, make

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

PLAN = {
    "plan": "new-plan",
    "currency": "EUR",
    "monthly_fee": "5.00",
    "meters": {"sms": {"price": {"amount": "0.07"}}},
}


@pytest.fixture
def operator(api: "ApiUnderTest") -> Iterator[httpx.Client]:
    """Yield a platform operator's client."""

    async def key() -> str:
        async with await connect(api.database_url, application="test") as connection:
            return await create_api_key(
                connection, tenant=None, label="op", now=NOW, role=Role.PLATFORM_OPERATOR
            )

    headers = {"Authorization": f"Bearer {asyncio.run(key())}"}
    with httpx.Client(base_url=api.url, headers=headers) as client:
        yield client


def _status(api: "ApiUnderTest", key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return api.nobody.get("/v1/fleets", headers=headers).status_code


def test_a_tenant_from_its_making_to_its_first_usage_needs_no_database(
    api: "ApiUnderTest", operator: httpx.Client
) -> None:
    new = {"tenant_id": "third", "name": "Third"}
    assert operator.post("/v1/tenants", json=new).json()["state"] == "active"
    of_third = {"Fleetmeter-Tenant": "third", "Idempotency-Key": "k"}
    order = {"label": "first", "role": "tenant_admin"}
    key = operator.post("/v1/api-keys", json=order, headers=of_third).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=api.url, headers=headers) as admin:
        fleet = {"fleet_id": "f", "name": "F", "currency": "EUR", "time_zone": "UTC"}
        made(admin, "fleets", fleet, "1")
        made(admin, "devices", {"fleet_id": "f", "device_id": "d", "iccid": "8949" + "0" * 14}, "2")
        assert admin.post("/v1/plans", json={"terms": PLAN}).status_code == 201
        made(admin, "subscriptions", {"device_ids": ["d"], "plan_id": "new-plan"}, "3")
        (running,) = admin.get("/v1/subscriptions", params={"plan": "new-plan"}).json()["items"]
        assert (running["device_id"], running["fleet_id"]) == ("d", "f")
        number = running["subscription_no"]
        assert admin.get(f"/v1/subscriptions/{number}").json() == running
        assert api.acme.get(f"/v1/subscriptions/{number}").status_code == 404
        overlap = {"device_ids": ["d"], "plan_id": "other", "at": "2026-05-01T00:00:00Z"}
        other = {"terms": PLAN | {"plan": "other"}}
        assert admin.post("/v1/plans", json=other).status_code == 201
        assert fields(make(admin, "subscriptions", overlap, "4"), 422) == ["device_ids"]
        operator.patch("/v1/tenants/third", json={"state": "suspended"})
        assert admin.get("/v1/fleets").status_code == 401
    # The operator still sees it, and lets it in again.
    named = {"Fleetmeter-Tenant": "third"}
    assert operator.get("/v1/devices/d", headers=named).status_code == 200
    seen = operator.get("/v1/tenants/third")
    assert seen.json()["state"] == "suspended"
    match = {"If-Match": seen.headers["ETag"]}
    resumed = operator.patch("/v1/tenants/third", json={"state": "active"}, headers=match)
    assert resumed.json()["state"] == "active"
    again = operator.patch("/v1/tenants/third", json={"name": "X"}, headers=match)
    assert again.status_code == 412
    assert _status(api, key) == 200
    assert operator.get("/v1/tenants/fourth").status_code == 404


def test_a_key_is_made_once_and_changed_for_another(api: "ApiUnderTest") -> None:
    order = {"label": "x", "role": "fleet_manager", "fleet_ids": ["acme-empty"]}
    first = made(api.acme, "api-keys", order)
    again = make(api.acme, "api-keys", order)
    assert again.status_code == 200
    assert again.json() == first | {"key": None, "last_used_at": again.json()["last_used_at"]}
    number = first["api_key_no"]
    assert api.acme.get(f"/v1/api-keys/{number}").json()["label"] == "x"
    assert api.rival.get(f"/v1/api-keys/{number}").status_code == 404
    assert make(api.rival, f"api-keys/{number}/rotation", {}, "r").status_code == 404
    second = made(api.acme, f"api-keys/{number}/rotation", {"overlap_seconds": 60}, "k2")
    assert second["fleet_ids"] == ["acme-empty"]
    assert (_status(api, first["key"]), _status(api, second["key"])) == (200, 200)
    shown = api.acme.get(f"/v1/api-keys/{number}").json()
    assert shown["expires_at"] == "2026-04-15T12:01:00Z"
    third = made(api.acme, f"api-keys/{second['api_key_no']}/rotation", {}, "k3")
    assert (_status(api, second["key"]), _status(api, third["key"])) == (401, 200)
    assert api.acme.get(f"/v1/api-keys/{second['api_key_no']}").json()["revoked_at"]
    gone = make(api.acme, f"api-keys/{second['api_key_no']}/rotation", {}, "k4")
    assert fields(gone, 409) == ["api_key_no"]
    repeated = make(api.acme, f"api-keys/{second['api_key_no']}/rotation", {}, "k3")
    assert (repeated.status_code, repeated.json()["key"]) == (200, None)


def test_a_user_is_edited_disabled_and_let_in_again(api: "ApiUnderTest") -> None:
    order = {"issuer": "https://i", "subject": "s", "name": "Ada", "role": "billing"}
    user = made(api.acme, "users", order)
    assert make(api.acme, "users", order).status_code == 200
    assert fields(make(api.acme, "users", order, "k2"), 422) == ["subject"]
    address = f"/v1/users/{user['user_no']}"
    seen = api.acme.get(address).headers["ETag"]
    limited = {"role": "fleet_manager", "fleet_ids": ["acme-empty"]}
    changed = api.acme.patch(address, json=limited, headers={"If-Match": seen})
    assert changed.json() == user | limited
    assert api.acme.patch(address, json={}, headers={"If-Match": seen}).status_code == 412
    unfit = api.acme.patch(address, json={"role": "tenant_admin"})
    assert fields(unfit, 422) == ["fleet_ids"]
    freed = api.acme.patch(address, json={"role": "tenant_admin", "fleet_ids": None})
    assert freed.json()["fleet_ids"] is None
    assert api.acme.delete(address, headers={"If-Match": seen}).status_code == 412
    assert api.acme.delete(address).status_code == 204
    assert api.acme.get(address).json()["disabled_at"] == "2026-04-15T12:00:00Z"
    assert api.acme.post(f"{address}/enabling").json()["disabled_at"] is None
    for answer in (
        api.rival.get(address),
        api.rival.patch(address, json={}),
        api.rival.delete(address),
        api.rival.post(f"{address}/enabling"),
    ):
        assert answer.status_code == 404


def test_a_plan_is_checked_by_the_parser_of_files(api: "ApiUnderTest") -> None:
    checked = api.acme.post("/v1/plan-checks", json={"terms": PLAN})
    assert checked.json() == {"is_fine": True, "errors": []}
    assert api.acme.get("/v1/plans/new-plan").status_code == 404
    wrong: dict[str, Any] = {
        **PLAN,
        "currency": "XYZ",
        "meters": {"sms": {"price": {"amount": "-0.07"}}},
    }
    told = api.acme.post("/v1/plan-checks", json={"terms": wrong}).json()
    assert not told["is_fine"]
    assert all(each["fix"] for each in told["errors"])
    named = [each["field"] for each in told["errors"]]
    assert "terms.meters.sms.price.amount" in named
    refused = api.acme.post("/v1/plans", json={"terms": wrong})
    assert fields(refused, 422) == named
    unknown = {"terms": PLAN | {"meters": {"steam": {"price": {"amount": "1"}}}}}
    assert fields(api.acme.post("/v1/plans", json=unknown), 422) == ["terms.meters.steam"]
    # A number is read exactly, as in a file, not by way of a float.
    exact = '{"terms": {"plan": "exact", "currency": "EUR", "meters": {"sms": {"price": {"amount": 0.07}}}}}'
    headers = {"Content-Type": "application/json"}
    answer = api.acme.post("/v1/plans", content=exact, headers=headers)
    assert answer.json()["versions"][0]["terms"]["meters"]["sms"]["price"]["amount"] == "0.07"


def test_a_plan_is_made_once_versioned_and_ended(api: "ApiUnderTest") -> None:
    shown = api.acme.post("/v1/plans", json={"terms": PLAN})
    assert shown.status_code == 201
    assert api.acme.post("/v1/plans", json={"terms": PLAN}).status_code == 200
    dearer = {"terms": PLAN | {"monthly_fee": "6.00"}, "effective_from": "2026-06-01T00:00:00Z"}
    assert fields(api.acme.post("/v1/plans", json=dearer), 409) == ["terms.plan"]
    address = "/v1/plans/new-plan"
    second = api.acme.post(f"{address}/versions", json=dearer)
    assert second.status_code == 201
    assert [each["version"] for each in second.json()["versions"]] == [2, 1]
    assert api.acme.post(f"{address}/versions", json=dearer).status_code == 200
    other = {"terms": PLAN | {"plan": "x"}}
    assert fields(api.acme.post(f"{address}/versions", json=other), 422) == ["terms.plan"]
    assert api.rival.post(f"{address}/versions", json=dearer).status_code == 404
    version = api.acme.get(f"{address}/versions/2").json()
    assert version["terms"]["monthly_fee"] == "6.00"
    assert api.acme.get(f"{address}/versions/3").status_code == 404
    # Where none is named, the version that is in effect is taken.
    new = {"fleet_id": "acme-north", "devices": [{"device_id": f"n{n}"} for n in range(3)]}
    made(api.acme, "device-batches", new)
    early = {"device_ids": ["n0"], "plan_id": "new-plan"}
    late = {"device_ids": ["n1"], "plan_id": "new-plan", "at": "2026-07-01T00:00:00Z"}
    made(api.acme, "subscriptions", early, "s0")
    made(api.acme, "subscriptions", late, "s1")
    rows = api.acme.get("/v1/subscriptions", params={"plan": "new-plan"}).json()["items"]
    assert [(row["device_id"], row["plan_version"]) for row in rows] == [("n0", 1), ("n1", 2)]
    of_now = {"plan": "new-plan", "at": "2026-05-01T00:00:00Z", "fleet": "acme-north"}
    (row,) = api.acme.get("/v1/subscriptions", params=of_now).json()["items"]
    assert row["device_id"] == "n0"
    page = api.acme.get("/v1/subscriptions", params={"plan": "new-plan", "limit": 1}).json()
    rest = {"plan": "new-plan", "cursor": page["next_cursor"]}
    assert api.acme.get("/v1/subscriptions", params=rest).json()["items"] == [rows[1]]
    _end_it(api.acme, address)


def _end_it(client: httpx.Client, address: str) -> None:
    """Nobody is subscribed to a plan once it has ended."""
    seen = {"If-Match": client.get(address).headers["ETag"]}
    end = {"ends_at": "2026-08-01T00:00:00Z"}
    ended = client.put(f"{address}/end", json=end, headers=seen)
    assert ended.json()["ends_at"] == "2026-08-01T00:00:00Z"
    assert client.put(f"{address}/end", json=end, headers=seen).status_code == 412
    too_late = {"device_ids": ["n2"], "plan_id": "new-plan", "at": "2026-08-01T00:00:00Z"}
    assert fields(make(client, "subscriptions", too_late, "s2"), 422) == ["plan_id"]
    assert fields(make(client, "plan-changes", too_late, "s3"), 422) == ["plan_id"]
    (listed,) = [
        each for each in client.get("/v1/plans").json()["items"] if each["plan_id"] == "new-plan"
    ]
    assert (listed["newest_version"], listed["ends_at"]) == (2, "2026-08-01T00:00:00Z")
    assert client.put(f"{address}/end", json={"ends_at": None}).json()["ends_at"] is None
    made(client, "subscriptions", too_late, "s4")


def test_settings_are_edited_as_they_were_seen(api: "ApiUnderTest") -> None:
    """Each GET tells its state's tag; a PUT or PATCH with an old one changes nothing."""
    threshold = api.acme.get("/v1/thresholds").json()["items"][0]["threshold_no"]
    wallet = {"low_balance": "5.00", "top_up": None}
    policy = {"reminder_days": [3], "suspend_days": 30}
    for address, method, first, second in (
        (f"/v1/thresholds/{threshold}", "PATCH", {"enabled": False}, {"enabled": True}),
        ("/v1/fleets/acme-north/wallet", "PUT", wallet, wallet | {"low_balance": "6.00"}),
        ("/v1/payment-policy", "PUT", policy, policy | {"suspend_days": 31}),
        ("/v1/billing/tax-rules", "PUT", {"rules": []}, {"rules": []}),
    ):
        seen = api.acme.get(address)
        match = {"If-Match": seen.headers["ETag"]}
        done = api.acme.request(method, address, json=first, headers=match)
        assert done.status_code == 200, done.text
        now = api.acme.get(address)
        assert now.headers["ETag"] == done.headers["ETag"], address
        if now.json() == seen.json():
            continue
        assert now.headers["ETag"] != seen.headers["ETag"], address
        late = api.acme.request(method, address, json=second, headers=match)
        assert late.status_code == 412, address
        assert api.acme.get(address).json() == now.json(), address
    billing = api.acme.get("/v1/billing")
    wrong = {"If-Match": '"x"'}
    for address in ("/v1/billing", "/v1/fleets/acme-north/billing"):
        known = api.acme.get(address)
        assert api.acme.put(address, json=known.json(), headers=wrong).status_code == 412
        match = {"If-Match": known.headers["ETag"]}
        assert api.acme.put(address, json=known.json(), headers=match).status_code == 200
    # Of what nobody said yet, there is no state to have seen.
    assert api.acme.get("/v1/fleets/acme-empty/billing").status_code == 404
    nothing = api.acme.put(
        "/v1/fleets/acme-empty/billing",
        json=api.acme.get("/v1/fleets/acme-north/billing").json(),
        headers={"If-Match": "*"},
    )
    assert nothing.status_code == 412
    assert billing.status_code == 200
    gone = api.acme.delete(f"/v1/thresholds/{threshold}", headers=wrong)
    assert gone.status_code == 412
    assert api.acme.delete(f"/v1/thresholds/{threshold}").status_code == 204


def test_of_those_who_edit_one_state_at_once_one_is_done(api: "ApiUnderTest") -> None:
    threshold = api.acme.get("/v1/thresholds").json()["items"][0]["threshold_no"]
    for address, method, order in (
        ("/v1/fleets/acme-north", "PATCH", lambda n: {"name": f"{n}"}),
        ("/v1/devices/acme-1", "PATCH", lambda n: {"name": f"{n}"}),
        ("/v1/payment-policy", "PUT", lambda n: {"suspend_days": n}),
        (f"/v1/thresholds/{threshold}", "PATCH", lambda n: {"limit": f"{n}.5"}),
    ):
        seen = {"If-Match": api.acme.get(address).headers["ETag"]}

        def edit(
            number: int,
            method: str = method,
            address: str = address,
            order: Callable[[int], object] = order,
            seen: dict[str, str] = seen,
        ) -> int:
            body = order(number)
            return api.acme.request(method, address, json=body, headers=seen).status_code

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = sorted(pool.map(edit, range(31, 35)))
        assert answers == [200, 412, 412, 412], address


def test_a_pool_is_shown_with_who_brought_what(api: "ApiUnderTest") -> None:
    (before,) = api.acme.get("/v1/pools", params={"fleet": "acme-north"}).json()["items"]
    assert (before["meter"], before["granted"], before["members"]) == ("data", 300_000_000, 0)
    new = [{"device_id": name} for name in ("n1", "n2")]
    made(api.acme, "device-batches", {"fleet_id": "acme-north", "devices": new})
    joining = {"device_ids": ["n1", "n2"], "plan_id": "acme-basic"}
    made(api.acme, "subscriptions", joining, "s")
    address = f"/v1/pools/{before['bucket_no']}"
    pool = api.acme.get(address).json()
    members = api.acme.get(f"{address}/members").json()["items"]
    assert sorted(each["device_id"] for each in members) == ["n1", "n2"]
    brought = sum(each["contributed_quantity"] for each in members)
    assert 0 < brought == pool["granted"] - before["granted"]
    assert (pool["members"], pool["left"]) == (2, pool["granted"] - pool["used"])
    page = api.acme.get(f"{address}/members", params={"limit": 1}).json()
    rest = api.acme.get(f"{address}/members", params={"cursor": page["next_cursor"]}).json()
    assert [*page["items"], *rest["items"]] == members
    assert rest["next_cursor"] is None
    assert fields(api.acme.get("/v1/pools", params={"at": before["expires_at"]}), 422) == ["at"]
    sms = api.acme.get("/v1/pools", params={"meter": "sms"}).json()
    assert sms["items"] == []
    assert fields(api.acme.get("/v1/pools", params={"meter": "x"}), 422) == ["meter"]
    for path in (address, f"{address}/members"):
        assert api.rival.get(path).status_code == 404
