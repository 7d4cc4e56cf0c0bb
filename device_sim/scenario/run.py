"""A scenario against a running platform: registered, published, charged, and its bills compared."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import httpx

from device_sim.formats import FORMATS
from device_sim.scenario.compare import Bills, Comparison, compare
from device_sim.scenario.definition import Scenario
from device_sim.scenario.document import PayloadFormat
from device_sim.scenario.generate import Made
from device_sim.scenario.output import Expectation
from device_sim.scenario.publish import Publisher
from device_sim.scenario.register import close_api, open_api, queued_readings, register
from metering.broker_address import BrokerAddress
from metering.errors import FleetmeterError, InvalidValue
from metering.rating.plan import DeviceState
from metering.settings import Settings
from metering.store.connection import database_url
from metering.usage import RejectReason

_LOOK_SECONDS = 0.1

_OPERATION = "scenario run"


class NotRun(FleetmeterError):
    """A scenario could not be brought to its end; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """Which platform, how fast, and how patiently. `factor` None: all at once.

    `brokers` says where each device connects, with a credential of its own; None: all by one connection.
    """

    settings: Settings
    broker: BrokerAddress
    brokers: Callable[[str], BrokerAddress] | None
    api_url: str
    factor: float | None
    wait_seconds: float


def check_takes(scenario: Scenario, settings: Settings, *, now: datetime) -> None:
    """Raise `InvalidValue` where the platform would refuse or misbill the scenario for its time.

    The settings are this process's, which should be those of the platform's processes.
    """
    if scenario.ends > now:
        raise InvalidValue("to", "is in the future", "let the scenario end before now")
    # What it sends may be some time under way, and look back over its beginning.
    days = (now - scenario.begins + timedelta(days=1)) // timedelta(days=1) + 1
    if days > settings.clock_behind_days_max:
        raise InvalidValue(
            "from",
            f"is {days} days ago, the ingester takes {settings.clock_behind_days_max}",
            f"start ingester and scenario with FLEETMETER_CLOCK_BEHIND_DAYS_MAX={days}",
        )
    for name, terms in scenario.terms.items():
        for meter, of_meter in terms.meters.items():
            if any(allowance.rollover for allowance in of_meter.allowances):
                raise InvalidValue(
                    f"plans.{name}.meters.{meter}",
                    "has an allowance that rolls over, which is settled before usage of the past comes",
                    "leave rollover out of what is run; `scenario make` takes it",
                )


def check_formats(scenario: Scenario, settings: Settings) -> None:
    """Raise `InvalidValue` where a format lacks what it takes."""
    for fleet in scenario.fleets:
        for group in fleet.groups:
            name = group.payload_format
            if FORMATS[name].needs_mqtt5 and settings.mqtt_version != "5":
                raise InvalidValue(
                    "format",
                    f"{name} needs MQTT 5, not {settings.mqtt_version}",
                    "set FLEETMETER_MQTT_VERSION",
                )
            if name is PayloadFormat.SPARKPLUG and not settings.ingest_sparkplug:
                raise InvalidValue(
                    "format",
                    "sparkplug is not taken",
                    "start ingester and scenario with FLEETMETER_INGEST_SPARKPLUG=true",
                )


def check_may_publish(scenario: Scenario) -> None:
    """Raise `InvalidValue` for devices that have no right to publish, now that the scenario is over."""
    for fleet in scenario.fleets:
        for group in fleet.groups:
            states = {
                device: change.state
                for change in group.changes
                if change.state is not None
                for device in change.devices
            }
            for device, state in states.items():
                if state is not DeviceState.ACTIVE:
                    raise InvalidValue(
                        "--credentials",
                        f"{device} ends {state}: the broker takes nothing of it any more",
                        "run the scenario without credentials, or let it be active at the end",
                    )


def with_credentials(expected: Expectation) -> Expectation:
    """Return what is expected where the broker knows who a device is: no other's topic reaches anybody."""
    rejected = dict(expected.rejected)
    rejected.pop(RejectReason.UNKNOWN_DEVICE, None)
    return replace(expected, rejected=rejected)


async def run_scenario(
    scenario: Scenario,
    made: Made,
    expected: Expectation,
    against: Against,
    *,
    clock: Callable[[], datetime],
    say: Callable[[str], None],
) -> Comparison:
    """Bring a scenario to its end and compare; raises `NotRun` where something did not come to it."""
    url = database_url(against.settings)
    shards = await register(url, scenario, operation=_OPERATION, now=clock())
    key = await open_api(url, scenario.tenant, operation=_OPERATION, now=clock())
    try:
        with httpx.Client(
            base_url=against.api_url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
            trust_env=False,
        ) as client:
            bills = Bills(client)
            await asyncio.to_thread(bills.rejected)  # the API answers, before anything is sent
            publisher = Publisher(
                broker=against.broker,
                brokers=against.brokers,
                settings=against.settings,
                tenant=scenario.tenant,
                factor=against.factor,
                say=say,
            )
            waiting = await publisher.publish(made.messages, seconds_max=against.wait_seconds)
            if len(waiting):
                raise NotRun(
                    f"{len(waiting)} readings were not acknowledged within"
                    f" {against.wait_seconds:g} s; does the ingester run?"
                )
            say(f"{len(made.messages)} messages published, each reading is acknowledged end to end")
            await _until_charged(url, shards, bills, expected, against.wait_seconds)
            return await asyncio.to_thread(compare, bills, scenario, expected, now=clock())
    finally:
        await close_api(url, scenario.tenant, operation=_OPERATION, now=clock())


async def _until_charged(
    url: str, shards: list[int], bills: Bills, expected: Expectation, seconds_max: float
) -> None:
    """Wait until nothing of the fleets is queued, and as much is refused as is expected."""
    deadline = time.monotonic() + seconds_max
    wanted = sum(expected.rejected.values())
    while True:
        queued = await queued_readings(url, shards)
        refused = await asyncio.to_thread(bills.rejected)
        if not queued and sum(refused.values()) >= wanted:
            return
        if time.monotonic() > deadline:
            if queued:
                raise NotRun(
                    f"{queued} readings are not charged after {seconds_max:g} s;"
                    " does a charging worker run?"
                )
            return  # fewer were refused than expected: that is a difference
        await asyncio.sleep(_LOOK_SECONDS)
