"""Calls over D-Bus, as another program than the agent makes them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus

SERVICE = "org.freedesktop.ModemManager1"
ROOT = "/org/freedesktop/ModemManager1"

Call = Callable[..., Awaitable[Any]]


class Refused(Exception):
    """The other side answered with an error."""


async def on_bus(address: str, work: Callable[[Call], Awaitable[Any]]) -> Any:  # noqa: ANN401
    """Do some work with a connection of its own."""
    bus = await MessageBus(bus_address=address).connect()

    async def call(
        path: str, interface: str, member: str, signature: str = "", *body: object
    ) -> Any:  # noqa: ANN401
        answer = await bus.call(
            Message(
                destination=SERVICE,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
            )
        )
        assert answer is not None
        if answer.message_type is MessageType.ERROR:
            raise Refused(f"{member}: {answer.error_name} {answer.body}")
        return answer.body[0] if answer.body else None

    try:
        return await work(call)
    finally:
        bus.disconnect()
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


async def appears(call: Call) -> None:
    """Wait until the service is on the bus."""
    async with asyncio.timeout(20):
        while True:
            try:
                await call(ROOT, "org.freedesktop.DBus.Peer", "Ping")
            except Refused:
                await asyncio.sleep(0.05)
            else:
                return
