"""The ledger: its bytes are pinned, what is written is read back, a torn end is no error."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from metering.errors import InvalidValue
from metering.uplink.ledger import LedgerFile
from metering.usage import DATA, SMS, Reading, ReadingKind
from metering.wire.ledger import ledger_line, line_of, read_ledger

AT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
TOTAL = Reading(
    seq=1,
    at=AT,
    meter=DATA,
    kind=ReadingKind.TOTAL,
    uplink=7,
    downlink=4294967290,
    epoch="b/1",
    width=32,
)
DELTA = Reading(
    seq=2,
    at=AT.astimezone(timezone(timedelta(hours=2))),
    since=AT - timedelta(seconds=1.5),
    meter=SMS,
    kind=ReadingKind.DELTA,
    quantity=3,
)
LINES = [
    line_of("demo", "truck-1", "boot-a", TOTAL, (7, 10)),
    line_of("demo", "truck-1", "boot-a", DELTA, (3,)),
]


def test_a_lines_bytes_are_pinned() -> None:
    assert ledger_line(LINES[0]) == (
        '{"tenant":"demo","device":"truck-1","boot":"boot-a","seq":1,'
        '"at":"2026-03-01T12:00:00.000000Z","since":null,"meter":"data","kind":"total",'
        '"up":7,"down":4294967290,"quantity":null,"epoch":"b/1","width":32,'
        '"used_up":7,"used_down":10,"used":null}\n'
    )
    assert ledger_line(LINES[1]) == (
        '{"tenant":"demo","device":"truck-1","boot":"boot-a","seq":2,'
        '"at":"2026-03-01T12:00:00.000000Z","since":"2026-03-01T11:59:58.500000Z",'
        '"meter":"sms","kind":"delta","up":null,"down":null,"quantity":3,"epoch":null,'
        '"width":null,"used_up":null,"used_down":null,"used":3}\n'
    )


def test_what_is_written_is_read_back() -> None:
    assert list(read_ledger(map(ledger_line, LINES))) == LINES


def test_a_torn_last_line_is_left_out() -> None:
    text = "".join(map(ledger_line, LINES))
    assert list(read_ledger(text[:-40].splitlines(keepends=True))) == LINES[:1]


@pytest.mark.parametrize(
    "text",
    ["not json\n", "{}\n", ledger_line(LINES[0]).replace('"seq":1', '"seq":0')],
)
def test_a_line_that_is_none_is_named(text: str) -> None:
    with pytest.raises(InvalidValue, match="ledger line 2"):
        list(read_ledger([ledger_line(LINES[0]), text]))


def test_a_torn_line_in_the_middle_is_an_error() -> None:
    with pytest.raises(InvalidValue, match="ledger line 1"):
        list(read_ledger(['{"tenant":', ledger_line(LINES[0])]))


def test_a_ledger_that_is_opened_again_loses_its_torn_end_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "ledger.jsonl"
    with LedgerFile(path) as ledger:
        ledger.write(LINES[:1])
    with path.open("a") as file:
        file.write('{"tenant":"de')
    with LedgerFile(path) as ledger:
        ledger.write(LINES[1:])
    with path.open() as file:
        assert list(read_ledger(file)) == LINES


def test_lines_are_in_the_file_before_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with LedgerFile(path) as ledger:
        ledger.write(LINES)
        assert path.read_text().count("\n") == 2


def test_no_path_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with LedgerFile(None) as ledger:
        ledger.write(LINES)
    assert not list(tmp_path.iterdir())
