"""Rows of single tokens: the same bytes as torch's indexing, holes left alone, no silent misuse."""

import os
from collections.abc import Callable

import pytest
import torch

from kvbench_kernels.reference import movement as reference
from kvbench_kernels.tokens import (
    MAX_TILES,
    TILE_UNITS,
    gather_tokens,
    scatter_tokens,
    tokens_bytes_moved,
)

TILE_BYTES = TILE_UNITS * 16
GUARD = 0xA5
BLOCKS, BLOCK_TOKENS = 3, 5
ROW_SIZES = [16, 656, 1152, 2048, TILE_BYTES, TILE_BYTES + 656]
ARRANGEMENTS = {  # and the type of the slots
    "slots": torch.int32,
    "padded slots": torch.int64,
    "blocks": torch.int64,
    "padded blocks": torch.int32,
    "K and V in turn": torch.int64,
}
Move = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]

each_arrangement = pytest.mark.parametrize("arrangement", ARRANGEMENTS)
each_size = pytest.mark.parametrize("token_bytes", ROW_SIZES)
each_move = pytest.mark.parametrize("move", [gather_tokens, scatter_tokens])


def random_bytes(shape: tuple[int, ...], device: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def cache(arrangement: str, token_bytes: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """An allocation with guard bytes at both ends, and the cache of 15 slots inside."""
    slots = BLOCKS * BLOCK_TOKENS
    inside = slice(1, BLOCKS + 1)
    if arrangement in {"slots", "padded slots"}:
        memory = random_bytes((slots + 2, token_bytes + 32 * (arrangement != "slots")), device)
        return memory, memory[1 : slots + 1, :token_bytes]
    if arrangement == "K and V in turn":
        memory = random_bytes((BLOCKS + 2, 2, BLOCK_TOKENS, token_bytes + 16), device)
        return memory, memory[inside, 1, :, :token_bytes]
    padding_bytes = 0 if arrangement == "blocks" else 48
    memory = random_bytes((BLOCKS + 2, BLOCK_TOKENS, token_bytes + padding_bytes), device)
    return memory, memory[inside, :, :token_bytes]


def slots_of(slots: list[int], device: str, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(slots, dtype=dtype, device=device)


@each_arrangement
@each_size
def test_a_gather_leaves_the_same_bytes_as_torch_and_touches_nothing_around(
    token_bytes: int, arrangement: str, device: str
) -> None:
    _, tokens = cache(arrangement, token_bytes, device)
    # A hole, repeats, and one token more than a program of 656-byte rows takes.
    slots = slots_of(
        [14, 0, -1, 7, 7, 4, 5, 9, 10, 11, 2, 13, 14], device, ARRANGEMENTS[arrangement]
    )
    memory = torch.full((15, token_bytes), GUARD, dtype=torch.uint8, device=device)
    expected = memory.clone()

    gather_tokens(tokens, slots, memory[1:14])
    reference.gather_tokens(tokens, slots, expected[1:14])

    assert torch.equal(memory, expected)
    assert (memory[3] == GUARD).all(), "the row of the hole was written"


@each_arrangement
@each_size
def test_a_scatter_leaves_the_same_bytes_as_torch_and_touches_nothing_around(
    token_bytes: int, arrangement: str, device: str
) -> None:
    memory, tokens = cache(arrangement, token_bytes, device)
    expected, expected_tokens = cache(arrangement, token_bytes, device)
    slots = slots_of(
        [14, 0, -1, 7, 4, 5, 9, 10, 11, 2, 13, -1, 8], device, ARRANGEMENTS[arrangement]
    )
    rows = random_bytes((13, token_bytes), device, seed=3)

    scatter_tokens(rows, slots, tokens)
    reference.scatter_tokens(rows, slots, expected_tokens)

    assert torch.equal(memory, expected)


@each_arrangement
@pytest.mark.parametrize("token_bytes", [656, TILE_BYTES + 656])
def test_a_gather_reads_named_tokens_only_and_writes_each_byte_once(
    token_bytes: int,
    arrangement: str,
    device: str,
    nothing_read_beside: Callable[..., bool],
    each_byte_written_once: Callable[..., bool],
) -> None:
    _, tokens = cache(arrangement, token_bytes, device)
    slots = slots_of([4, -1, 9], device)
    out = random_bytes((3, token_bytes), device)

    gather_tokens(tokens, slots, out)

    named = [tokens[slot] if tokens.dim() == 2 else tokens[slot // 5, slot % 5] for slot in (4, 9)]
    assert nothing_read_beside(slots, *named)
    assert each_byte_written_once(out[0], out[2])


@each_arrangement
@pytest.mark.parametrize("token_bytes", [656, TILE_BYTES + 656])
def test_a_scatter_reads_rows_only_and_writes_each_byte_once(
    token_bytes: int,
    arrangement: str,
    device: str,
    nothing_read_beside: Callable[..., bool],
    each_byte_written_once: Callable[..., bool],
) -> None:
    _, tokens = cache(arrangement, token_bytes, device)
    slots = slots_of([4, -1, 9], device)
    rows = random_bytes((3, token_bytes), device)

    scatter_tokens(rows, slots, tokens)

    named = [tokens[slot] if tokens.dim() == 2 else tokens[slot // 5, slot % 5] for slot in (4, 9)]
    assert nothing_read_beside(slots, rows[0], rows[2])
    assert each_byte_written_once(*named)


def test_gathering_what_was_scattered_gives_the_same_rows_back(device: str) -> None:
    _, tokens = cache("K and V in turn", 1152, device)
    slots = torch.randperm(15, generator=torch.Generator().manual_seed(2)).to(device)
    rows = random_bytes((15, 1152), device, seed=4)
    back = torch.zeros_like(rows)

    scatter_tokens(rows, slots, tokens)
    gather_tokens(tokens, slots, back)

    assert torch.equal(back, rows)


@pytest.mark.parametrize(
    ("shape", "strides", "slot"),
    [
        ((2, 656), (2**33, 1), 1),
        ((2, 4, 656), (2**33, 656, 1), 6),
        ((1, 2, 656), (2**34, 2**33, 1), 1),
    ],
)
def test_a_token_is_found_beyond_the_reach_of_32_bit_offsets(
    shape: tuple[int, ...], strides: tuple[int, ...], slot: int, device: str
) -> None:
    # 2**31 words into the cache. Memory that is never touched costs the system nothing.
    size_bytes = 2**33 + 4 * 656
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else host_bytes
    if free < 1.1 * size_bytes:
        pytest.skip("needs 9 GiB of memory to place two tokens 8 GiB apart")
    memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    tokens = memory.as_strided(shape, strides)
    rows = random_bytes((1, 656), device)
    out = torch.zeros_like(rows)

    scatter_tokens(rows, slots_of([slot], device), tokens)
    gather_tokens(tokens, slots_of([slot], device), out)

    at = tokens[slot] if len(shape) == 2 else tokens[slot // shape[1], slot % shape[1]]
    assert torch.equal(at, rows[0])
    assert torch.equal(out, rows)


@each_move
def test_no_slots_move_nothing(move: Move, device: str) -> None:
    memory, tokens = cache("blocks", 64, device)
    before = memory.clone()
    rows = random_bytes((0, 64), device)

    call(move, tokens, slots_of([], device), rows)

    assert torch.equal(memory, before)


def test_the_bytes_of_a_gather_are_its_rows_twice_and_a_slot_for_each() -> None:
    assert tokens_bytes_moved(64, 656, 8) == 64 * (2 * 656 + 8)


def call(move: Move, tokens: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    move(*((tokens, slots, rows) if move is gather_tokens else (rows, slots, tokens)))


def refused(move: Move, tokens: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> str:
    with pytest.raises(ValueError, match=r"must") as caught:
        call(move, tokens, slots, rows)
    return str(caught.value)


@each_move
def test_arguments_that_do_not_fit_together_are_refused_with_both_sides(
    move: Move, device: str
) -> None:
    _, tokens = cache("blocks", 64, device)
    slots, rows = slots_of([0, 1], device), random_bytes((2, 64), device)
    name = "out" if move is gather_tokens else "rows"

    message = f"{name} must be contiguous [2, 64] torch.uint8"
    assert message in refused(move, tokens, slots, rows[:1])
    assert message in refused(move, tokens, slots, rows[:, :32])
    assert message in refused(move, tokens, slots, random_bytes((2, 128), device)[:, :64])
    assert "slots must be contiguous [2]" in refused(move, tokens, slots.float(), rows)
    assert "got [3, 5, 64] torch.int8" in refused(move, tokens.view(torch.int8), slots, rows)
    assert "got [64] torch.uint8" in refused(move, tokens[0, 0], slots, rows)
    assert "with strides (64, 320, 1)" in refused(move, tokens.transpose(0, 1), slots, rows)
    every_other = random_bytes((4, 128), device)[:, ::2]
    assert "with strides (128, 2)" in refused(move, every_other, slots, rows)


@each_move
def test_rows_that_are_not_aligned_to_16_bytes_are_refused(move: Move, device: str) -> None:
    slots, rows = slots_of([0, 1], device), random_bytes((2, 64), device)
    shifted = random_bytes((136,), device)[8:].view(2, 64)
    odd_stride, odd_blocks = random_bytes((4, 72), device), random_bytes((2, 136), device)

    message = "a stride of cache must be a multiple of 16 bytes, got 72"
    assert message in refused(move, odd_stride[:, :64], slots, rows)
    message = "a stride of cache must be a multiple of 16 bytes, got 136"
    assert message in refused(move, odd_blocks[:, :128].view(2, 2, 64), slots, rows)
    assert "cache must start at a multiple of 16" in refused(move, shifted, slots, rows)
    assert "must start at a multiple of 16" in refused(move, rows.clone(), slots, shifted)
    message = "the row of a token must be a multiple of 16 bytes, got 24"
    assert message in refused(move, random_bytes((4, 64), device)[:, :24], slots, rows[:, :24])


@each_move
def test_rows_too_large_for_a_launch_are_refused(move: Move, device: str) -> None:
    size_bytes = MAX_TILES * TILE_BYTES + 16
    row = torch.empty((1, size_bytes), dtype=torch.uint8, device=device)  # never touched
    message = f"must not exceed {size_bytes - 16} bytes, got {size_bytes}"
    assert message in refused(move, row, slots_of([0], device), row)


@each_move
def test_more_slots_than_32_bits_can_name_are_refused(move: Move, device: str) -> None:
    tokens = random_bytes((16,), device).expand(2**31, 16)
    no_overlap = tokens.as_strided((2**31, 0), (16, 1))
    rows = random_bytes((1, 0), device)
    message = "slots of cache must not exceed 2147483647, got 2147483648"
    assert message in refused(move, no_overlap, slots_of([0], device), rows)


@each_move
def test_a_buffer_inside_the_cache_is_refused(move: Move, device: str) -> None:
    _, tokens = cache("slots", 64, device)
    message = refused(move, tokens, slots_of([0, 1], device), tokens[2:4])
    assert "must not overlap" in message
