"""Our own binary forms mean to PostgreSQL what was meant."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from struct import pack
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.store import binary
from metering.store.columns import column_of
from metering.store.connection import Connection, connect

INT2 = st.integers(-(2**15), 2**15 - 1)
INT4 = st.integers(-(2**31), 2**31 - 1)
INT8 = st.integers(-(2**63), 2**63 - 1)
NUMERIC = INT8 | st.integers(-(10**60), 10**60) | st.integers(-20_001, 20_001)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
INSTANT = st.datetimes(min_value=datetime(1, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001

FORMS: dict[str, tuple[Callable[[Any], object], st.SearchStrategy[Any]]] = {
    "smallint": (binary.int2_array, INT2 | st.none()),
    "int": (binary.int4_array, INT4 | st.none()),
    "bigint": (binary.int8_array, INT8 | st.none()),
    "text": (binary.text_array, TEXT | st.none()),
    "timestamptz": (binary.timestamptz_array, INSTANT | st.none()),
    "numeric": (binary.numeric_array, NUMERIC),
}
FIELDS: Sequence[tuple[str, Callable[[Any], bytes], st.SearchStrategy[Any]]] = (
    ("numeric", binary.numeric_field, NUMERIC),
    ("bigint", binary.int8_field, INT8 | st.none()),
    ("text", binary.text_field, TEXT | st.none()),
    ("timestamptz", binary.timestamptz_field, INSTANT | st.none()),
    ("bigint[]", binary.int8_array_field, st.lists(INT8, max_size=5) | st.none()),
)
several = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def on(url: str, work: Callable[[Connection], Awaitable[None]]) -> None:
    async def connected() -> None:
        async with await connect(url, application="test") as connection:
            await work(connection)

    asyncio.run(connected())


@several
@given(data=st.data())
def test_arrays_arrive_as_they_were_meant(database_url: str, data: st.DataObject) -> None:
    meant = {kind: data.draw(st.lists(values, max_size=20)) for kind, (_, values) in FORMS.items()}

    async def scene(connection: Connection) -> None:
        for kind, (form, _) in FORMS.items():
            found = await connection.execute(
                f"SELECT each::text, each FROM unnest(%s::{kind}[]) AS each".encode(),  # noqa: S608
                [form(meant[kind])],
            )
            rows = await found.fetchall()
            assert [row[1] for row in rows] == meant[kind], kind

    on(database_url, scene)


@several
@given(data=st.data())
def test_copied_rows_arrive_as_they_were_meant(database_url: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(*(values for _, _, values in FIELDS)), max_size=12))

    async def scene(connection: Connection) -> None:
        columns = ", ".join(f"field_{at} {kind}" for at, (kind, _, _) in enumerate(FIELDS))
        await connection.execute(
            f"CREATE TEMP TABLE given (row_no serial, {columns}) ON COMMIT DROP".encode()
        )
        names = ", ".join(f"field_{at}" for at in range(len(FIELDS)))
        copying = f"COPY given ({names}) FROM STDIN (FORMAT binary)"
        async with connection.cursor().copy(copying.encode()) as copy:
            await copy.write(binary.COPY_HEADER)
            for row in rows:
                fields = [form(value) for (_, form, _), value in zip(FIELDS, row, strict=True)]
                await copy.write(pack(">h", len(fields)) + b"".join(fields))
            await copy.write(binary.COPY_TRAILER)
        found = await connection.execute(
            f"SELECT {names} FROM given ORDER BY row_no".encode()  # noqa: S608 - own names
        )
        assert await found.fetchall() == rows

    on(database_url, scene)


@several
@given(numbers=st.lists(INT8, max_size=20), instants=st.lists(INSTANT, max_size=20))
def test_columns_arrive_as_they_were_meant(
    database_url: str, numbers: list[int], instants: list[datetime]
) -> None:
    async def scene(connection: Connection) -> None:
        found = await connection.execute(
            "SELECT (SELECT array_send(array_agg(each)) FROM unnest(%s::bigint[]) AS each),"
            " (SELECT array_send(array_agg(each)) FROM unnest(%s::timestamptz[]) AS each)",
            [numbers, instants],
            binary=True,
        )
        row = await found.fetchone()
        assert row is not None
        assert column_of(row[0]).tolist() == numbers
        assert [binary.instant_of(each) for each in column_of(row[1]).tolist()] == instants

    on(database_url, scene)
