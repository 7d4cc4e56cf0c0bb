"""`fleetmeter ingest`: writes what devices publish to the database."""

import argparse

from metering.ingest.ingester import Ingester
from metering.process import serve
from metering.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments: all is settings."""
    del parser


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Ingest until told to stop."""
    del arguments
    return serve(Ingester(settings).run, metrics_port=settings.metrics_port)
