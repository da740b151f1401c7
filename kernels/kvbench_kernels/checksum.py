"""64-bit checksums of blocks, computed where the blocks are.

Finds what moving blocks gets wrong: a word changed, lost, or in another's place. Against
accidents, not against an adversary; other checksums of the same bytes have other values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvbench_kernels.checks import UNIT_BYTES, check_device, check_multiple, check_rows
from kvbench_kernels.variant import Variant, Work

# 2048 words over 128 threads: eight 16-byte loads a thread.
TILE_WORDS = 2048
CHECKSUM_WORD_BYTES = 8
NUM_WARPS = 4
MAX_TILES = 65535  # CUDA's limit on the second dimension of a grid


# Not specialised: one binary for every length.
@triton.jit(do_not_specialize=["row_units", "stride_units"])
def checksum_words(data, partials, row_units, stride_units, TILE: tl.constexpr):
    """partials[row, tile] = sum of the mixed words of that tile of a row, int64 words.

    Lengths and strides in 16 bytes. Grid (rows, cdiv(2 * row_units, TILE)).
    """
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * TILE
    lane = tl.arange(0, TILE)
    mask = lane < row_units * 2 - first
    words = tl.load(data + row * stride_units * 2 + first + lane, mask=mask, other=0)
    # Unsigned, so that shifts bring in zeros.
    mixed = words.to(tl.uint64, bitcast=True)
    mixed += (first + lane + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    mixed = (mixed ^ (mixed >> 32)) * 0xDABA0B6EB09322E3
    mixed = (mixed ^ (mixed >> 32)) * 0xDABA0B6EB09322E3
    mixed = (mixed ^ (mixed >> 32)).to(tl.int64, bitcast=True)
    partial = tl.sum(tl.where(mask, mixed, 0), axis=0)  # wraps
    tl.store(partials + row * tl.num_programs(1) + tl.program_id(1), partial)


def checksum(data: torch.Tensor) -> torch.Tensor:
    """A 64-bit checksum of each row of `data`, on the current stream.

    The sum, modulo 2**64, of mix(word[i] + (i + 1) * 0x9E3779B97F4A7C15) over the little-endian
    8-byte words of a row. Words of one row in another order give another sum, and so do zeros at
    its end. A row's sum does not depend on where the row is, so that a block can be checked after
    it has moved.

    The position enters as in SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014). mix is Lea's 64-bit function out of LXM (Steele, Vigna, "LXM: better
    splittable pseudorandom number generators", OOPSLA 2021): twice z = (z ^ z >> 32) *
    0xDABA0B6EB09322E3, then z ^ z >> 32. A GPU shifts by 32 bits for nothing, which makes it a
    third shorter than SplitMix64's own.

    Args:
        data: uint8 [rows, row_bytes], rows may be padded; address, stride and row_bytes are
            multiples of 16. Read only.

    Returns:
        int64 [rows], on the device of data; the bits of an unsigned number.

    Raises:
        ValueError: a shape, dtype, device or alignment is not as above.
    """
    check_rows("data", data)
    rows, row_bytes = data.shape
    check_multiple("a row", row_bytes)
    most_bytes = MAX_TILES * TILE_WORDS * CHECKSUM_WORD_BYTES
    if row_bytes > most_bytes:
        raise ValueError(f"a row must not exceed {most_bytes} bytes, got {row_bytes}")
    check_device(data=data)
    tiles = _tiles(row_bytes)
    partials = torch.empty((rows, tiles), dtype=torch.int64, device=data.device)
    if rows and tiles:
        # Triton launches on the current device, which need not be the tensor's.
        with torch.cuda.device_of(data):  # type: ignore[no-untyped-call]
            checksum_words[(rows, tiles)](
                triton.reinterpret(data, tl.int64),
                partials,
                row_bytes // UNIT_BYTES,
                data.stride(0) // UNIT_BYTES,
                TILE=TILE_WORDS,
                num_warps=NUM_WARPS,
                enable_fp_fusion=False,  # nothing to fuse; left out, triton 3.9 warns
            )
    return partials.sum(dim=1)  # int64: wraps


def checksum_bytes_moved(rows: int, row_bytes: int) -> int:
    """Bytes read and written: the rows, each partial written and read again, and the sums."""
    return rows * (row_bytes + (2 * _tiles(row_bytes) + 1) * CHECKSUM_WORD_BYTES)


def _tiles(row_bytes: int) -> int:
    return -(-row_bytes // (TILE_WORDS * CHECKSUM_WORD_BYTES))


VARIANTS = (
    Variant(
        name="checksum",
        kernel=checksum_words,
        types={"data": "*i64", "partials": "*i64", "row_units": "i32", "stride_units": "i32"},
        constants={"TILE": TILE_WORDS},
        work=Work.CHECKSUM,
        payload_load_bytes=TILE_WORDS * CHECKSUM_WORD_BYTES,
        payload_store_bytes=0,
        num_warps=NUM_WARPS,
        narrow_stores=1,  # the partial sum
    ),
)
