"""Fields of patches that are never without a value: left out they stay, and null is refused."""

from typing import TYPE_CHECKING, TypeAlias, TypeVar

Value = TypeVar("Value")

if TYPE_CHECKING:
    Given: TypeAlias = Value | None
else:

    class Given:
        """`Given[str] = None`: None where it was left out, but text is all that a request may give."""

        def __class_getitem__(cls, of: object) -> object:
            """Return the type that is validated; a default is not."""
            return of
