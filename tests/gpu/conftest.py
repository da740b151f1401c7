"""Where a kernel test runs: on a CUDA device where there is one, in Triton's interpreter otherwise.

Triton decides between compiling and interpreting when it is imported, for the whole process. So
without a device the kernel tests are left out of an ordinary run, and `test_in_interpreter.py`
runs them in a process of its own that has TRITON_INTERPRET=1. The compile tests need no device,
but a process that compiles.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NEED_KERNELS_TO_RUN = [
    "test_casts.py",
    "test_checksum.py",
    "test_copy.py",
    "test_fp8.py",
    "test_fused.py",
    "test_gather.py",
    "test_hbm_kernels.py",
    "test_int4.py",
    "test_int8.py",
    "test_kernel_bodies.py",
    "test_kivi.py",
    "test_pointers.py",
    "test_relayout.py",
    "test_swap.py",
    "test_tokens.py",
]
NEED_A_COMPILER = ["test_bars.py", "test_in_interpreter.py", "test_static.py"]

if INTERPRETED:
    collect_ignore = NEED_A_COMPILER
elif torch.cuda.is_available():
    collect_ignore = ["test_in_interpreter.py"]
else:
    collect_ignore = NEED_KERNELS_TO_RUN


def _patch_the_language_once_a_launch() -> None:
    """Triton's interpreter replaces all of `triton.language` at every call of a device function.

    That is a third of its time, and within a launch nothing is left to replace.
    """
    from triton.runtime import interpreter  # noqa: PLC0415 - see above

    original, replaced = interpreter._patch_lang, set[str]()

    def patch(function: Any) -> Any:
        names = {"triton.language", "triton.language.core"} & {
            getattr(each, "__name__", "") for each in function.__globals__.values()
        }
        if names <= replaced:
            return interpreter._LangPatchScope()  # of nothing
        scope = original(function)
        restore = scope.restore

        def restore_all() -> None:
            replaced.clear()
            restore()

        scope.restore = restore_all
        replaced.update(names)
        return scope

    interpreter._patch_lang = patch


if INTERPRETED:
    _patch_the_language_once_a_launch()


@pytest.fixture
def device() -> str:
    """Where tensors of a kernel test live."""
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Addresses of the bytes that kernels read from now on, an array an access."""
    return _record("create_masked_load", monkeypatch)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Addresses of the bytes that kernels write from now on, an array an access."""
    return _record("create_masked_store", monkeypatch)


@pytest.fixture
def nothing_read_beside(loaded: list[np.ndarray]) -> Callable[..., bool]:
    """Whether kernels read only bytes of the tensors given (of any strides)."""
    return lambda *tensors: bool(np.isin(np.concatenate(loaded), _bytes_of(*tensors)).all())


@pytest.fixture
def each_byte_written_once(stored: list[np.ndarray]) -> Callable[..., bool]:
    """Whether kernels wrote each byte of the tensors given once, and no other byte."""
    return lambda *tensors: np.array_equal(np.sort(np.concatenate(stored)), _bytes_of(*tensors))


def _record(access: str, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    if not INTERPRETED:
        pytest.skip("only Triton's interpreter shows each access")
    from triton.runtime.interpreter import InterpreterBuilder  # noqa: PLC0415 - see above

    addresses: list[np.ndarray] = []
    original = getattr(InterpreterBuilder, access)

    def recording(self: object, pointers: Any, *arguments: Any) -> object:
        mask = arguments[0] if access == "create_masked_load" else arguments[1]
        first = pointers.data[mask.data].astype(np.int64)
        width = np.arange(pointers.get_element_ty().primitive_bitwidth // 8)
        addresses.append((first[:, None] + width).ravel())
        result: object = original(self, pointers, *arguments)
        return result

    monkeypatch.setattr(InterpreterBuilder, access, recording)
    return addresses


def _bytes_of(*tensors: torch.Tensor) -> np.ndarray:
    """Sorted addresses of all bytes of these tensors."""
    spans = []
    for tensor in tensors:
        offsets = np.zeros((), dtype=np.int64)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            offsets = np.add.outer(offsets, np.arange(size) * stride)
        first = tensor.data_ptr() + offsets.ravel() * tensor.element_size()
        spans.append((first[:, None] + np.arange(tensor.element_size())).ravel())
    return np.sort(np.concatenate(spans))
