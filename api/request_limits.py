"""How many requests a key or user, and its tenant, may make in a minute, over all processes of the API.

A process takes a twentieth of a window at a time from a counter in the database, and gives that out by
itself: one statement for many requests, and never more than the limit in all. What a process took and does
not give out is lost to the others until the window ends: at most a twentieth each. Processes whose limits
differ (while one is changed, say) count together too: each refuses once all of them took its own limit.

`limits` (PyPI) counts in one process, or asks Redis or the like at each request; the platform has neither
need nor server for that.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from psycopg_pool import AsyncConnectionPool

from api.errors import ProblemError
from metering.access import Identity
from metering.store.connection import Connection
from metering.store.request_windows import take_requests

WINDOW = timedelta(minutes=1)
_SHARE = 20
_SUBJECTS_MAX = 10_000
"""How many callers a process remembers; who is forgotten takes anew, which loses what it had taken."""


@dataclass(slots=True)
class _Window:
    """What a process may still give out to one subject until a window ends."""

    began_at: datetime
    left: int
    taken_by_all: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Policy:
    """A limit as its caller sees it: name, requests a window, and whom it counts."""

    name: str
    most: int
    who: str


class RequestLimits:
    """The limits of one process. 0 requests: no limit."""

    def __init__(
        self, pool: AsyncConnectionPool[Connection], *, of_key: int, of_tenant: int
    ) -> None:
        """`pool` is of its own: a request holds a connection while it is counted."""
        self._pool = pool
        self._of_key = of_key
        self._of_tenant = of_tenant
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._taking = asyncio.Lock()

    async def admit(self, identity: Identity, now: datetime) -> Mapping[str, str]:
        """Count a request; return the headers that tell what is left, or raise the problem 429."""
        policies = [each for each in self._policies(identity) if each.most]
        if not policies:
            return {}
        began_at = _began(now)
        spent = None
        for policy in policies:
            window = await self._window(policy, began_at)
            if window.left <= 0:
                spent = policy
                break
        if spent is None:
            for policy in policies:
                self._windows[policy.who].left -= 1
        headers = self._headers(policies, began_at, now)
        if spent is not None:
            wait = _seconds(began_at, now)
            raise ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"this {spent.name} may make {spent.most} requests in {WINDOW.seconds} seconds",
                headers={**headers, "Retry-After": str(wait)},
            )
        return headers

    def _policies(self, identity: Identity) -> list[_Policy]:
        if identity.api_key_no is None:
            caller = _Policy(name="user", most=self._of_key, who=f"user {identity.user_no}")
        else:
            caller = _Policy(name="key", most=self._of_key, who=f"key {identity.api_key_no}")
        if identity.tenant_no is None:
            return [caller]
        whole = _Policy(name="tenant", most=self._of_tenant, who=f"tenant {identity.tenant_no}")
        return [caller, whole]

    async def _window(self, policy: _Policy, began_at: datetime) -> _Window:
        window = self._windows.get(policy.who)
        if window is None or window.began_at != began_at or self._may_take(window, policy):
            async with self._taking:
                window = self._windows.get(policy.who)
                if window is None or window.began_at != began_at or self._may_take(window, policy):
                    window = await self._take(policy, began_at)
        self._windows.move_to_end(policy.who)
        return window

    @staticmethod
    def _may_take(window: _Window, policy: _Policy) -> bool:
        return window.left <= 0 and window.taken_by_all < policy.most

    async def _take(self, policy: _Policy, began_at: datetime) -> _Window:
        async with self._pool.connection() as connection:
            given, taken = await take_requests(
                connection,
                policy.who,
                since=began_at,
                wanted=math.ceil(policy.most / _SHARE),
                most=policy.most,
            )
        window = _Window(began_at, given, taken)
        self._windows[policy.who] = window
        while len(self._windows) > _SUBJECTS_MAX:
            self._windows.popitem(last=False)
        return window

    def _headers(
        self, policies: list[_Policy], began_at: datetime, now: datetime
    ) -> Mapping[str, str]:
        """Return the fields of draft-ietf-httpapi-ratelimit-headers."""
        left = {
            # Others, whose limit is higher, may have taken more than is given here.
            each.name: max(0, each.most - window.taken_by_all) + window.left
            for each in policies
            if (window := self._windows.get(each.who)) is not None
        }
        wait = _seconds(began_at, now)
        return {
            "RateLimit-Policy": ", ".join(
                f'"{each.name}";q={each.most};w={WINDOW.seconds}' for each in policies
            ),
            "RateLimit": ", ".join(f'"{name}";r={r};t={wait}' for name, r in left.items()),
        }


def _began(now: datetime) -> datetime:
    seconds = int(now.timestamp())
    return datetime.fromtimestamp(seconds - seconds % WINDOW.seconds, UTC)


def _seconds(began_at: datetime, now: datetime) -> int:
    return max(1, math.ceil((began_at + WINDOW - now).total_seconds()))
