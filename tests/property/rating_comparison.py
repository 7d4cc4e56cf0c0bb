"""Two ratings of one case: by the core and by the naive reference, in one form to compare."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from itertools import zip_longest
from typing import Any, NamedTuple

from metering.plan_document import read_plan, terms_of
from metering.rating.bucket import BucketKind
from metering.rating.statement import Line
from metering.whatif.command import units_of
from metering.whatif.run import RatedPeriod, RatedRecord, RatingRun, rate
from metering.whatif.state_file import calendar_of, read_state
from metering.whatif.usage_file import read_instant, read_usage
from tests.reference import naive

Doc = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What `fleetmeter rate` is given, as documents."""

    plans: Sequence[Doc]
    usage: Sequence[Doc]
    state: Doc | None = None
    since: str | None = None
    until: str | None = None


class Record(NamedTuple):
    """One record; quantities are whole numbers of the smallest countable unit."""

    line: int
    start: datetime
    device: str
    meter: str
    plan: str
    variant: int | None
    band: str | None
    quantity: int
    billed: int
    draws: dict[str, int]
    money: dict[str, Fraction]
    priced: int
    amount: Fraction


LineKey = tuple[str, str, str, int | None]
"""(kind, plan, name, variant)"""


@dataclass
class Period:
    """One period: its records in the order in which they were rated, and what they come to."""

    start: datetime
    end: datetime
    records: list[Record] = field(default_factory=list)
    lines: dict[LineKey, Fraction] = field(default_factory=dict)
    exact: Fraction = Fraction(0)
    total: Decimal = Decimal(0)
    from_money: Fraction = Fraction(0)
    due: Decimal = Decimal(0)


@dataclass
class Outcome:
    """All periods, and what was not rated: the numbers of rejected lines."""

    periods: list[Period]
    rejected: list[int]
    duplicates: int
    outside: int


def run_core(case: Case) -> RatingRun:
    """Rate by the core, as the command does."""
    plans = [terms_of(read_plan(doc)) for doc in case.plans]
    state = read_state(case.state)
    calendar = calendar_of(state, plans)

    def instant(text: str | None) -> datetime | None:
        return None if text is None else read_instant(text, calendar.time_zone, "time")

    units = units_of(plans)
    usage = read_usage(
        [json.dumps(doc) for doc in case.usage],
        meters=units,
        time_zone=calendar.time_zone,
        default_time=instant(case.since),
    )
    return rate(
        plans=plans,
        usage=usage,
        state=state,
        units=units,
        calendar=calendar,
        from_=instant(case.since),
        to=instant(case.until),
    )


def by_core(case: Case) -> Outcome:
    """Rate by the core."""
    run = run_core(case)
    return Outcome(
        periods=[_core_period(run, period) for period in run.periods],
        rejected=[line.line for line in run.rejected],
        duplicates=run.duplicates,
        outside=run.outside,
    )


def _core_period(run: RatingRun, period: RatedPeriod) -> Period:
    found = Period(period.cycle.start, period.cycle.end)
    found.records = [core_record(run, rated) for rated in period.records]
    for line in period.statement.lines:
        _add(found, _core_key(run, line), line.exact)
    found.exact = period.statement.exact
    found.total = period.statement.total
    found.from_money = sum((one for r in found.records for one in r.money.values()), Fraction(0))
    found.due = period.statement.due
    return found


def _core_key(run: RatingRun, line: Line) -> LineKey:
    return (line.kind.value, run.plans[line.plan_no].plan, line.name, line.label)


def _add(period: Period, key: LineKey, exact: Fraction) -> None:
    total = period.lines.pop(key, Fraction(0)) + exact
    if total:
        period.lines[key] = total


def core_record(run: RatingRun, rated: RatedRecord) -> Record:
    """Return one of the core's records in the form to compare."""
    record, parts = rated.charge
    terms = run.plans[record.subscription.plan_no]
    draws: dict[str, int] = {}
    money: dict[str, Fraction] = {}
    for draw in parts.draws:
        name = draw.bucket.name
        if draw.bucket.kind is BucketKind.MONEY:
            money[name] = money.get(name, Fraction(0)) + terms.money(draw.quantity).exact
        else:
            draws[name] = draws.get(name, 0) + draw.quantity
    return Record(
        line=rated.line,
        start=record.start,
        device=rated.device,
        meter=rated.meter,
        plan=terms.plan,
        variant=terms.meters[rated.meter].label(record.variant),
        band=record.band,
        quantity=record.quantity,
        billed=parts.billed,
        draws=draws,
        money=money,
        priced=parts.overage,
        amount=terms.money(parts.amount).exact,
    )


def by_naive(case: Case) -> Outcome:
    """Rate by the naive reference."""
    rated = naive.rate(case.plans, case.usage, case.state, case.since, case.until)
    return Outcome(
        periods=[_naive_period(period) for period in rated["periods"]],
        rejected=[line for line, _ in rated["rejected"]],
        duplicates=rated["duplicates"],
        outside=rated["outside"],
    )


def _naive_period(period: naive.Period) -> Period:
    found = Period(period["from"], period["to"])
    found.records = [
        Record(
            line=record["line"],
            start=record["from"],
            device=record["device"],
            meter=record["meter"],
            plan=record["plan"],
            variant=record["variant"],
            band=record["band"],
            quantity=record["quantity"],
            billed=record["billed"],
            draws=dict(record["draws"]),
            money=dict(record["money"]),
            priced=record["priced"],
            amount=record["amount"],
        )
        for record in period["records"]
    ]
    for line in period["lines"]:
        _add(found, (line.kind, line.plan, line.name, line.variant), line.amount)
    found.exact = sum((line.amount for line in period["lines"]), Fraction(0))
    found.total = period["total"]
    found.from_money = period["from_money"]
    found.due = period["due"]
    return found


def assert_same(case: Case) -> Outcome:
    """Rate both ways, compare everything, and return the core's outcome."""
    core, plain = by_core(case), by_naive(case)
    found = list(_differences(core, plain))
    assert not found, "\n".join(found)
    return core


def _differences(core: Outcome, plain: Outcome) -> Iterator[str]:
    """Say what differs: each as what the core has, then what the reference has."""
    for name in ("rejected", "duplicates", "outside"):
        yield from _different(name, getattr(core, name), getattr(plain, name))
    for one, other in zip_longest(core.periods, plain.periods):
        if one is None or other is None:
            yield f"period: {one} / {other}"
            continue
        for record, expected in zip_longest(one.records, other.records):
            if record is None or expected is None:
                yield f"record: {record} / {expected}"
                continue
            for name in Record._fields:
                place = f"{expected.start} line {expected.line} {name}"
                yield from _different(place, getattr(record, name), getattr(expected, name))
        for name in ("start", "end", "lines", "exact", "from_money", "total", "due"):
            place = f"{other.start} {name}"
            yield from _different(place, getattr(one, name), getattr(other, name))


def _different(place: str, one: object, other: object) -> Iterator[str]:
    if one != other:
        yield f"{place}: {_shown(one)} / {_shown(other)}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return str({key: _shown(one) for key, one in value.items()})
    return str(value)
