"""`fleetmeter simulate`: publish as a fleet of simulated devices."""

import argparse
import json
import resource
import secrets
import sys
from pathlib import Path

from device_sim.credentials import add_credentials, brokers_of, pairs_of
from device_sim.device import Habits
from device_sim.formats import FORMATS
from device_sim.groups import Group
from device_sim.mischief import Misdeed, Rates
from device_sim.profile import Kind
from device_sim.progress import Progress
from device_sim.scene import Scenario, outbox_readings_of
from device_sim.series import mapping_document
from device_sim.simulation import Simulation, Watcher, run_simulation
from device_sim.soak import Soak
from metering import clock
from metering.broker_address import broker_of
from metering.errors import InvalidValue
from metering.ids import checked_id
from metering.settings import Settings
from metering.uplink.ledger import LedgerFile

_OTHER_FILES = 64
"""Files that this process has open beside its connections."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fleetmeter simulate`."""
    add = parser.add_argument
    add("--broker", metavar="URL", help="mqtt://[user:password@]host:port; default: the setting")
    add_credentials(parser)
    add("--tenant", default="demo", help="tenant of the devices (%(default)s)")
    add(
        "--group",
        action="append",
        metavar="NAME:COUNT",
        help="devices NAME-0001 and so on; repeatable (truck:10)",
    )
    add("--seed", type=int, help="makes the same devices again; default: a random one, printed")
    add("--for", dest="for_seconds", type=float, default=0, metavar="SECONDS", help="0: until ^C")
    add("--interval", type=float, default=1.0, metavar="SECONDS", help="between messages (1.0)")
    add("--readings", type=int, default=5, metavar="N", help="readings a message (%(default)s)")
    add(
        "--cumulative", type=float, default=0.4, metavar="SHARE", help="devices with counters (0.4)"
    )
    add("--duplicates", type=float, default=0.0, metavar="RATE", help="messages sent twice (0)")
    add("--reorder", type=float, default=0.0, metavar="RATE", help="messages sent late (0)")
    add("--drop", type=float, default=0.0, metavar="RATE", help="messages lost on their way (0)")
    add(
        "--offline", type=float, default=0.0, metavar="RATE",
        help="messages after which a device goes away, and delivers late (0)",
    )  # fmt: skip
    add(
        "--offline-seconds", type=float, default=600.0, metavar="SECONDS",
        help="how long at most; at least half of it (600)",
    )  # fmt: skip
    for misdeed in Misdeed:
        add(
            f"--{misdeed}", type=float, default=0.0, metavar="RATE",
            help=f"{misdeed} messages beside each true one, to be refused (0)",
        )  # fmt: skip
    add(
        "--resets", type=float, default=0.0, metavar="RATE", help="readings of a fallen counter (0)"
    )
    add(
        "--reboots", type=float, default=0.002, metavar="RATE", help="messages after a boot (0.002)"
    )
    add("--wraps", type=float, default=0.06, metavar="SHARE", help="counters that soon wrap (0.06)")
    add("--profile", choices=list(Kind), help="what all devices are; default: a mix")
    add("--rate", type=float, default=1.0, metavar="FACTOR", help="how much is used (1.0)")
    add("--format", choices=list(FORMATS), default="json", help="of the messages (%(default)s)")
    add(
        "--sims", type=Path, metavar="FILE",
        help="each device's SIM, for carriers' records: lines of a device, a space and an ICCID",
    )  # fmt: skip
    add(
        "--mapping", action="store_true",
        help="print the mapping by which the platform reads these devices' formats, and end",
    )  # fmt: skip
    add(
        "--connections", type=float, default=500.0, metavar="RATE",
        help="devices that connect in a second at most (500)",
    )  # fmt: skip
    add(
        "--resend", type=float, default=5.0, metavar="SECONDS",
        help="what is not acknowledged for so long is sent again (5)",
    )  # fmt: skip
    add(
        "--outbox", type=int, metavar="N",
        help="readings that a device keeps; default: 10 000, less where all would keep over a million",
    )  # fmt: skip
    add(
        "--soak", action="store_true",
        help="run until stopped, and fail once memory, queue or delay grows without bound",
    )  # fmt: skip
    add(
        "--watch", action="append", default=[], metavar="PID|URL",
        help="with --soak: a process whose memory is watched, or its metrics; repeatable",
    )  # fmt: skip
    add(
        "--check", type=float, default=60.0, metavar="SECONDS",
        help="with --soak: between two looks (60)",
    )  # fmt: skip
    add("--ledger", type=Path, metavar="FILE", help="append what was truly used, as JSON Lines")
    add(
        "--drain",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="wait for acknowledgements (60)",
    )


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Simulate until told to stop.

    0 when every reading is durable, none was rejected, and all that was made bad was refused.
    """
    scenario = scenario_of(arguments)
    if arguments.mapping:
        print(json.dumps(mapping_document(scenario.devices), indent=2))
        return 0
    check_format(scenario, arguments, settings)
    broker = broker_of(arguments.broker, settings)
    brokers = brokers_of(arguments, broker, scenario.tenant, scenario.devices)
    allow_many_connections(len(scenario.devices))
    progress = Progress(sys.stdout)
    watchers: list[Watcher] = [progress]
    if arguments.soak:
        watchers.append(Soak(arguments.watch, arguments.check))
    progress.say(
        f"simulating {len(scenario.devices)} devices of tenant {scenario.tenant}"
        f" at {broker.host}:{broker.port}, seed {scenario.seed}"
    )
    with LedgerFile(arguments.ledger) as ledger:
        simulation = Simulation(
            scenario,
            brokers=brokers,
            settings=settings,
            ledger=ledger,
            clock=clock.now,
            say=progress.say,
            watchers=watchers,
        )
        tally = run_simulation(simulation)
    progress.say("  ".join([f"done: {tally}", *tally.faults_left]))
    return 0 if tally.is_clean and simulation.failure is None else 1


def scenario_of(arguments: argparse.Namespace) -> Scenario:
    """Return what the arguments ask for; raises `InvalidValue`."""
    shares = (
        "cumulative",
        "duplicates",
        "reorder",
        "drop",
        "offline",
        "resets",
        "reboots",
        "wraps",
    )
    for name in (*shares, *Misdeed):
        if not 0 <= getattr(arguments, name) <= 1:
            raise InvalidValue(name, "not a share", "use a number from 0 to 1")
    for name, least in (
        ("interval", 0.001),
        ("readings", 1),
        ("for_seconds", 0),
        ("drain", 0),
        ("rate", 0),
        ("offline_seconds", 0),
        ("connections", 1),
        ("resend", 0.05),
        ("check", 0.05),
    ):
        if not getattr(arguments, name) >= least:
            raise InvalidValue(name.removesuffix("_seconds"), "too small", f"use {least} or more")
    groups = [Group.parse(text) for text in arguments.group or ["truck:10"]]
    devices = [device for group in groups for device in group.devices()]
    if len(set(devices)) < len(devices):
        raise InvalidValue("group", "two groups have one name", "use a name once")
    if arguments.outbox is not None and arguments.outbox < arguments.readings:
        raise InvalidValue("outbox", "holds less than one message", "use a larger one")
    format_ = FORMATS[arguments.format]
    return Scenario(
        tenant=checked_id(arguments.tenant, "tenant"),
        devices=devices,
        seed=secrets.randbits(32) if arguments.seed is None else arguments.seed,
        for_seconds=arguments.for_seconds,
        interval_seconds=arguments.interval,
        readings_per_message=arguments.readings,
        habits=Habits(
            cumulative_share=arguments.cumulative if format_.counts is None else format_.counts,
            reset_rate=arguments.resets,
            reboot_rate=arguments.reboots,
            nearly_full_share=arguments.wraps,
            rate=arguments.rate,
            kind=arguments.profile and Kind(arguments.profile),
        ),
        duplicates=arguments.duplicates,
        reorder=arguments.reorder,
        drops=arguments.drop,
        offline=arguments.offline,
        offline_seconds=arguments.offline_seconds,
        misdeeds=Rates(
            of={each: getattr(arguments, each) for each in Misdeed if getattr(arguments, each)},
            own_credentials=arguments.credentials is not None or arguments.certificates is not None,
        ),
        drain_seconds=arguments.drain,
        payload_format=arguments.format,
        iccids={} if arguments.sims is None else pairs_of(arguments.sims),
        outbox_readings=arguments.outbox or outbox_readings_of(len(devices)),
        connections_per_second=arguments.connections,
        resend_seconds=arguments.resend,
    )


def check_format(scenario: Scenario, arguments: argparse.Namespace, settings: Settings) -> None:
    """Raise `InvalidValue` where a format or a fault lacks what it takes."""
    format_ = FORMATS[scenario.payload_format]
    version = settings.mqtt_version
    if format_.needs_mqtt5 and version != "5":
        raise InvalidValue(
            "--format", f"needs MQTT 5, not {version}", "set FLEETMETER_MQTT_VERSION"
        )
    if format_.needs_sim:
        missing = next((each for each in scenario.devices if each not in scenario.iccids), None)
        if missing is not None:
            raise InvalidValue(
                "--sims", f"has no line for {missing}", "add the device and its ICCID"
            )
        if arguments.ledger is not None:
            raise InvalidValue(
                "--ledger", "the platform numbers these records, not the device", "leave it out"
            )
    if Misdeed.FORGED not in scenario.misdeeds.of:
        return
    if scenario.misdeeds.own_credentials and version != "5":
        raise InvalidValue("--forged", "only MQTT 5 tells what a broker refuses", "use MQTT 5")
    if not scenario.misdeeds.own_credentials and format_.needs_sim:
        raise InvalidValue(
            "--forged", "these devices may hand in any SIM's records", "use --credentials"
        )


def allow_many_connections(devices: int) -> None:
    """Raise the soft limit of open files; raises `InvalidValue` where the hard one is too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < devices + _OTHER_FILES:
        raise InvalidValue(
            "group",
            f"{devices} devices need as many open files, and {hard} are allowed",
            "raise the hard limit (ulimit -Hn), or simulate in several processes",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
