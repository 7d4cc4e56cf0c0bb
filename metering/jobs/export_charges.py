"""A fleet's charges of a period as one file, CSV or JSON lines; a step is a day.

Each day is read in one transaction. What changes while the job runs shows in the days that it has not
reached yet.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from metering.errors import InvalidValue
from metering.ids import TenantNo
from metering.jobs.progress import Progress
from metering.money import decimal_text
from metering.settings import Settings
from metering.store.connection import Connection
from metering.store.jobs import ExportedCharge, Job, charged_span, charges_measured, insert_part
from metering.usage import METERS_BY_NO

COLUMNS = (
    "charge_id", "device_id", "boot_id", "seq", "part", "plan_id", "plan_version", "meter", "unit", "zone",
    "band", "usage_from", "usage_to", "measured_at", "charged_at", "quantity", "billed_quantity",
    "in_allowance_quantity", "from_pool_quantity", "overage_quantity", "currency", "exact_amount",
)  # fmt: skip
"""The fields of a line: names and meaning are those of the API's `Charge`."""

MEDIA_TYPES = {"csv": "text/csv", "jsonl": "application/jsonl"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 - full width too
_PAGE = 2000


async def export_charges(
    connection: Connection, job: Job, before: Progress, *, settings: Settings, now: datetime
) -> Progress:
    """Write the next day's charges."""
    del now
    asked = job.request
    tenant, fleet_no = TenantNo(job.tenant_no), int(asked["fleet_no"])
    end = datetime.fromisoformat(asked["to"])
    total, place = before.total, before.place
    if place is None:
        place = {"day": asked["from"], "part": 0, "octets": 0}
        total = await _counted(connection, job, end, settings)
        if asked["form"] == "csv":
            place = await _written(connection, job, place, _csv([COLUMNS]))
    begin = datetime.fromisoformat(place["day"])
    until = min(end, _next_day(begin))
    done = before.done
    async for page in charges_measured(
        connection, tenant, fleet_no=fleet_no, start=begin, end=until, page=_PAGE
    ):
        rows = [_row(each, asked["currency"]) for each in page]
        text = _csv(rows) if asked["form"] == "csv" else _lines(rows)
        place = await _written(connection, job, place, text)
        done += len(page)
    result = None
    if until >= end:
        result = {
            "media_type": MEDIA_TYPES[asked["form"]],
            "file_name": f"charges-{job.job_no}.{asked['form']}",
            "octets": place["octets"],
            "charges": done,
        }
        total = done  # what was charged meanwhile is in it, too
    return Progress(
        done=done, total=total, place={**place, "day": until.isoformat()}, result=result
    )


async def _counted(connection: Connection, job: Job, end: datetime, settings: Settings) -> int:
    total = await charged_span(
        connection,
        TenantNo(job.tenant_no),
        fleet_no=int(job.request["fleet_no"]),
        start=datetime.fromisoformat(job.request["from"]),
        end=end,
    )
    most = settings.job_export_charges_max
    if total > most:
        raise InvalidValue(
            "to", f"there are {total} charges until then", f"export at most {most} at a time"
        )
    return total


async def _written(
    connection: Connection,
    job: Job,
    place: Mapping[str, Any],
    text: str,
) -> dict[str, Any]:
    content = text.encode()
    part = int(place["part"]) + 1
    await insert_part(connection, job.job_no, part, content)
    return {**place, "part": part, "octets": int(place["octets"]) + len(content)}


def _next_day(begin: datetime) -> datetime:
    day = begin.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day + timedelta(days=1)


def _row(of: ExportedCharge, currency: str) -> list[object]:
    meter = METERS_BY_NO[of.meter_no]
    times = (of.usage_from, of.usage_to, of.measured_at, of.charged_at)
    return [
        of.charge_id, of.device_id, of.boot_id, of.seq, of.part, of.plan_id, of.plan_version, meter.meter,
        meter.unit, of.zone, of.band, *(each.astimezone(UTC).isoformat() for each in times),
        of.quantity, of.billed, of.from_allowance, of.from_pool, of.overage, currency,
        decimal_text(Fraction(int(of.amount), int(of.subunits_per_unit))),
    ]  # fmt: skip


def _csv(rows: Sequence[Sequence[object]]) -> str:
    written = io.StringIO(newline="")
    csv.writer(written).writerows([_cell(each) for each in row] for row in rows)
    return written.getvalue()


def _cell(value: object) -> object:
    """Return a value that no spreadsheet takes for a formula; amounts may be negative."""
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return "" if value is None else value
    return value if value[1:].replace(".", "", 1).isdigit() and value[0] == "-" else f"'{value}"


def _lines(rows: Sequence[Sequence[object]]) -> str:
    return "".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows)
