"""CBOR (RFC 8949), as much of it as payloads need: numbers, texts, octets, lists, maps and times. Pure."""

from collections.abc import Callable
from typing import NoReturn

import cbor2

from metering.errors import InvalidValue

_DEPTH_MAX = 32
_TIME_TEXT, _TIME_SECONDS, _SELF_DESCRIBED = 0, 1, 55799


def load(payload: bytes) -> object:
    """Return what a CBOR payload holds; raise `InvalidValue` where it is not CBOR, or has other tags.

    A time (tag 0 or 1) is returned as its text or its number.
    """
    try:
        return cbor2.loads(
            payload,
            semantic_decoders=_TAGS,
            max_depth=_DEPTH_MAX,
            allow_duplicate_keys=False,
        )
    except (cbor2.CBORError, ValueError, TypeError, RecursionError, OverflowError) as error:
        cause = str(error.__cause__ or error)[:200]
        raise InvalidValue("payload", f"not CBOR: {cause}", "send RFC 8949 CBOR") from None


def dump(document: object) -> bytes:
    """Write a document as CBOR."""
    return cbor2.dumps(document)


_TagDecoder = Callable[[object, bool], object]


def _content(value: object, immutable: bool) -> object:  # noqa: FBT001 - the library's call
    """Return what is in a tag that only says what kind of time or document it is."""
    del immutable
    return value


def _refuse(value: object, immutable: bool) -> NoReturn:  # noqa: FBT001 - the library's call
    del value, immutable
    raise ValueError("it holds a tag other than 0 and 1 (times)")


class _Tags(dict[int, _TagDecoder]):
    """How tags are read: all but a few are refused, for some make objects that refer to themselves."""

    def __missing__(self, tag: int) -> _TagDecoder:
        return _refuse


_TAGS = _Tags({_TIME_TEXT: _content, _TIME_SECONDS: _content, _SELF_DESCRIBED: _content})
