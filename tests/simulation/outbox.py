"""The promises of what leaves the platform: once per cause, at least once, and the same each time."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from metering.wire.command import CommandKind
from tests.simulation.device import SimulatedDevice
from tests.told_events import problem_of

if TYPE_CHECKING:
    from tests.simulation.world import World

_LATER = {
    "throttle": {"throttle", "suspend", "resume"},
    "suspend": {"suspend", "resume"},
    "resume": {"suspend", "resume"},
}
"""Which later kinds make an earlier command needless."""
_CAUSES = """
SELECT tenant_no, 'threshold.crossed', 'alert:' || alert_no FROM alert
UNION ALL SELECT tenant_no, 'threshold.cleared', 'alert:' || alert_no FROM alert
  WHERE cleared_run_no IS NOT NULL
UNION ALL SELECT tenant_no, CASE kind WHEN 'top_up' THEN 'balance.topped_up'
    WHEN 'transfer' THEN 'balance.transferred' ELSE 'balance.adjusted' END,
  'operation:' || operation_no FROM balance_operation
UNION ALL SELECT tenant_no, 'reservation.expired', 'reservation:' || reservation_no
  FROM reservation JOIN device USING (device_no) WHERE state = 'expired'
UNION ALL SELECT tenant_no, 'webhook.disabled', 'endpoint:' || endpoint_no FROM webhook_endpoint
  WHERE disabled_at IS NOT NULL
"""


async def check_outbox(world: "World") -> list[str]:
    """Return what of the promises of commands and webhooks is broken."""
    if not world.controls:
        return []
    devices = {
        fleet.numbers[device.device_id]: device
        for fleet in world.fleets
        for device in fleet.devices
        if device.device_id in fleet.numbers
    }
    commands = await _rows(
        world,
        "SELECT command_no, command_id::text, device_no, kind, payload, cause, state, attempts,"
        " expires_at, created_at FROM command ORDER BY command_no",
    )
    return [
        *await _events(world),
        *await _deliveries(world),
        *_commands(world, commands, devices),
        *_answered(world, commands, devices),
        *await _restrained(world, commands, devices),
    ]


async def _rows(world: "World", query: str) -> list[tuple[Any, ...]]:
    found = await world.admin.execute(query.encode())
    return await found.fetchall()


async def _events(world: "World") -> Iterator[str]:
    """Everything that happened is an event, once, nothing else is, and each is as the API tells it."""
    stored = Counter(await _rows(world, "SELECT tenant_no, kind, cause FROM event"))
    caused = Counter(await _rows(world, _CAUSES))
    told = await _rows(world, "SELECT kind, payload FROM event")
    odd = [problem for problem in (problem_of(*row) for row in told) if problem]
    return iter(
        odd + [f"events are {key} {stored[key]} times, caused {caused[key]} times"
         for key in stored.keys() | caused.keys() if stored[key] != caused[key]]
    )  # fmt: skip


async def _deliveries(  # noqa: C901 - one look at each
    world: "World",
) -> list[str]:
    """Each event reached each endpoint that wants it, always as the same, and nobody else."""
    problems: list[str] = []
    deliveries: dict[tuple[str, str], tuple[Any, ...]] = {}
    for row in await _rows(
        world,
        "SELECT url, event_id::text, delivery.state, delivery.attempts, event.kind, event.payload,"
        " event.tenant_no, disabled_at FROM webhook_delivery AS delivery JOIN event USING (event_no)"
        " JOIN webhook_endpoint USING (endpoint_no)",
    ):
        deliveries[row[0], row[1]] = row[2:]
    for (url, event_id), row in deliveries.items():
        state, attempts, kind, payload, tenant_no, disabled_at = row
        heard = world.receivers.heard.get((url, event_id), [])
        tenant_id, kinds = world.endpoints[url]
        if world.tenants[tenant_id] != tenant_no or (kinds and kind not in kinds):
            problems.append(f"{kind} of tenant {tenant_no} is on its way to {url}")
        if state == "queued" and disabled_at is None:
            problems.append(f"{event_id} is not delivered to {url}")
        if state == "delivered" and not heard:
            problems.append(f"{event_id} is delivered to {url}, which did not hear of it")
        used_up = attempts >= world.settings.webhook_attempts_max
        if state == "failed" and not used_up and url not in world.receivers.gone:
            problems.append(f"{event_id} failed at {url} after {attempts} attempts")
        if attempts < len(heard):
            problems.append(f"{event_id} came to {url} {len(heard)} times in {attempts} attempts")
        if len(set(heard)) > 1:
            problems.append(f"{event_id} came to {url} as {set(heard)}")
        for body in heard[:1]:
            told = json.loads(body)
            if (told["id"], told["type"], told["data"]) != (event_id, kind, payload):
                problems.append(f"{event_id} came to {url} as {told}, it is {kind} {payload}")
    problems += [
        f"{url} heard of {event_id}, which is not for it"
        for url, event_id in world.receivers.heard.keys() - deliveries.keys()
    ]
    # Whatever happened once an endpoint was there for sure is on its way to it.
    for event_id, kind, tenant_no, created_at in await _rows(
        world, "SELECT event_id::text, kind, tenant_no, created_at FROM event"
    ):
        problems += [
            f"{kind} {event_id} is not on its way to {url}"
            for url, (tenant_id, kinds) in world.endpoints.items()
            if world.tenants[tenant_id] == tenant_no
            and (not kinds or kind in kinds)
            and url in world.listening
            and created_at > world.listening[url]
            and url not in world.receivers.gone
            and (url, event_id) not in deliveries
        ]
    return problems


def _commands(
    world: "World", commands: list[tuple[Any, ...]], devices: dict[int, SimulatedDevice]
) -> Iterator[str]:
    """Each command was obeyed as it stands, unless it was late or needless; and nobody else heard it."""
    known: dict[int, set[str]] = defaultdict(set)
    caused = Counter((row[2], row[3], row[5]) for row in commands)
    yield from (f"command {key} exists {times} times" for key, times in caused.items() if times > 1)
    for number, identity, device_no, kind, payload, _, state, attempts, expires_at, _ in commands:
        device = devices[device_no]
        known[device_no].add(identity)
        told = device.quota.told.get(identity)
        if told is not None and told != (number, kind, json.dumps(payload, sort_keys=True)):
            yield f"{device.name} was told {told}, command {number} is {kind} {payload}"
        if told is not None and not attempts:
            yield f"{device.name} was told command {number}, which nobody sent"
        if state == "done" and told is None:
            yield f"{device.name} has obeyed command {number}, of which it was not told"
        if state in {"queued", "sent"}:
            yield f"command {number} to {device.name} is {state} for ever"
        if state == "expired" and (expires_at is None or expires_at > world.now):
            yield f"command {number} to {device.name} expired before {expires_at}"
        if state == "superseded" and not any(
            row[2] == device_no and row[0] > number and row[3] in _LATER.get(kind, ())
            for row in commands
        ):
            yield f"command {number} to {device.name}, {kind}, is superseded by nothing"
    for device_no, device in devices.items():
        strange = device.quota.told.keys() - known[device_no]
        if strange:
            yield f"{device.name} was told {sorted(strange)}, which are not its commands"


def _answered(
    world: "World", commands: list[tuple[Any, ...]], devices: dict[int, SimulatedDevice]
) -> Iterator[str]:
    """Each request for quota that was taken is answered."""
    answered = {(row[2], row[4].get("request")) for row in commands if row[3] == CommandKind.GRANT}
    root = world.settings.topic_root
    for device_no, device in devices.items():
        topic = device.quota_topic(root)
        for request, payload in device.quota.sent:
            # Before it was registered, nobody knew whom to answer.
            is_taken = (topic, payload) in world.broker.taken and device_no in world.initial
            if is_taken and (device_no, request) not in answered:
                yield f"{device.name} asked {payload.decode()}, and was not answered"


async def _restrained(
    world: "World", commands: list[tuple[Any, ...]], devices: dict[int, SimulatedDevice]
) -> list[str]:
    """Alerts tell their devices, each once; in the end a device may use what they leave to it."""
    problems: list[str] = []
    told = {(row[2], row[3], row[5]) for row in commands}
    late = {row[2] for row in commands if row[6] == "expired" and row[3] != CommandKind.GRANT}
    restraints: dict[int, list[dict[str, Any]]] = defaultdict(list)
    unsure = set[int]()
    for alert_no, fleet_no, device_no, actions, restrains, released, ends, raised_at in await _rows(
        world,
        "SELECT alert_no, fleet_no, device_no, actions, restrains, released_at IS NOT NULL, period_end,"
        " raised_at FROM alert ORDER BY alert_no",
    ):
        fleet = next(each for each in world.fleets if each.fleet.fleet_no == fleet_no)
        members = [
            fleet.numbers[each]
            for each in fleet.numbers
            if fleet.numbers[each] in world.initial and each not in fleet.redated
        ]
        concerned = members if device_no is None else [device_no]
        for each in concerned:
            problems += [
                f"alert {alert_no} did not tell device {each} to {action['kind']}"
                for action in actions
                if ends > raised_at
                and action["kind"] != "throttle"
                and (each, action["kind"], f"alert:{alert_no}") not in told
            ]
            if restrains and not released:
                restraints[each] += actions
                if ends <= world.now:
                    unsure.add(each)
    for number, device in devices.items():
        fleet = next(each for each in world.fleets if device in each.devices)
        if number in late | unsure or number not in world.initial or fleet.corrected:
            continue
        actions = restraints[number]
        rates = [each["octets_per_second"] for each in actions if each["kind"] == "throttle"]
        expected = min(rates, default=None)
        if any(each["kind"] == "suspend" for each in actions):
            expected = 0
        if device.quota.limits.octets_per_second_max != expected:
            problems.append(
                f"{device.name} may use {device.quota.limits.octets_per_second_max} octets a second,"
                f" its alerts leave it {expected}"
            )
    return problems
