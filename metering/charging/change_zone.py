"""A fleet goes over to another time zone with its next bill cycle: cycles and days adjoin as before."""

from dataclasses import replace
from datetime import date, datetime, timedelta

from metering.errors import InvalidValue
from metering.period import TimeZone, local_day, midnight, zone
from metering.store.connection import Connection
from metering.store.cycles import last_cycle
from metering.store.registry import Fleet, calendar_of, fleets_by_no, lock_shard, zone_of
from metering.store.zones import allowances_after, set_expiries, set_zones


async def change_zone(
    connection: Connection, fleet: Fleet, time_zone: str, *, now: datetime
) -> Fleet:
    """Let a fleet's days be of another zone from the first cycle on that has not begun; return it.

    That cycle begins when the one before ends, and ends by the new zone. A change that waits for the same
    cycle gives way. Allowances that go on expire with the same local day. Raises `InvalidValue` for what is
    no zone, or one that is more than a day ahead. The caller's transaction ends with the shard owned.
    """
    zone(time_zone)
    await lock_shard(connection, fleet.shard_no)
    fleet = (await fleets_by_no(connection, [fleet.fleet_no]))[fleet.fleet_no]
    present = calendar_of(fleet).cycle_at(now)
    opened = await last_cycle(connection, fleet.fleet_no)
    last = present if opened is None or opened.start < present.start else opened
    changed = _changed(fleet, time_zone, last.next_first_day)
    before, after = zone_of(fleet), zone_of(changed)
    if midnight(last.next_first_day + timedelta(days=1), after) <= last.end:
        raise InvalidValue(
            "time_zone",
            f"the days of {time_zone!r} begin a day before those of the present one",
            "change to a zone in between for a cycle",
        )
    await set_zones(connection, fleet.fleet_no, changed.time_zone, changed.earlier_zones)
    going_on = await allowances_after(connection, fleet.fleet_no, last.end)
    await set_expiries(
        connection, {number: _moved(expires, before, after) for number, expires in going_on.items()}
    )
    return changed


def _changed(fleet: Fleet, time_zone: str, first_day: date) -> Fleet:
    """Return a fleet if it is to have one from a day on, whatever was to be from that day before."""
    earlier = tuple(each for each in fleet.earlier_zones if each[1] < first_day.isoformat())
    waiting = fleet.earlier_zones[len(earlier) :]
    present = waiting[0][0] if waiting else fleet.time_zone
    if time_zone != present:
        earlier = (*earlier, (present, first_day.isoformat()))
    return replace(fleet, time_zone=time_zone, earlier_zones=earlier)


def _moved(instant: datetime, before: TimeZone, after: TimeZone) -> datetime:
    """Return when the local day begins that an instant begins by another zone; else the instant."""
    day = local_day(instant, before)
    return midnight(day, after) if midnight(day, before) == instant else instant
