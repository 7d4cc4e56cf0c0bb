"""Fields of patches that are never without a value: left out they stay, and null is refused."""

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError


def _refuse_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError(
            "null",
            "Input is null, but this is never without a value",
            {"fix": "give a value, or leave it out"},
        )
    return value


NOT_NULL = BeforeValidator(_refuse_null)
"""Refuses null where None is but the mark of what was left out; hide that by `SkipJsonSchema[None]`."""
