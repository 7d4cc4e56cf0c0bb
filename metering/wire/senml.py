"""SenML (RFC 8428) in JSON and CBOR: packs of records, resolved and mapped to readings. Pure.

A record's name and time identify it, so a time that counts from now needs to know when the message was
sent: a message that is sent again would else tell of another instant.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from metering.errors import InvalidValue
from metering.usage import Rejection, RejectReason
from metering.wire import cbor
from metering.wire.mapping import FormatMapping, translate
from metering.wire.sample import (
    EPOCH,
    Sample,
    Translated,
    instant_of_seconds,
    json_document,
    microseconds_of,
    number_of,
    refused,
    rejected,
)

VERSION_MAX = 10
"""The version of RFC 8428 (§4.4)."""
RELATIVE_BELOW = 2**28
"""A time below it counts from now (§4.5.3)."""

_LABELS: Mapping[object, str] = {
    -1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs",
    0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut", 8: "vd",
}  # fmt: skip
"""The labels of CBOR (§6, table 4)."""
_TEXT_LENGTH_MAX = 500


def decode(
    payload: bytes,
    mapping: FormatMapping,
    *,
    encoding: Literal["json", "cbor"],
    sent: datetime | None,
    readings_max: int,
) -> Translated | Rejection:
    """Decode a pack; a record that is not sound is rejected alone. `sent` is when it was sent."""
    try:
        pack = json_document(payload) if encoding == "json" else cbor.load(payload)
        records = _records(pack)
    except InvalidValue as error:
        return refused(payload, f"{error.problem}; {error.fix}", path=error.field)
    if len(records) > readings_max:
        return refused(
            payload,
            f"{len(records)} records; send at most {readings_max} a message",
            reason=RejectReason.TOO_MANY_READINGS,
        )
    broken: list[Rejection] = []
    try:
        samples = list(_resolved(records, sent, broken))
    except InvalidValue as error:
        return refused(payload, f"{error.problem}; {error.fix}", path=error.field)
    outcome = translate(samples, mapping, payload)
    outcome.rejections += broken
    return outcome


def _records(pack: object) -> list[dict[str, object]]:
    """Return the pack's records with the labels of JSON; raise `InvalidValue` for what is no pack."""
    if not isinstance(pack, list) or not pack:
        raise InvalidValue("payload", "not a list of records", "send a SenML pack")
    records: list[dict[str, object]] = []
    for position, given in enumerate(pack):
        if not isinstance(given, dict):
            raise InvalidValue(str(position), "not a record", "send a SenML pack")
        record: dict[str, object] = {}
        for label, value in given.items():
            name = label if isinstance(label, str) else _LABELS.get(label)
            if name is None:
                continue  # a label that is not known is ignored (§4.4)
            if name.endswith("_"):
                raise InvalidValue(
                    f"{position}.{name}"[:200],
                    "a field that has to be understood, and is not",
                    "leave it out",
                )
            record[name] = value
        records.append(record)
    return records


@dataclass(slots=True)
class _Base:
    """What the base fields say, from the record on in which they stand (§4.1)."""

    name: str = ""
    time: Decimal | int = 0
    unit: str | None = None
    value: Decimal | int = 0
    sum: Decimal | int = 0
    version: object = None


def _resolved(
    records: list[dict[str, object]], sent: datetime | None, broken: list[Rejection]
) -> Iterator[Sample]:
    base = _Base()
    for position, record in enumerate(records):
        _take_base(base, record, position)
        if not any(label in record for label in ("v", "vs", "vb", "vd", "s")):
            if any(label in record for label in ("n", "t", "u")) and not (
                "bv" in record or "bs" in record
            ):
                broken.append(
                    rejected(record, "a record without a value; send v or s", path=str(position))
                )
            continue
        try:
            yield from _samples(base, record, position, sent)
        except InvalidValue as error:
            detail = f"{error.problem}; {error.fix}"
            broken.append(rejected(record, detail, path=error.field))


def _take_base(base: _Base, record: Mapping[str, object], position: int) -> None:
    """Note a record's base fields; one that is not sound would spoil all that follow."""
    version = record.get("bver", base.version)
    if base.version is not None and version != base.version:
        raise InvalidValue(f"{position}.bver", "another version than before", "send one version")
    if version is not None:
        base.version = version
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise InvalidValue(f"{position}.bver", "no version", "send a whole number from 1")
        if version > VERSION_MAX:
            raise InvalidValue(
                f"{position}.bver", f"version {version} is not known", f"send {VERSION_MAX}"
            )
    if "bn" in record:
        base.name = _text(record["bn"], f"{position}.bn")
    if "bt" in record:
        base.time = number_of(record["bt"], f"{position}.bt")
    if "bu" in record:
        base.unit = _text(record["bu"], f"{position}.bu")
    if "bv" in record:
        base.value = number_of(record["bv"], f"{position}.bv")
    if "bs" in record:
        base.sum = number_of(record["bs"], f"{position}.bs")


def _samples(
    base: _Base, record: Mapping[str, object], position: int, sent: datetime | None
) -> Iterator[Sample]:
    name = base.name + _text(record.get("n", ""), f"{position}.n")
    if not name:
        raise InvalidValue(f"{position}.n", "a record without a name", "send n, or bn before it")
    if len(name) > _TEXT_LENGTH_MAX:
        raise InvalidValue(f"{position}.n", "a name that is too long", "shorten it")
    unit = base.unit if "u" not in record else _text(record["u"], f"{position}.u")
    at = _instant(base, record, position, sent)
    values = [label for label in ("v", "vs", "vb", "vd") if label in record]
    if len(values) > 1:
        raise InvalidValue(f"{position}.{values[1]}", "more than one value", "send one a record")
    if "v" in record:
        path = f"{position}.v"
        value = _sum(base.value, number_of(record["v"], path))
        yield Sample(name, at, value, path, unit)
    elif "vs" in record:
        yield Sample(name, at, _text(record["vs"], f"{position}.vs"), f"{position}.vs", unit)
    if "s" in record:
        path = f"{position}.s"
        value = _sum(base.sum, number_of(record["s"], path))
        yield Sample(name, at, value, path, unit, is_sum=True)


def _sum(base: Decimal | int, given: Decimal | int) -> Decimal | int:
    if isinstance(base, int) and isinstance(given, int):
        return base + given
    return Decimal(base) + Decimal(given)


def _instant(
    base: _Base, record: Mapping[str, object], position: int, sent: datetime | None
) -> datetime:
    path = f"{position}.t"
    seconds = _sum(base.time, number_of(record.get("t", 0), path))
    if seconds >= RELATIVE_BELOW:
        return instant_of_seconds(seconds, path)
    if sent is None:
        raise InvalidValue(
            path, "a time that counts from now, in a message that does not say when it was sent",
            "send times since 1970, or the user property sent",
        )  # fmt: skip
    now = Decimal(microseconds_of(sent)).scaleb(-6)
    return instant_of_seconds(now + Decimal(seconds), path)


def _text(given: object, path: str) -> str:
    if not isinstance(given, str) or len(given) > _TEXT_LENGTH_MAX:
        raise InvalidValue(path, "no text of a sensible length", "send a text")
    return given


def encode(
    values: Sequence[tuple[datetime, str, int | str]], *, encoding: Literal["json", "cbor"]
) -> bytes:
    """Write a pack of values, numbers or texts: (instant, name, value), times since 1970."""
    records: list[dict[str, object]] = [
        {"n": name, "t": _exact_seconds(at), "vs" if isinstance(value, str) else "v": value}
        for at, name, value in values
    ]
    if encoding == "json":
        return json.dumps(records, separators=(",", ":")).encode()
    labels = {name: label for label, name in _LABELS.items()}
    return cbor.dump([{labels[name]: each for name, each in one.items()} for one in records])


def _exact_seconds(at: datetime) -> int | float:
    """Return seconds since 1970; to the microsecond, a float is exact enough until the year 2242."""
    microseconds = microseconds_of(at)
    whole, rest = divmod(microseconds, 1_000_000)
    return (at - EPOCH).total_seconds() if rest else whole
