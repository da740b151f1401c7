"""What a second look at the store has found once; each of these was wrong."""

import errno
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kvbench.errors import UsageError
from kvbench.store.block import Status
from kvbench.store.dram import DramTier
from kvbench.store.faults import Delay, Fail, Fault, FaultyTier, Stuck
from kvbench.store.options import Options
from kvbench.store.store import TieredStore
from kvbench.store.workers import LEAST_HEAP, Alarm
from tests.store.blocks import (
    BUSY,
    LAYOUT,
    OK,
    WAIT_S,
    drive,
    empty_rows,
    get,
    keys_of,
    payloads_of,
    put,
    two_tiers,
)

EIGHT = keys_of(8)


def test_a_flush_is_ok_only_for_what_is_on_the_drive_afterwards(tmp_path: Path) -> None:
    keys = keys_of(24)
    with two_tiers(tmp_path / "drive", dram=24, nvme=8) as store:
        put(store, keys)
        statuses = store.flush(keys).result(WAIT_S)
        assert statuses.count(OK) == 8  # as many as there is room for
        store.close(flush=False)
    with two_tiers(tmp_path / "drive", dram=24, nvme=8) as store:
        kept = [key for key, status in zip(keys, statuses, strict=True) if status is OK]
        assert get(store, kept) == [OK] * 8


def test_a_flush_of_everything_leaves_room_for_puts(tmp_path: Path) -> None:
    stuck = Stuck()
    tier = FaultyTier(drive(tmp_path / "drive", 64), stalls=True)
    store = TieredStore(
        [DramTier(LAYOUT, 32), tier], Options(write_behind_bytes=4 * LAYOUT.block_bytes)
    )
    put(store, keys_of(32))
    tier.add(Fault(operation="write", kind=stuck, times=None))
    request = store.flush()
    assert stuck.reached.wait(WAIT_S)
    assert store.stats().queues["move to nvme"].depth == 4
    assert put(store, keys_of(8, prefix=1)) == [OK] * 8
    stuck.release.set()
    statuses = request.result(WAIT_S)
    assert statuses.count(OK) + statuses.count(Status.MISS) == 32
    store.close()


def test_damage_in_memory_is_not_made_to_last(tmp_path: Path) -> None:
    memory = DramTier(LAYOUT, 8)
    with TieredStore([memory, drive(tmp_path / "drive", 32)]) as store:
        put(store, EIGHT)
        memory.view(3)[100] ^= 1
        statuses = store.flush(EIGHT).result(WAIT_S)
        assert statuses.count(Status.CORRUPT) == 1
        assert store.stats().tiers["dram"].counters["verify_failures"].blocks == 1
        assert store.stats().tiers["nvme"].fence is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tenant": "a\0b"}, "has a NUL"),
        ({"position": -1}, "position is -1"),
        ({"parent": b"short"}, "a key of 5 bytes"),
        ({"deadline_s": math.nan}, "deadline_s is nan"),
    ],
)
def test_what_no_record_can_hold_is_refused_at_once(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with (
        two_tiers(tmp_path / "drive") as store,
        pytest.raises(UsageError, match=message),
    ):
        put(store, EIGHT, **options)


def test_a_lease_has_to_end(tmp_path: Path) -> None:
    with two_tiers(tmp_path / "drive") as store, pytest.raises(UsageError, match="ttl_s is inf"):
        store.lookup(EIGHT, ttl_s=math.inf)


def test_a_callback_that_sleeps_holds_up_no_deadline(tmp_path: Path) -> None:
    stuck = Stuck()
    tier = FaultyTier(drive(tmp_path / "drive", 32), stalls=True)
    store = TieredStore([DramTier(LAYOUT, 8), tier])
    put(store, EIGHT)
    store.flush().result(WAIT_S)
    put(store, keys_of(8, prefix=1))
    tier.add(Fault(operation="read", kind=stuck, times=None))
    awake = threading.Event()
    first = store.get_into(EIGHT[:1], empty_rows(1), deadline_s=0.01)
    first.future.add_done_callback(lambda _: awake.wait(WAIT_S))
    start_s = time.monotonic()
    second = store.get_into(EIGHT[1:2], empty_rows(1), deadline_s=0.1)
    assert second.result(WAIT_S) == [Status.TIMEOUT]
    assert time.monotonic() - start_s < WAIT_S / 4
    awake.set()
    stuck.release.set()
    store.close()


def test_the_clock_forgets_deadlines_of_requests_that_are_over() -> None:
    alarm = Alarm("test")
    for _ in range(1000):
        alarm.drop(alarm.at(time.monotonic() + 600, lambda: None))
    assert len(alarm._heap) <= LEAST_HEAP + 2
    alarm.close()


def test_a_shortage_for_a_moment_costs_no_block(tmp_path: Path) -> None:
    tier = FaultyTier(drive(tmp_path / "drive", 32), stalls=True)
    with TieredStore([DramTier(LAYOUT, 8), tier]) as store:
        put(store, EIGHT)
        store.flush().result(WAIT_S)
        put(store, keys_of(8, prefix=1))
        tier.add(Fault(operation="read", kind=Fail(errno.ENOMEM)))
        assert get(store, EIGHT[:1]) == [BUSY]
        assert get(store, EIGHT[:1]) == [OK]
        assert store.stats().tiers["nvme"].states["QUARANTINED"] == 0


def test_stats_are_had_of_an_open_store(tmp_path: Path) -> None:
    store = two_tiers(tmp_path / "drive")
    store.close()
    with pytest.raises(UsageError, match="the store is closed"):
        store.stats()


def test_workers_that_make_room_at_once_do_not_empty_the_drive(tmp_path: Path) -> None:
    options = Options(write_threads=16, low_water=0.9, transfer_bytes=LAYOUT.block_bytes)
    with two_tiers(tmp_path / "drive", dram=64, nvme=64, options=options) as store:
        keys: list[bytes] = []
        for prefix in range(3):
            keys = keys_of(32, prefix)
            put(store, keys)
            assert set(store.flush(keys).result(WAIT_S)) == {OK}
        assert store.stats().tiers["nvme"].counters["evictions"].blocks <= 32 + 2 * 7
        rows = np.empty((32, LAYOUT.block_bytes), np.uint8)
        assert store.get_into(keys, rows).result(WAIT_S) == [OK] * 32
        assert (rows == payloads_of(keys)).all()


def test_a_slow_index_is_no_reason_to_refuse_a_block(tmp_path: Path) -> None:
    tier = FaultyTier(drive(tmp_path / "drive", 64), stalls=True)
    tier.add(Fault(operation="forget", kind=Delay(0.02), times=None))
    options = Options(write_threads=8, transfer_bytes=LAYOUT.block_bytes)
    with TieredStore([tier], options) as store:
        for prefix in range(6):
            requests = [store.put([key], payloads_of([key])) for key in keys_of(32, prefix)]
            assert [request.result(WAIT_S) for request in requests] == [[OK]] * 32
