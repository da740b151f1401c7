"""Kernels on KV blocks inside GPU memory, and what they make of the way to host memory.

Gather and scatter over all layers and by token, relayout between the layouts of engines,
quantising to fp8, int8 and int4, checksums; small blocks through pinned pointers beside the copy
engine; and blocks that are quantised, transferred and dequantised beside the same blocks raw.
Data only: the work is in `kvbench_suites.kernel_bodies` and `kvbench_suites.loop_bodies`, and
nothing here imports torch.
"""

from collections.abc import Mapping, Sequence

from kvbench.machine import Machine
from kvbench.measure.suite import (
    Kind,
    Limit,
    Operation,
    Parameter,
    Value,
)
from kvbench.units import exact_bytes
from kvbench_kernels import layouts
from kvbench_suites.formats import (
    ELEMENT_BYTES,
    FORMATS,
    FUSED_FORMATS,
    LOOP_FORMATS,
    PER_TENSOR,
    count,
    stored_share,
)
from kvbench_suites.hbm import (
    DIRECTIONS,
    ENGINE_PATHS,
    KERNEL_UNIT_BYTES,
    gpu_memory_limit,
    lacks_room,
    link_limit,
    read_and_written,
    uneven,
)
from kvbench_suites.paged import PAGES, partial_page

KEYS_AND_VALUES = 2


# Of K and V heads; the MLA layouts have rows of their own sizes.
LAYOUTS = tuple(name for name, layout in layouts.LAYOUTS.items() if layout.kv == KEYS_AND_VALUES)


def _size(params: Mapping[str, Value], name: str) -> str:
    return exact_bytes(count(params, name))


def _pages_label(params: Mapping[str, Value]) -> str:
    parts = [f"{_size(params, 'block_bytes')}/page{_size(params, 'page_bytes')}"]
    if "layers" in params:
        parts.append(f"L{params['layers']}")
    if "format" in params:
        parts = [str(params["format"]), *parts, f"T{params['block_tokens']}D{params['head_dim']}"]
    return "/".join([*parts, f"x{params['batch']}"])


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
    if not form.by_channel and 0 < form.group < PER_TENSOR and head_dim % form.group:
        return f"{params['format']} groups {form.group} values, head_dim = {head_dim}"
    return None


def _uneven_layers(params: Mapping[str, Value]) -> str | None:
    """Why the pages of a block are not as many for each layer, or None."""
    if wrong := partial_page(params):
        return wrong
    pages, layers = count(params, "block_bytes") // count(params, "page_bytes"), params["layers"]
    if pages % int(layers) == 0:
        return None
    return f"a block of {pages} pages is not {layers} layers of as many pages each"


def _odd_rows(params: Mapping[str, Value]) -> str | None:
    """Why a head's vector cannot be moved, or None."""
    row_bytes = count(params, "head_dim") * ELEMENT_BYTES
    if row_bytes % KERNEL_UNIT_BYTES == 0:
        return None
    return f"the kernel moves whole units of {KERNEL_UNIT_BYTES} bytes, a vector has {row_bytes}"


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
        contradiction=_uneven_layers,
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
    contradiction=_odd_rows,
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
