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


PUBLISHED = Path(__file__).parents[2] / "reports" / "published" / "vm-2core-virtio.json"
H100 = ("--model", "llama-3.1-70b", "--tp", "8", "--hardware", "h100", "--tokens", "8192")


def test_without_hardware_or_a_report_nothing_is_modelled() -> None:
    assert document()["loads"] is None
    assert "MODELLED" not in run().stdout


def test_named_hardware_gives_load_or_recompute_with_ranges_and_sources() -> None:
    loads = document(*H100)["loads"]

    assert loads["kind"] == "modelled from datasheet tiers"
    assert [each["tier"] for each in loads["restores"]] == ["dram", "nvme", "peer"]
    for each in loads["restores"]:
        assert each["size_bytes"] == 8192 * 327_680
        assert each["load"]["low"] < each["load"]["value"] < each["load"]["high"]
        assert each["recompute"]["low"] < each["recompute"]["value"] < each["recompute"]["high"]
        assert each["split"]["value"] < min(each["load"]["value"], each["recompute"]["value"])
        assert each["break_even_bytes_per_s"] == pytest.approx(
            each["size_bytes"] / each["recompute"]["value"]
        )
    assert "h100_sxm.yaml" in loads["sources"]["dram"]
    assert "Apache-2.0" in loads["sources"]["recompute"]


def test_the_table_says_that_it_is_modelled_and_from_what() -> None:
    text = run(*H100).stdout

    assert "MODELLED" in text
    assert "8,192 from nvme" in text
    assert "dram: loading is faster at any length" in text
    assert "nvme: loading is faster from " in text
    assert "recompute: modelled: six terms fitted to" in text
    assert "; range " in text


def test_a_measured_report_gives_the_tiers_and_hardware_what_it_lacks() -> None:
    loads = document("--report", str(PUBLISHED), "--hardware", "a100", "--tokens", "1024")["loads"]

    assert loads["kind"] == "modelled from mixed tiers"
    assert "nvme.read, 3 rows, measured" in loads["sources"]["nvme"]
    assert "data sheet" in loads["sources"]["peer"]
    assert "dram: block_bytes 2.09715e+06 is outside 2.68435e+08 to 2.68435e+08" in loads["outside"]


def test_measured_times_of_computing_say_whose_they_are() -> None:
    asked = ("--report", str(PUBLISHED), "--tokens", "8192")
    loads = document(*asked, "--hardware", "mooncake-fast25")["loads"]

    assert loads["restores"][0]["recompute"]["value"] == pytest.approx(0.9877, rel=1e-3)
    assert loads["missing"] == {"peer": "no row of peer.get"}
    assert (
        "recompute: times are of LLaMA3-70B on 8 x A800, bytes of llama-3.1-8b" in loads["outside"]
    )
    named = document(*asked, "--hardware", "llama2-70b-h100-80gb-tp8")["loads"]
    assert "SplitwiseSim" in named["sources"]["recompute"]


def test_loading_from_a_measured_link_takes_one_ranks_bytes(tmp_path: Path) -> None:
    report = json.loads(PUBLISHED.read_text())
    link = next(row for row in report["rows"] if row["operation"] == "transfer")
    link |= {"state": "ok", "bytes_per_s": 50e9, "bytes_per_s_low": 49e9, "bytes_per_s_high": 51e9}
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    asked = ("--model", "llama-3.1-70b", "--tokens", "8192", "--report", str(file))
    loads = document(*asked, "--hardware", "h100", "--tp", "8")["loads"]

    dram, nvme, _ = loads["restores"]
    assert dram["size_bytes"] == 8192 * 327_680 // 8
    assert dram["load"]["value"] == pytest.approx(dram["size_bytes"] / 50e9, rel=0.01)
    assert nvme["size_bytes"] == 8192 * 327_680  # drives are shared by all ranks


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--hardware", "h1000"), "did you mean h100?"),
        (("--hardware", "mooncake-fast25"), "not where blocks lie"),
        (("--report", str(PUBLISHED)), "it has no GPU: add --hardware"),
        (("--report", "/no/such/report.json"), "cannot read /no/such/report.json"),
        (("--model", "llama-3.1-70b", "--hardware", "h100"), "more GPUs or smaller weights"),
        (("--hardware", "h100", "--weights", "fp7"), "expected one of bf16, fp8, fp4, int4"),
    ],
)
def test_what_cannot_be_modelled_is_an_error_of_one_line(
    arguments: tuple[str, ...], said: str
) -> None:
    result = run(*arguments)

    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
