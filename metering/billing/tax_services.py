"""Which tax service a tenant's bills are taxed by: its own or the deployment's; who is down is left alone."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from metering.billing.tax import TaxAnswer, TaxRequest
from metering.billing.tax_service import HttpTaxService
from metering.errors import InvalidValue, TaxServiceFailed
from metering.settings import Settings
from metering.store.billing_settings import tax_service_row
from metering.store.connection import Connection

log = logging.getLogger(__name__)


class TaxServices:
    """The tax services of a deployment, and since when which of them gave no answer."""

    def __init__(self, settings: Settings, *, now: Callable[[], datetime]) -> None:
        self._settings = settings
        self._now = now
        self._failed: dict[str, datetime] = {}

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
        return WatchedTaxService(service, self)

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

    def is_down(self, url: str) -> bool:
        """Whether a service gave no answer a short while ago."""
        pause = timedelta(seconds=self._settings.tax_service_retry_seconds)
        failed = self._failed.get(url)
        return failed is not None and self._now() < failed + pause

    def note(self, url: str, failure: TaxServiceFailed | None) -> None:
        """Note whether a service answered; the first failure of each pause is told."""
        if failure is None:
            self._failed.pop(url, None)
            return
        if not self.is_down(url):
            pause = self._settings.tax_service_retry_seconds
            log.warning("%s: %s; bills that need it wait for %g s", url, failure, pause)
            self._failed[url] = self._now()


@dataclass(frozen=True, slots=True)
class WatchedTaxService:
    """A tax service of which is noted whether it answers."""

    service: HttpTaxService
    services: TaxServices

    @property
    def is_down(self) -> bool:
        """Whether it is to be left alone for now."""
        return self.services.is_down(self.service.url)

    def taxes(self, request: TaxRequest) -> TaxAnswer:
        """Ask for a document's tax, as `HttpTaxService` does."""
        try:
            answer = self.service.taxes(request)
        except TaxServiceFailed as error:
            self.services.note(self.service.url, error)
            raise
        self.services.note(self.service.url, None)
        return answer
