"""What one device says to the platform and hears from it, whatever carries it: no I/O, no waiting."""

import logging
from collections import Counter
from dataclasses import dataclass, field

from pydantic import ValidationError

from metering.uplink.outbox import Outbox
from metering.uplink.schedule import Batch, Pace, Schedule
from metering.wire.ack import Ack
from metering.wire.ack import decode as decode_ack
from metering.wire.command import Command, command_id_of, decode_command, encode_ack

_COMMANDS_REMEMBERED_MAX = 1000
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Traffic:
    """What was done so far, by one device or by several that count together.

    `readings` counts those published for the first time by this process, `resent` each further
    time; `acknowledged` those that are durable, `rejected` those refused for good, and `refusals`
    the refusals of whole messages, whose readings stay pending; both by reason. `obeyed` and
    `disobeyed` count commands by kind, each command once however often it came.
    """

    messages: int = 0
    readings: int = 0
    resent: int = 0
    acknowledged: int = 0
    connections: int = 0
    bad_acks: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    obeyed: Counter[str] = field(default_factory=Counter)
    disobeyed: Counter[str] = field(default_factory=Counter)
    repeated_commands: int = 0
    bad_commands: int = 0


class Dialogue:
    """Decides what to publish next, takes acknowledgements, and answers each command as once obeyed."""

    __slots__ = ("_answers", "_name", "schedule", "traffic")

    def __init__(self, name: str, outbox: Outbox, pace: Pace, traffic: Traffic) -> None:
        self.schedule = Schedule(outbox, pace)
        self.traffic = traffic
        self._name = name
        self._answers: dict[str, bytes] = {}

    def next_batch(self, now: float) -> Batch | None:
        """Return what to publish now, counted as sent; None when nothing is due."""
        batch = self.schedule.next_batch(now)
        if batch is None:
            return None
        if batch.resent:
            self.traffic.resent += len(batch.readings)
        else:
            self.traffic.readings += len(batch.readings)
        return batch

    def read_ack(self, payload: bytes) -> Ack | None:
        """Read an acknowledgement; one that cannot be read is counted, and None."""
        try:
            return decode_ack(payload)
        except ValidationError as error:
            self.traffic.bad_acks += 1
            _log.warning("%s: not an acknowledgement: %s", self._name, error)
            return None

    def hear(self, ack: Ack, now: float) -> None:
        """Take what the platform holds or refuses."""
        settled = self.schedule.acknowledge(ack, now)
        for refusal in settled.rejected:
            self.traffic.rejected[refusal.reason] += 1
            _log.warning(
                "%s: reading %s of boot %s was rejected: %s: %s",
                *(self._name, refusal.seq, ack.boot, refusal.reason, refusal.detail),
            )
        for refusal in ack.rejected:
            if refusal.seq is None:
                self._count_refusal(refusal.reason, refusal.detail)
        self.traffic.acknowledged += len(settled.positions) - len(settled.rejected)

    def read_command(self, payload: bytes) -> Command | bytes | None:
        """Return a command; the answer to what is one and cannot be read; None for anything else."""
        try:
            return decode_command(payload)
        except ValidationError as error:
            self.traffic.bad_commands += 1
            _log.warning("%s: not a command: %s", self._name, error)
            command_id = command_id_of(payload)
            refusal = "this device cannot read the command"
            return None if command_id is None else encode_ack(command_id, "refused", refusal)

    def known_answer(self, command: Command) -> bytes | None:
        """Return what was answered to a command that came before; None for a new one."""
        answer = self._answers.get(command.id)
        if answer is not None:
            self.traffic.repeated_commands += 1
        return answer

    def answer(self, command: Command, refused: str | None) -> bytes:
        """Return the answer to a command that was obeyed now, or why it was not, and remember it."""
        counted = self.traffic.obeyed if refused is None else self.traffic.disobeyed
        counted[command.kind.value] += 1
        answer = encode_ack(command.id, "done" if refused is None else "refused", refused)
        self._answers[command.id] = answer
        if len(self._answers) > _COMMANDS_REMEMBERED_MAX:
            del self._answers[next(iter(self._answers))]
        return answer

    def _count_refusal(self, reason: str, detail: str) -> None:
        if reason not in self.traffic.refusals:
            _log.warning("%s: a message was refused: %s: %s", self._name, reason, detail)
        self.traffic.refusals[reason] += 1
