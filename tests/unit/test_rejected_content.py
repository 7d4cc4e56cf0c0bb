"""What rejected content still tells of usage."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.usage import QUANTITY_MAX
from metering.wire.rejected import usage_told

AT = datetime(2026, 3, 5, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"meter":"sms","quantity":3,"at":"2026-03-05T13:00:00+01:00"}', [("sms", 3, AT)]),
        ('{"meter":"data","up":1,"down":2,"at":"2026-03-05T12:00:00"}', [("data", 3, None)]),
        ('{"meter":"data","up":1}', [("data", 1, None)]),
        ('{"meter":"data","quantity":7,"at":7}', [("data", None, None)]),
        ('{"meter":"data","kind":"total","up":1,"down":2}', [("data", None, None)]),
        ('{"meter":"sms","quantity":-1}', [("sms", None, None)]),
        ('{"meter":"sms","quantity":true}', [("sms", None, None)]),
        ('{"meter":"sms","quantity":1.0}', [("sms", None, None)]),
        (f'{{"meter":"sms","quantity":{QUANTITY_MAX + 1}}}', [("sms", None, None)]),
        ('{"meter":"fax","quantity":3}', []),
        ('{"meter":["sms"],"quantity":3}', []),
        (
            '{"boot":"b","readings":[{"meter":"sms","quantity":1},7,{"meter":"voice","quantity":60}]}',
            [("sms", 1, None), ("voice", 60, None)],
        ),
        ('{"boot":"b","readings":[{"meter":"sms","quant', []),
        ("[1]", []),
        ("", []),
    ],
)
def test_what_can_be_read_is_read(
    content: str, expected: list[tuple[str, int | None, datetime | None]]
) -> None:
    found = usage_told(content.encode())
    assert [(each.meter, each.quantity, each.at) for each in found] == expected


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_content_can_be_looked_at(content: bytes) -> None:
    usage_told(content)


def test_content_that_is_nested_deeply_or_holds_long_numbers_is_not_read() -> None:
    assert usage_told(b"[" * 4096) == []
    assert usage_told(b'{"meter":"sms","quantity":' + b"9" * 4096) == []
