"""Binding memory to a NUMA node for the length of a block, by the kernel's own call.

libnuma would be one more system package for one call. Linux only, like the rest of kvbench.
"""

import contextlib
import ctypes
import os
import platform
from collections.abc import Generator

from kvbench.errors import TierUnavailableError

MPOL_DEFAULT, MPOL_BIND, MPOL_INTERLEAVE = 0, 2, 3  # linux/mempolicy.h
SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}  # syscall numbers
MOST_NODES = 1024  # bits in the mask; the kernel's own upper bound (CONFIG_NODES_SHIFT = 10)

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def bind_memory(*nodes: int) -> Generator[None]:
    """Pages that this thread touches first come from these nodes in turn; without one, as usual.

    Raises:
        TierUnavailableError: the kernel refuses, or the architecture is not known here.
    """
    if not nodes:
        yield
        return
    mask = (ctypes.c_ulong * (MOST_NODES // 64))()
    for node in nodes:
        if not 0 <= node < MOST_NODES:
            raise TierUnavailableError(f"there is no NUMA node {node}")
        mask[node // 64] |= 1 << (node % 64)
    _set_mempolicy(MPOL_BIND if len(nodes) == 1 else MPOL_INTERLEAVE, mask)
    try:
        yield
    finally:
        _set_mempolicy(MPOL_DEFAULT, None)


def _set_mempolicy(mode: int, mask: ctypes.Array[ctypes.c_ulong] | None) -> None:
    number = SET_MEMPOLICY.get(platform.machine())
    if number is None:
        raise TierUnavailableError(
            f"binding memory to a NUMA node is not known on {platform.machine()}"
        )
    if _libc.syscall(number, mode, mask, MOST_NODES + 1 if mask is not None else 0) != 0:
        raise TierUnavailableError(
            f"the kernel refuses to bind memory: {os.strerror(ctypes.get_errno())}"
        )
