"""The `fleetmeter stack` command: up, down, status."""

import argparse

from metering.settings import Settings
from metering.stack import lifecycle


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("up", help="start what does not run, and wait until it answers")
    stop = actions.add_parser("down", help="stop what the stack started; data stays")
    stop.add_argument("--erase", action="store_true", help="delete the data too")
    actions.add_parser("status", help="a line a server; exit code 0 if both run, else 1")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Carry out the action; return 0, or 1 when `status` finds a server that does not run."""
    match arguments.action:
        case "up":
            lifecycle.up(settings, progress=_say)
            return _print_status(settings)
        case "down":
            (lifecycle.erase if arguments.erase else lifecycle.down)(settings, progress=_say)
            return 0
        case _:
            return _print_status(settings)


def _print_status(settings: Settings) -> int:
    servers = lifecycle.status(settings)
    for server in servers:
        details = [
            server.name.ljust(8),
            ("runs" if server.running else "down").ljust(4),
            server.source,
            server.address,
            f"pid {server.pid}" if server.pid is not None else "",
            str(server.folder) if server.folder is not None else "",
        ]
        print("  ".join(detail for detail in details if detail), flush=True)
    return 0 if all(server.running for server in servers) else 1


def _say(line: str) -> None:
    print(line, flush=True)
