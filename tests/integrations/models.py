"""Small models with random weights, prompts, and stores for their caches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as _transformers

from kvbench.integrations.transformers import CacheShape, PrefixCache
from kvbench.keys import Namespace
from kvbench.store.dram import DramTier
from kvbench.store.drives import capacity_for
from kvbench.store.hbm import HbmTier
from kvbench.store.nvme import NvmeTier
from kvbench.store.store import TieredStore

transformers: Any = _transformers  # its types fit few of its uses
BLOCK = 8  # tokens
WINDOW = 12  # tokens; neither a multiple of a block nor less than one
SLOTS = 64
WAIT_S = 20.0
LONG = 4 * BLOCK + 5  # tokens of most prompts: more than two windows
# Weights so large that what is in the cache changes every logit, in half precision too.
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
GQA = SMALL | {"num_key_value_heads": 2, "head_dim": 8}
MLA = SMALL | {
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
FULL, SLIDING = "full_attention", "sliding_attention"


def _llama() -> Any:
    config = transformers.LlamaConfig(**GQA, num_hidden_layers=3)
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def _mistral() -> Any:  # a window in every layer
    config = transformers.MistralConfig(**GQA, num_hidden_layers=2, sliding_window=WINDOW)
    return transformers.MistralForCausalLM(config)


def _gemma3() -> Any:  # layers with a window and without
    config = transformers.Gemma3TextConfig(
        **GQA, num_hidden_layers=3, sliding_window=WINDOW, layer_types=[SLIDING, FULL, SLIDING]
    )
    return transformers.Gemma3ForCausalLM(config)


def _gemma4() -> Any:  # heads of two sizes, and layers that use the cache of others
    config = transformers.Gemma4TextConfig(
        **GQA,
        num_hidden_layers=4,
        global_head_dim=16,
        sliding_window=WINDOW,
        num_kv_shared_layers=2,
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64,
    )
    return transformers.Gemma4ForCausalLM(config)


def _deepseek_v2() -> Any:
    config = transformers.DeepseekV2Config(**MLA, n_group=1, topk_group=1)
    return transformers.DeepseekV2ForCausalLM(config).to(torch.float16)


def _deepseek_v3() -> Any:
    config = transformers.DeepseekV3Config(**MLA, n_group=2, topk_group=1)
    return transformers.DeepseekV3ForCausalLM(config)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "mistral": _mistral,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
}
_built: dict[str, Any] = {}


def model_of(name: str) -> Any:
    """The model, built once, with the same weights in every run."""
    if name not in _built:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        model.generation_config.eos_token_id = None  # random weights say it now and then
        model.generation_config.pad_token_id = 0
        _built[name] = model
    return _built[name]


def prompt(tokens: int, seed: int = 1) -> torch.Tensor:
    """Token ids, int64 [1, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 64, (1, tokens), generator=generator)


def shape_of(name: str) -> CacheShape:
    """Blocks of eight tokens of a model."""
    return CacheShape.of(model_of(name), BLOCK)


def namespace_of(shape: CacheShape, revision: str = "1") -> Namespace:
    """Of the tests' weights."""
    return shape.namespace(model="small", revision=revision)


def store_of(tier: str, shape: CacheShape, folder: Path) -> TieredStore:
    """A store of `tier`; an nvme one has memory above it, and is opened again where it was."""
    if tier == "dram":
        return TieredStore([DramTier(shape.layout, SLOTS)])
    if tier == "hbm":
        return TieredStore([HbmTier(shape.layout, SLOTS, device="cpu")])
    return TieredStore([DramTier(shape.layout, SLOTS), drive_of(shape, folder)])


def drive_of(shape: CacheShape, folder: Path) -> NvmeTier:
    """The tier of a drive; a directory that is there is opened again."""
    return NvmeTier(
        [folder],
        shape.layout,
        capacity_bytes=capacity_for(SLOTS, shape.layout),
        namespace=namespace_of(shape).digest,
        min_free_bytes=0,
    )


def prefix_of(name: str, store: TieredStore, revision: str = "1") -> PrefixCache:
    """The caches of a model in a store."""
    shape = shape_of(name)
    return PrefixCache(store, shape, namespace_of(shape, revision))


def new_cache(name: str) -> Any:
    """An empty cache, as `generate` makes it."""
    return transformers.DynamicCache(config=model_of(name).config)


def run(name: str, ids: torch.Tensor, cache: Any, chunk: int = BLOCK) -> torch.Tensor:
    """Prefill what the cache lacks of `ids`, a chunk after the other; logits of the last chunk.

    Kernels add up in another order for another number of tokens: only caches that were made by the
    same chunks are equal bit for bit.
    """
    logits = torch.empty(0)
    with torch.no_grad():
        for at in range(cache.get_seq_length(), ids.shape[1], chunk):
            logits = model_of(name)(input_ids=ids[:, at : at + chunk], cache=cache).logits
    return logits


def greedy(name: str, ids: torch.Tensor, cache: Any, tokens: int = 12) -> list[int]:
    """What the model says next."""
    with torch.no_grad():
        out = model_of(name).generate(ids, cache=cache, max_new_tokens=tokens, do_sample=False)
    return list(out[0, ids.shape[1] :].tolist())
