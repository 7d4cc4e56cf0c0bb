"""Units of quantity: octet multiples, and quantities written with a unit."""

import re
from fractions import Fraction

from metering.errors import InvalidValue

MULTIPLES: dict[str, dict[str, int]] = {
    "octet": {
        "octet": 1,
        "B": 1,
        "kB": 1000,
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
"""Base unit → written unit → how many base units. kB is a power of 1000, KiB of 1024."""

_QUANTITY = re.compile(r"(?P<number>[0-9]{1,40}(\.[0-9]{1,40})?)\s*(?P<unit>[A-Za-z]+)?\Z")
_SHOWN_CHARACTERS_MAX = 60


def parse_quantity(text: int | str, base_unit: str, field: str) -> int:
    """Return a quantity such as `"1.5 GB"`, `"500"` or `500` as a whole count of `base_unit`.

    A number without a unit counts base units. Raises `InvalidValue` when the unit is unknown or the
    quantity is not whole.
    """
    if isinstance(text, int):
        if text < 0:
            raise InvalidValue(field, f"{text} is negative", "use 0 or more")
        return text
    multiples = MULTIPLES.get(base_unit, {base_unit: 1})
    shown = repr(text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "…")
    found = _QUANTITY.match(text.strip())
    unit = found.group("unit") or base_unit if found else ""
    if not found or unit not in multiples:
        known = ", ".join(multiples)
        raise InvalidValue(field, f"{shown} is not a quantity", f"use a number and one of: {known}")
    quantity = Fraction(found.group("number")) * multiples[unit]
    if quantity.denominator != 1:
        raise InvalidValue(
            field, f"{shown} is not a whole number of {base_unit}s", "use fewer digits"
        )
    return quantity.numerator
