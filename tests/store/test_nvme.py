"""Blocks on drives: what a transfer may do, what an opener is told, what is there afterwards."""

import contextlib
import errno
import logging
import os
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kvbench.errors import TierUnavailableError, UsageError
from kvbench.machine.kvikio import probe_kvikio
from kvbench.store import drives, nvme, record_io
from kvbench.store.block import Bytes, CorruptBlockError, Layout, Stamp
from kvbench.store.drives import LOCK, capacity_for
from kvbench.store.identity import DATA, HEAD_BYTES, OtherStoreError, read_head
from kvbench.store.index import Index
from kvbench.store.index_file import DAMAGED, INDEX
from kvbench.store.lock import StoreInUseError
from kvbench.store.nixl_file import load_nixl
from kvbench.store.nvme import NvmeTier
from kvbench.store.posix import BlockFile, mapped_buffer
from kvbench.store.records import HEADER_BYTES
from kvbench.store.tier import Tier
from kvbench.testing.durable_tiers import DurableTierTests
from kvbench.units import KIB, MIB
from tests.store.on_drives import (
    LAYOUT,
    NAMESPACE,
    RECORD,
    SLOTS,
    blocks,
    crash,
    fill,
    flip,
    key_of,
    opened,
    payload_of,
    read,
    stamp_of,
    write,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def tier(folder: Path) -> Iterator[NvmeTier]:
    made = opened(folder)
    made.recover()
    yield made
    if made.drives.files:
        made.close()


# ---------------------------------------------------------------- what every durable tier promises


class TestNvme(DurableTierTests):
    engine = "posix"
    folders = 1

    def make(self, layout: Layout, slots: int, tmp_path: Path) -> Tier:
        return opened(
            *(tmp_path / f"drive {at}" for at in range(self.folders)),
            slots=slots,
            layout=layout,
            engine=self.engine,
        )

    reopen = make

    def damage(self, tier: Tier, slot: int, byte: int) -> None:
        assert isinstance(tier, NvmeTier)
        drive, offset = tier.drives.place(slot)
        flip(tier.drives.paths[drive], offset + HEADER_BYTES + byte)


class TestNvmeOnThreeDrives(TestNvme):
    folders = 3


KVIKIO = probe_kvikio()


@pytest.mark.skipif(not KVIKIO.usable, reason=f"KvikIO: {KVIKIO.reason}")
class TestNvmeByKvikio(TestNvme):
    engine = "kvikio"


def nixl_reason() -> str | None:
    try:
        load_nixl()
    except TierUnavailableError as error:
        return str(error)
    return None


@pytest.mark.skipif(nixl_reason() is not None, reason=str(nixl_reason()))
class TestNvmeByNixl(TestNvme):
    engine = "nixl"


# ---------------------------------------------------------------- transfers


@dataclass
class Call:
    verb: str
    offset: int
    buffers: list[Bytes]


class Watched:
    """An engine around another that notes transfers, and fails or cuts those it is told to."""

    def __init__(self, inner: drives.Engine) -> None:
        self.inner = inner
        self.calls: list[Call] = []
        self.syncs = 0
        self.bad: dict[int, OSError] = {}  # offset of a record in the file, and its error
        self.most: int | None = None  # bytes that one transfer moves at most
        self.sync_error: OSError | None = None

    @property
    def direct(self) -> bool:
        return self.inner.direct

    def readv(self, buffers: Sequence[Bytes], offset_bytes: int) -> int:
        return self.move("read", buffers, offset_bytes)

    def writev(self, buffers: Sequence[Bytes], offset_bytes: int) -> int:
        return self.move("write", buffers, offset_bytes)

    def move(self, verb: str, buffers: Sequence[Bytes], offset: int) -> int:
        self.calls.append(Call(verb, offset, list(buffers)))
        end = offset + sum(each.nbytes for each in buffers)
        for at, error in self.bad.items():
            if offset < at + RECORD and at < end:
                raise error
        some: list[Bytes] = []
        left = end - offset if self.most is None else self.most
        for each in buffers:
            if left > 0:
                some.append(each[:left])
                left -= each.nbytes
        if not some:
            return 0
        move = self.inner.readv if verb == "read" else self.inner.writev
        return move(some, offset)

    def sync(self) -> None:
        self.syncs += 1
        if self.sync_error is not None:
            raise self.sync_error
        self.inner.sync()

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def engine(tier: NvmeTier) -> Watched:
    watched = Watched(tier.drives.files[0])
    tier.drives.files[0] = watched
    return watched


def place(tier: NvmeTier, slot: int) -> int:
    return tier.drives.place(slot)[1]


def test_neighbours_travel_in_one_transfer_and_others_in_their_own(
    tier: NvmeTier, engine: Watched
) -> None:
    slots = [5, 3, 4, 9, 11, 10]
    assert write(tier, slots, slots) == [None] * 6
    assert [(call.verb, call.offset) for call in engine.calls] == [
        ("write", place(tier, 3)),
        ("write", place(tier, 9)),
    ]
    engine.calls.clear()
    assert read(tier, slots) == [stamp_of(slot) for slot in slots]
    assert [(call.verb, len(call.buffers)) for call in engine.calls] == [("read", 6)] * 2


def test_a_transfer_has_an_end_however_many_neighbours_there_are(
    tier: NvmeTier, engine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_io, "MOST_RUN_BYTES", 4 * tier.drives.format.payload_bytes)
    tier._io = record_io.RecordIO(tier.drives)
    slots = list(range(10))
    assert write(tier, slots, slots) == [None] * 10
    assert [len(call.buffers) // 2 for call in engine.calls] == [4, 4, 2]
    assert read(tier, slots) == [stamp_of(slot) for slot in slots]


def test_page_aligned_memory_is_moved_where_it_lies(tier: NvmeTier, engine: Watched) -> None:
    row, out = payload_of(2), payload_of(3)
    tier.write([2], [stamp_of(2)], [row])
    tier.read([2], [out])
    sent, received = (call.buffers[1] for call in engine.calls)
    assert np.shares_memory(sent, row)
    assert np.shares_memory(received, out)


def test_a_transfer_that_stops_half_way_is_taken_up_again(tier: NvmeTier, engine: Watched) -> None:
    engine.most = 3 * 4096
    slots = [1, 2, 3]
    assert write(tier, slots, slots) == [None] * 3
    assert read(tier, slots) == [stamp_of(slot) for slot in slots]
    assert len(engine.calls) == 2 * 5, "60 KiB by 12"


def test_a_drive_that_takes_nothing_is_an_error_for_each_block(
    tier: NvmeTier, engine: Watched
) -> None:
    engine.most = 0
    (error,) = write(tier, [1], [1])
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO
    assert "short write: 0 of 20480 bytes of the record in slot 1" in str(error)
    (found,) = read(tier, [1])
    assert isinstance(found, CorruptBlockError)
    assert "the data file ends there" in str(found)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.ENODEV])
def test_one_record_that_fails_does_not_take_its_neighbours_with_it(
    tier: NvmeTier, engine: Watched, number: int
) -> None:
    slots = [4, 5, 6, 7]
    engine.bad = {place(tier, 6): OSError(number, os.strerror(number))}
    errors = write(tier, slots, slots)
    assert [getattr(error, "errno", None) for error in errors] == [None, None, number, None]
    found = read(tier, slots)
    assert isinstance(found[2], OSError)
    assert found[2].errno == number
    assert [found[at] for at in (0, 1, 3)] == [stamp_of(slot) for slot in (4, 5, 7)]
    tier.flush()
    tier.drives.files[0] = engine.inner
    tier.close()
    after = opened(tier.drives.directories[0])
    assert set(blocks(after)) == {4, 5, 7}
    after.close()


def test_a_write_that_failed_leaves_no_record_even_for_a_rebuild(
    tier: NvmeTier, engine: Watched, folder: Path
) -> None:
    real = engine.move

    def torn(verb: str, buffers: Sequence[Bytes], offset: int) -> int:
        if verb == "write" and len(buffers) > 1:
            real(verb, [buffers[0], buffers[1][:4096]], offset)
            raise OSError(errno.EIO, "torn")
        return real(verb, buffers, offset)

    engine.move = torn  # type: ignore[method-assign]
    (error,) = write(tier, [3], [3])
    assert isinstance(error, OSError)
    tier.close()
    (folder / INDEX).unlink()
    after = opened(folder)
    assert blocks(after) == {}
    after.close()


def test_parts_are_read_alone_and_the_header_only_once(tier: NvmeTier, engine: Watched) -> None:
    assert tier.parts_alone
    write(tier, [1, 2], [1, 2])
    engine.calls.clear()
    wanted = [payload_of(1), payload_of(2)]
    for part in range(LAYOUT.parts):
        outs = [mapped_buffer(LAYOUT.part_bytes) for _ in range(2)]
        assert tier.read([1, 2], outs, part) == [stamp_of(1), stamp_of(2)]
        for out, payload in zip(outs, wanted, strict=True):
            assert (out == LAYOUT.part(payload, part)).all()
    moved = sum(each.nbytes for call in engine.calls for each in call.buffers)
    assert moved == 2 * (HEADER_BYTES + LAYOUT.block_bytes)


@pytest.mark.parametrize("change", ["write", "forget", "quarantine"])
def test_a_header_read_before_is_not_believed_after_the_slot_was_given_away(
    tier: NvmeTier, change: str
) -> None:
    write(tier, [1], [1])
    out = mapped_buffer(LAYOUT.part_bytes)
    assert tier.read([1], [out], 0) == [stamp_of(1)]
    if change == "forget":
        tier.forget([1])
    elif change == "quarantine":
        tier.quarantine([1], "bad")
    if change == "quarantine":
        assert isinstance(tier.read([1], [out], 0)[0], CorruptBlockError)
        return
    write(tier, [1], [9])
    assert tier.read([1], [out], 1) == [stamp_of(9)]
    assert (out == LAYOUT.part(payload_of(9), 1)).all()


def test_headers_that_are_remembered_are_bounded(
    tier: NvmeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_io, "MOST_STAMPS", 3)
    fill(tier, range(SLOTS))
    out = mapped_buffer(LAYOUT.part_bytes)
    for slot in range(SLOTS):
        assert tier.read([slot], [out], 0) == [stamp_of(slot)]
    assert len(tier._io._stamps) == 3


def test_buffers_of_another_size_are_refused(tier: NvmeTier) -> None:
    short = mapped_buffer(4096)
    with pytest.raises(UsageError, match="a buffer of 4096 bytes, expected 16384"):
        tier.write([1], [stamp_of(1)], [short])
    with pytest.raises(UsageError, match="a buffer of 4096 bytes, expected 16384"):
        tier.read([1], [short])
    with pytest.raises(UsageError, match="expected 4096"):
        tier.read([1], [payload_of(1)], 0)


def test_padding_is_zeros_whatever_was_read_before(tmp_path: Path) -> None:
    layout = Layout(5000)
    made = opened(tmp_path, layout=layout, slots=2)
    write(made, [0], [1])
    flip(tmp_path / DATA, HEAD_BYTES + HEADER_BYTES + 5001)
    assert read(made, [0]) == [stamp_of(1, layout)], "padding means nothing"
    write(made, [1], [2])
    made.close()
    at = HEAD_BYTES + 2 * HEADER_BYTES + 8192
    record = (tmp_path / DATA).read_bytes()[at:]
    assert record[:5000] == payload_of(2, layout).tobytes()
    assert not any(record[5000:])


# ---------------------------------------------------------------- flush


def test_rows_are_committed_after_the_drive_has_synced_and_not_before(
    tier: NvmeTier, engine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced_at_commit: list[int] = []
    real = tier.index.commit

    def commit(*arguments: object) -> None:
        synced_at_commit.append(engine.syncs)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tier.index, "commit", commit)
    write(tier, [1], [1])
    tier.flush()
    assert synced_at_commit == [1]
    tier.flush()
    assert engine.syncs == 1, "nothing new: nothing to sync"


def test_a_drive_that_cannot_sync_fails_the_flush_and_keeps_the_rows_for_the_next(
    tier: NvmeTier, engine: Watched, folder: Path
) -> None:
    write(tier, [1], [1])
    engine.sync_error = OSError(errno.EIO, "no")
    with pytest.raises(OSError, match="no"):
        tier.flush()
    engine.sync_error = None
    write(tier, [2], [2])
    tier.flush()
    crash(tier)
    after = opened(folder)
    assert set(blocks(after)) == {1, 2}
    after.close()


def test_a_close_that_cannot_flush_says_so_and_lets_the_lock_go(
    tier: NvmeTier, engine: Watched, folder: Path
) -> None:
    write(tier, [1], [1])
    engine.sync_error = OSError(errno.EIO, "no")
    with pytest.raises(OSError, match="no"):
        tier.close()
    after = opened(folder)
    assert blocks(after) == {}
    after.close()


def test_what_was_written_is_committed_on_the_way_when_it_is_due(
    tier: NvmeTier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tier, [1], [1])
    monkeypatch.setattr("kvbench.store.index.MOST_WAITING", 2)
    write(tier, [2], [2])
    crash(tier)
    after = opened(folder)
    assert set(blocks(after)) == {1, 2}
    after.close()


def test_a_commit_on_the_way_that_fails_is_logged_and_not_tried_at_every_write(
    tier: NvmeTier,
    engine: Watched,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("kvbench.store.index.MOST_WAITING", 1)
    monkeypatch.setattr(nvme, "RETRY_S", 1e9)
    tier._failed_s = -1e10
    engine.sync_error = OSError(errno.EIO, "no")
    assert write(tier, [1], [1]) == [None]
    assert write(tier, [2], [2]) == [None]
    assert engine.syncs == 1
    assert "cannot commit what was written" in caplog.text
    engine.sync_error = None
    tier.flush()
    assert tier.index.waiting() == []


# ---------------------------------------------------------------- kill -9


def test_after_a_kill_what_was_flushed_is_there_and_nothing_else_than_was_written(
    folder: Path,
) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            made = opened(folder)
            made.recover()
            write(made, range(6), range(6))
            made.flush()
            made.forget([5])
            write(made, range(8, 12), range(8, 12))
            os.write(writing, b"!")
            threading.Event().wait(60)
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b"!"
    os.close(reading)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    after = opened(folder)
    found = blocks(after)
    assert set(range(5)) <= set(found) <= set(range(12)) - {5}
    assert read(after, list(found)) == [stamp_of(slot) for slot in found]
    after.close()


def test_what_a_crash_left_behind_never_wins_against_what_was_flushed_later(
    folder: Path,
) -> None:
    first = opened(folder)
    first.recover()
    for seed in range(40, 50):
        write(first, [seed - 40], [seed])  # uses up sequence numbers
    first.forget(range(10))
    write(first, [7], [1])
    crash(first)  # the record of key 1 in slot 7 is in no row
    second = opened(folder)
    assert blocks(second) == {}
    write(second, [2], [1])
    second.flush()
    crash(second)
    (folder / INDEX).unlink()
    flip(folder / DATA, place(second, 7) + HEADER_BYTES + 99)  # torn, who knows
    third = opened(folder)
    found = blocks(third)
    assert [slot for slot, key in found.items() if key == key_of(1)] == [2]
    assert read(third, [2]) == [stamp_of(1)]
    third.close()


# ---------------------------------------------------------------- one opener


def test_the_second_opener_is_told_which_process_has_it(tier: NvmeTier, folder: Path) -> None:
    with pytest.raises(StoreInUseError, match=f"in use by process {os.getpid()} on "):
        opened(folder)
    tier.close()
    opened(folder).close()


def test_another_process_is_told_too_and_the_lock_goes_with_its_holder(
    folder: Path, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            opened(folder)
            os.write(writing, b"!")
            threading.Event().wait(60)
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b"!"
    os.close(reading)
    with pytest.raises(StoreInUseError, match=f"in use by process {pid} on "):
        opened(folder)
    with pytest.raises(StoreInUseError, match=f"in use by process {pid} on "):
        opened(tmp_path / "other", folder)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (folder / LOCK).read_text().startswith(f"{pid} "), "stale, and no obstacle"
    opened(folder).close()


@pytest.mark.parametrize("content", [b"", b"\xff" * 1000, b"12 some host\n", b"1 a\n" * 1000])
def test_a_damaged_lock_file_is_no_obstacle_and_no_lie(folder: Path, content: bytes) -> None:
    folder.mkdir()
    (folder / LOCK).write_bytes(content)
    made = opened(folder)
    (folder / LOCK).write_bytes(content)
    with pytest.raises(StoreInUseError, match="does not say which"):
        opened(folder)
    made.close()


# ---------------------------------------------------------------- the right store


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layout": Layout(8 * KIB)}, "blocks of 16KiB instead of 8KiB, 4 parts .* instead of 1"),
        ({"layout": Layout(16 * KIB, 2)}, "4 parts a block instead of 2"),
        ({"namespace": bytes(32)}, "namespace [0-9a-f]{16}... instead of 0000000000000000"),
    ],
)
@pytest.mark.parametrize("head", ["whole", "first page", "both pages"])
def test_another_store_than_the_directory_holds_is_refused_and_untouched(
    folder: Path, change: dict[str, object], said: str, head: str
) -> None:
    made = opened(folder)
    fill(made, range(4))
    made.close()
    for at in {"whole": (), "first page": (0,), "both pages": (0, 4096)}[head]:
        flip(folder / DATA, at + 20)
    before = (folder / DATA).read_bytes()
    with pytest.raises(OtherStoreError, match=said):
        opened(folder, **change)  # type: ignore[arg-type]
    assert (folder / DATA).read_bytes() == before
    after = opened(folder)
    assert set(blocks(after)) == set(range(4))
    after.close()


def test_a_store_of_a_later_format_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvbench.store.identity.FORMAT", 2)
    opened(folder).close()
    monkeypatch.setattr("kvbench.store.identity.FORMAT", 1)
    with pytest.raises(OtherStoreError, match="holds a store of format 2, and this kvbench reads"):
        opened(folder)


def test_when_nothing_says_what_a_store_is_the_opener_does_and_records_tell(
    folder: Path,
) -> None:
    made = opened(folder)
    fill(made, range(4))
    made.close()
    flip(folder / DATA, 20)
    flip(folder / DATA, 4096 + 20)
    (folder / INDEX).unlink()
    after = opened(folder)
    assert set(blocks(after)) == set(range(4))
    after.close()
    assert read_head(folder) is not None, "written anew"


def test_what_is_no_directory_or_no_engine_is_one_clear_error(tmp_path: Path) -> None:
    capacity = capacity_for(4, LAYOUT)

    def make(folders: list[Path], **more: object) -> None:
        NvmeTier(folders, LAYOUT, capacity_bytes=capacity, namespace=NAMESPACE, **more)  # type: ignore[arg-type]

    with pytest.raises(TierUnavailableError, match="missing is not a directory: create it"):
        make([tmp_path / "missing"])
    with pytest.raises(UsageError, match="expected one of posix, kvikio, nixl"):
        make([tmp_path], engine="magic")
    with pytest.raises(UsageError, match="one directory or several different ones"):
        make([])
    with pytest.raises(UsageError, match="one directory or several different ones"):
        make([tmp_path, tmp_path])
    with pytest.raises(UsageError, match="a namespace is 32 bytes, not 3"):
        NvmeTier([tmp_path], LAYOUT, capacity_bytes=capacity, namespace=b"abc")
    with pytest.raises(UsageError, match="holds no store: give a capacity"):
        opened(tmp_path, slots=None)
    with pytest.raises(UsageError, match="a capacity of 20KiB holds no block of 16KiB: it takes"):
        NvmeTier([tmp_path], LAYOUT, capacity_bytes=RECORD, namespace=NAMESPACE)
    assert not (tmp_path / DATA).exists()


# ---------------------------------------------------------------- size


def test_data_files_never_exceed_the_capacity(tmp_path: Path) -> None:
    for folders in (1, 3):
        capacity = 20 * RECORD + 12_345
        names = [tmp_path / f"{folders}-{at}" for at in range(folders)]
        for each in names:
            each.mkdir()
        made = NvmeTier(
            names, LAYOUT, capacity_bytes=capacity, namespace=NAMESPACE, min_free_bytes=0
        )
        sizes = [(each / DATA).stat().st_size for each in names]
        assert sum(sizes) <= capacity < sum(sizes) + RECORD
        fill(made, range(made.slots))
        assert read(made, range(made.slots)) == [stamp_of(slot) for slot in range(made.slots)]
        made.close()
        assert [(each / DATA).stat().st_size for each in names] == sizes


@pytest.mark.parametrize("folders", [1, 3])
def test_a_larger_capacity_keeps_every_block_in_its_slot(tmp_path: Path, folders: int) -> None:
    names = [tmp_path / str(at) for at in range(folders)]
    made = opened(*names, slots=700)
    fill(made, range(0, 700, 70))
    made.close()
    larger = opened(*names, slots=1500)
    assert larger.slots == 1500
    assert set(blocks(larger)) == set(range(0, 700, 70))
    assert write(larger, [1499, 900], [1499, 900]) == [None, None]
    slots = [*range(0, 700, 70), 900, 1499]
    assert read(larger, slots) == [stamp_of(slot) for slot in slots]
    larger.close()
    same = opened(*names, slots=None)
    assert same.slots == 1500
    assert set(blocks(same)) == set(slots)
    same.close()


def test_a_smaller_capacity_is_refused_and_says_what_does_it(folder: Path) -> None:
    opened(folder).close()
    with pytest.raises(UsageError, match="`kvbench store compact` makes it smaller"):
        opened(folder, slots=SLOTS - 1)


def test_what_is_to_stay_free_is_not_taken_at_the_start(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with pytest.raises(OSError, match="are to stay free") as caught:
        NvmeTier(
            [tmp_path],
            LAYOUT,
            capacity_bytes=capacity_for(4, LAYOUT),
            namespace=NAMESPACE,
            min_free_bytes=2 * free,
        )
    assert caught.value.errno == errno.ENOSPC
    opened(tmp_path).close()


def test_the_index_does_not_grow_into_what_is_to_stay_free(tier: NvmeTier, folder: Path) -> None:
    write(tier, [1], [1])
    tier.drives.min_free_bytes = 2**60
    with pytest.raises(OSError, match="are to stay free") as caught:
        tier.flush()
    assert caught.value.errno == errno.ENOSPC
    tier.forget([0])  # making room is never refused
    tier.drives.min_free_bytes = 0
    tier.flush()
    crash(tier)
    after = opened(folder)
    assert set(blocks(after)) == {1}
    after.close()


@pytest.fixture
def small_drive(tmp_path: Path) -> Iterator[Path]:
    """A real ext4 of 24 MiB, by a loop device; only root can mount one."""
    image, mount = tmp_path / "image", tmp_path / "mount"
    image.write_bytes(b"")
    os.truncate(image, 24 * MIB)
    mount.mkdir()
    made = subprocess.run(["mkfs.ext4", "-q", str(image)], check=False, capture_output=True)
    mounted = made.returncode == 0 and os.geteuid() == 0
    if mounted:
        command = ["mount", "-o", "loop", str(image), str(mount)]
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("needs root, mkfs.ext4 and loop devices")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_store_larger_than_its_drive_is_refused_and_leaves_it_free(small_drive: Path) -> None:
    with pytest.raises(OSError, match="make room, or give the store less") as caught:
        opened(small_drive, slots=64 * MIB // RECORD)
    assert caught.value.errno == errno.ENOSPC
    assert {each.name for each in small_drive.iterdir()} <= {"lost+found", LOCK}


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(64 * KIB)):
            pass


def until_full(tier: NvmeTier, first: int) -> tuple[int, OSError]:
    """Write and flush blocks until the log of the index finds no room: how many are written."""
    for slot in range(first, tier.slots):
        assert write(tier, [slot], [slot]) == [None]
        try:
            tier.flush()
        except OSError as error:
            return slot + 1, error
    raise AssertionError("the drive was never full")


def test_on_a_full_drive_blocks_are_written_and_read_and_the_index_says_enospc(
    small_drive: Path,
) -> None:
    made = opened(small_drive, slots=8 * MIB // RECORD)
    fill(made, range(4))
    made.flush()
    filler = small_drive / "filler"
    fill_up(filler)
    written, error = until_full(made, 4)
    assert error.errno in {errno.ENOSPC, errno.EIO}, "what SQLite makes of it"
    assert read(made, range(written)) == [stamp_of(slot) for slot in range(written)]
    filler.unlink()
    made.flush()
    made.close()
    after = opened(small_drive, slots=None)
    assert set(blocks(after)) == set(range(written))
    after.close()


# ---------------------------------------------------------------- several drives


def test_neighbours_stay_together_on_a_drive_and_all_drives_are_used(tmp_path: Path) -> None:
    names = [tmp_path / str(at) for at in range(3)]
    made = opened(*names, slots=1000)
    stripe = made.drives.striping.stripe
    assert stripe * RECORD <= drives.STRIPE_BYTES < (stripe + 1) * RECORD
    placed = [made.drives.place(slot) for slot in range(1000)]
    assert len(set(placed)) == 1000
    for slot, (drive, offset) in enumerate(placed):
        assert made.drives.striping.slot(drive, (offset - HEAD_BYTES) // RECORD) == slot
    assert {drive for drive, _ in placed} == {0, 1, 2}
    assert [len(run) for run in made.drives.runs(range(2 * stripe), 10_000)] == [stripe] * 2
    made.close()


def test_directories_of_a_store_have_to_be_named_all_and_in_order(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    opened(one, two).close()
    opened(other).close()
    for named, said in (
        ((two, one), "two is number 2 of the 2 directories of its store, and was named as number"),
        ((one,), "one is number 1 of the 2 directories"),
        ((one, other), "other belongs to another store than"),
        ((one, tmp_path / "empty"), "empty has no blocks.kvb, though .* is its drive mounted"),
    ):
        with pytest.raises(OtherStoreError, match=said):
            opened(*named)
    opened(one, two).close()


# ---------------------------------------------------------------- damage


@pytest.fixture
def closed(folder: Path) -> Path:
    """A store with a block in each slot, closed."""
    made = opened(folder)
    fill(made, range(SLOTS))
    made.close()
    return folder


EVERY = {slot: key_of(slot) for slot in range(SLOTS)}


def lose_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def empty_index(folder: Path) -> None:
    (folder / INDEX).write_bytes(b"")


def noise_index(folder: Path) -> None:
    (folder / INDEX).write_bytes(np.random.default_rng(0).bytes(100_000))


def half_index(folder: Path) -> None:
    os.truncate(folder / INDEX, (folder / INDEX).stat().st_size // 2)


def wrong_rows(folder: Path) -> None:
    with sqlite3.connect(folder / INDEX) as base:
        base.execute("UPDATE meta SET value = 0 WHERE name = 'clean'")
        base.execute("UPDATE blocks SET slot = 99999 WHERE slot = 3")
    base.close()


@pytest.mark.parametrize("small", [True, False], ids=["read whole", "headers only"])
@pytest.mark.parametrize("lose", [lose_index, empty_index, noise_index, half_index, wrong_rows])
def test_without_its_index_a_store_finds_the_same_blocks_in_the_same_order(
    folder: Path,
    lose: Callable[[Path], None],
    small: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not small:
        monkeypatch.setattr("kvbench.store.rebuild.SEQUENTIAL_BYTES", 0)
    made = opened(folder)
    made.recover()
    order = [9, 4, 11, 2, 3]
    write(made, order, [slot * 3 for slot in order])
    made.close()
    before = opened(folder)
    wanted = before.recover()
    assert before.facts()["found_by"] == "index, snapshot"
    before.close()
    lose(folder)
    after = opened(folder)
    assert after.recover() == wanted
    assert after.facts()["found_by"] == "records"
    assert wanted.slots == order
    after.close()
    again = opened(folder)
    assert again.recover() == wanted
    assert again.facts()["found_by"] == "index, snapshot"
    again.close()
    assert {each.name for each in folder.iterdir()} <= {DATA, INDEX, LOCK, DAMAGED}


def test_a_rebuild_takes_the_record_that_was_written_last(folder: Path) -> None:
    made = opened(folder)
    made.recover()
    write(made, [5], [1])
    write(made, [3], [1])
    write(made, [8], [2])
    made.close()
    lose_index(folder)
    after = opened(folder)
    assert blocks(after) == {3: key_of(1), 8: key_of(2)}
    after.close()


def test_a_rebuild_leaves_out_what_cannot_be_read_and_goes_on(
    closed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lose_index(closed)
    real = BlockFile.read
    bad = HEAD_BYTES + 3 * RECORD

    def read_(self: BlockFile, block: Bytes, offset_bytes: int) -> int:
        if offset_bytes <= bad < offset_bytes + block.nbytes:
            raise OSError(errno.EIO, "a bad sector")
        return real(self, block, offset_bytes)

    monkeypatch.setattr(BlockFile, "read", read_)
    after = opened(closed)
    assert set(blocks(after)) == set(EVERY) - {3}
    assert "a bad sector" in caplog.text
    after.close()


def test_a_crash_before_a_rebuild_is_done_does_not_lose_what_it_would_have_found(
    closed: Path,
) -> None:
    lose_index(closed)
    crash(opened(closed))  # before recover
    opened(closed).close()  # and without any recover
    after = opened(closed)
    assert blocks(after) == EVERY
    after.close()


def test_a_store_opens_also_if_there_is_no_room_to_rebuild_its_index(
    closed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lose_index(closed)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Index, "_insert", full)
        made = opened(closed)
        assert blocks(made) == EVERY
        assert "the next opening tries again" in caplog.text
    newest = max(made._io.header(slot)[1] for slot in EVERY)
    write(made, [3], [100])
    assert made._io.header(3)[1] > newest
    made.close()
    after = opened(closed)
    assert blocks(after) == {**EVERY, 3: key_of(100)}
    assert after.facts()["found_by"] == "records"
    after.close()


@pytest.mark.parametrize("index", ["snapshot", "rows", "none"])
@pytest.mark.parametrize("left", [0, 4096, HEAD_BYTES + 5 * RECORD + 100, HEAD_BYTES + 5 * RECORD])
def test_a_data_file_cut_short_loses_only_what_was_behind(
    closed: Path, left: int, index: str, caplog: pytest.LogCaptureFixture
) -> None:
    if index == "rows":
        made = opened(closed)
        made.recover()
        made.index.touch()
        crash(made)
    elif index == "none":
        lose_index(closed)
    os.truncate(closed / DATA, left)
    caplog.set_level(logging.WARNING)
    after = opened(closed)
    held = set(range(5)) if left > HEAD_BYTES else set()
    assert set(blocks(after)) == held
    assert read(after, sorted(held)) == [stamp_of(slot) for slot in sorted(held)]
    if index != "none":
        assert f"{SLOTS - len(held)} blocks with it" in caplog.text
    assert (closed / DATA).stat().st_size == HEAD_BYTES + SLOTS * RECORD
    assert write(after, [15], [99]) == [None]
    after.close()
    again = opened(closed)
    assert set(blocks(again)) == held | {15}
    again.close()


@pytest.mark.parametrize("name", [DATA, INDEX, LOCK])
@pytest.mark.parametrize("clean", [True, False], ids=["closed", "killed"])
def test_no_flip_in_any_file_makes_it_serve_a_wrong_byte(
    folder: Path, name: str, clean: bool
) -> None:
    origin = opened(folder)
    fill(origin, range(SLOTS))
    origin.flush()
    if clean:
        origin.close()
    else:
        crash(origin)
    files = {each.name: each.read_bytes() for each in folder.iterdir()}
    rng = np.random.default_rng(len(name) + clean)
    good = 0
    for _ in range(25):
        for each in folder.iterdir():
            each.unlink()
        for file, data in files.items():
            (folder / file).write_bytes(data)
        size = max(1, len(files[name]))
        (folder / name).write_bytes(files[name] or b"x")
        for at in rng.integers(0, size, 8).tolist():
            flip(folder / name, at)
        after = opened(folder)
        found = blocks(after)
        for slot, stamp in zip(found, read(after, list(found)), strict=True):
            if isinstance(stamp, Stamp) and stamp.key == found[slot]:
                seed = next(seed for seed in EVERY if EVERY[seed] == stamp.key)
                assert stamp.sums == stamp_of(seed).sums, "wrong bytes for a key"
                good += 1
        after.close()
    assert good > 20 * SLOTS * 0.4, "most of them are not hit"


def test_quarantined_slots_are_remembered_by_the_index_and_hold_no_record_without_it(
    closed: Path,
) -> None:
    made = opened(closed)
    made.recover()
    made.quarantine([3, 4], "bit rot")
    crash(made)
    after = opened(closed)
    found = after.recover()
    assert found.quarantined == [3, 4]
    assert set(found.slots) == set(EVERY) - {3, 4}
    after.close()
    lose_index(closed)
    without = opened(closed)
    assert set(blocks(without)) == set(EVERY) - {3, 4}
    without.close()


# ---------------------------------------------------------------- what is seen


def test_an_index_that_cannot_take_note_of_a_change_fails_every_write(
    tier: NvmeTier, engine: Watched
) -> None:
    tier.index.base.execute("PRAGMA query_only=1")
    errors = write(tier, [1, 2], [1, 2])
    assert [getattr(error, "errno", None) for error in errors] == [errno.EROFS] * 2
    assert engine.calls == []
    tier.index.base.execute("PRAGMA query_only=0")
    assert write(tier, [1], [1]) == [None]


def test_a_limit_of_open_files_does_not_cost_a_good_index(closed: Path) -> None:
    made = opened(closed)
    made.close()
    real = sqlite3.connect

    def refuse(*_: object, **__: object) -> sqlite3.Connection:
        return real(closed / "no such directory" / INDEX)  # says what it says of a limit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", refuse)
        with pytest.raises(OSError, match="unable to open database file"):
            opened(closed)
    after = opened(closed)
    assert blocks(after) == EVERY
    assert after.facts()["found_by"] == "index, snapshot"
    after.close()


def test_facts_say_how_bytes_travel_and_how_blocks_were_found(folder: Path, tier: NvmeTier) -> None:
    assert tier.facts() == {
        "memory": "files on drives",
        "engine": "posix",
        "direct_io": tier.drives.files[0].direct,
        "drives": 1,
        "record_bytes": RECORD,
        "written_bytes": 0,
        "found_by": "nothing",
    }
    fill(tier, range(3))
    assert tier.facts()["written_bytes"] == 3 * RECORD
    tier.close()
    after = opened(folder)
    after.recover()
    write(after, [9], [9])
    assert sum(after.wear().values()) == 4 * RECORD
    after.close()
