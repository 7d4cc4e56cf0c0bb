"""The OpenAPI document: FastAPI's, with what holds for every operation, and an example of each.

`make openapi` writes it to `docs/openapi.json`, and the tables of problems and of kinds of event beside it.
"""

import asyncio
import copy
import json
import re
import sys
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from api.errors import PROBLEM_TYPE, ProblemDocument
from api.events_page import events_page
from api.examples import Examples
from api.locations import LOCATIONS, describe_location
from api.manners import DEPRECATIONS
from api.problems import kind_of, problems_page
from api.spans import tell_instants

_METHODS = frozenset({"get", "post", "put", "patch", "delete"})
_FAILURES = (400, 404, 406, 409, 422, 500, 503)
_OF_KEYS = (401, 403, 429)
_OF_BODIES = (413, 415)
_OF_VERSIONS = (412,)
"""What any operation may answer; what those that ask for a key may, that take a body, or an `If-Match`."""
_TAGS = {
    "operations": "Whether the API and its database are well",
    "access": "Tenants, users, API keys, and the log of who changed what",
    "fleets": "Fleets, their pools and their bills so far",
    "devices": "Devices, and what each has left",
    "registry": "Fleets and devices: made, described, grouped, taken away",
    "credentials": "What devices connect to the broker with",
    "pools": "What fleets share, and who draws from it",
    "balances": "Top-ups, transfers and adjustments of buckets",
    "bills": "Bills, notes, adjustments, disputes; who bills whom, and how it is taxed",
    "payments": "Payments, accounts, wallets",
    "quota": "Quota ahead of use",
    "terms": "Plans, states, fleets and SIMs of devices, from an instant on",
    "usage": "Use over time",
    "plans": "Plans and their versions",
    "faults": "What was not admitted, or cannot be charged",
    "thresholds": "Limits on use, and their crossings",
    "control": "Commands, events and webhooks",
    "carriers": "Usage records of carriers",
    "messages": "The very messages in which readings came",
    "charges": "From a bill's lines to charges and readings, and back",
    "assurance": "What arrived, is charged and is billed, held together",
    "jobs": "Work that takes longer than a request",
}


def finish(app: FastAPI) -> None:
    """Let an application's document be finished when it is first asked for."""
    drawn_up = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = finished(drawn_up())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    async def get_openapi() -> JSONResponse:
        """Show the document. To draw it up takes seconds, in which others are answered, too."""
        return JSONResponse(await asyncio.to_thread(app.openapi))


def finished(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with what every operation shares."""
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own 422
        schemas.pop(unused, None)
    examples = Examples(schemas)
    for schema in schemas.values():
        if "examples" in schema:
            schema["examples"] = [examples.completed(each, schema) for each in schema["examples"]]
    used: set[str] = set()
    for _, _, operation in operations_of(document):
        used.update(operation.get("tags", ()))
        _describe(operation)
        _answer_again(operation)
        tell_instants(operation)
        describe_location(operation)
        _exemplify(operation, examples)
    _describe_tags(document)
    document["tags"] = [
        {"name": tag, "description": _TAGS.get(tag, tag)} for tag in sorted(used, key=_place)
    ]
    document["components"]["headers"] = _HEADERS
    document["components"]["responses"] = {
        kind_of(HTTPStatus(status)).name: _failure(HTTPStatus(status))
        for status in sorted({*_FAILURES, *_OF_KEYS, *_OF_BODIES, *_OF_VERSIONS})
    }
    return document


def _place(tag: str) -> tuple[int, str]:
    known = list(_TAGS)
    return (known.index(tag) if tag in known else len(known), tag)


def operations_of(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return each operation with its method and path."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in _METHODS:
                yield method, path, operation


def _describe(operation: dict[str, Any]) -> None:
    if operation["operationId"] in DEPRECATIONS:
        operation["deprecated"] = True
        told = DEPRECATIONS[operation["operationId"]]
        operation["description"] = (
            f"{operation.get('description', '')}\n\nDeprecated; use {told.instead}."
            f" It may be gone from {told.sunset} on."
        ).strip()
    keyed = bool(operation.get("security"))
    headers = {each["name"] for each in operation.get("parameters", ())}
    for status in sorted(
        {
            *_FAILURES,
            *(_OF_KEYS if keyed else ()),
            *(_OF_BODIES if "requestBody" in operation else ()),
            *(_OF_VERSIONS if "If-Match" in headers or "412" in operation["responses"] else ()),
            *((401, 413) if "Stripe-Signature" in headers else ()),
        }
    ):
        name = kind_of(HTTPStatus(status)).name
        operation["responses"][str(status)] = {"$ref": f"#/components/responses/{name}"}
    if not keyed:
        return
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            limits = {name: {"$ref": f"#/components/headers/{name}"} for name in _LIMITS}
            answer["headers"] = {**answer.get("headers", {}), **limits}


def _describe_tags(document: dict[str, Any]) -> None:
    """Say where an `ETag` is told: by what shows, changes or makes a thing that is edited by `If-Match`."""
    shown = {shape_of(path) for path, item in document["paths"].items() if "get" in item}
    edited = {
        next(each for each in _upwards(shape_of(path)) if each in shown)
        for method, path, operation in operations_of(document)
        if method != "post" and _takes_match(operation)
    }
    for method, path, operation in operations_of(document):
        place = LOCATIONS.get(operation["operationId"], path if method == "get" else "")
        if shape_of(place) in edited or _takes_match(operation):
            for status in {"200", "201"} & set(operation["responses"]):
                answer = operation["responses"][status]
                tag = {"ETag": {"$ref": "#/components/headers/ETag"}}
                answer["headers"] = {**answer.get("headers", {}), **tag}


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]


def _takes_match(operation: Mapping[str, Any]) -> bool:
    return any(each["name"] == "If-Match" for each in operation.get("parameters", ()))


def shape_of(path: str) -> str:
    """Return a path without the names of its parameters."""
    return re.sub(r"{\w+}", "{}", path)


def _failure(status: HTTPStatus) -> dict[str, Any]:
    kind = kind_of(status)
    example = {"type": kind.type, "title": kind.title, "status": status.value}
    schema = {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}
    answer: dict[str, Any] = {
        "description": kind.meaning,
        "content": {
            PROBLEM_TYPE: {"schema": schema, "example": {**example, "detail": kind.meaning}}
        },
    }
    told = {
        HTTPStatus.TOO_MANY_REQUESTS: ("Retry-After", *_LIMITS),
        HTTPStatus.SERVICE_UNAVAILABLE: ("Retry-After",),
    }
    if status in told:
        answer["headers"] = {
            name: {"$ref": f"#/components/headers/{name}"} for name in told[status]
        }
    return answer


_LIMITS = ("RateLimit", "RateLimit-Policy")
_HEADERS: dict[str, dict[str, Any]] = {
    "RateLimit": {
        "description": "requests left of each limit, and seconds until they are whole again"
        " (draft-ietf-httpapi-ratelimit-headers)",
        "schema": {"type": "string", "examples": ['"key";r=5988;t=41, "tenant";r=59204;t=41']},
    },
    "RateLimit-Policy": {
        "description": "each limit: its requests, and the seconds of its window",
        "schema": {"type": "string", "examples": ['"key";q=6000;w=60, "tenant";q=60000;w=60']},
    },
    "ETag": {
        "description": "names what people may edit of it as it is now, for `If-Match`",
        "schema": {"type": "string", "examples": ['"0f5c2a9b81d4e673"']},
    },
    "Retry-After": {
        "description": "seconds after which to try again",
        "schema": {"type": "integer", "examples": [2]},
    },
}


def _answer_again(operation: dict[str, Any]) -> None:
    """Let 200 have what 201 or 202 has: a request that is sent again is answered as the first time."""
    answers = operation["responses"]
    again = answers.get("200")
    for first in ("201", "202"):
        if again is not None and not again.get("content") and first in answers:
            again["content"] = copy.deepcopy(answers[first].get("content", {}))


def _exemplify(operation: dict[str, Any], examples: Examples) -> None:
    body = operation.get("requestBody", {}).get("content", {})
    for status, answer in operation["responses"].items():
        for content in answer.get("content", {}).values():
            if status.startswith("2"):
                _give(content, examples)
    for content in body.values():
        _give(content, examples)
    for parameter in operation.get("parameters", ()):
        if parameter.get("required"):
            _give(parameter, examples, parameter["name"])


def _give(content: dict[str, Any], examples: Examples, name: str = "") -> None:
    content.setdefault("schema", {"type": "string"})
    if "example" in content:
        content["example"] = examples.completed(content["example"], content["schema"])
    elif "examples" not in content and not examples.has(content["schema"]):
        content["example"] = examples.of(content["schema"], name)


def written(document: Mapping[str, Any]) -> str:
    """Return a document as it is committed."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write what is drawn up from the application into a folder: `docs`, unless one is named."""
    from api.app import create_app  # noqa: PLC0415 - it makes its document by this module
    from metering.settings import Settings  # noqa: PLC0415

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    app = create_app(Settings(database_url="postgresql://nobody@127.0.0.1:1/none"))
    (folder / "openapi.json").write_text(written(app.openapi()), "utf-8")
    (folder / "problems.md").write_text(problems_page(), "utf-8")
    (folder / "events.md").write_text(events_page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
