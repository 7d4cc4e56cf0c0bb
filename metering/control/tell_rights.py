"""Tells the broker what devices may do: within a moment of a change, and again until it knows."""

import asyncio
import logging
from collections.abc import Sequence

import aiomqtt

from metering import clock
from metering.broker_address import broker_of
from metering.broker_administration import Administration, administration, end_if_cancelled
from metering.control import metrics
from metering.control.waking import away, woken_or_after
from metering.credentials.dynamic_security import (
    Command,
    allow,
    disconnect,
    keep_away,
    let_back,
    let_in,
    rules_of,
    shut_out,
)
from metering.credentials.rights import Right, Topics, broker_username, device_topics
from metering.errors import BrokerRefused
from metering.settings import Settings
from metering.store.broker_clients import (
    BrokerClient,
    all_clients,
    clients_to_look_at,
    forget_told,
    note_told,
    telling,
)
from metering.store.connection import UNREACHABLE, Connection, connect_patiently, database_url

log = logging.getLogger(__name__)

_CLIENTS_MAX = 200
"""Most devices of which the broker is told at once."""
_REFUSED_SECONDS = 5.0
"""A broker that refuses, or is away, is told again after this."""


class RightsTeller:
    """Keeps what the broker lets devices do in line with their credentials and states."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._broker = broker_of(None, settings)
        self._database_url = database_url(settings)
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look at the rights again: something changed."""
        self._wake.set()

    async def run(self) -> None:
        """Tell until cancelled; does nothing where the broker looks into the database itself."""
        while self._settings.broker_rights == "dynamic-security":
            connection = await connect_patiently(
                self._database_url,
                application="control rights",
                autocommit=True,
                answer_seconds_max=self._settings.database_answer_seconds_max,
                waiting=away,
            )
            try:
                async with administration(self._broker) as broker:
                    await self._compare(connection, broker)
                    while True:
                        self._wake.clear()
                        while await self._tell_due(connection, broker):
                            pass
                        await woken_or_after(self._wake, self._settings.control_poll_seconds)
            except UNREACHABLE as error:
                away(error)
                metrics.RETRIES.inc()
                end_if_cancelled()
            except (aiomqtt.MqttError, BrokerRefused, OSError) as error:
                log.warning("the broker was not told what devices may do: %s", error)
                metrics.UNTOLD.inc()
                end_if_cancelled()
                await asyncio.sleep(_REFUSED_SECONDS)
            finally:
                await connection.close()

    async def _compare(self, connection: Connection, broker: Administration) -> None:
        """Have the broker told again whatever it does not know as it was told: its file may be lost."""
        async with telling(connection):
            known, rules = await broker.clients(), await broker.roles()
            differing = [
                each.device_no
                for each in await all_clients(connection)
                if each.told is not None
                and (known.get(self._name(each)), rules.get(self._name(each), set()))
                != (_is_kept_away(each.told), self._rules(each, each.told))
            ]
            if differing:
                log.warning(
                    "the broker differs in %d devices from what it was told", len(differing)
                )
                await forget_told(connection, differing, now=clock.now())

    async def _tell_due(self, connection: Connection, broker: Administration) -> bool:
        """Tell of one batch of devices; False when there was nothing to look at."""
        async with telling(connection):
            due = await clients_to_look_at(connection, now=clock.now(), limit=_CLIENTS_MAX)
            if due:
                await tell(broker, due, root=self._settings.topic_root)
                await note_told(connection, due)
        return bool(due)

    @staticmethod
    def _name(client: BrokerClient) -> str:
        return broker_username(client.tenant_id, client.device_id)

    def _rules(self, client: BrokerClient, right: Right) -> set[tuple[str, str]]:
        return {
            (str(rule["acltype"]), str(rule["topic"]))
            for rule in rules_of(_topics(self._settings.topic_root, client, right))
        }


async def tell(broker: Administration, clients: Sequence[BrokerClient], *, root: str) -> None:
    """Tell the broker what some devices may do now; those who may do less are disconnected.

    All of them lose their rights before the first is disconnected: each command takes its time. Only who
    is to be held is disconnected first: what it may not publish would be acknowledged, and lost.
    """
    commands: list[Command] = []
    ends: list[Command] = []
    for each in clients:
        if each.told is each.right:
            continue
        name = broker_username(each.tenant_id, each.device_id)
        topics = _topics(root, each, each.right)
        is_held = each.right is Right.HELD
        if each.right is Right.NONE:
            commands += shut_out(name)
        elif each.told in {None, Right.NONE}:
            commands += let_in(name, topics, is_held=is_held)
        elif is_held:
            commands += keep_away(name) + allow(name, topics)
        else:
            commands += allow(name, topics)
            if each.told is Right.HELD:
                commands += let_back(name)
            elif each.right is Right.LISTEN:
                ends += disconnect(name)
    await broker.tell(commands + ends)


def _is_kept_away(right: Right) -> bool | None:
    """Whether the broker keeps somebody of a right away; None: it does not know such a one."""
    return None if right is Right.NONE else right is Right.HELD


def _topics(root: str, client: BrokerClient, right: Right) -> Topics:
    return device_topics(root, client.tenant_id, client.device_id, right)
