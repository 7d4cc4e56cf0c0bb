"""Credentials of devices: given, exchanged and revoked, in the database and at the running broker."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import aiomqtt

from metering.broker_address import broker_of
from metering.broker_administration import administration
from metering.control.give_credentials import CredentialGiver, Given
from metering.credentials.authority import DEVICE_DAYS
from metering.credentials.dynamic_security import Command, make_claim, rules_of_claim, shut_out
from metering.credentials.password import hash_of
from metering.credentials.rights import (
    Right,
    broker_username,
    claim_client_id,
    claim_topics,
    claim_username,
)
from metering.errors import BrokerRefused
from metering.provisioning.broker_file import BrokerFile
from metering.settings import Settings
from metering.stack.revocations import publish_revocations
from metering.store.broker_clients import clients_of, note_told, telling
from metering.store.claims import open_claim
from metering.store.command_audit import audit_command
from metering.store.connection import connect, database_url
from metering.store.registry import tenant_no

_AT_ONCE_MAX = 5
"""Most devices of which the plugin is told in one go: each costs several writes, and others wait."""


class Provisioning(CredentialGiver):
    """Credentials of one tenant's devices. Who else tells the broker waits for each call, not in between."""

    def in_turns(self, device_ids: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yield devices by as many as one call is to be about, so that no suspension waits for all of them.

        All at once where the broker is told of all at once.
        """
        size = len(device_ids) if isinstance(self._broker, BrokerFile) else _AT_ONCE_MAX
        for first in range(0, len(device_ids), max(1, size)):
            yield device_ids[first : first + size]

    async def audit(self, operation: str, device_ids: Sequence[str], *, now: datetime) -> None:
        """Let all that is written from here on be noted in the audit log, as the command's."""
        await audit_command(
            self._connection,
            tenant=self._tenant,
            operation=operation,
            target={"device_ids": list(device_ids)},
            now=now,
        )

    async def check(self, device_ids: Sequence[str], *, anew: bool) -> None:
        """Raise what giving one of them a credential would: `NotFound`, `InvalidValue`, `Conflict`."""
        for device_id, number in (await self.numbers(device_ids)).items():
            if not anew:
                await self._check_free(device_id, number)

    async def give_passwords(
        self, device_ids: Sequence[str], *, now: datetime, anew: bool
    ) -> list[Given]:
        """Give devices a password each, as `CredentialGiver` does; what was revoked is published."""
        async with telling(self._connection):
            given = await super().give_passwords(device_ids, now=now, anew=anew)
            if anew:
                await self.publish_revocations(now=now)
        return given

    async def give_certificate(
        self,
        device_id: str,
        request_pem: bytes,
        *,
        now: datetime,
        anew: bool,
        days: int = DEVICE_DAYS,
    ) -> Given:
        """Sign a device's request, as `CredentialGiver` does; what was revoked is published."""
        async with telling(self._connection):
            given = await super().give_certificate(
                device_id, request_pem, now=now, anew=anew, days=days
            )
            if anew:
                await self.publish_revocations(now=now)
        return given

    async def revoke(self, device_ids: Sequence[str], *, now: datetime) -> int:
        """Take away all that devices connect with, and end their connections; return how many had some."""
        numbers = await self.numbers(device_ids)
        async with self._connection.transaction():
            count = await self.withdraw(device_ids, now=now)
        # Committed first: whoever cannot be told now is told later by the control process.
        async with telling(self._connection):
            await self.publish_revocations(now=now)
        for turn in self.in_turns(device_ids):
            async with telling(self._connection):
                # Somebody may have given one another credential in between.
                places = await clients_of(self._connection, [numbers[each] for each in turn])
                gone = [each for each in places if each.right is Right.NONE]
                await self._tell(
                    [
                        command
                        for each in gone
                        for command in shut_out(broker_username(each.tenant_id, each.device_id))
                    ]
                )
                await note_told(self._connection, gone)
        return count

    async def announce(
        self, codes: Mapping[str, str], *, now: datetime, good_for: timedelta
    ) -> None:
        """Let devices claim a credential once, each with its code, such as its serial number.

        Raises `Conflict` for a device that has a credential.
        """
        numbers = await self.numbers(list(codes))
        commands: list[Command] = []
        async with telling(self._connection), self._connection.transaction():
            for device_id, code in codes.items():
                await self._free(device_id, numbers[device_id], now=now, anew=False)
                await open_claim(
                    self._connection,
                    numbers[device_id],
                    hash_of(code),
                    now=now,
                    expires_at=now + good_for,
                )
                name = claim_username(self._tenant_id, device_id)
                topics = claim_topics(self._settings.topic_root, self._tenant_id, device_id)
                commands += make_claim(
                    name,
                    rules_of_claim(topics),
                    code=code,
                    client_id=claim_client_id(self._tenant_id, device_id),
                )
            await self._tell(commands)

    async def publish_revocations(self, *, now: datetime) -> bool:
        """Write the list of revoked certificates and have the stack's broker read it.

        False when no broker of the stack runs here: then somebody has to take the list to the broker.
        """
        return await publish_revocations(self._settings, self._connection, now=now)


@asynccontextmanager
async def provisioning(
    settings: Settings, tenant_id: str, *, restart_broker: bool = False
) -> AsyncIterator[Provisioning]:
    """Connect to database and broker for the credentials of a tenant's devices.

    With `restart_broker` the stack's broker is told of each operation by its file, while it is stopped.
    Raises `NotFound` when there is no such tenant, `BrokerRefused` when the broker cannot be told.
    """
    async with await connect(
        database_url(settings), application="credentials", autocommit=True
    ) as connection:
        # A transaction waits while the broker is told, of thousands of devices for minutes.
        await connection.execute("SET idle_in_transaction_session_timeout = 0")
        tenant = await tenant_no(connection, tenant_id)
        if settings.broker_rights == "database":
            yield Provisioning(settings, connection, None, tenant_id, tenant)
            return
        if restart_broker:
            yield Provisioning(settings, connection, BrokerFile(settings), tenant_id, tenant)
            return
        try:
            async with administration(broker_of(None, settings), settings.topic_root) as broker:
                yield Provisioning(settings, connection, broker, tenant_id, tenant)
        except aiomqtt.MqttError as error:
            raise BrokerRefused(f"the broker was not told: {error}") from error
