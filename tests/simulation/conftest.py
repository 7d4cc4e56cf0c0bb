"""How many seeds are simulated, and from which on; and the server on which they are."""

import pytest

from metering.settings import Settings


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("simulation")
    group.addoption("--seeds", type=int, default=None, help="how many seeds to simulate")
    group.addoption("--first-seed", type=int, default=1, help="the first of them")


@pytest.fixture
def server_url(stack_settings: Settings) -> str:
    assert stack_settings.database_url is not None
    return stack_settings.database_url.get_secret_value()
