"""Bad input, made for every field of every operation: a 4xx that names the field, and nothing written."""

import asyncio
import base64
import copy
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import psycopg
import pytest
from psycopg import sql

from metering.settings import Settings
from tests.integration.api_scene import keys_of_all, seed_by_requests
from tests.integration.test_access_matrix import (
    DOCUMENT,
    NAMES,
    OPERATIONS,
    body_of,
)

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

T = TypeVar("T")
_SAID = {"title", "description", "examples", "example", "default"}
"""What of a schema is for readers."""
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
    "\u0661",
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
            bad += ["x", 1.5, True, [], {}, 10**30, -(10**30), *_NO_NUMBERS]
            bad += [int(kind["minimum"]) - 1] if "minimum" in kind else []
            bad += [int(kind["maximum"]) + 1] if "maximum" in kind else []
        case "boolean":
            bad += ["maybe", 2, [], {}, *_NO_NUMBERS[:2]]
        case "array":
            bad += [{}, "x", 5, [None]]
            bad += [[]] if kind.get("minItems") else []
            bad += [[None] * (kind["maxItems"] + 1)] if "maxItems" in kind else []
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
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        counts: dict[str, int] = {}
        for (name,) in names.fetchall():
            query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))
            ((counts[name],),) = connection.execute(query).fetchall()
        return counts


@pytest.fixture(scope="module")
def asker(module_api: "ApiUnderTest") -> Iterator["_Asker"]:
    keys = asyncio.run(keys_of_all(module_api.database_url))
    with (
        _client(module_api.url, keys["operator"]) as operator,
        _client(module_api.url, keys["manager"]) as manager,
    ):
        seed_by_requests(module_api.acme)
        for client in (operator, manager, module_api.acme):
            client.get("/v1/fleets")  # now the use of its key is noted
        yield _Asker(module_api.acme, operator, manager)


@pytest.fixture(autouse=True)
def _nothing_is_written(module_api: "ApiUnderTest", asker: "_Asker") -> Iterator[None]:
    """Count rows before and after: what is refused leaves none, not in the audit log either."""
    before = _rows(module_api.database_url)
    asker.wrong.clear()
    asker.seen.clear()
    yield
    assert not asker.wrong, "\n".join(asker.wrong)
    assert _rows(module_api.database_url) == before


def _client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


class _Asker:
    """Sends bad requests and gathers what is wrong with the answers."""

    def __init__(self, admin: httpx.Client, operator: httpx.Client, manager: httpx.Client) -> None:
        self.admin, self.operator, self.manager = admin, operator, manager
        self.wrong: list[str] = []
        self.asked = 0
        self.seen: Counter[str] = Counter()

    def ask(
        self, name: str, field: str, bad: object, *, path: str = "", body: str | None = None,
        params: dict[str, Any] | None = None, headers: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        method, template, _ = OPERATIONS[name]
        given = {"Idempotency-Key": f"bad-{self.asked}"} | (headers or {})
        if body is not None:
            given["Content-Type"] = "application/json"
        self.asked += 1
        answer = self.caller_of(name).request(
            method, path or template.format(**NAMES), params=params, content=body, headers=given
        )
        said = _fault_of(
            answer, field, field_is_body=isinstance(bad, _Raw), also=_TOLD.get(name, 422)
        )
        if said:
            self.wrong.append(f"{name} {field}={bad!r:.60}: {said} {answer.text[:300]}")

    def enough(self, schema: dict[str, Any], values: list[T]) -> list[T]:
        """Return the values to send: all to the first two fields of a schema, else three, in turn."""
        kind = json.dumps({name: schema[name] for name in schema if name not in _SAID})
        self.seen[kind] += 1
        seen = self.seen[kind]
        if seen <= 2:
            return values
        return [values[(3 * seen + each) % len(values)] for each in range(min(3, len(values)))]

    def caller_of(self, name: str) -> httpx.Client:
        """Return who may do an operation."""
        return self.operator if name.endswith(("_tenant", "_tenants")) else self.admin

    def note(
        self, answer: httpx.Response, what: str, *statuses: int, field: str | None = None
    ) -> None:
        """Gather an answer that is no problem document of one of these, or does not name a field."""
        self.asked += 1
        said = None
        if answer.status_code not in statuses:
            said = str(answer.status_code)
        elif answer.headers["content-type"] != "application/problem+json":
            said = "no problem document"
        elif answer.status_code == 422:
            said = _fault_of(answer, field or answer.json()["errors"][0]["field"])
        if said:
            self.wrong.append(f"{what}: {said} {answer.text[:300]}")


def _fault_of(
    answer: httpx.Response, field: str, *, field_is_body: bool = False, also: int = 422
) -> str | None:
    """Return what is wrong with the answer to a bad field; None if it is as it should be.

    A number of thousands of digits makes a body none that can be read.
    """
    if answer.status_code not in {422, also}:
        return str(answer.status_code)
    if answer.headers["content-type"] != "application/problem+json":
        return "no problem document"
    errors = answer.json().get("errors") or []
    named = [part for each in errors for part in each["field"].split(".")]
    if field not in named and not (field_is_body and named == ["body"]):
        return "does not name it"
    if not all(each["problem"] and each["fix"] and each["fix"] != "see /docs" for each in errors):
        return "no fix"
    if any("pattern" in each["problem"] for each in errors):
        return "a pattern, not words"
    return None


def _schema_of_body(operation: dict[str, Any]) -> dict[str, Any] | None:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    return None if content is None else content["schema"]


_ANY_JSON = {"post_carrier_records"}
"""Operations that take any body: what is bad in it is kept as rejected."""
_TOLD = {"patch_fleet": 409, "post_fleet": 409}
"""Operations where some fields are bad for what is there already."""


def test_every_field_of_every_body_is_checked(asker: _Asker) -> None:
    for name, (_, _, operation) in OPERATIONS.items():
        schema = _schema_of_body(operation)
        if schema is None or name in _ANY_JSON:
            continue
        body = body_of(operation)
        for place in _places(schema, body):
            if (name, place.path) == ("post_plan_check", ("terms",)):
                continue  # to tell what is bad in them is what it is for
            named = [part for part in place.path if isinstance(part, str)][-1]
            for bad in asker.enough(place.schema, _bad_values(place.schema)):
                asker.ask(name, named, bad, body=_with(body, place.path, bad))
        asker.ask(name, "no_such_field", 1, body=_with(body, ("no_such_field",), 1))


_BODIES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"nonsense",
    "cut short": b'{"reason": "x',
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "two": b"{}{}",
    "deep lists": b"[" * 10_000 + b"]" * 10_000,
    "deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "fairly deep": b'{"a":' * 400 + b"1" + b"}" * 400,
}


def test_a_body_that_is_no_object_of_json_is_refused(asker: _Asker) -> None:
    for name, (method, path, operation) in OPERATIONS.items():
        if _schema_of_body(operation) is None or name in _ANY_JSON:
            continue
        client = asker.caller_of(name)
        headers = {"Idempotency-Key": "odd", "Content-Type": "application/json"}
        for why, content in _BODIES.items():
            answer = client.request(method, path.format(**NAMES), content=content, headers=headers)
            asker.note(answer, f"{name}: {why}", 422)
        good = json.dumps(body_of(operation)).encode()
        for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x", ""):
            answer = client.request(
                method, path.format(**NAMES), content=good, headers=headers | {"Content-Type": kind}
            )
            asker.note(answer, f"{name}: {kind}", 415)
        first = next(iter(body_of(operation)), None)
        if first is None:
            continue
        twice = b'{"%s": "x", ' % first.encode() + good[1:]
        answer = client.request(method, path.format(**NAMES), content=twice, headers=headers)
        asker.note(answer, f"{name}: twice", 422, field=first)


def test_a_body_within_fields_may_be_deep_for_nobody(asker: _Asker) -> None:
    """Where any JSON may stand, and for callers whose body is searched for what it names."""
    for depth in (60, 300, 900, 10_000):
        deep = '{"a":' * depth + "1" + "}" * depth
        content = '{"kind": "throttle", "payload": %s}' % deep  # noqa: UP031 - braces
        for client in (asker.admin, asker.manager):
            answer = client.post(
                "/v1/devices/acme-1/commands",
                content=content,
                headers={"Idempotency-Key": "deep", "Content-Type": "application/json"},
            )
            asker.note(answer, f"depth {depth}", 422)


def test_a_body_that_is_too_large_is_refused_without_being_read(asker: _Asker) -> None:
    many = Settings.model_fields["api_body_octets_max"].default + 1024 * 1024

    def parts() -> Iterator[bytes]:
        for _ in range(many // 65536):
            yield b" " * 65536

    for path in (
        "/v1/carrier-records",
        "/v1/fleets/acme-north/top-ups",
        "/v1/payment-provider/events",
    ):
        for content in (b" " * many, parts()):
            headers = {"Idempotency-Key": "large", "Content-Type": "application/json"}
            try:
                answer = asker.admin.post(path, content=content, headers=headers)
            except httpx.TransportError:
                continue  # it was refused while it was still being sent
            asker.note(answer, path, 413)


_NO_WAY_IN = [
    "%00", "a%00b", "%ed%a0%80", "%ff", "a%0a", "%2e%2e", "%2e%2e%2f", "a%2fb", "%2520", "%E2%80%AEabc",
    "e%CC%81", "%D9%A1", "9" * 40, "-1", "0", "1e3", "1.0", "%201", "1%20", "+1", "0x1", "a" * 5000,
]  # fmt: skip


def test_odd_paths_lead_nowhere(asker: _Asker) -> None:
    """Whatever a path says in place of a name, the answer is a problem, and it is nothing that is there."""
    for name, (method, path, operation) in OPERATIONS.items():
        for each in operation.get("parameters", []):
            if each["in"] != "path":
                continue
            for odd in asker.enough(each["schema"], _NO_WAY_IN):
                address = path.format(**(NAMES | {each["name"]: odd}))
                answer = asker.caller_of(name).request(
                    method, address, json=body_of(operation), headers={"Idempotency-Key": "odd"}
                )
                asker.note(answer, f"{name} {each['name']}={odd:.30}", 404, 405, 422)


def test_every_parameter_of_every_operation_is_checked(asker: _Asker) -> None:
    for name, (method, path, operation) in OPERATIONS.items():
        if name in {"get_health", "get_ready"}:
            continue
        for each in operation.get("parameters", []):
            if each["name"] == "Fleetmeter-Tenant" or each["in"] == "path":
                continue
            for bad in asker.enough(each["schema"], _bad_parameters(each)):
                headers = {b"Idempotency-Key": b"x"}
                if each["in"] == "header":
                    headers[each["name"].encode()] = bad.encode()
                answer = asker.caller_of(name).request(
                    method,
                    path.format(**NAMES),
                    json=body_of(operation),
                    params={each["name"]: bad} if each["in"] == "query" else None,
                    headers=headers,
                )
                asker.note(answer, f"{name} {each['name']}={bad!r:.40}", 422, field=each["name"])
            if each["in"] == "query":
                answer = asker.caller_of(name).request(
                    method,
                    path.format(**NAMES),
                    json=body_of(operation),
                    params={each["name"]: ["1", "1"]},
                    headers={"Idempotency-Key": "x"},
                )
                asker.note(answer, f"{name} {each['name']} twice", 422, field=each["name"])
        if method == "get":
            answer = asker.caller_of(name).get(path.format(**NAMES), params={"no_such": "1"})
            asker.note(answer, f"{name} unknown", 422, field="no_such")


def _bad_parameters(parameter: dict[str, Any]) -> list[str]:
    """Return texts that a parameter must not be: those of its type's bad values that are texts."""
    if parameter["in"] == "header":
        return ["", "a b", "ä", "x" * 201] if parameter["name"] == "Idempotency-Key" else []
    kinds = _alternatives(parameter["schema"])
    bad = ["a\x00b"]
    if parameter["name"] == "cursor":
        bad += _NO_CURSORS
    if any(kind.get("type") == "integer" for kind in kinds):
        bad += ["x", "", "1.5", "1e3", "NaN", "-1", "9" * 30, "9" * 5000, "0x1", "true", "1_0"]
        if parameter["name"] == "limit":
            bad += ["0", "501", str(10**9), "-5"]
    elif any(kind.get("format") == "date-time" for kind in kinds):
        bad += [each for each in _NO_INSTANTS if isinstance(each, str)] + ["1767225600"]
    elif any("enum" in kind for kind in kinds):
        bad += ["", "nonsense"]
    elif any(kind.get("pattern", "").startswith("^[A-Za-z0-9][A-Za-z0-9._:-]") for kind in kinds):
        bad += _NO_IDS
    return bad


def _cursor(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


_NO_CURSORS = [
    "nonsense", "////", "=", "\u202e", "x" * 1001, _cursor([]), _cursor({}), _cursor(None),
    _cursor([None] * 3), _cursor([10**30]), _cursor(["a\x00b"]), _cursor([1.5]), _cursor([True]),
    _cursor([[[]]]), _cursor("a" * 500),
    base64.urlsafe_b64encode(b"[" * 700).decode(), base64.urlsafe_b64encode(b"[NaN]").decode(),
    _cursor(["\ud800"]), _cursor([-1, -1, -1, -1, -1, -1]),
]  # fmt: skip


def test_what_cannot_be_is_refused_by_its_field(asker: _Asker) -> None:
    """Input whose form is good: it does not go together with what is there."""
    payment = {
        "amount": "5.00",
        "currency": "EUR",
        "method": "cash",
        "received_at": "2026-04-01T00:00:00Z",
    }
    before = {"device_ids": ["acme-1"], "plan_id": "acme-basic", "at": "2025-12-01T00:00:00Z"}
    limit = {"name": "x", "measure": "quantity", "meter": "data", "period": "day", "limit": "5"}
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("/v1/fleets/acme-north/payments", payment | {"currency": "USD"}, "currency"),
        ("/v1/fleets/acme-north/payments", payment | {"currency": "XXX"}, "currency"),
        ("/v1/fleets/acme-north/payments", payment | {"amount": "0"}, "amount"),
        ("/v1/fleets/acme-north/payments", payment | {"amount": "5.001"}, "amount"),
        (
            "/v1/fleets/acme-empty/payments",
            payment | {"currency": "JPY", "amount": "0.5"},
            "amount",
        ),
        (
            "/v1/fleets/acme-north/payments",
            payment | {"received_at": "2126-04-01T00:00:00Z"},
            "received_at",
        ),
        ("/v1/subscriptions", before, "device_ids"),
        ("/v1/subscriptions", before | {"to": "2026-02-01T00:00:00Z"}, "device_ids"),
        ("/v1/subscriptions", before | {"to": "2025-11-01T00:00:00Z"}, "to"),
        ("/v1/fleets/acme-north/thresholds", limit | {"scope": "fleet", "limit": "0"}, "limit"),
        (
            "/v1/fleets/acme-north/thresholds",
            limit | {"scope": "fleet", "meter": "nonsense"},
            "meter",
        ),
    ]
    for number, (path, body, field) in enumerate(bad):
        answer = asker.admin.post(path, json=body, headers={"Idempotency-Key": f"cannot-{number}"})
        asker.note(answer, f"{path} {body}", 422, field=field)
