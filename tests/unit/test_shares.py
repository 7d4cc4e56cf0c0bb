"""How shards are shared out between workers."""

import pytest

from metering.charging.leases import share_of


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 70])
def test_shares_are_all_shards_and_differ_by_one_at_most(count: int) -> None:
    workers = [7 * number for number in range(count)]
    shares = [share_of(worker, workers, 64) for worker in workers]
    assert sum(shares) == 64
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("count", range(1, 20))
def test_a_newcomer_gives_nobody_more(count: int) -> None:
    before = list(range(count))
    after = [*before, count]
    for worker in before:
        assert share_of(worker, after, 64) <= share_of(worker, before, 64)
