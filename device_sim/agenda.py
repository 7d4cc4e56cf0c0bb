"""Which device has something to do next. Pure."""

import heapq
from collections.abc import Iterator

from device_sim.simulated_device import NEVER, SimulatedDevice


class Agenda:
    """Devices in the order in which they are due; one that is due earlier than it was is entered again."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, SimulatedDevice]] = []
        self._entered = 0

    def arrange(self, device: SimulatedDevice) -> None:
        """Note when a device is due, unless it is already noted for then or earlier."""
        due = device.due()
        if due < device.arranged_for:
            device.arranged_for = due
            self._entered += 1
            heapq.heappush(self._entries, (due, self._entered, device))

    def take_due(self, now: float) -> Iterator[SimulatedDevice]:
        """Yield and take out the devices that are due; whoever takes one arranges it again."""
        while self._entries and self._entries[0][0] <= now:
            due, _, device = heapq.heappop(self._entries)
            if due == device.arranged_for:
                device.arranged_for = NEVER
                yield device

    def next_due(self) -> float:
        """Return when the next device is due."""
        return self._entries[0][0] if self._entries else NEVER
