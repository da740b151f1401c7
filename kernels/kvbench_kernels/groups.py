"""Scale groups of neighbouring values and store them as 8-bit codes: the part that formats share.

A group is `group` values of a row, and stored = value / scale. The tile functions take addresses,
so that kvbench_kernels.fused can use them on pages; the kernels and launches serve
kvbench_kernels.fp8 and kvbench_kernels.int8, which hold the wrappers and say what a format is.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl

from kvbench_kernels.casts import cast_e4m3, encode_int8, round_to, uncast_e4m3
from kvbench_kernels.checks import (
    SCALE_FLOOR,
    UNIT_BYTES,
    check_device,
    check_disjoint,
    check_values,
    interpreted,
)
from kvbench_kernels.variant import CAPABILITIES, Variant, Work

VALUES = (torch.bfloat16, torch.float16, torch.float32)
GROUP_UNIT = 16  # codes in 16 bytes
MAX_GROUP = 1024
MAX_GROUPS = 2**31 - 1  # kernels count them in 32 bits

# Values of one program. Compiled for sm_100, 4096 bf16 values are four 16-byte loads a thread, and
# 96 KiB or more in flight on an SM. A code is half as large: 8192 take 42 registers for 80 KiB,
# 16384 take 72 for 112 KiB.
QUANTISE_TILE = 4096
DEQUANTISE_TILE = 16384
NUM_WARPS = 4

# By CAST: what a quantise kernel stores to, in Triton's words, what it is held to, and where.
CODE_TYPES = {"hw": "*fp8e4nv", "soft": "*u8", "int8": "*i8"}
WORKS = {"hw": Work.HARDWARE_CAST, "soft": Work.SOFTWARE_CAST, "int8": Work.INT8}
BUILT_FOR = {"hw": (90, 100), "soft": (80,), "int8": CAPABILITIES}

_UNSPECIALISED = ["groups", "stride_units", "code_stride_units"]  # as in kvbench_kernels.copy


@triton.jit
def inside(live, lane, GROUP: tl.constexpr, LANES: tl.constexpr):
    """The mask of lanes that hold a value of a group which is `live`."""
    if GROUP == LANES:
        return live
    else:  # noqa: RET505 - Triton takes no code after an if that returns
        return live & (lane < GROUP)


@triton.jit
def quantise_tile(
    x, codes, scales, x_at, codes_at, scales_at, live, floor,
    GROUP: tl.constexpr, LANES: tl.constexpr, CAST: tl.constexpr, ONE_SCALE: tl.constexpr,
):  # fmt: skip
    """Quantise the groups that start `x_at` values after x, where `live`; both are [groups].

    Their codes go to `codes_at`, their scales to `scales_at`. With ONE_SCALE there is one scale,
    and it is read. CAST is one of `cast_e4m3`, or "int8".
    """
    lane = tl.arange(0, LANES)[None, :]
    mask = inside(live[:, None], lane, GROUP, LANES)
    # Lanes beyond the group take part in its maximum.
    values = tl.load(x + x_at[:, None] + lane, mask=mask, other=0.0).to(tl.float32)
    if ONE_SCALE:
        scaled = values * (1.0 / tl.load(scales))
    else:
        largest: tl.constexpr = 127.0 if CAST == "int8" else 448.0
        scale = tl.maximum(tl.max(tl.abs(values), axis=1) * (1.0 / largest), floor)
        scaled = values * (1.0 / scale)[:, None]
    code = encode_int8(scaled) if CAST == "int8" else cast_e4m3(scaled, CAST)
    tl.store(codes + codes_at[:, None] + lane, code, mask=mask)
    if not ONE_SCALE:
        tl.store(scales + scales_at, scale, mask=live)


@triton.jit
def decode(code, CAST: tl.constexpr):
    """The bits of a code in a uint8 → float32."""
    if CAST == "int8":
        return code.to(tl.int8, bitcast=True).to(tl.float32)
    else:  # noqa: RET505 - as above
        return uncast_e4m3(code, CAST)


@triton.jit
def dequantise_tile(
    codes, scales, out, codes_at, scales_at, out_at, live,
    GROUP: tl.constexpr, LANES: tl.constexpr, CAST: tl.constexpr, ONE_SCALE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Dequantise the groups whose codes, in uint8, start at `codes_at`, where `live`.

    A thread reads 16 codes at a time, but writes 8 bf16 values: left to itself, Triton spreads
    them out through shared memory, with 7 barriers for 8192 codes. Here threads side by side swap
    one half of their codes, as bytes and within a warp: of each 32 codes the first 16 go to one
    store and the last 16 to another, and two threads fill a sector of 32 bytes.
    """
    tile: tl.constexpr = live.shape[0]
    kind: tl.constexpr = out.dtype.element_ty
    lane = tl.arange(0, LANES)[None, :]
    mask = inside(live[:, None], lane, GROUP, LANES)
    code = tl.load(codes + codes_at[:, None] + lane, mask=mask)
    if ONE_SCALE:
        scale = tl.load(scales)
    else:
        scale = tl.load(scales + scales_at, mask=live)[:, None, None, None]
    halves = tl.trans(tl.reshape(code, (tile, LANES // 32, 2, 2, 8)), (0, 1, 3, 4, 2))
    first, last = tl.split(halves)
    chunk = tl.arange(0, LANES // 32)[None, :, None, None]
    eight = tl.arange(0, 2)[None, None, :, None]
    lane = chunk * 32 + eight * 8 + tl.arange(0, 8)[None, None, None, :]
    at = out + out_at[:, None, None, None] + lane
    mask = inside(live[:, None, None, None], lane, GROUP, LANES)
    tl.store(at, round_to(decode(first, CAST) * scale, kind, INTERPRETED), mask=mask)
    mask = inside(live[:, None, None, None], lane + 16, GROUP, LANES)
    tl.store(at + 16, round_to(decode(last, CAST) * scale, kind, INTERPRETED), mask=mask)


@triton.jit
def starts(group, stride_units, UNIT: tl.constexpr, GROUP: tl.constexpr, IN_ROW: tl.constexpr):
    """Where groups start, with IN_ROW to a padded row, in values of which UNIT are 16 bytes."""
    return (group // IN_ROW).to(tl.int64) * stride_units * UNIT + group % IN_ROW * GROUP


@triton.jit(do_not_specialize=_UNSPECIALISED)
def quantise_groups(
    x, codes, scales, floor, groups, stride_units, code_stride_units,
    GROUP: tl.constexpr, IN_ROW: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr,
    CAST: tl.constexpr, ONE_SCALE: tl.constexpr,
):  # fmt: skip
    """Quantise `groups` groups of GROUP values, IN_ROW to a row; row strides in 16 bytes.

    Grid (cdiv(groups, TILE),). LANES is GROUP or the next power of two. IN_ROW is 0 where no row
    is padded: groups lie side by side then, whatever the strides.
    """
    unit: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    first = tl.program_id(0) * TILE
    local = tl.arange(0, TILE)
    if IN_ROW == 0:
        # One address and small offsets: with an address a group, 40 registers instead of 32.
        x += first.to(tl.int64) * GROUP
        codes += first.to(tl.int64) * GROUP
        x_at = local * GROUP
        codes_at = x_at
    else:
        x_at = starts(first + local, stride_units, unit, GROUP, IN_ROW)
        codes_at = starts(first + local, code_stride_units, 16, GROUP, IN_ROW)
    quantise_tile(
        x, codes, scales if ONE_SCALE else scales + first, x_at, codes_at, local,
        local < groups - first, floor, GROUP, LANES, CAST, ONE_SCALE,
    )  # fmt: skip


@triton.jit(do_not_specialize=_UNSPECIALISED)
def dequantise_groups(
    codes, scales, out, groups, code_stride_units, stride_units,
    GROUP: tl.constexpr, IN_ROW: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr,
    CAST: tl.constexpr, ONE_SCALE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The inverse of `quantise_groups`, on the same grid; codes as uint8."""
    unit: tl.constexpr = 128 // out.dtype.element_ty.primitive_bitwidth
    first = tl.program_id(0) * TILE
    local = tl.arange(0, TILE)
    if IN_ROW == 0:
        codes += first.to(tl.int64) * GROUP
        out += first.to(tl.int64) * GROUP
        codes_at = local * GROUP
        out_at = codes_at
    else:
        codes_at = starts(first + local, code_stride_units, 16, GROUP, IN_ROW)
        out_at = starts(first + local, stride_units, unit, GROUP, IN_ROW)
    dequantise_tile(
        codes, scales if ONE_SCALE else scales + first, out, codes_at, local, out_at,
        local < groups - first, GROUP, LANES, CAST, ONE_SCALE, INTERPRETED,
    )  # fmt: skip


def lanes(group: int) -> int:
    """Lanes of a tile for one group: a power of two, and the 32 that `dequantise_tile` needs."""
    return max(32, int(triton.next_power_of_2(group)))


def check_groups(
    name: str,
    values: torch.Tensor,
    codes: torch.Tensor,
    code_types: tuple[torch.dtype, ...],
    group: int,
    *,
    rows: int | None = None,
) -> None:
    """Raise ValueError unless both are rows cut into groups of this size, of one width.

    `rows` is how many rows of codes there must be, if not as many as of values.
    """
    if not (0 < group <= MAX_GROUP and group % GROUP_UNIT == 0):
        raise ValueError(f"group must be a multiple of {GROUP_UNIT} up to {MAX_GROUP}, got {group}")
    check_values(name, values, "[rows, width]", VALUES)
    check_values("codes", codes, "[rows, width]", code_types)
    width = values.shape[1]
    wanted = [values.shape[0] if rows is None else rows, width]
    if list(codes.shape) != wanted:
        raise ValueError(f"codes must be {wanted} to go with {name}, got {list(codes.shape)}")
    if width % group:
        raise ValueError(f"the width of {name} must be a multiple of group {group}, got {width}")
    if codes.numel() // group > MAX_GROUPS:
        groups = codes.numel() // group
        raise ValueError(f"there must be at most {MAX_GROUPS} groups, got {groups}")


def check_apart(**tensors: torch.Tensor) -> None:
    """Raise ValueError unless all are on one device and none overlaps another."""
    check_device(**tensors)
    for (name, tensor), (other, written) in itertools.combinations(tensors.items(), 2):
        check_disjoint(name, tensor, other, written)


def launch_quantise(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    group: int,
    cast: str,
    floor: float = SCALE_FLOOR,
    one_scale: bool = False,
) -> None:
    """Launch `quantise_groups` on arguments that were checked."""
    groups, tile = x.numel() // group, QUANTISE_TILE // lanes(group)
    if groups == 0:
        return
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        quantise_groups[(triton.cdiv(groups, tile),)](
            x,
            codes,
            scales,
            floor,
            groups,
            stride_units(x),
            stride_units(codes),
            GROUP=group,
            IN_ROW=groups_in_row(group, x, codes),
            LANES=lanes(group),
            TILE=tile,
            CAST=cast,
            ONE_SCALE=one_scale,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # see kvbench_kernels.casts
        )


def launch_dequantise(
    codes: torch.Tensor,
    scales: torch.Tensor,
    out: torch.Tensor,
    *,
    group: int,
    cast: str,
    one_scale: bool = False,
) -> None:
    """Launch `dequantise_groups` on arguments that were checked."""
    groups, tile = out.numel() // group, DEQUANTISE_TILE // lanes(group)
    if groups == 0:
        return
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        dequantise_groups[(triton.cdiv(groups, tile),)](
            codes.view(torch.uint8),
            scales,
            out,
            groups,
            stride_units(codes),
            stride_units(out),
            GROUP=group,
            IN_ROW=groups_in_row(group, codes, out),
            LANES=lanes(group),
            TILE=tile,
            CAST=cast,
            ONE_SCALE=one_scale,
            INTERPRETED=interpreted(),
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # nothing to fuse; left out, triton 3.9 warns
        )


def stride_units(tensor: torch.Tensor) -> int:
    """The row stride in 16 bytes."""
    return tensor.stride(0) * tensor.element_size() // UNIT_BYTES


def groups_in_row(group: int, *tensors: torch.Tensor) -> int:
    """IN_ROW of a launch: 0 where groups lie side by side in all of these."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return 0
    return tensors[0].shape[1] // group


def groups_variant(
    name: str,
    kernel: triton.JITFunction,
    *,
    group: int,
    cast: str,
    values: str = "bf16",
    in_row: int = 0,
    one_scale: bool = False,
) -> Variant:
    """What `launch_quantise` or `launch_dequantise` compiles; values in Triton's words."""
    quantises = kernel is quantise_groups
    tile = QUANTISE_TILE if quantises else DEQUANTISE_TILE
    value_bytes = tile * {"bf16": 2, "fp16": 2, "fp32": 4}[values] * group // lanes(group)
    code_bytes = tile * group // lanes(group)
    return Variant(
        name=name,
        kernel=kernel,
        types={
            **({"x": f"*{values}", "floor": "fp32"} if quantises else {"out": f"*{values}"}),
            "codes": CODE_TYPES[cast] if quantises else "*u8",
            "scales": "*fp32",
            **dict.fromkeys(_UNSPECIALISED, "i32"),
        },
        constants={
            "GROUP": group,
            "IN_ROW": in_row,
            "LANES": lanes(group),
            "TILE": tile // lanes(group),
            "CAST": cast,
            "ONE_SCALE": one_scale,
            **({} if quantises else {"INTERPRETED": False}),
        },
        work=WORKS[cast],
        payload_load_bytes=value_bytes if quantises else code_bytes,
        payload_store_bytes=code_bytes if quantises else value_bytes,
        num_warps=NUM_WARPS,
        # Scales: at most one an instruction for each row of the tile that a thread has part in.
        narrow_loads=int(one_scale) if quantises else 4,
        narrow_stores=int(quantises and not one_scale),
        capabilities=BUILT_FOR[cast],
    )
