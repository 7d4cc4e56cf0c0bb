"""Filters of lists, made from the OpenAPI document: a new list or filter falls into it."""

from typing import TYPE_CHECKING, Any

import pytest

from api.spans import INSTANTS
from tests.integration.api_scene import seed_by_requests
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
    return module_api.acme


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
    assert len(filled) > len(INSTANTS) * 2 // 3, set(INSTANTS) - filled


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
            schema = parameter["schema"]
            kinds = [_resolved(each) for each in (schema, *schema.get("anyOf", []))]
            if any("enum" in each or "const" in each for each in kinds):
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
