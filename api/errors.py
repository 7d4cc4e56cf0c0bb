"""Every failure leaves as a problem document (RFC 9457), never as a stack trace."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, get_args
from urllib.parse import quote

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.pattern_words import PATTERN_FIXES
from api.problems import is_known, kind_of
from metering.errors import (
    Conflict,
    FleetmeterError,
    InvalidValue,
    NotFound,
    TaxServiceFailed,
    TaxServiceRefused,
)
from metering.store.connection import UNREACHABLE

_LOG = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2

INSTANT_FIX = "use a time such as 2026-03-29T00:00:00Z; in an address write '+' as %2B"

ODD_TEXT_FIX = "leave out the character NUL and lone surrogates"

_OTHER_FORM = "is not of the form that is asked for"
_WHOLE = "use a whole number"
_LIST = "send a list"
_YES_OR_NO = "use true or false"
_OBJECT = "send one JSON object, as application/json"
_SHALLOW = f"{_OBJECT}, in UTF-8 and not deeply nested"
_FIXES = {
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_type": _WHOLE,
    "string_type": "write it as text, in quotes",
    "missing": "give it",
    "extra_forbidden": "leave it out",
    "json_invalid": _OBJECT,
    "model_attributes_type": _OBJECT,
    **dict.fromkeys(
        ("date_type", "date_parsing", "date_from_datetime_parsing", "date_from_datetime_inexact"),
        "use a day such as 2026-03-29",
    ),
    "uuid_parsing": "use an id as this API gave it",
    "uuid_type": "use an id as this API gave it",
    "finite_number": _WHOLE,
    "list_type": _LIST,
    "bool_type": _YES_OR_NO,
    "bool_parsing": _YES_OR_NO,
    "string_unicode": ODD_TEXT_FIX,
    "dict_type": "send a JSON object",
    "model_type": "send a JSON object",
    "string_sub_type": "write it as text, in quotes",
}

_FIXES_WITH_BOUND = {
    "less_than_equal": "use at most {le}",
    "greater_than_equal": "use at least {ge}",
    "enum": "use {expected}",
    "literal_error": "use {expected}",
    "string_too_long": "use at most {max_length} characters",
    "string_too_short": "use at least {min_length} characters",
    "too_long": "use at most {max_length}",
    "too_short": "use at least {min_length}",
    "union_tag_invalid": "use one of {expected_tags} as {discriminator}",
    "union_tag_not_found": "give {discriminator}",
}

_LISTED = {
    "device": "/v1/devices",
    "fleet": "/v1/fleets",
    "plan": "/v1/plans",
    "bucket": "a device's or a fleet's balance",
}
"""Where what a request may name is listed."""


class FieldProblem(BaseModel):
    """One input that cannot be taken: which, what is wrong with it, and what would be right."""

    field: str = Field(
        description="the parameter's name, or where it is in the body, with dots",
        examples=["device_ids.0"],
    )
    pointer: str | None = Field(
        None,
        description="where it is in the body (RFC 6901); absent where it is not in the body",
        examples=["#/device_ids/0"],
    )
    problem: str = Field(examples=["Input should be less than or equal to 500"])
    fix: str = Field(examples=["use at most 500"])


class ProblemDocument(BaseModel):
    """A failure (RFC 9457)."""

    type: str = Field(
        description="names the kind of problem; docs/problems.md lists them",
        examples=["urn:fleetmeter:not-found"],
    )
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no device 'meter-7'"])
    errors: list[FieldProblem] | None = Field(
        None, description="for bad input, and what a body names that is not there: each field"
    )


class ProblemError(FleetmeterError):
    """A request that ends in a problem document."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        kind: str | None = None,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Name a kind of `api/problems.py` where it is not the plain one of the status."""
        super().__init__(detail)
        self.kind = kind_of(status, kind)
        self.status = status
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})


def bad_input(field: str, problem: str, fix: str, *, kind: str | None = None) -> ProblemError:
    """Return the failure of one bad input."""
    errors = [FieldProblem(field=field, problem=problem, fix=fix)]
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, _detail(errors), kind=kind, errors=errors)


def conflict(error: InvalidValue) -> ProblemError:
    """Return the failure of a request that contradicts what is there already."""
    errors = [FieldProblem(field=error.field, problem=error.problem, fix=error.fix)]
    return ProblemError(HTTPStatus.CONFLICT, _detail(errors), errors=errors)


@contextmanager
def given_as(field: str) -> Iterator[None]:
    """Let the failure of what is not found name the field of the request's body that asked for it."""
    try:
        yield
    except NotFound as error:
        problem = str(error)
        fix = f"use one of {_LISTED[error.kind]}"
        errors = [FieldProblem(field=field, problem=problem, fix=fix)]
        raise ProblemError(HTTPStatus.NOT_FOUND, _detail(errors), errors=errors) from error


def unavailable(reason: str) -> ProblemError:
    """Return the failure of a request that may be tried again soon."""
    return ProblemError(
        HTTPStatus.SERVICE_UNAVAILABLE, reason, headers={"Retry-After": str(RETRY_AFTER_SECONDS)}
    )


def handle_errors(app: FastAPI) -> None:
    """Turn every exception of an application into a problem document."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(NotFound, _on_not_found)
    app.add_exception_handler(InvalidValue, _on_invalid_value)
    app.add_exception_handler(TaxServiceFailed, _on_no_taxes)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    for unreachable in UNREACHABLE:
        app.add_exception_handler(unreachable, _on_unreachable)
    app.add_exception_handler(psycopg.errors.UndefinedTable, _on_no_schema)
    app.add_middleware(_AnswerFaults)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 - registered for this type
    return _pointed(request, error)


async def _on_not_found(_request: Request, error: Exception) -> Response:
    return problem_response(ProblemError(HTTPStatus.NOT_FOUND, str(error)))


async def _on_invalid_value(request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidValue)  # noqa: S101 - registered for this type
    reused = isinstance(error, Conflict) and error.field == "Idempotency-Key"
    kind = "idempotency-key-reused" if reused else None
    return _pointed(request, bad_input(error.field, error.problem, error.fix, kind=kind))


def _pointed(request: Request, error: ProblemError) -> Response:
    """Answer with a problem whose errors point into the body, where they are of it."""
    body = getattr(request.scope.get("route"), "body_field", None)
    of_body = set() if body is None else _properties(body.field_info.annotation)
    error.errors = [
        each.model_copy(update={"pointer": _pointer(each.field.split("."))})
        if each.pointer is None and each.field.split(".")[0] in of_body
        else each
        for each in error.errors
    ]
    return problem_response(error)


def _properties(model: object) -> set[str]:
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {field.alias or name for name, field in model.model_fields.items()}
    return {name for part in get_args(model) for name in _properties(part)}


def _pointer(parts: Sequence[object]) -> str:
    """Write a place in a body as a JSON pointer in a URI fragment."""
    escaped = (str(part).replace("~", "~0").replace("/", "~1") for part in parts)
    return "".join(["#", *(f"/{quote(part, safe='~:@!$&()*+,;=')}" for part in escaped)])


async def _on_no_taxes(_request: Request, error: Exception) -> Response:
    _LOG.warning("%s", error)
    if isinstance(error, TaxServiceRefused):
        return problem_response(unavailable(str(error)))
    return problem_response(unavailable("the tax service gives no answer; try again shortly"))


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this type
    errors = [_field_problem(each) for each in error.errors()]
    return problem_response(
        ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, _detail(errors), errors=errors)
    )


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type
    status = HTTPStatus(error.status_code)
    if not is_known(status):
        status = HTTPStatus.BAD_REQUEST if status < _FAULT else _FAULT
    match status:
        case HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.url.path}; see /docs"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            detail = f"{request.method} is not offered at {request.url.path}; see /docs"
            offered = {"Allow": ", ".join(sorted(_methods_at(request)))}
            return problem_response(ProblemError(status, detail, headers=offered))
        case HTTPStatus.BAD_REQUEST:  # a body that FastAPI cannot decode, or that is too deep
            return problem_response(bad_input("body", "is not JSON that can be read", _SHALLOW))
        case _:
            detail = str(error.detail)
    return problem_response(ProblemError(status, detail, headers=error.headers))


def _methods_at(request: Request) -> set[str]:
    """Return the methods that are offered at a request's address; a route knows its own alone."""
    return {
        method
        for route in _routes(request.app.routes)
        if route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }


def _routes(among: Iterable[object]) -> Iterator[Route]:
    """Yield routes, those of routers that are included as they are there, too."""
    for each in among:
        if isinstance(each, Route):
            yield each
        elif (router := getattr(each, "original_router", None)) is not None:
            yield from _routes(router.routes)


async def _on_unreachable(_request: Request, _error: Exception) -> Response:
    return problem_response(unavailable("the database does not answer; try again shortly"))


async def _on_no_schema(_request: Request, _error: Exception) -> Response:
    return problem_response(
        unavailable("the database's schema is not that of this release; see /ready")
    )


class _AnswerFaults:
    """ASGI middleware: a fault ends its request alone, not the connection with the next ones.

    An exception that reaches the server closes the connection behind the answer, while the client
    may already send its next request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; answer its fault, unless an answer has begun."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            if scope["type"] != "http" or begun:
                raise
            _LOG.exception("%s %r", scope["method"], scope["path"])
            await problem_response(_fault())(scope, receive, send)


_FAULT = HTTPStatus.INTERNAL_SERVER_ERROR


def _fault() -> ProblemError:
    return ProblemError(_FAULT, "a fault on the server's side; its log tells more")


def problem_response(error: ProblemError) -> Response:
    """Answer with a problem document; unlike raising it, this lets the request's transaction commit."""
    document = ProblemDocument(
        type=error.kind.type,
        title=error.kind.title,
        status=error.status.value,
        detail=error.detail,
        errors=error.errors or None,
    )
    return JSONResponse(
        document.model_dump(exclude_none=True),
        status_code=error.status.value,
        headers=error.headers,
        media_type=PROBLEM_TYPE,
    )


def _detail(errors: Sequence[FieldProblem]) -> str:
    return "; ".join(f"{each.field}: {each.problem}" for each in errors)


def _field_problem(error: Mapping[str, Any]) -> FieldProblem:
    place = error["loc"][1:] if error["type"] != "json_invalid" else ()
    if error["type"].startswith("union_tag"):
        place = (*place, error["ctx"]["discriminator"].strip("'"))
    field = ".".join(str(part) for part in place) or str(error["loc"][0])
    pointer = _pointer(place) if error["loc"][0] == "body" else None
    problem = _OTHER_FORM if error["type"] == "string_pattern_mismatch" else error["msg"]
    return FieldProblem(field=field, pointer=pointer, problem=problem, fix=_fix(error))


def _fix(error: Mapping[str, Any]) -> str:
    context: Mapping[str, Any] = error.get("ctx") or {}
    if context.get("pattern") in PATTERN_FIXES:
        return PATTERN_FIXES[context["pattern"]]
    match error["type"]:
        case kind if kind in _FIXES_WITH_BOUND:
            fix = _FIXES_WITH_BOUND[kind].format(**context)
        case kind if kind.startswith(("datetime", "timezone")):
            fix = INSTANT_FIX
        case kind:
            fix = _FIXES.get(kind) or str(context.get("fix", "see /docs"))
    return fix
