"""Each item of a list by itself, and what is listed of balances across fleets."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from metering.settings import Settings
from tests.integration.api_scene import seed_by_requests
from tests.integration.conftest import NOW
from tests.integration.test_api_lists import items_of

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

NOBODYS = "00000000-0000-4000-8000-000000000000"
SINGLES = {
    "/v1/alerts": ("alert_no", "9000"),
    "/v1/audit-log": ("entry_no", str(2**63 - 2)),
    "/v1/balance-operations": ("operation_no", str(2**63 - 1)),
    "/v1/bill-adjustments": ("adjustment_no", str(2**63 - 1)),
    "/v1/carrier-records": ("record_id", "1-1-9999999999999999"),
    "/v1/commands": ("command_id", NOBODYS),
    "/v1/corrections": ("correction_no", str(2**63 - 2)),
    "/v1/events": ("event_id", NOBODYS),
    "/v1/parked": ("reading_id", "999-1"),
    "/v1/rejected": ("rejected_no", str(2**63 - 1)),
    "/v1/usage-records": ("record_id", "999-1-0"),
    "/v1/webhook-endpoints": ("endpoint_id", NOBODYS),
}
"""By list: what names an item, and what names none."""


def test_what_is_listed_is_shown_by_itself_alike(api: "ApiUnderTest") -> None:
    seed_by_requests(api.acme)
    for path, (name, nobodys) in SINGLES.items():
        items = items_of(api.acme, path)
        assert items, path
        for item in items:
            at = f"{path}/{item[name]}"
            answer = api.acme.get(at)
            assert answer.status_code == 200, (at, answer.text)
            assert answer.json() == item, at
            assert api.rival.get(at).status_code == 404, at
        answer = api.acme.get(f"{path}/{nobodys}")
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:fleetmeter:not-found")


def _buy(client: httpx.Client, path: str, key: str, **order: Any) -> dict[str, Any]:  # noqa: ANN401
    answer = client.post(path, json=order, headers={"Idempotency-Key": key})
    assert answer.status_code == 201, answer.text
    bought: dict[str, Any] = answer.json()
    return bought


def test_balances_are_listed_across_fleets(api: "ApiUnderTest") -> None:
    before = items_of(api.acme, "/v1/buckets")
    sms = {"meter": "sms", "quantity": 10}
    later = (NOW + timedelta(days=1)).isoformat()
    own = _buy(api.acme, "/v1/devices/acme-1/top-ups", "1", **sms)
    shared = _buy(api.acme, "/v1/fleets/acme-empty/top-ups", "2", **sms, begins_at=later)
    listed = items_of(api.acme, "/v1/buckets")
    assert listed == [shared, own, *before]
    assert all("rival" not in each["fleet_id"] for each in listed)
    for params, expected in (
        ({"source": "top_up"}, [shared, own]),
        ({"source": "top_up", "kind": "pool"}, [shared]),
        ({"source": "top_up", "fleet": "acme-north"}, [own]),
        ({"device": "acme-1", "meter": "sms", "source": "top_up"}, [own]),
        ({"source": "top_up", "holds_at": NOW.isoformat()}, [own]),
        ({"source": "top_up", "holds_at": later}, [shared, own]),
        ({"device": "acme-3", "source": "top_up"}, []),
    ):
        assert items_of(api.acme, "/v1/buckets", **params) == expected, params
    change = f"/v1/buckets/{own['bucket_no']}/adjustments"
    adjusted = _buy(api.acme, change, "3", quantity=-3, reason="a mistake")
    operations = items_of(api.acme, "/v1/balance-operations")
    assert [(each["kind"], each["fleet_id"], each["device_id"]) for each in operations] == [
        ("adjustment", "acme-north", "acme-1"),
        ("top_up", "acme-empty", None),
        ("top_up", "acme-north", "acme-1"),
    ]
    assert operations[0]["operation_no"] == adjusted["operation_no"]
    assert (operations[0]["quantity"], operations[0]["reason"]) == (-3, "a mistake")
    for params, expected in (
        ({"kind": "top_up"}, operations[1:]),
        ({"fleet": "acme-empty"}, operations[1:2]),
        ({"device": "acme-1", "kind": "adjustment"}, operations[:1]),
        ({"meter": "voice"}, []),
    ):
        assert items_of(api.acme, "/v1/balance-operations", **params) == expected, params
    assert items_of(api.rival, "/v1/balance-operations") == []


def test_quota_is_listed_across_fleets(api: "ApiUnderTest") -> None:
    of_device = items_of(api.acme, "/v1/devices/acme-1/reservations")
    assert of_device
    listed = items_of(api.acme, "/v1/reservations")
    assert listed == [each | {"fleet_id": "acme-north"} for each in of_device]
    assert items_of(api.acme, "/v1/reservations", fleet="acme-empty") == []
    assert items_of(api.acme, "/v1/reservations", device="acme-2") == []
    assert items_of(api.acme, "/v1/reservations", state="active", meter="data") == [
        each for each in listed if each["state"] == "active" and each["meter"] == "data"
    ]
    assert {each["device_id"] for each in items_of(api.rival, "/v1/reservations")} == {"rival-1"}


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/buckets?kind=x", "kind"),
        ("/v1/buckets?source=x", "source"),
        ("/v1/buckets?meter=x", "meter"),
        ("/v1/buckets?holds_at=x", "holds_at"),
        ("/v1/balance-operations?kind=x", "kind"),
        ("/v1/reservations?state=x", "state"),
        ("/v1/events?kind=bill.finalized", "kind"),
        ("/v1/pools?at=2199-01-01T00:00:00Z", "at"),
    ],
)
def test_a_filter_of_no_such_value_names_its_field(
    api: "ApiUnderTest", path: str, field: str
) -> None:
    answer = api.acme.get(path)
    assert answer.status_code == 422, answer.text
    assert [each["field"] for each in answer.json()["errors"]] == [field]


def test_pools_of_a_past_moment_are_as_they_were_then(
    api: "ApiUnderTest", serve: Callable[[FastAPI], AbstractContextManager[str]]
) -> None:
    order = {"meter": "sms", "quantity": 100}
    pool = _buy(api.acme, "/v1/fleets/acme-north/top-ups", "1", **order)
    other = _buy(api.acme, "/v1/fleets/acme-empty/top-ups", "2", **order)
    app = create_app(
        Settings(database_url=api.database_url), now=lambda: NOW + timedelta(minutes=30)
    )
    with (
        serve(app) as url,
        httpx.Client(base_url=url, headers=api.acme.headers, timeout=60) as later,
    ):
        change = f"/v1/buckets/{pool['bucket_no']}/adjustments"
        _buy(later, change, "3", quantity=50, reason="a gift")

        def lots(**params: str) -> list[tuple[Any, ...]]:
            return [
                (each["bucket_no"], each["granted"], each["left"], each["reserved"])
                for each in items_of(later, "/v1/pools", meter="sms", **params)
            ]

        now = [(other["bucket_no"], 100, 100, 0), (pool["bucket_no"], 150, 150, 0)]
        assert lots() == now
        then = (NOW + timedelta(minutes=10)).isoformat()
        assert lots(at=then) == [
            (other["bucket_no"], 100, 100, None), (pool["bucket_no"], 100, 100, None),
        ]  # fmt: skip
        assert lots(at=then, fleet="acme-north") == [(pool["bucket_no"], 100, 100, None)]
        assert lots(at=(NOW - timedelta(seconds=1)).isoformat()) == []
        balance = later.get("/v1/fleets/acme-north/balance", params={"at": then}).json()
        (shown,) = [each for each in balance["pools"] if each["meter"] == "sms"]
        assert [each["granted"] for each in shown["lots"]] == [100]
