"""`fleetmeter charge`: charges stored usage as it lands."""

import argparse

from metering.charging.worker import Worker
from metering.process import serve
from metering.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments: all is settings."""
    del parser


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Charge until told to stop."""
    del arguments
    return serve(Worker(settings).run, metrics_port=settings.metrics_port)
