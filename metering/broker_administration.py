"""Tells a running Mosquitto who may connect and what each may do, through its plugin."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiomqtt

from metering.broker_address import BrokerAddress
from metering.credentials.dynamic_security import (
    CONTROL_TOPIC,
    RESPONSE_TOPIC,
    Command,
    Rule,
    improvements,
    questions,
    refusals,
    rules_in,
)
from metering.errors import BrokerRefused

_ANSWER_SECONDS_MAX = 30.0
_COMMANDS_MAX = 10
"""Most commands of a message: the plugin writes its whole file for each, and serves nobody meanwhile."""
_PAGE = 1000


class Known(NamedTuple):
    """What the broker knows of a client: whether it is kept away, and its roles, what counts first first."""

    is_kept_away: bool
    roles: tuple[str, ...]


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

    async def bring_up_to_date(self, topic_root: str) -> None:
        """Have the broker hold what all devices share, which an earlier release did not make."""
        await self.tell(improvements(await self._ask(questions()), topic_root))

    async def has_read_signals(self) -> None:
        """Wait until the broker has done what a signal that it was sent before asks for.

        It looks at signals after each round of its loop: the first answer comes from a round that began after
        the signal, the second from the round after.
        """
        for _ in range(2):
            await self._ask(questions())

    async def roles(self) -> dict[str, set[Rule]]:
        """Return the rules of every role."""
        return {
            str(each["rolename"]): rules_in(each)
            for each in await self._list("listRoles", "roles", verbose=True)
        }

    async def clients(self) -> dict[str, Known]:
        """Return what the broker knows of each client, by its name."""
        return {
            str(each["username"]): Known(
                is_kept_away=bool(each.get("disabled")),
                roles=tuple(str(role["rolename"]) for role in each["roles"]),
            )
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
async def administration(broker: BrokerAddress, topic_root: str) -> AsyncIterator[Administration]:
    """Connect to a broker's plugin, which then holds what all devices below a root share.

    Raises `aiomqtt.MqttError` when the broker does not let us in, `BrokerRefused` when it does not answer.
    """
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
        told = Administration(client)
        await told.bring_up_to_date(topic_root)
        yield told
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
