"""Which devices are registered, remembered between batches for as long as it is true."""

from collections.abc import Iterable

from metering.store.connection import Connection
from metering.store.registry import RegisteredDevice, devices_by_topic, registry_version


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
        self, connection: Connection, names: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], RegisteredDevice]:
        """Return the registered ones among some devices."""
        wanted = set(names)
        version = await registry_version(connection)
        if version != self._version:
            self._known.clear()
            self._version = version
        missing = [name for name in wanted if name not in self._known]
        if missing:
            found = await devices_by_topic(connection, missing)
            if len(self._known) + len(found) > self._size_max:
                self._known.clear()
                found = await devices_by_topic(connection, sorted(wanted))
            self._known |= found
        return {name: self._known[name] for name in wanted if name in self._known}
