"""Contiguous copy inside one GPU.

The plain way to move bytes with 16-byte accesses, and so the yardstick for every kernel that
moves the same bytes in a less convenient order. No cache hints and no persistent loop.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvbench_kernels.checks import (
    UNIT_BYTES,
    WORD_BYTES,
    check,
    check_aligned,
    check_device,
    check_disjoint,
    check_multiple,
)
from kvbench_kernels.variant import Variant, Work

# 2048 words over 128 threads: four 16-byte loads a thread before its first store, 64 bytes in
# flight. Compiled for sm_90, 8192 words take 120 registers instead of 24, which cuts occupancy to
# a quarter, and 256 words leave 8-byte accesses.
TILE_WORDS = 2048
NUM_WARPS = 4


# Not specialised: one binary for every length, and the widths cannot depend on its value.
@triton.jit(do_not_specialize=["units"])
def copy_words(src, dst, units, TILE: tl.constexpr):
    """dst[:4 * units] = src[:4 * units], int32 words. Grid (cdiv(4 * units, TILE),).

    A count in 16-byte units shows the compiler that the last access is as wide as the others;
    a count in words would be known to be aligned only if it were a multiple of 16.
    """
    words = units.to(tl.int64) * 4
    offsets = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = offsets < words
    tl.store(dst + offsets, tl.load(src + offsets, mask=mask), mask=mask)


def copy_contiguous(src: torch.Tensor, dst: torch.Tensor) -> None:
    """Copy `src` to `dst` with a kernel on the current stream; returns before it is done.

    Args:
        src: uint8 [n], contiguous, from a multiple of 16 bytes; n is a multiple of 16. Read only.
        dst: uint8 [n], contiguous, from a multiple of 16 bytes. Overwritten. Must not overlap src.

    Raises:
        ValueError: a shape, dtype, device or alignment is not as above.
    """
    size_bytes = src.numel()
    check("src", src, (size_bytes,), torch.uint8)
    check("dst", dst, (size_bytes,), torch.uint8)
    check_multiple("the length of src", size_bytes)
    check_aligned("src", src)
    check_aligned("dst", dst)
    check_device(src=src, dst=dst)
    check_disjoint("src", src, "dst", dst)
    if size_bytes == 0:
        return
    grid = (triton.cdiv(size_bytes, TILE_WORDS * WORD_BYTES),)
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(src):  # type: ignore[no-untyped-call]
        copy_words[grid](
            src.view(torch.int32),
            dst.view(torch.int32),
            size_bytes // UNIT_BYTES,
            TILE=TILE_WORDS,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # nothing to fuse; left out, triton 3.9 warns
        )


def copy_bytes_moved(size_bytes: int) -> int:
    """Bytes that a copy of `size_bytes` reads and writes: everything once each."""
    return 2 * size_bytes


VARIANTS = (
    Variant(
        name="copy_contiguous",
        kernel=copy_words,
        types={"src": "*i32", "dst": "*i32", "units": "i64"},
        constants={"TILE": TILE_WORDS},
        work=Work.MOVE,
        payload_load_bytes=TILE_WORDS * WORD_BYTES,
        payload_store_bytes=TILE_WORDS * WORD_BYTES,
        num_warps=NUM_WARPS,
    ),
)
