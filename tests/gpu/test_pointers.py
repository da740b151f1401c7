"""All layers in one launch: each page from and to its own layer and part, and nothing else."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from kvbench_kernels.pointers import (
    TILE_WORDS,
    AddressTable,
    address_table,
    gather_layers,
    layers_bytes_moved,
    scatter_layers,
)
from kvbench_kernels.reference import movement as reference

TILE_BYTES = TILE_WORDS * 4
GUARD = 0xA5
LAYERS, PAGES = 2, 6
PAGE_SIZES = [16, 656, TILE_BYTES + 16]
ARRANGEMENTS = {  # and the type of the ids
    "K then V": torch.int32,
    "K and V in turn": torch.int64,
    "K and V fused": torch.int32,
    "padded pages": torch.int64,
}
Parts = list[tuple[torch.Tensor, ...]]

each_arrangement = pytest.mark.parametrize("arrangement", ARRANGEMENTS)
each_size = pytest.mark.parametrize("page_bytes", PAGE_SIZES)


def random_bytes(shape: tuple[int, ...], device: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def cache(arrangement: str, page_bytes: int, device: str) -> tuple[list[torch.Tensor], Parts]:
    """The allocation of each layer, a page of guard bytes at either end, and its parts."""
    inside = slice(1, PAGES + 1)
    memories: list[torch.Tensor] = []
    layers: Parts = []
    for layer in range(LAYERS):
        shape = {
            "K then V": (2, PAGES + 2, page_bytes),
            "K and V in turn": (PAGES + 2, 2, page_bytes),
            "K and V fused": (PAGES + 2, page_bytes),
            "padded pages": (2, PAGES + 2, page_bytes + 48),
        }[arrangement]
        memory = random_bytes(shape, device, seed=layer)
        memories.append(memory)
        if arrangement == "K and V fused":
            layers.append((memory[inside],))
        elif arrangement == "K and V in turn":
            layers.append((memory[inside, 0], memory[inside, 1]))
        else:
            layers.append((memory[0, inside, :page_bytes], memory[1, inside, :page_bytes]))
    return memories, layers


def ids_of(ids: list[int], dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.tensor(ids, dtype=dtype, device=device)


@each_arrangement
@each_size
def test_a_gather_of_all_layers_leaves_the_same_bytes_as_torch_and_touches_nothing_around(
    page_bytes: int, arrangement: str, device: str
) -> None:
    _, layers = cache(arrangement, page_bytes, device)
    table = address_table(layers)
    ids = ids_of([5, 0, -1, 3, 5], ARRANGEMENTS[arrangement], device)  # a repeat and a hole
    shape = (7, LAYERS, len(layers[0]), page_bytes)
    memory = torch.full(shape, GUARD, dtype=torch.uint8, device=device)
    expected = memory.clone()

    gather_layers(table, ids, memory[1:6])
    reference.gather_layers(table, ids, expected[1:6])

    assert torch.equal(memory, expected)
    assert (memory[3] == GUARD).all(), "the row of the hole was written"


@each_arrangement
@each_size
def test_a_scatter_to_all_layers_leaves_the_same_bytes_as_torch_and_touches_nothing_around(
    page_bytes: int, arrangement: str, device: str
) -> None:
    memories, layers = cache(arrangement, page_bytes, device)
    expected, expected_layers = cache(arrangement, page_bytes, device)
    ids = ids_of([5, 0, -1, 3], ARRANGEMENTS[arrangement], device)
    rows = random_bytes((4, LAYERS, len(layers[0]), page_bytes), device, seed=9)

    scatter_layers(rows, address_table(layers), ids)
    reference.scatter_layers(rows, address_table(expected_layers), ids)

    for memory, wanted in zip(memories, expected, strict=True):
        assert torch.equal(memory, wanted)


@each_arrangement
def test_a_gather_reads_pages_only_and_writes_each_byte_once(
    arrangement: str,
    device: str,
    nothing_read_beside: Callable[..., bool],
    each_byte_written_once: Callable[..., bool],
) -> None:
    _, layers = cache(arrangement, TILE_BYTES + 16, device)
    table = address_table(layers)
    ids = ids_of([4, -1, 1], torch.int64, device)
    out = random_bytes((3, LAYERS, len(layers[0]), TILE_BYTES + 16), device)

    gather_layers(table, ids, out)

    pages = [part[[4, 1][at]] for parts in layers for part in parts for at in (0, 1)]
    assert nothing_read_beside(table.addresses, ids, *pages)
    assert each_byte_written_once(out[0], out[2])


@each_arrangement
def test_a_scatter_reads_rows_only_and_writes_each_byte_once(
    arrangement: str,
    device: str,
    nothing_read_beside: Callable[..., bool],
    each_byte_written_once: Callable[..., bool],
) -> None:
    _, layers = cache(arrangement, TILE_BYTES + 16, device)
    table = address_table(layers)
    ids = ids_of([4, -1, 1], torch.int64, device)
    rows = random_bytes((3, LAYERS, len(layers[0]), TILE_BYTES + 16), device)

    scatter_layers(rows, table, ids)

    assert nothing_read_beside(table.addresses, ids, rows[0], rows[2])
    assert each_byte_written_once(
        *(part[page] for parts in layers for part in parts for page in (4, 1))
    )


def test_keys_values_and_layers_keep_their_places(device: str) -> None:
    layers = [
        tuple(
            torch.full((4, 64), 10 * layer + part, dtype=torch.uint8, device=device)
            for part in range(2)
        )
        for layer in range(LAYERS)
    ]
    out = torch.zeros(1, LAYERS, 2, 64, dtype=torch.uint8, device=device)

    gather_layers(address_table(layers), ids_of([2], torch.int32, device), out)

    assert out[0, :, :, 0].tolist() == [[0, 1], [10, 11]]


def test_gathering_what_was_scattered_gives_the_same_rows_back(device: str) -> None:
    table = address_table(cache("K and V in turn", 4096, device)[1])
    rows = random_bytes((PAGES, LAYERS, 2, 4096), device, seed=5)
    back = torch.zeros_like(rows)
    ids = ids_of([3, 0, 5, 1, 4, 2], torch.int32, device)

    scatter_layers(rows, table, ids)
    gather_layers(table, ids, back)

    assert torch.equal(back, rows)


@pytest.mark.parametrize(
    ("page", "stride_bytes"), [(1, 2**33), (1000, 2**24), (-(-(2**33) // 48), 48)]
)
def test_a_page_is_found_beyond_the_reach_of_32_bit_offsets(
    page: int, stride_bytes: int, device: str
) -> None:
    # The cache is pretended to begin 8 GiB and more before the only page of it that exists; an
    # offset that wraps ends outside of all memory.
    there = random_bytes((1, 48), device)
    base = there.data_ptr() - page * stride_bytes
    table = AddressTable(
        addresses=torch.tensor([[base]], dtype=torch.int64, device=device),
        num_pages=1,
        page_bytes=48,
        stride_bytes=stride_bytes,
        tensors=((there,),),
    )
    ids = ids_of([page], torch.int32, device)
    rows = random_bytes((1, 1, 1, 48), device, seed=1)
    out = torch.zeros_like(rows)

    scatter_layers(rows, table, ids)
    gather_layers(table, ids, out)

    assert torch.equal(there, rows[0, 0])
    assert torch.equal(out, rows)


def test_no_ids_move_nothing(device: str) -> None:
    memories, layers = cache("K then V", 64, device)
    before = [memory.clone() for memory in memories]
    rows = random_bytes((0, LAYERS, 2, 64), device)
    ids = ids_of([], torch.int32, device)

    scatter_layers(rows, address_table(layers), ids)
    gather_layers(address_table(layers), ids, rows)

    assert all(map(torch.equal, memories, before))


def test_a_table_keeps_its_tensors_alive(device: str) -> None:
    tensor = random_bytes((4, 64), device)
    expected = tensor[2].clone()
    table = address_table([(tensor,)])
    alive = weakref.ref(tensor)
    out = torch.zeros(1, 1, 1, 64, dtype=torch.uint8, device=device)

    del tensor
    gc.collect()
    gather_layers(table, ids_of([2], torch.int32, device), out)

    assert alive() is not None
    assert torch.equal(out[0, 0, 0], expected)


def test_the_bytes_of_all_layers_are_their_pages_twice_and_an_id_and_an_address_for_each(
    device: str,
) -> None:
    table = address_table(cache("K then V", 656, device)[1])
    assert layers_bytes_moved(5, table, 4) == 5 * LAYERS * 2 * (2 * 656 + 4 + 8)


def no_table(layers: Parts) -> str:
    with pytest.raises(ValueError, match=r"must") as caught:
        address_table(layers)
    return str(caught.value)


def test_layers_that_do_not_fit_together_are_refused_with_both_sides(device: str) -> None:
    pages, others = random_bytes((4, 64), device), random_bytes((5, 64), device)
    padded = random_bytes((4, 80), device)[:, :64]

    assert "got parts []" in no_table([])
    assert "got parts [0]" in no_table([()])
    assert "got parts [2, 1]" in no_table([(pages, pages), (pages,)])
    message = "layer 1 part 0 must be [4, 64] torch.uint8"
    assert message in no_table([(pages,), (others,)])
    assert "layer 0 part 1 must be [4, 64] torch.uint8" in no_table([(pages, pages[:, :32])])
    message = "layer 1 part 0 must have its rows as far apart as layer 0 part 0, 64 bytes, got 80"
    assert message in no_table([(pages,), (padded,)])
    assert "got [4, 64] torch.int8" in no_table([(pages.view(torch.int8),)])
    assert "got [64] torch.uint8" in no_table([(pages[0],)])


def test_pages_that_are_not_aligned_to_16_bytes_are_refused(device: str) -> None:
    pages = random_bytes((4, 80), device)
    message = "layer 0 part 0 must start at a multiple of 16 bytes"
    assert message in no_table([(pages[:, 8:72],)])
    message = "the row stride of layer 0 part 0 must be a multiple of 16 bytes, got 72"
    assert message in no_table([(random_bytes((4, 72), device)[:, :64],)])
    message = "a page must be a multiple of 16 bytes, got 24"
    assert message in no_table([(pages[:, :24],)])


def test_pages_too_large_for_a_launch_are_refused(device: str) -> None:
    # Memory that is never touched costs the system nothing.
    page = torch.empty((1, 65535 * TILE_BYTES // 2 + 16), dtype=torch.uint8, device=device)
    assert "with 2 parts a layer, got 268431376" in no_table([(page, page)])


def refused(table: AddressTable, ids: torch.Tensor, rows: torch.Tensor) -> str:
    with pytest.raises(ValueError, match=r"must") as gathering:
        gather_layers(table, ids, rows)
    with pytest.raises(ValueError, match=r"must") as scattering:
        scatter_layers(rows, table, ids)
    message = str(gathering.value)
    assert message.replace("out ", "rows ") == str(scattering.value)
    return message


def test_rows_that_do_not_fit_the_table_are_refused_with_both_sides(device: str) -> None:
    _, layers = cache("K then V", 64, device)
    table = address_table(layers)
    ids = ids_of([0, 1], torch.int32, device)
    rows = random_bytes((2, LAYERS, 2, 64), device)

    message = "out must be contiguous [2, 2, 2, 64] torch.uint8"
    assert message in refused(table, ids, rows[:1])
    assert message in refused(table, ids, rows[:, :, :1])
    assert message in refused(table, ids, random_bytes((2, LAYERS, 2, 128), device)[..., :64])
    assert "page_ids must be contiguous [2]" in refused(table, ids.float(), rows)
    shifted = random_bytes((2 * LAYERS * 2 * 64 + 8,), device)[8:].view(2, LAYERS, 2, 64)
    assert "out must start at a multiple of 16 bytes" in refused(table, ids, shifted)


def test_a_buffer_inside_the_cache_is_refused(device: str) -> None:
    memory = random_bytes((8, 128), device)
    table = address_table([(random_bytes((8, 128), device),), (memory,)])
    rows = memory[4:6].view(2, 2, 1, 64)
    table_of_64 = address_table([(random_bytes((8, 64), device),), (memory[:, :64].contiguous(),)])
    inside = table_of_64.tensors[1][0][4:8].view(2, 2, 1, 64)
    ids = ids_of([0, 1], torch.int32, device)

    assert "out must be contiguous" in refused(table, ids, rows)
    assert "out and layer 1 part 0 must not overlap, got 0x" in refused(table_of_64, ids, inside)
