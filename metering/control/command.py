"""`fleetmeter control`: delivers commands and webhooks, and hears what devices answer."""

import argparse

from metering.control.controller import Controller
from metering.process import serve
from metering.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments: all is settings."""
    del parser


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Deliver until told to stop."""
    del arguments
    return serve(Controller(settings).run, metrics_port=settings.metrics_port)
