"""Remembers what the stack started: ports, processes, folders and passwords."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from metering.stack.model import SERVERS, ServerName, SourceName


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One server as it was last started.

    `created` is the process's creation time in seconds since the epoch; `pid` and `created` are
    None for a server in a container. `program` is its executable (or compose file), `folder` its
    data. `device_ports` are the broker's for devices: by password, by certificate, for claims.
    """

    source: SourceName
    port: int
    program: str
    folder: str
    pid: int | None = None
    created: float | None = None
    password: str = field(default="", repr=False)
    device_ports: tuple[int, int, int] | None = None


def load(stack: Path) -> dict[ServerName, Record]:
    """Return the records; a missing or unreadable file holds none."""
    try:
        document = json.loads((stack / "state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    found: dict[ServerName, Record] = {}
    for name in SERVERS:
        entry = document.get(name) if isinstance(document, dict) else None
        if isinstance(entry, dict) and (record := _record(entry)) is not None:
            found[name] = record
    return found


def _record(entry: Mapping[str, Any]) -> Record | None:
    known = {each.name for each in fields(Record)}
    try:
        return _RECORD.validate_python({k: v for k, v in entry.items() if k in known})
    except ValidationError:
        return None


_RECORD = TypeAdapter(Record)


def save(stack: Path, records: Mapping[ServerName, Record]) -> None:
    """Write the records, all or nothing, readable by their owner only.

    The file goes to the owner of the folder: root may start the stack of another user.
    """
    path = stack / "state.json"
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({name: asdict(record) for name, record in records.items()}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
        if os.geteuid() == 0:
            owner = stack.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
    temporary.replace(path)
