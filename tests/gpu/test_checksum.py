"""Checksums of blocks: the same numbers everywhere, and another one after any of the accidents."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kvbench_kernels.checksum import TILE_WORDS, checksum, checksum_bytes_moved
from kvbench_kernels.reference import movement as reference

TILE_BYTES = TILE_WORDS * 8
ROW_SIZES = [16, 656, TILE_BYTES - 16, TILE_BYTES, TILE_BYTES + 16, 2 * TILE_BYTES + 1152]
MASK = 2**64 - 1


def random_rows(rows: int, row_bytes: int, device: str, padding_bytes: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * row_bytes)
    shape = (rows, row_bytes + padding_bytes)
    data = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return data.to(device)[:, :row_bytes]


def sum_of(words: list[int]) -> int:
    """The formula of the docstring in whole numbers, one word after the other."""
    total = 0
    for position, word in enumerate(words, start=1):
        z = (word + position * 0x9E3779B97F4A7C15) & MASK
        z = (z ^ z >> 32) * 0xDABA0B6EB09322E3 & MASK
        z = (z ^ z >> 32) * 0xDABA0B6EB09322E3 & MASK
        total += z ^ z >> 32
    return total & MASK


@pytest.mark.parametrize("padding_bytes", [0, 48])
@pytest.mark.parametrize("row_bytes", ROW_SIZES)
def test_a_checksum_is_the_one_that_plain_torch_and_plain_numbers_give(
    row_bytes: int, padding_bytes: int, device: str
) -> None:
    rows = random_rows(3, row_bytes, device, padding_bytes)
    words = np.ascontiguousarray(rows.cpu().numpy()).view("<u8")

    found = checksum(rows)

    assert torch.equal(found, reference.checksum(rows))
    assert found.dtype == torch.int64
    assert [value & MASK for value in found.tolist()] == [sum_of(row.tolist()) for row in words]


def test_words_of_one_bits_and_of_zero_bits_are_summed_like_any_other(device: str) -> None:
    rows = torch.zeros(3, 1024, dtype=torch.uint8, device=device)
    rows[1] = 0xFF
    rows[2, 7::8] = 0x80  # the smallest int64

    found = [value & MASK for value in checksum(rows).tolist()]

    assert found == [sum_of([word] * 128) for word in (0, MASK, 2**63)]


@pytest.mark.parametrize("other", [1, 2, 255, 256, TILE_WORDS - 1, TILE_WORDS, TILE_WORDS + 1])
def test_two_words_that_changed_places_change_the_checksum(other: int, device: str) -> None:
    rows = random_rows(1, TILE_BYTES + 64, device)
    words = rows.view(torch.int64)
    before = int(checksum(rows))
    words[0, [0, other]] = words[0, [other, 0]]

    assert int(checksum(rows)) != before


def test_every_bit_of_a_word_counts(device: str) -> None:
    rows = random_rows(1, 16, device).repeat(65, 1)
    words = rows.view(torch.int64)
    for bit in range(64):
        words[bit, 1] ^= torch.iinfo(torch.int64).min if bit == 63 else 1 << bit

    assert len(set(checksum(rows).tolist())) == 65


def test_zeros_at_the_end_of_a_row_change_its_checksum(device: str) -> None:
    rows = torch.zeros(1, 4096, dtype=torch.uint8, device=device)
    sums = [int(checksum(rows[:, :size])) for size in range(16, 4096, 256)]
    assert len(set(sums)) == len(sums)


def test_a_block_keeps_its_checksum_wherever_it_goes_and_two_swapped_blocks_show(
    device: str,
) -> None:
    rows = random_rows(4, 656, device)
    order = torch.tensor([2, 0, 3, 1], device=device)

    assert torch.equal(checksum(rows[order]), checksum(rows)[order])
    assert not torch.equal(checksum(rows[order]), checksum(rows))


def test_what_lies_beside_a_row_does_not_count_and_is_not_read(
    device: str, nothing_read_beside: Callable[..., bool], stored: list[np.ndarray]
) -> None:
    rows = random_rows(2, TILE_BYTES + 656, device, padding_bytes=48)

    checksum(rows)

    written = np.concatenate(stored)
    assert nothing_read_beside(rows)
    assert written.size == np.unique(written).size == 2 * 2 * 8, "a partial sum for each tile"


def test_a_row_is_found_beyond_the_reach_of_32_bit_offsets(device: str) -> None:
    # Memory that is never touched costs the system nothing.
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 1.1 * 2**34:
        pytest.skip("needs 18 GiB of memory to place two rows 16 GiB apart")
    row = random_rows(1, 64, device)
    memory = torch.empty(2**34 + 64, dtype=torch.uint8, device=device)
    rows = memory.as_strided((2, 64), (2**34, 1))  # 2**31 words apart
    rows[0] = 0
    rows[1] = row[0]

    assert int(checksum(rows)[1]) == int(checksum(row))


def test_no_rows_have_no_checksums_and_an_empty_row_has_zero(device: str) -> None:
    assert checksum(random_rows(0, 64, device)).tolist() == []
    assert checksum(random_rows(2, 64, device)[:, :0]).tolist() == [0, 0]


def test_the_bytes_of_checksums_are_the_rows_and_partial_sums_written_and_read() -> None:
    assert checksum_bytes_moved(10, 3 * TILE_BYTES) == 10 * (3 * TILE_BYTES + 3 * 16 + 8)
    assert checksum_bytes_moved(10, 16) == 10 * (16 + 16 + 8)


def refused(rows: torch.Tensor) -> str:
    with pytest.raises(ValueError, match=r"must") as caught:
        checksum(rows)
    return str(caught.value)


def test_rows_of_another_shape_type_or_alignment_are_refused(device: str) -> None:
    rows = random_rows(4, 80, device)

    assert "got [80] torch.uint8" in refused(rows[0])
    assert "got [4, 80] torch.int8" in refused(rows.view(torch.int8))
    assert "with strides (80, 2)" in refused(rows[:, ::2])
    assert "a row must be a multiple of 16 bytes, got 24" in refused(rows[:, :24])
    assert "data must start at a multiple of 16 bytes" in refused(rows[:, 8:72])
    message = "the row stride of data must be a multiple of 16 bytes, got 72"
    assert message in refused(random_rows(4, 64, device, padding_bytes=8))


def test_rows_too_long_for_a_launch_are_refused(device: str) -> None:
    row = torch.empty((1, 65535 * TILE_BYTES + 16), dtype=torch.uint8, device=device)  # not touched
    assert "must not exceed 1073725440 bytes, got 1073725456" in refused(row)
