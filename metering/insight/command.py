"""`fleetmeter audit`: compares ledger, readings and charges, and says equal or what differs."""

import argparse
import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic

from metering.clock import now
from metering.errors import InvalidValue
from metering.insight.audit import AuditResult, audit_database
from metering.insight.ledger import compare_ledger
from metering.insight.watch import Watch
from metering.process import serve
from metering.settings import Settings
from metering.store.audit import read_from_one_snapshot
from metering.store.connection import connect, database_url
from metering.store.tally import queued_count
from metering.wire.ledger import LedgerLine, read_ledger

_SHOWN_MAX = 100
_ALL = 100
"""Percent."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the ledgers to compare with, and how long to wait for charging to catch up."""
    parser.add_argument(
        "--ledger", type=Path, action="append", default=[], metavar="FILE",
        help="what simulator or agent wrote of what they sent; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--settle", type=float, default=0, metavar="SECONDS",
        help="wait so long for the queue to be charged; what is queued then is a difference",
    )  # fmt: skip

    parser.add_argument(
        "--every", type=_seconds, metavar="SECONDS",
        help="go on auditing: look again so often, until told to stop; with metrics",
    )  # fmt: skip
    parser.add_argument(
        "--sample", type=_percent, metavar="PERCENT",
        help="with --every: so many percent of the fleets a look, in turn, one at least; else all",
    )  # fmt: skip


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _percent(text: str) -> float:
    value = float(text)
    if not 0 < value <= _ALL:
        raise argparse.ArgumentTypeError("must be more than 0 and at most 100")
    return value


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Audit, print differences and the verdict as the last line; 1 if anything differs.

    Raises `InvalidValue` for options that would do nothing beside the others.
    """
    if arguments.every is None and arguments.sample is not None:
        raise InvalidValue("--sample", "stands without --every", "give both, or audit all fleets")
    if arguments.every is not None:
        if arguments.ledger or arguments.settle:
            idle = "--ledger" if arguments.ledger else "--settle"
            raise InvalidValue(idle, "is of no use with --every", "audit once with it")
        watch = Watch(
            database_url(settings),
            every_seconds=arguments.every,
            share=(arguments.sample or _ALL) / _ALL,
            messages_kept_days=settings.messages_kept_days,
        )
        return serve(watch.run, metrics_port=settings.metrics_port)
    result = asyncio.run(
        _audit(
            database_url(settings), arguments.ledger, arguments.settle,
            kept_since=_kept_since(settings),
        )
    )  # fmt: skip
    for difference in result.differences[:_SHOWN_MAX]:
        print(difference)
    if len(result.differences) > _SHOWN_MAX:
        print(f"… and {len(result.differences) - _SHOWN_MAX} more")
    print(result.verdict)
    return 1 if result.differences else 0


def _kept_since(settings: Settings) -> datetime | None:
    """Return since when messages are kept; None where they are not."""
    days = settings.messages_kept_days
    return now() - timedelta(days=days) if days else None


async def _audit(
    url: str, ledgers: list[Path], settle_seconds: float, *, kept_since: datetime | None
) -> AuditResult:
    await _settle(url, settle_seconds)
    async with await connect(url, application="audit") as connection:
        await read_from_one_snapshot(connection)
        result = await audit_database(connection, messages_kept_since=kept_since)
        if settle_seconds and result.queued:
            result.differences.append(f"{result.queued} readings are still queued")
        if ledgers:
            compared = await compare_ledger(connection, _lines(ledgers))
            result.differences += compared.differences
    return result


async def _settle(url: str, seconds: float) -> None:
    """Wait until nothing is queued, at most so long."""
    deadline = monotonic() + seconds
    async with await connect(url, application="audit", autocommit=True) as connection:
        # Asking is the only way to know: what ends the queue is another process.
        while monotonic() < deadline and await queued_count(connection):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


def _lines(ledgers: list[Path]) -> Iterator[LedgerLine]:
    for path in ledgers:
        with path.open(encoding="utf-8") as file:
            yield from read_ledger(file)
