"""Thresholds while charging: what counts is counted, and who crosses a limit is told of, once.

All of it belongs to the transaction that charges, or that changes limits or what is there to have a
share of; its caller owns the fleet's shard.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import NamedTuple

from metering.event_kinds import EventKind
from metering.money import decimal_text
from metering.period import instant_text
from metering.rating.account import Charge
from metering.rating.plan import PlanTerms
from metering.rating.threshold import (
    WHOLE_FLEET,
    Calendars,
    Counted,
    CountKey,
    Counts,
    Measure,
    Recurrence,
    Span,
    Tallies,
    Tally,
    counts_of,
    crossed_at,
    is_crossed,
    limit_of,
    measured,
    together,
    value_of,
)
from metering.store.connection import Connection
from metering.store.outbox import NewCommand, NewEvent, enqueue_commands, record_events
from metering.store.registry import Fleet, calendar_of, try_lock_shard
from metering.store.thresholds import (
    Action,
    Lots,
    NewAlert,
    OpenAlert,
    Subject,
    Threshold,
    add_counts,
    clear_alerts,
    counts_at,
    device_nos_of_fleet,
    enabled_thresholds,
    fleet_tallies,
    fleets_to_release,
    insert_alerts,
    left_of_lots,
    mark_released,
    open_alerts,
    public_names,
    raised_before,
    restraining_alerts,
    tallies_of,
)
from metering.store.work import QueuedReading
from metering.usage import METERS_BY_NO
from metering.wire.command import CommandKind

ALERT_RAISED = EventKind.THRESHOLD_CROSSED
ALERT_CLEARED = EventKind.THRESHOLD_CLEARED


class ChargedUsage(NamedTuple):
    """A reading that was charged, and its charges; of a device that moved, perhaps in two fleets."""

    queued: QueuedReading
    charges: Sequence[Charge]


@dataclass(frozen=True, slots=True, kw_only=True)
class RaisedAlert:
    """An alert that was raised: how far beyond its limit the value was found, over the limit."""

    alert_no: int
    overshoot_ratio: float


class Standing(NamedTuple):
    """How far a threshold is used by someone in a period; `limit` None: nothing is there to share."""

    threshold: Threshold
    key: CountKey
    span: Span
    value: Fraction
    limit: Fraction | None

    @property
    def device_no(self) -> int | None:
        """Whose use it is; None of the fleet as a whole."""
        return self.key[1] or None

    @property
    def subject(self) -> Subject:
        """What an alert of it is one of."""
        return (self.threshold.threshold_no, self.device_no, self.span.start)


def calendars_of(fleet: Fleet) -> Calendars:
    """Return the periods of a fleet's thresholds."""
    return Calendars(calendar_of(fleet))


# Charging ------------------------------------------------------------------------------------------


async def count_usage(
    connection: Connection,
    run_no: int,
    charged: Iterable[ChargedUsage],
    *,
    fleets: Mapping[int, Fleet],
    device_nos: Iterable[int],
    plans: Mapping[int, PlanTerms],
    now: datetime,
) -> list[RaisedAlert]:
    """Count what a run charged towards its fleets' thresholds, and raise alerts of what it crossed.

    Accounts and buckets are stored already. For fleets without thresholds it is one query a run;
    otherwise a few, however many readings were charged.
    """
    tallies = await tallies_of(connection, fleets, device_nos)
    if not tallies:
        return []
    by_fleet: dict[int, list[ChargedUsage]] = {tally.fleet_no: [] for tally in tallies}
    for each in charged:
        for fleet_no, charges in _by_fleet(each.charges):
            if fleet_no in by_fleet:
                by_fleet[fleet_no].append(ChargedUsage(each.queued, charges))
    path = _Path(
        by_fleet, tallies, {number: calendars_of(fleets[number]) for number in by_fleet}, plans
    )
    added = path.added()
    if not added:
        return []
    await add_counts(connection, added)
    thresholds = await enabled_thresholds(connection, {key[0] for key in added})
    standings = await standings_at(connection, thresholds, added, path.calendars, now=now)
    crossed = [each for each in standings if is_crossed(each.value, each.limit)]
    if not crossed:
        return []
    return await _raise(connection, run_no, crossed, path, now=now)


def _by_fleet(charges: Sequence[Charge]) -> Iterator[tuple[int, Sequence[Charge]]]:
    for fleet_no in dict.fromkeys(each.record.subscription.fleet_no for each in charges):
        yield (
            fleet_no,
            [each for each in charges if each.record.subscription.fleet_no == fleet_no],
        )


def _counted(charged: Iterable[ChargedUsage], plans: Mapping[int, PlanTerms]) -> Iterator[Counted]:
    for queued, charges in charged:
        device_no = queued.stored.device_no
        meter_no = queued.stored.reading.meter.meter_no
        for record, parts in charges:
            yield Counted(
                device_no,
                meter_no,
                record.start,
                record.quantity,
                parts.from_allowance,
                parts.from_pool,
                parts.amount,
                plans[record.subscription.plan_no].subunits_per_unit,
            )


class _Path:
    """A run's charges in order: what they add together, and which reading took a count over a limit."""

    def __init__(
        self,
        charged: Mapping[int, Sequence[ChargedUsage]],
        tallies: Sequence[Tally],
        calendars: Mapping[int, Calendars],
        plans: Mapping[int, PlanTerms],
    ) -> None:
        self.calendars = calendars
        self._charged = charged
        self._plans = plans
        self._tallies = {
            fleet_no: Tallies(tally for tally in tallies if tally.fleet_no == fleet_no)
            for fleet_no in charged
        }
        self._daily = {tally.fleet_no for tally in tallies if tally.period is Recurrence.DAY}

    def added(self) -> Counts:
        """Return what the run adds to every count."""
        found: Counts = {}
        for fleet_no, charged in self._charged.items():
            calendars = self.calendars[fleet_no]
            counted = _counted(charged, self._plans)
            summed = together(counted, calendars, daily=fleet_no in self._daily)
            found |= counts_of(self._tallies[fleet_no], summed, calendars)
        return found

    def crossings(self, standings: Iterable[Standing]) -> dict[Subject, QueuedReading]:
        """Return the readings that took standings over their limits."""
        wanted = list(standings)
        keys = {each.key for each in wanted}
        steps: dict[CountKey, list[tuple[QueuedReading, Fraction]]] = {}
        for fleet_no in {each.threshold.fleet_no for each in wanted}:
            tallies, calendars = self._tallies[fleet_no], self.calendars[fleet_no]
            for each in self._charged[fleet_no]:
                for counted in _counted([each], self._plans):
                    for key, per_unit, count in tallies.increases(counted, calendars):
                        if key in keys:
                            step = (each.queued, Fraction(count, per_unit))
                            steps.setdefault(key, []).append(step)
        found: dict[Subject, QueuedReading] = {}
        for standing in wanted:
            way = steps.get(standing.key)
            if way and standing.limit is not None:
                before = standing.value - sum(step for _, step in way)
                position = crossed_at(before, (step for _, step in way), standing.limit)
                found[standing.subject] = way[position][0]
        return found


# Standing and crossing -----------------------------------------------------------------------------


async def standings_at(
    connection: Connection,
    thresholds: Iterable[Threshold],
    keys: Iterable[CountKey],
    calendars: Mapping[int, Calendars],
    *,
    now: datetime,
) -> list[Standing]:
    """Return how far thresholds are used at some counts, each at those of its own tally."""
    by_tally: dict[int, list[CountKey]] = {}
    for key in keys:
        by_tally.setdefault(key[0], []).append(key)
    places: list[tuple[Threshold, CountKey, Span]] = []
    lots: dict[tuple[int, CountKey], tuple[Lots, CountKey]] = {}
    for threshold in thresholds:
        for key in by_tally.get(threshold.tally_no or 0, ()):
            if key[2] < threshold.holds_from:
                continue
            span = calendars[threshold.fleet_no].span(threshold.period, key[2])
            places.append((threshold, key, span))
            if threshold.measure.is_share:
                lots[threshold.threshold_no, key] = _lots_of(threshold, key, span)
    counts = await counts_at(
        connection, {key for _, key, _ in places} | {drawn for _, drawn in lots.values()}
    )
    left: Mapping[Lots, int] = {}
    if lots:
        left = await left_of_lots(connection, {lot for lot, _ in lots.values()}, now=now)
    found: list[Standing] = []
    for threshold, key, span in places:
        available = 0
        if threshold.measure.is_share:
            lot, drawn = lots[threshold.threshold_no, key]
            available = left.get(lot, 0) + counts.get(drawn, {}).get(1, 0)
        limit = limit_of(threshold.limit, threshold.percent, available)
        found.append(Standing(threshold, key, span, value_of(counts.get(key, {})), limit))
    return found


def _lots_of(threshold: Threshold, key: CountKey, span: Span) -> tuple[Lots, CountKey]:
    """Return which lots a share is of, and where what the period drew from them is counted."""
    meter_no = threshold.meter_no or 0
    if threshold.measure is Measure.ALLOWANCE:
        return (Measure.ALLOWANCE, key[1], meter_no, span), key
    drawn = (threshold.pool_tally_no or 0, WHOLE_FLEET, span.start)
    return (Measure.POOL, threshold.fleet_no, meter_no, span), drawn


async def raise_what_is_crossed(
    connection: Connection, run_no: int, standings: Iterable[Standing], *, now: datetime
) -> list[RaisedAlert]:
    """Raise alerts of standings that a change of terms, and no reading, took over their limits."""
    crossed = [each for each in standings if is_crossed(each.value, each.limit)]
    return await _raise(connection, run_no, crossed, None, now=now) if crossed else []


async def _raise(
    connection: Connection,
    run_no: int,
    crossed: Sequence[Standing],
    path: _Path | None,
    *,
    now: datetime,
) -> list[RaisedAlert]:
    """Raise an alert of each of which none is open; with it, its event and its commands."""
    before = await raised_before(connection, [each.subject for each in crossed])
    new = [each for each in crossed if not before.get(each.subject, (0, False))[1]]
    readings = path.crossings(new) if path else {}
    alerts: list[tuple[NewAlert, int]] = []
    for standing in new:
        if standing.limit is None:
            continue
        reading = readings.get(standing.subject)
        stored = reading.stored if reading else None
        actions = standing.threshold.terms.actions
        alert = NewAlert(
            threshold=standing.threshold,
            device_no=standing.device_no,
            span=standing.span,
            measured=measured(standing.value, standing.limit),
            run_no=run_no,
            boot_no=stored.boot_no if stored else None,
            seq=stored.reading.seq if stored else None,
            measured_at=stored.reading.at if stored else None,
            published_at=reading.published_at if reading else None,
            restrains=standing.span.end > now and any(map(_restrains, actions)),
        )
        alerts.append((alert, before.get(standing.subject, (0, False))[0] + 1))
    if not alerts:
        return []
    numbers = await insert_alerts(connection, alerts, now=now)
    raised = [
        (numbers[subject], alert)
        for alert, _ in alerts
        if (subject := (alert.threshold.threshold_no, alert.device_no, alert.span.start)) in numbers
    ]
    await _tell(connection, raised, now=now)
    return [
        RaisedAlert(
            alert_no=number,
            overshoot_ratio=alert.measured.overshoot / alert.measured.limit,
        )
        for number, alert in raised
    ]


async def _tell(
    connection: Connection, raised: Sequence[tuple[int, NewAlert]], *, now: datetime
) -> None:
    """Record the events of new alerts, and enqueue what their devices are told."""
    fleets, devices = await public_names(
        connection,
        sorted({alert.threshold.fleet_no for _, alert in raised}),
        sorted({alert.device_no for _, alert in raised if alert.device_no is not None}),
    )
    events: list[NewEvent] = []
    acting: list[tuple[int, NewAlert]] = []
    tellings: dict[int, Mapping[str, object]] = {}
    for number, alert in raised:
        threshold = alert.threshold
        fleet_id, currency = fleets[threshold.fleet_no]
        told = {
            "alert_no": number,
            "threshold_no": threshold.threshold_no,
            "measure": threshold.measure.value,
            "meter": METERS_BY_NO[threshold.meter_no].meter if threshold.meter_no else None,
            "period": threshold.period.value,
            "period_start": instant_text(alert.span.start),
            "period_end": instant_text(alert.span.end),
            "unit": unit_of(threshold, currency),
            "value": amount_text(alert.measured.value, alert.measured.per_unit),
            "limit": amount_text(alert.measured.limit, alert.measured.per_unit),
        }
        overshoot = amount_text(alert.measured.overshoot, alert.measured.per_unit)
        device_id = devices.get(alert.device_no) if alert.device_no else None
        more = {"name": threshold.name, "fleet_id": fleet_id, "device_id": device_id}
        events.append(
            NewEvent(
                tenant_no=threshold.tenant_no,
                fleet_no=threshold.fleet_no,
                device_no=alert.device_no,
                kind=ALERT_RAISED,
                payload=told | more | {"overshoot": overshoot},
                cause=f"alert:{number}",
            )
        )
        if alert.threshold.terms.actions and alert.span.end > now:
            acting.append((number, alert))
            tellings[number] = told
    await record_events(connection, events, now=now)
    if acting:
        commands = await _commands(connection, acting, tellings)
        await enqueue_commands(connection, commands, now=now)


async def _commands(
    connection: Connection,
    raised: Sequence[tuple[int, NewAlert]],
    told: Mapping[int, Mapping[str, object]],
) -> list[NewCommand]:
    """Return what alerts tell their devices; nobody is throttled less than by an earlier alert."""
    commands: list[NewCommand] = []
    fleet_nos = {alert.threshold.fleet_no for _, alert in raised}
    restraining = {number: await restraining_alerts(connection, number) for number in fleet_nos}
    devices: dict[int, list[int]] = {}
    for number, alert in raised:
        fleet_no = alert.threshold.fleet_no
        if alert.device_no is None and fleet_no not in devices:
            devices[fleet_no] = await device_nos_of_fleet(connection, fleet_no)
        rates = _rates(each for each in restraining[fleet_no] if each.alert_no < number)
        commands += (
            NewCommand(
                device_no=device_no,
                kind=CommandKind(action["kind"]),
                payload={**told[number], **_parameters(action)},
                cause=f"alert:{number}",
                published_at=alert.published_at,
                expires_at=alert.span.end,
            )
            for device_no in (devices[fleet_no] if alert.device_no is None else [alert.device_no])
            for action in alert.threshold.terms.actions
            if action["kind"] != CommandKind.THROTTLE
            or _is_stricter(action["octets_per_second"], rates, device_no)
        )
    return commands


def _parameters(action: Action) -> dict[str, object]:
    return {name: value for name, value in action.items() if name != "kind"}


def _restrains(action: Action) -> bool:
    return action["kind"] in {CommandKind.THROTTLE, CommandKind.SUSPEND}


async def _told_of(connection: Connection, fleet_no: int, device_no: int | None) -> list[int]:
    if device_no is not None:
        return [device_no]
    return await device_nos_of_fleet(connection, fleet_no)


def _rates(alerts: Iterable[OpenAlert]) -> dict[int, int]:
    """Return the least rate that alerts leave to a device; a fleet's is that of device 0."""
    rates: dict[int, int] = {}
    for alert in alerts:
        for action in alert.actions:
            if action["kind"] == CommandKind.THROTTLE:
                owner = alert.device_no or WHOLE_FLEET
                rates[owner] = min(
                    rates.get(owner, action["octets_per_second"]), action["octets_per_second"]
                )
    return rates


def _is_stricter(rate: int, rates: Mapping[int, int], device_no: int) -> bool:
    """Whether a rate is less than what earlier alerts leave to a device."""
    return all(rate < rates[owner] for owner in (device_no, WHOLE_FLEET) if owner in rates)


def unit_of(threshold: Threshold, currency: str) -> str:
    """Return what a threshold's value counts: its meter's base unit, or a currency."""
    if threshold.measure is Measure.SPEND or threshold.meter_no is None:
        return currency
    return METERS_BY_NO[threshold.meter_no].unit


def amount_text(count: int, per_unit: int) -> str:
    """Write a count of which `per_unit` make one as a decimal string."""
    return decimal_text(Fraction(count, per_unit))


# Under the limit again, and the end of a period ----------------------------------------------------


async def reconsider(
    connection: Connection,
    fleet: Fleet,
    *,
    run_no: int,
    threshold_no: int | None = None,
    now: datetime,
) -> list[int]:
    """Clear the alerts of present periods whose value is under the limit again; return their numbers.

    Called after more was granted or a limit was raised. What they throttled or suspended is resumed,
    unless another alert restrains it too; a later crossing of the same threshold raises a new alert.
    """
    alerts = await open_alerts(connection, fleet.fleet_no, threshold_no=threshold_no, now=now)
    if not alerts:
        return []
    tally_nos = [tally.tally_no for tally in await fleet_tallies(connection, fleet.fleet_no)]
    thresholds = await enabled_thresholds(connection, tally_nos)
    live = {each.threshold_no: each for each in thresholds}
    keys = {
        (threshold.tally_no or 0, alert.device_no or WHOLE_FLEET, alert.span.start)
        for alert in alerts
        if (threshold := live.get(alert.threshold_no)) is not None
    }
    standings = await standings_at(
        connection, thresholds, keys, {fleet.fleet_no: calendars_of(fleet)}, now=now
    )
    over = {each.subject for each in standings if is_crossed(each.value, each.limit)}
    under = [
        alert
        for alert in alerts
        if (alert.threshold_no, alert.device_no, alert.span.start) not in over
    ]
    if not under:
        return []
    await clear_alerts(connection, [each.alert_no for each in under], run_no=run_no, now=now)
    await record_events(
        connection,
        [
            NewEvent(
                tenant_no=alert.tenant_no,
                fleet_no=alert.fleet_no,
                device_no=alert.device_no,
                kind=ALERT_CLEARED,
                payload={
                    "alert_no": alert.alert_no,
                    "threshold_no": alert.threshold_no,
                },
                cause=f"alert:{alert.alert_no}",
            )
            for alert in under
        ],
        now=now,
    )
    await release(connection, fleet.fleet_no, under, now=now)
    return [each.alert_no for each in under]


async def release(
    connection: Connection, fleet_no: int, alerts: Sequence[OpenAlert], *, now: datetime
) -> None:
    """Let go what alerts throttled or suspended, once each.

    A device that other alerts restrain too is told what those leave it.
    """
    holding = await restraining_alerts(connection, fleet_no)
    ending = {each.alert_no for each in alerts}
    commands: list[NewCommand] = []
    for alert in [each for each in holding if each.alert_no in ending]:
        before, holding = holding, [each for each in holding if each is not alert]
        for device_no in await _told_of(connection, fleet_no, alert.device_no):
            was, is_now = _restraint(before, device_no), _restraint(holding, device_no)
            commands += _easing(alert, device_no, was, is_now)
    await mark_released(connection, sorted(ending), now=now)
    await enqueue_commands(connection, commands, now=now)


class _Restraint(NamedTuple):
    suspended: bool
    octets_per_second: int | None


def _restraint(alerts: Iterable[OpenAlert], device_no: int) -> _Restraint:
    of_device = [each for each in alerts if each.device_no in {None, device_no}]
    rates = _rates(of_device)
    suspended = any(
        action["kind"] == CommandKind.SUSPEND for each in of_device for action in each.actions
    )
    return _Restraint(suspended, min(rates.values(), default=None))


def _easing(
    alert: OpenAlert, device_no: int, was: _Restraint, is_now: _Restraint
) -> Iterator[NewCommand]:
    """Return what takes a device from one restraint to a lesser one; nothing while it is suspended."""
    if is_now.suspended or was == is_now:
        return
    kinds: list[tuple[CommandKind, dict[str, object]]] = []
    if was.suspended or is_now.octets_per_second is None:
        kinds.append((CommandKind.RESUME, {}))
    if is_now.octets_per_second is not None:
        rate: dict[str, object] = {"octets_per_second": is_now.octets_per_second}
        kinds.append((CommandKind.THROTTLE, rate))
    for kind, payload in kinds:
        yield NewCommand(
            device_no=device_no,
            kind=kind,
            payload={"alert_no": alert.alert_no, **payload},
            cause=f"alert:{alert.alert_no}:released",
            published_at=None,
            expires_at=None,
        )


async def release_due(connection: Connection, *, now: datetime) -> int:
    """Resume what alerts restrain whose period has ended; return of how many fleets.

    Each fleet's is a transaction of its own. One that somebody else is charging is left for the next
    look.
    """
    released = 0
    async with connection.transaction():
        due = await fleets_to_release(connection, now)
    for fleet_no, shard_no in due:
        async with connection.transaction():
            if not await try_lock_shard(connection, shard_no):
                continue
            restraining = await restraining_alerts(connection, fleet_no)
            ended = [each for each in restraining if each.span.end <= now]
            await release(connection, fleet_no, ended, now=now)
        released += 1
    return released
