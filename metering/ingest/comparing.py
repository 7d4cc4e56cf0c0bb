"""Of a device's count and its carrier's: which is charged, and which is only kept beside it. Pure."""

from collections.abc import Sequence

from metering.store.readings import ReadingsOfMessage
from metering.store.registry import RegisteredDevice
from metering.usage import DATA, SMS, Reading
from metering.wire.carrier import is_carrier_s

_COUNTED_BY_CARRIERS = frozenset((DATA.meter_no, SMS.meter_no))


def parted(
    device: RegisteredDevice, boot: str, messages: Sequence[ReadingsOfMessage]
) -> tuple[Sequence[ReadingsOfMessage], Sequence[ReadingsOfMessage]]:
    """Return a boot's new readings that are to be charged, and those that are only compared.

    What a carrier does not count is the device's to tell whichever is charged.
    """
    of_carrier = is_carrier_s(boot)
    if of_carrier:
        return (messages, ()) if device.charged_by_carrier else ((), messages)
    if not device.charged_by_carrier:
        return messages, ()
    charged: list[ReadingsOfMessage] = []
    compared: list[ReadingsOfMessage] = []
    for received_at, published_at, readings in messages:
        for wanted, where in ((False, charged), (True, compared)):
            some = [each for each in readings if _is_counted(each) is wanted]
            if some:
                where.append((received_at, published_at, some))
    return charged, compared


def _is_counted(reading: Reading) -> bool:
    return reading.meter.meter_no in _COUNTED_BY_CARRIERS
