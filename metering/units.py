"""Units of quantity: octet multiples, and quantities written with a unit."""

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

from metering.errors import InvalidValue

MULTIPLES: dict[str, dict[str, int]] = {
    "octet": {
        "octet": 1,
        "B": 1,
        "kB": 1000,
        "KB": 1000,
        "MB": 1000**2,
        "GB": 1000**3,
        "TB": 1000**4,
        "KiB": 1024,
        "MiB": 1024**2,
        "GiB": 1024**3,
        "TiB": 1024**4,
    },
    "second": {"s": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600},
    "message": {"message": 1},
}
"""Base unit → written unit → how many base units. kB (or KB) is a power of 1000, KiB of 1024."""

NUMBER_WORDS: dict[str, int] = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
"""What may stand before any unit, or for it."""

_BINARY_OCTETS = MULTIPLES["octet"] | {
    unit: 1024**power for unit, power in {"kB": 1, "KB": 1, "MB": 2, "GB": 3, "TB": 4}.items()
}
_QUANTITY = re.compile(
    r"(?P<number>[0-9]{1,40}(\.[0-9]{1,40})?)"
    r"\s*(?P<word>(thousand|million|billion)(?![^\s]))?"
    r"\s*(?P<unit>[^\s0-9.,+-]\S{0,39})?\Z"
)
_SHOWN_CHARACTERS_MAX = 60
_EXPONENT_MAX = 80


def multiples_of(base_unit: str, octet_multiple: int = 1000) -> Mapping[str, int]:
    """Return each unit in which quantities of `base_unit` may be written, as so many of it.

    `octet_multiple` is what kB, MB, GB and TB are powers of: 1000 or 1024.
    """
    if base_unit == "octet" and octet_multiple == 1024:  # noqa: PLR2004 - a kibioctet
        return _BINARY_OCTETS
    return MULTIPLES.get(base_unit, {base_unit: 1})


def parse_quantity(
    text: int | str | Decimal,
    base_unit: str,
    field: str,
    *,
    octet_multiple: int = 1000,
    decimals: int = 0,
) -> int:
    """Return a quantity such as `"1.5 GB"`, `"1 million"`, `"500"` or `500` as a whole count.

    A number without a unit counts base units. `octet_multiple` is what kB, MB, GB and TB are powers
    of. With `decimals` the count is of 10^-decimals of `base_unit`. Raises `InvalidValue` when the
    unit is unknown or the count is not whole.
    """
    factor: int = 10**decimals
    if isinstance(text, int):
        if text < 0:
            raise InvalidValue(field, f"{text} is negative", "use 0 or more")
        return text * factor
    if isinstance(text, Decimal):
        # A short text can stand for a number of a billion digits.
        sensible = text.is_finite() and abs(text.adjusted()) <= _EXPONENT_MAX
        text = format(text, "f") if sensible else str(text)
    shown = repr(text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "…")
    multiples = multiples_of(base_unit, octet_multiple)
    found = _QUANTITY.match(text.strip())
    unit = found.group("unit") or base_unit if found else ""
    if not found or unit not in multiples:
        known = ", ".join([*multiples, *NUMBER_WORDS])
        raise InvalidValue(field, f"{shown} is not a quantity", f"use a number and one of: {known}")
    word = NUMBER_WORDS.get(found.group("word") or "", 1)
    quantity = Fraction(found.group("number")) * word * multiples[unit] * factor
    if quantity.denominator != 1:
        if decimals:
            raise InvalidValue(
                field, f"{shown} has more than {decimals} decimals of {base_unit}", "use fewer"
            )
        raise InvalidValue(
            field, f"{shown} is not a whole number of {base_unit}s", f"use whole {base_unit}s"
        )
    return quantity.numerator
