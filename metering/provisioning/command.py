"""`fleetmeter device`: credentials with which devices connect to the broker."""

import argparse
import asyncio
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from metering.clock import now
from metering.control.give_credentials import Given
from metering.credentials.authority import Authority, key_pem, new_key, write_private
from metering.errors import InvalidValue
from metering.provisioning.credentials import Provisioning, provisioning
from metering.settings import Settings
from metering.stack.broker_files import factory_folder

CODE_CHARACTERS_MIN = 8
FACTORY_DAYS = 10 * 365


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare what to do, for whom, and with what the device is to connect."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("add", "give devices a credential"),
        ("rotate", "give devices another one; what they had is good no more"),
        ("revoke", "take from devices what they connect with"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("--tenant", required=True, help="the tenant's id")
        action.add_argument("devices", nargs="*", metavar="DEVICE", help="a device's id")
        action.add_argument(
            "--from",
            dest="file",
            type=Path,
            metavar="FILE",
            help="ids, one a line, beside those given",
        )
        action.add_argument(
            "--restart-broker", action="store_true",
            help="tell the stack's broker of all at once, while it is stopped: for thousands of devices",
        )  # fmt: skip
        if name == "revoke":
            continue
        way = action.add_mutually_exclusive_group()
        way.add_argument(
            "--csr", type=Path, metavar="FILE",
            help="sign this request (PKCS #10, PEM) of the one device, and print the certificate",
        )  # fmt: skip
        way.add_argument(
            "--make-key", type=Path, metavar="DIR",
            help="make key and certificate of each device, in files DEVICE.key and DEVICE.pem",
        )  # fmt: skip

    action = actions.add_parser(
        "announce", help="let devices that come with a factory certificate claim a credential, once"
    )
    action.add_argument("--tenant", required=True, help="the tenant's id")
    action.add_argument(
        "devices", nargs="+", metavar="DEVICE=CODE",
        help="a device's id, and what it shows beside the factory certificate, such as its serial number",
    )  # fmt: skip
    action.add_argument("--days", type=int, default=90, help="how long it may (%(default)s)")
    action = actions.add_parser(
        "factory", help="make a factory certificate, with which devices claim"
    )
    action.add_argument("folder", type=Path, metavar="DIR", help="for factory.key and factory.pem")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Do it; a password is printed once, after the name that goes with it, and never again."""
    if arguments.action == "factory":
        return _make_factory_certificate(arguments.folder, settings)
    if getattr(arguments, "file", None) is not None:
        arguments.devices += arguments.file.read_text("utf-8").split()
    if not arguments.devices:
        raise InvalidValue("device", "none is named", "name one, or a file with --from")
    if len(set(arguments.devices)) < len(arguments.devices):
        raise InvalidValue("device", "named twice", "name each once")
    certified = getattr(arguments, "make_key", None) or getattr(arguments, "csr", None)
    if certified is not None and arguments.restart_broker:
        raise InvalidValue(
            "--restart-broker", "certificates are given one by one", "use it for passwords"
        )
    if getattr(arguments, "make_key", None) is not None:
        arguments.make_key.mkdir(parents=True, exist_ok=True)
    return asyncio.run(_run(arguments, settings))


async def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    restart_broker = getattr(arguments, "restart_broker", False)
    async with provisioning(settings, arguments.tenant, restart_broker=restart_broker) as made:
        if arguments.action == "announce":
            codes = dict(_code(each) for each in arguments.devices)
            await made.check(list(codes), anew=False)
            await made.audit("device announce", list(codes), now=now())
            for turn in made.in_turns(list(codes)):
                told = {device_id: codes[device_id] for device_id in turn}
                await made.announce(told, now=now(), good_for=timedelta(days=arguments.days))
            print(f"{len(codes)} may claim")
            return 0
        if arguments.action == "revoke":
            await made.numbers(arguments.devices)  # unknown ones are refused, and nothing is noted
            await made.audit("device revoke", arguments.devices, now=now())
            count = await made.revoke(arguments.devices, now=now())
            print(f"revoked {count} credential{'' if count == 1 else 's'}")
            return 0 if count else 1
        anew = arguments.action == "rotate"
        await made.check(arguments.devices, anew=anew)
        if arguments.csr is not None and len(arguments.devices) > 1:
            raise InvalidValue("--csr", "a request is of one device", "name one device")
        await made.audit(f"device {arguments.action}", arguments.devices, now=now())
        if arguments.csr is not None:
            given = await made.give_certificate(
                arguments.devices[0], arguments.csr.read_bytes(), now=now(), anew=anew
            )
            print((given.certificate or b"").decode(), end="")
        elif arguments.make_key is not None:
            for device_id in arguments.devices:
                await make_key(made, device_id, arguments.make_key, anew=anew)
                print(f"wrote {arguments.make_key / device_id}.key and .pem")
        else:
            for turn in made.in_turns(arguments.devices):
                for given in await made.give_passwords(turn, now=now(), anew=anew):
                    print(f"{given.username} {given.password}", flush=True)
    return 0


def _code(text: str) -> tuple[str, str]:
    device_id, _, code = text.partition("=")
    if len(code) < CODE_CHARACTERS_MIN:
        raise InvalidValue(
            "DEVICE=CODE", "the code is too short", f"use {CODE_CHARACTERS_MIN} characters or more"
        )
    return device_id, code


def _make_factory_certificate(folder: Path, settings: Settings) -> int:
    authority = Authority.open(factory_folder(settings))
    key = new_key()
    folder.mkdir(parents=True, exist_ok=True)
    write_private(folder / "factory.key", key_pem(key))
    issued = authority.issue(key.public_key(), "factory", now=now(), days=FACTORY_DAYS)
    write_private(folder / "factory.pem", issued.pem)
    print(f"wrote {folder / 'factory.key'} and .pem")
    return 0


async def make_key(made: Provisioning, device_id: str, folder: Path, *, anew: bool) -> Given:
    """Make a device's key and certificate, in files of mode 0600."""
    key = new_key()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")]))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    await made.check([device_id], anew=anew)  # before a file of that name is made
    given = await made.give_certificate(device_id, request, now=now(), anew=anew)
    write_private(folder / f"{device_id}.key", key_pem(key))
    write_private(folder / f"{device_id}.pem", given.certificate or b"")
    return given
