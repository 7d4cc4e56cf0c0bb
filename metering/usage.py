"""What devices publish, and what becomes of it: readings and usage records."""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import NamedTuple


class ReadingKind(IntEnum):
    """How a reading's quantity is meant. The numbers are stored; never reuse one."""

    DELTA = 1
    """The quantity used since the reading before."""
    TOTAL = 2
    """A cumulative counter's value, in its epoch."""


EPOCH_FROM_FIRST = "from first"
"""The epoch of a counter whose first value says where counting begins, not what was used.

It holds a space, so that no device can name an epoch so. It is for counters of which nobody tells when
they began: any other epoch begins at zero.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """What is counted: its name, its base unit, and whether uplink and downlink are kept apart."""

    meter_no: int
    meter: str
    unit: str
    directed: bool


DATA = Meter(meter_no=1, meter="data", unit="octet", directed=True)
SMS = Meter(meter_no=2, meter="sms", unit="message", directed=False)
VOICE = Meter(meter_no=3, meter="voice", unit="second", directed=False)
MESSAGES = Meter(meter_no=4, meter="messages", unit="message", directed=False)

METERS: dict[str, Meter] = {meter.meter: meter for meter in (DATA, SMS, VOICE, MESSAGES)}
"""The meters that every tenant has, by name."""
METERS_BY_NO: dict[int, Meter] = {meter.meter_no: meter for meter in METERS.values()}

QUANTITY_MAX = 2**53 - 1
"""The largest quantity, counter value or sequence number that one reading may carry.

The largest integer that every JSON implementation reads exactly (RFC 8259 §6); nine petabytes.
"""


class Reading(NamedTuple):
    """What a device published, as it published it.

    `seq` counts from 1 within the device's boot and, like `at`, is assigned once and resent
    unchanged. `at` is when it was measured; `since`, if given, is when a delta's interval began.
    A directed meter fills `uplink` and `downlink`, any other `quantity`; all in the meter's base
    unit. `epoch` and `width` (bits) describe the counter of a TOTAL reading. `session` names what some
    plans round or price together, `packets` says how many carried it. (A named tuple, because one is
    made for every reading that comes in, and again when it is charged.)
    """

    seq: int
    at: datetime
    meter: Meter
    kind: ReadingKind
    uplink: int = 0
    downlink: int = 0
    quantity: int = 0
    since: datetime | None = None
    epoch: str | None = None
    width: int | None = None
    zone: str | None = None
    rat: str | None = None
    apn: str | None = None
    session: str | None = None
    packets: int = 0


class RejectReason(StrEnum):
    """Why a message or one of its readings was not admitted. The texts are stored and public."""

    BAD_TOPIC = "bad_topic"
    """The topic is not one that devices publish usage on."""
    PAYLOAD_TOO_LARGE = "payload_too_large"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    UNDECODABLE = "undecodable"
    """The octets are not what the message's format says."""
    INVALID_MESSAGE = "invalid_message"
    """The message as a whole breaks the schema."""
    TOO_MANY_READINGS = "too_many_readings"
    UNKNOWN_DEVICE = "unknown_device"
    INVALID_READING = "invalid_reading"
    """This reading breaks the schema; others of its message do not suffer."""
    UNKNOWN_METER = "unknown_meter"
    UNMAPPED = "unmapped"
    """No metric of the message is a meter by its tenant's mapping."""
    NOT_ENTITLED = "not_entitled"
    """The sender may not report for this device."""
    CLOCK_AHEAD = "clock_ahead"
    """Measured too far in the future."""
    CLOCK_BEHIND = "clock_behind"
    """Measured too far in the past."""
    SEQUENCE_CONFLICT = "sequence_conflict"
    """The same boot and sequence number came before with another content."""
    TOO_MANY_GAPS = "too_many_gaps"
    """The boot's numbering is so full of holes that one more is refused for now."""
    STORAGE_ERROR = "storage_error"
    """The database refused it alone, after its batch was tried without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A message, or one reading of it, that was not admitted, and why.

    `seq` is set when the rejected reading still tells its sequence number. `field` is the path of
    the offending field, `detail` what is wrong and what would be right; `content` is the offending
    bytes, perhaps shortened.
    """

    reason: RejectReason
    detail: str
    field: str | None = None
    boot: str | None = None
    seq: int | None = None
    content: bytes = b""
