"""The copy kernel: the same bytes as torch's copy, no byte more, and no silent misuse."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kvbench_kernels.copy import TILE_WORDS, copy_bytes_moved, copy_contiguous
from kvbench_kernels.reference import movement as reference

TILE_BYTES = TILE_WORDS * 4
GUARD_BYTES = 4096
GUARD = 0xA5


def random_bytes(size: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).to(device)


@pytest.mark.parametrize(
    "size", [16, 48, TILE_BYTES - 16, TILE_BYTES, TILE_BYTES + 16, 5 * TILE_BYTES + 656]
)
def test_a_copy_leaves_the_same_bytes_as_torch_and_touches_nothing_around(
    size: int, device: str
) -> None:
    source = random_bytes(size + 2 * GUARD_BYTES, device)
    memory = torch.full_like(source, GUARD)
    expected = memory.clone()
    inside = slice(GUARD_BYTES, GUARD_BYTES + size)

    copy_contiguous(source[inside], memory[inside])
    reference.copy_contiguous(source[inside], expected[inside])

    assert torch.equal(memory, expected)


def test_a_copy_of_nothing_is_no_error(device: str) -> None:
    target = random_bytes(0, device)
    copy_contiguous(random_bytes(0, device), target)
    assert target.numel() == 0


def test_a_copy_counts_each_byte_once_read_and_once_written() -> None:
    assert copy_bytes_moved(256 * 2**20) == 512 * 2**20


@pytest.mark.parametrize("past", [0, 1, 4, 8, 13, 15])
@pytest.mark.parametrize("size", [0, 1, 3, 15, 16, 17, 31, 47, 100, TILE_BYTES + 21])
def test_a_copy_may_start_and_end_at_any_byte(size: int, past: int, device: str) -> None:
    source = random_bytes(size + 2 * GUARD_BYTES, device)
    memory = torch.full((size + 2 * GUARD_BYTES,), GUARD, dtype=torch.uint8, device=device)
    expected = memory.clone()
    first = GUARD_BYTES + past
    # The target is as far past a multiple of 16 bytes as the source, 32 bytes further on.
    inside = slice(first + 32, first + 32 + size)

    copy_contiguous(source[first : first + size], memory[inside])
    reference.copy_contiguous(source[first : first + size], expected[inside])

    assert torch.equal(memory, expected)


@pytest.mark.parametrize("past", [0, 5])
def test_each_byte_is_read_from_the_source_and_written_once(
    past: int,
    device: str,
    nothing_read_beside: Callable[..., bool],
    each_byte_written_once: Callable[..., bool],
) -> None:
    source = random_bytes(TILE_BYTES + 100, device)[past:]
    target = random_bytes(TILE_BYTES + 100, device)[past:]

    copy_contiguous(source, target)

    assert nothing_read_beside(source)
    assert each_byte_written_once(target)


def test_only_the_ends_of_an_unaligned_copy_are_copied_as_single_bytes(
    device: str, stored: list[np.ndarray]
) -> None:
    size = 15 + 2 * TILE_BYTES + 9
    copy_contiguous(random_bytes(size + 1, device)[1:], random_bytes(size + 1, device)[1:])

    assert sorted(addresses.size for addresses in stored) == [15 + 9, TILE_BYTES, TILE_BYTES]


def test_memory_borrowed_at_an_odd_address_is_copied(device: str) -> None:
    # torch takes it for a storage of its own that begins there, and refuses to see words in it.
    borrowed = torch.from_numpy(np.arange(100, dtype=np.uint8)[3:]).to(device)
    past = borrowed.data_ptr() % 16
    target = torch.zeros(128, dtype=torch.uint8, device=device)[past : past + 97]

    copy_contiguous(borrowed, target)

    assert torch.equal(target, borrowed)


@pytest.mark.parametrize(("src_past", "dst_past"), [(0, 8), (8, 0), (1, 2), (15, 0)])
def test_a_source_and_a_target_shifted_against_each_other_are_refused_instead_of_copied_slowly(
    src_past: int, dst_past: int, device: str
) -> None:
    source, target = random_bytes(79, device)[src_past:], random_bytes(79, device)[dst_past:]
    message = rf"equally far past a multiple of 16 bytes, got src {src_past} and dst {dst_past} too"
    with pytest.raises(ValueError, match=message):
        copy_contiguous(source[:64], target[:64])


def test_unequal_lengths_are_refused_with_both_sides(device: str) -> None:
    with pytest.raises(ValueError, match=r"dst must be contiguous \[64\] torch.uint8, got \[32\]"):
        copy_contiguous(random_bytes(64, device), random_bytes(32, device))


def test_another_dtype_is_refused(device: str) -> None:
    words = torch.zeros(16, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"src must be contiguous \[16\] torch.uint8, got .*int32"):
        copy_contiguous(words, words.clone())


def test_every_other_byte_is_not_a_contiguous_source(device: str) -> None:
    with pytest.raises(ValueError, match=r"with strides \(2,\)"):
        copy_contiguous(random_bytes(128, device)[::2], random_bytes(64, device))


def test_a_target_that_overlaps_the_source_is_refused(device: str) -> None:
    memory = random_bytes(96, device)
    with pytest.raises(ValueError, match=r"src and dst must not overlap, got 0x"):
        copy_contiguous(memory[:64], memory[32:])


def test_neighbours_in_one_allocation_do_not_overlap(device: str) -> None:
    memory = random_bytes(128, device)
    copy_contiguous(memory[:64], memory[64:])
    assert torch.equal(memory[:64], memory[64:])


@pytest.mark.gpu
def test_tensors_on_the_cpu_are_refused_by_a_process_that_compiles() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device; the interpreter takes tensors on the CPU")
    with pytest.raises(ValueError, match=r"needs tensors on a GPU, got src on cpu, dst on cpu"):
        copy_contiguous(random_bytes(64, "cpu"), random_bytes(64, "cpu"))
    with pytest.raises(ValueError, match=r"one device, got src on cpu, dst on cuda:0"):
        copy_contiguous(random_bytes(64, "cpu"), random_bytes(64, "cuda"))


@pytest.mark.gpu
def test_a_copy_of_more_than_8_gib_reaches_its_last_byte() -> None:
    # 2**31 words: where a 32-bit offset would wrap. The interpreter would take hours.
    size = 2**33 + 16
    if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 2.2 * size:
        pytest.skip("needs a CUDA device with 18 GiB free")
    source = torch.zeros(size, dtype=torch.uint8, device="cuda")
    source[-16:] = 7
    target = torch.full_like(source, GUARD)

    copy_contiguous(source, target)

    assert torch.equal(source, target)
