"""The API over a real database: what it shows, to whom, and how it refuses."""

import asyncio
import base64
import contextlib
import importlib
import os
import pkgutil
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import jsonschema
import psycopg
import pytest
from pydantic import BaseModel

import api as api_package
from api.app import create_app
from api.auth import _snapshot
from metering.settings import Settings
from metering.store.connection import Connection
from tests.api_document import api_document
from tests.integration.api_scene import operating
from tests.integration.conftest import NOW

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

_ACME = {
    "fleet_id": "acme-north",
    "device_id": "acme-1",
    "plan_id": "acme-basic",
    "bucket_no": "1",
    "request_id": "acme-asked",
    "endpoint_id": "0a1b2c3d-4e5f-4061-8273-8495a6b7c8d9",
    "event_id": "2f1e0d9c-8b7a-4695-8473-625140312f1e",
    "threshold_no": "1",
    "correction_no": "1",
    "bill_no": "1",
    "line_no": "1",
    "dispute_no": "1",
    "payment_no": "1",
    "charge_id": "3-4-0",
    "reading_id": "3-4",
    "message_id": f"{int((NOW - timedelta(minutes=1)).timestamp()) * 10**6}-1-0",
    "rejected_no": "1",
    "entry_no": "1",
    "api_key_no": "1",
    "user_no": "1",
    "subscription_no": "1",
    "version": "1",
    "tenant_id": "acme",
    "job_no": "1",
    "alert_no": "1",
    "adjustment_no": "1",
    "carrier_record_id": f"1-2-{int(NOW.timestamp()) * 10**6}",
    "command_id": "8d7c2f4e-6a1b-4c3d-9e5f-0a1b2c3d4e5f",
    "operation_no": "1",
    "parked_reading_id": "3-3",
    "record_id": "3-4-0",
}


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check that a response is a problem document and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["type"].startswith("urn:fleetmeter:")
    assert document["title"]
    assert document["detail"]
    return document


def body(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def operations(method: str) -> dict[str, dict[str, Any]]:
    """Return the operation of each path that has one of this method."""
    paths = api_document()["paths"]
    return {path: methods[method] for path, methods in paths.items() if method in methods}


OPERATIONS = operations("get")
CHANGES = operations("post")
MODELS: dict[str, Any] = {
    name: value
    for module in pkgutil.iter_modules(api_package.__path__)
    if module.name.endswith("schemas")
    for name, value in vars(importlib.import_module(f"api.{module.name}")).items()
}
KEYED = [path for path in OPERATIONS if path.startswith("/v1/") or path == "/metrics"]


def test_every_route_of_the_plan_is_there() -> None:
    assert sorted(OPERATIONS) == [
        "/health",
        "/metrics",
        "/ready",
        "/v1/alerts",
        "/v1/alerts/{alert_no}",
        "/v1/anomalies",
        "/v1/api-keys",
        "/v1/api-keys/{api_key_no}",
        "/v1/audit-log",
        "/v1/audit-log/{entry_no}",
        "/v1/audit-log/{entry_no}/changes",
        "/v1/balance-operations",
        "/v1/balance-operations/{operation_no}",
        "/v1/bill-adjustments",
        "/v1/bill-adjustments/{adjustment_no}",
        "/v1/billing",
        "/v1/billing/tax-rules",
        "/v1/bills",
        "/v1/bills/{bill_no}",
        "/v1/bills/{bill_no}/document",
        "/v1/bills/{bill_no}/lines",
        "/v1/bills/{bill_no}/lines/{line_no}",
        "/v1/bills/{bill_no}/lines/{line_no}/charges",
        "/v1/bills/{bill_no}/lines/{line_no}/devices",
        "/v1/bills/{bill_no}/lines/{line_no}/fees",
        "/v1/buckets",
        "/v1/buckets/{bucket_no}",
        "/v1/buckets/{bucket_no}/entries",
        "/v1/carrier-records",
        "/v1/carrier-records/{carrier_record_id}",
        "/v1/charges",
        "/v1/charges/{charge_id}",
        "/v1/commands",
        "/v1/commands/{command_id}",
        "/v1/corrections",
        "/v1/corrections/{correction_no}",
        "/v1/corrections/{correction_no}/differences",
        "/v1/devices",
        "/v1/devices/{device_id}",
        "/v1/devices/{device_id}/balance",
        "/v1/devices/{device_id}/credential",
        "/v1/devices/{device_id}/planned-changes",
        "/v1/devices/{device_id}/readings",
        "/v1/devices/{device_id}/reservations",
        "/v1/devices/{device_id}/reservations/{request_id}",
        "/v1/devices/{device_id}/sims",
        "/v1/devices/{device_id}/state-changes",
        "/v1/devices/{device_id}/usage",
        "/v1/disputes",
        "/v1/disputes/{dispute_no}",
        "/v1/events",
        "/v1/events/{event_id}",
        "/v1/fleets",
        "/v1/fleets/{fleet_id}",
        "/v1/fleets/{fleet_id}/account",
        "/v1/fleets/{fleet_id}/account/entries",
        "/v1/fleets/{fleet_id}/assurance",
        "/v1/fleets/{fleet_id}/balance",
        "/v1/fleets/{fleet_id}/bill",
        "/v1/fleets/{fleet_id}/bill-preview",
        "/v1/fleets/{fleet_id}/bill/charges",
        "/v1/fleets/{fleet_id}/bill/devices",
        "/v1/fleets/{fleet_id}/bill/fees",
        "/v1/fleets/{fleet_id}/billing",
        "/v1/fleets/{fleet_id}/carrier-comparison",
        "/v1/fleets/{fleet_id}/payment-requests",
        "/v1/fleets/{fleet_id}/quota",
        "/v1/fleets/{fleet_id}/refunds",
        "/v1/fleets/{fleet_id}/stream",
        "/v1/fleets/{fleet_id}/usage",
        "/v1/fleets/{fleet_id}/wallet",
        "/v1/jobs",
        "/v1/jobs/{job_no}",
        "/v1/jobs/{job_no}/result",
        "/v1/me",
        "/v1/messages/{message_id}",
        "/v1/parked",
        "/v1/parked/{parked_reading_id}",
        "/v1/payload-mapping",
        "/v1/payment-policy",
        "/v1/payments",
        "/v1/payments/{payment_no}",
        "/v1/plans",
        "/v1/plans/{plan_id}",
        "/v1/plans/{plan_id}/versions/{version}",
        "/v1/pools",
        "/v1/pools/{bucket_no}",
        "/v1/pools/{bucket_no}/members",
        "/v1/readings/{reading_id}/message",
        "/v1/rejected",
        "/v1/rejected/{rejected_no}",
        "/v1/rejected/{rejected_no}/message",
        "/v1/reservations",
        "/v1/subscriptions",
        "/v1/subscriptions/{subscription_no}",
        "/v1/tenants",
        "/v1/tenants/{tenant_id}",
        "/v1/thresholds",
        "/v1/thresholds/{threshold_no}",
        "/v1/thresholds/{threshold_no}/standing",
        "/v1/top-consumers",
        "/v1/usage",
        "/v1/usage-records",
        "/v1/usage-records/{record_id}",
        "/v1/users",
        "/v1/users/{user_no}",
        "/v1/webhook-endpoints",
        "/v1/webhook-endpoints/{endpoint_id}",
        "/v1/webhook-endpoints/{endpoint_id}/deliveries",
        "/v1/webhook-endpoints/{endpoint_id}/deliveries/{event_id}/attempts",
    ]
    assert sorted(CHANGES) == [
        "/v1/api-keys",
        "/v1/api-keys/{api_key_no}/rotation",
        "/v1/bills/{bill_no}/adjustments",
        "/v1/bills/{bill_no}/disputes",
        "/v1/bills/{bill_no}/finalisation",
        "/v1/bills/{bill_no}/notes",
        "/v1/bills/{bill_no}/rebilling",
        "/v1/bills/{bill_no}/settlement",
        "/v1/bills/{bill_no}/void",
        "/v1/buckets/{bucket_no}/adjustments",
        "/v1/buckets/{bucket_no}/transfers",
        "/v1/carrier-records",
        "/v1/charge-exports",
        "/v1/device-batches",
        "/v1/device-imports",
        "/v1/devices",
        "/v1/devices/{device_id}/commands",
        "/v1/devices/{device_id}/credential",
        "/v1/devices/{device_id}/credential/rotation",
        "/v1/devices/{device_id}/reservations",
        "/v1/devices/{device_id}/reservations/{request_id}/release",
        "/v1/devices/{device_id}/reservations/{request_id}/settlement",
        "/v1/devices/{device_id}/sim",
        "/v1/devices/{device_id}/thresholds",
        "/v1/devices/{device_id}/top-ups",
        "/v1/disputes/{dispute_no}/resolution",
        "/v1/fleet-moves",
        "/v1/fleets",
        "/v1/fleets/{fleet_id}/allocations",
        "/v1/fleets/{fleet_id}/bill-adjustments",
        "/v1/fleets/{fleet_id}/payment-requests",
        "/v1/fleets/{fleet_id}/payments",
        "/v1/fleets/{fleet_id}/refunds",
        "/v1/fleets/{fleet_id}/thresholds",
        "/v1/fleets/{fleet_id}/top-ups",
        "/v1/jobs/{job_no}/cancellation",
        "/v1/parked-charges",
        "/v1/payment-provider/events",
        "/v1/payments/{payment_no}/reversal",
        "/v1/plan-changes",
        "/v1/plan-checks",
        "/v1/plans",
        "/v1/plans/{plan_id}/versions",
        "/v1/rerating-jobs",
        "/v1/reratings",
        "/v1/reratings/preview",
        "/v1/state-changes",
        "/v1/subscription-ends",
        "/v1/subscriptions",
        "/v1/tenants",
        "/v1/users",
        "/v1/users/{user_no}/enabling",
        "/v1/webhook-endpoints",
        "/v1/webhook-endpoints/{endpoint_id}/deliveries/{event_id}/replay",
        "/v1/webhook-endpoints/{endpoint_id}/enabling",
        "/v1/webhook-endpoints/{endpoint_id}/replays",
        "/v1/webhook-endpoints/{endpoint_id}/secret",
        "/v1/webhook-endpoints/{endpoint_id}/test",
    ]


def test_no_route_answers_without_a_good_key(api: "ApiUnderTest") -> None:
    api.execute(_revoke_acme)
    for path in KEYED:
        address = path.format(**_ACME)
        for headers in (
            {},
            {"Authorization": "Bearer fmk_wrong"},
            {"Authorization": f"Basic {api.acme_key}"},
            {"Authorization": f"Bearer {api.acme_key}"},
        ):
            response = api.nobody.get(address, headers=headers)
            problem(response, 401)
            assert response.headers["www-authenticate"].startswith("Bearer ")
    for path in CHANGES:
        address = path.format(**_ACME)
        for headers in ({}, {"Authorization": f"Bearer {api.acme_key}"}):
            keyed = headers | {"Idempotency-Key": "k"}
            problem(api.nobody.post(address, headers=keyed, json={}), 401)


async def _revoke_acme(connection: Connection) -> None:
    await connection.execute(
        "UPDATE api_key SET revoked_at = now() FROM tenant"
        " WHERE tenant.tenant_no = api_key.tenant_no AND tenant.tenant_id = 'acme'"
    )


_TELL_NO_NAME = {"/v1/payment-policy", "/v1/payload-mapping", "/v1/api-keys"}
"""What tells of a tenant nothing that has its name in it."""
EMPTY = {
    "/v1/carrier-records",
    "/v1/top-consumers",
    "/v1/usage",
    "/v1/bills/{bill_no}/lines/{line_no}/charges",
    "/v1/bills/{bill_no}/lines/{line_no}/fees",
}
"""Lists that hold nothing here, of either tenant."""


def test_another_tenants_key_never_shows_the_data(api: "ApiUnderTest") -> None:
    for client, name in ((api.acme, "acme"), (api.rival, "rival")):
        user = {"issuer": "https://i", "subject": name, "name": name, "role": "billing"}
        keyed = {"Idempotency-Key": "user"}
        assert client.post("/v1/users", json=user, headers=keyed).status_code == 201
        bought = {"meter": "sms", "quantity": 1}
        top_up = f"/v1/devices/{name}-1/top-ups"
        assert client.post(top_up, json=bought, headers=keyed).status_code == 201
    for path in KEYED:
        if path.startswith(("/v1/tenants", "/metrics")):
            continue  # for platform operators
        if path.endswith("/stream"):
            continue  # it has no end; see test_streams.py
        address = path.format(**_ACME)
        own = api.acme.get(address)
        assert own.status_code == 200, own.text
        foreign = api.rival.get(address)
        if "{" in path:
            problem(foreign, 404)
        else:
            assert foreign.status_code == 200
            assert "acme" not in foreign.text
            assert path in {*_TELL_NO_NAME, *EMPTY} or "rival" in foreign.text
        for parameter in OPERATIONS[path].get("parameters", []):
            name = parameter["name"]
            if parameter["in"] == "query" and name in {"fleet", "device"}:
                value = _ACME[f"{name}_id"]
                shown = body(api.acme.get(address, params={name: value}))
                assert shown.get("items", "{" in path) or path in EMPTY
                problem(api.rival.get(address, params={name: value}), 404)


def test_a_cursor_of_another_tenant_shows_only_ones_own(api: "ApiUnderTest") -> None:
    for address in (
        "/v1/fleets", "/v1/devices", "/v1/rejected", "/v1/parked", "/v1/anomalies",
        "/v1/commands", "/v1/events",
    ):  # fmt: skip
        cursor = body(api.acme.get(address, params={"limit": 1}))["next_cursor"]
        foreign = api.rival.get(address, params={"cursor": cursor})
        assert foreign.status_code == 200
        assert "acme" not in foreign.text


def test_fleets_and_a_fleet(api: "ApiUnderTest") -> None:
    fleets = body(api.acme.get("/v1/fleets"))
    assert [fleet["fleet_id"] for fleet in fleets["items"]] == ["acme-empty", "acme-north"]
    assert fleets["next_cursor"] is None
    fleet = body(api.acme.get("/v1/fleets/acme-north"))
    assert fleet.items() > fleets["items"][1].items()
    assert (fleet["currency"], fleet["devices"]) == ("EUR", 3)
    assert fleet["created_at"] == "2026-01-01T00:00:00Z"


def test_a_fleets_balance(api: "ApiUnderTest") -> None:
    balance = body(api.acme.get("/v1/fleets/acme-north/balance"))
    assert balance["cycle"] == {
        "start": "2026-03-31T22:00:00Z",
        "end": "2026-04-30T22:00:00Z",
        "first_day": "2026-04-01",
        "end_day": "2026-05-01",
    }
    held = {"granted": 300_000_000, "used": 300_000_000, "left": 0, "reserved": 0}
    span = {"begins_at": "2026-03-31T22:00:00Z", "expires_at": "2026-04-30T22:00:00Z"}
    assert balance["pools"] == [
        {
            "meter": "data",
            "unit": "octet",
            "name": "pool",
            "source": "plan",
            "plan_id": None,
            "plan_version": None,
            "pool": held,
            "lots": [held | span | {"bucket_no": 1}],
        }
    ]
    assert body(api.acme.get("/v1/fleets/acme-empty/balance"))["pools"] == []


def test_a_fleets_bill(api: "ApiUnderTest") -> None:
    # Fee 2 x 5 + 5 x 20/30 = 13.333… -> 13.33; data 1 234 567 x 0.10 / 1 000 000 = 0.1234567 -> 0.12;
    # five SMS at 0.07 = 0.35. Total 13.33 + 0.12 + 0.35 = 13.80.
    bill = body(api.acme.get("/v1/fleets/acme-north/bill"))
    assert bill["total"] == "13.80"
    assert bill["currency"] == "EUR"
    assert bill["exact_total"] == "13.806790033333333333333333333333"
    data, sms, fee = bill["lines"]
    assert (fee["kind"], fee["name"], fee["devices"]) == ("fee", "monthly_fee", 3)
    assert fee["shares"] == "2.666666666666666666666666666667"
    assert (fee["term_start"], fee["term_end"]) == (bill["cycle"]["start"], bill["cycle"]["end"])
    assert (fee["due_at"], fee["amount"]) == (bill["cycle"]["end"], "13.33")
    assert fee["exact_amount"] == "13.333333333333333333333333333333"
    assert (data["kind"], data["meter"], data["variant"]) == ("usage", "data", None)
    assert (data["devices"], data["records"], data["quantity"]) == (2, 18, 301_234_567)
    assert data["billed_quantity"] == data["quantity"]
    assert (data["from_pool_quantity"], data["overage_quantity"]) == (300_000_000, 1_234_567)
    assert (data["unit_price"], data["unit_price_per"]) == ("0.10", 1_000_000)
    assert (data["amount"], data["exact_amount"]) == ("0.12", "0.1234567")
    assert (sms["in_allowance_quantity"], sms["overage_quantity"]) == (14, 5)
    assert (sms["amount"], sms["exact_amount"]) == ("0.35", "0.35")


def test_an_empty_bill_and_one_of_another_cycle(api: "ApiUnderTest") -> None:
    empty = body(api.acme.get("/v1/fleets/acme-empty/bill"))
    assert (empty["lines"], empty["total"], empty["currency"]) == ([], "0", "JPY")
    march = body(
        api.acme.get("/v1/fleets/acme-north/bill", params={"at": "2026-03-31T23:59:59+02:00"})
    )
    # In March nothing was used; two devices owe their fees.
    (fee,) = march["lines"]
    assert (fee["kind"], fee["devices"], march["total"]) == ("fee", 2, "10.00")
    assert march["cycle"]["first_day"] == "2026-03-01"
    april = {"at": "2026-04-01T00:00:00+02:00"}
    assert body(api.acme.get("/v1/fleets/acme-north/bill", params=april))["total"] == "13.80"


def test_a_bill_that_would_mix_currencies_is_refused(api: "ApiUnderTest") -> None:
    async def change(connection: Connection) -> None:
        await connection.execute("UPDATE fleet SET currency = 'USD' WHERE fleet_id = 'acme-north'")

    api.execute(change)
    refused = problem(api.acme.get("/v1/fleets/acme-north/bill"), 409)
    assert "plan 'acme-basic' is in EUR, its fleet's bill in USD" in refused["detail"]


def test_a_device_with_its_gaps(api: "ApiUnderTest") -> None:
    device = body(api.acme.get("/v1/devices/acme-1"))
    assert device["state"] == "active"
    assert device["subscription"]["plan_id"] == "acme-basic"
    assert device["last_boot"] == {
        "boot_id": "acme-1-last",
        "first_seen_at": "2026-04-15T11:00:00Z",
        "up_to_seq": 10,
        "highest_seq": 20,
        "missing_readings": 2,
        "gaps": [{"first_seq": 11, "last_seq": 12}],
    }
    (earlier,) = device["earlier_boots_with_gaps"]
    assert (earlier["boot_id"], earlier["gaps"]) == (
        "acme-1-earlier",
        [{"first_seq": 5, "last_seq": 5}],
    )
    silent = body(api.acme.get("/v1/devices/acme-3"))
    assert (silent["last_boot"], silent["earlier_boots_with_gaps"]) == (None, [])
    assert silent["last_flood"] is None

    async def flood(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO device_flood SELECT device_no, at, at + interval '1 minute', 2412, 410040, 0.8"
            " FROM device, unnest(ARRAY['2026-04-14T10:00Z', '2026-04-15T10:00Z']::timestamptz[]) AS at"
            " WHERE device_id = 'acme-3'"
        )

    api.execute(flood)
    assert body(api.acme.get("/v1/devices/acme-3"))["last_flood"] == {
        "held_from": "2026-04-15T10:00:00Z",
        "held_until": "2026-04-15T10:01:00Z",
        "messages": 2412,
        "octets": 410040,
        "seconds": 0.8,
    }
    assert body(api.acme.get("/v1/devices/acme-1"))["last_flood"] is None


def test_a_devices_balance(api: "ApiUnderTest") -> None:
    data, sms = body(api.acme.get("/v1/devices/acme-1/balance"))["meters"]
    assert data["allowance"] is None
    assert data["pool"] == {"granted": 300_000_000, "used": 300_000_000, "left": 0, "reserved": 0}
    assert data["overage_quantity"] == 1_234_567
    assert data["overage"] == {"amount": "0.12", "exact_amount": "0.1234567", "currency": "EUR"}
    assert sms["allowance"] == {"granted": 10, "used": 10, "left": 0, "reserved": 0}
    assert sms["pool"] is None
    assert (sms["quantity"], sms["billed_quantity"], sms["overage_quantity"]) == (15, 15, 5)
    (bucket,) = sms["buckets"]
    assert (bucket["name"], bucket["kind"], bucket["left"]) == ("allowance", "allowance", 0)
    assert bucket["expires_at"] == "2026-04-30T22:00:00Z"
    assert [bucket["kind"] for bucket in data["buckets"]] == ["pool"]
    idle_data, idle_sms = body(api.acme.get("/v1/devices/acme-3/balance"))["meters"]
    assert (idle_data["quantity"], idle_sms["overage"]["amount"]) == (0, "0.00")


def test_plans(api: "ApiUnderTest") -> None:
    (plan,) = body(api.acme.get("/v1/plans"))["items"]
    assert (plan["plan_id"], plan["newest_version"], plan["currency"]) == ("acme-basic", 1, "EUR")
    (version,) = body(api.acme.get("/v1/plans/acme-basic"))["versions"]
    assert version["terms"]["meters"]["data"]["price"] == {"amount": "0.10", "per": "1 MB"}


def test_rejected_parked_and_anomalies(api: "ApiUnderTest") -> None:
    rejected = body(api.acme.get("/v1/rejected", params={"reason": "not_json"}))["items"]
    assert [row["times"] for row in rejected] == [1, 2, 3]
    assert base64.b64decode(rejected[0]["content_base64"]) == b"\x00hello \xff1"
    assert rejected[0]["content_preview"] == "�hello �1"
    assert body(api.acme.get("/v1/rejected", params={"reason": "not_utf8"}))["items"] == []
    parked = body(api.acme.get("/v1/parked", params={"device": "acme-1"}))["items"]
    assert [(row["seq"], row["meter"], row["reason"]) for row in parked] == [
        (seq, "voice", "no_price") for seq in (1, 2, 3)
    ]
    anomalies = body(api.acme.get("/v1/anomalies"))["items"]
    assert [(row["seq"], row["kind"]) for row in anomalies] == [
        (seq, "counter_reset") for seq in (1, 2, 3)
    ]


def pages(client: httpx.Client, address: str, limit: int, **params: str) -> Iterator[list[Any]]:
    cursor = None
    while True:
        given: dict[str, str | int] = {"limit": limit, **params}
        if cursor is not None:
            given["cursor"] = cursor
        page = body(client.get(address, params=given))
        yield page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def test_pages_show_each_item_once(api: "ApiUnderTest") -> None:
    for name in ("fleets", "devices", "plans", "rejected", "parked", "anomalies"):
        address = f"/v1/{name}"
        whole = body(api.acme.get(address))["items"]
        for limit in (1, 2, 3, 500):
            shown = list(pages(api.acme, address, limit))
            assert [item for page in shown for item in page] == whole
            assert all(1 <= len(page) <= limit for page in shown)


@pytest.mark.parametrize(
    ("day", "hours"),
    [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)],
)
def test_a_local_day_has_all_of_its_hours(api: "ApiUnderTest", day: str, hours: int) -> None:
    # Each of three devices used one octet in each of 73 hours around the day's noon in UTC.
    noon = datetime.fromisoformat(f"{day}T12:00:00Z")

    async def fill(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO usage_hour (hour, fleet_no, device_no, meter_no, plan_no, records,"
            " quantity, uplink, overage, amount)"
            " SELECT hour, device.fleet_no, device.device_no, 1, plan.plan_no, 1, 1, 1, 0, 0"
            " FROM device JOIN plan USING (tenant_no), generate_series(%s::timestamptz, %s,"
            " interval '1 hour') AS hour",
            [noon - timedelta(hours=36), noon + timedelta(hours=36)],
        )
        await connection.execute(
            "INSERT INTO fleet_usage_hour SELECT fleet_no, hour, meter_no, zone, sum(records),"
            " sum(quantity), sum(uplink), sum(overage) FROM usage_hour GROUP BY 1, 2, 3, 4"
        )

    api.execute(fill)
    span = {"from": noon.isoformat(), "to": (noon + timedelta(minutes=1)).isoformat()}
    by_day = body(api.acme.get("/v1/devices/acme-1/usage", params=span | {"bucket": "day"}))
    (point,) = by_day["points"]
    (use,) = point["meters"]
    assert (use["quantity"], use["uplink_quantity"], use["records"]) == (hours, hours, hours)
    assert (point["start"], point["end"]) == (by_day["start"], by_day["end"])
    begins, ends = (datetime.fromisoformat(by_day[edge]) for edge in ("start", "end"))
    assert ends - begins == timedelta(hours=hours)
    assert begins.astimezone(UTC).hour in (22, 23)
    fleet_day = body(api.acme.get("/v1/fleets/acme-north/usage", params=span | {"bucket": "day"}))
    assert fleet_day["points"][0]["meters"][0]["quantity"] == 3 * hours
    by_hour = body(api.acme.get("/v1/devices/acme-1/usage", params=span))
    assert [point["meters"][0]["quantity"] for point in by_hour["points"]] == [1]
    week = {
        "from": (noon - timedelta(days=3)).isoformat(),
        "to": (noon + timedelta(days=3)).isoformat(),
        "bucket": "day",
    }
    days = body(api.acme.get("/v1/devices/acme-1/usage", params=week))["points"]
    assert sum(point["meters"][0]["quantity"] for point in days) == 73


BAD_INPUT = [
    ("/v1/fleets?limit=501", "limit", "use at most 500"),
    ("/v1/fleets?limit=0", "limit", "use at least 1"),
    ("/v1/fleets?limit=many", "limit", "use a whole number"),
    ("/v1/fleets?limt=5", "limt", "use one of currency, label"),
    ("/v1/fleets/acme-north?at=1", "at", "this route takes none"),
    ("/v1/fleets?cursor=%21", "cursor", "use next_cursor"),
    ("/v1/rejected?cursor=WzEsMl0", "cursor", "use next_cursor"),
    ("/v1/devices?cursor=WyJcdTAwMDAiXQ", "cursor", "use next_cursor"),
    ("/v1/fleets/a%20b", "fleet_id", "use 1 to 64 letters"),
    ("/v1/devices/a%00b", "device_id", "use 1 to 64 letters"),
    ("/v1/devices/acme-1%0A", "device_id", "use 1 to 64 letters"),
    ("/v1/devices?fleet=%23", "fleet", "use 1 to 64 letters"),
    ("/v1/rejected?reason=boredom", "reason", "use 'bad_topic'"),
    ("/v1/fleets/acme-north/bill?at=yesterday", "at", "use a time such as"),
    ("/v1/fleets/acme-north/bill?at=1711670400", "at", "use a time such as"),
    ("/v1/fleets/acme-north/bill?at=2026-03-29T00:00:00", "at", "use a time such as"),
    ("/v1/fleets/acme-north/bill?at=2026-13-29T00:00:00Z", "at", "use a time such as"),
    ("/v1/fleets/acme-north/bill?at=0001-01-01T00:00:00Z", "at", "use a year from 2000"),
    ("/v1/fleets/acme-north/bill?at=9999-12-31T23:59:59-12:00", "at", "use a year from 2000"),
    (
        "/v1/fleets/acme-north/bill?known_at=2026-04-16T00:00:00Z",
        "known_at",
        "use a moment up to now",
    ),
    ("/v1/fleets/acme-north/bill/charges?variant=own", "variant", "give both"),
    ("/v1/fleets/acme-north/bill/devices?plan_version=1", "plan_version", "give both"),
    ("/v1/charges/1-2", "charge_id", "use "),
    ("/v1/fleets/acme-north/usage?bucket=week", "bucket", "use 'hour', 'day' or 'month'"),
    (
        "/v1/fleets/acme-north/usage?from=2026-04-02T00:00:00Z&to=2026-04-01T00:00:00Z",
        "from",
        "use an earlier 'from'",
    ),
    (
        "/v1/fleets/acme-north/usage?from=2020-01-01T00:00:00Z",
        "from",
        "ask for less at a time",
    ),
]


def test_bad_input_names_the_field_and_the_fix(api: "ApiUnderTest") -> None:
    for address, field, fix in BAD_INPUT:
        refused = problem(api.acme.get(address), 422)
        (error,) = refused["errors"]
        assert error["field"] == field, address
        assert error["problem"], address
        assert error["fix"].startswith(fix), (address, error)
        assert field in refused["detail"], address


def test_other_failures_are_problems_too(api: "ApiUnderTest") -> None:
    problem(api.acme.get("/v1/nothing"), 404)
    problem(api.acme.get("/v1/devices/nobody"), 404)
    refused = api.acme.post("/v1/rejected")
    problem(refused, 405)
    assert refused.headers["allow"] == "GET"
    fault = api.acme.get("/test/fault")
    problem(fault, 500)
    assert "secret" not in fault.text


def test_health_and_ready(api: "ApiUnderTest") -> None:
    assert body(api.nobody.get("/health")) == {"status": "alive"}
    assert body(api.nobody.get("/ready")) == {
        "status": "ready",
        "oldest_work_item_age_seconds": None,
    }

    async def queue(connection: Connection) -> None:
        # The oldest reading of batch 1 was received three minutes before the test's present.
        await connection.execute(
            "INSERT INTO work_item (shard_no, batch_no, readings, measured_from, measured_to)"
            " SELECT 0, 1, count(*), min(measured_at), max(measured_at) FROM reading"
        )

    api.execute(queue)
    assert body(api.nobody.get("/ready"))["oldest_work_item_age_seconds"] == 180.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DROP TABLE schema_migration", "has no schema"),
        ("DELETE FROM schema_migration", "is older than this release"),
        ("INSERT INTO schema_migration VALUES (9999, 'later', 'x')", "is newer than this release"),
        ("UPDATE schema_migration SET checksum = 'x'", "differs from the one"),
    ],
)
def test_not_ready_with_another_schema(api: "ApiUnderTest", change: str, reason: str) -> None:
    async def alter(connection: Connection) -> None:
        await connection.execute(change.encode())

    api.execute(alter)
    response = api.nobody.get("/ready")
    assert reason in problem(response, 503)["detail"]
    assert int(response.headers["retry-after"]) > 0


def test_metrics(api: "ApiUnderTest") -> None:
    body(api.acme.get("/v1/devices/acme-1"))
    body(api.acme.get("/v1/devices/acme-2"))
    api.acme.get("/somewhere/else")
    api.acme.request("BREW", "/health")
    # Of the whole deployment: no tenant's own may ask.
    problem(api.acme.get("/metrics"), 403)
    with operating(api.url, api.database_url) as operator:
        text = operator.get("/metrics", headers={"Fleetmeter-Tenant": "acme"}).text
    for line in (
        'fleetmeter_http_requests_total{method="GET",route="/v1/devices/{device_id}",status="200"} 2.0',
        'fleetmeter_http_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'fleetmeter_rejected_total{reason="not_json"} 6.0',
        "fleetmeter_parked 3.0",
        "fleetmeter_work_items_queued 0.0",
        "fleetmeter_readings_queued 0.0",
    ):
        assert line in text
    assert "BREW" not in text
    assert re.search(r"duration_seconds_bucket\{.*route=\"/v1/devices/\{device_id\}\"", text)


def test_a_request_cannot_write(api: "ApiUnderTest") -> None:
    async def attempt() -> None:
        app = create_app(Settings(database_url=api.database_url))
        async with app.router.lifespan_context(app), _snapshot(app.state.fleetmeter) as connection:
            await connection.execute("DELETE FROM anomaly")

    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        asyncio.run(attempt())


def test_connections_that_died_are_replaced(api: "ApiUnderTest") -> None:
    body(api.acme.get("/v1/fleets"))
    with psycopg.connect(api.database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'fleetmeter api'"
        )
    statuses = [api.acme.get("/v1/fleets").status_code for _ in range(12)]
    assert set(statuses) <= {200, 503}
    assert statuses[-1] == 200


def test_the_openapi_document_is_sound(api: "ApiUnderTest") -> None:
    document = body(api.nobody.get("/openapi.json", timeout=60))
    assert document["openapi"].startswith("3.1")
    assert api.nobody.get("/docs").status_code == 200
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema.get("description"), name
    for reference in re.findall(r'"\$ref":\s*"([^"]+)"', api.nobody.get("/openapi.json").text):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    ids = [each["operationId"] for each in [*OPERATIONS.values(), *CHANGES.values()]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", sorted(OPERATIONS))
def test_each_operation_is_described_with_an_example(path: str) -> None:
    operation = OPERATIONS[path]
    assert operation["description"]
    assert bool(operation.get("security")) == (path in KEYED)
    for parameter in operation.get("parameters", []):
        assert parameter["description"], parameter
    contents = dict(operation["responses"]["200"]["content"])
    if "application/json" in contents:
        content = contents.pop("application/json")
        assert set(contents) <= {"text/csv"}
        assert all(each["example"] for each in contents.values())
        if "$ref" in content["schema"]:
            model = MODELS[content["schema"]["$ref"].rpartition("/")[2]]
            assert issubclass(model, BaseModel)
            (example,) = model.model_json_schema()["examples"]
            # A plan is shown as it was stated: what it leaves open is left out.
            stated = path.startswith("/v1/plans/")
            answer = model.model_validate(example).model_dump(mode="json", exclude_unset=stated)
            assert answer == example
        else:  # one of several
            assert content["example"]
    else:
        assert all(content["example"] for content in contents.values())
    for status in ("401", "422", "503") if path.startswith("/v1/") else ("503",):
        assert operation["responses"][status]["$ref"].startswith("#/components/responses/")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_listens_and_ends_cleanly(
    api: "ApiUnderTest", number: signal.Signals
) -> None:
    environment = os.environ | {"FLEETMETER_DATABASE_URL": api.database_url}
    with subprocess.Popen(
        [sys.executable, "-m", "metering.cli", "api", "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            first = process.stdout.readline().split()
            second = process.stdout.readline().split()
            url = first[1].removesuffix("/v1")
            assert second == ["docs", f"{url}/docs"]
            assert httpx.get(f"{url}/health").json() == {"status": "alive"}
            process.send_signal(number)
            assert process.wait(timeout=10) == 0
            assert process.stderr.read() == ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
