"""What rejected content still tells of usage: meter, quantity, and when it was measured. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from metering.usage import METERS, QUANTITY_MAX
from metering.wire.native import Instant

_INSTANT: TypeAdapter[datetime] = TypeAdapter(Instant)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldUsage:
    """What one rejected reading tells, in base units of its meter.

    `quantity` is None where it is not told, as of a counter, of which only its growth is usage. `at` is None
    where no instant can be read.
    """

    meter: str
    quantity: int | None
    at: datetime | None


def usage_told(content: bytes) -> list[ToldUsage]:
    """Return what the readings in rejected content tell; nothing of those whose meter cannot be read.

    The content is a native message, or one reading of it, perhaps cut off or broken in any way.
    """
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        return []
    readings = given.get("readings") if isinstance(given, dict) else None
    some = readings if isinstance(readings, list) else [given]
    return [
        ToldUsage(meter=each["meter"], quantity=_quantity(each), at=_instant(each.get("at")))
        for each in some
        if isinstance(each, dict) and isinstance(each.get("meter"), str)
        if each["meter"] in METERS
    ]


def _quantity(reading: Mapping[str, Any]) -> int | None:
    if reading.get("kind", "delta") != "delta":
        return None
    names = ("up", "down") if METERS[reading["meter"]].directed else ("quantity",)
    told = [reading[name] for name in names if reading.get(name) is not None]
    is_sound = all(type(each) is int and 0 <= each <= QUANTITY_MAX for each in told)
    return sum(told) if told and is_sound else None


def _instant(given: object) -> datetime | None:
    if not isinstance(given, str):
        return None
    try:
        return _INSTANT.validate_python(given)
    except ValidationError:
        return None
