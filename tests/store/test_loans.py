"""Blocks lent where they lie: held until released, and only to whom they belong."""

import time
from pathlib import Path

import pytest

from kvbench.store.block import Status, payload_matches
from kvbench.store.dram import DramTier
from kvbench.store.options import Options
from kvbench.store.store import TieredStore
from tests.store.blocks import LAYOUT, drive, get, keys_of, payloads_of, put

EIGHT = keys_of(8)


def test_a_loan_shows_each_block_where_it_lies() -> None:
    with TieredStore([DramTier(LAYOUT, 8)]) as store:
        put(store, EIGHT[:4])
        loan = store.lend([EIGHT[1], keys_of(1, prefix=9)[0], EIGHT[3]])
        assert [block is not None for block in loan.blocks] == [True, False, True]
        for key, block in zip((EIGHT[1], EIGHT[3]), (loan.blocks[0], loan.blocks[2]), strict=True):
            assert block is not None
            assert (block.tier, block.stamp.key) == ("dram", key)
            assert block.view is not None
            assert (block.view == payloads_of([key])[0]).all()
            assert payload_matches(block.stamp, block.view, LAYOUT)
        loan.release()


def test_what_is_lent_is_not_evicted_until_it_is_given_back() -> None:
    with TieredStore([DramTier(LAYOUT, 4)]) as store:
        put(store, EIGHT[:4])
        loan = store.lend(EIGHT[:4])
        assert put(store, EIGHT[4:6]) == [Status.BUSY] * 2
        loan.release()
        loan.release()  # once more is no error
        assert put(store, EIGHT[4:6]) == [Status.OK] * 2


def test_a_loan_ends_by_itself() -> None:
    with TieredStore([DramTier(LAYOUT, 2)]) as store:
        put(store, EIGHT[:2])
        store.lend(EIGHT[:2], ttl_s=0.05)
        give_up_s = time.monotonic() + 20
        while put(store, EIGHT[2:4]) != [Status.OK] * 2:
            assert time.monotonic() < give_up_s
        assert store.stats().counters["leases_expired"].blocks == 2


def test_blocks_of_other_tenants_are_not_there() -> None:
    with TieredStore([DramTier(LAYOUT, 8)]) as store:
        rows = payloads_of(EIGHT)
        store.put(EIGHT[:2], rows[:2], tenant="a").result()
        store.put(EIGHT[2:4], rows[2:4], tenant="b").result()
        lent = store.lend(EIGHT[:4], tenants={"b"}).blocks
        assert [block is not None for block in lent] == [False, False, True, True]


def test_with_too_many_leases_out_nothing_is_lent() -> None:
    with TieredStore([DramTier(LAYOUT, 4)], Options(most_leases=1)) as store:
        put(store, EIGHT[:4])
        first = store.lend(EIGHT[:1])
        second = store.lend(EIGHT[1:2])
        assert second.lease.refused
        assert second.blocks == [None]
        first.release()
        assert store.lend(EIGHT[1:2]).blocks != [None]


def test_what_was_read_in_place_is_young_once_it_is_said() -> None:
    with TieredStore([DramTier(LAYOUT, 4)]) as store:
        put(store, EIGHT[:2])
        put(store, keys_of(2, prefix=5))
        store.used(EIGHT[:2])
        put(store, keys_of(2, prefix=6))
        assert get(store, EIGHT[:2]) == [Status.OK] * 2


def test_a_block_on_a_drive_has_no_memory_to_show(tmp_path: Path) -> None:
    with TieredStore([drive(tmp_path / "drive", 8)]) as store:
        put(store, EIGHT[:1])
        (block,) = store.lend(EIGHT[:1]).blocks
        assert block is not None
        assert (block.tier, block.view) == ("nvme", None)


def test_a_closed_store_lends_nothing() -> None:
    store = TieredStore([DramTier(LAYOUT, 4)])
    store.close()
    with pytest.raises(Exception, match="closed"):
        store.lend(EIGHT[:1])


def test_a_store_lists_what_can_be_found_once_and_by_tenant(tmp_path: Path) -> None:
    with TieredStore([DramTier(LAYOUT, 8), drive(tmp_path / "drive", 8)]) as store:
        rows = payloads_of(EIGHT)
        store.put(EIGHT[:3], rows[:3], tenant="a").result()
        store.put(EIGHT[3:5], rows[3:5], tenant="b").result()
        store.flush().result()  # now each is in both tiers
        assert sorted(store.listing()) == sorted(EIGHT[:5])
        assert sorted(store.listing(tenants={"b"})) == sorted(EIGHT[3:5])
        assert store.held([EIGHT[0], EIGHT[7], EIGHT[4]]) == [True, False, True]
        assert store.held([EIGHT[0], EIGHT[4]], tenants={"b"}) == [False, True]


def test_who_waits_for_an_event_is_woken_by_it() -> None:
    with TieredStore([DramTier(LAYOUT, 8)]) as store:
        number = store.events().next_sequence
        assert not store.wait_for_event(number, 0.0)
        put(store, EIGHT[:1])
        assert store.wait_for_event(number, 20.0)
