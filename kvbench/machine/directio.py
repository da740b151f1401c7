"""Whether files in a directory take O_DIRECT, found out by trying, and with what alignment.

Makes one unnamed or at once unlinked file of one block in the directory, never elsewhere.
The alignment comes from statx(STATX_DIOALIGN, Linux 6.1) where the file system answers it.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000  # linux/stat.h
_STATX_BYTES = 256
_MASK_AT, _MEMORY_ALIGN_AT, _OFFSET_ALIGN_AT = 0x00, 0x98, 0x9C  # offsets in struct statx


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectIo:
    """What was seen. Alignments in bytes, of file offset and length, and of the buffer."""

    works: bool = False
    writable: bool | None = None
    alignment_bytes: int | None = None
    memory_alignment_bytes: int | None = None
    reason: str


def try_direct_io(directory: Path, logical_block_bytes: int | None) -> DirectIo:
    """Write and read back one block with O_DIRECT in `directory`, leaving nothing there."""
    try:
        with _scratch_file(directory) as descriptor:
            return _try_on(descriptor, logical_block_bytes)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            return DirectIo(
                writable=False, reason=f"not tried: {error.strerror} for a file in the directory"
            )
        if error.errno == errno.EINVAL:  # the plain file could be made, and so be written
            return DirectIo(writable=True, reason="the file system refuses O_DIRECT")
        return DirectIo(reason=f"not tried: {error.strerror}")


def dio_alignment(descriptor: int) -> tuple[int, int] | None:
    """(memory, offset) alignment in bytes that the kernel states for an open file.

    (0, 0) says that this file takes no direct I/O; None that kernel or libc do not answer.
    """
    try:
        statx = ctypes.CDLL(None, use_errno=True).statx
    except AttributeError:  # glibc before 2.28
        return None
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(descriptor, b"", _AT_EMPTY_PATH, ctypes.c_uint(_STATX_DIOALIGN), buffer) != 0:
        return None

    def word(offset: int) -> int:
        return ctypes.c_uint32.from_buffer(buffer, offset).value

    if not word(_MASK_AT) & _STATX_DIOALIGN:
        return None
    return word(_MEMORY_ALIGN_AT), word(_OFFSET_ALIGN_AT)


def _try_on(descriptor: int, logical_block_bytes: int | None) -> DirectIo:
    stated = dio_alignment(descriptor)
    if stated and stated[1] == 0:
        return DirectIo(writable=True, reason="the file system refuses O_DIRECT (statx)")
    if stated:
        memory, offset = stated
        source = "alignment stated by statx"
    else:
        # 4096 where not even a block size is known: every Linux file system accepts it.
        memory = offset = logical_block_bytes or 4096
        source = "alignment taken from the logical block size"
    length = max(offset, 4096)
    try:
        with mmap.mmap(-1, length) as block:  # page-aligned, as O_DIRECT wants it
            os.pwritev(descriptor, [block], 0)
            os.preadv(descriptor, [block], 0)
    except OSError as error:
        return DirectIo(
            writable=error.errno != errno.ENOSPC,
            reason=f"a block of {length} B with O_DIRECT failed: {error.strerror}",
        )
    return DirectIo(
        works=True,
        writable=True,
        alignment_bytes=offset,
        memory_alignment_bytes=memory,
        reason=source,
    )


@contextlib.contextmanager
def _scratch_file(directory: Path) -> Generator[int]:
    """An open O_DIRECT file without a name in `directory`."""
    flags = os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC
    try:
        descriptor = os.open(directory, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
            raise
        descriptor = _named_then_unlinked(directory, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _named_then_unlinked(directory: Path, flags: int) -> int:
    """For file systems without O_TMPFILE, such as NFS."""
    plain, name = tempfile.mkstemp(prefix=".kvbench-", dir=directory)
    try:
        return os.open(name, flags)
    finally:
        os.close(plain)
        Path(name).unlink()
