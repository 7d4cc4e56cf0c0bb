"""The end-to-end acknowledgement: which readings of one boot are durable, in a few octets."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from metering.sequence import SequenceSet

GAPS_MAX = 32
"""Most missing ranges that one acknowledgement names."""

_Seq = Annotated[int, Field(ge=0)]


class RejectedReading(BaseModel):
    """A reading that was kept as rejected: sending it again will not help."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seq: int | None
    reason: str
    detail: str


class Ack(BaseModel):
    """What the platform holds of one boot.

    Every reading from 1 to `up_to` is durable, and of those after it up to `highest` every one that
    is in no range of `gaps` (closed ranges, ascending). A device may forget the durable ones and
    should send the others again. Readers ignore fields that they do not know.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    boot: str
    up_to: _Seq
    highest: _Seq
    gaps: tuple[tuple[_Seq, _Seq], ...] = ()
    rejected: tuple[RejectedReading, ...] = ()

    def holds(self, seq: int) -> bool:
        """Whether reading `seq` of this boot is durable."""
        if seq <= self.up_to:
            return True
        return seq <= self.highest and not any(first <= seq <= last for first, last in self.gaps)


def ack_of(boot: str, arrived: SequenceSet, rejected: tuple[RejectedReading, ...] = ()) -> Ack:
    """Return the acknowledgement of what has arrived of one boot."""
    gaps, told = arrived.gaps(GAPS_MAX)
    return Ack(boot=boot, up_to=arrived.up_to, highest=told, gaps=gaps, rejected=rejected)


def encode(ack: Ack) -> bytes:
    """Write an acknowledgement as JSON."""
    return ack.model_dump_json(exclude_defaults=True).encode()


def encode_arrived(
    boot: str, arrived: SequenceSet, rejected: tuple[RejectedReading, ...] = ()
) -> bytes:
    """Write the acknowledgement of what has arrived of one boot: `encode(ack_of(…))`, for less."""
    if arrived.beyond or rejected:
        return encode(ack_of(boot, arrived, rejected))
    return to_json({"boot": boot, "up_to": arrived.up_to, "highest": arrived.up_to})


def decode(payload: bytes) -> Ack:
    """Read an acknowledgement; raises pydantic's `ValidationError` when it is none."""
    return Ack.model_validate_json(payload)
