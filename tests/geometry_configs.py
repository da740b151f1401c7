"""Configs as published, cut to what a geometry reads, and what reads them in tests."""

import json
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pytest

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry, load_geometry

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}

MLA: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}

QWEN_WINDOW = LLAMA | {
    "model_type": "qwen2",
    "use_sliding_window": True,
    "sliding_window": 4096,
    "max_window_layers": 20,
}

NEMOTRON: dict[str, Any] = {
    "model_type": "nemotron_h",
    "num_hidden_layers": 8,
    "hybrid_override_pattern": "M-M*ME-*",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "ssm_state_size": 128,
    "conv_kernel": 4,
    "torch_dtype": "bfloat16",
    "mamba_ssm_cache_dtype": "float32",
}


class How(TypedDict, total=False):
    cache_dtype: str
    block_size: int
    tensor_parallel: int
    pipeline_parallel: int


def load(tmp_path: Path, config: object, **how: Unpack[How]) -> KVGeometry:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return load_geometry(path, **how)


def refusal(tmp_path: Path, config: object, **how: Unpack[How]) -> str:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, config, **how)
    message = str(caught.value)
    assert "\n" not in message
    return message
