"""A simulated device that asks for quota, keeps to what it was granted, and obeys what it is told."""

import json
import random
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from metering.charging.reserve import Refused
from metering.control.quota import answer_of
from metering.store.reservations import Reservation
from metering.wire.command import Command, CommandKind, Limits, decode_command, encode_ack
from metering.wire.quota import QuotaAnswer


class CommandChanged(AssertionError):
    """A command came again with another content."""


@dataclass(slots=True)
class Grant:
    """What a device asked for under one name, what it was told, and what it used of it."""

    request: str
    meter: str
    is_answered: bool = False
    granted: int = 0
    expires_at: datetime | None = None
    used: int = 0
    is_over: bool = False
    """Whether the device asked to end it, or for the next one: it uses no more of it."""

    def left(self, now: datetime) -> int:
        """Return what may still be used of it."""
        if self.is_over or self.expires_at is None or now >= self.expires_at:
            return 0
        return self.granted - self.used


@dataclass(slots=True)
class QuotaSide:
    """A device's side of quota and commands.

    It has one request at a time on its way, which it repeats, unchanged, until it hears of it.
    """

    asks: tuple[str, ...] = ()
    """The meters for which it asks for quota; of data it uses nothing else."""
    serial: int = 0
    grants: dict[str, Grant] = field(default_factory=dict)
    """request id → what was asked for under it, in that order"""
    current: dict[str, Grant] = field(default_factory=dict)
    """meter → its last grant"""
    waiting: tuple[str, bytes] | None = None
    """(request id, message) that is not answered yet."""
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    """Every different request: (request id, message)."""
    told: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    """command id → number, kind and payload, as it was told first"""
    limits: Limits = field(default_factory=Limits)

    def left(self, meter: str, now: datetime) -> int:
        """Return what may be used of a meter now."""
        grant = self.current.get(meter)
        return 0 if grant is None else grant.left(now)

    def ask(self, chance: random.Random, now: datetime) -> bytes:
        """Return a request for quota: the one that is not answered yet, or another."""
        if self.waiting is not None:
            return self.waiting[1]
        meter = chance.choice(self.asks)
        grant = self.current.get(meter)
        if grant is not None and not grant.is_over and chance.random() < 0.4:
            grant.is_over = True
            action = chance.choice(["settle", "settle", "release"])
            content: dict[str, Any] = {"request": grant.request, "action": action}
            if action == "settle":
                content["used"] = grant.used
            return self._send(grant.request, content)
        self.serial += 1
        request = f"r{self.serial}"
        content = {"request": request, "meter": meter}
        quantity = chance.choice([None, None, 3, 200, 4000])
        if quantity is not None:
            content["quantity"] = quantity
        if grant is not None:
            grant.is_over = True
            if meter == "data":
                content["used"] = grant.used
        self.grants[request] = self.current[meter] = Grant(request, meter)
        del now
        return self._send(request, content)

    def _send(self, request: str, content: dict[str, Any]) -> bytes:
        payload = json.dumps(content).encode()
        self.waiting = (request, payload)
        self.sent.append(self.waiting)
        return payload

    def obey(self, payload: bytes) -> tuple[Command, bytes]:
        """Do what a command says; return it, and the answer. The same command may come again."""
        command = decode_command(payload)
        content = (command.number, command.kind.value, json.dumps(command.payload, sort_keys=True))
        if self.told.setdefault(command.id, content) != content:
            raise CommandChanged(f"{command.id} was {self.told[command.id]}, now is {content}")
        self.limits = self.limits.after(command)
        if command.kind is CommandKind.GRANT:
            self._take(QuotaAnswer.model_validate(command.payload))
        return command, encode_ack(command.id, "done")

    def answered(self, outcome: Reservation | Refused, now: datetime) -> None:
        """Take what a request was answered by somebody who asked in the device's name."""
        self.waiting = None
        if isinstance(outcome, Reservation):
            self._take(answer_of(outcome, now))

    def _take(self, answer: QuotaAnswer) -> None:
        if self.waiting is not None and answer.request == self.waiting[0]:
            self.waiting = None
        grant = self.grants.get(answer.request or "")
        if grant is not None and answer.outcome == "granted":
            grant.is_answered = True
            grant.granted = answer.granted or 0
            grant.expires_at = answer.expires_at
