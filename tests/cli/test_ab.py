"""`kvbench ab` from the shell, on simulated devices."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.measure.result import read_report

TWO_CASES = ("--only", "dram.copy/*/2MiB/t1", "--simulate", "noisy")
EIGHT = ("--processes", "8", "--precision", "0")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvbench", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=110, cwd=folder
    )


def test_a_side_that_is_slowed_on_purpose_is_found_and_the_reports_say_so(tmp_path: Path) -> None:
    inject = ("--inject", "dram.copy/locked*=+25%")
    done = run(tmp_path, "ab", "env:", "env:", "dram", *TWO_CASES, *inject, *EIGHT)
    assert done.returncode == 3, done.stderr
    assert "8 interleaved pairs" in done.stdout
    assert "slowed on purpose" in done.stdout
    assert done.stderr.splitlines()[-1] == "kvbench: exit 3: 2 slower than allowed"
    base, new = (read_report(tmp_path / f"kvbench-ab-dram.{side}.json") for side in ("base", "new"))
    assert base.session_id == new.session_id
    assert (base.inject, new.inject) == ({}, {"dram.copy/locked*": 0.25})
    orders = [process.order for process in new.rows[0].processes]
    assert sorted(map(str, orders)) == ["AB"] * 4 + ["BA"] * 4
    # What ab said, compare says again from the two files; the slowed one is refused as a baseline.
    files = ("kvbench-ab-dram.base.json", "kvbench-ab-dram.new.json")
    again = run(tmp_path, "compare", *files)
    assert (again.returncode, again.stdout) == (3, done.stdout)
    refused = run(tmp_path, "compare", files[1], files[0])
    assert refused.returncode == 2
    assert "can be no baseline" in refused.stderr


def test_the_same_code_on_both_sides_passes(tmp_path: Path) -> None:
    one = ("--only", "dram.copy/pageable/2MiB/t1", "--simulate", "noisy")
    done = run(tmp_path, "ab", "env:", "env:", "dram", *one, *EIGHT, "-o", "x.json")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "x.base.json").exists()
    assert (tmp_path / "x.new.json").exists()


def test_pairs_end_on_precision_and_the_comparison_says_which_did_not_get_there(
    tmp_path: Path,
) -> None:
    one = ("--only", "dram.copy/pageable/2MiB/t1", "--simulate", "noisy", "-o", "x.json")
    common = ("ab", "env:", "env:", "dram", *one)
    coarse = run(tmp_path, *common, "--precision", "30%")
    assert "one session, 10 interleaved pairs" in coarse.stdout, coarse.stderr
    fine = run(tmp_path, *common, "--precision", "0.01%", "--processes", "5")
    assert "5 interleaved pairs" in fine.stdout
    assert "5 pairs know B/A to ±" in fine.stdout
    assert "not to ±0.01 %" in fine.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["here", "env:", "dram"], "expected env:VAR=value"),
        (["env:", "python:nowhere", "dram"], "no interpreter there"),
        (["env:", "env:", "nosuite"], "no suite named 'nosuite'"),
        (["env:", "env:", "dram", "--inject", "dram.*=8"], "--inject"),
        (["env:", "env:", "dram", "--inject", "hbm.*=+8%"], "hbm.*"),
        (["env:", "env:", "dram", "--processes", "4"], "--processes"),
        (["env:", "env:", "dram", "--precision", "2"], "expected below 100 %, such as 2%"),
    ],
)
def test_wrong_use_is_one_line_and_measures_nothing(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = run(tmp_path, "ab", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.json"))
