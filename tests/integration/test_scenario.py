"""Scenarios through the real pipeline: what the platform bills is what was expected, or it is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from metering.settings import Settings
from metering.stack.probe import free_port
from tests.integration.pipeline import Pipeline, fresh_database, wait_until

SMALL = """
scenario: small
tenant: small
seed: 7
time_zone: Europe/Berlin
from: 2026-03-28T18:00
to: 2026-03-29T06:00
step: 20 min
plans:
  - plan: small
    currency: EUR
    monthly_fee: "1.00"
    meters:
      data: {allowance: 10 kB, pooled: true, price: {amount: "PRICE", per: 10 kB}}
fleets:
  - id: small
    currency: EUR
    time_zone: Europe/Berlin
    anchor_day: 29
    groups:
      - name: meter
        count: 3
        profile: meter
        plan: small
        faults: {reboot: 0.05, wrap: 1, reset: 0.2, duplicate: 0.1, reorder: 0.2, clock_lost: 0.05}
"""


@dataclass(slots=True)
class Platform:
    """Ingester, worker and API, and scenarios against them."""

    pipeline: Pipeline
    api_url: str

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a scenario and return the exit code and what was said."""
        return self.scenario("run", *arguments, "--api", self.api_url, "--wait", "60")

    def scenario(self, *arguments: str) -> tuple[int, str]:
        name = f"scenario#{len(self.pipeline.processes)}"
        code = self.pipeline.start(name, *arguments).wait(180)
        return code, self.pipeline.log(name).read_text("utf-8")


@contextmanager
def platform_of(
    settings: Settings, broker_url: str, folder: Path, *, grace_hours: int
) -> Iterator[Platform]:
    """Yield a platform that closes cycles a grace after their end."""
    assert settings.database_url is not None
    port = free_port()
    with fresh_database(settings.database_url.get_secret_value()) as url:
        pipeline = Pipeline(
            database_url=url, broker_url=broker_url, folder=folder,
            environment={
                "FLEETMETER_CLOSING_GRACE_HOURS": str(grace_hours),
                "FLEETMETER_CLOCK_BEHIND_DAYS_MAX": "4000",
            },
        )  # fmt: skip
        try:
            pipeline.start_ingest()
            pipeline.start("charge")
            pipeline.start("api", "--port", str(port))
            answers = f"http://127.0.0.1:{port}"
            wait_until(lambda: f":{port}" in pipeline.log("api").read_text(), "the API")
            yield Platform(pipeline, answers)
            pipeline.assert_running()
        finally:
            pipeline.stop()


@pytest.fixture(scope="module")
def platform(
    stack_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """Yield a platform that closes none of the cycles that are played."""
    assert stack_settings.broker_url is not None
    folder = tmp_path_factory.mktemp("scenario")
    broker_url = stack_settings.broker_url.get_secret_value()
    with platform_of(stack_settings, broker_url, folder, grace_hours=100_000) as found:
        yield found


@pytest.mark.parametrize("name", ["month-end", "dst-autumn", "leap-day", "runaway"])
def test_a_shipped_scenario_is_billed_as_expected(platform: Platform, name: str) -> None:
    code, said = platform.run(name, "--tenant", name)
    assert code == 0, said
    assert "equal: " in said


def small(folder: Path, *, price: str = "0.10") -> str:
    path = folder / f"small-{price}.yaml"
    path.write_text(SMALL.replace("PRICE", price), "utf-8")
    return str(path)


def test_at_a_pace_and_again_it_is_the_same(platform: Platform, tmp_path: Path) -> None:
    paced = ["--accelerate", "36000", "--tenant", "paced"]
    for _ in range(2):
        code, said = platform.run(small(tmp_path), *paced)
        assert code == 0, said


def test_another_price_at_the_platform_is_told(platform: Platform, tmp_path: Path) -> None:
    expected = str(tmp_path / "expected")
    code, said = platform.scenario("make", small(tmp_path), "--tenant", "dear", "--out", expected)
    assert code == 0, said
    code, said = platform.run(
        small(tmp_path, price="0.13"), "--tenant", "dear", "--expected", expected
    )
    assert code == 1, said
    assert "usage data of small: amount" in said
    assert "differences" in said


def test_what_cannot_be_run_says_so(platform: Platform, tmp_path: Path) -> None:
    path = tmp_path / "ahead.yaml"
    later = SMALL.replace("2026-03-29T06:00", "2126-03-29T06:00").replace("20 min", "20 days")
    path.write_text(later.replace("PRICE", "0.10"), "utf-8")
    code, said = platform.run(str(path))
    assert code == 2
    assert "to: is in the future" in said
    code, said = platform.run("no-such-scenario")
    assert code == 2
    assert "use one of dst-autumn" in said
    code, said = platform.scenario(
        "run", small(tmp_path), "--api", f"http://127.0.0.1:{free_port()}"
    )
    assert code == 2, said


def test_cycles_that_closed_before_their_usage_came_are_billed_by_adjustments(
    stack_settings: Settings, broker_url: str, tmp_path: Path
) -> None:
    with platform_of(stack_settings, broker_url, tmp_path, grace_hours=0) as platform:
        code, said = platform.run(small(tmp_path))
        assert code == 0, said
        assert "had closed before their usage came" in said
