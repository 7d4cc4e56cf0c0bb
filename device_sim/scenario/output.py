"""The files of a worked-out scenario: messages, ledger, expectations, and what rating a fleet takes."""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_sim.scenario.definition import Scenario
from device_sim.scenario.expected import (
    ExpectedBill,
    bill_document,
    bill_of_document,
    expected_bill,
    state_document,
    usage_lines,
)
from device_sim.scenario.generate import Made, Published
from metering.errors import InvalidValue
from metering.period import instant_text
from metering.plan_document import stored_document
from metering.wire.ledger import ledger_line

EXPECTED = "expected.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the platform has to come to: each fleet's bills, and how many refusals of each reason."""

    bills: Mapping[str, ExpectedBill]
    rejected: Mapping[str, int]


def expectation(scenario: Scenario, made: Made) -> Expectation:
    """Work out what is expected; raises `InvalidValue` where nothing can be."""
    return Expectation(
        bills={
            fleet.fleet_id: expected_bill(scenario, fleet, made.usage[fleet.fleet_id])
            for fleet in scenario.fleets
        },
        rejected=made.rejected,
    )


def write_files(folder: Path, scenario: Scenario, made: Made, expected: Expectation) -> list[Path]:
    """Write all files of a scenario into a folder, which is made; return their paths."""
    contents: dict[str, Iterable[str]] = {
        "messages.jsonl": map(_message_line, made.messages),
        "ledger.jsonl": map(ledger_line, made.ledger),
        EXPECTED: [_json(_expected_document(scenario, made))],
    }
    for fleet in scenario.fleets:
        name = fleet.fleet_id
        contents[f"{name}/state.json"] = [_json(state_document(fleet))]
        contents[f"{name}/usage.jsonl"] = usage_lines(made.usage[name])
        contents[f"{name}/bill.json"] = [_json(bill_document(expected.bills[name]))]
        for plan in fleet.plans:
            document = stored_document(scenario.plans[plan])
            contents[f"{name}/plans/{plan}.json"] = [_json(document)]
    paths = []
    for name, lines in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        paths.append(path)
    return paths


def read_expectation(folder: Path, scenario: Scenario) -> Expectation:
    """Return what a folder of `write_files` expects; raises `InvalidValue` where it cannot be read."""
    try:
        return Expectation(
            bills={
                fleet.fleet_id: bill_of_document(_read(folder / fleet.fleet_id / "bill.json"))
                for fleet in scenario.fleets
            },
            rejected=_read(folder / EXPECTED)["rejected"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidValue(
            str(folder), f"holds not what is expected of this scenario: {error}",
            "use a folder that `fleetmeter scenario make` wrote for it",
        ) from error  # fmt: skip


def _expected_document(scenario: Scenario, made: Made) -> dict[str, object]:
    return {
        "scenario": scenario.name,
        "tenant": scenario.tenant,
        "seed": scenario.seed,
        "from": instant_text(scenario.begins),
        "to": instant_text(scenario.ends),
        "messages": len(made.messages),
        "readings": len(made.ledger),
        "rejected": dict(made.rejected),
        "lost": {device: dict(used) for device, used in made.lost.items()},
    }


def _message_line(message: Published) -> str:
    document: dict[str, object] = {
        "at": instant_text(message.at), "device": message.device, "topic": message.topic,
    }  # fmt: skip
    if message.properties is not None:
        document["content_type"] = message.properties.content_type
        document["user_properties"] = dict(message.properties.user)
    try:
        document["payload"] = message.payload.decode("utf-8")
    except UnicodeDecodeError:
        document["payload_base64"] = base64.b64encode(message.payload).decode()
    return json.dumps(document, separators=(",", ":")) + "\n"


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict):
        raise TypeError(f"{path.name} is no object")
    return found
