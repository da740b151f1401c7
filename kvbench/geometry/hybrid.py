"""Models that mix attention with recurrent layers: Mamba, gated delta net.

Which layers are which is stated by each family in its own words; a word that is not known here
is refused.
"""

from dataclasses import replace

from kvbench.geometry.attention import Layers, LayerSpec, depth_of, heads_of
from kvbench.geometry.fields import Fields
from kvbench.geometry.record import LayerKind
from kvbench.geometry.state import StateSpec, delta_net_state, jamba_state, mamba2_state


def read_qwen_hybrid(fields: Fields) -> Layers:
    """Qwen3-Next, Qwen3.5: gated delta net, and each `full_attention_interval`-th layer full."""
    depth = depth_of(fields)
    if fields.has("layer_types"):
        types = fields.texts("layer_types", depth)
    else:
        interval = fields.integer("full_attention_interval")
        types = [
            "linear_attention" if (layer + 1) % interval else "full_attention"
            for layer in range(depth)
        ]
    return _mixed(
        fields,
        types,
        heads_of(fields, derive_head_dim=False),
        delta_net_state(fields),
    )


def read_nemotron_h(fields: Fields) -> Layers:
    """Nemotron-H: a layer is one of Mamba-2 (M), attention (*), MLP (-) or experts (E)."""
    if fields.has("layers_block_type"):
        depth = depth_of(fields) if fields.has("num_hidden_layers") else None
        types = fields.texts("layers_block_type", depth)
    else:
        types = _nemotron_pattern(fields)
    return _mixed(
        fields,
        types,
        heads_of(fields, derive_head_dim=False),
        mamba2_state(
            fields,
            inner=fields.integer("mamba_num_heads") * fields.integer("mamba_head_dim"),
            names=(
                "mamba_num_heads",
                "mamba_head_dim",
                "n_groups",
                "ssm_state_size",
                "conv_kernel",
            ),
        ),
    )


def _nemotron_pattern(fields: Fields) -> list[str]:
    name = "hybrid_override_pattern"
    pattern, depth = fields.text(name), depth_of(fields)
    words = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
    if set(pattern) - set(words):
        raise fields.error(name, f"= {pattern!r}: expected M, *, - and E only")
    if len(pattern) != depth:
        raise fields.error(name, f"has {len(pattern)} layers: expected {depth}")
    return [words[letter] for letter in pattern]


_MAMBA2_NAMES = ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv")


def read_granite_hybrid(fields: Fields) -> Layers:
    """Granite 4: Mamba-2 and attention layers as `layer_types` lists them."""
    types = fields.texts("layer_types", depth_of(fields))
    inner = fields.integer("mamba_expand") * fields.integer("hidden_size")
    return _mixed(
        fields,
        types,
        heads_of(fields, derive_head_dim=True),
        mamba2_state(fields, inner=inner, names=_MAMBA2_NAMES),
    )


def read_bamba(fields: Fields) -> Layers:
    """Bamba: Mamba-2, and attention where `attn_layer_indices` says."""
    depth = depth_of(fields)
    full = set(fields.integers("attn_layer_indices"))
    inner = fields.integer("mamba_expand") * fields.integer("hidden_size")
    return _mixed(
        fields,
        ["attention" if layer in full else "mamba" for layer in range(depth)],
        heads_of(fields, derive_head_dim=True),
        mamba2_state(fields, inner=inner, names=_MAMBA2_NAMES),
    )


def read_falcon_h1(fields: Fields) -> Layers:
    """Falcon-H1: attention and Mamba-2 side by side in every layer."""
    attention = heads_of(fields, derive_head_dim=True)
    inner = fields.optional_integer("mamba_d_ssm")
    if inner is None:
        inner = fields.integer("mamba_expand") * fields.integer("hidden_size")
    layer = replace(attention, state=mamba2_state(fields, inner=inner, names=_MAMBA2_NAMES))
    return [layer] * depth_of(fields)


def read_jamba(fields: Fields) -> Layers:
    """Jamba: Mamba-1, and attention where layer % period is the offset."""
    period = fields.integer("attn_layer_period")
    offset = fields.integer("attn_layer_offset", least=0)
    return _mixed(
        fields,
        ["attention" if layer % period == offset else "mamba" for layer in range(depth_of(fields))],
        heads_of(fields, derive_head_dim=True),
        jamba_state(fields),
    )


_LAYER_WORDS = {
    "attention": "attention",
    "full_attention": "attention",
    "mamba": "recurrent",
    "linear_attention": "recurrent",
    "mlp": "nothing",
    "moe": "nothing",
}


def _mixed(fields: Fields, types: list[str], attention: LayerSpec, state: StateSpec) -> Layers:
    made: dict[str, LayerSpec | None] = {
        "attention": attention,
        "recurrent": LayerSpec(kind=LayerKind.RECURRENT, state=state),
        "nothing": None,
    }
    unknown = sorted(set(types) - set(_LAYER_WORDS))
    if unknown:
        raise fields.error(
            "layers_block_type" if fields.has("layers_block_type") else "layer_types",
            f"holds {unknown[0]!r}: expected one of {', '.join(_LAYER_WORDS)}",
        )
    return [made[_LAYER_WORDS[name]] for name in types]
