import contextlib
import errno
import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvbench.errors import TierUnavailableError
from kvbench.machine import Machine
from kvbench.measure.evidence import resident_share
from kvbench.store.posix import (
    HUGE_PAGE_BYTES,
    BlockFile,
    Bytes,
    ShortTransferError,
    mapped_buffer,
    preallocate,
)

BLOCK = 64 * 1024
BLOCKS = 4

# Without a right to lock memory: no limit left, no capability, no root.
LOCK_WITHOUT_A_RIGHT = """
import os, resource
from kvbench.errors import TierUnavailableError
from kvbench.store.posix import mapped_buffer
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)  # the capability goes with the user
mapped_buffer(1 << 16)  # without locking it is there
try:
    mapped_buffer(1 << 16, lock=True)
except TierUnavailableError as error:
    print(error)
"""


@pytest.fixture
def content() -> Bytes:
    return np.random.default_rng(3).integers(0, 256, BLOCKS * BLOCK, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path, content: Bytes) -> Path:
    file = tmp_path / "blocks.dat"
    file.write_bytes(content.tobytes())
    return file


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def refuse_direct(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A filesystem that refuses O_DIRECT with this errno; EINVAL is how it says it has none."""
    real = os.open

    def without(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", without)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("direct", [True, False])
def test_blocks_written_are_read_back_from_their_own_offsets(path: Path, direct: bool) -> None:
    one, two, got = (mapped_buffer(BLOCK) for _ in range(3))
    one[:], two[:] = 1, 2
    with BlockFile(path, write=True, direct=direct) as file:
        assert file.write(one, 2 * BLOCK) == BLOCK
        assert file.write(two, 0) == BLOCK
        file.sync()
    with BlockFile(path, direct=direct) as file:
        assert file.read(got, 2 * BLOCK) == BLOCK
        assert (got == 1).all()
        assert file.read(got, 0) == BLOCK
        assert (got == 2).all()


@pytest.mark.usefixtures("drive")
def test_a_direct_file_says_so_and_leaves_the_page_cache_alone(path: Path, content: Bytes) -> None:
    got = mapped_buffer(BLOCK)
    with BlockFile(path, write=True) as file:
        assert file.direct
        file.sync()
        file.drop_cache()
        assert resident_share(path) == 0.0
        for block in range(BLOCKS):
            file.read(got, block * BLOCK)
            assert (got == content[block * BLOCK :][:BLOCK]).all()
    assert resident_share(path) == 0.0


@pytest.mark.usefixtures("drive")
def test_a_buffered_file_says_so_and_fills_the_page_cache(path: Path) -> None:
    with BlockFile(path, write=True, direct=False) as file:
        assert not file.direct
        file.sync()
        file.drop_cache()
        assert resident_share(path) == 0.0
        file.read(mapped_buffer(BLOCK), BLOCK)
        assert (resident_share(path) or 0) > 0
        file.drop_cache()
        assert resident_share(path) == 0.0


@pytest.mark.usefixtures("drive")
def test_only_the_range_that_is_named_is_dropped_from_the_cache(path: Path) -> None:
    with BlockFile(path, write=True, direct=False) as file:
        file.sync()
        file.drop_cache()
        file.expect_random()  # else read-ahead would bring in more than was asked for
        for block in range(BLOCKS):
            file.read(mapped_buffer(BLOCK), block * BLOCK)
        assert resident_share(path) == 1.0
        file.drop_cache(BLOCK, BLOCK)
    assert resident_share(path) == 1 - 1 / BLOCKS


@pytest.mark.usefixtures("drive")
def test_without_read_ahead_one_block_brings_only_itself_into_the_cache(path: Path) -> None:
    with BlockFile(path, write=True, direct=False) as file:
        file.sync()
        file.drop_cache()
        file.expect_random()
        file.read(mapped_buffer(BLOCK), 0)
    assert resident_share(path) == 1 / BLOCKS


def test_a_filesystem_without_o_direct_is_read_through_the_cache_and_it_shows(
    path: Path, content: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_direct(monkeypatch, errno.EINVAL)
    got = mapped_buffer(BLOCK)
    with BlockFile(path) as file:
        assert not file.direct
        file.read(got, BLOCK)
    assert (got == content[BLOCK : 2 * BLOCK]).all()


def test_only_that_refusal_is_answered_by_reading_through_the_cache(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        BlockFile(tmp_path / "missing")
    refuse_direct(monkeypatch, errno.EACCES)
    with pytest.raises(PermissionError):
        BlockFile(path)


@pytest.mark.usefixtures("drive")
@pytest.mark.parametrize("what", ["offset", "length", "address"])
def test_a_direct_transfer_that_is_not_aligned_is_an_error_and_moves_nothing(
    path: Path, machine: Machine, what: str
) -> None:
    storage = machine.storage
    assert storage is not None
    if storage.filesystem not in {"ext4", "xfs"}:
        pytest.skip(f"{storage.filesystem} may serve it from the page cache instead")
    offset = 1 if what == "offset" else 0
    block = mapped_buffer(2 * BLOCK)[1 if what == "address" else 0 :][: BLOCK - (what == "length")]
    if what == "address" and (storage.direct_io_memory_alignment_bytes or 0) <= 1:
        pytest.skip("this device takes a buffer at any address")
    with BlockFile(path) as file, pytest.raises(OSError, match="Invalid argument"):
        file.read(block, offset)
    assert not block.any()


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    ("file_bytes", "offset", "done"),
    [
        (BLOCKS * BLOCK, BLOCKS * BLOCK, 0),
        (BLOCKS * BLOCK, 10 * BLOCKS * BLOCK, 0),
        (BLOCKS * BLOCK - 4096, (BLOCKS - 1) * BLOCK, BLOCK - 4096),
        (BLOCKS * BLOCK - 1000, (BLOCKS - 1) * BLOCK, BLOCK - 1000),
    ],
    ids=["at the end", "beyond the end", "one page over the end", "ends inside a sector"],
)
def test_a_read_over_the_end_of_the_file_is_an_error_that_counts_the_bytes(
    path: Path, direct: bool, file_bytes: int, offset: int, done: int
) -> None:
    os.truncate(path, file_bytes)
    with BlockFile(path, direct=direct) as file:
        assert file.read(mapped_buffer(BLOCK), 0) == BLOCK
        message = f"short read: {done} of {BLOCK} bytes at offset {offset} of blocks.dat"
        with pytest.raises(ShortTransferError, match=message):
            file.read(mapped_buffer(BLOCK), offset)


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """A limit on the size of files: the kernel writes up to it, and says how much."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_did_not_all_go_is_an_error_that_counts_the_bytes(path: Path) -> None:
    end = BLOCKS * BLOCK
    with BlockFile(path, write=True, direct=False) as file, files_of_at_most(end + BLOCK // 2):
        message = f"short write: {BLOCK // 2} of {BLOCK} bytes at offset {end} of blocks.dat"
        with pytest.raises(ShortTransferError, match=message):
            file.write(mapped_buffer(BLOCK), end)


def test_a_file_opened_to_read_cannot_be_written(path: Path, content: Bytes) -> None:
    with BlockFile(path) as file, pytest.raises(OSError, match="Bad file descriptor"):
        file.write(mapped_buffer(BLOCK), 0)
    assert path.read_bytes() == content.tobytes()


def test_leaving_the_block_closes_the_file_also_after_an_error(path: Path) -> None:
    before = open_files()
    with pytest.raises(ShortTransferError), BlockFile(path) as file:
        file.read(mapped_buffer(BLOCK), BLOCKS * BLOCK)
    assert open_files() == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.read(mapped_buffer(BLOCK), 0)


# ---------------------------------------------------------------- making files


def test_a_preallocated_file_has_its_size_and_its_space_and_reads_as_zeros(tmp_path: Path) -> None:
    file = tmp_path / "new.dat"
    preallocate(file, 1 << 20)
    found = file.stat()
    assert found.st_size == 1 << 20
    assert found.st_blocks * 512 >= 1 << 20, "reserved, not a hole"
    assert found.st_mode & 0o777 == 0o600, "nobody else's to read"
    assert not any(file.read_bytes())


def test_preallocating_grows_a_file_and_never_shrinks_it_or_changes_its_bytes(
    path: Path, content: Bytes
) -> None:
    preallocate(path, BLOCK)
    assert path.read_bytes() == content.tobytes()
    preallocate(path, (BLOCKS + 1) * BLOCK)
    assert path.read_bytes() == content.tobytes() + bytes(BLOCK)


def test_a_file_that_cannot_be_preallocated_is_refused_and_closed(tmp_path: Path) -> None:
    # Never more than the filesystem has: the kernel would reserve all of it before it refuses.
    before = open_files()
    with files_of_at_most(BLOCK), pytest.raises(OSError, match="File too large"):
        preallocate(tmp_path / "large.dat", 2 * BLOCK)
    with pytest.raises(FileNotFoundError):
        preallocate(tmp_path / "missing" / "x.dat", BLOCK)
    assert open_files() == before


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("size_bytes", [1, 4096, 4097, 3 * 2**20])
@pytest.mark.parametrize("huge_pages", [False, True])
def test_a_buffer_is_zeroed_page_aligned_and_of_the_size_asked_for(
    size_bytes: int, huge_pages: bool
) -> None:
    buffer = mapped_buffer(size_bytes, huge_pages=huge_pages)
    assert buffer.dtype == np.uint8
    assert buffer.shape == (size_bytes,)
    assert buffer.ctypes.data % mmap.PAGESIZE == 0
    assert buffer.flags.writeable
    assert not buffer.any()
    buffer[-1] = 7
    assert buffer[-1] == 7


def test_two_buffers_never_share_memory() -> None:
    one, two = mapped_buffer(4096), mapped_buffer(4096)
    one[:] = 9
    assert not two.any()
    for buffer in (one, two):  # nor with a child process
        assert "sh" not in mapping_fact(buffer.ctypes.data, "VmFlags").split()


def test_a_part_of_a_buffer_keeps_the_whole_alive() -> None:
    part = mapped_buffer(1 << 20)[1 << 19 :]
    part[:] = 5
    assert (part == 5).all()


def mapping_fact(address: int, name: str) -> str:
    """What /proc/self/smaps says about the mapping that starts at or holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            first, last = (int(part, 16) for part in head.split("-"))
            inside = first <= address < last
        elif inside and head == f"{name}:":
            return line.removeprefix(f"{name}:").strip()
    raise AssertionError(f"no {name} at {address:#x}")


def test_a_buffer_that_is_not_locked_is_not_in_memory_before_it_is_touched() -> None:
    buffer = mapped_buffer(8 * 2**20)
    assert mapping_fact(buffer.ctypes.data, "Locked") == "0 kB"
    assert "lo" not in mapping_fact(buffer.ctypes.data, "VmFlags").split()


def test_a_locked_buffer_is_locked_by_the_kernels_own_account() -> None:
    try:
        buffer = mapped_buffer(1 << 20, lock=True)
    except TierUnavailableError as error:
        pytest.skip(str(error))
    assert "lo" in mapping_fact(buffer.ctypes.data, "VmFlags").split()
    assert mapping_fact(buffer.ctypes.data, "Rss") != "0 kB", "locked memory is there at once"


def test_huge_pages_are_asked_for_where_they_are_wanted_and_only_there() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        pytest.skip("a kernel without transparent huge pages")
    wanted = mapped_buffer(4 * 2**20, huge_pages=True)
    assert "hg" in mapping_fact(wanted.ctypes.data, "VmFlags").split()
    plain = mapped_buffer(4 * 2**20)
    assert "hg" not in mapping_fact(plain.ctypes.data, "VmFlags").split()


def test_memory_that_may_not_be_locked_is_a_refusal_that_names_the_remedy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOCK_WITHOUT_A_RIGHT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.startswith("cannot lock 65536 bytes: ")
    assert "ulimit -l unlimited" in done.stdout
    assert "LimitMEMLOCK=infinity" in done.stdout


@pytest.mark.parametrize("size_bytes", [0, -1, 2**62, 2**80])
def test_memory_that_cannot_be_had_is_a_refusal_that_says_how_much(size_bytes: int) -> None:
    with pytest.raises(TierUnavailableError, match=f"cannot map {size_bytes} bytes of memory"):
        mapped_buffer(size_bytes)


def test_a_small_buffer_in_huge_pages_lies_in_one() -> None:
    buffer = mapped_buffer(64 * 1024, huge_pages=True)
    assert buffer.nbytes == 64 * 1024
    assert buffer.ctypes.data % HUGE_PAGE_BYTES == 0
    buffer[:] = 1
    assert mapped_buffer(4096, huge_pages=True).nbytes == 4096
