"""Where a webhook may go: what its URL may be, and which addresses it may reach."""

import ipaddress
from urllib.parse import urlsplit

from metering.errors import InvalidValue

URL_CHARACTERS_MAX = 2000
_FIX = "use a URL such as https://hooks.example.com/fleetmeter, of a host that is public"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # a cloud's own server beside each of its machines, by a public number
        "192.0.0.0/24",
        "fec0::/10",
    )
]
"""What `ipaddress` takes for global, in some or all releases of Python."""


def check_webhook_url(url: str, *, private_addresses: bool, field: str = "url") -> None:
    """Raise `InvalidValue` for a URL to which no webhook goes, as far as the URL alone tells.

    `field` is what it was given as.
    """
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise InvalidValue(field, "not a URL", _FIX) from None
    if len(url) > URL_CHARACTERS_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidValue(field, "too long, or holds more than printable ASCII", _FIX)
    if parts.scheme not in ("https", "http"):
        raise InvalidValue(field, f"{parts.scheme!r} is neither https nor http", _FIX)
    if not host:
        raise InvalidValue(field, "names no host", _FIX)
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidValue(field, "holds credentials or a fragment", "leave them out")
    if not private_addresses and not _may_be_public(host):
        raise InvalidValue(field, f"{host!r} is no public host", _FIX)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it carries another inside."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip in _SIX_TO_FOUR:
            inner = ip.sixtofour
        if inner is not None:
            return is_public(str(inner))
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _may_be_public(host: str) -> bool:
    try:
        return is_public(host)
    except ValueError:
        return host != "localhost" and not host.endswith(".localhost")
