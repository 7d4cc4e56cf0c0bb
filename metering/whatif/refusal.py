"""What a usage line or a state file that has not its shape is told: path, problem and fix."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from metering.errors import InvalidValue

NAME_PATTERN = r"^[^\p{Cc}\p{Zl}\p{Zp}]*$"
"""What a name is made of: no control characters, and no ends of lines."""

_SHOWN_CHARACTERS_MAX = 60
_RULE = "rule"
"""The type of an error that says its own problem and fix, in its context."""
_SAID = {
    "string_type": ("is not text", "write text; a number in quotes is text"),
    "string_unicode": ("holds half a character (a surrogate)", "write the character itself"),
    "string_pattern_mismatch": ("holds a control character", "take it out"),
    "string_too_short": ("is empty", "give it a value, or leave it out"),
    "string_too_long": ("has more than {max_length} characters", "shorten it"),
    "too_short": ("is an empty list", "write at least one, or leave it out"),
    "int_type": ("is not a whole number", "write a whole number"),
    "int_from_float": ("is not a whole number", "write a whole number"),
    "greater_than_equal": ("is too small", "use {ge} or more"),
    "less_than_equal": ("is too large", "use {le} or less"),
    "enum": ("is not allowed", "use {expected}"),
}
"""pydantic's type of an error → what is wrong with the value, and what would be right."""
_PROBLEMS = {
    "missing": "is missing",
    "extra_forbidden": "is no field here",
    "model_type": "is not an object with fields",
    "dict_type": "is not an object with fields",
    "list_type": "is not a list",
}
"""The same, where the guide says what would be right."""


def broken_rule(problem: str, fix: str) -> PydanticCustomError:
    """Return the error of a value that a validator refuses."""
    return PydanticCustomError(_RULE, "{problem}; {fix}", {"problem": problem, "fix": fix})


def refusal(error: ValidationError, root: str, guide: str) -> InvalidValue:
    """Return the first error of a document; one of the document itself is named `root`."""
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    problem, fix = _told(kind, context, first["msg"], guide)
    return InvalidValue(_path(first["loc"]) or root, problem, fix)


def shown(text: str) -> str:
    """Write a text in an error, shortened if it is long."""
    is_short = len(text) <= _SHOWN_CHARACTERS_MAX
    return repr(text if is_short else text[:_SHOWN_CHARACTERS_MAX] + "…")


def printable(name: str) -> str:
    """Return a name with what cannot be printed in it as escapes."""
    return name if name.isprintable() else repr(name)[1:-1]


def _told(kind: str, context: dict[str, Any], message: str, guide: str) -> tuple[str, str]:
    if kind == _RULE:
        return context["problem"], context["fix"]
    if kind in _SAID:
        problem, fix = _SAID[kind]
        return problem.format(**context), fix.format(**context)
    return _PROBLEMS.get(kind, message[:1].lower() + message[1:]), guide


def _path(loc: Sequence[int | str]) -> str:
    return ".".join(printable(str(part)) for part in loc if part != "[key]")
