"""`kvbench ab` and `kvbench calibrate` from the shell, on simulated devices."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kvbench.compare.noise import read_noise
from kvbench.measure.result import read_report

TWO_CASES = ("--only", "dram.copy/*/2MiB/t1", "--simulate", "noisy")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvbench", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=110, cwd=folder
    )


def test_a_side_that_is_slowed_on_purpose_is_found_and_the_reports_say_so(tmp_path: Path) -> None:
    inject = ("--inject", "dram.copy/locked*=+25%")
    done = run(tmp_path, "ab", "env:", "env:", "dram", *TWO_CASES, *inject, "--processes", "8")
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
    done = run(
        tmp_path, "ab", "env:", "env:", "dram", *TWO_CASES, "--processes", "8", "-o", "x.json"
    )
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "x.base.json").exists()
    assert (tmp_path / "x.new.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["here", "env:", "dram"], "expected env:VAR=value"),
        (["env:", "python:nowhere", "dram"], "no interpreter there"),
        (["env:", "env:", "nosuite"], "no suite named 'nosuite'"),
        (["env:", "env:", "dram", "--inject", "dram.*=8"], "--inject"),
        (["env:", "env:", "dram", "--inject", "hbm.*=+8%"], "hbm.*"),
        (["env:", "env:", "dram", "--processes", "4"], "--processes"),
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


def test_calibrate_keeps_a_floor_and_says_what_can_be_seen(tmp_path: Path) -> None:
    options = ("--processes", "5", "--time-limit", "0.2", "--seed", "3")
    done = run(tmp_path, "calibrate", "dram", *TWO_CASES, *options)
    assert done.returncode == 0, done.stderr
    assert "noise floor of 8 sessions, suite dram" in done.stdout
    assert "56 ordered pairs of sessions" in done.stdout
    noise = read_noise(tmp_path / "kvbench-noise.json")
    assert noise.sessions == 8
    assert set(noise.metrics) == {"dram.copy/pageable/2MiB/t1", "dram.copy/locked/2MiB/t1"}
    sessions = sorted((tmp_path / "kvbench-noise.sessions").glob("*.json"))
    assert len({read_report(path).session_id for path in sessions}) == 8
    # Reports that are there already are taken, in a file of another name; too few are refused.
    given = [str(path) for path in sessions]
    again = run(tmp_path, "calibrate", *given[:6], "-o", "six.json")
    assert again.returncode == 0, again.stderr
    assert read_noise(tmp_path / "six.json").sessions == 6
    few = run(tmp_path, "calibrate", *given[:4])
    assert few.returncode == 2
    assert "4 sessions given, at least 5 are needed" in few.stderr
    # Sessions of an earlier calibration are not mixed with new ones unless that is asked for.
    mixed = run(tmp_path, "calibrate", "dram", *TWO_CASES)
    assert mixed.returncode == 2
    assert "--resume keeps them" in mixed.stderr


def test_calibrate_refuses_what_is_no_noise(tmp_path: Path) -> None:
    assert (
        run(tmp_path, "run", "dram", *TWO_CASES, "--processes", "5", "-o", "a.json").returncode == 0
    )
    raw = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    for number in range(5):
        copy = raw | {"session_id": str(number), "inject": {"*": 0.1} if number == 4 else {}}
        (tmp_path / f"{number}.json").write_bytes(msgspec.json.encode(copy))
    files = [f"{number}.json" for number in range(5)]
    slowed = run(tmp_path, "calibrate", *files)
    assert (slowed.returncode, "4.json was slowed on purpose" in slowed.stderr) == (2, True)
    twice = run(tmp_path, "calibrate", *files[:4], files[0])
    assert (twice.returncode, "are one session" in twice.stderr) == (2, True)
    over = run(tmp_path, "calibrate", *files[:4], "a.json", "-o", "0.json")
    assert (over.returncode, "will not overwrite 0.json" in over.stderr) == (2, True)
