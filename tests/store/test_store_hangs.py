"""A drive that hangs, a close in the middle: everybody is answered, and nothing leaks."""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kvbench.errors import UsageError
from kvbench.store import workers
from kvbench.store.block import Bytes, Status
from kvbench.store.faults import FaultyTier
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
    payloads_of,
)
from tests.store.consistency import assert_consistent
from tests.store.faulty import (
    EIGHT,
    OTHERS,
    faulty,
    fill,
    hang,
    on_the_drive_alone,
    wait_for,
    wait_for_fence,
)

TIMEOUT = Status.TIMEOUT
SOON = Options(stuck_s=0.2, read_threads=2, write_threads=2)
PATIENT = Options(stuck_s=WAIT_S * 10, read_threads=2, write_threads=2)


@pytest.fixture
def short_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits less long for a thread that hangs."""
    monkeypatch.setattr(workers, "HANGS_S", 0.3)


def closing_thread(store: TieredStore) -> threading.Thread:
    """A thread that closes the store, and has begun to."""
    closing = threading.Thread(target=store.close, kwargs={"flush": False})
    closing.start()
    wait_for(lambda: is_closed(store))
    return closing


def is_closed(store: TieredStore) -> bool:
    try:
        store.lookup([])
    except UsageError:
        return True
    return False


class Slow:
    """One row in memory of a device that takes its time."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.in_use = threading.Event()

    def __len__(self) -> int:
        return 1

    def send(self, index: int, out: Bytes) -> None:
        self.go_on.wait(WAIT_S)
        out[:] = payloads_of(EIGHT[index : index + 1])[0]

    def receive(self, index: int, part: int | None, data: Bytes) -> None:
        assert (index, part, data.nbytes) == (0, 0, LAYOUT.part_bytes)
        self.in_use.set()
        self.go_on.wait(WAIT_S)
        self.in_use.clear()

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        """It is there."""


# ---------------------------------------------------------------- a drive that hangs


def test_a_get_from_a_drive_that_hangs_is_answered_and_the_late_answer_harms_nothing(
    tmp_path: Path,
) -> None:
    store, tier = faulty(tmp_path / "drive", options=SOON)
    with store:
        on_the_drive_alone(store)
        stuck = hang(tier, "read")
        rows = empty_rows(8)
        request = store.get_into(EIGHT, rows)
        assert request.result(WAIT_S) == [MISS] * 8
        assert "stuck" in request.reasons[0]
        assert "stuck" in wait_for_fence(store)
        assert get(store, OTHERS).count(OK) >= 6
        fill(store, 2, count=5)
        assert store.flush(OTHERS[:1]).result(WAIT_S) == [BUSY]
        stuck.release.set()
        assert_consistent(store)
        assert (rows == 0xEE).all()
        store.unfence("nvme")
        assert get(store, EIGHT) == [OK] * 8


def test_a_flush_to_a_drive_that_hangs_is_answered_and_its_slot_waits_for_the_write(
    tmp_path: Path,
) -> None:
    store, tier = faulty(tmp_path / "drive", nvme=4, options=SOON)
    with store:
        fill(store, 0, count=4)
        stuck = hang(tier, "write")
        assert store.flush().result(WAIT_S) == [BUSY] * 4
        wait_for_fence(store)
        assert store.stats().tiers["nvme"].states["WRITING"] == 4
        store.unfence("nvme")  # while the write is still under way: its slots stay taken
        keys = fill(store, 1, count=2)
        assert store.flush(keys).result(WAIT_S) == [BUSY] * 2
        assert store.stats().tiers["nvme"].states["WRITING"] == 4
        stuck.release.set()
        assert_consistent(store)
        store.unfence("nvme")
        assert store.stats().tiers["nvme"].used == 4
        assert get(store, keys_of(4)) == [OK] * 4
        assert store.flush(keys).result(WAIT_S) == [OK] * 2
        assert_consistent(store)


def test_a_sync_that_hangs_keeps_no_flush_waiting(tmp_path: Path) -> None:
    store, tier = faulty(tmp_path / "drive", options=SOON)
    with store:
        keys = fill(store, 0)
        stuck = hang(tier, "flush")
        first = store.flush(keys)
        assert stuck.reached.wait(WAIT_S)
        second = store.flush(keys[:2])
        assert first.result(WAIT_S) == [BUSY] * 8
        assert second.result(WAIT_S) == [BUSY] * 2
        assert store.flush([]).result(WAIT_S) == []  # though the sync still hangs
        stuck.release.set()
        assert_consistent(store)
        store.unfence("nvme")
        assert store.flush(keys).result(WAIT_S) == [OK] * 8


def test_puts_and_flushes_of_a_drive_alone_are_answered_though_it_hangs(tmp_path: Path) -> None:
    tier = FaultyTier(drive(tmp_path / "drive", 16))
    with TieredStore([tier], Options(stuck_s=0.3, write_threads=1)) as store:
        stuck = hang(tier, "write")
        first = store.put(EIGHT, payloads_of(EIGHT))
        joined = store.put(EIGHT[:2], payloads_of(EIGHT[:2]))
        flush = store.flush(EIGHT)
        assert first.result(WAIT_S) == [BUSY] * 8
        assert joined.result(WAIT_S) == [BUSY] * 2
        assert flush.result(WAIT_S) == [BUSY] * 8
        stuck.release.set()
        assert_consistent(store)
        store.unfence("nvme")
        assert get(store, EIGHT) == [OK] * 8  # what was written late is here and right


def test_rows_of_a_put_that_was_answered_are_not_read_any_more(tmp_path: Path) -> None:
    tier = FaultyTier(drive(tmp_path / "drive", 8))
    with TieredStore([tier], SOON) as store:
        fill(store, 1)
        stuck = hang(tier, "forget")  # room has to be made first, and that hangs
        rows = payloads_of(EIGHT[:1])
        assert store.put(EIGHT[:1], rows).result(WAIT_S) == [BUSY]
        rows[:] = 7  # they are the caller's again
        stuck.release.set()
        assert_consistent(store)
        store.unfence("nvme")
        assert get(store, EIGHT[:1]) == [MISS]


def test_a_put_keeps_its_deadline_though_room_is_not_made(tmp_path: Path) -> None:
    tier = FaultyTier(drive(tmp_path / "drive", 8))
    with TieredStore([tier], PATIENT) as store:
        fill(store, 1)
        stuck = hang(tier, "forget")
        rows = payloads_of(EIGHT[:1])
        request = store.put(EIGHT[:1], rows, deadline_s=0.05)
        try:
            assert request.result(WAIT_S / 4) == [TIMEOUT]
            rows[:] = 7  # they are the caller's again
        finally:
            stuck.release.set()
        assert_consistent(store)
        assert get(store, EIGHT[:1]) == [MISS]


def test_a_put_is_answered_though_its_drive_is_given_up_while_its_rows_are_copied(
    tmp_path: Path,
) -> None:
    with TieredStore([drive(tmp_path / "drive", 8)], SOON) as store:
        rows = Slow()
        request = store.put(EIGHT[:1], rows)
        wait_for_fence(store)
        assert not request.done()  # the rows are still in use
        rows.go_on.set()
        assert request.result(WAIT_S) == [BUSY]
        assert_consistent(store)


def test_a_row_that_is_being_filled_is_not_given_back_though_its_drive_is_given_up(
    tmp_path: Path,
) -> None:
    store, _ = faulty(tmp_path / "drive", options=SOON)
    with store:
        on_the_drive_alone(store)
        rows = Slow()
        request = store.get_into(EIGHT[:1], rows, by_layer=True)
        assert rows.in_use.wait(WAIT_S)
        wait_for_fence(store)
        given_up = store.get_into(EIGHT[1:2], empty_rows(1))
        assert given_up.result(WAIT_S) == [MISS]
        threading.Event().wait(0.2)  # the clock gives up who waits for the drive
        assert not request.done()
        rows.go_on.set()
        assert request.result(WAIT_S) == [MISS]
        assert not rows.in_use.is_set()
        assert_consistent(store)


@pytest.mark.usefixtures("short_joins")
def test_closing_answers_who_waits_for_a_drive_that_hangs(tmp_path: Path) -> None:
    store, tier = faulty(tmp_path / "drive", options=PATIENT)
    on_the_drive_alone(store)
    stuck = hang(tier, "read")
    rows = empty_rows(1)
    request = store.get_into(EIGHT[:1], rows)
    assert stuck.reached.wait(WAIT_S)
    start_s = time.monotonic()
    store.close(flush=False)
    assert time.monotonic() - start_s < WAIT_S / 2
    assert request.result(WAIT_S / 4)[0] in {BUSY, MISS}
    stuck.release.set()
    assert (rows == 0xEE).all()
    tier.inner.close()


@pytest.mark.usefixtures("short_joins")
def test_closing_with_a_flush_that_hangs_ends(tmp_path: Path) -> None:
    store, tier = faulty(tmp_path / "drive", options=SOON)
    fill(store, 0)
    stuck = hang(tier, "flush")
    start_s = time.monotonic()
    store.close()
    assert time.monotonic() - start_s < WAIT_S / 2
    stuck.release.set()


# ---------------------------------------------------------------- closing in the middle


def test_gets_under_way_are_served_while_the_store_closes(tmp_path: Path) -> None:
    store, tier = faulty(tmp_path / "drive")
    on_the_drive_alone(store)
    stuck = hang(tier, "read")
    rows = empty_rows(8)
    request = store.get_into(EIGHT, rows)
    assert stuck.reached.wait(WAIT_S)
    closing = closing_thread(store)
    stuck.release.set()
    closing.join(WAIT_S)
    assert request.result(WAIT_S) == [OK] * 8
    assert (rows == payloads_of(EIGHT)).all()


def test_moves_under_way_end_while_the_store_closes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = Options(demotion="always", write_threads=1)
    store, tier = faulty(tmp_path / "drive", options=options)
    stuck = hang(tier, "write")
    fill(store, 0, count=2)
    assert stuck.reached.wait(WAIT_S)
    fill(store, 1, count=2)  # they wait behind the others
    with caplog.at_level(logging.ERROR, logger="kvbench.store"):
        closing = closing_thread(store)
        stuck.release.set()
        closing.join(WAIT_S)
    assert caplog.records == []


def test_a_store_that_was_closed_answers_nothing_wrong(tmp_path: Path) -> None:
    store, _ = faulty(tmp_path / "drive")
    rows = np.empty((8, LAYOUT.block_bytes), np.uint8)
    requests = [store.put(EIGHT, payloads_of(EIGHT)), store.get_into(EIGHT, rows)]
    store.close()
    assert [set(request.result(WAIT_S)) <= {OK, MISS} for request in requests] == [True, True]
