"""Meters the bearers of ModemManager's modems, over D-Bus, and takes them down and up.

ModemManager reads what a modem counts every 30 s, if the modem has it at all: a bearer without
`ReloadStatsSupported` shows 0 for ever, however much it carries. Such a one is metered by its network
interface. The modem's own count is the better one where there is one, and the interface is only
watched then.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from metering.agent.counters import NET_FOLDER, interface_sample, read_counters
from metering.agent.sample import Sample, Samples
from metering.errors import InvalidValue
from metering.wire.command import Limits

if TYPE_CHECKING:
    from dbus_fast import Message

_SERVICE = "org.freedesktop.ModemManager1"
_ROOT = "/org/freedesktop/ModemManager1"
_MODEM = f"{_SERVICE}.Modem"
_MODEM_3GPP = f"{_SERVICE}.Modem.Modem3gpp"
_BEARER = f"{_SERVICE}.Bearer"
_SIM = f"{_SERVICE}.Sim"
_CALL_SECONDS_MAX = 10.0
_CONNECT_SECONDS_MAX = 120.0
BEARER_PRECISION = "octets,30s"
"""Of a bearer's statistics: whole octets, read every 30 s (`BEARER_STATS_UPDATE_TIMEOUT`)."""

_RATS = (
    *("pots", "gsm", "gsm", "gprs", "edge", "umts", "hsdpa", "hsupa", "hspa", "hspa"),
    *("1xrtt", "evdo", "evdo", "evdo", "lte", "5gnr", "lte-m", "nb-iot"),
)
"""Access technologies by their bit in `MMModemAccessTechnology`."""

_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_.:-]")
"""What cannot stand in a counter's name."""

Properties = Mapping[str, Any]


class Unreachable(Exception):
    """ModemManager, or the bus, does not answer, or answers with an error."""


class Bus(Protocol):
    """The part of a D-Bus connection that is needed."""

    async def call(self, message: "Message") -> "Message | None":
        """Send a message and return its answer."""

    def disconnect(self) -> None:
        """Leave the bus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """One bearer as ModemManager tells it; `reloads` is None where it does not say (before 1.20)."""

    path: str
    owner: str
    interface: str
    connected: bool
    apn: str | None
    reloads: bool | None
    stats: Properties

    @property
    def number(self) -> str:
        """The number that ModemManager gave it; after its restart it gives it again."""
        return self.path.rpartition("/")[2]

    @property
    def life(self) -> str:
        """Which connection of it: the date of its beginning, where that is told."""
        begun = self.stats.get("start-date") or f"attempt-{self.stats.get('attempts', 0)}"
        return f"{self.owner}/{begun}"

    @property
    def session(self) -> str:
        """The data session of readings: bearer and start date."""
        return f"bearer-{self.number}/{self.life}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Modem:
    """One modem with its bearers."""

    imei: str
    properties: Properties
    network: str | None
    operator: str
    sim: Properties
    bearers: tuple[Bearer, ...]

    @property
    def rat(self) -> str | None:
        """The newest access technology in use."""
        bits = int(self.properties.get("AccessTechnologies", 0))
        return _RATS[bits.bit_length() - 1] if 0 < bits < 1 << len(_RATS) else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator wants to know beside the counters; signal in tens of percent."""
        signal = round(int(self.properties.get("SignalQuality", (0, False))[0]), -1)
        iccid = self.sim.get("SimIdentifier") or "unknown"
        imsi = self.sim.get("Imsi") or "unknown"
        network = f"{self.network or 'none'} {self.operator}".rstrip()
        return (
            f"modem {self.imei}: SIM {iccid}, IMSI {imsi}",
            f"modem {self.imei}: network {network}, {self.rat or 'no access technology'}",
            f"modem {self.imei}: signal about {signal} %",
        )


class ModemManager:
    """A connection to ModemManager: source of counters and, if wanted, actor.

    `imei` picks one modem of several; None takes all. `interface` is metered for a bearer without a
    byte source whose own interface ModemManager does not know, as over PPP.
    """

    def __init__(
        self,
        *,
        imei: str | None = None,
        interface: str | None = None,
        folder: Path = NET_FOLDER,
        bus_address: str | None = None,
    ) -> None:
        try:
            import dbus_fast.aio  # noqa: F401, PLC0415 - of the extra `agent`
        except ImportError:
            raise InvalidValue(
                "modem", "dbus-fast is missing", "install fleetmeter[agent]"
            ) from None
        self.name = "ModemManager" if imei is None else f"modem {imei}"
        self._imei = imei
        self._interface = interface
        self._folder = folder
        self._bus_address = bus_address
        self._bus: Bus | None = None

    async def close(self) -> None:
        """Leave the bus."""
        if self._bus is not None:
            self._bus.disconnect()
        self._bus = None

    async def samples(self) -> Samples:
        """Return what the bearers count now; nothing while ModemManager does not answer."""
        try:
            modems = await self.modems()
        except Unreachable as gone:
            return Samples(notes=(f"ModemManager: {gone}",))
        metered: dict[str, Sample] = {}
        watched: dict[str, Sample] = {}
        notes = [note for modem in modems for note in modem.notes]
        for modem, bearer in _bearers(modems):
            own = self._interface_sample(modem, bearer)
            if bearer.reloads or (own is None and _has_counted(bearer)):
                metered[bearer.path] = _bearer_sample(modem, bearer)
                if own is not None:
                    watched[own.counter] = own
            elif own is not None:
                metered[own.counter] = own
            elif bearer.connected:
                notes.append(
                    f"bearer {bearer.number} has no byte source, and no interface is known that has:"
                    " it is not metered; name one with --interface"
                )
        return Samples(
            metered=tuple(metered.values()),
            watched=tuple(one for name, one in watched.items() if name not in metered),
            notes=tuple(notes),
        )

    async def apply(self, limits: Limits) -> str | None:
        """Take the bearers down, or one of each modem up again; return None, or why not."""
        rate = limits.octets_per_second_max
        if rate:
            return "ModemManager cannot throttle a bearer; give a hook program that can"
        try:
            for modem in await self.modems():
                if rate == 0:
                    for bearer in modem.bearers:
                        if bearer.connected:
                            await self._call(bearer.path, _BEARER, "Disconnect")
                elif modem.bearers and not any(bearer.connected for bearer in modem.bearers):
                    await self._call(modem.bearers[-1].path, _BEARER, "Connect")
        except Unreachable as refused:
            return f"ModemManager: {refused}"
        return None

    async def modems(self) -> list[Modem]:
        """Return the modems that are metered, in ModemManager's order; raises `Unreachable`."""
        answer = await self._call(_ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        found: list[Modem] = []
        for path in sorted(answer.body[0]):
            interfaces = answer.body[0][path]
            properties = _plain(interfaces.get(_MODEM, {}))
            told = str(properties.get("EquipmentIdentifier") or path.rpartition("/")[2])
            imei = _UNNAMEABLE.sub("_", told)[:32]
            if not properties or self._imei not in {None, imei}:
                continue
            of_network = _plain(interfaces.get(_MODEM_3GPP, {}))
            found.append(
                Modem(
                    imei=imei,
                    properties=properties,
                    network=str(of_network.get("OperatorCode", "")) or None,
                    operator=str(of_network.get("OperatorName", "")),
                    sim=await self._sim(str(properties.get("Sim", "/"))),
                    bearers=tuple(
                        [await self._bearer(one) for one in properties.get("Bearers", ())]
                    ),
                )
            )
        return found

    async def _sim(self, path: str) -> Properties:
        return {} if path == "/" else (await self._properties(path, _SIM))[0]

    async def _bearer(self, path: str) -> Bearer:
        properties, owner = await self._properties(path, _BEARER)
        return Bearer(
            path=path,
            owner=owner.removeprefix(":"),
            interface=str(properties.get("Interface", "")),
            connected=bool(properties.get("Connected", False)),
            apn=_plain(properties.get("Properties", {})).get("apn") or None,
            reloads=properties.get("ReloadStatsSupported"),
            stats=_plain(properties.get("Stats", {})),
        )

    async def _properties(self, path: str, interface: str) -> tuple[Properties, str]:
        answer = await self._call(path, "org.freedesktop.DBus.Properties", "GetAll", interface)
        return _plain(answer.body[0]), answer.sender or ""

    def _interface_sample(self, modem: Modem, bearer: Bearer) -> Sample | None:
        """Return what the bearer's interface counts, or that which is given for it."""
        for interface in (bearer.interface, self._interface or ""):
            if not interface or "/" in interface:  # a port's path: PPP runs over it
                continue
            counters = read_counters(self._folder, interface)
            if counters is not None and bearer.connected:
                return _described(interface_sample(interface, counters), modem, bearer)
        return None

    async def _call(self, path: str, interface: str, member: str, *words: str) -> "Message":
        """Return the answer; raises `Unreachable`, and connects anew next time if the bus is gone."""
        from dbus_fast import Message, MessageType  # noqa: PLC0415
        from dbus_fast.errors import DBusError  # noqa: PLC0415

        seconds = _CONNECT_SECONDS_MAX if interface == _BEARER else _CALL_SECONDS_MAX
        try:
            async with asyncio.timeout(seconds):
                bus = self._bus or await self._connected()
                answer = await bus.call(
                    Message(
                        destination=_SERVICE,
                        path=path,
                        interface=interface,
                        member=member,
                        signature="s" * len(words),
                        body=list(words),
                    )
                )
        except (OSError, EOFError, DBusError, TimeoutError) as error:
            await self.close()
            raise Unreachable(str(error) or "no answer in time") from None
        if answer is None or answer.message_type is MessageType.ERROR:
            told = "" if answer is None else " ".join(str(word) for word in answer.body)
            raise Unreachable(f"{member}: {told or 'refused'}")
        return answer

    async def _connected(self) -> Bus:
        from dbus_fast import BusType  # noqa: PLC0415
        from dbus_fast.aio import MessageBus  # noqa: PLC0415

        self._bus = await MessageBus(
            bus_address=self._bus_address, bus_type=BusType.SYSTEM
        ).connect()
        return self._bus


def _bearers(modems: list[Modem]) -> Iterator[tuple[Modem, Bearer]]:
    """Yield the bearers that are connected, and those that were and still tell their last count."""
    for modem in modems:
        for bearer in modem.bearers:
            if bearer.connected or bearer.stats.get("start-date"):
                yield modem, bearer


def _has_counted(bearer: Bearer) -> bool:
    return any(int(bearer.stats.get(name, 0)) for name in ("rx-bytes", "tx-bytes"))


def _bearer_sample(modem: Modem, bearer: Bearer) -> Sample:
    return _described(
        Sample(
            counter=f"{modem.imei}/bearer-{bearer.number}",
            life=bearer.life,
            up=int(bearer.stats.get("tx-bytes", 0)),
            down=int(bearer.stats.get("rx-bytes", 0)),
            source="bearer",
            precision=BEARER_PRECISION,
            family=f"{modem.imei}/bearers",
        ),
        modem,
        bearer,
    )


def _described(sample: Sample, modem: Modem, bearer: Bearer) -> Sample:
    return replace(
        sample, zone=modem.network, rat=modem.rat, apn=bearer.apn, session=bearer.session
    )


def _plain(properties: Mapping[str, Any]) -> Properties:
    """Return D-Bus properties without their signatures."""
    return {name: getattr(value, "value", value) for name, value in properties.items()}
