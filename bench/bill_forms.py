"""Write the first bill of a database in one form, as the API does, or audit its fleet; print what it took.

Run by `bench.bill_run --forms`, each form in a process of its own: its peak of memory is the form's.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter, process_time
from typing import Any

from api.bill_document_schemas import json_with_lines, shown_document
from api.long_answers import long_answer
from bench.resources import peak_octets
from metering.billing.document import Document, document_of
from metering.billing.rendering.as_csv import csv_parts
from metering.billing.rendering.as_html import html_parts
from metering.billing.rendering.e_invoice import ubl_parts
from metering.insight.audit import audit_fleet
from metering.settings import Settings
from metering.store.audit import all_fleets, read_from_one_snapshot
from metering.store.bills import bill_by_no
from metering.store.connection import Connection, connect, database_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How long a form took, of the clock and of the processor, its octets, and the most memory.

    Clock and processor without the start of its process; the memory is all that this had.
    """

    seconds: float
    cpu_seconds: float
    octets: int
    peak_octets: int


def _json_parts(told: Mapping[str, Any]) -> Iterable[str | bytes]:
    shown, lines = shown_document(told)
    return [shown.model_dump_json()] if lines is None else json_with_lines(shown, lines)


def _of_document(
    write: Callable[[Document], Iterable[str | bytes]],
) -> Callable[[Mapping[str, Any]], Iterable[str | bytes]]:
    return lambda told: write(document_of(told))


_WRITERS: Mapping[str, Callable[[Mapping[str, Any]], Iterable[str | bytes]]] = {
    "json": _json_parts,
    "csv": _of_document(csv_parts),
    "html": _of_document(html_parts),
    "ubl": _of_document(ubl_parts),
}
FORMS = (*_WRITERS, "audit")


async def _octets_of(connection: Connection, name: str) -> int:
    found = await connection.execute("SELECT tenant_no, min(bill_no) FROM bill GROUP BY tenant_no")
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - a bill run made bills
    bill = await bill_by_no(connection, *row)
    assert bill.document is not None  # noqa: S101 - and final ones
    await connection.rollback()
    answer = await long_answer(_WRITERS[name](bill.document), media_type="text/plain")
    return int(answer.headers["Content-Length"])


async def _audited(connection: Connection) -> int:
    await read_from_one_snapshot(connection)
    first, *_ = await all_fleets(connection)
    differences = (await audit_fleet(connection, first)).differences
    if differences:
        raise RuntimeError(f"the audit of {first.fleet_id}: {differences[:3]}")
    return 0


async def _measured(name: str) -> Form:
    began, worked = perf_counter(), process_time()
    async with await connect(database_url(Settings()), application="bench") as connection:
        octets = (
            await _audited(connection) if name == "audit" else await _octets_of(connection, name)
        )
    return Form(
        seconds=perf_counter() - began,
        cpu_seconds=process_time() - worked,
        octets=octets,
        peak_octets=peak_octets(os.getpid()),
    )


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_measured(sys.argv[1])))))
