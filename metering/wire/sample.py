"""What a payload says before a mapping says which meter it is: a metric's value at an instant. Pure."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple, NoReturn

from metering.errors import InvalidValue
from metering.usage import Reading, Rejection, RejectReason
from metering.wire.native import KEPT_OCTETS_MAX, PATH_LENGTH_MAX

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

DETAIL_LENGTH_MAX = 500
"""How much is kept of what is wrong, in characters."""

Value = int | Decimal | str


class Sample(NamedTuple):
    """A metric's value at an instant, as a message told it.

    `is_sum` tells a cumulative sum from a value of the same name; `unit` is what the message says,
    `path` where it stands in the message.
    """

    metric: str
    at: datetime
    value: Value
    path: str
    unit: str | None = None
    is_sum: bool = False


class SeriesReadings(NamedTuple):
    """Readings that number themselves by what identifies them, instead of a device's count.

    `boot` names what identifies them (`metering.wire.identity`). `identities` are those of readings that
    have an id instead of an instant of their own, one each. `device` is set where a sender reports for
    another device.
    """

    boot: str
    readings: list[Reading]
    identities: list[str]
    device: str | None
    rejections: list[Rejection]
    """What was rejected of this boot."""


@dataclass(slots=True, kw_only=True)
class Translated:
    """What a message of another format held: its series, and what was rejected that is of none."""

    series: list[SeriesReadings] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)


def refused(
    payload: bytes,
    detail: str,
    *,
    reason: RejectReason = RejectReason.UNDECODABLE,
    path: str | None = None,
) -> Rejection:
    """Return why a message is refused as a whole."""
    return Rejection(
        reason=reason,
        field=None if path is None else printable(path),
        detail=printable(detail, DETAIL_LENGTH_MAX),
        content=payload[:KEPT_OCTETS_MAX],
    )


def rejected(
    given: object, detail: str, *, path: str, boot: str | None = None, seq: int | None = None
) -> Rejection:
    """Return why a part of a message is rejected; what is kept of it is written as JSON."""
    kept = json.dumps(given, default=str, skipkeys=True).encode()[:KEPT_OCTETS_MAX]
    return Rejection(
        reason=RejectReason.INVALID_READING,
        field=printable(path),
        detail=printable(detail, DETAIL_LENGTH_MAX),
        boot=boot,
        seq=seq,
        content=kept,
    )


def printable(text: str, length_max: int = PATH_LENGTH_MAX) -> str:
    """Return a text that may be of the sender's making, shortened, what cannot be printed escaped."""
    if len(text) <= length_max and text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else repr(letter).strip("'") for letter in text[:length_max]
    )[:length_max]


def json_document(payload: bytes) -> object:
    """Return what a JSON payload holds, numbers exactly; raise `InvalidValue` where it is not JSON."""
    try:
        return json.loads(payload.decode(), parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidValue("payload", f"not JSON: {error}"[:200], "send JSON in UTF-8") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def number_of(given: object, path: str) -> Decimal | int:
    """Return a number exactly as it was written; raise `InvalidValue` for anything else."""
    if isinstance(given, bool) or not isinstance(given, int | float | Decimal):
        raise InvalidValue(path, "not a number", "send a number")
    if isinstance(given, float):
        given = Decimal(repr(given))
    if isinstance(given, Decimal):
        if not given.is_finite() or abs(given.adjusted()) > _EXPONENT_MAX:
            raise InvalidValue(path, "not a finite number of a sensible size", "send another")
    elif abs(given) >= _INTEGER_BOUND:
        raise InvalidValue(path, "not a number of a sensible size", "send a smaller one")
    return given


_EXPONENT_MAX = 40
_INTEGER_BOUND = 10**40


def instant_of_seconds(seconds: Decimal | int, path: str) -> datetime:
    """Return the instant so many seconds after 1970 began, digits beyond the microsecond cut off."""
    return instant_of_microseconds(int(Decimal(seconds).scaleb(6)), path)


def instant_of_microseconds(microseconds: int, path: str) -> datetime:
    """Return the instant so many microseconds after 1970 began; raise `InvalidValue` if there is none."""
    try:
        return EPOCH + microseconds * _MICROSECOND
    except OverflowError:
        raise InvalidValue(
            path, "a time outside of the years 1 to 9999", "set the device's clock"
        ) from None


def microseconds_of(at: datetime) -> int:
    """Return how many whole microseconds an instant is after 1970 began."""
    return (at - EPOCH) // _MICROSECOND
