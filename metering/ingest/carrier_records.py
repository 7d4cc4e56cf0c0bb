"""Carriers' usage records: found by SIM, or the endpoint's name, and made messages as readings are.

Whether a device's own count or its carrier's is charged, its tenant's mapping says; the other one is kept
beside it (`metering.ingest.write_batch`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message, series_message
from metering.ingest.device_cache import DeviceCache
from metering.ingest.write_batch import BatchOutcome, write_batch
from metering.settings import Settings
from metering.store.connection import Connection
from metering.store.mappings import mappings_of_tenants
from metering.store.sims import SimAt, devices_of_sims
from metering.usage import Rejection, RejectReason
from metering.wire import carrier
from metering.wire.carrier import CarrierRecord, CarrierRecords, RecordsForm
from metering.wire.mapping import DEFAULT_DOCUMENT
from metering.wire.mqtt import content_type_property
from metering.wire.sample import SeriesReadings, rejected

_DEVICES_MAX = 100_000
_CONTENT_TYPES: Mapping[RecordsForm, str] = {"json": "application/json", "csv": "text/csv"}


async def take_records(
    connection: Connection,
    tenant_id: str,
    payload: bytes,
    *,
    source: str,
    carrier_name: str,
    settings: Settings,
    now: datetime,
    records_max: int | None = None,
    form: RecordsForm = "json",
) -> BatchOutcome:
    """Store records that no broker brought; durable once the caller's transaction has committed."""
    message = Message(
        topic=f"carrier-records/{source}/{tenant_id}/{carrier_name}",
        octets=len(payload),
        sender=(TenantId(tenant_id), DeviceId("")),
        received_at=now,
        published_at=None,
        boot=None,
        readings=(),
        rejections=(),
        payload=payload if settings.messages_kept_days else None,
        properties=content_type_property(_CONTENT_TYPES[form]),
    )
    mapping = (await mappings_of_tenants(connection, [tenant_id])).get(tenant_id, DEFAULT_DOCUMENT)
    messages = await messages_of_records(
        connection,
        message,
        payload,
        carrier_name=carrier_name,
        zones=mapping.carrier.zones,
        settings=settings,
        records_max=records_max,
        form=form,
    )
    return await write_batch(connection, DeviceCache(_DEVICES_MAX), messages, now=now)


async def messages_of_records(
    connection: Connection,
    message: Message,
    payload: bytes,
    *,
    carrier_name: str,
    zones: Mapping[str, str],
    settings: Settings,
    records_max: int | None = None,
    form: RecordsForm = "json",
) -> list[Message]:
    """Return what a payload of records is: a message for each device, and one of what is rejected.

    A record belongs to the device in which its SIM was when its interval ended. `zones` are those of the
    tenant's mapping, by the carrier's tariff zone.
    """
    assert message.sender is not None  # noqa: S101 - the caller's case
    decoded = carrier.decode(
        payload,
        records_max=records_max or settings.ingest_readings_per_message_max,
        form=form,
    )
    if isinstance(decoded, Rejection):
        decoded = CarrierRecords(records=(), rejections=[decoded])
    rejections = list(decoded.rejections)
    async with connection.transaction():
        devices = await devices_of_sims(
            connection,
            message.sender[0],
            [
                SimAt(each.iccid, each.imsi, each.reading.at, each.endpoint)
                for each in decoded.records
            ],
        )
    by_device: dict[str, list[CarrierRecord]] = {}
    for record, device in zip(decoded.records, devices, strict=True):
        if device is None:
            rejections.append(_unknown_sim(record))
        else:
            by_device.setdefault(device, []).append(record)
    messages = [
        series_message(
            message, _series(carrier_name, device, some, zones), settings, device=DeviceId(device)
        )
        for device, some in by_device.items()
    ]
    if rejections or not messages:
        messages.append(message._replace(rejections=rejections, undecoded=None))
    return messages


def _series(
    carrier_name: str, device: str, records: Sequence[CarrierRecord], zones: Mapping[str, str]
) -> SeriesReadings:
    return SeriesReadings(
        carrier.boot_of(carrier_name),
        [
            each.reading._replace(zone=zones.get(each.tariff_zone or "", each.reading.zone))
            for each in records
        ],
        [each.identity for each in records],
        device,
        [],
    )


def _unknown_sim(record: CarrierRecord) -> Rejection:
    if record.iccid is None and record.imsi is None:
        where = "endpoint"
        problem = f"no device is called {record.endpoint}; send the SIM's ICCID, or register it"
    else:
        where = "sim"
        sim = f"ICCID {record.iccid}" if record.iccid else f"IMSI {record.imsi}"
        problem = (
            f"the SIM with {sim} was in no device at {record.reading.at.isoformat()}; register it"
        )
    found = rejected(record.given, problem, path=f"{record.path}.{where}")
    return Rejection(
        reason=RejectReason.UNKNOWN_DEVICE,
        field=found.field,
        detail=found.detail,
        content=found.content,
    )
