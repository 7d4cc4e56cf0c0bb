"""`fleetmeter scenario`: work a scenario out as files, or run it against a platform and compare bills."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import aiomqtt
import httpx
import psycopg

from device_sim.credentials import add_credentials, brokers_of
from device_sim.profile import SHAPES
from device_sim.scenario.compare import table
from device_sim.scenario.definition import Scenario
from device_sim.scenario.document import scenario_schema_text
from device_sim.scenario.generate import make
from device_sim.scenario.output import expectation, read_expectation, write_files
from device_sim.scenario.reading import read_scenario_file
from device_sim.scenario.register import register
from device_sim.scenario.run import (
    Against,
    check_formats,
    check_may_publish,
    check_takes,
    run_scenario,
    with_credentials,
)
from metering import clock
from metering.broker_address import broker_of
from metering.errors import FleetmeterError, InvalidValue
from metering.ids import checked_id
from metering.settings import Settings
from metering.store.connection import database_url

EQUAL, DIFFERS, NOT_RUN = 0, 1, 2
"""Exit codes."""
_SHOWN_MAX = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    commands = parser.add_subparsers(dest="scenario_command", metavar="COMMAND", required=True)
    made = commands.add_parser("make", help="write messages, ledger and expected bills as files")
    _add_scenario(made)
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the files")
    run_ = commands.add_parser("run", help="publish to a running platform and compare its bills")
    _add_scenario(run_)
    run_.add_argument(
        "--broker", metavar="URL", help="mqtt://[user:password@]host:port; default: the setting"
    )
    add_credentials(run_)
    run_.add_argument("--api", metavar="URL", help="of the HTTP API; default: by the settings")
    run_.add_argument(
        "--accelerate", type=_positive, metavar="FACTOR",
        help="let the scenario's time pass so many times as fast (3600: an hour a second); default: at once",
    )  # fmt: skip
    run_.add_argument(
        "--expected", type=Path, metavar="DIR", help="compare with the bills of an earlier `make`"
    )
    run_.add_argument(
        "--wait", type=_positive, default=120.0, metavar="SECONDS",
        help="for acknowledgements, then for charging (120)",
    )  # fmt: skip
    registered = commands.add_parser(
        "register",
        help="create what is missing at the platform, and print the devices, for `fleetmeter device`",
    )
    _add_scenario(registered)
    commands.add_parser("list", help="list the scenarios and profiles that are shipped")
    commands.add_parser("schema", help="print the JSON Schema of scenario files")


def _add_scenario(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scenario", metavar="FILE", help="a scenario file, or the name of a shipped one"
    )
    parser.add_argument("--tenant", metavar="ID", help="instead of the scenario's own")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the scenario's own")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Do what is asked for: 0 done, and equal; 1 the bills differ; 2 it was not run."""
    try:
        match arguments.scenario_command:
            case "list":
                return _list()
            case "schema":
                sys.stdout.write(scenario_schema_text())
                return EQUAL
            case "make":
                return _make(arguments)
            case "register":
                return asyncio.run(_register(arguments, settings))
            case _:
                return asyncio.run(_run(arguments, settings))
    except (FleetmeterError, OSError, aiomqtt.MqttError, httpx.HTTPError, psycopg.Error) as error:
        print(f"fleetmeter scenario: not run: {_reason(error)}", file=sys.stderr)
        return NOT_RUN


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _make(arguments: argparse.Namespace) -> int:
    scenario = _scenario(arguments)
    made = make(scenario)
    paths = write_files(arguments.out, scenario, made, expectation(scenario, made))
    print(
        f"{scenario.name}: {len(made.ledger)} readings in {len(made.messages)} messages,"
        f" {sum(made.rejected.values())} refusals expected; {len(paths)} files in {arguments.out}"
    )
    return EQUAL


async def _register(arguments: argparse.Namespace, settings: Settings) -> int:
    scenario = _scenario(arguments)
    await register(database_url(settings), scenario, operation="scenario register", now=clock.now())
    print("\n".join(scenario.devices))
    return EQUAL


async def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    scenario = _scenario(arguments)
    check_takes(scenario, settings, now=clock.now())
    check_formats(scenario, settings)
    made = make(scenario)
    expected = (
        expectation(scenario, made)
        if arguments.expected is None
        else read_expectation(arguments.expected, scenario)
    )
    broker, brokers = broker_of(arguments.broker, settings), None
    if arguments.credentials is not None or arguments.certificates is not None:
        check_may_publish(scenario)
        expected = with_credentials(expected)
        brokers = brokers_of(arguments, broker, scenario.tenant, scenario.devices)
    api_host = "127.0.0.1" if settings.api_host in {"0.0.0.0", "::"} else settings.api_host  # noqa: S104
    against = Against(
        settings=settings,
        broker=broker,
        brokers=brokers,
        api_url=arguments.api or f"http://{api_host}:{settings.api_port}",
        factor=arguments.accelerate,
        wait_seconds=arguments.wait,
    )
    found = await run_scenario(scenario, made, expected, against, clock=clock.now, say=_say)
    if found.totals:
        _say(
            f"{found.totals} cycles had closed before their usage came: their totals with later"
            " adjustments are compared, not their lines (FLEETMETER_CLOSING_GRACE_HOURS)"
        )
    if not found.differences:
        _say(
            f"equal: {found.lines} lines and {found.totals} totals of {len(expected.bills)} fleets,"
            f" {sum(expected.rejected.values())} refusals"
        )
        return EQUAL
    for line in table(found.differences[:_SHOWN_MAX]):
        _say(line)
    _say(f"{len(found.differences)} differences")
    return DIFFERS


def _scenario(arguments: argparse.Namespace) -> Scenario:
    path = Path(arguments.scenario)
    if not path.suffix and not path.exists():
        path = _shipped(arguments.scenario)
    scenario = read_scenario_file(path)
    if arguments.tenant is not None:
        scenario = replace(scenario, tenant=checked_id(arguments.tenant, "--tenant"))
    if arguments.seed is not None:
        scenario = replace(scenario, seed=arguments.seed)
    return scenario


def _shipped(name: str) -> Path:
    for path in shipped_files():
        if path.stem == name:
            return path
    known = ", ".join(path.stem for path in shipped_files())
    raise InvalidValue(
        "FILE", f"{name!r} is no file and no shipped scenario", f"use one of {known}"
    )


def shipped_files() -> Sequence[Path]:
    """Return the scenario files that are part of the product."""
    with resources.as_file(resources.files("device_sim.scenario").joinpath("files")) as folder:
        return sorted(folder.glob("*.yaml"))


def _list() -> int:
    for path in shipped_files():
        print(f"scenario {path.stem:<16} {read_scenario_file(path).title}")
    for kind, shape in SHAPES.items():
        print(f"profile  {kind:<16} {shape.summary}")
    return EQUAL


def _say(line: str) -> None:
    print(line, flush=True)
