"""`kvbench calibrate` from the shell, on simulated devices."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from kvbench.cli.calibrate import LEAST_PROCESSES
from kvbench.compare.gate import MIN_PROCESSES
from kvbench.compare.noise import read_noise
from kvbench.measure.result import read_report

TWO_CASES = ("--only", "dram.copy/*/2MiB/t1", "--simulate", "noisy")
PLAN = ("--processes", "5", "--time-limit", "0.2", "--seed", "3")
OPTIONS = (*TWO_CASES, *PLAN)
NAMES = [f"session-{number:02d}.json" for number in range(1, 9)]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kvbench", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, timeout=110, cwd=folder
    )


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A calibration that was measured, and what it said."""
    folder = tmp_path_factory.mktemp("calibrated")
    done = run(folder, "calibrate", "dram", *OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def folder(calibrated: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(calibrated[0], tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    found = (folder / "kvbench-noise.sessions").glob("*.json")
    return {path.name: path.read_bytes() for path in sorted(found)}


def test_calibrate_keeps_a_floor_and_says_what_can_be_seen(calibrated: tuple[Path, str]) -> None:
    folder, said = calibrated
    assert "noise floor of 8 sessions, suite dram" in said
    assert "56 ordered pairs of sessions" in said
    noise = read_noise(folder / "kvbench-noise.json")
    assert (noise.sessions, noise.suite) == (8, "dram")
    assert noise.command == ["calibrate", "dram", *OPTIONS]
    assert set(noise.metrics) == {"dram.copy/pageable/2MiB/t1", "dram.copy/locked/2MiB/t1"}
    sessions = sorted((folder / "kvbench-noise.sessions").glob("*.json"))
    assert len({read_report(path).session_id for path in sessions}) == 8


def test_reports_that_are_there_already_are_taken(folder: Path) -> None:
    given = [f"kvbench-noise.sessions/{name}" for name in NAMES]
    done = run(folder, "calibrate", *given[:6], "-o", "six.json")
    assert done.returncode == 0, done.stderr
    noise = read_noise(folder / "six.json")
    assert (noise.sessions, noise.command) == (6, [])
    few = run(folder, "calibrate", *given[:4])
    assert few.returncode == 2
    assert "4 sessions given, at least 5 are needed" in few.stderr


def test_sessions_of_an_earlier_calibration_are_not_mixed_with_new_ones_unasked(
    folder: Path,
) -> None:
    mixed = run(folder, "calibrate", "dram", *OPTIONS)
    assert mixed.returncode == 2
    assert "--resume keeps them" in mixed.stderr


@pytest.mark.parametrize(
    ("arguments", "differs"),
    [
        (("quick", "--only", "dram.*", "--simulate", "noisy", *PLAN), "suite"),
        (("dram", *OPTIONS, "--processes", "6"), "plan"),
        (("dram", *OPTIONS, "--model", "qwen3-32b", "--block-size", "8"), "model"),
    ],
)
def test_sessions_of_another_suite_plan_or_model_are_not_kept(
    arguments: tuple[str, ...], differs: str, folder: Path
) -> None:
    # The first is missing, so that measuring would begin before the others were looked at.
    (folder / "kvbench-noise.sessions" / NAMES[0]).unlink()
    before = contents(folder)
    done = run(folder, "calibrate", *arguments, "--resume")
    assert done.returncode == 2
    path = f"kvbench-noise.sessions/{NAMES[1]}"
    assert done.stderr.startswith(f"kvbench: cannot resume {path}: its {differs} differs")
    assert len(done.stderr.splitlines()) == 1
    assert contents(folder) == before


def test_resume_measures_what_is_missing_and_nothing_else(folder: Path) -> None:
    before = contents(folder)
    sessions = folder / "kvbench-noise.sessions"
    cut = json.loads(before[NAMES[2]])
    cut["rows"], cut["finished_at"] = cut["rows"][:1], None
    cut["rows"][0]["bytes_per_s"] = 123.0  # to be told from a row measured again
    (sessions / NAMES[2]).write_text(json.dumps(cut), encoding="utf-8")
    (sessions / NAMES[5]).unlink()
    done = run(folder, "calibrate", "dram", *OPTIONS, "--resume")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("session ")]
    assert said == ["session 3 of 8", "session 6 of 8"]
    after = contents(folder)
    assert {name for name in NAMES if after[name] != before[name]} == {NAMES[2], NAMES[5]}
    third = read_report(sessions / NAMES[2])
    assert third.rows[0].bytes_per_s == 123.0
    assert len(third.rows) == 2
    assert third.finished_at is not None


def test_an_interrupted_pause_says_what_is_kept_and_a_suite_of_few_processes_gets_five(
    tmp_path: Path,
) -> None:
    options = ("--only", "dram.copy/pageable/*/t1", "--simulate", "noisy", "--pause", "900")
    process = subprocess.Popen(
        command("calibrate", "quick", *options, "--time-limit", "0.1", "-o", "n.json"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = tmp_path / "n.sessions" / NAMES[0]
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and process.poll() is None:
        if first.exists() and read_report(first).finished_at is not None:
            break
        time.sleep(0.05)
    time.sleep(0.5)  # into the pause
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == (
        "kvbench: interrupted: 1 of 8 sessions are in n.sessions; repeat the command with "
        "--resume to go on"
    )
    assert err.splitlines()[0] == (
        "kvbench: 5 processes for each case, not the 3 of the suite quick: a noise floor needs them"
    )
    assert all(len(row.processes) == 5 for row in read_report(first).rows)


def test_fewer_processes_than_a_floor_needs_are_refused(tmp_path: Path) -> None:
    assert LEAST_PROCESSES == MIN_PROCESSES
    done = run(tmp_path, "calibrate", "dram", *TWO_CASES, "--processes", "4")
    assert (done.returncode, "--processes" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_calibrate_refuses_what_is_no_noise(folder: Path) -> None:
    first = folder / "kvbench-noise.sessions" / NAMES[0]
    raw = json.loads(first.read_text(encoding="utf-8"))
    for number in range(5):
        copy = raw | {"session_id": str(number), "inject": {"*": 0.1} if number == 4 else {}}
        (folder / f"{number}.json").write_bytes(msgspec.json.encode(copy))
    files = [f"{number}.json" for number in range(5)]
    slowed = run(folder, "calibrate", *files)
    assert (slowed.returncode, "4.json was slowed on purpose" in slowed.stderr) == (2, True)
    twice = run(folder, "calibrate", *files[:4], files[0])
    assert (twice.returncode, "are one session" in twice.stderr) == (2, True)
    shutil.copy(first, folder / "a.json")
    over = run(folder, "calibrate", *files[:4], "a.json", "-o", "0.json")
    assert (over.returncode, "will not overwrite 0.json" in over.stderr) == (2, True)
