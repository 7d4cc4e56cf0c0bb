"""The API of thresholds: made once a key, changed, ended; their standing and their alerts."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from metering.settings import Settings
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from metering.store.registry import ensure_tenant
from tests.integration.limits import NOW, Limits, at, data
from tests.integration.pipeline import migrated

ORDER: dict[str, object] = {
    "name": "a quarter",
    "scope": "each_device",
    "measure": "quantity",
    "meter": "data",
    "period": "cycle",
    "limit": "4000",
    "percent": "25",
    "actions": [{"kind": "throttle", "octets_per_second": 100}, {"kind": "balance"}],
}
Clients = dict[str, httpx.Client]


@pytest.fixture
def clients(
    database_url: str, serve: Callable[[FastAPI], AbstractContextManager[str]]
) -> Iterator[Clients]:
    """Yield clients of the tenant whose fleets are limited, and of a rival."""

    async def build() -> dict[str, str]:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            limits = await Limits.of(connection)
            await limits.use("tracker-1", data(1, 900, at(3)))
            rival = await ensure_tenant(connection, tenant_id="rival", name="rival", now=NOW)
            return {
                name: await create_api_key(connection, tenant=tenant, label="test", now=NOW)
                for name, tenant in (("ours", limits.operator.tenant), ("rival", rival))
            }

    keys = asyncio.run(build())
    app = create_app(Settings(database_url=database_url), now=lambda: NOW)
    with ExitStack() as stack:
        url = stack.enter_context(serve(app))
        yield {
            name: stack.enter_context(
                httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
            )
            for name, key in keys.items()
        }


def made(clients: Clients, key: str = "one", **changes: object) -> httpx.Response:
    return clients["ours"].post(
        "/v1/fleets/trackers/thresholds", json=ORDER | changes, headers={"Idempotency-Key": key}
    )


def test_a_threshold_is_made_once_a_key(clients: Clients) -> None:
    first = made(clients)
    assert first.status_code == 201, first.text
    threshold = first.json()
    assert threshold["scope"] == "each_device"
    assert (threshold["limit"], threshold["percent"], threshold["unit"]) == ("4000", "25", "octet")
    assert threshold["actions"] == ORDER["actions"]
    assert threshold["holds_from"] == "2026-03-31T22:00:00Z"
    again = made(clients)
    assert (again.status_code, again.json()) == (200, threshold)
    other = made(clients, limit="5000")
    assert other.status_code == 422
    assert other.json()["errors"][0]["field"] == "Idempotency-Key"
    listed = clients["ours"].get("/v1/thresholds", params={"device": "tracker-1"}).json()
    assert listed == {"items": [threshold], "next_cursor": None}
    shown = clients["ours"].get(f"/v1/thresholds/{threshold['threshold_no']}")
    assert shown.json() == threshold


def test_its_standing_its_alert_and_its_end(clients: Clients) -> None:
    ours = clients["ours"]
    path = f"/v1/thresholds/{made(clients).json()['threshold_no']}"
    standing = ours.get(f"{path}/standing", params={"device": "tracker-1"}).json()
    assert (standing["value"], standing["limit"], standing["share"]) == ("900", "1000", "90")
    assert standing["crossed"] is False
    assert ours.get("/v1/alerts").json()["items"] == []
    changed = ours.patch(path, json={"percent": "20"})
    assert (changed.status_code, changed.json()["percent"]) == (200, "20")
    for filters in ({}, {"fleet": "trackers"}, {"device": "tracker-1"}, {"period": "cycle"}):
        (alert,) = ours.get("/v1/alerts", params=filters).json()["items"]
        assert (alert["value"], alert["limit"], alert["overshoot"]) == ("900", "800", "100")
        assert (alert["device_id"], alert["boot_id"], alert["cleared_at"]) == (
            "tracker-1", None, None,
        )  # fmt: skip
    assert ours.get("/v1/alerts", params={"threshold": "99"}).status_code == 404
    for filters in ({"fleet": "meters"}, {"device": "tracker-2"}, {"period": "day"},
                    {"at": "2026-05-15T00:00:00Z"}):  # fmt: skip
        assert ours.get("/v1/alerts", params=filters).json()["items"] == [], filters
    assert ours.delete(path).status_code == 204
    assert ours.get(path).status_code == 404
    (alert,) = ours.get("/v1/alerts").json()["items"]
    assert alert["cleared_at"] == alert["released_at"] == "2026-04-15T12:00:00Z"


def test_a_limit_of_a_whole_fleet_stands_where_its_usage_does(clients: Clients) -> None:
    ours = clients["ours"]
    answer = made(clients, scope="fleet", percent="100", limit="901", actions=[])
    assert answer.status_code == 201, answer.text
    path = f"/v1/thresholds/{answer.json()['threshold_no']}"
    standing = ours.get(f"{path}/standing").json()
    assert (standing["value"], standing["crossed"]) == ("900", False)
    assert ours.patch(path, json={"limit": "900"}).status_code == 200
    (alert,) = ours.get("/v1/alerts").json()["items"]
    assert (alert["value"], alert["cleared_at"]) == ("900", None)
    # What is given on top of something else takes nothing back.
    top_up = {"meter": "sms", "quantity": 5}
    given = ours.post(
        "/v1/fleets/trackers/top-ups", json=top_up, headers={"Idempotency-Key": "sms"}
    )
    assert given.status_code == 201, given.text
    assert ours.get("/v1/alerts").json()["items"] == [alert]


def test_lists_come_in_pages(clients: Clients) -> None:
    for number in range(3):
        made(clients, key=f"k{number}", percent=f"{number + 1}")
    for path, name in (("/v1/thresholds", "threshold_no"), ("/v1/alerts", "alert_no")):
        seen: list[str] = []
        cursor = None
        while True:
            parameters = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
            page = clients["ours"].get(path, params=parameters).json()
            seen += [item[name] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert len(seen) == len(set(seen)) == 3
        assert seen == sorted(seen, reverse=name == "alert_no")


def test_a_device_has_thresholds_of_its_own(clients: Clients) -> None:
    order = {**ORDER, "measure": "spend", "meter": None, "limit": "2.50"}
    del order["scope"]
    response = clients["ours"].post(
        "/v1/devices/tracker-2/thresholds", json=order, headers={"Idempotency-Key": "own"}
    )
    assert response.status_code == 201, response.text
    own = response.json()
    assert (own["scope"], own["device_id"], own["unit"]) == ("device", "tracker-2", "EUR")
    standing = clients["ours"].get(f"/v1/thresholds/{own['threshold_no']}/standing").json()
    assert (standing["value"], standing["limit"]) == ("0", "0.625")


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("meter", {"meter": None}),
        ("meter", {"meter": "steam"}),
        ("limit", {"limit": None}),
        ("limit", {"limit": "0"}),
        ("limit", {"limit": "-1"}),
        ("limit", {"limit": 1.5}),
        ("limit", {"measure": "pool"}),
        ("scope", {"measure": "allowance", "limit": None, "scope": "fleet"}),
        ("percent", {"percent": "0"}),
        ("percent", {"measure": "pool", "limit": None, "percent": "100.1"}),
        ("period", {"period": "week"}),
        ("scope", {"scope": "all"}),
        ("actions", {"actions": [{"kind": "suspend"}, {"kind": "suspend"}]}),
        ("actions.0.throttle.octets_per_second", {"actions": [{"kind": "throttle"}]}),
        ("colour", {"colour": "red"}),
    ],
)
def test_bad_input_is_refused_with_the_fix(
    clients: Clients, field: str, changes: dict[str, object]
) -> None:
    response = made(clients, "one", **changes)
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert error["field"] == field
    assert error["problem"]
    assert error["fix"]
    assert error["fix"] != "see /docs"
    assert clients["ours"].get("/v1/thresholds").json()["items"] == []


def test_nothing_of_it_is_shown_to_another_tenant(clients: Clients) -> None:
    path = f"/v1/thresholds/{made(clients, percent='10').json()['threshold_no']}"
    rival = clients["rival"]
    assert rival.get(path).status_code == 404
    assert rival.get(f"{path}/standing").status_code == 404
    assert rival.patch(path, json={"enabled": False}).status_code == 404
    assert rival.delete(path).status_code == 404
    assert rival.get("/v1/thresholds").json()["items"] == []
    assert rival.get("/v1/alerts").json()["items"] == []
    assert len(clients["ours"].get("/v1/alerts").json()["items"]) == 1
