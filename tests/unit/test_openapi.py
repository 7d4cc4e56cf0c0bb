"""What every operation keeps to, checked over the OpenAPI document: who adds one falls into it."""

import ast
import copy
import hashlib
import json
import subprocess
import sys
from datetime import date, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from api import manners
from api.app import create_app
from api.compatibility import breaks
from api.events_page import events_page
from api.examples import Examples
from api.locations import LOCATIONS
from api.openapi_document import finished, operations_of, shape_of, written
from api.pattern_words import PATTERN_FIXES
from api.problems import KINDS, problems_page
from api.rights import OPEN, RIGHTS
from api.spans import INSTANTS, WITHOUT
from metering.settings import Settings
from tests.api_document import PATH, api_document

_ROOT = Path(__file__).parents[2]
_DOCUMENT = api_document()
_SCHEMAS = _DOCUMENT["components"]["schemas"]
_OPERATIONS = {
    operation["operationId"]: (method, operation)
    for method, _, operation in operations_of(_DOCUMENT)
}
_NO_PAGES = {
    "get_tax_rules": "put as a whole, and as bounded as that",
}
"""Operations whose answer is a list without pages, and why."""
_NOTHING_NEW = {"post_webhook_replay", "post_webhook_test", "post_webhook_replays"}
"""Operations that let an endpoint be told, which answer what becomes of it."""
_RANKINGS = {"get_top_consumers"}
"""Lists of which only the first places are asked for."""


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = _SCHEMAS[schema["$ref"].rpartition("/")[2]]
    return schema


def _answer(operation: dict[str, Any]) -> dict[str, Any]:
    content = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
    return _resolved(content.get("schema", {}))


def test_the_committed_document_and_pages_are_those_of_the_code() -> None:
    """`make openapi` brings them up to date."""
    app = create_app(Settings(database_url="postgresql://nobody@127.0.0.1:1/none"))
    assert PATH.read_text("utf-8") == written(app.openapi())
    assert (_ROOT / "docs/problems.md").read_text("utf-8") == problems_page()
    assert (_ROOT / "docs/events.md").read_text("utf-8") == events_page()


def test_nothing_breaks_clients_of_the_released_document() -> None:
    """docs/api.md says what to do where something has to."""
    released = json.loads((_ROOT / "docs/openapi-released.json").read_text("utf-8"))
    assert breaks(released, _DOCUMENT) == []


def test_the_released_document_changes_with_a_release_alone() -> None:
    """Who releases a version adds its line; a change that is no release leaves the document as it is."""
    kept = (_ROOT / "docs/openapi-released.json").read_bytes()
    lines = (_ROOT / "tests/golden/openapi-released.txt").read_text("utf-8").splitlines()
    released = [line.split() for line in lines if not line.startswith("#")]
    versions = [version for version, _ in released]
    numbers = [[int(part) for part in version.split(".")] for version in versions]
    assert numbers == sorted(numbers)
    assert len(set(versions)) == len(versions)
    assert released[-1] == [json.loads(kept)["info"]["version"], hashlib.sha256(kept).hexdigest()]


def test_operations_are_named_and_described() -> None:
    assert len(_OPERATIONS) == sum(1 for _ in operations_of(_DOCUMENT))
    assert set(_OPERATIONS) == set(RIGHTS) | OPEN
    tags = {tag["name"]: tag["description"] for tag in _DOCUMENT["tags"]}
    for name, (_, operation) in _OPERATIONS.items():
        assert operation.get("description"), name
        (tag,) = operation["tags"]
        assert tags[tag] != tag, f"{tag} has no description in api/openapi_document.py"
        assert bool(operation.get("security")) == (name not in OPEN), name


def _contents() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, (_, operation) in _OPERATIONS.items():
        for status, answer in operation["responses"].items():
            if status.startswith("2"):
                assert answer.get("content") or status == "204", (name, status)
                found += [(f"{name} {status}", each) for each in answer.get("content", {}).values()]
        body = operation.get("requestBody", {}).get("content", {})
        found += [(f"{name} body", each) for each in body.values()]
    return found


def test_every_body_and_answer_has_an_example_that_fits() -> None:
    for place, content in _contents():
        schema = content["schema"]
        given = [content["example"]] if "example" in content else []
        given += [each["value"] for each in content.get("examples", {}).values()]
        given += [] if given else _resolved(schema).get("examples", [])
        assert given, place
        for each in given:
            jsonschema.validate(each, {**schema, "components": {"schemas": _SCHEMAS}})


def test_every_text_in_an_example_says_something() -> None:
    """Give a field `examples=[…]` if its name and type do not tell what it holds."""
    examples = Examples(_SCHEMAS)
    for _, content in _contents():
        if "$ref" in content["schema"]:
            examples.of(content["schema"])
    assert examples.unknown == set()


def _patterns(part: object) -> set[str]:
    if isinstance(part, list):
        return set().union(*map(_patterns, part)) if part else set()
    if not isinstance(part, dict):
        return set()
    own = {part["pattern"]} if isinstance(part.get("pattern"), str) else set()
    return own.union(*map(_patterns, part.values()))


def test_every_pattern_is_told_in_words() -> None:
    """Who adds a pattern says in `PATTERN_FIXES` (api/pattern_words.py) what fits it."""
    assert _patterns(_DOCUMENT) <= set(PATTERN_FIXES)


def test_lists_have_pages() -> None:
    for name, (method, operation) in _OPERATIONS.items():
        answer = _answer(operation).get("properties", {})
        parameters = {each["name"]: each for each in operation.get("parameters", ())}
        is_list = method == "get" and (
            "items" in answer or _answer(operation).get("type") == "array"
        )
        if name in _RANKINGS:
            assert "limit" in parameters
            assert "cursor" not in parameters
            continue
        assert is_list == ("next_cursor" in answer), name
        assert is_list == ("cursor" in parameters), name
        if is_list:
            limit = parameters["limit"]["schema"]
            assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, 500, 100), name
            assert not parameters["cursor"].get("required"), name
            assert answer["items"]["type"] == "array", name
        elif method == "get" and len(answer) == 1:
            (only,) = answer.values()
            assert only.get("type") != "array" or name in _NO_PAGES, name


def _instants_of(answer: dict[str, Any]) -> set[str]:
    """Return which fields of a list's items are times."""
    item = answer["items"]["items"]
    while several := item.get("anyOf") or item.get("oneOf"):
        item = several[0]
    of = _resolved(item).get("properties", {})
    return {
        name
        for name, field in of.items()
        if any(each.get("format") == "date-time" for each in (field, *field.get("anyOf", ())))
    }


def test_lists_of_what_has_an_instant_are_narrowed_by_it() -> None:
    """Who adds such a list gives it `Within`, or says in `WITHOUT` (api/spans.py) why it has none."""
    lists = {}
    for name, (method, operation) in _OPERATIONS.items():
        answer = _answer(operation).get("properties", {})
        if method != "get" or "items" not in answer or "next_cursor" not in answer:
            continue
        lists[name] = _instants_of(answer)
        names = {each["name"] for each in operation.get("parameters", ())}
        if name in INSTANTS:
            assert INSTANTS[name] in lists[name], name
            assert names >= {"from", "to"}, name
        else:
            assert not lists[name] or name in WITHOUT, name
    assert set(lists) >= set(INSTANTS) | set(WITHOUT)
    assert not set(INSTANTS) & set(WITHOUT)


def test_what_makes_something_says_where_it_is() -> None:
    """Who adds an operation that answers 201 says in `LOCATIONS` where what it makes is shown."""
    shown = {shape_of(path) for method, path, _ in operations_of(_DOCUMENT) if method == "get"}
    for name, (_, operation) in _OPERATIONS.items():
        if "201" in operation["responses"]:
            assert shape_of(LOCATIONS[name]) in shown, name
        for status in ("201", "202"):
            answer = operation["responses"].get(status, {})
            if "Location" in answer.get("headers", {}):
                again = operation["responses"].get("200", {"headers": {"Location": {}}})
                assert "Location" in again["headers"], name
            else:
                assert status not in operation["responses"] or name in _NOTHING_NEW, name
    assert set(LOCATIONS) <= set(_OPERATIONS)


def test_commands_are_done_once() -> None:
    """Who adds a POST gives it an `Idempotency-Key`, or says in `ONCE_ANYWAY` why it needs none."""
    for name, (method, operation) in _OPERATIONS.items():
        keys = [
            each for each in operation.get("parameters", ()) if each["name"] == "Idempotency-Key"
        ]
        required = bool(keys) and keys[0]["required"]
        if method == "post":
            assert required != (name in manners.ONCE_ANYWAY), name
            if required:
                assert "200" in operation["responses"], f"{name}: how is a repetition answered?"
        if name in manners.MOVES_MONEY:
            assert required, name
    assert set(_OPERATIONS) >= manners.MOVES_MONEY
    assert set(_OPERATIONS) >= set(manners.ONCE_ANYWAY)


def test_every_operation_says_how_it_fails() -> None:
    for name, (_, operation) in _OPERATIONS.items():
        statuses = {status for status in operation["responses"] if status > "400"}
        wanted = {"404", "406", "409", "422", "500", "503"}
        wanted |= {"401", "403", "429"} if operation.get("security") else set()
        wanted |= {"413", "415"} if "requestBody" in operation else set()
        assert statuses >= wanted, name
        for status in statuses:
            answer = operation["responses"][status]
            kind = answer["$ref"].rpartition("/")[2]
            shown = _DOCUMENT["components"]["responses"][kind]
            assert shown["content"]["application/problem+json"]["example"]["status"] == int(status)


def test_every_problem_that_is_raised_is_in_the_table() -> None:
    statuses = {kind.status for kind in KINDS}
    names = {kind.name for kind in KINDS}
    assert len(names) == len(KINDS)
    raised = 0
    for file in (_ROOT / "api").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id not in {"ProblemError", "HTTPException", "bad_input"}:
                continue
            raised += 1
            for part in ast.walk(node):
                if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "HTTPStatus":
                    assert HTTPStatus[part.attr] in statuses, (file, node.lineno)
            for keyword in node.keywords:
                if keyword.arg == "kind" and isinstance(keyword.value, ast.Constant):
                    assert keyword.value.value in names, (file, node.lineno)
    assert raised > 30


def test_types_of_problems_stay() -> None:
    """Programs know them: one may come, none may go or change."""
    assert {kind.type.removeprefix("urn:fleetmeter:"): kind.status.value for kind in KINDS} == {
        "bad-request": 400,
        "unauthorized": 401,
        "forbidden": 403,
        "not-found": 404,
        "method-not-allowed": 405,
        "not-acceptable": 406,
        "conflict": 409,
        "precondition-failed": 412,
        "request-entity-too-large": 413,
        "unsupported-media-type": 415,
        "unprocessable-entity": 422,
        "idempotency-key-reused": 422,
        "too-many-requests": 429,
        "internal-server-error": 500,
        "service-unavailable": 503,
    }


def test_what_is_deprecated_stays_for_half_a_year(monkeypatch: pytest.MonkeyPatch) -> None:
    for told in manners.DEPRECATIONS.values():
        assert told.sunset - told.since >= timedelta(days=180)
    assert set(_OPERATIONS) >= set(manners.DEPRECATIONS)
    told = manners.Deprecation(
        since=date(2026, 1, 1), sunset=date(2026, 7, 1), instead="get_devices"
    )
    monkeypatch.setitem(manners.DEPRECATIONS, "get_fleets", told)
    document = finished(copy.deepcopy(_DOCUMENT))
    operation = document["paths"]["/v1/fleets"]["get"]
    assert operation["deprecated"] is True
    assert "use get_devices" in operation["description"]


# What breaks clients -----------------------------------------------------------------------------


def _changed(*path: str | int, to: Any = None) -> list[str]:  # noqa: ANN401 - any JSON
    """Change something of the document, or take it away; return what that breaks."""
    new = copy.deepcopy(_DOCUMENT)
    *way, last = path
    part: Any = new
    for each in way:
        part = part[each]
    if to is None:
        del part[last]
    else:
        part[last] = to
    return breaks(_DOCUMENT, new)


def _parameter(path: str, name: str) -> int:
    parameters = _DOCUMENT["paths"][path]["get"]["parameters"]
    return next(place for place, each in enumerate(parameters) if each["name"] == name)


_FLEET = ("components", "schemas", "Fleet")
_TOP_UP = ("components", "schemas", "TopUpOrder")
_PLAN = ("components", "schemas", "PlanDocument")
_OK = ("paths", "/v1/fleets/{fleet_id}", "get", "responses", "200")
_LIMIT = ("paths", "/v1/fleets", "get", "parameters", _parameter("/v1/fleets", "limit"))


@pytest.mark.parametrize(
    ("path", "to", "told"),
    [
        (("paths", "/v1/fleets", "get"), None, "GET /v1/fleets: is gone, and was not deprecated"),
        (("paths", "/v1/fleets", "get", "operationId"), "x", "its operationId is another"),
        (("paths", "/v1/fleets", "get", "responses", "200"), None, "does not answer 200 any more"),
        (_LIMIT, None, "the query parameter limit is gone"),
        ((*_LIMIT, "required"), True, "wants the query parameter limit"),
        ((*_LIMIT, "schema", "maximum"), 50, "its maximum is 50, and was 500"),
        ((*_LIMIT, "schema", "type"), "boolean", "takes no integer"),
        ((*_FLEET, "properties", "name"), None, "Fleet.name: is gone"),
        ((*_FLEET, "required"), ["fleet_id"], "Fleet.name: may be left out"),
        ((*_FLEET, "properties", "name", "type"), "integer", "Fleet.name: may be integer"),
        ((*_TOP_UP, "required"), ["meter", "quantity", "name"], "TopUpOrder.name: is required"),
        ((*_TOP_UP, "properties", "name"), None, "TopUpOrder.name: is gone"),
        ((*_TOP_UP, "properties", "meter", "enum"), ["data"], "sms is not taken any more"),
        ((*_TOP_UP, "properties", "quantity", "minimum"), 10**6, "its minimum is 1000000"),
        ((*_PLAN, "properties", "monthly_fee"), None, "PlanDocument.monthly_fee: is gone"),
        ((*_TOP_UP, "anyOf"), [{"required": ["name"]}], "TopUpOrder: its conditions are others"),
        (
            (*_FLEET, "properties", "created_at", "format"),
            "date",
            "created_at: its format is another",
        ),
        (("paths", "/v1/fleets", "post", "requestBody"), None, "takes no body any more"),
        ((*_OK, "headers", "ETag"), None, "answer 200 has no header ETag any more"),
        (("paths", "/health", "get", "security"), [{"key": []}], "GET /health: wants a key"),
    ],
)
def test_a_break_is_told(path: tuple[str | int, ...], to: object, told: str) -> None:
    assert any(told in each for each in _changed(*path, to=to)), _changed(*path, to=to)


def test_whatever_goes_is_told() -> None:
    """No field of any schema is out of the comparison's sight."""
    new = copy.deepcopy(_DOCUMENT)
    gone = set()
    for name, schema in new["components"]["schemas"].items():
        leaves = [of for of, part in schema.get("properties", {}).items() if not _leads_on(part)]
        gone |= {f"{name}.{of}: is gone" for of in leaves}
        for of in leaves:
            del schema["properties"][of]
    told = breaks(_DOCUMENT, new)
    unseen = {each for each in gone if not any(line.endswith(f", {each}") for line in told)}
    assert len(gone) > 1000
    assert not unseen


def _leads_on(part: object) -> bool:
    """Whether a field leads to other schemas, or tells alternatives apart."""
    if isinstance(part, list):
        return any(map(_leads_on, part))
    if not isinstance(part, dict):
        return False
    return "$ref" in part or "const" in part or any(map(_leads_on, part.values()))


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("paths", "/v1/new"), {"get": {"operationId": "get_new", "responses": {"200": {}}}}),
        ((*_FLEET, "properties", "colour"), {"type": "string"}),
        ((*_TOP_UP, "properties", "colour"), {"type": "string"}),
        ((*_TOP_UP, "required"), ["quantity"]),
        ((*_LIMIT, "schema", "maximum"), 1000),
        ((*_TOP_UP, "properties", "meter", "enum"), "data sms voice messages fax".split()),
    ],
)
def test_what_is_new_or_wider_breaks_nothing(path: tuple[str | int, ...], to: object) -> None:
    assert _changed(*path, to=to) == []


def test_what_was_deprecated_may_go() -> None:
    old = copy.deepcopy(_DOCUMENT)
    for operation in old["paths"]["/v1/fleets"].values():
        operation["deprecated"] = True
    new = copy.deepcopy(_DOCUMENT)
    del new["paths"]["/v1/fleets"]
    assert breaks(old, new) == []


def test_the_command_tells_breaks(tmp_path: Path) -> None:
    new = copy.deepcopy(_DOCUMENT)
    del new["paths"]["/v1/fleets"]
    (tmp_path / "new.json").write_text(json.dumps(new), "utf-8")
    old = _ROOT / "docs/openapi.json"
    done = subprocess.run(
        [sys.executable, "-m", "api.compatibility", old, tmp_path / "new.json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=_ROOT,
    )
    assert done.returncode == 1
    assert "GET /v1/fleets: is gone, and was not deprecated\n" in done.stdout
