"""A real browser from the distribution's packages, and the API that serves it the page."""

import tempfile
from collections.abc import Iterator

import pytest
from selenium import webdriver

from tests.agent.conftest import program
from tests.integration.conftest import api, api_database_url, tenants

__all__ = ["api", "api_database_url", "tenants"]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """Yield Chromium without a window; the test is skipped, by its name, where it cannot be had."""
    chromium = program("chromium-driver", "chromium", "chromium-common", "fonts-dejavu-core")
    with tempfile.TemporaryDirectory(prefix="fm-browser-") as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(chromium.path("usr/lib/chromium/chromium"))
        for argument in (
            "--headless=new",
            "--no-sandbox",  # it may run as root, and sees nothing but this machine
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--lang=en-US",
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no other address is reached
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(
            str(chromium.path("usr/bin/chromedriver")), env=chromium.environment | {"HOME": profile}
        )
        driver = webdriver.Chrome(options=options, service=service)
        driver.set_script_timeout(120)  # other tests run beside it
        try:
            yield driver
        finally:
            driver.quit()
            service.stop()
