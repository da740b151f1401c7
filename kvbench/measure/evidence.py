"""Where bytes really were: the page cache, the block device's own counters, kinds of memory.

A read that the page cache served is not a read of the drive, whatever flags were used. Both
facts can be had without privilege on Linux; where one cannot, the answer is None, never a guess.
"""

import contextlib
import ctypes
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SECTOR_BYTES = 512  # /sys/block/*/stat counts in 512-byte sectors on every device
_READ_SECTORS, _WRITTEN_SECTORS = 2, 6  # columns, Documentation/block/stat.rst

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def resident_share(path: Path) -> float | None:
    """Share of a file's pages that are in the page cache (mincore); None if it cannot be seen."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        size_bytes = os.fstat(fd).st_size
        if size_bytes == 0:
            return None
        with mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ) as area:
            view = np.frombuffer(area, dtype=np.uint8)
            pages = np.zeros(-(-size_bytes // mmap.PAGESIZE), dtype=np.uint8)
            failed = _libc.mincore(view.ctypes.data, size_bytes, pages.ctypes.data)
            del view  # an exported buffer would keep the mapping open
            return None if failed else float((pages & 1).mean())
    finally:
        os.close(fd)


def device_bytes(stat_path: Path | None, direction: str) -> int | None:
    """Bytes that a block device has moved since boot; None without a counter.

    `direction` is "read", "write" or "both".
    """
    if stat_path is None:
        return None
    try:
        columns = stat_path.read_text(encoding="ascii").split()
    except OSError:
        return None
    device = stat_path.resolve().parent  # of a partition, the queue is its drive's
    for queue in (device / "queue", device.parent / "queue"):
        with contextlib.suppress(OSError):
            if (queue / "iostats").read_text(encoding="ascii").strip() == "0":
                return None  # counting is switched off: the numbers stand still
    wanted = {"read": [_READ_SECTORS], "write": [_WRITTEN_SECTORS]}.get(
        direction, [_READ_SECTORS, _WRITTEN_SECTORS]
    )
    if max(wanted) >= len(columns):
        return None
    return sum(int(columns[column]) for column in wanted) * SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class Mapping:
    """What the kernel says of the mappings that an area lies in, as shares of their size."""

    locked_share: float
    huge_share: float


def mapping_of(address: int, size_bytes: int) -> Mapping | None:
    """How much of [address, address + size) is locked and in transparent huge pages (smaps).

    The kernel joins neighbouring mappings of one kind, so the shares are those of all mappings
    that the area touches. None where /proc does not show it.
    """
    total = locked = huge = 0
    inside = False
    try:
        with Path("/proc/self/smaps").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                head, _, rest = line.partition(" ")
                if not head.endswith(":"):
                    first, _, last = head.partition("-")
                    inside = int(first, 16) < address + size_bytes and int(last, 16) > address
                elif inside and head in {"Size:", "Locked:", "AnonHugePages:"}:
                    kib = int(rest.split()[0])
                    total += kib if head == "Size:" else 0
                    locked += kib if head == "Locked:" else 0
                    huge += kib if head == "AnonHugePages:" else 0
    except OSError:
        return None
    return Mapping(locked / total, huge / total) if total else None


def node_share(address: int, node: int) -> float | None:
    """Share of the pages of the mapping at `address` that lie on a NUMA node (numa_maps)."""
    nearest = ""
    try:
        with Path("/proc/self/numa_maps").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if int(line.split(" ", 1)[0], 16) > address:
                    break
                nearest = line
    except OSError:
        return None
    pages = {
        int(word[1:].split("=")[0]): int(word.split("=")[1])
        for word in nearest.split()
        if word[0] == "N" and "=" in word
    }
    total = sum(pages.values())
    return pages.get(node, 0) / total if total else None
