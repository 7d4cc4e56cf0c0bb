"""What the agent remembers across restarts, in one SQLite file: numbers, baselines, readings.

Every change is durable when its method returns (WAL, synchronous=FULL). One agent has the file at
a time. Readings are numbered under a boot id that lasts as long as the kernel runs, so that an
epoch of counters, which cannot outlive the kernel, never spans two.
"""

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from metering.agent.counters import InterfaceCounters
from metering.agent.epoch import CounterState, observed, used_since
from metering.errors import InvalidValue
from metering.uplink.outbox import REJECTIONS_KEPT, Pending, Settled, held_or_rejected
from metering.usage import DATA, Reading, ReadingKind
from metering.wire import native
from metering.wire.ack import Ack, RejectedReading

READINGS_MAX = 20_000
"""Readings kept while the platform cannot be reached: a day at one every five seconds."""
_VERSION = 1
_COUNTER_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldReading:
    """The newest reading while it may still be replaced, and what was used since the one before."""

    position: int
    boot: str
    reading: Reading
    used: tuple[int, int]


class StateFile:
    """The agent's memory, and its outbox.

    Raises `InvalidValue` when another agent has the file, or when it is another device's.
    """

    def __init__(
        self,
        path: Path,
        *,
        tenant: str,
        device: str,
        kernel_boot: str,
        readings_max: int = READINGS_MAX,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.readings_max = readings_max
        self._kernel_boot = kernel_boot
        self._database = sqlite3.connect(path, timeout=0.5, isolation_level=None)
        try:
            self._open(path, tenant, device)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Let another agent have the file."""
        self._database.close()

    @property
    def has_room(self) -> bool:
        """Whether another reading may be released."""
        return len(self) < self.readings_max

    def measure(self, interface: str, counters: InterfaceCounters, at: datetime) -> None:
        """Hold a reading of the counters, in place of a held one of the same epoch."""
        with self._transaction():
            before = self._counter(interface)
            after = observed(before, interface, self._kernel_boot, counters)
            used = used_since(before, after)
            held = self.held()
            if held is not None and held.reading.epoch == after.epoch:
                boot, seq = held.boot, held.reading.seq
                used = (used[0] + held.used[0], used[1] + held.used[1])
                self._database.execute("DELETE FROM outbox WHERE position = ?", (held.position,))
            else:
                boot, seq = self._next_number()
            self._hold(boot, _reading(seq, at, after), used)
            self._save_counter(after)

    def held(self) -> HeldReading | None:
        """Return the oldest reading that is held."""
        row = self._database.execute(
            "SELECT position, boot, message, used_up, used_down FROM outbox"
            " WHERE held = 1 ORDER BY position LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        return HeldReading(
            position=row[0], boot=row[1], reading=_decoded(row[2]), used=(row[3], row[4])
        )

    def newest_held_position(self) -> int:
        """Return the position of the newest reading that is held; 0 when none is."""
        row = self._database.execute(
            "SELECT coalesce(max(position), 0) FROM outbox WHERE held = 1"
        ).fetchone()
        return int(row[0])

    def release(self, position: int) -> None:
        """Let a held reading be published; from now on it never changes."""
        self._database.execute("UPDATE outbox SET held = 0 WHERE position = ?", (position,))

    def __len__(self) -> int:
        row = self._database.execute("SELECT count(*) FROM outbox WHERE held = 0").fetchone()
        return int(row[0])

    def pending(self, limit: int, after: int = 0) -> list[Pending]:
        """Return the first `limit` released readings beyond position `after`, in order."""
        rows = self._database.execute(
            "SELECT position, boot, message FROM outbox"
            " WHERE held = 0 AND position > ? ORDER BY position LIMIT ?",
            (after, limit),
        ).fetchall()
        return [
            Pending(position=position, boot=boot, reading=_decoded(message))
            for position, boot, message in rows
        ]

    def acknowledge(self, ack: Ack) -> Settled:
        """Forget what the acknowledgement holds or rejects; anything else stays as it is."""
        rows = self._database.execute(
            "SELECT seq, position FROM outbox WHERE boot = ? AND held = 0 ORDER BY seq", (ack.boot,)
        ).fetchall()
        pending: dict[int, int] = dict(rows)
        rejected = tuple(refusal for refusal in ack.rejected if refusal.seq in pending)
        positions = tuple(pending[seq] for seq in held_or_rejected(pending, ack))
        if positions:
            with self._transaction():
                self._database.executemany(
                    "DELETE FROM outbox WHERE position = ?", [(one,) for one in positions]
                )
                self._record_rejected(ack.boot, rejected)
        return Settled(positions=positions, rejected=rejected)

    def _open(self, path: Path, tenant: str, device: str) -> None:
        try:
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            with self._transaction():
                self._create_or_check(path, tenant, device)
        except sqlite3.DatabaseError as error:
            raise InvalidValue(
                "state",
                f"{path} cannot be used: {error}",
                "stop the other agent, or use a folder of its own",
            ) from None

    def _create_or_check(self, path: Path, tenant: str, device: str) -> None:
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _schema():
                self._database.execute(statement)
            self._database.execute(
                "INSERT INTO install (install_id, tenant, device, kernel_boot, boots, last_seq)"
                " VALUES (?, ?, ?, ?, 1, 0)",
                (secrets.token_hex(8), tenant, device, self._kernel_boot),
            )
        elif version != _VERSION:
            raise InvalidValue("state", f"{path} is of a newer release", "use that release")
        owner = self._database.execute("SELECT tenant, device FROM install").fetchone()
        if owner != (tenant, device):
            raise InvalidValue(
                "state", f"{path} is of device {'/'.join(owner)}", "use a folder for each device"
            )
        self._database.execute(
            "UPDATE install SET kernel_boot = ?, boots = boots + 1, last_seq = 0"
            " WHERE kernel_boot <> ?",
            (self._kernel_boot, self._kernel_boot),
        )

    def _next_number(self) -> tuple[str, int]:
        """Return the boot id and the sequence number of a new reading; none is given twice."""
        install_id, boots, seq = self._database.execute(
            "UPDATE install SET last_seq = last_seq + 1 RETURNING install_id, boots, last_seq"
        ).fetchone()
        return f"{install_id}-{boots}", seq

    def _hold(self, boot: str, reading: Reading, used: tuple[int, int]) -> None:
        self._database.execute(
            "INSERT INTO outbox (boot, seq, epoch, message, used_up, used_down, held)"
            " VALUES (?, ?, ?, ?, ?, ?, 1)",
            (boot, reading.seq, reading.epoch, native.encode(boot, None, [reading]), *used),
        )

    def _counter(self, interface: str) -> CounterState | None:
        row = self._database.execute(
            "SELECT kernel_boot, ifindex, falls, baseline_up, baseline_down, seen_up, seen_down"
            " FROM counter WHERE interface = ?",
            (interface,),
        ).fetchone()
        if row is None:
            return None
        return CounterState(
            interface=interface,
            kernel_boot=row[0],
            ifindex=row[1],
            falls=row[2],
            baseline=(row[3], row[4]),
            seen=(row[5], row[6]),
        )

    def _save_counter(self, state: CounterState) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO counter (interface, kernel_boot, ifindex, falls,"
            " baseline_up, baseline_down, seen_up, seen_down) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(state.interface, state.kernel_boot, state.ifindex, state.falls),
                *(*state.baseline, *state.seen),
            ),
        )

    def _record_rejected(self, boot: str, rejected: tuple[RejectedReading, ...]) -> None:
        self._database.executemany(
            "INSERT INTO rejected (boot, seq, reason, detail) VALUES (?, ?, ?, ?)",
            [(boot, refusal.seq, refusal.reason, refusal.detail) for refusal in rejected],
        )
        self._database.execute(
            "DELETE FROM rejected WHERE rejected_no <= (SELECT max(rejected_no) FROM rejected) - ?",
            (REJECTIONS_KEPT,),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _schema() -> list[str]:
    text = files("metering.agent").joinpath("state.sql").read_text(encoding="utf-8")
    return [statement for statement in text.split(";") if statement.strip()]


def _reading(seq: int, at: datetime, state: CounterState) -> Reading:
    uplink, downlink = state.counted
    return Reading(
        seq=seq,
        at=at,
        meter=DATA,
        kind=ReadingKind.TOTAL,
        uplink=uplink,
        downlink=downlink,
        epoch=state.epoch,
        width=_COUNTER_BITS,
    )


def _decoded(message: bytes) -> Reading:
    decoded = native.decode(message, payload_octets_max=len(message), readings_max=1)
    assert isinstance(decoded, native.DecodedMessage)  # noqa: S101 - written by this module
    return decoded.readings[0]
