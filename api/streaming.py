"""The open streams of one API process: what each is told, and the one connection that wakes them all."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf
from time import monotonic

import psycopg
from fastapi.sse import format_sse_event
from psycopg_pool import AsyncConnectionPool

from metering.access import Identity, Role
from metering.control.waking import woken_or_after
from metering.ids import TenantNo
from metering.store.connection import UNREACHABLE, Connection, connect_patiently, reason_of
from metering.store.reach import speak_for
from metering.store.streams import (
    STREAM_CHANNEL,
    balance_versions,
    entries_after,
    highest_position,
    number_entries,
    stream_head,
)

_LOG = logging.getLogger(__name__)

_BALANCE_SECONDS = 0.5
"""A fleet's balance is told at most so often to all who have heard one."""
_PAGE_ENTRIES = 100
"""Most entries that are held for a reader: what comes after stays in the database until it took these."""
_CHECKOUT_SECONDS = 2.0
_RECONNECT_MILLISECONDS = 2000
_AWAY_SECONDS = 1.0


class TooManyStreams(Exception):
    """A key or user has as many streams open as it may."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a reader has heard: the position of entries, and the version of the balance.

    None: nothing yet. As text, it is the id of what was told last.
    """

    position: int | None = None
    version: int | None = None

    @classmethod
    def of(cls, text: str) -> "Place":
        """Return the place that an id names."""
        position, _, version = text.partition(".")
        return cls(int(position), int(version))

    def __str__(self) -> str:
        return f"{self.position or 0}.{self.version or 0}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """What follows a place: messages, how far they reach, and whether more is to be had now or soon."""

    octets: bytes
    place: Place
    more: bool
    balance_waits: bool


BalanceText = Callable[[Connection], Awaitable[dict[str, object]]]
"""Reads a fleet's balance, as the API answers it."""


class _Feed:
    """A fleet's stream, which all who read it share: each page is read from the database once."""

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        *,
        tenant_no: TenantNo,
        fleet_no: int,
        balance: BalanceText,
    ) -> None:
        self.fleet_no = fleet_no
        self.readers: set[Reader] = set()
        self.version: int | None = None
        """Of the balance, as it was last looked at."""
        self._pool = pool
        self._tenant_no = tenant_no
        self._sight = Identity(tenant_no=tenant_no, role=Role.READ_ONLY, fleets=(fleet_no,))
        self._balance = balance
        self._balance_at = 0.0
        self._reading = asyncio.Lock()
        self._kept: dict[Place, _Page] = {}

    def wake(self) -> None:
        """Let the readers look again: something came."""
        self._kept = {}
        for reader in self.readers:
            reader.wake.set()

    async def page(self, place: Place) -> _Page:
        """Return what follows a place; raises one of `UNREACHABLE`."""
        async with self._reading:
            kept = self._kept
            page = kept.get(place)
            if page is None:
                page = await self._read(place)
                if not page.balance_waits:
                    kept[place] = page
            return page

    async def _read(self, place: Place) -> _Page:
        async with _snapshot(self._pool) as connection:
            # Nothing but this fleet is seen, whatever the statements below ask for.
            await speak_for(connection, self._sight, tenant=self._tenant_no)
            head = await stream_head(connection, self.fleet_no)
            told = bytearray()
            position, version = place.position, place.version
            if position is not None and not head.pruned_to <= position <= head.position:
                position = version = None
                told += _message("reset", {"reason": "what came since is no longer kept"}, None)
            # Who has heard nothing hears the balance first, and on the next page what came meanwhile.
            begins = position is not None and version is None
            entries = []
            if position is not None and position < head.position and not begins:
                entries = await entries_after(
                    connection, self.fleet_no, position, limit=_PAGE_ENTRIES
                )
            for entry in entries:
                at = Place(entry.position, version)
                told += _message(entry.topic, entry.detail, at)
            more = len(entries) == _PAGE_ENTRIES
            last = position if begins else entries[-1].position if more else head.position
            reached = Place(last, version)
            waits = False
            if not more and version != head.version:
                waits = version is not None and monotonic() - self._balance_at < _BALANCE_SECONDS
                if not waits:
                    self._balance_at = monotonic()
                    reached = Place(last, head.version)
                    balance = await self._balance(connection)
                    told += _message("balance", {"version": head.version} | balance, reached)
        return _Page(octets=bytes(told), place=reached, more=more or begins, balance_waits=waits)


@dataclass(eq=False, slots=True, kw_only=True)
class Reader:
    """One open stream."""

    streams: "Streams"
    feed: _Feed
    place: Place
    refusal: Callable[[], Awaitable[str | None]]
    """Why whoever reads may no longer; None while they may."""
    heartbeat_seconds: float
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    checked_at: float = field(default_factory=monotonic)
    end: str = "gone"
    """Why it ended; `gone`: nobody reads any more."""

    async def begin(self) -> None:
        """Let what is committed from now on be news to who has no place; raises one of `UNREACHABLE`."""
        if self.place.position is None:
            self.place = Place(await self.streams.number())

    async def messages(self) -> AsyncGenerator[bytes]:
        """Yield what the reader is told, until it may no longer or the process ends.

        No more than a page is held: the next is read when this one was taken.
        """
        yield format_sse_event(retry=_RECONNECT_MILLISECONDS)
        told_at = monotonic()
        while True:
            self.wake.clear()
            pause = self.heartbeat_seconds
            try:
                refusal = await self._refusal()
                if refusal is not None:
                    yield self._ended(*refusal)
                    return
                page = await self.feed.page(self.place)
            except UNREACHABLE as error:
                _LOG.warning("a stream waits for the database: %s", reason_of(error))
                pause = _AWAY_SECONDS
            else:
                self.place = page.place
                if page.octets:
                    told_at = monotonic()
                    yield page.octets
                if page.more:
                    continue
                if page.balance_waits:
                    pause = _BALANCE_SECONDS
            beats_at = told_at + self.heartbeat_seconds
            await woken_or_after(self.wake, max(0.0, min(pause, beats_at - monotonic())))
            if monotonic() >= beats_at:
                told_at = monotonic()
                # The id alone dispatches nothing, and lets who returns begin from here.
                known = self.place.position is not None
                yield format_sse_event(comment="heartbeat", id=str(self.place) if known else None)

    def check_again(self) -> None:
        """Ask at once whether whoever reads still may."""
        self.checked_at = -inf
        self.wake.set()

    async def _refusal(self) -> tuple[str, str] | None:
        if self.streams.is_ending:
            return "shutdown", "the server ends; connect again"
        if monotonic() - self.checked_at >= self.heartbeat_seconds:
            self.checked_at = monotonic()  # before asking: who says meanwhile to ask again is heard
            try:
                refusal = await self.refusal()
            except UNREACHABLE:
                self.checked_at = -inf
                raise
            if refusal is not None:
                return "access", refusal
        return None

    def _ended(self, end: str, detail: str) -> bytes:
        self.end = end
        return _message("end", {"reason": end, "detail": detail}, None)


class Streams:
    """The streams of one process. What wakes them runs from the first that is opened on."""

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        *,
        database_url: str,
        answer_seconds_max: float,
        heartbeat_seconds: float,
        per_caller_max: int,
    ) -> None:
        self.is_ending = False
        self._pool = pool
        self._database_url = database_url
        self._answer_seconds_max = answer_seconds_max
        self._heartbeat_seconds = heartbeat_seconds
        self._per_caller_max = per_caller_max
        self._feeds: dict[int, _Feed] = {}
        self._open: Counter[tuple[int | None, int | None]] = Counter()
        self._look = asyncio.Event()
        self._dirty: set[int] | None = None
        """Fleets with entries that have no position yet; None: perhaps any."""
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def reading(
        self,
        identity: Identity,
        *,
        tenant_no: TenantNo,
        fleet_no: int,
        place: Place,
        balance: BalanceText,
        refusal: Callable[[], Awaitable[str | None]],
    ) -> AsyncIterator[Reader]:
        """Open a stream; raises `TooManyStreams`."""
        caller = (identity.api_key_no, identity.user_no)
        if self._open[caller] >= self._per_caller_max:
            raise TooManyStreams
        self._open[caller] += 1
        feed = self._feeds.get(fleet_no)
        if feed is None:
            feed = self._feeds[fleet_no] = _Feed(
                self._pool, tenant_no=tenant_no, fleet_no=fleet_no, balance=balance
            )
        reader = Reader(
            streams=self,
            feed=feed,
            place=place,
            refusal=refusal,
            heartbeat_seconds=self._heartbeat_seconds,
        )
        feed.readers.add(reader)
        self._start()
        self._look.set()
        try:
            yield reader
        finally:
            feed.readers.discard(reader)
            if not feed.readers:
                self._feeds.pop(fleet_no, None)
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]

    @property
    def open(self) -> int:
        """How many streams are open."""
        return self._open.total()

    def end(self) -> None:
        """Tell every reader that the process ends, and end their streams."""
        self.is_ending = True
        self._wake(None)

    async def number(self) -> int:
        """Give positions to what is committed by now; return the highest. Raises one of `UNREACHABLE`."""
        async with _transaction(self._pool) as connection:
            await number_entries(connection)
            return await highest_position(connection)

    async def close(self) -> None:
        """End what wakes the streams."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._listen())
                    tasks.create_task(self._number_and_look())
            except* Exception:  # noqa: BLE001 - whatever it is, what is told next still comes
                _LOG.exception("what wakes the streams failed, and begins anew")
                await asyncio.sleep(_AWAY_SECONDS)

    def _wake(self, fleets: set[int] | None) -> None:
        for fleet_no, feed in self._feeds.items():
            if fleets is None or fleet_no in fleets:
                feed.wake()

    async def _listen(self) -> None:
        again = False
        while True:
            connection = await connect_patiently(
                self._database_url,
                application="api streams",
                autocommit=True,
                answer_seconds_max=self._answer_seconds_max,
                waiting=_away,
            )
            try:
                await connection.execute(f"LISTEN {STREAM_CHANNEL}".encode())
                self._heard("")
                if again:
                    self._heard("access")  # what was said meanwhile is heard by nobody
                again = True
                while True:
                    async for told in connection.notifies(timeout=self._answer_seconds_max / 2):
                        self._heard(told.payload)
                    await connection.execute("SELECT 1")  # is anybody still there?
            except UNREACHABLE as error:
                _away(error)
            finally:
                await connection.close()

    def _heard(self, payload: str) -> None:
        kind, _, numbers = payload.partition(":")
        if kind == "access":
            for feed in self._feeds.values():
                for reader in feed.readers:
                    reader.check_again()
            return
        if kind == "fleets" and self._dirty is not None:
            self._dirty.update(map(int, numbers.split(",")))
        else:
            self._dirty = None
        self._look.set()

    async def _number_and_look(self) -> None:
        """Give positions to what was committed, and look at the balances that somebody watches."""
        looked_at = 0.0
        while True:
            if self._feeds:
                left = looked_at + _BALANCE_SECONDS - monotonic()
                await woken_or_after(self._look, max(0.0, left))
            else:
                await self._look.wait()
            self._look.clear()
            dirty, self._dirty = self._dirty, set()
            try:
                if dirty is None or dirty:
                    await self.number()
                    self._wake(dirty)
                if self._feeds and monotonic() - looked_at >= _BALANCE_SECONDS:
                    looked_at = monotonic()
                    await self._look_at_balances()
            except UNREACHABLE as error:
                _away(error)
                self._dirty = None
                await asyncio.sleep(_AWAY_SECONDS)

    async def _look_at_balances(self) -> None:
        async with _transaction(self._pool) as connection:
            versions = await balance_versions(connection, self._feeds)
        for fleet_no, feed in self._feeds.items():
            version = versions.get(fleet_no, 0)
            if version != feed.version:
                feed.version = version
                feed.wake()


def _message(topic: str, data: dict[str, object], place: Place | None) -> bytes:
    return format_sse_event(
        event=topic,
        data_str=json.dumps(data, separators=(",", ":")),
        id=None if place is None else str(place),
    )


def _away(error: Exception) -> None:
    _LOG.warning("streams wait for the database: %s", reason_of(error))


@asynccontextmanager
async def _snapshot(pool: AsyncConnectionPool[Connection]) -> AsyncIterator[Connection]:
    async with pool.connection(timeout=_CHECKOUT_SECONDS) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await connection.set_read_only(True)
        yield connection


@asynccontextmanager
async def _transaction(pool: AsyncConnectionPool[Connection]) -> AsyncIterator[Connection]:
    async with pool.connection(timeout=_CHECKOUT_SECONDS) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        await connection.set_read_only(False)
        yield connection
