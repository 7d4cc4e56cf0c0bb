"""Long answers, such as a bill of many lines: written piece by piece, held compressed, and sent so."""

import asyncio
import zlib
from collections.abc import Iterable, Iterator, Mapping

from fastapi import Response
from fastapi.responses import StreamingResponse

PAGE_OCTETS = 256 * 1024
_LEVEL = 1


async def long_answer(
    parts: Iterable[str | bytes], *, media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer of some parts, in order; what they raise, this raises.

    They are made in a thread, as it may take seconds: other requests go on meanwhile.
    """
    pages, octets = await asyncio.to_thread(_held, parts)
    if len(pages) == 1:
        return Response(zlib.decompress(pages[0]), media_type=media_type, headers=headers)
    return StreamingResponse(
        map(zlib.decompress, pages),
        media_type=media_type,
        headers={**(headers or {}), "Content-Length": str(octets)},
    )


def _held(parts: Iterable[str | bytes]) -> tuple[list[bytes], int]:
    """Return parts as compressed pages, and how many octets they are."""
    held: list[bytes] = []
    octets = 0
    for page in _paged(parts):
        octets += len(page)
        held.append(zlib.compress(page, _LEVEL))
    return held, octets


def _paged(parts: Iterable[str | bytes]) -> Iterator[bytes]:
    """Yield parts joined to pages of about `PAGE_OCTETS`; the last, which may be empty, is shorter."""
    page = bytearray()
    for part in parts:
        page += part.encode() if isinstance(part, str) else part
        if len(page) >= PAGE_OCTETS:
            yield bytes(page)
            page.clear()
    yield bytes(page)
