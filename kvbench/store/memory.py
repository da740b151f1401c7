"""One area of host memory for all slots of a tier: a memfd, so that other processes can map it.

In huge pages where the machine gives any, on one NUMA node if asked, pinned by CUDA where there is
a GPU and locked otherwise. What it turned out to be is said, never assumed: a machine that refuses
one of these still gives a slab, unless the caller demands locked memory.
Knows nothing of slots and blocks.

May import: kvbench.errors, kvbench.store.posix. numpy; torch only where there is a GPU.
"""

import contextlib
import ctypes
import fcntl
import functools
import importlib
import mmap
import os
import platform
import resource
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvbench.errors import TierUnavailableError
from kvbench.store.posix import Bytes, lock_pages

PAGE_BYTES = mmap.PAGESIZE
HUGE_BYTES = 2**21  # a transparent huge page of x86-64, and of arm64 with 4 KiB pages
MADV_POPULATE_WRITE, MADV_COLLAPSE = 23, 25  # linux/mman.h; Linux 5.14 and 6.1
MPOL_BIND = 2  # linux/mempolicy.h
MBIND = {"x86_64": 237, "aarch64": 235}  # syscall numbers
MOST_NODES = 1024  # bits in the mask; the kernel's own upper bound (CONFIG_NODES_SHIFT = 10)
CUDA_HOST_REGISTER_PORTABLE = 1  # pinned for every CUDA context, not only the current one
_SYSTEM = Path("/sys")

_libc = ctypes.CDLL(None, use_errno=True)


class Slab:
    """So many bytes of memory, zeros at first and all of them there: uint8 [size_bytes].

    The bytes begin at `offset_bytes` of the file `fd`, which other processes may map shared; it
    can neither shrink nor grow (sealed). `memory` says what kind it is, and `huge_share` how much
    of it lies in huge pages. `pin=None` pins by CUDA if this machine has a GPU.

    Raises:
        TierUnavailableError: there is not so much memory, no such node, or, with
            `require_locked`, it cannot be kept from being paged out.
    """

    def __init__(
        self,
        size_bytes: int,
        *,
        node: int | None = None,
        require_locked: bool = False,
        pin: bool | None = None,
    ) -> None:
        _check_room(size_bytes, node)
        self.size_bytes = size_bytes
        self.node = node
        self._unpin: Callable[[], None] | None = None
        in_pool = _in_pool(size_bytes, node)
        self.fd, self.offset_bytes, self.buffer = in_pool or _in_pages(size_bytes, node)
        # A tier that nobody closes must not hold its memory for as long as the process lives.
        self._end_file = weakref.finalize(self, os.close, self.fd)
        self._end_file.atexit = False
        try:
            self._settle(in_pool=bool(in_pool), require_locked=require_locked, pin=pin)
        except TierUnavailableError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file and let go of the memory; it stays until its last view is gone."""
        if self._unpin is not None:
            self._unpin()
            self._unpin = None
        self.buffer = np.empty(0, dtype=np.uint8)
        if self.fd >= 0:
            self._end_file()
            self.fd = -1

    def _settle(self, *, in_pool: bool, require_locked: bool, pin: bool | None) -> None:
        self._unpin = None if pin is False else pin_by_cuda(self.buffer)
        if pin and self._unpin is None:
            raise TierUnavailableError(
                f"CUDA did not pin {self.size_bytes} bytes: is there a GPU? (pin=None pins "
                "where it can)"
            )
        kind = "pinned by CUDA"
        if self._unpin is None and not in_pool:
            try:
                lock_pages(self.buffer)
                kind = "locked (mlock)"
            except TierUnavailableError:
                if require_locked:
                    raise
                limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
                kind = f"pageable (locked-memory limit {limit} bytes)"
        elif self._unpin is None:
            kind = "never paged out"  # hugetlb pages are not; mlock would add nothing
        self.huge_share = 1.0 if in_pool else _huge_share(self.buffer)
        if in_pool:
            kind += ", huge pages of the pool"
        elif self.huge_share and not kind.startswith("pageable"):
            kind += ", transparent huge pages"
        self.memory = kind


def pin_by_cuda(buffer: Bytes) -> Callable[[], None] | None:
    """Pin memory for every GPU (cudaHostRegister); how to undo it, or None if it is not done.

    Imports torch, but only where the driver finds a GPU.
    """
    if not has_gpu():
        return None
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return None
    runtime, address = torch.cuda.cudart(), buffer.ctypes.data
    if int(runtime.cudaHostRegister(address, buffer.nbytes, CUDA_HOST_REGISTER_PORTABLE)) != 0:
        with contextlib.suppress(RuntimeError):  # CUDA reports it again at the next launch: here
            torch.zeros(1, device="cuda")
        return None
    return lambda: runtime.cudaHostUnregister(address)


@functools.cache
def has_gpu() -> bool:
    """Whether CUDA's driver is here and starts: it does not without a GPU. Cheaper than torch."""
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except OSError:
        return False


def bind_to_node(address: int, size_bytes: int, node: int) -> None:
    """Memory of this mapping that is not there yet will come from one NUMA node (mbind).

    For shared memory that holds for whoever touches it first, in any process.

    Raises:
        TierUnavailableError: there is no such node, or the kernel or architecture has no mbind.
    """
    number = MBIND.get(platform.machine())
    if number is None or not 0 <= node < MOST_NODES:
        raise TierUnavailableError(
            f"memory cannot be bound to NUMA node {node} on {platform.machine()}"
        )
    mask = (ctypes.c_ulong * (MOST_NODES // 64))()
    mask[node // 64] |= 1 << (node % 64)
    if (
        _libc.syscall(
            ctypes.c_long(number),
            ctypes.c_void_p(address),
            ctypes.c_size_t(size_bytes),
            ctypes.c_int(MPOL_BIND),
            mask,
            ctypes.c_ulong(MOST_NODES + 1),
            ctypes.c_uint(0),
        )
        != 0
    ):
        online = _text(_SYSTEM / "devices/system/node/online").strip() or "not known"
        raise TierUnavailableError(
            f"memory cannot be bound to NUMA node {node}: {os.strerror(ctypes.get_errno())}; "
            f"nodes online: {online}"
        )


def _in_pool(size_bytes: int, node: int | None) -> tuple[int, int, Bytes] | None:
    """The slab in pages of the hugetlb pool, or None if it has not enough of them."""
    page_bytes = _kib(Path("/proc/meminfo"), "Hugepagesize") or HUGE_BYTES
    wanted = -(-size_bytes // page_bytes)
    where = _SYSTEM / ("kernel/mm" if node is None else f"devices/system/node/node{node}")
    pool = where / f"hugepages/hugepages-{page_bytes // 1024}kB/free_hugepages"
    if int(_text(pool) or 0) < wanted:
        return None
    try:
        fd = _file(wanted * page_bytes, os.MFD_HUGETLB)
    except OSError:
        return None
    try:
        area = _map(fd, wanted * page_bytes, 0, node)
        # Not by touching it: a page that is not there after all would be a SIGBUS.
        area.madvise(MADV_POPULATE_WRITE)
    except OSError:
        os.close(fd)
        return None
    except TierUnavailableError:
        os.close(fd)
        raise
    return fd, 0, np.frombuffer(area, dtype=np.uint8)[:size_bytes]


def _in_pages(size_bytes: int, node: int | None) -> tuple[int, int, Bytes]:
    """The slab in ordinary pages, which become huge ones where the kernel will do that."""
    # A huge page needs an address and an offset that agree modulo its size. The address is the
    # kernel's choice, and the same again for an equal mapping: so it is asked first.
    try:
        fd = _file(size_bytes + HUGE_BYTES)
    except OSError as error:
        raise _no_memory(size_bytes, error) from None
    try:
        area = _map(fd, size_bytes, 0, None)
        offset = np.frombuffer(area, dtype=np.uint8).ctypes.data % HUGE_BYTES
        del area
        area = _map(fd, size_bytes, offset, node)
        _collapse(area, (-offset) % HUGE_BYTES)
        with contextlib.suppress(OSError):  # an older kernel: mlock or the first use does it
            area.madvise(MADV_POPULATE_WRITE)
    except OSError as error:
        os.close(fd)
        raise _no_memory(size_bytes, error) from None
    except TierUnavailableError:
        os.close(fd)
        raise
    return fd, offset, np.frombuffer(area, dtype=np.uint8)


def _collapse(area: mmap.mmap, first: int) -> None:
    """Turn a mapping into huge pages, as far as it goes, from the first that is aligned.

    Asked for by MADV_COLLAPSE, which works on a memfd where shmem_enabled says "never", as most
    systems do. It needs one byte of each page to be there, and is faster than touching them all.
    """
    length = (len(area) - first) // HUGE_BYTES * HUGE_BYTES
    if length <= 0:
        return
    np.frombuffer(area, dtype=np.uint8)[first : first + length : HUGE_BYTES] = 0
    with contextlib.suppress(OSError):  # 4 KiB pages serve, only slower
        area.madvise(MADV_COLLAPSE, first, length)


def _file(size_bytes: int, flags: int = 0) -> int:
    fd = os.memfd_create("kvbench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
    except OSError:
        os.close(fd)
        raise
    return fd


def _map(fd: int, size_bytes: int, offset_bytes: int, node: int | None) -> mmap.mmap:
    area = mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, offset=offset_bytes)
    if node is not None:  # before anything is touched
        bind_to_node(np.frombuffer(area, dtype=np.uint8).ctypes.data, size_bytes, node)
    return area


def _check_room(size_bytes: int, node: int | None) -> None:
    """Refuse what the machine has not: taking it would call the kernel's OOM killer."""
    meminfo = Path("/proc/meminfo")
    room = _kib(meminfo, "MemAvailable")
    pool = _kib(meminfo, "Hugetlb") or 0  # not counted as available
    limit = _text(_SYSTEM / "fs/cgroup/memory.max").strip()
    rooms = [] if room is None else [room + pool]
    rooms += [int(limit)] if limit.isdigit() else []
    if node is not None:
        total = _kib(_SYSTEM / f"devices/system/node/node{node}/meminfo", "MemTotal")
        rooms += [] if total is None else [total]
    if rooms and size_bytes > min(rooms):
        raise TierUnavailableError(
            f"a slab of {size_bytes} bytes does not fit into the {min(rooms)} bytes of memory "
            "that are available; use fewer slots"
        )


def _no_memory(size_bytes: int, error: OSError) -> TierUnavailableError:
    return TierUnavailableError(
        f"cannot map a slab of {size_bytes} bytes: {error}; use fewer slots"
    )


def _huge_share(buffer: Bytes) -> float:
    """Share of a mapping that lies in transparent huge pages, as /proc/self/smaps says."""
    if buffer.nbytes < HUGE_BYTES:
        return 0.0
    first = f"{buffer.ctypes.data:x}-"
    inside = False
    for line in _text(Path("/proc/self/smaps")).splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            inside = line.startswith(first)
        elif inside and name == "ShmemPmdMapped:":
            return min(1.0, int(rest.split()[0]) * 1024 / buffer.nbytes)
    return 0.0


def _kib(path: Path, name: str) -> int | None:
    """The bytes that a line such as `MemTotal: 24684092 kB` gives."""
    for line in _text(path).splitlines():
        head, colon, rest = line.partition(":")
        if colon and head.split()[-1] == name:  # of a node: "Node 0 MemTotal"
            return int(rest.split()[0]) * 1024
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
