"""The `fleetmeter` command: one line for each subcommand, loaded only when it is called.

A command module offers `configure(parser)`, which declares its arguments, and
`run(arguments, settings)`, which does the work and returns the exit code.
"""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from metering import __version__
from metering.errors import FleetmeterError, StackError
from metering.settings import Settings

COMMANDS: dict[str, tuple[str, str]] = {
    "stack": ("metering.stack.command", "run TimescaleDB and Mosquitto on this machine"),
    "migrate": ("metering.store.command", "bring the database's schema up to this release"),
    "ingest": ("metering.ingest.command", "write what devices publish to the database"),
    "charge": ("metering.charging.command", "charge stored usage as it lands"),
    "bill-run": (
        "metering.payments.bill_run_command",
        "make drafts of bills final, and see to their payment",
    ),
    "control": (
        "metering.provisioning.control_command",
        "deliver commands to devices, and webhooks",
    ),
    "api": ("api.command", "serve the HTTP API"),
    "device": (
        "metering.provisioning.command",
        "give devices credentials at the broker, or revoke them",
    ),
    "apikey": ("metering.store.apikey_command", "create or revoke an API key"),
    "user": ("metering.store.user_command", "let people in, or no more"),
    "carrier": ("metering.ingest.carrier_command", "take a carrier's usage records, and compare"),
    "mapping": ("metering.store.mapping_command", "say which metric of a payload is which meter"),
    "simulate": ("device_sim.command", "publish as a fleet of simulated devices"),
    "scenario": ("device_sim.scenario.command", "play what fleets did, and compare the bills"),
    "agent": ("metering.agent.command", "publish what this machine's modem or interface counts"),
    "rate": ("metering.whatif.command", "say what usage costs under a plan, without a database"),
    "bill": (
        "metering.whatif.bill_command",
        "draw up a bill, or a credit note for it, without a database",
    ),
    "explain": ("metering.insight.explain_command", "say why a reading costs what it costs"),
    "assure": ("metering.insight.assure_command", "hold usage, charges and bills together"),
    "audit": ("metering.insight.command", "compare ledger, readings and charges"),
    "plan": ("metering.plan_document.command", "check plan files, or print their schema"),
    "demo": ("metering.demo.command", "run the whole pipeline and watch it"),
}


_ASKS_NO_SERVER = ("stack", "demo", "plan", "rate", "bill")
"""Commands that start the stack themselves, or need none."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code: 0 done, 1 a finding or a fault, 2 wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="fleetmeter", description="Real-time metering and charging for IoT fleets."
    )
    parser.add_argument("--version", action="version", version=f"fleetmeter {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if arguments[:1] == [name]:
            chosen = importlib.import_module(module)
            chosen.configure(command)
            command.set_defaults(run=chosen.run)
    parsed = parser.parse_args(arguments)
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            field = ".".join(str(part) for part in problem["loc"])
            print(
                f"fleetmeter: setting FLEETMETER_{field.upper()}: {problem['msg']}", file=sys.stderr
            )
        return 2
    try:
        return int(parsed.run(parsed, _with_addresses(settings, parsed)))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is still to be flushed goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except FleetmeterError as error:
        print(f"fleetmeter {parsed.command}: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        # Looked up, not imported: a gateway, which has an agent alone, has no driver.
        driver = sys.modules.get("psycopg")
        if driver is None or not isinstance(error, driver.OperationalError):
            raise
        reason = str(error).partition("\n")[0]
        print(
            f"fleetmeter {parsed.command}: the database does not answer: {reason};"
            " is it up? 'fleetmeter stack status'",
            file=sys.stderr,
        )
        return 1


def _with_addresses(settings: Settings, parsed: argparse.Namespace) -> Settings:
    """Return the settings, with the addresses of the stack's servers where none are set.

    A command that needs an address which nobody knows says so itself.
    """
    needs_broker_alone = parsed.command == "agent"
    knows_broker = needs_broker_alone and (parsed.broker or settings.broker_url)
    if parsed.command in _ASKS_NO_SERVER or knows_broker:
        return settings
    try:
        from metering import stack  # noqa: PLC0415 - a gateway has an agent and no servers
    except ImportError:
        return settings
    with contextlib.suppress(StackError):
        return stack.resolve(settings)
    return settings


if __name__ == "__main__":
    sys.exit(main())
