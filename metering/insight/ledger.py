"""The ground truth against the platform: what devices say they sent, and what was stored and charged."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from itertools import islice

from metering.store.connection import Connection
from metering.store.tally import arrived_counts, readings_by_name
from metering.usage import METERS, Reading, ReadingKind
from metering.wire.ledger import LedgerLine

_LINES_AT_ONCE = 2000


@dataclass(slots=True)
class LedgerComparison:
    """How a ledger and the database compare, while its lines are read.

    `sent` are the sequence numbers by (tenant, device, boot); `used` and `charged` sum quantities by
    (tenant, device, meter).
    """

    lines: int = 0
    differences: list[str] = field(default_factory=list)
    sent: dict[tuple[str, str, str], set[int]] = field(default_factory=dict)
    used: dict[tuple[str, str, str], int] = field(default_factory=dict)
    charged: dict[tuple[str, str, str], int] = field(default_factory=dict)


async def compare_ledger(connection: Connection, lines: Iterable[LedgerLine]) -> LedgerComparison:
    """Hold every line against what is stored and charged of it.

    Each reading must be stored once with the content that was sent, and charged unless it is
    parked: a delta with its very quantity. Counters are compared by device and meter, because a
    reading that came out of order has its growth charged with its neighbour's. The database must
    hold no reading of the ledger's boots beside these.
    """
    comparison = LedgerComparison()
    remaining = iter(lines)
    while chunk := list(islice(remaining, _LINES_AT_ONCE)):
        await _compare(connection, chunk, comparison)
    boots = sorted(comparison.sent)
    stored = await arrived_counts(connection, boots)
    comparison.differences += list(_finish(comparison, stored))
    return comparison


async def _compare(
    connection: Connection, lines: Sequence[LedgerLine], comparison: LedgerComparison
) -> None:
    found = await readings_by_name(connection, sorted({_name(line) for line in lines}))
    for line in lines:
        comparison.lines += 1
        sent = comparison.sent.setdefault((line.tenant, line.device, line.boot), set())
        again = line.seq in sent
        sent.add(line.seq)
        stored = found.get(_name(line), [])
        if len(stored) != 1:
            count = "not" if not stored else f"{len(stored)} times"
            comparison.differences.append(f"{_called(line)} is stored {count}")
            continue
        fate = stored[0]
        if fate.reading != _reading(line):
            comparison.differences.append(
                f"{_called(line)} is stored as {fate.reading}, sent was {_reading(line)}"
            )
        charged = fate.charged
        if charged is None:
            if not fate.parked:
                comparison.differences.append(f"{_called(line)} is not charged")
            continue
        if again:  # its writer was killed before it could note that the line was written
            continue
        used = _used(line)
        if line.kind == "delta" and charged != used:
            comparison.differences.append(f"{_called(line)} used {used}, charged is {charged}")
        meter = (line.tenant, line.device, line.meter)
        comparison.used[meter] = comparison.used.get(meter, 0) + used
        comparison.charged[meter] = comparison.charged.get(meter, 0) + charged


def _finish(comparison: LedgerComparison, stored: dict[tuple[str, str, str], int]) -> Iterator[str]:
    for boot, sent in comparison.sent.items():
        if stored.get(boot, 0) > len(sent):
            name = "/".join(boot)
            yield f"boot {name}: {stored[boot]} readings are stored, the ledger has {len(sent)}"
    for meter, used in comparison.used.items():
        charged = comparison.charged[meter]
        if charged != used:
            yield f"{'/'.join(meter)}: the ledger says {used} used, charged are {charged}"


def _name(line: LedgerLine) -> tuple[str, str, str, int]:
    return (line.tenant, line.device, line.boot, line.seq)


def _called(line: LedgerLine) -> str:
    return f"reading {line.tenant}/{line.device}/{line.boot} seq {line.seq}"


def _used(line: LedgerLine) -> int:
    if METERS[line.meter].directed:
        return (line.used_up or 0) + (line.used_down or 0)
    return line.used or 0


def _reading(line: LedgerLine) -> Reading:
    return Reading(
        seq=line.seq,
        at=line.at.astimezone(UTC),
        meter=METERS[line.meter],
        kind=ReadingKind.TOTAL if line.kind == "total" else ReadingKind.DELTA,
        uplink=line.up or 0,
        downlink=line.down or 0,
        quantity=line.quantity or 0,
        since=None if line.since is None else line.since.astimezone(UTC),
        epoch=line.epoch,
        width=line.width,
    )
