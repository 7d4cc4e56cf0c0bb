"""Leases: which worker charges which shards. A lease says who should; the shard's row lock, who may."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString

from metering.store.connection import Connection

LEASE_CHANNEL = "fleetmeter_lease"
"""NOTIFY channel that has workers look at the leases; its messages carry nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leases:
    """What a worker believes that it leases; each transaction of charging checks it."""

    worker_no: int
    fences: Mapping[int, int]
    """shard_no → the fence under which it is leased"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenWorker:
    """A worker as the database knows it."""

    worker_no: int
    session: str
    """The application name of the connection with which it charges."""
    lapsed: bool
    """Whether its lease time is over."""
    alive: bool
    """Whether its leases hold: they have not lapsed, and it is connected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedShard:
    """A shard, who leases it, and who did before."""

    shard_no: int
    fence: int
    worker_no: int | None
    before: int | None = None


async def register_worker(
    connection: Connection, *, host: str, pid: int, session: str, lease_seconds: float
) -> int:
    """Enter a worker whose leases `connection` keeps alive; return its number."""
    entered = await connection.execute(
        "INSERT INTO charging_worker (host, pid, session, backend_pid, started_at, leased_until)"
        " VALUES (%s, %s, %s, pg_backend_pid(), clock_timestamp(),"
        "   clock_timestamp() + make_interval(secs => %s)) RETURNING worker_no",
        [host, pid, session, lease_seconds],
    )
    row = await entered.fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING of one row returns one row
    return int(row[0])


async def beat(connection: Connection, worker_no: int, *, lease_seconds: float) -> bool:
    """Keep a worker's leases alive for so long from now; False if others gave the worker up."""
    kept = await connection.execute(
        "UPDATE charging_worker SET backend_pid = pg_backend_pid(),"
        " leased_until = clock_timestamp() + make_interval(secs => %s) WHERE worker_no = %s",
        [lease_seconds, worker_no],
    )
    return kept.rowcount == 1


async def seen_workers(connection: Connection) -> list[SeenWorker]:
    """Return all workers, in the order in which they came."""
    found = await connection.execute(
        "SELECT worker_no, session, leased_until <= clock_timestamp(),"
        " EXISTS (SELECT FROM pg_stat_activity WHERE pid = backend_pid)"
        " FROM charging_worker ORDER BY worker_no"
    )
    return [
        SeenWorker(worker_no=row[0], session=row[1], lapsed=row[2], alive=row[3] and not row[2])
        for row in await found.fetchall()
    ]


# The shards by their numbers' bits, the last first: 0, 32, 16, 48, 8, … Fleets get shards one after the
# other, so those that came together, which may have much to charge, are shared out evenly.
_SPREAD: LiteralString = "reverse(shard_no::int::bit(6)::text)"


async def all_shards(connection: Connection) -> list[LeasedShard]:
    """Return every shard and who leases it, in the order in which they are kept and taken."""
    found = await connection.execute(
        f"SELECT shard_no, fence, worker_no FROM charging_shard ORDER BY {_SPREAD}"  # noqa: S608
    )
    return [
        LeasedShard(shard_no=row[0], fence=row[1], worker_no=row[2])
        for row in await found.fetchall()
    ]


async def take_shards(
    connection: Connection, worker_no: int, *, dead: Sequence[int], most: int
) -> list[LeasedShard]:
    """Lease at most so many shards that nobody or a dead worker leases; raise their fences.

    A shard whose row somebody has locked is passed over: its charging is not over yet.
    """
    taken = await connection.execute(
        "UPDATE charging_shard SET worker_no = %s, fence = charging_shard.fence + 1,"  # noqa: S608
        "   leased_at = clock_timestamp()"
        " FROM (SELECT shard_no, worker_no FROM charging_shard"
        "   WHERE worker_no IS NULL OR worker_no = ANY(%s)"
        f"   ORDER BY {_SPREAD} LIMIT %s FOR NO KEY UPDATE SKIP LOCKED) AS free"
        " WHERE charging_shard.shard_no = free.shard_no"
        " RETURNING charging_shard.shard_no, charging_shard.fence, free.worker_no",
        [worker_no, list(dead), most],
    )
    return [
        LeasedShard(shard_no=row[0], fence=row[1], worker_no=worker_no, before=row[2])
        for row in await taken.fetchall()
    ]


async def give_up_shards(
    connection: Connection, worker_no: int, shards: Sequence[int]
) -> list[int]:
    """End a worker's leases of some shards; return of which: one that is locked stays leased."""
    given = await connection.execute(
        "UPDATE charging_shard SET worker_no = NULL"
        " WHERE shard_no IN (SELECT shard_no FROM charging_shard"
        "   WHERE worker_no = %s AND shard_no = ANY(%s) ORDER BY shard_no"
        "   FOR NO KEY UPDATE SKIP LOCKED) RETURNING shard_no",
        [worker_no, list(shards)],
    )
    return [row[0] for row in await given.fetchall()]


async def forget_workers(connection: Connection, worker_nos: Iterable[int]) -> None:
    """Remove workers that lease nothing and have lapsed, or whose connection is gone.

    One that was stopped amid a heartbeat has its row locked: it is passed over until the server ends
    its session.
    """
    await connection.execute(
        "DELETE FROM charging_worker WHERE worker_no IN (SELECT worker_no FROM charging_worker AS dead"
        "   WHERE worker_no = ANY(%s) AND (leased_until <= clock_timestamp()"
        "     OR NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = backend_pid))"
        "   AND NOT EXISTS (SELECT FROM charging_shard"
        "     WHERE charging_shard.worker_no = dead.worker_no)"
        "   FOR UPDATE SKIP LOCKED)",
        [list(worker_nos)],
    )


async def leave(connection: Connection, worker_no: int) -> int:
    """End a worker and its leases; return how many shards it keeps, because they are locked.

    Those may be taken as from a dead worker.
    """
    shards = [each.shard_no for each in await all_shards(connection) if each.worker_no == worker_no]
    rest = len(shards) - len(await give_up_shards(connection, worker_no, shards))
    if rest:
        await beat(connection, worker_no, lease_seconds=0)
    else:
        await connection.execute("DELETE FROM charging_worker WHERE worker_no = %s", [worker_no])
    return rest


async def end_sessions(connection: Connection, sessions: Iterable[str]) -> int:
    """Have the server end the connections of those application names; return how many there were.

    What they had not committed is rolled back, and their locks are free.
    """
    ended = await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ANY(%s)"
        " AND datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()",
        [list(sessions)],
    )
    return ended.rowcount


async def tell_leases_changed(connection: Connection) -> None:
    """Have every worker look at the leases once this transaction commits."""
    await connection.execute(f"NOTIFY {LEASE_CHANNEL}".encode())


async def try_lock_leased(connection: Connection, leases: Leases, shard_no: int) -> bool:
    """Own a leased shard's fleets until the transaction ends, without waiting.

    False if somebody else owns them, or if the lease is not what it was.
    """
    locked = await connection.execute(
        "SELECT FROM charging_shard WHERE shard_no = %s AND worker_no = %s AND fence = %s"
        " FOR NO KEY UPDATE SKIP LOCKED",
        [shard_no, leases.worker_no, leases.fences.get(shard_no)],
    )
    return locked.rowcount == 1
