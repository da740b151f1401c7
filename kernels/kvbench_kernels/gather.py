"""Gather scattered pages into one buffer, and scatter them back.

A page is the smallest contiguous piece of a paged KV cache. Bytes are moved, never converted; a
page's id is its index in the cache, as in an engine's block table. Ids are not checked on the
device: one that is too large reads or writes outside the cache.
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
    check_multiple,
    check_rows,
)
from kvbench_kernels.variant import Variant, Work

TILE_WORDS = 2048  # as in kvbench_kernels.copy
NUM_WARPS = 4
MAX_TILES = 65535  # CUDA's limit on the second dimension of a grid
SKIP = -1  # an id for "no page here"

_UNSPECIALISED = ["page_units", "stride_units", "row_stride_units"]  # as in kvbench_kernels.copy


@triton.jit(do_not_specialize=_UNSPECIALISED)
def gather_words(cache, ids, out, page_units, stride_units, row_stride_units, TILE: tl.constexpr):
    """out[i] = cache[ids[i]] for each id >= 0, int32 words; lengths and strides in 16 bytes.

    Grid (ids, cdiv(4 * page_units, TILE)).
    """
    row = tl.program_id(0)
    page = tl.load(ids + row).to(tl.int64)  # times a stride it passes 2**31 words at 8 GiB
    offsets = tl.program_id(1) * TILE + tl.arange(0, TILE)
    # One comparison, not `(offsets < n) & (page >= 0)`: the interpreter has no mask of that type.
    mask = offsets < tl.where(page >= 0, page_units * 4, 0)
    data = tl.load(cache + page * stride_units * 4 + offsets, mask=mask)
    tl.store(out + row.to(tl.int64) * row_stride_units * 4 + offsets, data, mask=mask)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def scatter_words(rows, ids, cache, page_units, stride_units, row_stride_units, TILE: tl.constexpr):
    """cache[ids[i]] = rows[i] for each id >= 0, int32 words; lengths and strides in 16 bytes.

    Grid (ids, cdiv(4 * page_units, TILE)).
    """
    row = tl.program_id(0)
    page = tl.load(ids + row).to(tl.int64)
    offsets = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = offsets < tl.where(page >= 0, page_units * 4, 0)
    data = tl.load(rows + row.to(tl.int64) * row_stride_units * 4 + offsets, mask=mask)
    tl.store(cache + page * stride_units * 4 + offsets, data, mask=mask)


def gather_pages(cache: torch.Tensor, page_ids: torch.Tensor, out: torch.Tensor) -> None:
    """Copy the pages named by `page_ids` into the rows of `out`, on the current stream.

    Args:
        cache: uint8 [num_pages, page_bytes], rows may be padded; address, stride and page_bytes
            are multiples of 16. Read only.
        page_ids: int32 or int64 [n], contiguous, each in [0, num_pages) or -1, which leaves its
            row of `out` as it is. May repeat. The range is not checked on the device.
        out: uint8 [n, page_bytes], laid out like cache. Overwritten. Must not overlap cache.

    Raises:
        ValueError: a shape, dtype, device or alignment is not as above.
    """
    _check_pages(cache, page_ids, "out", out)
    check_disjoint("cache", cache, "out", out)
    _launch(gather_words, (cache, page_ids, out), cache, out)


def scatter_pages(rows: torch.Tensor, page_ids: torch.Tensor, cache: torch.Tensor) -> None:
    """Copy the rows of `rows` to the pages named by `page_ids`, on the current stream.

    Args:
        rows: uint8 [n, page_bytes], rows may be padded; address, stride and page_bytes are
            multiples of 16. Read only.
        page_ids: int32 or int64 [n], contiguous, each in [0, num_pages) or -1, which skips its
            row. Must not repeat: which row would win is left to chance. Neither is checked on
            the device.
        cache: uint8 [num_pages, page_bytes], laid out like rows. Overwritten where named. Must
            not overlap rows.

    Raises:
        ValueError: a shape, dtype, device or alignment is not as above.
    """
    _check_pages(cache, page_ids, "rows", rows)
    check_disjoint("rows", rows, "cache", cache)
    _launch(scatter_words, (rows, page_ids, cache), cache, rows)


def pages_bytes_moved(num_pages: int, page_bytes: int, id_bytes: int) -> int:
    """Bytes that gathering or scattering reads and writes: each page twice, its id once.

    `num_pages` counts the ids that are not -1. Tiles of one page after the first find its id in
    a cache.
    """
    return num_pages * (2 * page_bytes + id_bytes)


def _check_pages(
    cache: torch.Tensor, page_ids: torch.Tensor, name: str, rows: torch.Tensor
) -> None:
    check_rows("cache", cache)
    check("page_ids", page_ids, (page_ids.numel(),), (torch.int32, torch.int64))
    page_bytes = cache.shape[1]
    check_rows(name, rows, (page_ids.numel(), page_bytes))
    check_multiple("a page", page_bytes)
    most_bytes = MAX_TILES * TILE_WORDS * WORD_BYTES
    if page_bytes > most_bytes:
        raise ValueError(f"a page must not exceed {most_bytes} bytes, got {page_bytes}")
    check_device(cache=cache, page_ids=page_ids, **{name: rows})


def _launch(
    kernel: triton.JITFunction,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    cache: torch.Tensor,
    rows: torch.Tensor,
) -> None:
    first, page_ids, last = tensors
    page_bytes = cache.shape[1]
    if page_ids.numel() == 0 or page_bytes == 0:
        return
    grid = (page_ids.numel(), triton.cdiv(page_bytes, TILE_WORDS * WORD_BYTES))
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(cache):  # type: ignore[no-untyped-call]
        kernel[grid](
            first.view(torch.int32),
            page_ids,
            last.view(torch.int32),
            page_bytes // UNIT_BYTES,
            cache.stride(0) // UNIT_BYTES,
            rows.stride(0) // UNIT_BYTES,
            TILE=TILE_WORDS,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # nothing to fuse; left out, triton 3.9 warns
        )


def _variant(name: str, kernel: triton.JITFunction, first: str, last: str) -> Variant:
    return Variant(
        name=name,
        kernel=kernel,
        types={first: "*i32", "ids": "*i32", last: "*i32", **dict.fromkeys(_UNSPECIALISED, "i32")},
        constants={"TILE": TILE_WORDS},
        work=Work.MOVE,
        payload_load_bytes=TILE_WORDS * WORD_BYTES,
        payload_store_bytes=TILE_WORDS * WORD_BYTES,
        num_warps=NUM_WARPS,
        narrow_loads=1,  # the page's id
    )


VARIANTS = (
    _variant("gather_pages", gather_words, "cache", "out"),
    _variant("scatter_pages", scatter_words, "rows", "cache"),
)
