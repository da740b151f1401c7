"""Flat policies against libCacheSim, reference by reference. Skipped where it is not installed."""

import pytest

from kvbench.sim.replay import replay
from tests.sim.libcachesim import NAMES, hits_of
from tests.sim.small_traces import columns_of, skewed

each_name = pytest.mark.parametrize("name", NAMES)


def hits_one_by_one(name: str, blocks: int, ids: list[int]) -> list[bool]:
    """Each id a request of its own, so that `hits` says of each reference whether it hit."""
    replayed = replay(columns_of([[block] for block in ids]), name, blocks)
    return [bool(hit) for hit in replayed.hits]


@each_name
def test_each_reference_hits_or_misses_as_in_libcachesim(name: str) -> None:
    # SLRU: of multiples of four; S3-FIFO: with a small queue of two or more (see docs/policies.md)
    cases = [(blocks, skewed(seed, 2000)) for seed in range(8) for blocks in (20, 40, 100, 232)]
    theirs = hits_of([(NAMES[name], blocks, ids) for blocks, ids in cases])
    assert len(theirs) == len(cases)
    for (blocks, ids), expected in zip(cases, theirs, strict=True):
        assert hits_one_by_one(name, blocks, ids) == expected


def test_a_touch_evicts_in_an_slru_of_libcachesim_whose_size_is_no_multiple_of_four() -> None:
    # 4 is left over in the lowest segment, and 1 sinks onto it when 0 is lifted
    ids = [0, 1, 2, 3, 4, 0, 4]
    assert hits_of([("SLRU", 5, ids)]) == [[False] * 5 + [True, False]]
    assert hits_one_by_one("slru", 5, ids) == [False] * 5 + [True, True]


def test_an_s3fifo_of_libcachesim_with_room_for_one_new_block_takes_none() -> None:
    assert hits_of([("S3FIFO", 19, [0, 0])]) == [[False, False]]
    assert hits_one_by_one("s3fifo", 19, [0, 0]) == [False, True]
