"""Where a broker answers, read from its URL."""

import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from metering.errors import InvalidValue, SettingsError
from metering.settings import Settings

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_FIX = "use mqtt://[user:password@]host[:port] or mqtts://…"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """A broker's host and port, whether to speak TLS, and the credentials.

    Over TLS the broker is trusted by the authorities of `ca_file`, None for the machine's; a device may
    show the certificate of `certificate_file`, whose key is in `key_file`.
    """

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    def tls_context(self) -> ssl.SSLContext | None:
        """Return how to speak TLS, 1.2 or newer; None for a broker that speaks none.

        Raises `SettingsError` when a file is missing or holds something else.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"cannot read the certificates for the broker: {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def __repr__(self) -> str:
        return f"BrokerAddress({'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port})"


def broker_of(option: str | None, settings: Settings) -> BrokerAddress:
    """Return the broker that a command's `--broker` names, or else the settings."""
    if option is None and settings.broker_url is None:
        raise SettingsError("no broker is known; give --broker, or set FLEETMETER_BROKER_URL")
    known = "" if settings.broker_url is None else settings.broker_url.get_secret_value()
    return replace(
        parse_broker_url(option or known),
        ca_file=settings.broker_ca_file,
        certificate_file=settings.broker_certificate_file,
        key_file=settings.broker_key_file,
    )


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
