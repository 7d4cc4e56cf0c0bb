"""What the kernel says that a network interface has carried (Linux, sysfs-class-net)."""

from dataclasses import dataclass
from pathlib import Path

from metering.agent.sample import WHOLE_BITS, Sample, Samples
from metering.errors import InvalidValue, NotFound

NET_FOLDER = Path("/sys/class/net")
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceCounters:
    """Octets that an interface sent (up) and received (down) since the kernel made it."""

    ifindex: int
    up: int
    down: int


def interfaces(folder: Path) -> list[str]:
    """Return the names of the interfaces that count, in order."""
    return sorted(path.name for path in folder.glob("*") if (path / "statistics").is_dir())


def checked_interface(folder: Path, interface: str) -> str:
    """Return the name of an interface that exists now; else raise `InvalidValue`."""
    known = interfaces(folder)
    if interface not in known:
        raise InvalidValue(
            "interface",
            f"there is no interface {interface!r}",
            f"use one of: {', '.join(known) or '(this machine has none)'}",
        )
    return interface


def read_counters(folder: Path, interface: str) -> InterfaceCounters | None:
    """Return an interface's counters; None when it has none now, which is not the same as 0."""
    path = folder / interface
    try:
        return InterfaceCounters(
            ifindex=_number(path / "ifindex"),
            up=_number(path / "statistics" / "tx_bytes"),
            down=_number(path / "statistics" / "rx_bytes"),
        )
    except (OSError, ValueError):
        return None


def interface_sample(
    interface: str, counters: InterfaceCounters, width: int = WHOLE_BITS
) -> Sample:
    """Return what an interface's counters say; its life lasts from its making to its end."""
    return Sample(
        counter=interface,
        life=str(counters.ifindex),
        up=counters.up,
        down=counters.down,
        source="interface",
        width=width,
    )


class InterfaceSource:
    """Meters one interface, whatever it is; `width` is what its driver's counters have, in bits."""

    def __init__(
        self, interface: str, *, folder: Path = NET_FOLDER, width: int = WHOLE_BITS
    ) -> None:
        self.name = interface
        self._folder = folder
        self._width = width

    async def samples(self) -> Samples:
        """Return the interface's counters; nothing while it has none."""
        counters = read_counters(self._folder, self.name)
        if counters is None:
            return Samples()
        return Samples(metered=(interface_sample(self.name, counters, self._width),))

    async def close(self) -> None:
        """Hold nothing."""


def kernel_boot_id(path: Path) -> str:
    """Return what names this run of the kernel; raises `NotFound` where there is no such file."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        raise NotFound("kernel boot id in", str(path)) from None


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
