"""Gather the rows of single tokens out of a paged cache, and scatter them back.

A token's slot is block * block_tokens + token, as in the slot mapping of vLLM and SGLang. A row
is what one tensor of one layer holds of a token: 2 KiB of bf16 for 8 heads of 128, 656 bytes of
MLA's fp8. Bytes are moved, never converted; slots are not checked on the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvbench_kernels.checks import (
    UNIT_BYTES,
    check,
    check_aligned,
    check_device,
    check_disjoint,
    check_multiple,
)
from kvbench_kernels.variant import Variant, Work

# 512 units over 128 threads: four 16-byte loads a thread before its first store, which is 4 tokens
# of 2 KiB, or 12 of 656 bytes, a program.
TILE_UNITS = 512
NUM_WARPS = 4
MAX_TILES = 65535  # CUDA's limit on the second dimension of a grid
MAX_SLOTS = 2**31 - 1  # kernels hold slots and rows in 32 bits: 64-bit division is slow

_UNSPECIALISED = ["count", "block_units", "token_units"]


@triton.jit
def _slot_words(cache, slot, unit, block_units, token_units, BLOCK: tl.constexpr):
    """Addresses of the given 16-byte units of slots, int32 words, [lanes, 4]."""
    block = slot // BLOCK
    # In bytes: one 64-bit multiply-add a lane, where words would take three instructions.
    at = cache.to(tl.pointer_type(tl.int8)) + unit * 16 + block.to(tl.int64) * block_units * 16
    if BLOCK > 1:
        at += (slot - block * BLOCK).to(tl.int64) * token_units * 16
    return at.to(tl.pointer_type(tl.int32))[:, None] + tl.arange(0, 4)[None, :]


@triton.jit(do_not_specialize=_UNSPECIALISED)
def gather_tokens_words(
    cache,
    slots,
    out,
    count,
    block_units,
    token_units,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
):
    """out[i] = row of slots[i] for each slot >= 0, i < count; int32 words.

    ROW and TILE in 16-byte units, of a row and of a program; strides likewise. TOKENS rows a
    program, or one row in several. BLOCK tokens a block, 1 where blocks follow each other without
    a gap. Grid (cdiv(count, TOKENS), cdiv(ROW, TILE)).

    Rows are cut into units across their ends, so that few lanes idle whatever the length of a row.
    """
    units = tl.arange(0, TILE)
    if ROW > TILE:
        units += tl.program_id(1) * TILE
    token = units // ROW
    unit = units - token * ROW
    first = tl.program_id(0) * TOKENS
    live = token < tl.minimum(count - first, TOKENS)
    slot = tl.load(slots + first + token, mask=live, other=-1).to(tl.int32)
    mask = (slot >= 0)[:, None]
    data = tl.load(_slot_words(cache, slot, unit, block_units, token_units, BLOCK), mask=mask)
    words = (units * 4)[:, None] + tl.arange(0, 4)[None, :]
    tl.store(out + first.to(tl.int64) * (ROW * 4) + words, data, mask=mask)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def scatter_tokens_words(
    rows,
    slots,
    cache,
    count,
    block_units,
    token_units,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Row of slots[i] = rows[i] for each slot >= 0, i < count; the rest as in the gather."""
    units = tl.arange(0, TILE)
    if ROW > TILE:
        units += tl.program_id(1) * TILE
    token = units // ROW
    unit = units - token * ROW
    first = tl.program_id(0) * TOKENS
    live = token < tl.minimum(count - first, TOKENS)
    slot = tl.load(slots + first + token, mask=live, other=-1).to(tl.int32)
    mask = (slot >= 0)[:, None]
    words = (units * 4)[:, None] + tl.arange(0, 4)[None, :]
    data = tl.load(rows + first.to(tl.int64) * (ROW * 4) + words, mask=mask)
    tl.store(_slot_words(cache, slot, unit, block_units, token_units, BLOCK), data, mask=mask)


def gather_tokens(cache: torch.Tensor, slots: torch.Tensor, out: torch.Tensor) -> None:
    """Copy the rows of the tokens named by `slots` into `out`, on the current stream.

    One binary for each length of a row, and for each block_tokens whose blocks have gaps.

    Args:
        cache: uint8 [num_blocks, block_tokens, token_bytes], or [num_slots, token_bytes]. Blocks
            and tokens may be padded, or hold K and V in turn; address, strides and token_bytes
            are multiples of 16. Read only.
        slots: int32 or int64 [n], contiguous, each block * block_tokens + token of a token in the
            cache, or -1, which leaves its row of `out` as it is. May repeat. The range is not
            checked on the device.
        out: uint8 [n, token_bytes], contiguous, from a multiple of 16 bytes. Overwritten. Must
            not overlap cache.

    Raises:
        ValueError: a shape, dtype, device or alignment is not as above.
    """
    blocks = _check_tokens(cache, slots, "out", out)
    check_disjoint("cache", cache, "out", out)
    _launch(gather_tokens_words, (cache, slots, out), blocks)


def scatter_tokens(rows: torch.Tensor, slots: torch.Tensor, cache: torch.Tensor) -> None:
    """Copy `rows` to the tokens named by `slots`, on the current stream.

    Args:
        rows: uint8 [n, token_bytes], contiguous, from a multiple of 16 bytes. Read only.
        slots: int32 or int64 [n], contiguous, as for `gather_tokens`; -1 skips its row. Must not
            repeat: which row would win is left to chance. Neither is checked on the device.
        cache: uint8 [num_blocks, block_tokens, token_bytes], or [num_slots, token_bytes], as for
            `gather_tokens`. Overwritten where named. Must not overlap rows.

    Raises:
        ValueError: a shape, dtype, device or alignment is not as above.
    """
    blocks = _check_tokens(cache, slots, "rows", rows)
    check_disjoint("rows", rows, "cache", cache)
    _launch(scatter_tokens_words, (rows, slots, cache), blocks)


def tokens_bytes_moved(num_tokens: int, token_bytes: int, slot_bytes: int) -> int:
    """Bytes that gathering or scattering reads and writes: each row twice, its slot once.

    `num_tokens` counts the slots that are not -1. Threads of one row after the first find its slot
    in a cache.
    """
    return num_tokens * (2 * token_bytes + slot_bytes)


def _check_tokens(
    cache: torch.Tensor, slots: torch.Tensor, name: str, rows: torch.Tensor
) -> torch.Tensor:
    """The cache as [num_blocks, block_tokens, token_bytes], with as few tokens a block as can be.

    Raises:
        ValueError: see `gather_tokens`.
    """
    blocks = cache[:, None] if cache.dim() == 2 else cache  # noqa: PLR2004 - as documented
    apart = blocks.dim() == 3 and (  # noqa: PLR2004 - as documented
        blocks.stride(2) == 1
        and (blocks.shape[1] == 1 or blocks.stride(1) >= blocks.shape[2])
        and (blocks.shape[0] == 1 or blocks.stride(0) >= blocks.shape[1] * blocks.stride(1))
    )
    if blocks.dtype != torch.uint8 or not apart:
        raise ValueError(
            "cache must be [blocks, tokens, token_bytes] or [slots, token_bytes] torch.uint8, the "
            f"bytes of a token adjacent, tokens apart, blocks apart, "
            f"got {list(cache.shape)} {cache.dtype} with strides {cache.stride()}"
        )
    num_blocks, block_tokens, token_bytes = blocks.shape
    check_multiple("the row of a token", token_bytes)
    for stride_bytes in blocks.stride()[:2]:
        check_multiple("a stride of cache", stride_bytes)
    check_aligned("cache", cache)
    check("slots", slots, (slots.numel(),), (torch.int32, torch.int64))
    check(name, rows, (slots.numel(), token_bytes), torch.uint8)
    check_aligned(name, rows)
    for what, number in (("slots of cache", num_blocks * block_tokens), ("slots", slots.numel())):
        if number > MAX_SLOTS:
            raise ValueError(f"{what} must not exceed {MAX_SLOTS}, got {number}")
    most_bytes = MAX_TILES * TILE_UNITS * UNIT_BYTES
    if token_bytes > most_bytes:
        raise ValueError(
            f"the row of a token must not exceed {most_bytes} bytes, got {token_bytes}"
        )
    check_device(cache=cache, slots=slots, **{name: rows})
    no_gaps = num_blocks == 1 or blocks.stride(0) == block_tokens * blocks.stride(1)
    return blocks.view(-1, 1, token_bytes) if blocks.numel() and no_gaps else blocks


def _launch(
    kernel: triton.JITFunction,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    blocks: torch.Tensor,
) -> None:
    _, block_tokens, token_bytes = blocks.shape
    count = tensors[1].numel()
    if count == 0 or blocks.numel() == 0:
        return
    row_units = token_bytes // UNIT_BYTES
    tokens = max(TILE_UNITS // row_units, 1)
    first, slots, last = tensors
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(blocks):  # type: ignore[no-untyped-call]
        kernel[(triton.cdiv(count, tokens), triton.cdiv(row_units, TILE_UNITS))](
            triton.reinterpret(first, tl.int32),
            slots,
            triton.reinterpret(last, tl.int32),
            count,
            blocks.stride(0) // UNIT_BYTES,
            blocks.stride(1) // UNIT_BYTES,
            ROW=row_units,
            BLOCK=block_tokens,
            TOKENS=tokens,
            TILE=TILE_UNITS,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # nothing to fuse; left out, triton 3.9 warns
        )


def _variant(name: str, kernel: triton.JITFunction, token_bytes: int, block_tokens: int) -> Variant:
    first, last = ("cache", "out") if kernel is gather_tokens_words else ("rows", "cache")
    row_units = token_bytes // UNIT_BYTES
    tokens = TILE_UNITS // row_units
    exempt: dict[str, str] = {}
    if row_units & (row_units - 1):
        exempt["S5.sm_100"] = (
            "16 bytes each find their row by a division; a power of two of lanes a row instead "
            "would leave a third of them idle and issue for half as long again"
        )
    elif block_tokens > 1:
        exempt["S5.sm_100"] = "16 bytes each find the block and the token of their slot"
    return Variant(
        name=name,
        kernel=kernel,
        types={
            first: "*i32",
            "slots": "*i64",
            last: "*i32",
            **dict.fromkeys(_UNSPECIALISED, "i32"),
        },
        constants={"ROW": row_units, "BLOCK": block_tokens, "TOKENS": tokens, "TILE": TILE_UNITS},
        work=Work.MOVE,
        payload_load_bytes=tokens * token_bytes,
        payload_store_bytes=tokens * token_bytes,
        num_warps=NUM_WARPS,
        narrow_loads=TILE_UNITS // (32 * NUM_WARPS),  # a slot for each unit of a thread
        exempt=exempt,
    )


VARIANTS = (
    _variant("gather_tokens.2KiB", gather_tokens_words, 2048, 1),
    _variant("gather_tokens.656B", gather_tokens_words, 656, 1),
    _variant("gather_tokens.2KiB.gaps", gather_tokens_words, 2048, 16),
    _variant("scatter_tokens.2KiB", scatter_tokens_words, 2048, 1),
    _variant("scatter_tokens.656B", scatter_tokens_words, 656, 1),
    _variant("scatter_tokens.2KiB.gaps", scatter_tokens_words, 2048, 16),
)
