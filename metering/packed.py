"""Long sequences in little memory: kept as compressed pages of JSON, of which one at a time is objects.

A bill has a line for each device and price: as objects, hundreds of thousands of lines take a gigabyte.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")
Other = TypeVar("Other")

PACKED_FROM = 5_000
"""So many items are packed; fewer are a tuple, which is quicker."""
PAGE_ITEMS = 500
_LEVEL = 1
"""Lines are much alike: the least effort already makes them a tenth."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed(Sequence[Item], Generic[Item]):
    """A sequence as `pages`: each is a JSON array of `PAGE_ITEMS` items, the last of the rest, compressed.

    `unpack` makes items of such an array; what it raises, going through the sequence raises. Another
    sequence with equal items in the same order is equal.
    """

    pages: tuple[bytes, ...]
    length: int
    unpack: Callable[[bytes], Sequence[Item]]

    def texts(self) -> Iterator[bytes]:
        """Yield the JSON arrays, which together are all items."""
        return map(zlib.decompress, self.pages)

    def read_as(self, unpack: Callable[[bytes], Sequence[Other]]) -> "Packed[Other]":
        """Return the same pages, of which something else makes items."""
        return Packed(self.pages, self.length, unpack)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Item]:
        for text in self.texts():
            yield from self.unpack(text)

    @overload
    def __getitem__(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...

    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(self.length))]
        page, within = divmod(range(self.length)[place], PAGE_ITEMS)
        return self.unpack(zlib.decompress(self.pages[page]))[within]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str | bytes) or not isinstance(other, Sequence):
            return NotImplemented
        if len(other) != self.length:
            return False
        if isinstance(other, Packed) and other.pages == self.pages:
            return True
        return all(one == another for one, another in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(self.length)


def packed(
    items: Iterable[Item],
    *,
    dump: Callable[[Sequence[Item]], bytes],
    unpack: Callable[[bytes], Sequence[Item]],
) -> Sequence[Item]:
    """Return items as a tuple, or packed where there are many; `dump` makes a JSON array of a page."""
    rest = iter(items)
    first = tuple(islice(rest, PACKED_FROM))
    if len(first) < PACKED_FROM:
        return first
    packer = Packer()
    for page in _paged(chain(first, rest)):
        packer.add(dump(page), len(page))
    return packer.packed(unpack)


class Packer:
    """Packs pages that are JSON arrays already, one after the other."""

    def __init__(self) -> None:
        self._pages: list[bytes] = []
        self._length = 0

    def add(self, text: bytes, items: int) -> None:
        """Add a page of so many items: `PAGE_ITEMS`, or fewer if it is the last."""
        self._pages.append(zlib.compress(text, _LEVEL))
        self._length += items

    def packed(self, unpack: Callable[[bytes], Sequence[Item]]) -> Packed[Item]:
        """Return all that was added."""
        return Packed(tuple(self._pages), self._length, unpack)


def _paged(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while page := list(islice(rest, PAGE_ITEMS)):
        yield page
