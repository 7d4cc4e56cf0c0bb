"""Examples of bodies and answers, made of their schemas where a route gives none.

A field's own `examples` come first, then its type, then what its name says. A text whose name says nothing
is gathered in `unknown`, for a test to ask for an example of it.
"""

from collections.abc import Mapping
from typing import Any

_ABSENT = object()
_DEPTH_MAX = 12

_BY_FORMAT = {
    "date-time": "2026-04-15T12:00:00Z",
    "date": "2026-04-15",
    "uuid": "0a1b2c3d-4e5f-4061-8273-8495a6b7c8d9",
    "uri": "https://hooks.example.com/fleetmeter",
    "binary": "…",
}
_TEXTS: Mapping[str, str] = {
    "address": "https://hooks.example.com/fleetmeter",
    "against": "consumption",
    "apn": "iot.example",
    "band": "peak",
    "bands": "peak",
    "bic": "COBADEFFXXX",
    "boot": "7",
    "boot_id": "7",
    "bucket": "included",
    "cause": "threshold 3",
    "charge_id": "17-3-0",
    "city": "Hamburg",
    "content_base64": "eyJzZXEiOiAxfQ==",
    "content_preview": '{"seq": 1}',
    "counter_epoch": "1",
    "country": "DE",
    "currency": "EUR",
    "customer": "cus_4711",
    "cycle": "month",
    "database": "ok",
    "detail": "the reading is of a device that is not known",
    "device_id": "meter-7",
    "device_ids": "meter-7",
    "due": "2026-05-14",
    "email": "bills@example.com",
    "exact_amount": "0.0425",
    "field": "payload",
    "fix": "use an id that exists",
    "fleet_id": "north",
    "fleet_ids": "north",
    "format": "native",
    "from_account": "credit",
    "holder": "Example GmbH",
    "iban": "DE89370400440532013000",
    "iccid": "8949000000000000018",
    "imei": "490154203237518",
    "imsi": "262010000000007",
    "intent_id": "pi_4711",
    "issuer": "https://login.example.com",
    "key": "fmk_2pX…",
    "kind": "usage",
    "kinds": "threshold.crossed",
    "label": "dashboard",
    "last_error": "HTTP 500",
    "line": "Harbour Street 1",
    "lines": "Harbour Street 1",
    "limit": "5.00",
    "made_of": "subscriptions and states, whatever was used",
    "meter": "data",
    "method": "bank transfer",
    "msisdn": "491700000007",
    "name": "North",
    "number": "INV-2026-000007",
    "operation": "top_up_device",
    "parked_reason": "no_subscription",
    "payload": "{}",
    "payment_method": "pm_4711",
    "per": "1 GB",
    "percent": "80",
    "plan": "basic",
    "plan_id": "basic",
    "plan_name": "Basic",
    "postcode": "20095",
    "prefix": "INV-",
    "price": "2.00",
    "problem": "is not there",
    "rat": "lte",
    "reason": "a customer's complaint",
    "reason_code": "VATEX-EU-O",
    "reference": "PO 4711",
    "registration_id": "HRB 4711",
    "relation": "bucket_entry",
    "request_id": "boot7-12",
    "resolution": "half of it is credited",
    "role": "read_only",
    "search": "meter",
    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "session": "3",
    "share": "1/3",
    "skipped": "variant 1: the zone is not home",
    "source": "plan",
    "state": "active",
    "status": "ok",
    "subject": "auth0|4711",
    "tag": "depot-3",
    "tags": "depot-3",
    "tax_id": "DE123456789",
    "tenant_id": "acme",
    "text": "11 messages at 0.04 EUR each",
    "time_zone": "Europe/Berlin",
    "to_account": "bills",
    "told_zone": "DE",
    "topic": "fm/v1/acme/meter-7/usage",
    "unit": "octet",
    "unit_price": "0.04",
    "url": "https://hooks.example.com/fleetmeter",
    "value": "4.02",
    "version": "0.1.0",
    "was": "0.04",
    "what": "tier",
    "which": "device meter-7",
    "words": "11 messages at 0.04 EUR each make 0.44 EUR.",
    "zone": "home",
    "zones": "home",
}
_NUMBERS: Mapping[str, int] = {
    "quantity": 500_000_000,
    "granted": 500_000_000,
    "left": 380_000_000,
    "used": 120_000_000,
    "reserved": 0,
    "anchor_day": 1,
    "anchor_month": 1,
    "part": 0,
    "variant": 0,
}
_TEMPLATES = {"int": 7, "count": 3}


class Examples:
    """Makes examples of one document's schemas."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self.unknown: set[str] = set()

    def has(self, schema: Mapping[str, Any]) -> bool:
        """Whether a schema brings examples of its own."""
        named = schema.get("$ref", "").rpartition("/")[2]
        return "examples" in (self._schemas[named] if named else schema)

    def of(self, schema: Mapping[str, Any], name: str = "") -> Any:  # noqa: ANN401 - any JSON
        """Return a value that a schema takes; `name` is that of the field that holds it."""
        return self._of(schema, name, 0)

    def completed(self, value: Any, schema: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any JSON
        """Return an example with the nulls that FastAPI leaves out of its document."""
        if "$ref" in schema:
            return self.completed(value, self._schemas[schema["$ref"].rpartition("/")[2]])
        for several in ("anyOf", "oneOf"):
            for each in schema.get(several, ()):
                made = self.completed(value, each)
                if self._fits(made, each):
                    return made
        if isinstance(value, dict):
            named = schema.get("properties", {})
            others = schema.get("additionalProperties")
            rest = others if isinstance(others, Mapping) else {}
            made = {
                each: self.completed(part, named.get(each, rest)) for each, part in value.items()
            }
            for each in schema.get("required", ()):
                if each not in made and _may_be_null(named[each]):
                    made[each] = None
            return made
        if isinstance(value, list):
            return [self.completed(each, schema.get("items", {})) for each in value]
        return value

    def _fits(self, value: Any, schema: Mapping[str, Any]) -> bool:  # noqa: ANN401 - any JSON
        if "$ref" in schema:
            return self._fits(value, self._schemas[schema["$ref"].rpartition("/")[2]])
        if schema.get("type") == "object" and isinstance(value, dict):
            named = schema.get("properties", {})
            return set(schema.get("required", ())) <= set(value) and all(
                value[each] == part["const"]
                for each, part in named.items()
                if each in value and "const" in part
            )
        return isinstance(value, list) and schema.get("type") == "array"

    def _of(self, schema: Mapping[str, Any], name: str, depth: int) -> Any:  # noqa: ANN401 - any JSON
        stated = _stated(schema)
        if stated is not _ABSENT:
            return stated
        if "$ref" in schema:
            return self._of(self._schemas[schema["$ref"].rpartition("/")[2]], name, depth + 1)
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                chosen = [each for each in schema[several] if each.get("type") != "null"]
                return self._of(chosen[0], name, depth) if chosen else None
        make = {"object": self._object, "array": self._array}.get(str(schema.get("type")))
        return self._leaf(schema, name) if make is None else make(schema, name, depth)

    def _leaf(self, schema: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - any JSON
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next(each for each in kind if each != "null")
        match kind:
            case "string":
                return self._text(schema, name)
            case "integer" | "number":
                return _number(schema, name)
            case "boolean":
                return bool(schema.get("default", False))
            case _:
                return None if kind == "null" else {}

    def _object(self, schema: Mapping[str, Any], name: str, depth: int) -> dict[str, Any]:
        named = schema.get("properties", {})
        required = set(schema.get("required", ()))
        made = {
            each: self._of(part, each, depth + 1)
            for each, part in named.items()
            if each in required or "examples" in part
        }
        others = schema.get("additionalProperties")
        if not named and isinstance(others, Mapping) and depth < _DEPTH_MAX:
            made["data"] = self._of(others, name, depth + 1)
        return made

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        if "prefixItems" in schema:
            return [self._of(each, name, depth + 1) for each in schema["prefixItems"]]
        if depth >= _DEPTH_MAX and not schema.get("minItems"):
            return []
        return [self._of(schema.get("items", {}), name, depth + 1)]

    def _text(self, schema: Mapping[str, Any], name: str) -> str:
        if schema.get("format") in _BY_FORMAT:
            return _BY_FORMAT[schema["format"]]
        if name == "next_cursor":
            return "WyJtZXRlci03Il0"
        if name in _TEXTS:
            return _TEXTS[name]
        if name.endswith("_at"):
            return _BY_FORMAT["date-time"]
        self.unknown.add(name)
        return "…"


def _may_be_null(schema: Mapping[str, Any]) -> bool:
    return any(each.get("type") == "null" for each in schema.get("anyOf", (schema,)))


def _stated(schema: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    if schema.get("examples"):
        return schema["examples"][0]
    for key in ("example", "const"):
        if key in schema:
            return schema[key]
    return schema["enum"][0] if "enum" in schema else _ABSENT


def _number(schema: Mapping[str, Any], name: str) -> int | float:
    known = _NUMBERS.get(name)
    if known is None:
        number = _NUMBERS["quantity"] if name.endswith("_quantity") else _TEMPLATES["count"]
        known = _TEMPLATES["int"] if name.endswith("_no") else number
    low = schema.get("minimum", schema.get("exclusiveMinimum", known - 1) + 1)
    high = schema.get("maximum", known)
    bounded: int | float = max(low, min(known, high))
    return bounded
