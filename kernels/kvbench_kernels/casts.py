"""Conversions inside a kernel that round the same on every GPU and in Triton's interpreter.

Device functions for fp8 e4m3, bf16 and whole numbers, and `cast_mode`, which says how a device
gets its e4m3. They exist because there is no e4m3 in Triton below sm_89, and because triton 3.9's
interpreter casts float32 to e4m3 and bf16 wrongly (triton#8322). All take float32: load, then
`.to(tl.float32)` at once. Launch with `enable_fp_fusion=False`: a fused multiply-add would swallow
the rounding that `rne`, `snap_e4m3` and `encode_e4m3` get from adding a large number.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import triton
import triton.language as tl

from kvbench_kernels.checks import interpreted

CastMode: TypeAlias = Literal["hw", "snap", "soft"]

E4M3_CAPABILITY = (8, 9)  # the first with `cvt.rn.satfinite.e4m3x2.f32`
E4M3_MAX = tl.constexpr(448.0)
E4M3_LEAST_NORMAL = tl.constexpr(2.0**-6)


@triton.jit
def snap_e4m3(x):
    """float32 → the nearest e4m3 value, still float32: ties to even, sign of zero kept.

    Beyond ±448, and at ±inf, it is ±448, as the hardware's `satfinite`. The hardware keeps a NaN;
    here it becomes some finite value.
    """
    sign = x.to(tl.int32, bitcast=True) & -2147483648
    size = tl.minimum(tl.abs(x), E4M3_MAX)
    bits = size.to(tl.int32, bitcast=True)
    # Three bits of mantissa stay; the carry of the rounding may reach the exponent.
    normal = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -1048576
    # Subnormals are multiples of 2**-9, which is float32's step at 24576.
    tiny = ((size + 24576.0) - 24576.0).to(tl.int32, bitcast=True)
    return (tl.where(size < E4M3_LEAST_NORMAL, tiny, normal) | sign).to(tl.float32, bitcast=True)


@triton.jit
def encode_e4m3(x):
    """float32 → the e4m3 code of `snap_e4m3(x)` in a uint8, for GPUs without an fp8 type."""
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
    size = tl.minimum(tl.abs(x), E4M3_MAX)
    bits = size.to(tl.int32, bitcast=True)
    # 960 is the difference of the exponents' biases, 127 - 7, above three bits of mantissa.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
    # The last bits of `size + 24576.0` count the multiples of 2**-9; 0x46C00000 is 24576.0.
    tiny = (size + 24576.0).to(tl.int32, bitcast=True) - 0x46C00000
    return (tl.where(size < E4M3_LEAST_NORMAL, tiny, normal) | sign).to(tl.uint8)


@triton.jit
def decode_e4m3(code):
    """An e4m3 code in a uint8 → float32, exact; the NaNs 0x7f and 0xff are read as ±480."""
    bits = code.to(tl.int32)
    # Exponent and mantissa keep their order in float32, 2**120 too low; subnormals included.
    low = (((bits & 0x80) << 24) | ((bits & 0x7F) << 20)).to(tl.float32, bitcast=True)
    return low * 1.329227995784916e36


@triton.jit
def cast_e4m3(x, CAST: tl.constexpr):
    """float32 → what is stored for e4m3, by the mode that `cast_mode` gives.

    "hw" (compiled for sm_89 and later) and "snap" (interpreted) give tl.float8e4nv, "soft" the
    same codes in tl.uint8. Infinities and NaN: see `snap_e4m3`.
    """
    if CAST == "hw":
        return x.to(tl.float8e4nv)
    elif CAST == "snap":  # noqa: RET505 - Triton takes no code after an if that returns
        return snap_e4m3(x).to(tl.float8e4nv)  # the interpreter is right on values that fit
    else:
        return encode_e4m3(x)


@triton.jit
def uncast_e4m3(code, CAST: tl.constexpr):
    """An e4m3 code in a uint8 → float32, exact for every finite code; CAST as in `cast_e4m3`.

    "hw" keeps a NaN, the others make it ±480.
    """
    if CAST == "hw":
        return code.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:  # noqa: RET505 - as above
        return decode_e4m3(code)


@triton.jit
def encode_int8(x):
    """float32 → the nearest int8, ties to even, saturating at ±127. Not for NaN."""
    # As in `rne`; the last byte of the sum is the whole number, in two's complement.
    rounded = tl.minimum(tl.maximum(x, -127.0), 127.0) + 12582912.0
    return rounded.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def bf16_rne(x):
    """float32 → bf16 by integers, ties to even; overflows to infinity. Not for NaN.

    For the interpreter, whose own cast truncates.
    """
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def rne(x):
    """float32 → the nearest whole number, still float32, ties to even; for abs(x) < 2**22."""
    return (x + 12582912.0) - 12582912.0  # float32's step at 1.5 * 2**23 is 1


@triton.jit
def round_to(x, TYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 → TYPE (tl.bfloat16, tl.float16 or tl.float32), ties to even, in both modes.

    TYPE is usually `out.dtype.element_ty` of the pointer that is stored to, INTERPRETED what
    `kvbench_kernels.checks.interpreted` says.
    """
    if INTERPRETED and tl.bfloat16 == TYPE:
        return bf16_rne(x)
    else:  # noqa: RET505 - as above
        return x.to(TYPE)


def cast_mode(device: torch.device) -> CastMode:
    """How kernels on `device` get their e4m3: the CAST of `cast_e4m3`.

    "snap" in the interpreter, whatever the device; "hw" on a GPU of capability 8.9 and later;
    "soft" on older ones.
    """
    if interpreted():
        return "snap"
    return "hw" if torch.cuda.get_device_capability(device) >= E4M3_CAPABILITY else "soft"
