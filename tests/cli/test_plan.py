"""`kvbench plan`, run as a user runs it, and its figures against a machine made up for the test."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from kvbench.cli.plan import make_document, plan
from kvbench.errors import UsageError
from kvbench.geometry import load_geometry
from kvbench.machine import Gpu, Machine, Memory, Storage
from kvbench.units import GIB

APP = typer.Typer()
APP.command("plan")(plan)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(APP, arguments, env={"COLUMNS": "120"})


def document(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    decoded: dict[str, Any] = json.loads(result.stdout)
    return decoded


def machine(*, gpu_bytes: int | None = None, free_bytes: int | None = 10 * GIB) -> Machine:
    return Machine(
        gpus=[Gpu(cuda_index=0, name="Test GPU", memory_bytes=gpu_bytes)] if gpu_bytes else [],
        memory=Memory(total_bytes=64 * GIB, available_bytes=32 * GIB),
        storage=Storage(directory="/data", free_bytes=free_bytes),
    )


def test_the_formula_and_the_sizes_are_shown() -> None:
    result = run("--model", "llama-3.1-8b", "--tokens", "8192")

    assert result.exit_code == 0
    text = " ".join(result.stdout.replace("\N{MULTIPLICATION SIGN}", "*").split())
    assert "2 (K and V) * 32 layers * 8 KV heads * 128 head_dim * 2 B (bf16)" in text
    assert "a token 131,072 B (128 KiB)" in text
    assert "a block of 16 tokens 2,097,152 B (2 MiB)" in text
    assert "8,192 tokens (512 blocks) 1,073,741,824 B (1 GiB)" in text
    for tier in ("hbm", "dram", "nvme"):
        assert f"{tier}: " in result.stdout  # what its space is, or why it has none


def test_several_lengths_are_shown_when_none_is_given() -> None:
    assert [r["tokens"] for r in document()["requests"]] == [1024, 8192, 32_768, 131_072]


def test_json_says_the_same_in_base_units() -> None:
    said = document("--model", "deepseek-v3", "--tokens", "1000", "--kv-dtype", "fp8_ds_mla")

    assert said["model"]["bytes_per_token"] == 61 * 656
    assert said["model"]["page_bytes"] == 16 * 656
    assert said["requests"] == [
        {"tokens": 1000, "blocks": 63, "bytes": 40_016_000, "model_bytes": 40_016_000}
    ]
    assert [tier["tier"] for tier in said["tiers"]] == ["hbm", "dram", "nvme"]


def test_options_reach_the_geometry() -> None:
    model = document("--tp", "4", "--pp", "3", "--kv-dtype", "int8", "--block-size", "64")["model"]

    assert model["tensor_parallel"] == 4
    assert model["pipeline_parallel"] == 3
    assert model["cache_dtype"] == "int8"
    assert model["block_bytes"] == 64 * 11 * 2 * 2 * (128 + 4)


def test_a_split_model_shows_one_rank_beside_the_whole_and_says_which() -> None:
    result = run("--model", "deepseek-v3", "--tokens", "100", "--tp", "2", "--pp", "3")

    assert "70,272 B (68.62 KiB)" in result.stdout
    assert "24,192 B (23.62 KiB)" in result.stdout
    assert "pipeline rank 1" in result.stdout
    assert "21 of 61 layers" in result.stdout


def test_windows_and_states_have_their_own_lines() -> None:
    assert "beyond all windows" in run("--model", "gpt-oss-20b").stdout
    assert "state of a sequence" in run("--model", "qwen3-next-80b-a3b").stdout
    assert "beyond all windows" not in run("--model", "qwen3-32b").stdout


def test_the_free_space_is_that_of_the_directory_given(tmp_path: Path) -> None:
    nvme = document("--dir", str(tmp_path))["tiers"][2]

    assert nvme["space_bytes"] > 0
    assert nvme["longest_sequence_tokens"] <= nvme["space_bytes"] // 131_072


def test_each_tier_holds_what_fits_in_its_space_in_whole_blocks() -> None:
    geometry = load_geometry("llama-3.1-8b")  # 2 MiB a block of 16 tokens
    hbm, dram, nvme = make_document(geometry, machine(gpu_bytes=80 * GIB), (17,)).tiers

    assert (hbm.space_bytes, dram.space_bytes, nvme.space_bytes) == (
        80 * GIB,
        32 * GIB,
        10 * GIB,
    )
    assert hbm.longest_sequence_tokens == 80 * 512 * 16
    assert nvme.requests == {"17": 10 * 512 // 2}  # 17 tokens take two blocks
    assert "weights not taken off" in hbm.note


def test_a_rank_fills_a_tier_later_than_the_whole_model() -> None:
    whole = load_geometry("llama-3.1-8b")
    rank = load_geometry("llama-3.1-8b", tensor_parallel=4)

    alone, shared = (make_document(g, machine(), (16,)).tiers[1].requests for g in (whole, rank))
    assert alone is not None
    assert shared is not None
    assert shared["16"] == 4 * alone["16"]


def test_a_space_that_is_not_known_is_null_with_a_reason_never_zero() -> None:
    hbm, _, nvme = make_document(
        load_geometry("llama-3.1-8b"), machine(free_bytes=None), (1024,)
    ).tiers

    for room in (hbm, nvme):
        assert room.space_bytes is None
        assert room.longest_sequence_tokens is None
        assert room.requests is None
        assert room.note


def test_a_fully_windowed_model_fits_at_any_length() -> None:
    result = run("--model", "mistral-7b-v0.1", "--tokens", "16")

    assert "any length" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "llama-3.1-9b"), "llama-3.1-8b"),
        (("--model", "/no/such/config.json"), "no such file"),
        (("--kv-dtype", "fp7"), "expected one of fp16, bf16"),
        (("--tp", "3"), "32 attention heads"),
        (("--pp", "100"), "at most the 32 layers"),
        (("--block-size", "9999999"), "block_size"),
        (("--dir", "/no/such/directory"), "/no/such/directory"),
    ],
)
def test_bad_input_is_a_usage_error_of_one_line(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)

    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
    assert result.stdout == ""


@pytest.mark.parametrize("tokens", ["0", "-5", "1e3", "2000000000"])
def test_a_length_must_be_a_whole_number_in_range(tokens: str) -> None:
    assert run("--tokens", tokens).exit_code == 2


def test_a_directory_name_with_markup_is_printed_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "[red]x"
    directory.mkdir()

    assert "[red]x" in run("--dir", str(directory)).stdout


def test_planning_imports_neither_torch_nor_kvikio() -> None:
    code = (
        "import sys\n"
        "from kvbench.cli.plan import plan\n"
        "plan('llama-3.1-8b', tokens=16)\n"
        "assert not {'torch', 'triton', 'kvikio'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_the_command_ends_with_status_2_and_one_line_on_standard_error() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "kvbench", "plan", "--model", "nothing-like-it"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("kvbench: 'nothing-like-it' is neither")
    assert ended.stderr.count("\n") == 1
