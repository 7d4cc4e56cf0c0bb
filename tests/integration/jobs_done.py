"""Has the jobs of a database done, as a process of its own does them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from metering.jobs.run_jobs import JobRunner
from metering.settings import Settings
from metering.store.connection import api_database_url, connect, connection_pool
from tests.integration.conftest import NOW


@asynccontextmanager
async def job_runner(url: str, **settings: Any) -> AsyncIterator[Callable[[], Awaitable[bool]]]:  # noqa: ANN401
    """Give what does one job, if there is one, as a process of its own does."""
    made = Settings(database_url=url, **settings)
    runner = JobRunner(made, now=lambda: NOW)
    pool = connection_pool(
        api_database_url(made),
        application="jobs",
        size_max=1,
        answer_seconds_max=30,
        row_security=True,
    )
    owner = await connect(url, application="test", autocommit=True)
    try:
        async with pool:
            yield lambda: runner.once(owner, pool)
    finally:
        await owner.close()


def do_all_jobs(url: str, **settings: Any) -> int:  # noqa: ANN401 - settings
    """Do every job that waits; return how many."""

    async def work() -> int:
        done = 0
        async with job_runner(url, **settings) as once:
            while await once():
                done += 1
        return done

    return asyncio.run(work())
