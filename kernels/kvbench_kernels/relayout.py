"""Move blocks of a KV cache from one named layout to another.

Rows of `head_dim` elements stay whole, so both sides keep 16-byte accesses whatever the order of
their dimensions. Bytes are moved, never converted. Which layouts there are says
`kvbench_kernels.layouts`; blocks are named by ids as in an engine's block table. Ids are not
checked on the device: one that is too large reads or writes outside the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from kvbench_kernels.checks import UNIT_BYTES, check, check_aligned, check_device, check_multiple
from kvbench_kernels.variant import Variant, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvbench_kernels.layouts import Layout, RowStrides, Sizes

# Eight 16-byte loads a thread: where a row lies has to be worked out, and with the four loads of
# kvbench_kernels.copy issuing the instructions takes 0.18 of the time that the bytes take on
# sm_100, where 0.15 is the limit. With eight it is at most 0.14, for up to 61 registers.
TILES_UNITS = (1024, 512, 256)
WARP_UNITS = 256
MAX_TILES = 65535  # CUDA's limit on the second and third dimension of a grid
MAX_REACH_UNITS = 2**31  # offsets inside a block are int32 counts of 16 bytes: 32 GiB

_STRIDES = ["block_units", "outer_units", "inner_units"]
_UNSPECIALISED = [f"{side}_{name}" for side in ("src", "dst") for name in _STRIDES] + ["units"]


# ROW and INNER are constants because dividing by them is then a multiplication.
@triton.jit(do_not_specialize=_UNSPECIALISED)
def relayout_rows(
    src_bases,
    dst_bases,
    src_ids,
    dst_ids,
    src_block_units,
    src_outer_units,
    src_inner_units,
    dst_block_units,
    dst_outer_units,
    dst_inner_units,
    units,
    ROW: tl.constexpr,
    INNER: tl.constexpr,
    TILE: tl.constexpr,
):
    """Rows of block src_ids[i] to block dst_ids[i] for ids >= 0; lengths and strides in 16 bytes.

    A block of one layer and of K or V is `units` long and consists of rows of ROW units: INNER of
    them one inner stride apart, and such groups one outer stride apart. The int64 addresses of
    block 0 are in `src_bases` and `dst_bases`. Ids that are None stand for 0, 1, 2 …
    Grid (ids, addresses, cdiv(units, TILE)).
    """
    i = tl.program_id(0)
    src_block = i.to(tl.int64)
    dst_block = i.to(tl.int64)
    if src_ids is not None:
        src_block = tl.load(src_ids + i).to(tl.int64)
    if dst_ids is not None:
        dst_block = tl.load(dst_ids + i).to(tl.int64)
    # An address out of memory shows the compiler no alignment; the wrapper has checked it.
    src = tl.load(src_bases + tl.program_id(1)).to(tl.pointer_type(tl.int32))
    dst = tl.load(dst_bases + tl.program_id(1)).to(tl.pointer_type(tl.int32))
    src = tl.multiple_of(src, 16) + src_block * src_block_units * 4
    dst = tl.multiple_of(dst, 16) + dst_block * dst_block_units * 4

    unit = tl.program_id(2) * TILE + tl.arange(0, TILE)
    row = unit // ROW
    if INNER == 1:  # a remainder less to work out
        src_units = unit + row * (src_outer_units - ROW)
        dst_units = unit + row * (dst_outer_units - ROW)
    else:
        outer = row // INNER
        inner = row % INNER
        src_units = outer * src_outer_units + inner * src_inner_units + unit % ROW
        dst_units = outer * dst_outer_units + inner * dst_inner_units + unit % ROW
    # One comparison, not `(unit < units) & (block >= 0)`: the interpreter has no mask of that type.
    mask = unit < tl.where(tl.minimum(src_block, dst_block) >= 0, units, 0)
    word = tl.arange(0, 4)[None, :]
    src_words = (src_units.to(tl.int64) * 4)[:, None] + word
    dst_words = (dst_units.to(tl.int64) * 4)[:, None] + word
    data = tl.load(src + src_words, mask=mask[:, None])
    tl.store(dst + dst_words, data, mask=mask[:, None])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cache:
    """A KV cache in a known layout, with the addresses that a kernel finds its rows by.

    Made by `address`, which checks it once. The tensors are kept alive with their addresses; they
    must not be resized, nor their storage replaced, while the cache is in use.
    """

    tensors: tuple[torch.Tensor, ...]
    layout: Layout
    sizes: Sizes
    strides: RowStrides
    bases: torch.Tensor  # int64 [layers * kv], where block 0 of each layer, and of K and V, starts
    spans: tuple[tuple[int, int], ...]  # first address and the one after the last, in order


def address(tensors: Sequence[torch.Tensor], layout: Layout, sizes: Sizes) -> Cache:
    """Check that `tensors` are a cache in this layout, and look up where its rows start.

    Writes a small table to the device, which waits for it; moving blocks afterwards does not.

    Args:
        tensors: as the layout has them, on one device; each starts at a multiple of 16 bytes.
        layout: one of `kvbench_kernels.layouts.LAYOUTS`, padded or not.
        sizes: of this cache; a row and all strides are multiples of 16 bytes.

    Raises:
        ValueError: the tensors are not of this layout and these sizes, or not aligned.
    """
    layout.check(tensors, sizes)
    if len({tensor.device for tensor in tensors}) > 1:
        found = ", ".join(sorted({str(tensor.device) for tensor in tensors}))
        raise ValueError(f"all tensors of a cache must be on one device, got {found}")
    strides = layout.rows(sizes)
    check_multiple(f"a row of {layout.name}", sizes.row_bytes)
    for name in ("layer", "kv", "block", "token", "head"):
        check_multiple(f"the {name} stride of {layout.name}", getattr(strides, f"{name}_bytes"))
    for index, tensor in enumerate(tensors):
        check_aligned(f"tensor {index} of {layout.name}", tensor)
    bases = []
    for layer in range(sizes.layers):
        for kv in range(layout.kv):
            index, offset_bytes = strides.base(layer, kv)
            bases.append(tensors[index].data_ptr() + offset_bytes)
    return Cache(
        tensors=tuple(tensors),
        layout=layout,
        sizes=sizes,
        strides=strides,
        bases=torch.tensor(bases, dtype=torch.int64, device=tensors[0].device),
        spans=_spans(tensors),
    )


def relayout(
    src: Cache,
    dst: Cache,
    *,
    src_ids: torch.Tensor | None = None,
    dst_ids: torch.Tensor | None = None,
) -> None:
    """Copy blocks of `src` to blocks of `dst`, all layers, on the current stream.

    Args:
        src: read only. Sizes as dst, apart from the number of blocks.
        dst: overwritten where named, padding left alone. Must not overlap src.
        src_ids: int32 or int64 [n], contiguous: block src_ids[i] goes to block dst_ids[i], or
            nowhere if either is -1. May repeat. The range is not checked on the device. None:
            all blocks of src, in order.
        dst_ids: the same for dst, but must not repeat: which block would win is left to chance.

    Raises:
        ValueError: the caches hold different things, an argument is not as above, or a block
            reaches over more than 32 GiB.
    """
    num_blocks = _check_pair(src, dst, src_ids, dst_ids)
    row_bytes, outer, inner = _collapse(src, dst)
    units = outer.times * inner.times * row_bytes // UNIT_BYTES
    # The tile that leaves the fewest lanes without work, and the largest of those.
    tile = min(TILES_UNITS, key=lambda tile: triton.cdiv(units, tile) * tile)
    grid = (num_blocks, src.bases.numel(), triton.cdiv(units, tile))
    if max(grid[1:]) > MAX_TILES:
        raise ValueError(
            f"there must be at most {MAX_TILES} layers times K and V, and a block of at most "
            f"{MAX_TILES * tile * UNIT_BYTES} bytes in each, "
            f"got {grid[1]} and {units * UNIT_BYTES} bytes"
        )
    _check_reach(row_bytes, outer, inner)
    if num_blocks == 0:
        return
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(src.bases):  # type: ignore[no-untyped-call]
        relayout_rows[grid](
            src.bases,
            dst.bases,
            src_ids,
            dst_ids,
            src.strides.block_bytes // UNIT_BYTES,
            outer.src_bytes // UNIT_BYTES,
            inner.src_bytes // UNIT_BYTES,
            dst.strides.block_bytes // UNIT_BYTES,
            outer.dst_bytes // UNIT_BYTES,
            inner.dst_bytes // UNIT_BYTES,
            units,
            ROW=row_bytes // UNIT_BYTES,
            INNER=inner.times,
            TILE=tile,
            num_warps=tile // WARP_UNITS,
            enable_fp_fusion=False,  # nothing to fuse; left out, triton 3.9 warns
        )


def relayout_bytes_moved(layout: Layout, sizes: Sizes, num_blocks: int, id_bytes: int) -> int:
    """Bytes that moving `num_blocks` blocks of all layers reads and writes.

    Every row twice, `id_bytes` for the ids of a block (of both sides together, 0 without ids),
    and the two addresses of each layer and of K and V once: programs after the first find them
    in a cache. `num_blocks` counts the pairs of ids that are not -1.
    """
    rows = sizes.block_tokens * sizes.kv_heads
    addresses = sizes.layers * layout.kv
    block_bytes = addresses * rows * sizes.row_bytes
    return num_blocks * (2 * block_bytes + id_bytes) + 2 * 8 * addresses


class _Loop(NamedTuple):
    """Rows, or runs of them, at equal distances: how many, and the distances in bytes."""

    times: int
    src_bytes: int
    dst_bytes: int


def _collapse(src: Cache, dst: Cache) -> tuple[int, _Loop, _Loop]:
    """Bytes of a row, and the outer and the inner loop over the rows of a block.

    Rows that are adjacent on both sides are joined to longer ones: the heads of a token, the
    tokens of a head, or all of them.
    """
    row_bytes = src.sizes.row_bytes
    loops = [
        _Loop(src.sizes.block_tokens, src.strides.token_bytes, dst.strides.token_bytes),
        _Loop(src.sizes.kv_heads, src.strides.head_bytes, dst.strides.head_bytes),
    ]
    for _ in loops:  # joining one can make the other adjacent
        for index, loop in enumerate(loops):
            if loop.times == 1 or loop.src_bytes == loop.dst_bytes == row_bytes:
                row_bytes *= loop.times
                loops[index] = _Loop(1, 0, 0)
    outer, inner = loops if loops[0].times > 1 else reversed(loops)
    if outer.times == 1:  # one piece: as rows of one unit it needs no division
        return UNIT_BYTES, _Loop(row_bytes // UNIT_BYTES, UNIT_BYTES, UNIT_BYTES), inner
    return row_bytes, outer, inner


def _check_pair(
    src: Cache, dst: Cache, src_ids: torch.Tensor | None, dst_ids: torch.Tensor | None
) -> int:
    """How many pairs of blocks there are; ValueError unless the arguments fit together."""
    if src.layout.kv != dst.layout.kv or replace(src.sizes, blocks=dst.sizes.blocks) != dst.sizes:
        raise ValueError(
            "src and dst must hold the same apart from the number of blocks, "
            f"got {src.layout.name} of {src.sizes} and {dst.layout.name} of {dst.sizes}"
        )
    on_device = {"src": src.bases, "dst": dst.bases}
    counts = {"src": src.sizes.blocks, "dst": dst.sizes.blocks}
    for side, ids in (("src", src_ids), ("dst", dst_ids)):
        if ids is not None:
            check(f"{side}_ids", ids, (ids.numel(),), (torch.int32, torch.int64))
            on_device[f"{side}_ids"] = ids
            counts[side] = ids.numel()
    check_device(**on_device)
    if counts["src"] != counts["dst"]:
        raise ValueError(
            f"as many blocks of src must be named as of dst, got {counts['src']} and "
            f"{counts['dst']}; without ids all blocks of a cache are meant"
        )
    for first, second in pairwise(sorted(src.spans + dst.spans)):
        if second[0] < first[1]:
            raise ValueError(
                f"src and dst must not overlap, got {first[0]:#x} to {first[1]:#x} "
                f"and {second[0]:#x} to {second[1]:#x}"
            )
    return counts["src"]


def _check_reach(row_bytes: int, outer: _Loop, inner: _Loop) -> None:
    for side, outer_bytes, inner_bytes in (
        ("src", outer.src_bytes, inner.src_bytes),
        ("dst", outer.dst_bytes, inner.dst_bytes),
    ):
        reach = (outer.times - 1) * outer_bytes + (inner.times - 1) * inner_bytes + row_bytes
        if reach > MAX_REACH_UNITS * UNIT_BYTES:
            raise ValueError(
                f"a block of {side} must not reach over more than "
                f"{MAX_REACH_UNITS * UNIT_BYTES} bytes in one layer, got {reach}"
            )


def _spans(tensors: Sequence[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """First address and the one after the last of each stretch of memory, in order.

    Views of one allocation interleave; they count as one stretch.
    """
    spans: list[tuple[int, int]] = []
    for tensor in sorted(tensors, key=lambda tensor: tensor.data_ptr()):
        strides = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in strides)
        first, end = tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
        if spans and first < spans[-1][1]:
            first, end = spans[-1][0], max(end, spans.pop()[1])
        spans.append((first, end))
    return tuple(spans)


def _variant(name: str, row_bytes: int, inner: int, tile: int) -> Variant:
    return Variant(
        name=f"relayout.{name}",
        kernel=relayout_rows,
        types={
            "src_bases": "*i64",
            "dst_bases": "*i64",
            "src_ids": "*i32",
            "dst_ids": "*i32",
            **dict.fromkeys(_UNSPECIALISED, "i32"),
        },
        constants={"ROW": row_bytes // UNIT_BYTES, "INNER": inner, "TILE": tile},
        work=Work.MOVE,
        payload_load_bytes=tile * UNIT_BYTES,
        payload_store_bytes=tile * UNIT_BYTES,
        num_warps=tile // WARP_UNITS,
        narrow_loads=4,  # an id and an address of each side
    )


VARIANTS = (
    _variant("nhd_to_hnd", 256, 8, 1024),  # blocks of 16 tokens, 8 heads of 128 bf16
    # A block in one piece on both sides, as where the layer and the block swap places and for MLA
    _variant("layer_first_to_block_first", UNIT_BYTES, 1, 1024),
    # MLA token by token: blocks of 64 tokens
    _variant("mla_576_page_first", 1152, 1, 512),
    _variant("mla_656_page_first", 656, 1, 256),
)
