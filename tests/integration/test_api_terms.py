"""Terms change over HTTP: once by the key, in the past too, and what they changed can be read."""

import asyncio
import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from api.app import create_app
from metering.charging import charge_parked
from metering.charging.charge_usage import charge_usage
from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import write_batch
from metering.insight.audit import audit_database
from metering.jobs.run_jobs import JobRunner
from metering.settings import Settings
from metering.store.api_keys import create_api_key
from metering.store.connection import connect
from metering.store.registry import ensure_tenant
from tests.integration.jobs_done import do_all_jobs
from tests.integration.pipeline import TENANT, Operator, migrated
from tests.integration.test_change_terms import LARGE, NOW, SMALL, Story, data, day

ICCID = "8949000000000000018"
LATE = LARGE | {
    "plan": "late",
    "plan_changes": {"upward": "next_period", "downward": "next_period"},
}


@dataclass(slots=True)
class Terms:
    """The API over a fleet `north` with devices d1 (small plan) and d2 (no plan), and `south`."""

    client: httpx.Client
    rival: httpx.Client
    database_url: str
    instants: list[datetime]
    """The last of them is now."""

    def post(self, path: str, key: str, **body: object) -> httpx.Response:
        return self.client.post(f"/v1{path}", json=body, headers={"Idempotency-Key": key})

    def get(self, path: str) -> dict[str, Any]:
        response = self.client.get(f"/v1{path}")
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def charge_parked(self, key: str, **body: object) -> dict[str, Any]:
        """Have what is parked charged by a job, and return what is told of it at its end."""
        asked = self.post("/parked-charges", key, **body)
        assert asked.status_code == 202, asked.text
        do_all_jobs(self.database_url)
        return self.get(f"/jobs/{asked.json()['job_no']}")

    def audit(self) -> list[str]:
        async def look() -> list[str]:
            async with await connect(self.database_url, application="test") as connection:
                return (await audit_database(connection)).differences

        return asyncio.run(look())


@pytest.fixture
def terms(
    database_url: str, serve: Callable[[FastAPI], AbstractContextManager[str]]
) -> Iterator[Terms]:
    """Yield the API over a database in which d1 and d2 published."""

    async def build() -> tuple[str, str]:
        await migrated(database_url)
        async with await connect(database_url, application="test", autocommit=True) as connection:
            story = Story(connection, await Operator.of(connection, now=NOW))
            north = await story.fleet("north")
            await story.fleet("south")
            small = await story.operator.plan(SMALL)
            await story.operator.plan(LARGE)
            await story.operator.plan(LATE)
            await story.devices(north, "d1", plan_no=small)
            await story.devices(north, "d2", plan_no=None)
            await story.publish("d1", data(1, 12, day(5)), data(2, 30, day(10)))
            await story.publish("d2", data(1, 4, day(6)))
            rival = await ensure_tenant(connection, tenant_id="rival", name="Rival", now=NOW)
            tenant = story.operator.tenant
            return (
                await create_api_key(connection, tenant=tenant, label="test", now=NOW),
                await create_api_key(connection, tenant=rival, label="test", now=NOW),
            )

    key, rival_key = asyncio.run(build())
    instants = [NOW]
    app = create_app(Settings(database_url=database_url), now=lambda: instants[-1])
    with (
        serve(app) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as own,
        httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {rival_key}"}, timeout=60
        ) as rival,
    ):
        yield Terms(own, rival, database_url, instants)


def test_a_past_plan_change_is_made_once_and_can_be_read(terms: Terms) -> None:
    order = {"device_ids": ["d1"], "plan_id": "large", "at": "2026-04-08T00:00:00Z"}
    made = terms.post("/plan-changes", "k1", **order)
    assert made.status_code == 201, made.text
    assert made.json()["charges"] == 1
    assert made.json()["effective_from"] == "2026-04-08T00:00:00Z"
    assert made.json()["in_effect"] is True
    again = terms.post("/plan-changes", "k1", **order)
    assert again.status_code == 200, again.text
    assert again.json() == made.json()
    device = terms.get("/devices/d1")
    assert device["subscription"]["plan_id"] == "large"
    (first, *_) = terms.get("/corrections?device=d1")["items"]
    assert (first["cause"], first["device_ids"], first["charges"]) == ("plan_change", ["d1"], 1)
    differences = terms.get(f"/corrections/{first['correction_no']}/differences")["items"]
    assert [(each["seq"], each["quantity"], each["exact_amount"]) for each in differences] == [
        (2, 0, "-3")
    ]
    assert terms.audit() == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/subscriptions", {"device_ids": ["d2"], "plan_id": "small"}),
        ("/plan-changes", {"device_ids": ["d1"], "plan_id": "large"}),
        ("/subscription-ends", {"device_ids": ["d1"]}),
        ("/state-changes", {"device_ids": ["d1"], "state": "suspended"}),
        ("/fleet-moves", {"device_ids": ["d1"], "fleet_id": "south", "plan_id": "small"}),
        ("/devices/d1/sim", {"iccid": "8949000000000000018"}),
    ],
)
def test_a_change_from_now_on_is_made_once_whenever_it_is_repeated(
    terms: Terms, path: str, body: dict[str, Any]
) -> None:
    made = terms.post(path, "k1", **body)
    assert made.status_code == 201, made.text
    terms.instants.append(NOW + timedelta(seconds=3))
    again = terms.post(path, "k1", **body)
    assert again.status_code == 200, again.text
    assert again.json() == made.json()
    assert made.json()["effective_from"] == "2026-04-20T12:00:00Z"
    assert made.json()["in_effect"] is True


def test_what_is_planned_is_told_and_listed(terms: Terms) -> None:
    assert terms.get("/devices/d1/planned-changes") == {"items": [], "next_cursor": None}
    told = []
    for path, body in (
        ("/plan-changes", {"plan_id": "large", "at": "2026-05-01T00:00:00Z"}),
        ("/state-changes", {"state": "suspended", "at": "2026-05-02T00:00:00Z"}),
        ("/fleet-moves", {"fleet_id": "south", "plan_id": "small", "at": "2026-05-03T00:00:00Z"}),
        ("/subscription-ends", {"at": "2026-06-01T00:00:00Z"}),
    ):
        made = terms.post(path, path, device_ids=["d1"], **body)
        assert made.status_code == 201, made.text
        assert made.json()["in_effect"] is False
        assert made.json()["effective_from"] == body["at"]
        terms.instants.append(NOW + timedelta(days=90))
        assert terms.post(path, path, device_ids=["d1"], **body).json() == made.json()
        terms.instants.pop()
        told.append(made.json()["correction_no"])
    assert terms.post("/devices/d1/sim", "sim", iccid=ICCID, at="2026-06-02T00:00:00Z").is_success
    items = terms.get("/devices/d1/planned-changes")["items"]
    assert [
        (each["effective_from"][5:10], each["kind"], each["state"] or each["plan_id"],
         each["fleet_id"], each["iccid"])
        for each in items
    ] == [
        ("05-01", "plan_change", "large", "north", None),
        ("05-02", "state_change", "suspended", None, None),
        ("05-03", "fleet_change", None, "south", None),
        ("05-03", "plan_change", "small", "south", None),
        ("06-01", "subscription_end", "small", "south", None),
        ("06-02", "sim_swap", None, None, ICCID),
    ]  # fmt: skip
    paged = terms.get("/devices/d1/planned-changes?limit=4")
    rest = terms.get(f"/devices/d1/planned-changes?limit=4&cursor={paged['next_cursor']}")
    assert paged["items"] + rest["items"] == items
    assert terms.rival.get("/v1/devices/d1/planned-changes").status_code == 404
    assert [each["correction_no"] for each in terms.get("/corrections")["items"]][1:5] == told[::-1]
    terms.instants.append(NOW + timedelta(days=90))
    assert terms.get("/devices/d1/planned-changes")["items"] == []


def test_the_plan_that_is_left_tells_when_a_change_takes_effect(terms: Terms) -> None:
    assert terms.post("/plan-changes", "k2", device_ids=["d1"], plan_id="late").is_success
    terms.instants.append(NOW + timedelta(seconds=1))
    waiting = terms.post("/plan-changes", "k3", device_ids=["d1"], plan_id="small").json()
    assert (waiting["in_effect"], waiting["effective_from"]) == (False, "2026-04-30T22:00:00Z")
    assert terms.get("/corrections")["items"][0]["effective_from"] == "2026-04-30T22:00:00Z"


def test_the_key_of_another_change_is_refused(terms: Terms) -> None:
    assert terms.post("/subscription-ends", "k1", device_ids=["d1"]).status_code == 201
    for path, body in (
        ("/subscription-ends", {"device_ids": ["d2"]}),
        ("/subscription-ends", {"device_ids": ["d1"], "at": "2026-04-08T00:00:00Z"}),
        ("/state-changes", {"device_ids": ["d1"], "state": "suspended"}),
    ):
        refused = terms.post(path, "k1", **body)
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == "Idempotency-Key"


def test_parked_usage_is_charged_by_one_call(terms: Terms) -> None:
    (parked,) = terms.get("/parked")["items"]
    assert (parked["device_id"], parked["reason"]) == ("d2", "no_subscription")
    early = terms.charge_parked("k0")
    assert early["result"] == {
        "charged": 0,
        "charges": 0,
        "correction_nos": [],
        "remaining": 1,
        "reasons": [{"reason": "no_subscription", "readings": 1}],
    }
    subscribed = terms.post(
        "/subscriptions", "k1", device_ids=["d2"], plan_id="small", at="2026-04-06T00:00:00Z"
    )
    assert subscribed.json()["unparked"] == 1
    assert terms.get("/parked")["items"] == []
    assert terms.audit() == []


@pytest.mark.parametrize("body", [{}, {"fleet_id": "north"}, {"device_ids": ["d2"]}])
def test_what_is_parked_is_charged_once_by_a_key_that_is_repeated(
    terms: Terms, body: dict[str, Any]
) -> None:
    with psycopg.connect(terms.database_url) as connection:
        connection.execute(
            "INSERT INTO subscription (device_no, fleet_no, plan_no, valid)"
            " SELECT device_no, fleet_no, plan_no, tstzrange('2026-04-01', NULL) FROM device, plan"
            " WHERE device_id = 'd2' AND plan_id = 'small'"
        )
    made = terms.charge_parked("k1", **body)
    assert (made["state"], made["done"], made["total"]) == ("done", 1, 1), made
    told = made["result"]
    assert (told["charged"], told["charges"], told["remaining"]) == (1, 1, 0)
    assert terms.get("/parked")["items"] == []
    again = terms.post("/parked-charges", "k1", **body)
    assert again.status_code == 200, again.text
    assert again.json() == made
    other = {"device_ids": ["d1"]} if "device_ids" not in body else {}
    refused = terms.post("/parked-charges", "k1", **other)
    assert [each["field"] for each in refused.json()["errors"]] == ["Idempotency-Key"]
    assert terms.audit() == []


def test_what_a_device_parked_before_it_moved_is_its_new_fleets(terms: Terms) -> None:
    moved = terms.post(
        "/fleet-moves", "k1", device_ids=["d2"], fleet_id="south", plan_id="small",
        at="2026-04-08T00:00:00Z",
    )  # fmt: skip
    assert moved.status_code == 201, moved.text
    assert terms.get("/parked?fleet=north")["items"] == []
    (parked,) = terms.get("/parked?fleet=south")["items"]
    assert (parked["device_id"], parked["fleet_id"]) == ("d2", "south")
    with psycopg.connect(terms.database_url) as connection:
        connection.execute(
            "INSERT INTO subscription (device_no, fleet_no, plan_no, valid)"
            " SELECT device_no, fleet.fleet_no, plan_no, tstzrange('2026-04-01', '2026-04-08')"
            " FROM device, plan, fleet"
            " WHERE device_id = 'd2' AND plan_id = 'small' AND fleet.fleet_id = 'north'"
        )
    left = terms.charge_parked("k2", fleet_id="north")["result"]
    assert (left["charged"], left["remaining"], left["reasons"]) == (0, 0, [])
    entered = terms.charge_parked("k3", fleet_id="south")["result"]
    assert (entered["charged"], entered["remaining"]) == (1, 0)
    assert terms.get("/parked")["items"] == []
    assert terms.audit() == []


def _park(terms: Terms, devices: Sequence[str]) -> None:
    """Have devices without a subscription use something."""

    async def park() -> None:
        async with await connect(
            terms.database_url, application="test", autocommit=True
        ) as connection:
            operator = await Operator.of(connection, now=NOW)
            await operator.devices(await operator.fleet("north"), devices, plan=None)
            messages = [
                Message(
                    topic=f"fm/v1/{TENANT}/{device}/usage", octets=100, boot="boot-1",
                    sender=(TenantId(TENANT), DeviceId(device)), received_at=NOW, published_at=None,
                    readings=[data(1, 4, day(6))], rejections=[],
                )
                for device in devices
            ]  # fmt: skip
            await write_batch(connection, DeviceCache(len(devices)), messages, now=NOW)
            while await charge_usage(connection, readings_max=5000, now=NOW):
                pass

    asyncio.run(park())


def _subscribe_unseen(terms: Terms, devices: Sequence[str]) -> None:
    """Subscribe devices behind the back of what would charge them by itself."""
    with psycopg.connect(terms.database_url) as connection:
        connection.execute(
            "INSERT INTO subscription (device_no, fleet_no, plan_no, valid)"
            " SELECT device_no, fleet_no, plan_no, tstzrange('2026-04-01', NULL) FROM device, plan"
            " WHERE device_id = ANY(%s) AND plan_id = 'small'",
            [list(devices)],
        )


@pytest.mark.parametrize("body", [{}, {"fleet_id": "north"}])
def test_hopeless_devices_keep_no_others_from_being_charged(
    terms: Terms, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charge_parked, "DEVICES_AT_ONCE", 2)
    devices = [f"x{number:04}" for number in range(40)]
    _park(terms, devices)
    _subscribe_unseen(terms, devices[-5:])
    made = terms.charge_parked("k1", **body)
    assert (made["done"], made["total"]) == (5, 5)
    told = made["result"]
    assert (told["charged"], told["charges"], len(told["correction_nos"])) == (5, 5, 3)
    assert told["remaining"] == 36
    assert told["reasons"] == [{"reason": "no_subscription", "readings": 36}]
    assert terms.audit() == []


def test_what_was_charged_stays_so_when_charging_of_what_is_parked_fails(
    terms: Terms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third of five devices cannot be charged at first: the two before it are not charged again."""
    monkeypatch.setattr(charge_parked, "DEVICES_AT_ONCE", 1)
    devices = [f"x{number}" for number in range(5)]
    _park(terms, devices)
    _subscribe_unseen(terms, devices)
    with psycopg.connect(terms.database_url, autocommit=True) as connection:
        third = sorted(_number(connection, device) for device in devices)[2]
        connection.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'fault'; END $$;"
            " CREATE TRIGGER fault BEFORE INSERT ON correction_device FOR EACH ROW WHEN"
            f" (new.device_no = {third}) EXECUTE FUNCTION fail()"
        )
        failed = terms.charge_parked("k1")
        assert (failed["state"], failed["done"], failed["total"]) == ("failed", 2, 5)
        assert "server's side" in failed["problem"]["detail"]
        assert len(terms.get("/parked")["items"]) == 4
        connection.execute("DROP TRIGGER fault ON correction_device")
    assert terms.post("/parked-charges", "k1").json() == failed
    made = terms.charge_parked("k2")
    assert (made["done"], made["total"]) == (3, 3)
    told = made["result"]
    assert (told["charged"], told["charges"], told["remaining"]) == (3, 3, 1)
    assert len(told["correction_nos"]) == 3
    assert terms.audit() == []


def test_charging_of_what_is_parked_that_is_cancelled_keeps_its_steps(
    terms: Terms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charge_parked, "DEVICES_AT_ONCE", 1)
    devices = [f"x{number}" for number in range(3)]
    _park(terms, devices)
    _subscribe_unseen(terms, devices)
    step = JobRunner._step
    steps = 0

    async def cancelled_after_two(self: JobRunner, *given: Any) -> Any:  # noqa: ANN401 - a step's
        nonlocal steps
        steps += 1
        if steps == 3:  # what is counted, and a device
            (job,) = (await asyncio.to_thread(terms.get, "/jobs"))["items"]
            path = f"/jobs/{job['job_no']}/cancellation"
            asked = await asyncio.to_thread(terms.client.post, f"/v1{path}")
            assert (asked.status_code, asked.json()["state"]) == (200, "running")
        return await step(self, *given)

    monkeypatch.setattr(JobRunner, "_step", cancelled_after_two)
    made = terms.charge_parked("k1")
    assert (made["state"], made["done"], made["total"], made["result"]) == ("cancelled", 1, 3, None)
    assert len(terms.get("/parked")["items"]) == 3
    causes = [each["cause"] for each in terms.get("/corrections")["items"]]
    assert causes.count("parked") == 1
    monkeypatch.undo()
    rest = terms.charge_parked("k2")
    assert (rest["state"], rest["done"], rest["result"]["charged"]) == ("done", 2, 2)
    assert terms.audit() == []


def test_a_fault_leaves_its_connection_to_the_next_request(
    terms: Terms, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(terms.database_url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'fault'; END $$;"
            " CREATE TRIGGER fault BEFORE INSERT ON correction_device FOR EACH ROW"
            " EXECUTE FUNCTION fail()"
        )
    address = terms.client.base_url
    same = http.client.HTTPConnection(address.host, address.port, timeout=10)
    key = {"Authorization": terms.client.headers["Authorization"]}
    with contextlib.closing(same):
        asked = {"Content-Type": "application/json", "Idempotency-Key": "k1"}
        same.request("POST", "/v1/subscription-ends", '{"device_ids": ["d1"]}', key | asked)
        answer = same.getresponse()
        assert answer.status == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert "its log tells more" in json.loads(answer.read())["detail"]
        opened = same.sock
        time.sleep(0.2)  # the server's end, if it closed, has arrived
        same.request("GET", "/v1/parked", headers=key)
        assert same.getresponse().status == 200
        assert same.sock is opened
    assert "POST '/v1/subscription-ends'" in caplog.text
    assert "fault" in caplog.text


def _number(connection: psycopg.Connection, device_id: str) -> int:
    row = connection.execute(
        "SELECT device_no FROM device WHERE device_id = %s", [device_id]
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_states_fleets_and_sims_change(terms: Terms) -> None:
    for path, body in (
        ("/state-changes", {"device_ids": ["d1"], "state": "suspended"}),
        ("/fleet-moves", {"device_ids": ["d1"], "fleet_id": "south", "plan_id": "small"}),
        ("/devices/d1/sim", {"iccid": "8949000000000000018", "imsi": "262010000000017"}),
    ):
        assert terms.post(path, path, **body).status_code == 201
    device = terms.get("/devices/d1")
    assert (device["state"], device["fleet_id"]) == ("suspended", "south")
    assert device["iccid"] == "8949000000000000018"
    assert terms.audit() == []


def test_the_sims_of_a_device_are_listed(terms: Terms) -> None:
    """The first goes over to another device; the number of the second has no check digit."""
    second, third = "894900000000000002", "8949000000000000003"
    for device, at, sim in (
        ("d1", "2026-04-01T00:00:00Z", {"iccid": ICCID, "imsi": "262010000000017"}),
        ("d1", "2026-04-05T00:00:00Z", {"iccid": second}),
        ("d2", "2026-04-06T00:00:00Z", {"iccid": ICCID}),
        ("d1", "2026-06-01T00:00:00Z", {"iccid": third, "check_digit_left_out": True}),
    ):
        made = terms.post(f"/devices/{device}/sim", at, at=at, **sim)
        assert made.status_code == 201, made.text
    items = terms.get("/devices/d1/sims")["items"]
    assert [(each["iccid"], each["valid_from"][5:10], each["valid_to"]) for each in items] == [
        (third, "06-01", None),
        (second, "04-05", "2026-06-01T00:00:00Z"),
        (ICCID, "04-01", "2026-04-05T00:00:00Z"),
    ]
    assert [each["imsi"] for each in items] == [None, None, "262010000000017"]
    paged = terms.get("/devices/d1/sims?limit=2")
    rest = terms.get(f"/devices/d1/sims?limit=2&cursor={paged['next_cursor']}")
    assert paged["items"] + rest["items"] == items
    assert [each["iccid"] for each in terms.get("/devices/d2/sims")["items"]] == [ICCID]
    assert terms.rival.get("/v1/devices/d1/sims").status_code == 404
    wrong = terms.post("/devices/d1/sim", "k", iccid=ICCID[:-1] + "7")
    (error,) = wrong.json()["errors"]
    assert error == {
        "field": "iccid",
        "pointer": "#/iccid",
        "problem": "the check digit of '8949000000000000017' is 7, its other digits give 8",
        "fix": "correct the mistyped digit; if its check digit is left out, say"
        ' "check_digit_left_out": true',
    }


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/plan-changes", {"device_ids": [], "plan_id": "large"}, "device_ids"),
        ("/plan-changes", {"device_ids": ["a/b"], "plan_id": "large"}, "device_ids.0"),
        ("/plan-changes", {"device_ids": ["d2"], "plan_id": "large"}, "at"),
        ("/plan-changes", {"device_ids": ["d1"], "plan_id": "large", "at": "today"}, "at"),
        ("/plan-changes", {"device_ids": ["d1"], "plan_id": "large", "when": 1}, "when"),
        ("/subscriptions", {"device_ids": ["d2", "d1"], "plan_id": "large"}, "device_ids"),
        (
            "/subscriptions",
            {"device_ids": ["d1"], "plan_id": "small", "at": "2001-01-01T00:00:00Z"},
            "device_ids",
        ),
        (
            "/subscriptions",
            {"device_ids": ["d2"], "plan_id": "small", "to": "2026-04-01T00:00:00Z"},
            "to",
        ),
        ("/plan-changes", {"device_ids": ["d1"], "plan_id": "large", "plan_version": 0}, "plan_version"),
        ("/state-changes", {"device_ids": ["d1"], "state": "asleep"}, "state"),
        ("/parked-charges", {"device_ids": ["d2"], "fleet_id": "north"}, "fleet_id"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_named(
    terms: Terms, path: str, body: dict[str, Any], field: str
) -> None:
    refused = terms.post(path, "k1", **body)
    assert refused.status_code == 422, refused.text
    assert [each["field"] for each in refused.json()["errors"]] == [field]


@pytest.mark.parametrize(
    ("path", "body", "errors"),
    [
        (
            "/subscription-ends",
            {"device_ids": ["d1", "nope"]},
            ("device_ids", "no device 'nope'", "use one of /v1/devices"),
        ),
        (
            "/plan-changes",
            {"device_ids": ["d1"], "plan_id": "small", "plan_version": 9},
            ("plan_id", "no plan 'small version 9'", "use one of /v1/plans"),
        ),
        (
            "/fleet-moves",
            {"device_ids": ["d1"], "fleet_id": "nope", "plan_id": "small"},
            ("fleet_id", "no fleet 'nope'", "use one of /v1/fleets"),
        ),
        (
            "/parked-charges",
            {"fleet_id": "nope"},
            ("fleet_id", "no fleet 'nope'", "use one of /v1/fleets"),
        ),
        (
            "/parked-charges",
            {"device_ids": ["nope"]},
            ("device_ids", "no device 'nope'", "use one of /v1/devices"),
        ),
    ],
)
def test_what_a_body_names_that_is_not_there_is_named(
    terms: Terms, path: str, body: dict[str, Any], errors: tuple[str, str, str]
) -> None:
    refused = terms.post(path, "k1", **body)
    assert refused.status_code == 404, refused.text
    named = dict(zip(("field", "problem", "fix"), errors, strict=True))
    assert refused.json()["errors"] == [{**named, "pointer": f"#/{errors[0]}"}]
    in_path = terms.post("/devices/nope/sim", "k1", iccid=ICCID)
    assert (in_path.status_code, in_path.json().get("errors")) == (404, None)


def test_a_stranger_finds_nothing(terms: Terms) -> None:
    made = terms.post("/subscription-ends", "k1", device_ids=["d1"]).json()["correction_no"]
    assert terms.rival.get("/v1/corrections").json()["items"] == []
    assert terms.rival.get(f"/v1/corrections/{made}/differences").status_code == 404
    for path, body in (
        ("/subscription-ends", {"device_ids": ["d1"]}),
        ("/plan-changes", {"device_ids": ["d1"], "plan_id": "large"}),
        ("/parked-charges", {"fleet_id": "north"}),
    ):
        answer = terms.rival.post(f"/v1{path}", json=body, headers={"Idempotency-Key": "k9"})
        assert answer.status_code == 404, answer.text
    assert terms.get("/devices/d1")["subscription"] is None
