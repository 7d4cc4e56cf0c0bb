"""The database alone: binary COPY of ready-made rows into the hypertable of readings, by its very schema."""

import threading
from collections.abc import Sequence
from time import perf_counter

import psycopg

from bench.databases import migrated_database_on
from bench.servers import BenchError, Servers

_DEVICES = 1000
_VALUES = {
    "measured_at": "now() + n * interval '1 microsecond'",
    "received_at": "now()",
    "published_at": "now()",
    "batch_no": "{batch}::bigint",
    "boot_no": "(1 + n % {devices})::bigint",
    "seq": "(1 + n / {devices})::bigint",
    "device_no": "(1 + n % {devices})::bigint",
    "shard_no": "(n % 64)::smallint",
    "meter_no": "1::smallint",
    "kind": "1::smallint",
    "uplink": "(100 + n % 7)::bigint",
    "downlink": "400::bigint",
    "quantity": "0::bigint",
    "packets": "0::bigint",
}
"""What a row holds as ingest writes it; the columns that are not here are NULL."""


def copied_rows_per_s(
    servers: Servers, rows: int, *, rows_a_batch: int, connections: int = 1
) -> float:
    """Copy so many rows, a transaction a batch, over some connections; return rows a second.

    Raises `BenchError` if the table does not hold them all afterwards.
    """
    with migrated_database_on(servers.database_url) as url:
        columns, batches = _batches(url, rows, rows_a_batch)
        shares = [batches[number::connections] for number in range(connections)]
        threads = [
            threading.Thread(target=_copy, args=(url, columns, share)) for share in shares if share
        ]
        began = perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = perf_counter() - began
        with psycopg.connect(url) as connection:
            stored = connection.execute("SELECT count(*) FROM reading").fetchone()
    if stored is None or stored[0] != len(batches) * rows_a_batch:
        raise BenchError(f"{len(batches) * rows_a_batch} rows were copied, {stored} are there")
    return len(batches) * rows_a_batch / seconds


def _batches(url: str, rows: int, rows_a_batch: int) -> tuple[str, list[bytes]]:
    """Return the columns, and the data of each batch's COPY, as the server itself writes it."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name = 'reading' ORDER BY ordinal_position"
        ).fetchall()
        columns = [str(row[0]) for row in found if row[0] in _VALUES]
        batches: list[bytes] = []
        for batch in range(max(1, rows // rows_a_batch)):
            values = ", ".join(
                _VALUES[each].format(batch=batch, devices=_DEVICES) for each in columns
            )
            first = batch * rows_a_batch
            select = (
                f"COPY (SELECT {values} FROM generate_series({first}, {first + rows_a_batch - 1})"  # noqa: S608 - own text
                " AS n) TO STDOUT (FORMAT binary)"
            )
            with connection.cursor().copy(select.encode()) as copy:
                batches.append(b"".join(bytes(block) for block in copy))
    return ", ".join(columns), batches


def _copy(url: str, columns: str, batches: Sequence[bytes]) -> None:
    into = f"COPY reading ({columns}) FROM STDIN (FORMAT binary)".encode()
    with psycopg.connect(url) as connection:
        for batch in batches:
            with connection.cursor().copy(into) as copy:
                copy.write(batch)
            connection.commit()
