"""A sequence set says what a plain set would say."""

from hypothesis import given
from hypothesis import strategies as st

from metering.sequence import SequenceSet


@given(batches=st.lists(st.lists(st.integers(1, 60)), max_size=8), most=st.integers(0, 10))
def test_it_agrees_with_a_plain_set(batches: list[list[int]], most: int) -> None:
    kept = SequenceSet()
    plain: set[int] = set()
    for batch in batches:
        kept = kept.with_added(batch)
        plain |= set(batch)
        kept = SequenceSet.from_flattened(kept.up_to, kept.flattened())
    assert {seq for seq in range(70) if seq in kept} == plain
    assert kept.highest == max(plain, default=0)
    assert kept.up_to + 1 not in plain
    missing, told = kept.gaps(most)
    assert len(missing) <= most
    told_missing = {seq for first, last in missing for seq in range(first, last + 1)}
    assert told_missing == set(range(1, told + 1)) - plain
    edges = [kept.up_to, *kept.flattened()]
    assert all(low < high - 1 for low, high in zip(edges[::2], edges[1::2], strict=False))
