"""Where a webhook may go."""

import pytest

from metering.errors import InvalidValue
from metering.webhook_address import check_webhook_url, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.2.1", "198.18.0.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1",
        "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
        "2002:7f00:1::", "2002:a00:1::1", "168.63.129.16", "192.0.0.192", "fec0::1", "::127.0.0.1",
        "64:ff9b:1::a00:1", "::ffff:168.63.129.16",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_an_address_that_is(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "ftp://example.com", "https://", "https://user:pw@example.com", "https://u@a.com",
        "https://example.com/#part", "https://example.com:99999", "https://[::1", "http://a b.com",
        "https://exämple.com", "https://example.com/" + "a" * 2000, "https://127.0.0.1/",
        "https://[::1]/", "http://localhost:80/", "https://169.254.169.254/latest",
        "https://a.localhost/",
    ],
)  # fmt: skip
def test_a_url_to_which_no_webhook_goes(url: str) -> None:
    with pytest.raises(InvalidValue, match="url"):
        check_webhook_url(url, private_addresses=False)


@pytest.mark.parametrize(
    "url", ["https://example.com", "http://hooks.example.com:8080/a?b=c", "https://1.1.1.1/"]
)
def test_a_url_to_which_one_goes(url: str) -> None:
    check_webhook_url(url, private_addresses=False)


def test_private_addresses_may_be_allowed() -> None:
    check_webhook_url("http://127.0.0.1:8080/", private_addresses=True)
