"""Drives that fail: each fault becomes a status of its key or a fenced tier, and the store goes on.

Drives that hang are in test_store_hangs.py, bugs and callers that fail in test_store_bugs.py.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvbench.store.block import Status
from kvbench.store.dram import DramTier
from kvbench.store.faults import Fail, Fault, FaultyTier, Flip, Short
from kvbench.store.identity import DATA, HEAD_BYTES
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
    payloads_of,
    put,
)
from tests.store.consistency import assert_consistent, wait_until_at_rest
from tests.store.faulty import EIGHT, OTHERS, faulty, on_the_drive_alone

CORRUPT = Status.CORRUPT
RECORD_BYTES = 4096 + LAYOUT.block_bytes
# Without a right to lock memory: no limit left, no capability, no root.
LITTLE_LOCKED_MEMORY = """
import os, resource, sys
from kvbench.errors import TierUnavailableError
from kvbench.store.block import Layout
from kvbench.store.config import StoreConfig, open_store
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8192, 8192))
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)  # the capability goes with the user
layout = Layout(4096)
with open_store(StoreConfig(layout=layout, dram_bytes=2**20)) as store:
    print(store.stats().tiers["dram"].facts["memory"])
try:
    open_store(StoreConfig(layout=layout, dram_bytes=2**20, require_locked=True))
except TierUnavailableError as error:
    print(error)
"""


def blocks_counted(store: TieredStore, counter: str, tier: str = "nvme") -> int:
    return store.stats().tiers[tier].counters[counter].blocks


@pytest.fixture
def made(tmp_path: Path) -> Iterator[tuple[TieredStore, FaultyTier]]:
    store, tier = faulty(tmp_path / "drive")
    with store:
        yield store, tier
        assert_consistent(store)


# ---------------------------------------------------------------- full, gone, read-only


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_drive_that_takes_no_more_is_still_read(
    made: tuple[TieredStore, FaultyTier], number: int, caplog: pytest.LogCaptureFixture
) -> None:
    store, tier = made
    on_the_drive_alone(store)
    fault = tier.add(Fault(operation="write", kind=Fail(number), times=None))
    assert store.flush(OTHERS).result(WAIT_S) == [BUSY] * 8
    fence = store.stats().tiers["nvme"].fence
    assert fence is not None
    assert os.strerror(number) in fence
    assert "tier nvme is not written to any more" in caplog.text
    assert put(store, keys_of(4, prefix=2)) == [OK] * 4  # memory goes on
    assert get(store, EIGHT) == [OK] * 8
    assert store.flush(OTHERS[:1]).result(WAIT_S)[0] in {BUSY, MISS}

    tier.remove(fault)
    store.unfence("nvme")
    third = keys_of(8, prefix=3)
    assert put(store, third) == [OK] * 8
    assert store.flush(third).result(WAIT_S) == [OK] * 8
    assert blocks_counted(store, "quarantined") == 0  # the slots are not to blame


def test_a_file_system_without_a_free_byte_fences_writing_alone(tmp_path: Path) -> None:
    image, mount = tmp_path / "image", tmp_path / "mount"
    with image.open("wb") as file:
        file.truncate(24 * 2**20)
    mount.mkdir()
    made = subprocess.run(
        ["mkfs.ext4", "-q", "-m", "0", str(image)], check=False, capture_output=True
    )
    mounted = made.returncode == 0 and os.geteuid() == 0
    if mounted:
        command = ["mount", "-o", "loop", str(image), str(mount)]
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("needs root, mkfs.ext4 and loop devices")
    try:
        store, _ = faulty(mount / "drive", nvme=256)
        with store:
            on_the_drive_alone(store)
            _fill(mount / "rest")
            keys: list[bytes] = []
            for prefix in range(4, 30):
                keys = keys_of(8, prefix=prefix)
                assert put(store, keys) == [OK] * 8
                if BUSY in store.flush(keys).result(WAIT_S):
                    break
            fence = store.stats().tiers["nvme"].fence
            assert fence is not None
            assert "not written to any more" not in fence
            assert get(store, keys) == [OK] * 8
            assert get(store, EIGHT) == [OK] * 8
            (mount / "rest").unlink()
            store.unfence("nvme")
            assert put(store, keys) == [OK] * 8
            assert store.flush(keys).result(WAIT_S) == [OK] * 8
            assert_consistent(store)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def _write_for_ever(fd: int, piece: bytes) -> None:
    while True:
        os.write(fd, piece)


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        for piece_bytes in (2**20, 4096):
            piece = bytes(piece_bytes)
            with pytest.raises(OSError, match="No space left"):
                _write_for_ever(file.fileno(), piece)


@pytest.mark.parametrize("operation", ["read", "write"])
def test_blocks_of_a_drive_that_vanished_are_misses_until_it_is_back(
    made: tuple[TieredStore, FaultyTier], operation: str
) -> None:
    store, tier = made
    on_the_drive_alone(store)
    fault = tier.add(Fault(operation=operation, kind=Fail(errno.ENODEV), times=None))  # type: ignore[arg-type]
    if operation == "read":
        assert get(store, EIGHT) == [MISS] * 8
    else:
        assert store.flush(OTHERS).result(WAIT_S) == [BUSY] * 8
    fence = store.stats().tiers["nvme"].fence
    assert fence is not None
    assert "No such device" in fence
    assert len(store.lookup(EIGHT)) == 0
    assert get(store, EIGHT) == [MISS] * 8
    assert get(store, OTHERS).count(OK) >= 6  # two places were promised to blocks from the drive
    assert put(store, keys_of(8, prefix=2)) == [OK] * 8

    tier.remove(fault)
    store.unfence("nvme")
    assert get(store, EIGHT) == [OK] * 8
    assert blocks_counted(store, "quarantined") == 0


# ---------------------------------------------------------------- errors of single blocks


def test_a_block_that_cannot_be_read_is_a_miss_and_its_slot_is_not_used_again(
    made: tuple[TieredStore, FaultyTier],
) -> None:
    store, tier = made
    on_the_drive_alone(store)
    tier.add(Fault(operation="read", kind=Fail(errno.EIO)))
    request = store.get_into(EIGHT[:1], empty_rows(1))
    assert request.result(WAIT_S) == [MISS]
    assert "Input/output error" in request.reasons[0]
    wait_until_at_rest(store)
    stats = store.stats().tiers["nvme"]
    assert (stats.fence, stats.states["QUARANTINED"]) == (None, 1)
    assert (stats.counters["io_errors"].blocks, stats.counters["quarantined"].blocks) == (1, 1)
    assert get(store, EIGHT) == [MISS] + [OK] * 7


def test_a_block_that_memory_does_not_give_back_is_served_from_the_drive(tmp_path: Path) -> None:
    tier = FaultyTier(DramTier(LAYOUT, 8))
    with TieredStore([tier, drive(tmp_path / "drive", 32)]) as store:
        put(store, EIGHT)
        store.flush().result(WAIT_S)
        tier.add(Fault(operation="read", kind=Fail(errno.EIO)))
        tier.add(Fault(operation="read", kind=Flip(77), nth=2))
        assert get(store, EIGHT) == [OK] * 8
        assert_consistent(store)
        stats = store.stats()
        assert stats.tiers["nvme"].counters["hits"].blocks == 2
        assert stats.tiers["dram"].states["QUARANTINED"] == 2
        assert stats.tiers["dram"].counters["verify_failures"].blocks == 1


def test_a_block_that_cannot_be_written_is_not_durable_and_goes_elsewhere_next_time(
    made: tuple[TieredStore, FaultyTier],
) -> None:
    store, tier = made
    put(store, EIGHT)
    tier.add(Fault(operation="write", kind=Fail(errno.EIO), nth=2))
    request = store.flush(EIGHT)
    assert request.result(WAIT_S) == [OK, BUSY] + [OK] * 6
    assert "Input/output error" in request.reasons[1]
    assert store.flush(EIGHT).result(WAIT_S) == [OK] * 8
    wait_until_at_rest(store)
    stats = store.stats().tiers["nvme"]
    assert (stats.fence, stats.used, stats.states["QUARANTINED"]) == (None, 8, 1)


def test_a_put_that_the_drive_refuses_is_busy_and_its_slot_is_not_used_again(
    tmp_path: Path,
) -> None:
    tier = FaultyTier(drive(tmp_path / "drive", 8))
    tier.add(Fault(operation="write", kind=Fail(errno.EIO)))
    with TieredStore([tier]) as store:
        assert put(store, EIGHT[:1]) == [BUSY]
        assert get(store, EIGHT[:1]) == [MISS]
        assert put(store, EIGHT[:1]) == [OK]
        assert_consistent(store)
        assert store.stats().tiers["nvme"].states["QUARANTINED"] == 1


@pytest.mark.parametrize("operation", ["read", "write"])
def test_errors_in_a_row_give_the_drive_up(
    made: tuple[TieredStore, FaultyTier], operation: str
) -> None:
    store, tier = made
    on_the_drive_alone(store)
    tier.add(Fault(operation=operation, kind=Fail(errno.EIO), times=None))  # type: ignore[arg-type]
    if operation == "read":
        assert get(store, EIGHT) == [MISS] * 8
    else:
        assert store.flush(OTHERS).result(WAIT_S) == [BUSY] * 8
    fence = store.stats().tiers["nvme"].fence
    assert fence is not None
    assert f"failed {operation}s in a row" in fence
    assert get(store, OTHERS).count(OK) >= 6  # two places were promised to blocks from the drive
    expected = MISS if operation == "read" else OK
    assert get(store, EIGHT[7:]) == [expected]


def test_a_success_between_errors_keeps_the_drive(made: tuple[TieredStore, FaultyTier]) -> None:
    store, tier = made
    on_the_drive_alone(store)
    for nth in (1, 2, 4, 5):
        tier.add(Fault(operation="read", kind=Fail(errno.EIO), nth=nth))
    assert [get(store, [key])[0] for key in EIGHT[:6]] == [MISS, MISS, OK, MISS, MISS, OK]
    assert store.stats().tiers["nvme"].fence is None


# ---------------------------------------------------------------- other bytes than were stored


@pytest.mark.parametrize("kind", [Flip(5), Flip(8 * 16_383), Short(4096), Short(0)])
def test_bytes_that_change_on_the_way_are_never_served(
    made: tuple[TieredStore, FaultyTier], kind: Flip | Short
) -> None:
    store, tier = made
    on_the_drive_alone(store)
    tier.add(Fault(operation="read", kind=kind))
    assert get(store, EIGHT[:1]) == [CORRUPT]
    assert get(store, EIGHT) == [MISS] + [OK] * 7
    assert blocks_counted(store, "verify_failures") == 1
    assert blocks_counted(store, "quarantined") == 1


def test_bytes_that_change_on_the_drive_are_never_served_and_its_slot_stays_out_of_use(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "drive"
    store, _ = faulty(folder, nvme=8)
    with store:
        on_the_drive_alone(store)
        with (folder / DATA).open("r+b") as file:
            file.seek(HEAD_BYTES + 2 * RECORD_BYTES + 4096 + 1000)  # in the third record's payload
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 16]))
            file.flush()
            os.fsync(file.fileno())
        assert get(store, EIGHT).count(CORRUPT) == 1
        assert get(store, EIGHT).count(MISS) == 1
        assert blocks_counted(store, "verify_failures") == 1
        assert_consistent(store)
    store, _ = faulty(folder, nvme=8)
    with store:
        assert store.stats().tiers["nvme"].states["QUARANTINED"] == 1
        assert store.stats().tiers["nvme"].used == 7


def test_a_data_file_cut_short_under_way_is_corrupt_where_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "drive"
    store, _ = faulty(folder)
    with store:
        on_the_drive_alone(store)
        os.truncate(folder / DATA, HEAD_BYTES + 5 * RECORD_BYTES)
        statuses = get(store, EIGHT)
        assert statuses.count(OK) == 5
        assert statuses.count(CORRUPT) == 3
        assert_consistent(store)


def test_a_write_that_went_wrong_silently_is_found_when_it_is_read(
    made: tuple[TieredStore, FaultyTier],
) -> None:
    store, tier = made
    tier.add(Fault(operation="write", kind=Flip(12_345)))
    on_the_drive_alone(store)
    statuses = get(store, EIGHT)
    assert sorted(status.value for status in statuses) == ["corrupt"] + ["ok"] * 7
    assert put(store, EIGHT) == [OK] * 8
    assert get(store, EIGHT) == [OK] * 8


def test_a_flip_on_the_way_through_layers_is_found(made: tuple[TieredStore, FaultyTier]) -> None:
    store, tier = made
    on_the_drive_alone(store)
    tier.add(Fault(operation="read", kind=Flip(3), nth=4))  # the second part of the second block
    rows = empty_rows(2)
    request = store.get_into(EIGHT[:2], rows, by_layer=True)
    assert request.result(WAIT_S).count(CORRUPT) == 1
    assert all(request.layer(part).is_set() for part in range(LAYOUT.parts))


def test_a_flush_whose_sync_fails_promises_nothing(made: tuple[TieredStore, FaultyTier]) -> None:
    store, tier = made
    put(store, EIGHT)
    tier.add(Fault(operation="flush", kind=Fail(errno.EIO)))
    request = store.flush(EIGHT)
    assert request.result(WAIT_S) == [BUSY] * 8
    assert "Input/output error" in request.reasons[0]
    # Linux forgets what it could not write: another sync would say that all is well.
    assert store.stats().tiers["nvme"].fence == "sync: [Errno 5] Input/output error"
    assert store.flush(EIGHT).result(WAIT_S) == [BUSY] * 8
    assert get(store, EIGHT) == [OK] * 8


# ---------------------------------------------------------------- memory


def test_too_little_lockable_memory_is_said_or_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_LOCKED_MEMORY],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    memory, refusal = done.stdout.splitlines()
    assert memory == "pageable (locked-memory limit 8192 bytes)"
    assert "lock" in refusal


def test_memory_that_fails_again_and_again_is_left_to_the_drive(tmp_path: Path) -> None:
    tier = FaultyTier(DramTier(LAYOUT, 8))
    with TieredStore([tier, drive(tmp_path / "drive", 32)]) as store:
        put(store, EIGHT)
        store.flush().result(WAIT_S)
        tier.add(Fault(operation="read", kind=Fail(errno.EIO), times=None))
        assert get(store, EIGHT) == [OK] * 8  # each from the drive
        assert store.stats().tiers["dram"].fence is not None
        assert put(store, OTHERS) == [OK] * 8  # to the drive
        assert (get(store, OTHERS), get(store, EIGHT)) == ([OK] * 8, [OK] * 8)
        assert store.put(OTHERS, payloads_of(OTHERS)).result(WAIT_S) == [OK] * 8
        assert_consistent(store)
