"""Commands as a device takes them: each once, and with one end in whatever order they come."""

from itertools import permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from metering.errors import InvalidValue
from metering.store.commands import SUPERSEDED_BY
from metering.wire.command import (
    Command,
    CommandKind,
    Limits,
    check_payload,
    command_id_of,
    decode_ack,
    decode_command,
    encode_ack,
    encode_command,
)

ID = "8d7c2f4e-6a1b-4c3d-9e5f-0a1b2c3d4e5f"


def command(number: int, kind: CommandKind, **payload: object) -> Command:
    return decode_command(encode_command(f"c{number}", number, kind, payload))


def limits_after(*commands: Command) -> Limits:
    limits = Limits()
    for each in commands:
        limits = limits.after(each)
    return limits


def test_a_command_is_read_as_it_was_written() -> None:
    read = command(7, CommandKind.THROTTLE, octets_per_second=1000, reason="cap")
    assert (read.id, read.number, read.kind) == ("c7", 7, CommandKind.THROTTLE)
    assert read.payload == {"octets_per_second": 1000, "reason": "cap"}


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"id":"a","number":1,"kind":"dance"}'])
def test_what_is_no_command_is_refused(payload: bytes) -> None:
    with pytest.raises(ValidationError):
        decode_command(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\xff", b"{}", b'{"id":"1","outcome":"done"}',
        encode_ack(ID, "perhaps"), b'{"id":"' + ID.encode() + b'","outcome":"done","detail":5}',
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(payload: bytes) -> None:
    with pytest.raises(ValidationError):
        decode_ack(payload)


def test_the_id_is_found_in_what_cannot_be_read_otherwise() -> None:
    assert command_id_of(b'{"id":"a","number":1,"kind":"dance"}') == "a"
    nothing = (b"", b"\xff", b"[]", b"{}", b'{"id":1}', b'{"id":"' + b"a" * 65 + b'"}')
    assert [command_id_of(each) for each in (*nothing, b"[" * 100_000)] == [None] * 7


def test_an_answer_is_read_as_it_was_written_and_its_detail_is_cut() -> None:
    answer = decode_ack(encode_ack(ID, "refused", "x" * 1000))
    assert (str(answer.id), answer.outcome) == (ID, "refused")
    assert answer.detail == "x" * 500


@pytest.mark.parametrize("rate", [None, 0, -1, 1.5, "1000", True, 2**53])
def test_a_throttle_needs_a_rate(rate: object) -> None:
    with pytest.raises(InvalidValue, match="octets_per_second"):
        check_payload(CommandKind.THROTTLE, {"octets_per_second": rate})


@pytest.mark.parametrize("name", ["id", "number", "kind"])
def test_a_payload_cannot_take_the_place_of_a_field(name: str) -> None:
    with pytest.raises(InvalidValue, match=name):
        check_payload(CommandKind.BALANCE, {name: 1})


def test_a_suspension_lasts_until_resume_whatever_is_throttled_meanwhile() -> None:
    told = [
        command(1, CommandKind.SUSPEND),
        command(2, CommandKind.THROTTLE, octets_per_second=9),
        command(3, CommandKind.RESUME),
    ]
    allowed = [limits_after(*told[:count]).octets_per_second_max for count in range(4)]
    assert allowed == [None, 0, 0, None]


def test_the_order_and_the_number_of_deliveries_do_not_matter() -> None:
    told = [
        command(1, CommandKind.THROTTLE, octets_per_second=5),
        command(2, CommandKind.SUSPEND),
        command(3, CommandKind.RESUME),
        command(4, CommandKind.THROTTLE, octets_per_second=7),
    ]
    for order in permutations([*told, told[1]]):
        assert limits_after(*order).octets_per_second_max == 7


kinds = st.sampled_from([CommandKind.THROTTLE, CommandKind.SUSPEND, CommandKind.RESUME])


@given(st.lists(kinds, max_size=8), st.randoms(use_true_random=False), st.data())
def test_leaving_out_what_is_superseded_changes_nothing(
    told: list[CommandKind], random: Random, data: st.DataObject
) -> None:
    commands = [
        command(number, kind, octets_per_second=number) for number, kind in enumerate(told, 1)
    ]
    heard = [
        each
        for each in commands
        if not any(
            later.number > each.number and later.kind in SUPERSEDED_BY[each.kind]
            for later in commands
        )
        or data.draw(st.booleans())
    ]
    random.shuffle(heard)
    assert (
        limits_after(*heard).octets_per_second_max == limits_after(*commands).octets_per_second_max
    )
