"""The arithmetic of a codec: groups of values to codes and scales, and back; and how far off.

By the kernels of kvbench_kernels, or by plain torch in float32, step by step as they do it: the
codes and scales are equal, but for a GPU's division, which may be two units in the last place off.
Knows nothing of blocks and stamps.

May import: kvbench_kernels. torch; triton only for the kernels. So this module is imported late.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Format = Literal["fp8", "int8", "int4"]

LARGEST_CODE = {"fp8": 448.0, "int8": 127.0, "int4": 15.0}
SCALE_FLOOR = 1e-12  # as kvbench_kernels.checks.SCALE_FLOOR, which would import triton
ROUNDING = 1 + 2e-5  # of the bounds: what float32 arithmetic adds
ADDING = 1e-6  # of a value: what float32 loses when it adds the minimum of int4
# Of a decoded value, and at least: its rounding to the type of the payload.
RESULT = {torch.bfloat16: (2.0**-8, 2.0**-133), torch.float16: (2.0**-10, 2.0**-24)}


class Encoded(NamedTuple):
    """Tensors on one device; groups are rows."""

    codes: torch.Tensor  # fp8 and int4 uint8, int8 int8; [groups, group], int4 half as wide
    scales: torch.Tensor  # float32 [groups, 1]
    minima: torch.Tensor  # float32 [groups, 1], only of int4; otherwise empty


def values_of(payload: Bytes, dtype: torch.dtype, group: int, device: str) -> torch.Tensor:
    """A copy of uint8 [n] on the device, as values [groups, group].

    A copy, because rows of a caller need not be aligned for values of two bytes, nor writable.
    """
    copy = torch.empty(len(payload), dtype=torch.uint8)
    np.copyto(copy.numpy(), payload)
    return copy.view(dtype).to(device).view(-1, group)


def quantise(form: Format, values: torch.Tensor, *, kernels: bool) -> Encoded:
    """Encode finite values [groups, group], a scale to each group."""
    return _by_kernel(form, values) if kernels else _by_torch(form, values)


def dequantise(
    form: Format, stored: Encoded, dtype: torch.dtype, *, group: int, kernels: bool
) -> torch.Tensor:
    """The values again, [groups, group] of this type."""
    shape = (len(stored.scales), group)
    out = torch.empty(shape, dtype=dtype, device=stored.scales.device)
    (_back_by_kernel if kernels else _back_by_torch)(form, stored, out)
    return out


def bound(
    form: Format, values: torch.Tensor, scales: torch.Tensor, decoded: torch.Tensor
) -> torch.Tensor:
    """How far each decoded value may be off, float32 [groups, group]: docs/kernels.md."""
    sizes = values.float().abs()
    if form == "fp8":
        allowed = torch.maximum(sizes / 17, scales * 2.0**-10) * ROUNDING
    else:
        allowed = scales / 2 * ROUNDING + (sizes * ADDING if form == "int4" else 0.0)
    share, least = RESULT[decoded.dtype]
    return allowed + (decoded.float().abs() * share).clamp(min=least)


def pack(stored: Encoded) -> Bytes:
    """Codes, scales and minima as bytes, one after the other."""
    pieces = [each.cpu().contiguous().view(-1).view(torch.uint8) for each in stored if len(each)]
    packed: Bytes = torch.cat(pieces).numpy()
    return packed


def unpack(form: Format, packed: Bytes, group: int, device: str) -> Encoded:
    """What `pack` made bytes of, on the device."""
    width = group // 2 if form == "int4" else group
    scale_bytes = 8 if form == "int4" else 4
    groups = len(packed) // (width + scale_bytes)
    memory = torch.empty(len(packed), dtype=torch.uint8)
    np.copyto(memory.numpy(), packed)
    memory = memory.to(device)
    ends = groups * width, groups * (width + 4)
    codes, scales, minima = memory[: ends[0]], memory[ends[0] : ends[1]], memory[ends[1] :]
    return Encoded(
        # Clones: kernels want each from a multiple of 16 bytes.
        codes.clone().view(groups, width),
        scales.clone().view(torch.float32).view(groups, 1),
        minima.clone().view(torch.float32).view(-1, 1),
    )


def _by_torch(form: Format, values: torch.Tensor) -> Encoded:
    largest, exact = LARGEST_CODE[form], values.float()
    if form == "int4":
        minima = exact.amin(1, keepdim=True)
        spans = exact.amax(1, keepdim=True) - minima
        scales = (spans * (1.0 / largest)).clamp_(min=SCALE_FLOOR)
        steps = ((exact - minima) * (1.0 / scales)).round_().to(torch.uint8)
        pairs = steps.view(len(values), -1, 2)
        return Encoded(pairs[:, :, 0] + 16 * pairs[:, :, 1], scales, minima)
    scales = (exact.abs().amax(1, keepdim=True) * (1.0 / largest)).clamp_(min=SCALE_FLOOR)
    scaled = (exact * (1.0 / scales)).clamp_(-largest, largest)
    if form == "int8":
        codes = scaled.round_().to(torch.int8)  # round: ties to even
    else:
        codes = scaled.to(torch.float8_e4m3fn).view(torch.uint8)
    return Encoded(codes, scales, scales.new_empty(0))


def _back_by_torch(form: Format, stored: Encoded, out: torch.Tensor) -> None:
    codes, scales, minima = stored
    if form == "int4":
        steps = torch.stack((codes % 16, codes // 16), dim=2).view(out.shape)
        out.copy_(steps.float() * scales + minima)
    else:
        kind = torch.int8 if form == "int8" else torch.float8_e4m3fn
        out.copy_(codes.view(kind).float() * scales)


def _by_kernel(form: Format, values: torch.Tensor) -> Encoded:
    from kvbench_kernels.fp8 import quantise_fp8  # noqa: PLC0415  imports triton
    from kvbench_kernels.int4 import quantise_int4  # noqa: PLC0415
    from kvbench_kernels.int8 import quantise_int8  # noqa: PLC0415

    groups, group = values.shape
    width = group // 2 if form == "int4" else group
    kind = torch.int8 if form == "int8" else torch.uint8
    codes = torch.empty((groups, width), dtype=kind, device=values.device)
    scales = torch.empty((groups, 1), dtype=torch.float32, device=values.device)
    if form == "int4":
        minima = torch.empty_like(scales)
        quantise_int4(values, codes, scales, minima, group=group)
        return Encoded(codes, scales, minima)
    quantise_one: Any = quantise_int8 if form == "int8" else quantise_fp8
    quantise_one(values, codes, scales, group=group)
    return Encoded(codes, scales, scales.new_empty(0))


def _back_by_kernel(form: Format, stored: Encoded, out: torch.Tensor) -> None:
    from kvbench_kernels.fp8 import dequantise_fp8  # noqa: PLC0415  imports triton
    from kvbench_kernels.int4 import dequantise_int4  # noqa: PLC0415
    from kvbench_kernels.int8 import dequantise_int8  # noqa: PLC0415

    codes, scales, minima = stored
    group = out.shape[1]
    if form == "int4":
        dequantise_int4(codes, scales, minima, out, group=group)
    elif form == "int8":
        dequantise_int8(codes.view(torch.int8), scales, out, group=group)
    else:
        dequantise_fp8(codes, scales, out, group=group)
