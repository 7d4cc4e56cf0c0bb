"""Numbers, quantities and rounding, read as plainly as they are written."""

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import Any, NamedTuple

Doc = Mapping[str, Any]

WORDS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
SECONDS = {"s": 1, "second": 1, "seconds": 1, "min": 60, "minute": 60, "minutes": 60}
HOURS = {"h": 3600, "hour": 3600, "hours": 3600}
PREFIXES = ["k", "M", "G", "T"]
NO_DIGITS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split()
THREE_DIGITS = "BHD IQD JOD KWD LYD OMR TND".split()


def exact(value: object) -> Fraction:
    return Fraction(str(value))


def amount_of(doc: Doc, key: str) -> Fraction:
    return exact(doc.get(key, 0))


class Measure(NamedTuple):
    """What a meter's quantities are counted in."""

    meter: str
    unit: str | None = None
    decimals: int = 0
    multiple: int = 1000

    def scale(self, unit: str) -> int:
        if unit in WORDS:
            return WORDS[unit]
        if self.meter == "data" and self.unit is None:
            return self._octets(unit)
        if self.meter == "voice" and self.unit is None:
            return (SECONDS | HOURS)[unit]
        if unit in {self.unit, "message", "messages", "sms"}:
            return 1
        raise ValueError(unit)

    def _octets(self, unit: str) -> int:
        if unit in {"B", "octet", "octets"}:
            return 1
        power = PREFIXES.index(unit[0].replace("K", "k")) + 1
        return int((1024 if unit.endswith("iB") else self.multiple) ** power)

    def of(self, value: object) -> int:
        """Give the whole number of the smallest countable units."""
        match = re.fullmatch(r"([-+0-9.eE]+?)\s*([A-Za-z].*)?", str(value).strip())
        if match is None:
            raise ValueError(value)
        scale = self.scale(match[2]) if match[2] else 1
        count = exact(match[1]) * scale * Fraction(10) ** self.decimals
        if count.denominator != 1:
            raise ValueError(value)
        return count.numerator


def rounded_to_whole(value: Fraction, direction: str) -> int:
    if direction == "up":
        return ceil(value)
    if direction == "down":
        return floor(value)
    return floor(value + Fraction(1, 2))


def whole_by_mode(size: Fraction, mode: str) -> int:
    """Round what is not negative."""
    below = floor(size)
    rest = size - below
    if mode == "up":
        return below + (1 if rest else 0)
    if mode == "down":
        return below
    if rest == Fraction(1, 2):
        return below + (1 if mode == "half_up" or below % 2 else 0)
    return below + (1 if rest > Fraction(1, 2) else 0)


def rounded_money(value: Fraction, *, mode: str, step: Decimal) -> Decimal:
    """Round to a multiple of the step."""
    whole = whole_by_mode(abs(value) / Fraction(step), mode)
    return (-whole if value < 0 else whole) * step


def digits_of(currency: str) -> int:
    return 0 if currency in NO_DIGITS else 3 if currency in THREE_DIGITS else 2
