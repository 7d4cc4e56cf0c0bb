"""What of a batch's messages is kept as it came, by tenant. Pure."""

from collections.abc import Iterable, Sequence

from metering.ids import BootNo, DeviceNo, TenantNo
from metering.ingest.admission import Message
from metering.store.messages import KeptMessage

_ReadOf = tuple[TenantNo, DeviceNo, BootNo, Sequence[Message]]
"""The messages of one boot, with the numbers of their readings."""


def kept_messages(
    read: Iterable[_ReadOf], refused: Iterable[tuple[TenantNo, Message]]
) -> dict[TenantNo, list[KeptMessage]]:
    """Return the messages of a batch that bring their bytes, each once, by tenant.

    A message of another format is several here, which share its bytes: what was read of them is gathered.
    They are known by that; but the interpreter has one object for all payloads of an octet, which are of one
    message each.
    """
    kept: dict[TenantNo, dict[int, KeptMessage]] = {}
    for tenant_no, device_no, boot_no, messages in read:
        of_tenant = kept.setdefault(tenant_no, {})
        for message in messages:
            payload = message.payload
            if payload is None:
                continue
            some = message.readings
            if len(some) == 1:  # as nearly always
                came = [device_no, boot_no, some[0][0]]
            else:
                came = [device_no, boot_no, *[reading[0] for reading in some]]
            one = _new(
                KeptMessage,
                (message.received_at, message.topic, message.properties, payload, [came]),
            )
            known = of_tenant.setdefault(id(payload) if len(payload) > 1 else id(message), one)
            if known is not one:
                known.readings.append(came)
    for tenant_no, message in refused:
        payload = message.payload
        if payload is None:
            continue
        of_tenant = kept.setdefault(tenant_no, {})
        key = id(payload) if len(payload) > 1 else id(message)
        if key not in of_tenant:
            of_tenant[key] = KeptMessage(
                message.received_at, message.topic, message.properties, payload, []
            )
    return {tenant_no: list(each.values()) for tenant_no, each in kept.items() if each}


_new = tuple.__new__
"""As `KeptMessage(…)` does, which takes twice as long to sort its arguments."""
