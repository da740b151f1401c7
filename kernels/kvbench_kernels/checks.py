"""Argument checks shared by the kernel wrappers.

A kernel given a wrong argument reads or writes somewhere else without a word, so each wrapper
checks all it can without waiting for the device. Contents are not looked at: that would take a
synchronisation. Every failure is a ValueError with what was expected and what was found.
"""

from __future__ import annotations

import math

import torch
import triton

UNIT_BYTES = 16  # the widest global load or store; lengths and strides are passed in these units
WORD_BYTES = 4  # kernels see memory as int32 words
# The least scale, of a group that is all zeros or all equal; engines differ, so it is a parameter.
SCALE_FLOOR = 1e-12
UNIT_WORDS = UNIT_BYTES // WORD_BYTES


def check(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    dtypes: torch.dtype | tuple[torch.dtype, ...],
) -> None:
    """Raise ValueError unless `tensor` has this shape, one of these dtypes, and is contiguous."""
    allowed = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if tuple(tensor.shape) != shape or tensor.dtype not in allowed or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous {list(shape)} {' or '.join(map(str, allowed))}, "
            f"got {list(tensor.shape)} {tensor.dtype} with strides {tensor.stride()}"
        )


def check_rows(name: str, tensor: torch.Tensor, shape: tuple[int, int] | None = None) -> None:
    """Raise ValueError unless `tensor` is uint8 [rows, row_bytes] of 16-byte aligned rows.

    Rows may be padded: the stride is any multiple of 16 bytes that holds a row. Without a shape
    any number of rows of any length will do.
    """
    is_matrix = tensor.dim() == 2 and str(tensor.dtype) == "torch.uint8"  # noqa: PLR2004 - as said
    if not (
        is_matrix
        and tuple(tensor.shape) == (shape or tuple(tensor.shape))
        and tensor.stride(1) == 1
        and (tensor.shape[0] < 2 or tensor.stride(0) >= tensor.shape[1])  # noqa: PLR2004
    ):
        raise ValueError(
            f"{name} must be {list(shape) if shape else '[rows, row_bytes]'} torch.uint8, "
            f"the bytes of a row adjacent and rows apart, "
            f"got {list(tensor.shape)} {tensor.dtype} with strides {tensor.stride()}"
        )
    check_multiple(f"the row stride of {name}", tensor.stride(0))
    check_aligned(name, tensor)


def check_aligned(name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError unless `tensor` starts at a multiple of 16 bytes."""
    address = tensor.data_ptr()
    if address % UNIT_BYTES:
        raise ValueError(
            f"{name} must start at a multiple of {UNIT_BYTES} bytes, "
            f"got address {address:#x}, {address % UNIT_BYTES} too far"
        )


def check_multiple(name: str, size_bytes: int) -> None:
    """Raise ValueError unless `size_bytes` is a multiple of 16."""
    if size_bytes % UNIT_BYTES:
        raise ValueError(f"{name} must be a multiple of {UNIT_BYTES} bytes, got {size_bytes}")


def check_values(
    name: str, tensor: torch.Tensor, shape: str, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise ValueError unless rows of `tensor` can be reached 16 bytes at a time.

    It has the dimensions that `shape` names, such as "[rows, width]"; values of the last are
    adjacent, the others apart, at strides of a multiple of 16 bytes.
    """
    # Dimensions of one element have strides that mean nothing; so have all of an empty tensor.
    sizes = tensor.shape if tensor.numel() else ()
    used = [(i, size, tensor.stride(i)) for i, size in enumerate(sizes) if size > 1]
    last = tensor.dim() - 1
    extent = 1  # elements from the first to past the last, of the dimensions looked at
    is_apart = tensor.dim() == shape.count(",") + 1
    for i, size, stride in reversed(used):
        is_apart = is_apart and stride >= extent and (i < last or stride == 1)
        extent += (size - 1) * stride
    if not is_apart or tensor.dtype not in dtypes:
        raise ValueError(
            f"{name} must be {shape} {' or '.join(map(str, dtypes))}, the values of the last "
            f"dimension adjacent and the others apart, "
            f"got {list(tensor.shape)} {tensor.dtype} with strides {tensor.stride()}"
        )
    for i, _, stride in used:
        if i < last:
            check_multiple(f"stride {i} of {name} in bytes", stride * tensor.element_size())
    check_aligned(name, tensor)


def check_floor(floor: float, dtype: torch.dtype) -> None:
    """Raise ValueError unless scales of this dtype can be `floor` and have a finite inverse."""
    least = torch.finfo(dtype).smallest_normal
    if not (least <= floor < math.inf):
        raise ValueError(
            f"floor must be finite and at least {least:.3g}, the least normal number of scales in "
            f"{dtype}, got {floor}"
        )


def check_device(**tensors: torch.Tensor) -> None:
    """Raise ValueError unless all are on one device, and on one that a kernel can reach."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    found = ", ".join(f"{name} on {device}" for name, device in devices.items())
    if len(set(devices.values())) > 1:
        raise ValueError(f"all tensors must be on one device, got {found}")
    if any(device.type == "cpu" for device in devices.values()) and not interpreted():
        raise ValueError(
            f"a kernel needs tensors on a GPU, got {found}; only Triton's interpreter "
            "(TRITON_INTERPRET=1 before triton is imported) takes tensors on the CPU"
        )


def check_disjoint(name: str, tensor: torch.Tensor, other: str, written: torch.Tensor) -> None:
    """Raise ValueError if memory that is read can be overwritten by the same launch."""
    first, end = _span(tensor)
    written_first, written_end = _span(written)
    if first < written_end and written_first < end:
        raise ValueError(
            f"{name} and {other} must not overlap, got {first:#x} to {end:#x} "
            f"and {written_first:#x} to {written_end:#x}"
        )


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU, in this process."""
    return bool(triton.knobs.runtime.interpret)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Address of the first byte, and of the one after the last."""
    first = tensor.data_ptr()
    if tensor.numel() == 0:
        return first, first
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in strides)
    return first, first + (last + 1) * tensor.element_size()
