"""Gather pages and quantise them in one pass, and dequantise them back to their pages.

What kvbench_kernels.gather and then kvbench_kernels.fp8 (or int8) would do, bit for bit, without
writing the pages in between: 2 bytes read and 1 written for a bf16 value instead of 4 and 3. Page
ids are not checked on the device: one that is too large reads or writes outside the cache. Values
must be finite, as in those modules.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvbench_kernels.casts import cast_mode
from kvbench_kernels.checks import SCALE_FLOOR, check, check_floor, interpreted
from kvbench_kernels.fp8 import CODES, stored
from kvbench_kernels.groups import (
    BUILT_FOR,
    CODE_TYPES,
    DEQUANTISE_TILE,
    NUM_WARPS,
    QUANTISE_TILE,
    WORKS,
    check_apart,
    check_groups,
    dequantise_tile,
    lanes,
    quantise_tile,
    stride_units,
)
from kvbench_kernels.variant import Variant

MAX_TILES = 65535  # CUDA's limit on the second dimension of a grid

_UNSPECIALISED = ["groups", "stride_units", "code_stride_units"]  # as in kvbench_kernels.copy


@triton.jit(do_not_specialize=_UNSPECIALISED)
def gather_quantise_groups(
    cache, ids, codes, scales, floor, groups, stride_units, code_stride_units,
    GROUP: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """Row i = page ids[i], of `groups` groups, quantised, for each id >= 0; strides in 16 bytes.

    Grid (ids, cdiv(groups, TILE)).
    """
    unit: tl.constexpr = 128 // cache.dtype.element_ty.primitive_bitwidth
    row = tl.program_id(0)
    page = tl.load(ids + row).to(tl.int64)
    row = row.to(tl.int64)
    group = tl.program_id(1) * TILE + tl.arange(0, TILE)
    quantise_tile(
        cache + page * stride_units * unit,
        codes + row * code_stride_units * 16,
        scales + row * groups,
        group * GROUP, group * GROUP, group, group < tl.where(page >= 0, groups, 0), floor,
        GROUP, LANES, CAST, False,
    )  # fmt: skip


@triton.jit(do_not_specialize=_UNSPECIALISED)
def dequantise_scatter_groups(
    codes, scales, ids, cache, groups, code_stride_units, stride_units,
    GROUP: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr, CAST: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The inverse of `gather_quantise_groups`, on the same grid; codes as uint8."""
    unit: tl.constexpr = 128 // cache.dtype.element_ty.primitive_bitwidth
    row = tl.program_id(0)
    page = tl.load(ids + row).to(tl.int64)
    row = row.to(tl.int64)
    group = tl.program_id(1) * TILE + tl.arange(0, TILE)
    dequantise_tile(
        codes + row * code_stride_units * 16,
        scales + row * groups,
        cache + page * stride_units * unit,
        group * GROUP, group, group * GROUP, group < tl.where(page >= 0, groups, 0),
        GROUP, LANES, CAST, False, INTERPRETED,
    )  # fmt: skip


def gather_quantise_fp8(
    cache: torch.Tensor,
    page_ids: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    group: int,
    floor: float = SCALE_FLOOR,
) -> None:
    """Quantise the pages named by `page_ids` to e4m3 rows, on the current stream.

    Bit for bit what `gather_pages` and then `quantise_fp8` leave: see there for the format.

    Args:
        cache: bfloat16, float16 or float32 [num_pages, page_values], pages may be padded; address
            and stride are multiples of 16 bytes, page_values of `group`. Finite: not checked.
            Read only.
        page_ids: int32 or int64 [n], contiguous, each in [0, num_pages) or -1, which leaves its
            row of codes and scales as it is. May repeat. The range is not checked on the device.
        codes: float8_e4m3fn, or uint8 for the same bytes, [n, page_values], rows may be padded,
            address and stride likewise. Overwritten. Must not overlap the others.
        scales: float32 [n, page_values / group], contiguous. Overwritten. Must not overlap the
            others.
        group: neighbouring values that share a scale, a multiple of 16 up to 1024: the head size
            for a scale for each token and head.
        floor: the least scale, from 2**-126 up.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: see `kvbench_kernels.fp8.quantise_fp8`.
    """
    _check(cache, page_ids, codes, scales, CODES, group)
    check_floor(floor, scales.dtype)
    cast = cast_mode(cache.device)
    _launch_gather(cache, page_ids, stored(codes, cast), scales, group, floor, cast)


def dequantise_scatter_fp8(
    codes: torch.Tensor,
    scales: torch.Tensor,
    page_ids: torch.Tensor,
    cache: torch.Tensor,
    *,
    group: int,
) -> None:
    """Dequantise e4m3 rows to the pages named by `page_ids`, on the current stream.

    Bit for bit what `dequantise_fp8` and then `scatter_pages` leave.

    Args:
        codes: as for `gather_quantise_fp8`. Read only.
        scales: as for `gather_quantise_fp8`. Read only.
        page_ids: int32 or int64 [n], contiguous, each in [0, num_pages) or -1, which skips its
            row. Must not repeat: which row would win is left to chance. Neither is checked on
            the device.
        cache: as for `gather_quantise_fp8`. Overwritten where named. Must not overlap the others.
        group: neighbouring values that share a scale, as for gather_quantise_fp8.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: see `kvbench_kernels.fp8.quantise_fp8`.
    """
    _check(cache, page_ids, codes, scales, CODES, group)
    _launch_scatter(codes, scales, page_ids, cache, group, cast_mode(cache.device))


def gather_quantise_int8(
    cache: torch.Tensor,
    page_ids: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    group: int,
    floor: float = SCALE_FLOOR,
) -> None:
    """Quantise the pages named by `page_ids` to int8 rows, on the current stream.

    Bit for bit what `gather_pages` and then `quantise_int8` leave: see there for the format.

    Args:
        cache: as for `gather_quantise_fp8`. Read only.
        page_ids: as for `gather_quantise_fp8`.
        codes: int8, the rest as for `gather_quantise_fp8`. Overwritten.
        scales: as for `gather_quantise_fp8`. Overwritten.
        group: as for `gather_quantise_fp8`.
        floor: the least scale, from 2**-126 up.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: see `kvbench_kernels.int8.quantise_int8`.
    """
    _check(cache, page_ids, codes, scales, (torch.int8,), group)
    check_floor(floor, scales.dtype)
    _launch_gather(cache, page_ids, codes, scales, group, floor, "int8")


def dequantise_scatter_int8(
    codes: torch.Tensor,
    scales: torch.Tensor,
    page_ids: torch.Tensor,
    cache: torch.Tensor,
    *,
    group: int,
) -> None:
    """Dequantise int8 rows to the pages named by `page_ids`, on the current stream.

    Bit for bit what `dequantise_int8` and then `scatter_pages` leave.

    Args:
        codes: as for `gather_quantise_int8`. Read only.
        scales: as for `gather_quantise_fp8`. Read only.
        page_ids: as for `dequantise_scatter_fp8`.
        cache: as for `dequantise_scatter_fp8`. Overwritten where named.
        group: as for `gather_quantise_fp8`.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: see `kvbench_kernels.int8.quantise_int8`.
    """
    _check(cache, page_ids, codes, scales, (torch.int8,), group)
    _launch_scatter(codes, scales, page_ids, cache, group, "int8")


def fused_bytes_moved(
    num_pages: int, page_values: int, element_bytes: int, group: int, id_bytes: int
) -> int:
    """Bytes that a fused gather or scatter reads and writes, in fp8 or int8.

    Each value once in `element_bytes` and once in a byte, 4 bytes of scale for each group, and
    the id of each page. `num_pages` counts the ids that are not -1. Tiles of one page after the
    first find its id in a cache.
    """
    of_page = page_values * (element_bytes + 1) + page_values // group * 4
    return num_pages * (of_page + id_bytes)


def _check(
    cache: torch.Tensor,
    page_ids: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    code_types: tuple[torch.dtype, ...],
    group: int,
) -> None:
    count = page_ids.numel()
    check("page_ids", page_ids, (count,), (torch.int32, torch.int64))
    check_groups("cache", cache, codes, code_types, group, rows=count)
    page_values = cache.shape[1]
    check("scales", scales, (count, page_values // group), torch.float32)
    most = MAX_TILES * QUANTISE_TILE // lanes(group) * group
    if page_values > most:
        raise ValueError(f"a page must not exceed {most} values, got {page_values}")
    check_apart(cache=cache, page_ids=page_ids, codes=codes, scales=scales)


def _launch_gather(
    cache: torch.Tensor,
    page_ids: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    group: int,
    floor: float,
    cast: str,
) -> None:
    groups, tile = scales.shape[1], QUANTISE_TILE // lanes(group)
    if scales.numel() == 0:
        return
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(cache):  # type: ignore[no-untyped-call]
        gather_quantise_groups[(page_ids.numel(), triton.cdiv(groups, tile))](
            cache,
            page_ids,
            codes,
            scales,
            floor,
            groups,
            stride_units(cache),
            stride_units(codes),
            GROUP=group,
            LANES=lanes(group),
            TILE=tile,
            CAST=cast,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # see kvbench_kernels.casts
        )


def _launch_scatter(
    codes: torch.Tensor,
    scales: torch.Tensor,
    page_ids: torch.Tensor,
    cache: torch.Tensor,
    group: int,
    cast: str,
) -> None:
    groups, tile = scales.shape[1], DEQUANTISE_TILE // lanes(group)
    if scales.numel() == 0:
        return
    with torch.cuda.device_of(cache):  # type: ignore[no-untyped-call]
        dequantise_scatter_groups[(page_ids.numel(), triton.cdiv(groups, tile))](
            codes.view(torch.uint8),
            scales,
            page_ids,
            cache,
            groups,
            stride_units(codes),
            stride_units(cache),
            GROUP=group,
            LANES=lanes(group),
            TILE=tile,
            CAST=cast,
            INTERPRETED=interpreted(),
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # nothing to fuse; left out, triton 3.9 warns
        )


def _variant(name: str, kernel: triton.JITFunction, cast: str) -> Variant:
    group = 128
    quantises = kernel is gather_quantise_groups
    tile = QUANTISE_TILE if quantises else DEQUANTISE_TILE
    return Variant(
        name=name,
        kernel=kernel,
        types={
            "cache": "*bf16",
            "ids": "*i32",
            "codes": CODE_TYPES[cast] if quantises else "*u8",
            "scales": "*fp32",
            **({"floor": "fp32"} if quantises else {}),
            **dict.fromkeys(_UNSPECIALISED, "i32"),
        },
        constants={
            "GROUP": group,
            "LANES": lanes(group),
            "TILE": tile // lanes(group),
            "CAST": cast,
            **({} if quantises else {"INTERPRETED": False}),
        },
        work=WORKS[cast],
        payload_load_bytes=tile * 2 if quantises else tile,
        payload_store_bytes=tile if quantises else tile * 2,
        num_warps=NUM_WARPS,
        narrow_loads=1 if quantises else 5,  # the id, and up to four scales
        narrow_stores=1 if quantises else 0,
        capabilities=BUILT_FOR[cast],
    )


VARIANTS = tuple(
    _variant(f"{which}_{name}", kernel, cast)
    for which, kernel in (
        ("gather_quantise", gather_quantise_groups),
        ("dequantise_scatter", dequantise_scatter_groups),
    )
    for name, cast in (("fp8", "hw"), ("fp8.software", "soft"), ("int8", "int8"))
)
