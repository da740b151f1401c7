"""Where bytes really came from: page-cache residency and the block device's own counters.

A read that the page cache served is not a read of the drive, whatever flags were used. Both
facts can be had without privilege on Linux; where one cannot, the answer is None, never a guess.
"""

import ctypes
import mmap
import os
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
    """Bytes that a block device has read or written since boot; None without a counter."""
    if stat_path is None:
        return None
    try:
        columns = stat_path.read_text(encoding="ascii").split()
    except OSError:
        return None
    column = _READ_SECTORS if direction == "read" else _WRITTEN_SECTORS
    return int(columns[column]) * SECTOR_BYTES
