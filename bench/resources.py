"""What processes used: CPU time, memory, and what the database wrote for it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

_PREFIX = "fleetmeter "


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTimes:
    """CPU seconds of processes since each began: ours by role, the database's by pid and role."""

    of_roles: Mapping[str, float]
    of_backends: Mapping[int, tuple[str, float]]
    of_ended_backends: float

    def since(self, before: "CpuTimes") -> dict[str, float]:
        """Return the seconds that each role used from `before` to now."""
        used = {name: spent - before.of_roles[name] for name, spent in self.of_roles.items()}
        ended = self.of_ended_backends - before.of_ended_backends
        for pid, (_, spent) in before.of_backends.items():
            if pid not in self.of_backends:
                ended -= spent
        if self.of_backends:
            used["database other"] = max(0.0, ended)
        for pid, (role, spent) in self.of_backends.items():
            _, spent_before = before.of_backends.get(pid, ("", 0.0))
            used[role] = used.get(role, 0.0) + spent - spent_before
        return used


def cpu_times(pids: Mapping[str, Iterable[int]], postmaster: int | None, url: str) -> CpuTimes:
    """Look at the clocks of some processes by role, and of the database's, told apart by its clients."""
    of_roles = {role: sum(_seconds(pid) for pid in members) for role, members in pids.items()}
    backends: dict[int, tuple[str, float]] = {}
    ended = 0.0
    if postmaster is not None:
        server = psutil.Process(postmaster)
        times = server.cpu_times()
        ended = times.children_user + times.children_system
        roles = _backend_roles(url)
        backends = {
            each.pid: (roles.get(each.pid, "database other"), _seconds(each.pid))
            for each in [server, *server.children()]
        }
    return CpuTimes(of_roles=of_roles, of_backends=backends, of_ended_backends=ended)


def _seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _backend_roles(url: str) -> dict[int, str]:
    """Return what each backend that serves us does, by the name under which its client came."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid, application_name FROM pg_stat_activity WHERE starts_with(application_name, %s)",
            [_PREFIX],
        ).fetchall()
    roles: dict[int, str] = {}
    for pid, application in rows:
        work = str(application).removeprefix(_PREFIX).split()[0]
        roles[int(pid)] = f"database {work}"
    return roles


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Octets of one role's processes: the largest peak of resident memory, and the sum of their shares."""

    peak_resident: int
    proportional: int


def memory_of(pids: Mapping[str, Iterable[int]], postmaster: int | None) -> dict[str, Memory]:
    """Return what memory processes took, by role; the database's as one."""
    families = {role: [psutil.Process(pid) for pid in members] for role, members in pids.items()}
    if postmaster is not None:
        server = psutil.Process(postmaster)
        families["database"] = [server, *server.children()]
    return {
        role: Memory(
            peak_resident=max((peak_octets(each.pid) for each in members), default=0),
            proportional=sum(_proportional_octets(each) for each in members),
        )
        for role, members in families.items()
    }


def peak_octets(pid: int) -> int:
    """Return the most resident memory that a process had; 0 where it ended, or cannot be told."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = [line.split()[1] for line in lines.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else 0


def _proportional_octets(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):  # not ours to look at, or not Linux
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a database has written since it began: rows by table, and octets."""

    rows: Mapping[str, Mapping[str, int]]
    table_octets: int
    index_octets: int

    def since(self, before: "Written") -> "Written":
        """Return what was written from `before` to now; tables without any are left out."""
        rows = {
            table: {
                kind: count - before.rows.get(table, {}).get(kind, 0)
                for kind, count in kinds.items()
            }
            for table, kinds in self.rows.items()
        }
        return Written(
            rows={table: kinds for table, kinds in rows.items() if any(kinds.values())},
            table_octets=self.table_octets - before.table_octets,
            index_octets=self.index_octets - before.index_octets,
        )


_ROWS = (
    "SELECT coalesce(hypertable_name, relname)::text, sum(n_tup_ins)::bigint, sum(n_tup_upd)::bigint,"
    " sum(n_tup_hot_upd)::bigint, sum(n_tup_del)::bigint FROM pg_stat_user_tables"
    " LEFT JOIN timescaledb_information.chunks ON chunk_schema = schemaname AND chunk_name = relname"
    " WHERE starts_with(schemaname, '_timescaledb_internal') OR schemaname IN ('public', 'chunk') GROUP BY 1"
)
_OCTETS = (
    "SELECT sum(pg_table_size(oid))::bigint, sum(pg_indexes_size(oid))::bigint FROM pg_class"
    " WHERE relkind = 'r' AND relnamespace IN ('public'::regnamespace,"
    " '_timescaledb_internal'::regnamespace, 'chunk'::regnamespace)"
)


def written(url: str) -> Written:
    """Count what a database has written; of sessions that are still open not yet all of it."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(_ROWS.encode()).fetchall()
        octets = connection.execute(_OCTETS.encode()).fetchone()
    assert octets is not None  # noqa: S101 - aggregates return one row
    return Written(
        rows={
            row[0]: dict(
                zip(("inserted", "updated", "updated_hot", "deleted"), row[1:], strict=True)
            )
            for row in rows
        },
        table_octets=octets[0],
        index_octets=octets[1],
    )


def wal_octets(url: str) -> int:
    """Return how many octets of write-ahead log the server, not just this database, has written."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
        ).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM returns one row
    return int(row[0])
