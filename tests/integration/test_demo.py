"""The demonstration as a newcomer runs it: it ends with an audit, by itself or by ^C."""

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from metering.settings import Settings

VERDICT = re.compile(r"audit: equal \((\d+) readings, (\d+) charges\)")


@pytest.fixture
def demo_environment(stack_settings: Settings, database_url: str) -> dict[str, str]:
    # Where the stack is, so that its devices get credentials of their own.
    return {
        **{name: value for name, value in os.environ.items() if name != "FLEETMETER_BROKER_URL"},
        "FLEETMETER_DATABASE_URL": database_url,
        "FLEETMETER_DATA_DIR": str(stack_settings.data_dir),
        "FLEETMETER_TOPIC_ROOT": "demo/v1",
        "FLEETMETER_INGEST_CLIENT_ID": "demo-ingest",
        "FLEETMETER_CONTROL_CLIENT_ID": "demo-control",
        "FLEETMETER_API_PORT": "0",
    }


def demo(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "metering.cli", "demo", "--interface", "lo"),
            *("--trackers", "8", "--meters", "8", "--interval", "0.4", "--seed", "5", *arguments),
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_it_ends_by_itself_with_an_audit_and_a_second_run_goes_on_from_there(
    demo_environment: dict[str, str],
) -> None:
    counts: list[int] = []
    told: list[int] = []
    for _ in range(2):
        run = demo(demo_environment, "--for", "7")
        output, _ = run.communicate(timeout=120)
        assert run.returncode == 0, output
        verdict = VERDICT.fullmatch(output.splitlines()[-1])
        assert verdict, output
        counts.append(int(verdict[1]))
        assert "API docs   http://127.0.0.1:" in output
        for shown in (
            "messages",
            "records",
            "charges",
            "publish→charged median",
            "due",
            "commands",
        ):
            assert shown in output
        told.append(max(int(count) for count in re.findall(r"published, (\d+) answered", output)))
        for fleet in ("trackers", "meters", "this-machine"):
            assert re.search(rf"{fleet} +\d+ devices  due +[\d.,]+ EUR", output), output
        assert re.search(r"data pool [\d.,]+ MB of [\d.,]+ MB left", output)
    assert 0 < counts[0] < counts[1]
    assert max(told) > 0  # of what crossed its threshold, the devices said that they do as told


def test_control_c_ends_it_with_an_audit_and_leaves_no_process(
    demo_environment: dict[str, str],
) -> None:
    lines: list[str] = []
    children: list[psutil.Process] = []
    with demo(demo_environment) as run:
        assert run.stdout is not None
        for line in run.stdout:
            lines.append(line)
            if line.startswith("00:05") and not children:  # its last tick may say 00:05 again
                children = descendants(run.pid)
                run.send_signal(signal.SIGINT)
    assert run.returncode == 0, "".join(lines)
    assert VERDICT.fullmatch(lines[-1].strip()), "".join(lines)
    assert len(children) == 6  # ingest, charge, control, api, simulate, agent
    assert not [child for child in children if child.is_running()]


def test_killed_it_takes_its_processes_with_it(demo_environment: dict[str, str]) -> None:
    children: list[psutil.Process] = []
    with demo(demo_environment) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("00:05"):
                children = descendants(run.pid)
                run.kill()
                break
    assert len(children) == 6
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_a_difference_makes_it_fail_and_is_named(
    demo_environment: dict[str, str], database_url: str
) -> None:
    first = demo(demo_environment, "--for", "5")
    first.communicate(timeout=120)
    subprocess.run(
        [sys.executable, "-c", TAMPER, database_url], check=True, timeout=30, capture_output=True
    )
    run = demo(demo_environment, "--for", "2")
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 1
    assert output.splitlines()[-1] == "audit: 1 difference"
    assert "replay says" in output


TAMPER = """
import sys, psycopg
with psycopg.connect(sys.argv[1]) as connection:
    connection.execute(
        "UPDATE charge SET amount = amount + 1"
        " WHERE (boot_no, seq) = (SELECT boot_no, seq FROM charge LIMIT 1)"
    )
"""


def test_a_process_that_died_as_it_ends_is_named(demo_environment: dict[str, str]) -> None:
    lines: list[str] = []
    with demo(demo_environment) as run:
        assert run.stdout is not None
        for line in run.stdout:
            lines.append(line)
            if line.startswith("00:05"):
                run.send_signal(signal.SIGINT)
            if "stopping the devices" in line:
                (worker,) = [each for each in descendants(run.pid) if "charge" in each.cmdline()]
                worker.kill()
    output = "".join(lines)
    assert run.returncode == 1, output
    assert "Traceback" not in output
    assert "how things stand is not known" in output
    assert "charge ended by itself; see" in output
    assert "audit: " in output
