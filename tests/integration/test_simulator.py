"""Many simulated devices against the real broker and ingester: every fault, and what must be refused."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from device_sim.mischief import REASONS, Misdeed
from metering.provisioning.command import make_key
from metering.provisioning.credentials import provisioning
from metering.settings import Settings
from tests.integration.access import broker_folder, ports
from tests.integration.pipeline import (
    TENANT,
    Pipeline,
    fresh_database,
    pipeline_of,
    use_mapping,
    wait_until,
)

LOADED = [f"load-{number:04}" for number in range(1, 201)]
ALL_MISDEEDS = ("--malformed", "0.1", "--forged", "0.1", "--skewed", "0.1")


@pytest.fixture(scope="module")
def pipeline(
    stack_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    assert stack_settings.database_url is not None
    assert stack_settings.broker_url is not None
    folder: Path = tmp_path_factory.mktemp("simulator")
    with (
        fresh_database(stack_settings.database_url.get_secret_value()) as database_url,
        pipeline_of(
            database_url,
            stack_settings.broker_url.get_secret_value(),
            folder,
            more_trackers=LOADED,
        ) as prepared,
    ):
        prepared.start_ingest()
        yield prepared
        prepared.assert_running()


def simulate(pipeline: Pipeline, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    pipeline.environment = environment
    pipeline.log("simulate").unlink(missing_ok=True)
    return pipeline.start("simulate", "--tenant", TENANT, "--seed", "7", *arguments)


def said(pipeline: Pipeline) -> str:
    return pipeline.log("simulate").read_text()


def counted(pipeline: Pipeline, name: str) -> dict[str, int]:
    """Return what the last line says was counted under a name."""
    parts = (each.partition(": ") for each in said(pipeline).splitlines()[-1].split("  "))
    found = next((told for key, _, told in parts if key == name), "")
    pairs = (each.split(" ") for each in found.split(", ") if each)
    return {key: int(times) for key, times in pairs}


def kept_as_rejected(pipeline: Pipeline, misdeed: Misdeed, group: str) -> int:
    """Return how many different messages the platform keeps as rejected for a misdeed's reasons."""
    query = "SELECT count(*) FROM rejected WHERE reason = ANY(%s) AND topic LIKE %s"
    rows = pipeline.query(query, [str(each) for each in REASONS[misdeed]], f"%/{group}-%")
    return int(rows[0][0])


def test_of_two_hundred_devices_nothing_true_is_lost_and_all_that_is_bad_is_refused(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.jsonl"
    before = pipeline.count("reading")
    process = simulate(
        pipeline, "--group", "load:200", "--for", "3", "--interval", "1", "--readings", "2",
        "--duplicates", "0.05", "--reorder", "0.05", "--drop", "0.05", "--offline", "0.05",
        "--offline-seconds", "1", "--resend", "1", *ALL_MISDEEDS, "--ledger", str(ledger),
    )  # fmt: skip
    assert process.wait(90) == 0, said(pipeline)
    assert pipeline.count("reading") - before == len(ledger.read_text().splitlines()) > 400
    faults = counted(pipeline, "faults")
    for name in ("dropped", "reordered", "duplicated", "offline"):
        assert faults[name] > 0, faults
    made = counted(pipeline, "bad messages made")
    assert made == {str(each): kept_as_rejected(pipeline, each, "load") for each in Misdeed}
    assert min(made.values()) > 10


def test_what_is_bad_and_not_refused_as_such_makes_it_fail(pipeline: Pipeline) -> None:
    use_mapping(pipeline, {"carrier": {"senders": ["tracker-0001"]}})
    try:
        process = simulate(
            pipeline, "--group", "tracker:1", "--for", "0.5", "--interval", "0.1", "--forged", "1",
            "--drain", "1",
        )  # fmt: skip
        assert process.wait(60) == 1
    finally:
        pipeline.execute("DELETE FROM payload_mapping")
    assert "NOT all that is bad was refused" in said(pipeline)
    assert "NOT everything is durable" not in said(pipeline)
    assert "refused messages: unknown_device" in said(pipeline)


def test_devices_with_credentials_of_their_own_speak_tls_and_cannot_forge_a_topic(
    pipeline: Pipeline, stack_settings: Settings, tmp_path: Path
) -> None:
    settings = stack_settings.model_copy(
        update={
            "database_url": SecretStr(pipeline.database_url),
            "topic_root": pipeline.topic_root,
        }
    )
    at, devices = ports(settings), ["tracker-0001", "tracker-0002"]

    async def provision() -> str:
        async with provisioning(settings, TENANT) as made:
            given = await made.give_passwords(devices, now=datetime.now(UTC), anew=False)
            for number in (1, 2):
                await make_key(made, f"meter-000{number}", tmp_path, anew=False)
        return "".join(f"{each.username} {each.password}\n" for each in given)

    passwords = tmp_path / "passwords"
    passwords.write_text(asyncio.run(provision()))
    trusted = {"FLEETMETER_BROKER_CA_FILE": str(broker_folder(settings) / "authority.pem")}
    for group, port, credentials in (
        ("tracker", at.passwords, ("--credentials", str(passwords))),
        ("meter", at.certificates, ("--certificates", str(tmp_path))),
    ):
        before = pipeline.count("reading")
        process = simulate(
            pipeline, "--broker", f"mqtts://localhost:{port}", "--group", f"{group}:2",
            "--for", "1", "--interval", "0.2", "--forged", "0.5", *credentials, **trusted,
        )  # fmt: skip
        assert process.wait(60) == 0, said(pipeline)
        assert pipeline.count("reading") > before
        assert counted(pipeline, "of these refused") == counted(pipeline, "bad messages made")
        assert counted(pipeline, "bad messages made")["forged"] > 0


LEAK = """
import time
kept = []
while True:
    kept.append(bytearray(1 << 20))
    kept[-1][::4096] = b"x" * 256
    time.sleep(0.05)
"""


def test_a_soak_ends_once_a_watched_process_leaks(pipeline: Pipeline) -> None:
    with subprocess.Popen([sys.executable, "-c", LEAK]) as leaking:
        try:
            process = simulate(
                pipeline, "--group", "tracker:2", "--interval", "0.2", "--soak", "--check", "0.1",
                "--watch", str(leaking.pid), "--watch", f"http://127.0.0.1:{pipeline.metrics_port}/metrics",
            )  # fmt: skip
            assert process.wait(60) == 1
        finally:
            leaking.kill()
    assert f"grows without bound: memory of process {leaking.pid}" in said(pipeline)
    assert "NOT" not in said(pipeline), "it was drained"


def test_a_soak_ends_once_a_watched_process_is_gone(pipeline: Pipeline) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as watched:
        process = simulate(
            pipeline,
            "--group",
            "tracker:1",
            "--soak",
            "--check",
            "0.1",
            "--watch",
            str(watched.pid),
        )
        wait_until(lambda: "simulating" in said(pipeline), "the start")
        assert process.poll() is None
        watched.communicate()
        assert process.wait(60) == 1
    assert f"process {watched.pid} has ended" in said(pipeline)
