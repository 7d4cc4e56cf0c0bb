"""Tells the broker what devices may do: within a moment of a change, and again until it knows."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import aiomqtt

from metering import clock
from metering.broker_address import broker_of
from metering.broker_administration import Administration, Known, administration, end_if_cancelled
from metering.control import metrics
from metering.control.give_credentials import rules_of_client
from metering.control.waking import away, woken_or_after
from metering.credentials.dynamic_security import (
    Command,
    change_rules,
    keep_away,
    let_back,
    let_in,
    names_of_roles,
    shut_out,
)
from metering.credentials.rights import Right, broker_username
from metering.errors import BrokerRefused, StackError
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
_UNKNOWN_MAX = 5
"""Most of them that the broker does not know: each costs several writes, and others wait meanwhile."""
_REFUSED_SECONDS = 5.0
"""A broker that refuses, or is away, is told again after this."""


class Revocations(Protocol):
    """Whoever writes the list of certificates that get nobody in, and has the broker read it."""

    async def __call__(
        self,
        settings: Settings,
        connection: Connection,
        about: Sequence[BrokerClient],
        *,
        now: datetime,
        if_changed: bool,
    ) -> bool:
        """Write the list as it is to be once the broker knows `about` devices; whether it was told so."""


class RightsTeller:
    """Keeps what the broker lets devices do in line with their credentials and states."""

    def __init__(self, settings: Settings, publish_revocations: Revocations) -> None:
        self._settings = settings
        self._publish_revocations = publish_revocations
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
                async with administration(self._broker, self._settings.topic_root) as broker:
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
            await self._publish(connection, broker, (), if_changed=False)
            known, rules = await broker.clients(), await broker.roles()
            differing = [
                each.device_no
                for each in await all_clients(connection)
                if each.told is not None
                and (known.get(self._name(each)), rules.get(self._name(each), set()))
                != (
                    _known(self._name(each), each.told),
                    set(rules_of_client(self._settings.topic_root, each, each.told)),
                )
            ]
            if differing:
                log.warning(
                    "the broker differs in %d devices from what it was told", len(differing)
                )
                await forget_told(connection, differing, now=clock.now())

    async def _tell_due(self, connection: Connection, broker: Administration) -> bool:
        """Tell of one batch of devices; False when there was nothing to look at."""
        async with telling(connection):
            due = urgent(await clients_to_look_at(connection, now=clock.now(), limit=_CLIENTS_MAX))
            if due:
                if any(each.by_certificate and each.told is not each.right for each in due):
                    await self._publish(connection, broker, due, if_changed=True)
                await tell(broker, due, root=self._settings.topic_root)
                await note_told(connection, due)
        return bool(due)

    async def _publish(
        self,
        connection: Connection,
        broker: Administration,
        about: Sequence[BrokerClient],
        *,
        if_changed: bool,
    ) -> None:
        """Have the broker refuse the certificates of devices that it keeps away, before it is told of them.

        Where that cannot be, they are told of all the same.
        """
        try:
            if await self._publish_revocations(
                self._settings, connection, about, now=clock.now(), if_changed=if_changed
            ):
                await broker.has_read_signals()
        except (OSError, StackError) as error:
            log.warning("the list of revoked certificates was not written: %s", error)

    @staticmethod
    def _name(client: BrokerClient) -> str:
        return broker_username(client.tenant_id, client.device_id)


def urgent(due: Sequence[BrokerClient]) -> Sequence[BrokerClient]:
    """Return of whom the broker is told first: those that it knows, or else some of the others."""
    return [each for each in due if each.told is not None] or due[:_UNKNOWN_MAX]


async def tell(broker: Administration, clients: Sequence[BrokerClient], *, root: str) -> None:
    """Tell the broker what some devices may do now; those who may do less are disconnected.

    All who are to be kept away are cut off before anything else is told: each command takes its time.
    """
    ends: list[Command] = []
    commands: list[Command] = []
    for each in clients:
        if each.told is each.right:
            continue
        name = broker_username(each.tenant_id, each.device_id)
        rules = rules_of_client(root, each, each.right)
        if each.right is Right.NONE:
            commands += shut_out(name)
            continue
        if each.told in {None, Right.NONE}:
            commands += let_in(name, rules, is_kept_away=each.right.is_kept_away)
            continue
        if each.right.is_kept_away:
            ends += keep_away(name)
        if rules != rules_of_client(root, each, each.told):
            commands += change_rules(name, rules)
        if not each.right.is_kept_away:
            commands += let_back(name)
    await broker.tell(ends + commands)


def _known(name: str, right: Right) -> Known | None:
    """Return what the broker knows of a device of a right; None: nothing."""
    if right is Right.NONE:
        return None
    return Known(is_kept_away=right.is_kept_away, roles=names_of_roles(name))
