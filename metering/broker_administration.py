"""Tells a running Mosquitto who may connect and what each may do, through its plugin."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt

from metering.broker_address import BrokerAddress
from metering.credentials.dynamic_security import (
    CONTROL_TOPIC,
    RESPONSE_TOPIC,
    Command,
    refusals,
)
from metering.errors import BrokerRefused

_ANSWER_SECONDS_MAX = 30.0
_COMMANDS_MAX = 10
"""Most commands of a message: the plugin writes its whole file for each, and serves nobody meanwhile."""
_PAGE = 1000


class Administration:
    """A connection to the plugin of a broker. Every command is answered before the next is sent."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client

    async def tell(self, commands: Sequence[Command]) -> None:
        """Give commands, which may have been given before, in their order.

        Raises `BrokerRefused` when the plugin refuses one or does not answer, `aiomqtt.MqttError` when
        the broker is gone.
        """
        refused: list[str] = []
        for first in range(0, len(commands), _COMMANDS_MAX):
            refused += refusals(await self._ask(commands[first : first + _COMMANDS_MAX]))
        if refused:
            raise BrokerRefused("; ".join(refused[:5]))

    async def roles(self) -> dict[str, set[tuple[str, str]]]:
        """Return the rules of every role, as pairs of what may be done and the topic."""
        return {
            str(each["rolename"]): {(rule["acltype"], rule["topic"]) for rule in each["acls"]}
            for each in await self._list("listRoles", "roles", verbose=True)
        }

    async def clients(self) -> dict[str, bool]:
        """Return the names of all clients, and whether each is kept away."""
        return {
            str(each["username"]): bool(each.get("disabled"))
            for each in await self._list("listClients", "clients", verbose=True)
        }

    async def _list(self, command: str, kind: str, *, verbose: bool) -> list[Any]:
        found: list[Any] = []
        while True:
            (answer,) = await self._ask(
                [{"command": command, "verbose": verbose, "count": _PAGE, "offset": len(found)}]
            )
            if "error" in answer:
                raise BrokerRefused(f"{command}: {answer['error']}")
            page = answer["data"][kind]
            found += page
            if not page or len(found) >= answer["data"]["totalCount"]:
                return found

    async def _ask(self, commands: Sequence[Command]) -> list[dict[str, Any]]:
        mark = secrets.token_hex(8)
        marked = [{**each, "correlationData": mark} for each in commands]
        await self._client.publish(
            CONTROL_TOPIC,
            json.dumps({"commands": marked}),
            qos=1,
            timeout=_ANSWER_SECONDS_MAX,
        )
        end_if_cancelled()
        answers: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                messages = self._client.messages
                while len(answers) < len(commands):
                    heard = json.loads((await anext(messages)).payload)
                    answers += [
                        each for each in heard["responses"] if each.get("correlationData") == mark
                    ]
        except TimeoutError:
            raise BrokerRefused(
                "no answer: has the broker the dynamic security plugin, and may we use it?"
            ) from None
        return answers


@asynccontextmanager
async def administration(broker: BrokerAddress) -> AsyncIterator[Administration]:
    """Connect to a broker's plugin; raises `aiomqtt.MqttError` when the broker does not let us in."""
    async with connected(
        aiomqtt.Client(
            broker.host,
            broker.port,
            identifier=f"fleetmeter-rights-{secrets.token_hex(4)}",
            username=broker.username,
            password=broker.password,
            tls_context=broker.tls_context(),
        )
    ) as client:
        await client.subscribe(RESPONSE_TOPIC, qos=1)
        end_if_cancelled()
        yield Administration(client)
    end_if_cancelled()


_CONNECTING_SECONDS_MAX = 5.0
"""How long the end of a task waits for a client that is about to connect."""


@asynccontextmanager
async def connected(client: aiomqtt.Client) -> AsyncIterator[aiomqtt.Client]:
    """Connect a client, and close it also if this task is told to end while it connects.

    aiomqtt connects in a thread of its own, which nothing stops: left alone, its socket stays open.
    """
    connecting = asyncio.ensure_future(client.__aenter__())
    try:
        await asyncio.shield(connecting)
    except asyncio.CancelledError:
        await asyncio.wait([connecting], timeout=_CONNECTING_SECONDS_MAX)
        if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
            with contextlib.suppress(aiomqtt.MqttError):
                await client.__aexit__(None, None, None)
        connecting.cancel()
        raise
    try:
        end_if_cancelled()
        yield client
    finally:
        await client.__aexit__(None, None, None)


def end_if_cancelled() -> None:
    """End this task if it was told to end.

    To be called after each wait of aiomqtt's: until Python 3.12 `asyncio.wait_for`, by which it waits,
    hides that it was cancelled when what it waits for comes at the same moment.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
