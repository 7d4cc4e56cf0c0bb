"""What the broker reads beside its configuration: keys, certificates, who may connect."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from metering.credentials.authority import (
    Authority,
    authority_folder,
    is_good_until,
    key_pem,
    new_key,
    server_names,
    write_private,
)
from metering.credentials.dynamic_security import brought_up_to_date, first_document
from metering.credentials.password import hash_of
from metering.settings import Settings
from metering.stack.account import own, server_account

_RENEW_DAYS = 90
REVOKED_FILE = "revoked.pem"
REVOKED_TO_FETCH_FILE = "revoked-to-fetch.pem"
"""The list as a web server is to serve it, for brokers that fetch it (`revocation_list_url`)."""
DYNAMIC_SECURITY_FILE = "dynamic-security.json"


def factory_folder(settings: Settings) -> Path:
    """Return the folder of the authority that signs factory certificates."""
    return authority_folder(settings) / "factory"


def write_broker_files(settings: Settings, folder: Path, password: str) -> None:
    """Make what a broker that is not running lacks, in its folder; what devices have stays.

    The keys of both authorities stay out of it: the broker does not need them.
    """
    now = datetime.now(UTC)
    authority = Authority.open_or_make(authority_folder(settings), "fleetmeter devices", now=now)
    _write(folder, "authority.pem", authority.pem)
    if not (folder / "factory.pem").exists():
        factory = Authority.open_or_make(factory_folder(settings), "fleetmeter factory", now=now)
        _write(folder, "factory.pem", factory.pem)
    if not (folder / REVOKED_FILE).exists():
        write_revoked(folder, authority.revocation_list([], previous=None, now=now))
    names = list(dict.fromkeys([settings.device_host_name, "localhost", "127.0.0.1"]))
    if not _is_good_server(folder / "server.pem", names, authority, now):
        key = new_key()
        _write(folder, "server.key", key_pem(key))
        _write(folder, "server.pem", authority.issue_server(key, names, now=now).pem)
    known = folder / DYNAMIC_SECURITY_FILE
    process = hash_of(password)
    document = (
        brought_up_to_date(json.loads(known.read_text("utf-8")), process, settings.topic_root)
        if known.exists()
        else first_document(process, settings.topic_root)
    )
    write_dynamic_security(folder, document)


def write_dynamic_security(folder: Path, document: dict[str, Any]) -> None:
    """Write who may connect and do what, for a broker that is not running."""
    _write(folder, DYNAMIC_SECURITY_FILE, json.dumps(document, indent=2).encode())


def write_revoked(folder: Path, revoked: bytes) -> None:
    """Write the list of revoked certificates for the broker, which has to be told to read it."""
    _write(folder, REVOKED_FILE, revoked)


def _is_good_server(file: Path, names: list[str], authority: Authority, now: datetime) -> bool:
    if not file.exists():
        return False
    pem = file.read_bytes()
    return (
        set(names) <= server_names(pem)
        and is_good_until(pem, now + timedelta(days=_RENEW_DAYS))
        and authority.has_signed(pem)
    )


def _write(folder: Path, name: str, content: bytes) -> None:
    write_private(folder / name, content)
    own(folder / name, server_account(folder), 0o600)
