"""Quantise rows to fp8 e4m3 and back: a scale for each group of values, or one for the tensor.

A group is `group` neighbouring values of a row: a whole row for a scale for each token and head,
32, 64 or 128 values for finer ones. stored = value / scale, so that a dequantised value is its
code times its scale. Values must be finite, which is not checked on the device: with an infinity
or a NaN the codes of its group, or of the tensor, mean nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvbench_kernels.casts import CastMode, cast_mode
from kvbench_kernels.checks import SCALE_FLOOR, check, check_device, check_floor, check_values
from kvbench_kernels.groups import (
    GROUP_UNIT,
    MAX_GROUP,
    NUM_WARPS,
    QUANTISE_TILE,
    VALUES,
    check_apart,
    check_groups,
    dequantise_groups,
    groups_in_row,
    groups_variant,
    inside,
    lanes,
    launch_dequantise,
    launch_quantise,
    quantise_groups,
    starts,
    stride_units,
)
from kvbench_kernels.variant import Variant, Work

E4M3_MAX = 448.0
CODES = (torch.float8_e4m3fn, torch.uint8)


@triton.jit(do_not_specialize=["groups", "stride_units"])
def largest_of_groups(
    x, partials, groups, stride_units,
    GROUP: tl.constexpr, IN_ROW: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """partials[program] = the largest size of a value; groups and grid as in `quantise_groups`."""
    unit: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    first = tl.program_id(0) * TILE
    local = tl.arange(0, TILE)
    if IN_ROW == 0:
        x += first.to(tl.int64) * GROUP
        x_at = local * GROUP
    else:
        x_at = starts(first + local, stride_units, unit, GROUP, IN_ROW)
    lane = tl.arange(0, LANES)[None, :]
    mask = inside((local < groups - first)[:, None], lane, GROUP, LANES)
    values = tl.load(x + x_at[:, None] + lane, mask=mask, other=0.0).to(tl.float32)
    tl.store(partials + tl.program_id(0), tl.max(tl.max(tl.abs(values), axis=1), axis=0))


def quantise_fp8(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    group: int,
    floor: float = SCALE_FLOOR,
) -> None:
    """Quantise each group of neighbouring values of a row to e4m3, on the current stream.

    scale = max(largest size of a value / 448, floor) and code = e4m3(value / scale), to the
    nearest, ties to even. A value comes back within the larger of 1/17 of itself and
    scale * 2**-10. One binary for each group, type of x and, with padding, number of groups a row.

    Args:
        x: bfloat16, float16 or float32 [rows, width], rows may be padded; address and stride are
            multiples of 16 bytes, width of `group`. Finite: not checked. Read only.
        codes: float8_e4m3fn, or uint8 for the same bytes, [rows, width], laid out like x.
            Overwritten. Must not overlap x, nor must scales.
        scales: float32 [rows, width / group], contiguous. Overwritten.
        group: values that share a scale, a multiple of 16 up to 1024: the head size for a scale
            for each token and head, or 32, 64 or 128 for finer ones.
        floor: the least scale, from 2**-126 up; that of a group which is all zeros.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: e4m3 of Micikevicius et al. 2022, "FP8 formats for deep learning", arXiv 2209.05433;
    scales for token and head as vLLM's `_reshape_cache_per_token`, for 128 values as its
    `fp8_ds_mla`. Their floors differ: 1e-6, 1e-4 / 448, 2**-126.
    """
    check_groups("x", x, codes, CODES, group)
    check("scales", scales, (x.shape[0], x.shape[1] // group), torch.float32)
    check_floor(floor, scales.dtype)
    check_apart(x=x, codes=codes, scales=scales)
    cast = cast_mode(x.device)
    launch_quantise(x, stored(codes, cast), scales, group=group, cast=cast, floor=floor)


def dequantise_fp8(
    codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor, *, group: int
) -> None:
    """Turn what `quantise_fp8` wrote into values again, on the current stream.

    out = code * scale in float32, then rounded to the nearest, ties to even. To float32 codes are
    re-spread through shared memory, which costs barriers that bfloat16 and float16 do without.

    Args:
        codes: float8_e4m3fn or uint8 [rows, width], rows may be padded; address and stride are
            multiples of 16 bytes, width of `group`. The codes of a NaN, 0x7f and 0xff, may come
            back as NaN or as 480 * scale. Read only.
        scales: float32 [rows, width / group], contiguous. Read only.
        out: bfloat16, float16 or float32 [rows, width], laid out like codes. Overwritten. Must
            not overlap the others.
        group: values that share a scale, as for quantise_fp8.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: see `quantise_fp8`.
    """
    check_groups("out", out, codes, CODES, group)
    check("scales", scales, (out.shape[0], out.shape[1] // group), torch.float32)
    check_apart(codes=codes, scales=scales, out=out)
    launch_dequantise(codes, scales, out, group=group, cast=cast_mode(out.device))


def tensor_scale_fp8(x: torch.Tensor, *, floor: float = SCALE_FLOOR) -> torch.Tensor:
    """The scale that fits all of `x` into e4m3: max(largest size of a value / 448, floor).

    One pass over x on the current stream, which leaves a maximum for each program, and torch's
    maximum of those. Nothing waits for the device.

    Args:
        x: as for `quantise_fp8`, of a width that is a multiple of 16. Read only.
        floor: the least scale, from 2**-126 up.

    Returns:
        float32 [1] on the device of x, as `quantise_fp8_tensor` takes it.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.
    """
    check_values("x", x, "[rows, width]", VALUES)
    check_floor(floor, torch.float32)
    group = chunk("x", x)
    check_groups("x", x, x, VALUES, group)
    check_device(x=x)
    groups, tile = x.numel() // group, QUANTISE_TILE // lanes(group)
    programs = triton.cdiv(groups, tile)
    if programs == 0:
        return torch.full((1,), floor, dtype=torch.float32, device=x.device)
    partials = torch.empty(programs, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        largest_of_groups[(programs,)](
            x,
            partials,
            groups,
            stride_units(x),
            GROUP=group,
            IN_ROW=groups_in_row(group, x),
            LANES=lanes(group),
            TILE=tile,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # nothing to fuse; left out, triton 3.9 warns
        )
    return (partials.max() / E4M3_MAX).clamp(min=floor).reshape(1)


def quantise_fp8_tensor(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> None:
    """Quantise all of `x` to e4m3 with a scale that is given, on the current stream.

    A value beyond 448 * scale becomes ±448. One binary for each width of a chunk (a power of two
    up to 1024), type of x and, with padding, number of chunks a row.

    Args:
        x: as for `quantise_fp8`, of a width that is a multiple of 16. Read only.
        codes: as for `quantise_fp8`. Overwritten.
        scale: float32 [1], normal and positive, such as `tensor_scale_fp8` makes; its value is
            not checked on the device. Read only.

    Raises:
        ValueError: a shape, dtype, device or alignment is not as above.

    Source: one `k_scale` or `v_scale` a layer, as in vLLM's `reshape_and_cache_flash`.
    """
    group = chunk("x", x)
    check_groups("x", x, codes, CODES, group)
    check("scale", scale, (1,), torch.float32)
    check_apart(x=x, codes=codes, scale=scale)
    cast = cast_mode(x.device)
    launch_quantise(x, stored(codes, cast), scale, group=group, cast=cast, one_scale=True)


def dequantise_fp8_tensor(codes: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    """Turn what `quantise_fp8_tensor` wrote into values again, on the current stream.

    Args:
        codes: as for `dequantise_fp8`, of a width that is a multiple of 16. Read only.
        scale: float32 [1]. Read only.
        out: as for `dequantise_fp8`. Overwritten.

    Raises:
        ValueError: a shape, dtype, device or alignment is not as above.

    Source: see `quantise_fp8_tensor`.
    """
    group = chunk("out", out)
    check_groups("out", out, codes, CODES, group)
    check("scale", scale, (1,), torch.float32)
    check_apart(codes=codes, scale=scale, out=out)
    cast = cast_mode(out.device)
    launch_dequantise(codes, scale, out, group=group, cast=cast, one_scale=True)


def fp8_bytes_moved(rows: int, width: int, element_bytes: int, group: int | None) -> int:
    """Bytes that quantising or dequantising reads and writes.

    Each value once in `element_bytes` and once in a byte, and 4 bytes of scale for each group;
    with a group of None one scale for all. `tensor_scale_fp8` is not in it: it reads all values
    once more.
    """
    scales = 1 if group is None else rows * (width // group)
    return rows * width * (element_bytes + 1) + 4 * scales


def stored(codes: torch.Tensor, cast: CastMode) -> torch.Tensor:
    """The codes in the type that `cast_e4m3` gives: uint8 in software, float8_e4m3fn otherwise."""
    return codes.view(torch.uint8 if cast == "soft" else torch.float8_e4m3fn)


def chunk(name: str, values: torch.Tensor) -> int:
    """How many values of a row to take at once where the scale does not say."""
    width = values.shape[-1]
    if width % GROUP_UNIT:
        raise ValueError(f"the width of {name} must be a multiple of {GROUP_UNIT}, got {width}")
    return min(MAX_GROUP, width & -width) or GROUP_UNIT  # the largest power of two in it


# Name, group, groups a row (where rows have a gap after 8 heads), one scale for all.
_SHAPES = (
    ("token_head", 128, 0, False),
    ("block_32", 32, 0, False),
    ("padded", 128, 8, False),
    ("tensor", MAX_GROUP, 0, True),
)

VARIANTS = (
    *(
        groups_variant(
            f"{which}.{name}{suffix}",
            kernel,
            group=group,
            in_row=in_row,
            one_scale=one_scale,
            cast=cast,
        )
        for which, kernel in (
            ("quantise_fp8", quantise_groups),
            ("dequantise_fp8", dequantise_groups),
        )
        for cast, suffix in (("hw", ""), ("soft", "_software"))
        for name, group, in_row, one_scale in _SHAPES
    ),
    groups_variant(
        "quantise_fp8.token_head_float32", quantise_groups, group=128, values="fp32", cast="hw"
    ),
    Variant(
        name="tensor_scale_fp8",
        kernel=largest_of_groups,
        types={"x": "*bf16", "partials": "*fp32", "groups": "i32", "stride_units": "i32"},
        constants={"GROUP": 1024, "IN_ROW": 0, "LANES": 1024, "TILE": QUANTISE_TILE // 1024},
        work=Work.CHECKSUM,  # all that it does with what it reads is to make it few
        payload_load_bytes=QUANTISE_TILE * 2,
        payload_store_bytes=0,
        num_warps=NUM_WARPS,
        narrow_stores=1,
    ),
)
