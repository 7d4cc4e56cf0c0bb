"""The ground-truth ledger: one JSON line for each reading that a device was about to publish.

A publisher that knows what was truly used writes the line before it publishes the reading, so that
an auditor can hold readings and charges against it. A line has exactly the keys of `LedgerLine`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError

from metering.errors import InvalidValue
from metering.usage import Reading, ReadingKind

_STRICT = ConfigDict(strict=True, extra="forbid")
_Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerLine:
    """One reading as it was published, and what was truly used since the reading before.

    `up`, `down`, `used_up` and `used_down` are set for a directed meter, `quantity` and `used` for
    any other; all in the meter's base unit. For a delta the used quantities are the published ones,
    for a total they are the counter's true growth, whatever its value shows (wrap, reset).
    """

    __pydantic_config__ = _STRICT

    tenant: str
    device: str
    boot: str
    seq: Annotated[int, Field(ge=1)]
    at: AwareDatetime
    since: AwareDatetime | None
    meter: str
    kind: Literal["delta", "total"]
    up: _Count | None
    down: _Count | None
    quantity: _Count | None
    epoch: str | None
    width: int | None
    used_up: _Count | None
    used_down: _Count | None
    used: _Count | None


_LINE = TypeAdapter(LedgerLine)


def line_of(
    tenant: str, device: str, boot: str, reading: Reading, used: tuple[int, ...]
) -> LedgerLine:
    """Return a reading's line; `used` is (uplink, downlink) of a directed meter, or (quantity,)."""
    directed = reading.meter.directed
    return LedgerLine(
        tenant=tenant,
        device=device,
        boot=boot,
        seq=reading.seq,
        at=reading.at,
        since=reading.since,
        meter=reading.meter.meter,
        kind="total" if reading.kind is ReadingKind.TOTAL else "delta",
        up=reading.uplink if directed else None,
        down=reading.downlink if directed else None,
        quantity=None if directed else reading.quantity,
        epoch=reading.epoch,
        width=reading.width,
        used_up=used[0] if directed else None,
        used_down=used[1] if directed else None,
        used=None if directed else used[0],
    )


def ledger_line(line: LedgerLine) -> str:
    """Write one line, with its line end; instants are UTC with six decimals."""
    # Not by `asdict`, which copies deeply what here is plain, and takes ten times as long.
    document: dict[str, object] = {name: getattr(line, name) for name in LedgerLine.__slots__}
    document["at"] = _timestamp(line.at)
    document["since"] = None if line.since is None else _timestamp(line.since)
    return json.dumps(document, separators=(",", ":")) + "\n"


def read_ledger(lines: Iterable[str]) -> Iterator[LedgerLine]:
    """Read lines in their order; raises `InvalidValue` at one that is none.

    A last line without a line end that cannot be read is left out: its writer was killed while it
    wrote, so before it published the reading.
    """
    torn: InvalidValue | None = None
    for number, text in enumerate(lines, 1):
        if torn is not None:
            raise torn
        try:
            line = _LINE.validate_json(text)
        except ValidationError as error:
            torn = _not_a_line(number, error)
            if text.endswith("\n"):
                raise torn from None
        else:
            yield line


def _not_a_line(number: int, error: ValidationError) -> InvalidValue:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    problem = f"{where}: {first['msg']}" if where else first["msg"]
    return InvalidValue(
        f"ledger line {number}", problem, "use the ledger as the simulator or the agent wrote it"
    )


def _timestamp(instant: datetime) -> str:
    utc = instant.astimezone(UTC).replace(tzinfo=None)
    return utc.isoformat(timespec="microseconds") + "Z"
