"""Quantise a key cache to int4 and back: a scale and a minimum for each channel and few tokens.

Keys have channels that are large in every token. A group along a row holds such a channel and its
small neighbours, which then share a coarse scale; a group along the tokens holds one channel. The
arithmetic, and what it asks of values, is that of kvbench_kernels.int4. The tokens of a block that
do not fill a group are the caller's to keep as they are, as in KIVI: nothing is padded here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvbench_kernels.casts import round_to
from kvbench_kernels.checks import (
    SCALE_FLOOR,
    check,
    check_aligned,
    check_device,
    check_disjoint,
    check_floor,
    check_values,
    interpreted,
)
from kvbench_kernels.int4 import nibble
from kvbench_kernels.variant import Variant, Work

GROUPS = (16, 32, 64)  # tokens that share a scale
VALUES = (torch.bfloat16, torch.float16)
CHANNELS = 8  # of a thread: 16 bytes of x, and of four tokens' codes
MAX_UNITS = 2**31 - 1  # a thread's channels in a group are one unit; they are counted in int32
# Tokens that a thread walks, holding them in registers, so that x is read once. All 32 of a group
# would take 255 registers for sm_90, 16 take 96, and 147 for sm_100, which is too many.
WALK = 8
NUM_WARPS = 4

_UNSPECIALISED = ["units", "groups", "channel_units", "block_units", "token_units"]


@triton.jit
def unit_of_lane(
    units, channel_units, GROUP: tl.constexpr, WALK: tl.constexpr, WARPS: tl.constexpr
):
    """Where the threads of a program are, int32 [warps, 1, lanes, 1]: live, group, channel unit.

    The GROUP / WALK threads of a group are in one warp, so that they find its minimum without
    shared memory. Past the end the last unit is repeated, not live: then no load needs a mask,
    which would cost registers.
    """
    lanes: tl.constexpr = 32 * WALK // GROUP
    warp = tl.arange(0, WARPS)[:, None, None, None] * lanes
    lane = tl.arange(0, lanes)[None, None, :, None]
    unit = tl.program_id(0) * (WARPS * lanes) + warp + lane
    live = unit < units
    unit = tl.minimum(unit, units - 1)
    return live, unit // channel_units, unit % channel_units


@triton.jit
def value_offsets(
    group, channel, groups, block_units, token_units, GROUP: tl.constexpr, WALK: tl.constexpr
):
    """Offset of each thread's first token in x, of its first four in codes: [warps, parts, lanes].

    x in values, int64, codes in rows of channels, int32.
    """
    token = tl.arange(0, GROUP // WALK)[None, :, None, None] * WALK
    in_block = (group % groups * GROUP + token).to(tl.int64)
    row_units = (group // groups).to(tl.int64) * block_units + in_block * token_units
    return (row_units + channel) * 8, group * (GROUP // 4) + token // 4


@triton.jit
def grown(values, value):
    """A tuple with one value more."""
    return values + (value,)  # noqa: RUF005 - Triton has no unpacking


@triton.jit(do_not_specialize=_UNSPECIALISED)
def quantise_channels(
    x, codes, scales, minima, floor, units, groups, channel_units, block_units, token_units,
    GROUP: tl.constexpr, WALK: tl.constexpr, WARPS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Quantise `units` times 8 channels of a group of tokens, `groups` groups to a block.

    codes is int16 [tokens / 4, channels]. Strides are in 16 bytes, and all channels of a token are
    `channel_units` of those. Grid (cdiv(units, WARPS * 32 * WALK / GROUP),).
    """
    live, group, channel = unit_of_lane(units, channel_units, GROUP, WALK, WARPS)
    x_at, quad = value_offsets(group, channel, groups, block_units, token_units, GROUP, WALK)
    eight = tl.arange(0, 8)[None, None, None, :]
    first = x + x_at + eight
    step = token_units.to(tl.int64) * 8
    held = (tl.load(first),)
    low = held[0].to(tl.float32)
    high = low
    for i in tl.static_range(1, WALK):
        held = grown(held, tl.load(first + i * step))
        low = tl.minimum(low, held[i].to(tl.float32))
        high = tl.maximum(high, held[i].to(tl.float32))
    minimum = tl.min(low, axis=1, keep_dims=True)
    maximum = tl.max(high, axis=1, keep_dims=True)
    scale = tl.maximum((maximum - minimum) * (1.0 / 15.0), floor)
    stored = round_to(scale, scales.dtype.element_ty, INTERPRETED)
    inverse = 1.0 / stored.to(tl.float32)
    channels = channel_units.to(tl.int64) * 8
    codes_at = codes + (quad * channels + channel * 8 + eight)
    for i in tl.static_range(WALK // 4):
        word = nibble(held[4 * i].to(tl.float32), minimum, inverse)
        for j in tl.static_range(1, 4):
            word += nibble(held[4 * i + j].to(tl.float32), minimum, inverse) << (4 * j)
        # To int16 without the nibbles' other bits.
        tl.store(codes_at + i * channels, word.to(tl.int16), mask=live)
    scale_at = group * channels + channel * 8 + eight
    tl.store(scales + scale_at, stored, mask=live)
    # Exact in the type of x, of which it is a value.
    tl.store(minima + scale_at, round_to(minimum, minima.dtype.element_ty, INTERPRETED), mask=live)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def dequantise_channels(
    codes, scales, minima, out, units, groups, channel_units, block_units, token_units,
    GROUP: tl.constexpr, WALK: tl.constexpr, WARPS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The inverse of `quantise_channels`, on the same grid."""
    kind: tl.constexpr = out.dtype.element_ty
    live, group, channel = unit_of_lane(units, channel_units, GROUP, WALK, WARPS)
    out_at, quad = value_offsets(group, channel, groups, block_units, token_units, GROUP, WALK)
    eight = tl.arange(0, 8)[None, None, None, :]
    first = out + out_at + eight
    step = token_units.to(tl.int64) * 8
    channels = channel_units.to(tl.int64) * 8
    codes_at = codes + (quad * channels + channel * 8 + eight)
    words = (tl.load(codes_at),)
    for i in tl.static_range(1, WALK // 4):
        words = grown(words, tl.load(codes_at + i * channels))
    # Each thread of a group reads the scales, at no cost in a warp. Read once and spread out, they
    # would come in another layout, and every store would pass through shared memory.
    scale_at = tl.broadcast_to(group * channels + channel * 8 + eight, words[0].shape)
    scale = tl.load(scales + scale_at).to(tl.float32)
    minimum = tl.load(minima + scale_at).to(tl.float32)
    for i in tl.static_range(WALK):
        # Masked, for int16 and int32 shift in copies of the sign.
        code = (words[i // 4].to(tl.int32) >> (i % 4 * 4)) & 15
        value = round_to(code.to(tl.float32) * scale + minimum, kind, INTERPRETED)
        tl.store(first + i * step, value, mask=live)


def quantise_kivi(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    minima: torch.Tensor,
    *,
    group: int,
    floor: float = SCALE_FLOOR,
) -> None:
    """Quantise each channel of `group` neighbouring tokens to 4 bits, on the current stream.

    minimum = min(group), scale = max((max(group) - minimum) / 15, floor), as stored. A group of
    equal values comes back exactly; one whose range is below 15 * floor loses up to floor / 2 a
    value, every other one up to scale / 2.

    Args:
        x: bfloat16 or float16 [blocks, tokens, channels], such as the keys of paged blocks with
            channels = kv_heads * head_dim. Tokens and blocks may be padded: strides are multiples
            of 16 bytes. Address a multiple of 16 bytes, channels of 8, tokens of `group`. Finite.
            Read only.
        codes: uint8 [blocks, tokens / 4, channels, 2], contiguous, from a multiple of 16 bytes.
            Of each channel the codes of four tokens stand together, the first in the low half of
            the first byte, the second in its high half. With two channels a byte, or with two
            tokens and the channels side by side, a thread would have 4 or 8 bytes to store.
            Overwritten. Like the following, must not overlap x.
        scales: float32, or the type of x as in KIVI, [blocks, tokens / group, channels],
            contiguous, from a multiple of 16 bytes. Overwritten. In float32 the codes have the
            full bound of range / 30; rounded to bfloat16 a scale may be 2**-8 coarser.
        minima: like scales. Overwritten.
        group: 16, 32 or 64.
        floor: the least scale, from the least normal number of its type up: 2**-126, but 2**-14
            in float16.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: KIVI, Liu et al. 2024, arXiv 2402.02750 (keys by channel, groups of 32, here in 4 bits).
    """
    _check_kivi(x, codes, scales, minima, group, "x")
    check_floor(floor, scales.dtype)
    for name, written in (("codes", codes), ("scales", scales), ("minima", minima)):
        check_disjoint("x", x, name, written)
    if x.numel() == 0:
        return
    units = scales.numel() // CHANNELS
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        quantise_channels[_grid(units, group)](
            x,
            triton.reinterpret(codes, tl.int16),
            scales,
            minima,
            floor,
            units,
            x.shape[1] // group,
            x.shape[2] // CHANNELS,
            x.stride(0) // CHANNELS,
            x.stride(1) // CHANNELS,
            GROUP=group,
            WALK=WALK,
            WARPS=NUM_WARPS,
            INTERPRETED=interpreted(),
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # a fused multiply-add would swallow the rounding of `nibble`
        )


def dequantise_kivi(
    codes: torch.Tensor,
    scales: torch.Tensor,
    minima: torch.Tensor,
    out: torch.Tensor,
    *,
    group: int,
) -> None:
    """Turn what `quantise_kivi` wrote into values again, on the current stream.

    out = minimum + code * scale in float32, then rounded to the nearest, ties to even.

    Args:
        codes: uint8 [blocks, tokens / 4, channels, 2], as quantise_kivi takes it. Read only, like
            the following.
        scales: float32 or the type of out [blocks, tokens / group, channels], as quantise_kivi
            takes it.
        minima: like scales.
        out: bfloat16 or float16 [blocks, tokens, channels]; may be padded as the x of
            quantise_kivi. Overwritten. Must not overlap the others.
        group: 16, 32 or 64, the same as for quantise_kivi.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: see `quantise_kivi`.
    """
    _check_kivi(out, codes, scales, minima, group, "out")
    for name, read in (("codes", codes), ("scales", scales), ("minima", minima)):
        check_disjoint(name, read, "out", out)
    if out.numel() == 0:
        return
    units = scales.numel() // CHANNELS
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        dequantise_channels[_grid(units, group)](
            triton.reinterpret(codes, tl.int16),
            scales,
            minima,
            out,
            units,
            out.shape[1] // group,
            out.shape[2] // CHANNELS,
            out.stride(0) // CHANNELS,
            out.stride(1) // CHANNELS,
            GROUP=group,
            WALK=WALK,
            WARPS=NUM_WARPS,
            INTERPRETED=interpreted(),
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # a fused multiply-add would round unlike the interpreter
        )


def kivi_bytes_moved(
    blocks: int, tokens: int, channels: int, group: int, element_bytes: int, scale_bytes: int = 4
) -> int:
    """Bytes that quantising or dequantising reads and writes.

    Each value once in `element_bytes` and once in half a byte, and a scale and a minimum of
    `scale_bytes` each for each group of tokens of a channel.
    """
    values = blocks * tokens * channels
    return values * element_bytes + values // 2 + values // group * 2 * scale_bytes


def _grid(units: int, group: int) -> tuple[int]:
    return (triton.cdiv(units, NUM_WARPS * 32 * WALK // group),)


def _check_kivi(
    values: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    minima: torch.Tensor,
    group: int,
    name: str,
) -> None:
    if group not in GROUPS:
        raise ValueError(f"group must be one of {GROUPS} tokens, got {group}")
    check_values(name, values, "[blocks, tokens, channels]", VALUES)
    blocks, tokens, channels = values.shape
    if tokens % group or channels % CHANNELS:
        raise ValueError(
            f"the tokens of {name} must be a multiple of group {group} and its channels of "
            f"{CHANNELS}, got {list(values.shape)}"
        )
    of_groups = (blocks, tokens // group, channels)
    kinds = (torch.float32, values.dtype)
    check("codes", codes, (blocks, tokens // 4, channels, 2), torch.uint8)
    check("scales", scales, of_groups, kinds)
    check("minima", minima, of_groups, scales.dtype)
    for part, tensor in (("codes", codes), ("scales", scales), ("minima", minima)):
        check_aligned(part, tensor)
    if scales.numel() // CHANNELS > MAX_UNITS:
        raise ValueError(
            f"there must be at most {MAX_UNITS} groups of {CHANNELS} channels, "
            f"got {scales.numel() // CHANNELS}"
        )
    check_device(codes=codes, scales=scales, minima=minima, **{name: values})


_PARTS = {"codes": "*i16", "scales": "*fp32", "minima": "*fp32"}
_COUNTS = dict.fromkeys(_UNSPECIALISED, "i32")
_GROUP = 32
_SHAPE = {"GROUP": _GROUP, "WALK": WALK, "WARPS": NUM_WARPS, "INTERPRETED": False}
_TILE_VALUES = NUM_WARPS * 32 * WALK * CHANNELS

VARIANTS = (
    Variant(
        name="quantise_kivi.tokens_32",
        kernel=quantise_channels,
        types={"x": "*bf16", **_PARTS, "floor": "fp32", **_COUNTS},
        constants=_SHAPE,
        work=Work.CHANNELS,
        payload_load_bytes=_TILE_VALUES * 2,
        payload_store_bytes=_TILE_VALUES // 2,
        num_warps=NUM_WARPS,
        narrow_stores=2,  # four threads share the scales and minima of their channels
    ),
    Variant(
        name="dequantise_kivi.tokens_32",
        kernel=dequantise_channels,
        types={**_PARTS, "out": "*bf16", **_COUNTS},
        constants=_SHAPE,
        work=Work.CHANNELS,
        payload_load_bytes=_TILE_VALUES // 2,
        payload_store_bytes=_TILE_VALUES * 2,
        num_warps=NUM_WARPS,
        exempt={"S11": "scales and minima are in 16-byte accesses too, the same for four threads"},
    ),
)
