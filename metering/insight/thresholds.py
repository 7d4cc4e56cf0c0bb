"""The audit of thresholds: what counts towards them, and each alert, replayed from the charges.

An alert of an amount is replayed exactly: in which run, at which value, by which reading. What a share
is of changes with every grant, so an alert of a share is held to its own limit, and one that is missing
is found where the value reaches the share of all that was ever granted.
"""

from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction

from metering.rating.threshold import (
    WHOLE_FLEET,
    Calendars,
    Counted,
    CountKey,
    Counts,
    Measure,
    Parts,
    Tallies,
    Tally,
    crossed_at,
    is_crossed,
    limit_of,
    value_of,
)
from metering.store.connection import Connection
from metering.store.registry import Fleet, calendar_of
from metering.store.threshold_audit import StoredAlert, counted_charges, most_granted, stored_alerts
from metering.store.thresholds import (
    Lots,
    Subject,
    Terms,
    Threshold,
    ThresholdChange,
    fleet_counts,
    fleet_tallies,
    fleet_thresholds,
    threshold_changes,
)

Reading = tuple[int, int]
"""(boot_no, seq)"""


async def audit_thresholds(connection: Connection, fleet: Fleet) -> list[str]:
    """Return every difference between what is kept of a fleet's thresholds and what its charges say."""
    thresholds = await fleet_thresholds(connection, fleet.fleet_no)
    tallies = await fleet_tallies(connection, fleet.fleet_no)
    if not thresholds and not tallies:
        return []
    calendars = Calendars(calendar_of(fleet))
    changes = await threshold_changes(connection, fleet.fleet_no)
    alerts = await stored_alerts(connection, fleet.fleet_no)
    replay = ThresholdReplay(
        thresholds=thresholds, tallies=tallies, changes=changes, alerts=alerts, calendars=calendars
    )
    since = min(each.counted_from for each in replay.sums)
    async for run_no, reading, counted in counted_charges(connection, fleet.fleet_no, since):
        replay.charge(run_no, reading, counted)
    replay.finish()
    replay.compare_counts(await fleet_counts(connection, fleet.fleet_no))
    granted = await most_granted(connection, replay.shares_of())
    replay.compare_shares(granted)
    return replay.differences


@dataclass(slots=True)
class _Watched:
    """A threshold with its history, and what it said last."""

    threshold: Threshold
    sum_no: int
    terms: Terms | None = None
    deleted: bool = False

    @property
    def looks(self) -> bool:
        return self.terms is not None and self.terms.enabled and not self.deleted

    @property
    def percent(self) -> Fraction:
        return Fraction(self.terms.percent) if self.terms else Fraction(0)

    def limit(self) -> Fraction | None:
        """Return what it is crossed at; None of a share."""
        if self.terms is None or self.terms.limit is None:
            return None
        return limit_of(Fraction(self.terms.limit), Fraction(self.terms.percent), 0)


@dataclass(slots=True, kw_only=True)
class ThresholdReplay:
    """A fleet's counts and alerts as they grow from nothing, and every difference found on the way."""

    thresholds: list[Threshold]
    tallies: list[Tally]
    changes: dict[int, list[ThresholdChange]]
    alerts: list[StoredAlert]
    calendars: Calendars
    differences: list[str] = field(default_factory=list)
    sums: list[Tally] = field(init=False)
    """What is added up here: one for each sum that a tally or a threshold looks at."""
    counts: Counts = field(default_factory=dict)
    _watching: dict[int, list[_Watched]] = field(default_factory=dict)
    """Which thresholds look at each of `sums`, by its number."""
    _watched: dict[int, _Watched] = field(default_factory=dict)
    """The same by their own numbers."""
    _sum_of_tally: dict[int, Tally] = field(default_factory=dict)
    _tallies: Tallies = field(init=False)
    _due: list[tuple[int, _Watched, ThresholdChange]] = field(default_factory=list)
    _raised: dict[int, list[StoredAlert]] = field(default_factory=dict)
    _cleared: dict[int, list[StoredAlert]] = field(default_factory=dict)
    _open: dict[Subject, StoredAlert | None] = field(default_factory=dict)
    _occasions: dict[Subject, int] = field(default_factory=dict)
    _known: set[int] = field(default_factory=set)
    """Alerts that the replay came to."""
    _run_no: int = 0
    _steps: dict[CountKey, list[tuple[Reading | None, Fraction]]] = field(default_factory=dict)
    _unraised: dict[Subject, tuple[_Watched, Fraction, Fraction]] = field(default_factory=dict)
    """What shares came to of which no alert is open: (whose, percent, value)."""

    def __post_init__(self) -> None:
        found: dict[tuple[object, ...], Tally] = {}
        every: list[Tally | Threshold] = [*self.tallies, *self.thresholds]
        for of in every:
            start = of.counted_from if isinstance(of, Tally) else of.holds_from
            key = (of.device_no, of.per, of.measure, of.meter_no, of.period)
            known = found.get(key)
            found[key] = Tally(
                tally_no=known.tally_no if known else len(found) + 1,
                fleet_no=of.fleet_no,
                device_no=of.device_no,
                per=of.per,
                measure=of.measure,
                meter_no=of.meter_no,
                period=of.period,
                counted_from=min(start, known.counted_from) if known else start,
            )
        self.sums = list(found.values())
        self._tallies = Tallies(self.sums)
        for tally in self.tallies:
            key = (tally.device_no, tally.per, tally.measure, tally.meter_no, tally.period)
            self._sum_of_tally[tally.tally_no] = found[key]
        for threshold in self.thresholds:
            key = (
                threshold.device_no, threshold.per, threshold.measure, threshold.meter_no,
                threshold.period,
            )  # fmt: skip
            of_sum = found[key]
            changes = self.changes.get(threshold.threshold_no, [])
            watched = self._watched[threshold.threshold_no] = _Watched(threshold, of_sum.tally_no)
            self._watching.setdefault(of_sum.tally_no, []).append(watched)
            self._due += [(change.run_no, watched, change) for change in changes]
            self._compare_terms(threshold, changes)
            if threshold.deleted_at is None:
                kept = self._sum_of_tally.get(threshold.tally_no or 0)
                if kept is not of_sum:
                    self._differs(
                        threshold, f"looks at tally {threshold.tally_no}, which is not its own"
                    )
        self._due.sort(key=lambda each: each[0], reverse=True)
        for alert in self.alerts:
            self._raised.setdefault(alert.run_no, []).append(alert)
            if alert.cleared_run_no is not None:
                self._cleared.setdefault(alert.cleared_run_no, []).append(alert)

    def charge(self, run_no: int, reading: Reading | None, counted: Counted) -> None:
        """Count one charge; charges come in charging order."""
        if run_no != self._run_no:
            self._end_run()
            self._change_until(run_no)
            self._run_no = run_no
        for key, per_unit, count in self._tallies.increases(counted, self.calendars):
            parts = self.counts.setdefault(key, {})
            parts[per_unit] = parts.get(per_unit, 0) + count
            self._steps.setdefault(key, []).append((reading, Fraction(count, per_unit)))

    def finish(self) -> None:
        """Replay what came after the last charge, and name the alerts that nothing explains."""
        self._end_run()
        self._change_until(None)
        for alert in self.alerts:
            if alert.alert_no not in self._known:
                self.differences.append(
                    f"alert {alert.alert_no} is raised, replay says none was due"
                )

    def compare_counts(self, stored: Counts) -> None:
        """Compare the kept counts with the replayed ones."""
        kept = {key: _whole(parts) for key, parts in stored.items()}
        replayed: Counts = {}
        for tally in self.tallies:
            of_sum = self._sum_of_tally[tally.tally_no]
            for key, parts in self.counts.items():
                if key[0] == of_sum.tally_no and key[2] >= tally.counted_from:
                    replayed[tally.tally_no, key[1], key[2]] = _whole(parts)
        for count in sorted(kept.keys() | replayed.keys()):
            stored_parts, again = kept.get(count, {}), replayed.get(count, {})
            if stored_parts != again:
                self.differences.append(
                    f"threshold count {count}: stored {stored_parts}, replay says {again}"
                )

    def shares_of(self) -> list[Lots]:
        """Return the lots of which shares were used without an alert."""
        return [self._lots(subject, watched) for subject, (watched, _, _) in self._unraised.items()]

    def compare_shares(self, granted: dict[Lots, int]) -> None:
        """Name the alerts that are missing whatever part of what was granted was there at the time."""
        for subject, (watched, percent, value) in self._unraised.items():
            most = granted.get(self._lots(subject, watched), 0)
            if is_crossed(value, limit_of(None, percent, most)):
                self._missing(watched.threshold, subject, value)

    def _lots(self, subject: Subject, watched: _Watched) -> Lots:
        threshold = watched.threshold
        span = self.calendars.span(threshold.period, subject[2])
        owner = threshold.fleet_no
        if threshold.measure is Measure.ALLOWANCE:
            owner = subject[1] or WHOLE_FLEET
        return (threshold.measure, owner, threshold.meter_no or 0, span)

    def _end_run(self) -> None:
        """Look at what a charging run counted."""
        self._clear(self._run_no)
        for key, steps in self._steps.items():
            for watched in self._watching.get(key[0], ()):
                changed = steps[0][0] is not None or sum(step for _, step in steps) != 0
                if changed and watched.looks and key[2] >= watched.threshold.holds_from:
                    self._look(watched, key, self._run_no, steps)
        self._steps.clear()

    def _change_until(self, run_no: int | None) -> None:
        """Change thresholds and clear alerts up to a charging run."""
        while True:
            runs = [number for number in self._cleared if run_no is None or number < run_no]
            if self._due and (run_no is None or self._due[-1][0] < run_no):
                runs.append(self._due[-1][0])
            if not runs:
                return
            now = min(runs)
            changed: list[tuple[_Watched, ThresholdChange]] = []
            while self._due and self._due[-1][0] == now:
                _, watched, change = self._due.pop()
                watched.terms, watched.deleted = change.terms, change.deleted
                changed.append((watched, change))
            self._clear(now)
            for watched, change in changed:
                self._look_again(watched, change)

    def _clear(self, run_no: int) -> None:
        for alert in self._cleared.pop(run_no, ()):
            subject = (alert.threshold_no, alert.device_no, alert.period_start)
            watched = self._watched.get(alert.threshold_no)
            if watched is not None and watched.looks:
                value, limit = self._value(watched, subject), watched.limit()
                if is_crossed(value, limit):
                    self.differences.append(
                        f"alert {alert.alert_no} is cleared in run {run_no}, replay says the value is"
                        f" {value} then, the limit {limit}"
                    )
            self._open.pop(subject, None)

    def _look_again(self, watched: _Watched, change: ThresholdChange) -> None:
        """Look at a threshold that changed: its present period, and its alerts that are open there."""
        threshold = watched.threshold
        start = self.calendars.span(threshold.period, change.changed_at).start
        for subject, alert in self._open.items():
            if subject[0] != threshold.threshold_no or alert is None:
                continue
            if alert.period_end <= change.changed_at:
                continue
            limit = watched.limit()
            if not watched.looks or (
                limit is not None and not is_crossed(self._value(watched, subject), limit)
            ):
                self.differences.append(
                    f"alert {alert.alert_no} is not cleared in run {change.run_no}, replay says it is"
                )
        if watched.looks:
            of_period = [key for key in self.counts if key[0] == watched.sum_no and key[2] == start]
            for key in of_period:
                self._look(watched, key, change.run_no, [])

    def _look(
        self,
        watched: _Watched,
        key: CountKey,
        run_no: int,
        steps: list[tuple[Reading | None, Fraction]],
    ) -> None:
        """Hold what a threshold came to in a run against the alert that was raised, or was not."""
        threshold = watched.threshold
        subject = (threshold.threshold_no, key[1] or None, key[2])
        if subject in self._open:
            return
        value, limit = value_of(self.counts[key]), watched.limit()
        stored = self._stored(run_no, subject)
        if threshold.measure.is_share:
            if stored is None:
                self._unraised[subject] = (watched, watched.percent, value)
                return
            self._unraised.pop(subject, None)
            limit = Fraction(stored.limit, stored.per_unit)
            if not self._is_share(watched, limit, value):
                self.differences.append(
                    f"alert {stored.alert_no} has the limit {limit}, which is no"
                    f" {watched.percent} % of what can have been there"
                )
        elif not is_crossed(value, limit):
            return
        self._occasions[subject] = self._occasions.get(subject, 0) + 1
        self._open[subject] = stored
        if stored is None:
            self._missing(threshold, subject, value)
            return
        self._known.add(stored.alert_no)
        reading = None
        if steps and limit is not None:
            before = value - sum(step for _, step in steps)
            reading = steps[crossed_at(before, (step for _, step in steps), limit)][0]
        kept = (
            Fraction(stored.value, stored.per_unit), Fraction(stored.limit, stored.per_unit),
            stored.occasion, stored.reading, stored.period_end,
        )  # fmt: skip
        span = self.calendars.span(threshold.period, key[2])
        again = (value, limit, self._occasions[subject], reading, span.end)
        if kept != again:
            self.differences.append(
                f"alert {stored.alert_no}: stored {_told(kept)}, replay says {_told(again)}"
            )

    @staticmethod
    def _is_share(watched: _Watched, limit: Fraction, value: Fraction) -> bool:
        if limit <= 0 or value < limit:
            return False
        available = limit * 100 / watched.percent
        return available.denominator == 1 and available >= value

    def _stored(self, run_no: int, subject: Subject) -> StoredAlert | None:
        for alert in self._raised.get(run_no, ()):
            if (alert.threshold_no, alert.device_no, alert.period_start) == subject:
                return alert
        return None

    def _value(self, watched: _Watched, subject: Subject) -> Fraction:
        key = (watched.sum_no, subject[1] or WHOLE_FLEET, subject[2])
        return value_of(self.counts.get(key, {}))

    def _compare_terms(self, threshold: Threshold, changes: list[ThresholdChange]) -> None:
        said = changes[-1] if changes else None
        if said is None or (said.terms, said.deleted) != (
            threshold.terms,
            threshold.deleted_at is not None,
        ):
            self._differs(threshold, "does not say what its last change says")

    def _missing(self, threshold: Threshold, subject: Subject, value: Fraction) -> None:
        whose = "its fleet" if subject[1] is None else f"device {subject[1]}"
        self._differs(
            threshold,
            f"is crossed by {whose} in the period from {_instant(subject[2])} at {value},"
            " but has no alert",
        )

    def _differs(self, threshold: Threshold, how: str) -> None:
        self.differences.append(f"threshold {threshold.threshold_no} {how}")


def _whole(parts: Parts) -> Parts:
    return {per_unit: count for per_unit, count in sorted(parts.items()) if count}


def _told(columns: tuple[object, ...]) -> str:
    return "(" + ", ".join(_instant(each) for each in columns) + ")"


def _instant(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
