"""Gather scattered pages of all layers in one launch, and scatter them back.

An engine keeps one or two tensors a layer, each an allocation of its own. The kernels find them
through a table of addresses that lies on the GPU; the table is built once, from tensors that it
checks and keeps alive, and no wrapper takes a bare address. Bytes are moved, never converted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kvbench_kernels.checks import (
    UNIT_BYTES,
    WORD_BYTES,
    check,
    check_aligned,
    check_device,
    check_multiple,
    check_rows,
)
from kvbench_kernels.variant import Variant, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

TILE_WORDS = 2048  # as in kvbench_kernels.copy
NUM_WARPS = 4
MAX_GRID = 65535  # CUDA's limit on the second and third dimension of a grid

_UNSPECIALISED = ["page_units", "stride_units"]  # as in kvbench_kernels.copy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AddressTable:
    """Where the pages of each layer begin. Made by `address_table`, which checks it all.

    The tensors must not be resized, nor their storage replaced, while the table is in use.
    """

    addresses: torch.Tensor  # int64 [layers, parts], on the device of the tensors
    num_pages: int  # in each tensor
    page_bytes: int
    stride_bytes: int  # from one page of a tensor to the next
    tensors: tuple[tuple[torch.Tensor, ...], ...]  # kept alive: layers, each of its parts


def address_table(layers: Sequence[Sequence[torch.Tensor]]) -> AddressTable:
    """Collect the addresses of paged tensors: build it once, use it for every gather and scatter.

    Which part holds K and which V is said by the caller, never inferred from a shape. With K and
    V in one tensor `t` a layer, [2, num_pages, page_bytes], that is `[(t[0], t[1]), ...]`; with
    [num_pages, 2, page_bytes] it is `[(t[:, 0], t[:, 1]), ...]`; with K and V fused, or for MLA,
    `[(t,), ...]`. A page with its heads in another order than its tokens is still a run of bytes.

    Args:
        layers: one sequence of parts for each layer, all equally long. A part is uint8
            [num_pages, page_bytes], rows may be padded; shape and stride are those of every
            other part; address, stride and page_bytes are multiples of 16.

    Raises:
        ValueError: a number, shape, dtype, device or alignment is not as above.
    """
    tensors = tuple(tuple(parts) for parts in layers)
    if not tensors or not tensors[0] or len({len(parts) for parts in tensors}) > 1:
        raise ValueError(
            "layers must be one or more, each of the same number of parts, "
            f"got parts {[len(parts) for parts in tensors]}"
        )
    first = tensors[0][0]
    named = {
        f"layer {layer} part {part}": tensor
        for layer, parts in enumerate(tensors)
        for part, tensor in enumerate(parts)
    }
    for name, tensor in named.items():
        check_rows(name, tensor, (first.shape[0], first.shape[1]) if first.dim() > 1 else None)
        if tensor.stride() != first.stride():
            raise ValueError(
                f"{name} must have its rows as far apart as layer 0 part 0, {first.stride(0)} "
                f"bytes, got {tensor.stride(0)}"
            )
    check_multiple("a page", first.shape[1])
    check_device(**named)
    _check_grid(len(tensors), len(tensors[0]), first.shape[1])
    return AddressTable(
        addresses=torch.tensor(
            [[tensor.data_ptr() for tensor in parts] for parts in tensors],
            dtype=torch.int64,
            device=first.device,
        ),
        num_pages=first.shape[0],
        page_bytes=first.shape[1],
        stride_bytes=first.stride(0),
        tensors=tensors,
    )


@triton.jit(do_not_specialize=_UNSPECIALISED)
def gather_layers_words(
    addresses, ids, out, page_units, stride_units, PARTS: tl.constexpr, TILE: tl.constexpr
):
    """out[i, layer, part] = page ids[i] of that layer and part, for each id >= 0; int32 words.

    Lengths and strides in 16 bytes. Grid (ids, layers, PARTS * cdiv(4 * page_units, TILE)).
    """
    row, layer = tl.program_id(0), tl.program_id(1)
    part = tl.program_id(2) % PARTS
    page = tl.load(ids + row).to(tl.int64)
    base = tl.load(addresses + layer * PARTS + part).to(tl.pointer_type(tl.int32))
    base = tl.multiple_of(base, 16)  # bytes; an address out of memory has no known alignment
    offsets = tl.program_id(2) // PARTS * TILE + tl.arange(0, TILE)
    # One comparison, not `(offsets < n) & (page >= 0)`: the interpreter has no mask of that type.
    mask = offsets < tl.where(page >= 0, page_units * 4, 0)
    data = tl.load(base + page * stride_units * 4 + offsets, mask=mask)
    index = (row.to(tl.int64) * tl.num_programs(1) + layer) * PARTS + part
    tl.store(out + index * page_units * 4 + offsets, data, mask=mask)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def scatter_layers_words(
    rows, addresses, ids, page_units, stride_units, PARTS: tl.constexpr, TILE: tl.constexpr
):
    """Page ids[i] of each layer and part = rows[i, layer, part], for each id >= 0; int32 words.

    Lengths and strides in 16 bytes. Grid (ids, layers, PARTS * cdiv(4 * page_units, TILE)).
    """
    row, layer = tl.program_id(0), tl.program_id(1)
    part = tl.program_id(2) % PARTS
    page = tl.load(ids + row).to(tl.int64)
    base = tl.load(addresses + layer * PARTS + part).to(tl.pointer_type(tl.int32))
    base = tl.multiple_of(base, 16)
    offsets = tl.program_id(2) // PARTS * TILE + tl.arange(0, TILE)
    mask = offsets < tl.where(page >= 0, page_units * 4, 0)
    index = (row.to(tl.int64) * tl.num_programs(1) + layer) * PARTS + part
    data = tl.load(rows + index * page_units * 4 + offsets, mask=mask)
    tl.store(base + page * stride_units * 4 + offsets, data, mask=mask)


def gather_layers(table: AddressTable, page_ids: torch.Tensor, out: torch.Tensor) -> None:
    """Copy the pages named by `page_ids`, of every layer and part, on the current stream.

    Args:
        table: the layers. Read only.
        page_ids: int32 or int64 [n], contiguous, each in [0, num_pages) or -1, which leaves its
            part of `out` as it is. May repeat. The range is not checked on the device.
        out: uint8 [n, layers, parts, page_bytes], contiguous, from a multiple of 16 bytes.
            Overwritten. Must not overlap a tensor of the table.

    Raises:
        ValueError: a shape, dtype, device or alignment is not as above.
    """
    _check_layers(table, page_ids, "out", out)
    pointers = (table.addresses, page_ids, triton.reinterpret(out, tl.int32))
    _launch(gather_layers_words, pointers, page_ids.numel(), table)


def scatter_layers(rows: torch.Tensor, table: AddressTable, page_ids: torch.Tensor) -> None:
    """Copy `rows` to the pages named by `page_ids`, of every layer and part, on the current stream.

    Args:
        rows: uint8 [n, layers, parts, page_bytes], contiguous, from a multiple of 16 bytes. Read
            only.
        table: the layers. Their pages are overwritten where named. Must not overlap rows.
        page_ids: int32 or int64 [n], contiguous, each in [0, num_pages) or -1, which skips its
            row. Must not repeat: which row would win is left to chance. Neither is checked on
            the device.

    Raises:
        ValueError: a shape, dtype, device or alignment is not as above.
    """
    _check_layers(table, page_ids, "rows", rows)
    pointers = (triton.reinterpret(rows, tl.int32), table.addresses, page_ids)
    _launch(scatter_layers_words, pointers, page_ids.numel(), table)


def layers_bytes_moved(num_pages: int, table: AddressTable, id_bytes: int) -> int:
    """Bytes that gathering or scattering all layers reads and writes.

    Each page of each layer and part twice, and for each its id and its address once. `num_pages`
    counts the ids that are not -1. Tiles of one page after the first find both in a cache.
    """
    pages = num_pages * table.addresses.numel()
    return pages * (2 * table.page_bytes + id_bytes + table.addresses.element_size())


def _check_layers(
    table: AddressTable, page_ids: torch.Tensor, name: str, rows: torch.Tensor
) -> None:
    check("page_ids", page_ids, (page_ids.numel(),), (torch.int32, torch.int64))
    shape = (page_ids.numel(), *table.addresses.shape, table.page_bytes)
    check(name, rows, shape, torch.uint8)
    check_aligned(name, rows)
    check_device(table=table.addresses, page_ids=page_ids, **{name: rows})
    first, end = rows.data_ptr(), rows.data_ptr() + rows.nbytes
    span_bytes = max(table.num_pages - 1, 0) * table.stride_bytes + table.page_bytes
    for layer, parts in enumerate(table.tensors):
        for part, tensor in enumerate(parts):
            start = tensor.data_ptr()
            if first < start + span_bytes and start < end:
                raise ValueError(
                    f"{name} and layer {layer} part {part} must not overlap, "
                    f"got {first:#x} to {end:#x} and {start:#x} to {start + span_bytes:#x}"
                )


def _check_grid(layers: int, parts: int, page_bytes: int) -> None:
    if layers > MAX_GRID:
        raise ValueError(f"layers must not exceed {MAX_GRID}, got {layers}")
    most_bytes = MAX_GRID // parts * TILE_WORDS * WORD_BYTES
    if page_bytes > most_bytes:
        raise ValueError(
            f"a page must not exceed {most_bytes} bytes with {parts} parts a layer, "
            f"got {page_bytes}"
        )


def _launch(
    kernel: triton.JITFunction, pointers: tuple[object, ...], num_ids: int, table: AddressTable
) -> None:
    layers, parts = table.addresses.shape
    if num_ids == 0 or table.page_bytes == 0:
        return
    tiles = triton.cdiv(table.page_bytes, TILE_WORDS * WORD_BYTES)
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(table.addresses):  # type: ignore[no-untyped-call]
        kernel[(num_ids, layers, parts * tiles)](
            *pointers,
            table.page_bytes // UNIT_BYTES,
            table.stride_bytes // UNIT_BYTES,
            PARTS=parts,
            TILE=TILE_WORDS,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # nothing to fuse; left out, triton 3.9 warns
        )


def _variant(name: str, kernel: triton.JITFunction, pointers: dict[str, str]) -> Variant:
    return Variant(
        name=name,
        kernel=kernel,
        types={**pointers, **dict.fromkeys(_UNSPECIALISED, "i32")},
        constants={"PARTS": 2, "TILE": TILE_WORDS},
        work=Work.MOVE,
        payload_load_bytes=TILE_WORDS * WORD_BYTES,
        payload_store_bytes=TILE_WORDS * WORD_BYTES,
        num_warps=NUM_WARPS,
        narrow_loads=2,  # the page's id and the layer's address
    )


_IDS = {"addresses": "*i64", "ids": "*i32"}
VARIANTS = (
    _variant("gather_layers", gather_layers_words, {**_IDS, "out": "*i32"}),
    _variant("scatter_layers", scatter_layers_words, {"rows": "*i32", **_IDS}),
)
