"""A worker's own memory for blocks on their way to or from a drive, used again and again.

Each thread has one area, page-aligned and in huge pages where there are any. To make such pages
takes the kernel milliseconds apiece once memory is in pieces, so a pool that will need its areas
has them made as it begins (`prepare`), and not when the first request waits.

May import: kvbench.store.block, kvbench.store.posix. numpy, not torch.
"""

import contextlib
import threading

from kvbench.errors import TierUnavailableError
from kvbench.store.block import Bytes
from kvbench.store.posix import mapped_buffer

PAGE_BYTES = 4096

_own = threading.local()


def staging(count: int, block_bytes: int) -> list[Bytes]:
    """This thread's page-aligned buffers for `count` blocks, used again by its next call."""
    if not count:
        return []
    stride = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
    area: Bytes | None = getattr(_own, "area", None)
    if area is None or area.nbytes < count * stride:
        area = _own.area = mapped_buffer(count * stride, huge_pages=True)
    return [area[at * stride : at * stride + block_bytes] for at in range(count)]


def prepare(count: int, block_bytes: int) -> None:
    """Have this thread's buffers for so many blocks there, and not only promised."""
    with contextlib.suppress(TierUnavailableError):  # whoever needs them is told
        for buffer in staging(count, block_bytes):
            buffer[::PAGE_BYTES] = 0
