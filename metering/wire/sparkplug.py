"""Sparkplug B 3.0: births that name metrics, data by name or alias, deaths, and requests for rebirth. Pure.

A metric and its timestamp identify a value. The sequence number, 0 to 255, tells only that something was
lost: it comes round too soon to identify anything.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError

from metering.errors import InvalidValue
from metering.ids import is_id
from metering.usage import Rejection, RejectReason
from metering.wire.mapping import FormatMapping, translate
from metering.wire.sample import (
    Sample,
    Translated,
    instant_of_microseconds,
    json_document,
    microseconds_of,
    number_of,
    refused,
    rejected,
)
from metering.wire.sparkplug_schema import PAYLOAD

NAMESPACE = "spBv1.0"
SEQ_COUNT = 256
"""Sequence numbers go from 0 to one less, and round (§6.4.3)."""
HOST_ID = "fleetmeter"
"""How the platform is called as a host application; a broker has one deployment of it."""
REBIRTH = "Node Control/Rebirth"
BD_SEQ = "bdSeq"
_BOOLEAN, _UINT64, _STRING = 11, 8, 12
_SIGNED_BITS: Mapping[int, int] = {1: 8, 2: 16, 3: 32, 4: 64}
"""Data types that are signed, and their bits: protobuf carries them as what they are modulo 2^32 or 2^64."""
_NAME_LENGTH_MAX = 300


class MessageType(StrEnum):
    """What a message is, by its topic: of an edge node (N) or of a device behind it (D)."""

    NBIRTH = "NBIRTH"
    NDATA = "NDATA"
    NDEATH = "NDEATH"
    DBIRTH = "DBIRTH"
    DDATA = "DDATA"
    DDEATH = "DDEATH"


class SparkplugTopic(NamedTuple):
    """Who sent what: the group is the tenant; `device` is empty for the edge node itself."""

    group: str
    type: MessageType
    edge_node: str
    device: str


_LEVELS_OF_NODE, _LEVELS_OF_DEVICE = 4, 5


def topic_filters() -> list[str]:
    """Return the subscriptions to what edge nodes publish, without commands and states."""
    return [
        f"{NAMESPACE}/+/{each}/+" + ("/+" if each.startswith("D") else "") for each in MessageType
    ]


def parse_topic(topic: str) -> SparkplugTopic | None:
    """Return what a topic of the namespace says; None unless its names are ids."""
    levels = topic.split("/")
    if len(levels) not in (_LEVELS_OF_NODE, _LEVELS_OF_DEVICE) or levels[0] != NAMESPACE:
        return None
    if levels[2] not in MessageType.__members__ or not all(
        is_id(each) for each in (levels[1], *levels[3:])
    ):
        return None
    of_device = len(levels) == _LEVELS_OF_DEVICE
    if of_device != levels[2].startswith("D"):
        return None
    return SparkplugTopic(
        levels[1], MessageType(levels[2]), levels[3], levels[4] if of_device else ""
    )


def command_topic(group: str, edge_node: str) -> str:
    """Return the topic on which an edge node hears commands."""
    return f"{NAMESPACE}/{group}/NCMD/{edge_node}"


def state_topic() -> str:
    """Return the topic on which the platform says whether it is there (§6.4.13)."""
    return f"{NAMESPACE}/STATE/{HOST_ID}"


def host_state(at: datetime, *, is_online: bool) -> bytes:
    """Write what the platform says there; the later of two instants counts, in milliseconds."""
    state = {"online": is_online, "timestamp": microseconds_of(at) // 1000}
    return json.dumps(state, separators=(",", ":")).encode()


def offline_since(payload: object) -> datetime | None:
    """Return the instant of a state that says that nobody is there; None for any other payload."""
    try:
        state = json_document(payload if isinstance(payload, bytes) else b"")
        if not isinstance(state, dict) or state.get("online") is not False:
            return None
        told = state.get("timestamp")
        if isinstance(told, bool) or not isinstance(told, int):
            return None
        return instant_of_microseconds(told * 1000, "timestamp")
    except InvalidValue:
        return None


class WireMetric(Protocol):
    """A metric as protobuf has it; which value it carries, `WhichOneof` tells."""

    name: str
    alias: int
    timestamp: int
    datatype: int
    is_null: bool

    def HasField(self, name: str) -> bool:  # noqa: N802 - the library's
        """Whether a field was sent."""

    def WhichOneof(self, name: str) -> str | None:  # noqa: N802 - the library's
        """Return which of several fields was sent."""


Aliases = Mapping[int, tuple[str, int]]
"""Alias → a metric's name and its data type, as the last birth said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A payload: its sequence number, its metrics, and when it was sent."""

    seq: int | None
    sent: datetime | None
    metrics: Sequence[WireMetric]
    payload: bytes

    def bd_seq(self) -> int | None:
        """Return which birth this is of, or which one a death belongs to."""
        for metric in self.metrics:
            kind = metric.WhichOneof("value")
            if metric.name == BD_SEQ and kind in ("int_value", "long_value"):
                return int(getattr(metric, kind))
        return None

    def aliases(self) -> dict[int, tuple[str, int]]:
        """Return the aliases that a birth defines."""
        return {
            metric.alias: (metric.name, metric.datatype)
            for metric in self.metrics
            if metric.HasField("alias") and metric.name
        }


def decode(payload: bytes, *, readings_max: int) -> Decoded | Rejection:
    """Decode a payload's octets; names and values are looked at by `readings_of`."""
    message: Any = PAYLOAD()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        return refused(payload, f"no Sparkplug B payload: {error}; send protobuf")
    if len(message.metrics) > readings_max:
        return refused(
            payload,
            f"{len(message.metrics)} metrics; send at most {readings_max} a message",
            reason=RejectReason.TOO_MANY_READINGS,
        )
    sent: datetime | None = None
    if message.HasField("timestamp"):
        try:
            sent = instant_of_microseconds(message.timestamp * 1000, "timestamp")
        except InvalidValue as error:
            return refused(payload, f"{error.problem}; {error.fix}", path=error.field)
    return Decoded(
        seq=message.seq if message.HasField("seq") else None,
        sent=sent,
        metrics=message.metrics,
        payload=payload,
    )


def readings_of(
    decoded: Decoded, aliases: Aliases, mapping: FormatMapping, *, device: str
) -> tuple[Translated, bool]:
    """Return what a birth or data say was used, and whether an alias is not known.

    A metric whose alias no birth defined is rejected: who sent it is to be asked to be born again.
    """
    samples: list[Sample] = []
    broken: list[Rejection] = []
    unknown = False
    for position, metric in enumerate(decoded.metrics):
        name, datatype = metric.name, metric.datatype
        if not name:
            known = aliases.get(metric.alias) if metric.HasField("alias") else None
            if known is None:
                unknown = True
                broken.append(_unknown_alias(decoded, metric, position))
                continue
            name, datatype = known[0], datatype or known[1]
        try:
            sample = _sample(decoded, metric, name, datatype)
        except InvalidValue as error:
            detail = f"{error.problem}; {error.fix}"
            broken.append(rejected({"metric": name}, detail, path=error.field))
        else:
            samples += [] if sample is None else [sample]
    known_samples = [each for each in samples if mapping.roles_of(each.metric)]
    outcome = translate(known_samples, mapping, decoded.payload, device=device)
    outcome.rejections += broken
    return outcome, unknown


def _unknown_alias(decoded: Decoded, metric: WireMetric, position: int) -> Rejection:
    alias = metric.alias if metric.HasField("alias") else None
    return rejected(
        {
            "alias": alias,
            "seq": decoded.seq,
            "value": str(metric)[:200],
            "payload": decoded.payload.hex(),
        },
        f"no birth that is known defined alias {alias}; a rebirth was asked for",
        path=f"metrics.{position}.alias",
    )


def _sample(decoded: Decoded, metric: WireMetric, name: str, datatype: int) -> Sample | None:
    """Return a metric's value; None for what is neither number nor text."""
    kind = metric.WhichOneof("value")
    if metric.is_null or kind is None or kind == "boolean_value" or len(name) > _NAME_LENGTH_MAX:
        return None
    if metric.HasField("timestamp"):
        at = instant_of_microseconds(metric.timestamp * 1000, f"{name}.timestamp")
    elif decoded.sent is not None:
        at = decoded.sent
    else:
        raise InvalidValue(name, "no timestamp, nor has the payload one", "send one")
    value = getattr(metric, kind)
    if kind == "string_value":
        return Sample(name, at, str(value), name)
    if kind in ("int_value", "long_value"):
        bits = _SIGNED_BITS.get(datatype)
        if bits is not None:
            value &= (1 << bits) - 1
            value -= (value >> (bits - 1)) << bits
    return Sample(name, at, _number(value, kind, name), name)


def _number(value: float, kind: str, name: str) -> int | Decimal:
    if kind == "float_value":  # single precision: what it was written as, not its double's digits
        value = float(f"{value:.9g}")
    return number_of(value, name)


def rebirth_request(at: datetime) -> bytes:
    """Write the command by which an edge node is asked to announce itself and its devices again."""
    message: Any = PAYLOAD(timestamp=microseconds_of(at) // 1000)
    message.metrics.add(
        name=REBIRTH, datatype=_BOOLEAN, boolean_value=True, timestamp=message.timestamp
    )
    return bytes(message.SerializeToString())


class Metric(NamedTuple):
    """A metric to be written: a birth gives name and alias, data one of them; None: no value yet."""

    value: int | str | None
    at: datetime
    name: str | None = None
    alias: int | None = None


def encode(metrics: Sequence[Metric], *, seq: int | None, at: datetime) -> bytes:
    """Write a payload of whole numbers and texts."""
    message: Any = PAYLOAD(timestamp=microseconds_of(at) // 1000)
    if seq is not None:
        message.seq = seq
    for each in metrics:
        written = message.metrics.add(timestamp=microseconds_of(each.at) // 1000, datatype=_UINT64)
        if each.value is None:
            written.is_null = True
        elif isinstance(each.value, str):
            written.datatype, written.string_value = _STRING, each.value
        else:
            written.long_value = each.value
        if each.name is not None:
            written.name = each.name
        if each.alias is not None:
            written.alias = each.alias
    return bytes(message.SerializeToString())


def is_rebirth_request(payload: bytes) -> bool:
    """Whether a command asks an edge node to announce itself and its devices again."""
    message: Any = PAYLOAD()
    try:
        message.ParseFromString(payload)
    except DecodeError:
        return False
    return any(each.name == REBIRTH and each.boolean_value for each in message.metrics)
