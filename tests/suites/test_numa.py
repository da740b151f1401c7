import ctypes
import os
import platform
from pathlib import Path

import numpy as np
import pytest

from kvbench.errors import TierUnavailableError
from kvbench_suites.numa import MPOL_BIND, MPOL_DEFAULT, SET_MEMPOLICY, bind_memory


def policy() -> tuple[int, int]:
    """The calling thread's memory policy and the nodes in it, from the kernel."""
    get_mempolicy = {"x86_64": 239, "aarch64": 236}[platform.machine()]
    mode, mask = ctypes.c_int(-1), (ctypes.c_ulong * 16)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(get_mempolicy, ctypes.byref(mode), mask, 1024, None, 0) != 0:
        pytest.skip(f"get_mempolicy: {os.strerror(ctypes.get_errno())}")
    return mode.value, mask[0]


needs_numa = pytest.mark.skipif(
    platform.machine() not in SET_MEMPOLICY or not Path("/sys/devices/system/node/node0").is_dir(),
    reason="no NUMA node 0 in /sys",
)


@needs_numa
def test_memory_is_bound_to_the_node_inside_the_block_and_nowhere_after_it() -> None:
    assert policy() == (MPOL_DEFAULT, 0)
    with bind_memory(0):
        assert policy() == (MPOL_BIND, 1)
        assert np.ones(1 << 20, dtype=np.uint8).all(), "and can be touched"
    assert policy() == (MPOL_DEFAULT, 0)
    with pytest.raises(ZeroDivisionError), bind_memory(0):
        raise ZeroDivisionError
    assert policy() == (MPOL_DEFAULT, 0)


@needs_numa
def test_no_node_changes_nothing() -> None:
    with bind_memory():
        assert policy() == (MPOL_DEFAULT, 0)


@needs_numa
@pytest.mark.parametrize("node", [1000, 1023, 1024, 5000, -2])
def test_a_node_that_is_not_there_is_refused_and_the_block_not_entered(node: int) -> None:
    with pytest.raises(TierUnavailableError, match=r"NUMA node|refuses to bind"), bind_memory(node):
        pytest.fail("entered")
    assert policy() == (MPOL_DEFAULT, 0)


def test_an_architecture_that_is_not_known_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(TierUnavailableError, match="not known on riscv64"), bind_memory(0):
        pytest.fail("entered")
