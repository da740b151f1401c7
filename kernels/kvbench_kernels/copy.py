"""Contiguous copy inside one GPU.

The plain way to move bytes with 16-byte accesses, and so the yardstick for every kernel that
moves the same bytes in a less convenient order. No cache hints and no persistent loop. Starts and
lengths that are not multiples of 16 bytes cost a second, tiny launch, never narrow accesses in
the bulk; source and target that are shifted against each other are refused.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvbench_kernels.checks import (
    UNIT_BYTES,
    WORD_BYTES,
    check,
    check_device,
    check_disjoint,
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


@triton.jit(do_not_specialize=["src", "dst", "head_bytes", "tail_start", "size_bytes"])
def copy_edges(src, dst, head_bytes, tail_start, size_bytes, EDGE: tl.constexpr):
    """dst[i] = src[i] for i < head_bytes and for tail_start <= i < size_bytes, single bytes.

    Both ends are shorter than EDGE bytes. Grid (1,).
    """
    lane = tl.arange(0, 2 * EDGE)
    offsets = tl.where(lane < EDGE, lane, tail_start + (lane - EDGE).to(tl.int64))
    mask = offsets < tl.where(lane < EDGE, head_bytes, size_bytes)
    tl.store(dst + offsets, tl.load(src + offsets, mask=mask), mask=mask)


def copy_contiguous(src: torch.Tensor, dst: torch.Tensor) -> None:
    """Copy `src` to `dst` with kernels on the current stream; returns before they are done.

    One launch of 16-byte accesses where starts and length are multiples of 16. Where they are not,
    but both starts are off by the same number of bytes, the bulk is copied just so and a second
    launch of one warp copies the up to 15 bytes at either end. Where the starts are off by
    different numbers, no access wider than the difference allows could serve both sides: that is
    refused instead of done slowly (shift one side, or use `Tensor.copy_`).

    Args:
        src: uint8 [n], contiguous. Read only.
        dst: uint8 [n], contiguous, as far past a multiple of 16 bytes as src. Overwritten. Must
            not overlap src.

    Raises:
        ValueError: a shape, dtype, device or alignment is not as above.
    """
    size_bytes = src.numel()
    check("src", src, (size_bytes,), torch.uint8)
    check("dst", dst, (size_bytes,), torch.uint8)
    check_device(src=src, dst=dst)
    check_disjoint("src", src, "dst", dst)
    past_bytes, dst_past_bytes = src.data_ptr() % UNIT_BYTES, dst.data_ptr() % UNIT_BYTES
    if past_bytes != dst_past_bytes:
        raise ValueError(
            f"src and dst must start equally far past a multiple of {UNIT_BYTES} bytes, got src "
            f"{past_bytes} and dst {dst_past_bytes} too far: they have no wide accesses in common"
        )
    head_bytes = min(-past_bytes % UNIT_BYTES, size_bytes)
    tail_start = size_bytes - (size_bytes - head_bytes) % UNIT_BYTES
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(src):  # type: ignore[no-untyped-call]
        _copy_body(src[head_bytes:tail_start], dst[head_bytes:tail_start])
        if head_bytes or tail_start < size_bytes:
            copy_edges[(1,)](
                src,
                dst,
                head_bytes,
                tail_start,
                size_bytes,
                EDGE=UNIT_BYTES,
                num_warps=1,
                enable_fp_fusion=False,
            )


def _copy_body(src: torch.Tensor, dst: torch.Tensor) -> None:
    """Copy bytes that start at, and are, multiples of 16."""
    size_bytes = src.numel()
    if size_bytes == 0:
        return
    grid = (triton.cdiv(size_bytes, TILE_WORDS * WORD_BYTES),)
    copy_words[grid](
        # `Tensor.view` refuses words that are not aligned inside their storage.
        triton.reinterpret(src, tl.int32),
        triton.reinterpret(dst, tl.int32),
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
    Variant(
        name="copy_contiguous.edges",
        kernel=copy_edges,
        types={
            "src": "*u8",
            "dst": "*u8",
            "head_bytes": "i32",
            "tail_start": "i64",
            "size_bytes": "i64",
        },
        constants={"EDGE": UNIT_BYTES},
        work=Work.MOVE,
        payload_load_bytes=None,
        payload_store_bytes=None,
        num_warps=1,
        narrow_loads=1,
        narrow_stores=1,
        exempt={
            "S1": "the up to 30 bytes of a whole copy that no 16-byte access covers",
            "S4": "one launch moves up to 30 bytes",
        },
    ),
)
