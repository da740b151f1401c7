"""What the int4 kernels must leave behind, in plain torch: slow, obvious, and on any device.

Same arguments as the wrappers, without their demands on alignment. Computed in float64, except
that codes refer to the scale and minimum as they are stored. Not for measuring.
"""

from __future__ import annotations

import torch

LARGEST_CODE = 15


def quantise_int4(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    minima: torch.Tensor,
    *,
    group: int,
    floor: float,
) -> None:
    """Groups along the rows of x [rows, width]; codes uint8 [rows, width / 2], even value low.

    scales and minima float32 [rows, width / group].
    """
    rows, width = x.shape
    grouped = x.double().reshape(rows, width // group, group)
    steps = _quantise(grouped, 2, scales, minima, floor).reshape(rows, width // 2, 2)
    codes.copy_(steps[:, :, 0] + 16 * steps[:, :, 1])


def dequantise_int4(
    codes: torch.Tensor,
    scales: torch.Tensor,
    minima: torch.Tensor,
    out: torch.Tensor,
    *,
    group: int,
) -> None:
    """The inverse of `quantise_int4`; out [rows, width] of any floating-point type."""
    rows, width = out.shape
    steps = torch.stack((codes % 16, codes // 16), dim=2).reshape(rows, width // group, group)
    values = steps.double() * scales.double()[:, :, None] + minima.double()[:, :, None]
    out.copy_(values.reshape(rows, width))


def quantise_kivi(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    minima: torch.Tensor,
    *,
    group: int,
    floor: float,
) -> None:
    """Groups of neighbouring tokens of each channel of x [blocks, tokens, channels].

    codes uint8 [blocks, tokens / 4, channels, 2], the first of four tokens lowest; scales and
    minima [blocks, tokens / group, channels].
    """
    blocks, tokens, channels = x.shape
    grouped = x.double().reshape(blocks, tokens // group, group, channels)
    steps = _quantise(grouped, 2, scales, minima, floor).reshape(blocks, tokens // 4, 4, channels)
    codes[..., 0] = steps[:, :, 0] + 16 * steps[:, :, 1]
    codes[..., 1] = steps[:, :, 2] + 16 * steps[:, :, 3]


def dequantise_kivi(
    codes: torch.Tensor,
    scales: torch.Tensor,
    minima: torch.Tensor,
    out: torch.Tensor,
    *,
    group: int,
) -> None:
    """The inverse of `quantise_kivi`; out [blocks, tokens, channels] of any floating-point type."""
    blocks, tokens, channels = out.shape
    first, second = codes[..., 0], codes[..., 1]
    steps = torch.stack((first % 16, first // 16, second % 16, second // 16), dim=2)
    grouped = steps.double().reshape(blocks, tokens // group, group, channels)
    values = grouped * scales.double()[:, :, None] + minima.double()[:, :, None]
    out.copy_(values.reshape(blocks, tokens, channels))


def _quantise(
    grouped: torch.Tensor, dim: int, scales: torch.Tensor, minima: torch.Tensor, floor: float
) -> torch.Tensor:
    """Fill in scales and minima of groups along `dim`; their codes, one to a uint8."""
    minimum, maximum = grouped.amin(dim), grouped.amax(dim)
    scales.copy_(((maximum - minimum) / LARGEST_CODE).clamp(min=floor))
    minima.copy_(minimum)
    steps = (grouped - minima.double().unsqueeze(dim)) / scales.double().unsqueeze(dim)
    return steps.round().clamp(0, LARGEST_CODE).to(torch.uint8)  # round: ties to even
