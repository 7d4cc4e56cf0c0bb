"""A carrier's usage records over HTTP: durable before the answer, each once, of the tenant alone."""

import asyncio
import json
from http import HTTPStatus

from metering.store.connection import Connection, connect
from tests.integration.conftest import ApiUnderTest

ICCID = "898830300000000035"
RECORD = {
    "id": "r-1",
    "start_timestamp": "2026-04-15T11:00:00Z",
    "end_timestamp": "2026-04-15T11:30:00Z",
    "sim": {"iccid": ICCID},
    "operator": {"mnc": "01", "country": {"mcc": "262"}},
    "traffic_type": {"id": 6},
    "volume": {"total": 2, "rx": 0, "tx": 2},
}


async def _with_sim(connection: Connection) -> None:
    await connection.execute(
        "INSERT INTO device_sim (tenant_no, device_no, iccid, valid, recorded_at)"
        " SELECT tenant_no, device_no, %s, '[2000-01-01,)', now() FROM device WHERE device_id = 'acme-1'",
        [ICCID],
    )


_OF_THE_CARRIER = " JOIN boot USING (boot_no) WHERE boot_id <> 'by id: carrier/another'"


def _kept(api: ApiUnderTest) -> list[tuple[int, int]]:
    async def read() -> list[tuple[int, int]]:
        async with await connect(api.database_url, application="test") as connection:
            found = await connection.execute(
                "SELECT seq, quantity FROM compared_reading" + _OF_THE_CARRIER  # noqa: S608 - words of this module
            )
            return await found.fetchall()

    return asyncio.run(read())


def _boot(api: ApiUnderTest) -> tuple[int]:
    async def read() -> tuple[int]:
        async with await connect(api.database_url, application="test") as connection:
            found = await connection.execute(
                "SELECT boot_no FROM compared_reading" + _OF_THE_CARRIER  # noqa: S608 - words of this module
            )
            ((number,),) = await found.fetchall()
            return (number,)

    return asyncio.run(read())


def test_records_are_durable_before_the_answer_and_count_once(api: ApiUnderTest) -> None:
    api.execute(_with_sim)
    unknown = RECORD | {"id": "r-2", "sim": {"iccid": "898830300000000099"}}
    answers = [api.acme.post("/v1/carrier-records", json=[RECORD, unknown]) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [HTTPStatus.OK] * 2
    first, second = (answer.json() for answer in answers)
    assert (first["stored"], first["duplicates"]) == (1, 0)
    assert (second["stored"], second["duplicates"]) == (0, 1)
    assert [(each["field"], each["reason"]) for each in first["rejected"]] == [
        ("1.sim", "unknown_device")
    ]
    assert _kept(api) == [(1, 2)]
    (number,) = _boot(api)
    message = api.acme.get(f"/v1/readings/{number}-1/message").json()
    assert message["topic"] == "carrier-records/http/acme/carrier"
    assert message["content_type"] == "application/json"
    assert json.loads(message["payload_text"]) == [RECORD, unknown]
    assert [(each["device_id"], each["seq"]) for each in message["readings"]] == [("acme-1", 1)]


def test_records_may_be_rows(api: ApiUnderTest) -> None:
    api.execute(_with_sim)
    rows = (
        "id,start_timestamp,end_timestamp,sim_iccid,traffic_type_id,volume_total,volume_tx,volume_rx,"
        "country_mcc,operator_mncs\n"
        f"r-1,2026-04-15 11:00:00,2026-04-15 11:30:00,{ICCID},6,2,2,0,262,01\n"
    )
    answer = api.acme.post(
        "/v1/carrier-records", content=rows, headers={"content-type": "text/csv; charset=utf-8"}
    )
    assert answer.json() == {"stored": 1, "duplicates": 0, "rejected": []}
    assert api.acme.post("/v1/carrier-records", json=RECORD).json()["duplicates"] == 1
    assert _kept(api) == [(1, 2)]


def test_a_tenant_s_key_reaches_no_other_tenant_s_sims(api: ApiUnderTest) -> None:
    api.execute(_with_sim)
    answer = api.rival.post("/v1/carrier-records", content=json.dumps(RECORD))
    assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    (problem,) = answer.json()["errors"]
    assert (problem["field"], problem["fix"]) == ("0.sim", "register it")
    assert (
        api.nobody.post("/v1/carrier-records", json=RECORD).status_code == HTTPStatus.UNAUTHORIZED
    )
    assert _kept(api) == []


def test_what_is_no_record_is_kept_and_told(api: ApiUnderTest) -> None:
    answer = api.acme.post("/v1/carrier-records", content=b"\xff{")
    assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert answer.headers["content-type"] == "application/problem+json"
    assert "no record was taken" in answer.json()["detail"]
    assert [each["field"] for each in answer.json()["errors"]] == ["payload"]
    (kept,) = api.acme.get("/v1/rejected", params={"reason": "undecodable"}).json()["items"]
    assert kept["topic"].startswith("carrier-records/http/acme/")


def test_what_no_carrier_sends_is_refused_by_its_type(api: "ApiUnderTest") -> None:
    answer = api.acme.post(
        "/v1/carrier-records", content=b"\x89PNG", headers={"content-type": "image/png"}
    )
    assert answer.status_code == 415, answer.text
    assert answer.headers["accept"] == "application/json, text/csv"
    assert "send application/json or text/csv" in answer.json()["detail"]
