"""What a model of transformers caches of a token, and how that is cut into blocks.

A block holds keys and values of all layers for `block_tokens` tokens, bit for bit as the model
cached them, one layer after the other. Seen in a cache and not read from a config: configs differ
too much, and what an MLA caches (latents or whole heads) has changed with the version.

May import: kvbench.errors, kvbench.keys, kvbench.store.block. torch and transformers.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from transformers import cache_utils

from kvbench.errors import UsageError
from kvbench.keys import Namespace
from kvbench.store.block import MOST_PARTS, Layout

# The types of transformers say little; here they are Any, and checked by what they are.
Model: TypeAlias = Any  # transformers.PreTrainedModel
Cache: TypeAlias = Any  # transformers.DynamicCache
_hf: Any = cache_utils

ORDER = "layers; of each its keys, then its values, as [heads, tokens, size]"
HEADS, TOKENS, SIZE = 1, 2, 3  # dimensions of a layer's keys and values; the first is the batch


@dataclass(frozen=True, slots=True)
class Vectors:
    """What a layer keeps of a token as keys, or as values. Of an MLA: the latent, or the rope key.

    An MLA latent has one head.
    """

    heads: int
    size: int  # elements of a head
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of one token."""
        return self.heads * self.size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer that keeps something; `window`: it keeps only the last `window` - 1 tokens."""

    index: int  # in the model's cache
    keys: Vectors
    values: Vectors
    window: int | None

    @property
    def token_bytes(self) -> int:
        """Bytes of one token, keys and values."""
        return self.keys.token_bytes + self.values.token_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """What a model's cache looks like, cut into blocks of `block_tokens` tokens."""

    config: Any  # transformers.PreTrainedConfig
    layers: tuple[LayerShape, ...]  # those that keep something, in the model's order
    block_tokens: int
    device: torch.device

    @classmethod
    def of(cls, model: Model, block_tokens: int) -> "CacheShape":
        """Look at what the model caches of one token: configs differ too much to be read for it.

        Raises:
            UsageError: `block_tokens` is not positive, or the model keeps another kind of cache.
        """
        if block_tokens < 1:
            raise UsageError(f"block_tokens is {block_tokens}: expected at least 1")
        if model.config.is_encoder_decoder:
            raise UsageError(
                f"{type(model).__name__} has an encoder, whose states no prefix of tokens names: "
                "expected a decoder-only model"
            )
        cache = _hf.DynamicCache(config=model.config)
        token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        with torch.no_grad():
            model(input_ids=token, cache=cache, use_cache=True)
        kept = kept_in(cache)
        devices = {tensor.device for both in kept.values() for tensor in both}
        if len(devices) != 1:
            raise UsageError(
                f"{type(model).__name__} keeps its cache on {len(devices)} devices: expected one"
            )
        return cls(
            config=model.config,
            layers=tuple(
                LayerShape(
                    index=index,
                    keys=vectors_of(keys),
                    values=vectors_of(values),
                    window=getattr(cache.layers[index], "sliding_window", None),
                )
                for index, (keys, values) in kept.items()
            ),
            block_tokens=block_tokens,
            device=devices.pop(),
        )

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all layers."""
        return sum(layer.token_bytes for layer in self.layers)

    @property
    def layout(self) -> Layout:
        """Of a block. A part is a layer if all have one size, so that layers can arrive one by one.

        Sizes differ where layers have different heads: then a block is one part.
        """
        sizes = {layer.token_bytes for layer in self.layers}
        parts = len(self.layers) if len(sizes) == 1 and len(self.layers) <= MOST_PARTS else 1
        return Layout(self.block_tokens * self.token_bytes, parts)

    def namespace(self, *, model: str, revision: str, salt: bytes = b"") -> Namespace:
        """The namespace of its blocks: `model` and `revision` of the weights, a tenant's `salt`.

        The rest is seen in the cache: shapes, dtypes, windows, block size.

        Raises:
            UsageError: `model` or `revision` is empty.
        """
        kept = [(layer, (layer.keys, layer.values)) for layer in self.layers]
        return Namespace(
            model=model,
            revision=revision,
            geometry=" ".join(
                f"{layer.index}:{'+'.join(f'{each.heads}x{each.size}' for each in both)}"
                f"/{layer.window or 'all'}"
                for layer, both in kept
            ),
            cache_dtype="+".join(
                dict.fromkeys(str(each.dtype).removeprefix("torch.") for _, b in kept for each in b)
            ),
            layout=ORDER,
            block_tokens=self.block_tokens,
            layers=(0, self.layers[-1].index + 1),
            heads=(0, max(each.heads for _, both in kept for each in both)),
            salt=salt,
        )


def vectors_of(tensor: torch.Tensor) -> Vectors:
    """Of keys or values, [1, heads, tokens, size]."""
    return Vectors(tensor.shape[HEADS], tensor.shape[SIZE], tensor.dtype)


def kept_in(cache: Cache) -> "dict[int, tuple[torch.Tensor, torch.Tensor]]":
    """Keys and values of the layers that keep some, each [1, heads, tokens, size], by index.

    Raises:
        UsageError: the cache is not such a one.
    """
    if type(cache) is not _hf.DynamicCache or cache.offloading:
        raise UsageError(
            f"a {type(cache).__name__}{', offloaded' * getattr(cache, 'offloading', False)}: "
            "expected a DynamicCache that is not offloaded"
        )
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for index, layer in enumerate(cache.layers):
        if type(layer) is _hf.DummyLayer:
            continue
        if type(layer) not in {_hf.DynamicLayer, _hf.DynamicSlidingWindowLayer}:
            raise UsageError(
                f"layer {index} is a {type(layer).__name__}: expected layers that keep the keys "
                "and values of tokens, and nothing else"
            )
        if layer.get_seq_length() == 0:
            continue
        for tensor in (layer.keys, layer.values):
            if len(tensor) != 1:
                raise UsageError(f"a cache of {len(tensor)} sequences: expected one at a time")
        kept[index] = layer.keys.detach(), layer.values.detach()
    if not kept:
        raise UsageError(f"nothing is in the {type(cache).__name__}: run the model with it first")
    return kept
