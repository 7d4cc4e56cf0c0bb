"""Which tax service a tenant's bills are taxed by: its own or the deployment's; who is down is left alone."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from metering.billing.tax import TaxAnswer, TaxRequest
from metering.billing.tax_service import HttpTaxService
from metering.errors import InvalidValue, TaxServiceFailed, TaxServiceRefused
from metering.settings import Settings
from metering.store.billing_settings import tax_service_row
from metering.store.connection import Connection

log = logging.getLogger(__name__)


_Key = tuple[str, str | None, int | None]
"""Who is down: a URL as one token and tenant see it; of the deployment's no tenant."""


class TaxServices:
    """The tax services of a deployment, and since when which of them gave no answer."""

    def __init__(self, settings: Settings, *, now: Callable[[], datetime]) -> None:
        self._settings = settings
        self._now = now
        self._failed: dict[_Key, datetime] = {}
        self._failed_at: dict[_Key, int] = {}

    async def of_tenant(self, connection: Connection, tenant_no: int) -> "WatchedTaxService | None":
        """Return the service that a tenant's bills are taxed by; None: by its rules, or by nothing.

        Raises `InvalidValue` where the secret that it names is not set.
        """
        settings = self._settings
        row = await tax_service_row(connection, tenant_no)
        if row.has_rules:
            return None
        timeout = settings.tax_service_timeout_seconds
        if row.url is not None:
            service = HttpTaxService(
                url=row.url,
                timeout_seconds=timeout,
                token=self._secret(row.tenant_id, row.secret),
                public_only=not settings.webhook_private_addresses,
            )
        elif settings.tax_service_url is not None:
            token = settings.tax_service_token
            service = HttpTaxService(
                url=settings.tax_service_url,
                timeout_seconds=timeout,
                token=None if token is None else token.get_secret_value(),
            )
        else:
            return None
        key = (service.url, service.token, None if row.url is None else tenant_no)
        return WatchedTaxService(service, self, key)

    def _secret(self, tenant_id: str, name: str | None) -> str | None:
        """Return a tenant's secret by its name; nobody names another tenant's."""
        if name is None:
            return None
        found = (self._settings.tax_service_secrets or {}).get(f"{tenant_id}/{name}")
        if found is None:
            raise InvalidValue(
                "tax_service.secret",
                f"no secret {name!r} of tenant {tenant_id!r} is set",
                f"have FLEETMETER_TAX_SERVICE_SECRETS hold {tenant_id}/{name}",
            )
        return found.get_secret_value()

    def is_down(self, key: _Key) -> bool:
        """Whether a service gave no answer a short while ago."""
        pause = timedelta(seconds=self._settings.tax_service_retry_seconds)
        failed = self._failed.get(key)
        return failed is not None and self._now() < failed + pause

    def note(self, key: _Key, failure: TaxServiceFailed | None) -> None:
        """Note whether a service answered; the first failure of each pause is told."""
        if failure is None:
            self._failed.pop(key, None)
            return
        if not self.is_down(key):
            pause = self._settings.tax_service_retry_seconds
            log.warning("%s: %s; bills that need it wait for %g s", key[0], failure, pause)
            self._failed[key] = self._now()

    def note_bill(self, key: _Key, bill_no: int) -> None:
        """Note of which bill a service gave no answer: the next run begins after it."""
        self._failed_at[key] = bill_no

    @property
    def have_failed(self) -> bool:
        """Whether any service gave no answer of a bill as yet."""
        return bool(self._failed_at)

    def failed_at(self, key: _Key) -> int:
        """Return of which bill a service gave no answer last; 0: of none."""
        return self._failed_at.get(key, 0)


@dataclass(frozen=True, slots=True)
class WatchedTaxService:
    """A tax service of which is noted whether it answers."""

    service: HttpTaxService
    services: TaxServices
    key: _Key

    @property
    def is_down(self) -> bool:
        """Whether it is to be left alone for now."""
        return self.services.is_down(self.key)

    def was_tried(self, bill_no: int) -> bool:
        """Whether a run came to this bill before it ended at one without an answer."""
        return bill_no <= self.services.failed_at(self.key)

    def note_bill(self, bill_no: int) -> None:
        """Note that it gave no answer of a bill."""
        self.services.note_bill(self.key, bill_no)

    def taxes(self, request: TaxRequest) -> TaxAnswer:
        """Ask for a document's tax, as `HttpTaxService` does; one that is down is not asked."""
        if self.is_down:
            raise TaxServiceFailed("the tax service gave no answer a short while ago")
        try:
            answer = self.service.taxes(request)
        except TaxServiceRefused:
            self.services.note(self.key, None)
            raise
        except TaxServiceFailed as error:
            self.services.note(self.key, error)
            raise
        self.services.note(self.key, None)
        return answer
