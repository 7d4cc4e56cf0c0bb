"""What two people may edit, made from the OpenAPI document: a new operation falls into it."""

from typing import TYPE_CHECKING

import httpx

from api.openapi_document import shape_of
from tests.integration.api_scene import operating, seed_by_requests
from tests.integration.test_access_matrix import DOCUMENT, NAMES, OPERATIONS, body_of

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

_OF_THE_PLATFORM = {"patch_tenant"}
_NO_EDIT = {
    "revoke_api_key": "a key is revoked once, and is not edited",
    "delete_credential": "a credential is withdrawn as it is, whichever it is",
}
"""What is changed or taken away without `If-Match`, and why."""
_LAST = ("disable", "delete", "remove", "enable")
_SHAPES = {shape_of(path): path for path, item in DOCUMENT["paths"].items() if "get" in item}


def _takes_match(name: str) -> bool:
    return any(each["name"] == "If-Match" for each in OPERATIONS[name][2].get("parameters", ()))


def _shown_at(path: str) -> str:
    """Return the address at which what is changed is shown."""
    while shape_of(path) not in _SHAPES:
        path = path.rpartition("/")[0]
    return path.format(**NAMES)


def test_whatever_is_edited_takes_if_match() -> None:
    """Who adds a PUT, PATCH or DELETE lets it take `IfMatch`, or says in `_NO_EDIT` why not."""
    edits = {
        name for name, (method, _, _) in OPERATIONS.items() if method in {"put", "patch", "delete"}
    }
    several = {"patch_devices"}  # `if_match` stands beside each
    assert {name for name in edits if not _takes_match(name)} == set(_NO_EDIT) | several


def test_a_tag_is_told_where_the_document_says(module_api: "ApiUnderTest") -> None:
    admin = module_api.acme
    seed_by_requests(admin)
    told = set()
    for name, (method, path, operation) in OPERATIONS.items():
        if method != "get" or path.endswith("/stream"):
            continue
        answer = admin.get(path.format(**NAMES))
        if answer.status_code == 200:
            declared = operation["responses"]["200"].get("headers", {})
            assert ("ETag" in answer.headers) == ("ETag" in declared), name
            told |= {name} if "ETag" in declared else set()
    assert {"get_fleet", "get_plan", "get_billing", "get_webhook_endpoint"} <= told


def test_what_was_changed_since_it_was_seen_is_left(api: "ApiUnderTest") -> None:
    seed_by_requests(api.acme)
    with operating(api.url, api.database_url) as operator:
        _edit(api, operator)


def _edit(api: "ApiUnderTest", operator: httpx.Client) -> None:
    edits = sorted(filter(_takes_match, OPERATIONS), key=_order)
    for name in edits:
        method, path, operation = OPERATIONS[name]
        client = operator if name in _OF_THE_PLATFORM else api.acme
        body = body_of(operation)
        given = {} if body is None else {"json": body}
        address = _shown_at(path)
        seen = client.get(address)
        late = client.request(method, path.format(**NAMES), headers={"If-Match": '"x"'}, **given)
        assert late.status_code == 412, (name, late.text)
        assert client.get(address).json() == seen.json(), name
        match = {"If-Match": f'"x", {seen.headers["ETag"]}'}
        done = client.request(method, path.format(**NAMES), headers=match, **given)
        assert done.is_success or name == "delete_fleet", (name, done.text)
    assert len(edits) > 15


def _order(name: str) -> tuple[int, str]:
    places = [place for place, verb in enumerate(_LAST, 1) if name.startswith(verb)]
    return (places[0] if places else 0, name)


def test_of_several_devices_each_is_as_it_was_seen(api: "ApiUnderTest") -> None:
    tags = [api.acme.get(f"/v1/devices/acme-{n}").headers["ETag"] for n in (1, 2)]
    patches = [
        {"device_id": f"acme-{n}", "name": "Cellar", "if_match": tag}
        for n, tag in zip((1, 2), tags, strict=True)
    ]
    assert api.acme.patch("/v1/devices/acme-2", json={"name": "Attic"}).status_code == 200
    late = api.acme.patch("/v1/devices", json={"devices": patches})
    assert late.status_code == 412
    assert [each["field"] for each in late.json()["errors"]] == ["devices.1.if_match"]
    names = [api.acme.get(f"/v1/devices/acme-{n}").json()["name"] for n in (1, 2)]
    assert names == [None, "Attic"]
    patches[1]["if_match"] = api.acme.get("/v1/devices/acme-2").headers["ETag"]
    assert api.acme.patch("/v1/devices", json={"devices": patches}).status_code == 200
    of_all = api.acme.patch(
        "/v1/devices", json={"devices": patches[:1]}, headers={"If-Match": tags[0]}
    )
    assert of_all.status_code == 422
    assert of_all.json()["errors"][0]["field"] == "If-Match"
