"""The bills that a scenario's true usage comes to: what `fleetmeter rate` says of it. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from device_sim.scenario.definition import DeviceGroup, Scenario, ScenarioFleet
from device_sim.scenario.traffic import TrueUsage
from metering.errors import InvalidValue
from metering.money import decimal_text
from metering.period import instant_text
from metering.rating.statement import Line, LineKind, Statement
from metering.whatif.command import units_of
from metering.whatif.run import RatingRun, rate
from metering.whatif.state_file import calendar_of, read_state
from metering.whatif.usage_file import UsageFile, read_usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedCycle:
    """A cycle's bill: its lines as the API writes them, and their totals."""

    start: datetime
    end: datetime
    lines: Sequence[Mapping[str, Any]]
    exact: str
    total: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedBill:
    """A fleet's bills for the cycles of a scenario's period."""

    fleet_id: str
    currency: str
    time_zone: str
    cycles: Sequence[ExpectedCycle]


def usage_lines(usage: Iterable[TrueUsage]) -> Iterator[str]:
    """Write true usage as a usage file of `fleetmeter rate`, line by line."""
    for each in usage:
        document: dict[str, object] = {"device": each.device, "meter": each.meter.meter}
        if each.meter.directed:
            document |= {"uplink": each.used[0], "downlink": each.used[1]}
        else:
            document["quantity"] = each.used[0]
        if each.start == each.end:
            document["time"] = instant_text(each.end)
        else:
            document |= {"start": instant_text(each.start), "end": instant_text(each.end)}
        places = {"zone": each.zone, "rat": each.rat, "apn": each.apn}
        document |= {name: place for name, place in places.items() if place is not None}
        yield json.dumps(document, separators=(",", ":")) + "\n"


def state_document(fleet: ScenarioFleet) -> dict[str, object]:
    """Return a fleet's state file of `fleetmeter rate`."""
    return {
        "fleet": {
            "id": fleet.fleet_id,
            "time_zone": fleet.time_zone,
            "anchor_day": fleet.anchor_day,
            "starts": instant_text(fleet.starts),
        },
        "devices": {
            device: _device(group, device) for group in fleet.groups for device in group.devices
        },
    }


def _device(group: DeviceGroup, device: str) -> dict[str, object]:
    begins = instant_text(group.begins)
    plans = [{"plan": group.plan, "from": begins}]
    states = [{"state": "active", "from": begins}]
    for change in group.changes:
        if device not in change.devices:
            continue
        if change.plan is not None:
            plans.append({"plan": change.plan, "from": instant_text(change.at)})
        if change.state is not None:
            states.append({"state": change.state.value, "from": instant_text(change.at)})
    return {"plans": plans, "states": states}


def expected_bill(
    scenario: Scenario, fleet: ScenarioFleet, usage: Sequence[TrueUsage]
) -> ExpectedBill:
    """Rate a fleet's true usage.

    Raises `InvalidValue` where the bill depends on the order in which the platform charges what comes
    at once: nobody could expect anything of it.
    """
    lines = list(usage_lines(usage))
    rated, reversed_ = _rated(scenario, fleet, lines), _rated(scenario, fleet, lines[::-1])
    if rated.rejected:
        first = rated.rejected[0]
        raise InvalidValue(f"fleets.{fleet.fleet_id}", f"{first.field}: {first.problem}", first.fix)
    bill = _bill(fleet, rated)
    for cycle, otherwise in zip(bill.cycles, _bill(fleet, reversed_).cycles, strict=True):
        others = {line_name(line): line for line in otherwise.lines}
        for line in cycle.lines:
            if line != others.get(line_name(line)):
                raise InvalidValue(
                    f"fleets.{fleet.fleet_id}",
                    f"the bill's {line_name(line)} depends on the order in which usage is charged",
                    "price it so that it does not: no allowance for several zones, no tiers or prices"
                    " that differ between those who share a pool",
                )
    return bill


def _rated(scenario: Scenario, fleet: ScenarioFleet, lines: Sequence[str]) -> RatingRun:
    plans = [scenario.terms[name] for name in fleet.plans]
    units = units_of(plans)
    state = read_state(state_document(fleet))
    calendar = calendar_of(state, plans)
    usage: UsageFile = read_usage(
        lines, meters=units, time_zone=calendar.time_zone, default_time=None
    )
    return rate(
        plans=plans,
        usage=usage,
        state=state,
        units=units,
        calendar=calendar,
        from_=scenario.begins,
        to=scenario.ends,
    )


def _bill(fleet: ScenarioFleet, run: RatingRun) -> ExpectedBill:
    return ExpectedBill(
        fleet_id=fleet.fleet_id,
        currency=run.currency,
        time_zone=fleet.time_zone,
        cycles=[
            ExpectedCycle(
                start=period.cycle.start,
                end=period.cycle.end,
                lines=_lines(run, period.statement),
                exact=decimal_text(period.statement.exact),
                total=period.statement.total,
            )
            for period in run.periods
        ],
    )


def _lines(run: RatingRun, statement: Statement) -> list[dict[str, Any]]:
    """Return lines by what they are, so that the order of plans does not matter."""
    return sorted((_line(run, line) for line in statement.lines), key=line_name)


def line_name(line: Mapping[str, Any]) -> str:
    """Return what a line is for, in words that no other line of a bill has."""
    name = f"{line['kind']} {line['name']} of {line['plan_id']}"
    if line["variant"] is not None:
        name += f" (variant {line['variant']})"
    if line["device_id"] is not None:
        name += f" for {line['device_id']}"
    if line.get("term_start"):
        name += f" from {line['term_start']}"
    return name


def _line(run: RatingRun, line: Line) -> dict[str, Any]:
    document: dict[str, Any] = {
        "kind": line.kind.value,
        "plan_id": run.plans[line.plan_no].plan,
        "name": line.name,
        "variant": line.label,
        "device_id": None if line.device_no is None else run.devices[line.device_no],
        "devices": line.devices,
    }
    if line.kind is LineKind.USAGE:
        document |= {
            "records": line.records,
            "quantity": line.quantity,
            "billed_quantity": line.billed,
            "in_allowance_quantity": line.from_allowance,
            "from_pool_quantity": line.from_pool,
            "overage_quantity": line.priced,
        }
    if line.kind is LineKind.FEE:
        document |= {
            "shares": decimal_text(line.shares),
            "term_start": line.term and instant_text(line.term[0]),
            "term_end": line.term and instant_text(line.term[1]),
        }
    return document | {
        "exact_amount": decimal_text(line.exact),
        "amount": None if line.amount is None else format(line.amount, "f"),
    }


def bill_document(bill: ExpectedBill) -> dict[str, object]:
    """Return a bill as the file of it holds it; instants are UTC, money is text."""
    return {
        "fleet": bill.fleet_id,
        "currency": bill.currency,
        "time_zone": bill.time_zone,
        "cycles": [
            {
                "from": instant_text(cycle.start),
                "to": instant_text(cycle.end),
                "lines": list(cycle.lines),
                "exact_total": cycle.exact,
                "total": format(cycle.total, "f"),
            }
            for cycle in bill.cycles
        ],
    }


def bill_of_document(document: Mapping[str, Any]) -> ExpectedBill:
    """Return the bill of a file that `bill_document` made."""
    return ExpectedBill(
        fleet_id=document["fleet"],
        currency=document["currency"],
        time_zone=document["time_zone"],
        cycles=[
            ExpectedCycle(
                start=datetime.fromisoformat(cycle["from"]),
                end=datetime.fromisoformat(cycle["to"]),
                lines=cycle["lines"],
                exact=cycle["exact_total"],
                total=Decimal(cycle["total"]),
            )
            for cycle in document["cycles"]
        ],
    )
