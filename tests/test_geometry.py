"""From a model to bytes. Golden figures are worked out by hand from the published configs."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.geometry import CacheDtype, KVGeometry, load_geometry, presets
from kvbench.geometry.shard import pipeline_parts
from tests.geometry_configs import LLAMA, MLA, NEMOTRON, How, load, refusal


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("llama-3.1-8b", 131_072),
        ("llama-3.1-70b", 327_680),
        ("llama-3.3-70b", 327_680),
        ("llama-3.1-405b", 516_096),
        ("qwen2.5-7b", 57_344),
        ("qwen2.5-72b", 327_680),
        ("qwen3-8b", 147_456),
        ("qwen3-32b", 262_144),
        ("qwen3-30b-a3b", 98_304),
        ("qwen3-235b-a22b", 192_512),
        ("deepseek-v3", 70_272),
        ("deepseek-r1", 70_272),
        ("kimi-k2", 70_272),
        ("gpt-oss-20b", 49_152),
        ("gpt-oss-120b", 73_728),
        ("phi-4", 204_800),
    ],
)
def test_a_preset_has_the_known_bytes_per_token(name: str, bytes_per_token: int) -> None:
    assert load_geometry(name).bytes_per_token == bytes_per_token


def test_a_block_is_made_of_pages_of_one_layers_k_or_v() -> None:
    geometry = load_geometry("llama-3.1-8b", block_size=16)

    assert geometry.page_bytes == 16 * 8 * 128 * 2
    assert geometry.layer_block_bytes == 2 * geometry.page_bytes
    assert geometry.pages_per_block == 2 * 32
    assert geometry.block_bytes == 64 * geometry.page_bytes == 16 * geometry.bytes_per_token


def test_an_mla_page_is_the_latent_of_one_layer() -> None:
    geometry = load_geometry("deepseek-v3", block_size=64)

    assert geometry.page_bytes == 64 * 576 * 2
    assert geometry.pages_per_block == 61


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_parses_names_its_source_and_survives_json(name: str) -> None:
    geometry = load_geometry(name)

    assert geometry.source == "preset"
    assert presets()[name].source
    assert geometry.block_bytes == sum(page.bytes * page.count for page in geometry.pages)
    assert msgspec.json.decode(msgspec.json.encode(geometry), type=KVGeometry) == geometry


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_written_to_a_file_reads_the_same(name: str, tmp_path: Path) -> None:
    geometry = load(tmp_path, presets()[name].config)

    expected = msgspec.structs.replace(
        load_geometry(name), name=tmp_path.name, source="config.json"
    )
    assert geometry == expected


def test_there_are_presets_for_at_least_sixteen_models() -> None:
    assert len(presets()) >= 16


# Cache dtypes


@pytest.mark.parametrize(
    ("dtype", "vector_bytes"),
    [("fp16", 256), ("bf16", 256), ("fp8", 128), ("int8", 128 + 4), ("int4", 64 + 4)],
)
def test_scales_are_counted_where_there_is_one_for_each_token(
    dtype: str, vector_bytes: int
) -> None:
    geometry = load_geometry("llama-3.1-8b", cache_dtype=dtype)

    assert geometry.bytes_per_token == 2 * 32 * 8 * vector_bytes
    assert geometry.page_bytes == 16 * 8 * vector_bytes
    assert geometry.cache_dtype_note


def test_ds_mla_stores_656_bytes_a_token_and_layer() -> None:
    geometry = load_geometry("deepseek-v3", cache_dtype=CacheDtype.FP8_DS_MLA)

    assert geometry.bytes_per_token == 61 * 656
    assert load_geometry("deepseek-v3", cache_dtype="fp8").bytes_per_token == 61 * 576


@pytest.mark.parametrize(
    ("config", "dtype", "named"),
    [
        (LLAMA, "fp7", "'fp7' is not a cache dtype: expected one of fp16"),
        (LLAMA, "fp8_ds_mla", "fp8_ds_mla"),
        (LLAMA | {"head_dim": 5}, "int4", "head_dim = 5"),
        (MLA, "int8", "int8"),
        (MLA, "int4", "int4"),
        (MLA | {"kv_lora_rank": 256}, "fp8_ds_mla", "256"),
    ],
)
def test_a_dtype_that_cannot_store_this_cache_is_refused(
    tmp_path: Path, config: dict[str, Any], dtype: str, named: str
) -> None:
    assert named in refusal(tmp_path, config, cache_dtype=dtype)


# Tensor and pipeline parallel


@pytest.mark.parametrize(("ranks", "heads"), [(1, 8), (2, 4), (8, 1), (16, 1), (32, 1)])
def test_kv_heads_are_divided_and_then_copied(ranks: int, heads: int) -> None:
    geometry = load_geometry("llama-3.1-8b", tensor_parallel=ranks)

    assert geometry.bytes_per_token == 2 * 32 * heads * 128 * 2
    assert geometry.model_bytes_per_token == 131_072


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_an_mla_latent_is_whole_on_every_rank(ranks: int) -> None:
    geometry = load_geometry("deepseek-v3", tensor_parallel=ranks)

    assert geometry.bytes_per_token == geometry.model_bytes_per_token == 70_272


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"tensor_parallel": 3}, "32 attention heads"),
        ({"tensor_parallel": 64}, "32 attention heads"),
        ({"tensor_parallel": 0}, "tensor_parallel = 0"),
        ({"pipeline_parallel": 33}, "pipeline_parallel = 33"),
        ({"pipeline_parallel": -1}, "pipeline_parallel = -1"),
        ({"block_size": 0}, "block_size = 0"),
        ({"block_size": 10**9}, "block_size"),
    ],
)
def test_a_split_that_cannot_be_is_refused(tmp_path: Path, how: How, named: str) -> None:
    assert named in refusal(tmp_path, LLAMA, **how)


def test_kv_heads_that_neither_divide_nor_are_divided_are_refused(tmp_path: Path) -> None:
    config = LLAMA | {"num_attention_heads": 24, "num_key_value_heads": 6, "head_dim": 128}

    assert "6 KV heads" in refusal(tmp_path, config, tensor_parallel=4)


@pytest.mark.parametrize(
    ("layers", "ranks", "counts"),
    [
        (32, 1, [32]),
        (32, 4, [8, 8, 8, 8]),
        (61, 2, [31, 30]),
        (61, 3, [20, 21, 20]),
        (62, 4, [15, 16, 16, 15]),
        (63, 4, [16, 16, 16, 15]),
    ],
)
def test_layers_are_dealt_to_pipeline_ranks_as_vllm_does(
    layers: int, ranks: int, counts: list[int]
) -> None:
    parts = pipeline_parts(layers, ranks)

    assert [len(part) for part in parts] == counts
    assert [layer for part in parts for layer in part] == list(range(layers))


def test_the_pipeline_rank_that_holds_most_is_described() -> None:
    geometry = load_geometry("deepseek-v3", pipeline_parallel=3)

    assert (geometry.pipeline_rank, geometry.rank_layer_count) == (1, 21)
    assert geometry.bytes_per_token == 21 * 576 * 2
    assert geometry.model_bytes_per_token == 70_272


def test_most_bytes_decide_the_rank_not_most_layers(tmp_path: Path) -> None:
    # Rank 0 holds two attention layers, rank 1 none but as many layers.
    geometry = load(
        tmp_path, NEMOTRON | {"hybrid_override_pattern": "MMMMM*M*"}, pipeline_parallel=2
    )

    assert geometry.pipeline_rank == 1
    assert geometry.bytes_per_token == geometry.model_bytes_per_token


# Properties

CONFIGS = st.fixed_dictionaries(
    {
        "model_type": st.just("qwen2"),
        "num_hidden_layers": st.integers(1, 40),
        "num_attention_heads": st.just(32),
        "num_key_value_heads": st.sampled_from([1, 2, 4, 8, 16, 32]),
        "head_dim": st.sampled_from([64, 80, 128, 256]),
        "use_sliding_window": st.booleans(),
        "sliding_window": st.integers(1, 5000),
        "max_window_layers": st.integers(0, 50),
    }
)
HOW = st.fixed_dictionaries(
    {
        "cache_dtype": st.sampled_from(["fp16", "bf16", "fp8", "int8", "int4"]),
        "block_size": st.integers(1, 256),
        "tensor_parallel": st.sampled_from([1, 2, 4, 8, 16, 32]),
    }
)


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "config.json"


@given(config=CONFIGS, how=HOW, tokens=st.integers(0, 20_000), more=st.integers(0, 20_000))
def test_a_longer_sequence_never_keeps_less_nor_more_than_without_windows(
    config_path: Path, config: dict[str, Any], how: dict[str, Any], tokens: int, more: int
) -> None:
    config_path.write_text(json.dumps(config), encoding="utf-8")
    geometry = load_geometry(config_path, **how)

    assert geometry.bytes_for(tokens) <= geometry.bytes_for(tokens + more)
    assert geometry.bytes_for(tokens) <= tokens * geometry.bytes_per_token
    if not config["use_sliding_window"]:
        assert geometry.bytes_for(tokens) == tokens * geometry.bytes_per_token


@given(config=CONFIGS, how=HOW, tokens=st.integers(0, 20_000))
def test_all_ranks_together_hold_at_least_the_model(
    config_path: Path, config: dict[str, Any], how: dict[str, Any], tokens: int
) -> None:
    config_path.write_text(json.dumps(config), encoding="utf-8")
    geometry = load_geometry(config_path, **how)
    ranks = how["tensor_parallel"]

    assert ranks * geometry.bytes_for(tokens) >= geometry.model_bytes_for(tokens)
    if config["num_key_value_heads"] % ranks == 0:
        assert ranks * geometry.bytes_for(tokens) == geometry.model_bytes_for(tokens)


@given(config=CONFIGS, how=HOW, space_bytes=st.integers(0, 10**9))
def test_the_longest_sequence_that_fits_fits_and_one_block_more_does_not(
    config_path: Path, config: dict[str, Any], how: dict[str, Any], space_bytes: int
) -> None:
    config_path.write_text(json.dumps(config), encoding="utf-8")
    geometry = load_geometry(config_path, **how)
    longest = geometry.tokens_in(space_bytes)

    if longest is None:
        assert geometry.bytes_for(10**9) <= space_bytes
    else:
        assert longest % geometry.block_size == 0
        assert longest == 0 or geometry.bytes_for(longest) <= space_bytes
        assert geometry.bytes_for(longest + geometry.block_size) > space_bytes


def test_nothing_fits_beside_a_state_that_fills_the_space() -> None:
    geometry = load_geometry("qwen3-next-80b-a3b")

    assert geometry.tokens_in(geometry.state_bytes) == 0
    assert geometry.tokens_in(geometry.state_bytes + geometry.block_bytes) == 16


def test_a_negative_length_is_refused() -> None:
    geometry = load_geometry("llama-3.1-8b")

    for size_of in (geometry.bytes_for, geometry.model_bytes_for, geometry.blocks_for):
        with pytest.raises(UsageError, match="tokens = -1"):
            size_of(-1)


# The formula


@pytest.mark.parametrize(
    ("name", "how", "formula"),
    [
        (
            "llama-3.1-8b",
            {},
            "2 (K and V) * 32 layers * 8 KV heads * 128 head_dim * 2 B (bf16) = 131,072 B/token",
        ),
        (
            "deepseek-v3",
            {"tensor_parallel": 8},
            "61 layers * (512 latent + 64 rope) * 2 B (bf16) = 70,272 B/token",
        ),
        (
            "deepseek-v3",
            {"cache_dtype": "fp8_ds_mla"},
            "61 layers * 656 B for (512 latent + 64 rope) (fp8_ds_mla) = 40,016 B/token",
        ),
        (
            "gpt-oss-20b",
            {"cache_dtype": "int4"},
            "2 (K and V) * 12 layers (sliding, at most 128 tokens) * 8 KV heads"
            " * (64 head_dim * 0.5 B + 4 B scale) (int4)\n"
            "+ 2 (K and V) * 12 layers * 8 KV heads * (64 head_dim * 0.5 B + 4 B scale) (int4)\n"
            "= 13,824 B/token",
        ),
    ],
)
def test_the_formula_has_its_numbers_filled_in(
    name: str, how: dict[str, Any], formula: str
) -> None:
    assert load_geometry(name, **how).formula().replace("\N{MULTIPLICATION SIGN}", "*") == formula
