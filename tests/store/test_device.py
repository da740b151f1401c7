"""Rows of a tensor, the copies behind them, and the GPU tier's own ways."""

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from kvbench.errors import TierUnavailableError, UsageError
from kvbench.store.block import Layout
from kvbench.store.device import Link, TensorRows
from kvbench.store.hbm import HbmTier
from kvbench.store.rows import OtherRows, Rows, as_rows

HERE = Path(__file__).parent
LAYOUT = Layout(1000, parts=4)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
        ],
    ),
]
each_device = pytest.mark.parametrize("device", DEVICES)


def random_bytes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.timeout(600)
def test_paged_rows_and_codecs_by_kernels_hold_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / "kernels"), "-q", "-p", "no:cacheprovider"],
        cwd=HERE.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"\n{done.stdout[-8000:]}{done.stderr[-2000:]}"
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= 23, done.stdout


# ---------------------------------------------------------------- rows of a tensor


@each_device
def test_rows_of_a_tensor_are_taken_by_a_store(device: str) -> None:
    rows = TensorRows(torch.zeros((5, 1000), dtype=torch.uint8, device=device), LAYOUT)
    assert isinstance(rows, Rows)
    taken = as_rows(rows, 5, LAYOUT)
    assert isinstance(taken, OtherRows)
    assert taken.rows is rows


@each_device
def test_a_row_is_sent_whole(device: str) -> None:
    content = random_bytes(5, 1000)
    rows = TensorRows(torch.tensor(content, device=device), LAYOUT)
    for index in (4, 0, 2):
        out = np.zeros(1000, dtype=np.uint8)
        rows.send(index, out)
        assert np.array_equal(out, content[index])


@each_device
def test_rows_are_received_whole_or_by_part_and_the_rest_stays(device: str) -> None:
    tensor = torch.tensor(random_bytes(3, 1200), device=device)[:, 100:1100]  # padded rows
    wanted = tensor.cpu().numpy().copy()
    rows = TensorRows(tensor, LAYOUT)
    whole, part = random_bytes(1000, seed=1), random_bytes(250, seed=2)
    wanted[2], wanted[0, 750:] = whole, part
    rows.receive(2, None, whole)
    rows.receive(0, 3, part)
    whole[:], part[:] = 0, 0  # may be used again on return
    rows.finish([2], None)
    rows.finish([0], 3)
    assert np.array_equal(tensor.cpu().numpy(), wanted)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros((3, 999), dtype=torch.uint8),
        torch.zeros((3, 1000), dtype=torch.int8),
        torch.zeros(1000, dtype=torch.uint8),
        torch.zeros((1000, 3), dtype=torch.uint8).T,
    ],
    ids=["size", "dtype", "dimensions", "strides"],
)
def test_a_tensor_that_is_not_rows_of_blocks_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(UsageError, match=r"expected uint8 \[rows, 1000\]"):
        TensorRows(tensor, LAYOUT)


# ---------------------------------------------------------------- copies


@each_device
@pytest.mark.parametrize("buffers", [1, 2, 4])
def test_a_batch_larger_than_the_buffers_of_a_link_arrives_whole(device: str, buffers: int) -> None:
    link, count = Link(device, 64, buffers), 11
    content = random_bytes(count, 64)
    targets = torch.zeros((count, 64), dtype=torch.uint8, device=device)
    sizes = [64 - i for i in range(count)]
    link.to_device(
        [row[:size] for row, size in zip(content, sizes, strict=True)],
        [row[:size] for row, size in zip(targets, sizes, strict=True)],
    )
    link.wait()
    outs = [np.zeros(size, dtype=np.uint8) for size in sizes]
    link.to_host([row[:size] for row, size in zip(targets, sizes, strict=True)], outs)
    for row, out in zip(content, outs, strict=True):
        assert np.array_equal(out, row[: len(out)])


def test_threads_share_the_only_buffer_of_a_link() -> None:
    link, begin = Link("cpu", 256, buffers=1), threading.Barrier(4)

    def work(number: int) -> bool:
        begin.wait()
        source = torch.full((5, 256), number, dtype=torch.uint8)
        outs = [np.zeros(256, dtype=np.uint8) for _ in range(5)]
        for _ in range(50):
            link.to_host(list(source), outs)
            link.to_device(outs, list(source))
        return bool((source == number).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@each_device
def test_a_copy_that_fails_costs_the_link_no_buffer(device: str) -> None:
    link = Link(device, 64, buffers=2)
    good = torch.ones(64, dtype=torch.uint8, device=device)
    out = np.zeros(64, dtype=np.uint8)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            link.to_host([good, torch.ones(63, dtype=torch.uint8, device=device)], [out, out])
        with pytest.raises(ValueError, match="broadcast"):
            link.to_device([random_bytes(65)], [good])
    link.to_host([good, good], [out, np.zeros(64, dtype=np.uint8)])
    assert (out == 1).all()


# ---------------------------------------------------------------- the tier of GPU memory


def test_a_gpu_tier_on_host_memory_says_what_it_is() -> None:
    tier = HbmTier(LAYOUT, 3, device="cpu")
    assert tier.facts()["memory"] == "host memory, not a GPU"
    assert tier.facts()["device"] == "cpu"
    tier.close()


def test_a_gpu_tier_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TierUnavailableError, match='device="cpu"'):
        HbmTier(LAYOUT, 3)


def test_a_gpu_tier_of_no_slots_or_too_many_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        HbmTier(LAYOUT, 0, device="cpu")
    with pytest.raises(TierUnavailableError, match="no 1000000000000 slots of 4096 bytes on cpu"):
        HbmTier(LAYOUT, 10**12, device="cpu")
