"""Rows of a device are asked for by the batch, of host memory block by block, and fail alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kvbench.store.block import Bytes
from kvbench.store.dram import DramTier
from kvbench.store.options import Options
from kvbench.store.store import TieredStore
from tests.store.blocks import (
    BUSY,
    LAYOUT,
    OK,
    WAIT_S,
    drive,
    empty_rows,
    get,
    payloads_of,
    put,
    two_tiers,
)
from tests.store.consistency import assert_consistent
from tests.store.faulty import EIGHT, hang, on_the_drive_alone
from tests.store.faulty import faulty as store_over_a_faulty_drive

ONE_THREAD = Options(memory_threads=1, transfer_bytes=3 * LAYOUT.block_bytes)
WHOLE = [(0, 1, 2), (3, 4, 5), (6, 7)]  # eight rows, three blocks a transfer


class Device:
    """Rows in memory of a device, which notes what it is asked for."""

    def __init__(self, content: Bytes) -> None:
        self.content = content
        self.sent: list[tuple[int, ...]] = []
        self.received: list[tuple[tuple[int, ...], int | None]] = []
        self.finished: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return len(self.content)

    def send_many(self, indexes: Sequence[int], outs: Sequence[Bytes]) -> None:
        self.sent.append(tuple(indexes))
        for index, out in zip(indexes, outs, strict=True):
            out[:] = self.content[index]

    def receive_many(self, indexes: Sequence[int], part: int | None, data: Sequence[Bytes]) -> None:
        self.received.append((tuple(indexes), part))
        for index, each in zip(indexes, data, strict=True):
            row = self.content[index]
            (row if part is None else LAYOUT.part(row, part))[:] = each

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        del part
        self.finished.append(tuple(indexes))


class OneByOne:
    """Rows of a device that has no transfer of several."""

    def __init__(self, content: Bytes) -> None:
        self.content = content

    def __len__(self) -> int:
        return len(self.content)

    def send(self, index: int, out: Bytes) -> None:
        out[:] = self.content[index]

    def receive(self, index: int, part: int | None, data: Bytes) -> None:
        row = self.content[index]
        (row if part is None else LAYOUT.part(row, part))[:] = data

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        """It is there."""


class Refusing(Device):
    """Rows in memory of a device that fails."""

    def send_many(self, indexes: Sequence[int], outs: Sequence[Bytes]) -> None:
        raise RuntimeError(f"the device lost {len(outs)} rows, {indexes[0]} among them")

    def receive_many(self, indexes: Sequence[int], part: int | None, data: Sequence[Bytes]) -> None:
        raise RuntimeError(f"the device lost {len(data)} rows, {indexes[0]}, part {part}")


def only_drive(folder: Path) -> TieredStore:
    one = Options(memory_threads=1, read_threads=1, write_threads=1, transfer_bytes=3 * 16_384)
    return TieredStore([drive(folder, 32)], one)


def test_a_put_takes_the_rows_of_a_device_by_the_transfer() -> None:
    rows = Device(payloads_of(EIGHT))
    with TieredStore([DramTier(LAYOUT, 8)], ONE_THREAD) as store:
        assert store.put(EIGHT, rows).result(WAIT_S) == [OK] * 8
        assert rows.sent == WHOLE
        assert get(store, EIGHT) == [OK] * 8


def test_a_put_to_a_drive_takes_the_rows_of_a_device_by_the_transfer(tmp_path: Path) -> None:
    rows = Device(payloads_of(EIGHT))
    with only_drive(tmp_path / "drive") as store:
        assert store.put(EIGHT, rows).result(WAIT_S) == [OK] * 8
        assert rows.sent == WHOLE
        assert get(store, EIGHT) == [OK] * 8


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_get_from_memory_gives_a_device_its_rows_by_the_transfer(by_layer: bool) -> None:
    rows = Device(empty_rows(8))
    with TieredStore([DramTier(LAYOUT, 8)], ONE_THREAD) as store:
        put(store, EIGHT)
        assert store.get_into(EIGHT, rows, by_layer=by_layer).result(WAIT_S) == [OK] * 8
    assert (rows.content == payloads_of(EIGHT)).all()
    eight = tuple(range(8))  # a part is a quarter of a block: eight of them are one transfer
    layers = [(eight, part) for part in range(LAYOUT.parts)]
    assert rows.received == (layers if by_layer else [(run, None) for run in WHOLE])
    assert rows.finished == [eight] * (LAYOUT.parts if by_layer else 1)


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_get_from_a_drive_gives_a_device_its_rows_by_the_transfer(
    by_layer: bool, tmp_path: Path
) -> None:
    rows = Device(empty_rows(8))
    with only_drive(tmp_path / "drive") as store:
        put(store, EIGHT)
        assert store.get_into(EIGHT, rows, by_layer=by_layer).result(WAIT_S) == [OK] * 8
    assert (rows.content == payloads_of(EIGHT)).all()
    parts = range(LAYOUT.parts) if by_layer else [None]
    assert rows.received == [(run, part) for run in WHOLE for part in parts]
    assert rows.finished == [run for run, _ in rows.received]


def test_rows_that_go_one_by_one_are_taken_too(tmp_path: Path) -> None:
    rows, out = OneByOne(payloads_of(EIGHT)), OneByOne(empty_rows(8))
    with two_tiers(tmp_path / "drive") as store:
        assert store.put(EIGHT, rows).result(WAIT_S) == [OK] * 8
        assert store.get_into(EIGHT, out).result(WAIT_S) == [OK] * 8
    assert (out.content == rows.content).all()


def test_rows_that_fail_half_way_leave_no_block_of_their_put_behind() -> None:
    class Half(Device):
        def send_many(self, indexes: Sequence[int], outs: Sequence[Bytes]) -> None:
            super().send_many(indexes, outs)
            if 4 in indexes:
                raise RuntimeError("the device is lost")

    with TieredStore([DramTier(LAYOUT, 8)], ONE_THREAD) as store:
        request = store.put(EIGHT, Half(payloads_of(EIGHT)))
        assert request.result(WAIT_S) == [BUSY] * 8
        assert request.reasons[0] == "the rows failed: RuntimeError: the device is lost"
        assert len(store.lookup(EIGHT)) == 0
        assert put(store, EIGHT) == [OK] * 8
        assert store.stats().tiers["dram"].fence is None
        assert_consistent(store)


@pytest.mark.parametrize("by_layer", [False, True])
def test_rows_that_fail_fail_their_own_request_and_no_other(by_layer: bool, tmp_path: Path) -> None:
    store, tier = store_over_a_faulty_drive(tmp_path / "drive")
    with store:
        on_the_drive_alone(store)
        stuck = hang(tier, "read")  # so that the others join this one's reads
        refused = store.get_into(EIGHT, Refusing(empty_rows(8)), by_layer=by_layer)
        rows, device = empty_rows(8), Device(empty_rows(8))
        other = store.get_into(EIGHT, rows)
        third = store.get_into(EIGHT, device)
        stuck.release.set()
        assert other.result(WAIT_S) == [OK] * 8
        assert third.result(WAIT_S) == [OK] * 8
        assert refused.result(WAIT_S) == [BUSY] * 8
        assert "the device lost" in refused.reasons[7]
        assert (rows == payloads_of(EIGHT)).all()
        assert (device.content == payloads_of(EIGHT)).all()
        assert store.stats().tiers["nvme"].fence is None
        assert_consistent(store)


def test_a_block_that_is_damaged_is_not_among_what_a_device_receives() -> None:
    memory = DramTier(LAYOUT, 8)
    rows = Device(empty_rows(8))
    with TieredStore([memory], ONE_THREAD) as store:
        put(store, EIGHT)
        slot = store._core.levels[0].table.index[EIGHT[4]]
        memory.view(slot)[5] ^= 0xFF
        statuses = store.get_into(EIGHT, rows).result(WAIT_S)
    assert [status is OK for status in statuses] == [at != 4 for at in range(8)]
    assert [run for run, _ in rows.received] == [(0, 1, 2), (3, 5), (6, 7)]
    assert np.unique(rows.content[4]).tolist() == [0xEE]


def test_a_key_that_timed_out_is_not_among_what_a_device_receives(tmp_path: Path) -> None:
    store, tier = store_over_a_faulty_drive(tmp_path / "drive")
    with store:
        on_the_drive_alone(store)
        stuck = hang(tier, "read")
        rows, hasty = Device(empty_rows(8)), Device(empty_rows(8))
        patient = store.get_into(EIGHT, rows)
        cancelled = store.get_into(EIGHT, hasty)
        store.cancel(cancelled)
        stuck.release.set()
        assert patient.result(WAIT_S) == [OK] * 8
        assert hasty.received == []
        assert (rows.content == payloads_of(EIGHT)).all()
