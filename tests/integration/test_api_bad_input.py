"""Bad input, made for every field of every operation: a 4xx that names the field, and nothing written."""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest

from tests.integration.test_access_matrix import (
    CARRIER_RECORDS,
    DOCUMENT,
    NAMES,
    OPERATIONS,
    body_of,
)

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

_SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
_NUL, _SURROGATE = "a\x00b", "a\ud800b"


class _Raw:
    """A JSON text that `json.dumps` would not write."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text[:40]


_NO_NUMBERS = [_Raw("NaN"), _Raw("Infinity"), _Raw("-Infinity"), _Raw("1e400"), _Raw("9" * 5000)]
_NO_DECIMALS = [
    "NaN", "Infinity", "1e400", "1e3", "", " 1", "1 ", "+1", "1,5", ".5", "5.", "0x10", "1_000", "\u0661",
    "9" * 50, "0." + "1" * 50, "-" + "9" * 50, 5, 1.5,
]  # fmt: skip
_NO_INSTANTS = [
    "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "10000-01-01T00:00:00Z",
    "1969-12-31T23:59:59Z", "2026-06-30T23:59:60Z", "2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z",
    "2026-01-01T24:00:01Z", "2026-01-01T00:00:00+99:99", "2026-01-01T00:00:00", "2026-01-01",
    "2026-01-01 00:00:00Z", "yesterday", "", 1767225600, 1e400,
]  # fmt: skip
_NO_DAYS = [
    "0000-01-01",
    "2026-02-29",
    "2026-13-01",
    "10000-01-01",
    "1.1.2026",
    "",
    "2026-01-01T12:00:00Z",
]
_NO_TEXTS = [_NUL, _SURROGATE, 5, True, ["a"], {"a": "b"}]
_NO_IDS = [
    "",
    " ",
    "a/b",
    "a+b",
    "#",
    "../x",
    "a" * 65,
    "\u202eabc",
    "e\u0301",
    "a\n",
    "a%2fb",
    "١",
]


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return _SCHEMAS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    schema = _resolved(schema)
    parts = schema.get("anyOf") or schema.get("oneOf")
    return [each for part in parts for each in _alternatives(part)] if parts else [schema]


def _bad_values(schema: dict[str, Any]) -> list[Any]:
    """Return what a field of a schema must not be; nothing that one of its alternatives takes."""
    kinds = _alternatives(schema)
    types = {kind.get("type") for kind in kinds}
    bad: list[Any] = [] if "null" in types or schema.get("default", 0) is None else [None]
    if len(types - {"null"}) != 1:
        return bad
    (kind, *others) = [each for each in kinds if each.get("type") != "null"]
    match kind.get("type"):
        case "integer":
            bad += ["x", 1.5, True, [], {}, 10**18 + 1, 10**30, -(10**30), *_NO_NUMBERS]
            bad += [kind["minimum"] - 1] if "minimum" in kind else []
        case "boolean":
            bad += ["maybe", 2, [], {}, *_NO_NUMBERS[:2]]
        case "array":
            bad += [{}, "x", 5, [None]]
            bad += [[]] if kind.get("minItems") else []
            bad += [[None] * 100_000]
        case "object":
            bad += [[], "x", 5, {"no_such_field": 1}]
        case "string" if others:
            bad += [_NUL, 5, [], {}]
        case "string":
            bad += _bad_texts(kind)
    return bad


def _bad_texts(kind: dict[str, Any]) -> list[Any]:
    pattern = kind.get("pattern", "")
    bad: list[Any] = list(_NO_TEXTS)
    if "enum" in kind or "const" in kind:
        bad += ["", "nonsense"]
    if kind.get("format") == "date-time":
        bad += _NO_INSTANTS
    if kind.get("format") == "date":
        bad += _NO_DAYS
    if kind.get("format") == "uuid":
        bad += ["", "nonsense", "0" * 1000]
    if pattern.startswith(("^[0-9]{1,", "^-?[0-9]")):
        bad += _NO_DECIMALS
        bad += ["-1", "-0.01"] if "-?" not in pattern else []
    elif pattern.startswith("^[A-Z]"):
        bad += ["", "€", "eur", "EUR\u0000", "ÄÖÜ"]
    elif pattern.startswith("^[A-Za-z0-9][A-Za-z0-9._:-]"):
        bad += _NO_IDS
    if "maxLength" in kind:
        bad.append("x" * (kind["maxLength"] + 1))
    elif pattern:
        bad.append("x" * 100_000)
    return bad


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A field of a body: its path, and what may stand there."""

    path: tuple[str | int, ...]
    schema: dict[str, Any]


def _places(
    schema: dict[str, Any], value: object, path: tuple[str | int, ...] = ()
) -> Iterator[_Place]:
    """Yield the fields of a body, those too which an example leaves out, if it has what they are in."""
    if path:
        yield _Place(path=path, schema=schema)
    kinds = _alternatives(schema)
    if isinstance(value, dict):
        fields: dict[str, Any] = {}
        for kind in kinds:
            fields = kind.get("properties", {}) | fields
        for name, part in fields.items():
            yield from _places(part, value.get(name), (*path, name))
    elif isinstance(value, list) and value:
        for kind in kinds:
            if kind.get("type") == "array":
                yield from _places(kind["items"], value[0], (*path, 0))


def _with(body: Any, path: tuple[str | int, ...], bad: object) -> str:  # noqa: ANN401 - any JSON
    """Return a body's text with another value at a place."""
    changed = copy.deepcopy(body)
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = "<<here>>" if isinstance(bad, _Raw) else bad
    text = json.dumps(changed)
    return text.replace('"<<here>>"', bad.text) if isinstance(bad, _Raw) else text


def _rows(url: str) -> dict[str, int]:
    """Return how many rows each table has."""
    with psycopg.connect(url) as connection:
        names = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
        ).fetchall()
        return {
            name: connection.execute(f'SELECT count(*) FROM "{name}"'.encode()).fetchone()[0]  # type: ignore[index]
            for (name,) in names
        }


@pytest.fixture(scope="module")
def api(module_api: "ApiUnderTest") -> Iterator["ApiUnderTest"]:
    """Yield the API, and check at the end of a test that nothing was written."""
    return module_api


@pytest.fixture(autouse=True)
def nothing_is_written(module_api: "ApiUnderTest") -> Iterator[None]:
    """Count rows before and after: what is refused leaves none, not in the audit log either."""
    module_api.acme.get("/v1/fleets")  # its key's use is noted
    before = _rows(module_api.database_url)
    yield
    assert _rows(module_api.database_url) == before


class _Asker:
    """Sends bad requests and gathers what is wrong with the answers."""

    def __init__(self, api: "ApiUnderTest") -> None:
        self._client = api.acme
        self.wrong: list[str] = []
        self.asked = 0

    def ask(
        self, name: str, field: str, bad: object, *, path: str = "", body: str | None = None,
        params: dict[str, Any] | None = None, headers: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        method, template, _ = OPERATIONS[name]
        given = {"Idempotency-Key": f"bad-{self.asked}"} | (headers or {})
        if body is not None:
            given["Content-Type"] = "application/json"
        self.asked += 1
        answer = self._client.request(
            method, path or template.format(**NAMES), params=params, content=body, headers=given
        )
        said = _fault_of(answer, field)
        if said:
            self.wrong.append(f"{name} {field}={bad!r:.60}: {said} {answer.text[:300]}")


def _fault_of(answer: httpx.Response, field: str) -> str | None:
    """Return what is wrong with the answer to a bad field; None if it is as it should be."""
    if answer.status_code != 422:
        return str(answer.status_code)
    if answer.headers["content-type"] != "application/problem+json":
        return "no problem document"
    errors = answer.json().get("errors") or []
    if not any(field in each["field"].split(".") for each in errors):
        return "does not name it"
    if not all(each["problem"] and each["fix"] and each["fix"] != "see /docs" for each in errors):
        return "no fix"
    return None


def _schema_of_body(operation: dict[str, Any]) -> dict[str, Any] | None:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    return None if content is None else content["schema"]


def test_every_field_of_every_body_is_checked(api: "ApiUnderTest") -> None:
    asker = _Asker(api)
    for name, (_, _, operation) in OPERATIONS.items():
        schema = _schema_of_body(operation)
        if schema is None:
            continue
        body = body_of(operation)
        for place in _places(schema, body):
            named = [part for part in place.path if isinstance(part, str)][-1]
            for bad in _bad_values(place.schema):
                asker.ask(name, named, bad, body=_with(body, place.path, bad))
        asker.ask(name, "no_such_field", 1, body=_with(body, ("no_such_field",), 1))
    print(asker.asked)
    assert not asker.wrong, "\n".join(asker.wrong)
