"""Measure the memory of ingester and worker over a long run at a held rate. Run by `make bench-endurance`."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.comparison import BASE
from bench.load import Generator, Order
from bench.product import Processing, Product, product, start, stop
from bench.replaying import audit
from bench.servers import own_servers
from bench.waiting import wait_until
from bench.workload import ONE
from metering.errors import FleetmeterError

_SLICE_SECONDS = 30.0
_ROLES = ("ingester", "worker")
_MEBIBYTE = 1024 * 1024
_CHARGED_WITHIN_SECONDS = 120.0


def main() -> int:
    """Measure, print a table, and write bench/endurance.json; 1 if the audit is not equal."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        try:
            with own_servers() as servers:
                processing = Processing(workers=1)
                with (
                    Generator(servers.broker, BASE.interleaved()) as generator,
                    product(servers, [BASE], processing, Path(folder)) as made,
                ):
                    start(made)
                    samples = _run(made, generator, arguments.minutes * 60, arguments.rate)
                    stop(made)
                    audited = audit(made)
        except FleetmeterError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    print(f"audit: {audited.verdict}, {audited.readings} readings")
    Path(__file__).with_name("endurance.json").write_text(
        json.dumps({"rate": arguments.rate, "samples": samples, "audit": audited.verdict}, indent=2)
        + "\n",
        encoding="utf-8",
    )
    return 0 if audited.verdict == "equal" else 1


def _run(
    made: Product, generator: Generator, seconds: float, rate: float
) -> list[dict[str, float]]:
    """Return what each process held after every half minute of a held rate, in mebibytes."""
    print(f"{rate:,.0f} messages/s of 1000 devices; resident memory in MiB")
    print(f"{'minutes':>8} {'readings':>12} " + " ".join(f"{role:>9}" for role in _ROLES))
    samples: list[dict[str, float]] = []
    began, sent = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        messages = int(rate * _SLICE_SECONDS)
        order = Order(roots=made.roots, manner=ONE, messages=messages, messages_per_second=rate)
        generator.prepare(order)
        generator.start()
        generator.finish()
        sent += messages
        _wait_until_charged(made, sent)
        made.processes.check()
        sample = {"minutes": (time.monotonic() - began) / 60, "readings": float(sent)}
        for role in _ROLES:
            sample[role] = psutil.Process(made.pids[role][0]).memory_info().rss / _MEBIBYTE
        samples.append(sample)
        shown = " ".join(f"{sample[role]:>9.1f}" for role in _ROLES)
        print(f"{sample['minutes']:>8.1f} {sent:>12,} {shown}", flush=True)
    return samples


def _wait_until_charged(made: Product, readings: int) -> None:
    wait_until(
        lambda: made.charged() >= readings,
        "the load to be charged",
        seconds=_CHARGED_WITHIN_SECONDS,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-endurance", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=3000.0, help="messages a second (%(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
