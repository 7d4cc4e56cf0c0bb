"""A carrier's usage records, as the data streamers of emnify and 1NCE send them: JSON, or CSV. Pure.

`id` identifies a record. Volumes are decimal megabytes, of 1 000 000 octets: `tx` is what the device sent
and `rx` what it received. For messages (traffic type 6) they count messages. Timestamps without a zone
are UTC. Fields that are not known are left out: carriers add some.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from metering.errors import InvalidValue
from metering.ids import is_id
from metering.usage import DATA, QUANTITY_MAX, SMS, Reading, ReadingKind, Rejection, RejectReason
from metering.wire import carrier_csv
from metering.wire.identity import BY_ID, boot_by_id, identity_of
from metering.wire.native import Instant
from metering.wire.sample import json_document, number_of, refused, rejected

OCTETS_PER_MEGABYTE = 1_000_000
_DATA, _SMS = 5, 6
"""Traffic types."""
_INSTANT: TypeAdapter[datetime] = TypeAdapter(Instant)
_NO_ZONE = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d+)?\Z", re.ASCII)
_NETWORK = re.compile(r"[0-9]{3}\Z"), re.compile(r"[0-9]{2,3}\Z")
_DIGITS = re.compile(r"[0-9]{5,22}\Z")
_BOOT = f"{BY_ID}carrier/"
NAME_DEFAULT = "carrier"
TARIFF_ZONE_LENGTH_MAX = 200
RecordsForm = Literal["json", "csv"]


class CarrierRecord(NamedTuple):
    """One record: the SIM that it is of, its reading, and the id that identifies it.

    The reading's number is given when the record arrives; its zone is the visited network. `endpoint`
    is the carrier's name of the device, where it could be one of ours.
    """

    identity: str
    reading: Reading
    iccid: str | None
    imsi: str | None
    endpoint: str | None
    tariff_zone: str | None
    path: str
    given: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class CarrierRecords:
    """What a payload held: sound records, and what was rejected of it."""

    records: Sequence[CarrierRecord]
    rejections: list[Rejection]


def boot_of(carrier: str) -> str:
    """Return the boot under which a carrier's records of a device are kept."""
    return boot_by_id("carrier", carrier)


def is_carrier_s(boot: str) -> bool:
    """Whether a boot's readings are a carrier's records."""
    return boot.startswith(_BOOT)


def decode(
    payload: bytes, *, records_max: int, form: RecordsForm = "json"
) -> CarrierRecords | Rejection:
    """Decode records; one that is not sound is rejected alone."""
    try:
        document = json_document(payload) if form == "json" else carrier_csv.records_of(payload)
    except InvalidValue as error:
        return refused(payload, f"{error.problem}; {error.fix}")
    given = document if isinstance(document, list) else [document]
    if len(given) > records_max:
        return refused(
            payload,
            f"{len(given)} records; send at most {records_max} a message",
            reason=RejectReason.TOO_MANY_READINGS,
        )
    records: list[CarrierRecord] = []
    rejections: list[Rejection] = []
    for position, each in enumerate(given):
        try:
            records.append(_record(each, str(position)))
        except InvalidValue as error:
            detail = f"{error.problem}; {error.fix}"
            rejections.append(rejected(each, detail, path=f"{position}.{error.field}"))
    return CarrierRecords(records=records, rejections=rejections)


def _record(given: object, path: str) -> CarrierRecord:
    if not isinstance(given, dict):
        raise InvalidValue("", "no usage record", "send objects, or rows as long as the first")
    identity = given.get("id")
    if isinstance(identity, bool) or not isinstance(identity, int | str) or identity == "":
        raise InvalidValue("id", "missing: nothing else tells a record sent twice", "send its id")
    start = _instant(given, "start_timestamp")
    end = _instant(given, "end_timestamp")
    if start > end:
        raise InvalidValue("start_timestamp", "after end_timestamp", "send an interval")
    sim, operator, endpoint = (_object(given, name) for name in ("sim", "operator", "endpoint"))
    iccid = _digits(sim.get("iccid"), "sim.iccid")
    imsi = _digits(given.get("imsi"), "imsi")
    name = endpoint.get("name")
    name = name if isinstance(name, str) and is_id(name) else None
    if iccid is None and imsi is None and name is None:
        raise InvalidValue(
            "sim.iccid", "neither an ICCID nor an IMSI, nor an endpoint's name", "send one of them"
        )
    zone = _object(_object(given, "tariff"), "ratezone").get("name")
    return CarrierRecord(
        identity=identity_of(str(identity)),
        reading=_reading(given, start, end, _network(operator)),
        iccid=iccid,
        imsi=imsi,
        endpoint=name,
        tariff_zone=zone[:TARIFF_ZONE_LENGTH_MAX] if isinstance(zone, str) else None,
        path=path,
        given=given,
    )


def _reading(
    given: Mapping[str, object], start: datetime, end: datetime, zone: str | None
) -> Reading:
    volume = _object(given, "volume")
    traffic = _object(given, "traffic_type").get("id")
    if traffic == _DATA:
        sent, received = (_amount(volume, name, OCTETS_PER_MEGABYTE) for name in ("tx", "rx"))
        if sent + received > QUANTITY_MAX:
            raise InvalidValue("volume", f"passes {QUANTITY_MAX} octets", "send megabytes")
        return Reading(
            0, end, DATA, ReadingKind.DELTA, uplink=sent, downlink=received, since=start, zone=zone
        )
    if traffic == _SMS:
        count = _amount(volume, "total", 1)
        return Reading(0, end, SMS, ReadingKind.DELTA, quantity=count, since=start, zone=zone)
    raise InvalidValue(
        "traffic_type.id", "no traffic that is metered", f"send {_DATA} (data) or {_SMS} (SMS)"
    )


def _amount(volume: Mapping[str, object], name: str, factor: int) -> int:
    path = f"volume.{name}"
    value = volume.get(name)
    if isinstance(value, str) and re.match(r"[0-9]{1,15}(\.[0-9]{1,12})?\Z", value):
        value = Decimal(value)
    amount = int((Decimal(number_of(value, path)) * factor).to_integral_value(ROUND_HALF_UP))
    if not 0 <= amount <= QUANTITY_MAX:
        raise InvalidValue(path, f"not in 0 to {QUANTITY_MAX}", "send what was used")
    return amount


def _instant(given: Mapping[str, object], name: str) -> datetime:
    text = given.get(name)
    if isinstance(text, str) and _NO_ZONE.match(text):
        text = text.replace(" ", "T") + "Z"
    try:
        return _INSTANT.validate_python(text, strict=True)
    except ValidationError:
        raise InvalidValue(name, "no timestamp", "write it like 2026-01-31T12:00:00Z") from None


def _object(given: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = given.get(name)
    return found if isinstance(found, dict) else {}


def _digits(given: object, path: str) -> str | None:
    if given is None:
        return None
    text = str(given) if isinstance(given, int | str) and not isinstance(given, bool) else ""
    text = text.upper().removesuffix("F")
    if not _DIGITS.match(text):
        raise InvalidValue(path, "no number of a SIM", "send its digits")
    return text


def _network(operator: Mapping[str, object]) -> str | None:
    """Return the visited network as a zone: its MCC and MNC, or the MCC where the MNC is not told."""
    mcc, mnc = _object(operator, "country").get("mcc"), operator.get("mnc")
    if not isinstance(mcc, str) or not _NETWORK[0].match(mcc):
        return None
    return mcc + mnc if isinstance(mnc, str) and _NETWORK[1].match(mnc) else mcc


def encode(
    records: Sequence[tuple[str, Reading]], *, iccid: str, mcc: str = "262", mnc: str = "01"
) -> bytes:
    """Write records of one SIM, each with its id, that tell of data or of messages."""
    sim = {"sim": {"iccid": iccid}, "operator": {"mnc": mnc, "country": {"mcc": mcc}}}
    return _written(records, sim)


def encode_of_endpoint(records: Sequence[tuple[str, Reading]], *, name: str) -> bytes:
    """Write such records of a device by the carrier's name of it, which say neither SIM nor network."""
    return _written(records, {"endpoint": {"name": name}})


def _written(records: Sequence[tuple[str, Reading]], of: Mapping[str, object]) -> bytes:
    document = [
        {
            "id": identity,
            "start_timestamp": (reading.since or reading.at).strftime(_WRITTEN_INSTANT),
            "end_timestamp": reading.at.strftime(_WRITTEN_INSTANT),
            **of,
            **_written_volume(reading),
        }
        for identity, reading in records
    ]
    return json.dumps(document, separators=(",", ":")).encode()


_WRITTEN_INSTANT = "%Y-%m-%dT%H:%M:%S.%fZ"


def _written_volume(reading: Reading) -> dict[str, object]:
    if reading.meter is SMS:
        traffic: dict[str, object] = {"id": _SMS, "description": "SMS"}
        return {"traffic_type": traffic, "volume": {"total": reading.quantity}}
    volume = {
        "tx": str(Decimal(reading.uplink).scaleb(-6)),
        "rx": str(Decimal(reading.downlink).scaleb(-6)),
    }
    return {"traffic_type": {"id": _DATA, "description": "Data"}, "volume": volume}
