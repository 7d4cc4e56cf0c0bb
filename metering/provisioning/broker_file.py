"""Tells a broker of many clients at once: writes the plugin's file while the stack's broker is stopped.

The plugin itself writes its whole file at each change, while it keeps every other client waiting.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from metering.credentials.dynamic_security import Command, hashed, with_commands
from metering.errors import BrokerRefused
from metering.settings import Settings
from metering.stack import lifecycle
from metering.stack.broker_files import DYNAMIC_SECURITY_FILE, write_dynamic_security


class BrokerFile:
    """Does what the plugin's commands say, all in one go, with a restart of the broker around it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def tell(self, commands: Sequence[Command]) -> None:
        """Stop the broker, do the commands, start it again; its sessions and queues stay.

        Raises `BrokerRefused` where the stack runs no broker.
        """
        done = await asyncio.to_thread(
            hashed, commands
        )  # before: nobody is served while it is stopped

        def write(folder: Path) -> None:
            known = json.loads((folder / DYNAMIC_SECURITY_FILE).read_text("utf-8"))
            write_dynamic_security(folder, with_commands(known, done))

        if not await asyncio.to_thread(lifecycle.while_broker_is_stopped, self._settings, write):
            raise BrokerRefused("no broker of the stack runs here; leave out --restart-broker")
