"""The list of certificates that get nobody in: written for the broker, which is told to read it."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from metering.credentials.authority import (
    Authority,
    Listed,
    authority_folder,
    listed_in,
    write_private,
)
from metering.settings import Settings
from metering.stack import lifecycle
from metering.stack.broker_files import REVOKED_FILE, REVOKED_TO_FETCH_FILE, write_revoked
from metering.store.broker_clients import BrokerClient, listed_certificates
from metering.store.connection import Connection


async def publish_revocations(
    settings: Settings,
    connection: Connection,
    about: Sequence[BrokerClient] = (),
    *,
    now: datetime,
    if_changed: bool = False,
) -> bool:
    """Write the list as it is once the broker was told `about` some devices, and have it read that.

    False when nobody was told: there is no authority here, no broker of the stack runs here (then somebody
    has to take the list to the broker), or the list holds what it held and was to be written only
    `if_changed`.
    """
    listed = await listed_certificates(connection, about, now=now)
    return await asyncio.to_thread(_publish, settings, listed, now, if_changed=if_changed)


def _publish(
    settings: Settings, listed: Sequence[Listed], now: datetime, *, if_changed: bool
) -> bool:
    folder = authority_folder(settings)
    if not (folder / "authority.pem").exists():
        return False
    file = folder / REVOKED_FILE
    wanted = {(each.serial, each.is_on_hold) for each in listed}
    if if_changed and wanted == (listed_in(file.read_bytes()) if file.exists() else set()):
        return False
    authority = Authority.open(folder, list_url=settings.revocation_list_url)
    if settings.revocation_list_url is not None:
        _write(authority, folder / REVOKED_TO_FETCH_FILE, listed, now, for_url=True)
    revoked = _write(authority, file, listed, now, for_url=False)
    record = lifecycle.broker_record(settings)
    if record is None:
        return False
    write_revoked(Path(record.folder), revoked)
    return lifecycle.reload_broker(settings)


def _write(
    authority: Authority, file: Path, listed: Sequence[Listed], now: datetime, *, for_url: bool
) -> bytes:
    previous = file.read_bytes() if file.exists() else None
    revoked = authority.revocation_list(listed, previous=previous, now=now, for_url=for_url)
    write_private(file, revoked)
    return revoked
