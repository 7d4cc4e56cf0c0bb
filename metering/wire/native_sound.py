"""The fast way through the native payload: messages in which everything is sound.

What it does not take, it leaves to the careful way (`native.decode_explaining`), which alone says what is
wrong. It may leave a sound message to it; it must never take one that the careful way would not, nor
read it otherwise: `tests/property/test_native_fast_path.py` compares the two.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec

from metering.usage import METERS, QUANTITY_MAX, Reading, ReadingKind

_PRINTABLE = r"^[\x21-\x7e]+\Z"
_Label = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=_PRINTABLE)]
_Epoch = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=_PRINTABLE)]
_Quantity = Annotated[int, msgspec.Meta(ge=0, le=QUANTITY_MAX)]


class _Reading(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One reading as it stands in a message; its meter and its instants have not been looked at."""

    seq: Annotated[int, msgspec.Meta(ge=1, le=QUANTITY_MAX)]
    at: str
    meter: str
    since: str | None = None
    kind: Literal["delta", "total"] = "delta"
    up: _Quantity | None = None
    down: _Quantity | None = None
    quantity: _Quantity | None = None
    epoch: _Epoch | None = None
    width: Annotated[int, msgspec.Meta(ge=8, le=64)] | None = None
    zone: _Label | None = None
    rat: _Label | None = None
    apn: _Label | None = None
    session: _Label | None = None
    packets: _Quantity | None = None


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message; the characters of its boot have not been looked at, for which a pattern is slow."""

    boot: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    readings: Annotated[list[_Reading], msgspec.Meta(min_length=1)]
    sent: str | None = None


_decode = msgspec.json.Decoder(_Message).decode

_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_SHAPES = frozenset(
    f"0000-00-00T00:00:00{fraction}{zone}".encode()
    for fraction in ("", *("." + "0" * digits for digits in range(1, 10)))
    for zone in ("Z", "+00:00", "-00:00")
)
"""The usual timestamps, with every digit a zero."""


_DELTA, _TOTAL = ReadingKind.DELTA, ReadingKind.TOTAL


class _Unusual(ValueError):
    """Left to the careful way."""


def decode_sound(payload: bytes) -> tuple[str, datetime | None, list[Reading]] | None:
    """Decode a message whose every reading is sound to boot, sent and readings; None for any other."""
    try:
        return _sound(_decode(payload))
    except (ValueError, OverflowError):  # msgspec's errors and UnicodeError are ValueErrors
        return None


def sound_of(document: object) -> tuple[str, datetime | None, list[Reading]] | None:
    """Do as `decode_sound` does with a message whose octets were decoded already."""
    try:
        return _sound(msgspec.convert(document, _Message))
    except (ValueError, OverflowError):
        return None


def _sound(message: _Message) -> tuple[str, datetime | None, list[Reading]]:
    boot, sent = message.boot, message.sent
    if not (boot.isascii() and boot.isprintable()) or " " in boot:
        raise _Unusual
    return (
        boot,
        None if sent is None else _instant(sent),
        [_reading(given) for given in message.readings],
    )


def _instant(text: str) -> datetime:
    """Read a timestamp of a usual shape; raise `ValueError` for any other, or one that does not exist."""
    if text.encode().translate(_DIGITS_TO_ZERO) not in _SHAPES:
        raise _Unusual
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo is UTC else instant.astimezone(UTC)


def _reading(given: _Reading) -> Reading:
    """Return a reading that keeps the rules between fields; raise `ValueError` for any other."""
    meter = METERS.get(given.meter)
    if meter is None:
        raise _Unusual
    up, down, quantity = given.up, given.down, given.quantity
    if meter.directed:
        if up is None or down is None or quantity is not None or up + down > QUANTITY_MAX:
            raise _Unusual
    elif quantity is None or up is not None or down is not None:
        raise _Unusual
    at = _instant(given.at)
    since = None if given.since is None else _instant(given.since)
    if given.kind == "total":
        _check_counter(given)
    elif given.epoch is not None or given.width is not None or (since is not None and since > at):
        raise _Unusual
    # As `Reading(…)` does, which takes twice as long to sort its arguments.
    return _new(
        Reading,
        (
            given.seq, at, meter, _TOTAL if given.kind == "total" else _DELTA, up or 0, down or 0,
            quantity or 0, since, given.epoch, given.width, given.zone, given.rat, given.apn,
            given.session, given.packets or 0,
        ),
    )  # fmt: skip


_new = tuple.__new__


def _check_counter(given: _Reading) -> None:
    if given.since is not None:
        raise _Unusual
    if given.width is not None:
        most = max(given.up or 0, given.down or 0, given.quantity or 0)
        if most >> given.width:
            raise _Unusual
