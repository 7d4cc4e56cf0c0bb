"""`fleetmeter carrier load|compare`: a carrier's usage records from files, beside the devices' own count."""

import argparse
import asyncio
from datetime import UTC, datetime
from pathlib import Path

from metering.clock import now
from metering.errors import InvalidValue
from metering.ids import checked_id
from metering.ingest.carrier_records import take_records
from metering.settings import Settings
from metering.store.command_audit import audit_command
from metering.store.compared import compare
from metering.store.connection import connect, database_url
from metering.store.registry import tenant_no
from metering.usage import METERS_BY_NO
from metering.wire.carrier import NAME_DEFAULT

_RECORDS_A_FILE_MAX = 1_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the two things to do."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    loading = actions.add_parser("load", help="take the records of files; each counts once")
    comparing = actions.add_parser("compare", help="print what was charged beside the other count")
    for parsed in (loading, comparing):
        parsed.add_argument("--tenant", required=True, help="the tenant's id")
    loading.add_argument("--carrier", default=NAME_DEFAULT, help="whose records (%(default)s)")
    loading.add_argument(
        "files", metavar="FILE", nargs="+", type=Path, help="records as a JSON list, or FILE.csv"
    )
    comparing.add_argument("--from", dest="since", required=True, help="a date, of UTC")
    comparing.add_argument("--to", dest="until", required=True, help="the date after the last")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Do it; 1 if a record was rejected."""
    run_ = _load if arguments.action == "load" else _compare
    return asyncio.run(run_(arguments, settings))


async def _load(arguments: argparse.Namespace, settings: Settings) -> int:
    carrier = checked_id(arguments.carrier, "carrier")
    are_fine = True
    async with await connect(database_url(settings), application="carrier") as connection:
        tenant = await tenant_no(connection, arguments.tenant)
        await audit_command(
            connection,
            tenant=tenant,
            operation="carrier load",
            target={"carrier": carrier, "files": [str(file) for file in arguments.files]},
            now=now(),
        )
        for file in arguments.files:
            try:
                payload = file.read_bytes()
            except OSError as error:
                problem = error.strerror or "cannot be read"
                raise InvalidValue(str(file), problem, "name a file") from None
            async with connection.transaction():
                outcome = await take_records(
                    connection, arguments.tenant, payload, source="file",
                    carrier_name=carrier, settings=settings, now=now(),
                    records_max=_RECORDS_A_FILE_MAX,
                    form="csv" if file.suffix.lower() == ".csv" else "json",
                )  # fmt: skip
            print(
                f"{file}: {outcome.stored} new, {outcome.duplicates} known,"
                f" {len(outcome.rejections)} rejected"
            )
            for rejection in outcome.rejections:
                print(f"{file}: {rejection.field or 'all of it'}: {rejection.detail}")
            are_fine = are_fine and not outcome.rejections
    return 0 if are_fine else 1


async def _compare(arguments: argparse.Namespace, settings: Settings) -> int:
    since, until = _date(arguments.since, "from"), _date(arguments.until, "to")
    async with await connect(database_url(settings), application="carrier") as connection:
        tenant = await tenant_no(connection, arguments.tenant)
        rows = await compare(connection, tenant, since=since, until=until)
    for row in rows:
        meter = METERS_BY_NO[row.meter_no]
        print(
            f"{row.device_id}  {meter.meter}  charged {row.charged}  other count {row.compared}"
            f"  difference {row.compared - row.charged} {meter.unit}s"
        )
    if not rows:
        print("no device has two counts in this period")
    return 0


def _date(text: str, name: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidValue(name, f"{text!r} is no date", "write it like 2026-01-31") from None
