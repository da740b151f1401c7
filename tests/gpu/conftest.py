"""Where a kernel test runs: on a CUDA device where there is one, in Triton's interpreter otherwise.

Triton decides between compiling and interpreting when it is imported, for the whole process. So
without a device the kernel tests are left out of an ordinary run, and `test_in_interpreter.py`
runs them in a process of its own that has TRITON_INTERPRET=1. The compile tests need no device,
but a process that compiles.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NEED_KERNELS_TO_RUN = ["test_copy.py", "test_gather.py", "test_hbm_kernels.py"]
NEED_A_COMPILER = ["test_compile.py", "test_in_interpreter.py"]

if INTERPRETED:
    collect_ignore = NEED_A_COMPILER
elif torch.cuda.is_available():
    collect_ignore = ["test_in_interpreter.py"]
else:
    collect_ignore = NEED_KERNELS_TO_RUN


@pytest.fixture
def device() -> str:
    """Where tensors of a kernel test live."""
    return "cpu" if INTERPRETED else "cuda"
