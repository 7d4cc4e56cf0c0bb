"""The page in a real browser: it shows a fleet while it changes, by keyboard and on a phone, and alone."""

import asyncio
from typing import TYPE_CHECKING

import psycopg
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from metering.event_kinds import EventKind
from metering.store.connection import connect
from metering.store.outbox import NewEvent, record_events
from tests.integration.conftest import NOW
from tests.integration.pipeline import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest


def find(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def text(browser: Chrome, selector: str) -> str:
    """Return the text of all that fits, as the document has it now."""
    found = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
        ".map(e => e.innerText).join('\\n')",
        selector,
    )
    return str(found)


def shows(browser: Chrome, selector: str, part: str, *, seconds: float = 60) -> None:
    wait_until(lambda: part in text(browser, selector), f"{part!r} in {selector}", seconds=seconds)


def enter(browser: Chrome, api: "ApiUnderTest", key: str, path: str = "/") -> None:
    """Open the page afresh and sign in by keyboard alone."""
    browser.get(f"{api.url}{path}")
    browser.execute_script("sessionStorage.clear()")
    logged(browser)  # of the page before
    browser.refresh()
    shows(browser, "h1", "Sign in")
    wait_until(lambda: browser.switch_to.active_element.get_attribute("id") == "key", "the focus")
    browser.switch_to.active_element.send_keys(key, Keys.ENTER)


def logged(browser: Chrome) -> list[dict[str, str]]:
    """Return what was logged since this was last asked."""
    found = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return list(found)


def complaints(browser: Chrome) -> list[str]:
    """Return what the browser found wrong: scripts that failed, and what the policy refused."""
    return [each["message"] for each in logged(browser) if each["level"] == "SEVERE"]


def happen(api: "ApiUnderTest", kind: EventKind, cause: str) -> None:
    event = NewEvent(tenant_no=1, fleet_no=1, device_no=None, kind=kind, payload={}, cause=cause)

    async def record() -> None:
        async with await connect(api.database_url, application="test") as connection:
            await record_events(connection, [event], now=NOW)

    asyncio.run(record())


def test_a_fleet_is_shown_while_it_changes(api: "ApiUnderTest", browser: Chrome) -> None:
    enter(browser, api, api.acme_key)
    shows(browser, "#fleet-rows", "acme-north")
    assert "rival" not in text(browser, "body")
    find(browser, "#fleet-rows a[href='#/fleets/acme-north']").send_keys(Keys.ENTER)
    shows(browser, "#fleet-heading", "acme-north")
    shows(browser, "#connection", "Live")
    shows(browser, "#pools", "0 octets left")
    shows(browser, "#pools", "300 MB used of 300 MB")
    bill = api.acme.get("/v1/fleets/acme-north/bill").json()
    shows(browser, "#bill-total", f"{bill['total']} EUR")
    shows(browser, "#alerts", "acme data")
    shows(browser, "#device-rows", "acme-3")

    headers = {"Idempotency-Key": "page"}
    order = {"meter": "data", "quantity": 500_000_000}
    answer = api.acme.post("/v1/fleets/acme-north/top-ups", json=order, headers=headers)
    assert answer.status_code == 201, answer.text
    shows(browser, "#pools", "500 MB left")
    shows(browser, "#happening", "balance.topped_up")
    with psycopg.connect(api.database_url, autocommit=True) as session:
        session.execute("UPDATE meter_use SET amount = amount + 1000000 WHERE fleet_no = 1")
    wait_until(
        lambda: bill["total"] not in text(browser, "#bill-total"), "a bill that goes with the use"
    )
    change = {"device_ids": ["acme-3"], "state": "suspended", "at": "2026-04-15T11:00:00Z"}
    answer = api.acme.post("/v1/state-changes", json=change, headers=headers)
    assert answer.status_code == 201, answer.text
    shows(browser, "#device-rows tr[data-device='acme-3']", "suspended")
    happen(api, EventKind.BILL_FINALISED, "page:1")
    shows(browser, "#happening", "bill.finalised")
    assert complaints(browser) == []


def test_names_are_text_and_nothing_else(api: "ApiUnderTest", browser: Chrome) -> None:
    with psycopg.connect(api.database_url, autocommit=True) as session:
        session.execute("UPDATE fleet SET name = '<img src=x onerror=alert(1)>' WHERE fleet_no = 1")
    enter(browser, api, api.acme_key, "/#/fleets/acme-north")
    shows(browser, "#fleet-heading", "<img src=x onerror=alert(1)> (acme-north)")
    assert complaints(browser) == []


def test_a_key_that_is_not_good_is_told_and_forgotten(api: "ApiUnderTest", browser: Chrome) -> None:
    enter(browser, api, "fmk_wrong")
    shows(browser, "#problem", "unknown or revoked")
    shows(browser, "h1", "Sign in")
    assert browser.execute_script("return sessionStorage.length") == 0
    logged(browser)


def test_a_revoked_key_ends_what_is_shown(api: "ApiUnderTest", browser: Chrome) -> None:
    made = api.acme.post(
        "/v1/api-keys",
        json={"label": "page", "role": "read_only", "expires_at": "2026-05-01T00:00:00Z"},
        headers={"Idempotency-Key": "page"},
    ).json()
    enter(browser, api, made["key"], "/#/fleets/acme-north")
    shows(browser, "#connection", "Live")
    assert api.acme.delete(f"/v1/api-keys/{made['api_key_no']}").status_code == 204
    shows(browser, "h1", "Sign in")
    shows(browser, "#problem", "unknown or revoked")
    logged(browser)


def test_the_page_has_names_for_what_it_shows_and_fits_a_phone(
    api: "ApiUnderTest", browser: Chrome
) -> None:
    window = browser.get_window_size()
    try:
        browser.set_window_size(360, 740)
        enter(browser, api, api.acme_key, "/#/fleets/acme-north")
        shows(browser, "#device-rows", "acme-3")
        shows(browser, "#bill-total", "EUR")
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.execute_script(wide) == 0
        found = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})
        unnamed = [
            node["role"]["value"]
            for node in found["nodes"]
            if not node.get("ignored")
            and node["role"]["value"] in {"button", "link", "textbox", "meter", "heading", "table"}
            and not node.get("name", {}).get("value")
        ]
        assert unnamed == []
        small = browser.execute_script(
            "return [...document.querySelectorAll('button')].filter(e => e.checkVisibility()"
            " && e.getBoundingClientRect().height < 40).map(e => e.id)"
        )
        assert small == []
    finally:
        browser.set_window_size(window["width"], window["height"])


def test_everything_is_reached_by_keyboard(api: "ApiUnderTest", browser: Chrome) -> None:
    enter(browser, api, api.acme_key)
    shows(browser, "#fleet-rows", "acme-north")
    reached = []
    body = find(browser, "body")
    for _ in range(8):
        body = browser.switch_to.active_element
        body.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element.text)
    assert {"acme-north", "acme-empty", "Sign out", "API documentation"} <= set(reached)
    find(browser, "#leave").send_keys(Keys.ENTER)
    shows(browser, "h1", "Sign in")
    assert browser.execute_script("return sessionStorage.length") == 0


def test_the_documentation_is_shown_without_any_other_server(
    api: "ApiUnderTest", browser: Chrome
) -> None:
    browser.get(f"{api.url}/docs")
    shows(browser, "#swagger-ui", "OAS 3.1", seconds=120)  # the document takes its time to draw up
    shows(browser, "#swagger-ui", "control")
    asked = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert asked
    assert [each for each in asked if not each.startswith((api.url, "data:"))] == []
    assert complaints(browser) == []


def test_the_page_may_load_and_reach_nothing_but_its_own_server(api: "ApiUnderTest") -> None:
    for path in ("/", "/docs", "/page/page.js", "/page/page.css", "/docs/swagger-ui-bundle.js"):
        answer = api.nobody.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe-eval" not in policy
        assert ("unsafe-inline" in policy) == path.startswith("/docs")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert api.nobody.get("/page/../app.py").status_code == 404
