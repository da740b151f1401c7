"""Bugs in a tier, callers' memory that fails, full queues: one key pays, and nothing leaks."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from kvbench.errors import UsageError
from kvbench.store.block import Bytes, Status
from kvbench.store.dram import DramTier
from kvbench.store.faults import Fail, Fault, FaultyTier, Operation, Raise
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
    put,
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
)

TIMEOUT = Status.TIMEOUT


# ---------------------------------------------------------------- a bug in a tier


def bug(tier: FaultyTier, operation: Operation, nth: int = 1) -> Fault:
    return tier.add(Fault(operation=operation, kind=Raise(RuntimeError("a bug")), nth=nth))


def test_a_read_that_raises_is_answered_and_its_block_stays(tmp_path: Path) -> None:
    store, tier = faulty(tmp_path / "drive")
    with store:
        on_the_drive_alone(store)
        bug(tier, "read")
        request = store.get_into(EIGHT[:1], empty_rows(1))
        (status,) = request.result(WAIT_S)
        assert status is BUSY  # it is still here: no MISS
        assert "a bug" in request.reasons[0]
        assert_consistent(store)
        assert store.stats().tiers["nvme"].counters["io_errors"].blocks == 1
        assert get(store, EIGHT) == [OK] * 8


def test_a_read_of_memory_that_raises_is_answered_and_its_block_stays() -> None:
    tier = FaultyTier(DramTier(LAYOUT, 8))
    with TieredStore([tier]) as store:
        fill(store, 0)
        bug(tier, "read")
        request = store.get_into(EIGHT[:1], empty_rows(1))
        assert request.result(WAIT_S) == [BUSY]
        assert "a bug" in request.reasons[0]
        assert_consistent(store)
        assert get(store, EIGHT) == [OK] * 8


@pytest.mark.parametrize("kind", ["dram", "nvme"])
def test_a_put_that_raises_is_busy_and_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    tier = FaultyTier(DramTier(LAYOUT, 8) if kind == "dram" else drive(tmp_path / "drive", 8))
    with TieredStore([tier]) as store:
        bug(tier, "write")
        request = store.put(EIGHT[:1], payloads_of(EIGHT[:1]))
        assert request.result(WAIT_S) == [BUSY]
        assert "a bug" in request.reasons[0]
        assert_consistent(store)
        assert get(store, EIGHT[:1]) == [MISS]
        assert put(store, EIGHT) == [OK] * 8


def test_a_move_that_raises_loses_nothing(tmp_path: Path) -> None:
    store, tier = faulty(tmp_path / "drive")
    with store:
        keys = fill(store, 0)
        bug(tier, "write")
        request = store.flush(keys)
        assert BUSY in request.result(WAIT_S)
        assert_consistent(store)
        assert store.flush(keys).result(WAIT_S) == [OK] * 8
        assert get(store, keys) == [OK] * 8


def test_a_sync_that_raises_promises_nothing(tmp_path: Path) -> None:
    store, tier = faulty(tmp_path / "drive")
    with store:
        keys = fill(store, 0)
        bug(tier, "flush")
        assert store.flush(keys).result(WAIT_S) == [BUSY] * 8
        assert_consistent(store)
        assert store.flush(keys).result(WAIT_S) == [OK] * 8


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(5, "Input/output error")])
def test_slots_are_not_lost_though_forgetting_them_fails(tmp_path: Path, error: Exception) -> None:
    store, tier = faulty(tmp_path / "drive", nvme=8)
    with store:
        assert store.flush(fill(store, 0)).result(WAIT_S) == [OK] * 8
        tier.add(Fault(operation="forget", kind=Raise(error)))
        keys = fill(store, 1)
        store.flush(keys).result(WAIT_S)
        assert_consistent(store)
        assert store.flush(fill(store, 2)).result(WAIT_S) == [OK] * 8
        assert_consistent(store)
        assert store.stats().tiers["nvme"].used == 8


def test_slots_of_bad_blocks_stay_out_of_use_though_that_cannot_be_recorded(
    tmp_path: Path,
) -> None:
    store, tier = faulty(tmp_path / "drive", nvme=8)
    with store:
        on_the_drive_alone(store)
        for nth in (1, 3):
            tier.add(Fault(operation="read", kind=Raise(OSError(5, "bad")), nth=nth))
        tier.add(Fault(operation="quarantine", kind=Raise(OSError(5, "bad"))))
        get(store, EIGHT)
        assert_consistent(store)


# ---------------------------------------------------------------- the caller's memory


class Refusing:
    """Rows in memory of a device that fails."""

    def __len__(self) -> int:
        return 1

    def send(self, index: int, out: Bytes) -> None:
        raise RuntimeError(f"the device lost row {index} of {out.nbytes} bytes")

    def receive(self, index: int, part: int | None, data: Bytes) -> None:
        raise RuntimeError(f"the device lost row {index}, part {part} of {data.nbytes} bytes")

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        """Nothing was received."""


def test_rows_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    store, _ = faulty(tmp_path / "drive")
    with store:
        fill(store, 0)
        rows = empty_rows(8)
        rows.flags.writeable = False
        with pytest.raises(UsageError, match="read-only"):
            store.get_into(EIGHT, rows)
        with pytest.raises(UsageError, match="read-only"):
            store.get_into(EIGHT, list(rows))
        assert put(store, OTHERS) == [OK] * 8
        others = keys_of(8, prefix=2)
        assert store.put(others, rows).result(WAIT_S) == [OK] * 8  # here they are only read


def test_who_waits_for_the_same_block_gets_it_though_anothers_rows_fail(tmp_path: Path) -> None:
    store, tier = faulty(tmp_path / "drive")
    with store:
        on_the_drive_alone(store)
        stuck = hang(tier, "read")
        refused = store.get_into(EIGHT[:1], Refusing())
        rows = empty_rows(1)
        other = store.get_into(EIGHT[:1], rows)
        stuck.release.set()
        assert other.result(WAIT_S) == [OK]
        assert (rows == payloads_of(EIGHT[:1])).all()
        assert refused.result(WAIT_S) != [OK]
        assert_consistent(store)


class Putting:
    """One row whose device stores another block before it takes this one."""

    def __init__(self, store: TieredStore) -> None:
        self.row = empty_rows(1)[0]
        self._store = store

    def __len__(self) -> int:
        return 1

    def send(self, index: int, out: Bytes) -> None:
        raise AssertionError(f"row {index} is only filled, not read: {out.nbytes}")

    def receive(self, index: int, part: int | None, data: Bytes) -> None:
        assert (index, part) == (0, None)
        assert put(self._store, keys_of(1, prefix=7)) == [OK]
        self.row[:] = data

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        """It is there."""


def test_a_block_that_memory_does_not_take_is_served_from_where_nobody_writes(
    tmp_path: Path,
) -> None:
    memory = FaultyTier(DramTier(LAYOUT, 8))
    with TieredStore([memory, drive(tmp_path / "drive", 32)]) as store:
        on_the_drive_alone(store)
        memory.add(Fault(operation="write", kind=Fail(5)))
        rows = Putting(store)
        assert store.get_into(EIGHT[:1], rows).result(WAIT_S) == [OK]
        assert (rows.row == payloads_of(EIGHT[:1])[0]).all()
        assert_consistent(store)


def test_rows_that_fail_again_and_again_cost_no_tier(tmp_path: Path) -> None:
    store, _ = faulty(tmp_path / "drive")
    with store:
        fill(store, 0)
        for _ in range(5):
            assert store.get_into(EIGHT[:1], Refusing()).result(WAIT_S) != [OK]
            assert store.put(OTHERS[:1], Refusing()).result(WAIT_S) == [BUSY]
        assert store.stats().tiers["dram"].fence is None
        assert get(store, EIGHT[:7]) == [OK] * 7
        assert_consistent(store)


def test_a_block_that_follows_itself_is_refused(tmp_path: Path) -> None:
    store, _ = faulty(tmp_path / "drive")
    with store:
        with pytest.raises(UsageError, match="cannot be its own parent"):
            store.put(EIGHT[:1], payloads_of(EIGHT[:1]), parent=EIGHT[0])
        assert_consistent(store)


# ---------------------------------------------------------------- others' deadlines, full queues


def test_who_joined_a_put_has_no_part_in_its_deadline() -> None:
    tier = FaultyTier(DramTier(LAYOUT, 8))
    with TieredStore([tier], Options(memory_threads=1)) as store:
        stuck = hang(tier, "write")
        first = store.put(OTHERS[:1], payloads_of(OTHERS[:1]))
        hasty = store.put(EIGHT[:1], payloads_of(EIGHT[:1]), deadline_s=0.02)
        joined = store.put(EIGHT[:1], payloads_of(EIGHT[:1]))
        assert hasty.result(WAIT_S) == [TIMEOUT]
        stuck.release.set()
        assert first.result(WAIT_S) == [OK]
        assert joined.result(WAIT_S)[0] in {OK, BUSY}


def test_a_put_does_not_make_room_by_what_it_was_asked_to_store() -> None:
    with TieredStore([DramTier(LAYOUT, 8)]) as store:
        put(store, EIGHT[:4])
        put(store, OTHERS[:4])
        assert put(store, EIGHT) == [OK] * 8
        assert get(store, EIGHT) == [OK] * 8


def test_a_flush_is_answered_though_the_queue_of_writes_was_full(tmp_path: Path) -> None:
    options = Options(queued_tasks=1, write_threads=1, read_threads=1, memory_threads=1)
    store, tier = faulty(tmp_path / "drive", options=options)
    with store:
        assert store.flush(fill(store, 0, count=1)).result(WAIT_S) == [OK]
        others = fill(store, 1)
        stuck = hang(tier, "flush")
        first = store.flush([])
        assert stuck.reached.wait(WAIT_S)
        with store.lookup(keys_of(1)) as lease:  # what is bad and leased is looked at by the tick
            assert lease.tiers == ("nvme",)
            tier.add(Fault(operation="read", kind=Fail(5)))
            assert get(store, keys_of(1)) == [MISS]
            wait_for(lambda: store.stats().queues["nvme-write"].depth == 1)
            second = store.flush(others[:1])
        stuck.release.set()
        assert first.result(WAIT_S) == []
        assert second.result(WAIT_S) == [OK]
        assert_consistent(store)
