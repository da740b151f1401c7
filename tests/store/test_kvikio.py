import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvbench.errors import TierUnavailableError
from kvbench.machine.kvikio import probe_kvikio
from kvbench.measure.evidence import resident_share
from kvbench.store import kvikio_file
from kvbench.store.kvikio_file import KvikioFile, load_kvikio
from kvbench.store.posix import BlockFile, Bytes, ShortTransferError, mapped_buffer

BLOCK = 256 * 1024
BLOCKS = 4


FOUND = probe_kvikio()
real = pytest.mark.skipif(not FOUND.usable, reason=f"KvikIO: {FOUND.reason}")

# What the nvidia-fs driver shows in /proc, with its counters on and, its default, off.
COUNTING = """\
GDS Version: 1.10.0.4
NVFS statistics(ver: 4.0)
NVFS Driver(version: 2.20.5)
Mellanox PeerDirect Supported: True
IO stats: Enabled, peer IO stats: Enabled
Logging level: info

Active Shadow-Buffer (MiB): 0
Active Process: 0
Batches\t\t\t\t: n=9 ok=9 err=0 Avg-Submit-Latency(usec)=0
Reads\t\t\t\t: n={reads} ok={reads} err=3 readMiB=7 io_state_err=0
Reads\t\t\t\t: Bandwidth(MiB/s)=11 Avg-Latency(usec)=13
Sparse Reads\t\t        : n=17 io=17 holes=0 pages=0
Writes\t\t\t\t: n={writes} ok={writes} err=0 writeMiB=19 io_state_err=0 pg-cache=0
Writes\t\t\t\t: Bandwidth(MiB/s)=23 Avg-Latency(usec)=29
Mmap\t\t\t\t: n=31 ok=31 err=0 munmap=31
Bar1-map\t\t\t: n=37 ok=37 err=0 free=1 callbacks=0 active=0 delay-frees=0
Ops\t\t\t\t: Read=0 Write=0 BatchIO=0
"""
NOT_COUNTING = """\
GDS Version: 1.10.0.4
NVFS statistics(ver: 4.0)
IO stats: Disabled, peer IO stats: Disabled
Reads\t\t\t\t: err=0 io_state_err=0
Sparse Reads\t\t        : n=17 io=17 holes=0 pages=0
Writes\t\t\t\t: err=0 io_state_err=0 pg-cache=0 pg-cache-fail=0 pg-cache-eio=0
Mmap\t\t\t\t: n=31 ok=31 err=0 munmap=31
"""


@pytest.fixture
def content() -> Bytes:
    return np.random.default_rng(3).integers(0, 256, BLOCKS * BLOCK, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path, content: Bytes) -> Path:
    file = tmp_path / "blocks.dat"
    file.write_bytes(content.tobytes())
    return file


@pytest.fixture
def stats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts text where the nvidia-fs driver has its counters."""
    place = tmp_path / "nvidia-fs-stats"
    monkeypatch.setattr(kvikio_file, "NVIDIA_FS_STATS", place)
    return lambda text: void(place.write_text(text))


def void(_: object) -> None: ...


def opened(path: Path, *, write: bool = False, device: bool = False) -> KvikioFile:
    return KvikioFile(path, write=write, device=device, queue_depth=4, block_bytes=BLOCK)


def evict(path: Path) -> None:
    """Whatever made the file left it in the page cache."""
    with BlockFile(path, write=True) as file:
        file.sync()
        file.drop_cache()
    assert resident_share(path) == 0.0


# ---------------------------------------------------------------- reading and writing


@real
def test_a_block_is_read_from_its_own_offset(path: Path, content: Bytes) -> None:
    got = mapped_buffer(BLOCK)
    with opened(path) as file:
        for block in (2, 0, 3):
            assert file.read(got, block * BLOCK) == BLOCK
            assert (got == content[block * BLOCK :][:BLOCK]).all()


@real
def test_a_block_written_is_in_the_file_at_its_offset_and_nothing_else_changed(
    path: Path, content: Bytes
) -> None:
    block = mapped_buffer(BLOCK)
    block[:] = 7
    with opened(path, write=True) as file:
        assert file.write(block, BLOCK) == BLOCK
    content[BLOCK : 2 * BLOCK] = 7
    assert path.read_bytes() == content.tobytes()


@real
@pytest.mark.usefixtures("drive")
def test_reads_and_writes_of_host_memory_go_past_the_page_cache_and_say_so(path: Path) -> None:
    block = mapped_buffer(BLOCK)
    with opened(path, write=True) as file:
        evict(path)
        file.read(block, BLOCK)
        assert resident_share(path) == 0.0
        file.write(block, BLOCK)
        assert resident_share(path) == 0.0
        said, evidence = file.observed(2)
    assert said == "kvikio POSIX, host memory, O_DIRECT"
    assert evidence["direct_io"] is True
    assert evidence["device_memory"] is False
    assert evidence["operations"] == 2


@real
def test_a_file_that_kvikio_cannot_open_with_o_direct_is_not_said_to_be_read_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as file:
        monkeypatch.setattr(file, "_direct", False)  # newer kernels' tmpfs takes O_DIRECT too
        assert file.observed(1)[0] == "kvikio POSIX, host memory"


@real
def test_the_thread_pool_and_the_task_are_what_was_asked_for(path: Path) -> None:
    from kvikio import defaults  # noqa: PLC0415  only where it is

    with KvikioFile(path, queue_depth=3, block_bytes=BLOCK):
        assert defaults.get("num_threads") == 3
        assert defaults.get("task_size") == BLOCK
    with KvikioFile(path, queue_depth=5, block_bytes=2 * BLOCK):
        assert defaults.get("num_threads") == 5
        assert defaults.get("task_size") == 2 * BLOCK


@real
@pytest.mark.parametrize("verb", ["read", "write"])
def test_fewer_bytes_than_a_block_are_an_error_that_counts_them(
    path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    class Short:
        def get(self) -> int:
            return 4096

    class ShortFile:
        def pread(self, *_: object) -> Short:
            return Short()

        pwrite = pread

        def close(self) -> None: ...

    with opened(path, write=True) as file:
        file.close()
        monkeypatch.setattr(file, "_file", ShortFile())
        message = f"short {verb}: 4096 of {BLOCK} bytes at offset {BLOCK} of blocks.dat"
        with pytest.raises(ShortTransferError, match=message):
            getattr(file, verb)(mapped_buffer(BLOCK), BLOCK)


@real
@pytest.mark.parametrize("offset", [BLOCKS * BLOCK, BLOCKS * BLOCK - 4096])
def test_a_read_over_the_end_of_the_file_is_a_short_read(path: Path, offset: int) -> None:
    with opened(path) as file, pytest.raises(ShortTransferError, match=f"at offset {offset}"):
        file.read(mapped_buffer(BLOCK), offset)


@real
def test_a_file_opened_to_read_cannot_be_written(path: Path, content: Bytes) -> None:
    with opened(path) as file, pytest.raises(OSError, match=r"KvikIO: .*not permitted"):
        file.write(mapped_buffer(BLOCK), 0)
    assert path.read_bytes() == content.tobytes()


@real
def test_leaving_the_block_closes_the_file_also_after_an_error(path: Path) -> None:
    def opened_files() -> list[Path]:
        links = Path("/proc/self/fd").iterdir()
        return [link for link in links if link.exists() and link.samefile(path)]

    with opened(path):
        assert opened_files()
    file = opened(path)  # held, so that it is not the garbage collector that closes it
    with pytest.raises(ZeroDivisionError), file:
        raise ZeroDivisionError
    assert opened_files() == []


# ---------------------------------------------------------------- which path


@real
def test_where_cufile_cannot_be_had_device_memory_goes_through_a_bounce_buffer(
    path: Path, stats: Callable[[str], None]
) -> None:
    stats(COUNTING.format(reads=12, writes=20))
    with opened(path, device=True) as file:
        stats(COUNTING.format(reads=1012, writes=20))  # another program's operations
        said, evidence = file.observed(1)
        if not evidence["compat_mode"]:
            pytest.skip("cuFile can be had here")
    assert said == "kvikio POSIX, bounce buffer (compat mode)"
    assert evidence["device_memory"] is True


@real
@pytest.mark.parametrize(
    ("reads", "writes", "said"),
    [(22, 20, "GDS"), (12, 30, "GDS"), (21, 20, "GDS"), (20, 20, None), (12, 20, None)],
)
def test_it_is_called_gds_only_when_the_driver_counted_most_of_the_operations(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stats: Callable[[str], None],
    reads: int,
    writes: int,
    said: str | None,
) -> None:
    stats(COUNTING.format(reads=12, writes=20))
    with opened(path, device=True) as file:
        monkeypatch.setattr(file, "_compat", False)
        stats(COUNTING.format(reads=reads, writes=writes))
        found, evidence = file.observed(10)
        assert found == said
        assert evidence["nvidia_fs_operations"] == reads + writes - 32


@real
def test_a_driver_that_does_not_count_leaves_the_path_unknown_and_the_count_null(
    path: Path, monkeypatch: pytest.MonkeyPatch, stats: Callable[[str], None]
) -> None:
    stats(NOT_COUNTING)
    with opened(path, device=True) as file:
        monkeypatch.setattr(file, "_compat", False)
        said, evidence = file.observed(10)
    assert said is None
    assert evidence["nvidia_fs_operations"] is None


@real
def test_without_the_driver_there_is_no_count_and_no_error(
    path: Path, stats: Callable[[str], None]
) -> None:
    del stats  # nothing was put there
    with opened(path) as file:
        _, evidence = file.observed(1)
    assert evidence["nvidia_fs_operations"] is None
    assert evidence["kvikio"][:1].isdigit()


# ---------------------------------------------------------------- where it is not


def test_without_libcuda_the_refusal_names_it_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    with pytest.raises(TierUnavailableError, match=r"needs libcuda\.so\.1.*libcuda1"):
        KvikioFile(tmp_path / "any", queue_depth=1, block_bytes=BLOCK)


def test_without_kvikio_the_refusal_names_both_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", void)
    monkeypatch.setitem(sys.modules, "kvikio", None)
    with pytest.raises(TierUnavailableError, match=r"kvbench\[cu12\].*kvbench\[cu13\]"):
        load_kvikio()


def test_importing_the_module_does_not_import_kvikio() -> None:
    code = "import sys, kvbench.store.kvikio_file; sys.exit('kvikio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
