"""Documents with many lines: read and written by pages of lines, so that no client holds them as one.

What is stored is the same whichever way it came: one JSON object with all its `lines`.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from psycopg.types.json import Jsonb

from metering import packed
from metering.store.connection import Connection

_LINES = "lines"
_JOINED = "(SELECT string_agg(told, '' ORDER BY part) FROM pg_temp.document_part)::jsonb"


def without_many_lines(column: str) -> str:
    """Return what selects a document as it is, or without its lines where these are many."""
    return (
        f"CASE WHEN jsonb_array_length({column} -> '{_LINES}') < {packed.PACKED_FROM} THEN {column}"
        f" ELSE {column} - '{_LINES}' END"
    )


async def with_lines(
    connection: Connection, document: Mapping[str, Any], source: str, key: Sequence[object]
) -> Mapping[str, Any]:
    """Return a document that was read `without_many_lines` with its lines: many are `Packed`.

    `source` names its column, as in `document FROM bill WHERE bill_no = %s`, and `key` has its parameters.
    """
    if _LINES in document:
        return document
    page = f"(told.position - 1) / {packed.PAGE_ITEMS}"
    query = (
        "SELECT jsonb_agg(told.line ORDER BY told.position)::text, count(*)"  # noqa: S608 - columns of the store
        f" FROM (SELECT {source}) AS kept (document), jsonb_array_elements(document -> '{_LINES}')"
        f" WITH ORDINALITY AS told (line, position) GROUP BY {page} ORDER BY {page}"
    )
    packer = packed.Packer()
    async with connection.cursor() as cursor:
        async for text, count in cursor.stream(query.encode(), key):
            packer.add(text.encode(), count)
    return {**document, _LINES: packer.packed(json.loads)}


@asynccontextmanager
async def storing(
    connection: Connection, document: Mapping[str, Any]
) -> AsyncIterator[tuple[str, list[Jsonb]]]:
    """Yield the expression that a document is stored by in this transaction, and its parameters.

    Many lines are sent page by page into a table of the transaction's own, and put together by the server.
    """
    lines = document[_LINES]
    if not isinstance(lines, packed.Packed):
        yield "%s::jsonb", [Jsonb(document)]
        return
    async with connection.cursor() as cursor:
        await cursor.execute(
            "CREATE TEMPORARY TABLE document_part (part bigint, told text) ON COMMIT DROP"
        )
        async with cursor.copy("COPY pg_temp.document_part (part, told) FROM STDIN") as copy:
            for part in enumerate(_parts(document, lines)):
                await copy.write_row(part)
        yield _JOINED, []
        await cursor.execute("DROP TABLE pg_temp.document_part")


def _parts(document: Mapping[str, Any], lines: packed.Packed[Any]) -> Iterator[str]:
    """Yield the text of a document, which says more than its lines, in parts; these last."""
    head = json.dumps({name: each for name, each in document.items() if name != _LINES})
    yield f'{head[:-1]}, "{_LINES}": ['
    for page, text in enumerate(lines.texts()):
        yield ("," if page else "") + text.decode()[1:-1]
    yield "]}"
