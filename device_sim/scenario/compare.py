"""What the platform billed and refused, read through its API, beside what was expected."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx

from device_sim.scenario.definition import Scenario, ScenarioFleet
from device_sim.scenario.expected import ExpectedCycle, line_name
from device_sim.scenario.output import Expectation
from metering.period import instant_text

_PAGE = 500
_ADJUSTMENT = "period_adjustment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something that is not what was expected; `amount` is what the platform has more, in money."""

    where: str
    what: str
    expected: str
    found: str
    amount: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was compared, and all that differs."""

    lines: int
    totals: int
    """Cycles that were closed before their usage came: of them, sums are compared."""
    differences: Sequence[Difference]


class Bills:
    """A tenant's bills and refusals, as the API shows them; raises `httpx.HTTPError`."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def bill(self, fleet_id: str, at: datetime) -> Mapping[str, Any]:
        """Return the bill of the cycle that holds an instant."""
        return self._get(f"/v1/fleets/{fleet_id}/bill", at=instant_text(at))

    def rejected(self) -> Counter[str]:
        """Count what was refused by its reason, each content once."""
        found: Counter[str] = Counter()
        cursor: str | None = None
        while True:
            given = {} if cursor is None else {"cursor": cursor}
            page = self._get("/v1/rejected", limit=str(_PAGE), **given)
            found.update(str(each["reason"]) for each in page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    def parked(self) -> Sequence[Mapping[str, Any]]:
        """Return usage that could not be charged, the first page of it."""
        items: Sequence[Mapping[str, Any]] = self._get("/v1/parked", limit=str(_PAGE))["items"]
        return items

    def _get(self, path: str, **query: str) -> Mapping[str, Any]:
        answer = self._client.get(path, params=query)
        answer.raise_for_status()
        document: Mapping[str, Any] = answer.json()
        return document


def compare(
    bills: Bills, scenario: Scenario, expected: Expectation, *, now: datetime
) -> Comparison:
    """Compare every line of every bill, and the refusals."""
    lines = totals = 0
    differences: list[Difference] = []
    for fleet in scenario.fleets:
        owed = _Adjusted(bills, fleet, now)
        for cycle in expected.bills[fleet.fleet_id].cycles:
            bill = bills.bill(fleet.fleet_id, cycle.start)
            where = f"{fleet.fleet_id} {cycle.start.astimezone(UTC):%Y-%m-%d}"
            found = list(_differing_lines(where, cycle, bill))
            if found and bill["state"] == "closed":
                totals += 1
                found = list(_differing_total(where, cycle, bill, owed.of(cycle)))
            else:
                lines += len(cycle.lines)
            differences += found
    differences += _differing_refusals(expected.rejected, bills.rejected())
    differences += [
        Difference(
            where=f"{each['fleet_id']} {each['device_id']}", what=f"parked: {each['reason']}",
            expected="charged", found=str(each["quantity"]),
        )
        for each in bills.parked()
    ]  # fmt: skip
    differences.sort(key=lambda each: (-abs(each.amount), each.where, each.what))
    return Comparison(lines=lines, totals=totals, differences=differences)


class _Adjusted:
    """What bills of later cycles carry of a fleet's closed ones; looked up when first asked for."""

    def __init__(self, bills: Bills, fleet: ScenarioFleet, now: datetime) -> None:
        self._bills, self._fleet, self._now = bills, fleet, now
        self._lines: list[Mapping[str, Any]] | None = None

    def of(self, cycle: ExpectedCycle) -> Sequence[Mapping[str, Any]]:
        """Return the adjustments of a cycle."""
        if self._lines is None:
            self._lines = []
            later = self._fleet.calendar.cycle_at(cycle.start)
            while later.start <= self._now:
                bill = self._bills.bill(self._fleet.fleet_id, later.start)
                self._lines += [each for each in bill["lines"] if each["kind"] == _ADJUSTMENT]
                later = self._fleet.calendar.following(later)
        return [
            each
            for each in self._lines
            if datetime.fromisoformat(each["cycle"]["start"]) == cycle.start
        ]


def _differing_lines(
    where: str, cycle: ExpectedCycle, bill: Mapping[str, Any]
) -> Iterator[Difference]:
    expected = {line_name(line): line for line in cycle.lines}
    found = {line_name(line): line for line in map(_own_line, _own_lines(bill))}
    for name in sorted(expected.keys() | found.keys()):
        wanted, told = expected.get(name), found.get(name)
        if wanted is None or told is None:
            yield Difference(
                where=where, what=name, expected=_sum_text(wanted), found=_sum_text(told),
                amount=_amount(told) - _amount(wanted),
            )  # fmt: skip
            continue
        fields = [field for field in wanted if wanted[field] != told.get(field)]
        for field in fields:
            is_amount = field == "amount" or (field == "exact_amount" and "amount" not in fields)
            yield Difference(
                where=where, what=f"{name}: {field}", expected=str(wanted[field]),
                found=str(told.get(field)),
                amount=_amount(told) - _amount(wanted) if is_amount else Decimal(0),
            )  # fmt: skip


def _differing_total(
    where: str,
    cycle: ExpectedCycle,
    bill: Mapping[str, Any],
    adjustments: Sequence[Mapping[str, Any]],
) -> Iterator[Difference]:
    """Compare the sum of a closed cycle: what it was closed with, and what later bills add to it."""
    carried = [each for each in bill["lines"] if each["kind"] == _ADJUSTMENT]
    total = Decimal(bill["total"])
    total -= sum((Decimal(each["amount"]) for each in carried), Decimal(0))
    total += sum((Decimal(each["amount"]) for each in adjustments), Decimal(0))
    if total != cycle.total:
        yield Difference(
            where=where, what="total with its adjustments", expected=f"{cycle.total:f}",
            found=f"{total:f}", amount=total - cycle.total,
        )  # fmt: skip


def _own_lines(bill: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [each for each in bill["lines"] if each["kind"] != _ADJUSTMENT]


def _own_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the API with the names that an expected one has."""
    told = dict(line)
    told.setdefault("name", line.get("meter"))
    told.setdefault("variant", None)
    for field in ("term_start", "term_end"):
        if told.get(field) is not None:
            told[field] = instant_text(datetime.fromisoformat(told[field]))
    return told


def _differing_refusals(
    expected: Mapping[str, int], found: Mapping[str, int]
) -> Iterator[Difference]:
    for reason in sorted(expected.keys() | found.keys()):
        wanted, told = expected.get(reason, 0), found.get(reason, 0)
        if wanted != told:
            yield Difference(where="rejected", what=reason, expected=str(wanted), found=str(told))


def _amount(line: Mapping[str, Any] | None) -> Decimal:
    return Decimal(0) if line is None else Decimal(line["amount"] or line["exact_amount"])


def _sum_text(line: Mapping[str, Any] | None) -> str:
    return "no line" if line is None else format(_amount(line), "f")


def table(differences: Sequence[Difference]) -> Iterator[str]:
    """Write differences as a table, those of the largest amounts first."""
    rows = [("where", "what", "expected", "found", "more by")]
    rows += [
        (
            each.where,
            each.what,
            each.expected,
            each.found,
            f"{each.amount:f}" if each.amount else "",
        )
        for each in differences
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()
