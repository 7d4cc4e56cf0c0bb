"""Where a broker answers, read from its URL."""

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from metering.errors import InvalidValue, SettingsError
from metering.settings import Settings

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_FIX = "use mqtt://[user:password@]host[:port] or mqtts://…"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """A broker's host and port, whether to speak TLS, and the credentials."""

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"BrokerAddress({'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port})"


def broker_of(option: str | None, settings: Settings) -> BrokerAddress:
    """Return the broker that a command's `--broker` names, or else the settings."""
    if option:
        return parse_broker_url(option)
    if settings.broker_url is None:
        raise SettingsError("no broker is known; give --broker, or set FLEETMETER_BROKER_URL")
    return parse_broker_url(settings.broker_url.get_secret_value())


def parse_broker_url(url: str) -> BrokerAddress:
    """Read a broker URL; raises `InvalidValue`, which never repeats the URL and its password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidValue("broker_url", "not a URL", _FIX) from None
    if parts.scheme not in _PORTS:
        raise InvalidValue("broker_url", f"{parts.scheme!r} is not a scheme of MQTT", _FIX)
    if not parts.hostname:
        raise InvalidValue("broker_url", "names no host", _FIX)
    return BrokerAddress(
        host=parts.hostname,
        port=_PORTS[parts.scheme] if port is None else port,
        tls=parts.scheme == "mqtts",
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
    )
