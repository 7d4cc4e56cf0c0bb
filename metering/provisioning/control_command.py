"""`fleetmeter control`: delivers commands and webhooks, and hears what devices answer."""

import argparse

from metering.control.controller import Controller
from metering.process import serve
from metering.settings import Settings
from metering.stack.revocations import publish_revocations


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments: all is settings."""
    del parser


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Deliver until told to stop."""
    del arguments
    return serve(Controller(settings, publish_revocations).run, metrics_port=settings.metrics_port)
