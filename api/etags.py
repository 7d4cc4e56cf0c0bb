"""Entity tags: whoever changes what another may change too, says which state of it was seen."""

import hashlib
import json
import re
from collections.abc import Collection
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import Header, Response
from pydantic import BaseModel

from api.errors import PROBLEM_TYPE, FieldProblem, ProblemDocument, ProblemError

IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        max_length=1000,
        description="the `ETag` of what was seen: changed meanwhile, it is left, and the answer is 412;"
        " unset: whatever it is now is changed",
        examples=['"0f5c2a9b81d4e673"'],
    ),
]

NotOfOne = Annotated[str | None, Header(alias="If-Match", max_length=1000, include_in_schema=False)]
"""`If-Match` where several are changed, of which it cannot be: refused, not passed over."""


def _problem(status: HTTPStatus, description: str) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}
    return {
        int(status): {
            "model": ProblemDocument,
            "description": description,
            "content": {PROBLEM_TYPE: {"schema": schema}},
        }
    }


MATCHED = _problem(HTTPStatus.PRECONDITION_FAILED, "It was changed meanwhile; read it again")
"""What a route that takes `IfMatch` declares."""
CONFLICT = _problem(
    HTTPStatus.CONFLICT, "What is there already does not let it; `detail` says what"
)
"""What a route declares that may contradict what there is."""

Shown = TypeVar("Shown", bound=BaseModel)
_STRONG_TAG = re.compile(r'(?<!W/)"([^"]*)"')
_DIGITS = 16


def etag_of(shown: BaseModel, fields: Collection[str] | None = None) -> str:
    """Return the entity tag of what people may change of a resource: of some fields, or of all.

    What changes by itself, such as a balance, is left out: it is nobody's edit.
    """
    told = shown.model_dump(mode="json", include=None if fields is None else set(fields))
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"'


def tagged(response: Response, shown: Shown, fields: Collection[str] | None = None) -> Shown:
    """Give an answer that shows this its entity tag; return what is shown."""
    response.headers["ETag"] = etag_of(shown, fields)
    return shown


def check_match(
    if_match: str | None,
    shown: BaseModel | None,
    fields: Collection[str] | None = None,
    *,
    given_as: str | None = None,
) -> None:
    """Refuse with 412 to change what is not, or no longer, as its changer saw it.

    `shown` is the resource as it is now, None where there is none. It is owned meanwhile, so that of two
    who saw the same state, one is refused. `given_as` is the field of the body that says what was seen.
    """
    if if_match is None:
        return
    any_state = if_match.strip() == "*"
    if shown is not None and (
        any_state or etag_of(shown, fields)[1:-1] in _STRONG_TAG.findall(if_match)
    ):
        return
    problem, fix = "was changed since it was read", "read it again, and change what it is now"
    if given_as is None:
        raise ProblemError(HTTPStatus.PRECONDITION_FAILED, f"it {problem}; {fix}")
    raise ProblemError(
        HTTPStatus.PRECONDITION_FAILED,
        f"nothing was done: {given_as}: {problem}",
        errors=[FieldProblem(field=given_as, problem=problem, fix=fix)],
    )
