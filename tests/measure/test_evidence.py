import ctypes
import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest

from kvbench.errors import TierUnavailableError
from kvbench.machine import Machine
from kvbench.measure.evidence import device_bytes, mapping_of, node_share, resident_share
from kvbench.store.posix import BlockFile, mapped_buffer

PAGE = mmap.PAGESIZE
PAGES = 64
# Documentation/block/stat.rst: reads, merged, sectors read, ms, writes, merged, sectors written.
STAT = "    4021     17   300016      999      503       61    70007     1234        0      88\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file whose bytes are on the drive, none of them in the page cache."""
    file = tmp_path / "data"
    file.write_bytes(os.urandom(PAGES * PAGE))
    drop(file)
    return file


def drop(path: Path) -> None:
    with BlockFile(path, write=True, direct=False) as file:
        file.sync()
        file.drop_cache()


# ---------------------------------------------------------------- the page cache


@pytest.mark.usefixtures("drive")
def test_a_file_is_resident_as_far_as_it_was_read_and_not_after_it_was_dropped(path: Path) -> None:
    assert resident_share(path) == 0.0
    with BlockFile(path, direct=False) as file:
        file.expect_random()
        file.read(np.empty(PAGES // 4 * PAGE, dtype=np.uint8), 0)
    assert resident_share(path) == 0.25
    path.read_bytes()
    assert resident_share(path) == 1.0
    drop(path)
    assert resident_share(path) == 0.0


@pytest.mark.usefixtures("drive")
def test_pages_that_are_mapped_stay_and_are_seen_although_they_were_dropped(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
        assert sum(area[at] for at in range(0, PAGES // 2 * PAGE, PAGE)) > 0
        drop(path)
        share = resident_share(path)
        assert share is not None
        assert share >= 0.5
    drop(path)
    assert resident_share(path) == 0.0


@pytest.mark.usefixtures("drive")
def test_looking_does_not_bring_the_file_into_the_cache(path: Path) -> None:
    assert [resident_share(path) for _ in range(3)] == [0.0, 0.0, 0.0]


@pytest.mark.usefixtures("drive")
def test_a_page_that_is_only_begun_counts_as_one(path: Path) -> None:
    os.truncate(path, PAGE + 1)
    drop(path)
    with BlockFile(path, direct=False) as file:
        file.expect_random()
        file.read(np.empty(PAGE, dtype=np.uint8), 0)
    assert resident_share(path) == 0.5


def test_residency_that_cannot_be_seen_is_none_and_never_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").touch()
    assert resident_share(tmp_path / "empty") is None
    assert resident_share(tmp_path / "missing") is None
    full = tmp_path / "full"
    full.write_bytes(bytes(PAGE))

    def refused(*_: object) -> int:
        return -1

    monkeypatch.setattr("kvbench.measure.evidence._libc.mincore", refused)
    assert resident_share(full) is None


def test_looking_leaves_no_file_open_and_no_mapping(tmp_path: Path) -> None:
    file = tmp_path / "watched.dat"
    file.write_bytes(bytes(PAGE))
    before = len(list(Path("/proc/self/fd").iterdir()))
    resident_share(file)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert "watched.dat" not in Path("/proc/self/maps").read_text()


# ---------------------------------------------------------------- the device's counters


def test_the_counters_are_read_in_bytes_each_way_by_itself(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(STAT)
    assert device_bytes(stat, "read") == 300016 * 512
    assert device_bytes(stat, "write") == 70007 * 512


def test_without_a_counter_the_answer_is_none_and_never_zero(tmp_path: Path) -> None:
    assert device_bytes(None, "read") is None
    assert device_bytes(tmp_path / "gone", "read") is None


def counter_after(stat: Path, direction: str, least: int) -> int:
    """The kernel may count an operation just after it has completed it."""
    deadline_s = time.monotonic() + 2.0
    while True:
        found = device_bytes(stat, direction)
        assert found is not None
        if found >= least or time.monotonic() > deadline_s:
            return found
        time.sleep(0.01)


@pytest.mark.parametrize("direction", ["read", "write"])
def test_the_devices_own_counter_moves_by_what_o_direct_moved(
    drive: Machine, path: Path, direction: str
) -> None:
    storage = drive.storage
    if storage is None or storage.stat_path is None:
        pytest.skip("no block device's counters stand behind this directory")
    stat = Path(storage.stat_path)
    block = mapped_buffer(PAGES * PAGE)
    before = device_bytes(stat, direction)
    assert before is not None
    with BlockFile(path, write=direction == "write") as file:
        for _ in range(20):
            if direction == "read":
                file.read(block, 0)
            else:
                file.write(block, 0)
    wanted = 20 * PAGES * PAGE
    # Others use the drive too, so only the lower end is certain.
    assert counter_after(stat, direction, before + wanted) - before >= wanted


# ---------------------------------------------------------------- kinds of memory


def test_memory_that_is_not_locked_is_seen_as_such() -> None:
    area = mapped_buffer(2**20)
    area[:] = 1
    found = mapping_of(area.ctypes.data, area.nbytes)
    assert found is not None
    assert found.locked_share == 0.0


def test_locked_memory_is_seen_as_locked_wherever_in_it_one_looks() -> None:
    try:
        area = mapped_buffer(2**20, lock=True)
    except TierUnavailableError as error:
        pytest.skip(str(error))
    for first in (0, 4096, 2**20 - 1):
        found = mapping_of(area.ctypes.data + first, 2**20 - first)
        assert found is not None
        assert found.locked_share == 1.0


def test_an_area_half_of_which_is_locked_is_seen_as_half_locked() -> None:
    area = mapped_buffer(2**20)
    area[:] = 1
    lock = ctypes.CDLL(None).mlock
    lock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    if lock(area.ctypes.data, 2**19) != 0:
        pytest.skip("this much cannot be locked")
    locked, free = (mapping_of(area.ctypes.data + half * 2**19, 2**19) for half in (0, 1))
    assert locked is not None
    assert locked.locked_share == 1.0
    assert free is not None
    assert free.locked_share == 0.0
    both = mapping_of(area.ctypes.data, 2**20)
    assert both is not None
    assert 0.0 < both.locked_share <= 0.5


def huge_bytes() -> int:
    """Of this process, from the kernel's own sum."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.split("AnonHugePages:")[1].split()[0]) * 1024


def test_huge_pages_are_seen_as_far_as_the_kernel_gave_them() -> None:
    before = huge_bytes()
    area = mapped_buffer(64 * 2**20, huge_pages=True)
    area[::4096] = 1
    given = huge_bytes() - before
    found = mapping_of(area.ctypes.data, area.nbytes)
    assert found is not None
    # Neighbouring mappings may be joined, so the share is that of a little more than the area.
    assert found.huge_share == pytest.approx(given / area.nbytes, abs=0.25)
    assert found.huge_share <= 1.0


def test_an_address_that_is_not_mapped_has_no_kind() -> None:
    assert mapping_of(0, 4096) is None


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that hides /proc."""

    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(f"{path}")

    monkeypatch.setattr(Path, "open", refused)


@pytest.mark.usefixtures("no_proc")
def test_where_proc_is_hidden_the_kind_of_memory_is_none_and_never_zero() -> None:
    assert mapping_of(0x1000, 4096) is None
    assert node_share(0x1000, 0) is None


def test_touched_memory_lies_on_the_only_node_there_is_and_not_on_another() -> None:
    nodes = list(Path("/sys/devices/system/node").glob("node[0-9]*"))
    area = mapped_buffer(4 * 2**20)
    area[:] = 1
    share = node_share(area.ctypes.data, 0)
    if share is None or len(nodes) != 1:
        pytest.skip("no numa_maps, or more than one node")
    assert share == 1.0
    assert node_share(area.ctypes.data, 7) == 0.0


def test_memory_that_was_not_touched_lies_on_no_node_yet() -> None:
    # Asked for in huge pages, so that the kernel joins it with no mapping that was touched.
    area = mapped_buffer(4 * 2**20, huge_pages=True)
    assert node_share(area.ctypes.data, 0) is None
