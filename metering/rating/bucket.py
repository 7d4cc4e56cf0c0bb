"""Buckets: amounts of allowance or money that usage draws from, and the order in which they burn."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from fractions import Fraction

_NO_BEGINNING = datetime.min.replace(tzinfo=UTC)
_NO_END = datetime.max.replace(tzinfo=UTC)


class BucketKind(StrEnum):
    """What a bucket holds, and for whom."""

    ALLOWANCE = "allowance"
    """Units of one meter, for one device."""
    POOL = "pool"
    """Units of one meter, for the devices that share it."""
    MONEY = "money"
    """Prepaid units of currency, for one device or a fleet."""


BurnKey = tuple[int, datetime, datetime, str]
"""(priority, expiry, creation, id): total and deterministic."""


@dataclass(slots=True)
class Bucket:
    """What was granted and what was drawn: base units, or units of currency exactly.

    `zones` and `bands` are where and when usage may draw from it (None: anywhere, any time; an
    element None: outside of all). `[created_at, expires_at)` is when. Of a pool, `ceiling` is the
    most that one member may draw, `floor` what the others leave to each of its `members`. What is held
    for a member ahead of its use counts against everybody else, and as drawn towards both.
    """

    granted: int | Fraction = 0
    used: int | Fraction = 0
    kind: BucketKind = BucketKind.ALLOWANCE
    name: str = "allowance"
    bucket_id: str = ""
    priority: int = 0
    created_at: datetime | None = None
    expires_at: datetime | None = None
    zones: frozenset[str | None] | None = None
    bands: frozenset[str | None] | None = None
    newest_first: bool = False
    ceiling: int | None = None
    floor: int = 0
    members: set[int] = field(default_factory=set)
    drawn: dict[int, int] = field(default_factory=dict)
    """What each member drew, where a ceiling or a floor asks for it."""
    promised: int | None = None
    """What all members are still guaranteed beyond what is held; None until it is asked for."""
    reserved: int = 0
    """What is held for all members together."""
    held: dict[int, int] = field(default_factory=dict)
    """What is held for each member that is at hand, and not yet drawn."""

    @property
    def left(self) -> int | Fraction:
        """What may still be drawn."""
        return self.granted - self.used

    @property
    def burn_key(self) -> BurnKey:
        """Its place among others: priority, then soonest expiry, then creation, then id."""
        return (
            self.priority,
            self.expires_at or _NO_END,
            self.created_at or _NO_BEGINNING,
            self.bucket_id,
        )

    def admits(self, instant: datetime, zone: str | None, band: str | None) -> bool:
        """Whether usage that began then, there, may draw from it."""
        return (
            (self.zones is None or zone in self.zones)
            and (self.bands is None or band in self.bands)
            and (self.created_at is None or self.created_at <= instant)
            and (self.expires_at is None or instant < self.expires_at)
        )

    def money_left(self, subunits_per_unit: int) -> int:
        """Return how many whole sub-units of money are left."""
        return int(self.left * subunits_per_unit)

    def available(self, member: int) -> int:
        """Return how many units a member (a subscription's number) may draw; 0 at least."""
        whole = int(self.granted - self.used)
        if not self.reserved and not self.floor and self.ceiling is None:
            return max(0, whole)
        if self.reserved:
            whole -= self.reserved - self.held.get(member, 0)
        left = whole
        if self.ceiling is not None:
            left = min(left, self.ceiling - self.drawn.get(member, 0))
        if self.floor:
            left = min(left, whole - self._promised_to_others(member))
        return max(0, left)

    def draw(self, member: int, quantity: int) -> None:
        """Take units that are available to a member: first what is held for it."""
        self.used += quantity
        bounded = self.ceiling is not None or self.floor
        if not self.reserved and not bounded:
            return
        kept = self.promised_to_all() if self.floor else 0
        guaranteed = self._guaranteed(member)
        held = self.held.get(member, 0)
        if held:
            self._put_held(member, held - min(held, quantity))
        if bounded:
            self.drawn[member] = self.drawn.get(member, 0) + quantity
        if self.floor:
            self.promised = kept - guaranteed + self._guaranteed(member)

    def hold(self, member: int, quantity: int) -> int:
        """Hold units for a member ahead of its use and return how many: no more than nobody else's."""
        held = self.held.get(member, 0)
        quantity = max(0, min(quantity, self.available(member) - held))
        self._change_held(member, held + quantity)
        return quantity

    def release(self, member: int) -> int:
        """Leave what is still held for a member to everybody again, and return how much that was."""
        held = self.held.get(member, 0)
        self._change_held(member, 0)
        return held

    def admit(self, member: int) -> None:
        """Let a member in: what it did not draw yet of the pool's floor is guaranteed to it too."""
        if member not in self.members:
            self.members.add(member)
            if self.promised is not None:
                self.promised += self._guaranteed(member)

    def promised_to_all(self) -> int:
        """Return what all members are still guaranteed beyond what is held for them."""
        if self.promised is None:
            self.promised = sum(self._guaranteed(member) for member in self.members)
        return self.promised

    def _promised_to_others(self, member: int) -> int:
        return self.promised_to_all() - self._guaranteed(member)

    def _guaranteed(self, member: int) -> int:
        """Return what of the floor a member neither drew nor has held for it."""
        if member not in self.members:
            return 0
        return max(0, self.floor - self.drawn.get(member, 0) - self.held.get(member, 0))

    def _change_held(self, member: int, held: int) -> None:
        kept = self.promised_to_all() if self.floor else 0
        guaranteed = self._guaranteed(member)
        self._put_held(member, held)
        if self.floor:
            self.promised = kept - guaranteed + self._guaranteed(member)

    def _put_held(self, member: int, held: int) -> None:
        self.reserved += held - self.held.get(member, 0)
        if held:
            self.held[member] = held
        else:
            self.held.pop(member, None)


def burn_order(buckets: Iterable[Bucket]) -> list[Bucket]:
    """Return buckets in the order in which they burn.

    Lots of an allowance that burns its newest first stand together where the newest stands.
    """
    found = sorted(buckets, key=lambda bucket: bucket.burn_key)
    newest = {bucket.name: bucket.burn_key for bucket in found if bucket.newest_first}
    if not newest:
        return found
    found.reverse()
    return sorted(
        found,
        key=lambda bucket: newest[bucket.name] if bucket.newest_first else bucket.burn_key,
    )
