"""What users of the store rely on, with a real drive's files below."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvbench.errors import UsageError
from kvbench.store.block import Layout, Status
from kvbench.store.dram import DramTier
from kvbench.store.faults import Delay, Fault, FaultyTier, Stuck
from kvbench.store.options import Options
from kvbench.store.store import TieredStore
from tests.store.blocks import (
    BUSY,
    LAYOUT,
    MISS,
    OK,
    WAIT_S,
    drive,
    empty_rows,
    get,
    keys_of,
    payload_of,
    payloads_of,
    put,
    two_tiers,
)

EIGHT = keys_of(8)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TieredStore]:
    with two_tiers(tmp_path / "drive") as made:
        yield made


def stuck_drive(tmp_path: Path, operation: str, options: Options) -> tuple[TieredStore, Stuck]:
    """A store with blocks on its drive alone, whose next operation hangs until it is let go."""
    stuck = Stuck()
    tier = FaultyTier(drive(tmp_path / "drive", 32), stalls=True)
    store = TieredStore([DramTier(LAYOUT, 8), tier], options)
    put(store, EIGHT)
    store.flush().result(WAIT_S)
    put(store, keys_of(8, prefix=1))  # in memory, in place of the others
    tier.add(Fault(operation=operation, kind=stuck, times=None))  # type: ignore[arg-type]
    return store, stuck


def test_a_block_is_found_once_its_put_is_ok(store: TieredStore) -> None:
    assert get(store, EIGHT) == [MISS] * 8
    assert put(store, EIGHT) == [OK] * 8
    assert get(store, EIGHT) == [OK] * 8


def test_a_lookup_ends_at_the_first_block_that_is_not_here(store: TieredStore) -> None:
    keys = keys_of(6)
    put(store, [*keys[:3], *keys[4:]])
    with store.lookup(keys) as lease:
        assert lease.keys == tuple(keys[:3])
        assert lease.tiers == ("dram",) * 3


def test_a_lookup_names_the_fastest_tier_of_each_block(store: TieredStore) -> None:
    keys = keys_of(12)
    put(store, keys[:8])
    store.flush().result(WAIT_S)
    put(store, keys[8:], parent=keys[7], position=8)
    with store.lookup(keys) as lease:
        assert len(lease) == 12
        assert set(lease.tiers) == {"dram", "nvme"}
        assert lease.tiers[8:] == ("dram",) * 4


def test_a_leased_block_is_not_evicted(store: TieredStore) -> None:
    put(store, EIGHT)
    lease = store.lookup(EIGHT[:5])
    assert put(store, keys_of(8, prefix=1)).count(OK) == 3  # what the lease leaves
    assert get(store, EIGHT[:5]) == [OK] * 5
    lease.release()
    store.flush().result(WAIT_S)  # or those on their way to the drive would stay as well
    assert put(store, keys_of(8, prefix=2)) == [OK] * 8


def test_a_lease_that_nobody_releases_expires(store: TieredStore) -> None:
    put(store, EIGHT)
    store.lookup(EIGHT, ttl_s=0.05)
    assert put(store, keys_of(1, prefix=1)) == [BUSY]
    give_up_s = time.monotonic() + WAIT_S
    while store.stats().leases and time.monotonic() < give_up_s:
        threading.Event().wait(0.01)
    assert put(store, keys_of(1, prefix=1)) == [OK]
    assert store.stats().counters["leases_expired"].blocks == 8


def test_an_expired_lease_reads_what_is_still_here(store: TieredStore) -> None:
    put(store, EIGHT)
    lease = store.lookup(EIGHT)
    lease.release()
    put(store, keys_of(3, prefix=1))
    rows = empty_rows(8)
    statuses = store.get_into(lease, rows).result(WAIT_S)
    assert statuses.count(MISS) == 3
    for key, row, status in zip(EIGHT, rows, statuses, strict=True):
        assert status is MISS or (row == payload_of(key)).all()


def test_too_many_leases_are_refused_and_hold_nothing(tmp_path: Path) -> None:
    with two_tiers(tmp_path / "drive", options=Options(most_leases=1)) as store:
        put(store, EIGHT)
        first = store.lookup(EIGHT)
        second = store.lookup(EIGHT)
        assert (len(first), first.refused) == (8, False)
        assert (len(second), second.refused) == (0, True)
        first.release()
        assert len(store.lookup(EIGHT)) == 8


def test_no_block_of_a_prefix_goes_before_those_that_follow_it(store: TieredStore) -> None:
    put(store, EIGHT)
    put(store, keys_of(5, prefix=1))
    assert len(store.lookup(EIGHT)) == 3  # the first three; the five that went came after them


def test_a_put_of_a_block_that_is_here_is_ok_and_stores_nothing(store: TieredStore) -> None:
    put(store, EIGHT)
    other = np.zeros((8, LAYOUT.block_bytes), np.uint8)
    assert store.put(EIGHT, other).result(WAIT_S) == [OK] * 8
    assert get(store, EIGHT) == [OK] * 8  # with the first content
    assert store.stats().tiers["dram"].counters["stored"].blocks == 8


def test_puts_of_one_block_at_the_same_time_store_it_once() -> None:
    stuck = Stuck()
    tier = FaultyTier(DramTier(LAYOUT, 8))
    tier.add(Fault(operation="write", kind=stuck))
    with TieredStore([tier]) as store:
        first = store.put(EIGHT[:1], payloads_of(EIGHT[:1]))
        second = store.put(EIGHT[:1], payloads_of(EIGHT[:1]))
        assert not second.done()
        stuck.release.set()
        assert first.result(WAIT_S) == second.result(WAIT_S) == [OK]
        assert store.stats().tiers["dram"].counters["stored"].blocks == 1


def test_the_same_key_twice_in_one_request(store: TieredStore) -> None:
    keys = [EIGHT[0], EIGHT[1], EIGHT[0]]
    assert put(store, keys) == [OK] * 3
    assert get(store, keys) == [OK] * 3


def test_gets_of_one_block_at_the_same_time_read_it_once(tmp_path: Path) -> None:
    store, stuck = stuck_drive(tmp_path, "read", Options())
    requests = [store.get_into(EIGHT[:1], empty_rows(1)) for _ in range(5)]
    stuck.release.set()
    assert [request.result(WAIT_S) for request in requests] == [[OK]] * 5
    assert store.stats().tiers["nvme"].counters["coalesced_gets"].blocks == 4
    assert store.stats().tiers["nvme"].counters["hits"].blocks == 1
    store.close()


def test_a_deadline_is_kept_though_the_drive_hangs_and_the_row_stays_the_callers(
    tmp_path: Path,
) -> None:
    store, stuck = stuck_drive(tmp_path, "read", Options())
    rows = empty_rows(2)
    start_s = time.monotonic()
    request = store.get_into(EIGHT[:2], rows, deadline_s=0.05)
    assert request.result(WAIT_S) == [Status.TIMEOUT] * 2
    assert time.monotonic() - start_s < WAIT_S / 4
    rows[:] = 7  # the caller uses them for something else
    stuck.release.set()
    assert get(store, EIGHT[:2]) == [OK] * 2  # a TIMEOUT is not a MISS
    assert (rows == 7).all()
    store.close()


def test_memory_is_served_while_the_drive_hangs(tmp_path: Path) -> None:
    store, stuck = stuck_drive(tmp_path, "read", Options())
    far = store.get_into(EIGHT, empty_rows(8))
    assert stuck.reached.wait(WAIT_S)
    # Two of eight slots at most are promised to blocks that are on their way from the drive.
    assert get(store, keys_of(8, prefix=1)).count(OK) >= 6
    assert not far.done()
    stuck.release.set()
    assert far.result(WAIT_S) == [OK] * 8
    store.close()


def test_what_is_cancelled_is_settled_at_once(tmp_path: Path) -> None:
    store, stuck = stuck_drive(tmp_path, "read", Options())
    rows = empty_rows(1)
    request = store.get_into(EIGHT[:1], rows)
    store.cancel(request)
    assert request.result(0) == [Status.TIMEOUT]
    assert request.reasons == {0: "cancelled"}
    stuck.release.set()
    store.close()
    assert (rows == 0xEE).all()


def test_a_full_write_behind_queue_drops_and_never_blocks(tmp_path: Path) -> None:
    # One worker: of two, the second may be first, and then the queue holds blocks in the middle of
    # the prefix, which keep those before them in memory as well.
    options = Options(
        demotion="always", write_behind_bytes=2 * LAYOUT.block_bytes, memory_threads=1
    )
    stuck = Stuck()
    tier = FaultyTier(drive(tmp_path / "drive", 32), stalls=True)
    tier.add(Fault(operation="write", kind=stuck, times=None))
    store = TieredStore([DramTier(LAYOUT, 8), tier], options)
    assert put(store, EIGHT) == [OK] * 8
    assert store.stats().tiers["nvme"].counters["queue_drops"].blocks == 6
    assert put(store, keys_of(6, prefix=1)) == [OK] * 6  # over those that were dropped
    stuck.release.set()
    store.close()


def test_rows_beyond_the_queues_limit_are_busy(tmp_path: Path) -> None:
    with two_tiers(
        tmp_path / "drive", options=Options(put_queue_bytes=3 * LAYOUT.block_bytes)
    ) as store:
        assert put(store, EIGHT) == [OK] * 3 + [BUSY] * 5
        assert put(store, EIGHT[3:6]) == [OK] * 3  # the room is given back


def test_the_second_use_of_a_block_brings_it_to_the_drive(store: TieredStore) -> None:
    put(store, EIGHT)
    assert store.stats().tiers["nvme"].used == 0
    get(store, EIGHT[:3])
    give_up_s = time.monotonic() + WAIT_S
    while store.stats().tiers["nvme"].used < 3 and time.monotonic() < give_up_s:
        threading.Event().wait(0.01)
    stats = store.stats()
    assert stats.tiers["nvme"].used == 3
    assert stats.tiers["nvme"].counters["refused_admission"].blocks == 8
    assert stats.wear.written_bytes == 3 * LAYOUT.block_bytes


def test_a_block_read_from_the_drive_is_in_memory_afterwards(store: TieredStore) -> None:
    put(store, EIGHT)
    store.flush().result(WAIT_S)
    put(store, keys_of(8, prefix=1))
    assert store.lookup(EIGHT[:1], ttl_s=0.01).tiers == ("nvme",)
    assert get(store, EIGHT[:1]) == [OK]
    assert store.lookup(EIGHT[:1], ttl_s=0.01).tiers == ("dram",)
    assert store.stats().tiers["dram"].counters["promotions"].blocks == 1


def test_without_promotion_memory_is_left_alone(tmp_path: Path) -> None:
    with two_tiers(tmp_path / "drive", options=Options(promotion="never")) as store:
        put(store, EIGHT)
        store.flush().result(WAIT_S)
        put(store, keys_of(8, prefix=1))
        assert get(store, EIGHT) == [OK] * 8
        assert store.lookup(EIGHT, ttl_s=0.01).tiers == ("nvme",) * 8


def test_a_prefetch_brings_blocks_to_memory(store: TieredStore) -> None:
    put(store, EIGHT)
    store.flush().result(WAIT_S)
    put(store, keys_of(8, prefix=1))
    asked = [*EIGHT[:4], keys_of(1, prefix=9)[0]]
    assert store.prefetch(asked).result(WAIT_S) == [OK] * 4 + [MISS]
    assert store.lookup(EIGHT[:4], ttl_s=0.01).tiers == ("dram",) * 4
    assert store.prefetch(EIGHT[:4]).result(WAIT_S) == [OK] * 4


def test_a_prefetch_without_room_is_busy(store: TieredStore) -> None:
    put(store, EIGHT)
    store.flush().result(WAIT_S)
    others = keys_of(8, prefix=1)
    put(store, others)
    with store.lookup(others):
        assert store.prefetch(EIGHT[:1]).result(WAIT_S) == [BUSY]


def test_layers_arrive_in_order_while_later_ones_are_on_their_way(tmp_path: Path) -> None:
    layout = Layout(4 * 4096, parts=4)
    tier = FaultyTier(drive(tmp_path / "drive", 32, layout), stalls=True)
    with TieredStore([DramTier(layout, 4), tier]) as store:
        keys = keys_of(2)
        put(store, keys)
        store.flush().result(WAIT_S)
        put(store, keys_of(4, prefix=1))
        stuck = Stuck()
        tier.add(Fault(operation="read", kind=stuck, nth=3, times=None))  # part 1 of both
        rows = empty_rows(2, layout)
        request = store.get_into(keys, rows, by_layer=True)
        assert request.layer(0).wait(WAIT_S)
        assert (layout.part(rows[1], 0) == layout.part(payload_of(keys[1], layout), 0)).all()
        assert not request.layer(1).is_set()
        stuck.release.set()
        assert request.result(WAIT_S) == [OK, OK]
        assert (rows == payloads_of(keys, layout)).all()
        assert all(request.layer(part).is_set() for part in range(4))


def test_layers_of_a_block_that_is_not_here_keep_nobody_waiting(store: TieredStore) -> None:
    put(store, EIGHT[:1])
    request = store.get_into(EIGHT[:2], empty_rows(2), by_layer=True)
    assert all(request.layer(part).wait(WAIT_S) for part in range(LAYOUT.parts))
    assert request.result(WAIT_S) == [OK, MISS]


def test_requests_can_be_awaited(store: TieredStore) -> None:
    async def use() -> list[Status]:
        await store.put(EIGHT, payloads_of(EIGHT))
        return await store.get_into(EIGHT, empty_rows(8))

    assert asyncio.run(use()) == [OK] * 8


def test_a_callback_of_a_request_may_use_the_store(store: TieredStore) -> None:
    done = threading.Event()

    def again(_: object) -> None:
        get(store, EIGHT[:1])
        done.set()

    store.get_into(EIGHT, empty_rows(8)).future.add_done_callback(again)  # eight misses
    assert done.wait(WAIT_S)


def test_flushed_blocks_are_there_after_reopening(tmp_path: Path) -> None:
    with two_tiers(tmp_path / "drive") as store:
        put(store, EIGHT)
        assert store.flush(EIGHT[:5]).result(WAIT_S) == [OK] * 5
        store.close(flush=False)
    with two_tiers(tmp_path / "drive") as store:
        assert get(store, EIGHT) == [OK] * 5 + [MISS] * 3


def test_after_a_clean_close_every_block_is_there(tmp_path: Path) -> None:
    with two_tiers(tmp_path / "drive") as store:
        put(store, EIGHT)
    with two_tiers(tmp_path / "drive") as store:
        assert get(store, EIGHT) == [OK] * 8
        assert store.stats().tiers["nvme"].counters["hits"].blocks == 8


def test_a_flush_waits_for_puts_under_way_and_knows_what_is_not_here(store: TieredStore) -> None:
    request = store.put(EIGHT, payloads_of(EIGHT))
    missing = keys_of(1, prefix=5)
    assert store.flush([*EIGHT, *missing]).result(WAIT_S) == [OK] * 8 + [MISS]
    assert request.result(WAIT_S) == [OK] * 8
    assert store.flush([]).result(WAIT_S) == []


def test_a_store_of_a_drive_alone_puts_and_gets(tmp_path: Path) -> None:
    with TieredStore([drive(tmp_path / "drive", 8)]) as store:
        keys = keys_of(12)
        statuses = put(store, keys[:8])
        assert statuses == [OK] * 8
        assert get(store, keys[:8]) == [OK] * 8
        assert put(store, keys[8:], parent=keys[7], position=8).count(OK) == 4
        assert store.stats().tiers["nvme"].used == 8
        assert store.flush().result(WAIT_S) == []


def test_tenants_over_their_quota_go_first(tmp_path: Path) -> None:
    quotas = {"dram": {"greedy": 2 * LAYOUT.block_bytes}}
    with two_tiers(tmp_path / "drive", options=Options(quotas=quotas)) as store:
        modest, greedy = keys_of(3), keys_of(5, prefix=1)
        put(store, modest, tenant="modest")
        put(store, greedy, tenant="greedy")  # there is room
        put(store, keys_of(3, prefix=2), tenant="third")
        assert get(store, modest) == [OK] * 3
        use = store.stats().tenants["greedy"]["dram"]
        assert (use.blocks, use.quota_bytes) == (2, 2 * LAYOUT.block_bytes)


def test_events_tell_what_came_and_went(store: TieredStore) -> None:
    put(store, EIGHT)
    put(store, keys_of(1, prefix=1))
    events = store.events()
    told = [(event.kind.value, event.key) for event in events.events]
    # Two workers store the eight: in which order is theirs.
    assert sorted(told[:8]) == sorted(("stored", key) for key in EIGHT)
    assert told[8:] == [("removed", EIGHT[-1]), ("stored", keys_of(1, prefix=1)[0])]
    assert store.events(events.next_sequence).events == []


def test_a_block_with_a_delay_is_no_block_without(tmp_path: Path) -> None:
    tier = FaultyTier(drive(tmp_path / "drive", 32), stalls=True)
    with TieredStore([DramTier(LAYOUT, 8), tier]) as store:
        put(store, EIGHT)
        store.flush().result(WAIT_S)
        put(store, keys_of(8, prefix=1))
        tier.add(Fault(operation="read", kind=Delay(0.3), times=None))
        request = store.get_into(EIGHT[:1], empty_rows(1), deadline_s=0.02)
        assert request.result(WAIT_S) == [Status.TIMEOUT]
        assert get(store, EIGHT[:1]) == [OK]
        assert store.stats().counters["deadline_misses"].blocks == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, LAYOUT.block_bytes), np.uint8), "2 rows for 1 keys"),
        (np.zeros((1, 100), np.uint8), "expected contiguous uint8"),
        (np.zeros((1, LAYOUT.block_bytes), np.int8), "expected contiguous uint8"),
        (np.zeros(LAYOUT.block_bytes, np.uint8), "rows have 1 dimensions"),
        ([b"bytes"], "a row is bytes"),
    ],
)
def test_rows_that_do_not_fit_are_refused(store: TieredStore, rows: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        store.get_into(EIGHT[:1], rows)
    with pytest.raises(UsageError, match=message):
        store.put(EIGHT[:1], rows)


def test_wrong_arguments_are_refused_in_one_line(store: TieredStore) -> None:
    with pytest.raises(UsageError, match="a key of 3 bytes"):
        store.put([b"abc"], empty_rows(1))
    with pytest.raises(UsageError, match="the tenant"):
        store.put(EIGHT[:1], empty_rows(1), tenant="t" * 65)
    with pytest.raises(UsageError, match="two tiers of one name"):
        TieredStore([DramTier(LAYOUT, 1), DramTier(LAYOUT, 1)])
    with pytest.raises(UsageError, match="have to be equal"):
        TieredStore([DramTier(LAYOUT, 1), DramTier(Layout(4096), 1, name="other")])
    with pytest.raises(UsageError, match="needs a tier"):
        TieredStore([])
    with pytest.raises(UsageError, match="no durable tier"):
        TieredStore([DramTier(LAYOUT, 1)]).flush()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = two_tiers(tmp_path / "drive")
    store.close()
    store.close()
    with pytest.raises(UsageError, match="the store is closed"):
        store.put(EIGHT[:1], payloads_of(EIGHT[:1]))
    with pytest.raises(UsageError, match="the store is closed"):
        store.lookup(EIGHT)
