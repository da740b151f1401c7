"""Layouts against orders of dimensions written out by hand, and what their kernel compiles to."""

import itertools
from collections.abc import Callable

import pytest
import torch

from kvbench_kernels.layouts import LAYOUTS, Layout, Sizes, find_layout
from kvbench_kernels.reference.layout import blocks
from kvbench_kernels.relayout import VARIANTS, address
from kvbench_kernels.static import accesses_without_hints, analyse
from kvbench_kernels.variant import CAPABILITIES, Variant

# No two counts are equal (K and V make 2), so that no two dimensions can be taken for each other.
L, B, N, H, D = 3, 5, 4, 6, 8
KV = Sizes(layers=L, blocks=B, block_tokens=N, kv_heads=H, head_dim=D, element_bytes=2)
MLA_576 = Sizes(layers=L, blocks=B, block_tokens=N, kv_heads=1, head_dim=576, element_bytes=2)
MLA_656 = Sizes(layers=L, blocks=B, block_tokens=N, kv_heads=1, head_dim=656, element_bytes=1)

# Everything in memory, one tensor after another, as [layer, block, K or V, token, head, element].
Logical = Callable[[torch.Tensor], torch.Tensor]
BY_HAND: dict[str, Logical] = {
    "vllm_lbnhc": lambda m: m.view(L, B, N, H, 2, D).permute(0, 1, 4, 2, 3, 5),
    "vllm_lbhnc": lambda m: m.view(L, B, H, N, 2, D).permute(0, 1, 4, 3, 2, 5),
    "vllm_lhbnc": lambda m: m.view(L, H, B, N, 2, D).permute(0, 2, 4, 3, 1, 5),
    "vllm_blhnc": lambda m: m.view(B, L, H, N, 2, D).permute(1, 0, 4, 3, 2, 5),
    "vllm_blnhc": lambda m: m.view(B, L, N, H, 2, D).permute(1, 0, 4, 2, 3, 5),
    "vllm_bhlnc": lambda m: m.view(B, H, L, N, 2, D).permute(2, 0, 4, 3, 1, 5),
    "vllm_kvfirst_nhd": lambda m: m.view(L, 2, B, N, H, D).permute(0, 2, 1, 3, 4, 5),
    "vllm_kvfirst_hnd": lambda m: m.view(L, 2, B, H, N, D).permute(0, 2, 1, 4, 3, 5),
    "vllm_blockfirst_nhd": lambda m: m.view(L, B, 2, N, H, D),
    "vllm_blockfirst_hnd": lambda m: m.view(L, B, 2, H, N, D).permute(0, 1, 2, 4, 3, 5),
    "vllm_crosslayer": lambda m: m.view(B, L, 2, N, H, D).permute(1, 0, 2, 3, 4, 5),
    "trtllm_crosslayer": lambda m: m.view(B, L, 2, H, N, D).permute(1, 0, 2, 4, 3, 5),
    "sgl_mha": lambda m: m.view(2, L, B, N, H, D).permute(1, 2, 0, 3, 4, 5),
    "sgl_host_layer_first": lambda m: m.view(2, L, B, N, H, D).permute(1, 2, 0, 3, 4, 5),
    "sgl_host_page_first": lambda m: m.view(2, B, N, L, H, D).permute(3, 1, 0, 2, 4, 5),
    "sgl_host_page_first_direct": lambda m: m.view(2, B, L, N, H, D).permute(2, 1, 0, 3, 4, 5),
    "sgl_host_page_head": lambda m: m.view(2, B, H, N, L, D).permute(4, 1, 0, 3, 2, 5),
    "lmc_2ltd": lambda m: m.view(2, L, B, N, H, D).permute(1, 2, 0, 3, 4, 5),
    "lmc_l2td": lambda m: m.view(L, 2, B, N, H, D).permute(0, 2, 1, 3, 4, 5),
    "kvbm_operational": lambda m: m.view(B, L, 2, N, H, D).permute(1, 0, 2, 3, 4, 5),
    "kvbm_universal": lambda m: m.view(B, H, L, 2, N, D).permute(2, 0, 3, 4, 1, 5),
    "mla_576": lambda m: m.view(L, B, 1, N, 1, -1),
    "mla_fp8_ds_656": lambda m: m.view(L, B, 1, N, 1, -1),
    "mla_crosslayer": lambda m: m.view(B, L, 1, N, 1, -1).permute(1, 0, 2, 3, 4, 5),
    "sgl_mla": lambda m: m.view(L, B, 1, N, 1, -1),
    "sgl_host_mla_layer_first": lambda m: m.view(L, B, 1, N, 1, -1),
    "sgl_host_mla_page_first": lambda m: m.view(B, N, L, 1, 1, -1).permute(2, 0, 3, 1, 4, 5),
    "sgl_host_mla_page_first_direct": lambda m: m.view(B, L, N, 1, 1, -1).permute(1, 0, 3, 2, 4, 5),
    "lmc_mla": lambda m: m.view(1, L, B, N, 1, -1).permute(1, 2, 0, 3, 4, 5),
}
# As the engine hands it out: how many tensors, and the shape of each.
SHAPES: dict[str, tuple[int, tuple[int, ...]]] = {
    **{
        f"vllm_{order}": (L, (B, H, N, 2 * D))
        for order in ("lbnhc", "lbhnc", "lhbnc", "blhnc", "blnhc", "bhlnc")
    },
    "vllm_kvfirst_nhd": (L, (2, B, N, H, D)),
    "vllm_kvfirst_hnd": (L, (2, B, N, H, D)),
    "vllm_blockfirst_nhd": (L, (B, 2, N, H, D)),
    "vllm_blockfirst_hnd": (L, (B, 2, N, H, D)),
    "vllm_crosslayer": (1, (B, L, 2, N, H, D)),
    "trtllm_crosslayer": (1, (B, L, 2, H * N * D)),
    "sgl_mha": (2 * L, (B * N, H, D)),
    "sgl_host_layer_first": (1, (2, L, B * N, H, D)),
    "sgl_host_page_first": (1, (2, B * N, L, H, D)),
    "sgl_host_page_first_direct": (1, (2, B, L, N, H, D)),
    "sgl_host_page_head": (1, (2, B, H, N, L, D)),
    "lmc_2ltd": (1, (2, L, B * N, H * D)),
    "lmc_l2td": (1, (L, 2, B * N, H * D)),
    "kvbm_operational": (1, (B, L, 2, N * H * D)),
    "kvbm_universal": (1, (B, H, L, 2, N, D)),
    "mla_576": (L, (B, N, 576)),
    "mla_fp8_ds_656": (L, (B, N, 656)),
    "mla_crosslayer": (1, (B, L, N, 576)),
    "sgl_mla": (L, (B * N, 1, 576)),
    "sgl_host_mla_layer_first": (1, (L, B * N, 1, 576)),
    "sgl_host_mla_page_first": (1, (B * N, L, 1, 576)),
    "sgl_host_mla_page_first_direct": (1, (B, L, N, 1, 576)),
    "lmc_mla": (1, (1, L, B * N, 576)),
}


def sizes_of(layout: Layout) -> Sizes:
    if layout.kv == 2:
        return KV
    return MLA_656 if layout.name == "mla_fp8_ds_656" else MLA_576


def numbered(layout: Layout, sizes: Sizes) -> torch.Tensor:
    """Memory for this layout in which no two elements are equal, or random bytes."""
    elements = layout.total_bytes(sizes) // sizes.element_bytes
    if sizes.element_bytes == 2:
        return torch.arange(elements).to(torch.int16)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-128, 128, (elements,), dtype=torch.int8, generator=generator)


def carved(layout: Layout, sizes: Sizes) -> tuple[torch.Tensor, ...]:
    memory = numbered(layout, sizes)
    return layout.carve(memory.view(torch.uint8), sizes, memory.dtype)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_lies_where_the_order_of_dimensions_written_by_hand_says(name: str) -> None:
    layout, sizes = LAYOUTS[name], sizes_of(LAYOUTS[name])
    rows, starts = layout.rows(sizes), layout.offsets(sizes)
    elements = torch.arange(layout.total_bytes(sizes) // sizes.element_bytes)
    logical = BY_HAND[name](elements)

    assert logical.shape == (L, B, layout.kv, N, sizes.kv_heads, sizes.head_dim)
    for layer, block, kv, token, head in itertools.product(*map(range, logical.shape[:-1])):
        tensor, offset_bytes = rows.base(layer, kv)
        found = starts[tensor] + offset_bytes + block * rows.block_bytes
        found += token * rows.token_bytes + head * rows.head_bytes
        expected = logical[layer, block, kv, token, head] * sizes.element_bytes
        # A row is contiguous: its elements follow its first.
        assert torch.equal(
            expected, found + torch.arange(0, sizes.row_bytes, sizes.element_bytes)
        ), (layer, block, kv, token, head)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_reference_reads_the_elements_that_the_order_written_by_hand_says(name: str) -> None:
    layout, sizes = LAYOUTS[name], sizes_of(LAYOUTS[name])
    logical = BY_HAND[name](numbered(layout, sizes))
    cache = address(carved(layout, sizes), layout, sizes)

    for layer, kv in itertools.product(range(L), range(layout.kv)):
        assert torch.equal(blocks(cache, layer, kv), logical[layer, :, kv])


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_have_the_shape_that_the_engine_gives_them(name: str) -> None:
    layout, sizes = LAYOUTS[name], sizes_of(LAYOUTS[name])
    tensors = carved(layout, sizes)

    assert (len(tensors), layout.shape(sizes)) == SHAPES[name]
    assert {tuple(tensor.shape) for tensor in tensors} == {layout.shape(sizes)}
    assert all(
        tuple(stride * sizes.element_bytes for stride in tensor.stride()) == layout.strides(sizes)
        for tensor in tensors
    )
    layout.check(tensors, sizes)


def test_the_strides_are_those_of_a_live_cache_of_vllm() -> None:
    # Reported for vLLM 0.26: shape (97871, 2, 16, 256), stride (8192, 256, 512, 1), bf16.
    sizes = Sizes(
        layers=1, blocks=97871, block_tokens=16, kv_heads=2, head_dim=128, element_bytes=2
    )
    layout = find_layout("vllm_lbnhc")

    assert layout.shape(sizes) == (97871, 2, 16, 256)
    assert layout.strides(sizes) == (2 * 8192, 2 * 256, 2 * 512, 2)
    assert layout.total_bytes(sizes) == 97871 * 8192 * 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_says_whose_it_is(name: str) -> None:
    assert LAYOUTS[name].name == name
    assert LAYOUTS[name].source.startswith(("vLLM", "SGLang", "LMCache", "TensorRT-LLM", "Dynamo"))


def test_a_name_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no layout is named 'vllm_nhd'") as caught:
        find_layout("vllm_nhd")
    assert all(name in str(caught.value) for name in LAYOUTS)
    assert "\n" not in str(caught.value)
    assert find_layout("sgl_mha") is LAYOUTS["sgl_mha"]


def refused(name: str, tensors: tuple[torch.Tensor, ...], sizes: Sizes = KV) -> str:
    with pytest.raises(ValueError, match=name) as caught:
        LAYOUTS[name].check(tensors, sizes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_equal_shapes_in_another_order_of_memory_are_refused() -> None:
    nhd = carved(LAYOUTS["vllm_kvfirst_nhd"], KV)
    hnd = carved(LAYOUTS["vllm_kvfirst_hnd"], KV)
    assert nhd[0].shape == hnd[0].shape

    message = refused("vllm_kvfirst_hnd", nhd)
    assert "of 2-byte elements with strides of (1920, 384, 16, 64, 2) bytes" in message
    assert message.endswith("got [2, 5, 4, 6, 8] torch.int16 with (1920, 384, 96, 16, 2)")


def test_a_shape_that_two_layouts_share_is_taken_for_neither_but_the_named_one() -> None:
    # [blocks, 2, 16, 256]: two heads of 128 with K and V side by side, or K and V of one row
    sizes = Sizes(layers=1, blocks=4, block_tokens=16, kv_heads=2, head_dim=128, element_bytes=2)
    fused = torch.empty(4, 2, 16, 256, dtype=torch.bfloat16)

    LAYOUTS["vllm_lbhnc"].check([fused], sizes)
    assert "must be [4, 2, 16, 2, 128]" in refused("vllm_blockfirst_nhd", (fused,), sizes)


def test_a_list_or_an_element_of_the_wrong_size_is_refused() -> None:
    tensors = carved(LAYOUTS["sgl_mha"], KV)
    assert "has 6 tensors for these sizes, got 3" in refused("sgl_mha", tensors[:3])
    wide = tuple(tensor.int() for tensor in tensors)
    assert "of 2-byte elements" in refused("sgl_mha", wide)
    assert "[20, 6, 8] torch.int32" in refused("sgl_mha", wide)


def test_views_that_do_not_share_the_allocation_that_the_layout_has_are_refused() -> None:
    first, second, third = carved(LAYOUTS["vllm_blnhc"], KV)
    assert "views of one allocation" in refused("vllm_blnhc", (first, third, second))


def test_the_stride_of_an_axis_of_length_one_does_not_matter() -> None:
    sizes = Sizes(layers=1, blocks=1, block_tokens=4, kv_heads=1, head_dim=8, element_bytes=2)
    tensor = torch.empty(4 * 16, dtype=torch.int16).as_strided((1, 1, 4, 16), (7, 9, 16, 1))
    LAYOUTS["vllm_lbnhc"].check([tensor], sizes)


def test_padding_moves_the_next_index_and_everything_outside_it() -> None:
    plain, padded = LAYOUTS["vllm_crosslayer"], LAYOUTS["vllm_crosslayer"].padded("token", 32)
    token, layer = H * D * 2 + 32, 2 * N * (H * D * 2 + 32)

    assert padded.strides(KV) == (L * layer, layer, N * token, token, D * 2, 2)
    assert padded.total_bytes(KV) == plain.total_bytes(KV) + B * L * 2 * N * 32
    assert padded.padded("token", 0).strides(KV) == plain.strides(KV)
    assert "must be" in refused("vllm_crosslayer", carved(padded, KV))


def test_padding_of_the_innermost_dimension_pads_the_row() -> None:
    padded = LAYOUTS["vllm_blockfirst_nhd"].padded("head", 16)
    assert padded.strides(KV)[3:] == (D * 2 + 16, 2)


@pytest.mark.parametrize(
    ("name", "dimension", "padding_bytes"),
    [
        ("sgl_mha", "block", 16),  # a slot is block * tokens + token
        ("vllm_lbnhc", "kv", 16),  # K and V are one axis
        ("vllm_lbnhc", "element", 16),
        ("vllm_lbnhc", "layer", 16),  # each layer is a tensor of its own
        ("vllm_lbnhc", "block", -16),
    ],
)
def test_padding_that_a_layout_cannot_have_is_refused(
    name: str, dimension: str, padding_bytes: int
) -> None:
    with pytest.raises(ValueError, match=f"{name} takes 0 or more bytes of padding after a"):
        LAYOUTS[name].padded(dimension, padding_bytes)


def test_mla_holds_one_head_of_the_length_that_its_format_has() -> None:
    with pytest.raises(ValueError, match="one head of 656 of 1 bytes, got 1 of 576 of 2 bytes"):
        LAYOUTS["mla_fp8_ds_656"].total_bytes(MLA_576)
    with pytest.raises(ValueError, match="got 6 of 8 of 2 bytes"):
        LAYOUTS["mla_576"].check_sizes(KV)
    plain_fp8 = Sizes(
        layers=1, blocks=1, block_tokens=64, kv_heads=1, head_dim=576, element_bytes=1
    )
    assert LAYOUTS["mla_576"].total_bytes(plain_fp8) == 64 * 576
    assert LAYOUTS["sgl_mla"].total_bytes(MLA_656) == L * B * N * 656


def test_memory_and_counts_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vllm_lbnhc takes \[11520\] bytes .* got \[16\]"):
        LAYOUTS["vllm_lbnhc"].carve(torch.empty(16, dtype=torch.uint8), KV, torch.bfloat16)
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        Sizes(layers=1, blocks=0, block_tokens=1, kv_heads=1, head_dim=8, element_bytes=2)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_rows_of_any_length_are_moved_16_bytes_at_a_time(variant: Variant, capability: int) -> None:
    build = analyse(variant, capability)

    # Two ids of 4 bytes, two addresses of 8, and eight pieces of 16 bytes of payload a thread
    assert build.accesses.loads == {16: 8, 8: 2, 4: 2}
    assert build.accesses.stores == {16: 8}
    assert build.ahead_bytes == 128
    assert build.local_bytes == build.stack_bytes == 0
    assert build.registers <= 64


def test_without_the_hint_at_addresses_from_memory_accesses_would_be_narrow() -> None:
    accesses = accesses_without_hints(VARIANTS[0], 90)
    assert accesses.loads.get(16, 0) == accesses.stores.get(16, 0) == 0
    assert accesses.stores[4] == 32
