"""Names, config files, and every way in which one of them can be wrong."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvbench.errors import UsageError
from kvbench.geometry import find_preset, load_geometry, presets
from tests.geometry_configs import LLAMA, MLA, NEMOTRON, QWEN_WINDOW, load, refusal


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("LLAMA-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/meta-llama-3.1-70b-instruct", "llama-3.1-70b"),
        ("another-org/Qwen3-8B", "qwen3-8b"),
        ("Qwen2.5-7B-Instruct", "qwen2.5-7b"),
    ],
)
def test_a_preset_is_found_by_its_repository_too(text: str, name: str) -> None:
    assert find_preset(text) == name


@pytest.mark.parametrize("text", ["llama-3.1-9b", "meta-llama/Llama-3.1-9B", "llama-3.1"])
def test_a_name_that_is_not_known_lists_near_ones(text: str) -> None:
    with pytest.raises(UsageError, match=r"llama-3\.1-8b"):
        find_preset(text)


def test_no_repository_belongs_to_two_presets() -> None:
    every = [r.lower() for preset in presets().values() for r in preset.repositories]

    assert len(every) == len(set(every))


def test_a_directory_stands_for_the_config_in_it(tmp_path: Path) -> None:
    (tmp_path / "My-Model").mkdir()
    (tmp_path / "My-Model" / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")

    geometry = load_geometry(str(tmp_path / "My-Model"))

    assert (geometry.name, geometry.source) == ("My-Model", "config.json")
    assert str(tmp_path) not in msgspec.json.encode(geometry).decode()


def test_a_home_directory_does_not_name_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert load(tmp_path, LLAMA).name == "config.json"


def test_a_multimodal_model_is_its_text_part(tmp_path: Path) -> None:
    config = {"model_type": "llava", "text_config": LLAMA, "vision_config": {"hidden_size": 1}}

    assert load(tmp_path, config).bytes_per_token == 131_072


def test_a_text_part_has_the_dtype_of_the_whole(tmp_path: Path) -> None:
    text = {k: v for k, v in NEMOTRON.items() if k != "torch_dtype"}
    geometry = load(tmp_path, {"torch_dtype": "bfloat16", "text_config": text})

    assert geometry.state_bytes == load(tmp_path, NEMOTRON).state_bytes


def test_a_missing_field_of_a_text_part_is_named_with_it(tmp_path: Path) -> None:
    text = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}

    assert "text_config.num_key_value_heads" in refusal(tmp_path, {"text_config": text})


def without_required(config: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    # head_dim and max_window_layers are not always needed; each is tested above.
    return [({k: v for k, v in config.items() if k != name}, name) for name in config]


@pytest.mark.parametrize(("config", "name"), without_required(LLAMA) + without_required(MLA))
def test_a_missing_field_is_named_with_the_file(
    tmp_path: Path, config: dict[str, Any], name: str
) -> None:
    message = refusal(tmp_path, config)

    assert f"{tmp_path / 'config.json'}: {name} is missing" in message
    assert refusal(tmp_path, config | {name: None}) == message


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "32", [32], {}, 10**30])
@pytest.mark.parametrize("name", ["num_hidden_layers", "num_attention_heads", "hidden_size"])
def test_a_number_must_be_a_whole_number_in_range(tmp_path: Path, name: str, value: object) -> None:
    assert f"{name} =" in refusal(tmp_path, LLAMA | {name: value})


def test_a_flag_must_be_true_or_false(tmp_path: Path) -> None:
    assert "use_sliding_window" in refusal(tmp_path, QWEN_WINDOW | {"use_sliding_window": 1})


def test_sizes_beyond_any_model_are_refused(tmp_path: Path) -> None:
    config = LLAMA | {"num_hidden_layers": 4096, "head_dim": 2**31}

    assert "more than any model" in refusal(tmp_path, config)


@pytest.mark.parametrize("model_type", ["deepseek_v4", "gpt2", "", "llama4"])
def test_an_unknown_architecture_is_refused_not_guessed(tmp_path: Path, model_type: str) -> None:
    message = refusal(tmp_path, LLAMA | {"model_type": model_type})

    assert f"model_type = {model_type!r}" in message
    assert "llama" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
    ],
)
def test_a_file_that_is_not_a_config_is_one_clear_line(
    tmp_path: Path, text: bytes, said: str
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)

    with pytest.raises(UsageError) as caught:
        load_geometry(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_weights_file_named_by_mistake_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)

    with pytest.raises(UsageError, match=r"expected a config\.json"):
        load_geometry(path)


@pytest.mark.parametrize("model", ["./nowhere", "/no/where/config.json", "nowhere.json"])
def test_a_path_that_is_not_there_is_not_taken_for_a_name(model: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_geometry(model)


def test_a_directory_without_a_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        load_geometry(tmp_path)


@pytest.mark.parametrize("model", ["", "   ", "a" * 5000, "a\0b", "/dev/null"])
def test_a_strange_name_is_a_usage_error(model: str) -> None:
    with pytest.raises(UsageError):
        load_geometry(model)
