"""`fleetmeter mapping set|show|check`: which metric of a tenant's payloads is which meter."""

import argparse
import asyncio
import json
from pathlib import Path

import yaml

from metering.clock import now
from metering.errors import InvalidValue
from metering.settings import Settings
from metering.store.command_audit import audit_command
from metering.store.connection import connect, database_url
from metering.store.mappings import mapping_of, set_mapping
from metering.store.registry import tenant_no
from metering.wire.mapping import DEFAULT_DOCUMENT, MappingDocument, read_mapping


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the three things to do."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    setting = actions.add_parser("set", help="replace a tenant's mapping by that of a file")
    showing = actions.add_parser("show", help="print a tenant's mapping")
    checking = actions.add_parser("check", help="check a file, without a database")
    for parsed in (setting, showing):
        parsed.add_argument("--tenant", required=True, help="the tenant's id")
    for parsed in (setting, checking):
        parsed.add_argument("file", metavar="FILE", type=Path, help="a mapping in YAML or JSON")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Do it; raises `InvalidValue` for a file that is no mapping."""
    if arguments.action == "check":
        mapping = _read(arguments.file)
        print(f"{arguments.file}: fine: {_summary(mapping)}")
        return 0
    return asyncio.run(_run(arguments, database_url(settings)))


async def _run(arguments: argparse.Namespace, url: str) -> int:
    async with await connect(url, application="mapping") as connection:
        tenant = await tenant_no(connection, arguments.tenant)
        if arguments.action == "show":
            mapping = await mapping_of(connection, tenant)
            print(_written(DEFAULT_DOCUMENT if mapping is None else mapping))
            return 0
        mapping = _read(arguments.file)
        await audit_command(
            connection, tenant=tenant, operation="mapping set", target={}, now=now()
        )
        await set_mapping(connection, tenant=tenant, mapping=mapping, now=now())
    print(f"set for {arguments.tenant}: {_summary(mapping)}")
    return 0


def _read(file: Path) -> MappingDocument:
    try:
        document = yaml.safe_load(file.read_text("utf-8"))  # JSON is YAML, too
    except OSError as error:
        raise InvalidValue(str(file), error.strerror or "cannot be read", "name a file") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error).replace("\n", " ")
        raise InvalidValue(str(file), f"neither YAML nor JSON: {problem}", "correct it") from None
    return read_mapping(document)


def _summary(mapping: MappingDocument) -> str:
    count = sum(len(series) for series in mapping.formats.values())
    formats = ", ".join(mapping.formats) or "none"
    return f"{count} series of formats: {formats}"


def _written(mapping: MappingDocument) -> str:
    document = mapping.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return json.dumps(document, indent=2, ensure_ascii=False)
