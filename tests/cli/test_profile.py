"""`kvbench profile`, as a user runs it: a process of its own.

What has to know the kernels runs in this process: another would import torch, for seconds.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from kvbench import __version__
from kvbench.cli.profile import profile as profile_command
from kvbench.errors import UsageError
from tests.profile.trace_format import PRIORITY, faults, ns, parts_ns

LABELS = ("GPU kernel", "copy", "I/O wait", "Python", "idle")
READ = "nvme.read/posix/64KiB/qd4/random"
OLD = '{"otherData":{"schema":"kvbench.trace/1"},"traceEvents":[]}'
QUICK = ("--seconds", "0.3", "--data", "17MB")  # no whole sectors
WIDE = {"COLUMNS": "100"}
APP = typer.Typer()
APP.command("profile")(profile_command)


def profile(*arguments: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvbench", "profile", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        **more,
    )


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    (line,) = result.stderr.splitlines()
    assert line.startswith("kvbench: ")
    return line


def profile_here(*arguments: str) -> Result:
    return CliRunner().invoke(APP, [*arguments], env=WIDE)


def refused(result: Result) -> str:
    """What `kvbench` prints as its one line, before it ends with 2."""
    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2
    (line,) = str(result.exception).splitlines()
    return line


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def printed_parts_s(text: str) -> dict[str, float]:
    """The rows of the first table, the sum too."""
    rows = re.findall(r"^(\S.*?) +([0-9.]+) +[0-9.]+%$", text, re.MULTILINE)
    return {name: float(value) for name, value in rows}


def checked(path: Path, printed: str) -> dict[str, Any]:
    """The trace, if it is valid and what was printed is what its slices sum to."""
    trace: dict[str, Any] = json.loads(path.read_text())
    assert faults(trace) == []
    wall_ns = ns(trace["otherData"]["window_us"])
    assert all(
        ns(event["ts"]) + ns(event["dur"]) <= wall_ns
        for event in trace["traceEvents"]
        if event["ph"] == "X"
    )
    told = printed_parts_s(printed)
    sums = parts_ns(trace)
    assert list(told) == [*LABELS, "sum"]
    for label, part in zip(LABELS, PRIORITY, strict=True):
        assert told[label] == pytest.approx(sums[part] * 1e-9, abs=0.0006), label
    assert told["sum"] == pytest.approx(wall_ns * 1e-9, rel=0.05)
    return trace


def threads_with(trace: dict[str, Any], category: str) -> set[str]:
    names = {
        event["tid"]: event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] == "thread_name"
    }
    return {names[each["tid"]] for each in trace["traceEvents"] if each.get("cat") == category}


@pytest.mark.usefixtures("drive")
def test_reads_are_a_valid_trace_and_the_summary_is_what_its_slices_sum_to(tmp_path: Path) -> None:
    result = profile(READ, *QUICK, "--suite", "nvme", "--dir", "new/kv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    trace = checked(tmp_path / "kvbench-trace.json", result.stdout)
    assert threads_with(trace, "io") == {f"lane-{n}" for n in range(4)}
    about = trace["otherData"]
    assert about["kvbench_version"] == __version__
    assert about["machine"]["cpu"]["affinity_cores"]
    assert about["verified_bytes"] > 0
    operations = [
        each
        for each in trace["traceEvents"]
        if each.get("cat") == "step" and each["args"].get("cut") not in {"end", "both"}
    ]
    moved = len(operations) * 64 * 1024
    rate = moved / (about["window_us"] * 1e-6)
    told = re.search(r"moved, ([0-9.]+) ([kMG])B/s while profiling \(slower than", result.stdout)
    assert told, result.stdout
    scale = {"k": 1e3, "M": 1e6, "G": 1e9}[told[2]]
    assert float(told[1]) * scale == pytest.approx(rate, rel=0.01)
    assert re.search(r"^(I/O wait|Python) took the largest part", result.stdout, re.MULTILINE)
    reads = sum(
        each.get("cat") == "io" and "cut" not in each["args"] for each in trace["traceEvents"]
    )
    assert re.search(rf"^read +{reads} ", result.stdout, re.MULTILINE)
    assert left_in(tmp_path) == ["kvbench-trace.json"], "the data file and its directory are gone"


@pytest.mark.usefixtures("drive")
def test_writes_that_are_made_durable_show_both_calls(tmp_path: Path) -> None:
    case = "nvme.write/posix/2MiB/qd1/random/fsync"
    result = profile(case, *QUICK, "-o", "t.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    trace = checked(tmp_path / "t.json", result.stdout)
    names = {each["name"] for each in trace["traceEvents"] if each.get("cat") == "io"}
    assert names == {"write", "sync"}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_copies_in_memory_show_each_thread_of_the_team(tmp_path: Path) -> None:
    result = profile("dram.copy/pageable/2MiB/t2", "--seconds", "0.2", "-o", "t.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    trace = checked(tmp_path / "t.json", result.stdout)
    assert threads_with(trace, "copy") == {"main", "team-1"}
    assert printed_parts_s(result.stdout)["copy"] > 0


def test_a_glob_that_matches_one_case_names_it_and_others_say_how_to_choose(
    tmp_path: Path,
) -> None:
    (tmp_path / "kvbench-trace.json").write_text(OLD)  # a trace may be replaced by another
    result = profile("dram.gather/pageable/*/t1", "--seconds", "0.05", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    checked(tmp_path / "kvbench-trace.json", result.stdout)
    assert result.stdout.startswith("dram.gather/pageable/2MiB/page32KiB/t1: ")
    many = profile("nvme.read/posix/*", cwd=tmp_path)
    assert many.returncode == 2
    assert re.search(r"matches \d+ cases of suite full .*: nvme.read/posix/.*, …$", one_line(many))
    none = profile("nvme.read/posix/2MiB/qd16", cwd=tmp_path)
    assert none.returncode == 2
    assert "is no case of suite full" in one_line(none)
    assert "nvme.read/posix/2MiB/qd16/random" in one_line(none)


@pytest.mark.parametrize("name", ["gather_pages", "gather_p*"])
def test_a_kernel_that_is_named_as_a_case_is_told_of_static(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(profile_here(name))
    assert f"{name!r} is no case of suite full but a kernel: add --static" in said
    assert left_in(tmp_path) == []


def test_a_name_of_nothing_is_told_that_static_takes_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(profile_here("gather_pags"))
    assert said.endswith("(--static also takes names of kernels)")


@pytest.mark.parametrize("columns", [50, 100, 200])
def test_no_line_is_longer_than_the_terminal_or_than_is_readable(
    tmp_path: Path, columns: int
) -> None:
    out = tmp_path / "t.json"
    environment = {**os.environ, "COLUMNS": str(columns)}
    arguments = ("dram.copy/pageable/2MiB/t1", "--seconds", "0.05", "-o", str(out))
    result = profile(*arguments, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    printed = result.stdout.splitlines()
    whole = f"{out}:"  # a path is not broken: it is copied
    assert any(line.startswith(whole) for line in printed)
    assert [line for line in printed if len(line) > min(columns, 100) and line != whole] == []


def test_what_this_machine_lacks_is_one_line_and_no_file(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = profile("hbm.copy/memcpy/2MiB", cwd=tmp_path, env=environment)
    assert result.returncode == 4
    assert "cannot run here: no CUDA device" in one_line(result)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("notes.json", "it is no kvbench.trace/1; name another with -o"),
        ("nowhere/t.json", "there is no directory nowhere"),
        (".", "it is no regular file"),
    ],
)
def test_a_trace_is_not_written_over_something_else(tmp_path: Path, out: str, reason: str) -> None:
    (tmp_path / "notes.json").write_text("mine")
    result = profile("dram.copy/pageable/2MiB/t1", "-o", out, cwd=tmp_path)
    assert result.returncode == 2
    assert reason in one_line(result)
    assert left_in(tmp_path) == ["notes.json"]
    assert (tmp_path / "notes.json").read_text() == "mine"


def test_a_full_disk_is_one_line_and_the_old_trace_stays(tmp_path: Path) -> None:
    arguments = ("dram.copy/pageable/2MiB/t1", "--seconds", "0.05", "-o", "t.json")
    (tmp_path / "t.json").write_text(OLD)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    result = profile(*arguments, cwd=tmp_path, preexec_fn=small_files)
    assert result.returncode == 2
    assert "cannot write t.json: File too large" in one_line(result)
    assert left_in(tmp_path) == ["t.json"]
    assert (tmp_path / "t.json").read_text() == OLD


@pytest.mark.usefixtures("drive")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_profile_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    arguments = ("profile", READ, "--seconds", "50", "--data", "17MB")
    with subprocess.Popen(
        [sys.executable, "-m", "kvbench", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline_s = time.monotonic() + 60
        while not list(tmp_path.glob(".kvbench-*/read.dat")):
            assert time.monotonic() < deadline_s, "it never began"
            time.sleep(0.05)
        time.sleep(0.3)  # into the warm-up, or the recording
        process.send_signal(number)
        out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, "")
    assert errors == "kvbench: interrupted\n"
    assert left_in(tmp_path) == []


def test_static_prints_what_a_kernel_compiles_to_and_records_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = profile("scatter_pages", "--static", cwd=tmp_path, env={**os.environ, **WIDE})
    assert result.returncode == 0, result.stderr
    for architecture in ("sm_80", "sm_90", "sm_100"):
        assert f"scatter_pages {architecture}" in result.stdout
    assert "registers" in result.stdout
    monkeypatch.chdir(tmp_path)
    case = profile_here("hbm.scatter/*/x16", "--static")
    assert case.stdout == result.stdout
    none = refused(profile_here("dram.copy/pageable/2MiB/t1", "--static"))
    assert "dram.copy/pageable/2MiB/t1 launches no kernel of kvbench" in none
    assert left_in(tmp_path) == []


def test_an_unknown_tracer_is_refused(tmp_path: Path) -> None:
    result = profile("dram.copy/pageable/2MiB/t1", "--tracer", "nsys", cwd=tmp_path)
    assert result.returncode == 2
    assert "expected one of auto, torch, proton, none" in one_line(result)
