"""Files of equal blocks, read and written with O_DIRECT where the filesystem has it.

Every transfer is whole or an error: a short read is never a fast read. Buffers are page-aligned,
which satisfies the alignment of every O_DIRECT filesystem known to us.
Holds no threads and no queue: callers decide how many operations are in flight.

May import: kvbench.errors. numpy, not torch.
"""

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kvbench.errors import CorruptDataError, TierUnavailableError

Bytes = NDArray[np.uint8]
HUGE_PAGE_BYTES = 2 * 2**20  # of x86-64 and of arm64 with 4 KiB pages

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class ShortTransferError(CorruptDataError):
    """The kernel moved fewer bytes than it was asked to."""

    code = "short_transfer"


def mapped_buffer(size_bytes: int, *, huge_pages: bool = False, lock: bool = False) -> Bytes:
    """Anonymous memory as uint8 [size_bytes], page-aligned, not yet touched unless locked.

    `huge_pages` asks for transparent huge pages (madvise); `lock` keeps it in memory (mlock).
    Unless it is locked, memory in huge pages begins at one of them, so that also a small buffer
    lies in one: a transfer of 1 MiB is then one piece for a drive and not 256.

    Raises:
        TierUnavailableError: the memory cannot be had, or not be locked.
    """
    spare_bytes = HUGE_PAGE_BYTES if huge_pages and not lock and size_bytes > 0 else 0
    try:
        area = mmap.mmap(-1, size_bytes + spare_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError) as error:
        raise TierUnavailableError(
            f"cannot map {size_bytes} bytes of memory: {error}; use smaller blocks"
        ) from None
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            area.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            huge_pages = False  # a kernel without them: 4 KiB pages serve, only slower
    buffer = np.frombuffer(area, dtype=np.uint8)
    if spare_bytes:
        first = -buffer.ctypes.data % HUGE_PAGE_BYTES
        buffer = buffer[first : first + size_bytes]
    if lock:
        lock_pages(buffer)
    return buffer


def lock_pages(buffer: Bytes) -> None:
    """Keep the pages of uint8 [n] in memory (mlock); it ends when they are unmapped.

    Raises:
        TierUnavailableError: the limit of this process, or the kernel, does not allow it.
    """
    if _libc.mlock(buffer.ctypes.data, buffer.nbytes) != 0:
        raise TierUnavailableError(
            f"cannot lock {buffer.nbytes} bytes: {os.strerror(ctypes.get_errno())}; raise the "
            "limit with `ulimit -l unlimited` (as root) or LimitMEMLOCK=infinity"
        )


class BlockFile:
    """One open file; offsets and lengths are multiples of the device's alignment.

    With `direct=True` the page cache is bypassed if the filesystem can; `direct` afterwards says
    whether it is.
    """

    def __init__(self, path: Path, *, write: bool = False, direct: bool = True) -> None:
        flags = os.O_RDWR if write else os.O_RDONLY
        try:
            self._fd = os.open(path, flags | (os.O_DIRECT if direct else 0))
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            self._fd = os.open(path, flags)
        self.path = path

    @property
    def fd(self) -> int:
        """The open file, for the kernel's other calls."""
        return self._fd

    @property
    def direct(self) -> bool:
        """Whether the kernel bypasses the page cache for this file, as it says itself."""
        return bool(fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_DIRECT)

    def read(self, block: Bytes, offset_bytes: int) -> int:
        """Fill uint8 [n] from the file. Raises ShortTransferError at the end of the file."""
        done = os.preadv(self._fd, (block.data,), offset_bytes)
        if done != block.nbytes:
            raise self._short("read", done, block.nbytes, offset_bytes)
        return done

    def write(self, block: Bytes, offset_bytes: int) -> int:
        """Write uint8 [n] to the file. Raises ShortTransferError if not all of it went."""
        done = os.pwritev(self._fd, (block.data,), offset_bytes)
        if done != block.nbytes:
            raise self._short("write", done, block.nbytes, offset_bytes)
        return done

    def readv(self, buffers: Sequence[Bytes], offset_bytes: int) -> int:
        """Fill buffers one after the other by one call; the bytes that came, maybe fewer."""
        return os.preadv(self._fd, [each.data for each in buffers], offset_bytes)

    def writev(self, buffers: Sequence[Bytes], offset_bytes: int) -> int:
        """Write buffers one after the other by one call; the bytes that went, maybe fewer."""
        return os.pwritev(self._fd, [each.data for each in buffers], offset_bytes)

    def sync(self) -> None:
        """Wait until what was written would survive a loss of power (fdatasync)."""
        os.fdatasync(self._fd)

    def drop_cache(self, offset_bytes: int = 0, size_bytes: int = 0) -> None:
        """Ask the kernel to forget cached pages; 0 bytes means to the end. Needs no privilege."""
        os.posix_fadvise(self._fd, offset_bytes, size_bytes, os.POSIX_FADV_DONTNEED)

    def expect_random(self) -> None:
        """Turn read-ahead off: blocks of a KV cache are not read in file order."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _short(self, verb: str, done: int, wanted: int, offset: int) -> ShortTransferError:
        return ShortTransferError(
            f"short {verb}: {done} of {wanted} bytes at offset {offset} of {self.path.name}"
        )


def preallocate(path: Path, size_bytes: int) -> None:
    """Make a file of this size with its blocks reserved; an existing one grows, never shrinks.

    Raises:
        OSError: no space (ENOSPC), or the directory cannot be written.
    """
    room = os.statvfs(path.parent)
    if size_bytes > room.f_bavail * room.f_frsize:
        # ext4 would reserve all there is before it gives up, and starve everyone else meanwhile.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    finally:
        os.close(fd)
