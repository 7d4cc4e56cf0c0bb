"""What a request may carry: ids, instants, page sizes and cursors, each checked once, here."""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal, get_args

from fastapi import Header, Path, Query, Request, Response, params
from fastapi._compat import ModelField
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from pydantic import AfterValidator, AwareDatetime, BeforeValidator
from pydantic_core import PydanticCustomError

from api.errors import INSTANT_FIX, ODD_TEXT_FIX, ProblemError, bad_input
from metering.ids import ID_PATTERN
from metering.store.rows import PAGE_MAX

_RFC_3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,6})?([Zz]|[+-]\d{2}:\d{2})\Z"
)
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)
_DIGITS = re.compile(r"-?[0-9]+")
_DEPTH_MAX = 50


def _written_as_rfc_3339(value: object) -> object:
    if not isinstance(value, datetime) and not (isinstance(value, str) and _RFC_3339.match(value)):
        raise PydanticCustomError(
            "instant",
            "Input is not an RFC 3339 time with a zone",
            {"fix": INSTANT_FIX},
        )
    return value


def _within_reach(instant: datetime) -> datetime:
    if not _EARLIEST <= instant < _LATEST:
        raise PydanticCustomError(
            "instant", "Input is out of reach", {"fix": "use a year from 2000 to 2199"}
        )
    return instant.astimezone(UTC)


Instant = Annotated[
    AwareDatetime, BeforeValidator(_written_as_rfc_3339), AfterValidator(_within_reach)
]
"""An RFC 3339 time with a zone, as a request gives it; in UTC from here on."""

KnownAt = Annotated[
    Instant | None,
    Query(description="a past moment: show what was believed then; unset: what is known now"),
]
At = Annotated[
    Instant | None,
    Query(description="a past moment: show what the balance was then; unset: what it is now"),
]
FleetId = Annotated[str, Path(pattern=ID_PATTERN, description="the fleet's id", examples=["north"])]
DeviceId = Annotated[
    str, Path(pattern=ID_PATTERN, description="the device's id", examples=["meter-7"])
]
PlanId = Annotated[str, Path(pattern=ID_PATTERN, description="the plan's id", examples=["basic"])]
BucketNo = Annotated[
    int, Path(ge=1, le=2**63 - 1, description="the bucket's number", examples=[17])
]
ReadingId = Annotated[
    str,
    Path(
        pattern=r"^[0-9]{1,18}-[0-9]{1,18}$",
        description="the reading's id: what its charges' ids begin with",
        examples=["17-3"],
    ),
]
ChargeId = Annotated[
    str,
    Path(
        pattern=r"^[0-9]{1,18}-[0-9]{1,18}-[0-9]{1,5}$",
        description="the charge's id",
        examples=["17-3-0"],
    ),
]
IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="names this one request: repeated with it, it is not done again",
        examples=["5d8f0a52-6b7e-4f55-9d6b-0c1f6f6f7a11"],
    ),
]
ALREADY_DONE: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK: {"description": "Done before, under the same key; nothing was done now"}
}
"""What a route that takes an `IdempotencyKey` declares beside 201, its first answer."""
OfFleet = Annotated[
    str | None,
    Query(alias="fleet", pattern=ID_PATTERN, description="only of this fleet", examples=["north"]),
]
OfDevice = Annotated[
    str | None,
    Query(
        alias="device", pattern=ID_PATTERN, description="only of this device", examples=["meter-7"]
    ),
]
OfLabel = Annotated[
    str | None,
    Query(
        alias="label",
        pattern=ID_PATTERN.removesuffix("$") + "=[^\\x00-\\x1f\\x7f]{0,200}$",
        description="only those with this label: its name, `=` and its value",
        examples=["site=Hamburg"],
    ),
]
Search = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=100,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="only those whose id or name holds this text, in capitals or not",
    ),
]
OfMeter = Annotated[
    Literal["data", "sms", "voice", "messages"] | None,
    Query(alias="meter", description="only of this meter"),
]
OfZone = Annotated[
    str | None,
    Query(
        alias="zone",
        min_length=1,
        max_length=200,
        description="only in this zone, as plans call it",
        examples=["home"],
    ),
]
OfTag = Annotated[
    str | None,
    Query(
        alias="tag",
        pattern=ID_PATTERN,
        description="only of devices that bear this tag now",
        examples=["outdoor"],
    ),
]
OfPlan = Annotated[
    str | None, Query(alias="plan", pattern=ID_PATTERN, description="only of this plan")
]
OfPlanVersion = Annotated[
    int | None,
    Query(alias="plan_version", ge=1, le=2**31 - 1, description="only of this version of it"),
]
OfVariant = Annotated[
    str | None,
    Query(
        alias="variant",
        pattern=r"^(own|[0-9]{1,4})$",
        description="only of this variant; `own`: the meter's own price",
    ),
]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="most items of the page")]
Cursor = Annotated[
    str | None,
    Query(max_length=1000, description="`next_cursor` of the page before, unchanged"),
]
CursorKey = Sequence[str | int | datetime]


async def refuse_unknown_parameters(request: Request) -> None:
    """Refuse a misspelt query parameter, which left out silently would widen the answer, and odd values.

    The route itself says which it takes. The OpenAPI document does, too, but takes most of a second to
    draw up, for which the first request would wait. It is `async`, though it waits for nothing, because
    each request would else take a turn in a thread for it.
    """
    if not request.query_params and not request.path_params:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)  # noqa: S101 - it is a dependency of such routes alone
    fields = get_flat_params(route.dependant)
    given = [*request.path_params.items(), *request.query_params.multi_items()]
    for field in fields:
        for value in (str(value) for name, value in given if name == field.alias):
            _refuse_odd_value(field, value)
    known = [field.alias for field in fields if isinstance(field.field_info, params.Query)]
    for name in request.query_params:
        if len(request.query_params.getlist(name)) > 1:
            raise bad_input(name[:100], "is given more than once", "give it once")
        if name not in known:
            fix = f"use one of {', '.join(known)}" if known else "this route takes none"
            raise bad_input(name[:100], "is no parameter of this route", fix)


def _refuse_odd_value(field: ModelField, value: str) -> None:
    kind = field.field_info.annotation
    if int in (kind, *get_args(kind)) and not _DIGITS.fullmatch(value):
        raise bad_input(field.alias, "is no whole number", "use a whole number, in digits alone")
    if not any(getattr(each, "pattern", None) for each in field.field_info.metadata):
        refuse_odd_text(field.alias, value)  # else its pattern says more


def refuse_odd_text(field: str, text: str) -> None:
    """Refuse text that cannot be kept, whatever field it is of."""
    if "\x00" in text or any("\ud800" <= each <= "\udfff" for each in text):
        raise bad_input(field, "holds a character that cannot be kept", ODD_TEXT_FIX)


def refuse_odd_json(body: object) -> None:
    """Refuse a body that holds text that cannot be kept, or is nested beyond what any request needs."""
    waiting: list[tuple[str, object, int]] = [("body", body, 0)]
    while waiting:
        place, value, depth = waiting.pop()
        if depth > _DEPTH_MAX:
            field = place.partition(".")[0]
            raise bad_input(field, "is nested too deeply", f"use at most {_DEPTH_MAX} levels")
        if isinstance(value, str):
            refuse_odd_text(place, value)
        elif isinstance(value, list):
            waiting += [
                (_within(place, number), part, depth + 1) for number, part in enumerate(value)
            ]
        elif isinstance(value, dict):
            for name, part in value.items():
                refuse_odd_text(place, name)
                waiting.append((_within(place, name), part, depth + 1))


def _within(place: str, part: str | int) -> str:
    return str(part)[:100] if place == "body" else f"{place}.{part}"[:1000]


def checked_known_at(known_at: datetime | None, now: datetime) -> None:
    """Refuse to tell what will be believed."""
    if known_at is not None and known_at > now:
        raise bad_input("known_at", "is still to come", "use a moment up to now, or none")


def checked_at(at: datetime | None, now: datetime) -> None:
    """Refuse to tell what will be left."""
    if at is not None and at > now:
        raise bad_input("at", "is still to come", "use a moment up to now, or none")


def tell_repeated(response: Response, *, repeated: bool) -> None:
    """Answer 200 in place of 201 where it was done before, as `ALREADY_DONE` declares."""
    if repeated:
        response.status_code = HTTPStatus.OK


def cursor_of(key: CursorKey) -> str:
    """Write the place at which a page ended as an opaque cursor."""
    parts = [part.isoformat() if isinstance(part, datetime) else part for part in key]
    text = json.dumps(parts, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str, shape: str) -> list[str | int | datetime]:
    """Return the place that a cursor names; refuse one that `cursor_of` did not write.

    `shape` has a letter for each part: `s` text, `i` integer, `t` time.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        raise _bad_cursor() from error
    if not isinstance(parts, list) or len(parts) != len(shape):
        raise _bad_cursor()
    return [_part(part, kind) for part, kind in zip(parts, shape, strict=True)]


def label_of(label: str | None) -> tuple[str, str] | None:
    """Return a label's name and value as `OfLabel` gives them."""
    if label is None:
        return None
    name, _, value = label.partition("=")
    return name, value


def number_after(cursor: str | None) -> int:
    """Return the number at which the page before ended; 0 for the first page."""
    return int(str(read_cursor(cursor, "i")[0])) if cursor else 0


def _part(part: object, kind: str) -> str | int | datetime:
    if kind == "i" and type(part) is int and -(2**63) <= part < 2**63:
        return part
    if kind == "s" and isinstance(part, str) and part.isprintable():
        return part
    if kind == "t" and isinstance(part, str):
        try:
            instant = datetime.fromisoformat(part)
        except ValueError as error:
            raise _bad_cursor() from error
        if instant.tzinfo is not None:
            return instant
    raise _bad_cursor()


def _bad_cursor() -> ProblemError:
    return bad_input(
        "cursor", "is not one that this API gave", "use next_cursor of the page before, unchanged"
    )
