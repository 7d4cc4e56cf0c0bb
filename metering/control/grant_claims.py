"""Grants claims: a device that was announced gets a credential of its own, once."""

import asyncio
import base64
import hashlib
import hmac
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from time import monotonic

import aiomqtt
from pydantic import ValidationError

from metering import clock
from metering.broker_address import broker_of
from metering.broker_administration import (
    Administration,
    administration,
    connected,
    end_if_cancelled,
)
from metering.control import metrics
from metering.control.give_credentials import rules_of_client
from metering.control.waking import away
from metering.credentials.authority import DEVICE_DAYS, Authority, authority_folder
from metering.credentials.dynamic_security import (
    Command,
    keep_away,
    let_back,
    make_anew,
    shut_out,
)
from metering.credentials.password import hash_of
from metering.credentials.rights import broker_username, claim_username
from metering.errors import BrokerRefused, InvalidValue
from metering.flood import FloodGuard
from metering.settings import Settings
from metering.store.broker_clients import (
    clients_of,
    has_credential,
    note_told,
    save_certificate,
    save_client,
    telling,
)
from metering.store.claims import (
    OpenClaim,
    claim_of,
    close_claims,
    expired_claims,
    note_claimed,
    released_claims,
)
from metering.store.connection import UNREACHABLE, Connection, connect_patiently, database_url
from metering.store.floods import hold_device
from metering.wire.claim import Claim, decode_claim, encode_answer, encode_refusal
from metering.wire.topics import claim_answer_topic, claim_filter, device_of_topic

log = logging.getLogger(__name__)

_HEARD_AGAIN = timedelta(hours=1)
"""How long an answer may be asked for again."""
_SWEEP_SECONDS = 30.0
_AWAY_SECONDS = 5.0


class ClaimGranter:
    """Hears claims and answers them. Several may run: the same claim has the same answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._broker = broker_of(None, settings)
        self._database_url = database_url(settings)
        self._guard = FloodGuard(
            messages_per_second=settings.device_requests_per_second_max,
            octets_per_second=settings.device_octets_per_second_max,
            window_seconds=settings.flood_window_seconds,
            backlog_seconds_max=0.0,  # nobody keeps claims while we are away
        )

    async def run(self) -> None:
        """Grant until cancelled; only where there is an authority."""
        folder = authority_folder(self._settings)
        known = await asyncio.to_thread((folder / "authority.pem").exists)
        if not known:
            log.info("no claims are granted here: no authority in %s", folder)
            return
        authority = Authority.open(folder, list_url=self._settings.revocation_list_url)
        while True:
            connection = await self._connect()
            try:
                async with (
                    self._administration() as broker,
                    connected(self._claims()) as client,
                ):
                    await client.subscribe(claim_filter(self._settings.topic_root), qos=1)
                    end_if_cancelled()
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._close_for_ever())
                        async for message in client.messages:
                            if await self._is_flood(connection, broker, message):
                                continue
                            async with telling(connection):
                                answer = await self._answer(
                                    connection, broker, authority, message=message
                                )
                            if answer is not None:
                                await client.publish(*answer, qos=1)
                                end_if_cancelled()
            except* UNREACHABLE as errors:
                away(errors.exceptions[0])
            except* (aiomqtt.MqttError, BrokerRefused, OSError) as errors:
                log.warning("claims cannot be granted now: %s", errors.exceptions[0])
            finally:
                await connection.close()
            end_if_cancelled()
            await asyncio.sleep(_AWAY_SECONDS)

    @asynccontextmanager
    async def _administration(self) -> AsyncIterator[Administration | None]:
        """Connect to the broker's plugin; None where the broker looks into the database itself."""
        if self._settings.broker_rights == "database":
            yield None
            return
        async with administration(self._broker, self._settings.topic_root) as broker:
            yield broker

    def _claims(self) -> aiomqtt.Client:
        return aiomqtt.Client(
            self._broker.host,
            self._broker.port,
            identifier=f"{self._settings.control_client_id}-claims",
            username=self._broker.username,
            password=self._broker.password,
            tls_context=self._broker.tls_context(),
        )

    async def _is_flood(
        self, connection: Connection, broker: Administration | None, message: aiomqtt.Message
    ) -> bool:
        """Count a claim; whether it is one too many. Who sends so many is kept away for a while."""
        sender = device_of_topic(self._settings.topic_root, str(message.topic), "claim")
        if sender is None:
            return False
        hold = timedelta(seconds=self._settings.flood_hold_seconds)
        for flood in self._guard.count([(sender, len(message.payload))], at=monotonic()):
            log.warning("%s/%s floods with claims", *sender)
            async with telling(connection):
                async with connection.transaction():
                    await hold_device(connection, flood, hold=hold, now=clock.now())
                if broker is not None:
                    await broker.tell(keep_away(claim_username(*sender)))
        if not self._guard.is_flooding(sender):
            return False
        metrics.BAD_MESSAGES.labels("flood").inc()
        return True

    async def _answer(
        self,
        connection: Connection,
        broker: Administration | None,
        authority: Authority,
        *,
        message: aiomqtt.Message,
    ) -> tuple[str, bytes] | None:
        """Return where and what to answer to a claim; one that cannot be read is refused and counted."""
        sender = device_of_topic(self._settings.topic_root, str(message.topic), "claim")
        if sender is None:
            metrics.BAD_MESSAGES.labels("bad_topic").inc()
            return None
        try:
            claim = decode_claim(message.payload)
        except ValidationError:
            metrics.BAD_MESSAGES.labels("bad_claim").inc()
            answer = encode_refusal(None, "not a claim")
        else:
            try:
                answer = await self._grant(
                    connection, broker, authority, sender=sender, claim=claim
                )
            except InvalidValue as error:
                answer = encode_refusal(claim.request, str(error))
        return claim_answer_topic(self._settings.topic_root, *sender), answer

    async def _grant(
        self,
        connection: Connection,
        broker: Administration | None,
        authority: Authority,
        *,
        sender: tuple[str, str],
        claim: Claim,
    ) -> bytes:
        """Grant a claim, or say why not. Raises `InvalidValue`, and nothing is done, for a bad request."""
        tenant_id, device_id = sender
        digest = hashlib.sha256(f"{claim.request}\n{claim.csr or ''}".encode()).digest()
        async with connection.transaction():
            found = await claim_of(connection, tenant_id, device_id, now=clock.now())
            if found is None:
                return encode_refusal(claim.request, "not announced, or no more")
            if found.request_digest is None and await has_credential(connection, found.device_no):
                return encode_refusal(claim.request, "has a credential")
            if found.request_digest not in {None, digest}:
                return encode_refusal(claim.request, "claimed before")
            name = broker_username(tenant_id, device_id)
            password = None if claim.csr is not None else self._password(name, digest)
            certificate = found.certificate
            if found.request_digest is None:
                certificate = None
                if claim.csr is not None:
                    certificate = await self._certify(
                        connection, authority, found, name=name, csr=claim.csr
                    )
                hashed = None if password is None else hash_of(password)
                await save_client(connection, found.device_no, hashed, now=clock.now())
                await note_claimed(
                    connection,
                    found.device_no,
                    request_digest=digest,
                    certificate=certificate,
                    now=clock.now(),
                    expires_at=clock.now() + _HEARD_AGAIN,
                )
                await self._tell(connection, broker, found.device_no, password)
                log.info("%s has claimed a credential", name)
        return encode_answer(
            claim.request,
            username=name,
            authority=authority.pem.decode(),
            password=password,
            certificate=certificate,
        )

    @staticmethod
    async def _certify(
        connection: Connection, authority: Authority, found: OpenClaim, *, name: str, csr: str
    ) -> str:
        now = clock.now()
        issued = authority.sign_request(csr.encode(), name, now=now, days=DEVICE_DAYS)
        await save_certificate(
            connection, found.device_no, serial=issued.serial, not_after=issued.not_after, now=now
        )
        return issued.pem.decode()

    async def _tell(
        self,
        connection: Connection,
        broker: Administration | None,
        device_no: int,
        password: str | None,
    ) -> None:
        """Let the device in with what it was granted."""
        if broker is None:
            return
        clients = await clients_of(connection, [device_no])
        commands: list[Command] = []
        for each in clients:
            name = broker_username(each.tenant_id, each.device_id)
            rules = rules_of_client(self._settings.topic_root, each, each.right)
            commands += make_anew(
                name, rules, password=password, is_kept_away=each.right.is_kept_away
            )
        await broker.tell(commands)
        await note_told(connection, clients)

    def _password(self, name: str, digest: bytes) -> str:
        """Return the password that goes with a request: kept nowhere, and the same if it is asked again."""
        key = (self._broker.password or "").encode()
        made = hmac.new(key, name.encode() + b"\n" + digest, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(made[:24]).decode()

    async def _connect(self) -> Connection:
        return await connect_patiently(
            self._database_url,
            application="control claims",
            autocommit=True,
            answer_seconds_max=self._settings.database_answer_seconds_max,
            waiting=away,
        )

    async def _close_for_ever(self) -> None:
        """Let in no more to claim those whose time is over, and again those who are held no more."""
        looked_at: datetime | None = None
        while True:
            connection = await self._connect()
            try:
                async with telling(connection):
                    now = clock.now()
                    expired = await expired_claims(connection, now=now)
                    released = await released_claims(connection, since=looked_at, until=now)
                    commands = [
                        command
                        for _, tenant_id, device_id in expired
                        for command in shut_out(claim_username(tenant_id, device_id))
                    ]
                    commands += [
                        command for each in released for command in let_back(claim_username(*each))
                    ]
                    if commands:  # seldom: who else tells the broker waits while this connects
                        async with self._administration() as broker:
                            if broker is not None:
                                await broker.tell(commands)
                    if expired:
                        await close_claims(connection, [each[0] for each in expired])
                    looked_at = now
            finally:
                await connection.close()
            end_if_cancelled()
            await asyncio.sleep(_SWEEP_SECONDS)
