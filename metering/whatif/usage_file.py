"""Usage as JSON Lines: each line one reading, checked by itself, so that a bad one costs no other."""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from metering.errors import InvalidValue
from metering.mcc import COUNTRIES
from metering.period import zone
from metering.rating.plan import MeterTerms
from metering.rating.record import Usage
from metering.units import parse_quantity
from metering.usage import QUANTITY_MAX
from metering.whatif.refusal import NAME_PATTERN, broken_rule, printable, refusal, shown

YEAR_MIN, YEAR_MAX = 1970, 9000
"""The years in which times may lie."""

_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.,][0-9]{1,12})?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?"
)
"""RFC 3339, and what ISO 8601 may leave out of it: seconds, the offset, or all but the day."""
_NETWORK = re.compile(r"[0-9]{3}([0-9]{2,3})?")
_PLAIN_DIGITS_MAX = 16


def _text(given: object) -> object:
    return str(given) if isinstance(given, int) and not isinstance(given, bool) else given


def _number_or_text(given: object) -> object:
    if isinstance(given, int | Decimal | str) and not isinstance(given, bool):
        return str(given)
    raise broken_rule("is not a quantity", 'use a whole number, or text such as "1.5 MB"')


_Key = Annotated[str, Field(min_length=1, max_length=128, pattern=NAME_PATTERN)]
_Name = Annotated[_Key, BeforeValidator(_text)]
_Quantity = Annotated[str, BeforeValidator(_number_or_text)]


class UsageLineDocument(BaseModel):
    """One line of a usage file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    device: _Name
    meter: str
    quantity: _Quantity | None = None
    value: _Quantity | None = None
    uplink: _Quantity | None = None
    downlink: _Quantity | None = None
    time: str | None = None
    start: str | None = None
    end: str | None = None
    zone: _Name | None = None
    network: _Name | None = None
    country: _Name | None = None
    session: _Name | None = None
    destination: _Name | None = None
    rat: _Name | None = None
    apn: _Name | None = None
    attributes: Annotated[dict[_Key, _Name], Field(default_factory=dict)]
    packets: Annotated[int, Field(ge=0, le=QUANTITY_MAX)] = 0
    id: _Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageLine:
    """A sound line: whose usage it is, of which meter, and what was used when and where."""

    line: int
    device: str
    meter: str
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedLine:
    """A line that is not rated: the field, what is wrong with it, and what would be right."""

    line: int
    field: str
    problem: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFile:
    """What a usage file holds; `duplicates` came again with the same id and the same content."""

    lines: list[UsageLine]
    rejected: list[RejectedLine]
    duplicates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterUnits:
    """How a meter's quantities are written: its terms, and what its plan means by kB, MB and GB."""

    terms: MeterTerms
    octet_multiple: int


def read_usage(
    lines: Iterable[str],
    *,
    meters: Mapping[str, MeterUnits],
    time_zone: str,
    default_time: datetime | None,
) -> UsageFile:
    """Read usage lines; a time without a zone is in `time_zone`, a missing one is `default_time`."""
    found = UsageFile(lines=[], rejected=[], duplicates=0)
    contents: dict[str | None, UsageLineDocument] = {}
    duplicates = 0
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            document = _document(text)
            if document.id is not None and _came_before(document, contents):
                duplicates += 1
                continue
            found.lines.append(_usage_line(number, document, meters, time_zone, default_time))
            contents[document.id] = document
        except InvalidValue as error:
            found.rejected.append(
                RejectedLine(line=number, field=error.field, problem=error.problem, fix=error.fix)
            )
    return UsageFile(lines=found.lines, rejected=found.rejected, duplicates=duplicates)


def _came_before(
    document: UsageLineDocument, contents: dict[str | None, UsageLineDocument]
) -> bool:
    """Whether the same line came before; raise `InvalidValue` if another did under its id."""
    known = contents.get(document.id)
    if known is not None and known != document:
        raise InvalidValue(
            "id",
            f"{document.id!r} came before with another content",
            "give each reading an id of its own",
        )
    return known is not None


def read_instant(text: str, time_zone: str, field: str) -> datetime:
    """Return an RFC 3339 instant, a local time or a local day (its midnight) of `time_zone`."""
    instant = _instant(text.strip().upper())
    if instant is None:
        raise InvalidValue(field, f"{shown(text)} is no time", "write it like 2026-01-31T12:00:00Z")
    if not YEAR_MIN <= instant.year <= YEAR_MAX:
        raise InvalidValue(
            field,
            f"{shown(text)} is out of range",
            f"use a time of the years {YEAR_MIN} to {YEAR_MAX}",
        )
    local = instant if instant.tzinfo else instant.replace(tzinfo=zone(time_zone))
    return local.astimezone(UTC)


def _instant(written: str) -> datetime | None:
    if _TIME.fullmatch(written) is None:
        return None
    with suppress(ValueError):
        return datetime.fromisoformat(written)
    return None


def _document(text: str) -> UsageLineDocument:
    try:
        given = _DECODER.decode(text)
    except InvalidValue:
        raise
    except json.JSONDecodeError as error:
        raise InvalidValue(
            "line", f"is not JSON ({error})", "write one JSON object a line"
        ) from error
    except ValueError as error:
        raise InvalidValue("line", "holds a number of too many digits", "use fewer") from error
    except RecursionError as error:
        raise InvalidValue("line", "is nested too deeply", "write one JSON object") from error
    try:
        return UsageLineDocument.model_validate(given)
    except ValidationError as error:
        raise refusal(error, "line", "see docs/rate.md for what a line may hold") from error


def _fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidValue(printable(twice), "stands twice", "give each field once")
    return fields


_DECODER = json.JSONDecoder(parse_float=Decimal, object_pairs_hook=_fields)


def _usage_line(
    number: int,
    document: UsageLineDocument,
    meters: Mapping[str, MeterUnits],
    time_zone: str,
    default_time: datetime | None,
) -> UsageLine:
    if document.meter not in meters:
        known = ", ".join(meters)
        raise InvalidValue(
            "meter",
            f"no plan prices {shown(document.meter)}",
            f"use one of {known}, or price it",
        )
    _check_place(document)
    start, end = _interval(document, time_zone, default_time)
    quantity, uplink = _quantity(document, meters[document.meter], start, end)
    usage = Usage(
        quantity=quantity,
        uplink=uplink,
        start=start,
        end=end,
        zone=document.zone,
        network=document.network,
        country=document.country,
        session=document.session,
        packets=document.packets,
        destination=document.destination,
        attributes=_attributes(document),
    )
    return UsageLine(line=number, device=document.device, meter=document.meter, usage=usage)


def _check_place(document: UsageLineDocument) -> None:
    network, country = document.network, document.country
    if network is not None and _NETWORK.fullmatch(network) is None:
        raise InvalidValue(
            "network",
            f"{shown(network)} is no network",
            "write MCC and MNC, 5 or 6 digits, or the 3 of the MCC alone",
        )
    if country is not None and country.upper() not in COUNTRIES:
        raise InvalidValue(
            "country",
            f"{shown(country)} is no country",
            "write its two letters (ISO 3166), such as DE",
        )


def _attributes(document: UsageLineDocument) -> Mapping[str, str]:
    if document.rat is None and document.apn is None:
        return document.attributes
    attributes = dict(document.attributes)
    for name, value in (("rat", document.rat), ("apn", document.apn)):
        if value is None:
            continue
        if name in attributes:
            raise InvalidValue(name, "stands in attributes too", "give it once")
        attributes[name] = value
    return attributes


def _interval(
    document: UsageLineDocument, time_zone: str, default_time: datetime | None
) -> tuple[datetime, datetime]:
    if document.start is None and document.end is None:
        if document.time is None:
            if default_time is None:
                raise InvalidValue(
                    "time", "is missing", "say when it was used, or give the command --from"
                )
            return default_time, default_time
        at = read_instant(document.time, time_zone, "time")
        return at, at
    if document.time is not None:
        raise InvalidValue("time", "stands beside start or end", "give start and end, or time")
    if document.start is None:
        raise InvalidValue("start", "is missing beside end", "give both, or time")
    if document.end is None:
        raise InvalidValue("end", "is missing beside start", "give both, or time")
    start = read_instant(document.start, time_zone, "start")
    end = read_instant(document.end, time_zone, "end")
    if end < start:
        raise InvalidValue("end", "is before start", "an interval ends after it begins")
    return start, end


def _quantity(
    document: UsageLineDocument, units: MeterUnits, start: datetime, end: datetime
) -> tuple[int, int]:
    """Return the whole quantity and the part of it that went up, in base units."""
    is_directed = document.uplink is not None or document.downlink is not None
    if (document.quantity is not None) + (document.value is not None) + is_directed > 1:
        raise InvalidValue(
            "quantity", "is given twice", "give one of quantity, value, or uplink and downlink"
        )
    if is_directed:
        uplink, downlink = (
            0 if value is None else _base_units(value, units, name)
            for name, value in (("uplink", document.uplink), ("downlink", document.downlink))
        )
        _check_size(uplink + downlink, units, "uplink and downlink")
        return uplink + downlink, uplink
    if document.quantity is not None:
        return _base_units(document.quantity, units, "quantity"), 0
    if document.value is not None:
        return _base_units(document.value, units, "value"), 0
    if units.terms.unit == "second" and end > start:
        return -(-(end - start) // timedelta(seconds=1)), 0
    raise InvalidValue("quantity", "is missing", "say how much was used")


def _base_units(given: str, units: MeterUnits, field: str) -> int:
    if given.isascii() and given.isdecimal() and len(given) <= _PLAIN_DIGITS_MAX:
        factor: int = 10**units.terms.decimals
        quantity = int(given) * factor
    elif given.startswith("-"):
        raise InvalidValue(
            field, f"{shown(given)} is negative", "use 0 or more; correct by a credit"
        )
    else:
        quantity = parse_quantity(
            given,
            units.terms.unit,
            field,
            octet_multiple=units.octet_multiple,
            decimals=units.terms.decimals,
        )
    _check_size(quantity, units, field)
    return quantity


def _check_size(quantity: int, units: MeterUnits, field: str) -> None:
    if quantity > QUANTITY_MAX:
        most = Decimal(QUANTITY_MAX).scaleb(-units.terms.decimals)
        raise InvalidValue(
            field, f"is more than {most:f} {units.terms.unit}s", "send it in several readings"
        )
