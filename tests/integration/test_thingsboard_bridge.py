"""Devices whose topic cannot be set, behind the bridge that is shipped for them, with two real brokers."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from metering.broker_address import parse_broker_url
from metering.settings import Settings
from metering.stack.folders import cache_folder
from metering.stack.probe import free_port
from metering.wire.formats import formats_filter
from tests.integration.access import Device, Refused, broker_folder, connected, ports, wait
from tests.integration.pipeline import TENANT
from tests.integration.test_credentials import ROOT, SHIPPED, A, give_passwords, settings, topic
from tests.integration.test_uplink_broker import mosquitto_command

__all__ = ["settings"]


@pytest.fixture
def bridge(settings: Settings, tmp_path: Path) -> Iterator[int]:
    """Run the bridge that is shipped, for device A; yield the port at which it listens."""
    (given,) = give_passwords(settings, A)
    port = free_port()
    text = (SHIPPED.parent / "thingsboard_bridge.conf").read_text()
    for shipped, own in {
        "listener 1883": f"listener {port}",
        "/var/lib/mosquitto/": f"{tmp_path}/",
        "broker.example:8883": f"localhost:{ports(settings).passwords}",
        "/etc/fleetmeter/authority.pem": f"{broker_folder(settings)}/authority.pem",
        "remote_password password": f"remote_password {given.password}",
        "acme/gateway-1": given.username,
    }.items():
        assert shipped in text
        text = text.replace(shipped, own)
    config = tmp_path / "bridge.conf"
    config.write_text(f"{text}user root\n")  # as root; else it stays who starts it
    with (tmp_path / "bridge.log").open("wb") as log:
        process = subprocess.Popen(
            [mosquitto_command(cache_folder(settings)), "-c", str(config)], stdout=log, stderr=log
        )
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def anonymous(settings: Settings, port: int) -> Iterator[Device]:
    """Connect to the bridge without a credential, once it listens."""

    def listens() -> bool:
        with contextlib.suppress(Refused), connected(settings, port, tls=None):
            return True
        return False

    wait(listens, "bridge")
    with connected(settings, port, tls=None) as device:
        yield device


def test_a_topic_that_cannot_be_set_becomes_the_device_s_own(
    settings: Settings, bridge: int
) -> None:
    assert settings.broker_url is not None
    process = parse_broker_url(settings.broker_url.get_secret_value())
    with (
        connected(
            settings, process.port, username=process.username, password=process.password, tls=None
        ) as platform,
        anonymous(settings, bridge) as device,
    ):
        assert platform.may_subscribe(formats_filter(ROOT))
        assert device.may_publish("v1/devices/me/telemetry", '{"ts":1,"values":{}}')
        assert device.may_publish("v1/gateway/telemetry", '{"meter-2":[]}')
        assert device.may_publish(f"{ROOT}/{TENANT}/{A}/usage", "stays on the bridge")
        wait(lambda: len(platform.heard) >= 2, "both messages")
        assert sorted(platform.heard) == [
            (topic(A, "usage/thingsboard"), b'{"ts":1,"values":{}}'),
            (topic(A, "usage/thingsboard-gateway"), b'{"meter-2":[]}'),
        ]
