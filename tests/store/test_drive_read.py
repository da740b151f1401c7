"""From a drive into rows: the check is in the copy, and no damaged block passes for a good one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvbench.store import core as core_module
from kvbench.store import drive_read
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.gets import Gets
from kvbench.store.identity import DATA, HEAD_BYTES
from kvbench.store.options import Options
from kvbench.store.posix import mapped_buffer
from kvbench.store.records import HEADER_BYTES
from kvbench.store.request import Request
from kvbench.store.staging import prepare, staging
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
    payload_of,
    payloads_of,
    put,
    two_tiers,
)
from tests.store.consistency import assert_consistent
from tests.store.faulty import EIGHT, OTHERS, faulty, hang, on_the_drive_alone, wait_for
from tests.store.on_drives import flip

CORRUPT, TIMEOUT = Status.CORRUPT, Status.TIMEOUT
LARGE = Layout(64 * 1024)  # copied past the caches where the rows are aligned


def drive_alone(
    folder: Path, layout: Layout = LAYOUT, options: Options | None = None
) -> TieredStore:
    """A store of EIGHT on a drive and nothing above it, in the order of their slots."""
    store = TieredStore([drive(folder, 16, layout)], options)
    assert put(store, EIGHT) == [OK] * 8
    return store


def damage(folder: Path, key: bytes, layout: Layout = LAYOUT) -> None:
    """Flip a bit of a block's payload on the drive."""
    data = (folder / DATA).read_bytes()
    at = data.index(payload_of(key, layout).tobytes()[:64])
    assert (at - HEAD_BYTES - HEADER_BYTES) % (HEADER_BYTES + layout.block_bytes) == 0
    flip(folder / DATA, at + layout.block_bytes - 1)


def good_rows(keys: Sequence[bytes], rows: Bytes, statuses: Sequence[Status]) -> None:
    """Every row that is OK holds its block."""
    for key, row, status in zip(keys, rows, statuses, strict=True):
        assert status is not OK or (row == payload_of(key)).all()


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_byte_flipped_on_the_drive_is_corrupt_and_its_neighbours_are_ok(
    tmp_path: Path, by_layer: bool
) -> None:
    with drive_alone(tmp_path / "drive") as store:
        damage(tmp_path / "drive", EIGHT[2])
        rows = empty_rows(8)
        statuses = store.get_into(EIGHT, rows, by_layer=by_layer).result(WAIT_S)
        assert statuses == [OK, OK, CORRUPT, *[OK] * 5]
        good_rows(EIGHT, rows, statuses)
        assert get(store, EIGHT) == [OK, OK, MISS, *[OK] * 5]
        assert_consistent(store)


def test_a_damaged_block_does_not_come_up_to_memory(tmp_path: Path) -> None:
    with two_tiers(tmp_path / "drive") as store:
        on_the_drive_alone(store)
        damage(tmp_path / "drive", EIGHT[2])
        assert get(store, EIGHT) == [OK, OK, CORRUPT, *[OK] * 5]
        assert store.held(EIGHT) == [True, True, False, *[True] * 5]
        came_up = store.stats().tiers["dram"].counters["promotions"].blocks
        assert 0 < came_up < 8
        assert_consistent(store)


def test_rows_anywhere_in_memory_get_their_blocks(tmp_path: Path) -> None:
    folder = tmp_path / "drive"
    with drive_alone(folder, LARGE) as store:
        damage(folder, EIGHT[5], LARGE)
        area = np.full((8, LARGE.block_bytes + 4096), 0xEE, np.uint8)
        rows = [area[at, 1 + 7 * at :][: LARGE.block_bytes] for at in range(8)]
        statuses = store.get_into(EIGHT, rows).result(WAIT_S)
        assert statuses == [*[OK] * 5, CORRUPT, OK, OK]
        for at, (row, status) in enumerate(zip(rows, statuses, strict=True)):
            assert status is CORRUPT or (row == payload_of(EIGHT[at], LARGE)).all()
            assert (area[at, : 1 + 7 * at] == 0xEE).all()
            assert (area[at, 1 + 7 * at + LARGE.block_bytes :] == 0xEE).all()


def test_aligned_rows_get_their_blocks_and_no_byte_beside_them_changes(tmp_path: Path) -> None:
    folder = tmp_path / "drive"
    with drive_alone(folder, LARGE) as store:
        area = mapped_buffer(10 * LARGE.block_bytes).reshape(10, -1)
        area[:] = 0xEE
        assert store.get_into(EIGHT, area[1:9]).result(WAIT_S) == [OK] * 8
        assert (area[1:9] == payloads_of(EIGHT, LARGE)).all()
        assert (area[[0, 9]] == 0xEE).all()


def test_everybody_who_waits_for_one_read_gets_the_block_or_hears_that_it_is_damaged(
    tmp_path: Path,
) -> None:
    store, tier = faulty(tmp_path / "drive")
    with store:
        on_the_drive_alone(store)
        damage(tmp_path / "drive", EIGHT[2])
        stuck = hang(tier, "read")
        targets = [empty_rows(3) for _ in range(3)]
        requests = [store.get_into(EIGHT[1:4], rows) for rows in targets]
        stuck.release.set()
        for request, rows in zip(requests, targets, strict=True):
            statuses = request.result(WAIT_S)
            assert (statuses[0], statuses[2]) == (OK, OK)
            assert statuses[1] in {CORRUPT, MISS}
            good_rows(EIGHT[1:4], rows, statuses)
        assert_consistent(store)


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_damaged_block_is_found_though_the_first_who_waited_has_left(
    tmp_path: Path, by_layer: bool
) -> None:
    store, tier = faulty(tmp_path / "drive")
    with store:
        on_the_drive_alone(store)
        damage(tmp_path / "drive", EIGHT[0])
        stuck = hang(tier, "read")
        left, rows = empty_rows(2), empty_rows(2)
        first = store.get_into(EIGHT[:2], left, by_layer=by_layer)
        second = store.get_into(EIGHT[:2], rows)
        store.cancel(first)
        assert first.result(WAIT_S) == [TIMEOUT] * 2
        stuck.release.set()
        statuses = second.result(WAIT_S)
        assert statuses == [CORRUPT, OK]
        good_rows(EIGHT[:2], rows, statuses)
        assert (left == 0xEE).all()  # it belonged to the caller again
        assert_consistent(store)


class Counting:
    """Rows of a device that note which blocks they were given."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.received: list[int] = []

    def __len__(self) -> int:
        return self.count

    def send(self, index: int, out: Bytes) -> None:
        raise AssertionError(f"row {index} is only filled, not read: {out.nbytes}")

    def receive(self, index: int, part: int | None, data: Bytes) -> None:
        want = payload_of(EIGHT[index])
        assert (data == (want if part is None else LAYOUT.part(want, part))).all()
        self.received.append(index)

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        """They are there."""


def test_a_device_is_never_given_a_damaged_block(tmp_path: Path) -> None:
    with drive_alone(tmp_path / "drive") as store:
        damage(tmp_path / "drive", EIGHT[6])
        rows = Counting(8)
        assert store.get_into(EIGHT, rows).result(WAIT_S) == [*[OK] * 6, CORRUPT, OK]
        assert sorted(rows.received) == [0, 1, 2, 3, 4, 5, 7]


def test_who_waits_is_answered_though_the_drive_is_given_up_and_the_check_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_tiers(tmp_path / "drive") as store:
        on_the_drive_alone(store)
        core = store._core
        level = core.levels[-1]

        def give_up(*_: object) -> list[bytes]:
            with core.lock:
                core.fence(level, "the test says so", reads=True)
            store._gets.abandon(level, "the test says so")
            raise RuntimeError("a bug")

        monkeypatch.setattr(drive_read, "copy_with_sums", give_up)
        assert store.get_into(EIGHT[:2], empty_rows(2)).result(WAIT_S) == [MISS] * 2
        monkeypatch.undo()
        assert_consistent(store)


def test_a_copy_that_raises_is_answered_and_the_block_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with drive_alone(tmp_path / "drive") as store:

        def bug(*_: object) -> list[bytes]:
            raise RuntimeError("a bug")

        monkeypatch.setattr(drive_read, "copy_with_sums", bug)
        assert store.get_into(EIGHT[:2], empty_rows(2)).result(WAIT_S) == [BUSY] * 2
        monkeypatch.undo()
        assert get(store, EIGHT) == [OK] * 8
        assert_consistent(store)


def test_a_request_of_more_blocks_than_a_drive_takes_at_once_has_each_in_its_row(
    tmp_path: Path,
) -> None:
    few = Options(read_threads=2, transfer_bytes=2 * LAYOUT.block_bytes)
    with drive_alone(tmp_path / "drive", options=few) as store:
        damage(tmp_path / "drive", EIGHT[6])
        rows = empty_rows(8)
        with store.lookup(EIGHT) as lease:
            statuses = store.get_into(lease, rows).result(WAIT_S)
        assert statuses == [*[OK] * 6, CORRUPT, OK]
        good_rows(EIGHT, rows, statuses)


def test_blocks_in_memory_that_nobody_holds_stay_though_others_of_the_request_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Options(read_threads=1, transfer_bytes=LAYOUT.block_bytes, demotion="never")
    with two_tiers(tmp_path / "drive", options=few) as store:
        on_the_drive_alone(store)  # and OTHERS in memory alone
        begin = Gets._begin

        def begin_and_end(self: Gets, request: Request, plan: Any) -> None:
            begin(self, request, plan)
            wait_for(lambda: not self._flights)

        monkeypatch.setattr(Gets, "_begin", begin_and_end)
        assert get(store, [*EIGHT, *OTHERS]) == [OK] * 16


def test_readers_of_a_drive_have_their_memory_before_the_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(core_module, "prepare", lambda *blocks: asked.append(blocks))
    options = Options(read_threads=3, write_threads=2, transfer_bytes=4 * LAYOUT.block_bytes)
    with drive_alone(tmp_path / "drive", options=options):
        assert asked == [(4, LAYOUT.block_bytes)] * 5


def test_memory_that_was_prepared_is_what_the_next_transfer_gets() -> None:
    staging(2, 8192)  # smaller than what follows
    prepare(4, 8192)
    first, *_, last = staging(4, 8192)
    again = staging(3, 5000)
    assert first.ctypes.data == again[0].ctypes.data
    assert {first.ctypes.data % 4096, last.ctypes.data % 4096, again[2].ctypes.data % 4096} == {0}
    assert [each.nbytes for each in again] == [5000] * 3
