"""What the agent remembers across restarts, in one SQLite file: numbers, baselines, readings, limits.

Every change is durable when its method returns (WAL, synchronous=FULL). One agent has the file at
a time. Readings are numbered under a boot id that lasts as long as the kernel runs, so that an
epoch of counters, which is one life within one run of the kernel, never spans two.

A file that is damaged is set aside, and numbering begins anew under boot ids that never were.
"""

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from metering.agent.epoch import CounterState, observed, used_since, watched
from metering.agent.sample import WHOLE_BITS, Sample, label_of
from metering.errors import InvalidValue
from metering.uplink.outbox import Pending, Settled, held_or_rejected
from metering.usage import DATA, Reading, ReadingKind
from metering.wire import native
from metering.wire.ack import Ack, RejectedReading
from metering.wire.command import Limits

REJECTIONS_KEPT = 100
"""How many rejected readings are remembered in full."""

READINGS_MAX = 20_000
"""Readings kept while the platform cannot be reached: a day at one every five seconds."""
COUNTERS_MAX = 1000
"""Counters that are remembered: each connection of a modem is one."""
_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldReading:
    """The newest reading while it may still be replaced, and what was used since the one before."""

    position: int
    boot: str
    reading: Reading
    used: tuple[int, int]


class _Damaged(Exception):
    """The file is no database, or one that contradicts itself."""


class StateFile:
    """The agent's memory, and its outbox.

    `set_aside` is where a damaged file went in whose place this one was begun; else None. Raises
    `InvalidValue` when another agent has the file, or when it is another device's.
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
        self.set_aside: Path | None = None
        self._kernel_boot = kernel_boot
        try:
            self._database = self._opened(path, tenant, device)
        except _Damaged:
            self.set_aside = _set_aside(path)
            self._database = self._opened(path, tenant, device)

    def close(self) -> None:
        """Let another agent have the file."""
        self._database.close()

    @property
    def has_room(self) -> bool:
        """Whether another reading may be released."""
        return len(self) < self.readings_max

    def measure(self, sample: Sample, at: datetime) -> None:
        """Hold a reading of a counter, in place of a held one of the same epoch."""
        with self._transaction():
            before = self._counter(sample.counter)
            after = observed(
                before, sample, self._kernel_boot, is_first=not self._knows(sample.family)
            )
            used = used_since(before, after)
            held = self._held("AND epoch = ?", (after.epoch,))
            if held is not None:
                boot, seq = held.boot, held.reading.seq
                used = (used[0] + held.used[0], used[1] + held.used[1])
                self._database.execute("DELETE FROM outbox WHERE position = ?", (held.position,))
            else:
                boot, seq = self._next_number()
            self._hold(boot, _reading(seq, at, after, sample), used)
            self._save_counter(after, sample.family)

    def watch(self, sample: Sample) -> None:
        """Note what a counter says that counts the same octets as another, which is metered."""
        with self._transaction():
            after = watched(self._counter(sample.counter), sample, self._kernel_boot)
            self._save_counter(after, sample.family)

    @property
    def limits(self) -> Limits:
        """What may be used by the commands that were obeyed."""
        row = self._database.execute(
            "SELECT throttled_by, octets_per_second, suspended_by, resumed_by FROM limits"
        ).fetchone()
        return Limits(
            throttled_by=row[0], octets_per_second=row[1], suspended_by=row[2], resumed_by=row[3]
        )

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._database.execute(
            "UPDATE limits SET throttled_by = ?, octets_per_second = ?, suspended_by = ?,"
            " resumed_by = ?",
            (
                *(limits.throttled_by, limits.octets_per_second),
                *(limits.suspended_by, limits.resumed_by),
            ),
        )

    def held(self) -> list[HeldReading]:
        """Return the readings that are held, in the order of measuring."""
        rows = self._database.execute(_HELD + " ORDER BY position").fetchall()
        return [_held(row) for row in rows]

    def is_of_an_ended_epoch(self, held: HeldReading) -> bool:
        """Whether no counter goes on in a held reading's epoch, so that it stays as it is."""
        rows = self._database.execute(_COUNTERS).fetchall()
        return held.reading.epoch not in {_state(row).epoch for row in rows}

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

    def _opened(self, path: Path, tenant: str, device: str) -> sqlite3.Connection:
        """Return the open file; raises `_Damaged` where it cannot be read."""
        try:
            self._database = sqlite3.connect(path, timeout=0.5, isolation_level=None)
            with _closed_on_fault(self._database):
                self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                with self._transaction():
                    self._check_whole()
                    self._create_or_check(path, tenant, device)
        except sqlite3.OperationalError as error:
            raise InvalidValue(
                "state",
                f"{path} cannot be used: {error}",
                "stop the other agent, or use a folder of its own",
            ) from None
        except sqlite3.DatabaseError:
            raise _Damaged from None
        return self._database

    def _check_whole(self) -> None:
        if self._database.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise _Damaged

    def _create_or_check(self, path: Path, tenant: str, device: str) -> None:
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _statements("state.sql"):
                self._database.execute(statement)
            self._database.execute(
                "INSERT INTO install (install_id, tenant, device, kernel_boot, boots, last_seq)"
                " VALUES (?, ?, ?, ?, 1, 0)",
                (secrets.token_hex(8), tenant, device, self._kernel_boot),
            )
        elif version == 1:
            for statement in _statements("state_upgrade.sql"):
                self._database.execute(statement)
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

    def _held(self, condition: str, values: tuple[object, ...]) -> HeldReading | None:
        row = self._database.execute(f"{_HELD} {condition}", values).fetchone()
        return None if row is None else _held(row)

    def _knows(self, family: str) -> bool:
        """Whether a counter of the family was seen before; one without a family is its own."""
        row = self._database.execute(
            "SELECT EXISTS (SELECT 1 FROM counter WHERE family = ? AND family <> '')", (family,)
        ).fetchone()
        return bool(row[0])

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

    def _counter(self, counter: str) -> CounterState | None:
        row = self._database.execute(_COUNTERS + " WHERE counter = ?", (counter,)).fetchone()
        return None if row is None else _state(row)

    def _save_counter(self, state: CounterState, family: str) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO counter (counter, label, kernel_boot, life, falls,"
            " baseline_up, baseline_down, seen_up, seen_down, family)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(state.counter, state.label, state.kernel_boot, state.life, state.falls),
                *(*state.baseline, *state.seen, family),
            ),
        )
        self._database.execute(
            "DELETE FROM counter WHERE rowid = (SELECT min(rowid) FROM counter)"
            " AND (SELECT count(*) FROM counter) > ?",
            (COUNTERS_MAX,),
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


_HELD = "SELECT position, boot, message, used_up, used_down FROM outbox WHERE held = 1"
_COUNTERS = (
    "SELECT counter, label, kernel_boot, life, falls, baseline_up, baseline_down, seen_up,"
    " seen_down FROM counter"
)
_Row = tuple[str, str, str, str, int, int, int, int, int]


def _state(row: _Row) -> CounterState:
    return CounterState(
        counter=row[0],
        label=row[1],
        kernel_boot=row[2],
        life=row[3],
        falls=row[4],
        baseline=(row[5], row[6]),
        seen=(row[7], row[8]),
    )


def _held(row: tuple[int, str, bytes, int, int]) -> HeldReading:
    return HeldReading(
        position=row[0], boot=row[1], reading=_decoded(row[2]), used=(row[3], row[4])
    )


def _statements(name: str) -> list[str]:
    text = files("metering.agent").joinpath(name).read_text(encoding="utf-8")
    return [statement for statement in text.split(";") if statement.strip()]


def _reading(seq: int, at: datetime, state: CounterState, sample: Sample) -> Reading:
    uplink, downlink = state.counted
    return Reading(
        seq=seq,
        at=at,
        meter=DATA,
        kind=ReadingKind.TOTAL,
        uplink=uplink,
        downlink=downlink,
        epoch=state.epoch,
        width=WHOLE_BITS,
        zone=label_of(sample.zone),
        rat=label_of(sample.rat),
        apn=label_of(sample.apn),
        session=label_of(sample.session),
    )


def _decoded(message: bytes) -> Reading:
    decoded = native.decode(message, payload_octets_max=len(message), readings_max=1)
    assert isinstance(decoded, native.DecodedMessage)  # noqa: S101 - written by this module
    return decoded.readings[0]


@contextmanager
def _closed_on_fault(database: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        database.close()
        raise


def _set_aside(path: Path) -> Path:
    """Rename a damaged file and what SQLite keeps beside it; return its new name."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside
