"""Moving blocks between layouts: the same bytes as torch by index, padding and neighbours alone."""

import itertools
import os
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from kvbench_kernels import relayout as module
from kvbench_kernels.layouts import LAYOUTS, MLA_FP8_DS, Layout, Sizes
from kvbench_kernels.reference import layout as reference
from kvbench_kernels.relayout import Cache, address, relayout, relayout_bytes_moved

GUARD = 0xA5
GUARD_BYTES = 256
L, B, N, H, D = 2, 3, 4, 5, 16  # no two equal but L and the two of K and V
KV = Sizes(layers=L, blocks=B, block_tokens=N, kv_heads=H, head_dim=D, element_bytes=2)
MLA_576 = Sizes(layers=L, blocks=B, block_tokens=N, kv_heads=1, head_dim=576, element_bytes=2)
MLA_656 = Sizes(layers=L, blocks=B, block_tokens=N, kv_heads=1, head_dim=656, element_bytes=1)


class Held(NamedTuple):
    """A cache inside an allocation that holds guard bytes before and after it."""

    cache: Cache
    memory: torch.Tensor

    @property
    def inside(self) -> torch.Tensor:
        return self.memory[GUARD_BYTES:-GUARD_BYTES]


def held(
    name: str | Layout, sizes: Sizes, device: str, seed: int | None = None, poison: int = GUARD
) -> Held:
    """A cache of random bytes, or of `poison` where there is no seed; poison in its padding too."""
    layout = LAYOUTS[name] if isinstance(name, str) else name
    total = layout.total_bytes(sizes)
    memory = torch.full((total + 2 * GUARD_BYTES,), poison, dtype=torch.uint8)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        memory[GUARD_BYTES:-GUARD_BYTES] = torch.randint(
            0, 256, (total,), dtype=torch.uint8, generator=generator
        )
    return hold(layout, sizes, memory.to(device))


def hold(layout: Layout, sizes: Sizes, memory: torch.Tensor) -> Held:
    dtype = torch.bfloat16 if sizes.element_bytes == 2 else torch.uint8
    inside = memory[GUARD_BYTES:-GUARD_BYTES]
    return Held(address(layout.carve(inside, sizes, dtype), layout, sizes), memory)


def ids(device: str, *numbers: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)


def assert_moved_as_by_torch(
    src: Held, dst: Held, src_ids: torch.Tensor | None, dst_ids: torch.Tensor | None
) -> None:
    """Run kernel and reference; all of the destination's memory must be the same after both."""
    expected = hold(dst.cache.layout, dst.cache.sizes, dst.memory.clone())
    before = src.memory.clone()

    relayout(src.cache, dst.cache, src_ids=src_ids, dst_ids=dst_ids)
    reference.relayout(src.cache, expected.cache, src_ids=src_ids, dst_ids=dst_ids)

    assert torch.equal(dst.memory, expected.memory)
    assert torch.equal(src.memory, before), "the source was written"


def same_content(names: list[str], sizes: Sizes) -> list[tuple[str, str, Sizes]]:
    pairs = itertools.combinations_with_replacement(names, 2)
    return [(first, second, sizes) for first, second in pairs]


def names_of(kv: int, row: tuple[int, int]) -> list[str]:
    return [
        name
        for name, layout in LAYOUTS.items()
        if layout.kv == kv and (not layout.row_formats or row in layout.row_formats)
    ]


PAIRS = [
    *same_content(names_of(2, (D, 2)), KV),
    *same_content(names_of(1, (576, 2)), MLA_576),
    *same_content(names_of(1, MLA_FP8_DS), MLA_656),
]


@pytest.mark.parametrize(
    ("first", "second", "sizes"), PAIRS, ids=[f"{a}-{b}-{s.head_dim}" for a, b, s in PAIRS]
)
def test_there_and_back_through_any_two_layouts_every_bit_is_the_same(
    first: str, second: str, sizes: Sizes, device: str
) -> None:
    # One block a way: the interpreter takes milliseconds for each program, and there are 287 pairs.
    src = held(first, sizes, device, seed=1)
    between, back = held(second, sizes, device), held(first, sizes, device)

    assert_moved_as_by_torch(src, between, ids(device, 2), ids(device, 1))
    assert_moved_as_by_torch(between, back, ids(device, 1), ids(device, 2))

    for layer, kv in itertools.product(range(L), range(src.cache.layout.kv)):
        sent = reference.blocks(src.cache, layer, kv)[2].view(torch.uint8)
        assert torch.equal(reference.blocks(back.cache, layer, kv)[2].view(torch.uint8), sent)


def test_every_layout_is_in_a_pair() -> None:
    assert {name for first, second, _ in PAIRS for name in (first, second)} == set(LAYOUTS)


# What arrives, read from plain memory as [layer, block, K or V, token, head, element] without a
# word of the layout's own description.
BY_HAND: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "vllm_lbnhc": lambda m: m.view(L, B, N, H, 2, D).permute(0, 1, 4, 2, 3, 5),
    "vllm_lhbnc": lambda m: m.view(L, H, B, N, 2, D).permute(0, 2, 4, 3, 1, 5),
    "vllm_bhlnc": lambda m: m.view(B, H, L, N, 2, D).permute(2, 0, 4, 3, 1, 5),
    "vllm_kvfirst_nhd": lambda m: m.view(L, 2, B, N, H, D).permute(0, 2, 1, 3, 4, 5),
    "vllm_kvfirst_hnd": lambda m: m.view(L, 2, B, H, N, D).permute(0, 2, 1, 4, 3, 5),
    "vllm_blockfirst_hnd": lambda m: m.view(L, B, 2, H, N, D).permute(0, 1, 2, 4, 3, 5),
    "trtllm_crosslayer": lambda m: m.view(B, L, 2, H, N, D).permute(1, 0, 2, 4, 3, 5),
    "sgl_mha": lambda m: m.view(2, L, B, N, H, D).permute(1, 2, 0, 3, 4, 5),
    "sgl_host_page_first": lambda m: m.view(2, B, N, L, H, D).permute(3, 1, 0, 2, 4, 5),
    "sgl_host_page_head": lambda m: m.view(2, B, H, N, L, D).permute(4, 1, 0, 3, 2, 5),
    "lmc_l2td": lambda m: m.view(L, 2, B, N, H, D).permute(0, 2, 1, 3, 4, 5),
    "kvbm_universal": lambda m: m.view(B, H, L, 2, N, D).permute(2, 0, 3, 4, 1, 5),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_rows_arrive_where_the_order_of_dimensions_written_by_hand_says(
    name: str, device: str
) -> None:
    src, dst = held("vllm_crosslayer", KV, device, seed=2), held(name, KV, device)

    relayout(src.cache, dst.cache)

    sent = src.inside.view(torch.int16).view(B, L, 2, N, H, D).permute(1, 0, 2, 3, 4, 5)
    assert torch.equal(BY_HAND[name](dst.inside.view(torch.int16)), sent)


def test_keys_stay_keys_and_values_stay_values(device: str) -> None:
    src, dst = held("sgl_mha", KV, device), held("vllm_lbnhc", KV, device)
    for index, tensor in enumerate(src.cache.tensors):
        tensor.fill_(1 if index < L else 2)  # K of all layers comes first

    relayout(src.cache, dst.cache)

    for tensor in dst.cache.tensors:
        assert (tensor[..., :D] == 1).all()
        assert (tensor[..., D:] == 2).all()


def test_a_block_goes_to_its_id_and_to_no_neighbour(device: str) -> None:
    src, dst = held("vllm_kvfirst_hnd", KV, device), held("vllm_kvfirst_nhd", KV, device)
    for tensor in src.cache.tensors:
        for block in range(B):
            tensor[:, block] = 10 + block

    relayout(src.cache, dst.cache, src_ids=ids(device, 2), dst_ids=ids(device, 1))

    untouched = torch.full((2,), GUARD, dtype=torch.uint8, device=device).view(torch.bfloat16)
    for tensor in dst.cache.tensors:
        assert (tensor[:, 1] == 12).all()
        assert (tensor[:, [0, 2]] == untouched).all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_blocks_may_repeat_and_minus_one_on_either_side_moves_nothing(
    dtype: torch.dtype, device: str
) -> None:
    many = Sizes(layers=L, blocks=7, block_tokens=N, kv_heads=H, head_dim=D, element_bytes=2)
    src, dst = held("vllm_blhnc", KV, device, seed=3), held("kvbm_universal", many, device)
    taken = ids(device, 2, 0, -1, 2, 1, dtype=dtype)
    put = ids(device, 6, 0, 3, 2, -1, dtype=dtype)

    assert_moved_as_by_torch(src, dst, taken, put)

    universal = dst.inside.view(7, -1)
    assert all((universal[block] == GUARD).all() for block in (1, 3, 4, 5))
    assert torch.equal(universal[6], universal[2])


def test_without_ids_on_one_side_its_blocks_are_taken_in_order(device: str) -> None:
    order = ids(device, 1, 2, 0)
    src, dst = held("vllm_lbhnc", KV, device, seed=4), held("lmc_2ltd", KV, device)
    assert_moved_as_by_torch(src, dst, order, None)
    assert_moved_as_by_torch(src, held("lmc_2ltd", KV, device), None, order)
    assert not (dst.inside == GUARD).all()


def test_no_ids_move_nothing(device: str) -> None:
    src, dst = held("vllm_lbhnc", KV, device, seed=5), held("lmc_2ltd", KV, device)
    none = torch.empty(0, dtype=torch.int64, device=device)
    relayout(src.cache, dst.cache, src_ids=none, dst_ids=none)
    assert (dst.memory == GUARD).all()


PADDED = [
    (LAYOUTS["vllm_lbnhc"].padded("block", 48), LAYOUTS["vllm_lbhnc"].padded("token", 16)),
    (LAYOUTS["vllm_blnhc"].padded("layer", 80), LAYOUTS["vllm_crosslayer"].padded("head", 32)),
    (LAYOUTS["vllm_crosslayer"].padded("head", 32), LAYOUTS["vllm_kvfirst_nhd"].padded("kv", 16)),
    (LAYOUTS["sgl_mha"].padded("token", 16), LAYOUTS["kvbm_universal"].padded("block", 256)),
]


@pytest.mark.parametrize(("first", "second"), PADDED)
def test_padding_of_blocks_tokens_and_rows_is_stepped_over_and_left_as_it_is(
    first: Layout, second: Layout, device: str
) -> None:
    src, dst = held(first, KV, device, seed=6), held(second, KV, device)
    assert_moved_as_by_torch(src, dst, ids(device, 2, 0), ids(device, 0, 1))
    assert_moved_as_by_torch(dst, held(first, KV, device), None, None)


@pytest.mark.parametrize("name", ["vllm_lhbnc", "sgl_host_page_first", "kvbm_universal"])
def test_every_byte_of_a_block_is_written_and_from_the_source_alone(name: str, device: str) -> None:
    src = held("trtllm_crosslayer", KV, device, seed=7)
    dirty = [held(name, KV, device, poison=poison) for poison in (0x00, 0xFF)]

    for dst in dirty:
        relayout(src.cache, dst.cache)

    assert torch.equal(dirty[0].inside, dirty[1].inside)
    assert [dst.memory[0].item() for dst in dirty] == [0x00, 0xFF]


def test_each_byte_of_a_block_is_written_once_and_none_is_read_beside_the_source(
    device: str,
    each_byte_written_once: Callable[..., bool],
    nothing_read_beside: Callable[..., bool],
) -> None:
    src, dst = held("vllm_lbnhc", KV, device, seed=8), held("sgl_host_page_head", KV, device)
    taken, put = ids(device, 1, 0, 2), ids(device, 0, 2, 1)

    relayout(src.cache, dst.cache, src_ids=taken, dst_ids=put)

    assert each_byte_written_once(dst.inside)
    assert nothing_read_beside(src.inside, src.cache.bases, dst.cache.bases, taken, put)


@pytest.mark.parametrize("row_bytes", [1152, 656])
def test_lanes_past_the_last_row_read_and_write_nothing(
    row_bytes: int,
    device: str,
    each_byte_written_once: Callable[..., bool],
    nothing_read_beside: Callable[..., bool],
) -> None:
    sizes = of_size(16, 1, *((576, 2) if row_bytes == 1152 else MLA_FP8_DS))
    src = held("sgl_host_mla_layer_first", sizes, device, seed=12)
    dst = held(LAYOUTS["sgl_mla"].padded("token", 16), sizes, device)

    relayout(src.cache, dst.cache)

    assert each_byte_written_once(*dst.cache.tensors)
    assert nothing_read_beside(src.inside, src.cache.bases, dst.cache.bases)


class Shape(NamedTuple):
    """Sizes that take several tiles, or leave lanes of the last one without work."""

    first: str
    second: str
    sizes: Sizes


def of_size(tokens: int, heads: int, head_dim: int, element_bytes: int) -> Sizes:
    return Sizes(
        layers=1,
        blocks=1,
        block_tokens=tokens,
        kv_heads=heads,
        head_dim=head_dim,
        element_bytes=element_bytes,
    )


TILED = [
    Shape("vllm_kvfirst_nhd", "vllm_kvfirst_hnd", of_size(16, 8, 128, 2)),  # rows swap places
    Shape("vllm_kvfirst_nhd", "vllm_crosslayer", of_size(16, 8, 128, 2)),  # one piece
    Shape("vllm_kvfirst_nhd", "sgl_host_page_first", of_size(16, 8, 128, 2)),  # heads joined
    Shape("vllm_kvfirst_hnd", "sgl_host_page_head", of_size(16, 8, 128, 2)),  # tokens joined
    Shape("vllm_lbnhc", "vllm_blhnc", of_size(16, 3, 80, 2)),
    Shape("mla_576", "sgl_host_mla_page_first", of_size(16, 1, 576, 2)),
    Shape("mla_576", "sgl_mla", of_size(64, 1, 576, 2)),
    Shape("mla_fp8_ds_656", "sgl_host_mla_page_first", of_size(16, 1, 656, 1)),
    Shape("mla_fp8_ds_656", "lmc_mla", of_size(17, 1, 656, 1)),
]


@pytest.mark.parametrize(("first", "second", "sizes"), TILED)
def test_blocks_of_several_tiles_and_ragged_ones_arrive_whole(
    first: str, second: str, sizes: Sizes, device: str
) -> None:
    src, dst = held(first, sizes, device, seed=9), held(second, sizes, device)
    assert_moved_as_by_torch(src, dst, None, None)


@pytest.mark.parametrize("by_ids", [True, False])
@pytest.mark.parametrize(("name", "dimension"), [("vllm_lbnhc", "block"), ("vllm_lhbnc", "head")])
def test_a_row_is_found_beyond_the_reach_of_32_bit_offsets(
    name: str, dimension: str, by_ids: bool, device: str
) -> None:
    # The second block, or head, starts at word 2**31. Memory that is never touched costs nothing.
    far_bytes = 2**33
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else host_bytes
    if free < 1.1 * far_bytes:
        pytest.skip("needs 9 GiB of memory to place two rows 8 GiB apart")
    sizes = Sizes(layers=1, blocks=2, block_tokens=1, kv_heads=2, head_dim=8, element_bytes=2)
    near = LAYOUTS[name].strides(sizes)[0 if dimension == "block" else 1]
    layout = LAYOUTS[name].padded(dimension, far_bytes - near)
    memory = torch.empty((far_bytes + 4096) // 2, dtype=torch.bfloat16, device=device)
    strides = [stride // 2 for stride in layout.strides(sizes)]
    far = address([memory.as_strided(layout.shape(sizes), strides)], layout, sizes)
    src, back = held("sgl_mha", sizes, device, seed=10), held("sgl_mha", sizes, device)
    both = ids(device, 0, 1) if by_ids else None

    relayout(src.cache, far, dst_ids=both)
    relayout(far, back.cache, src_ids=both)

    for kv in range(2):
        arrived = reference.blocks(far, 0, kv).view(torch.int16)
        assert torch.equal(arrived, reference.blocks(src.cache, 0, kv).view(torch.int16))
    assert torch.equal(back.inside, src.inside)


def test_the_bytes_of_a_move_are_its_rows_twice_its_ids_and_the_addresses() -> None:
    layout, sizes = LAYOUTS["vllm_lbnhc"], of_size(16, 8, 128, 2)
    block_bytes = 2 * 16 * 8 * 256
    assert relayout_bytes_moved(layout, sizes, 10, 8) == 10 * (2 * block_bytes + 8) + 2 * 2 * 8
    mla = Sizes(layers=61, blocks=9, block_tokens=64, kv_heads=1, head_dim=656, element_bytes=1)
    expected = 2 * 2 * 61 * 64 * 656 + 61 * 2 * 8
    assert relayout_bytes_moved(LAYOUTS["mla_fp8_ds_656"], mla, 2, 0) == expected


def refused(src: Cache, dst: Cache, **ids_: torch.Tensor) -> str:
    with pytest.raises(ValueError, match="must") as caught:
        relayout(src, dst, **ids_)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_caches_that_hold_different_things_are_refused(device: str) -> None:
    src = held("vllm_lbnhc", KV, device).cache
    longer = Sizes(layers=L, blocks=B, block_tokens=8, kv_heads=H, head_dim=D, element_bytes=2)
    message = refused(src, held("sgl_mha", longer, device).cache)
    assert "must hold the same apart from the number of blocks" in message
    assert "block_tokens=4" in message
    assert "block_tokens=8" in message
    # One row of 576 a token is not K and V of 576, whatever else is equal.
    joint = held("mla_576", MLA_576, device).cache
    assert "must hold the same" in refused(joint, held("vllm_lbnhc", MLA_576, device).cache)


def test_ids_that_do_not_pair_up_are_refused_with_both_counts(device: str) -> None:
    src, dst = held("vllm_lbnhc", KV, device).cache, held("sgl_mha", KV, device).cache
    two, three = ids(device, 0, 1), ids(device, 0, 1, 2)
    assert "got 2 and 3" in refused(src, dst, src_ids=two, dst_ids=three)
    assert "got 3 and 2; without ids all blocks" in refused(src, dst, dst_ids=two)
    assert "src_ids must be contiguous [2]" in refused(src, dst, src_ids=two.float())
    assert "dst_ids must be contiguous [4]" in refused(src, dst, dst_ids=ids(device, *[0] * 8)[::2])


def test_memory_that_is_read_and_written_at_once_is_refused(device: str) -> None:
    whole = held("vllm_crosslayer", KV, device)
    half = Sizes(layers=L, blocks=1, block_tokens=N, kv_heads=H, head_dim=D, element_bytes=2)
    layout = LAYOUTS["sgl_mha"]
    last = whole.inside[-layout.total_bytes(half) :]
    inside = address(layout.carve(last, half, torch.bfloat16), layout, half)
    first = ids(device, 0)
    assert "must not overlap" in refused(whole.cache, inside, src_ids=first)
    assert "must not overlap" in refused(inside, whole.cache, dst_ids=first)


def test_tensors_of_two_caches_may_lie_between_each_other(device: str) -> None:
    # Layers of both in turn, as where an engine and a connector allocate layer by layer
    sizes = Sizes(layers=1, blocks=B, block_tokens=N, kv_heads=H, head_dim=D, element_bytes=2)
    layout = LAYOUTS["vllm_lbnhc"]
    one = layout.total_bytes(sizes)
    memory = held("vllm_lbnhc", KV, device, seed=11).inside.repeat(2)
    layers = [
        layout.carve(memory[at * one : (at + 1) * one], sizes, torch.bfloat16)[0]
        for at in range(2 * L)
    ]
    even, odd = address(layers[::2], layout, KV), address(layers[1::2], layout, KV)

    relayout(even, odd)

    assert torch.equal(memory[:one], memory[one : 2 * one])
    assert torch.equal(memory[2 * one : 3 * one], memory[3 * one :])


def unaddressed(layout: Layout, sizes: Sizes, memory: torch.Tensor) -> str:
    dtype = torch.bfloat16 if sizes.element_bytes == 2 else torch.uint8
    total = layout.total_bytes(sizes)
    with pytest.raises(ValueError, match="must") as caught:
        address(layout.carve(memory[:total], sizes, dtype), layout, sizes)
    return str(caught.value)


def test_rows_that_are_not_aligned_to_16_bytes_are_refused(device: str) -> None:
    memory = torch.empty(2**16, dtype=torch.uint8, device=device)
    layout = LAYOUTS["vllm_lbnhc"]
    message = "tensor 0 of vllm_lbnhc must start at a multiple of 16 bytes"
    assert message in unaddressed(layout, KV, memory[8:])
    message = "a row of vllm_lbnhc must be a multiple of 16 bytes, got 24"
    assert message in unaddressed(layout, of_size(4, 2, 12, 2), memory)
    message = "the token stride of vllm_lbnhc must be a multiple of 16 bytes, got 328"
    assert message in unaddressed(layout.padded("token", 8), KV, memory)


def test_a_cache_in_another_layout_than_named_is_refused(device: str) -> None:
    tensors = held("vllm_kvfirst_nhd", KV, device).cache.tensors
    with pytest.raises(ValueError, match="of vllm_kvfirst_hnd must be"):
        address(tensors, LAYOUTS["vllm_kvfirst_hnd"], KV)


def test_blocks_that_pass_what_the_kernel_can_count_are_refused(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, dst = held("vllm_lhbnc", KV, device).cache, held("sgl_mha", KV, device).cache
    monkeypatch.setattr(module, "MAX_REACH_UNITS", 4)
    assert "a block of src must not reach over more than 64 bytes" in refused(src, dst)
    monkeypatch.undo()
    monkeypatch.setattr(module, "MAX_TILES", 3)
    assert "at most 3 layers times K and V, and a block of at most" in refused(src, dst)
