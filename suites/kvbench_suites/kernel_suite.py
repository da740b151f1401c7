"""The `kernels` suite: every kernel at a model's sizes, and the ways that `crossover` decides by.

The operations are in `kvbench_suites.kernels`.
"""

from collections.abc import Mapping, Sequence

from kvbench.geometry import KVGeometry, LayerGroup, LayerKind
from kvbench.machine import Machine
from kvbench.measure.suite import Case, Plan, Suite, Value, sweep, unique
from kvbench.units import KIB, MIB
from kvbench_suites import nvme
from kvbench_suites.formats import FORMATS, FUSED_FORMATS, LOOP_FORMATS
from kvbench_suites.hbm import (
    COPY,
    DIRECTIONS,
    ENGINE_PATHS,
    GATHER,
    PEAK_BYTES,
    SCATTER,
    TRANSFER,
)
from kvbench_suites.kernels import (
    CHECKSUM,
    DEQUANTISE,
    DEQUANTISE_SCATTER,
    GATHER_LAYERS,
    GATHER_QUANTISE,
    GATHER_TOKENS,
    OFFLOAD,
    QUANTISE,
    RELAYOUT,
    RESTORE,
    SCATTER_LAYERS,
    SCATTER_TOKENS,
    SWAP,
)
from kvbench_suites.paged import paged

BATCHES = (1, 64)  # blocks: a lone one, and more than fill the device
# Where engines change from the copy engine to a kernel: vLLM at 28 KiB and 16 blocks (its
# vllm/v1/kv_offload/cpu/swap_blocks_triton.py), tuned on one card.
SMALL_BLOCKS = (4 * KIB, 8 * KIB, 16 * KIB, 24 * KIB, 32 * KIB, 64 * KIB, 256 * KIB)
SMALL_BATCHES = (16, 128, 1024)
SWAP_PROGRAMS = 16  # of the sweep over sizes and batches
FEW_PAGES = 8
TOKEN_FACTORS = (1, 4)  # of the model's tokens in a block
PAGE_SIZES = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB)  # beside the model's own
OTHER_PROGRAMS = (2, 4, 8, 32, 64)  # how much of the device a rate costs, at one size and batch
# What a store or another engine would want blocks in, from what engines hand out.
LAYOUT_PAIRS = (
    ("vllm_kvfirst_nhd", "vllm_kvfirst_hnd"),
    ("vllm_blockfirst_nhd", "vllm_crosslayer"),
    ("vllm_lbnhc", "vllm_blnhc"),
    ("vllm_lbnhc", "vllm_lbhnc"),
    ("vllm_lbnhc", "vllm_crosslayer"),
    ("vllm_lbnhc", "lmc_2ltd"),
    ("lmc_2ltd", "vllm_lbnhc"),
    ("sgl_mha", "sgl_host_layer_first"),
    ("sgl_mha", "sgl_host_page_first"),
    ("sgl_host_page_first", "sgl_mha"),
)


def build(geometry: KVGeometry, _machine: Machine) -> Sequence[Case]:
    """Every kernel at the model's sizes, and the two ways for small blocks at the usual ones."""
    pages, tokens, group = paged(geometry), geometry.block_size, _main_layers(geometry)
    block_bytes, page_bytes = int(pages["block_bytes"]), int(pages["page_bytes"])
    parts = sum(piece * tokens == page_bytes for piece in group.pieces)  # K and V, or the latent
    layers = block_bytes // page_bytes // parts
    cases = sweep(COPY, block_bytes=PEAK_BYTES, engine=tuple(ENGINE_PATHS))
    for operation in (GATHER, SCATTER):
        cases += sweep(operation, **pages, batch=BATCHES)
        cases += sweep(operation, page_bytes=PAGE_SIZES, block_bytes=MIB, batch=BATCHES[-1])
    for operation in (GATHER_LAYERS, SCATTER_LAYERS):
        cases += sweep(operation, **pages, layers=layers, batch=BATCHES)
    for operation in (GATHER_TOKENS, SCATTER_TOKENS):
        cases += sweep(operation, token_bytes=page_bytes // tokens, batch=(256, 4096, 65536))
    cases += sweep(CHECKSUM, block_bytes=block_bytes, batch=BATCHES)
    if group.kind is not LayerKind.MLA and group.head_dim:
        shape = {**pages, "head_dim": group.head_dim, "block_tokens": tokens}
        cases += _attention_cases(shape, layers, group.rank_kv_heads or 1)
    return unique([*cases, *_small_blocks(block_bytes), *_drive(block_bytes)])


def _main_layers(geometry: KVGeometry) -> LayerGroup:
    """The layers whose pages hold most of a block."""
    page_bytes = geometry.pages[0].bytes
    return next(
        group
        for group in geometry.layers
        if page_bytes in [piece * geometry.block_size for piece in group.pieces]
    )


def _attention_cases(shape: Mapping[str, Value], layers: int, heads: int) -> list[Case]:
    """What needs heads: relayout and quantising."""
    cases: list[Case] = []
    for source, target in LAYOUT_PAIRS:
        cases += sweep(
            RELAYOUT,
            source=source,
            target=target,
            layers=layers,
            block_tokens=[factor * int(shape["block_tokens"]) for factor in TOKEN_FACTORS],
            heads=heads,
            head_dim=shape["head_dim"],
            batch=BATCHES,
        )
    for operation, formats in (
        (QUANTISE, tuple(FORMATS)),
        (DEQUANTISE, tuple(FORMATS)),
        (GATHER_QUANTISE, FUSED_FORMATS),
        (DEQUANTISE_SCATTER, FUSED_FORMATS),
        (OFFLOAD, LOOP_FORMATS),
        (RESTORE, LOOP_FORMATS),
    ):
        possible = [
            name for name in formats if operation.contradiction({**shape, "format": name}) is None
        ]
        for block_bytes in _block_sizes(shape):
            sized = {**shape, "block_bytes": block_bytes}
            cases += sweep(operation, **sized, batch=BATCHES, format=possible)
    return cases


def _block_sizes(shape: Mapping[str, Value]) -> list[int]:
    """A few layers' pages of a block, as layer-wise loading moves them, and all of them."""
    few, block_bytes = FEW_PAGES * int(shape["page_bytes"]), int(shape["block_bytes"])
    return [few, block_bytes] if few < block_bytes else [block_bytes]


def _drive(block_bytes: int) -> list[Case]:
    """What `kvbench crossover` holds quantising against beside the link to host memory."""
    size_bytes = nvme.whole_sectors(block_bytes)
    return [
        nvme.READ.case({"block_bytes": size_bytes, "queue_depth": 16}),
        nvme.WRITE.case({"block_bytes": size_bytes, "queue_depth": 16}),
    ]


def _small_blocks(block_bytes: int) -> list[Case]:
    """The copy engine and the kernel on the same blocks: `kvbench crossover` reads these."""
    sizes = sorted({*SMALL_BLOCKS, block_bytes})
    common: dict[str, Sequence[Value]] = {
        "direction": tuple(DIRECTIONS),
        "block_bytes": sizes,
        "batch": SMALL_BATCHES,
    }
    return [
        *sweep(TRANSFER, **common, memory="pinned"),
        *sweep(SWAP, **common, programs=SWAP_PROGRAMS),
        *sweep(
            SWAP,
            direction=tuple(DIRECTIONS),
            block_bytes=SMALL_BLOCKS[2],
            batch=SMALL_BATCHES[-1],
            programs=OTHER_PROGRAMS,
        ),
    ]


SUITE = Suite(
    name="kernels",
    question="What do kernels that move, relayout and compress KV blocks reach, and when do "
    "they pay?",
    build=build,
    plan=Plan(processes=3, time_limit_s=1.0, warmup_s=0.1, min_time_s=0.2),
)
