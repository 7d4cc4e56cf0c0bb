"""The JSON Schema of a plan document, for editors and for those who write plans by program."""

import json

from pydantic.json_schema import GenerateJsonSchema

from metering.plan_document.document import PlanDocument

_DIALECT = GenerateJsonSchema.schema_dialect


def plan_schema() -> dict[str, object]:
    """Return the schema (JSON Schema 2020-12) that every plan document fits.

    It says which fields there are and what each may hold; what depends on other fields, such as that
    bounds ascend, is told by `fleetmeter plan check`.
    """
    schema = PlanDocument.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": _DIALECT, "$id": "plan.schema.json"} | {
        key: _without_null(value) for key, value in schema.items()
    }


def plan_schema_text() -> str:
    """Return the schema as it is published in docs/plan.schema.json."""
    return json.dumps(plan_schema(), indent=2, ensure_ascii=False) + "\n"


def _without_null(value: object) -> object:
    """Return a part of the schema without null, which a document never holds, and without titles."""
    if isinstance(value, list):
        return [_without_null(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {
        key: _without_null(each)
        for key, each in value.items()
        if not (key == "title" and isinstance(each, str))
        and not (key == "default" and each is None)
    }
    if "patternProperties" in kept:
        kept["additionalProperties"] = False
    branches = kept.get("anyOf")
    if isinstance(branches, list) and {"type": "null"} in branches:
        rest = [each for each in branches if each != {"type": "null"}]
        del kept["anyOf"]
        kept |= rest[0] if len(rest) == 1 else {"anyOf": rest}
    return kept
