"""Giving devices credentials at the broker: in the database and at the running broker, in one go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from metering.credentials.authority import DEVICE_DAYS, Authority, authority_folder
from metering.credentials.dynamic_security import (
    Command,
    Rule,
    make_anew,
    rules_of_device,
    shut_out,
)
from metering.credentials.password import hash_of, new_password
from metering.credentials.rights import Right, broker_username
from metering.errors import Conflict
from metering.ids import TenantNo
from metering.settings import Settings
from metering.store.broker_clients import (
    BrokerClient,
    clients_of,
    device_numbers,
    has_credential,
    note_told,
    revoke_certificates,
    revoke_client,
    save_certificate,
    save_client,
)
from metering.store.connection import Connection


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


def rules_of_client(root: str, client: BrokerClient, right: Right) -> list[Rule]:
    """Return the rules that the broker has of a device with a right."""
    return rules_of_device(
        root, client.tenant_id, client.device_id, right, by_certificate=client.by_certificate
    )


class CredentialGiver:
    """Gives credentials to one tenant's devices. Whoever uses it holds the right to tell the broker."""

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
                commands += self._commands(name, client, passwords[name])
            await self._tell(commands)
            await self._note(numbers)
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
            await self._tell(self._commands(name, client, None))
            await self._note(numbers)
        return Given(username=name, certificate=issued.pem)

    async def withdraw(self, device_ids: Sequence[str], *, now: datetime) -> int:
        """Take away all that devices connect with; return how many had something.

        The broker is told by the control process.
        """
        count = 0
        for number in (await self.numbers(device_ids)).values():
            count += await revoke_client(self._connection, number, now=now)
        return count

    def _authority(self) -> Authority:
        return Authority.open(
            authority_folder(self._settings), list_url=self._settings.revocation_list_url
        )

    async def _free(self, device_id: str, number: int, *, now: datetime, anew: bool) -> None:
        """See to it that a device has no credential."""
        if anew:
            await revoke_certificates(self._connection, number, now=now)
        else:
            await self._check_free(device_id, number)

    async def _check_free(self, device_id: str, number: int) -> None:
        if await has_credential(self._connection, number):
            raise Conflict("device", f"{device_id!r} has a credential", "rotate it, or revoke it")

    def _commands(self, name: str, client: BrokerClient, password: str | None) -> list[Command]:
        if client.right is Right.NONE:
            return shut_out(name)
        rules = rules_of_client(self._settings.topic_root, client, client.right)
        return make_anew(name, rules, password=password, is_kept_away=client.right.is_kept_away)

    async def _tell(self, commands: Sequence[Command]) -> None:
        if self._broker is not None and commands:
            await self._broker.tell(commands)

    async def _note(self, numbers: dict[str, int]) -> None:
        await note_told(
            self._connection, await clients_of(self._connection, list(numbers.values()))
        )
