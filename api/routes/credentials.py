"""Credentials of devices at the broker: given, exchanged and withdrawn."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus

import aiomqtt
from fastapi import APIRouter, Request, Response

from api import credential_schemas as schemas
from api import etags
from api.auth import AsCaller, AsWriter, Caller
from api.errors import ProblemError, bad_input, conflict, unavailable
from api.making import made_once
from api.parameters import ALREADY_DONE, DeviceId, IdempotencyKey
from api.state import state_of
from metering.broker_address import broker_of
from metering.broker_administration import administration
from metering.control.give_credentials import CredentialGiver, Given, Teller
from metering.credentials.authority import authority_folder
from metering.credentials.rights import broker_username
from metering.errors import BrokerRefused, Conflict, InvalidValue, NotFound, SettingsError
from metering.store.broker_clients import (
    certificates_of,
    credential_of,
    has_certificate,
    telling_until_commit,
)
from metering.store.device_views import device_view
from metering.store.outbox import notify
from metering.store.registry import tenant_id

_CERTIFICATES_MAX = 20

router = APIRouter(prefix="/v1", tags=["credentials"])


@router.get("/devices/{device_id}/credential")
async def get_credential(caller: AsCaller, device_id: DeviceId) -> schemas.Credential:
    """Show what a device connects with, without its secret."""
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    known = await credential_of(caller.connection, device.device_no)
    rows = await certificates_of(caller.connection, device.device_no, limit=_CERTIFICATES_MAX)
    name = await tenant_id(caller.connection, caller.tenant_no)
    kind = None
    if known is not None and known.revoked_at is None:
        kind = "password" if known.has_password else "certificate"
    return schemas.Credential.model_validate(
        {
            "device_id": device_id,
            "username": broker_username(name, device_id),
            "kind": kind,
            "created_at": known and known.created_at,
            "revoked_at": known and known.revoked_at,
            "certificates": [asdict(row) for row in rows],
        }
    )


@router.post(
    "/devices/{device_id}/credential",
    status_code=HTTPStatus.CREATED,
    responses=ALREADY_DONE | etags.CONFLICT,
)
async def post_credential(
    *,
    caller: AsWriter,
    device_id: DeviceId,
    order: schemas.CredentialOrder,
    key: IdempotencyKey,
    request: Request,
    response: Response,
) -> schemas.GivenCredential:
    """Give a device that has none a credential; the answer holds the secret, this once."""
    return await _given(caller, device_id, order, key, request, response, anew=False)


@router.post(
    "/devices/{device_id}/credential/rotation",
    status_code=HTTPStatus.CREATED,
    responses=ALREADY_DONE | etags.CONFLICT,
)
async def rotate_credential(
    *,
    caller: AsWriter,
    device_id: DeviceId,
    order: schemas.CredentialOrder,
    key: IdempotencyKey,
    request: Request,
    response: Response,
) -> schemas.GivenCredential:
    """Give a device another credential in place of all that it had; the answer holds it, this once."""
    return await _given(caller, device_id, order, key, request, response, anew=True)


@router.delete("/devices/{device_id}/credential", status_code=HTTPStatus.NO_CONTENT)
async def delete_credential(caller: AsWriter, device_id: DeviceId, request: Request) -> None:
    """Take away all that a device connects with; the broker ends its connection within a moment."""
    giver = await _giver(caller, request, None)
    if not await giver.withdraw([device_id], now=caller.now):
        raise NotFound("credential of device", device_id)
    await notify(caller.connection)


async def _given(  # noqa: PLR0917 - the rest of two routes
    caller: Caller,
    device_id: str,
    order: schemas.CredentialOrder,
    key: str,
    request: Request,
    response: Response,
    *,
    anew: bool,
) -> schemas.GivenCredential:
    device = await device_view(
        caller.connection, caller.tenant_no, device_id=device_id, now=caller.now
    )
    given = None
    operation = f"{'rotate' if anew else 'give'} credential {device_id}"
    async with made_once(caller, key, operation, order, response) as once:
        if once.made is None:
            if await has_certificate(caller.connection, device.device_no, now=caller.now):
                # Another credential would let its name in again, and with it who holds the old key.
                raise ProblemError(
                    HTTPStatus.CONFLICT,
                    "it was given a certificate that has not expired, which the broker must be told of:"
                    " use `fleetmeter device rotate`",
                )
            async with _telling_giver(caller, request) as giver:
                given = await _give(caller, giver, device_id, order, request, anew=anew)
            once.made = given.username
    certificate = given.certificate if given else None
    return schemas.GivenCredential(
        device_id=device_id,
        username=once.name,
        password=given.password if given else None,
        certificate=certificate.decode() if certificate else None,
    )


async def _give(
    caller: Caller,
    giver: CredentialGiver,
    device_id: str,
    order: schemas.CredentialOrder,
    request: Request,
    *,
    anew: bool,
) -> Given:
    try:
        if order.certificate_request is None:
            (given,) = await giver.give_passwords([device_id], now=caller.now, anew=anew)
            return given
        if not (authority_folder(state_of(request).settings) / "authority.pem").exists():
            raise ProblemError(
                HTTPStatus.CONFLICT, "no authority signs certificates here; ask for a password"
            )
        return await giver.give_certificate(
            device_id, order.certificate_request.encode(), now=caller.now, anew=anew
        )
    except Conflict as error:
        raise conflict(InvalidValue("device_id", error.problem, error.fix)) from error
    except InvalidValue as error:
        raise bad_input("certificate_request", error.problem, error.fix) from error


@asynccontextmanager
async def _telling_giver(caller: Caller, request: Request) -> AsyncIterator[CredentialGiver]:
    """Give what gives credentials and tells the broker of them; 503 where the broker is not told."""
    settings = state_of(request).settings
    if settings.broker_rights == "database":
        yield await _giver(caller, request, None)
        return
    await telling_until_commit(caller.connection)
    try:
        async with administration(broker_of(None, settings), settings.topic_root) as broker:
            yield await _giver(caller, request, broker)
    except (aiomqtt.MqttError, BrokerRefused, SettingsError, OSError) as error:
        raise unavailable("the broker could not be told; try again shortly") from error


async def _giver(caller: Caller, request: Request, broker: Teller | None) -> CredentialGiver:
    settings = state_of(request).settings
    name = await tenant_id(caller.connection, caller.tenant_no)
    return CredentialGiver(settings, caller.connection, broker, name, caller.tenant_no)
