"""Requests drawn from the OpenAPI document: whatever comes, the answer is one that the document tells of.

A few of each operation here; `make fuzz-api` draws as many as are wanted.
"""

import asyncio
import os
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from schemathesis.checks import CHECKS
from schemathesis.specs.openapi.schemas import OpenApiSchema

from tests.api_document import api_document
from tests.integration.api_scene import Keys, keys_of_all, seed_by_requests

# The API runs beside, in this process: its pool draws when a connection expires, which Hypothesis
# takes for a strategy that draws behind its back.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""How many requests are drawn of each operation and role in the long form; 0: the short form."""
_SEED = int(os.environ.get("FUZZ_SEED", "1"))
_EXAMPLES_OF_ADMIN = 4
_EXAMPLES_OF_OTHERS = 3
_OTHERS = [
    *("billing", "manager", "reader", "device", "operator"),
    *("elsewhere-billing", "elsewhere-manager", "elsewhere-reader"),
]


def _document() -> dict[str, Any]:
    """Return the API's document without streams, which have no end, and the header of operators alone."""
    document = api_document()
    for path, methods in list(document["paths"].items()):
        if any(
            "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
            for operation in methods.values()
        ):
            del document["paths"][path]
            continue
        for operation in methods.values():
            operation["parameters"] = [
                each
                for each in operation.get("parameters", [])
                if each["name"] != "Fleetmeter-Tenant"
            ]
    return document


_DOCUMENT = _document()
_KNOWN_BY_NAME: dict[str, list[str | int]] = {
    "fleet_id": ["acme-north", "acme-empty"],
    "fleet": ["acme-north", "acme-empty"],
    "device_id": ["acme-1", "acme-2", "acme-3"],
    "device": ["acme-1", "acme-2", "acme-3"],
    "plan_id": ["acme-basic"],
    "plan": ["acme-basic"],
    "request_id": ["acme-asked"],
    "endpoint_id": ["0a1b2c3d-4e5f-4061-8273-8495a6b7c8d9"],
    "charge_id": ["3-4-0", "2-1-0"],
    "record_id": ["3-4-0", "2-1-0"],
    "parked_reading_id": ["3-3"],
    "command_id": ["8d7c2f4e-6a1b-4c3d-9e5f-0a1b2c3d4e5f"],
    "alert_no": [1],
    "currency": ["EUR"],
    "meter": ["data", "sms", "voice"],
    "amount": ["1.00", "0.01", "250", "-3.00"],
    "quantity": [1, 60],
    "country": ["DE"],
    "role": ["read_only", "fleet_manager", "device"],
}
_KNOWN_BY_KIND: dict[str, list[str | int]] = {
    "number": [1, 2, 3],
    "time": ["2026-04-10T00:00:00Z", "2026-01-10T00:00:00+01:00", "2026-05-01T00:00:00Z"],
    "day": ["2026-04-10", "2024-02-29"],
}
_DEPTH_MAX = 3
_LISTS = {"device_ids": "device_id", "fleet_ids": "fleet_id"}


def _known(name: str, schema: dict[str, Any]) -> str | None:
    """Return the dictionary that has a good value of a field, if one does."""
    if name in _KNOWN_BY_NAME:
        return name
    kinds = [schema, *schema.get("anyOf", [])]
    if any(each.get("format") == "date-time" for each in kinds):
        return "time"
    if any(each.get("format") == "date" for each in kinds):
        return "day"
    if name.endswith("_no") and any(each.get("type") == "integer" for each in kinds):
        return "number"
    return None


def _fields(schema: dict[str, Any], at: str, depth: int = 0) -> dict[str, Any]:
    """Return where a body names what is there, by the places of its fields."""
    if "$ref" in schema:
        schema = _DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    found: dict[str, Any] = {}
    for name, part in schema.get("properties", {}).items():
        place = f"{at}.{name}"
        kind = _known(name, part)
        if name in _LISTS:
            found[f"{place}[*]"] = _bound(_LISTS[name])
        elif kind is not None:
            found[place] = _bound(kind)
        elif depth < _DEPTH_MAX:
            found |= _fields(part, place, depth + 1)
            found |= _fields(part.get("items", {}), f"{place}[*]", depth + 1)
    return found


def _names(operation: dict[str, Any]) -> dict[str, Any]:
    """Return where the requests of an operation name what is there, most times."""
    found: dict[str, Any] = {}
    for parameter in operation.get("parameters", []):
        kind = _known(parameter["name"], parameter["schema"])
        if kind is not None:
            found[f"{parameter['in']}.{parameter['name']}"] = _bound(kind)
    for content in operation.get("requestBody", {}).get("content", {}).values():
        found |= _fields(content["schema"], "body")
    return found


def _all_names() -> dict[str, Any]:
    """Return `_names` of all operations together: by operation, collecting takes seconds longer."""
    found: dict[str, Any] = {}
    for methods in _DOCUMENT["paths"].values():
        for operation in methods.values():
            for place, bound in _names(operation).items():
                assert found.setdefault(place, bound) == bound, place
    return found


def _bound(dictionary: str) -> dict[str, Any]:
    return {"dictionary": dictionary, "probability": 0.8}


def _schema(examples: int) -> OpenApiSchema:
    return schemathesis.openapi.from_dict(
        _DOCUMENT,
        config=schemathesis.Config.from_dict(
            {
                "seed": _SEED,
                "request-timeout": 60,
                "generation": {
                    "max-examples": _EXAMPLES or examples,
                    "no-shrink": True,
                    "deterministic": True,
                    "database": "none",
                    "with-security-parameters": False,
                },
                "phases": {"coverage": {"enabled": bool(_EXAMPLES)}},
                "dictionaries": {
                    name: {"values": values}
                    for name, values in (_KNOWN_BY_NAME | _KNOWN_BY_KIND).items()
                },
                "parameters": _all_names(),
                "checks": {
                    # What a caller does not reach is not there, whatever else the request lacks.
                    "missing_required_header": {
                        "expected-statuses": [400, 401, 403, 404, 406, 415, 422]
                    }
                },
            }
        ),
    )


_OF_ADMIN = _schema(_EXAMPLES_OF_ADMIN)
_OF_OTHERS = _schema(_EXAMPLES_OF_OTHERS)
_CHECKS: Any = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "missing_required_header",
        "unsupported_method",
    ]
)


@pytest.fixture(scope="module")
def keys(module_api_with_broker: "ApiUnderTest") -> Keys:
    seed_by_requests(module_api_with_broker.acme)
    return asyncio.run(keys_of_all(module_api_with_broker.database_url))


@_OF_ADMIN.parametrize()
def test_an_administrator_is_answered_as_documented(
    case: schemathesis.Case[Any], module_api_with_broker: "ApiUnderTest", keys: Keys
) -> None:
    _ask(case, module_api_with_broker.url, keys["admin"])


@_OF_OTHERS.parametrize()
def test_every_other_role_is_answered_as_documented(
    case: schemathesis.Case[Any], module_api_with_broker: "ApiUnderTest", keys: Keys
) -> None:
    """What a request says draws who sends it, so that it is the same one when it fails and is sent again."""
    said = repr((case.path_parameters, case.query, case.body)).encode("utf-8", "surrogatepass")
    role = _OTHERS[zlib.crc32(said) % len(_OTHERS)]
    _ask(
        case,
        module_api_with_broker.url,
        keys[role],
        {"Fleetmeter-Tenant": "acme"} if role == "operator" else {},
    )


def _ask(
    case: schemathesis.Case[Any],
    url: str,
    key: str,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> None:
    response = case.call(base_url=url, headers={"Authorization": f"Bearer {key}", **headers})
    case.validate_response(response, checks=_CHECKS)
