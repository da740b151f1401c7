"""`kvbench simulate` as a user meets it: its output, its files, its errors. Traces are small."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvbench.cli import app
from kvbench.errors import UsageError

pytest.importorskip("vl_convert", reason="needs the extra html: pip install 'kvbench[html]'")

# What needs no compiling: the same figures, and no minute of numba in a test
PLAIN = os.environ | {"KVBENCH_NO_NUMBA": "1", "NO_COLOR": "1", "COLUMNS": "100"}
REPORT = Path(__file__).parents[2] / "reports" / "published" / "vm-2core-virtio.json"
FILES = ("it.json", "it.html", "it.txt")
PRICES = "gpu_hour=2.5,dram_gib_hour=0.004,date=2026-11-26"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty conversations of two turns in Mooncake's format; every one begins alike."""
    lines: list[str] = []
    for index in range(60):
        talk, turn = index % 30, index // 30
        blocks = 4 + 3 * turn
        row = {
            "timestamp": 200 * index,
            "input_length": 512 * blocks - 100,
            "output_length": 20 + index,
            "hash_ids": [
                0,
                *(1000 * (talk + 1) + each for each in range(blocks - 2)),
                100_000 + index,
            ],
        }
        lines.append(json.dumps(row))
    path = tmp_path_factory.mktemp("trace") / "talks.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# Many commands in one process: starting one takes longer than what it simulates
DRIVER = """
import json, sys
from typer.testing import CliRunner
from kvbench.cli import app
ran = {}
for name, arguments in json.load(sys.stdin).items():
    result = CliRunner().invoke(app, ["simulate", *arguments])
    error = result.exception
    known = hasattr(error, "exit_code")
    status = error.exit_code if known else result.exit_code
    ran[name] = [status, result.stdout, str(error) if error else ""]
    if error is not None and not known:
        raise error
json.dump(ran, sys.stdout)
"""
SWEEP = ("--sweep", "dram_gib=0,64", "--sweep", "router=random,cost", "--price", PRICES)
LENGTHS = "TIMESTAMP,ContextTokens,GeneratedTokens"


@dataclass(frozen=True)
class Ran:
    """What became of a command."""

    status: int
    stdout: str
    error: str

    @property
    def document(self) -> dict[str, Any]:
        """Its JSON."""
        assert self.status == 0, self.error
        found: dict[str, Any] = json.loads(self.stdout)
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def ran(trace: Path, folder: Path) -> dict[str, Ran]:
    seconds = (f"2023-11-16 18:15:{second:02}.0000000,1000,20" for second in range(30))
    (folder / "lengths.csv").write_text("\n".join([LENGTHS, *seconds]) + "\n", encoding="utf-8")
    commands: dict[str, list[str | Path]] = {
        "one": [trace, "--json", "--nodes", "1", "--request", "45", "--tiers", REPORT],
        "jobs 1": [trace, *SWEEP, "--jobs", "1", "-o", folder / "1.json"],
        "jobs 2": [trace, *SWEEP, "--jobs", "2", "-o", folder / "2.json"],
        "formats": [trace, *(x for name in FILES for x in ("-o", folder / name))],
        "generated": ["--requests", "40", "--nodes", "2", "--json"],
        "one cannot be": [trace, "--sweep", "gpus=1,8", "--jobs", "1"],
        "none can be": [trace, "--sweep", "requests=61,62", "--jobs", "1"],
        "lengths": [folder / "lengths.csv", "--router", "cost", "--json"],
        "no such request": [trace, "--request", "60"],
    }
    ended = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps({name: [*map(str, each)] for name, each in commands.items()}),
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env=PLAIN,
    )
    assert ended.returncode == 0, ended.stderr
    return {name: Ran(*each) for name, each in json.loads(ended.stdout).items()}


def refused(*arguments: str | Path) -> str:
    """The one line that a usage error says."""
    result = CliRunner().invoke(app, ["simulate", *map(str, arguments)])
    assert isinstance(result.exception, UsageError), result.output
    assert result.stdout == ""
    said = str(result.exception)
    assert "\n" not in said
    return said


def test_a_run_adds_up(ran: dict[str, Ran]) -> None:
    one = ran["one"].document
    (run,) = one["runs"]
    it = run["summary"]

    assert one["schema"] == "kvbench.simulation/1"
    assert one["label"].startswith("SIMULATED")
    assert it["served"] == it["requests"] == 60
    # With one node nothing is lost: all that was seen before is found again
    assert it["block_hit_rate"] == pytest.approx(one["ideal"]["block_hit_rate"][-1])
    assert it["token_hit_rate"] != it["block_hit_rate"]
    assert sum(it["parts_s"].values()) == pytest.approx(it["ttft_s"]["mean"])
    assert run["calibrations"]


def test_the_critical_path_of_a_request_adds_up_to_its_ttft(ran: dict[str, Ran]) -> None:
    path = ran["one"].document["runs"][0]["request"]

    assert path["number"] == 45
    assert sum(path["parts_s"].values()) == pytest.approx(path["ttft_s"])
    assert sum(path["hit_blocks"].values()) == 3  # the shared one and two of the first turn


def test_a_result_names_no_directory_and_no_time_of_day(ran: dict[str, Ran], trace: Path) -> None:
    text = ran["one"].stdout

    assert str(trace.parent) not in text
    assert str(REPORT.parent) not in text
    assert REPORT.name in text


def test_a_sweep_writes_the_same_bytes_on_one_process_and_on_two(
    ran: dict[str, Ran], folder: Path
) -> None:
    assert "4 runs SIMULATED" in ran["jobs 2"].stdout  # the table, beside the file
    one, two = (folder / name for name in ("1.json", "2.json"))

    assert one.read_bytes() == two.read_bytes()
    runs = json.loads(one.read_bytes())["runs"]
    assert [run["changed"]["dram_gib"] for run in runs] == [0, 0, 64, 64]
    assert runs[2]["summary"]["cost"]["per_hour"] > runs[0]["summary"]["cost"]["per_hour"]


def test_one_run_can_be_written_in_several_formats(ran: dict[str, Ran], folder: Path) -> None:
    assert ran["formats"].status == 0
    as_json, as_html, as_text = ((folder / name).read_text(encoding="utf-8") for name in FILES)

    assert json.loads(as_json)["schema"] == "kvbench.simulation/1"
    assert as_html.startswith("<!doctype html>")
    assert "SIMULATED" in as_html
    assert "SIMULATED" in as_text


def test_without_a_trace_a_generated_one_is_simulated_and_named_so(ran: dict[str, Ran]) -> None:
    found = ran["generated"].document

    assert found["trace"]["generated"] is True
    assert found["runs"][0]["summary"]["requests"] == 40
    assert any("generated" in note for note in found["notes"])


def test_without_numba_it_works_and_says_that_it_is_slow(ran: dict[str, Ran]) -> None:
    assert "numba is missing or turned off" in ran["one"].stdout


def test_a_run_of_a_sweep_that_cannot_be_is_a_row_with_its_reason(ran: dict[str, Ran]) -> None:
    found = ran["one cannot be"]  # one GPU cannot hold the weights

    assert found.status == 0
    assert "1 run SIMULATED, 1 failed" in found.stdout
    assert "gpus 1: llama-3.1-70b" in found.stdout


def test_a_sweep_without_one_result_ends_with_status_4(ran: dict[str, Ran]) -> None:
    found = ran["none can be"]

    assert found.status == 4
    assert found.error.startswith("none of 2 runs could be simulated")
    assert "60 requests" in found.error


def test_a_request_that_is_not_there_is_a_usage_error(ran: dict[str, Ran]) -> None:
    found = ran["no such request"]

    assert (found.status, found.stdout) == (2, "")
    assert "0 to 59" in found.error


def test_a_trace_without_blocks_is_simulated_and_it_is_said_what_that_means(
    ran: dict[str, Ran],
) -> None:
    found = ran["lengths"].document

    assert any("nothing is used again" in note for note in found["notes"])
    assert found["runs"][0]["summary"]["block_hit_rate"] is None
    assert found["ideal"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--router", "best"), "router 'best'"),
        (("--eviction", "mru"), "'mru'"),
        (("--sweep", "speed=1"), "dram_gib"),
        (("--sweep", "dram_gib=-1,2"), "--dram-gib -1"),
        (("--dram-gib", "-1"), "--dram-gib -1"),
        (("--nodes", "0"), "--nodes 0"),
        (("--requests", "61"), "60 requests"),
        (("--hardware", "abacus"), "'abacus'"),
        (("--tiers", "nowhere.json"), "'nowhere.json'"),
        (("--price", "gpu_hour=2"), "date=YYYY-MM-DD"),
        (("--json", "--html"), "--json and --html"),
        (("-o", "result"), ".json, .html or .txt"),
        (("-o", "/nowhere/it.json"), "/nowhere"),
        (("--reject",), "--slo-ttft-s"),
        (("--gpus", "1"), "70b"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(
    trace: Path, options: tuple[str, ...], said: str
) -> None:
    assert said in refused(trace, *options)


def test_a_broken_trace_is_refused_with_file_and_line(trace: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(
        trace.read_text(encoding="utf-8").replace('"timestamp": 400', '"timestamp": -1')
    )

    assert "broken.jsonl line 3" in refused(broken)


def test_a_measured_report_is_not_overwritten(trace: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text('{"schema": "kvbench.report/1"}', encoding="utf-8")

    assert "measured" in refused(trace, "-o", report)


def test_help_needs_neither_numpy_nor_numba() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from kvbench.cli import app\n"
        "assert '--sweep' in CliRunner().invoke(app, ['simulate', '--help']).output\n"
        "assert not {'numpy', 'numba', 'scipy', 'torch', 'ray'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_the_format_of_a_trace_is_taken_at_its_word_and_needs_one(trace: Path) -> None:
    without = CliRunner().invoke(app, ["simulate", "--format", "mooncake"])
    other = CliRunner().invoke(app, ["simulate", str(trace), "--format", "azure"])
    block = CliRunner().invoke(app, ["simulate", str(trace), "--block-tokens", "16"])

    assert isinstance(without.exception, UsageError)
    assert "name its file" in str(without.exception)
    assert isinstance(other.exception, UsageError)
    assert "talks.jsonl" in str(other.exception)
    assert isinstance(block.exception, UsageError)
    assert "block size" in str(block.exception)
