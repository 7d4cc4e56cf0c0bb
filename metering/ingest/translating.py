"""From messages of other formats to messages of readings, by what the database knows of their tenants.

A message of another format may tell of several series, each numbered apart, and of several devices. So it
becomes as many messages; they are made durable in one batch, after which it is acknowledged once.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from pydantic import TypeAdapter, ValidationError

from metering.ids import DeviceId, is_id
from metering.ingest.admission import Message, Undecoded, series_message
from metering.ingest.carrier_records import messages_of_records
from metering.ingest.edge_nodes import EdgeNodes
from metering.settings import Settings
from metering.store.connection import Connection
from metering.store.mappings import mappings_of_tenants, registry_version
from metering.usage import Rejection, RejectReason
from metering.wire import cloudevents, senml, thingsboard
from metering.wire.formats import Format
from metering.wire.mapping import DEFAULT_DOCUMENT, TenantMapping
from metering.wire.native import Instant
from metering.wire.sample import Translated, refused
from metering.wire.sparkplug import SparkplugTopic

_INSTANT: TypeAdapter[datetime] = TypeAdapter(Instant)
_SENT = "sent"
"""The user property by which a message says when it was sent, an RFC 3339 timestamp."""
_TENANTS_REMEMBERED_MAX = 10_000


class Translator:
    """Decodes messages that need their tenant's mapping, remembered while the registry is unchanged."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._version: int | None = None
        self._mappings: dict[str, TenantMapping] = {}
        self._hears_all = settings.ingest_shared_group is None
        self._edge_nodes = EdgeNodes(watch_sequence=self._hears_all)

    def rebirths_due(self, now: datetime) -> list[tuple[str, str]]:
        """Return `(tenant, edge node)` of those that are to announce themselves again."""
        return self._edge_nodes.rebirths_due(now)

    async def translated(
        self, connection: Connection, messages: Sequence[Message]
    ) -> Sequence[Message]:
        """Return the messages, each that was undecoded replaced by those that it is."""
        tenants = {
            message.sender[0]
            for message in messages
            if message.undecoded is not None and message.sender is not None
        }
        if not tenants:
            return messages
        mappings = await self._mappings_of(connection, tenants)
        nodes = {
            message.sender
            for message in messages
            if message.sender is not None
            and message.undecoded is not None
            and isinstance(message.undecoded.format, SparkplugTopic)
        }
        if nodes:
            async with connection.transaction():
                await self._edge_nodes.load(connection, nodes, all_is_heard=self._hears_all)
        decoded: list[Message] = []
        for message in messages:
            if message.undecoded is None or message.sender is None:
                decoded.append(message)
            elif message.undecoded.format is Format.CARRIER:
                decoded += await self._records(connection, message, mappings[message.sender[0]])
            else:
                decoded += self._decoded(message, message.undecoded, mappings[message.sender[0]])
        if nodes:
            async with connection.transaction():
                await self._edge_nodes.store(connection, now=messages[0].received_at)
        return decoded

    async def _records(
        self, connection: Connection, message: Message, mapping: TenantMapping
    ) -> list[Message]:
        """Return what a carrier's records are, if their sender may hand them in."""
        assert message.sender is not None  # noqa: S101 - the caller's case
        assert message.undecoded is not None  # noqa: S101 - the caller's case
        sender, payload = message.sender[1], message.undecoded.payload
        if sender not in mapping.document.carrier.senders:
            refusal = refused(
                payload,
                f"{sender} may not hand in a carrier's records; name it under the mapping's"
                " carrier.senders",
                reason=RejectReason.NOT_ENTITLED,
            )
            return [message._replace(undecoded=None, rejections=[refusal])]
        return await messages_of_records(
            connection,
            message,
            payload,
            carrier_name=sender,
            zones=mapping.document.carrier.zones,
            settings=self._settings,
        )

    async def _mappings_of(
        self, connection: Connection, tenants: Iterable[str]
    ) -> Mapping[str, TenantMapping]:
        async with connection.transaction():
            version = await registry_version(connection)
            if version != self._version or len(self._mappings) > _TENANTS_REMEMBERED_MAX:
                self._mappings.clear()
                self._version = version
            missing = set(tenants).difference(self._mappings)
            if missing:
                found = await mappings_of_tenants(connection, missing)
                for tenant in missing:
                    document = found.get(tenant, DEFAULT_DOCUMENT)
                    self._mappings[tenant] = TenantMapping(document)
        return self._mappings

    def _decoded(
        self, message: Message, undecoded: Undecoded, mapping: TenantMapping
    ) -> list[Message]:
        """Return what a message is: one for each series, and one for what was rejected outside of them."""
        assert message.sender is not None  # noqa: S101 - a message is undecoded only with a sender
        readings_max = self._settings.ingest_readings_per_message_max
        outcome: Translated | Rejection
        if isinstance(undecoded.format, SparkplugTopic):
            metrics = mapping.of_format("sparkplug")
            outcome = self._edge_nodes.take(undecoded, metrics, readings_max=readings_max)
        else:
            outcome = decode(
                undecoded, mapping, sender=message.sender[1], readings_max=readings_max
            )
        if isinstance(outcome, Rejection):
            outcome = Translated(rejections=[outcome])
        whole = message._replace(undecoded=None, rejections=outcome.rejections)
        messages = [whole] if outcome.rejections else []
        for series in outcome.series:
            device = series.device or message.sender[1]
            if is_id(device) and mapping.may_report(message.sender[1], device):
                messages.append(
                    series_message(message, series, self._settings, device=DeviceId(device))
                )
            else:
                refusal = _not_entitled(undecoded.payload, message.sender[1], device)
                messages.append(whole._replace(rejections=[refusal]))
        # One that says nothing is nobody's fault, but is to be acknowledged.
        return messages or [whole]


def decode(
    undecoded: Undecoded, mapping: TenantMapping, *, sender: str, readings_max: int
) -> Translated | Rejection:
    """Decode a message by its format. Pure."""
    format_, payload, properties = undecoded
    user = dict(properties.user)
    sent = _sent(user)
    match format_:
        case Format.SENML_JSON | Format.SENML_CBOR:
            return senml.decode(
                payload,
                mapping.of_format("senml"),
                encoding="json" if format_ is Format.SENML_JSON else "cbor",
                sent=sent,
                readings_max=readings_max,
            )
        case Format.THINGSBOARD | Format.THINGSBOARD_GATEWAY:
            decode_ = (
                thingsboard.decode if format_ is Format.THINGSBOARD else thingsboard.decode_gateway
            )
            telemetry = mapping.of_format("thingsboard")
            return decode_(payload, telemetry, sent=sent, readings_max=readings_max)
        case Format.CLOUDEVENTS:
            return cloudevents.decode(
                payload,
                properties,
                mapping.of_format("cloudevents"),
                sent=sent,
                readings_max=readings_max,
                names_devices=sender in mapping.document.gateways,
            )
        case _:
            return refused(payload, f"{format_} is not read here; send another format")


def _sent(user: Mapping[str, str]) -> datetime | None:
    """Return when a message says that it was sent, if it does."""
    try:
        return _INSTANT.validate_python(user[_SENT]) if _SENT in user else None
    except ValidationError:
        return None


def _not_entitled(payload: bytes, sender: str, device: str) -> Rejection:
    return refused(
        payload,
        f"{sender} may not report for {device[:80]!r}; name it under the mapping's gateways",
        reason=RejectReason.NOT_ENTITLED,
    )
