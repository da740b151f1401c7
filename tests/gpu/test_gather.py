"""Gather and scatter: the same bytes as torch's indexing, holes left alone, no silent misuse."""

import os
from collections.abc import Callable

import pytest
import torch

from kvbench_kernels.gather import TILE_WORDS, gather_pages, pages_bytes_moved, scatter_pages
from kvbench_kernels.reference import movement as reference

TILE_BYTES = TILE_WORDS * 4
GUARD = 0xA5
PAGE_SIZES = [16, 656, TILE_BYTES - 16, TILE_BYTES, 3 * TILE_BYTES, 576 * 2 * 16]
Move = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def random_rows(rows: int, row_bytes: int, device: str, padding_bytes: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * row_bytes)
    shape = (rows, row_bytes + padding_bytes)
    data = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return data.to(device)[:, :row_bytes]


def guarded_rows(rows: int, row_bytes: int, device: str, padding_bytes: int = 0) -> torch.Tensor:
    """Rows in an allocation with a row of guard bytes before, after, and in the padding."""
    shape = (rows + 2, row_bytes + padding_bytes)
    return torch.full(shape, GUARD, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("padding_bytes", [0, 48])
@pytest.mark.parametrize("page_bytes", PAGE_SIZES)
def test_a_gather_leaves_the_same_bytes_as_torch_and_touches_nothing_around(
    page_bytes: int, padding_bytes: int, dtype: torch.dtype, device: str
) -> None:
    cache = random_rows(7, page_bytes, device, padding_bytes)
    ids = torch.tensor([5, 0, -1, 6, 5], dtype=dtype, device=device)  # a repeat and a hole
    memory = guarded_rows(5, page_bytes, device, padding_bytes)
    expected = memory.clone()

    gather_pages(cache, ids, memory[1:6, :page_bytes])
    reference.gather_pages(cache, ids, expected[1:6, :page_bytes])

    assert torch.equal(memory, expected)
    assert (memory[3] == GUARD).all(), "the row of the hole was written"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("padding_bytes", [0, 48])
@pytest.mark.parametrize("page_bytes", PAGE_SIZES)
def test_a_scatter_leaves_the_same_bytes_as_torch_and_touches_nothing_around(
    page_bytes: int, padding_bytes: int, dtype: torch.dtype, device: str
) -> None:
    rows = random_rows(4, page_bytes, device, padding_bytes)
    ids = torch.tensor([5, 0, -1, 6], dtype=dtype, device=device)
    memory = guarded_rows(7, page_bytes, device, padding_bytes)
    expected = memory.clone()

    scatter_pages(rows, ids, memory[1:8, :page_bytes])
    reference.scatter_pages(rows, ids, expected[1:8, :page_bytes])

    assert torch.equal(memory, expected)


def test_gathering_what_was_scattered_gives_the_same_rows_back(device: str) -> None:
    rows = random_rows(6, 4096, device)
    ids = torch.tensor([8, 3, 0, 9, 1, 4], dtype=torch.int32, device=device)
    cache = torch.zeros(10, 4096, dtype=torch.uint8, device=device)
    back = torch.zeros_like(rows)

    scatter_pages(rows, ids, cache)
    gather_pages(cache, ids, back)

    assert torch.equal(back, rows)


def test_a_page_is_found_beyond_the_reach_of_32_bit_offsets(device: str) -> None:
    # Page 1 starts at word 2**31. Memory that is never touched costs the system nothing.
    stride, page_bytes = 2**33, 4096
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else host_bytes
    if free < 1.1 * stride:
        pytest.skip("needs 9 GiB of memory to place two pages 8 GiB apart")
    memory = torch.empty(stride + page_bytes, dtype=torch.uint8, device=device)
    cache = memory.as_strided((2, page_bytes), (stride, 1))
    page = random_rows(1, page_bytes, device)
    ids = torch.tensor([1], dtype=torch.int32, device=device)
    out = torch.zeros_like(page)

    scatter_pages(page, ids, cache)
    gather_pages(cache, ids, out)

    assert torch.equal(cache[1], page[0])
    assert torch.equal(out, page)


@pytest.mark.parametrize("move", [gather_pages, scatter_pages])
def test_no_ids_move_nothing(move: Move, device: str) -> None:
    cache = random_rows(3, 64, device)
    before = cache.clone()
    ids = torch.empty(0, dtype=torch.int32, device=device)
    rows = random_rows(0, 64, device)

    move(*((cache, ids, rows) if move is gather_pages else (rows, ids, cache)))

    assert torch.equal(cache, before)


def test_the_bytes_of_a_gather_are_its_pages_twice_and_an_id_for_each() -> None:
    assert pages_bytes_moved(64, 32768, 4) == 64 * (2 * 32768 + 4)


def refused(move: Move, cache: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor) -> str:
    with pytest.raises(ValueError, match=r"must") as caught:
        move(*((cache, ids, rows) if move is gather_pages else (rows, ids, cache)))
    return str(caught.value)


@pytest.mark.parametrize("move", [gather_pages, scatter_pages])
def test_arguments_that_do_not_fit_together_are_refused_with_both_sides(
    move: Move, device: str
) -> None:
    cache, rows = random_rows(4, 64, device), random_rows(2, 64, device)
    ids = torch.tensor([0, 1], dtype=torch.int32, device=device)
    name = "out" if move is gather_pages else "rows"

    assert f"{name} must be [2, 64] torch.uint8" in refused(move, cache, ids, rows[:1])
    assert f"{name} must be [2, 64] torch.uint8" in refused(move, cache, ids, rows[:, :32])
    assert "got [4, 64] torch.int8" in refused(move, cache.view(torch.int8), ids, rows)
    assert "got [2] torch.float32" in refused(move, cache, ids.float(), rows)
    assert "page_ids must be contiguous [2]" in refused(move, cache, ids.reshape(1, 2), rows)
    every_other = random_rows(4, 128, device)[:, ::2]
    assert "strides (128, 2)" in refused(move, every_other, ids, rows)
    assert "got [64] torch.uint8" in refused(move, cache[0], ids, rows)


@pytest.mark.parametrize("move", [gather_pages, scatter_pages])
def test_rows_that_are_not_aligned_to_16_bytes_are_refused(move: Move, device: str) -> None:
    ids = torch.tensor([0, 1], dtype=torch.int32, device=device)
    rows = random_rows(2, 64, device)
    odd_stride = random_rows(4, 64, device, padding_bytes=8)
    odd_start = random_rows(4, 80, device)[:, 8:72]
    short_pages = random_rows(4, 64, device)[:, :24]

    message = "the row stride of cache must be a multiple of 16 bytes, got 72"
    assert message in refused(move, odd_stride, ids, rows)
    assert "cache must start at a multiple of 16 bytes" in refused(move, odd_start, ids, rows)
    message = "a page must be a multiple of 16 bytes, got 24"
    assert message in refused(move, short_pages, ids, rows[:, :24])


@pytest.mark.parametrize("move", [gather_pages, scatter_pages])
def test_rows_that_overlap_each_other_are_no_cache(move: Move, device: str) -> None:
    ids = torch.tensor([0, 1], dtype=torch.int32, device=device)
    overlapping = random_rows(1, 256, device).as_strided((4, 64), (32, 1))
    assert "strides (32, 1)" in refused(move, overlapping, ids, random_rows(2, 64, device))


@pytest.mark.parametrize("move", [gather_pages, scatter_pages])
def test_a_buffer_inside_the_cache_is_refused(move: Move, device: str) -> None:
    cache = random_rows(4, 64, device)
    ids = torch.tensor([0, 1], dtype=torch.int32, device=device)
    assert "must not overlap" in refused(move, cache, ids, cache[2:])
