"""What is seen in a model's cache, and what is refused because of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvbench.errors import UsageError
from kvbench.integrations.transformers import CacheShape, PrefixCache
from tests.integrations.models import (
    BLOCK,
    GQA,
    LONG,
    MODELS,
    model_of,
    namespace_of,
    new_cache,
    prefix_of,
    prompt,
    run,
    shape_of,
    store_of,
    transformers,
)


@pytest.mark.parametrize(
    ("name", "token_bytes", "parts"),
    [
        ("llama", 3 * 2 * 2 * 8 * 2, 3),  # layers, keys and values, heads, size, bytes
        ("gemma3", 3 * 2 * 2 * 8 * 4, 3),
        ("gemma4", (2 * 2 * 8 + 2 * 2 * 16) * 4, 1),  # two layers that keep something, unequal
        ("deepseek_v2", 2 * (16 + 8) * 2, 2),  # a latent and a rope key
        ("deepseek_v3", 2 * (16 + 8) * 4, 2),
    ],
)
def test_a_token_takes_the_bytes_that_the_model_caches(
    name: str, token_bytes: int, parts: int
) -> None:
    shape = shape_of(name)
    assert (shape.token_bytes, shape.layout.parts) == (token_bytes, parts)


def test_models_of_other_shapes_have_other_namespaces() -> None:
    digests = {namespace_of(shape_of(name)).digest for name in MODELS}
    assert len(digests) == len(MODELS)
    shape = shape_of("gemma3")
    first, *others = shape.layers
    for changed in (
        replace(first, window=99),
        replace(first, values=replace(first.values, heads=4)),
        replace(first, keys=replace(first.keys, size=16)),
    ):
        other = replace(shape, layers=(changed, *others))
        assert namespace_of(other).digest != namespace_of(shape).digest


def cache_of(name: str) -> Any:
    cache = new_cache(name)
    run(name, prompt(LONG), cache)
    return cache


def hybrid() -> Any:
    config = transformers.LlamaConfig(**GQA, num_hidden_layers=3)
    config.layer_types = ["linear_attention", "full_attention", "full_attention"]
    return transformers.DynamicCache(config=config)


def sequences(count: int) -> Any:
    cache = new_cache("llama")
    run("llama", prompt(LONG).expand(count, -1), cache)
    return cache


def offloaded() -> Any:
    cache = sequences(1)
    cache.offloading = True
    return cache


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        (lambda: transformers.StaticCache(model_of("llama").config, 64), "a StaticCache: expected"),
        (
            lambda: transformers.EncoderDecoderCache(new_cache("llama"), new_cache("llama")),
            "a EncoderDecoderCache: expected",
        ),
        (offloaded, "a DynamicCache, offloaded: expected"),
        (lambda: new_cache("llama"), "nothing is in the DynamicCache"),
        (lambda: sequences(2), "a cache of 2 sequences"),
        (lambda: cache_of("gemma3"), "layer 0 of the cache keeps .*float32"),
        (lambda: cache_of("mistral"), r"in layers \[0, 1\], the model in \[0, 1, 2\]"),
        (hybrid, "layer 0 is a LinearAttentionLayer"),
    ],
)
def test_a_cache_that_cannot_be_saved_is_refused_in_one_line(cache: Any, words: str) -> None:
    with store_of("dram", shape_of("llama"), Path()) as store:
        prefix = prefix_of("llama", store)
        with pytest.raises(UsageError, match=words) as error:
            prefix.save(cache(), prompt(LONG))
    assert "\n" not in str(error.value)


def test_a_model_with_an_encoder_is_refused_in_one_line() -> None:
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1)
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(UsageError, match="T5ForConditionalGeneration has an encoder"):
        CacheShape.of(model, BLOCK)


def test_what_does_not_fit_together_is_refused() -> None:
    shape = shape_of("llama")
    with store_of("dram", shape, Path()) as store:
        other = CacheShape.of(model_of("llama"), BLOCK // 2)
        with pytest.raises(UsageError, match="open the store with the shape's layout"):
            PrefixCache(store, other, namespace_of(other))
        with pytest.raises(UsageError, match="blocks of 4 tokens, and a shape of 8"):
            PrefixCache(store, shape, namespace_of(other))
        with pytest.raises(UsageError, match="one sequence at a time"):
            prefix_of("llama", store).restore(prompt(LONG).expand(2, -1))
    with pytest.raises(UsageError, match="block_tokens is 0"):
        CacheShape.of(model_of("llama"), 0)
