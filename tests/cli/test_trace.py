"""`kvbench trace stats` and `generate`, as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from kvbench.cli.trace import DEFAULT_REQUESTS, trace
from kvbench.errors import UsageError
from kvbench.sim.trace import read_columns, twin
from tests.sim.traces import CONVERSATION, real_trace

APP = typer.Typer()
APP.add_typer(trace, name="trace")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(APP, ["trace", *map(str, arguments)], env={"COLUMNS": "100"})


@pytest.fixture(autouse=True)
def no_cache_of_the_user(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "made.jsonl"
    assert run("generate", "--requests", 300, "--seed", 4, "-o", path).exit_code == 0
    return path


def test_what_was_generated_has_statistics_in_60_columns(made: Path) -> None:
    said = run("stats", made, "--capacity", "100,1000")
    assert said.exit_code == 0
    lines = said.stdout.splitlines()
    assert lines[0] == "made.jsonl"
    assert lines[1].startswith("300 requests in ")
    assert max(map(len, lines)) <= 60
    assert said.stdout.isascii()
    assert sum("#" in line for line in lines) == 10  # the plot
    assert [line.split()[0] for line in lines if line.strip().startswith("1,000 ")] == ["1,000"]


def test_json_has_the_schema_and_every_definition(made: Path) -> None:
    found = json.loads(run("stats", made, "--capacity", "100", "--json").stdout)
    assert found["schema"] == "kvbench.trace-stats/1"
    assert found["requests"] == 300
    assert [point["capacity_blocks"] for point in found["reuse"]["curve"]] == [100]
    assert set(found["reuse"]["ideal"]) >= {"block", "token", "half_block", "full_blocks_only"}


def test_the_same_seed_writes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.jsonl", tmp_path / "other.jsonl"
    run("generate", "--requests", 300, "--seed", 4, "-o", again)
    run("generate", "--requests", 300, "--seed", 5, "-o", other)
    assert again.read_bytes() == made.read_bytes()
    assert other.read_bytes() != made.read_bytes()


def test_a_twin_of_a_file_says_how_well_it_fits_and_keeps_its_shape(
    made: Path, tmp_path: Path
) -> None:
    out, shape = tmp_path / "twin.jsonl", tmp_path / "shape.json"
    said = run("generate", "--like", made, "--requests", 300, "-o", out, "--fitted", shape)
    assert said.exit_code == 0
    for name in ("input tokens", "reuse distance", "LRU curve", "full blocks only"):
        assert name in said.stdout
    again = tmp_path / "again.jsonl"
    assert run("generate", "--shape", shape, "--requests", 300, "-o", again).exit_code == 0
    assert again.read_bytes() == out.read_bytes()
    fit = json.loads(run("generate", "--like", made, "-o", out, "--json").stdout)
    assert 0 <= fit["goodness_of_fit"]["input_tokens"] <= 1


def test_stated_numbers_make_the_trace(tmp_path: Path) -> None:
    out = tmp_path / "stated.jsonl"
    said = run("generate", "--rate", 50, "--turns", 1, "--shared-tokens", 1024, "-o", out)
    assert said.exit_code == 0
    columns = read_columns(out, cache=False)
    assert columns.requests == DEFAULT_REQUESTS == twin.DEFAULT_REQUESTS
    assert columns.requests / columns.arrival_s[-1] == pytest.approx(50, rel=0.1)
    assert set(columns.ids[columns.starts[:-1] + 1].tolist()) == {1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stats", "none.jsonl"), "cannot read trace none.jsonl"),
        (("stats", "bad.jsonl"), "bad.jsonl line 2: "),
        (("stats", "bad.jsonl", "--format", "xml"), "trace format 'xml': expected one of"),
        (("stats", "good.jsonl", "--capacity", "1k"), "--capacity '1k': expected blocks"),
        (("stats", "good.jsonl", "--capacity", "0"), "--capacity '0': expected blocks"),
        (("generate", "-o", "no/where.jsonl"), "there is no directory no"),
        (("generate", "-o", "good.jsonl", "--like", "good.jsonl"), "will not overwrite good"),
        (("generate", "-o", "x", "--like", "good.jsonl"), "at least 100"),
        (("generate", "-o", "x", "--like", "a", "--rate", "3"), "exclude one another"),
        (("generate", "-o", "x", "--rate", "-3"), "rate_per_s is -3.0"),
        (("generate", "-o", "x", "--shape", "good.jsonl"), "is no shape of a trace"),
        (("generate", "-o", "x", "--fitted", "y"), "say to what with --like"),
    ],
)
def test_bad_input_is_a_usage_error_of_one_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [1]}\n'
    Path("good.jsonl").write_text(row, encoding="utf-8")
    Path("bad.jsonl").write_text(row + row[:30], encoding="utf-8")
    result = run(*arguments)

    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl"]


def test_help_starts_without_numpy_and_numba() -> None:
    code = (
        "import sys\n"
        "import kvbench.cli.trace\n"
        "assert not {'numpy', 'numba', 'scipy', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "generate" in run("--help").stdout
    assert "--capacity" in run("stats", "--help").stdout


def test_the_conversation_trace_is_described_as_it_is_known() -> None:
    said = run("stats", real_trace(CONVERSATION), "--capacity", "1000,10000,30000,50000,100000")
    text = " ".join(said.stdout.split())
    assert "12,031 requests in 3,537.0 s, 3.4/s" in text
    for line in ("1,000 0.0445 0.0454 0.0666", "100,000 0.3637 0.3708 0.3919"):
        assert line in text
