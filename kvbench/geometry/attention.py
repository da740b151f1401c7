"""Attention layers: heads, head size and windows, as each family of configs states them.

A window rule says which layers see only their last tokens. `layer_types`, where a config has it,
says so for each layer and wins. Also the record of what a layer keeps, for the other readers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from kvbench.geometry.fields import Fields
from kvbench.geometry.record import LayerKind
from kvbench.geometry.state import StateSpec

MAX_LAYERS = 4096  # the deepest models have some hundred


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The last tokens that a layer sees."""

    tokens: int
    kind: str  # "sliding" | "chunked"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """What one layer keeps, in the whole model."""

    kind: LayerKind
    kv_heads: int = 0
    head_dim: int = 0
    latent_dim: int = 0
    rope_dim: int = 0
    index_head_dim: int = 0
    window: Window | None = None
    state: StateSpec | None = None


Layers = list[LayerSpec | None]  # None: a layer that keeps nothing, such as a lone MLP
WindowRule = Callable[[Fields, int], list[Window | None]]


def depth_of(fields: Fields) -> int:
    """The number of layers.

    Raises:
        UsageError: `num_hidden_layers` is missing or wrong.
    """
    depth = fields.integer("num_hidden_layers")
    if depth > MAX_LAYERS:
        raise fields.error("num_hidden_layers", f"= {depth}: expected at most {MAX_LAYERS}")
    return depth


def heads_of(fields: Fields, *, derive_head_dim: bool) -> LayerSpec:
    """An attention layer.

    `derive_head_dim` says that in this model type hidden_size / heads is the head size where
    the config has none; in others transformers has a constant, so the field is required.

    Raises:
        UsageError: a field is missing or wrong.
    """
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads")
    if heads % kv_heads:
        raise fields.error(
            "num_key_value_heads", f"= {kv_heads} does not divide num_attention_heads = {heads}"
        )
    derive = derive_head_dim and not fields.has("head_dim")
    head_dim = _derived_head_dim(fields, heads) if derive else fields.integer("head_dim")
    kind = LayerKind.GQA
    if kv_heads == heads:
        kind = LayerKind.MHA
    elif kv_heads == 1:
        kind = LayerKind.MQA
    return LayerSpec(kind=kind, kv_heads=kv_heads, head_dim=head_dim)


def _derived_head_dim(fields: Fields, heads: int) -> int:
    hidden = fields.integer("hidden_size")
    if hidden % heads:
        raise fields.error(
            "head_dim",
            f"is missing and cannot be derived: hidden_size = {hidden} is not a multiple of "
            f"num_attention_heads = {heads}",
        )
    return hidden // heads


def read_attention(fields: Fields, *, windows: WindowRule, derive_head_dim: bool = True) -> Layers:
    """Layers of attention, all alike but for their windows.

    Raises:
        UsageError: a field is missing or wrong.
    """
    depth = depth_of(fields)
    layer = heads_of(fields, derive_head_dim=derive_head_dim)
    found = _listed_windows(fields, depth) if fields.has("layer_types") else windows(fields, depth)
    return [replace(layer, window=window) for window in found]


def _listed_windows(fields: Fields, depth: int) -> list[Window | None]:
    found: list[Window | None] = []
    for layer_type in fields.texts("layer_types", depth):
        if layer_type == "full_attention":
            found.append(None)
        elif layer_type == "sliding_attention":
            found.append(_sliding(fields))
        elif layer_type == "chunked_attention":
            found.append(_chunk(fields))
        else:
            raise fields.error(
                "layer_types",
                f"holds {layer_type!r}: expected full_attention, sliding_attention or "
                "chunked_attention for this model_type",
            )
    return found


def _sliding(fields: Fields) -> Window:
    return Window(tokens=fields.integer("sliding_window"), kind="sliding")


def _chunk(fields: Fields) -> Window:
    return Window(tokens=fields.integer("attention_chunk_size"), kind="chunked")


def full_window(fields: Fields, depth: int) -> list[Window | None]:
    """Llama and others: every layer sees every token, so a window is refused."""
    if fields.has("sliding_window"):
        raise fields.error(
            "sliding_window", "is set and which layers of this model_type use it is not known"
        )
    return [None] * depth


def uniform_window(fields: Fields, depth: int) -> list[Window | None]:
    """Mistral, Mixtral, Phi-3: a window in all layers, or null."""
    if "sliding_window" not in fields.values:
        raise fields.error("sliding_window", "is missing: expected a whole number, or null")
    return [_sliding(fields) if fields.has("sliding_window") else None] * depth


def qwen_window(fields: Fields, depth: int) -> list[Window | None]:
    """Qwen2, Qwen3: layers from `max_window_layers` on, when `use_sliding_window` is true."""
    if not fields.has("use_sliding_window") and not fields.has("sliding_window"):
        return [None] * depth
    if not fields.flag("use_sliding_window"):
        return [None] * depth
    first = fields.integer("max_window_layers", least=0)
    window = _sliding(fields)
    return [window if layer >= first else None for layer in range(depth)]


def qwen_moe_window(fields: Fields, depth: int) -> list[Window | None]:
    """Qwen MoE: no published model has a window; one without `layer_types` is refused."""
    if fields.has("use_sliding_window") and fields.flag("use_sliding_window"):
        raise fields.error(
            "layer_types",
            "is missing: use_sliding_window is true and engines differ on which layers of a "
            "Qwen MoE that means",
        )
    return [None] * depth


def pattern_window(
    fields: Fields, depth: int, *, architecture_pattern: int | None = None
) -> list[Window | None]:
    """Each `sliding_window_pattern`-th layer sees everything, the others a window.

    `architecture_pattern` is the constant of the model type in transformers, where it has one;
    published configs of such types leave the field out.
    """
    pattern = fields.optional_integer("sliding_window_pattern") or architecture_pattern
    if pattern is None:
        pattern = fields.integer("sliding_window_pattern")
    window = _sliding(fields)
    return [window if (layer + 1) % pattern else None for layer in range(depth)]


def llama4_window(fields: Fields, depth: int) -> list[Window | None]:
    """Layers with rope see their chunk of `attention_chunk_size` tokens, layers without all."""
    if not fields.has("attention_chunk_size"):
        return [None] * depth
    rope = fields.integers("no_rope_layers") if fields.has("no_rope_layers") else []
    if not rope:  # an empty list stands for the interval in transformers too
        interval = fields.optional_integer("no_rope_layer_interval") or 4
        rope = [(layer + 1) % interval for layer in range(depth)]
    if len(rope) < depth:
        raise fields.error("no_rope_layers", f"has {len(rope)} entries: expected {depth}")
    chunk = _chunk(fields)
    return [chunk if has_rope else None for has_rope in rope[:depth]]
