"""Groups of simulated devices, as the command line names them."""

from dataclasses import dataclass
from typing import Self

from metering.errors import InvalidValue
from metering.ids import checked_id

DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """So many devices, named `name-0001`, `name-0002` and so on."""

    name: str
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NAME:COUNT`; raises `InvalidValue`."""
        name, separator, count = text.rpartition(":")
        if not separator or not count.isascii() or not count.isdigit() or int(count) < 1:
            raise InvalidValue(
                "group", f"{text!r} names no devices", "use NAME:COUNT, as in truck:20"
            )
        group = cls(name=name, count=int(count))
        checked_id(group.devices()[-1], "group")
        return group

    def devices(self) -> list[str]:
        """Return the ids of the group's devices."""
        return [f"{self.name}-{number:0{DIGITS}}" for number in range(1, self.count + 1)]
