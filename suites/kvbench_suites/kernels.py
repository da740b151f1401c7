"""Kernels on KV blocks inside GPU memory, and what they make of the way to host memory.

Gather and scatter over all layers and by token, relayout between the layouts of engines,
quantising to fp8, int8 and int4, checksums; small blocks through pinned pointers beside the copy
engine; and blocks that are quantised, transferred and dequantised beside the same blocks raw.
Data only: the work is in `kvbench_suites.kernel_bodies` and `kvbench_suites.loop_bodies`, and
nothing here imports torch.
"""

from collections.abc import Mapping, Sequence

from kvbench.geometry import KVGeometry, LayerGroup, LayerKind
from kvbench.machine import Machine
from kvbench.measure.suite import (
    Case,
    Kind,
    Limit,
    Operation,
    Parameter,
    Plan,
    Suite,
    Value,
    sweep,
    unique,
)
from kvbench.units import KIB, exact_bytes
from kvbench_suites.formats import (
    ELEMENT_BYTES,
    FORMATS,
    FUSED_FORMATS,
    LOOP_FORMATS,
    count,
    stored_share,
)
from kvbench_suites.hbm import (
    COPY,
    DIRECTIONS,
    ENGINE_PATHS,
    GATHER,
    PEAK_BYTES,
    SCATTER,
    TRANSFER,
    gpu_memory_limit,
    lacks_room,
    link_limit,
    read_and_written,
    uneven,
)
from kvbench_suites.paged import PAGES, paged, partial_page

BATCHES = (1, 64)  # blocks: a lone one, and more than fill the device
# Where engines change from the copy engine to a kernel: vLLM at 28 KiB and 16 blocks (its
# vllm/v1/kv_offload/cpu/swap_blocks_triton.py), tuned on one card.
SMALL_BLOCKS = (4 * KIB, 8 * KIB, 16 * KIB, 24 * KIB, 32 * KIB, 64 * KIB, 256 * KIB)
SMALL_BATCHES = (16, 128, 1024)
SWAP_PROGRAMS = 16  # of the sweep over sizes and batches
OTHER_PROGRAMS = (2, 4, 8, 32, 64)  # how much of the device a rate costs, at one size and batch


# What a store or another engine would want blocks in, from the default of today's vLLM.
LAYOUT_PAIRS = (
    ("vllm_kvfirst_nhd", "vllm_kvfirst_hnd"),
    ("vllm_lbnhc", "vllm_blnhc"),
    ("vllm_lbnhc", "vllm_lbhnc"),
    ("vllm_lbnhc", "vllm_crosslayer"),
    ("vllm_lbnhc", "lmc_2ltd"),
    ("lmc_2ltd", "vllm_lbnhc"),
    ("sgl_mha", "sgl_host_page_first"),
    ("sgl_host_page_first", "sgl_mha"),
)
LAYOUTS = tuple(dict.fromkeys(name for pair in LAYOUT_PAIRS for name in pair))


def _size(params: Mapping[str, Value], name: str) -> str:
    return exact_bytes(count(params, name))


def _pages_label(params: Mapping[str, Value]) -> str:
    label = f"{_size(params, 'block_bytes')}/page{_size(params, 'page_bytes')}/x{params['batch']}"
    return f"{params['format']}/{label}" if "format" in params else label


def _swap_label(params: Mapping[str, Value]) -> str:
    route = f"{params['direction']}/{_size(params, 'block_bytes')}"
    return f"{route}/x{params['batch']}/{params['programs']}programs"


def _relayout_label(params: Mapping[str, Value]) -> str:
    shape = "x".join(str(params[name]) for name in ("layers", "block_tokens", "heads", "head_dim"))
    return f"{params['source']}-{params['target']}/{shape}/x{params['batch']}"


def _odd_shape(params: Mapping[str, Value]) -> str | None:
    """Why pages are not made of vectors that the kernels can quantise, or None."""
    if wrong := partial_page(params):
        return wrong
    head_dim, tokens = count(params, "head_dim"), count(params, "block_tokens")
    page_values = count(params, "page_bytes") // ELEMENT_BYTES
    if page_values % (head_dim * tokens):
        return f"a page of {page_values} elements is not {tokens} tokens of heads of {head_dim}"
    form = FORMATS.get(str(params["format"]))
    if form is None:
        return None
    if form.by_channel and tokens % form.group:
        return f"{params['format']} groups {form.group} tokens, block_tokens = {tokens}"
    if not form.by_channel and form.group and head_dim % form.group:
        return f"{params['format']} groups {form.group} values, head_dim = {head_dim}"
    return None


def _unmet(params: Mapping[str, Value], machine: Machine) -> str | None:
    if lacking := lacks_room(2, params, machine):
        return lacking
    head_dim = int(params.get("head_dim", 128))
    if "format" in params and params["format"] != "raw" and head_dim & (head_dim - 1):
        return f"the kernels quantise vectors of 2^n elements, head_dim = {head_dim}"
    for name in ("page_bytes", "token_bytes", "block_bytes"):
        if name in params and (wrong := uneven(name, params)):
            return wrong
    return None


def _traffic(params: Mapping[str, Value]) -> float:
    """A kernel that converts reads what it is given and writes what is stored, or back."""
    return 1.0 + stored_share(params)


def _loop_limit(params: Mapping[str, Value], machine: Machine) -> Limit:
    """What the link carries, in bytes before quantising."""
    limit, source = link_limit(params, machine)
    share = stored_share(params)
    if limit is None or share == 1.0:
        return limit, source
    return limit / share, f"{source}; {share:.3g} B cross it for each byte"


_BATCH = Parameter(name="batch", kind=Kind.COUNT, meaning="blocks moved by one launch", default=1)
_HEAD_DIM = Parameter(name="head_dim", kind=Kind.COUNT, meaning="elements of a head's vector")
_TOKENS = Parameter(name="block_tokens", kind=Kind.COUNT, meaning="tokens of a block", default=16)
_LAYERS = Parameter(name="layers", kind=Kind.COUNT, meaning="layers of a block")
_BLOCK = Parameter(name="block_bytes", kind=Kind.BYTES, meaning="bytes of one block")
_DIRECTION = Parameter(
    name="direction",
    kind=Kind.CHOICE,
    meaning="host to device or device to host",
    choices=tuple(DIRECTIONS),
)


def _format(names: Sequence[str]) -> Parameter:
    return Parameter(
        name="format", kind=Kind.CHOICE, meaning="how values are stored", choices=tuple(names)
    )


def _shape(names: Sequence[str]) -> tuple[Parameter, ...]:
    return (*PAGES, _HEAD_DIM, _TOKENS, _BATCH, _format(names))


def _operation(name: str, meaning: str, body: str, parameters: tuple[Parameter, ...]) -> Operation:
    """A kernel that moves pages as they are."""
    return Operation(
        name=name,
        meaning=meaning,
        body=f"kvbench_suites.kernel_bodies:{body}",
        parameters=parameters,
        label=_pages_label,
        path=lambda _params: ENGINE_PATHS["triton"],
        contradiction=partial_page,
        unmet=_unmet,
        limit=gpu_memory_limit(read_and_written),
        traffic=read_and_written,
    )


def _converting(name: str, meaning: str, body: str, formats: Sequence[str]) -> Operation:
    """A kernel that quantises or dequantises."""
    return Operation(
        name=name,
        meaning=meaning,
        body=f"kvbench_suites.quantise_bodies:{body}",
        parameters=_shape(formats),
        label=_pages_label,
        path=lambda _params: ENGINE_PATHS["triton"],
        contradiction=_odd_shape,
        unmet=_unmet,
        limit=gpu_memory_limit(_traffic),
        traffic=_traffic,
    )


def _loop(name: str, meaning: str, body: str, path: str) -> Operation:
    """Blocks on their way to host memory or back, quantised or not."""
    return Operation(
        name=name,
        meaning=meaning,
        body=f"kvbench_suites.loop_bodies:{body}",
        parameters=_shape(LOOP_FORMATS),
        label=_pages_label,
        path=lambda params: path.format("" if params["format"] == "raw" else "quantised, "),
        contradiction=_odd_shape,
        unmet=_unmet,
        limit=_loop_limit,
        limited_by="link",
        traffic=stored_share,
    )


_PAGED = (*PAGES, _LAYERS, _BATCH)
GATHER_LAYERS = _operation(
    "hbm.gather_layers",
    "gather the pages of blocks from all layers by one launch through an address table",
    "GatherLayers",
    _PAGED,
)
SCATTER_LAYERS = _operation(
    "hbm.scatter_layers",
    "scatter blocks into the pages of all layers by one launch through an address table",
    "ScatterLayers",
    _PAGED,
)
TOKENS = (
    Parameter(name="token_bytes", kind=Kind.BYTES, meaning="bytes of one token of one layer"),
    Parameter(name="batch", kind=Kind.COUNT, meaning="tokens moved by one launch"),
)


def _token_operation(name: str, meaning: str, body: str) -> Operation:
    return Operation(
        name=name,
        meaning=meaning,
        body=f"kvbench_suites.kernel_bodies:{body}",
        parameters=TOKENS,
        label=lambda params: f"{_size(params, 'token_bytes')}/x{params['batch']}",
        path=lambda _params: ENGINE_PATHS["triton"],
        unmet=_unmet,
        limit=gpu_memory_limit(read_and_written),
        traffic=read_and_written,
    )


GATHER_TOKENS = _token_operation(
    "hbm.gather_tokens", "gather single tokens by slot, as engines without pages do", "GatherTokens"
)
SCATTER_TOKENS = _token_operation(
    "hbm.scatter_tokens", "scatter single tokens to their slots", "ScatterTokens"
)
RELAYOUT = Operation(
    name="hbm.relayout",
    meaning="bring blocks from one engine's layout into another's",
    body="kvbench_suites.kernel_bodies:Relayout",
    parameters=(
        Parameter(name="source", kind=Kind.CHOICE, meaning="layout read", choices=LAYOUTS),
        Parameter(name="target", kind=Kind.CHOICE, meaning="layout written", choices=LAYOUTS),
        _LAYERS,
        _TOKENS,
        Parameter(name="heads", kind=Kind.COUNT, meaning="KV heads of a rank"),
        _HEAD_DIM,
        _BATCH,
    ),
    label=_relayout_label,
    path=lambda _params: ENGINE_PATHS["triton"],
    unmet=_unmet,
    limit=gpu_memory_limit(read_and_written),
    traffic=read_and_written,
)
QUANTISE = _converting("hbm.quantise", "quantise contiguous bf16 pages", "Quantise", tuple(FORMATS))
DEQUANTISE = _converting(
    "hbm.dequantise", "bring quantised pages back to bf16", "Dequantise", tuple(FORMATS)
)
GATHER_QUANTISE = _converting(
    "hbm.gather_quantise",
    "gather the pages of scattered blocks and quantise them in one launch",
    "GatherQuantise",
    FUSED_FORMATS,
)
DEQUANTISE_SCATTER = _converting(
    "hbm.dequantise_scatter",
    "dequantise blocks and scatter them into their pages in one launch",
    "DequantiseScatter",
    FUSED_FORMATS,
)
CHECKSUM = Operation(
    name="hbm.checksum",
    meaning="64-bit checksums of blocks",
    body="kvbench_suites.kernel_bodies:Checksum",
    parameters=(_BLOCK, _BATCH),
    label=lambda params: f"{_size(params, 'block_bytes')}/x{params['batch']}",
    path=lambda _params: ENGINE_PATHS["triton"],
    unmet=_unmet,
    limit=gpu_memory_limit(lambda _params: 1.0),
)
SWAP = Operation(
    name="hbm.swap",
    meaning="move small blocks between pinned host and GPU memory by a kernel on few programs",
    body="kvbench_suites.loop_bodies:Swap",
    parameters=(
        _DIRECTION,
        _BLOCK,
        _BATCH,
        Parameter(
            name="programs", kind=Kind.COUNT, meaning="programs of the kernel", most=64, least=1
        ),
    ),
    label=_swap_label,
    path=lambda params: f"Triton kernel, {DIRECTIONS[str(params['direction'])]}, pinned pointers",
    unmet=_unmet,
    limit=link_limit,
    limited_by="link",
)
OFFLOAD = _loop(
    "hbm.offload",
    "gather blocks, quantise them unless raw, and transfer them to pinned host memory",
    "Offload",
    "gathered, {}cudaMemcpyAsync to pinned memory",
)
RESTORE = _loop(
    "hbm.restore",
    "transfer blocks from pinned host memory, dequantise them unless raw, and scatter them",
    "Restore",
    "cudaMemcpyAsync from pinned memory, {}scattered",
)
OPERATIONS = (
    GATHER_LAYERS,
    SCATTER_LAYERS,
    GATHER_TOKENS,
    SCATTER_TOKENS,
    RELAYOUT,
    QUANTISE,
    DEQUANTISE,
    GATHER_QUANTISE,
    DEQUANTISE_SCATTER,
    CHECKSUM,
    SWAP,
    OFFLOAD,
    RESTORE,
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
    for operation in (GATHER_LAYERS, SCATTER_LAYERS):
        cases += sweep(operation, **pages, layers=layers, batch=BATCHES)
    for operation in (GATHER_TOKENS, SCATTER_TOKENS):
        cases += sweep(operation, token_bytes=page_bytes // tokens, batch=(256, 4096, 65536))
    cases += sweep(CHECKSUM, block_bytes=block_bytes, batch=BATCHES)
    if group.kind is not LayerKind.MLA and group.head_dim:
        shape = {**pages, "head_dim": group.head_dim, "block_tokens": tokens}
        cases += _attention_cases(shape, layers, group.rank_kv_heads or 1)
    return unique([*cases, *_small_blocks(block_bytes)])


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
            block_tokens=shape["block_tokens"],
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
        possible = [name for name in formats if _odd_shape({**shape, "format": name}) is None]
        cases += sweep(operation, **shape, batch=BATCHES, format=possible)
    return cases


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
