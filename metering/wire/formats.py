"""Which format a message has: its content type says so, or else its topic. Pure."""

import re
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from metering.ids import ID_PATTERN
from metering.wire.mqtt import MessageProperties


class Format(StrEnum):
    """What a payload may be; each value is the level of the topic after `usage` that says so."""

    NATIVE_JSON = "json"
    NATIVE_CBOR = "cbor"
    SENML_JSON = "senml"
    SENML_CBOR = "senml-cbor"
    CLOUDEVENTS = "cloudevents"
    THINGSBOARD = "thingsboard"
    THINGSBOARD_GATEWAY = "thingsboard-gateway"
    CARRIER = "carrier"


class UsageTopic(NamedTuple):
    """Whose usage topic it is, and the format that its last level names."""

    tenant_id: str
    device_id: str
    format: Format


_BY_CONTENT_TYPE = {
    "application/senml+json": Format.SENML_JSON,
    "application/senml+cbor": Format.SENML_CBOR,
    "application/cloudevents+json": Format.CLOUDEVENTS,
    "application/cloudevents-batch+json": Format.CLOUDEVENTS,
}
_CBOR = "application/cbor"
_SPECVERSION = "specversion"
"""The user property by which a CloudEvent in binary mode is known."""


def usage_topic_of(root: str, topic: str) -> UsageTopic | None:
    """Return what a usage topic says; None when it is none of a well-formed id and a known format."""
    found = _usage_topics(root).match(topic)
    if found is None:
        return None
    level = found[3]
    return UsageTopic(found[1], found[2], Format(level) if level else Format.NATIVE_JSON)


def format_of(topic: Format, properties: MessageProperties) -> Format:
    """Return a message's format: what its content type names, or else its topic.

    Content types that many formats share, such as that of JSON, leave it to the topic.
    """
    if any(key == _SPECVERSION for key, _ in properties.user):
        return Format.CLOUDEVENTS
    if properties.content_type is None:
        return topic
    content_type = properties.content_type.partition(";")[0].strip().lower()
    if content_type == _CBOR:
        return {
            Format.NATIVE_JSON: Format.NATIVE_CBOR,
            Format.SENML_JSON: Format.SENML_CBOR,
        }.get(topic, topic)
    return _BY_CONTENT_TYPE.get(content_type, topic)


def formats_filter(root: str) -> str:
    """Return the subscription that matches every usage topic whose last level names a format."""
    return f"{root}/+/+/usage/+"


@cache
def _usage_topics(root: str) -> re.Pattern[str]:
    one_id = ID_PATTERN.removeprefix("^").removesuffix("$")
    formats = "|".join(re.escape(each) for each in Format)
    return re.compile(rf"{re.escape(root)}/({one_id})/({one_id})/usage(?:/({formats}))?\Z")
