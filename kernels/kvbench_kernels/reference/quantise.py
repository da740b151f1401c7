"""What the fp8 and int8 kernels must leave behind, in plain torch: slow, obvious, on any device.

Same arguments as the wrappers, without their demands on alignment. Scales are computed in float64
and rounded once. Codes refer to the scale as it is stored, and are computed in float32 as in the
kernels, with 1 / scale correctly rounded: in the interpreter they are equal, on a GPU, whose
division is off by up to two units in the last place, equal but for values near a tie. Also how far
off a dequantised value may be. Not for measuring.
"""

from __future__ import annotations

import torch

E4M3_MAX = 448.0
INT8_MAX = 127.0


def quantise_fp8(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, *, group: int, floor: float
) -> None:
    """Groups along the rows of x [rows, width]; codes float8_e4m3fn or uint8 [rows, width].

    scales float32 [rows, width / group].
    """
    scales.copy_(scales_of(x, group, E4M3_MAX, floor))
    fp8_codes(x, codes, scales)


def fp8_codes(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """The codes of x [rows, width] for scales that are given: [rows, groups] or [1]."""
    # torch makes NaN of what is too large; the hardware saturates.
    scaled = _scaled(x, scales).clamp(-E4M3_MAX, E4M3_MAX)
    codes.view(torch.float8_e4m3fn).copy_(scaled.to(torch.float8_e4m3fn))


def dequantise_fp8(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    """Codes times scales, [rows, groups] or [1], in float32; then to the type of out."""
    values = codes.view(torch.float8_e4m3fn).float()
    out.copy_(values * spread(scales, codes.shape))


def tensor_scale_fp8(x: torch.Tensor, *, floor: float) -> torch.Tensor:
    """The scale that fits all of x into e4m3, float32 [1]."""
    return (x.double().abs().amax() / E4M3_MAX).clamp(min=floor).float().reshape(1)


def quantise_int8(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, *, group: int, floor: float
) -> None:
    """Groups along the rows of x [rows, width]; codes int8, scales as for `quantise_fp8`."""
    scales.copy_(scales_of(x, group, INT8_MAX, floor))
    int8_codes(x, codes, scales)


def int8_codes(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """The codes of x [rows, width] for scales that are given, [rows, groups]."""
    codes.copy_(_scaled(x, scales).round().clamp(-INT8_MAX, INT8_MAX))  # round: ties to even


def dequantise_int8(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    """Codes times scales in float32; then to the type of out."""
    out.copy_(codes.float() * spread(scales, codes.shape))


def scales_of(x: torch.Tensor, group: int, largest: float, floor: float) -> torch.Tensor:
    """float64 [rows, width / group]: the largest size in each group over the largest code."""
    rows, width = x.shape
    grouped = x.double().reshape(rows, width // group, group)
    return (grouped.abs().amax(2) / largest).clamp(min=floor)


def spread(scales: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Scales [rows, groups] or [1], repeated for each value of [rows, width]."""
    if scales.dim() == 1:
        return scales.expand(shape)
    return scales.repeat_interleave(shape[1] // scales.shape[1], dim=1)


def fp8_bound(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """How far code * scale may be from x, float64 [rows, width].

    e4m3 has three bits of mantissa, so that rounding moves a value by 1/16 of the power of two
    below it at the most, which is 1/17 of a value halfway; below 2**-6 * scale it is half a
    subnormal step, 2**-10 * scale. The rest is for the roundings of float32.
    """
    subnormal = spread(scales.double(), x.shape) * 2.0**-10
    return torch.maximum(x.double().abs() / 17, subnormal) * (1 + 1e-6)


def int8_bound(scales: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """How far code * scale may be from x, float64 of this shape: half a step."""
    return spread(scales.double(), shape) / 2 * (1 + 2e-5)


def _scaled(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return x.float() * spread(1.0 / scales, x.shape)
