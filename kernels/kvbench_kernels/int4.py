"""Quantise rows to int4 and back: a scale and a minimum for each group along a row.

Asymmetric: code = round((value - minimum) / scale) in 0..15, ties to even, and a dequantised value
is minimum + code * scale. The minimum stays a float32; an integer zero point in 0..15 would have no
bound on ranges without 0. Values must be finite and a group's range below float32's largest: this
is not checked on the device, and codes near a NaN are not defined. Only uint8 holds codes: int4 in
int8 would be sign-extended on the way out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvbench_kernels.casts import round_to
from kvbench_kernels.checks import (
    SCALE_FLOOR,
    UNIT_BYTES,
    check,
    check_aligned,
    check_device,
    check_disjoint,
    check_floor,
    check_values,
    interpreted,
)
from kvbench_kernels.variant import Variant, Work

GROUPS = (32, 64, 128)  # values of a row that share a scale
VALUES = (torch.bfloat16, torch.float16, torch.float32)
MAX_GROUPS = 2**31 - 1  # they are counted in int32
TILE_VALUES = 4096  # as in kvbench_kernels.copy: 64 bytes of bf16 a thread before its first store
NUM_WARPS = 4

# Adding 1.5 * 2**23 rounds to whole numbers and leaves them in the low bits, under these.
_MAGIC_BITS = 0x4B400000
# What is left of them in the sum of eight nibbles, in int32's wrapping arithmetic.
MAGIC_SUM = tl.constexpr((_MAGIC_BITS * 0x11111111 + 2**31) % 2**32 - 2**31)


@triton.jit
def nibble(value, minimum, inverse):
    """The code of a value in the low four bits of an int32 that has other bits from 22 up.

    There is no clamp to 0..15, since none could act: the minimum is the group's own, a scale that
    is rounded to bfloat16 is at most 2**-8 too small, and float32 adds about 2**-20, so a group's
    largest value comes to 15.06 at most. And there is no conversion to an integer, which GPUs do
    at a fraction of the rate of an addition.
    """
    steps = (value - minimum) * inverse
    return (steps + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def word_of_lane(GROUP: tl.constexpr):
    """Which words of a group's codes a thread has, int32 [steps, 1, 4].

    Four threads share a group. Of a step they load eight values each, side by side, so that they
    use whole sectors; a step later their words are next to each other too. Given to fewer threads
    than Triton would, a group costs less of what each thread has to repeat: with bf16 in groups of
    64, a sixth fewer instructions for sm_90 than with the values as one row.
    """
    return tl.arange(0, GROUP // 32)[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]


@triton.jit(do_not_specialize=["groups", "stride_units"])
def quantise_groups(
    x, codes, scales, minima, floor, groups, stride_units,
    GROUP: tl.constexpr, IN_ROW: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Quantise `groups` groups, IN_ROW to a row of x; codes in int32 words, strides in 16 bytes.

    Grid (cdiv(groups, TILE),).
    """
    unit: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    group = tl.program_id(0) * TILE + tl.arange(0, TILE)
    live = group < groups
    read = tl.minimum(group, groups - 1)  # no load needs a mask, which would cost registers
    row_at = (read // IN_ROW).to(tl.int64) * stride_units * unit + read % IN_ROW * GROUP
    word = word_of_lane(GROUP)
    eight = tl.arange(0, 8)[None, None, None, :]
    x_at = row_at[None, :, None, None] + (word * 8)[:, :, :, None] + eight
    values = tl.load(x + x_at).to(tl.float32)
    minimum = tl.min(tl.min(tl.min(values, axis=3), axis=0), axis=1)
    maximum = tl.max(tl.max(tl.max(values, axis=3), axis=0), axis=1)
    scale = tl.maximum((maximum - minimum) * (1.0 / 15.0), floor)
    inverse = 1.0 / scale
    nibbles = nibble(values, minimum[None, :, None, None], inverse[None, :, None, None])
    words = tl.sum(nibbles << (eight * 4), axis=3) - MAGIC_SUM
    codes_at = group.to(tl.int64)[None, :, None] * (GROUP // 8) + word
    tl.store(codes + codes_at, words, mask=live[None, :, None])
    tl.store(scales + group, scale, mask=live)
    tl.store(minima + group, minimum, mask=live)


@triton.jit(do_not_specialize=["groups", "stride_units"])
def dequantise_groups(
    codes, scales, minima, out, groups, stride_units,
    GROUP: tl.constexpr, IN_ROW: tl.constexpr, TILE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The inverse of `quantise_groups`, on the same grid."""
    kind: tl.constexpr = out.dtype.element_ty
    unit: tl.constexpr = 128 // kind.primitive_bitwidth
    group = tl.program_id(0) * TILE + tl.arange(0, TILE)
    live = group < groups
    word = word_of_lane(GROUP)
    eight = tl.arange(0, 8)[None, None, None, :]
    codes_at = group.to(tl.int64)[None, :, None] * (GROUP // 8) + word
    words = tl.load(codes + codes_at, mask=live[None, :, None])
    scale = tl.load(scales + group, mask=live)[None, :, None, None]
    minimum = tl.load(minima + group, mask=live)[None, :, None, None]
    steps = (words[:, :, :, None] >> (eight * 4)) & 15  # masked: int32 shifts copies of the sign
    values = round_to(steps.to(tl.float32) * scale + minimum, kind, INTERPRETED)
    row_at = (group // IN_ROW).to(tl.int64) * stride_units * unit + group % IN_ROW * GROUP
    out_at = row_at[None, :, None, None] + (word * 8)[:, :, :, None] + eight
    tl.store(out + out_at, values, mask=live[None, :, None, None])


def quantise_int4(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    minima: torch.Tensor,
    *,
    group: int,
    floor: float = SCALE_FLOOR,
) -> None:
    """Quantise each group of neighbouring values of a row to 4 bits, on the current stream.

    minimum = min(group), scale = max((max(group) - minimum) / 15, floor). A group of equal values
    comes back exactly; one whose range is below 15 * floor loses up to floor / 2 a value, every
    other one up to scale / 2 = range / 30. A negative zero comes back as zero.

    Args:
        x: bfloat16, float16 or float32 [rows, width], rows may be padded; address and stride are
            multiples of 16 bytes, width of `group`. Finite. Read only.
        codes: uint8 [rows, width / 2], contiguous, from a multiple of 16 bytes. Byte i of a row
            holds value 2 * i in its low half and 2 * i + 1 in its high half. Overwritten. Like the
            following, must not overlap x.
        scales: float32 [rows, width / group], contiguous, from a multiple of 16 bytes. Overwritten.
        minima: float32, laid out like scales. Overwritten.
        group: 32, 64 or 128.
        floor: the least scale, from 2**-126 up.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: 4-bit caches with a scale and a minimum for each token and group, as the values in
    KIVI, Liu et al. 2024, arXiv 2402.02750; there they are kept in the input's type.
    """
    _check_int4(x, codes, scales, minima, group, "x")
    check_floor(floor, scales.dtype)
    for name, written in (("codes", codes), ("scales", scales), ("minima", minima)):
        check_disjoint("x", x, name, written)
    groups = scales.numel()
    if groups == 0:
        return
    tile = TILE_VALUES // group
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        quantise_groups[(triton.cdiv(groups, tile),)](
            x,
            triton.reinterpret(codes, tl.int32),
            scales,
            minima,
            floor,
            groups,
            x.stride(0) * x.element_size() // UNIT_BYTES,
            GROUP=group,
            IN_ROW=scales.shape[1],
            TILE=tile,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # a fused multiply-add would swallow the rounding of `steps`
        )


def dequantise_int4(
    codes: torch.Tensor,
    scales: torch.Tensor,
    minima: torch.Tensor,
    out: torch.Tensor,
    *,
    group: int,
) -> None:
    """Turn what `quantise_int4` wrote into values again, on the current stream.

    out = minimum + code * scale in float32, then rounded to the nearest, ties to even.

    Args:
        codes: uint8 [rows, width / 2], as quantise_int4 takes it. Read only, like the following.
        scales: float32 [rows, width / group], as quantise_int4 takes it.
        minima: float32, laid out like scales.
        out: bfloat16, float16 or float32 [rows, width], rows may be padded; address and stride
            are multiples of 16 bytes. Overwritten. Must not overlap the others.
        group: 32, 64 or 128, the same as for quantise_int4.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: see `quantise_int4`.
    """
    _check_int4(out, codes, scales, minima, group, "out")
    for name, read in (("codes", codes), ("scales", scales), ("minima", minima)):
        check_disjoint(name, read, "out", out)
    groups = scales.numel()
    if groups == 0:
        return
    tile = TILE_VALUES // group
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        dequantise_groups[(triton.cdiv(groups, tile),)](
            triton.reinterpret(codes, tl.int32),
            scales,
            minima,
            out,
            groups,
            out.stride(0) * out.element_size() // UNIT_BYTES,
            GROUP=group,
            IN_ROW=scales.shape[1],
            TILE=tile,
            INTERPRETED=interpreted(),
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # a fused multiply-add would round unlike the interpreter
        )


def int4_bytes_moved(rows: int, width: int, group: int, element_bytes: int) -> int:
    """Bytes that quantising or dequantising reads and writes.

    Each value once in `element_bytes` and once in half a byte, and 8 bytes of scale and minimum
    for each group.
    """
    return rows * (width * element_bytes + width // 2 + width // group * 8)


def _check_int4(
    values: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    minima: torch.Tensor,
    group: int,
    name: str,
) -> None:
    if group not in GROUPS:
        raise ValueError(f"group must be one of {GROUPS}, got {group}")
    check_values(name, values, "[rows, width]", VALUES)
    rows, width = values.shape
    if width % group:
        raise ValueError(f"the width of {name} must be a multiple of group {group}, got {width}")
    check("codes", codes, (rows, width // 2), torch.uint8)
    check("scales", scales, (rows, width // group), torch.float32)
    check("minima", minima, (rows, width // group), torch.float32)
    for part, tensor in (("codes", codes), ("scales", scales), ("minima", minima)):
        check_aligned(part, tensor)
    if scales.numel() > MAX_GROUPS:
        raise ValueError(f"there must be at most {MAX_GROUPS} groups, got {scales.numel()}")
    check_device(codes=codes, scales=scales, minima=minima, **{name: values})


_PARTS = {"codes": "*i32", "scales": "*fp32", "minima": "*fp32"}
_COUNTS = {"groups": "i32", "stride_units": "i32"}
_SHAPE = {"GROUP": 64, "IN_ROW": 16, "TILE": TILE_VALUES // 64}  # rows of 8 heads of 128

VARIANTS = (
    Variant(
        name="quantise_int4.group_64",
        kernel=quantise_groups,
        types={"x": "*bf16", **_PARTS, "floor": "fp32", **_COUNTS},
        constants=_SHAPE,
        work=Work.INT4,
        payload_load_bytes=TILE_VALUES * 2,
        payload_store_bytes=TILE_VALUES // 2,
        num_warps=NUM_WARPS,
        narrow_stores=2,  # the scales and minima of the tile's groups
    ),
    Variant(
        name="dequantise_int4.group_64",
        kernel=dequantise_groups,
        types={**_PARTS, "out": "*bf16", **_COUNTS},
        constants={**_SHAPE, "INTERPRETED": False},
        work=Work.INT4,
        payload_load_bytes=TILE_VALUES // 2,
        payload_store_bytes=TILE_VALUES * 2,
        num_warps=NUM_WARPS,
        narrow_loads=4,  # the scales and minima of a thread's two groups
        # At 75 % occupancy and more, 24 KiB and more: Little's law asks for 19 at the most.
        exempt={"S4": "loads are a fifth of what it moves, so a fifth of the bytes will do"},
    ),
)
