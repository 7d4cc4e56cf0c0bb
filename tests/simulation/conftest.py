"""How many seeds are simulated, and from which on."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("simulation")
    group.addoption("--seeds", type=int, default=None, help="how many seeds to simulate")
    group.addoption("--first-seed", type=int, default=1, help="the first of them")
