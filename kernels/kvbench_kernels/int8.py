"""Quantise rows to int8 and back, symmetric: a scale for each token and head, or a finer one.

As kvbench_kernels.fp8, with whole numbers from -127 to 127 for codes. There is no zero point and
no code -128. Values must be finite, which is not checked on the device.
"""

from __future__ import annotations

import torch

from kvbench_kernels.checks import SCALE_FLOOR, check, check_floor
from kvbench_kernels.groups import (
    check_apart,
    check_groups,
    dequantise_groups,
    groups_variant,
    launch_dequantise,
    launch_quantise,
    quantise_groups,
)

CODES = (torch.int8,)


def quantise_int8(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    group: int,
    floor: float = SCALE_FLOOR,
) -> None:
    """Quantise each group of neighbouring values of a row to int8, on the current stream.

    scale = max(largest size of a value / 127, floor) and code = value / scale to the nearest
    whole number, ties to even. A value comes back within scale / 2. One binary for each group,
    type of x and, with padding, number of groups a row.

    Args:
        x: bfloat16, float16 or float32 [rows, width], rows may be padded; address and stride are
            multiples of 16 bytes, width of `group`. Finite: not checked. Read only.
        codes: int8 [rows, width], rows may be padded, address and stride likewise. Overwritten.
            Must not overlap the others.
        scales: float32 [rows, width / group], contiguous. Overwritten. Must not overlap x.
        group: values that share a scale, a multiple of 16 up to 1024: the head size for a scale
            for each token and head.
        floor: the least scale, from 2**-126 up; that of a group which is all zeros.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: int8 caches with a scale for each token and head, as in vLLM's Triton kernel
    `_reshape_cache_per_token` (vllm#38378).
    """
    check_groups("x", x, codes, CODES, group)
    check("scales", scales, (x.shape[0], x.shape[1] // group), torch.float32)
    check_floor(floor, scales.dtype)
    check_apart(x=x, codes=codes, scales=scales)
    launch_quantise(x, codes, scales, group=group, cast="int8", floor=floor)


def dequantise_int8(
    codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor, *, group: int
) -> None:
    """Turn what `quantise_int8` wrote into values again, on the current stream.

    out = code * scale in float32, then rounded to the nearest, ties to even. To float32 codes are
    re-spread through shared memory, which costs barriers that bfloat16 and float16 do without.

    Args:
        codes: int8 [rows, width], rows may be padded; address and stride are multiples of 16
            bytes, width of `group`. Read only.
        scales: float32 [rows, width / group], contiguous. Read only.
        out: bfloat16, float16 or float32 [rows, width], rows may be padded, address and stride
            likewise. Overwritten. Must not overlap the others.
        group: values that share a scale, as for quantise_int8.

    Raises:
        ValueError: a shape, dtype, device, alignment or number is not as above.

    Source: see `quantise_int8`.
    """
    check_groups("out", out, codes, CODES, group)
    check("scales", scales, (out.shape[0], out.shape[1] // group), torch.float32)
    check_apart(codes=codes, scales=scales, out=out)
    launch_dequantise(codes, scales, out, group=group, cast="int8")


def int8_bytes_moved(rows: int, width: int, element_bytes: int, group: int) -> int:
    """Bytes that quantising or dequantising reads and writes.

    Each value once in `element_bytes` and once in a byte, and 4 bytes of scale for each group.
    """
    return rows * (width * (element_bytes + 1) + width // group * 4)


VARIANTS = tuple(
    groups_variant(f"{which}.{name}", kernel, group=128, in_row=in_row, cast="int8")
    for which, kernel in (
        ("quantise_int8", quantise_groups),
        ("dequantise_int8", dequantise_groups),
    )
    for name, in_row in (("token_head", 0), ("padded", 8))
)
