"""Lists: the same items as CSV as page by page, what narrows them, and usage record by record."""

import csv
import io
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx

from api.parameters import cursor_of
from metering.store.connection import Connection
from tests.integration.conftest import NOW
from tests.integration.test_access_matrix import NAMES, OPERATIONS

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

CSV = {"Accept": "text/csv"}
LISTS = {
    name: path
    for name, (method, path, operation) in OPERATIONS.items()
    if method == "get"
    and {"text/csv", "application/json"}
    <= set(operation["responses"].get("200", {}).get("content", {}))
    and any(each["name"] == "limit" for each in operation["parameters"])
    and not path.startswith(("/v1/tenants", "/v1/audit-log/"))
}


def rows_of(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


def items_of(client: httpx.Client, path: str, **params: object) -> list[dict[str, Any]]:
    """Return a list's items, page by page of two."""
    items: list[dict[str, Any]] = []
    given: dict[str, Any] = {"limit": 2, **params}
    while True:
        answer = client.get(path, params=given)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        given["cursor"] = page["next_cursor"]


def _at(item: Any, name: str) -> Any:  # noqa: ANN401 - any JSON
    for part in name.split("."):
        item = item.get(part) if isinstance(item, dict) else None
    return item


def test_every_list_is_the_same_as_csv(api: "ApiUnderTest") -> None:
    assert len(LISTS) > 30
    filled = set()
    for name, path in LISTS.items():
        at = path.format(**NAMES)
        items = items_of(api.acme, at)
        rows = rows_of(api.acme.get(at, headers=CSV))
        assert len(rows) == len(items), name
        for row, item in zip(rows, items, strict=True):
            for column, cell in row.items():
                value = _at(item, column)
                if column == "last_used_at":
                    continue  # asking changes it
                if column in {"currency", "meter", "unit"} and column not in item:
                    assert cell, (name, column)  # what the page tells of all its items
                elif value is None:
                    assert cell == "", (name, column)
                elif isinstance(value, bool):
                    assert cell == str(value).lower(), (name, column)
                elif isinstance(value, int | str):
                    assert cell.removeprefix("'") == str(value), (name, column)
        filled |= {name} if rows else set()
    assert len(filled) > 20, filled


async def _use(connection: Connection) -> None:
    """Let each device have used an octet in each of three hours."""
    await connection.execute(
        "INSERT INTO usage_hour (hour, fleet_no, device_no, meter_no, plan_no, records, quantity,"
        " uplink, overage, amount)"
        " SELECT hour, device.fleet_no, device.device_no, 1, plan.plan_no, 1, 1, 1, 0, 0"
        " FROM device JOIN plan USING (tenant_no), generate_series(%s::timestamptz, %s,"
        " interval '1 hour') AS hour",
        [NOW - timedelta(days=5), NOW - timedelta(days=5) + timedelta(hours=2)],
    )
    await connection.execute(
        "INSERT INTO fleet_usage_hour SELECT fleet_no, hour, meter_no, zone, sum(records),"
        " sum(quantity), sum(uplink), sum(overage) FROM usage_hour GROUP BY 1, 2, 3, 4"
    )


def test_series_rules_and_a_bill_come_as_csv_too(api: "ApiUnderTest") -> None:
    api.execute(_use)
    span = "from=2026-03-01T00:00:00Z&to=2026-05-01T00:00:00Z&bucket=month"
    for at in (f"/v1/fleets/acme-north/usage?{span}", f"/v1/devices/acme-1/usage?{span}"):
        points = api.acme.get(at).json()["points"]
        rows = rows_of(api.acme.get(at, headers=CSV))
        assert points
        assert [(row["start"], row["meter"], row["quantity"]) for row in rows] == [
            (point["start"], use["meter"], str(use["quantity"]))
            for point in points
            for use in point["meters"]
        ]
    bill = api.acme.get("/v1/fleets/acme-north/bill").json()
    rows = rows_of(api.acme.get("/v1/fleets/acme-north/bill", headers=CSV))
    assert {row["kind"] for row in rows} >= {"usage", "fee"}
    assert [(row["kind"], row["amount"], row["currency"]) for row in rows] == [
        (line["kind"], line["amount"], bill["currency"]) for line in bill["lines"]
    ]
    rule = {"country": "DE", "customer": "business", "category": "S", "rate": "19"}
    rules = {"rules": [rule | {"first_day": "2021-01-01"}]}
    assert api.acme.put("/v1/billing/tax-rules", json=rules).status_code == 200
    (row,) = rows_of(api.acme.get("/v1/billing/tax-rules", headers=CSV))
    assert (row["country"], row["rate"], row["end_day"]) == ("DE", "19", "")


def test_usage_of_the_tenant_is_told_by_group(api: "ApiUnderTest") -> None:
    api.execute(_use)
    day = {"from": "2026-03-01T00:00:00Z", "to": "2026-05-01T00:00:00Z", "bucket": "month"}
    fleet = api.acme.get("/v1/fleets/acme-north/usage", params=day).json()["points"]
    used = sum(use["quantity"] for point in fleet for use in point["meters"])
    for group in ("fleet", "device"):
        rows = items_of(api.acme, "/v1/usage", group_by=group, **day)
        assert sum(each["quantity"] for each in rows if each["meter"]) == used > 0
        assert all(each[f"{group}_id"].startswith("acme-") for each in rows)
    assert api.rival.get("/v1/usage", params={"fleet": "acme-north"}).status_code == 404
    for given, field in (
        ({"time_zone": "Nowhere/Land"}, "time_zone"),
        ({"group_by": "colour"}, "group_by"),
        ({"cursor": cursor_of([NOW, "", 2**40, ""])}, "cursor"),
        ({"cursor": cursor_of([NOW + timedelta(days=90), "", 1, ""])}, "cursor"),
    ):
        answer = api.acme.get("/v1/usage", params=given)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == field


def test_what_is_no_list_is_none_as_csv(api: "ApiUnderTest") -> None:
    answer = api.acme.get("/v1/fleets/acme-north/balance", headers=CSV)
    assert answer.status_code == 406
    assert "application/json" in answer.json()["detail"]
    lists = api.acme.get("/v1/fleets", headers={"Accept": "text/csv;q=0, application/json"})
    assert lists.headers["content-type"] == "application/json"


def test_failures_are_problems_in_csv_too(api: "ApiUnderTest") -> None:
    for answer, status in (
        (api.nobody.get("/v1/devices", headers=CSV), 401),
        (api.acme.get("/v1/devices?fleet=nowhere", headers=CSV), 404),
        (api.acme.get("/v1/devices?limit=0", headers=CSV), 422),
        (api.acme.get("/v1/devices?colour=red", headers=CSV), 422),
        (api.rival.get("/v1/devices?fleet=acme-north", headers=CSV), 404),
    ):
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_long_list_comes_whole_and_a_formula_as_text(api: "ApiUnderTest") -> None:
    async def fill(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO device (tenant_no, fleet_no, device_id, imei, created_at)"
            " SELECT tenant_no, fleet_no, 'many-' || number,"
            "   CASE number WHEN 7 THEN '=HYPERLINK(1)' WHEN 8 THEN '-5' WHEN 9 THEN '@SUM' END, %s"
            " FROM fleet, generate_series(1, 1203) AS number WHERE fleet_id = 'acme-empty'",
            [NOW],
        )

    api.execute(fill)
    answer = api.acme.get("/v1/devices?fleet=acme-empty", headers=CSV)
    rows = rows_of(answer)
    assert sorted(row["device_id"] for row in rows) == sorted(f"many-{n}" for n in range(1, 1204))
    assert answer.headers["content-disposition"] == 'attachment; filename="get_devices.csv"'
    assert "fleetmeter-next-cursor" not in answer.headers
    imei = {row["device_id"]: row["imei"] for row in rows}
    assert (imei["many-7"], imei["many-8"], imei["many-9"]) == ("'=HYPERLINK(1)", "-5", "'@SUM")
    # With a limit, that page alone, and where it goes on.
    page = api.acme.get("/v1/devices?fleet=acme-empty&limit=3", headers=CSV)
    assert rows_of(page) == rows[:3]
    following = {"cursor": page.headers["fleetmeter-next-cursor"]}
    after = api.acme.get(
        "/v1/devices?fleet=acme-empty", params=following | {"fleet": "acme-empty"}, headers=CSV
    )
    assert rows_of(after) == rows[3:]


def test_charges_and_usage_records_page_alike_and_explain_themselves(api: "ApiUnderTest") -> None:
    charges = items_of(api.acme, "/v1/charges", limit=1)
    assert len(charges) == 2
    assert [each["charge_id"] for each in charges] == [
        each["record_id"] for each in items_of(api.acme, "/v1/usage-records", limit=1)
    ]
    for charge in charges:
        explained = api.acme.get(charge["explanation"])
        assert explained.status_code == 200
        assert explained.json()["exact_amount"] == charge["exact_amount"] == "0.07"
    of_device = items_of(api.acme, "/v1/charges", device="acme-1", limit=1)
    assert {each["charge_id"] for each in of_device} == {each["charge_id"] for each in charges}
    assert items_of(api.acme, "/v1/charges", device="acme-2") == []
    assert items_of(api.rival, "/v1/charges") != charges


NARROWED: list[tuple[dict[str, object], int]] = [
    ({"fleet": "acme-north"}, 2),
    ({"fleet": "acme-empty"}, 0),
    ({"meter": "sms"}, 2),
    ({"meter": "data"}, 0),
    ({"meter": "sms", "variant": "own"}, 2),
    ({"meter": "sms", "variant": "7"}, 0),
    ({"plan": "acme-basic", "plan_version": 1}, 2),
    ({"zone": "home"}, 0),
    ({"measured_from": NOW.isoformat()}, 2),
    ({"measured_to": NOW.isoformat()}, 0),
    ({"received_from": NOW.isoformat()}, 2),
    ({"received_to": NOW.isoformat()}, 0),
]


def test_filters_narrow_usage_records_and_charges(api: "ApiUnderTest") -> None:
    for params, found in NARROWED:
        for path in ("/v1/usage-records", "/v1/charges"):
            assert len(items_of(api.acme, path, **params)) == found, (path, params)


REFUSED = [
    ("/v1/charges?variant=own", "variant"),
    ("/v1/charges?plan_version=1", "plan_version"),
    ("/v1/charges?measured_from=2020-01-01T00:00:00Z", "measured_from"),
    (
        "/v1/usage-records?measured_from=2026-01-01T00:00:00Z&measured_to=2026-03-01T00:00:00Z",
        "measured_to",
    ),
    ("/v1/usage-records?meter=steps", "meter"),
    ("/v1/top-consumers?cycle_at=2026-04-01T00:00:00Z", "cycle_at"),
    ("/v1/top-consumers?from=2000-01-01T00:00:00Z&to=2199-12-31T00:00:00Z", "from"),
    ("/v1/top-consumers?from=2026-04-02T00:00:00Z&to=2026-04-01T00:00:00Z", "from"),
    ("/v1/fleets/acme-north/balance?at=2027-01-01T00:00:00Z", "at"),
    ("/v1/devices/acme-1/balance?at=2027-01-01T00:00:00Z", "at"),
    ("/v1/fleets/acme-north/usage?split=colour", "split"),
]


def test_bad_input_names_its_field(api: "ApiUnderTest") -> None:
    for path, field in REFUSED:
        answer = api.acme.get(path)
        assert answer.status_code == 422, (path, answer.text)
        (error,) = answer.json()["errors"]
        assert error["field"] == field, path
        assert error["fix"], path


def test_lists_are_narrowed_by_fleet_kind_and_reason(api: "ApiUnderTest") -> None:
    for path, some, none in (
        ("/v1/commands", "fleet=acme-north", "fleet=acme-empty"),
        ("/v1/rejected", "fleet=acme-north", "fleet=acme-empty"),
        ("/v1/parked", "reason=no_price", "reason=no_subscription"),
        ("/v1/bills", "kind=bill", "kind=credit_note"),
        ("/v1/disputes", "state=open&fleet=acme-north", "state=granted"),
        ("/v1/bill-adjustments", "fleet=acme-north", "fleet=acme-empty"),
    ):
        whole = items_of(api.acme, path)
        assert whole, path
        assert api.acme.get(f"{path}?{some}").json()["items"] == whole, path
        assert api.acme.get(f"{path}?{none}").json()["items"] == [], path


def test_what_is_compared_is_listed(api: "ApiUnderTest") -> None:
    async def fill(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO compared_reading (boot_no, seq, device_no, measured_at, received_at, meter_no,"
            " kind, uplink, downlink, quantity, packets)"
            " SELECT boot_no, seq, device_no, %s, %s, 1, 1, 200, 1000, 0, 0"
            " FROM boot, generate_series(3, 5) AS seq",
            [NOW, NOW],
        )

    api.execute(fill)
    items = [each for each in items_of(api.acme, "/v1/carrier-records") if each["seq"] > 2]
    assert {each["device_id"] for each in items} == {"acme-1"}
    assert len(items) == 9
    carriers = [each for each in items if each["counted_by"] == "carrier"]
    assert {each["carrier"] for each in carriers} == {"another"}
    assert {each["quantity"] for each in items} == {1200}
    assert items_of(api.acme, "/v1/carrier-records", device="acme-2") == []
    assert items_of(api.acme, "/v1/carrier-records", measured_to=NOW.isoformat()) == []
