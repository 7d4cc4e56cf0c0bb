"""The promises of thresholds, held against a plain walk through a fleet's charges in their order.

Limits that are amounts are walked through exactly, where nothing was charged again. Of shares, those
of what is granted once a cycle are. What is there of the others is the audit's to say.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from metering.rating.threshold import Measure, Per, Recurrence
from metering.usage import METERS_BY_NO
from tests.reference.spans import cycle_of, local_day, midnight
from tests.simulation.scenes import AskedThreshold, SimulatedFleet

if TYPE_CHECKING:
    from tests.simulation.promises import Charged, Found
    from tests.simulation.world import World

Subject = tuple[int | None, datetime]
"""(device_no, beginning of the period)"""
_ALLOWANCE = {"data": 4000, "sms": 3, "voice": 60}
"""What plan `own` allows a device in a cycle."""


@dataclass(slots=True)
class _Alert:
    run_no: int
    value: Fraction
    limit: Fraction
    reading: tuple[str, str, str, int] | None
    cleared_run_no: int | None = None


@dataclass(slots=True)
class _Walk:
    """One subject's way through a threshold: what was counted, and which alerts that raised."""

    value: Fraction = Fraction(0)
    alerts: list[_Alert] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return bool(self.alerts) and self.alerts[-1].cleared_run_no is None


async def check_alerts(world: "World", found: "Found") -> list[str]:
    """Return what of the promises of thresholds is broken."""
    cursor = await world.admin.execute(
        "SELECT threshold_no, run_no, limit_value, percent, actions, enabled, deleted, changed_at"
        " FROM threshold_change ORDER BY threshold_no, run_no"
    )
    changes: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in await cursor.fetchall():
        changes[row[0]].append(row[1:])
    cursor = await world.admin.execute(
        "SELECT threshold_no, device_no, period_start, occasion, per_unit, value, limit_value, run_no,"
        " cleared_run_no, boot_no, seq FROM alert ORDER BY alert_no"
    )
    raised: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in await cursor.fetchall():
        raised[row[0]].append(row[1:])
    asked = {number: each for fleet in world.fleets for number, each in fleet.limits.items()}
    problems = []
    if changes.keys() != asked.keys():
        problems.append(f"thresholds are {sorted(changes)}, asked were {sorted(asked)}")
    for fleet in world.fleets:
        for number, each in fleet.limits.items():
            problems += _said(number, each, changes[number])
            if not fleet.corrected:
                problems += _walked(
                    world, fleet, found, (number, each), (changes[number], raised[number])
                )
    return problems


def _said(number: int, asked: AskedThreshold, changes: list[tuple[Any, ...]]) -> Iterator[str]:
    """Hold what a threshold said, run by run, to what the operator wanted, each once."""
    wanted = [
        (each.limit, each.percent, list(each.actions), each.enabled, False) if each else None
        for each in asked.said
    ]
    said = [(row[1], row[2], row[3], row[4], row[5]) for row in changes]
    if wanted[-1] is None and len(wanted) > 1:
        before = wanted[-2]
        assert before is not None
        wanted[-1] = (*before[:3], False, True)
    if said != wanted:
        yield f"threshold {number} said {said}, asked was {wanted}"


def _walked(
    world: "World",
    fleet: SimulatedFleet,
    found: "Found",
    threshold: tuple[int, AskedThreshold],
    stored: tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]],
) -> Iterator[str]:
    number, asked = threshold
    changes, raised = stored
    if asked.new.measure.is_share and not _is_plain_share(fleet, asked, found):
        return
    if not changes:
        return
    expected = _walk(world, fleet, found, asked, changes)
    made: dict[Subject, list[tuple[Any, ...]]] = defaultdict(list)
    for device_no, start, occasion, per_unit, value, limit, run_no, cleared, boot_no, seq in raised:
        made[device_no, start].append(
            (occasion, run_no, Fraction(int(value), int(per_unit)),
             Fraction(int(limit), int(per_unit)), cleared,
             (boot_no, seq))
        )  # fmt: skip
    told: dict[Subject, list[tuple[Any, ...]]] = {
        subject: [
            (occasion, each.run_no, each.value, each.limit, each.cleared_run_no,
             (None, None) if each.reading is None
             else (found.boots[each.reading[:3]], each.reading[3]))
            for occasion, each in enumerate(walk.alerts, 1)
        ]
        for subject, walk in expected.items()
        if walk.alerts
    }  # fmt: skip
    for subject in made.keys() | told.keys():
        if made.get(subject, []) != told.get(subject, []):
            yield (
                f"threshold {number} ({asked.new.measure} {asked.new.per} {asked.new.period}) raised"
                f" {made.get(subject)} for {subject}, its charges say {told.get(subject)}"
            )


def _is_plain_share(fleet: SimulatedFleet, asked: AskedThreshold, found: "Found") -> bool:
    """Whether what a share is of follows from the plan alone."""
    new = asked.new
    charged_before = any(
        each.fleet_no == fleet.fleet.fleet_no and each.cycle_start < fleet.began
        for charges in found.charges.values()
        for each in charges
    )
    return (
        fleet.kind == "own"
        and not fleet.changed
        and not charged_before
        and new.measure is Measure.ALLOWANCE
        and new.period is Recurrence.CYCLE
        and METERS_BY_NO[new.meter_no or 0].meter in _ALLOWANCE
    )


def _walk(  # noqa: C901 - one walk
    world: "World",
    fleet: SimulatedFleet,
    found: "Found",
    asked: AskedThreshold,
    changes: list[tuple[Any, ...]],
) -> dict[Subject, _Walk]:
    """Walk through what was charged and said in the order of runs."""
    del world
    begins = _span(fleet, asked.new.period, changes[0][6])[0]
    walks: dict[Subject, _Walk] = defaultdict(_Walk)
    runs: dict[int, list[Charged]] = defaultdict(list)
    for charges in found.charges.values():
        for each in charges:
            if _counts(fleet, asked, each):
                runs[each.place[0]].append(each)
    at_run = {row[0]: row for row in changes}
    said: tuple[Any, ...] | None = None
    for run_no in sorted({*runs, *at_run}):
        if run_no in at_run:
            said = at_run[run_no]
            _change(fleet, asked, walks, said)
            continue
        steps: dict[Subject, list[tuple[Charged, Fraction]]] = defaultdict(list)
        for each in sorted(runs[run_no], key=lambda one: (one.place, one.part)):
            start, _ = _span(fleet, asked.new.period, each.usage_from)
            amount = _amount(asked, found, each)
            if start >= begins and amount:
                owner = each.device_no if asked.new.per is Per.DEVICE else None
                steps[owner, start].append((each, amount))
        for subject, way in steps.items():
            walk = walks[subject]
            before = walk.value
            walk.value += sum((step for _, step in way), Fraction(0))
            limit = _limit(asked, said)
            if said is None or not said[4] or walk.is_open or walk.value < limit:
                continue
            crossing = way[0][0]
            for each, step in way:
                before += step
                if before >= limit:
                    crossing = each
                    break
            walk.alerts.append(_Alert(run_no, walk.value, limit, crossing.name))
    return walks


def _change(
    fleet: SimulatedFleet,
    asked: AskedThreshold,
    walks: dict[Subject, _Walk],
    said: tuple[Any, ...],
) -> None:
    """Clear what is under the limit now, and raise what is over it, of the present period."""
    run_no, _, _, _, enabled, _, now = said
    limit = _limit(asked, said)
    for (_, start), walk in walks.items():
        first, end = _span(fleet, asked.new.period, start)
        is_over = enabled and walk.value >= limit
        if walk.is_open and not is_over and end > now:
            walk.alerts[-1].cleared_run_no = run_no
        if is_over and not walk.is_open and first <= now < end:
            walk.alerts.append(_Alert(run_no, walk.value, limit, None))


def _limit(asked: AskedThreshold, said: tuple[Any, ...] | None) -> Fraction:
    if said is None:
        return Fraction(0)
    base = (
        Fraction(_ALLOWANCE[METERS_BY_NO[asked.new.meter_no or 0].meter])
        if said[1] is None
        else Fraction(said[1])
    )
    return base * Fraction(said[2]) / 100


def _counts(fleet: SimulatedFleet, asked: AskedThreshold, charged: "Charged") -> bool:
    return (
        charged.fleet_no == fleet.fleet.fleet_no
        and asked.new.meter_no in {None, charged.meter_no}
        and asked.new.device_no in {None, charged.device_no}
    )


def _amount(asked: AskedThreshold, found: "Found", charged: "Charged") -> Fraction:
    if asked.new.measure is Measure.SPEND:
        return Fraction(charged.amount, found.plans[charged.plan_no].subunits_per_unit)
    if asked.new.measure is Measure.ALLOWANCE:
        return Fraction(charged.from_allowance)
    return Fraction(charged.quantity)


def _span(fleet: SimulatedFleet, period: Recurrence, at: datetime) -> tuple[datetime, datetime]:
    zone = ZoneInfo(fleet.fleet.time_zone)
    if period is Recurrence.CYCLE:
        cycle = cycle_of(
            zone, fleet.fleet.cycle_months, fleet.fleet.anchor_day, fleet.fleet.anchor_month
        )
        span = cycle.period(cycle.number_at(at))
        return span.start, span.end
    day: date = local_day(at, zone)
    return midnight(day, zone), midnight(day + timedelta(days=1), zone)
