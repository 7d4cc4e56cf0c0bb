"""PostgreSQL's binary forms, made many values at a time.

psycopg turns the elements of a list, and the fields of a COPY row, into bytes one by one; for the columns
of a batch that costs more than everything else that is done with them. What stands here is passed to
`execute` like any other parameter. Forms: the `*_recv` functions of PostgreSQL's sources (`int8recv`,
`timestamptz_recv`, `numeric_recv`, `array_recv`) and the documentation of COPY.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from struct import Struct, pack

import psycopg
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

_INT2, _INT4, _INT8, _TEXT, _TIMESTAMPTZ = 21, 23, 20, 25, 1184
_INT8_MIN, _INT8_MAX = -(2**63), 2**63 - 1
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NULL = b"\xff\xff\xff\xff"

COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
"""What binary COPY data begins with."""
COPY_TRAILER = b"\xff\xff"
"""What they end with."""
NULL_FIELD = _NULL
"""A field of a COPY row that is NULL."""


class _Array(bytes):
    """An array in its binary form."""

    __slots__ = ()


class _Int2Array(_Array):
    __slots__ = ()


class _Int4Array(_Array):
    __slots__ = ()


class _Int8Array(_Array):
    __slots__ = ()


class _TextArray(_Array):
    __slots__ = ()


class _TimestamptzArray(_Array):
    __slots__ = ()


class _AsItIs(Dumper):
    """Passes on what is in its binary form already."""

    format = Format.BINARY

    def dump(self, obj: Buffer) -> Buffer:
        """Return the bytes."""
        return obj


for _kind, _oid in (
    (_Int2Array, 1005),
    (_Int4Array, 1007),
    (_Int8Array, 1016),
    (_TextArray, 1009),
    (_TimestamptzArray, 1185),
):
    psycopg.adapters.register_dumper(
        _kind, type(f"{_kind.__name__}Dumper", (_AsItIs,), {"oid": _oid})
    )


def int2_array(values: Iterable[int | None]) -> bytes:
    """Return an int2[]."""
    return _Int2Array(_fixed(list(values), _INT2, 2, "h"))


def int4_array(values: Iterable[int | None]) -> bytes:
    """Return an int4[]."""
    return _Int4Array(_fixed(list(values), _INT4, 4, "i"))


def int8_array(values: Iterable[int | None]) -> bytes:
    """Return an int8[]."""
    return _Int8Array(_fixed(list(values), _INT8, 8, "q"))


def timestamptz_array(values: Iterable[datetime | None]) -> bytes:
    """Return a timestamptz[]."""
    instants = list(values)
    known = {each: None if each is None else microseconds(each) for each in set(instants)}
    ticks = [known[each] for each in instants]
    return _TimestamptzArray(_fixed(ticks, _TIMESTAMPTZ, 8, "q"))


def numeric_array(values: Iterable[int]) -> bytes | list[Decimal]:
    """Return whole numbers for a numeric[]: as int8[] if they fit, which the query has to cast."""
    whole = list(values)
    if not whole or (min(whole) >= _INT8_MIN and max(whole) <= _INT8_MAX):
        return int8_array(whole)
    return [Decimal(value) for value in whole]


def text_array(values: Iterable[str | None]) -> bytes:
    """Return a text[]."""
    fields = [text_field(value) for value in values]
    nulls = _NULL in fields
    return _TextArray(_head(len(fields), _TEXT, nulls=nulls) + b"".join(fields))


def _fixed(values: Sequence[int | None], element: int, octets: int, form: str) -> bytes:
    if None in values:
        size = pack(">i", octets)
        fields = [_NULL if value is None else size + pack(f">{form}", value) for value in values]
        return _head(len(values), element, nulls=True) + b"".join(fields)
    parts: list[int | None] = [octets] * (2 * len(values))
    parts[1::2] = values
    return _head(len(values), element) + pack(f">{f'i{form}' * len(values)}", *parts)


def _head(count: int, element: int, *, nulls: bool = False) -> bytes:
    if not count:
        return pack(">iii", 0, 0, element)
    return pack(">iiiii", 1, nulls, element, count, 1)


def microseconds(instant: datetime) -> int:
    """Return a timestamptz: microseconds since the year 2000 in UTC."""
    return (instant - _EPOCH) // _MICROSECOND


def instant_of(count: int) -> datetime:
    """Return the instant of so many microseconds since the year 2000 in UTC."""
    return _EPOCH + timedelta(microseconds=count)


_INT8_FIELD = Struct(">iq")
_NUMERIC_ZERO = pack(">ihhHh", 8, 0, 0, 0, 0)
_NUMERIC_1 = Struct(">ihhHhh")
_NUMERIC_2 = Struct(">ihhHhhh")
_NUMERIC_3 = Struct(">ihhHhhhh")
_BASE = 10_000
_NEGATIVE = 0x4000


def int8_field(value: int | None) -> bytes:
    """Return an int8 as a field of a COPY row."""
    return _NULL if value is None else _INT8_FIELD.pack(8, value)


def text_field(value: str | None) -> bytes:
    """Return a text as a field of a COPY row."""
    if value is None:
        return _NULL
    text = value.encode()
    return pack(">i", len(text)) + text


def timestamptz_field(value: datetime | None) -> bytes:
    """Return a timestamptz as a field of a COPY row."""
    return _NULL if value is None else _INT8_FIELD.pack(8, microseconds(value))


def numeric_field(value: int) -> bytes:
    """Return a whole number of any size, as a numeric field of a COPY row."""
    if value == 0:
        return _NUMERIC_ZERO
    sign = 0
    if value < 0:
        sign, value = _NEGATIVE, -value
    if value < _BASE:
        return _NUMERIC_1.pack(10, 1, 0, sign, 0, value)
    high, low = divmod(value, _BASE)
    if high < _BASE:
        return _NUMERIC_2.pack(12, 2, 1, sign, 0, high, low)
    top, middle = divmod(high, _BASE)
    if top < _BASE:
        return _NUMERIC_3.pack(14, 3, 2, sign, 0, top, middle, low)
    digits = [low, middle]
    while top:
        top, digit = divmod(top, _BASE)
        digits.append(digit)
    count = len(digits)
    return pack(f">ihhHh{count}h", 8 + 2 * count, count, count - 1, sign, 0, *reversed(digits))


def int8_array_field(values: Sequence[int] | None) -> bytes:
    """Return an int8[] as a field of a COPY row."""
    if values is None:
        return _NULL
    array = _fixed(values, _INT8, 8, "q")
    return pack(">i", len(array)) + array
