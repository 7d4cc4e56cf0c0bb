"""What the network's end of a GPRS tunnel carried is what the agent metered, octet for octet.

osmo-ggsn and sgsnemu (Debian) are device and network. They need a network namespace and /dev/net/tun.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.agent.conftest import program

_UNSHARE = (
    "unshare",
    "--net",
    "--mount",
    *(() if os.geteuid() == 0 else ("--user", "--map-root-user")),
)


def _obstacle() -> str | None:
    """Say what stands against a tunnel on this machine."""
    if shutil.which("unshare") is None:
        return "unshare is not on this machine"
    tun = Path("/dev/net/tun")
    if not os.access(tun, os.R_OK | os.W_OK):
        return f"this account may not use {tun}, or it is not there"
    try:
        with tun.open("rb"):
            pass
    except OSError as error:
        return f"{tun}: {error}"
    tried = subprocess.run(
        [*_UNSHARE, "sh", "-c", "mount -t sysfs none /sys && mount -t tmpfs none /run"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


def test_what_the_tunnel_carried_is_what_was_metered() -> None:
    if obstacle := _obstacle():
        pytest.skip(f"osmo-ggsn with sgsnemu cannot run: {obstacle}")
    network = program("osmo-ggsn", "iproute2")
    with tempfile.TemporaryDirectory(prefix="fm-") as name:
        folder = Path(name)
        agent = [
            *(sys.executable, "-m", "metering.cli", "agent", "--interface", "gprs0"),
            *("--tenant", "t", "--device", "d", "--broker", "mqtt://127.0.0.1:9"),
            *("--interval", "0.1", "--drain", "0", "--state", name),
            *("--ledger", str(folder / "ledger.jsonl")),
        ]
        done = subprocess.run(
            [
                *(*_UNSHARE, sys.executable, str(Path(__file__).with_name("tunnel.py"))),
                *(name, str(network.root), *agent),
            ],
            env=os.environ | network.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        counted = json.loads(done.stdout.splitlines()[-1])
        lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    metered = [sum(line[name] for line in lines) for name in ("used_up", "used_down")]
    assert metered == counted["carried"] == counted["sent"]
    epochs = {line["epoch"] for line in lines}
    assert len(epochs) == 2  # the second context has an interface of its own
    highest = {epoch: [0, 0] for epoch in epochs}
    for line in lines:
        highest[line["epoch"]] = [line["up"], line["down"]]
    assert [sum(pair) for pair in zip(*highest.values(), strict=True)] == counted["carried"]
