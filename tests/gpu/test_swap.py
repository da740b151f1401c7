"""Small blocks between host and GPU: each to its own place, whatever the number of programs."""

from collections.abc import Callable

import pytest
import torch

from kvbench_kernels import swap
from kvbench_kernels.reference import movement as reference
from kvbench_kernels.swap import (
    DEFAULT_PROGRAMS,
    TILE_WORDS,
    SwapTable,
    swap_blocks,
    swap_bytes_moved,
    swap_table,
)

TILE_BYTES = TILE_WORDS * 4
LAYERS, BLOCKS = 2, 6
BLOCK_SIZES = [(16, 0), (656, 48), (4096, 0), (3 * TILE_BYTES, 0), (2 * TILE_BYTES + 16, 32)]
DIRECTIONS = ["to the GPU", "to the host"]

each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def random_bytes(shape: tuple[int, ...], place: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return data.pin_memory() if place == "pinned" else data.to(place)


def sides(
    direction: str, block_bytes: int, device: str, padding_bytes: int = 0
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Sources, targets, and the allocations of the targets with a guard row at either end."""
    host = "pinned" if device == "cuda" else device
    places = (host, device) if direction == "to the GPU" else (device, host)
    shape = (BLOCKS + 2, block_bytes + padding_bytes)
    memories = [
        [random_bytes(shape, place, seed=10 * side + layer) for layer in range(LAYERS)]
        for side, place in enumerate(places)
    ]
    sources, targets = (
        [memory[1 : BLOCKS + 1, :block_bytes] for memory in side] for side in memories
    )
    return sources, targets, memories[1]


def slots_of(*slots: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(slots, dtype=dtype)


def swap_and_wait(table: SwapTable, num_programs: int = DEFAULT_PROGRAMS) -> None:
    swap_blocks(table, num_programs)
    if table.addresses.device.type == "cuda":
        torch.cuda.synchronize()  # the host looks at the targets next


@pytest.mark.parametrize("num_programs", [1, 7, 64])
@each_direction
@pytest.mark.parametrize(("block_bytes", "padding_bytes"), BLOCK_SIZES)
def test_a_swap_leaves_the_same_bytes_as_torch_and_touches_nothing_around(
    block_bytes: int, padding_bytes: int, direction: str, num_programs: int, device: str
) -> None:
    sources, targets, memories = sides(direction, block_bytes, device, padding_bytes)
    _, expected_targets, expected = sides(direction, block_bytes, device, padding_bytes)
    slots = slots_of(5, 0, -1, 3, 5), slots_of(1, 4, 2, 0, 3, dtype=torch.int32)

    swap_and_wait(swap_table(sources, slots[0], targets, slots[1]), num_programs)
    reference.swap_blocks(swap_table(sources, slots[0], expected_targets, slots[1]))

    assert all(map(torch.equal, memories, expected))


@each_direction
def test_a_pair_of_which_either_slot_is_none_is_left_out(direction: str, device: str) -> None:
    sources, targets, memories = sides(direction, 64, device)
    before = [memory.clone() for memory in memories]

    swap_and_wait(swap_table(sources, slots_of(-1, 2), targets, slots_of(3, -1)))

    assert all(map(torch.equal, memories, before))


def test_blocks_go_to_the_same_layer_and_the_slot_that_was_named(device: str) -> None:
    sources, targets, _ = sides("to the GPU", 64, device)
    for layer, source in enumerate(sources):
        source[:] = 10 * layer + torch.arange(BLOCKS, dtype=torch.uint8)[:, None].to(source.device)
    for target in targets:
        target[:] = 99

    swap_and_wait(swap_table(sources, slots_of(4, 2), targets, slots_of(0, 5)))

    assert [target[:, 0].tolist() for target in targets] == [
        [4, 99, 99, 99, 99, 2],
        [14, 99, 99, 99, 99, 12],
    ]


@pytest.mark.parametrize("num_programs", [1, 3])
def test_a_swap_reads_named_blocks_only_and_writes_each_byte_once(
    num_programs: int,
    device: str,
    nothing_read_beside: Callable[..., bool],
    each_byte_written_once: Callable[..., bool],
) -> None:
    sources, targets, _ = sides("to the GPU", TILE_BYTES + 16, device)
    table = swap_table(sources, slots_of(4, 1, 4), targets, slots_of(0, 5, 2))

    swap_blocks(table, num_programs)

    assert nothing_read_beside(
        table.addresses, *(source[[1, 4][i]] for source in sources for i in (0, 1))
    )
    assert each_byte_written_once(*(target[slot] for target in targets for slot in (0, 5, 2)))


def test_what_was_swapped_out_comes_back(device: str) -> None:
    sources, targets, _ = sides("to the host", 24 * 1024, device)
    before = [source.clone() for source in sources]
    slots = slots_of(3, 1, 5), slots_of(0, 2, 4)

    swap_and_wait(swap_table(sources, slots[0], targets, slots[1]))
    for source in sources:
        source.zero_()
    swap_and_wait(swap_table(targets, slots[1], sources, slots[0]))

    for source, was in zip(sources, before, strict=True):
        assert torch.equal(source[slots[0].to(source.device)], was[slots[0].to(source.device)])


def test_a_block_is_found_beyond_the_reach_of_32_bit_offsets(device: str) -> None:
    # Memory that is never touched costs the system nothing.
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 1.1 * 2**33:
        pytest.skip("needs 9 GiB of memory to place two blocks 8 GiB apart")
    memory = torch.empty(2**33 + 64, dtype=torch.uint8, device=device)
    far = memory.as_strided((2, 64), (2**33, 1))
    near = random_bytes((1, 64), "pinned" if device == "cuda" else device)

    one = slots_of(1, dtype=torch.int32)
    swap_and_wait(swap_table([near], slots_of(0, dtype=torch.int32), [far], one))

    assert torch.equal(far[1].to(near.device), near[0])


def test_no_slots_move_nothing(device: str) -> None:
    sources, targets, memories = sides("to the GPU", 64, device)
    before = [memory.clone() for memory in memories]

    swap_and_wait(swap_table(sources, slots_of(), targets, slots_of()))

    assert all(map(torch.equal, memories, before))


def test_the_bytes_of_a_swap_are_its_blocks_twice_and_two_addresses_for_each() -> None:
    assert swap_bytes_moved(1000, 4096) == 1000 * (2 * 4096 + 2 * 8)


@pytest.mark.parametrize("num_programs", [0, -1, 65])
def test_a_number_of_programs_out_of_range_is_refused(num_programs: int, device: str) -> None:
    sources, targets, _ = sides("to the GPU", 64, device)
    table = swap_table(sources, slots_of(0), targets, slots_of(0))
    with pytest.raises(ValueError, match=rf"num_programs must be from 1 to 64, got {num_programs}"):
        swap_blocks(table, num_programs)


def refused(
    sources: list[torch.Tensor],
    source_slots: torch.Tensor,
    targets: list[torch.Tensor],
    target_slots: torch.Tensor,
) -> str:
    with pytest.raises(ValueError, match=r"must") as caught:
        swap_table(sources, source_slots, targets, target_slots)
    return str(caught.value)


def test_a_slot_outside_its_tensor_is_refused_before_anything_is_written(device: str) -> None:
    sources, targets, _ = sides("to the GPU", 64, device)
    inside = slots_of(0)

    message = "source_slots must be from 0 to 5, or -1 for none, got 6"
    assert message in refused(sources, slots_of(6), targets, inside)
    message = "target_slots must be from 0 to 5, or -1 for none, got -2"
    assert message in refused(sources, inside, targets, slots_of(-2))
    fewer = [targets[0], targets[1][:3]]
    message = "target_slots must be from 0 to 2, or -1 for none, got 3"
    assert message in refused(sources, inside, fewer, slots_of(3))


def test_a_block_that_would_be_written_twice_or_read_and_written_is_refused(device: str) -> None:
    sources, targets, _ = sides("to the GPU", 64, device)
    two = slots_of(0, 1)

    assert "must not be written twice" in refused(sources, two, targets, slots_of(3, 3))
    assert "must not be written twice" in refused(sources, two, [targets[0], targets[0]], two)
    shifted = targets[0].flatten()[16:-48].view(5, 64)
    assert "must not be written twice" in refused(sources, two, [targets[0], shifted], two)
    if device == "cpu":
        assert "read and written" in refused(sources, two, sources, slots_of(1, 2))
        swap_table(sources, two, [source.clone() for source in sources], slots_of(2, 3))


def test_sides_that_do_not_fit_together_are_refused_with_both(device: str) -> None:
    sources, targets, _ = sides("to the GPU", 64, device)
    one, two = slots_of(0), slots_of(0, 1)

    assert "one or more, got 0 and 0" in refused([], one, [], one)
    assert "one or more, got 2 and 1" in refused(sources, one, targets[:1], one)
    assert "must be as many, got 2 and 1" in refused(sources, two, targets, one)
    narrow = [target[:, :32] for target in targets]
    assert "target 0 must have blocks of 64 bytes as source 0 has, got 32" in refused(
        sources, one, narrow, one
    )
    assert "source_slots must be [m] torch.int32 or torch.int64 on the CPU" in refused(
        sources, one.float(), targets, one
    )
    assert "got [1, 1] torch.int64 on cpu" in refused(sources, one, targets, one[None])


def test_blocks_that_are_not_aligned_to_16_bytes_are_refused(device: str) -> None:
    sources, targets, _ = sides("to the GPU", 64, device)
    one = slots_of(0)

    short = [source[:, :24] for source in sources], [target[:, :24] for target in targets]
    assert "a block must be a multiple of 16 bytes, got 24" in refused(short[0], one, short[1], one)
    shifted = [source[:, 8:40] for source in sources]
    assert "source 0 must start at a multiple of 16" in refused(shifted, one, targets, one)


def test_two_sides_on_the_host_are_refused_by_a_process_that_compiles(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "interpreted", lambda: False)
    sources, targets, _ = sides("to the GPU", 64, device)
    one = slots_of(0)
    plain = [source.clone() for source in sources]

    message = "one side must be in pinned host memory (pin_memory=True) and the other on one GPU"
    assert message in refused(plain, one, [block.clone() for block in plain], one)
    if device == "cuda":
        assert "cpu, not pinned and cuda:0" in refused(plain, one, targets, one)
        assert "on cuda:0 and cuda:0" in refused(targets, one, targets, one)
