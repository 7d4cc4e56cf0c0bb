"""Jobs: done step by step by whoever is there, seen by whom they concern, and gone on with after a death."""

import asyncio
import contextlib
import csv
import io
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from psycopg.types.json import Jsonb

from metering.access import Role
from metering.jobs import export_charges, import_devices
from metering.jobs.run_jobs import JobRunner
from metering.payments.bill_run_command import BillRunner
from metering.settings import Settings
from metering.store import jobs as store
from metering.store.api_keys import create_api_key
from metering.store.connection import Connection, connect
from metering.store.registry import tenant_no
from tests.integration.api_scene import keys_of_all
from tests.integration.conftest import NOW
from tests.integration.jobs_done import do_all_jobs, job_runner

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

_SPAN = {"from": "2026-03-31T22:00:00Z", "to": "2026-04-30T22:00:00Z"}
_EXPORT = {"fleet_id": "acme-north", **_SPAN}


_LEASES_END = "UPDATE job SET leased_until = now() - interval '1 s' WHERE state = 'running'"


class _Killed(BaseException):
    """Ends a runner as a signal does, in the midst of its work."""


def _order(client: httpx.Client, path: str, order: dict[str, Any], key: str) -> dict[str, Any]:
    answer = client.post(f"/v1/{path}", json=order, headers={"Idempotency-Key": key})
    assert answer.status_code == 202, answer.text
    told: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{told['job_no']}"
    assert (told["state"], told["done"], told["result"]) == ("queued", 0, None)
    return told


def _shown(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    answer = client.get(f"/v1/jobs/{job['job_no']}")
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def _charges(client: httpx.Client) -> list[dict[str, Any]]:
    found = client.get("/v1/fleets/acme-north/bill/charges?limit=500").json()
    assert found["next_cursor"] is None
    items: list[dict[str, Any]] = found["items"]
    assert len(items) >= 2
    return items


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_an_export_holds_the_charges_of_its_span(api: "ApiUnderTest", form: str) -> None:
    job = _order(api.acme, "charge-exports", {**_EXPORT, "form": form}, "export")
    assert api.acme.get(f"/v1/jobs/{job['job_no']}/result").status_code == 409
    assert do_all_jobs(api.database_url) == 1
    told = _shown(api.acme, job)
    expected = _charges(api.acme)
    assert (told["state"], told["done"], told["total"]) == ("done", len(expected), len(expected))
    file = api.acme.get(told["result_path"])
    assert file.status_code == 200
    assert len(file.content) == told["result"]["octets"]
    assert told["result"]["file_name"] in file.headers["content-disposition"]
    if form == "csv":
        assert file.headers["content-type"].startswith("text/csv")
        lines: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(file.text)))
    else:
        assert file.headers["content-type"].startswith("application/jsonl")
        lines = [json.loads(line) for line in file.text.splitlines()]
    assert [each["charge_id"] for each in lines] == [each["charge_id"] for each in expected]
    for line, charge in zip(lines, expected, strict=True):
        assert list(line) == list(export_charges.COLUMNS)
        for name in ("device_id", "meter", "unit", "plan_id", "exact_amount"):
            assert line[name] == charge[name]
        assert int(line["quantity"]) == charge["quantity"]
        assert datetime.fromisoformat(line["measured_at"]) == datetime.fromisoformat(
            charge["measured_at"]
        )
        assert line["currency"] == "EUR"


def test_an_order_that_comes_again_is_the_same_job(api: "ApiUnderTest") -> None:
    job = _order(api.acme, "charge-exports", _EXPORT, "again")
    headers = {"Idempotency-Key": "again"}
    again = api.acme.post("/v1/charge-exports", json=_EXPORT, headers=headers)
    assert (again.status_code, again.json()["job_no"]) == (200, job["job_no"])
    other = api.acme.post("/v1/charge-exports", json={**_EXPORT, "form": "jsonl"}, headers=headers)
    assert other.status_code == 422
    assert other.json()["type"] == "urn:fleetmeter:idempotency-key-reused"
    newest = api.acme.get("/v1/jobs?state=queued").json()["items"]
    assert [each["job_no"] for each in newest] == [job["job_no"]]
    refused = api.acme.post(
        "/v1/charge-exports",
        json={**_EXPORT, "to": _SPAN["from"]},
        headers={"Idempotency-Key": "backwards"},
    )
    assert refused.json()["errors"][0]["pointer"] == "#/to"


def test_jobs_come_in_pages_and_by_state(api: "ApiUnderTest") -> None:
    numbers = [_order(api.acme, "charge-exports", _EXPORT, f"k{n}")["job_no"] for n in range(3)]
    first = api.acme.get("/v1/jobs?limit=2&state=queued").json()
    newer = _order(api.acme, "charge-exports", _EXPORT, "newer")["job_no"]
    after = {"limit": 2, "state": "queued", "cursor": first["next_cursor"]}
    then = api.acme.get("/v1/jobs", params=after).json()
    shown = [each["job_no"] for each in [*first["items"], *then["items"]]]
    assert shown == numbers[::-1]  # the newer one moves nothing
    assert then["next_cursor"] is None
    assert api.acme.get("/v1/jobs?state=failed").json()["items"] == []
    assert api.acme.get("/v1/jobs?state=queued&limit=1").json()["items"][0]["job_no"] == newer


def test_a_killed_export_is_gone_on_with(
    api: "ApiUnderTest", monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in the midst of a day, after some that are done; the file is whole, nothing is twice."""
    whole = _order(api.acme, "charge-exports", _EXPORT, "whole")
    assert do_all_jobs(api.database_url) == 1
    expected = api.acme.get(_shown(api.acme, whole)["result_path"]).content
    job = _order(api.acme, "charge-exports", _EXPORT, "killed")
    written = store.insert_part
    left = 2  # the header, and a charge; with the second it dies

    async def dies(*given: Any) -> None:  # noqa: ANN401 - what it is given
        nonlocal left
        await written(*given)
        left -= 1
        if left < 0:
            raise _Killed

    monkeypatch.setattr(export_charges, "insert_part", dies)
    monkeypatch.setattr(export_charges, "_PAGE", 1)
    lease = {"job_lease_seconds": 1.0}

    async def killed() -> None:
        async with job_runner(api.database_url, **lease) as once:
            with pytest.raises(_Killed):
                await once()

    async def lease_ends() -> None:
        async with job_runner(api.database_url, **lease) as once:
            async with asyncio.timeout(30):
                while not await once():
                    await asyncio.sleep(0.05)

    asyncio.run(killed())
    assert _shown(api.acme, job)["state"] == "running"
    left = 10**9
    asyncio.run(lease_ends())
    told = _shown(api.acme, job)
    assert told["state"] == "done", told
    assert told["done"] == told["total"] == len(_charges(api.acme))
    assert api.acme.get(told["result_path"]).content == expected


def test_who_lost_its_lease_writes_nothing(
    api: "ApiUnderTest", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was away for longer than its lease comes back while another has the job."""
    job = _order(api.acme, "charge-exports", _EXPORT, "stopped")
    step = JobRunner._step
    stolen = False

    async def away(self: JobRunner, *given: Any) -> Any:  # noqa: ANN401 - a step's
        nonlocal stolen
        if not stolen:
            stolen = True
            async with await connect(api.database_url, application="test") as connection:
                await connection.execute(_LEASES_END)
                assert await store.take_job(connection, lease=timedelta(minutes=1))
        return await step(self, *given)

    async def nothing_is_written(connection: Any) -> None:  # noqa: ANN401
        found = await connection.execute(
            "SELECT state, done, place, (SELECT count(*) FROM job_part WHERE job_part.job_no = job.job_no)"
            " FROM job WHERE job_no = %s",
            [job["job_no"]],
        )
        assert await found.fetchone() == ("running", 0, None, 0)
        await connection.execute(_LEASES_END)

    monkeypatch.setattr(JobRunner, "_step", away)
    assert do_all_jobs(api.database_url) == 1
    api.execute(nothing_is_written)
    assert do_all_jobs(api.database_url) == 1
    told = _shown(api.acme, job)
    assert (told["state"], told["done"]) == ("done", told["total"])
    file = api.acme.get(told["result_path"])
    assert len(file.content) == told["result"]["octets"]


def test_a_job_is_cancelled(api: "ApiUnderTest", monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = _order(api.acme, "charge-exports", _EXPORT, "waiting")
    answer = api.acme.post(f"/v1/jobs/{waiting['job_no']}/cancellation")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert do_all_jobs(api.database_url) == 0
    running = _order(api.acme, "charge-exports", _EXPORT, "running")
    step = JobRunner._step
    steps = 0

    async def asked_between(self: JobRunner, *given: Any) -> Any:  # noqa: ANN401 - a step's
        nonlocal steps
        steps += 1
        if steps == 2:
            async with await connect(api.database_url, application="test") as connection:
                tenant = await tenant_no(connection, "acme")
                await store.ask_to_cancel(connection, tenant, running["job_no"], now=NOW)
        return await step(self, *given)

    monkeypatch.setattr(JobRunner, "_step", asked_between)
    assert do_all_jobs(api.database_url) == 1
    told = _shown(api.acme, running)
    assert (told["state"], told["cancel_asked"], told["result_path"]) == ("cancelled", True, None)
    assert steps == 2
    monkeypatch.undo()
    ended = _order(api.acme, "charge-exports", _EXPORT, "ended")
    do_all_jobs(api.database_url)
    answer = api.acme.post(f"/v1/jobs/{ended['job_no']}/cancellation")
    assert (answer.status_code, answer.json()["state"]) == (200, "done")


def test_a_job_that_cannot_be_done_says_why(
    api: "ApiUnderTest", monkeypatch: pytest.MonkeyPatch
) -> None:
    large = _order(api.acme, "charge-exports", _EXPORT, "large")
    assert do_all_jobs(api.database_url, job_export_charges_max=1) == 1
    told = _shown(api.acme, large)
    assert told["state"] == "failed"
    assert told["problem"]["type"] == "urn:fleetmeter:unprocessable-entity"
    (error,) = told["problem"]["errors"]
    assert (error["field"], error["fix"]) == ("to", "export at most 1 at a time")
    faulty = _order(api.acme, "charge-exports", _EXPORT, "faulty")

    async def fault(*_given: Any, **_named: Any) -> int:  # noqa: ANN401
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(export_charges, "charged_span", fault)
    assert do_all_jobs(api.database_url) == 1
    told = _shown(api.acme, faulty)
    assert told["problem"]["type"] == "urn:fleetmeter:internal-server-error"
    assert "secret" not in json.dumps(told)


def test_a_job_that_kills_is_given_up(api: "ApiUnderTest") -> None:
    job = _order(api.acme, "charge-exports", _EXPORT, "deadly")

    async def died(connection: Any) -> None:  # noqa: ANN401
        await connection.execute(
            "UPDATE job SET state = 'running', attempts = 5, leased_until = now() - interval '1 s'"
            " WHERE state = 'queued'"
        )

    api.execute(died)
    assert do_all_jobs(api.database_url) == 1
    assert "in vain" in _shown(api.acme, job)["problem"]["detail"]


def test_devices_are_imported(api: "ApiUnderTest", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_devices, "_STEP", 2)
    order = {
        "fleet_id": "acme-empty",
        "device_ids": ["new-1", "new-2", "acme-1", "new-3", "new-4"],
        "active_from": "2026-04-01T00:00:00Z",
    }
    job = _order(api.acme, "device-imports", order, "import")
    assert job["total"] == 5
    assert do_all_jobs(api.database_url) == 1
    told = _shown(api.acme, job)
    assert (told["state"], told["done"], told["total"]) == ("done", 5, 5)
    assert told["result"] == {
        "created": 4,
        "already_there": 0,
        "refused": 1,
        "refusals": [
            {
                "index": 2,
                "device_id": "acme-1",
                "problem": "is in another fleet",
                "fix": "move it, or choose another id",
            }
        ],
    }
    shown = api.acme.get("/v1/devices?fleet=acme-empty").json()["items"]
    assert [each["device_id"] for each in shown] == ["new-1", "new-2", "new-3", "new-4"]
    onto_plan = {
        "fleet_id": "acme-north",
        "device_ids": ["planned-1", "acme-1"],
        "active_from": "2026-04-01T00:00:00Z",
        "plan_id": "acme-basic",
    }
    job = _order(api.acme, "device-imports", onto_plan, "planned")
    assert do_all_jobs(api.database_url) == 1
    told = _shown(api.acme, job)
    assert told["state"] == "done", told
    assert told["result"]["created"] == told["result"]["already_there"] == 1
    plan = api.acme.get("/v1/devices/planned-1").json()["subscription"]
    assert (plan["plan_id"], plan["subscribed_from"]) == ("acme-basic", "2026-04-01T00:00:00Z")
    refused = api.acme.post(
        "/v1/device-imports",
        json={**order, "device_ids": ["good", "bad/one", "good"]},
        headers={"Idempotency-Key": "bad"},
    )
    pointers = [each["pointer"] for each in refused.json()["errors"]]
    assert (refused.status_code, pointers) == (422, ["#/device_ids/1", "#/device_ids/2"])


def test_devices_are_imported_with_what_is_known_of_them(
    api: "ApiUnderTest", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_devices, "_STEP", 2)
    iccid = "8949000000000000018"
    full = {
        "device_id": "new-1", "name": "Cellar", "iccid": iccid, "imsi": "262010000000017",
        "imei": "490154203237518", "tags": ["water"], "labels": {"site": "Hamburg"},
    }  # fmt: skip
    order = {
        "fleet_id": "acme-empty",
        "devices": [full, {"device_id": "new-2"}, {"device_id": "acme-1", "tags": ["x"]}],
    }
    job = _order(api.acme, "device-imports", order, "described")
    assert do_all_jobs(api.database_url) == 1
    told = _shown(api.acme, job)["result"]
    assert (told["created"], told["already_there"], told["refused"]) == (2, 0, 1)
    shown = api.acme.get("/v1/devices/new-1").json()
    assert {name: shown[name] for name in full} == full
    (found,) = api.acme.get(f"/v1/devices?iccid={iccid}").json()["items"]
    assert found["device_id"] == "new-1"
    assert api.acme.get("/v1/devices/acme-1").json()["tags"] == []
    # A SIM is in one device; a device that is there stays as it is.
    again = {
        "fleet_id": "acme-empty",
        "devices": [
            {"device_id": "new-1", "name": "Attic"},
            {"device_id": "new-3", "iccid": iccid},
        ],
    }
    job = _order(api.acme, "device-imports", again, "again")
    assert do_all_jobs(api.database_url) == 1
    told = _shown(api.acme, job)["result"]
    assert (told["created"], told["already_there"], told["refused"]) == (0, 1, 1)
    assert told["refusals"] == [
        {
            "index": 1,
            "device_id": "new-3",
            "problem": "its SIM is in another device",
            "fix": "swap it, by the device's SIM, or use another",
        }
    ]
    assert api.acme.get("/v1/devices/new-1").json()["name"] == "Cellar"


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({}, ["devices"]),
        ({"device_ids": ["a"], "devices": [{"device_id": "b"}]}, ["devices"]),
        ({"devices": [{"device_id": "a"}, {"device_id": "a"}]}, ["devices.1.device_id"]),
        ({"devices": [{"device_id": "a", "imsi": "262010000000017"}]}, ["devices.0.imsi"]),
        ({"devices": [{"device_id": "a", "iccid": "8949000000000000019"}]}, ["devices.0.iccid"]),
        ({"devices": [{"device_id": "a/b"}]}, ["devices.0.device_id"]),
        ({"devices": [{"device_id": "a", "fleet_id": "b"}]}, ["devices.0.fleet_id"]),
        ({"devices": []}, ["devices"]),
    ],
)
def test_devices_that_cannot_be_are_refused_by_field(
    api: "ApiUnderTest", given: dict[str, object], fields: list[str]
) -> None:
    answer = api.acme.post(
        "/v1/device-imports",
        json={"fleet_id": "acme-empty", **given},
        headers={"Idempotency-Key": "bad"},
    )
    assert answer.status_code == 422, answer.text
    assert [each["field"] for each in answer.json()["errors"]] == fields


def test_a_manager_imports_into_its_own_fleet_alone(api: "ApiUnderTest") -> None:
    keys = asyncio.run(keys_of_all(api.database_url))
    bearer = {"Authorization": f"Bearer {keys['manager']}"}
    with httpx.Client(base_url=api.url, headers=bearer, timeout=60) as manager:
        for fleet_id in ("acme-empty", "rival-north"):
            order = {"fleet_id": fleet_id, "devices": [{"device_id": "new-1"}]}
            answer = manager.post(
                "/v1/device-imports", json=order, headers={"Idempotency-Key": fleet_id}
            )
            assert answer.status_code == 404, answer.text
        # A device of another fleet of its tenant is refused, and not moved nor described.
        api.acme.post(
            "/v1/devices",
            json={"fleet_id": "acme-empty", "device_id": "elsewhere-1"},
            headers={"Idempotency-Key": "elsewhere"},
        )
        devices = [{"device_id": "own-1", "tags": ["a"]}, {"device_id": "elsewhere-1"}]
        own = {"fleet_id": "acme-north", "devices": devices}
        job = _order(manager, "device-imports", own, "own")
        assert do_all_jobs(api.database_url) == 1
        told = _shown(manager, job)
        assert (told["state"], told["result"]["created"], told["result"]["refused"]) == (
            "done", 1, 1,
        )  # fmt: skip
        assert manager.get("/v1/devices/own-1").json()["tags"] == ["a"]
        assert manager.get("/v1/devices/elsewhere-1").status_code == 404
    assert api.acme.get("/v1/devices/elsewhere-1").json()["fleet_id"] == "acme-empty"
    with httpx.Client(
        base_url=api.url, headers={"Authorization": f"Bearer {keys['elsewhere-manager']}"}
    ) as other:
        assert other.get(f"/v1/jobs/{job['job_no']}").status_code == 404


def test_what_a_job_changes_is_in_the_audit_log(api: "ApiUnderTest") -> None:
    order = {"fleet_id": "acme-empty", "device_ids": ["logged"]}
    _order(api.acme, "device-imports", order, "logged")
    do_all_jobs(api.database_url)
    (entry, *_) = api.acme.get("/v1/audit-log").json()["items"]
    assert entry["operation"] == "post_device_import"
    changes = api.acme.get(f"/v1/audit-log/{entry['entry_no']}/changes").json()["items"]
    assert {"device", "device_state_change"} <= {each["relation"] for each in changes}


def test_a_rerating_is_previewed_and_done(api: "ApiUnderTest") -> None:
    order = {
        "device_ids": ["acme-1"],
        "plan_id": "acme-basic",
        "at": "2026-01-31T23:00:00Z",
        "settling": "note",
        "reason": "it is the right plan already",
    }
    preview = _order(api.acme, "rerating-jobs", {**order, "dry_run": True}, "preview")
    real = _order(api.acme, "rerating-jobs", order, "real")
    assert do_all_jobs(api.database_url) == 2
    expected = api.acme.post("/v1/reratings/preview", json=order).json()
    for job in (preview, real):
        told = _shown(api.acme, job)
        assert (told["state"], told["result"]) == ("done", expected), told


def test_a_reratings_kept_result_names_days_as_others_do(api: "ApiUnderTest") -> None:
    """Results that were kept before name the end of a cycle's days otherwise."""
    order = {
        "device_ids": ["acme-1"],
        "plan_id": "acme-basic",
        "at": "2026-01-31T23:00:00Z",
        "settling": "note",
        "reason": "it is the right plan already",
        "dry_run": True,
    }
    job = _order(api.acme, "rerating-jobs", order, "kept")
    assert do_all_jobs(api.database_url) == 1
    cycle: dict[str, object] = {
        "first_day": "2026-02-01",
        "next_first_day": "2026-03-01",
        "before": "1",
        "after": "2",
        "note_no": None,
        "lines": [],
        "devices": [],
    }

    async def keep(connection: Connection) -> None:
        await connection.execute(
            "UPDATE job SET result = result || %s", [Jsonb({"cycles": [cycle]})]
        )

    api.execute(keep)
    (told,) = _shown(api.acme, job)["result"]["cycles"]
    assert (told["first_day"], told["end_day"]) == ("2026-02-01", "2026-03-01")
    assert "next_first_day" not in told


def test_jobs_are_seen_by_whom_they_concern(api: "ApiUnderTest") -> None:
    whole = _order(api.acme, "charge-exports", _EXPORT, "whole")
    do_all_jobs(api.database_url)

    async def key() -> str:
        async with await connect(api.database_url, application="test") as connection:
            tenant = await tenant_no(connection, "acme")
            found = await connection.execute(
                "SELECT fleet_no FROM fleet WHERE fleet_id = 'acme-north'"
            )
            row = await found.fetchone()
            assert row is not None
            return await create_api_key(
                connection,
                tenant=tenant,
                label="reader",
                now=NOW,
                role=Role.READ_ONLY,
                fleets=[row[0]],
                expires_at=NOW + timedelta(days=1),
            )

    headers = {"Authorization": f"Bearer {asyncio.run(key())}"}
    with httpx.Client(base_url=api.url, headers=headers, timeout=60) as reader:
        for client in (api.rival, reader):  # the admin's job is of all of the tenant
            for path in ("", "/result"):
                assert client.get(f"/v1/jobs/{whole['job_no']}{path}").status_code == 404
            cancelled = client.post(f"/v1/jobs/{whole['job_no']}/cancellation")
            assert cancelled.status_code == 404
            shown = client.get("/v1/jobs").json()["items"]
            assert whole["job_no"] not in {each["job_no"] for each in shown}
        own = _order(reader, "charge-exports", _EXPORT, "own")
        elsewhere = reader.post(
            "/v1/charge-exports",
            json={**_EXPORT, "fleet_id": "acme-empty"},
            headers={"Idempotency-Key": "elsewhere"},
        )
        assert elsewhere.status_code == 404
        do_all_jobs(api.database_url)
        told = _shown(reader, own)
        assert told["state"] == "done"
        file = reader.get(told["result_path"])
        assert file.text == api.acme.get(f"/v1/jobs/{whole['job_no']}/result").text
    # Who may see it, but not ask for such a job, does not cancel it.
    device_import = _order(
        api.acme, "device-imports", {"fleet_id": "acme-empty", "device_ids": ["x"]}, "i"
    )

    async def billing_key() -> str:
        async with await connect(api.database_url, application="test") as connection:
            tenant = await tenant_no(connection, "acme")
            return await create_api_key(
                connection, tenant=tenant, label="b", now=NOW, role=Role.BILLING
            )

    headers = {"Authorization": f"Bearer {asyncio.run(billing_key())}"}
    with httpx.Client(base_url=api.url, headers=headers, timeout=60) as billing:
        refused = billing.post(f"/v1/jobs/{device_import['job_no']}/cancellation")
        assert refused.status_code == 403


def test_old_jobs_are_forgotten(api: "ApiUnderTest") -> None:
    job = _order(api.acme, "charge-exports", _EXPORT, "old")
    do_all_jobs(api.database_url)

    async def forget(connection: Any) -> None:  # noqa: ANN401
        assert await store.delete_old_jobs(connection, before=NOW) == 2  # the scene's own
        assert await store.delete_old_jobs(connection, before=NOW + timedelta(days=1)) == 1
        found = await connection.execute("SELECT count(*) FROM job_part")
        assert await found.fetchone() == (0,)

    api.execute(forget)
    assert api.acme.get(f"/v1/jobs/{job['job_no']}").status_code == 404


def test_the_bill_run_does_jobs_until_it_is_told_to_stop(api: "ApiUnderTest") -> None:
    job = _order(api.acme, "charge-exports", _EXPORT, "process")
    settings = Settings(database_url=api.database_url, job_poll_seconds=0.05)

    async def run() -> None:
        runner = BillRunner(settings, tenant=None, by_hand=False, now=lambda: NOW)
        task = asyncio.create_task(runner.run())
        try:
            async with asyncio.timeout(60):
                while (await asyncio.to_thread(_shown, api.acme, job))["state"] != "done":
                    assert not task.done()
                    await asyncio.sleep(0.05)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())
