"""A device behind a GPRS tunnel, in namespaces of its own; run by path, inside `unshare --net --mount`.

osmo-ggsn is the network and keeps this namespace; sgsnemu makes the device's interface in another one,
`device`, where the agent runs. Prints, as JSON, what the network's end of the tunnel carried and how much
was sent in each direction as IP packets.
"""

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_HEADERS = 28
"""Octets of IPv4 and UDP in each packet."""
_SERVER = ("10.201.0.1", 9999)
_GGSN = """line vty
 no login
ggsn ggsn0
 gtp state-dir {folder}
 gtp bind-ip 127.0.0.2
 apn internet
  gtpu-mode tun
  tun-device core0
  type-support v4
  ip prefix dynamic 10.200.0.0/24
  ip ifconfig 10.200.0.0/24
  no shutdown
 default-apn internet
 no shutdown ggsn
"""
_DEVICE = """
import json, socket, sys
sizes = json.loads(sys.argv[1])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    link.settimeout(10)
    for size in sizes:
        link.sendto(bytes(size), ("10.201.0.1", 9999))
        link.recv(65536)
"""


def main(folder: Path, programs: Path) -> None:
    """Connect twice, carry something each time, and print what the network counted."""
    ip = str(next(programs.glob("*bin/ip")))
    in_device = [ip, "netns", "exec", "device"]
    _lay_out(ip, in_device)
    config = folder / "ggsn.cfg"
    config.write_text(_GGSN.format(folder=folder))
    sizes = random.Random(7)  # noqa: S311 - the same every time
    sent = received = 0
    with (
        _running(programs / "usr/bin/osmo-ggsn", "-c", config),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        _until(lambda: Path("/sys/class/net/core0/statistics").is_dir())
        server.bind(_SERVER)
        server.settimeout(10)
        agent: subprocess.Popen[bytes] | None = None
        for connection in range(2):
            with _attached(programs, folder, in_device, connection):
                if agent is None:
                    agent = subprocess.Popen([*in_device, *sys.argv[3:]])
                    _until(lambda: bool(_metered(folder)))
                payloads = [sizes.randrange(1, 1400) for _ in range(200)]
                device = subprocess.Popen(
                    [*in_device, sys.executable, "-c", _DEVICE, json.dumps(payloads)]
                )
                for size in payloads:
                    octets, address = server.recvfrom(65536)
                    server.sendto(octets[: size // 3], address)
                    sent += size + _HEADERS
                    received += size // 3 + _HEADERS
                assert device.wait() == 0
                # What an interface counted after the last reading goes with it: wait for that reading.
                goal = (sent, received)
                _until(lambda: _total(folder) >= goal)  # noqa: B023 - called here
        statistics = Path("/sys/class/net/core0/statistics")
        carried = [int((statistics / name).read_text()) for name in ("rx_bytes", "tx_bytes")]
        assert agent is not None
        agent.terminate()
        agent.wait()
    print(json.dumps({"carried": carried, "sent": [sent, received]}))


def _lay_out(ip: str, in_device: list[str]) -> None:
    """Make the device's namespace, without IPv6, whose own messages nobody asked for."""
    run = subprocess.check_call
    run(["mount", "-t", "tmpfs", "none", "/run"])
    run(["mount", "-t", "sysfs", "none", "/sys"])
    run([ip, "netns", "add", "device"])
    off = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"
    for where in ([], in_device):
        run([*where, "sh", "-c", f"{off} && {ip} link set lo up"])
    run([ip, "addr", "add", f"{_SERVER[0]}/32", "dev", "lo"])


@contextmanager
def _attached(programs: Path, folder: Path, in_device: list[str], number: int) -> Iterator[None]:
    """Have a packet data context, and with it the interface gprs0 in the device's namespace."""
    with _running(
        *(programs / "usr/bin/sgsnemu", "-l", "127.0.0.1", "-r", "127.0.0.2", "--createif"),
        *("--defaultroute", "--tun-device", "gprs0", "--netns", "device"),
        *("--imsi", f"00101012345678{number}", "--pidfile", folder / "pid"),
        *("--statedir", f"{folder}/"),
    ):
        show = [*in_device, "cat", "/proc/net/route"]
        _until(lambda: b"gprs0\t00000000" in subprocess.check_output(show))
        yield


@contextmanager
def _running(*command: str | Path) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(2)
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _metered(folder: Path) -> list[dict[str, int]]:
    ledger = folder / "ledger.jsonl"
    if not ledger.exists():
        return []
    return [
        json.loads(line)
        for line in ledger.read_text().splitlines(keepends=True)
        if line[-1:] == "\n"
    ]


def _total(folder: Path) -> tuple[int, int]:
    lines = _metered(folder)
    return sum(line["used_up"] for line in lines), sum(line["used_down"] for line in lines)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
