"""A device that flooded is kept away from the real broker for a while, whatever else becomes of it."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import psycopg
import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from metering.broker_address import parse_broker_url
from metering.control.give_credentials import Given
from metering.flood import Flood
from metering.ids import DeviceId, TenantId
from metering.rating.plan import DeviceState
from metering.settings import Settings
from metering.store.connection import connect
from metering.store.floods import hold_device
from tests.integration.access import Refused, connected, wait
from tests.integration.pipeline import TENANT
from tests.integration.test_credentials import (
    A,
    B,
    be,
    by_certificate,
    by_password,
    control,
    give_key,
    give_passwords,
    running_control,
    settings,
    topic,
)

__all__ = ["control", "settings"]


def hold(settings: Settings, device: str = A) -> bool:
    """Hold a device, for longer than any test lasts."""
    sender = (TenantId(TENANT), DeviceId(device))
    flood = Flood(sender, messages=5000, octets=5000, seconds=1.0)

    async def held() -> bool:
        assert settings.database_url is not None
        url = settings.database_url.get_secret_value()
        async with await connect(url, application="test") as connection, connection.transaction():
            return await hold_device(
                connection, flood, hold=timedelta(hours=1), now=datetime.now(UTC)
            )

    return asyncio.run(held())


def execute(settings: Settings, *statements: str) -> None:
    assert settings.database_url is not None
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def release(settings: Settings) -> None:
    """Have the time of a hold come to its end, and somebody look."""
    execute(
        settings,
        "UPDATE device_flood SET held_until = now()",
        "UPDATE broker_client SET look_at = now()",
        "NOTIFY fleetmeter_outbox",
    )


def tell(settings: Settings, command: str) -> None:
    """Give the broker's plugin a command for device A, of which the platform knows nothing."""
    assert settings.broker_url is not None
    process = parse_broker_url(settings.broker_url.get_secret_value())
    with connected(
        settings, process.port, username=process.username, password=process.password, tls=None
    ) as platform:
        commands = [{"command": command, "username": f"{TENANT}/{A}"}]
        platform.may_publish("$CONTROL/dynamic-security/v1", json.dumps({"commands": commands}))


def told(settings: Settings) -> str | None:
    """Return what the broker was last told of device A."""
    assert settings.database_url is not None
    query = b"SELECT told FROM broker_client JOIN device USING (device_no) WHERE device_id = %s"
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        row = connection.execute(query, [A]).fetchone()
    assert row is not None
    return None if row[0] is None else str(row[0])


def wait_until_told(settings: Settings, right: str) -> None:
    wait(lambda: told(settings) == right, f"word to the broker: {right}")


def check_kept_away(settings: Settings, given: Given) -> None:
    with pytest.raises(Refused), by_password(settings, given):
        pass


def check_publishes(settings: Settings, given: Given) -> None:
    with by_password(settings, given) as device:
        assert device.may_publish(topic(A, "usage"))


@pytest.mark.usefixtures("control")
def test_a_device_that_is_held_and_suspended_is_let_back_as_what_it_is_then(
    settings: Settings,
) -> None:
    (given,) = give_passwords(settings, A)
    (other,) = give_passwords(settings, B)
    with by_password(settings, given) as device, by_password(settings, other) as beside:
        assert hold(settings)
        wait(lambda: device.ends, "end of the connection")
        assert beside.may_publish(topic(B, "usage"))
        assert beside.ends == []
    check_kept_away(settings, given)
    assert not hold(settings)  # once is enough

    # Suspended while it is held: the end of the hold lets nobody back.
    be(settings, DeviceState.SUSPENDED)
    wait_until_told(settings, "suspended")
    release(settings)
    check_kept_away(settings, given)

    # Held while it is suspended, and resumed meanwhile.
    assert hold(settings)
    be(settings, DeviceState.ACTIVE)
    wait_until_told(settings, "held")
    check_kept_away(settings, given)
    release(settings)
    wait_until_told(settings, "publish")
    check_publishes(settings, given)

    # Retired while it is held: the hold lets nobody back.
    assert hold(settings)
    wait_until_told(settings, "held")
    be(settings, DeviceState.RETIRED)
    wait_until_told(settings, "none")
    release(settings)
    check_kept_away(settings, given)


@pytest.mark.usefixtures("control")
def test_another_password_does_not_end_a_hold(settings: Settings) -> None:
    give_passwords(settings, A)
    assert hold(settings)
    (given,) = give_passwords(settings, A, anew=True)
    assert told(settings) == "held"
    check_kept_away(settings, given)
    release(settings)
    wait_until_told(settings, "publish")
    check_publishes(settings, given)


def test_a_broker_that_forgot_a_hold_is_told_again(
    settings: Settings, request: pytest.FixtureRequest
) -> None:
    (given,) = give_passwords(settings, A)
    with running_control(settings):
        assert hold(settings)
        wait_until_told(settings, "held")
    tell(settings, "enableClient")
    check_publishes(settings, given)
    request.getfixturevalue("control")

    def is_kept_away() -> bool:
        with suppress(Refused), by_password(settings, given):
            return False
        return True

    wait(is_kept_away, "refusal")
    release(settings)
    wait_until_told(settings, "publish")
    check_publishes(settings, given)


def test_one_that_is_kept_away_without_being_held_is_let_back(
    settings: Settings, request: pytest.FixtureRequest
) -> None:
    (given,) = give_passwords(settings, A)
    tell(settings, "disableClient")
    check_kept_away(settings, given)
    request.getfixturevalue("control")

    def is_let_in() -> bool:
        with suppress(Refused), by_password(settings, given):
            return True
        return False

    wait(is_let_in, "permission")
    check_publishes(settings, given)


def suspend(settings: Settings) -> None:
    be(settings, DeviceState.SUSPENDED)


def resume(settings: Settings) -> None:
    be(settings, DeviceState.ACTIVE)


@pytest.mark.parametrize("version", [MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5])
@pytest.mark.parametrize(
    ("keep_away", "let_back", "right"),
    [(hold, release, "held"), (suspend, resume, "suspended")],
    ids=["held", "suspended"],
)
@pytest.mark.parametrize("with_certificate", [False, True], ids=["password", "certificate"])
@pytest.mark.usefixtures("control")
def test_nothing_is_acknowledged_and_lost_of_one_that_is_kept_away(
    *,
    settings: Settings,
    tmp_path: Path,
    with_certificate: bool,
    keep_away: Callable[[Settings], object],
    let_back: Callable[[Settings], None],
    right: str,
    version: MQTTProtocolVersion,
) -> None:
    """It publishes without a pause, comes back as soon as it is cut off, and forgets at the PUBACK."""
    if with_certificate:
        give_key(settings, A, tmp_path)
        connecting = partial(by_certificate, settings, tmp_path, A, version=version)
    else:
        (given,) = give_passwords(settings, A)
        connecting = partial(by_password, settings, given, version=version)
    assert settings.broker_url is not None
    process = parse_broker_url(settings.broker_url.get_secret_value())
    with connected(
        settings, process.port, username=process.username, password=process.password, tls=None
    ) as platform:
        assert platform.may_subscribe(topic(A, "usage"))
        acknowledged: list[str] = []
        number = 0

        def publish_until_cut_off() -> None:
            nonlocal number
            with connecting() as device:
                while not device.ends:
                    number += 1
                    assert number < TAKEN_MAX, "nobody cuts it off"
                    if device.may_publish(topic(A, "usage"), str(number)):
                        acknowledged.append(str(number))
                    if number == TAKEN:
                        keep_away(settings)

        publish_until_cut_off()
        assert len(acknowledged) >= TAKEN

        def is_kept_away() -> bool:
            try:
                publish_until_cut_off()
            except Refused:
                return told(settings) == right
            return False

        wait(is_kept_away, "refusal")
        with pytest.raises(Refused), connecting():
            pass
        let_back(settings)
        wait_until_told(settings, "publish")
        with connecting() as device:
            assert device.may_publish(topic(A, "usage"), "back")
            acknowledged.append("back")
        wait(lambda: (topic(A, "usage"), b"back") in platform.heard, "what came last")
        heard = {payload.decode() for _, payload in platform.heard}
        assert set(acknowledged) <= heard


TAKEN = 20
"""Messages that are taken of a device before it is kept away."""
TAKEN_MAX = 5000


@pytest.fixture
def without_list(settings: Settings) -> Iterator[None]:
    """Run control where nobody can write the list that the broker reads."""
    with running_control(settings, publish_revocations=nowhere):
        yield


async def nowhere(*_told: object, **_more: object) -> bool:
    """Reach no broker with the list of certificates that get nobody in."""
    return False


@pytest.mark.usefixtures("without_list")
def test_without_the_list_a_held_certificate_is_cut_off_whenever_it_floods(
    settings: Settings, tmp_path: Path
) -> None:
    """It comes back, and what it publishes is taken: nothing is lost, and what it floods with is charged."""
    give_key(settings, A, tmp_path)
    with by_certificate(settings, tmp_path, A) as device:
        assert hold(settings)
        wait(lambda: device.ends, "end of the connection")
    for _ in range(2):
        wait_until_told(settings, "held")
        with by_certificate(settings, tmp_path, A) as device:
            assert device.may_publish(topic(A, "usage"))
            assert not hold(settings)
            wait(lambda: device.ends, "end of the connection")


@pytest.mark.usefixtures("without_list")
def test_without_the_list_a_suspended_certificate_may_neither_publish_nor_listen(
    settings: Settings, tmp_path: Path
) -> None:
    give_key(settings, A, tmp_path)
    assert settings.broker_url is not None
    process = parse_broker_url(settings.broker_url.get_secret_value())
    with by_certificate(settings, tmp_path, A, version=MQTTProtocolVersion.MQTTv5) as device:
        assert device.may_subscribe(topic(A, "command"))
        be(settings, DeviceState.SUSPENDED)
        wait(lambda: device.ends, "end of the connection")
    wait_until_told(settings, "suspended")
    with (
        connected(
            settings, process.port, username=process.username, password=process.password, tls=None
        ) as platform,
        by_certificate(settings, tmp_path, A) as device,
    ):
        for last in ("usage", "quota", "command-ack"):
            assert not device.may_publish(topic(A, last)), last
        for last in ("ack", "command"):
            assert not device.may_subscribe(topic(A, last)), last
        assert platform.may_publish(topic(A, "command"), "to nobody")
        be(settings, DeviceState.ACTIVE)
        wait(lambda: device.may_publish(topic(A, "usage")), "right to publish")
        assert device.heard == []


@pytest.mark.usefixtures("control")
def test_a_certificate_that_the_api_revokes_is_refused_too(
    settings: Settings, tmp_path: Path
) -> None:
    """The API notes that it is revoked; the control process has the broker read the list."""
    give_key(settings, A, tmp_path)
    execute(
        settings,
        "UPDATE device_certificate SET revoked_at = now()",
        "UPDATE broker_client SET revoked_at = now(), look_at = now()",
        "NOTIFY fleetmeter_outbox",
    )
    wait_until_told(settings, "none")
    with pytest.raises(Refused), by_certificate(settings, tmp_path, A):
        pass
