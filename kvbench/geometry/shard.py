"""From a model's layers to one rank's bytes: tensor parallelism, pipeline parallelism, dtype.

Tensor parallelism divides KV heads; fewer heads than ranks are copied, and an MLA latent or an
indexer's key, which all heads share, is whole on every rank. Pipeline parallelism deals layers
out as vLLM does (`get_pp_indices`): equally, the rest one each to the ranks before the last, from
the back. Reads no config and no file.
"""

from dataclasses import dataclass

from kvbench.errors import UsageError
from kvbench.geometry.attention import Layers, LayerSpec
from kvbench.geometry.dtypes import STORAGE, indexer_bytes, latent_bytes, vector_bytes
from kvbench.geometry.record import CacheDtype, KVGeometry, LayerGroup, LayerKind, PageSize

MAX_BLOCK_TOKENS = 65536
MAX_PARALLEL = 65536
# 8 GiB a token and 1 PiB of state: far beyond any model, so a wrong config, and small enough that
# all figures that follow fit in the 64 bits of a JSON reader.
MAX_TOKEN_BYTES = 2**33
MAX_STATE_BYTES = 2**50


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a model is run: what a config does not say."""

    cache_dtype: CacheDtype
    block_size: int
    tensor_parallel: int
    pipeline_parallel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a config says."""

    name: str
    source: str
    architecture: str
    attention_heads: int
    layers: Layers


def make_geometry(model: Model, layout: Layout) -> KVGeometry:
    """The cache of `model`, run as `layout` says.

    Raises:
        UsageError: a size is out of range, or the model cannot be divided or stored so.
    """
    _check(model, layout)
    parts = pipeline_parts(len(model.layers), layout.pipeline_parallel)
    distinct = list(dict.fromkeys(layer for layer in model.layers if layer is not None))
    everywhere = [_group(spec, model.layers, model.layers, layout) for spec in distinct]
    if not any(group.pieces for group in everywhere):
        raise UsageError(f"{model.name} has no attention layers, so no KV cache that grows")
    ranks = [
        tuple(
            _group(spec, model.layers, model.layers[part.start : part.stop], layout)
            for spec in distinct
        )
        for part in parts
    ]
    # The rank that fills up first decides how much fits; max() takes the first of equals.
    rank = max(range(len(ranks)), key=lambda index: _weight(ranks[index]))
    groups = ranks[rank]
    pages = _pages(groups, layout.block_size)
    largest = max(groups, key=lambda group: group.rank_count * group.bytes_per_token)
    model_bytes_per_token = sum(g.count * g.model_bytes_per_token for g in groups)
    model_state_bytes = sum(g.count * g.model_state_bytes for g in groups)
    if model_bytes_per_token > MAX_TOKEN_BYTES or model_state_bytes > MAX_STATE_BYTES:
        raise UsageError(
            f"{model.name} would keep {model_bytes_per_token} B a token and {model_state_bytes} B "
            "a sequence, more than any model does: check the sizes in its config"
        )
    return KVGeometry(
        name=model.name,
        source=model.source,
        architecture=model.architecture,
        attention_heads=model.attention_heads,
        layers=groups,
        cache_dtype=layout.cache_dtype,
        cache_dtype_note=STORAGE[layout.cache_dtype].note,
        block_size=layout.block_size,
        tensor_parallel=layout.tensor_parallel,
        pipeline_parallel=layout.pipeline_parallel,
        pipeline_rank=rank,
        layer_count=len(model.layers),
        rank_layer_count=len(parts[rank]),
        bytes_per_token=_weight(groups)[0],
        bytes_per_token_beyond_windows=sum(
            g.rank_count * g.bytes_per_token for g in groups if g.window_tokens is None
        ),
        state_bytes=_weight(groups)[1],
        block_bytes=_weight(groups)[0] * layout.block_size,
        layer_block_bytes=largest.bytes_per_token * layout.block_size,
        page_bytes=largest.pieces[0] * layout.block_size,
        pages_per_block=sum(page.count for page in pages),
        pages=pages,
        model_bytes_per_token=model_bytes_per_token,
        model_block_bytes=model_bytes_per_token * layout.block_size,
        model_state_bytes=model_state_bytes,
    )


def pipeline_parts(layers: int, ranks: int) -> list[range]:
    """Which layers each pipeline rank holds, as vLLM deals them.

    Raises:
        UsageError: there are more ranks than layers.
    """
    if ranks > layers:
        raise UsageError(f"pipeline_parallel = {ranks}: expected at most the {layers} layers")
    each, rest = divmod(layers, ranks)
    counts = [each] * ranks
    for back in range(2, rest + 2):
        counts[-back] += 1
    parts: list[range] = []
    start = 0
    for count in counts:
        parts.append(range(start, start + count))
        start += count
    return parts


def _check(model: Model, layout: Layout) -> None:
    for name, value, most in (
        ("block_size", layout.block_size, MAX_BLOCK_TOKENS),
        ("tensor_parallel", layout.tensor_parallel, MAX_PARALLEL),
        ("pipeline_parallel", layout.pipeline_parallel, MAX_PARALLEL),
    ):
        if not 1 <= value <= most:
            raise UsageError(f"{name} = {value}: expected 1 to {most}")
    if model.attention_heads % layout.tensor_parallel:
        raise UsageError(
            f"tensor_parallel = {layout.tensor_parallel} does not divide the "
            f"{model.attention_heads} attention heads of {model.name}: choose a divisor"
        )


def _weight(groups: tuple[LayerGroup, ...]) -> tuple[int, int]:
    """Bytes per token and bytes of state of one rank."""
    return (
        sum(group.rank_count * group.bytes_per_token for group in groups),
        sum(group.rank_count * group.state_bytes for group in groups),
    )


def _group(spec: LayerSpec, everywhere: Layers, here: Layers, layout: Layout) -> LayerGroup:
    dtype, parallel = layout.cache_dtype, layout.tensor_parallel
    state = spec.state.tensors(parallel) if spec.state else ()
    rank_heads = _rank_heads(spec.kv_heads, parallel) if spec.kv_heads else 0
    pieces = _pieces(spec, rank_heads, dtype)
    return LayerGroup(
        kind=spec.kind,
        count=everywhere.count(spec),
        rank_count=here.count(spec),
        window_tokens=spec.window.tokens if spec.window else None,
        window_kind=spec.window.kind if spec.window else None,
        kv_heads=spec.kv_heads or None,
        rank_kv_heads=rank_heads or None,
        head_dim=spec.head_dim or None,
        latent_dim=spec.latent_dim or None,
        rope_dim=spec.rope_dim or None,
        index_head_dim=spec.index_head_dim or None,
        state=state,
        pieces=pieces,
        bytes_per_token=sum(pieces),
        model_bytes_per_token=sum(_pieces(spec, spec.kv_heads, dtype)),
        state_bytes=sum(tensor.bytes for tensor in state),
        model_state_bytes=sum(tensor.model_bytes for tensor in state),
    )


def _rank_heads(kv_heads: int, parallel: int) -> int:
    if kv_heads % parallel == 0:
        return kv_heads // parallel
    if parallel % kv_heads == 0:
        return 1
    raise UsageError(
        f"tensor_parallel = {parallel} and {kv_heads} KV heads: one must divide the other"
    )


def _pieces(spec: LayerSpec, heads: int, dtype: CacheDtype) -> tuple[int, ...]:
    if spec.kind is LayerKind.RECURRENT:
        return ()
    if spec.kind is LayerKind.MLA:
        latent = latent_bytes(dtype, spec.latent_dim, spec.rope_dim)
        return (latent, indexer_bytes(spec.index_head_dim)) if spec.index_head_dim else (latent,)
    one = heads * vector_bytes(dtype, spec.head_dim)
    return (one, one)


def _pages(groups: tuple[LayerGroup, ...], block_size: int) -> tuple[PageSize, ...]:
    counts: dict[int, int] = {}
    for group in groups:
        for piece in group.pieces:
            counts[piece * block_size] = counts.get(piece * block_size, 0) + group.rank_count
    pages = [PageSize(bytes=size, count=count) for size, count in counts.items() if count]
    return tuple(sorted(pages, key=lambda page: -page.bytes * page.count))
