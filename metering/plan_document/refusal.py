"""What a document that has not the shape of a plan is told: path, problem and fix of each error."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

from metering.errors import InvalidValue
from metering.plan_document.document import (
    ADJUSTMENT_TYPE,
    ADJUSTMENT_TYPES,
    PRICE_MODEL,
    PRICE_MODELS,
    RULE,
    TAG_PREFIXES,
    PlanDocument,
    shown,
)

_ROOT = "plan"
_GUIDE = "see docs/plans.md for the shape of a plan"
_FOLLOWS = "default_factory_not_called"
"""The type of an error that is there because of another one."""
_RENAMED = {"overage": "write price"}


def refusals(error: ValidationError) -> list[InvalidValue]:
    """Return each error of a document as path, problem and fix."""
    return [
        _refusal(tuple(each["loc"]), each["type"], each.get("ctx", {}), each["input"], each["msg"])
        for each in error.errors(include_url=False)
        if each["type"] != _FOLLOWS
    ]


def empty_values(document: object, path: tuple[object, ...] = ()) -> Iterator[InvalidValue]:
    """Yield each value of a document that is there and empty (null), which is never meant."""
    items: Iterator[tuple[object, object]] = iter(())
    if isinstance(document, dict):
        items = iter(document.items())
    elif isinstance(document, list | tuple):
        items = iter(enumerate(document))
    for key, value in items:
        if value is None:
            name = ".".join(str(part) for part in (*path, key))
            yield InvalidValue(name, "is empty", "give it a value, or leave it out")
        else:
            yield from empty_values(value, (*path, key))


def _refusal(
    loc: Sequence[int | str], kind: str, context: dict[str, Any], given: object, message: str
) -> InvalidValue:
    path = ".".join(str(part) for part in loc if not _is_no_part(part)) or _ROOT
    if kind in _BRANCHES:
        field, known, what = _BRANCHES[kind]
        fix = f"use one of {', '.join(known)}"
        stated = given[field] if isinstance(given, dict) and field in given else None
        problem = "is missing" if stated is None else f"{shown(stated)} is no {what}"
        return InvalidValue(f"{path}.{field}", problem, fix)
    if kind == RULE:
        return InvalidValue(path, context["problem"], context["fix"])
    if kind == "missing":
        return InvalidValue(path, "is missing", _meaning(loc))
    if kind == "extra_forbidden":
        return InvalidValue(path, "is no field here", _known_field(loc))
    if kind in _SAID:
        problem, fix = _SAID[kind]
        if loc and loc[-1] == "type=kind":
            fix += ", or a list of meters and fees"
        return InvalidValue(path, f"{shown(given)} {problem}", fix.format(**context))
    return InvalidValue(path, message[:1].lower() + message[1:], _GUIDE)


_BRANCHES = {
    PRICE_MODEL: ("model", PRICE_MODELS, "price model"),
    ADJUSTMENT_TYPE: ("type", ADJUSTMENT_TYPES, "type of adjustment"),
}
"""A union's error → the field that tells its branches apart, what that may be, and what it is."""

_NO_MAPPING = ("is no mapping", f"write fields with values; {_GUIDE}")
_NO_NUMBER = ("is no whole number", "write a whole number")
_SAID = {
    "literal_error": ("is not allowed", "use {expected}"),
    "enum": ("is not allowed", "use {expected}"),
    "string_type": ("is no text", "write text; a number in quotes is text"),
    "bool_type": ("is neither true nor false", "write true or false"),
    "int_type": _NO_NUMBER,
    "int_from_float": _NO_NUMBER,
    "model_type": _NO_MAPPING,
    "dict_type": _NO_MAPPING,
    "list_type": ("is no list", "write a list"),
    "too_short": ("is empty", "write at least one"),
    "greater_than_equal": ("is too small", "use {ge} or more"),
    "less_than_equal": ("is too large", "use {le} or less"),
}
"""pydantic's type of an error → what is wrong with the value, and what would be right."""


def _is_no_part(part: int | str) -> bool:
    return part == "[key]" or (isinstance(part, str) and part.startswith(TAG_PREFIXES))


def _meaning(loc: Sequence[int | str]) -> str:
    owner = _fields_at(loc[:-1])
    field = owner.get(str(loc[-1]))
    about = field.description if field else None
    if not about:
        return f"add it; {_GUIDE}"
    if about[1:2].islower():
        about = about[:1].lower() + about[1:]
    return f"add it: {about.rstrip('.')}"


def _known_field(loc: Sequence[int | str]) -> str:
    name, known = str(loc[-1]), list(_fields_at(loc[:-1]))
    if name in _RENAMED:
        return _RENAMED[name]
    close = get_close_matches(name, known, n=1)
    return f"write {close[0]}" if close else f"use one of {', '.join(known)}"


def _fields_at(loc: Sequence[int | str]) -> dict[str, FieldInfo]:
    """Return the fields, by the names that documents use, of the model at a place of a plan."""
    place: object = PlanDocument
    for part in loc:
        place = _within(place, part)
    place = _bare(place)
    if isinstance(place, type) and issubclass(place, BaseModel):
        return {field.alias or name: field for name, field in place.model_fields.items()}
    return {}


def _within(place: object, part: int | str) -> object:
    """Return the type of what is at one part of a path in a value of the type `place`."""
    place = _bare(place)
    if isinstance(place, type) and issubclass(place, BaseModel):
        for name, field in place.model_fields.items():
            if part in {name, field.alias}:
                return field.annotation
        return None
    origin, arguments = get_origin(place), get_args(place)
    if origin in {Union, UnionType}:
        return next((each for each in arguments if Tag(str(part)) in get_args(each)), None)
    if origin in {dict, list} and arguments:
        return arguments[-1]
    return None


def _bare(place: object) -> object:
    """Return a type without its annotations, and without None among its branches."""
    while True:
        arguments = get_args(place)
        if get_origin(place) is Annotated:
            place = arguments[0]
        elif get_origin(place) in {Union, UnionType} and type(None) in arguments:
            rest = [each for each in arguments if each is not type(None)]
            if len(rest) > 1:
                return Union[tuple(rest)]  # noqa: UP007 - made of a list
            place = rest[0]
        else:
            return place
