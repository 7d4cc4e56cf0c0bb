"""Filters of lists, made from the OpenAPI document: a new list or filter falls into it."""

from typing import TYPE_CHECKING, Any

import pytest

from api.spans import INSTANTS
from metering.store.connection import Connection
from tests.integration.api_scene import seed_by_requests
from tests.integration.conftest import NOW
from tests.integration.test_access_matrix import DOCUMENT, NAMES, OPERATIONS

if TYPE_CHECKING:
    import httpx

    from tests.integration.conftest import ApiUnderTest

_RESOURCES = {"fleet", "device", "plan", "plan_version", "threshold"}
"""Filters that name a resource: one that is not there is 404, as in a path."""
_VALUES: dict[str, str] = {
    "plan_version": "2147483647",
    "variant": "9999",
    "seq": "9223372036854775807",
    "api_key_no": "2147483647",
    "user_no": "2147483647",
    "label": "nobody=nobody",
    "currency": "XXX",
    "iccid": "8949000000000000992",
    "imsi": "999999999999999",
    "imei": "490154203237518",
    "eid": "89049032000000000000000000000999",
    "msisdn": "999999999999999",
    "kind": "no_such.kind",
}
"""A good value of each filter that no row has; of others the text `nobody`."""
_PARENTS = {
    "plan_version": {"plan": "acme-basic"},
    "variant": {"meter": "data"},
    "seq": {"boot": "b1"},
    "boot": {"seq": "1"},
}
"""What a filter needs beside it."""
_NO_FILTERS = {
    "limit",
    "cursor",
    "from",
    "to",
    "at",
    "known_at",
    "cycle_at",
    "unit",
    "time_zone",
    "holds_at",
}
_NO_FILTERS |= {"measured_from", "measured_to", "received_from", "received_to"}
_LISTS = {
    name: path
    for name, (method, path, operation) in OPERATIONS.items()
    if method == "get" and any(each["name"] == "limit" for each in operation.get("parameters", ()))
}


def _read(client: "httpx.Client", name: str, **params: str) -> "httpx.Response":
    return client.get(_LISTS[name].format(**NAMES), params=params)


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return DOCUMENT["components"]["schemas"][name] if name else schema


def _at(item: dict[str, Any], field: str) -> str | None:
    found: str | None = item[field]
    return found


@pytest.fixture(scope="module")
def admin(module_api: "ApiUnderTest") -> "httpx.Client":
    seed_by_requests(module_api.acme)
    sim = {"iccid": "8949000000000000018"}
    asked = {"amount": "5.00", "currency": "EUR", "customer": "cus_1", "payment_method": "pm_1"}
    for path, order in (
        ("/v1/devices/acme-1/sim", sim),
        ("/v1/fleets/acme-north/payment-requests", asked),
        ("/v1/buckets/1/adjustments", {"quantity": 1, "reason": "goodwill"}),
    ):
        answer = module_api.acme.post(path, json=order, headers={"Idempotency-Key": "seed"})
        assert answer.status_code == 201, answer.text
    module_api.execute(_tell_and_give_back)
    return module_api.acme


async def _tell_and_give_back(connection: Connection) -> None:
    """Let webhooks have been called, and the payment provider asked to give something back."""
    await connection.execute(
        "UPDATE webhook_delivery SET attempted_at = %s + delivery_no * interval '1 second'", [NOW]
    )
    await connection.execute(
        "INSERT INTO webhook_attempt (delivery_no, attempted_at, milliseconds)"
        " SELECT delivery_no, attempted_at, 5 FROM webhook_delivery"
    )
    await connection.execute(
        "INSERT INTO provider_refund (refund_id, tenant_no, fleet_no, payment_no, intent_id, amount,"
        " currency, reason, due_at, created_at) SELECT gen_random_uuid(), tenant_no, fleet_no, payment_no,"
        " 'intent', 1, currency, 'paid twice', %s, %s FROM payment WHERE reference IS NULL",
        [NOW, NOW],
    )


def test_from_and_to_part_a_list_at_an_instant(admin: "httpx.Client") -> None:
    filled = set()
    for name, field in INSTANTS.items():
        if name == "get_tenants":
            continue  # of platform operators
        answer = _read(admin, name, limit="500")
        assert answer.status_code == 200, (name, answer.text)
        items = [each for each in answer.json()["items"] if _at(each, field) is not None]
        if not items:
            continue
        filled.add(name)
        instants = sorted({str(_at(each, field)) for each in items})
        middle = instants[len(instants) // 2]
        before = _read(admin, name, to=middle, limit="500")
        since = _read(admin, name, **{"from": middle}, limit="500")
        assert (before.status_code, since.status_code) == (200, 200), (name, before.text)
        for part, wanted in (
            (before, [each for each in items if str(_at(each, field)) < middle]),
            (since, [each for each in items if str(_at(each, field)) >= middle]),
        ):
            assert part.json()["items"] == wanted, (name, middle)
        answer = _read(admin, name, **{"from": middle, "to": middle})
        assert answer.status_code == 422, name
        assert answer.json()["errors"][0]["field"] == "from", name
    assert filled == set(INSTANTS) - {"get_tenants"}


def test_a_filter_that_names_what_is_not_there(admin: "httpx.Client") -> None:
    """A resource is 404, any other value leaves the list empty."""
    seen, wrong = set(), []
    for name, path in _LISTS.items():
        if name == "get_tenants":
            continue
        for parameter in OPERATIONS[name][2]["parameters"]:
            of = parameter["name"]
            if parameter["in"] != "query" or of in _NO_FILTERS:
                continue
            if _choices(parameter["schema"]):
                continue  # what is none of them is 422: test_api_bad_input.py
            value = _VALUES.get(of, "999999" if of == "threshold" else "nobody")
            answer = admin.get(path.format(**NAMES), params={of: value, **_PARENTS.get(of, {})})
            seen.add(of)
            absent = (
                answer.status_code == 404
                if of in _RESOURCES
                else answer.status_code == 200 and answer.json()["items"] == []
            )
            if not absent:
                wrong.append((name, of, answer.status_code, answer.text[:300]))
    shown = "\n".join(map(str, wrong))
    assert not wrong, shown
    assert seen >= _RESOURCES | {"tag", "label", "number", "zone", "search"}


_NO_CHOICES = {"group_by", "split", "bucket"}
"""Parameters that choose how an answer is made up, not what is in it."""
_RANKED_BY = {("get_top_consumers", "meter")}
"""What a ranking has to be of: there is none of all."""


def test_the_values_of_a_filter_part_a_list(admin: "httpx.Client") -> None:
    """Each item is among those of one value: a filter that did nothing would show it with each."""
    seen, wrong = set(), []
    for name in sorted(set(_LISTS) - {"get_tenants"}):
        for parameter in OPERATIONS[name][2]["parameters"]:
            of = parameter["name"]
            values = _choices(parameter["schema"])
            if not values or of in _NO_CHOICES or (name, of) in _RANKED_BY:
                continue
            whole = _read(admin, name, limit="500").json()["items"]
            parts = []
            for value in values:
                answer = _read(admin, name, limit="500", **{of: value})
                assert answer.status_code == 200, (name, of, value, answer.text)
                parts += answer.json()["items"]
            assert whole or name == "get_usage", name
            if sorted(map(repr, parts)) != sorted(map(repr, whole)):
                wrong.append((name, of, len(whole), len(parts)))
            seen.add(of)
    assert not wrong
    assert seen >= {"kind", "state", "reason", "meter", "source", "period"}


def _choices(schema: dict[str, Any]) -> list[str]:
    kinds = [_resolved(each) for each in (schema, *schema.get("anyOf", []))]
    return [
        value
        for each in kinds
        for value in [*each.get("enum", ()), *([each["const"]] if "const" in each else ())]
    ]
