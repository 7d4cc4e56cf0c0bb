"""Credentials of devices: given, exchanged and revoked, in the database and at the running broker."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import aiomqtt

from metering.broker_address import broker_of
from metering.broker_administration import administration
from metering.credentials.authority import DEVICE_DAYS, Authority, authority_folder, write_private
from metering.credentials.dynamic_security import Command, make_anew, shut_out
from metering.credentials.password import hash_of, new_password
from metering.credentials.rights import (
    Right,
    broker_username,
    claim_client_id,
    claim_topics,
    claim_username,
    device_topics,
)
from metering.errors import BrokerRefused, Conflict
from metering.ids import TenantNo
from metering.provisioning.broker_file import BrokerFile
from metering.settings import Settings
from metering.stack import lifecycle
from metering.stack.broker_files import REVOKED_FILE, REVOKED_TO_FETCH_FILE, write_revoked
from metering.store.broker_clients import (
    clients_of,
    device_numbers,
    has_credential,
    note_told,
    revoke_certificates,
    revoke_client,
    revoked_certificates,
    save_certificate,
    save_client,
    telling,
)
from metering.store.claims import open_claim
from metering.store.connection import Connection, connect, database_url
from metering.store.registry import tenant_no


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a device was given: a password or a certificate (PEM). It cannot be shown again."""

    username: str
    password: str | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)


class Teller(Protocol):
    """Whoever makes a broker do what the plugin's commands say."""

    async def tell(self, commands: Sequence[Command]) -> None:
        """Have the commands done; raises `BrokerRefused`."""


class Provisioning:
    """Credentials of one tenant's devices. Who else tells the broker waits meanwhile."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        broker: Teller | None,
        tenant_id: str,
        tenant: TenantNo,
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._broker = broker
        self._tenant_id = tenant_id
        self._tenant = tenant

    async def numbers(self, device_ids: Sequence[str]) -> dict[str, int]:
        """Return the numbers of devices; raises `NotFound`, or `InvalidValue` for what is no id."""
        for device_id in device_ids:
            broker_username(self._tenant_id, device_id)
        return await device_numbers(self._connection, self._tenant, device_ids)

    async def give_passwords(
        self, device_ids: Sequence[str], *, now: datetime, anew: bool
    ) -> list[Given]:
        """Give devices a password each. All or nothing.

        Raises `Conflict` for a device that has a credential, unless it is to be given one `anew`: then
        all that it had is good no more.
        """
        numbers = await self.numbers(device_ids)
        given = []
        async with self._connection.transaction():
            commands: list[Command] = []
            for device_id in device_ids:
                password = new_password()
                await self._free(device_id, numbers[device_id], now=now, anew=anew)
                await save_client(self._connection, numbers[device_id], hash_of(password), now=now)
                name = broker_username(self._tenant_id, device_id)
                given.append(Given(username=name, password=password))
            passwords = {each.username: each.password for each in given}
            for client in await clients_of(self._connection, list(numbers.values())):
                name = broker_username(client.tenant_id, client.device_id)
                commands += self._commands(name, client.device_id, client.right, passwords[name])
            await self._tell(commands)
            await self._note(numbers)
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
        """Sign a device's request. Raises as `give_passwords`, and `InvalidValue` for a bad request."""
        numbers = await self.numbers([device_id])
        number = numbers[device_id]
        name = broker_username(self._tenant_id, device_id)
        issued = self._authority().sign_request(request_pem, name, now=now, days=days)
        async with self._connection.transaction():
            await self._free(device_id, number, now=now, anew=anew)
            await save_client(self._connection, number, None, now=now)
            await save_certificate(
                self._connection, number, serial=issued.serial, not_after=issued.not_after, now=now
            )
            (client,) = await clients_of(self._connection, [number])
            await self._tell(self._commands(name, device_id, client.right, None))
            await self._note(numbers)
        if anew:
            await self.publish_revocations(now=now)
        return Given(username=name, certificate=issued.pem)

    async def revoke(self, device_ids: Sequence[str], *, now: datetime) -> int:
        """Take away all that devices connect with, and end their connections; return how many had some."""
        numbers = await self.numbers(device_ids)
        count = 0
        async with self._connection.transaction():
            for number in numbers.values():
                count += await revoke_client(self._connection, number, now=now)
        # Committed first: whoever cannot be told now is told later by the control process.
        commands = [
            command
            for device_id in device_ids
            for command in shut_out(broker_username(self._tenant_id, device_id))
        ]
        await self.publish_revocations(now=now)
        await self._tell(commands)
        await self._note(numbers)
        return count

    async def announce(
        self, codes: Mapping[str, str], *, now: datetime, good_for: timedelta
    ) -> None:
        """Let devices claim a credential once, each with its code, such as its serial number.

        Raises `Conflict` for a device that has a credential.
        """
        numbers = await self.numbers(list(codes))
        commands: list[Command] = []
        async with self._connection.transaction():
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
                commands += make_anew(
                    name,
                    claim_topics(self._settings.topic_root, self._tenant_id, device_id),
                    password=code,
                    client_id=claim_client_id(self._tenant_id, device_id),
                )
            await self._tell(commands)

    async def publish_revocations(self, *, now: datetime) -> bool:
        """Write the list of revoked certificates and have the stack's broker read it.

        False when no broker of the stack runs here: then somebody has to take the list to the broker.
        """
        folder = authority_folder(self._settings)
        if not (folder / "authority.pem").exists():
            return False
        serials = await revoked_certificates(self._connection, now=now)
        revoked = self._write_revoked(folder / REVOKED_FILE, serials, now=now)
        if self._settings.revocation_list_url is not None:
            self._write_revoked(folder / REVOKED_TO_FETCH_FILE, serials, now=now, for_url=True)
        record = lifecycle.broker_record(self._settings)
        if record is None:
            return False
        write_revoked(Path(record.folder), revoked)
        return lifecycle.reload_broker(self._settings)

    def _write_revoked(
        self,
        file: Path,
        serials: Sequence[tuple[str, datetime]],
        *,
        now: datetime,
        for_url: bool = False,
    ) -> bytes:
        revoked = self._authority().revocation_list(
            serials,
            previous=file.read_bytes() if file.exists() else None,
            now=now,
            for_url=for_url,
        )
        write_private(file, revoked)
        return revoked

    def _authority(self) -> Authority:
        return Authority.open(
            authority_folder(self._settings), list_url=self._settings.revocation_list_url
        )

    async def _free(self, device_id: str, number: int, *, now: datetime, anew: bool) -> None:
        """See to it that a device has no credential."""
        if anew:
            await revoke_certificates(self._connection, number, now=now)
        elif await has_credential(self._connection, number):
            raise Conflict("device", f"{device_id!r} has a credential", "rotate it, or revoke it")

    def _commands(
        self, name: str, device_id: str, right: Right, password: str | None
    ) -> list[Command]:
        topics = device_topics(self._settings.topic_root, self._tenant_id, device_id, right)
        if right is Right.NONE:
            return shut_out(name)
        return make_anew(name, topics, password=password)

    async def _tell(self, commands: Sequence[Command]) -> None:
        if self._broker is not None and commands:
            await self._broker.tell(commands)

    async def _note(self, numbers: dict[str, int]) -> None:
        await note_told(
            self._connection, await clients_of(self._connection, list(numbers.values()))
        )


@asynccontextmanager
async def provisioning(
    settings: Settings, tenant_id: str, *, restart_broker: bool = False
) -> AsyncIterator[Provisioning]:
    """Connect to database and broker for the credentials of a tenant's devices.

    With `restart_broker` the stack's broker is told of each operation by its file, while it is stopped.
    Raises `NotFound` when there is no such tenant, `BrokerRefused` when the broker cannot be told.
    """
    async with (
        await connect(
            database_url(settings), application="credentials", autocommit=True
        ) as connection,
        telling(connection),
    ):
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
            async with administration(broker_of(None, settings)) as broker:
                yield Provisioning(settings, connection, broker, tenant_id, tenant)
        except aiomqtt.MqttError as error:
            raise BrokerRefused(f"the broker was not told: {error}") from error
