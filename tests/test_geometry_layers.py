"""What each layer keeps: kinds of attention, windows, recurrent state, as configs state them."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry, LayerKind, load_geometry
from kvbench.geometry.layers import READERS
from tests.geometry_configs import LLAMA, MLA, NEMOTRON, QWEN_WINDOW, load, refusal

BAMBA = LLAMA | {
    "model_type": "bamba",
    "attn_layer_indices": [9, 18, 27],
    "mamba_expand": 2,
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "torch_dtype": "bfloat16",
}
JAMBA = LLAMA | {
    "model_type": "jamba",
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "mamba_expand": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "torch_dtype": "bfloat16",
}
FALCON = LLAMA | {
    "model_type": "falcon_h1",
    "mamba_d_ssm": 1024,
    "mamba_n_heads": 16,
    "mamba_d_head": 64,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "torch_dtype": "bfloat16",
}


# Kinds of attention


@pytest.mark.parametrize(
    ("kv_heads", "kind"), [(32, LayerKind.MHA), (8, LayerKind.GQA), (1, LayerKind.MQA)]
)
def test_the_kind_follows_from_the_heads(tmp_path: Path, kv_heads: int, kind: LayerKind) -> None:
    geometry = load(tmp_path, LLAMA | {"num_key_value_heads": kv_heads})

    assert [group.kind for group in geometry.layers] == [kind]
    assert geometry.bytes_per_token == 2 * 32 * kv_heads * 128 * 2


def test_an_explicit_head_dim_wins_over_the_derived_one(tmp_path: Path) -> None:
    geometry = load(tmp_path, LLAMA | {"head_dim": 64})

    assert geometry.bytes_per_token == 131_072 // 2


def test_a_head_dim_that_transformers_has_a_constant_for_is_not_derived(tmp_path: Path) -> None:
    message = refusal(tmp_path, LLAMA | {"model_type": "qwen3"})

    assert "head_dim is missing" in message


def test_a_head_dim_that_does_not_divide_is_an_error(tmp_path: Path) -> None:
    message = refusal(tmp_path, LLAMA | {"hidden_size": 4100})

    assert "head_dim" in message
    assert "4100" in message


@pytest.mark.parametrize("name", ["deepseek-v3.2"])
def test_the_indexers_keys_are_counted(name: str) -> None:
    geometry = load_geometry(name)

    assert geometry.bytes_per_token == 61 * (576 * 2 + 128 + 4)
    assert "132 B indexer key" in geometry.formula()
    assert {page.bytes for page in geometry.pages} == {16 * 1152, 16 * 132}
    assert geometry.page_bytes == 16 * 1152


def test_an_indexer_is_counted_whatever_the_model_type_of_the_latent(tmp_path: Path) -> None:
    geometry = load(tmp_path, MLA | {"index_head_dim": 128})

    assert geometry.bytes_per_token == 61 * (1152 + 132)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LLAMA | {"index_head_dim": 128}, "index_head_dim"),
        (MLA | {"index_head_dim": 100}, "index_head_dim"),
        (MLA | {"model_type": "deepseek_v32"}, "index_head_dim"),
        (MLA | {"index_head_dim": 128, "index_topk_freq": 4}, "index_topk_freq"),
    ],
)
def test_an_indexer_that_is_not_understood_is_refused(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    assert named in refusal(tmp_path, config)


# Windows


def windows(geometry: KVGeometry) -> dict[int | None, int]:
    return {group.window_tokens: group.count for group in geometry.layers}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mistral-7b-v0.1", {4096: 32}),
        ("mistral-7b-v0.3", {None: 32}),
        ("gemma-2-9b", {4096: 21, None: 21}),
        ("gemma-3-27b", {1024: 52, None: 10}),
        ("gpt-oss-120b", {128: 18, None: 18}),
        ("llama-4-scout", {8192: 36, None: 12}),
        ("qwen2.5-72b", {None: 80}),
    ],
)
def test_each_model_has_its_windows(name: str, expected: dict[int | None, int]) -> None:
    assert windows(load_geometry(name)) == expected


def test_qwen_windows_start_at_max_window_layers(tmp_path: Path) -> None:
    assert windows(load(tmp_path, QWEN_WINDOW)) == {None: 20, 4096: 12}


def test_layer_types_win_over_the_models_rule(tmp_path: Path) -> None:
    kinds = ["full_attention"] * 31 + ["sliding_attention"]
    geometry = load(tmp_path, QWEN_WINDOW | {"layer_types": kinds})

    assert windows(geometry) == {None: 31, 4096: 1}


def test_a_stated_pattern_wins_over_the_architectures(tmp_path: Path) -> None:
    config = LLAMA | {
        "model_type": "gemma3_text",
        "head_dim": 128,
        "sliding_window": 512,
        "sliding_window_pattern": 4,
    }
    assert windows(load(tmp_path, config)) == {512: 24, None: 8}


def test_llama4_layers_without_rope_see_everything(tmp_path: Path) -> None:
    config = LLAMA | {
        "model_type": "llama4_text",
        "num_hidden_layers": 4,
        "head_dim": 128,
        "attention_chunk_size": 256,
        "no_rope_layers": [1, 0, 0, 1],
    }
    assert windows(load(tmp_path, config)) == {256: 2, None: 2}


def test_a_sliding_window_stops_growing() -> None:
    geometry = load_geometry("gpt-oss-20b")  # 12 of 24 layers keep 128 tokens
    per_layer = 2 * 8 * 64 * 2

    assert geometry.bytes_for(128) == 128 * 24 * per_layer
    assert geometry.bytes_for(129) == geometry.bytes_for(128) + 12 * per_layer
    assert geometry.bytes_per_token_beyond_windows == 12 * per_layer
    everywhere = load_geometry("mistral-7b-v0.1")
    assert everywhere.bytes_for(4096) == everywhere.bytes_for(10**6) == 4096 * 131_072


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LLAMA | {"sliding_window": 4096}, "sliding_window"),
        (LLAMA | {"model_type": "mistral"}, "sliding_window"),
        (LLAMA | {"layer_types": ["full_attention"] * 31}, "layer_types"),
        (LLAMA | {"layer_types": ["full_attention"] * 31 + ["mystery"]}, "mystery"),
        (LLAMA | {"layer_types": ["sliding_attention"] * 32}, "sliding_window"),
        (QWEN_WINDOW | {"max_window_layers": None}, "max_window_layers"),
        (LLAMA | {"model_type": "qwen2", "sliding_window": 9}, "use_sliding_window"),
        (QWEN_WINDOW | {"model_type": "qwen2_moe"}, "layer_types"),
        (LLAMA | {"model_type": "cohere2", "sliding_window": 9}, "sliding_window_pattern"),
    ],
)
def test_a_window_that_is_not_fully_stated_is_refused(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    assert named in refusal(tmp_path, config)


# Recurrent layers


def test_a_gated_delta_net_keeps_a_fixed_state() -> None:
    geometry = load_geometry("qwen3-next-80b-a3b")
    conv = 3 * (2 * 16 * 128 + 32 * 128) * 2
    ssm = 32 * 128 * 128 * 2

    assert geometry.state_bytes == 36 * (conv + ssm)
    assert geometry.bytes_per_token == 12 * 2 * 2 * 256 * 2
    assert geometry.bytes_for(0) == geometry.state_bytes
    assert geometry.bytes_for(1000) == geometry.state_bytes + 1000 * geometry.bytes_per_token


def test_mamba2_layers_keep_conv_and_ssm_in_their_own_dtypes(tmp_path: Path) -> None:
    geometry = load(tmp_path, NEMOTRON, cache_dtype="fp8")
    conv = 3 * (128 * 64 + 2 * 8 * 128) * 2
    ssm = 128 * 64 * 128 * 4

    assert geometry.state_bytes == 3 * (conv + ssm)
    assert geometry.bytes_per_token == 2 * 2 * 8 * 128  # two attention layers; MLPs keep nothing
    assert geometry.layer_count == 8


def test_layers_block_type_says_the_same_as_the_pattern(tmp_path: Path) -> None:
    words = ["mamba", "mlp", "mamba", "attention", "mamba", "moe", "mlp", "attention"]
    listed = {k: v for k, v in NEMOTRON.items() if k not in {"hybrid_override_pattern"}}

    assert load(tmp_path, listed | {"layers_block_type": words}) == load(tmp_path, NEMOTRON)


def test_a_lone_mamba_group_is_copied_to_each_rank(tmp_path: Path) -> None:
    whole, split = load(tmp_path, BAMBA), load(tmp_path, BAMBA, tensor_parallel=4)
    inner, state = 8192, 256

    assert whole.state_bytes == 29 * (3 * (inner + 2 * state) + inner * state) * 2
    assert split.state_bytes == 29 * (3 * (inner // 4 + 2 * state) + inner // 4 * state) * 2
    assert split.model_state_bytes == whole.state_bytes


def test_granite_and_bamba_state_the_same_layers_in_two_ways(tmp_path: Path) -> None:
    words = ["attention" if layer in {9, 18, 27} else "mamba" for layer in range(32)]
    granite = BAMBA | {"model_type": "granitemoehybrid", "layer_types": words}

    assert load(tmp_path, granite).layers == load(tmp_path, BAMBA).layers


def test_jamba_is_mamba1_with_attention_at_an_offset(tmp_path: Path) -> None:
    geometry = load(tmp_path, JAMBA, tensor_parallel=2)

    assert geometry.bytes_per_token == 4 * 2 * 4 * 128 * 2
    assert geometry.model_state_bytes == 28 * 8192 * (3 + 16) * 2
    assert geometry.state_bytes * 2 == geometry.model_state_bytes


def test_a_falcon_h1_layer_has_attention_and_a_state(tmp_path: Path) -> None:
    geometry = load(tmp_path, FALCON)

    assert [group.kind for group in geometry.layers] == [LayerKind.GQA]
    assert geometry.bytes_per_token == 131_072
    assert geometry.state_bytes == 32 * (3 * (1024 + 2 * 256) + 16 * 64 * 256) * 2


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({k: v for k, v in NEMOTRON.items() if k != "torch_dtype"}, "torch_dtype"),
        (NEMOTRON | {"torch_dtype": "float8"}, "torch_dtype"),
        (NEMOTRON | {"hybrid_override_pattern": "M-M*ME-X"}, "hybrid_override_pattern"),
        (NEMOTRON | {"hybrid_override_pattern": "M*"}, "hybrid_override_pattern"),
        (NEMOTRON | {"layers_block_type": ["mamba"] * 7 + ["other"]}, "layers_block_type"),
        (NEMOTRON | {"hybrid_override_pattern": "M-M-M-M-"}, "no attention layers"),
        ({k: v for k, v in JAMBA.items() if k != "mamba_d_state"}, "mamba_d_state"),
    ],
)
def test_a_recurrent_layer_that_is_not_fully_stated_is_refused(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    assert named in refusal(tmp_path, config)


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "config.json"


@given(
    st.sampled_from(sorted(READERS)),
    st.dictionaries(
        st.sampled_from(
            sorted({*LLAMA, *MLA, *QWEN_WINDOW, *NEMOTRON, *BAMBA, *JAMBA, *FALCON, "layer_types"})
        ),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-5, 5000),
            st.sampled_from(["", "auto", "M*", "bfloat16"]),
        ),
    ),
)
def test_no_config_ends_in_anything_but_a_geometry_or_a_usage_error(
    config_path: Path, model_type: str, changes: dict[str, object]
) -> None:
    full = {**LLAMA, **MLA, **QWEN_WINDOW, **NEMOTRON, **BAMBA, **JAMBA, **FALCON}
    config = full | changes | {"model_type": model_type}
    config_path.write_text(json.dumps(config), encoding="utf-8")

    try:
        geometry = load_geometry(config_path)
    except UsageError:
        return
    assert msgspec.json.decode(msgspec.json.encode(geometry), type=KVGeometry) == geometry
