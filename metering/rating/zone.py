"""Zones: which of a plan's places a record was used in, by its network, its country, or its own word."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from metering.errors import InvalidValue
from metering.mcc import COUNTRIES, country_of_mcc

WORLD = "world"
"""The entry that matches every record."""
ELSEWHERE = "elsewhere"
"""What a plan calls the place of records without a zone."""

_MCC_DIGITS = 3
_NETWORK_DIGITS = (6, 5)  # an MNC has three digits or two
_E164_DIGITS_MAX = 15
_PLACES_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneTable:
    """A plan's zones, and for each of their entries the zone that holds it.

    `places` maps MCCs, MCC+MNCs, countries and `world` to zones, groups dissolved; `default` is the
    zone of records that no zone matches, if the plan names one.
    """

    names: tuple[str, ...]
    places: Mapping[str, str]
    default: str | None
    _found: dict[tuple[str | None, str | None, str | None], str | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(
        cls,
        zones: Mapping[str, Sequence[str]],
        groups: Mapping[str, Sequence[str]],
        default: str | None,
    ) -> "ZoneTable":
        """Build the table of a plan's `zones`, `groups` and `default_zone`.

        An entry is an MCC (3 digits), an MCC+MNC (5 or 6; ITU-T E.212), a country (ISO 3166-1
        alpha-2), what a called number begins with (`+49`; ITU-T E.164), a group's name, or `world`. An
        entry that a zone lists itself wins over a zone that holds it through a group. Raises
        `InvalidValue` naming the entry: if it is none of these, if two zones list it or hold it
        through groups, if groups hold each other in a
        circle, if a name is reserved, or if the default is no zone.
        """
        members = _members_of_groups(groups)
        listed: dict[str, str] = {}
        grouped: dict[str, str] = {}
        for name, path, entry in _entries("zones", zones, groups):
            if entry not in groups:
                _claim(listed, entry, zone=name, path=path, through=None)
        for name, path, entry in _entries("zones", zones, groups):
            for member in sorted(members.get(entry, frozenset()) - listed.keys()):
                _claim(grouped, member, zone=name, path=path, through=entry)
        for name in zones:
            if name in {WORLD, ELSEWHERE}:
                raise InvalidValue(
                    f"zones.{name}", f"the name {name!r} is reserved", "give the zone another name"
                )
        if default is not None and default not in zones:
            raise InvalidValue(
                "default_zone", f"{default!r} is no zone of this plan", "name one of `zones`"
            )
        return cls(names=tuple(zones), places=grouped | listed, default=default)

    @property
    def leaves_some_out(self) -> bool:
        """Whether there is usage without a zone."""
        return self.default is None and WORLD not in self.places

    def zone_of(
        self,
        *,
        zone: str | None,
        network: str | None,
        country: str | None,
        destination: str | None = None,
    ) -> str | None:
        """Return the zone of a record, or None if it was used elsewhere.

        The record's own word `zone` wins if it names a zone; else digits stand for a network and
        two letters for a country that the record does not give itself. Then the longest entry that
        begins the called `destination` wins, then the longest that begins `network` (MCC+MNC), then
        the `country` (if none is given, that of the network's MCC), then `world`, then the default.
        A record that says nothing, or a word unknown to the plan, is in the world too.
        """
        if destination is not None and zone not in self.names:
            dialled = _international(destination)
            for length in range(len(dialled), 1, -1):
                if dialled[:length] in self.places:
                    return self.places[dialled[:length]]
        key = (zone, network, country)
        try:
            return self._found[key]
        except KeyError:
            # The keys come from records: they must not fill the memory.
            if len(self._found) >= _PLACES_REMEMBERED:
                self._found.clear()
            found = self._found[key] = self._find(zone, network, country)
            return found

    def _find(self, zone: str | None, network: str | None, country: str | None) -> str | None:
        if zone:
            if zone in self.names:
                return zone
            if _is_digits(zone):
                network = network or zone
            elif zone.upper() in COUNTRIES:
                country = country or zone
        candidates: list[str] = []
        if network and _is_digits(network):
            mcc = network[:_MCC_DIGITS]
            candidates += [network[:length] for length in _NETWORK_DIGITS] + [mcc]
            country = country or country_of_mcc(mcc)
        if country:
            candidates.append(country.upper())
        candidates.append(WORLD)
        return next(
            (self.places[place] for place in candidates if place in self.places), self.default
        )


def _entries(
    section: str, lists: Mapping[str, Sequence[str]], groups: Mapping[str, Sequence[str]]
) -> list[tuple[str, str, str]]:
    """Return (name, path, entry) of all entries of some lists; raise if one means nothing."""
    found: list[tuple[str, str, str]] = []
    for name, entries in lists.items():
        for position, entry in enumerate(entries):
            path = f"{section}.{name}.{position}"
            if entry not in groups and not _is_place(entry):
                raise InvalidValue(
                    path,
                    f"{entry!r} is no network, country or group",
                    "write an MCC (3 digits), an MCC and MNC (5 or 6 digits), a country's two "
                    "capital letters (ISO 3166), the beginning of a number ('+49'), a group's "
                    "name or 'world'",
                )
            found.append((name, path, entry))
    return found


def _members_of_groups(groups: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    """Return every group's places, the groups in it dissolved."""
    for name in groups:
        if _is_place(name):
            raise InvalidValue(
                f"groups.{name}", f"{name!r} already means a place", "give the group another name"
            )
    _entries("groups", groups, groups)
    inner = {name: [each for each in entries if each in groups] for name, entries in groups.items()}
    try:
        order = list(TopologicalSorter(inner).static_order())
    except CycleError as error:
        held, holder, *_ = cycle = error.args[1]
        raise InvalidValue(
            f"groups.{holder}.{groups[holder].index(held)}",
            f"the groups hold each other in a circle ({', '.join(dict.fromkeys(cycle))})",
            "take one of them out of the other",
        ) from error
    members: dict[str, frozenset[str]] = {}
    for name in order:
        places = {each for each in groups[name] if each not in groups}
        members[name] = frozenset(places).union(*(members[each] for each in inner[name]))
    return members


def _claim(
    holders: dict[str, str], place: str, *, zone: str, path: str, through: str | None
) -> None:
    """Note that a zone holds a place; raise if another zone does."""
    holder = holders.setdefault(place, zone)
    if holder != zone:
        said = f"{place!r} (of the group {through!r})" if through else f"{place!r}"
        raise InvalidValue(
            path,
            f"{said} is in the zone {holder!r} too",
            "leave it in one zone"
            if through is None
            else "list it itself in the zone it belongs to",
        )


def _international(number: str) -> str:
    """Return a called number as E.164 writes it; nothing for one in a national form."""
    if number.startswith("00"):
        return "+" + number[2:]
    if number.startswith("0"):
        return ""
    return number if number.startswith("+") else "+" + number


def _is_place(entry: str) -> bool:
    if _is_digits(entry):
        return len(entry) in {_MCC_DIGITS, *_NETWORK_DIGITS}
    if entry.startswith("+"):
        return _is_digits(entry[1:]) and len(entry) <= _E164_DIGITS_MAX + 1
    return entry in COUNTRIES or entry == WORLD


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()
