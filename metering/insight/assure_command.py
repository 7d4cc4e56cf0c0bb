"""`fleetmeter assure`: holds what arrived, what is charged, what is billed and who is active together."""

import argparse
import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

from metering.clock import now
from metering.errors import InvalidValue
from metering.ids import TenantNo
from metering.insight.assurance import Assurance, Difference, assure
from metering.insight.carrier_causes import UNIT_DEFAULT
from metering.insight.carrier_comparison import compare_sims
from metering.money import decimal_text
from metering.settings import Settings
from metering.store.audit import read_from_one_snapshot
from metering.store.connection import Connection, connect, database_url
from metering.store.fleet_views import FleetView, fleet_view, list_fleets
from metering.store.registry import fleet_rule, tenant_no
from metering.store.rows import PAGE_MAX
from metering.usage import METERS_BY_NO


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare whose fleets, and which cycle."""
    parser.add_argument("--tenant", required=True, help="the tenant's id")
    parser.add_argument("--fleet", help="one fleet's id; left out: all of the tenant's")
    parser.add_argument("--at", help="a date in the cycle, of UTC; left out: the present cycle")
    parser.add_argument(
        "--carrier", action="store_true",
        help="print a carrier's count of each SIM beside its device's own instead, by day",
    )  # fmt: skip
    parser.add_argument(
        "--unit", type=int, default=UNIT_DEFAULT, metavar="OCTETS",
        help="with --carrier: to what the carrier rounds each record (%(default)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print what was found, fleet by fleet; 1 if anything is at fault."""
    return asyncio.run(_assure(arguments, settings))


async def _assure(arguments: argparse.Namespace, settings: Settings) -> int:
    at = _date(arguments.at) if arguments.at else now()
    is_even = True
    async with await connect(database_url(settings), application="assure") as connection:
        await read_from_one_snapshot(connection)
        tenant = await tenant_no(connection, arguments.tenant)
        after = ""
        while fleets := await _fleets(connection, arguments.fleet, tenant, after):
            for fleet in fleets:
                if arguments.carrier:
                    await _compare(connection, tenant, fleet, at=at, unit=arguments.unit)
                    continue
                found = await assure(connection, tenant, fleet=fleet, at=at, now=now())
                print(*_told(fleet, found), sep="\n")
                is_even = is_even and found.is_even
            after = fleets[-1].fleet_id
            if arguments.fleet:
                break
    return 0 if is_even else 1


async def _compare(
    connection: Connection, tenant: TenantNo, fleet: FleetView, *, at: datetime, unit: int
) -> None:
    """Print both counts of the fleet's SIMs; it is no fault that they differ."""
    cycle = fleet_rule(fleet, []).cycle_of(at)
    after: str | None = ""
    print(f"fleet {fleet.fleet_id}, cycle {cycle.first_day} to {cycle.next_first_day}")
    while after is not None:
        page = await compare_sims(
            connection, tenant, fleet_no=fleet.fleet_no, since=cycle.start, until=cycle.end,
            unit=unit, after=after, limit=PAGE_MAX,
        )  # fmt: skip
        for each in page.sims:
            causes = ", ".join(f"{cause} {octets:+}" for cause, octets in each.by_cause.items())
            print(
                f"  {each.device_id} {each.iccid or 'no SIM'} {each.meter.meter}: own {each.own},"
                f" carrier {each.carrier} {each.meter.unit}s: {causes or 'equal'}"
            )
            for day in each.days:
                if day.difference:
                    print(
                        f"    {day.day} own {day.own} in {day.own_records}, carrier {day.carrier}"
                        f" in {day.carrier_records}: {day.difference:+} {each.causes[day.day]}"
                    )
        after = page.next_after


async def _fleets(
    connection: Connection, fleet_id: str | None, tenant: TenantNo, after: str
) -> list[FleetView]:
    if fleet_id:
        return [await fleet_view(connection, tenant, fleet_id=fleet_id)]
    return await list_fleets(connection, tenant, after=after, limit=PAGE_MAX)


def _told(fleet: FleetView, found: Assurance) -> Iterator[str]:
    currency = fleet.currency
    yield f"fleet {fleet.fleet_id}, cycle {found.cycle.first_day} to {found.cycle.next_first_day}"
    for row in found.meters:
        meter = METERS_BY_NO[row.meter_no]
        parts = (
            ("received", row.received, row.received_quantity),
            ("rated", row.rated, row.rated_quantity),
            ("parked", row.parked, row.parked_quantity),
            ("queued", row.queued, row.queued_quantity),
            ("lost", row.lost, row.lost_quantity),
            ("rejected", row.rejected, row.rejected_quantity),
        )
        told = ", ".join(f"{name} {records} ({quantity})" for name, records, quantity in parts)
        yield f"  {meter.meter} in readings ({meter.unit}s): {told}"
    unread = found.messages
    if unread.received:
        yield (
            "  messages of which no meter can be read:"
            f" received {unread.received}, rejected {unread.rejected}"
        )
    for each in found.rejected:
        share = f", {each.unread} of them unread" if each.unread else ""
        yield f"  rejected: {each.reason} {each.contents} ({each.times} times){share}"
    revenue = found.revenue
    amounts = (
        ("charged", revenue.charged),
        ("owed in all", revenue.owed),
        ("billed at closing", revenue.closed),
        ("adjusted in later bills", revenue.adjusted),
        ("open", revenue.open),
    )
    yield from (f"  {name}: {decimal_text(amount)} {currency}" for name, amount in amounts)
    if revenue.billed is not None:
        yield f"  in its final bill: {revenue.billed} {currency}, by notes on it {revenue.noted:+f}"
    yield f"  devices active {found.active_devices}, billed {found.billed_devices}"
    for difference in found.differences:
        yield f"  {'' if difference.is_fault else 'note: '}{_line(difference, currency)}"
    yield "  even" if found.is_even else "  differs"


def _line(each: Difference, currency: str) -> str:
    whose = " ".join(part for part in (each.device_id, each.meter) if part)
    amount = "" if each.exact is None else f" {decimal_text(each.exact)} {currency}:"
    quantity = "" if each.quantity is None else f" ({each.quantity})"
    return f"{each.kind}{' ' + whose if whose else ''}:{amount} {each.text}{quantity}"


def _date(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidValue("at", f"{text!r} is no date", "write it like 2026-01-31") from None
