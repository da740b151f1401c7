"""A model's weights and arithmetic, from a Hugging Face config: parameters, FLOPs, bytes read.

The geometry of its cache is `kvbench.geometry`'s. Facts of known models are in
`kvbench/data/weights.json`, in the config's own field names, so that files go the same way.
Counts matrices alone: norms and biases are less than one parameter in a thousand.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import msgspec

from kvbench.errors import UsageError

WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625, "int4": 0.53125}
# fp4: 4 bits and an 8-bit scale for 16 (NVFP4); int4: 4 bits and a 16-bit scale for 32


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """A known model: where its facts are from, and how many parameters it is published with."""

    source: str
    parameters: float
    active_parameters: float
    config: dict[str, Any]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters by what reads them: attention, dense parts, each expert, the output layer."""

    name: str
    layers: int
    hidden: int
    heads: int
    attention_dim: float  # of a query head for scores and of one for values, on average
    attention: float  # parameters, of all layers
    dense: float  # feed-forward parameters that every token goes through
    expert: float  # parameters of one expert of one layer
    expert_layers: int
    experts: int  # of one layer; 0: none
    experts_per_token: int
    output: float
    tied: bool  # the embedding is the output layer
    latent: bool  # MLA: the cache is the same on every rank, not divided
    kv_heads: int  # of a layer; 1 with MLA
    cache_elements: float  # cached numbers of a token, of all layers
    window_elements: float  # those of them in layers that see `window_tokens` only
    window_tokens: int

    @property
    def parameters(self) -> float:
        """All of them, embeddings too."""
        routed = self.expert_layers * self.experts * self.expert
        return self.attention + self.dense + routed + self.output * (1 if self.tied else 2)

    @property
    def active_parameters(self) -> float:
        """Those that one token is multiplied with."""
        routed = self.expert_layers * self.experts_per_token * self.expert
        return self.attention + self.dense + routed + self.output

    def experts_read(self, tokens: float) -> float:
        """Share of the experts that `tokens` tokens choose, each at random: 1 - (1 - k/E)^tokens.

        Real routers are less even, so that less is read.
        """
        if not self.experts:
            return 0.0
        missed: float = (1 - self.experts_per_token / self.experts) ** tokens
        return 1 - missed

    def cached(self, tokens: float) -> float:
        """Numbers that a sequence of `tokens` tokens keeps."""
        inside = min(tokens, self.window_tokens) if self.window_elements else 0.0
        return (self.cache_elements - self.window_elements) * tokens + self.window_elements * inside

    def weight_bytes(self, dtype: str) -> "WeightBytes":
        """Bytes of the weights when `dtype` is what they are stored as."""
        size = WEIGHT_BYTES.get(dtype)
        if size is None:
            raise UsageError(f"weights {dtype!r}: expected one of {', '.join(WEIGHT_BYTES)}")
        # Of models with experts, 4 bits are published for the experts alone; attention is fp8 or
        # bf16 there (DeepSeek-R1-FP4, gpt-oss, Kimi K2.5).
        common = size
        if self.experts and dtype in ("fp4", "int4"):
            common = 1.0 if self.latent and dtype == "fp4" else 2.0
        return WeightBytes(
            attention=self.attention * common,
            dense=self.dense * common,
            experts=self.expert_layers * self.experts * self.expert * size,
            output=self.output * 2.0,
            embedding=0.0 if self.tied else self.output * 2.0,
        )


class WeightBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of all weights, by what reads them."""

    attention: float
    dense: float
    experts: float
    output: float
    embedding: float  # kept, and hardly read

    @property
    def stored(self) -> float:
        """All that a replica keeps."""
        return self.attention + self.dense + self.experts + self.output + self.embedding


def shape_of(model: str) -> Shape:
    """Of a model by the name of its preset, or of a `config.json` by its path.

    Raises:
        UsageError: the model is not known, the file cannot be read, or it does not say.
    """
    known = weights_catalogue()
    if model.lower() in known:
        return _parse(model.lower(), known[model.lower()].config)
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise UsageError(
            f"how many parameters {model!r} has is not known: name a config.json, "
            f"or one of {', '.join(known)}"
        )
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    return _parse(str(path), config)


@cache
def weights_catalogue() -> dict[str, Facts]:
    """What `kvbench/data/weights.json` holds, by the names of presets."""
    data = files("kvbench.data").joinpath("weights.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, Facts])


class _Config:
    """Fields of a config, a missing one being an error that names it."""

    def __init__(self, label: str, values: dict[str, Any]) -> None:
        text: object = values.get("text_config")
        inner = cast("dict[str, Any]", text) if isinstance(text, dict) else {}
        self._values: dict[str, Any] = {**values, **inner}
        self._label = label

    def count(self, *names: str, default: int | None = None) -> int:
        for name in names:
            value = self._values.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                return value
        if default is None:
            raise UsageError(f"{self._label}: no whole number {' or '.join(names)} in the config")
        return default

    def kinds(self, name: str) -> list[str]:
        value: object = self._values.get(name)
        return (
            [str(each) for each in cast("list[object]", value)] if isinstance(value, list) else []
        )

    def flag(self, name: str) -> bool:
        return bool(self._values.get(name, False))


def _parse(label: str, values: dict[str, Any]) -> Shape:
    config = _Config(label, values)
    layers, hidden = config.count("num_hidden_layers"), config.count("hidden_size")
    heads = config.count("num_attention_heads")
    latent = config.count("kv_lora_rank", default=0) > 0
    attention, dim = _latent(config, hidden, heads) if latent else _grouped(config, hidden, heads)
    experts = config.count("n_routed_experts", "num_experts", "num_local_experts", default=0)
    dense_layers = config.count("first_k_dense_replace", default=0) if experts else layers
    expert = 3 * hidden * config.count("moe_intermediate_size", "intermediate_size")
    # Gate, up and down projection
    dense = dense_layers * 3 * hidden * config.count("intermediate_size") if dense_layers else 0
    shared = config.count("n_shared_experts", default=0) if experts else 0
    kv_heads = 1 if latent else config.count("num_key_value_heads", default=heads)
    per_layer = (
        config.count("kv_lora_rank") + config.count("qk_rope_head_dim")
        if latent
        else 2 * kv_heads * config.count("head_dim", default=hidden // heads)
    ) + config.count("index_head_dim", default=0)
    windowed = config.kinds("layer_types").count("sliding_attention")
    return Shape(
        kv_heads=kv_heads,
        cache_elements=float(layers * per_layer),
        window_elements=float(windowed * per_layer),
        window_tokens=config.count("sliding_window", default=0) if windowed else 0,
        name=label,
        layers=layers,
        hidden=hidden,
        heads=heads,
        attention_dim=dim,
        attention=float(layers * attention),
        dense=float(dense + (layers - dense_layers) * shared * expert),
        expert=float(expert if experts else 0),
        expert_layers=layers - dense_layers if experts else 0,
        experts=experts,
        experts_per_token=config.count("num_experts_per_tok", default=0) if experts else 0,
        output=float(config.count("vocab_size") * hidden),
        tied=config.flag("tie_word_embeddings"),
        latent=latent,
    )


def _grouped(config: _Config, hidden: int, heads: int) -> tuple[int, float]:
    """Parameters of one layer's attention, and the width of a head."""
    dim = config.count("head_dim", default=hidden // heads)
    kv_heads = config.count("num_key_value_heads", default=heads)
    return hidden * dim * 2 * (heads + kv_heads), float(dim)


def _latent(config: _Config, hidden: int, heads: int) -> tuple[int, float]:
    rank, rope = config.count("kv_lora_rank"), config.count("qk_rope_head_dim")
    nope, value = config.count("qk_nope_head_dim"), config.count("v_head_dim")
    queries = config.count("q_lora_rank", default=0)
    wide = heads * (nope + rope)
    down = hidden * queries + queries * wide if queries else hidden * wide
    up = rank * heads * (nope + value)
    return down + hidden * (rank + rope) + up + heads * value * hidden, (nope + rope + value) / 2
