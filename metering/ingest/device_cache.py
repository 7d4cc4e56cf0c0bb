"""Which devices are registered, remembered between batches for as long as it is true."""

from collections.abc import Iterable, Mapping

from metering.store.connection import Connection
from metering.store.registry import RegisteredDevice, devices_by_topic


class DeviceCache:
    """Registered devices by `(tenant_id, device_id)`, bounded, checked in each transaction.

    The registry's version is read in the transaction that uses the answer; when it has moved, all
    that was remembered is asked for again. Only devices that exist are remembered.
    """

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._version: int | None = None
        self._known: dict[tuple[str, str], RegisteredDevice] = {}

    async def find(
        self, connection: Connection, names: Iterable[tuple[str, str]], *, version: int
    ) -> Mapping[tuple[str, str], RegisteredDevice]:
        """Return registered devices, among them all those of some names that are registered.

        `version` is the registry's, as the transaction that uses the answer sees it.
        """
        if version != self._version:
            self._known.clear()
            self._version = version
        wanted = set(names)
        missing = wanted.difference(self._known)
        if missing:
            found = await devices_by_topic(connection, sorted(missing))
            if len(self._known) + len(found) > self._size_max:
                self._known.clear()
                found = await devices_by_topic(connection, sorted(wanted))
            self._known |= found
        return self._known
