"""Scenarios through the real pipeline: what the platform bills is what was expected, or it is told."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from metering.settings import Settings
from metering.stack.probe import free_port
from tests.integration.access import broker_folder, ports
from tests.integration.pipeline import Pipeline, fresh_database, wait_until
from tests.integration.test_credentials import give_key, give_passwords

PAGE = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text("utf-8")
"""The page whose example is run, and shows what is printed."""


def block(name: str) -> str:
    """Return a fenced block of the page, by its language and name."""
    found = re.search(rf"^```{name}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def depot(folder: Path, **replaced: str) -> str:
    """Write the page's scenario, values of its fields replaced, and return its path."""
    text = block("yaml depot.yaml")
    for field, value in replaced.items():
        text = re.sub(rf"\b{field}: [^,}}\n]+", f"{field}: {value}", text, count=1)
    path = folder / f"depot{len(list(folder.iterdir()))}.yaml"
    path.write_text(text, "utf-8")
    return str(path)


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
                "FLEETMETER_INGEST_SPARKPLUG": "true",
            },
        )  # fmt: skip
        try:
            pipeline.start_ingest()
            pipeline.start("charge")
            pipeline.start("api", "--port", str(port))
            answers = f"http://127.0.0.1:{port}"
            wait_until(lambda: f":{port}" in pipeline.log("api").read_text(), "the API", seconds=90)
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


@pytest.mark.parametrize(
    "name",
    [
        "month-end", "dst-autumn", "dst-spring", "leap-day", "runaway", "roaming-storm",
        "firmware-storm", "everything", "formats",
    ],
)  # fmt: skip
def test_a_shipped_scenario_is_billed_as_expected(platform: Platform, name: str) -> None:
    code, said = platform.run(name, "--tenant", name)
    assert code == 0, said
    assert "equal: " in said


def test_every_format_over_tls_with_credentials_is_billed_as_expected(
    platform: Platform, stack_settings: Settings, tmp_path: Path
) -> None:
    """The broker knows each device: what is forged reaches nobody, all else is as without."""
    assert stack_settings.database_url is not None
    code, said = platform.scenario("register", "formats", "--tenant", "mixed")
    assert code == 0, said
    names = said.split()
    assert len(names) == 12
    settings = stack_settings.model_copy(
        update={
            "database_url": SecretStr(platform.pipeline.database_url),
            "topic_root": platform.pipeline.topic_root,
        }
    )
    given = give_passwords(settings, *names, tenant="mixed")
    credentials = tmp_path / "credentials"
    credentials.write_text("".join(f"{each.username} {each.password}\n" for each in given))
    platform.pipeline.environment["FLEETMETER_BROKER_CA_FILE"] = str(
        broker_folder(settings) / "authority.pem"
    )
    code, said = platform.run(
        "formats", "--tenant", "mixed", "--credentials", str(credentials),
        "--broker", f"mqtts://localhost:{ports(settings).passwords}",
    )  # fmt: skip
    assert code == 0, said
    assert re.search(
        r"^equal: [0-9]+ lines and 0 totals of 1 fleets, 7 refusals$", said, re.MULTILINE
    )


def test_over_mutual_tls_it_is_billed_as_expected(
    platform: Platform, stack_settings: Settings, tmp_path: Path
) -> None:
    assert stack_settings.database_url is not None
    path = Path(depot(tmp_path))
    path.write_text(re.sub(r"\n +changes:.*", "", path.read_text("utf-8")), "utf-8")
    code, said = platform.scenario("register", str(path), "--tenant", "sealed")
    assert code == 0, said
    devices = said.split()
    assert len(devices) == 4
    settings = stack_settings.model_copy(
        update={
            "database_url": SecretStr(platform.pipeline.database_url),
            "topic_root": platform.pipeline.topic_root,
        }
    )
    keys = tmp_path / "keys"
    keys.mkdir()
    for device in devices:
        give_key(settings, device, keys, tenant="sealed")
    platform.pipeline.environment["FLEETMETER_BROKER_CA_FILE"] = str(
        broker_folder(settings) / "authority.pem"
    )
    run = [
        str(path), "--tenant", "sealed", "--certificates", str(keys),
        "--broker", f"mqtts://localhost:{ports(settings).certificates}",
    ]  # fmt: skip
    code, said = platform.run(*run)
    assert code == 0, said
    assert re.search(r"^equal: [1-9]", said, re.MULTILINE)
    (keys / f"{devices[0]}.pem").unlink()
    code, said = platform.run(*run)
    assert code == 2
    assert said.startswith("fleetmeter scenario: not run: ")
    assert len(said.splitlines()) == 1, said


def test_the_pages_example_prints_what_the_page_shows(platform: Platform, tmp_path: Path) -> None:
    code, said = platform.run(depot(tmp_path))
    assert code == 0, said
    assert said == block("text depot.yaml")
    with psycopg.connect(platform.pipeline.database_url) as owner:
        noted = owner.execute(
            "SELECT operation, array_agg(DISTINCT relation) FROM audit_entry JOIN audit_change"
            " USING (entry_no) JOIN tenant ON tenant.tenant_no = audit_entry.tenant_no"
            " WHERE tenant_id = 'depot' GROUP BY entry_no, operation ORDER BY entry_no LIMIT 3"
        ).fetchall()
    assert [operation for operation, _ in noted] == ["scenario run"] * 3
    assert {"fleet", "device", "subscription"} <= set(noted[0][1])
    assert [relations for _, relations in noted[1:]] == [["api_key"], ["api_key"]]


def test_at_a_pace_and_again_it_is_the_same(platform: Platform, tmp_path: Path) -> None:
    paced = ["--accelerate", "172800", "--tenant", "paced"]
    for _ in range(2):
        code, said = platform.run(depot(tmp_path), *paced)
        assert code == 0, said


def test_another_price_at_the_platform_and_another_refusal_are_told(
    platform: Platform, tmp_path: Path
) -> None:
    dear = ["--tenant", "dear"]
    made = tmp_path / "made"
    code, said = platform.scenario("make", depot(tmp_path), *dear, "--out", str(made))
    assert code == 0, said
    expected = json.loads((made / "expected.json").read_text("utf-8"))
    expected["rejected"]["clock_ahead"] -= 1
    (made / "expected.json").write_text(json.dumps(expected), "utf-8")
    other = depot(tmp_path, amount='"0.30"')
    code, said = platform.run(other, *dear, "--expected", str(made))
    assert code == 1, said
    assert block("text differing") in said
    assert re.search(r"^rejected +clock_ahead +4 +5$", said, re.MULTILINE)
    assert said.endswith("5 differences\n")


def test_what_cannot_be_run_says_so(platform: Platform, tmp_path: Path) -> None:
    code, said = platform.run(depot(tmp_path, to="2126-04-02T00:00", step="20 days"))
    assert code == 2
    assert "to: is in the future" in said
    nobody = f"http://127.0.0.1:{free_port()}"
    code, said = platform.scenario("run", depot(tmp_path), "--tenant", "none", "--api", nobody)
    assert code == 2, said


def test_cycles_that_closed_before_their_usage_came_are_billed_by_adjustments(
    stack_settings: Settings, broker_url: str, tmp_path: Path
) -> None:
    with platform_of(stack_settings, broker_url, tmp_path, grace_hours=0) as platform:
        # Registered, and not run: nobody answers for the API. So its cycles close empty.
        nobody = f"http://127.0.0.1:{free_port()}"
        code, said = platform.scenario("run", depot(tmp_path), "--api", nobody)
        assert code == 2, said
        wait_until(lambda: platform.pipeline.count("closed_cycle") > 1, "the cycles' closing")
        code, said = platform.run(depot(tmp_path))
        assert code == 0, said
        assert "2 cycles had closed before their usage came" in said
