"""Whatever the octets of a device's claim, request or answer are, they are read or refused for a reason."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from metering.ids import is_id
from metering.wire import quota
from metering.wire.claim import Claim, decode_claim
from metering.wire.command import (
    COMMAND_ID_CHARACTERS_MAX,
    Command,
    CommandAck,
    command_id_of,
    decode_ack,
    decode_command,
)

texts = st.sampled_from(["", "\x00", "\ud800", "x" * 9000, "request-of-16-ch"]) | st.text(
    max_size=20
)
leaves = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | texts
)
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def near(*sound: object) -> st.SearchStrategy[Any]:
    """Draw what is sound, mostly."""
    return st.integers(0, 9).flatmap(lambda chance: st.sampled_from(sound) if chance else leaves)


claims = st.fixed_dictionaries(
    {"request": near("request-of-16-ch")}, optional={"csr": near("-----BEGIN"), "more": leaves}
)
requests = st.fixed_dictionaries(
    {"request": near("r-1"), "action": near("reserve", "settle", "release")},
    optional={
        "meter": near("data", "sms"), "quantity": near(1, 2**62), "used": near(0, 5),
        "zone": near("DE"), "sent": near("2026-04-15T12:00:00Z"), "more": leaves,
    },
)  # fmt: skip
commands = st.fixed_dictionaries(
    {"id": near("c-1"), "number": near(1, 7), "kind": near("suspend", "throttle", "grant")},
    optional={"octets_per_second": near(1), "more": documents},
)
acks = st.fixed_dictionaries(
    {
        "id": near("019b0000-0000-7000-8000-000000000000"),
        "outcome": near("done", "refused"),
    },
    optional={"detail": near("as told"), "more": documents},
)


@st.composite
def messages(draw: st.DrawFn, sound: st.SearchStrategy[Any]) -> bytes:
    """Return a payload that is near to a sound one, cut up, or far from it."""
    chance = draw(st.integers(0, 9))
    if chance == 9:
        return draw(st.binary(max_size=100))
    document = draw(sound if chance < 8 else documents)
    octets = json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)):
        return octets
    cut = draw(st.integers(0, len(octets)))
    return octets[:cut] + draw(st.binary(max_size=3)) + octets[cut + draw(st.integers(0, 3)) :]


def _claim(payload: bytes) -> bool:
    return _read(decode_claim, Claim, payload)


def _ack(payload: bytes) -> bool:
    return _read(decode_ack, CommandAck, payload)


def _command(payload: bytes) -> bool:
    named = command_id_of(payload)
    assert named is None or len(named) <= COMMAND_ID_CHARACTERS_MAX
    return _read(decode_command, Command, payload)


def _read(decode: Callable[[bytes], object], kind: type, payload: bytes) -> bool:
    try:
        found = decode(payload)
    except ValidationError:
        return False
    assert isinstance(found, kind)
    assert decode(payload) == found, "the same message says the same"
    return True


def _quota(payload: bytes) -> bool:
    found = quota.decode(payload)
    if isinstance(found, quota.QuotaRequestMessage):
        return True
    assert found.reason is quota.QuotaRefusal.INVALID_REQUEST
    assert found.detail
    assert found.request is None or is_id(found.request)
    # What is refused is answered, so all of it can be written.
    json.dumps([found.field, found.detail], ensure_ascii=False).encode()
    return False


@pytest.mark.parametrize(
    ("is_read", "sound"),
    [(_claim, claims), (_quota, requests), (_command, commands), (_ack, acks)],
    ids=["claim", "quota", "command", "ack"],
)
def test_a_message_is_read_or_refused_for_a_reason(
    is_read: Callable[[bytes], bool], sound: st.SearchStrategy[Any]
) -> None:
    seen = Counter[bool]()

    @given(messages(sound))
    @settings(max_examples=300)
    @example(b"[" * 100_000)
    @example(b'{"request":' + b"[" * 4000)
    @example(b'{"id":"\\ud800","number":1,"kind":"hold"}')
    @example(b'{"request":"\\ud800"}')
    @example(b'{"number":' + b"9" * 4090 + b"}")
    def fuzz(payload: bytes) -> None:
        seen[is_read(payload)] += 1

    fuzz()
    assert min(seen[True], seen[False]) > 2, seen
