"""What each layer of a model keeps: one reader for each known `model_type`.

A model type that is not here is refused: its config may look like Llama's and its cache differ.
Facts are those of the config classes of transformers and of vLLM's cache specs; a field whose
absence has a meaning there (a null window is no window) has that meaning here, all others are
required. Layers of multi-token prediction are not counted: they cache only when speculating.
"""

from collections.abc import Callable
from functools import partial

from kvbench.geometry import hybrid
from kvbench.geometry.attention import (
    Layers,
    LayerSpec,
    depth_of,
    full_window,
    llama4_window,
    pattern_window,
    qwen_moe_window,
    qwen_window,
    read_attention,
    uniform_window,
)
from kvbench.geometry.fields import Fields
from kvbench.geometry.record import LayerKind


def read_layers(model_type: str, fields: Fields) -> Layers:
    """What each layer keeps, first layer first.

    Raises:
        UsageError: the model type is not known, or a field is missing or wrong.
    """
    reader = READERS.get(model_type)
    if reader is None:
        raise fields.error(
            "model_type",
            f"= {model_type!r} is not known, and its cache is not guessed; "
            f"known: {', '.join(sorted(READERS))}",
        )
    if fields.has("index_head_dim") and reader not in {_mla, _indexed_mla}:
        raise fields.error(
            "index_head_dim", f"is set and no indexer is known for model_type {model_type!r}"
        )
    return reader(fields)


def _mla(fields: Fields) -> Layers:
    for name in ("indexer_types", "index_topk_pattern", "index_topk_freq"):
        if fields.has(name):
            raise fields.error(name, "shares indexers between layers, which is not known here")
    layer = LayerSpec(
        kind=LayerKind.MLA,
        latent_dim=fields.integer("kv_lora_rank"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        index_head_dim=fields.optional_integer("index_head_dim") or 0,
    )
    return [layer] * depth_of(fields)


def _indexed_mla(fields: Fields) -> Layers:
    fields.integer("index_head_dim")  # without it the indexer's keys would be left out
    return _mla(fields)


_full = partial(read_attention, windows=full_window)
_full_fixed_dim = partial(read_attention, windows=full_window, derive_head_dim=False)
_qwen_dense = partial(read_attention, windows=qwen_window)
_qwen_moe = partial(read_attention, windows=qwen_moe_window)
_qwen3_dense = partial(read_attention, windows=qwen_window, derive_head_dim=False)
_mistral = partial(read_attention, windows=uniform_window)
_alternating = partial(
    read_attention,
    windows=partial(pattern_window, architecture_pattern=2),
    derive_head_dim=False,
)
_gemma3 = partial(
    read_attention,
    windows=partial(pattern_window, architecture_pattern=6),
    derive_head_dim=False,
)

READERS: dict[str, Callable[[Fields], Layers]] = {
    "llama": _full,
    "granite": _full,
    "granitemoe": _full,
    "olmo2": _full,
    "olmoe": _full,
    "cohere": _full,
    "seed_oss": _full_fixed_dim,
    "glm": _full_fixed_dim,
    "glm4": _full_fixed_dim,
    "gemma": _full_fixed_dim,
    "minimax_m2": _full_fixed_dim,
    "glm4_moe": _full,
    "qwen2": _qwen_dense,
    "qwen2_vl": _qwen_dense,
    "qwen2_vl_text": _qwen_dense,
    "qwen2_5_vl": _qwen_dense,
    "qwen2_5_vl_text": _qwen_dense,
    "qwen2_moe": _qwen_moe,
    "qwen3": _qwen3_dense,
    "qwen3_vl_text": _qwen3_dense,
    "qwen3_moe": _qwen_moe,
    "qwen3_vl_moe_text": _qwen_moe,
    "mistral": _mistral,
    "ministral": _mistral,
    "ministral3": partial(read_attention, windows=uniform_window, derive_head_dim=False),
    "mixtral": _mistral,
    "phi3": _mistral,
    "cohere2": partial(read_attention, windows=pattern_window),
    "olmo3": partial(read_attention, windows=pattern_window),
    "exaone4": partial(read_attention, windows=pattern_window),
    "gemma2": _alternating,
    "gpt_oss": _alternating,
    "gemma3_text": _gemma3,
    "llama4_text": partial(read_attention, windows=llama4_window, derive_head_dim=False),
    "deepseek_v2": _mla,
    "deepseek_v3": _mla,
    "kimi_k2": _mla,
    "glm4_moe_lite": _mla,
    "deepseek_v32": _indexed_mla,
    "qwen3_next": hybrid.read_qwen_hybrid,
    "qwen3_5_text": hybrid.read_qwen_hybrid,
    "qwen3_5_moe_text": hybrid.read_qwen_hybrid,
    "nemotron_h": hybrid.read_nemotron_h,
    "granitemoehybrid": hybrid.read_granite_hybrid,
    "bamba": hybrid.read_bamba,
    "falcon_h1": hybrid.read_falcon_h1,
    "jamba": hybrid.read_jamba,
}
