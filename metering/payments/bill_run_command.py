"""`fleetmeter bill-run`: makes drafts final, sees to their payment, and does the API's jobs; or once."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable
from datetime import datetime
from random import SystemRandom

import httpx

from metering import clock
from metering.billing.run_bills import BillRun, run_bills
from metering.billing.tax_services import TaxServices
from metering.ids import TenantNo
from metering.jobs.run_jobs import JobRunner
from metering.payments.ask_provider import ask_due
from metering.payments.collect import collect
from metering.payments.progress import Progress
from metering.payments.send_refunds import send_due_refunds
from metering.payments.stripe import provider_of
from metering.process import serve
from metering.settings import Settings
from metering.store.bills import count_due_drafts
from metering.store.command_audit import audit_command
from metering.store.connection import (
    UNREACHABLE,
    Connection,
    connect_patiently,
    database_url,
    reason_of,
)
from metering.store.registry import tenant_no

log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--once", action="store_true", help="end when nothing is due any more")
    parser.add_argument("--tenant", help="only the bills of this tenant")
    parser.add_argument(
        "--by-hand",
        action="store_true",
        help="also drafts that wait for somebody, of the tenant, once",
    )


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Do what is due until told to stop, or once."""
    if arguments.by_hand and not (arguments.tenant and arguments.once):
        print("fleetmeter bill-run: --by-hand wants --tenant and --once")
        return 2
    runner = BillRunner(settings, tenant=arguments.tenant, by_hand=arguments.by_hand)
    if not arguments.once:
        return serve(runner.run, metrics_port=settings.metrics_port)
    done = asyncio.run(runner.once())
    print(f"{done.finalised} bills finalised, {done.refused} drafts cannot be drawn up")
    if done.waiting:
        print(f"{done.waiting} drafts wait for a tax service that gives no answer")
    return 1 if done.refused or done.waiting else 0


class BillRunner:
    """A process that finalises bills, and sees to their payment. Any number may run at once."""

    def __init__(
        self,
        settings: Settings,
        *,
        tenant: str | None,
        by_hand: bool,
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        self._now = now
        self._settings = settings
        self._tenant = tenant
        self._by_hand = by_hand
        self._tax_services = TaxServices(settings, now=now)

    async def run(self) -> None:
        """Do what is due, and the jobs that the API queued, again and again, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_bills())
            if self._tenant is None:
                tasks.create_task(JobRunner(self._settings, now=self._now).run())

    async def _run_bills(self) -> None:
        while True:
            try:
                await self.once()
            except UNREACHABLE as error:
                _away(error)
            await asyncio.sleep(self._settings.billing_poll_seconds)

    async def once(self) -> BillRun:
        """Do what is due now; return which bills became final."""
        connection = await connect_patiently(
            database_url(self._settings),
            application="bill-run",
            autocommit=True,
            answer_seconds_max=self._settings.database_answer_seconds_max,
            waiting=_away,
        )
        try:
            done = await self._finalised(connection, self._now())
            if self._tenant is None:
                await self._see_to_payment(connection)
            return done
        finally:
            await connection.close()

    async def _see_to_payment(self, connection: Connection) -> None:
        settings = self._settings
        await collect(connection, now=self._now())
        random = SystemRandom()
        if settings.payment_provider_key is None:
            for work in (ask_due, send_due_refunds):
                await work(connection, None, settings, now=self._now(), random=random)
            return
        async with httpx.AsyncClient(
            base_url=settings.payment_provider_url,
            timeout=settings.payment_timeout_seconds,
            trust_env=False,
        ) as client:
            provider = provider_of(settings, client)
            for work in (ask_due, send_due_refunds):
                await work(connection, provider, settings, now=self._now(), random=random)

    async def _finalised(self, connection: Connection, now: datetime) -> BillRun:
        tenant: TenantNo | None = None
        if self._tenant is not None:
            tenant = await tenant_no(connection, self._tenant)
        if self._by_hand:  # somebody's own doing; what is due by itself is the deployment's
            await audit_command(
                connection, tenant=tenant, operation="bill-run", target={"by_hand": True}, now=now
            )
        due = await count_due_drafts(connection, tenant_no=tenant, by_hand=self._by_hand, now=now)
        progress = Progress("bills", due, sys.stderr)
        done = BillRun()
        try:
            async for done in run_bills(
                connection,
                tenant_no=tenant,
                by_hand=self._by_hand,
                tax_services=self._tax_services,
                now=now,
            ):
                progress.tell(done.finalised + done.refused + done.waiting)
        finally:
            progress.end()
        if done.finalised or done.waiting:
            log.info(
                "%d bills finalised, %d refused, %d wait for a tax service",
                done.finalised, done.refused, done.waiting,
            )  # fmt: skip
        return done


def _away(error: Exception) -> None:
    log.warning("the database is away: %s", reason_of(error))
