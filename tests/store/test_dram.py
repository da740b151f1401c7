"""The slab of the DRAM tier: what memory it is, who can map it, what it refuses."""

import fcntl
import gc
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvbench.errors import TierUnavailableError, UsageError
from kvbench.store import memory
from kvbench.store.block import Bytes, Layout, Stamp, checksums
from kvbench.store.dram import DramTier
from kvbench.store.memory import HUGE_BYTES, PAGE_BYTES, Slab, has_gpu

LAYOUT = Layout(5000, parts=5)
MIB = 2**20

# Without a right to lock memory: no limit left, no capability, no root.
WITHOUT_A_RIGHT = """
import os, resource
from kvbench.errors import TierUnavailableError
from kvbench.store.block import Layout
from kvbench.store.dram import DramTier
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8192, 8192))
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)  # the capability goes with the user
tier = DramTier(Layout(4096), 16)
print(tier.facts()["memory"])
tier.close()
try:
    DramTier(Layout(4096), 16, require_locked=True)
except TierUnavailableError as error:
    print(error)
print(len(os.listdir("/proc/self/fd")))
"""


def block(seed: int) -> tuple[Stamp, Bytes]:
    payload = np.random.default_rng(seed).integers(0, 256, LAYOUT.block_bytes, dtype=np.uint8)
    return Stamp(bytes([seed]) * 32, None, 0, "", checksums(payload, LAYOUT)), payload


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def others() -> None:
    """Slabs of other tests of this process that are not gone yet are not looked at."""
    gc.collect()
    OTHERS.clear()
    OTHERS.update(
        line.split("-")[0]
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        if "memfd:kvbench" in line
    )


OTHERS: set[str] = set()  # where they are mapped


def of_a_slab(line: str) -> bool:
    """Whether it is the kernel's line of a mapping of a slab that this test has made."""
    return "memfd:kvbench" in line and re.split("[- ]", line)[0] not in OTHERS


def maps() -> str:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if of_a_slab(line))


# ---------------------------------------------------------------- slots


def test_another_mapping_of_the_file_sees_the_payload_at_the_offset_of_its_slot() -> None:
    tier = DramTier(LAYOUT, 3)
    stamp, payload = block(1)
    tier.write([2], [stamp], [payload])
    size = os.fstat(tier.fd).st_size
    with mmap.mmap(tier.fd, size, flags=mmap.MAP_SHARED) as area:
        offset = tier.slot_offset_bytes(2)
        assert area[offset : offset + LAYOUT.block_bytes] == payload.tobytes()
        area[tier.slot_offset_bytes(1)] = 77  # and what it writes is in the slot
    view = tier.view(1)
    assert view[0] == 77
    tier.close()


def test_slots_begin_at_pages_so_that_direct_io_takes_them() -> None:
    tier = DramTier(LAYOUT, 3)
    for slot in range(3):
        assert tier.view(slot).ctypes.data % PAGE_BYTES == 0
        assert tier.slot_offset_bytes(slot) % PAGE_BYTES == 0
    assert tier.slot_bytes == 2 * PAGE_BYTES
    tier.close()


def test_the_file_can_neither_shrink_nor_grow_under_those_who_map_it() -> None:
    tier = DramTier(LAYOUT, 2)
    size = os.fstat(tier.fd).st_size
    for other in (0, size - PAGE_BYTES, size + PAGE_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(tier.fd, other)
    with pytest.raises(PermissionError):
        fcntl.fcntl(tier.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    tier.close()


def test_a_view_outlives_the_tier_and_the_memory_goes_with_it() -> None:
    tier = DramTier(LAYOUT, 2)
    stamp, payload = block(1)
    tier.write([0], [stamp], [payload])
    view = tier.view(0)
    tier.close()
    del tier
    gc.collect()
    assert np.array_equal(view, payload)
    assert "memfd:kvbench" in maps()
    del view
    gc.collect()
    assert "memfd:kvbench" not in maps()


def test_quarantined_slots_are_counted_and_hold_nothing() -> None:
    tier = DramTier(LAYOUT, 3)
    stamp, payload = block(1)
    tier.write([0, 1], [stamp, stamp], [payload, payload])
    tier.quarantine([1], "a test says so")
    tier.quarantine([1], "again")
    assert tier.facts()["quarantined"] == 1
    found = tier.read([0, 1], [np.empty_like(payload), np.empty_like(payload)])
    assert found[0] == stamp
    assert isinstance(found[1], Exception)
    tier.close()


def test_a_tier_without_slots_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        DramTier(LAYOUT, 0)


# ---------------------------------------------------------------- the memory


def refuse(buffer: Bytes) -> None:
    raise TierUnavailableError(f"cannot lock {buffer.nbytes} bytes")


@pytest.mark.parametrize("locked", [True, False])
def test_memory_is_there_and_all_zeros_before_its_first_use(
    locked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locked:
        monkeypatch.setattr(memory, "lock_pages", refuse)
    size = 3 * HUGE_BYTES + 5 * PAGE_BYTES  # huge pages do not cover it
    slab = Slab(size)
    mine = [line for line in smaps().splitlines() if line.startswith("Rss:")]
    assert mine == [f"Rss: {size // 1024} kB"]
    assert slab.buffer.nbytes == size
    assert not slab.buffer.any()
    slab.close()


def smaps() -> str:
    """What the kernel says of the mappings of slabs, blanks made one."""
    kept, inside = [], False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if not line.partition(" ")[0].endswith(":"):
            inside = of_a_slab(line)
        if inside:
            kept.append(" ".join(line.split()))
    return "\n".join(kept)


def test_the_share_of_huge_pages_is_what_the_kernel_says() -> None:
    slab = Slab(4 * HUGE_BYTES)
    huge = [line for line in smaps().splitlines() if line.startswith("ShmemPmdMapped:")]
    assert len(huge) == 1
    assert slab.huge_share == int(huge[0].split()[1]) * 1024 / slab.size_bytes
    assert ("transparent huge pages" in slab.memory) == (slab.huge_share > 0)
    slab.close()


def test_without_huge_pages_the_slab_is_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MADV_COLLAPSE", -1)  # a kernel that does not know it
    slab = Slab(4 * HUGE_BYTES)
    assert slab.huge_share == 0
    assert "huge" not in slab.memory
    slab.buffer[:] = 1
    slab.close()


def test_memory_that_may_not_be_locked_is_used_and_named_or_refused_if_asked() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_RIGHT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    used, refused, descriptors = done.stdout.splitlines()
    assert used == "pageable (locked-memory limit 8192 bytes)"
    assert refused.startswith("cannot lock 65536 bytes")
    assert descriptors == "4"  # the refused slab is closed; the standard three and the listing


def test_locked_memory_is_locked_as_the_kernel_says() -> None:
    slab = Slab(HUGE_BYTES)
    if slab.memory.startswith("pageable"):
        pytest.skip("this process may not lock memory")
    assert f"Locked: {HUGE_BYTES // 1024} kB" in smaps().splitlines()
    slab.close()


def test_a_slab_is_bound_to_the_node_that_was_asked_for() -> None:
    tier = DramTier(Layout(MIB), 4, node=0)
    assert tier.facts()["node"] == 0
    numa = Path("/proc/self/numa_maps").read_text(encoding="utf-8")
    lines = [line for line in numa.splitlines() if of_a_slab(line)]
    assert len(lines) == 1
    assert lines[0].split()[1] == "bind:0"
    tier.close()


@pytest.mark.parametrize("node", [1023, 5000, -1])
def test_a_node_that_is_not_there_is_refused_and_nothing_is_left_open(node: int) -> None:
    before = open_files()
    with pytest.raises(TierUnavailableError, match=f"NUMA node {node}"):
        DramTier(LAYOUT, 4, node=node)
    gc.collect()
    assert open_files() == before
    assert "memfd:kvbench" not in maps()


def test_more_than_the_machine_has_is_refused_before_it_is_taken() -> None:
    with pytest.raises(TierUnavailableError, match="use fewer slots"):
        DramTier(Layout(2**30), 10**6)


def test_what_the_control_group_allows_is_a_limit_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    limit = tmp_path / "fs/cgroup/memory.max"
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path)
    limit.write_text("max\n", encoding="ascii")
    Slab(4 * MIB).close()
    limit.write_text(f"{4 * MIB - 1}\n", encoding="ascii")
    with pytest.raises(TierUnavailableError, match=f"{4 * MIB - 1} bytes of memory"):
        Slab(4 * MIB)


def test_a_pool_that_promises_huge_pages_and_has_none_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = tmp_path / "kernel/mm/hugepages/hugepages-2048kB"
    pool.mkdir(parents=True)
    (pool / "free_hugepages").write_text("100000\n", encoding="ascii")
    real = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if not real.exists() or int(real.read_text(encoding="ascii")) >= 100:
        pytest.skip("this machine has a pool of huge pages, or no 2 MiB pages")
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path)
    before = open_files()
    slab = Slab(100 * HUGE_BYTES)
    assert "pool" not in slab.memory
    slab.close()
    assert open_files() == before


def test_pinning_is_refused_where_there_is_no_gpu_and_left_out_unless_demanded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "has_gpu", lambda: False)
    with pytest.raises(TierUnavailableError, match="CUDA did not pin"):
        DramTier(LAYOUT, 2, pin=True)
    tier = DramTier(LAYOUT, 2)
    assert "CUDA" not in str(tier.facts()["memory"])
    tier.close()


def test_a_tier_in_memory_does_not_load_torch_on_a_machine_without_a_gpu() -> None:
    if has_gpu():
        pytest.skip("this machine has a GPU")
    code = (
        "import sys; from kvbench.store.block import Layout; from kvbench.store.dram import "
        "DramTier; DramTier(Layout(4096), 2); import kvbench.store.hbm, kvbench.store.codec, "
        "kvbench.store.device, kvbench.store.faults; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="this machine has no GPU")
def test_on_a_gpu_the_slab_is_pinned_for_it() -> None:
    torch = pytest.importorskip("torch")
    tier = DramTier(LAYOUT, 2, pin=True)
    assert str(tier.facts()["memory"]).startswith("pinned by CUDA")
    assert torch.from_numpy(tier.view(1)).is_pinned()
    tier.close()


def test_a_slab_that_nobody_closed_gives_its_file_back() -> None:
    file = Path(f"/proc/self/fd/{Slab(MIB).fd}")  # and nobody has it any more
    gc.collect()
    assert not file.exists() or "memfd:kvbench" not in str(file.readlink())
