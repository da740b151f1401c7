"""What the store does by kernels: on a CUDA device, or in Triton's interpreter.

Without a device and TRITON_INTERPRET=1 these tests are left out; tests/store/test_device.py runs
them in a process of its own.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device() -> str:
    """Where the tensors live."""
    return "cpu" if INTERPRETED else "cuda"
