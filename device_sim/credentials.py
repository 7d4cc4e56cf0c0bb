"""What each simulated device connects with: a password or a certificate of its own."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from metering.broker_address import BrokerAddress
from metering.credentials.rights import broker_username
from metering.errors import InvalidValue


def add_credentials(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that name the credentials."""
    parser.add_argument(
        "--credentials", type=Path, metavar="FILE",
        help="what each device connects with: lines of a name, a space and a password",
    )  # fmt: skip
    parser.add_argument(
        "--certificates", type=Path, metavar="DIR",
        help="what each device connects with: files DEVICE.pem and DEVICE.key",
    )  # fmt: skip


def brokers_of(
    arguments: argparse.Namespace, broker: BrokerAddress, tenant: str, devices: Sequence[str]
) -> Callable[[str], BrokerAddress]:
    """Return where each device connects, and with what; raises `InvalidValue` where one has nothing."""
    if arguments.certificates is not None:
        folder: Path = arguments.certificates
        return lambda device: replace(
            broker, certificate_file=folder / f"{device}.pem", key_file=folder / f"{device}.key"
        )
    if arguments.credentials is None:
        return lambda _device: broker
    passwords = pairs_of(arguments.credentials)
    names = {device: broker_username(tenant, device) for device in devices}
    for name in names.values():
        if name not in passwords:
            raise InvalidValue("--credentials", f"has no line for {name}", "add the device")
    return lambda device: replace(broker, username=names[device], password=passwords[names[device]])


def pairs_of(file: Path) -> dict[str, str]:
    """Return what a file of lines says: a name, a space, and what belongs to it."""
    lines = file.read_text("utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines if " " in line)
